"""Answers of bedrock-runtime become Anthropic's: each event byte for byte, each error under the name that SDKs know."""

import json
from base64 import b64encode
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ostiary.wire.bedrock import MessagesStream, error_answer
from ostiary.wire.event_stream import EventStreamError, encode
from ostiary.wire.sse import EventSplitter, parse

START = b'{"type":"message_start","message":{"id":"msg_1","usage":{"input_tokens":1.0}}}'
DELTA = '{"type": "content_block_delta","index":0,"delta":{"type":"text_delta","text":"é \\ud83d\\ude00 \\n"}}'.encode()
STOP = b'{"type":"message_stop","amazon-bedrock-invocationMetrics":{"inputTokenCount":8}}'


def frame(payload: bytes, **headers: str) -> bytes:
    return encode({f":{name.replace('_', '-')}": value for name, value in headers.items()}, payload)


def chunk(data: bytes) -> bytes:
    payload = json.dumps({"bytes": b64encode(data).decode(), "p": "abc"}).encode()
    return frame(payload, event_type="chunk", content_type="application/json", message_type="event")


def decoded(data: bytes) -> bytes:
    stream = MessagesStream()
    out = stream.feed(data)
    stream.finish()
    return out


def error_in(out: bytes) -> dict[str, Any]:
    event = parse(out)
    assert event.name == b"error"
    assert event.data is not None
    body: dict[str, Any] = json.loads(event.data)
    assert body["type"] == "error"
    error: dict[str, Any] = body["error"]
    return error


def test_each_chunk_is_one_event_with_its_json_unchanged() -> None:
    out = decoded(chunk(START) + chunk(DELTA) + chunk(STOP))
    assert out == (
        b"event: message_start\ndata: " + START + b"\n\nevent: content_block_delta\ndata: " + DELTA + b"\n\n"
        b"event: message_stop\ndata: " + STOP + b"\n\n"
    )


@given(st.lists(st.integers(0, 1000), max_size=6))
def test_however_it_is_torn(cuts: list[int]) -> None:
    data = chunk(START) + chunk(DELTA) + chunk(STOP)
    places = sorted({min(cut, len(data)) for cut in cuts})
    stream = MessagesStream()
    out = b"".join(stream.feed(data[begin:end]) for begin, end in zip([0, *places], [*places, len(data)], strict=True))
    stream.finish()
    assert out == decoded(data)


@pytest.mark.parametrize("json_text", [b'{"type":"ping",\n "a": 1}', b'{\r\n"type":\r"ping"}', b'{"type":"ping"\n}'])
def test_json_over_several_lines_is_the_same_json_to_a_reader(json_text: bytes) -> None:
    (event,) = EventSplitter().feed(decoded(chunk(json_text)))
    assert parse(event).name == b"ping"
    assert json.loads(parse(event).data or b"") == json.loads(json_text)


@pytest.mark.parametrize("json_text", [b"{}", b'{"type":""}', b'{"type":"a\\nb"}'])
def test_an_event_without_a_usable_type_has_no_name(json_text: bytes) -> None:
    assert decoded(chunk(json_text)) == b"data: " + json_text + b"\n\n"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("throttlingException", "rate_limit_error"),
        ("validationException", "invalid_request_error"),
        ("modelStreamErrorException", "api_error"),
        ("internalServerException", "api_error"),
        ("modelTimeoutException", "timeout_error"),
        ("serviceUnavailableException", "overloaded_error"),
        ("somethingNewException", "api_error"),
        ("", "api_error"),
    ],
)
def test_an_exception_becomes_an_error_event_and_ends_the_stream(name: str, kind: str) -> None:
    stream = MessagesStream()
    failed = frame(b'{"message":"too fast"}', exception_type=name, message_type="exception")
    out = stream.feed(chunk(START) + failed + chunk(DELTA))
    assert out.startswith(b"event: message_start\n")
    error = error_in(out[out.index(b"event: error") :])
    assert error["type"] == kind
    assert "too fast" in error["message"]
    assert name in error["message"]
    assert stream.feed(chunk(DELTA)) == b""
    stream.finish()


