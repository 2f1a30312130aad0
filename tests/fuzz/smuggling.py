"""Shapes of request smuggling and response splitting that are known, each with where it comes from and what must become of it.

Rules
- A shape is bytes on a connection of a client or of an upstream. Within those of a client stands a second request, the inner
  one, wherever a reader with other rules would see it; nobody but the outer one's body may.
- A refused shape is answered once, with a status, and ends its connection. A served one is one message with one meaning, and
  what follows on the connection is the next.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

SERVED: Final = 0
"""In the place of a status: one request, whose body holds whatever else came."""

RFC9112: Final = "RFC 9112"
DESYNC: Final = "J. Kettle, HTTP Desync Attacks, 2019"
BROWSER: Final = "J. Kettle, Browser-Powered Desync Attacks, 2022"
MUST_DIE: Final = "J. Kettle, HTTP/1.1 must die, 2025"
CHUNKS: Final = "J. Bonde Weikop, Funky chunks, 2025"
LINHART: Final = "Linhart et al., HTTP Request Smuggling, 2005"
GARDEN: Final = "The HTTP Garden, 2024"
H2C: Final = "J. Miller, h2c Smuggling, 2020"


class Place(NamedTuple):
    """Where a shape is sent, and as whom."""

    path: bytes
    host: bytes
    token: bytes
    mark: bytes

    def head(self, *fields: bytes, line: bytes = b"", host: bytes = b"", mark: bytes = b"outer") -> bytes:
        """A head with these fields besides those that any request has."""
        first = line.replace(b"$PATH", self.path).replace(b"$HOST", self.host) or b"POST " + self.path + b" HTTP/1.1"
        given = host.replace(b"$HOST", self.host) or b"Host: " + self.host
        own = (b"Authorization: Bearer " + self.token, b"X-Fake-Mark: " + self.mark + b"-" + mark)
        return b"\r\n".join((first, given, *own, *fields, b"", b""))

    @property
    def inner(self) -> bytes:
        """The request that nobody may see."""
        return self.head(b"Content-Length: 2", mark=b"inner") + b"{}"

    def sized(self, *fields: bytes, body: bytes | None = None, **how: bytes) -> bytes:
        """A request of which the length is right; the body is the inner request when no other is given."""
        body = self.inner if body is None else body
        return self.head(*fields, b"Content-Length: %d" % len(body), **how) + body

    def chunked(self, body: bytes, *fields: bytes) -> bytes:
        """A chunked request whose body stands as it is given."""
        return self.head(b"Transfer-Encoding: chunked", *fields) + body


class Shape(NamedTuple):
    name: str
    source: str
    expected: int
    build: Callable[[Place], bytes]


def _answered(build: Callable[[Place, bytes], bytes], *shapes: tuple[str, str, int, bytes]) -> list[Shape]:
    """Of shapes that differ in some bytes of them."""
    return [Shape(name, source, status, lambda at, odd=odd: build(at, odd)) for name, source, status, odd in shapes]


def _refused(build: Callable[[Place, bytes], bytes], *shapes: tuple[str, str, bytes]) -> list[Shape]:
    """The same, of shapes that are all answered with 400."""
    return _answered(build, *((name, source, 400, odd) for name, source, odd in shapes))


REQUESTS: Final[list[Shape]] = [
    # Two framings at once
    Shape(
        "CL.TE",
        DESYNC,
        400,
        lambda at: at.head(b"Content-Length: 5", b"Transfer-Encoding: chunked") + b"0\r\n\r\n" + at.inner,
    ),
    Shape(
        "TE.CL",
        DESYNC,
        400,
        lambda at: (
            at.head(b"Transfer-Encoding: chunked", b"Content-Length: 4") + b"5c\r\n" + at.inner + b"\r\n0\r\n\r\n"
        ),
    ),
    Shape("TE.0", "Bednarski et al., TE.0, 2024", 400, lambda at: at.head(b"Transfer-Encoding: identity") + at.inner),
    Shape("CL.0: a length where none is usual", BROWSER, SERVED, lambda at: at.sized(line=b"GET $PATH HTTP/1.1")),
    Shape("CL.0: a length with DELETE", BROWSER, SERVED, lambda at: at.sized(line=b"DELETE $PATH HTTP/1.1")),
    Shape(
        "0.CL: a length that one side misses",
        MUST_DIE,
        400,
        lambda at: at.head(b"Content-Length:\r\n %d" % len(at.inner)) + at.inner,
    ),
    Shape(
        "H1.0 with chunks",
        RFC9112,
        400,
        lambda at: at.head(b"Transfer-Encoding: chunked", line=b"POST $PATH HTTP/1.0") + b"0\r\n\r\n" + at.inner,
    ),
    # A `Content-Length` written oddly, in front of a body that is the inner request
    *_refused(
        lambda at, field: at.head(field) + at.inner,
        ("twice, the same", LINHART, b"Content-Length: 2\r\nContent-Length: 2"),
        ("twice, different", LINHART, b"Content-Length: 0\r\nContent-Length: 100"),
        ("a list", "CVE-2019-16789, waitress", b"Content-Length: 2, 2"),
        ("a list of different lengths", RFC9112, b"Content-Length: 0, 100"),
        ("a plus sign", "CVE-2022-24801, Twisted", b"Content-Length: +2"),
        ("a minus sign", GARDEN, b"Content-Length: -1"),
        ("hexadecimal", "CVE-2022-24801, Twisted", b"Content-Length: 0x2"),
        ("an underscore", "CVE-2023-47627, aiohttp", b"Content-Length: 1_0"),
        ("a vertical tab before", "CVE-2019-16785, waitress", b"Content-Length:\x0b2"),
        ("empty", "CVE-2023-40225, HAProxy", b"Content-Length:"),
        ("empty, and once more", "CVE-2023-40225, HAProxy", b"Content-Length:\r\nContent-Length: 2"),
        ("2^64", GARDEN, b"Content-Length: 18446744073709551616"),
        ("a space before the colon", "CVE-2019-16276, Go", b"Content-Length : 2"),
        ("a line folded", "CVE-2022-32215, Node.js", b"Content-Length: 1\r\n 0"),
        ("behind a folded line", "CVE-2024-27982, Node.js", b"X: y\r\n Content-Length: 2"),
        ("behind a bare CR", "CVE-2023-30589, Node.js", b"X: y\rContent-Length: 2"),
        ("behind a bare LF", "CVE-2019-16792, waitress", b"X: y\nContent-Length: 2"),
        ("behind NUL", GARDEN, b"Content-Length: 2\x00"),
        ("with a semicolon", GARDEN, b"Content-Length: 2;"),
    ),
    # A `Transfer-Encoding` that hides itself from some readers; the length of the body is right
    *_refused(
        lambda at, field: at.sized(field, body=b"0\r\n\r\n" + at.inner),
        ("TE: a space before the colon", "CVE-2019-20445, Netty", b"Transfer-Encoding : chunked"),
        ("TE: a tab before the colon", DESYNC, b"Transfer-Encoding\t: chunked"),
        ("TE: xchunked", DESYNC, b"Transfer-Encoding: xchunked"),
        ("TE: chunkedx", GARDEN, b"Transfer-Encoding: chunkedx"),
        ("TE: a tab behind", DESYNC, b"Transfer-Encoding:\tchunked"),
        ("TE: folded", DESYNC, b"Transfer-Encoding:\r\n chunked"),
        ("TE: behind a bare LF", DESYNC, b"X: X\nTransfer-Encoding: chunked"),
        ("TE: in front of a bare LF", DESYNC, b"X: X\r\n\nTransfer-Encoding: chunked"),
        ("TE: twice", "CVE-2020-8287, Node.js", b"Transfer-Encoding: chunked\r\nTransfer-Encoding: x"),
        ("TE: twice, the other way", DESYNC, b"Transfer-Encoding: x\r\nTransfer-Encoding: chunked"),
        ("TE: chunked, identity", "CVE-2024-1135, gunicorn", b"Transfer-Encoding: chunked, identity"),
        ("TE: identity, chunked", "CVE-2022-32213, Node.js", b"Transfer-Encoding: identity, chunked"),
        ("TE: chunked twice in a list", "CVE-2024-6827, gunicorn", b"Transfer-Encoding: chunked,chunked"),
        ("TE: quoted", GARDEN, b'Transfer-Encoding: "chunked"'),
        ("TE: a vertical tab", "CVE-2019-16786, waitress", b"Transfer-Encoding: \x0bchunked"),
        ("TE: NUL", GARDEN, b"Transfer-Encoding: chunked\x00"),
        ("TE: a space in front", "CVE-2021-22959, Node.js", b" Transfer-Encoding: chunked"),
        ("TE: no colon", "CVE-2019-20444, Netty", b"Transfer-Encoding\r\n: chunked"),
    ),
    # One more field; the body is the inner request, with its right length
    *_answered(
        lambda at, field: at.sized(field),
        ("an underscore is another field", GARDEN, SERVED, b"Transfer_Encoding: chunked"),
        ("a field of which the name ends like one", GARDEN, SERVED, b"XTransfer-Encoding: chunked"),
        ("a field without a name", "CVE-2023-25725, HAProxy", 400, b": x"),
        ("a line without a colon", RFC9112, 400, b"X"),
        ("a space in a name", RFC9112, 400, b"X Y: z"),
        ("NUL in a name", GARDEN, 400, b"X\x00: z"),
        ("a second Host", RFC9112, 400, b"Host: other"),
        ("a Host behind a space", "CVE-2020-11724, OpenResty", 400, b" Host: other"),
        (
            "an offer of h2c",
            H2C,
            SERVED,
            b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__",
        ),
        (
            "an offer of a WebSocket",
            "M. Egorov, WebSocket smuggling, 2019",
            SERVED,
            b"Connection: Upgrade\r\nUpgrade: websocket",
        ),
        (
            "Connection names the length",
            "N. Davison, Abusing hop-by-hop headers, 2019",
            SERVED,
            b"Connection: Content-Length",
        ),
        (
            "Connection names the credential",
            "N. Davison, Abusing hop-by-hop headers, 2019",
            SERVED,
            b"Connection: Authorization",
        ),
        ("Expect of something else", MUST_DIE, 417, b"Expect: y 100-continue"),
        ("Expect twice", MUST_DIE, 400, b"Expect: 100-continue\r\nExpect: x"),
        ("Expect, and the body at once", MUST_DIE, SERVED, b"Expect: 100-continue"),
        (
            "a number in a name that overflows",
            "CVE-2021-40346, HAProxy",
            SERVED,
            b"Content-Length0" + b"a" * 255 + b": x",
        ),
    ),
    # Chunks that end elsewhere for some readers; the inner request follows
    *_refused(
        lambda at, body: at.chunked(body + at.inner),
        ("a bare LF behind the size", "CVE-2025-22871, Go", b"2\n{}\r\n0\r\n\r\n"),
        ("a bare LF in an extension", CHUNKS, b"2;\n{}\r\n0\r\n\r\n"),
        ("a bare CR in an extension", "CVE-2025-55315, Kestrel", b"2;a\rb\r\n{}\r\n0\r\n\r\n"),
        ("a bare LF behind the data", CHUNKS, b"2\r\n{}\n0\r\n\r\n"),
        ("two bytes that are no CRLF", "CVE-2025-43859, h11", b"2\r\n{}XX0\r\n\r\n"),
        ("NUL in an extension", CHUNKS, b"2;\x00\r\n{}\r\n0\r\n\r\n"),
        ("a size of 2^64", LINHART, b"10000000000000002\r\n{}\r\n0\r\n\r\n"),
        ("a size with 0x", "CVE-2022-24801, Twisted", b"0x2\r\n{}\r\n0\r\n\r\n"),
        ("a size with a sign", "CVE-2022-24801, Twisted", b"+2\r\n{}\r\n0\r\n\r\n"),
        ("a negative size", LINHART, b"-1\r\n{}\r\n0\r\n\r\n"),
        ("a size with an underscore", "CVE-2023-47627, aiohttp", b"0_2\r\n{}\r\n0\r\n\r\n"),
        ("a size behind a space", GARDEN, b" 2\r\n{}\r\n0\r\n\r\n"),
        ("a size in front of a space", "CVE-2022-32214, Node.js", b"2 \r\n{}\r\n0\r\n\r\n"),
        ("no size", GARDEN, b"\r\n{}\r\n0\r\n\r\n"),
        ("an end with a bare LF", GARDEN, b"2\r\n{}\r\n0\r\n\n"),
        ("an end with CR CR LF", GARDEN, b"2\r\n{}\r\n0\r\n\r\r\n"),
        ("a trailer behind a bare LF", GARDEN, b"2\r\n{}\r\n0\r\nX: y\nZ: z\r\n\r\n"),
        ("a trailer that is a request", "CVE-2025-53643, aiohttp", b"2\r\n{}\r\n0\r\nGET /inner HTTP/1.1\r\n\r\n"),
        ("a folded trailer", RFC9112, b"2\r\n{}\r\n0\r\nX: y\r\n z\r\n\r\n"),
    ),
    Shape(
        "trailers that name the framing",
        "RFC 9110 §6.5.1",
        SERVED,
        lambda at: at.chunked(b"2\r\n{}\r\n0\r\nContent-Length: 50\r\nTransfer-Encoding: x\r\nHost: other\r\n\r\n"),
    ),
    Shape(
        "a request within a chunk",
        CHUNKS,
        SERVED,
        lambda at: at.chunked(b"%x\r\n" % len(at.inner) + at.inner + b"\r\n0\r\n\r\n"),
    ),
    Shape(
        "chunks in capitals",
        RFC9112,
        SERVED,
        lambda at: at.head(b"Transfer-Encoding: CHUNKED") + b"2\r\n{}\r\n0\r\n\r\n",
    ),
    # The first line, and where the request goes; `$PATH` and `$HOST` are what they say
    *_answered(
        lambda at, line: at.sized(line=line),
        ("no version", LINHART, 505, b"GET $PATH HTTP/0.9"),
        ("HTTP/0.9", LINHART, 400, b"GET $PATH"),
        ("HTTP/2 in words", GARDEN, 505, b"POST $PATH HTTP/2.0"),
        ("HTTP/1.10", GARDEN, 400, b"POST $PATH HTTP/1.10"),
        ("a version in lower case", GARDEN, 400, b"POST $PATH http/1.1"),
        ("two spaces", GARDEN, 400, b"POST  $PATH HTTP/1.1"),
        ("a tab", GARDEN, 400, b"POST\t$PATH HTTP/1.1"),
        ("a target with a space", "CVE-2023-25690, Apache", 400, b"POST $PATH HTTP/1.1\x20HTTP/1.1"),
        (
            "a bare LF in the query",
            "found by this suite: llhttp ends a request of HTTP/0.9 there",
            400,
            b"POST $PATH?a\nX-Injected:/ HTTP/1.1",
        ),
        ("a bare CR in the query", GARDEN, 400, b"POST $PATH?a\rX-Injected:/ HTTP/1.1"),
        ("a fragment", "CVE-2023-45539, HAProxy", 400, b"POST $PATH#/x HTTP/1.1"),
        ("another authority than Host", RFC9112, 400, b"POST http://other$PATH HTTP/1.1"),
        ("userinfo before the authority", RFC9112, 400, b"POST http://$HOST@other$PATH HTTP/1.1"),
        ("a scheme that is not ours", GARDEN, 400, b"POST file://$HOST$PATH HTTP/1.1"),
        ("the authority of Host", RFC9112, SERVED, b"POST http://$HOST$PATH HTTP/1.1"),
        ("CONNECT", RFC9112, 501, b"CONNECT $HOST HTTP/1.1"),
        ("the preface of HTTP/2", H2C, 400, b"PRI * HTTP/2.0"),
        ("line ends before the method", GARDEN, 400, b"\n\nPOST $PATH HTTP/1.1"),
    ),
    Shape("a Host with a path", RFC9112, 400, lambda at: at.sized(host=b"Host: $HOST/x")),
    Shape("a Host with userinfo", RFC9112, 400, lambda at: at.sized(host=b"Host: $HOST@other")),
    Shape("a Host that is a list", RFC9112, 400, lambda at: at.sized(host=b"Host: $HOST, other")),
    Shape("no Host", RFC9112, 400, lambda at: at.sized(host=b"X-Host: $HOST")),
    Shape("an empty line in front", RFC9112, SERVED, lambda at: b"\r\n" + at.sized()),
]


class Splitting(NamedTuple):
    """What an upstream sends. `payload` is what a client may get of it, None when it is no answer."""

    name: str
    source: str
    raw: bytes
    payload: bytes | None
    begun: bool = False
    """Of one that is no answer: its head is, and has gone to the client when the rest comes."""


_OK: Final = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
_SECOND: Final = b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\nSet-Cookie: stolen=1\r\n\r\nsplitted"

RESPONSES: Final[list[Splitting]] = [
    Splitting(
        "a second answer behind the first",
        "A. Klein, HTTP Response Splitting, 2004",
        _OK + b"Content-Length: 2\r\n\r\n{}" + _SECOND,
        b"{}",
    ),
    Splitting("a second answer behind an empty one", DESYNC, _OK + b"Content-Length: 0\r\n\r\n" + _SECOND, b""),
    Splitting(
        "a second answer behind chunks",
        DESYNC,
        _OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n" + _SECOND,
        None,
        begun=True,
    ),
    Splitting("an answer behind 204", GARDEN, b"HTTP/1.1 204 No Content\r\n\r\n" + _SECOND, b""),
    Splitting("an answer behind 304", GARDEN, b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n" + _SECOND, b""),
    Splitting(
        "a length and chunks",
        RFC9112,
        _OK + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + _SECOND,
        None,
    ),
    Splitting("two lengths", RFC9112, _OK + b"Content-Length: 2\r\nContent-Length: 50\r\n\r\n{}" + _SECOND, None),
    Splitting("a list of lengths", RFC9112, _OK + b"Content-Length: 2, 2\r\n\r\n{}", None),
    Splitting("a length with a sign", GARDEN, _OK + b"Content-Length: +2\r\n\r\n{}", None),
    Splitting("a coding that is not known", GARDEN, _OK + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", None),
    Splitting("a folded field", RFC9112, _OK + b"X: y\r\n Set-Cookie: stolen=1\r\nContent-Length: 2\r\n\r\n{}", None),
    Splitting(
        "a bare LF in a field",
        "A. Klein, 2004",
        _OK + b"X: y\nSet-Cookie: stolen=1\r\nContent-Length: 2\r\n\r\n{}",
        None,
    ),
    Splitting("a bare CR in a field", GARDEN, _OK + b"X: y\rSet-Cookie: stolen=1\r\nContent-Length: 2\r\n\r\n{}", None),
    Splitting("NUL in a field", GARDEN, _OK + b"X: y\x00\r\nContent-Length: 2\r\n\r\n{}", None),
    Splitting("a bare LF in the reason", GARDEN, b"HTTP/1.1 200 OK\nX: y\r\nContent-Length: 2\r\n\r\n{}", None),
    Splitting(
        "a chunk's size with a bare LF",
        "CVE-2025-22871, Go",
        _OK + b"Transfer-Encoding: chunked\r\n\r\n2\n{}\r\n0\r\n\r\n",
        None,
        begun=True,
    ),
    Splitting(
        "a chunk's size of 2^64",
        LINHART,
        _OK + b"Transfer-Encoding: chunked\r\n\r\n10000000000000002\r\n{}\r\n0\r\n\r\n",
        None,
        begun=True,
    ),
    Splitting(
        "protocols switched unasked",
        H2C,
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n" + _SECOND,
        None,
    ),
    Splitting(
        "an interim answer first",
        RFC9112,
        b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + _OK + b"Content-Length: 2\r\n\r\n{}",
        b"{}",
    ),
    Splitting(
        "a flood of interim answers",
        "CVE-2020-10108 and its kind",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 2000 + _OK + b"Content-Length: 2\r\n\r\n{}",
        b"{}",
    ),
    Splitting(
        "an interim answer with a length",
        MUST_DIE,
        b"HTTP/1.1 100 Continue\r\nContent-Length: 99\r\n\r\n" + _OK + b"Content-Length: 2\r\n\r\n{}",
        b"{}",
    ),
    Splitting("HTTP/0.9", LINHART, b"<html>hello</html>\r\n\r\n", None),
    Splitting("chunks with HTTP/1.0", RFC9112, b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", None),
    Splitting("a line end in front", GARDEN, b"\r\n" + _OK + b"Content-Length: 2\r\n\r\n{}", None),
]
