"""What a head must look like to be read at all, and what is read from it."""

from dataclasses import dataclass

import pytest

from ostiary.http1 import head as heads
from ostiary.http1.errors import HeadError
from ostiary.http1.head import (
    CHUNKED,
    LENGTH,
    MAX_HEAD,
    NO_BODY,
    UNTIL_CLOSE,
    RequestHead,
    parse_request_head,
    parse_response_head,
)


@dataclass
class Refused:
    """A head, the status it is refused with, and why it must be."""

    raw: bytes
    status: int
    why: str


def request(*lines: bytes, line: bytes = b"POST /v1/x HTTP/1.1", host: bytes = b"Host: gateway\r\n") -> bytes:
    return line + b"\r\n" + host + b"".join(field + b"\r\n" for field in lines) + b"\r\n"


def response(*lines: bytes, line: bytes = b"HTTP/1.1 200 OK") -> bytes:
    return line + b"\r\n" + b"".join(field + b"\r\n" for field in lines) + b"\r\n"


FRAMING = [
    Refused(request(b"Content-Length: 5", b"Transfer-Encoding: chunked"), 400, "CL.TE"),
    Refused(request(b"Transfer-Encoding: chunked", b"Content-Length: 5"), 400, "TE.CL"),
    Refused(request(b"Transfer-Encoding: chunked", b"Content-Length: 0"), 400, "TE.0"),
    Refused(request(b"Content-Length: 0", b"Transfer-Encoding: chunked"), 400, "0.TE"),
    Refused(request(b"Content-Length: 5", b"Content-Length: 5"), 400, "repeated, the same"),
    Refused(request(b"Content-Length: 5", b"Content-Length: 6"), 400, "repeated, different"),
    Refused(request(b"Content-Length: 5", b"content-length: 0"), 400, "repeated in another case"),
    Refused(request(b"Content-Length: 5, 5"), 400, "a list of lengths"),
    Refused(request(b"Content-Length: +5"), 400, "a sign"),
    Refused(request(b"Content-Length: -5"), 400, "a negative length"),
    Refused(request(b"Content-Length: 0x5"), 400, "hexadecimal"),
    Refused(request(b"Content-Length: 5 5"), 400, "a space inside"),
    Refused(request(b"Content-Length: 5\x0b"), 400, "a vertical tab"),
    Refused(request(b"Content-Length: 1_0"), 400, "Python's own digits"),
    Refused(request("Content-Length: \u0665".encode()), 400, "digits of another script"),
    Refused(request(b"Content-Length: \xb2"), 400, "a superscript digit"),
    Refused(request(b"Content-Length: "), 400, "empty"),
    Refused(request(b"Content-Length: 5.0"), 400, "a fraction"),
    Refused(request(b"Content-Length: 99999999999999999999"), 400, "more than 64 bits"),
    Refused(request(b"Content-Length: 18446744073709551616"), 400, "2^64, zero to some"),
    Refused(request(b"Content-Length: 0000000000000005"), 400, "longer than any length is"),
    Refused(request(b"Content-Length : 5"), 400, "a space before the colon"),
    Refused(request(b"Transfer-Encoding : chunked"), 400, "a space before the colon"),
    Refused(request(b"Transfer-Encoding\t: chunked"), 400, "a tab before the colon"),
    Refused(request(b"Transfer-Encoding: gzip, chunked"), 400, "two codings"),
    Refused(request(b"Transfer-Encoding: chunked, gzip"), 400, "chunked not last"),
    Refused(request(b"Transfer-Encoding: chunked, chunked"), 400, "chunked twice"),
    Refused(request(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"), 400, "chunked on two lines"),
    Refused(request(b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity"), 400, "TE.TE"),
    Refused(request(b"Transfer-Encoding: identity", b"Transfer-Encoding: chunked"), 400, "TE.TE"),
    Refused(request(b"Transfer-Encoding: x", b"Transfer-Encoding: chunked"), 400, "TE.TE"),
    Refused(request(b"Transfer-Encoding: identity"), 400, "not chunked"),
    Refused(request(b"Transfer-Encoding: xchunked"), 400, "not chunked"),
    Refused(request(b"Transfer-Encoding: chunkedx"), 400, "not chunked"),
    Refused(request(b"Transfer-Encoding: chunk"), 400, "not chunked"),
    Refused(request(b'Transfer-Encoding: "chunked"'), 400, "quoted"),
    Refused(request(b"Transfer-Encoding: chunked;q=1"), 400, "with a parameter"),
    Refused(request(b"Transfer-Encoding: ,chunked"), 400, "an empty list member"),
    Refused(request(b"Transfer-Encoding: chunked,"), 400, "an empty list member"),
    Refused(request(b"Transfer-Encoding: "), 400, "empty"),
    Refused(request(b"Transfer-Encoding: chunked\x0b"), 400, "a vertical tab"),
    Refused(request(b"Transfer-Encoding: \x0cchunked"), 400, "a form feed"),
    Refused(request(b"Transfer-Encoding:\r\n chunked"), 400, "folded"),
    Refused(request(b"Transfer-Encoding:\n chunked"), 400, "folded by a bare LF"),
    Refused(request(b"Transfer-Encoding: chunked", line=b"POST / HTTP/1.0"), 400, "chunked in HTTP/1.0"),
    Refused(request(b"X: a\r\n Transfer-Encoding: chunked"), 400, "obs-fold"),
    Refused(request(b"X: a\r\n\tb"), 400, "obs-fold by a tab"),
    Refused(request(b"X:\r\n a"), 400, "obs-fold after nothing"),
]

FIELDS = [
    Refused(request(b" X: a"), 400, "the first field folded onto nothing"),
    Refused(request(b" Host: gateway", host=b""), 400, "a space before the first field"),
    Refused(request(b"X : a"), 400, "a space before the colon"),
    Refused(request(b"X\t: a"), 400, "a tab before the colon"),
    Refused(request(b": a"), 400, "no name"),
    Refused(request(b"X"), 400, "no colon"),
    Refused(request(b"X\x00: a"), 400, "NUL in a name"),
    Refused(request(b"X\xff: a"), 400, "no ASCII in a name"),
    Refused(request(b"X(y): a"), 400, "a delimiter in a name"),
    Refused(request(b"X: a\x00"), 400, "NUL in a value"),
    Refused(request(b"X: a\x00b"), 400, "NUL in a value"),
    Refused(request(b"X: \x01"), 400, "a control character"),
    Refused(request(b"X: \x1b[2J"), 400, "an escape sequence"),
    Refused(request(b"X: \x7f"), 400, "DEL"),
    Refused(request(b"X: a\rb"), 400, "a bare CR"),
    Refused(request(b"X: a\r"), 400, "CR CR LF"),
    Refused(request(b"X: a\nTransfer-Encoding: chunked"), 400, "a bare LF"),
    Refused(request(b"X: a\n\nGET /admin HTTP/1.1\r\nHost: gateway"), 400, "an empty line of bare LFs"),
    Refused(request(b"X: a\r\n\nGET /admin HTTP/1.1\r\nHost: gateway"), 400, "an empty line of a bare LF"),
    Refused(request(b"X: a\n\r\nGET /admin HTTP/1.1\r\nHost: gateway"), 400, "an empty line after a bare LF"),
    Refused(request(host=b""), 400, "no Host"),
    Refused(request(b"Host: gateway"), 400, "two Hosts, the same"),
    Refused(request(b"host: other"), 400, "two Hosts"),
    Refused(request(host=b"Host: a, b\r\n"), 400, "a list of hosts"),
    Refused(request(host=b"Host: a b\r\n"), 400, "a space in the host"),
    Refused(request(host=b"Host: user@gateway\r\n"), 400, "userinfo in the host"),
    Refused(request(host=b"Host: gateway/admin\r\n"), 400, "a path in the host"),
    Refused(request(host=b"Host: gateway?x\r\n"), 400, "a query in the host"),
    Refused(request(host=b"Host: gate\\way\r\n"), 400, "a backslash in the host"),
    Refused(request(host=b"Host: g\xc3\xa4teway\r\n"), 400, "no ASCII in the host"),
    Refused(request(b"Authorization: Bearer a", b"Authorization: Bearer b"), 400, "two credentials"),
    Refused(request(b"Authorization: Bearer a", b"authorization: Bearer a"), 400, "two credentials, the same"),
    Refused(request(b"X-Api-Key: a", b"X-Api-Key: b"), 400, "two credentials"),
    Refused(request(b"X-Ostiary-Token: a", b"X-Ostiary-Token: b"), 400, "two tokens"),
    Refused(request(b"Content-Encoding: gzip", b"Content-Encoding: br"), 400, "two codings"),
    Refused(request(b"Content-Type: a/b", b"Content-Type: c/d"), 400, "two types"),
    Refused(request(b"Expect: 200-ok"), 417, "an unknown expectation"),
    Refused(request(b"Expect: 100-continue", b"Expect: 100-continue"), 400, "two expectations"),
]

REQUEST_LINES = [
    Refused(request(line=b"GET /"), 400, "HTTP/0.9"),
    Refused(request(line=b"GET / HTTP/0.9"), 505, "HTTP/0.9"),
    Refused(request(line=b"GET / HTTP/1.2"), 400, "HTTP/1.2"),
    Refused(request(line=b"GET / HTTP/2.0"), 505, "HTTP/2"),
    Refused(request(line=b"PRI * HTTP/2.0"), 400, "the preface of HTTP/2"),
    Refused(request(line=b"GET / HTTP/3"), 400, "HTTP/3"),
    Refused(request(line=b"GET / HTTP/1.10"), 400, "two digits"),
    Refused(request(line=b"GET / HTTP/01.1"), 400, "two digits"),
    Refused(request(line=b"GET / HTTP/+1.1"), 400, "a sign"),
    Refused(request(line=b"GET / http/1.1"), 400, "lower case"),
    Refused(request(line=b"GET / RTSP/1.0"), 505, "another protocol"),
    Refused(request(line=b"GET / HTTPS/1.1"), 400, "another protocol"),
    Refused(request(line=b"GET  / HTTP/1.1"), 400, "two spaces"),
    Refused(request(line=b"GET /  HTTP/1.1"), 400, "two spaces"),
    Refused(request(line=b"GET / HTTP/1.1 "), 400, "a space behind"),
    Refused(request(line=b" GET / HTTP/1.1"), 400, "a space before"),
    Refused(request(line=b"GET\t/ HTTP/1.1"), 400, "a tab"),
    Refused(request(line=b"GET /\tHTTP/1.1"), 400, "a tab"),
    Refused(request(line=b"GET /a b HTTP/1.1"), 400, "a space in the target"),
    Refused(request(line=b"GET / HTTP/1.1 HTTP/1.1"), 400, "two versions"),
    Refused(request(line=b"GET /\x00 HTTP/1.1"), 400, "NUL in the target"),
    Refused(request(line=b"GET /\x7f HTTP/1.1"), 400, "DEL in the target"),
    Refused(request(line=b"POST /?a\nX-Injected:/ HTTP/1.1"), 400, "a line end in the query, and a field behind it"),
    Refused(
        request(line=b"POST http://gateway/?a\nX:/ HTTP/1.1"), 400, "a line end in the query of an absolute target"
    ),
    Refused(request(line=b"GET /\x0b HTTP/1.1"), 400, "a control character in the target"),
    Refused(request(line=b"GET /\xe4 HTTP/1.1"), 400, "no ASCII in the target"),
    Refused(request(line=b"GET /a#b HTTP/1.1"), 400, "a fragment"),
    Refused(request(line=b"GET * HTTP/1.1"), 400, "asterisk-form"),
    Refused(request(line=b"OPTIONS * HTTP/1.1"), 400, "asterisk-form"),
    Refused(request(line=b"GET gateway/x HTTP/1.1"), 400, "no form of a target"),
    Refused(request(line=b"CONNECT gateway:443 HTTP/1.1"), 501, "CONNECT"),
    Refused(request(line=b"GET ftp://gateway/ HTTP/1.1"), 400, "another scheme"),
    Refused(request(line=b"GET http://other/ HTTP/1.1"), 400, "another host in the target"),
    Refused(request(line=b"GET http://gateway@other/ HTTP/1.1"), 400, "userinfo in the target"),
    Refused(request(line=b"GET http:///x HTTP/1.1"), 400, "no host in the target"),
    Refused(request(line=b"get / HTTP/1.1"), 400, "a method in lower case"),
    Refused(request(line=b"G\x00T / HTTP/1.1"), 400, "NUL in the method"),
    Refused(request(line=b"FROBNICATE / HTTP/1.1"), 400, "an unknown method"),
    Refused(request(line=b"/ HTTP/1.1"), 400, "no method"),
    Refused(b"\nGET / HTTP/1.1\r\nHost: gateway\r\n\r\n", 400, "a bare LF before the method"),
    Refused(b"\r\rGET / HTTP/1.1\r\nHost: gateway\r\n\r\n", 400, "bare CRs before the method"),
    Refused(b"GET / HTTP/1.1\nHost: gateway\r\n\r\n", 400, "a bare LF"),
    Refused(b"GET / HTTP/1.1\rHost: gateway\r\n\r\n", 400, "a bare CR"),
    Refused(b"GET / HTTP/1.1\r\r\nHost: gateway\r\n\r\n", 400, "CR CR LF"),
    Refused(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400, "a TLS hello"),
]


@pytest.mark.parametrize("head", FRAMING + FIELDS + REQUEST_LINES, ids=lambda h: f"{h.why}: {h.raw[:60]!r}")
def test_an_ambiguous_request_head_is_refused(head: Refused) -> None:
    with pytest.raises(HeadError) as refused:
        parse_request_head(head.raw)
    assert refused.value.status == head.status
    assert refused.value.reason


RESPONSES = [
    response(b"Content-Length: 5", b"Transfer-Encoding: chunked"),
    response(b"Transfer-Encoding: chunked", b"Content-Length: 5"),
    response(b"Content-Length: 5", b"Content-Length: 5"),
    response(b"Content-Length: 5, 5"),
    response(b"Content-Length: -5"),
    response(b"Content-Length: +5"),
    response(b"Content-Length: 0x5"),
    response(b"Content-Length: "),
    response(b"Content-Length: 99999999999999999999"),
    response(b"Transfer-Encoding: gzip"),
    response(b"Transfer-Encoding: gzip, chunked"),
    response(b"Transfer-Encoding: chunked, chunked"),
    response(b"Transfer-Encoding: identity"),
    response(b"Transfer-Encoding: gzip", b"Transfer-Encoding: chunked"),
    response(b"Transfer-Encoding : chunked"),
    response(b"Transfer-Encoding: chunked", line=b"HTTP/1.0 200 OK"),
    response(b"X: a\r\n b"),
    response(b"X : a"),
    response(b"X: a\nSet-Cookie: stolen=1"),
    response(b"X: a\rSet-Cookie: stolen=1"),
    response(b"X: \x00"),
    response(b"X\x00: a"),
    response(b"X"),
    response(b"Content-Length: 0\n\r\nHTTP/1.1 200 OK"),
    response(b"Content-Length: 0\r\n\nHTTP/1.1 200 OK"),
    response(line=b"HTTP/1.1  200 OK"),
    response(line=b"HTTP/1.1 20 OK"),
    response(line=b"HTTP/1.1 2000 OK"),
    response(line=b"HTTP/1.1 +20 OK"),
    response(line=b"HTTP/1.1 200OK"),
    response(line=b"HTTP/1.1 099 Below"),
    response(line=b"HTTP/1.1 000 Nothing"),
    response(line=b"HTTP/1.1"),
    response(line=b"HTTP/1.1 200 O\x00K"),
    response(line=b"HTTP/1.1 200 O\x1bK"),
    response(line=b"HTTP/1.1 200 O\nK"),
    response(line=b"HTTP/1.1 200 O\rK"),
    response(line=b"HTTP/2 200 OK"),
    response(line=b"HTTP/2.0 200 OK"),
    response(line=b"HTTP/0.9 200 OK"),
    response(line=b"http/1.1 200 OK"),
    response(line=b"ICY 200 OK"),
    response(line=b"SSH-2.0-OpenSSH_9.2"),
    response(line=b" HTTP/1.1 200 OK"),
    response(line=b"HTTP/1.1 101 Switching Protocols"),
    response(b"Upgrade: x", b"Connection: upgrade", line=b"HTTP/1.1 101 Switching Protocols"),
    b"HTTP/1.1 200 OK\nX: a\r\n\r\n",
    b"\r\nHTTP/1.1 200 OK\r\n\r\n",
]


@pytest.mark.parametrize("raw", RESPONSES, ids=repr)
def test_an_ambiguous_response_head_is_refused(raw: bytes) -> None:
    with pytest.raises(HeadError) as refused:
        parse_response_head(raw)
    assert refused.value.status == 502


@dataclass
class Read:
    """What must be read from a request."""

    raw: bytes
    method: bytes = b"POST"
    target: bytes = b"/v1/x"
    framing: int = NO_BODY
    length: int = 0
    keep_alive: bool = True


ACCEPTED = [
    Read(request()),
    Read(request(b"Content-Length: 5"), framing=LENGTH, length=5),
    Read(request(b"content-length:5"), framing=LENGTH, length=5),
    Read(request(b"Content-Length: \t 5 \t"), framing=LENGTH, length=5),
    Read(request(b"Content-Length: 007"), framing=LENGTH, length=7),
    Read(request(b"Content-Length: 0")),
    Read(request(b"Transfer-Encoding: chunked"), framing=CHUNKED),
    Read(request(b"TRANSFER-ENCODING: Chunked "), framing=CHUNKED),
    Read(request(b"Connection: close"), keep_alive=False),
    Read(request(b"Connection: foo, CLOSE"), keep_alive=False),
    Read(request(b"Connection: foo", b"Connection: close"), keep_alive=False),
    Read(request(b"Connection: closed")),
    Read(request(line=b"POST /v1/x HTTP/1.0"), keep_alive=False),
    Read(request(line=b"POST /v1/x HTTP/1.0", host=b""), keep_alive=False),
    Read(request(b"Connection: keep-alive", line=b"POST /v1/x HTTP/1.0"), keep_alive=False),
    Read(request(line=b"GET /?a=b%20c&d=%00 HTTP/1.1"), b"GET", b"/?a=b%20c&d=%00"),
    Read(request(line=b"GET //x HTTP/1.1"), b"GET", b"//x"),
    Read(request(line=b"DELETE /a|b\"'<>[]{}^`\\ HTTP/1.1"), b"DELETE", b"/a|b\"'<>[]{}^`\\"),
    Read(request(line=b"GET http://gateway/v1/x?y HTTP/1.1"), b"GET", b"/v1/x?y"),
    Read(request(line=b"GET HTTPS://GATEWAY/v1/x HTTP/1.1"), b"GET", b"/v1/x"),
    Read(request(line=b"GET http://gateway HTTP/1.1"), b"GET", b"/"),
    Read(request(line=b"GET http://gateway?y=/z HTTP/1.1"), b"GET", b"/?y=/z"),
    Read(request(host=b"Host: [::1]:4000\r\n")),
    Read(request(host=b"Host: my_gateway.example-1.com:80\r\n")),
    Read(request(host=b"Host:\r\n")),
    Read(request(b"X-Empty:", b"X-High: \xe4\xf6", b"X-Tab: a\tb", b"!#$%&'*+-.^_`|~: ok")),
    Read(request(b"Accept: a", b"Accept: b", b"Cookie: a=b", b"Cookie: c=d")),
]


@pytest.mark.parametrize("read", ACCEPTED, ids=lambda r: repr(r.raw[:70]))
def test_what_is_read_from_a_request_head(read: Read) -> None:
    head = parse_request_head(read.raw)
    assert (head.method, head.target, head.framing, head.content_length, head.keep_alive) == (
        read.method,
        read.target,
        read.framing,
        read.length,
        read.keep_alive,
    )
    assert head.path + head.query == head.target
    assert head.query[:1] in (b"", b"?")


def test_lines_are_kept_as_they_came_and_names_are_lower_case() -> None:
    head = parse_request_head(request(b"X-One:  a ", b"x-two:b", b"X-ONE:\tc"))
    assert head.lines == [b"Host: gateway", b"X-One:  a ", b"x-two:b", b"X-ONE:\tc"]
    assert head.names == [b"host", b"x-one", b"x-two", b"x-one"]
    assert head.fields == {b"host": b"gateway", b"x-one": b"a, c", b"x-two": b"b"}


CREDENTIALS = (
    "Authorization",
    "Proxy-Authorization",
    "Cookie",
    "Set-Cookie",
    "Api-Key",
    "X-Api-Key",
    "X-Goog-Api-Key",
    "X-Amz-Security-Token",
    "X-Auth-Token",
    "X-Ostiary-Token",
    "X-Ostiary-Front-Door",
    "X-Ostiary-Gateway-Key",
    "X-Coder-AI-Governance-Token",
    "Coder-Session-Token",
    "Ocp-Apim-Subscription-Key",
    "X-Of-Somebodys-Own",
)


@pytest.mark.parametrize("name", CREDENTIALS)
def test_no_credential_is_kept_after_its_head_is_read_whatever_field_it_comes_in(name: str) -> None:
    credential = f"of-{name.lower()}-0123456789abcdef".encode()
    line = name.encode() + b": " + credential
    for parse, raw in (
        (parse_request_head, request(line, b"Accept: kept")),
        (parse_response_head, response(line, b"Accept: kept")),
    ):
        parse(raw)
        assert b"Accept: kept" in heads._known
        assert not any(credential in kept for kept in heads._known)


def test_expectation_and_upgrade_are_noted() -> None:
    assert parse_request_head(request(b"Expect: 100-Continue", b"Content-Length: 5")).expect_continue
    assert not parse_request_head(request(b"Expect: 100-continue", line=b"POST / HTTP/1.0")).expect_continue
    websocket = parse_request_head(request(b"Upgrade: WebSocket", b"Connection: Upgrade", line=b"GET / HTTP/1.1"))
    assert websocket.upgrade == b"websocket"
    with_body = parse_request_head(request(b"Upgrade: h2c", b"Connection: Upgrade", b"Content-Length: 9"))
    assert (with_body.upgrade, with_body.framing, with_body.content_length) == (b"h2c", LENGTH, 9)
    assert parse_request_head(request()).upgrade == b""


def test_connection_options_are_read_from_all_lines() -> None:
    head = parse_request_head(request(b"Connection: Keep-Alive ,X-Secret", b"Connection: x-other"))
    assert set(head.connection_options()) == {b"keep-alive", b"x-secret", b"x-other"}


@dataclass
class Answered:
    """What must be read from a response."""

    raw: bytes
    framing: int
    length: int = 0
    status: int = 200
    keep_alive: bool = True
    to_head: bool = False


ANSWERS = [
    Answered(response(b"Content-Length: 5"), LENGTH, 5),
    Answered(response(b"Content-Length: 0"), NO_BODY),
    Answered(response(b"Transfer-Encoding: chunked"), CHUNKED),
    Answered(response(), UNTIL_CLOSE, keep_alive=False),
    Answered(response(b"Connection: keep-alive"), UNTIL_CLOSE, keep_alive=False),
    Answered(response(b"Content-Length: 5", b"Connection: close"), LENGTH, 5, keep_alive=False),
    Answered(response(b"Content-Length: 5", line=b"HTTP/1.0 200 OK"), LENGTH, 5, keep_alive=False),
    Answered(response(line=b"HTTP/1.0 200 OK"), UNTIL_CLOSE, keep_alive=False),
    Answered(response(b"Content-Length: 5"), NO_BODY, 5, to_head=True),
    Answered(response(b"Transfer-Encoding: chunked"), NO_BODY, to_head=True),
    Answered(response(), NO_BODY, to_head=True),
    Answered(response(line=b"HTTP/1.1 204 No Content"), NO_BODY, status=204),
    Answered(response(b"Content-Length: 5", line=b"HTTP/1.1 204 No Content"), NO_BODY, 5, status=204),
    Answered(response(b"Content-Length: 5", line=b"HTTP/1.1 304 Not Modified"), NO_BODY, 5, status=304),
    Answered(response(line=b"HTTP/1.1 100 Continue"), NO_BODY, status=100),
    Answered(response(b"Link: </x>", line=b"HTTP/1.1 103 Early Hints"), NO_BODY, status=103),
    Answered(response(b"Content-Length: 5", line=b"HTTP/1.1 529 Overloaded"), LENGTH, 5, status=529),
    Answered(response(b"Content-Length: 5", line=b"HTTP/1.1 200"), LENGTH, 5),
    Answered(response(b"Content-Length: 5", line=b"HTTP/1.1 200 "), LENGTH, 5),
    Answered(response(b"Content-Length: 5", line=b"HTTP/1.1 200 \xc3\x9cber\tgut"), LENGTH, 5),
    Answered(response(b"Content-Length: 5", b"Upgrade: h2,h2c", b"Connection: Upgrade"), LENGTH, 5),
    Answered(response(b"Content-Length: 5", b"Content-Type: a/b", b"Content-Type: c/d"), LENGTH, 5),
    Answered(response(b"Content-Length: 5", b"Set-Cookie: a=b", b"Set-Cookie: c=d"), LENGTH, 5),
]


@pytest.mark.parametrize("answer", ANSWERS, ids=lambda a: repr((a.to_head, a.raw[:70])))
def test_what_is_read_from_a_response_head(answer: Answered) -> None:
    head = parse_response_head(answer.raw, to_head_request=answer.to_head)
    assert (head.framing, head.content_length, head.status, head.keep_alive) == (
        answer.framing,
        answer.length,
        answer.status,
        answer.keep_alive,
    )
    assert head.status_line == answer.raw[: answer.raw.index(b"\r\n")]


def test_the_largest_head_is_read_in_reasonable_time() -> None:
    lines = b"a:\r\n" * ((MAX_HEAD - 60) // 4)
    head = parse_request_head(request()[:-2] + lines + b"\r\n")
    assert isinstance(head, RequestHead)
    assert len(head.lines) == len(head.names) > 16_000
