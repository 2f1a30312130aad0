"""Metered routes: what is read of requests, forms and answers, and that nothing long is held for it."""

import base64
import gzip
import itertools
import json
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ostiary.wire.errors import classify, read_error
from ostiary.wire.facts import RequestError, RequestFacts, ResponseFacts
from ostiary.wire.formats import observer_for, read_body, read_request
from ostiary.wire.members import MAX_STEPS, MAX_VALUE, MemberScanner
from ostiary.wire.metered import MAX_FORM_START, form_facts
from ostiary.wire.observer import COMPACT_EVERY, MAX_HELD

JSON = b"application/json"
SSE = b"text/event-stream; charset=utf-8"

# --- requests


@pytest.mark.parametrize(
    ("body", "facts"),
    [
        (b'{"model":"text-embedding-3-small","input":"secret words"}', RequestFacts("text-embedding-3-small")),
        (b'{"model":"m","stream":true,"prompt":"secret words"}', RequestFacts("m", stream=True)),
        (b'{"model":"m","stream":"yes"}', RequestFacts("m")),
        (b'{"input_file_id":"file-1","endpoint":"/v1/embeddings"}', RequestFacts("")),
        (b'{"model":7}', RequestFacts("")),
        (b'{"model":null}', RequestFacts("")),
        (b"", RequestFacts("")),
        (b" \r\n", RequestFacts("")),
    ],
)
def test_of_a_request_its_model_is_read_and_no_content(body, facts):
    assert read_request("metered", body, "full") == facts


@pytest.mark.parametrize("body", [b"{", b"[]", b'"x"', b"null", b"model=x", b"[" * 100_000, b"\xff"])
def test_a_body_that_is_no_object_is_refused(body):
    with pytest.raises(RequestError):
        read_request("metered", body)


# --- forms


def form(*parts: tuple[str, bytes], boundary: str = "b0undary", preamble: bytes = b"") -> bytes:
    joined = b"".join(
        f"--{boundary}\r\nContent-Disposition: form-data; {disposition}\r\n\r\n".encode() + value + b"\r\n"
        for disposition, value in parts
    )
    return preamble + joined + f"--{boundary}--\r\n".encode()


FILE = ('name="file"; filename="a.wav"\r\nContent-Type: audio/wav', b"RIFF" + bytes(200))
TYPE = b"multipart/form-data; boundary=b0undary"


@pytest.mark.parametrize(
    ("body", "content_type", "model"),
    [
        (form(('name="model"', b"whisper-1"), FILE), TYPE, "whisper-1"),
        (form(FILE, ('name="model"', b"whisper-1")), TYPE, "whisper-1"),
        (form(("name=model", b" whisper-1 ")), TYPE, "whisper-1"),
        (form(('name="model"\r\nContent-Type: text/plain', b"m")), TYPE, "m"),
        (form(('name="model"', b"m"), preamble=b"ignore me\r\n"), TYPE, "m"),
        (form(('name="model"', "ü".encode())), TYPE, "ü"),
        (form(('name="model"', b"m"), boundary="a b'c"), b'Multipart/Form-Data; charset=x; Boundary="a b\'c"', "m"),
        (form(('name="model"', b"")), TYPE, ""),
        # none, or not this one
        (form(FILE), TYPE, None),
        (form(('name="models"', b"m")), TYPE, None),
        (form(('name="model"; filename="m"', b"m")), TYPE, None),
        (form(('name="x"; filename="; name=model"', b"m")), TYPE, None),
        (form(('name="prompt"', b'Content-Disposition: form-data; name="model"\r\n\r\nm')), TYPE, None),
        (form(('name="model"', b"m" * 300)), TYPE, None),
        (form(('name="model"', b"m")), b"application/json", None),
        (form(('name="model"', b"m")), b"multipart/form-data", None),
        (form(('name="model"', b"m")), b"multipart/form-data; boundary=" + b"x" * 71, None),
        (form(('name="file"', bytes(MAX_FORM_START)), ('name="model"', b"m")), TYPE, None),
    ],
)
def test_the_model_of_a_form_is_the_part_of_that_name(body, content_type, model):
    assert form_facts(body, content_type).model == model


