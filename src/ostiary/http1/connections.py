"""The client connections of a worker: how many there may be, how long each may be quiet, and who makes room.

Rules
- There are never more than `most`: those idle longest make room for a new one, and where none is idle, the new one gets
  the application's answer to that.
- One whose TLS is not established yet counts too; where there are many of these, the oldest ends: people's take a moment,
  and nobody has shown yet who he is.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from .head import MAX_HEAD
from .interfaces import Application, ServerLimits

if TYPE_CHECKING:
    from .server import ClientConnection

_UNLIMITED: Final = 1 << 62
_MADE_ROOM: Final = 16
"""The part of the connections that is closed at once where one has to be: looking for them costs a walk over all."""

BODY_GRACE: Final = 60.0
BODY_RATE: Final = 1024
"""Bytes a second in which a body has to come on average, once it has been read for so many seconds, or for `body_timeout`
where that is longer. Nginx, Apache and Kestrel ask for a few hundred or nothing; agents send megabytes."""


class Connections:
    """The live client connections of a worker, and what they share. `head_max`: bytes of a request head.

    `most`: how many there may be, from its next use on.
    """

    def __init__(self, app: Application, limits: ServerLimits, tick: float, head_max: int = MAX_HEAD) -> None:
        self.live: set[ClientConnection] = set()
        self.app = app
        self.tick = tick
        self.head_ticks = limits.head_timeout / tick
        self.keepalive_ticks = limits.keepalive_timeout / tick
        self.body_ticks = limits.body_timeout / tick
        self.body_grace_ticks = max(BODY_GRACE, limits.body_timeout) / tick
        self.body_rate = BODY_RATE * tick
        self.head_max = head_max
        self.most = _UNLIMITED
        self.handshakes: dict[ClientConnection, Callable[[], object]] = {}
        """Those whose TLS is not established yet, the oldest first, and what ends each."""
        self._all_busy = False
        """Looked at since the last sweep: none is idle."""

    def __len__(self) -> int:
        return len(self.live)

    def sweep(self) -> None:
        """Call every `tick` seconds: ends what has been quiet for too long."""
        self._all_busy = False
        for connection in tuple(self.live):
            connection.sweep()

    def add(self, connection: "ClientConnection") -> None:
        """One more. Where that is one too many, idle ones are closed, or it is itself."""
        self.handshakes.pop(connection, None)
        if len(self.live) + len(self.handshakes) < self.most:
            self.live.add(connection)
            return
        closed = 0 if self._all_busy else self._make_room()
        self._all_busy = not closed
        answer = self.app.crowded(closed)
        self.live.add(connection)
        if not closed:
            connection.turn_away(answer)

    def begin_handshake(self, connection: "ClientConnection", end: Callable[[], object]) -> bool:
        """One more, which is added once its TLS is established; `end` gives it up. False: there is no room for it."""
        if len(self.live) + len(self.handshakes) >= self.most and not self.make_room():
            self.app.crowded(0)
            return False
        self.handshakes[connection] = end
        return True

    def make_room(self) -> bool:
        """For one more handshake, by ending another or closing idle connections; False when there are neither."""
        handshakes = self.handshakes
        if len(handshakes) <= self.most // _MADE_ROOM:
            closed = 0 if self._all_busy else self._make_room()
            self._all_busy = not closed
            if closed:
                self.app.crowded(closed)
                return True
        if not handshakes:
            return False
        self.app.crowded(0)
        end = handshakes.pop(next(iter(handshakes)))
        end()
        return True

    def _make_room(self) -> int:
        """Close idle connections, the longest idle first; gives how many."""
        idle = [connection for connection in self.live if connection.idle]
        idle.sort(key=_quiet, reverse=True)
        surplus = max(0, len(self.live) + len(self.handshakes) - self.most)
        chosen = idle[: surplus + 1 + self.most // _MADE_ROOM]
        for connection in chosen:
            self.live.discard(connection)  # at once: others may be accepted before they are told of their end
            connection.reset()  # over TLS a close would wait for the client to agree, with the descriptor
        return len(chosen)

    def close_idle(self) -> None:
        """Drain: close connections that serve no request."""
        for connection in tuple(self.live):
            connection.close_if_idle()


def _quiet(connection: "ClientConnection") -> int:
    return connection.quiet
