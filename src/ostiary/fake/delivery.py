"""How an answer leaves: framing, content coding, pace, tears and cuts, decided before the first byte is written.

Rules
- Pure: a `Reply` and a `Behaviour` in, a `Script` out; `connection` plays it with timers and back-pressure.
- A reply's `parts` are what arrives one after another: the events of a stream, or the one body. Chunked framing makes
  each of them a chunk.
- Ids are a placeholder of fixed length, replaced when the bytes leave (`Segment.pieces` joined by the request's token),
  so one script serves many requests; where bytes are cut or coded the placeholder goes first.
"""

import time
import zlib
from collections.abc import Callable, Sequence
from email.utils import formatdate
from http import HTTPStatus
from typing import Literal, NamedTuple

import brotli
import zstandard
from msgspec import Struct

from .answer import PLACEHOLDER
from .behaviour import Behaviour

Ending = Literal["keep", "close", "reset", "hang"]

_PLACEHOLDER = PLACEHOLDER.encode()
_CODINGS = ("br", "zstd", "gzip", "deflate")
_LAST_CHUNK = b"0\r\n\r\n"
_REASONS = {status.value: status.phrase for status in HTTPStatus} | {529: "Site Overloaded"}


class Reply(Struct, frozen=True):
    """An answer without its framing. `parts` may hold the placeholder."""

    status: int
    headers: tuple[tuple[str, str], ...]
    parts: tuple[bytes, ...]
    stream: bool = False


class Client(NamedTuple):
    """What the request's head says about how it can be answered."""

    method: str = "POST"
    http10: bool = False
    keep_alive: bool = True
    accept_encoding: str = ""


class Segment(NamedTuple):
    """Bytes written at once, `delay` seconds after the ones before."""

    delay: float
    pieces: tuple[bytes, ...]


class Script(Struct, frozen=True):
    """What to write and how to end. `cut`: the answer is not complete when it ends."""

    status: int
    segments: tuple[Segment, ...]
    ending: Ending = "keep"
    tear: int = 0
    cut: bool = False


def script(reply: Reply, wanted: Behaviour, client: Client, token: bytes) -> Script:
    """The script of `reply`. It keeps the placeholder, to be reused, unless `wanted` cuts or codes the bytes."""
    bodiless = client.method == "HEAD" or reply.status in (204, 304)
    parts: Sequence[bytes] = () if bodiless else reply.parts
    severed = bool(wanted.chunk or wanted.cut or wanted.hang or wanted.encoding)
    if severed:
        parts = [part.replace(_PLACEHOLDER, token) for part in parts]
    headers = list(reply.headers)
    coding = "" if bodiless else chosen_coding(wanted, client.accept_encoding)
    if coding:
        parts = _coded(parts, coding)
        headers.append(("content-encoding", coding))
    if wanted.chunk:
        parts = _split(b"".join(parts), wanted.chunk)
    framing = wanted.framing or ("chunked" if reply.stream else "length")
    if client.http10 and framing == "chunked":
        framing = "close"
    closes = wanted.close or not client.keep_alive or framing == "close" or wanted.length_excess > 0
    if not bodiless and framing == "chunked":
        headers.append(("transfer-encoding", "chunked"))
    elif not bodiless and framing == "length":
        headers.append(("content-length", str(sum(map(len, parts)) + wanted.length_excess)))
    elif client.method == "HEAD" and not reply.stream:
        headers.append(("content-length", str(sum(map(len, reply.parts)))))
    if closes:
        headers.append(("connection", "close"))
    head = head_bytes(reply.status, headers)
    if severed:
        head = head.replace(_PLACEHOLDER, token)
    if wanted.cut or wanted.hang:
        return _broken(reply.status, head, parts, framing, wanted)
    framed = _framed(parts) if framing == "chunked" and not bodiless else list(parts)
    segments = _segments(head, framed, wanted)
    return Script(reply.status, segments, "close" if closes else "keep", wanted.tear, cut=wanted.length_excess > 0)


