import gzip
import json

import pytest

from ostiary.core.records import ErrorType
from ostiary.wire.errors import classify, error_observer, read_error
from ostiary.wire.facts import Format, ProviderError, ResponseFacts, clip
from ostiary.wire.formats import read_body


@pytest.mark.parametrize(
    ("format_", "status", "error", "kind"),
    [
        ("messages", 400, None, "bad_request"),
        ("messages", 401, None, "unauthorized"),
        ("messages", 403, None, "unauthorized"),
        ("messages", 404, None, "bad_request"),
        ("messages", 408, None, "timeout"),
        ("messages", 413, None, "bad_request"),
        ("messages", 418, None, "unknown"),
        ("messages", 422, None, "bad_request"),
        ("messages", 429, None, "rate_limited"),
        ("messages", 500, None, "server_error"),
        ("messages", 503, None, "server_error"),
        ("chat_completions", 503, None, "overloaded"),
        ("responses", 503, None, "overloaded"),
        ("messages", 529, None, "overloaded"),
        ("messages", 504, ProviderError("timeout_error"), "timeout"),
        ("messages", 200, ProviderError("overloaded_error"), "overloaded"),
        ("messages", 200, ProviderError("api_error"), "server_error"),
        ("chat_completions", 401, ProviderError("invalid_request_error", code="invalid_api_key"), "unauthorized"),
        ("chat_completions", 403, ProviderError("insufficient_quota", code="insufficient_quota"), "rate_limited"),
        ("chat_completions", 200, ProviderError("", code="502"), "server_error"),
        ("responses", 200, ProviderError("rate_limit_exceeded", code="rate_limit_exceeded"), "rate_limited"),
        ("responses", 200, ProviderError("ERR_SOMETHING"), "unknown"),
        ("responses", 200, None, "unknown"),
    ],
)
def test_errors_are_told_apart(format_: Format, status: int, error: ProviderError | None, kind: ErrorType) -> None:
    assert classify(format_, status, error) == kind


def test_both_shapes_of_error_bodies_are_read() -> None:
    openai = b'{"error":{"message":"No","type":"invalid_request_error","code":"x"}}'
    for format_ in ("chat_completions", "responses"):
        assert read_error(format_, b"application/json", openai) == ProviderError("invalid_request_error", "No", "x")
    anthropic = b'{"type":"error","error":{"type":"overloaded_error","message":"Busy"}}'
    assert read_error("messages", b"application/json", anthropic) == ProviderError("overloaded_error", "Busy")


@pytest.mark.parametrize(
    "body", [b"", b"{", b"{}", b'{"error":null}', b'{"detail":7}', b"[]", b"[7]", b'{"a":' * 50_000]
)
def test_bodies_that_say_nothing_are_no_error_of_ours(body: bytes) -> None:
    for format_ in ("chat_completions", "responses", "messages"):
        assert read_error(format_, b"application/json", body) == ProviderError()


OTHERWISE_SAID = {
    "google": [{"error": {"code": 400, "message": "No", "status": "INVALID_ARGUMENT"}}],
    "mistral": {"object": "error", "message": "No", "type": "invalid_model", "param": None, "code": "1500"},
    "mistral, what is wrong": {"object": "error", "message": {"detail": [{"msg": "No"}]}, "type": "invalid_model"},
    "fastapi": {"detail": "No"},
    "fastapi, what is wrong": {"detail": [{"loc": ["body"], "msg": "No"}, 7, {"msg": 7}]},
    "a proxy": {"statusCode": 404, "message": "No"},
    "xai": {"code": "invalid", "error": "No"},
}


@pytest.mark.parametrize("said", OTHERWISE_SAID.values(), ids=OTHERWISE_SAID)
@pytest.mark.parametrize("format_", ["chat_completions", "responses", "messages", "metered"])
def test_errors_in_neither_shape_are_read(format_: Format, said: object) -> None:
    body = json.dumps(said).encode()
    error = read_error(format_, b"application/json", body)
    assert error.message == "No"
    assert error.type == ("invalid_model" if b"invalid_model" in body else error.code if format_ == "responses" else "")
    observer = error_observer(format_, b"application/json; charset=utf-8")
    assert observer is not None
    observer.feed(body)
    facts = observer.finish()
    assert (facts.error, facts.unparsed) == (error, False)


@pytest.mark.parametrize("said", [{"message": "hello"}, {"detail": "hello"}])
def test_an_answer_that_is_no_error_is_not_made_one(said: object) -> None:
    for format_ in ("chat_completions", "responses", "messages", "metered"):
        assert read_body(format_, json.dumps(said).encode()).error is None


def test_plain_text_is_a_message_and_markup_is_none() -> None:
    assert read_error("messages", b"text/plain; charset=utf-8", b" upstream gone \n").message == "upstream gone"
    assert read_error("messages", b"text/html", b"<html>502</html>").message == ""


def test_messages_are_cut_to_whole_characters() -> None:
    message = read_error("messages", b"text/plain", ("é" * 2000).encode()).message
    assert message == "é" * 512
    assert clip("a" + "é" * 2000) == "a" + "é" * 511
    assert clip("short") == "short"


@pytest.mark.parametrize("packed", [False, True])
def test_the_words_of_a_plain_error_are_observed(packed: bool) -> None:
    observer = error_observer("responses", b"text/plain; charset=utf-8", b"gzip" if packed else b"")
    assert observer is not None
    body = b"no healthy upstream"
    observer.feed(gzip.compress(body) if packed else body)
    observer.compact()
    assert observer.finish() == ResponseFacts(error=ProviderError(message="no healthy upstream"))


def test_markup_is_not_observed_and_an_unknown_coding_is_told() -> None:
    assert error_observer("messages", b"text/html", b"") is None
    blind = error_observer("messages", b"text/plain", b"compress")
    assert blind is not None
    assert blind.finish().unparsed
