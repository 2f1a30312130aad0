"""AWS's binary event streams (`application/vnd.amazon.eventstream`), read and written without I/O.

Rules (the "Event stream encoding" of AWS's service documentation; big-endian throughout)

    | total length 4 | length of headers 4 | CRC-32 of these 8 | headers | payload | CRC-32 of all before it |
    header: | length of name 1 | name | type 1 | value |

- A message is given out once its last byte is here and both checksums fit. What is torn waits, wherever it is torn.
- Lengths are believed only after the prelude's own checksum, and only up to what AWS sends: 128 KiB of headers and
  24 MiB of payload. So a damaged length neither waits for bytes that never come nor takes memory.
- What does not fit is an error; after one the reader gives nothing more, for where the next message begins is lost.
"""

import struct
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple
from uuid import UUID
from zlib import crc32

CONTENT_TYPE: Final = b"application/vnd.amazon.eventstream"

MAX_HEADERS: Final = 128 * 1024
MAX_PAYLOAD: Final = 24 * 1024 * 1024

_PRELUDE: Final = struct.Struct("!III")
_LENGTHS: Final = struct.Struct("!II")
_CRC: Final = struct.Struct("!I")
_SHORT: Final = struct.Struct("!H")
_FRAME: Final = _PRELUDE.size + _CRC.size
"""Bytes of a message beside its headers and payload."""

_TRUE, _FALSE, _BYTE, _INT16, _INT32, _INT64, _BYTES, _STRING, _TIMESTAMP, _UUID = range(10)
_NUMBERS: Final = {
    _BYTE: struct.Struct("!b"),
    _INT16: struct.Struct("!h"),
    _INT32: struct.Struct("!i"),
    _INT64: struct.Struct("!q"),
}
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

Value = bool | int | bytes | str | datetime | UUID


class EventStreamError(ValueError):
    """The bytes are no event stream; the text says where they stop being one and holds none of them."""


class Message(NamedTuple):
    headers: Mapping[str, Value]
    payload: bytes

    def text(self, name: str) -> str:
        """A header that is text; empty when it is missing or something else."""
        value = self.headers.get(name)
        return value if isinstance(value, str) else ""


class EventStreamReader:
    """Takes a stream torn anywhere and gives its messages."""

    __slots__ = ("_block", "_broken", "_headers", "_held", "_wanted")

    def __init__(self) -> None:
        self._held = bytearray()
        self._wanted = _PRELUDE.size
        """Bytes from the start of what is held until there is something to read."""
        self._broken = ""
        self._block = b""
        self._headers: Mapping[str, Value] = {}
        """Of the last message; those of the next one are mostly the same bytes."""

    @property
    def held(self) -> int:
        """Bytes of a message that is not complete."""
        return len(self._held)

    def feed(self, data: bytes) -> list[Message]:
        """The messages that `data` completes. Raises `EventStreamError`, then and from then on.

        Messages before a damaged one in the same `data` are given by this call, the error by the next or by `finish`.
        """
        if self._broken:
            raise EventStreamError(self._broken)
        held = self._held
        held += data
        messages: list[Message] = []
        start = 0
        try:
            while len(held) - start >= self._wanted:
                if self._wanted == _PRELUDE.size:
                    self._wanted = _total_length(held, start)
                    continue
                end = start + self._wanted
                messages.append(self._message(bytes(memoryview(held)[start:end])))
                start, self._wanted = end, _PRELUDE.size
        except EventStreamError as error:
            self._broken = str(error)
            held.clear()
            if not messages:
                raise
            return messages
        if start:
            del held[:start]
        return messages

    def finish(self) -> None:
        """The stream has ended. Raises `EventStreamError` when it did so within a message, or was damaged before."""
        if self._broken:
            raise EventStreamError(self._broken)
        if self._held:
            known = f" of {self._wanted}" if self._wanted > _PRELUDE.size else ""
            raise EventStreamError(f"the stream ends within a message, after {len(self._held)}{known} of its bytes")

    def _message(self, frame: bytes) -> Message:
        body = memoryview(frame)[: -_CRC.size]
        if crc32(body) != _CRC.unpack_from(frame, len(body))[0]:
            raise EventStreamError("a message does not fit its checksum")
        begin = _PRELUDE.size + _LENGTHS.unpack_from(frame)[1]
        block = frame[_PRELUDE.size : begin]
        if block != self._block:
            self._headers = _headers(block)
            self._block = block
        return Message(self._headers, frame[begin : len(body)])


