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

import h11
import msgspec
from botocore.eventstream import EventStreamBuffer, ParserError
from httptools import HttpParserError, HttpRequestParser

from ostiary.core import agents, journal
from ostiary.core.messages import FrameReader, LinkMessage, WorkerMessage
from ostiary.core.provider_env import ProviderEnvError, read_provider_environment
from ostiary.core.provider_rules import base_url_problem, key_problem, new_name_problem
from ostiary.core.secret import Secret
from ostiary.http1.chunks import ChunkedReader
from ostiary.http1.errors import BodyError, HeadError
from ostiary.http1.fields import REQUEST_DROPPED, REQUEST_PREFIXES, Kept, kept_lines
from ostiary.http1.head import CHUNKED, LENGTH, NO_BODY, parse_request_head, parse_response_head
from ostiary.http1.origin import bypasses_proxy, is_refused, parse_networks, split_base_url
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
from ostiary.wire.metered import form_model
from tests.fuzz.http1_readers import (
    agree,
    h11_requests,
    h11_response,
    harmless,
    llhttp_requests,
    llhttp_response,
    our_requests,
    our_response,
)
from tests.http1.http1_stage import perform

Target = Callable[[bytes], None]

FORMATS: Final[tuple[Format, ...]] = ("chat_completions", "responses", "messages", "metered")
CONTENTS: Final[tuple[Content, ...]] = ("none", "prompts", "full")
NAMES: Final = ("model", "stream_options", "a", "", "é", "\\", "metadata")
MODELS: Final = ("anthropic.claude-opus-4-7", "anthropic.claude-3-7-sonnet-20250219-v1:0", "arn:aws:x")


def control(data: bytes) -> tuple[int, bytes]:
    """The byte that says how, and the input itself."""
    return (data[0] if data else 0), data[1:]