def test_a_torn_form_gives_the_whole_model_or_none():
    body = form(FILE, ('name="model"', b"gpt-4o-transcribe"), ('name="stream"', b"true"))
    seen = [form_facts(body[:size], TYPE).model for size in range(len(body) + 1)]
    assert set(seen) == {None, "gpt-4o-transcribe"}
    assert seen == sorted(seen, key=lambda model: model is not None)


MODEL = ('name="model"', b"m")


@pytest.mark.parametrize(
    ("parts", "stream", "file_begun"),
    [
        ((MODEL, ('name="stream"', b"true"), FILE), True, True),
        ((FILE, ('name="stream"', b" True "), MODEL), True, True),
        ((MODEL, ("name=stream", b"1")), True, False),
        ((MODEL, ('name="stream"', b"false"), FILE), False, True),
        ((MODEL, ('name="stream"', b"")), False, False),
        ((MODEL, ('name="stream"', b"true"), ('name="stream"', b"false")), True, False),
        ((MODEL, ('name="streams"', b"true")), None, False),
        ((MODEL, ('name="stream"; filename="x"', b"true")), None, True),
        ((MODEL, ('name="prompt"', b'Content-Disposition: form-data; name="a"; filename="b"')), None, False),
    ],
)
def test_a_form_says_whether_a_stream_is_wanted_and_whether_a_file_has_begun(parts, stream, file_begun):
    facts = form_facts(form(*parts), TYPE)
    assert (facts.model, facts.stream, facts.file_begun) == ("m", stream, file_begun)


def test_a_file_has_begun_with_its_head():
    body = form(MODEL, FILE)
    at = body.index(b"filename")
    assert not form_facts(body[:at], TYPE).file_begun
    assert form_facts(body[: at + 10], TYPE).file_begun


HOSTILE = st.lists(
    st.sampled_from(
        [
            b"--b",
            b"\r\n",
            b"\n",
            b"Content-Disposition: form-data",
            b"; ",
            b'name="model"',
            b'"',
            b"\\",
            b"filename=",
            b"--",
            b"x",
        ]
    ),
    max_size=30,
).map(b"".join)


@given(HOSTILE, st.one_of(st.binary(max_size=40), HOSTILE).map(lambda rest: b"multipart/form-data; boundary=b" + rest))
def test_no_form_raises(body, content_type):
    model = form_facts(body, content_type).model
    assert model is None or len(model) <= 256


# --- answers


def observed(
    body: bytes, content_type: bytes = JSON, *, pieces: list[int] | None = None, coding: bytes = b""
) -> ResponseFacts:
    """As the relay tells it; `pieces`: where it is torn."""
    observer = observer_for("metered", content_type, "full", coding)
    assert observer is not None
    cuts = [0, *(pieces or []), len(body)]
    since = 0
    for begin, end in itertools.pairwise(cuts):
        observer.feed(body[begin:end])
        since += end - begin
        if since >= COMPACT_EVERY or pieces:
            observer.compact()
            since = 0
    return observer.finish()


