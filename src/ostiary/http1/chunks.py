"""Decoder of chunked request bodies (RFC 9112 §7.1). Pure.

Strict where a lenient reader and a strict one would disagree on where the body ends: sizes are plain hex digits, lines end
in CRLF, extensions and trailers are bounded, also all extensions together: else a body of few bytes could go on for ever.
Extensions are ignored and trailers dropped, as a recipient may, whatever they name.
"""

import re
from typing import Final

from .errors import BodyError

_MAX_LINE: Final = 4096
_MAX_TRAILERS: Final = 16 * 1024
_MAX_EXCESS: Final = 16 * 1024
_LINE_FREE: Final = 16
"""Bytes of a chunk line, and with it twice as many as the chunk has, that are not yet in excess."""

_HEX: Final = frozenset(b"0123456789abcdefABCDEF")
_TOKENISH: Final = frozenset(range(0x20, 0x7F)) | {0x09}

_TRAILER_FIELD: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[^\x00-\x08\x0a-\x1f\x7f]*")

_SIZE: Final = 0
_DATA: Final = 1
_DATA_END: Final = 2
_TRAILER: Final = 3
_DONE: Final = 4


class ChunkedReader:
    """Feed it what arrives; it gives the payload and, once `done`, what belongs to the next message as `rest`."""

    __slots__ = ("_buffer", "_excess", "_need", "_state", "_trailers", "rest")

    def __init__(self) -> None:
        self._buffer = b""
        self._state = _SIZE
        self._need = 0
        self._excess = 0
        self._trailers = 0
        self.rest = b""

    @property
    def done(self) -> bool:
        return self._state == _DONE

    def feed(self, data: bytes) -> list[bytes]:
        """The pieces of payload in `data`. Raises `BodyError` on broken framing."""
        pieces: list[bytes] = []
        buffer = self._buffer + data if self._buffer else data
        pos = 0
        while self._state != _DONE:
            if self._state == _DATA:
                piece = buffer[pos : pos + self._need]
                if not piece:
                    break
                pieces.append(piece)
                pos += len(piece)
                self._need -= len(piece)
                if self._need:
                    break
                self._state = _DATA_END
            elif self._state == _DATA_END:
                ending = buffer[pos : pos + 2]
                if not b"\r\n".startswith(ending):
                    raise BodyError("a chunk does not end in CRLF")
                if len(ending) < 2:
                    break
                pos += 2
                self._state = _SIZE
            else:
                end = buffer.find(b"\r\n", pos)
                # However the line was torn, the same length is too long; the one byte more may be the CR.
                if (end if end >= 0 else len(buffer) - 1) - pos > _MAX_LINE:
                    raise BodyError("a chunk line is too long")
                if end < 0:
                    waiting = buffer[pos:]
                    if b"\n" in waiting or b"\r" in waiting[:-1]:  # no end that may still come mends it
                        raise BodyError("a chunk line does not end in CRLF")
                    break
                line = buffer[pos:end]
                pos = end + 2
                self._line(line)
        self._buffer = buffer[pos:]
        if self._state == _DONE:
            self.rest, self._buffer = self._buffer, b""
        return pieces

    def _line(self, line: bytes) -> None:
        if self._state == _SIZE:
            size, _, extension = line.partition(b";")
            if not 0 < len(size) <= 16 or not _HEX.issuperset(size) or not _TOKENISH.issuperset(extension):
                raise BodyError("a chunk size must be plain hex digits")
            self._need = int(size, 16)
            if extension:
                self._excess = max(0, self._excess + len(line) - _LINE_FREE - 2 * self._need)
                if self._excess > _MAX_EXCESS:
                    raise BodyError("the chunk extensions are too long for what they come with")
            self._state = _DATA if self._need else _TRAILER
            return
        if not line:
            self._state = _DONE
            return
        self._trailers += len(line)
        if self._trailers > _MAX_TRAILERS:
            raise BodyError("the trailer section is too long")
        if _TRAILER_FIELD.fullmatch(line) is None:
            raise BodyError("malformed trailer field")
