"""What a dump shows is what was sent, without its secrets."""

import gzip
import re
import string
import time

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from ostiary.gateway.dump_text import Redactor, is_secret, laid_out, masked_head, request_text, secrets_of

CAP = 1 << 20
KEY = b"sk-0123456789-the-whole-key"

HEADERS = [
    b"Authorization",
    b"X-Api-Key",
    b"Api-Key",
    b"X-Auth-Token",
    b"Cookie",
    b"Proxy-Authorization",
    b"X-Amz-Security-Token",
    b"X-Goog-Api-Key",
    b"X-Ostiary-Token",
    b"X-Ostiary-Gateway-Key",
    b"X-Ostiary-Anything",
    b"X-Coder-AI-Governance-Token",
    b"Ocp-Apim-Subscription-Key",
    b"CF-Access-Client-Secret",
    b"Set-Cookie",
    b"Www-Authenticate",
    b"Proxy-Authenticate",
]
PARAMETERS = [
    b"key",
    b"api_key",
    b"apiKey",
    b"api-key",
    b"token",
    b"access_token",
    b"client_secret",
    b"sig",
    b"X-Amz-Signature",
    b"X-Amz-Security-Token",
    b"X-Amz-Credential",
    b"subscription-key",
]
_alphabet = st.sampled_from(string.digits + "~+/")  # of what stands around a secret nothing looks like one
_secrets = st.text(_alphabet, min_size=20, max_size=60).map(str.encode)
_cases = st.sampled_from([bytes.lower, bytes.upper, bytes.title, bytes])


def shows_nothing(text: bytes, secret: bytes) -> bool:
    """Whether no more of a secret is left than four characters at either end."""
    return secret[:5] not in text and secret[-5:] not in text and secret[4:-4] not in text


@given(
    _secrets,
    st.sampled_from(HEADERS),
    _cases,
    st.sampled_from([b"", b"Bearer ", b"bearer  ", b"Basic ", b"Token ", b"sid=", b"Weird "]),
    st.sampled_from([b": ", b":", b" : ", b":\t"]),
    st.integers(0, 3),
)
def test_a_secret_in_a_header_is_masked(
    secret: bytes, name: bytes, case: "type[bytes]", before: bytes, colon: bytes, at: int
) -> None:
    lines = [b"Host: h", b"A: 1", b"B: 2"]
    lines.insert(at, case(name) + colon + before + secret)
    shown = masked_head(b"\r\n".join((b"POST /v1/messages HTTP/1.1", *lines, b"", b"")))
    assert shows_nothing(shown, secret)
    assert shown.count(b"\r\n") == 5
    assert b"\r\nHost: h\r\n" in shown


@given(_secrets.map(lambda s: s.replace(b"+", b"")), st.sampled_from(PARAMETERS), _cases, st.integers(0, 2), st.data())
def test_a_secret_in_a_query_is_masked(
    secret: bytes, name: bytes, case: "type[bytes]", at: int, data: st.DataObject
) -> None:
    spelled = b"".join(
        b"%%%02x" % char if data.draw(st.booleans()) else bytes((char,)) for char in case(name)
    )  # percent-encoded here and there
    parameters = [b"api-version=2024-10-21", b"beta=true"]
    parameters.insert(at, spelled + b"=" + secret)
    target = b"/v1/messages?" + b"&".join(parameters)
    head = b"POST " + target + b" HTTP/1.1\r\nHost: h\r\nReferer: https://x.invalid" + target + b"\r\n\r\n"
    shown = masked_head(head)
    assert shows_nothing(shown, secret)
    assert shown.count(b"api-version=2024-10-21") == shown.count(b"beta=true") == 2
    assert shown.endswith(b"\r\n")


def test_a_signature_is_masked_and_what_it_is_for_is_not() -> None:
    value = (
        b"AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20260801/us-east-1/bedrock/aws4_request, "
        b"SignedHeaders=content-type;host;x-amz-date, Signature=" + b"0123456789abcdef" * 4
    )
    head = b"POST / HTTP/1.1\r\nAuthorization: " + value + b"\r\n\r\n"
    assert masked_head(head) == (
        b"POST / HTTP/1.1\r\nAuthorization: AWS4-HMAC-SHA256 Credential=AKIA...MPLE/20260801/us-east-1/bedrock/"
        b"aws4_request, SignedHeaders=content-type;host;x-amz-date, Signature=0123...cdef\r\n"
    )
    assert set(secrets_of(head)) == {b"AKIAIOSFODNN7EXAMPLE", b"0123456789abcdef" * 4}


