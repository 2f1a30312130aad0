"""Server-sent events, cut at their boundaries without changing a byte.

Rules (WHATWG HTML §9.2.5 and §9.2.6, https://html.spec.whatwg.org/multipage/server-sent-events.html)
- Lines end in CRLF, LF or CR. An event ends with a blank line. A byte order mark may open the stream.
- A line is `field: value` with at most one space dropped after the colon; a line that begins with a colon is a comment.
- Several `data` lines of one event are joined by a line feed. Other fields than `event` and `data` mean nothing here.
- `split` and `EventSplitter` give raw slices: joined, they are the input. Comments and events without data are slices too.
- An event is handed on as soon as its blank line is whole. A CR at the end of what has come waits for the next byte, which
  may belong to it.
"""

import re
from typing import Final

from msgspec import Struct

BOM: Final = b"\xef\xbb\xbf"

_BOUNDARY: Final = re.compile(rb"(?>\r\n|\n|\r){2}")
_LINE_END: Final = re.compile(rb"\r\n|\n|\r")


class Event(Struct, frozen=True):
    """One event. `data` is None when it has no data line: the specification then dispatches nothing."""

    name: bytes = b""
    data: bytes | None = None


def parse(raw: bytes) -> Event:
    """What one raw slice says."""
    name = b""
    data: list[bytes] = []
    for line in _LINE_END.split(raw.removeprefix(BOM)):
        field, _, value = line.partition(b":")
        if field == b"data":
            data.append(value[1:] if value.startswith(b" ") else value)
        elif field == b"event":
            name = value[1:] if value.startswith(b" ") else value
    return Event(name, b"\n".join(data) if data else None)


def normalise(block: bytes) -> bytes:
    """The same events with LF line ends: for reading, not for forwarding. `block` must not end within a CRLF."""
    return block.replace(b"\r\n", b"\n").replace(b"\r", b"\n") if b"\r" in block else block


class EventSplitter:
    """Cuts a stream, torn anywhere, into its events. Blank lines beyond the one that ends an event open the next slice."""

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held = b""

    @property
    def held(self) -> int:
        """Bytes of the event that has not ended yet."""
        return len(self._held)

    def feed(self, data: bytes) -> list[bytes]:
        """The events that `data` completes."""
        held = self._held
        if not held and data.endswith(b"\n\n") and data.find(b"\n\n", 0, -1) < 0 and b"\r" not in data:
            return [data]
        data = held + data
        events = []
        start = 0
        # Held bytes can end with up to three bytes of a boundary.
        search = max(0, len(held) - 3)
        while (found := _BOUNDARY.search(data, search)) is not None:
            end = found.end()
            if end == len(data) and data.endswith(b"\r"):
                break
            events.append(data[start:end])
            start = search = end
        self._held = data[start:]
        return events

    def release(self) -> bytes:
        """The held bytes but for a possible part of a boundary, so that a long event need not be held to its end.

        The slice that follows is the rest of that event.
        """
        held = self._held
        self._held = held[-3:]
        return held[:-3]

    def flush(self) -> bytes:
        """What is left at the end of the stream: an event without its blank line, or nothing."""
        held, self._held = self._held, b""
        return held
