"""What providers' answers say of a key, with bodies as the providers send them."""

import gzip
import math
import zlib
from email.utils import formatdate

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ostiary.gateway.key_verdict import (
    DEFAULT_WAIT,
    LONGEST_WAIT,
    MAX_ERROR_BODY,
    SHORTEST_DATE,
    Verdict,
    needs_body,
    read_key_error,
    verdict,
    wait_of,
)

DAY = 86_400.0
NOW = 1_790_000_000.0


def date(seconds: float) -> bytes:
    return formatdate(seconds, usegmt=True).encode()


def judged(status: int, body: bytes = b"", fields: dict[bytes, bytes] | None = None) -> Verdict | None:
    fields = fields or {}
    return verdict(status, fields, read_key_error(fields, body), NOW)


def kind(status: int, body: bytes = b"") -> str | None:
    found = judged(status, body)
    return found.kind if found is not None else None


def openai(code: object, kind: str = "invalid_request_error", message: str = "") -> bytes:
    return msgspec.json.encode({"error": {"message": message, "type": kind, "param": None, "code": code}})


def anthropic(kind: str, message: str = "") -> bytes:
    return msgspec.json.encode({"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_1"})


def google(code: int, status: str, message: str, reason: str = "") -> bytes:
    error: dict[str, object] = {"code": code, "message": message, "status": status}
    if reason:
        error["details"] = [
            {"@type": "type.googleapis.com/google.rpc.LocalizedMessage", "locale": "en-US", "message": message},
            {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": reason, "domain": "googleapis.com"},
        ]
    return msgspec.json.encode([{"error": error}])


# --- which of the four


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        pytest.param(401, openai("invalid_api_key"), "refused", id="OpenAI: wrong key"),
        pytest.param(401, openai("account_deactivated"), "refused", id="OpenAI: account gone"),
        pytest.param(403, openai("account_deactivated"), "refused", id="OpenAI: account gone, as 403"),
        pytest.param(401, openai("ip_not_authorized"), "refused", id="OpenAI: key not for this address"),
        pytest.param(401, anthropic("authentication_error", "invalid x-api-key"), "refused", id="Anthropic: wrong key"),
        pytest.param(
            400,
            anthropic("invalid_request_error", "This organization has been disabled."),
            "refused",
            id="Anthropic: organization gone",
        ),
        pytest.param(
            400,
            google(400, "INVALID_ARGUMENT", "API key not valid. Please pass a valid API key.", "API_KEY_INVALID"),
            "refused",
            id="Google: wrong key",
        ),
        pytest.param(
            403,
            google(403, "PERMISSION_DENIED", "Permission denied: Consumer has been suspended.", "CONSUMER_SUSPENDED"),
            "refused",
            id="Google: suspended",
        ),
        pytest.param(
            403,
            google(403, "PERMISSION_DENIED", "Your API key was reported as leaked. Please use another API key."),
            "refused",
            id="Google: leaked",
        ),
        pytest.param(
            401,
            b'{"error":{"code":"401","message":"Access denied due to invalid subscription key or wrong API endpoint."}}',
            "refused",
            id="Azure: wrong key",
        ),
        pytest.param(
            401, b'{"error":{"message":"No auth credentials found","code":401}}', "refused", id="OpenRouter: wrong key"
        ),
        pytest.param(401, b"Unauthorized", "refused", id="plain text"),
        pytest.param(401, b"", "refused", id="no body"),
        # the account has nothing left
        pytest.param(429, openai("insufficient_quota", "insufficient_quota"), "quota", id="OpenAI: quota"),
        pytest.param(
            429, openai("credit_balance_exhausted", "insufficient_quota"), "quota", id="OpenAI: only the type says so"
        ),
        pytest.param(429, openai("billing_not_active", "billing_not_active"), "quota", id="OpenAI: billing"),
        pytest.param(400, openai("billing_hard_limit_reached"), "quota", id="OpenAI: hard limit"),
        pytest.param(402, anthropic("billing_error"), "quota", id="Anthropic: billing"),
        pytest.param(
            400,
            anthropic("invalid_request_error", "Your credit balance is too low to access the Anthropic API. Please go"),
            "quota",
            id="Anthropic: credit",
        ),
        pytest.param(
            400,
            anthropic("invalid_request_error", "You have reached your specified API usage limits. You will regain"),
            "quota",
            id="Anthropic: spend limit",
        ),
        pytest.param(
            402, b'{"error":{"message":"Insufficient credits","code":402}}', "quota", id="OpenRouter: credits"
        ),
        pytest.param(402, b"", "quota", id="402 says enough"),
        pytest.param(403, google(403, "PERMISSION_DENIED", "no", "BILLING_DISABLED"), "quota", id="Google: billing"),
        # limited
        pytest.param(429, openai("rate_limit_exceeded", "requests"), "rate_limited", id="OpenAI: rate"),
        pytest.param(429, anthropic("rate_limit_error"), "rate_limited", id="Anthropic: rate"),
        pytest.param(429, google(429, "RESOURCE_EXHAUSTED", "Quota exceeded"), "rate_limited", id="Google: rate"),
        pytest.param(429, b'{"error":{"code":"429","message":"wait"}}', "rate_limited", id="Azure: rate"),
        pytest.param(429, b"<html>slow down</html>", "rate_limited", id="no JSON"),
    ],
)
def test_answers_about_the_key(status: int, body: bytes, expected: str) -> None:
    assert kind(status, body) == expected