def test_an_exception_with_the_models_own_words_or_none() -> None:
    own = b'{"originalStatusCode":529,"originalMessage":"Overloaded"}'
    assert "Overloaded" in error_in(decoded(frame(own, exception_type="x", message_type="exception")))["message"]
    assert error_in(decoded(frame(b"", exception_type="x", message_type="exception")))["message"] == "x"
    plain = error_in(decoded(frame(b"\xff plain", exception_type="x", message_type="exception")))
    assert "plain" in plain["message"]


def test_an_error_message_is_told_in_its_headers() -> None:
    out = decoded(encode({":message-type": "error", ":error-code": "InternalFailure", ":error-message": "gone"}, b""))
    assert error_in(out) == {"type": "api_error", "message": "InternalFailure: gone"}


def test_other_messages_hold_nothing_for_the_client() -> None:
    other = frame(b"{}", event_type="initial-response", message_type="event") + frame(b"{}", message_type="new")
    assert decoded(other + frame(b"{}") + chunk(STOP)) == decoded(chunk(STOP))


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"{}",
        b"[]",
        b'{"bytes":"***"}',
        b'{"bytes":""}',
        b'{"bytes":"bm8ganNvbg=="}',
        b'{"bytes":"W10="}',
        b'{"bytes":"eyJ0eXBlIjo1fQ=="}',
    ],
)
def test_a_chunk_that_holds_no_event_is_damage_after_what_came_before(payload: bytes) -> None:
    bad = frame(payload, event_type="chunk", message_type="event")
    with pytest.raises(EventStreamError, match="does not hold an event"):
        decoded(bad)
    stream = MessagesStream()
    assert stream.feed(chunk(START) + bad + chunk(STOP)).endswith(START + b"\n\n")
    with pytest.raises(EventStreamError, match="does not hold an event"):
        stream.feed(chunk(STOP))
    with pytest.raises(EventStreamError, match="does not hold an event"):
        stream.finish()


def test_a_cut_stream_is_damage_at_its_end() -> None:
    stream = MessagesStream()
    assert stream.feed(chunk(START)[:-3]) == b""
    with pytest.raises(EventStreamError, match="ends within a message"):
        stream.finish()


@pytest.mark.parametrize(
    ("status", "header", "body", "kind", "message"),
    [
        (
            429,
            b"ThrottlingException:http://internal.amazon.com/coral/",
            b'{"message":"slow down"}',
            "rate_limit_error",
            "ThrottlingException: slow down",
        ),
        (400, b"ValidationException", b'{"message":"bad"}', "invalid_request_error", "ValidationException: bad"),
        (403, b"AccessDeniedException", b'{"Message":"no"}', "permission_error", "AccessDeniedException: no"),
        (403, b"ExpiredTokenException", b"{}", "authentication_error", "ExpiredTokenException"),
        (404, b"ResourceNotFoundException", b'{"message":"?"}', "not_found_error", "ResourceNotFoundException: ?"),
        (424, b"ModelErrorException", b'{"message":"?"}', "api_error", "ModelErrorException: ?"),
        (503, b"ServiceUnavailableException", b'{"message":"?"}', "overloaded_error", "ServiceUnavailableException: ?"),
        (
            400,
            b"",
            b'{"__type":"com.amazon#ValidationException","message":"bad"}',
            "invalid_request_error",
            "ValidationException: bad",
        ),
        (502, b"", b"<html>bad gateway</html>", "api_error", "<html>bad gateway</html>"),
        (413, b"", b"", "request_too_large", "AWS answered 413 and said no more"),
        (418, b"", b'"tea"', "invalid_request_error", '"tea"'),
    ],
)
def test_an_error_answer_takes_the_clients_shape(
    status: int, header: bytes, body: bytes, kind: str, message: str
) -> None:
    answer = json.loads(error_answer("anthropic", status, header, body))
    assert answer == {"type": "error", "error": {"type": kind, "message": message}}
    openai = json.loads(error_answer("openai", status, header, body))["error"]
    assert (openai["type"], openai["message"]) == (kind, message)


@pytest.mark.parametrize("shape", ["anthropic", "openai"])
def test_an_error_that_has_a_shape_already_is_left(shape: Literal["anthropic", "openai"]) -> None:
    body = b'{ "type":"error", "error":{"type":"x","message":"y"}}'
    assert error_answer(shape, 400, b"ValidationException", body) == body
