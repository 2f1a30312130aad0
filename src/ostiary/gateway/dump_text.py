"""What a dump shows of a request or an answer: the same bytes, less the secrets of its head. Pure.

Rules
- A head keeps its order and spelling. What follows the name of a secret, in a header or in a query, is masked; which
  names those are is decided closed: reference D.15's list, everything that ends like one of them, and all of ours.
- A body is kept as it was sent, without chunk framing and content coding; a request's JSON is laid out in lines, its
  members, numbers and escapes in their own order and spelling.
- A credential that the provider quotes in its answer is masked there too.
"""

import re
from functools import lru_cache
from typing import Final
from urllib.parse import unquote_to_bytes

import msgspec

from ostiary.core.secret import mask
from ostiary.http1.fields import OURS
from ostiary.wire.content_coding import CodingError, decoder_for

_END_OF_LINE: Final = re.compile(rb"\r\n|\r|\n")
_ENDS_LIKE_A_SECRET: Final = re.compile(
    rb".*(?:key|token|secret|password|passwd|signature|credentials?|auth|authori[sz]ation|authenticate|jwt|cookie|sas)"
)
_SECRETS: Final = OURS | {b"set-cookie2", b"sig", b"pwd", b"code", b"authentication-info", b"proxy-authentication-info"}
_OUR_PREFIXES: Final = (b"x-ostiary-", b"x-coder-")
_NO_SECRETS: Final = frozenset(
    (b"idempotency-key", b"sec-websocket-key", b"x-ostiary-interception-id", b"x-ostiary-request-id")
)
_SCHEME: Final = re.compile(rb"(bearer|token|digest|negotiate)([ \t]+)(.+)", re.IGNORECASE | re.DOTALL)
_BASIC: Final = re.compile(rb"(basic)[ \t]+.+", re.IGNORECASE | re.DOTALL)
_SIGV4: Final = re.compile(
    rb"(AWS4-[A-Z0-9-]+[ \t]+Credential=)([^/,\s]+)"
    rb"((?:/[a-z0-9_-]{1,32}){4},[ \t]*SignedHeaders=[a-z0-9;_-]+,[ \t]*Signature=)([0-9a-f]+)"
)
_BETWEEN_CREDENTIALS: Final = re.compile(rb'[\s,;"]+')
_QUERY: Final = re.compile(rb"([?&;])([^=&;#?\s]+)=([^&;#\s]*)")

DECODED_MAX: Final = 1 << 40
"""Bytes; what is kept of a body is bounded where it is kept."""
DECODED_LINE: Final = b"X-Ostiary-Dump: the body is stored without its content coding\r\n"
_USERINFO: Final = re.compile(rb"(://)[^/?#\s]+@")

_SHORTEST_SECRET: Final = 8
"""Bytes; what is shorter would be found everywhere."""
_SECRETS_MAX: Final = 64
"""Of one request; a head full of cookies would make every piece of its answer slow to look through."""
_FORMAT_MAX: Final = 4 * 1024 * 1024
_TOKENS_MAX: Final = 200_000
_STRUCTURE: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[\]{},]', re.DOTALL)
"""One match at a time, so that a long body does not keep the event loop's thread waiting."""
_INDENT: Final = 2


@lru_cache(maxsize=1024)
def is_secret(name: bytes) -> bool:
    """Whether what a header or query parameter of this name holds is masked."""
    lower = name.lower()
    if lower in _NO_SECRETS:
        return False
    return lower in _SECRETS or lower.startswith(_OUR_PREFIXES) or _ENDS_LIKE_A_SECRET.fullmatch(lower) is not None


def masked_head(head: bytes) -> bytes:
    """A head with its secrets masked, its lines ended by CRLF, without the empty one behind it."""
    first, *lines = _END_OF_LINE.split(head.rstrip(b"\r\n"))
    shown = [masked_query(first)]
    hidden = False
    for line in lines:
        if line[:1] in (b" ", b"\t"):  # the rest of the value before it
            shown.append(b" ..." if hidden else masked_query(line))
            continue
        name, colon, value = line.partition(b":")
        hidden = is_secret(name.strip())
        if hidden:
            bare = value.strip()
            shown.append(name + colon + value[: len(value) - len(value.lstrip())] + masked_credential(bare))
        else:
            shown.append(masked_query(line))
    return b"\r\n".join(shown) + b"\r\n"


def masked_query(text: bytes) -> bytes:
    """Text with what is secret in its URLs masked: the values of query parameters, and names and passwords before a host."""
    if b"=" in text:
        text = _QUERY.sub(_masked_parameter, text)
    return _USERINFO.sub(rb"\1...@", text) if b"@" in text else text


def _masked_parameter(found: re.Match[bytes]) -> bytes:
    before, name, value = found.groups()
    if not is_secret(unquote_to_bytes(name)):
        return found[0]
    return before + name + b"=" + _masked(value)


def masked_credential(value: bytes) -> bytes:
    """A header's value, masked but for what says how it authenticates."""
    if signed := _SIGV4.fullmatch(value):
        return signed[1] + _masked(signed[2]) + signed[3] + _masked(signed[4])
    if scheme := _SCHEME.fullmatch(value):
        return scheme[1] + scheme[2] + _masked(scheme[3])
    if basic := _BASIC.fullmatch(value):
        return basic[1] + b" ..."  # a few characters at its end are a few of the password
    return _masked(value)


