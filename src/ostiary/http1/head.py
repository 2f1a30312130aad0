"""Message heads: what they must look like, and what is read from them. Pure.

Rules
- llhttp in strict mode validates the bytes. It is fed the head alone, so it never sees two messages.
- On top we refuse, not guess (design §6; RFC 9112 §11, RFC 9110 §5.3): a `Transfer-Encoding` other than exactly `chunked`,
  repeated, missing or odd `Host`, repeated `Content-Length` and repeated credentials, extra spaces in the request line,
  versions other than 1.0 and 1.1, targets that are not visible ASCII, control characters in a status line.
- How large a head may be is for the connections to say.
- A connection of HTTP/1.0 is never kept: its keep-alive was an agreement of both sides that we do not offer.
- Field lines are kept as they came, so that an outgoing head can be joined from them.
"""

from typing import Final

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser, HttpResponseParser

from .errors import HeadError

MAX_HEAD: Final = 64 * 1024
"""Bytes of a head: of an upstream's, and of a client's unless a setting says otherwise."""

NO_BODY: Final = 0
LENGTH: Final = 1
CHUNKED: Final = 2
UNTIL_CLOSE: Final = 3

_SINGLE: Final = frozenset(
    b"host content-length transfer-encoding content-type content-encoding expect".split()
    + b"authorization x-api-key x-ostiary-token x-coder-ai-governance-token".split()
)
"""Request fields of which a second line would leave open which one counts."""

_SINGLE_RESPONSE: Final = frozenset((b"content-length", b"transfer-encoding"))
"""Of an answer only the framing is ours to judge."""

_HOST: Final = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~!$&'()*+;=%:[]"
"""What a host and port are written with (RFC 3986 §3.2.2), without the comma, which reads like a list."""

_TARGET: Final = bytes(set(range(0x21, 0x7F)) - {ord("#")})
"""Visible ASCII. llhttp takes a bare LF in a target, for that is how a request of HTTP/0.9 ends."""

_CONTROLS: Final = bytes(set(range(0x20)) - {0x09}) + b"\x7f"

_USUAL_STATUS_LINES: Final = frozenset((b"HTTP/1.1 200 OK", b"HTTP/1.1 200 "))

_DIGITS_MAX: Final = 15
_NOT_DIGITS: Final = f"Content-Length must be digits only, at most {_DIGITS_MAX}"
_SPACE: Final = 0x20

_KEPT_NAMES: Final = frozenset(
    b"host connection keep-alive accept accept-charset accept-encoding accept-language user-agent expect te".split()
    + b"content-type content-length content-encoding transfer-encoding x-forwarded-proto x-forwarded-host".split()
    + b"anthropic-version anthropic-beta anthropic-dangerous-direct-browser-access openai-beta openai-intent".split()
    + b"x-app originator version editor-version editor-plugin-version copilot-integration-id x-initiator".split()
    + b"x-github-api-version sec-fetch-mode x-stainless-arch x-stainless-async x-stainless-helper-method".split()
    + b"x-stainless-lang x-stainless-os x-stainless-package-version x-stainless-retry-count x-stainless-runtime".split()
    + b"x-stainless-runtime-version x-stainless-timeout".split()
    + b"date server cache-control vary via alt-svc strict-transport-security x-content-type-options".split()
    + b"referrer-policy x-robots-tag cf-cache-status openai-version access-control-allow-origin".split()
    + b"access-control-allow-credentials access-control-expose-headers x-accel-buffering openai-organization".split()
    + b"anthropic-organization-id x-ratelimit-limit-requests x-ratelimit-limit-tokens".split()
    + b"anthropic-ratelimit-requests-limit anthropic-ratelimit-tokens-limit".split()
    + b"anthropic-ratelimit-input-tokens-limit anthropic-ratelimit-output-tokens-limit".split()
)
"""Fields whose lines come again and again, and of which none holds a credential."""
_KEPT_LINES: Final = 2048
_KEPT_LINE_MAX: Final = 160


class _Silent:
    """A parser protocol without callbacks: llhttp then runs without calling back into Python."""


_SILENT: Final = _Silent()