@pytest.mark.parametrize(
    ("status", "body"),
    [
        pytest.param(400, anthropic("invalid_request_error", "max_tokens: too large"), id="a user's 400"),
        pytest.param(400, openai("context_length_exceeded"), id="too long a prompt"),
        pytest.param(400, b"", id="400 without a body"),
        pytest.param(403, openai("model_not_found"), id="a forbidden model"),
        pytest.param(403, anthropic("permission_error"), id="Anthropic: forbidden"),
        pytest.param(403, openai("unsupported_country_region_territory"), id="OpenAI: country"),
        pytest.param(403, b'{"error":{"code":403,"message":"flagged","metadata":{}}}', id="OpenRouter: moderation"),
        pytest.param(403, google(403, "PERMISSION_DENIED", "no", "SERVICE_DISABLED"), id="Google: service off"),
        pytest.param(401, openai("missing_scope"), id="OpenAI: a restricted key"),
        pytest.param(
            401,
            openai(None, message="You have insufficient permissions for this operation. Missing scopes: model.read."),
            id="OpenAI: a restricted key, without a code",
        ),
        pytest.param(
            401,
            b'{"error":{"message":"key not allowed to access model","type":"key_model_access_denied","code":"401"}}',
            id="LiteLLM: a forbidden model as 401",
        ),
        pytest.param(
            429,
            openai("rate_limit_exceeded", "tokens", "Request too large for gpt-4o in organization org-1 on tokens"),
            id="OpenAI: a request beyond the whole limit",
        ),
        pytest.param(200, openai("invalid_api_key"), id="a success"),
        pytest.param(404, openai("invalid_api_key"), id="not found"),
        pytest.param(500, openai("insufficient_quota"), id="a server error"),
        pytest.param(529, anthropic("overloaded_error"), id="Anthropic: overloaded"),
        pytest.param(503, b"", id="unavailable"),
    ],
)
def test_answers_that_are_not_about_the_key(status: int, body: bytes) -> None:
    assert judged(status, body) is None


@pytest.mark.parametrize("said", ["insufficient_quota", "invalid_api_key", "Your credit balance is too low"])
def test_a_prompt_that_is_quoted_in_an_error_says_nothing_of_the_key(said: str) -> None:
    """Or anybody could put a key out of use."""
    body = anthropic("invalid_request_error", f"messages.0.content: unexpected value {said!r}")
    assert judged(400, body) is None
    assert judged(403, body) is None