def _masked(value: bytes) -> bytes:
    return mask(value.decode("latin-1")).encode("latin-1")


def secrets_of(head: bytes) -> tuple[bytes, ...]:
    """What authenticates a request, the longest first."""
    found = [value for _, name, value in _QUERY.findall(head) if is_secret(unquote_to_bytes(name))]
    cookies: list[bytes] = []
    for line in _END_OF_LINE.split(head):
        name, _, value = line.partition(b":")
        if is_secret(name.strip()):
            kept = cookies if name.lower() == b"cookie" else found
            kept.extend(_credentials(value.strip()))
    long = [secret for secret in dict.fromkeys(found + cookies) if len(secret) >= _SHORTEST_SECRET]
    return tuple(sorted(long[:_SECRETS_MAX], key=len, reverse=True))


def _credentials(value: bytes) -> list[bytes]:
    if signed := _SIGV4.fullmatch(value):
        return [signed[2], signed[4]]
    scheme = _SCHEME.fullmatch(value)
    parts = _BETWEEN_CREDENTIALS.split(scheme[3] if scheme else value)
    return parts + [part.partition(b"=")[2] for part in parts]


class Redactor:
    """Masks secrets in a body that comes in pieces; holds back no more than what may be the beginning of one."""

    __slots__ = ("_held", "_secrets")

    def __init__(self, secrets: tuple[bytes, ...]) -> None:
        self._secrets = tuple((secret, _masked(secret)) for secret in secrets)
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """What can be shown so far."""
        data = self._held + data
        held = 0
        for secret, masked in self._secrets:
            if secret in data:
                data = data.replace(secret, masked)
            held = max(held, _begun(data, secret))
        shown = len(data) - held
        self._held = data[shown:]
        return data[:shown]

    def finish(self) -> bytes:
        """What was held back and is no secret: the body has ended."""
        held, self._held = self._held, b""
        return held


def _begun(data: bytes, secret: bytes) -> int:
    """How many bytes at the end of `data` are the beginning of `secret`."""
    at = max(0, len(data) - len(secret) + 1)
    while (at := data.find(secret[:1], at)) >= 0:
        if secret.startswith(data[at:]):
            return len(data) - at
        at += 1
    return 0


def field_of(head: bytes, wanted: bytes) -> bytes:
    """The value of a field, by its lower-case name; empty when there is none."""
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == wanted:
            return value.strip()
    return b""


def request_text(head: bytes, body: bytes, cap: int) -> bytes:
    """A request with its whole body: at most about `cap` bytes of it, when it is longer than that."""
    plain = _plain(body, field_of(head, b"content-encoding"), cap)
    shown = laid_out(plain) if len(plain) <= cap else None
    if shown is None:
        shown = plain
    lines = masked_head(head)
    if plain is not body:
        lines += DECODED_LINE
    if shown is not body and len(plain) <= cap:
        lines = _with_length(lines, len(shown))
    return b"".join((lines, b"\r\n", shown))


def _plain(body: bytes, coding: bytes, cap: int) -> bytes:
    """The body without its content coding; as it is when that cannot be undone."""
    try:
        decoder = decoder_for(coding, DECODED_MAX)
        if decoder is None:
            return body
        pieces = []
        size = 0
        for piece in decoder.decode(body):
            pieces.append(piece)
            size += len(piece)
            if size > cap:
                break
        return b"".join(pieces)
    except CodingError:
        return body


def laid_out(body: bytes) -> bytes | None:
    """JSON in lines, every token as it stood; None for what is no JSON, or too much of it to be worth the time."""
    if len(body) > _FORMAT_MAX or body.lstrip()[:1] not in (b"{", b"["):
        return None
    if not _lays_out_small(body):
        return None
    try:
        return msgspec.json.format(body, indent=_INDENT)
    except (ValueError, RecursionError):
        return None


def _lays_out_small(body: bytes) -> bool:
    """Whether the spaces in front of all lines, which a request can drive to gigabytes, are no more than `_FORMAT_MAX`."""
    brackets = body.count(b"[") + body.count(b"{")
    tokens = 2 * brackets + body.count(b",")
    if tokens <= _TOKENS_MAX and tokens * brackets * _INDENT <= _FORMAT_MAX:
        return True  # even if each bracket opened within the one before it
    depth = spaces = 0
    for count, found in enumerate(_STRUCTURE.finditer(body)):
        char = body[found.start()]
        if char == 0x22:
            continue
        if char in b"[{":
            depth += _INDENT
        elif char in b"]}":
            depth -= _INDENT
        spaces += depth
        if spaces > _FORMAT_MAX or count > _TOKENS_MAX:
            return False
    return True


def _with_length(head: bytes, length: int) -> bytes:
    """`Content-Length` says how long the body is in the file."""
    lines = head.split(b"\r\n")
    for at, line in enumerate(lines[1:], 1):
        name, colon, _ = line.partition(b":")
        if name.lower() == b"content-length":
            lines[at] = name + colon + b" %d" % length
    return b"\r\n".join(lines)