def test_of_a_password_in_base64_nothing_is_shown() -> None:
    head = b"POST / HTTP/1.1\r\nAuthorization: Basic bWU6YS1wYXNzd29yZC1vZi1taW5l\r\n\r\n"
    assert masked_head(head) == b"POST / HTTP/1.1\r\nAuthorization: Basic ...\r\n"


def test_who_logs_in_by_url_is_masked() -> None:
    head = b"HTTP/1.1 302 Found\r\nLocation: https://me:" + KEY + b"@host.invalid/x?a=b@c\r\nX-Mail: a@b\r\n\r\n"
    assert masked_head(head) == (b"HTTP/1.1 302 Found\r\nLocation: https://...@host.invalid/x?a=b@c\r\nX-Mail: a@b\r\n")


def test_what_only_looks_like_a_signature_is_masked_whole() -> None:
    head = b"POST / HTTP/1.1\r\nAuthorization: AWS4-HMAC-SHA256 Credential=" + KEY + b", " + KEY + b"\r\n\r\n"
    assert KEY not in masked_head(head)


def test_a_folded_secret_is_masked() -> None:
    head = b"HTTP/1.1 200 OK\r\nSet-Cookie: a=b;\r\n " + KEY + b"\r\nX-A: 1\r\n 2\r\n\r\n"
    assert masked_head(head) == b"HTTP/1.1 200 OK\r\nSet-Cookie: ...\r\n ...\r\nX-A: 1\r\n 2\r\n"


def test_what_is_no_secret_stays_as_it_was_in_its_order() -> None:
    lines = (
        b"POST /v1/messages?beta=true&limit=20 HTTP/1.1",
        b"host: api.example.com",
        b"Anthropic-Version: 2023-06-01",
        b"x-stainless-lang:  js",
        b"anthropic-ratelimit-tokens-remaining: 100",
        b"X-Ostiary-Request-Id: 0198",
        b"Idempotency-Key: stainless-node-retry-1",
        b"Accept: */*",
        b"Content-Type: application/json",
    )
    assert masked_head(b"\r\n".join((*lines, b"", b""))) == b"\r\n".join((*lines, b""))


@pytest.mark.parametrize("name", [b"content-type", b"user-agent", b"max_tokens", b"api-version", b"model", b"after_id"])
def test_usual_names_are_no_secrets(name: bytes) -> None:
    assert not is_secret(name)


# --- bodies

_space = st.text(" \t\n\r", max_size=3)
_number = st.from_regex(r"-?(0|[1-9][0-9]{0,40})(\.[0-9]{1,20})?([eE][+-]?[0-9]{1,4})?", fullmatch=True)
_characters = st.one_of(
    st.characters(exclude_categories=["Cs"], exclude_characters='"\\', min_codepoint=32),
    st.sampled_from(['\\"', "\\\\", "\\/", "\\n", "\\u00e9", "\\u00E9", "\\ud83d\\ude00", "{", "]", ","]),
)
_string = st.lists(_characters, max_size=8).map(lambda chars: '"' + "".join(chars) + '"')


def _joined(opening: str, closing: str, members: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.tuples(st.lists(members, max_size=4), _space).map(
        lambda drawn: opening + drawn[1] + ("," + drawn[1]).join(drawn[0]) + drawn[1] + closing
    )


def _nested(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    name = st.one_of(st.sampled_from(['"a"', '"b"']), _string)  # few names, so that some come twice
    member = st.tuples(name, _space, _space, inner).map(lambda drawn: f"{drawn[0]}{drawn[1]}:{drawn[2]}{drawn[3]}")
    return st.one_of(_joined("[", "]", inner), _joined("{", "}", member))


_json = _nested(st.recursive(st.one_of(_number, _string, st.sampled_from(["true", "false", "null"])), _nested))
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{},:]|[^\s\[\]{},:"]+', re.DOTALL)


@given(_json, _space)
def test_json_is_laid_out_token_for_token(document: str, space: str) -> None:
    shown = laid_out((space + document).encode())
    assert shown is not None
    assert _TOKEN.findall(shown.decode()) == _TOKEN.findall(document)


def test_order_numbers_and_escapes_stay_as_they_were() -> None:
    body = b'{"b":1.10,"a":12345678901234567890123,"b":1E+5,"e":"\\u00e9\\/\xc3\xa9\xff","o":{},"l":[]}'
    assert laid_out(body) == (
        b'{\n  "b": 1.10,\n  "a": 12345678901234567890123,\n  "b": 1E+5,\n  "e": "\\u00e9\\/\xc3\xa9\xff",\n'
        b'  "o": {},\n  "l": []\n}'
    )


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b'{"a":',
        b"--boundary\r\n",
        b"[" * 5000 + b"]" * 5000,
        b"[" * 900 + b"1," * 50_000 + b"1" + b"]" * 900,  # each of its lines would begin with 1,800 spaces
        b"[" + b"1," * 300_000 + b"1]",
        b'["' + b"x" * 5_000_000 + b'"]',
    ],
    ids=["empty", "cut", "multipart", "deep", "deep and wide", "wide", "long"],
)
def test_what_cannot_be_laid_out_is_shown_as_it_is(body: bytes) -> None:
    began = time.process_time()
    text = request_text(b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body), body, 1 << 24)
    assert text == b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    assert time.process_time() - began < 2


