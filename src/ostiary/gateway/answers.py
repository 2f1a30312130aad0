"""Answers of an upstream that do not go to the client just as they come.

`ChangedAnswer`  in chunks of ours: events can be withheld, changed or put in, and a cut can be told from the end
`HeldAnswer`     one that may say something of a key: kept until it is known whether it goes to the client
`Patience`       how long and how much of an answer is waited for that the client does not get, or not yet
"""

import asyncio
from collections.abc import Callable
from time import perf_counter_ns
from typing import Final

from ostiary.http1.errors import UpstreamError
from ostiary.http1.head import ResponseHead
from ostiary.http1.upstream import COMPACT_BYTES
from ostiary.wire.include_usage import UsageChunkFilter
from ostiary.wire.observer import Observer

from .keep_alive import KeepAlive
from .providers import RuntimeKey
from .providers.adapter import Transform

HELD_MAX: Final = 64 * 1024
"""Bytes: what is longer does not speak of a key, and goes on to the client."""
HELD_RAW_MAX: Final = 512 * 1024
"""The same with its framing, which may be much longer than what it frames."""
HELD_SECONDS: Final = 5.0
"""How long the rest of an answer that is held is waited for."""

Write = Callable[[bytes], object]


class ChangedAnswer:
    """Takes an answer's payload, writes chunks. The observer sees what the route's format is: behind a `transform`, and
    before the filter that withholds the usage chunk."""

    __slots__ = ("_filter", "_keep_alive", "_observer", "_transform", "_unread", "_write", "content_type")

    def __init__(
        self,
        write: Write,
        observer: Observer | None,
        *,
        transform: Transform | None = None,
        usage_filter: UsageChunkFilter | None = None,
        keep_alive: KeepAlive | None = None,
    ) -> None:
        self._write = write
        self._observer = observer
        self._transform = transform
        self._filter = usage_filter
        self._keep_alive = keep_alive
        self._unread = 0
        self.content_type = b"" if transform is None else transform.content_type

    def feed(self, payload: bytes, now: float) -> None:
        """More of the answer. Raises `TransformError`."""
        if self._transform is not None:
            payload = self._transform.feed(payload)
        self._observe(payload)
        self._write_chunk(payload if self._filter is None else self._filter.feed(payload), now)

    def end(self, now: float) -> None:
        """The answer is complete. Raises `TransformError`."""
        if self._transform is not None:
            rest = self._transform.finish()
            self._observe(rest)
            self._write_chunk(rest, now)
        if self._filter is not None:
            self._write_chunk(self._filter.flush(), now)
        self._write(b"0\r\n\r\n")

    def ping(self, now: float) -> None:
        """Tell a client that waits that the stream is alive, where that is due."""
        if self._keep_alive is not None:
            self._write_chunk(self._keep_alive.due(now), now)

    def _observe(self, payload: bytes) -> None:
        observer = self._observer
        if observer is not None and payload:
            observer.feed(payload)
            self._unread += len(payload)
            if self._unread > COMPACT_BYTES:
                self._unread = 0
                observer.compact()

    def _write_chunk(self, data: bytes, now: float) -> None:
        if data:
            self._write(b"%x\r\n%b\r\n" % (len(data), data))
            if self._keep_alive is not None:
                self._keep_alive.wrote(data, now)


class Patience:
    """Ends after `HELD_SECONDS` or `HELD_RAW_MAX` bytes, unless it was ended before: then `ended` is called, once."""

    __slots__ = ("_ended", "_left", "_timer")

    def __init__(self, ended: Callable[[], None]) -> None:
        self._ended: Callable[[], None] | None = ended
        self._left = HELD_RAW_MAX
        self._timer = asyncio.get_running_loop().call_later(HELD_SECONDS, self.is_over)

    def took(self, data: bytes) -> None:
        """More has come, as it came."""
        self._left -= len(data)
        if self._left < 0:
            self.is_over()

    def is_over(self) -> None:
        ended = self._ended
        self.end()
        if ended is not None:
            ended()

    def end(self) -> None:
        """It is not needed any more."""
        self._ended = None
        self._timer.cancel()


class HeldAnswer:
    """`key`, `hint`: with which credential it came."""

    __slots__ = (
        "_compact",
        "_patience",
        "_payload",
        "_raw",
        "_show",
        "_size",
        "_write",
        "error",
        "head",
        "hint",
        "key",
        "passed_on",
    )

    def __init__(self, head: ResponseHead, patience: Patience, key: RuntimeKey | None, hint: str) -> None:
        self.head = head
        self.key = key
        self.hint = hint
        self.error: UpstreamError | None = None
        """Why it is not whole."""
        self.passed_on = False
        """Another key is being asked for, while the rest of it may still come."""
        self._raw: list[bytes] = []
        self._payload: list[bytes] = []
        self._size = 0
        self._write: Write = self._raw.append
        self._show: Write = self._payload.append
        self._patience = patience
        self._compact: Callable[[], object] = _nothing

    def take(self, data: bytes) -> None:
        """Body bytes as they came, framing included."""
        self._write(data)
        self._patience.took(data)

    def take_payload(self, data: bytes) -> None:
        """The same without the framing."""
        self._show(data)
        self._size += len(data)
        if self._size > HELD_MAX:
            self._patience.is_over()

    @property
    def payload(self) -> bytes:
        """What has come so far, without the framing."""
        return b"".join(self._payload)

    def compact(self) -> None:
        """`COMPACT_BYTES` have come: whoever reads it, once it has been let go, may let go of them."""
        self._compact()

    def let_go(self, write: Write | None, show: Write | None, compact: Callable[[], object] | None = None) -> None:
        """What was kept, and what still comes: the bytes as they came to `write`, the payload to `show`."""
        payload, raw = self.payload, b"".join(self._raw)
        self._compact = compact or _nothing
        self._payload.clear()
        self._raw.clear()
        self._write = write or nowhere
        self._show = show or nowhere
        self._write(raw)
        if payload:
            self._show(payload)


def both(first: Write, second: Write) -> Write:
    """Writes to the one and then to the other."""

    def show(data: bytes) -> None:
        first(data)
        second(data)

    return show


def timed(write: Write, stages: dict[str, int]) -> Write:
    """Notes when the first piece came: of streams, telemetry tells it."""

    def noting(data: bytes) -> None:
        if "first_chunk" not in stages:
            stages["first_chunk"] = perf_counter_ns()
        write(data)

    return noting


def nowhere(_data: bytes) -> None:
    """Nobody wants it."""


def _nothing() -> None:
    """What is held is not more than `HELD_MAX`."""
