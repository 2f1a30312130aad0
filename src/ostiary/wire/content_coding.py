"""Content codings (RFC 9110 §8.4): reading compressed bodies, and asking only for codings we read.

Rules
- One coding at a time: gzip, deflate (with or without its zlib wrapper), br, zstd. Unknown and stacked ones are refused.
- Decoders are incremental and bounded: output comes in pieces, and never more than `cap` bytes in all.
- A zstd window is at most 8 MiB (RFC 9659 §3), so a header cannot claim memory.
- Nothing here encodes: bytes are forwarded as they came.
"""

import zlib
from collections.abc import Iterator
from functools import lru_cache
from typing import IO, TYPE_CHECKING, Final, Protocol, cast

import brotli
import zstandard

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer

MAX_REQUEST: Final = 32 * 1024 * 1024
MAX_RESPONSE: Final = 64 * 1024 * 1024

_PIECE: Final = 256 * 1024
_ZSTD_WINDOW: Final = 8 * 1024 * 1024
_GZIP_MAGIC: Final = b"\x1f\x8b"
_IDENTITY: Final = frozenset((b"", b"identity"))

READABLE: Final = frozenset((b"gzip", b"x-gzip", b"deflate", b"br", b"zstd", b"identity"))


class CodingError(ValueError):
    """A body that cannot be decoded. The text names cause and cure and holds none of its bytes."""


class UnsupportedCodingError(CodingError):
    """A coding that is unknown, or several at once: 415 for a request."""


class DecodedTooLongError(CodingError):
    """More decoded bytes than allowed: 413 for a request."""


class Decoder(Protocol):
    """Decodes one body."""

    def decode(self, data: bytes) -> Iterator[bytes]:
        """What `data` decodes to, in pieces. Raises `CodingError`."""


def decoder_for(content_encoding: bytes, cap: int) -> Decoder | None:
    """The decoder for a `Content-Encoding` value, None for identity. Raises `UnsupportedCodingError`."""
    codings = [c for part in content_encoding.lower().split(b",") if (c := part.strip()) not in _IDENTITY]
    if not codings:
        return None
    if len(codings) > 1:
        raise UnsupportedCodingError(
            "several content codings at once are not read; send one of gzip, deflate, br, zstd"
        )
    match codings[0]:
        case b"gzip" | b"x-gzip":
            return _Gzip(cap)
        case b"deflate":
            return _Deflate(cap)
        case b"br":
            return _Brotli(cap)
        case b"zstd":
            return _Zstd(cap)
    raise UnsupportedCodingError("this content coding is not read; send one of gzip, deflate, br, zstd, or none")


def decode_body(content_encoding: bytes, body: bytes, cap: int = MAX_REQUEST) -> bytes:
    """A whole body, decoded. Raises `CodingError`. One that is cut short is not told from one that ends there."""
    decoder = decoder_for(content_encoding, cap)
    return body if decoder is None else b"".join(decoder.decode(body))


def narrow_accept_encoding(value: bytes) -> bytes:
    """An `Accept-Encoding` value without what we do not read. Unchanged when it names nothing else."""
    return _narrowed(value) if len(value) <= 256 else _narrowed.__wrapped__(value)


@lru_cache(maxsize=256)
def _narrowed(value: bytes) -> bytes:
    members = [part.strip(b" \t") for part in value.split(b",")]
    kept = [member for member in members if member.partition(b";")[0].strip(b" \t").lower() in READABLE]
    if len(kept) == len(members):
        return value
    return b", ".join(kept) or b"identity"


class _Bound:
    """Counts decoded bytes."""

    __slots__ = ("_cap", "_left")

    def __init__(self, cap: int) -> None:
        self._cap = cap
        self._left = cap

    def count(self, piece: bytes) -> bytes:
        self._left -= len(piece)
        if self._left < 0:
            raise DecodedTooLongError(f"the body is longer than {self._cap} bytes once decoded; send a shorter one")
        return piece


