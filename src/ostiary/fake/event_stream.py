"""Server-sent events: how one is written, and the oddities of real streams that a reader must live with.

Rules
- Pure: a list of `Event` in, a list of byte strings out, one for each event with its blank line.
- An oddity never changes the data that a correct reader gets (HTML Living Standard §9.2.6).
"""

from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from .behaviour import Behaviour

_UNKNOWN_NAME = "fake.unknown"
_COMMENT = b": keep-alive"


class Event(NamedTuple):
    """`name` is empty for streams without `event:` lines (Chat Completions)."""

    name: str
    data: bytes

    @property
    def size(self) -> int:
        """Bytes on the wire, written plainly."""
        return len(self.data) + len("data: \n\n") + (len(self.name) + len("event: \n") if self.name else 0)


def encode(events: Iterable[Event], wanted: Behaviour) -> list[bytes]:
    """The events as bytes, with the comments, line ends and unknown events that `wanted` asks for."""
    newline = b"\r\n" if wanted.crlf else b"\n"
    lines: list[bytes] = []
    for number, event in enumerate(_with_unknown(events) if wanted.unknown else events):
        text = b"".join(_field_lines(event, newline, multiline=wanted.multiline)) + newline
        if wanted.comments and number % wanted.comments == 0:
            text = _COMMENT + newline + newline + text
        lines.append(text)
    return lines


def _field_lines(event: Event, newline: bytes, *, multiline: bool) -> Iterable[bytes]:
    if event.name:
        yield b"event: " + event.name.encode() + newline
    if multiline and event.data.startswith(b"{"):
        # Indented JSON: the reader joins the lines with \n again, which JSON does not mind between tokens.
        for line in msgspec.json.format(event.data, indent=1).split(b"\n"):
            yield b"data: " + line + newline
    else:
        yield b"data: " + event.data + newline


def _with_unknown(events: Iterable[Event]) -> Iterable[Event]:
    """An event of an unknown type after the first one, and an unknown field in every event that is an object."""
    for number, event in enumerate(events):
        data = event.data
        if data.startswith(b"{"):
            data = b'{"fake_unknown":{"since":"2031"},' + data[1:]
        yield Event(event.name, data)
        if number == 0:
            yield Event(_UNKNOWN_NAME if event.name else "", b'{"type":"fake.unknown","choices":[],"note":"new"}')