def head_bytes(status: int, headers: Sequence[tuple[str, str]]) -> bytes:
    """Status line, `Date` and headers."""
    lines = [f"HTTP/1.1 {status} {_REASONS.get(status, 'Unknown')}", f"date: {formatdate(time.time(), usegmt=True)}"]
    lines += (f"{name}: {value}" for name, value in headers)
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def raw_script(raw: bytes, wanted: Behaviour) -> Script:
    """Exact bytes, head included; of `wanted` only what moves or ends them counts."""
    parts = _split(raw, wanted.chunk) if wanted.chunk else [raw]
    cut = bool(wanted.cut or wanted.hang)
    if cut:
        parts = parts[: len(parts) // 2 if wanted.after is None else wanted.after]
    ending: Ending = "hang" if wanted.hang else _cut_ending(wanted) if cut else "close" if wanted.close else "keep"
    pause = wanted.pace / 1000
    segments = [Segment(pause if at else wanted.delay / 1000, (part,)) for at, part in enumerate(parts)]
    return Script(0, tuple(segments), ending, wanted.tear, cut=cut)


def chosen_coding(wanted: Behaviour, accept_encoding: str) -> str:
    """The content coding to use; empty for none (RFC 9110 §12.5.3)."""
    if not wanted.encoding:
        return ""
    if wanted.force_encoding and wanted.encoding != "auto":
        return wanted.encoding
    accepted = _accepted(accept_encoding)
    offered = _CODINGS if wanted.encoding == "auto" else (wanted.encoding,)
    return next((coding for coding in offered if accepted.get(coding, accepted.get("*", False))), "")


def _accepted(accept_encoding: str) -> dict[str, bool]:
    accepted: dict[str, bool] = {}
    for part in accept_encoding.split(","):
        coding, _, weight = part.partition(";")
        if coding.strip():
            accepted[coding.strip().lower()] = weight.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return accepted


def _coded(parts: Sequence[bytes], coding: str) -> list[bytes]:
    """Each part flushed, as a streaming server does, and the coding's end in the last one."""
    compress, flush, finish = _compressor(coding)
    coded = [compress(part) + flush() for part in parts]
    if coded:
        coded[-1] += finish()
    return coded


def _compressor(coding: str) -> tuple[Callable[[bytes], bytes], Callable[[], bytes], Callable[[], bytes]]:
    if coding == "br":
        br = brotli.Compressor(quality=4)
        return br.process, br.flush, br.finish
    if coding == "zstd":
        zs = zstandard.ZstdCompressor(level=3).compressobj()
        block = zstandard.COMPRESSOBJ_FLUSH_BLOCK
        return zs.compress, lambda: zs.flush(block), zs.flush
    gz = zlib.compressobj(wbits=zlib.MAX_WBITS | 16 if coding == "gzip" else zlib.MAX_WBITS)
    return gz.compress, lambda: gz.flush(zlib.Z_SYNC_FLUSH), gz.flush


def _split(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


def _framed(parts: Sequence[bytes]) -> list[bytes]:
    """Chunks (RFC 9112 §7.1), the last one in the same piece as the final part. An empty chunk would end the body."""
    framed = [_chunk(part) for part in parts if part]
    if framed:
        framed[-1] += _LAST_CHUNK
        return framed
    return [_LAST_CHUNK]


def _chunk(part: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(part), part)


def _segments(head: bytes, body: Sequence[bytes], wanted: Behaviour) -> tuple[Segment, ...]:
    segments: list[Segment] = []
    if wanted.interim:
        interim = f"HTTP/1.1 {wanted.interim} {_REASONS.get(wanted.interim, 'Unknown')}\r\n\r\n"
        segments.append(Segment(0.0, (interim.encode(),)))
    delay = wanted.delay / 1000
    if wanted.pace and body:
        segments.append(Segment(delay, _pieces(head)))
        segments += (Segment(wanted.pace / 1000, _pieces(part)) for part in body)
    else:
        segments.append(Segment(delay, _pieces(head + b"".join(body))))
    return tuple(segments)


def _pieces(data: bytes) -> tuple[bytes, ...]:
    return tuple(data.split(_PLACEHOLDER))


def _broken(status: int, head: bytes, parts: Sequence[bytes], framing: str, wanted: Behaviour) -> Script:
    """An answer that stops where `wanted` says. A body of one part is broken inside it."""
    ending: Ending = "hang" if wanted.hang else _cut_ending(wanted)
    place = wanted.cut or wanted.hang
    if place == "before-head":
        segments: tuple[Segment, ...] = (Segment(wanted.delay / 1000, ()),) if wanted.delay else ()
        return Script(status, segments, ending, cut=True)
    if place == "mid-head":
        return Script(status, (Segment(wanted.delay / 1000, _pieces(head[: len(head) // 2])),), ending, cut=True)
    after = min(len(parts) // 2 if wanted.after is None else wanted.after, len(parts))
    whole = list(parts[:after])
    broken = parts[after] if after < len(parts) else b""
    frame = _chunk if framing == "chunked" else bytes
    body = [frame(part) for part in whole]
    if place == "mid-event" or (place == "mid-body" and len(parts) == 1):
        body.append(frame(broken[: len(broken) // 2]) if broken else b"")
    elif place == "mid-chunk" and broken:
        body.append(frame(broken)[: -(len(broken) // 2 + 2)])
    return Script(status, _segments(head, body, wanted), ending, wanted.tear, cut=True)


def _cut_ending(wanted: Behaviour) -> Ending:
    return "reset" if wanted.reset else "close"