def _inflate(inflater: "zlib._Decompress", data: bytes, bound: _Bound) -> Iterator[bytes]:
    while True:
        try:
            piece = inflater.decompress(data, _PIECE)
        except zlib.error as exc:
            raise CodingError("the body is not what its content coding says; send it plain or encode it anew") from exc
        if piece:
            yield bound.count(piece)
        data = inflater.unconsumed_tail
        # A full piece may leave output inside the inflater even when all input is consumed.
        if inflater.eof or (not data and len(piece) < _PIECE):
            return


class _Gzip:
    """RFC 1952: one member after another. What follows the last one and is no member is ignored, as gzip(1) does."""

    __slots__ = ("_between", "_bound", "_inflater", "_over")

    def __init__(self, cap: int) -> None:
        self._bound = _Bound(cap)
        self._inflater = zlib.decompressobj(wbits=31)
        self._between = b""
        self._over = False

    def decode(self, data: bytes) -> Iterator[bytes]:
        while data and not self._over:
            if self._inflater.eof:
                data = self._between + data
                if data == _GZIP_MAGIC[:1]:
                    self._between = data
                    return
                if data[:2] != _GZIP_MAGIC:
                    self._over = True
                    return
                self._between = b""
                self._inflater = zlib.decompressobj(wbits=31)
            yield from _inflate(self._inflater, data, self._bound)
            data = self._inflater.unused_data


class _Deflate:
    """RFC 9110 §8.4.1.2: zlib format; some senders leave its wrapper out, so the first two bytes decide."""

    __slots__ = ("_bound", "_head", "_inflater")

    def __init__(self, cap: int) -> None:
        self._bound = _Bound(cap)
        self._inflater: zlib._Decompress | None = None
        self._head = b""

    def decode(self, data: bytes) -> Iterator[bytes]:
        if self._inflater is None:
            data = self._head + data
            if len(data) < 2:
                self._head = data
                return
            wrapped = data[0] & 0x0F == 8 and (data[0] << 8 | data[1]) % 31 == 0
            self._inflater = zlib.decompressobj(wbits=15 if wrapped else -15)
        if data and not self._inflater.eof:
            yield from _inflate(self._inflater, data, self._bound)


class _Brotli:
    """RFC 7932."""

    __slots__ = ("_bound", "_decompressor")

    def __init__(self, cap: int) -> None:
        self._bound = _Bound(cap)
        self._decompressor = brotli.Decompressor()

    def decode(self, data: bytes) -> Iterator[bytes]:
        decompressor = self._decompressor
        while not decompressor.is_finished():
            try:
                piece: bytes = decompressor.process(data, output_buffer_limit=_PIECE)
            except brotli.error as exc:
                raise CodingError("the body is not brotli as its content coding says; send it plain") from exc
            if piece:
                yield self._bound.count(piece)
            # A full piece may leave output inside the decoder even when all input is consumed.
            if decompressor.can_accept_more_data() and len(piece) < _PIECE:
                return
            data = b""


class _Zstd:
    """RFC 8878: frames, one after another."""

    __slots__ = ("_out", "_writer")

    def __init__(self, cap: int) -> None:
        self._out = _Sink(_Bound(cap))
        decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
        sink = cast("IO[bytes]", self._out)  # only its `write` is called
        self._writer = decompressor.stream_writer(sink, write_size=_PIECE, closefd=False)

    def decode(self, data: bytes) -> Iterator[bytes]:
        try:
            self._writer.write(data)
        except zstandard.ZstdError as exc:
            raise CodingError(
                "the body is not zstd as its content coding says, or needs a window over 8 MiB; send it plain"
            ) from exc
        pieces, self._out.pieces = self._out.pieces, []
        yield from pieces


class _Sink:
    """Where the zstd decoder writes: the one of its interfaces that stops in the middle of an input."""

    __slots__ = ("_bound", "pieces")

    def __init__(self, bound: _Bound) -> None:
        self._bound = bound
        self.pieces: list[bytes] = []

    def write(self, data: "Buffer") -> int:
        piece = self._bound.count(bytes(data))
        self.pieces.append(piece)
        return len(piece)