class Head:
    """What requests and responses share: `names[i]` is the lower-cased name of `lines[i]`; `fields` joins repeats by ', '."""

    __slots__ = ("content_length", "fields", "framing", "keep_alive", "lines", "minor", "names")

    def __init__(self, minor: int, lines: list[bytes]) -> None:
        self.minor = minor
        self.lines = lines
        self.names: list[bytes] = []
        self.fields: dict[bytes, bytes] = {}
        self.framing = NO_BODY
        self.content_length = 0
        self.keep_alive = minor == 1

    def connection_options(self) -> tuple[bytes, ...]:
        """The lower-cased options of `Connection`, which name further hop-by-hop fields (RFC 9110 §7.6.1)."""
        value = self.fields.get(b"connection")
        if value is None:
            return ()
        return tuple(option.strip(b" \t") for option in value.lower().split(b","))


class RequestHead(Head):
    """A request. `path` is the target without its query; `query` has its `?`, or is empty."""

    __slots__ = ("expect_continue", "method", "path", "query", "target", "upgrade")

    def __init__(self, minor: int, lines: list[bytes], method: bytes, target: bytes) -> None:
        super().__init__(minor, lines)
        self.method = method
        self.target = target
        path, mark, query = target.partition(b"?")
        self.path = path
        self.query = mark + query
        self.expect_continue = False
        self.upgrade = b""


class ResponseHead(Head):
    """A response. `status_line` is as it came."""

    __slots__ = ("status", "status_line")

    def __init__(self, minor: int, lines: list[bytes], status: int, status_line: bytes) -> None:
        super().__init__(minor, lines)
        self.status = status
        self.status_line = status_line


def parse_request_head(raw: bytes) -> RequestHead:
    """Read a head, from its first byte to the blank line's end. Raises `HeadError`."""
    if not raw[:1].isalpha():  # llhttp skips line ends before the method
        raise HeadError(400, "this is not an HTTP/1.1 request; is the client speaking TLS or HTTP/2?")
    parser = HttpRequestParser(_SILENT)
    upgrade = False
    try:
        parser.feed_data(raw)
    except HttpParserUpgrade:
        upgrade = True
    except HttpParserError as exc:
        raise HeadError(400, f"malformed HTTP request: {exc}") from None
    lines = raw[:-4].split(b"\r\n")
    request_line = lines.pop(0)
    parts = request_line.split(b" ")
    if len(parts) != 3:
        raise HeadError(400, "the request line must be METHOD SP TARGET SP HTTP/1.1")
    method, target, version = parts
    if version == b"HTTP/1.1":
        minor = 1
    elif version == b"HTTP/1.0":
        minor = 0
    else:
        raise HeadError(505, "only HTTP/1.1 is spoken here")
    authority = None
    if target[:1] != b"/":
        authority, target = _origin_form(target, method)
    if target.translate(None, _TARGET):
        raise HeadError(400, "the request target must be visible ASCII without a fragment; percent-encode the rest")
    head = RequestHead(minor, lines, method, target)
    _read_fields(head, _SINGLE)
    fields = head.fields
    host = fields.get(b"host")
    if host is None:
        if minor == 1:
            raise HeadError(400, "an HTTP/1.1 request needs exactly one Host field")
    elif host.translate(None, _HOST) or (authority is not None and authority.lower() != host.lower()):
        raise HeadError(400, "the Host field must be a host and port, the same as the target's if that has one")
    expect = fields.get(b"expect")
    if expect is not None:
        if expect.lower() != b"100-continue":
            raise HeadError(417, "the only expectation understood is 100-continue")
        head.expect_continue = minor == 1
    if upgrade or b"upgrade" in fields:
        head.upgrade = fields.get(b"upgrade", b"").lower()
    return head


