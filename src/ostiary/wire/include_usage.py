"""Usage of chat streams whose client did not ask for it (design §5).

Rules
- The edit is declared and small: `stream_options.include_usage` becomes true, all other bytes stay.
- What it causes is withheld: each event with empty `choices` and a `usage` object. All other bytes, comments and blank lines
  included, go on as they came, in the same order.
- An event is held until its end has come, for it cannot be called back; one longer than 64 KiB is not the one, and flows.
"""

from typing import Final

from msgspec import Raw, Struct

from . import json_edit, sse
from .facts import RequestFacts
from .lenient import NO_RAW, LenientDecoder, NestingError

_MAX_HELD: Final = 64 * 1024


def splice_include_usage(body: bytes, facts: RequestFacts) -> bytes:
    """The body asking for usage; unchanged when it asks already, or has `stream_options` that are no object or null.

    `facts` are those read from this body. Raises `json_edit.JSONEditError`.
    """
    if facts.include_usage:
        return body
    if not facts.has_stream_options:
        return json_edit.insert_first(body, "stream_options", b'{"include_usage":true}')
    place = json_edit.find(body, "stream_options")
    if place is None:
        return json_edit.insert_first(body, "stream_options", b'{"include_usage":true}')
    options = body[place]
    if options.startswith(b"{"):
        options = json_edit.set_member(options, ("include_usage",), b"true")
    elif options == b"null":
        options = b'{"include_usage":true}'
    return b"".join((body[: place.start], options, body[place.stop :]))


class _UsageChunk(Struct):
    choices: list[Raw] | None = None
    usage: Raw = NO_RAW


_chunk: Final = LenientDecoder(_UsageChunk)


class UsageChunkFilter:
    """Takes a stream's payload, torn anywhere, and gives what goes to the client."""

    __slots__ = ("_splitter", "withheld")

    def __init__(self) -> None:
        self._splitter = sse.EventSplitter()
        self.withheld = 0
        """Events kept back so far."""

    def feed(self, data: bytes) -> bytes:
        """What can go on now; empty while an event is incomplete."""
        splitter = self._splitter
        if not splitter.held and data.endswith(b"\n\n") and b"[]" not in data and b"[ ]" not in data:
            return data
        events = splitter.feed(data)
        kept = [event for event in events if not self._withholds(event)]
        if splitter.held > _MAX_HELD:
            kept.append(splitter.release())
        return kept[0] if len(kept) == 1 else b"".join(kept)

    def flush(self) -> bytes:
        """The rest, once the stream has ended: an event without its blank line."""
        rest = self._splitter.flush()
        return b"" if self._withholds(rest) else rest

    def _withholds(self, event: bytes) -> bool:
        # What is looked for has an empty array; few other chunks get beyond this line, or beyond the like one above.
        if b"[]" not in event and b"[ ]" not in event:
            return False
        data = sse.parse(event).data
        if data is None:
            return False
        try:
            chunk = _chunk.decode(data)
        except NestingError:
            return False
        if chunk is None or chunk.choices != [] or not bytes(chunk.usage).startswith(b"{"):
            return False
        self.withheld += 1
        return True
