"""What is fuzzed: one small function a parser, which takes any bytes and fails when an invariant of the parser does not hold.

Rules
- A parser raises nothing but its own error; each target lets through what it may raise, and nothing else.
- Where a parser reads a stream, tearing the stream must not change what is read: the first byte of an input says how to tear.
- What splices gives back the same bytes when it splices what stands there already.
- Where there is an independent reader (h11, llhttp, `json`, botocore), what both accept they must read the same.
- A target is fast and has no state, so that an input fails alone or not at all.
"""

import json
from binascii import crc32
from collections.abc import Callable, Iterator
from contextlib import suppress
from struct import pack
from typing import Any, Final

import msgspec
from botocore.eventstream import EventStreamBuffer, ParserError

from ostiary.core import journal
from ostiary.core.messages import FrameReader, LinkMessage, WorkerMessage
from ostiary.core.provider_env import ProviderEnvError, read_provider_environment
from ostiary.core.provider_rules import new_name_problem
from ostiary.core.secret import Secret
from ostiary.http1.origin import split_base_url
from ostiary.wire import json_edit, sse
from ostiary.wire.bedrock import MessagesStream, beta_flags, error_answer, invoke_body
from ostiary.wire.content_coding import CodingError, decode_body, decoder_for, narrow_accept_encoding
from ostiary.wire.errors import classify, read_error
from ostiary.wire.event_stream import EventStreamError, EventStreamReader, encode
from ostiary.wire.facts import Content, Format, RequestError
from ostiary.wire.formats import observer_for, read_body, read_request
from ostiary.wire.include_usage import UsageChunkFilter, splice_include_usage
from ostiary.wire.lenient import is_json
from ostiary.wire.members import MemberScanner
from ostiary.wire.metered import form_facts

from .http1_targets import addresses, chunks, request_head, request_stream, response_head, response_stream
from .tearing import control, torn

Target = Callable[[bytes], None]

FORMATS: Final[tuple[Format, ...]] = ("chat_completions", "responses", "messages", "metered")
CONTENTS: Final[tuple[Content, ...]] = ("none", "prompts", "full")
NAMES: Final = ("model", "stream_options", "a", "", "é", "\\", "metadata")
MODELS: Final = ("anthropic.claude-opus-4-7", "anthropic.claude-3-7-sonnet-20250219-v1:0", "arn:aws:x")


# --- JSON


def plain(document: bytes) -> Any:
    return json.loads(document.decode("utf-8", "surrogateescape").removeprefix("\ufeff"))


def json_edits(data: bytes) -> None:
    how, document = control(data)
    name = NAMES[how % len(NAMES)]
    try:
        place = json_edit.find(document, name)
        edited = json_edit.set_member(document, (name,), b'{"x":[1]}')
    except json_edit.JSONEditError as error:
        assert document not in str(error).encode() or len(document) < 40
        return
    before = plain(document)
    assert plain(edited) == before | {name: {"x": [1]}}
    if place is not None and is_json(document[place]):
        assert json_edit.set_member(document, (name,), document[place]) == document
        assert plain(document[place]) == before[name]
        assert json_edit.edit_members(document, {name: document[place]}) == document
    without = json_edit.edit_members(document, {name: None})
    assert plain(without) == {other: value for other, value in before.items() if other != name}
    assert json_edit.edit_members(document, {}) == document
    with suppress(json_edit.JSONEditError):  # what stands there is no object
        plain(json_edit.set_member(document, (name, "a", "b"), b"7"))
    with suppress(json_edit.JSONEditError):
        json_edit.find(document, name, "a")


WANTED: Final = frozenset((b"id", b"model", b"usage"))


def members(data: bytes) -> None:
    how, document = control(data)
    whole, parts = MemberScanner(WANTED), MemberScanner(WANTED)
    whole.feed(document)
    for piece in torn(how, document):
        parts.feed(piece)
    assert (parts.found, parts.whole) == (whole.found, whole.whole)
    try:
        wanted = msgspec.json.decode(document.removeprefix(b"\xef\xbb\xbf"), type=dict[str, msgspec.Raw])
    except (ValueError, RecursionError):
        return
    assert whole.whole
    names = {name.encode() for name in wanted}
    if b"\\" not in document:
        assert whole.found == {name: bytes(wanted[name.decode()]) for name in WANTED & names}


# --- requests and answers


def requests(data: bytes) -> None:
    how, body = control(data)
    for format_ in FORMATS:
        try:
            facts = read_request(format_, body, CONTENTS[how % 3])
        except RequestError as error:
            str(error).encode()
            continue
        msgspec.msgpack.encode(facts)  # what is read can be recorded
        if format_ == "chat_completions":
            with suppress(json_edit.JSONEditError):
                asking = splice_include_usage(body, facts)
                again = read_request(format_, asking)
                assert again.model == facts.model
                assert splice_include_usage(asking, again) == asking


def bodies(data: bytes) -> None:
    how, body = control(data)
    for format_ in FORMATS:
        with suppress(ValueError):
            msgspec.msgpack.encode(read_body(format_, body, CONTENTS[how % 3]))
        error = read_error(format_, (b"application/json", b"text/plain")[how % 2], body)
        msgspec.msgpack.encode(error)
        classify(format_, (200, 400, 529)[how % 3], error)


