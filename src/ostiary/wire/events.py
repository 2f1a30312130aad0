"""From a block of whole events to their JSON, in as few calls as can be.

Rules
- A block is whole events with LF line ends. It is decoded as one JSON array where its lines allow that: the separator that
  stands between most events of a format is replaced by a comma, in one pass of C code.
- Where they do not (comments, several data lines, `data:` without a space, `[DONE]`, malformed JSON), each event is read by
  itself, as the specification says, with the lenient decoder. Both ways give the same structs.
"""

from collections.abc import Iterator
from typing import Final, Generic, TypeVar

import msgspec
from msgspec import Struct

from . import sse
from .lenient import LenientDecoder, NestingError, is_json

T = TypeVar("T", bound=Struct)

DONE: Final = b"[DONE]"

_STRIDE: Final = 4096

_text: Final = msgspec.json.Decoder(str)


class EventDecoder(Generic[T]):
    """Decodes the data of events into one struct type whose fields all have defaults."""

    __slots__ = ("_array", "_one", "_separator")

    def __init__(self, kind: type[T], separator: bytes) -> None:
        self._array = msgspec.json.Decoder(list[kind])  # type: ignore[valid-type]
        self._one = LenientDecoder(kind)
        self._separator = separator

    def decode(self, block: bytes) -> list[T | None]:
        """One struct per event with data; None for data that is not a JSON object. `[DONE]` and comments are left out."""
        only = _only_data(block)
        if only is not None and (found := self._decode_one(only)) is not None:
            return [found]
        array = _as_array(block, self._separator)
        if array is not None:
            try:
                return self._array.decode(array)
            except (ValueError, RecursionError):
                pass
        return [self._decode_one(data) for data in payloads(block)]

    def _decode_one(self, data: bytes) -> T | None:
        try:
            return self._one.decode(data)
        except NestingError:
            return None


def payloads(block: bytes) -> Iterator[bytes]:
    """The data of each event in a block, but for `[DONE]` and what is blank."""
    for raw in block.split(b"\n\n"):
        data = sse.parse(raw).data
        if data is not None and (stripped := data.strip()) and stripped != DONE:
            yield data


def is_whole(rest: bytes) -> bool:
    """Whether what stands at the end of a stream is an event that lacks only its blank line."""
    data = sse.parse(rest).data
    return data is not None and (data.strip() == DONE or is_json(data))


def _only_data(block: bytes) -> bytes | None:
    """The data of a block that is one event with one data line, perhaps a very long one."""
    at = block.find(b"\n") + 1 if block.startswith(b"event: ") else 0
    if block.startswith(b"data: ", at) and block.find(b"\n", at) == len(block) - 2:
        return block[at + 6 :]
    return None


def _as_array(block: bytes, separator: bytes) -> bytes | None:
    found = []
    in_data = False
    for line in b",".join(block.split(separator)).split(b"\n"):
        if line.startswith(b"data: "):
            if in_data:
                return None  # of one event, which a line feed joins, not a comma
            in_data = True
            found.append(line[6:])
        elif not line:
            in_data = False
        elif not line.startswith(b"event: ") or b"{" in line:
            # Not a line that can be left out: it may have swallowed an event together with the separator.
            return None
    return b"".join((b"[", b",".join(found), b"]"))


def texts_alike(block: bytes, begin: int, at: int, closing: bytes) -> tuple[str, int] | None:
    """The strings, joined, of the events from `begin` on that differ in nothing else, and where the last of them ends.

    `at`: where the string of the first of them begins, behind its quote. `closing`: what is the same behind the strings,
    from the quote to the blank line. None when other events are among them, or one holds anything but a string.
    """
    opening = block[begin:at]
    end = block.find(closing, block.rfind(opening, begin)) + len(closing)
    if end < at:
        return None
    run = block[begin:end]
    pieces = run.split(closing)
    pieces.pop()  # behind the last one: nothing
    # So each has it once. Who had it elsewhere than at its beginning would leave its quote in the string.
    if run.count(opening) != len(pieces):
        return None
    skip = at - begin
    joined = b"".join([piece[skip:] for piece in pieces])
    if b"\\" in joined and b"\\" + closing in run:
        return None  # an escape at the end of a string: whether of its quote is not for us to count
    try:
        return _text.decode(b'"' + joined + b'"'), end
    except ValueError:
        return None


def positions(block: bytes, token: bytes, end: int | None = None) -> list[int]:
    """Where `token` stands before `end`, ascending. Backwards search is the faster one in CPython."""
    found = []
    at = block.rfind(token, 0, end)
    while at >= 0:
        found.append(at)
        at = block.rfind(token, 0, at)
    found.reverse()
    return found


def first_position(block: bytes, token: bytes, last: int) -> int:
    """Where `token` stands first, when it stands at `last`. Goes back in strides: forward search is four times slower."""
    at = last
    while True:
        stride = max(0, at - _STRIDE)
        before = block.rfind(token, 0, stride)
        if before < 0:
            return block.find(token, max(0, stride - len(token) + 1), at + len(token))
        at = before


def event_start(block: bytes, at: int) -> int:
    """Where the event that holds offset `at` begins."""
    before = block.rfind(b"\n\n", 0, at)
    return 0 if before < 0 else before + 2


def event_end(block: bytes, at: int) -> int:
    """Behind the blank line of the event that holds offset `at`. Single bytes are what CPython searches fastest."""
    while (at := block.find(b"\n", at) + 1) > 0:
        if block.startswith(b"\n", at):
            return at + 1
    return len(block)


def last_events(block: bytes, count: int) -> int:
    """Where the last `count` events with data begin."""
    at = len(block)
    for _ in range(count):
        at = block.rfind(b"\ndata:", 0, at)
        if at < 0:
            return 0
    return event_start(block, at + 1)


def event_starts(block: bytes, begin: int) -> Iterator[int]:
    """Where each event from `begin` on begins."""
    while begin < len(block):
        yield begin
        begin = event_end(block, begin)
