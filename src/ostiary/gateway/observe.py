"""The copy of an answer: which reader sees it, and what of it the client does not get to see."""

from collections.abc import Callable

from ostiary.http1.head import ResponseHead
from ostiary.wire.facts import Content, Format, ResponseFacts
from ostiary.wire.formats import observer_for
from ostiary.wire.include_usage import UsageChunkFilter
from ostiary.wire.observer import StreamObserver


class Observation:
    """Of one recorded answer. `feed` takes its payload, `compact` lets go of what has been read."""

    __slots__ = ("_filter", "_observer", "_plain_stream", "compact", "feed")

    def __init__(self, wire_format: Format, head: ResponseHead, content: Content) -> None:
        fields = head.fields
        coding = fields.get(b"content-encoding", b"")
        observer = observer_for(wire_format, fields.get(b"content-type", b""), content, coding)
        self._observer = observer
        self._plain_stream = not coding and type(observer) is StreamObserver
        self._filter: UsageChunkFilter | None = None
        self.feed: Callable[[bytes], object] = _nothing if observer is None else observer.feed
        self.compact: Callable[[], object] | None = None if observer is None else observer.compact

    def withhold_usage(self) -> bool:
        """Begin to withhold the usage event that our splice asked for; False where the answer is no plain stream."""
        if self._plain_stream:
            self._filter = UsageChunkFilter()
        return self._plain_stream

    def take(self, payload: bytes) -> bytes:
        """Show a piece to the reader; gives what of it goes to the client now."""
        self.feed(payload)
        if self.compact is not None:
            self.compact()
        return payload if self._filter is None else self._filter.feed(payload)

    def rest(self) -> bytes:
        """What was held back and goes to the client after all, at the end."""
        return b"" if self._filter is None else self._filter.flush()

    def finish(self) -> ResponseFacts | None:
        """The facts, once; None for an answer that holds none."""
        return None if self._observer is None else self._observer.finish()


def _nothing(_payload: bytes) -> None:
    """For answers without a reader."""