def streams(data: bytes) -> None:
    how, stream = control(data)
    content = CONTENTS[how % 3]
    for format_ in FORMATS:
        found = []
        for pieces in (iter((stream,)), torn(how, stream)):
            observer = observer_for(format_, b"text/event-stream", content)
            assert observer is not None
            for piece in pieces:
                observer.feed(piece)
                observer.compact()
            facts = observer.finish()
            assert "Error while" not in facts.problem, f"{format_}: {facts.problem}"
            msgspec.msgpack.encode(facts)
            # Whether an event that holds no fact is looked at at all is left to what stands beside it.
            found.append(msgspec.structs.replace(facts, unparsed=False, problem=""))
        assert found[0] == found[1], f"{format_}: tearing changes the facts"


def events(data: bytes) -> None:
    how, stream = control(data)
    splitter, whole = sse.EventSplitter(), sse.EventSplitter()
    parts = [event for piece in torn(how, stream) for event in splitter.feed(piece)]
    events = whole.feed(stream)
    assert b"".join(events) + whole.held * b"x" == b"".join(parts) + splitter.held * b"x"
    rest, other = whole.flush(), splitter.flush()
    assert b"".join((*parts, other)) == b"".join((*events, rest)) == stream
    said = [sse.parse(event) for event in (*events, rest)]
    assert [event for event in map(sse.parse, (*parts, other)) if event.data] == [one for one in said if one.data]
    filtered, alone = UsageChunkFilter(), UsageChunkFilter()
    out = b"".join(filtered.feed(piece) for piece in torn(how, stream)) + filtered.flush()
    assert out == alone.feed(stream) + alone.flush()
    assert filtered.withheld or out == stream


def forms(data: bytes) -> None:
    header, _, body = data.partition(b"\n")
    model = form_facts(body, header).model
    assert model is None or len(model) <= 4096
    assert form_facts(body, b"multipart/form-data; boundary=b").model is None or b"--b" in body


CODINGS: Final = (b"gzip", b"deflate", b"br", b"zstd")
CAP: Final = 64 * 1024


def codings(data: bytes) -> None:
    how, packed = control(data)
    coding = CODINGS[how % 4]

    def unpack(pieces: Iterator[bytes]) -> bytes | None:
        decoder = decoder_for(coding, CAP)
        assert decoder is not None
        out = bytearray()
        try:
            for piece in pieces:
                for part in decoder.decode(piece):
                    out += part
                    assert len(out) <= CAP
        except CodingError:
            return None
        return bytes(out)

    whole, parts = unpack(iter((packed,))), unpack(torn(how, packed))
    # Bytes behind the end are an error to brotli when they come together with it, and are ignored later; zstd finds some
    # damage sooner or later.
    assert whole == parts or (coding in (b"br", b"zstd") and None in (whole, parts))
    with suppress(CodingError):
        assert len(decode_body(packed[:40], packed, CAP)) <= max(CAP, len(packed))
    assert narrow_accept_encoding(narrow_accept_encoding(packed)) == narrow_accept_encoding(packed)


# --- AWS


def sealed(data: bytes) -> bytes:
    """Frames with right checksums around what `data` has: lengths of headers and payload, then both."""
    out = []
    while len(data) > 2 and len(out) < 8:
        headers, payload = data[2 : 2 + data[0]], data[2 + data[0] : 2 + data[0] + data[1]]
        lengths = pack("!II", 16 + len(headers) + len(payload), len(headers))
        message = lengths + pack("!I", crc32(lengths)) + headers + payload
        out.append(message + pack("!I", crc32(message)))
        data = data[2 + data[0] + data[1] :]
    return b"".join(out)


def event_stream(data: bytes) -> None:
    how, inner = control(data)
    stream = sealed(inner) if how & 1 else inner
    found: list[list[Any]] = [[], []]
    for messages, pieces in zip(found, (iter((stream,)), torn(how, stream)), strict=True):
        reader = EventStreamReader()
        try:
            for piece in pieces:
                messages += reader.feed(piece)
            reader.finish()
        except EventStreamError as error:
            messages.append(str(error)[:20])
    assert found[0] == found[1]
    theirs = EventStreamBuffer()
    theirs.add_data(stream)
    whole = [message for message in found[0] if not isinstance(message, str)]
    try:
        for ours, other in zip(whole, theirs, strict=False):
            assert ours.payload == other.payload
            assert [*ours.headers] == [*other.headers]
    except (ParserError, UnicodeDecodeError) as error:
        raise AssertionError("botocore refuses what we accept") from error
    for message in whole:
        with suppress(ValueError):  # an empty name
            assert EventStreamReader().feed(encode(message.headers, message.payload)) == [message]