IMAGE_USAGE = {
    "input_tokens": 50,
    "input_tokens_details": {"image_tokens": 40, "text_tokens": 10},
    "output_tokens": 60,
    "output_tokens_details": {"image_tokens": 55, "text_tokens": 5},
    "total_tokens": 110,
}
ANSWERS: dict[str, tuple[dict[str, Any], tuple[int, int, int], dict[str, Any]]] = {
    "embeddings": (
        {
            "object": "list",
            "data": [{"embedding": [0.1, -2e-3]}],
            "model": "m",
            "usage": {"prompt_tokens": 8, "total_tokens": 8},
        },
        (8, 0, 0),
        {},
    ),
    "completions": (
        {
            "id": "cmpl-1",
            "model": "m",
            "choices": [{"text": '"usage":{"prompt_tokens":1}', "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 9, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 3}},
        },
        (6, 4, 3),
        {},
    ),
    "compacted": (
        {
            "id": "resp_1",
            "object": "response.compaction",
            "output": [{"type": "compaction", "id": "cmp_1", "encrypted_content": "QUJD"}],
            "usage": {
                "input_tokens": 1000,
                "input_tokens_details": {"cached_tokens": 600, "cache_write_tokens": 100},
                "output_tokens": 50,
                "output_tokens_details": {"reasoning_tokens": 20},
                "total_tokens": 1050,
            },
        },
        (300, 50, 600),
        {"output_reasoning": 20, "total_tokens": 1050},
    ),
    "images": (
        {"created": 1, "usage": IMAGE_USAGE, "data": [{"b64_json": "QUJD" * 50}]},
        (50, 60, 0),
        {"input_text": 10, "input_image": 40, "output_text": 5, "output_image": 55, "total_tokens": 110},
    ),
    "transcription": (
        {
            "text": "said",
            "usage": {
                "type": "tokens",
                "input_tokens": 14,
                "input_token_details": {"text_tokens": 10, "audio_tokens": 4},
                "output_tokens": 101,
                "total_tokens": 115,
            },
        },
        (14, 101, 0),
        {"input_text": 10, "input_audio": 4, "total_tokens": 115},
    ),
    "duration": ({"text": "said", "usage": {"type": "duration", "seconds": 9.25}}, (0, 0, 0), {"audio_ms": 9250}),
    "clamped": ({"usage": {"input_tokens": -5, "output_tokens": 2}}, (0, 2, 0), {"clamped": "input_tokens"}),
}


@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.parametrize("coding", [b"", b"gzip"])
def test_usage_is_read_where_the_answer_carries_it(name, coding):
    answer, numbers, metadata = ANSWERS[name]
    body = json.dumps(answer).encode()
    facts = observed(gzip.compress(body) if coding else body, coding=coding)
    usage = facts.usage
    assert usage is not None
    assert (usage.input_tokens, usage.output_tokens, usage.cache_read_input_tokens) == numbers
    assert usage.metadata == metadata
    assert json.loads(usage.raw) == answer["usage"]
    assert (facts.response_id, facts.model) == (answer.get("id", ""), answer.get("model", ""))
    assert facts.complete
    assert not facts.unparsed
    assert facts.output_text == ""


@pytest.mark.parametrize("name", ANSWERS)
def test_where_an_answer_is_torn_does_not_matter(name):
    body = json.dumps(ANSWERS[name][0], indent=1).encode()
    whole = read_body("metered", body)
    for cut in range(len(body)):
        assert observed(body, pieces=[cut]) == whole
    assert observed(body, pieces=list(range(1, len(body)))) == whole


def test_an_answer_without_usage_has_none():
    facts = observed(b'{"id":"modr-1","model":"omni-moderation","results":[{"flagged":false}]}')
    assert (facts.response_id, facts.model, facts.usage, facts.complete) == ("modr-1", "omni-moderation", None, True)


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b"plain", b'{"id":"a","usage":{"input_tokens":1}', b'{"id" 1}'])
def test_an_answer_that_is_no_whole_object_is_unparsed(body):
    facts = observed(body)
    assert facts.unparsed
    assert not facts.complete
    assert facts.problem == "the answer is not one whole JSON object"


def test_what_was_seen_of_a_cut_answer_counts():
    facts = observed(b'{"id":"a","usage":{"input_tokens":7},"data":[{"b64_json":"AAAA')
    assert facts.usage is not None
    assert (facts.response_id, facts.usage.input_tokens, facts.unparsed) == ("a", 7, True)


def test_an_answer_of_many_megabytes_is_not_held():
    picture = base64.b64encode(bytes(6_000_000)).decode()
    body = json.dumps(
        {"data": [{"b64_json": picture}, {"b64_json": picture}], "usage": IMAGE_USAGE, "id": "i"}
    ).encode()
    observer = observer_for("metered", JSON)
    assert observer is not None
    before = sys.getallocatedblocks()
    largest = 0
    for at in range(0, len(body), COMPACT_EVERY):
        observer.feed(body[at : at + COMPACT_EVERY])
        observer.compact()
        largest = max(largest, _held_by(observer))
    assert largest < MAX_HELD
    assert sys.getallocatedblocks() - before < 1000
    facts = observer.finish()
    assert facts.usage is not None
    assert facts.usage.output_tokens == 60