def test_only_statuses_with_a_telling_body_are_looked_into() -> None:
    assert [status for status in range(100, 600) if needs_body(status)] == [400, 401, 402, 403, 429]


# --- how long


@pytest.mark.parametrize(
    ("fields", "wait"),
    [
        ({}, DEFAULT_WAIT),
        ({b"retry-after": b"7"}, 7.0),
        ({b"retry-after": b" 7 "}, 7.0),
        ({b"retry-after": b"1.5"}, 1.5),
        ({b"retry-after-ms": b"2500", b"retry-after": b"3"}, 2.5),
        ({b"retry-after-ms": b"2500.75"}, 2.50075),
        ({b"retry-after-ms": b"soon", b"retry-after": b"3"}, 3.0),
        ({b"retry-after": b"0"}, 0.0),
        ({b"retry-after": b"0.4"}, 0.4),
        ({b"retry-after-ms": b"20"}, 0.02),
        ({b"retry-after-ms": b"0"}, 0.0),
        ({b"retry-after": b"31536000"}, LONGEST_WAIT),
        ({b"retry-after": b"9" * 5000}, LONGEST_WAIT),
        ({b"retry-after-ms": b"9" * 400}, LONGEST_WAIT),
        ({b"retry-after": b"-5"}, DEFAULT_WAIT),
        ({b"retry-after": b"nan"}, DEFAULT_WAIT),
        ({b"retry-after": b"inf"}, DEFAULT_WAIT),
        ({b"retry-after": b"1e9"}, DEFAULT_WAIT),
        ({b"retry-after": b""}, DEFAULT_WAIT),
        ({b"retry-after": b"\xff\x00"}, DEFAULT_WAIT),
        ({b"retry-after": date(NOW + 90)}, 90.0),
        ({b"retry-after": date(NOW - 90)}, SHORTEST_DATE),
        ({b"retry-after": date(NOW + 90), b"date": date(NOW)}, 90.0),
        ({b"retry-after": date(NOW + DAY + 7), b"date": date(NOW + DAY)}, 7.0),
        ({b"retry-after": date(NOW - DAY + 7), b"date": date(NOW - DAY)}, 7.0),
        ({b"retry-after": date(NOW + 90), b"date": b"yesterday"}, 90.0),
        ({b"retry-after": b"Wed, 21 Oct 9999 07:28:00 GMT"}, LONGEST_WAIT),
        ({b"retry-after": b"Wed, 99 Oct 2026 99:99:99 GMT"}, LONGEST_WAIT),
    ],
)
def test_the_wait_is_what_the_provider_says_within_bounds(fields: dict[bytes, bytes], wait: float) -> None:
    assert wait_of(fields, NOW) == pytest.approx(wait)
    found = judged(429, b"", fields)
    assert found == Verdict("rate_limited", wait_of(fields, NOW))


@given(
    st.dictionaries(
        st.sampled_from([b"retry-after", b"retry-after-ms", b"date"]),
        st.binary(max_size=80)
        | st.text("0123456789.-+eE ", max_size=40).map(str.encode)
        | st.text("MonTue, 0123456789:GMT+-", max_size=40).map(str.encode)
        | st.floats().map(lambda value: repr(value).encode())
        | st.integers().map(lambda value: str(value).encode()),
    ),
    st.floats(0, 4e9),
)
def test_no_header_makes_a_wait_that_is_out_of_bounds(fields: dict[bytes, bytes], now_wall: float) -> None:
    wait = wait_of(fields, now_wall)
    assert math.isfinite(wait)
    assert 0.0 <= wait <= LONGEST_WAIT


RETRY_INFO = {"@type": "type.googleapis.com/google.rpc.RetryInfo"}