def bedrock_stream(data: bytes) -> None:
    how, inner = control(data)
    # What is fuzzed is what the frames hold: an event's JSON, or an error's.
    frames = []
    for part in inner.split(b"\n\n")[:8]:
        kind, _, payload = part.partition(b"\n")
        headers = {":message-type": "event", ":event-type": "chunk"}
        if kind.startswith(b"!"):
            headers = {":message-type": "exception", ":exception-type": kind[1:].decode("latin-1")}
        elif kind.startswith(b"?"):
            headers = {":message-type": "error", ":error-code": kind[1:].decode("latin-1")}
        else:
            payload = msgspec.json.encode({"bytes": part, "p": "abc"}) if not kind.startswith(b"=") else payload
        frames.append(encode(headers, payload))
    stream = b"".join(frames)
    outs = []
    for pieces in (iter((stream,)), torn(how, stream)):
        reader, out = MessagesStream(), b""
        try:
            for piece in pieces:
                out += reader.feed(piece)
            reader.finish()
        except EventStreamError:
            out += b"<damage>"
        outs.append(out)
    assert outs[0] == outs[1]
    events = sse.EventSplitter().feed(outs[0].removesuffix(b"<damage>"))
    assert b"".join(events) + b"<damage>" * outs[0].endswith(b"<damage>") == outs[0]
    for event in map(sse.parse, events):
        assert event.data is not None
    for shape in ("anthropic", "openai"):
        said = error_answer(shape, 400 + how, inner[:20], inner)  # type: ignore[arg-type]
        assert "error" in json.loads(said.decode("utf-8", "replace"))


def bedrock_request(data: bytes) -> None:
    how, rest = control(data)
    header, _, body = rest.partition(b"\n")
    invoked = invoke_body(body, MODELS[how % 3], beta_flags(header))
    "".join(invoked.edits).encode()
    try:
        before = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except (ValueError, RecursionError):
        return
    after = msgspec.json.decode(invoked.body, type=dict[str, msgspec.Raw])
    if any("sent as it came" in edit for edit in invoked.edits):
        assert invoked.body == body
        return
    assert not {"model", "stream"} & set(after)
    for name in ("messages", "system", "a", ""):
        assert before.get(name) == after.get(name)


# --- what our processes say to each other, and to disk


def framed(seq: int, data: bytes) -> bytes:
    """Journal frames around the parts of `data`."""
    parts = [part for part in data.split(b"\n") if part][:16]
    return b"".join(journal.frame_header(seq + i, part) + part for i, part in enumerate(parts))


def journal_frames(data: bytes) -> None:
    how, inner = control(data)
    seq = 1 + how * 0x01010101
    cut = min(how, len(inner))
    damaged = framed(seq, inner[:cut]) + inner[cut:] + framed(seq + 3, inner[: cut + 9])
    for stream in (inner, damaged, inner + damaged):
        parsed = journal.parse(stream, seq)
        assert parsed.next_seq == seq + len(parsed.payloads)
        written = b"".join(journal.frame_header(seq + i, part) + part for i, part in enumerate(parsed.payloads))
        assert stream.startswith(written)
        assert parsed.end == len(written)
        assert journal.parse(stream[: parsed.end], seq).payloads == parsed.payloads
        limited = journal.parse(stream, seq, max_records=2, max_bytes=8, skip_to=seq + 1)
        assert limited.payloads == parsed.payloads[1 : 1 + len(limited.payloads)]
        found = journal.find_next(stream, seq)
        assert found is None or (found.seq >= seq and journal.parse(stream[found.offset :], found.seq).payloads)


def process_frames(data: bytes) -> None:
    how, inner = control(data)
    size = min(len(inner), how)
    for kind in (WorkerMessage, LinkMessage):
        stream = pack("!I", size) + inner
        found = []
        for pieces in (iter((stream,)), torn(how, stream)):
            reader: FrameReader[Any] = FrameReader(kind)
            seen: list[Any] = []
            try:
                for piece in pieces:
                    seen += reader.feed(piece)
            except (msgspec.DecodeError, ValueError):
                seen = []
            found.append(seen)
        assert len(found[0]) == len(found[1])


SECRET: Final = "sk-never-tell-0123456789"


def provider_environment(data: bytes) -> None:
    lines = [line.partition("=") for line in data.decode("utf-8", "replace").replace("$K", SECRET).split("\n")]
    variables = {name: Secret(value) for name, _, value in lines}
    try:
        environment = read_provider_environment(variables)
    except ProviderEnvError as error:
        assert SECRET not in str(error) or any(SECRET in name for name in variables)
        return
    names = [provider.name for provider in environment.providers]
    assert names == sorted(set(names))
    backwards = dict(reversed(variables.items()))
    assert read_provider_environment(backwards) == environment
    assert not any(SECRET in warning for warning in environment.warnings) or any(SECRET in name for name in variables)
    for provider in environment.providers:
        assert not new_name_problem(provider.name)
        if provider.base_url:
            split_base_url(provider.base_url)


TARGETS: Final[dict[str, Target]] = {
    target.__name__: target
    for target in (
        request_head,
        response_head,
        request_stream,
        response_stream,
        chunks,
        addresses,
        json_edits,
        members,
        requests,
        bodies,
        streams,
        events,
        forms,
        codings,
        event_stream,
        bedrock_stream,
        bedrock_request,
        journal_frames,
        process_frames,
        provider_environment,
    )
}