def _held_by(found: object, seen: set[int] | None = None) -> int:
    """Bytes that an object keeps alive."""
    seen = set() if seen is None else seen
    if id(found) in seen:
        return 0
    seen.add(id(found))
    if isinstance(found, bytes):
        return len(found)
    if isinstance(found, list | tuple):
        return sum(_held_by(one, seen) for one in found)
    if isinstance(found, dict):
        return sum(_held_by(one, seen) for one in found.values())
    names = [name for kind in type(found).__mro__ for name in getattr(kind, "__slots__", ())]
    held = [getattr(found, name) for name in names if hasattr(found, name)]
    inside = type(found).__module__.startswith("ostiary.wire")
    return sum(
        _held_by(one, seen) for one in (*held, *(vars(found).values() if hasattr(found, "__dict__") and inside else ()))
    )


@pytest.mark.parametrize(
    "body",
    [
        b'{"usage":{"input_tokens":1,"note":"' + b"x" * MAX_VALUE + b'"}}',
        b'{"usage":{"input_tokens":1},"id":"' + b"x" * MAX_VALUE + b'"}',
        b'{"data":' + b"[" * (MAX_STEPS + 2) + b"]" * (MAX_STEPS + 2) + b"}",
    ],
)
def test_what_is_beyond_our_bounds_is_told(body):
    facts = observed(body)
    assert facts.unparsed
    assert "than" in facts.problem