def parse_response_head(raw: bytes, *, to_head_request: bool = False) -> ResponseHead:
    """Read an upstream's head. Raises `HeadError` (status 502)."""
    parser = HttpResponseParser(_SILENT)
    try:
        parser.feed_data(raw)
    except (HttpParserUpgrade, HttpParserError) as exc:
        if parser.get_status_code() == 101:
            raise HeadError(502, "the upstream switched protocols unasked") from None
        raise HeadError(502, f"malformed HTTP response: {exc}") from None
    lines = raw[:-4].split(b"\r\n")
    status_line = lines.pop(0)
    version = status_line[:9]
    if version == b"HTTP/1.1 ":
        minor = 1
    elif version == b"HTTP/1.0 ":
        minor = 0
    else:
        raise HeadError(502, "the upstream does not answer in HTTP/1.1")
    status = parser.get_status_code()
    if status < 100 or (
        status_line not in _USUAL_STATUS_LINES and status_line.translate(None, _CONTROLS) != status_line
    ):
        raise HeadError(502, "malformed HTTP response: Invalid status line")
    head = ResponseHead(minor, lines, status, status_line)
    try:
        _read_fields(head, _SINGLE_RESPONSE)
    except HeadError as error:
        raise HeadError(502, f"malformed HTTP response: {error.reason}") from None
    if to_head_request or status < 200 or status in (204, 304):
        head.framing = NO_BODY
    elif head.framing == NO_BODY and b"content-length" not in head.fields:
        head.framing = UNTIL_CLOSE
        head.keep_alive = False
    return head


_known: Final[dict[bytes, tuple[bytes, bytes]]] = {}
"""Field lines as (lower-cased name, value): most lines of most heads are the same again and again. Bounded; of `_KEPT_NAMES`
only, for a credential is in memory no longer than its request."""


def _take_apart(line: bytes) -> tuple[bytes, bytes]:
    name, _, value = line.partition(b":")
    name = name.lower()
    size = len(value)
    if size > 1 and value[0] == _SPACE and value[1] > _SPACE and value[size - 1] > _SPACE:
        value = value[1:]  # as nearly all are written
    else:
        value = value.strip(b" \t")
    pair = (name, value)
    if len(line) <= _KEPT_LINE_MAX and name in _KEPT_NAMES:
        if len(_known) >= _KEPT_LINES:
            _known.clear()
        _known[line] = pair
    return pair


def _read_fields(head: Head, single: frozenset[bytes]) -> None:
    fields = head.fields
    names = head.names
    for line in head.lines:
        name, value = _known.get(line) or _take_apart(line)
        names.append(name)
        fields[name] = value
    if len(fields) != len(names):
        _join_repeated(head, single)
    length = fields.get(b"content-length")
    if length is not None:
        head.content_length = size = _number(length)
        head.framing = LENGTH if size else NO_BODY
    coding = fields.get(b"transfer-encoding")
    if coding is not None:
        if length is not None:
            raise HeadError(400, "both Transfer-Encoding and Content-Length")
        if coding.lower() != b"chunked" or head.minor == 0:
            raise HeadError(400, "the only Transfer-Encoding understood is chunked, and in HTTP/1.1 only")
        head.framing = CHUNKED
    connection = fields.get(b"connection")
    if connection is not None and connection != b"keep-alive":
        head.keep_alive = head.keep_alive and b"close" not in head.connection_options()


def _join_repeated(head: Head, single: frozenset[bytes]) -> None:
    fields = head.fields
    fields.clear()
    for line, name in zip(head.lines, head.names, strict=True):
        _, value = _take_apart(line)
        if name not in fields:
            fields[name] = value
        elif name in single:
            raise HeadError(400, f"repeated {name.decode('ascii', 'replace')} field")
        else:
            fields[name] = fields[name] + b", " + value


def _number(text: bytes) -> int:
    """What `Content-Length` says; cheaper than to ask `isdigit` and `int`."""
    if not 0 < len(text) <= _DIGITS_MAX:
        raise HeadError(400, _NOT_DIGITS)
    number = 0
    for at in range(len(text)):
        digit = text[at]
        if not 0x30 <= digit <= 0x39:
            raise HeadError(400, _NOT_DIGITS)
        number = 10 * number + digit - 0x30
    return number


def _origin_form(target: bytes, method: bytes) -> tuple[bytes, bytes]:
    """An absolute-form target as (authority, origin-form) (RFC 9112 §3.2.2); `*` and authority-form are not served."""
    lowered = target[:8].lower()
    for scheme in (b"http://", b"https://"):
        if lowered.startswith(scheme):
            authority_end = len(target)
            for mark in (b"/", b"?"):
                found = target.find(mark, len(scheme))
                if 0 <= found < authority_end:
                    authority_end = found
            rest = target[authority_end:]
            return target[len(scheme) : authority_end], rest if rest[:1] == b"/" else b"/" + rest
    if method == b"CONNECT":
        raise HeadError(501, "CONNECT is not supported here")
    raise HeadError(400, "the request target must be a path")