def encode(headers: Mapping[str, Value], payload: bytes) -> bytes:
    """One message. Numbers go as the shortest type that takes them. Raises `ValueError` for what no message can hold."""
    head = b"".join(_encoded_header(name, value) for name, value in headers.items())
    if len(head) > MAX_HEADERS or len(payload) > MAX_PAYLOAD:
        raise ValueError("the headers or the payload are larger than a message may be")
    lengths = _LENGTHS.pack(_FRAME + len(head) + len(payload), len(head))
    message = b"".join((lengths, _CRC.pack(crc32(lengths)), head, payload))
    return message + _CRC.pack(crc32(message))


def _total_length(held: bytearray, at: int) -> int:
    total, headers, checksum = _PRELUDE.unpack_from(held, at)
    if crc32(memoryview(held)[at : at + _LENGTHS.size]) != checksum:
        raise EventStreamError("a message's prelude does not fit its checksum")
    if headers > MAX_HEADERS:
        raise EventStreamError(f"a message says it has {headers} bytes of headers; at most {MAX_HEADERS} are read")
    payload = total - _FRAME - headers
    if payload < 0:
        raise EventStreamError("a message says it is shorter than its own headers")
    if payload > MAX_PAYLOAD:
        raise EventStreamError(f"a message says it has {payload} bytes of payload; at most {MAX_PAYLOAD} are read")
    return int(total)


def _headers(block: bytes) -> Mapping[str, Value]:
    try:
        return _read_headers(block)
    except (struct.error, IndexError, OverflowError) as exc:
        raise EventStreamError("a message's headers end within a header, or hold what cannot be") from exc
    except UnicodeDecodeError as exc:
        raise EventStreamError("a message has a header that is not UTF-8") from exc


def _read_headers(block: bytes) -> dict[str, Value]:
    headers: dict[str, Value] = {}
    at = 0
    while at < len(block):
        begin = at + 1
        at = begin + block[at]
        name = _slice(block, begin, at).decode()
        kind = block[at]
        value, at = _value(block, kind, at + 1)
        if name in headers:
            raise EventStreamError(f"a message has the header {name[:64]!r} twice")
        headers[name] = value
    return headers


def _value(block: bytes, kind: int, at: int) -> tuple[Value, int]:
    """A header's value and where the next header begins."""
    if kind in (_STRING, _BYTES):
        begin = at + _SHORT.size
        end = begin + int(_SHORT.unpack_from(block, at)[0])
        found = _slice(block, begin, end)
        return (found.decode() if kind == _STRING else found), end
    if kind in (_TRUE, _FALSE):
        return kind == _TRUE, at
    if kind in _NUMBERS:
        number = _NUMBERS[kind]
        return int(number.unpack_from(block, at)[0]), at + number.size
    if kind == _TIMESTAMP:
        milliseconds = int(_NUMBERS[_INT64].unpack_from(block, at)[0])
        return _EPOCH + timedelta(milliseconds=milliseconds), at + 8
    if kind == _UUID:
        return UUID(bytes=_slice(block, at, at + 16)), at + 16
    raise EventStreamError(f"a message has a header of the unknown type {kind}")


def _slice(block: bytes, begin: int, end: int) -> bytes:
    if end > len(block):
        raise IndexError
    return block[begin:end]


def _encoded_header(name: str, value: Value) -> bytes:
    encoded = name.encode()
    if not 0 < len(encoded) < 256:
        raise ValueError("the name of a header must have 1 to 255 bytes")
    return bytes((len(encoded),)) + encoded + _encoded_value(value)


def _encoded_value(value: Value) -> bytes:
    if isinstance(value, bool):
        return bytes((_TRUE if value else _FALSE,))
    if isinstance(value, int):
        kind = next(
            (kind for kind, form in _NUMBERS.items() if -(1 << form.size * 8 - 1) <= value < 1 << form.size * 8 - 1), -1
        )
        if kind < 0:
            raise ValueError("a header's number must fit 64 bits")
        return bytes((kind,)) + _NUMBERS[kind].pack(value)
    if isinstance(value, datetime):
        return bytes((_TIMESTAMP,)) + _NUMBERS[_INT64].pack((value - _EPOCH) // timedelta(milliseconds=1))
    if isinstance(value, UUID):
        return bytes((_UUID,)) + value.bytes
    kind, data = (_STRING, value.encode()) if isinstance(value, str) else (_BYTES, value)
    if len(data) >= 1 << 16:
        raise ValueError("a header's value must have fewer than 64 KiB")
    return bytes((kind,)) + _SHORT.pack(len(data)) + data