JSON_VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(allow_nan=False),
        st.text(max_size=8),
        st.sampled_from(['"', "\\", '\\"}', "]"]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.sampled_from(["usage", "id", "a", '"', ""]), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(
    st.dictionaries(st.sampled_from(["usage", "id", "data", "x"]), JSON_VALUES, max_size=4),
    st.lists(st.integers(0, 400), max_size=6).map(sorted),
    st.sampled_from([None, 1]),
    st.booleans(),
)
def test_members_are_those_that_a_parser_finds_however_the_document_is_torn(document, cuts, indent, ascii_only):
    body = json.dumps(document, indent=indent, ensure_ascii=ascii_only).encode()
    scanner = MemberScanner(frozenset((b"usage", b"id")))
    for begin, end in zip([0, *cuts], [*cuts, len(body)], strict=True):
        scanner.feed(body[begin:end])
    assert scanner.whole
    found = {name.decode(): json.loads(raw) for name, raw in scanner.found.items()}
    assert found == {name: value for name, value in document.items() if name in ("usage", "id")}


TOKENS = st.lists(
    st.sampled_from(
        [
            b"{",
            b"}",
            b"[",
            b"]",
            b'"',
            b"\\",
            b",",
            b":",
            b'"usage"',
            b'"error"',
            b'"id"',
            b"1e999",
            b"-",
            b"null",
            b"\xff",
            b" ",
            b"\r\n",
            b"data: ",
            b"data:",
            b"\n\n",
            b"[DONE]",
            b"\xef\xbb\xbf",
            b"event: x\n",
            b'{"usage":{"input_tokens":1}}',
            b'{"error":"e"}',
        ]
    ),
    max_size=40,
).map(b"".join)


@given(TOKENS, st.lists(st.integers(0, 100), max_size=5).map(sorted), st.sampled_from([JSON, SSE]))
def test_no_answer_raises_and_torn_or_not_it_says_the_same(body, cuts, content_type):
    assert observed(body, content_type, pieces=cuts or None) == observed(body, content_type)


@pytest.mark.parametrize(
    ("body", "message", "code"),
    [
        (
            b'{"error":{"message":"no","type":"invalid_request_error","code":"invalid_api_key"}}',
            "no",
            "invalid_api_key",
        ),
        (b'{"error":{"code":"429","message":"slow down"}}', "slow down", "429"),
        (b'{"error":"plain words"}', "plain words", ""),
    ],
)
def test_errors_are_openais(body, message, code):
    error = read_error("metered", JSON, body)
    assert (error.message, error.code) == (message, code)
    facts = observed(body)
    assert facts.error == error
    assert not facts.complete


def test_the_kind_of_an_error_is_told_as_for_chat():
    error = read_error("metered", JSON, b'{"error":{"message":"x","code":"insufficient_quota"}}')
    assert classify("metered", 429, error) == "rate_limited"
    assert classify("metered", 503, None) == "overloaded"


@pytest.mark.parametrize("content_type", [b"audio/mpeg", b"text/plain", b"application/octet-stream", b""])
def test_what_is_no_json_has_no_observer(content_type):
    assert observer_for("metered", content_type) is None


# --- streams


def events(*data: Any, named: bool = True) -> bytes:
    out = []
    for one in data:
        name = f"event: {one['type']}\n" if named and isinstance(one, dict) and "type" in one else ""
        out.append(f"{name}data: {one if isinstance(one, str) else json.dumps(one)}\n\n")
    return "".join(out).encode()


STREAMS = {
    "completions": events(
        {"id": "cmpl-1", "model": "m", "choices": [{"text": "a"}], "usage": None},
        {"id": "cmpl-1", "model": "m", "choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4}},
        "[DONE]",
    ),
    "transcription": events(
        {"type": "transcript.text.delta", "delta": "a"},
        {
            "type": "transcript.text.done",
            "text": "a",
            "usage": {"type": "tokens", "input_tokens": 3, "output_tokens": 4},
        },
    ),
    "speech": events(
        {"type": "speech.audio.delta", "audio": "QUJD"},
        {"type": "speech.audio.done", "usage": {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7}},
    ),
    "images": events(
        {"type": "image_generation.partial_image", "b64_json": "QUJD"},
        {"type": "image_generation.completed", "b64_json": "QUJD", "usage": {"input_tokens": 3, "output_tokens": 4}},
    ),
    "edits": events(
        {"type": "image_edit.completed", "usage": {"input_tokens": 3, "output_tokens": 4}, "b64_json": "QUJD"},
        named=False,
    ),
}


@pytest.mark.parametrize("name", STREAMS)
def test_the_usage_of_a_stream_is_that_of_its_end(name):
    facts = observed(STREAMS[name], SSE)
    assert facts.usage is not None
    assert (facts.usage.input_tokens, facts.usage.output_tokens) == (3, 4)
    assert facts.complete
    assert not facts.unparsed


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("shape", [b"\n", b"\r\n", b"\r"])
def test_where_and_how_a_stream_is_torn_does_not_matter(name, shape):
    whole = observed(STREAMS[name], SSE)
    body = b"\xef\xbb\xbf: a comment\n\nretry: 5\n" + STREAMS[name].replace(b"data: ", b"data:")
    body = body.replace(b"\n", shape)
    for cut in range(len(body)):
        assert observed(body, SSE, pieces=[cut]) == whole
    assert observed(body, SSE, pieces=list(range(1, len(body)))) == whole


def test_data_over_several_lines_is_one_event():
    text = json.dumps({"type": "speech.audio.done", "usage": {"input_tokens": 3}}, indent=1)
    facts = observed("".join(f"data: {line}\n" for line in text.split("\n")).encode(), SSE)
    assert facts.usage is not None
    assert (facts.usage.input_tokens, facts.complete) == (3, True)


def test_a_stream_without_its_end_is_not_complete():
    facts = observed(STREAMS["images"].partition(b"event: image_generation.completed")[0], SSE)
    assert (facts.usage, facts.complete) == (None, False)


def test_an_error_in_a_stream_is_seen():
    facts = observed(events({"type": "error", "error": {"type": "server_error", "message": "broke"}}, "[DONE]"), SSE)
    assert facts.error is not None
    assert (facts.error.message, facts.complete) == ("broke", False)


def test_an_image_in_one_event_is_not_held():
    body = events({"type": "image_generation.completed", "b64_json": "QUJD" * 2_000_000, "usage": {"output_tokens": 4}})
    observer = observer_for("metered", SSE)
    assert observer is not None
    largest = 0
    for at in range(0, len(body), COMPACT_EVERY):
        observer.feed(body[at : at + COMPACT_EVERY])
        observer.compact()
        largest = max(largest, _held_by(observer))
    assert largest < MAX_HELD
    facts = observer.finish()
    assert facts.usage is not None
    assert (facts.usage.output_tokens, facts.complete) == (4, True)