def torn(how: int, data: bytes) -> Iterator[bytes]:
    """`data` in pieces of a size that `how` says: single bytes, some more, or in two."""
    size = how % 16 or max(1, len(data) * (how >> 4) // 16)
    for at in range(0, len(data), size):
        yield data[at : at + size]


# --- HTTP/1.1


def one_head(data: bytes) -> bytes:
    """As a connection finds it: up to the first empty line."""
    head, end, _ = (data + b"\r\n\r\n").partition(b"\r\n\r\n")
    return head + end


def request_head(data: bytes) -> None:
    raw = one_head(data)
    try:
        head = parse_request_head(raw)
    except HeadError as error:
        assert 400 <= error.status < 600
        return
    assert b"\r\n".join((raw.partition(b"\r\n")[0], *head.lines, b"", b"")) == raw
    assert not any(control in line for line in head.lines for control in (b"\r", b"\n", b"\x00"))
    assert head.path + head.query == head.target
    assert head.target.startswith(b"/")
    lengths = head.names.count(b"content-length")
    assert lengths + head.names.count(b"transfer-encoding") <= 1
    assert head.framing in ((CHUNKED,) if b"transfer-encoding" in head.fields else (LENGTH, NO_BODY))
    kept = kept_lines(head, Kept(REQUEST_DROPPED, REQUEST_PREFIXES))
    assert not any(line.lower().startswith((b"content-length:", b"transfer-encoding:", b"host:")) for line in kept)
    for name in (agents.detect_client(head.fields), agents.session_id("x", head.fields)):
        name.encode()
    with suppress(agents.AgentFirewallError):
        agents.agent_firewall(head.fields)
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    connection.receive_data(raw)
    event = connection.next_event()  # what h11 refuses, we do not accept
    assert isinstance(event, h11.Request)
    assert [bytes(name) for name, _ in event.headers] == head.names
    assert bytes(event.method) == head.method


def response_head(data: bytes) -> None:
    raw = one_head(data)
    try:
        head = parse_response_head(raw)
    except HeadError as error:
        assert error.status == 502
        return
    assert 100 <= head.status <= 999
    assert b"\r\n".join((head.status_line, *head.lines, b"", b"")) == raw
    assert not any(control in line for line in head.lines for control in (b"\r", b"\n", b"\x00"))
    assert head.names.count(b"content-length") + head.names.count(b"transfer-encoding") <= 1
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
    connection.send(h11.Request(method="GET", target="/", headers=[("host", "h")]))
    connection.send(h11.EndOfMessage())
    connection.receive_data(raw)
    event = connection.next_event()
    assert isinstance(event, h11.Response | h11.InformationalResponse)
    assert event.status_code == head.status
    assert [bytes(name) for name, _ in event.headers] == head.names


def request_stream(data: bytes) -> None:
    how, stream = control(data)

    async def play() -> None:
        whole = await our_requests([stream])
        assert await our_requests([*torn(how, stream[:2000]), stream[2000:]]) == whole, "tearing changes it"
        for reader in (h11_requests, llhttp_requests):
            agree(whole, reader(stream))

    perform(play)


def response_stream(data: bytes) -> None:
    how, stream = control(data)
    method = "HEAD" if how & 8 else "GET"

    async def play() -> None:
        ours, answer = await our_response([stream], method)
        theirs = h11_response(stream, method)
        if theirs.status and ours.status:
            assert (ours.status, ours.headers) == (theirs.status, theirs.headers)
        if ours.complete:
            assert ours.payload == theirs.payload
            if theirs.complete:
                assert stream[: len(stream) - theirs.rest].endswith(bytes(answer.out).removeprefix(b"<head>"))
            else:
                assert harmless(theirs.refusal, ours.headers), theirs.refusal
            if method == "GET":
                other = llhttp_response(stream)
                assert other.status < 200 or (other.status, other.payload) == (ours.status, ours.payload)
        again, _ = await our_response([*torn(how, stream[:2000]), stream[2000:]], method)
        if theirs.complete and not theirs.rest:
            assert again == ours, "tearing changes it"

    perform(play)


CHUNKED_HEAD: Final = b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunks(data: bytes) -> None:
    how, body = control(data)

    def read(pieces: Iterator[bytes]) -> tuple[bytes, bool, bytes] | None:
        reader = ChunkedReader()
        payload, rest = b"", b""
        try:
            for piece in pieces:
                if reader.done:
                    rest += piece
                else:
                    payload += b"".join(reader.feed(piece))
        except BodyError:
            return None
        return payload, reader.done, reader.rest + rest

    whole = read(iter((body,)))
    assert read(torn(how, body)) == whole
    if whole is None or not whole[1]:
        return
    size = len(body) - len(whole[2])
    theirs = h11_requests(CHUNKED_HEAD + body[:size])
    chunked = [(b"transfer-encoding", b"chunked")]
    assert [message[3] for message in theirs.messages] == [whole[0]] or harmless(theirs.refusal, chunked), (
        theirs.refusal
    )
    seen: list[bytes] = []
    parser = HttpRequestParser(type("_Sink", (), {"on_body": lambda _, piece: seen.append(piece)})())
    try:
        parser.feed_data(CHUNKED_HEAD + body[:size])
    except HttpParserError as error:
        assert harmless(str(error), chunked), f"llhttp refuses it: {error}"
    else:
        assert b"".join(seen) == whole[0]


def addresses(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    problem = base_url_problem(text)
    try:
        origin, path, query = split_base_url(text)
    except ValueError:
        assert problem is not None, "the API takes a base URL that no worker can use"
    else:
        if problem is None:
            assert (origin.authority + path + query).isascii()
            assert not set(origin.authority + path + query) & set(" \r\n\t\x00")
            assert 0 < origin.port < 65536
    with suppress(ValueError):
        is_refused(text, ())
    with suppress(ValueError):
        parse_networks([text])
    host, _, no_proxy = text.partition("\n")
    bypasses_proxy(host, 443, no_proxy)
    new_name_problem(text)
    key_problem(text)


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
    plain(json_edit.remove_member(document, (name,)))
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
    model = form_model(body, header)
    assert model is None or len(model) <= 4096
    assert form_model(body, b"multipart/form-data; boundary=b") is None or b"--b" in body


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
