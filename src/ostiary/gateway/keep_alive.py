"""Pings towards a client whose upstream is silent (reference D.10). Pure: the clock is an argument.

Rules
- Only Anthropic Messages streams have an event for it, and only identity-coded ones can take one: who makes a `KeepAlive`
  knows both, and writes each payload, and each ping, as a whole chunk.
- A ping stands between whole events. After a CR at the very end nothing is written: an LF may follow and belong to it.
- None before the first event, for there is no stream yet; none after `message_stop` or `error`, for it is over.
- Without its pings the stream is byte for byte what came.
"""

from typing import Final

import msgspec
from msgspec import Struct

from ostiary.wire import sse

PING: Final = b'event: ping\ndata: {"type": "ping"}\n\n'

_LAST: Final = frozenset((b"message_stop", b"error"))
_HELD_MAX: Final = 16 * 1024
"""Bytes of an event under way that are kept; of a longer one only its name and where it ends matter."""


class _Typed(Struct):
    type: str = ""


_typed: Final = msgspec.json.Decoder(_Typed)


class KeepAlive:
    """Of one stream. `interval`: seconds without a write towards the client."""

    __slots__ = ("_begun", "_interval", "_long", "_over", "_splitter", "_written_at")

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._splitter = sse.EventSplitter()
        self._begun = False
        self._over = False
        self._long: bytes | None = None
        self._written_at = 0.0

    def wrote(self, payload: bytes, now: float) -> None:
        """This much of the stream has been written to the client."""
        self._written_at = now
        if self._over:
            return
        splitter = self._splitter
        for raw in splitter.feed(payload):
            self._saw(raw)
        if splitter.held > _HELD_MAX:
            beginning = splitter.release()
            if self._long is None:
                self._long = sse.parse(beginning).name

    def due(self, now: float) -> bytes:
        """The ping to write at once, or nothing."""
        if now - self._written_at < self._interval or not self._begun or self._over or self._splitter.held:
            return b""
        self._written_at = now
        return PING

    def _saw(self, raw: bytes) -> None:
        """An event has ended, or a comment."""
        if self._long is not None:  # `raw` is the rest of it
            self._begun = True
            self._over = self._over or self._long in _LAST
            self._long = None
        elif not self._begun or b"message_stop" in raw or b"error" in raw:
            event = sse.parse(raw)
            if event.data is not None:
                self._begun = True
                self._over = self._over or (event.name or _type_of(event.data)) in _LAST


def _type_of(data: bytes) -> bytes:
    """Some upstreams leave the `event` line out; the data says the same."""
    try:
        return _typed.decode(data).type.encode()
    except (ValueError, RecursionError):
        return b""