def test_the_length_is_that_of_the_body_in_the_file() -> None:
    head = b"POST / HTTP/1.1\r\nHost: h\r\ncontent-length: 7\r\nAccept: */*\r\n\r\n"
    assert request_text(head, b'{"a":1}', CAP) == (
        b'POST / HTTP/1.1\r\nHost: h\r\ncontent-length: 12\r\nAccept: */*\r\n\r\n{\n  "a": 1\n}'
    )


@pytest.mark.parametrize("coding", [b"gzip", b"zstd"])
def test_a_compressed_request_is_shown_plain(coding: bytes) -> None:
    encode = gzip.compress if coding == b"gzip" else zstandard.ZstdCompressor().compress
    body = encode(b'{"a":1}')
    text = request_text(b"POST / HTTP/1.1\r\nContent-Encoding: %b\r\nContent-Length: 9\r\n\r\n" % coding, body, CAP)
    head, _, shown = text.partition(b"\r\n\r\n")
    assert shown == b'{\n  "a": 1\n}'
    assert b"\r\nContent-Length: 12\r\n" in head
    assert b"\r\nX-Ostiary-Dump: the body is stored without its content coding" in head


def test_a_body_that_is_not_what_its_coding_says_is_shown_as_it_is() -> None:
    for coding in (b"gzip", b"rot13", b"gzip, br"):
        head = b"POST / HTTP/1.1\r\nContent-Encoding: " + coding + b"\r\n\r\n"
        assert request_text(head, b"{}no", CAP) == head + b"{}no"


def test_a_body_that_unfolds_to_gigabytes_takes_no_more_than_the_file() -> None:
    body = gzip.compress(b" " * 50_000_000)
    text = request_text(b"POST / HTTP/1.1\r\nContent-Encoding: gzip\r\n\r\n", body, CAP)
    assert CAP < len(text) < CAP + 1_000_000


# --- credentials in answers


@given(
    st.lists(
        st.sampled_from([KEY, KEY[:12], b"x", b"sk-", KEY[3:], b"another-secret", b"sk-0123sk-0123456789"]), max_size=12
    ),
    st.data(),
)
def test_a_quoted_credential_is_masked_however_the_answer_is_torn(parts: list[bytes], data: st.DataObject) -> None:
    body = b"".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(body)), max_size=12)))
    redactor = Redactor((KEY, b"another-secret"))
    pieces = [redactor.feed(body[begin:end]) for begin, end in zip([0, *cuts], [*cuts, len(body)], strict=True)]
    shown = b"".join(pieces) + redactor.finish()
    assert shown == body.replace(KEY, b"sk-0...-key").replace(b"another-secret", b"an...et")


def test_only_what_may_be_a_credential_is_held_back() -> None:
    redactor = Redactor((KEY,))
    assert redactor.feed(b"data: hello\n\n") == b"data: hello\n\n"
    assert redactor.feed(b"data: sk-01") == b"data: "
    assert redactor.feed(b"x") == b"sk-01x"


def test_the_credentials_of_a_request_are_found() -> None:
    head = (
        b"POST /v1?%6bey=query-secret&beta=true HTTP/1.1\r\nHost: api.example.com\r\nAuthorization: Bearer bearer-secret==\r\n"
        b"Cookie: a=1; session=cookie-secret\r\nX-Note: no-secret-at-all\r\n\r\n"
    )
    found = secrets_of(head)
    assert {b"query-secret", b"bearer-secret==", b"cookie-secret"} <= set(found)
    assert not {b"no-secret-at-all", b"Bearer", b"beta"} & set(found)
    assert list(found) == sorted(found, key=len, reverse=True)


def test_a_head_full_of_cookies_does_not_make_its_answer_slow() -> None:
    cookies = b"; ".join(b"a%d=value-number-%d" % (n, n) for n in range(5000))
    head = b"POST / HTTP/1.1\r\nCookie: " + cookies + b"\r\nAuthorization: Bearer short-key\r\n\r\n"
    found = secrets_of(head)
    assert b"short-key" in found
    assert len(found) < 100