@pytest.mark.parametrize(
    ("delay", "wait"),
    [
        ("34.074824224s", 34.074824224),
        ("22s", 22.0),
        ("0.25s", 0.25),
        ("0s", 0.0),
        ("86400s", LONGEST_WAIT),
        ("-3s", DEFAULT_WAIT),
        ("3", DEFAULT_WAIT),
        ("1e9s", DEFAULT_WAIT),
        ("9" * 30 + "s", DEFAULT_WAIT),
        ("", DEFAULT_WAIT),
        (7, DEFAULT_WAIT),
    ],
)
def test_google_says_how_long_in_the_body(delay: object, wait: float) -> None:
    violation = {"quotaId": "GenerateRequestsPerMinutePerProjectPerModel-FreeTier", "quotaValue": "15"}
    details = [
        {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [violation]},
        {"@type": "type.googleapis.com/google.rpc.Help", "links": []},
        RETRY_INFO | {"retryDelay": delay},
    ]
    error = {"code": 429, "message": "You exceeded your current quota.", "status": "RESOURCE_EXHAUSTED"}
    for document in ([{"error": error | {"details": details}}], {"error": error | {"details": details}}):
        body = msgspec.json.encode(document)
        assert judged(429, body) == Verdict("rate_limited", pytest.approx(wait))
        assert judged(429, body, {b"retry-after": b"3"}) == Verdict("rate_limited", 3.0), "a header goes first"
        assert judged(429, body, {b"retry-after": b"soon"}) == Verdict("rate_limited", pytest.approx(wait))


# --- reading the body


def test_a_compressed_error_is_read() -> None:
    body = openai("insufficient_quota")
    assert judged(429, gzip.compress(body), {b"content-encoding": b"gzip"}) == Verdict("quota", DEFAULT_WAIT)
    assert judged(429, zlib.compress(body), {b"content-encoding": b"deflate"}) == Verdict("quota", DEFAULT_WAIT)


@pytest.mark.parametrize(
    ("fields", "body"),
    [
        ({b"content-encoding": b"gzip"}, b"not gzip"),
        ({b"content-encoding": b"gzip, br"}, b"x"),
        ({b"content-encoding": b"gzip"}, gzip.compress(b" " * (MAX_ERROR_BODY + 1), mtime=0)),
        ({}, b" " * (MAX_ERROR_BODY + 1)),
        ({}, b"[" * 60_000),
        ({}, b'{"error":' * 7_000),
        ({}, b'{"error":{"code":"\xff"}}'),
        ({}, b"[]"),
        ({}, b"null"),
        ({}, b"7"),
    ],
)
def test_a_body_that_cannot_be_read_leaves_the_status(fields: dict[bytes, bytes], body: bytes) -> None:
    assert read_key_error(fields, body) is None
    assert verdict(429, fields, None, NOW) == Verdict("rate_limited", DEFAULT_WAIT)
    assert verdict(401, fields, None, NOW) == Verdict("refused")


@pytest.mark.parametrize(
    "body",
    [
        b'{"error":"invalid_api_key","message":"no"}',
        b'{"code":"invalid_api_key","message":"no"}',
        b'{"error":{"code":"INVALID_API_KEY"}}',
        b'{"error":{"code":null,"type":"invalid_api_key","message":null}}',
    ],
)
def test_other_shapes_of_errors_are_read(body: bytes) -> None:
    assert kind(403, body) == "refused"


@given(st.integers(100, 599), st.binary(max_size=300))
def test_no_body_breaks_the_reading(status: int, body: bytes) -> None:
    judged(status, body)


json_values = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["error", "code", "type", "message", "details", "reason", "status"]), inner)
    ),
    max_leaves=12,
)


@given(st.sampled_from([400, 401, 402, 403, 429]), json_values)
def test_no_json_breaks_the_reading(status: int, value: object) -> None:
    found = judged(status, msgspec.json.encode(value))
    assert found is None or found.kind in ("rate_limited", "quota", "refused")
