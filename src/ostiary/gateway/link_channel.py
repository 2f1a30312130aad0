"""The worker's end of its socket to the link. When the link dies, the supervisor brings a new socket; until then the worker
serves from what it has.

Beyond `_UNREAD_MAX` a link that lives and does not read gets nothing of what it can do without: questions, which have an
answer without it; how trials ended, for their places have a lease; counters, which come whole with the next report. What
nobody says again is kept for it: that is little, for keys and breakers change with their cool-downs.
"""

import asyncio
from typing import Final, cast

import structlog

from ostiary.core.health import AskTrial, TrialEnded
from ostiary.core.messages import (
    AskAuthorization,
    AskMetrics,
    Authorization,
    FrameReader,
    LinkMessage,
    MachineState,
    MetricsReport,
    Revoked,
    Serving,
    Snapshot,
    WorkerHello,
    WorkerMessage,
    encode,
)

from .worker import Worker

log = structlog.get_logger()

_UNREAD_MAX: Final = 1024 * 1024
"""Bytes that wait for the link; about as much as all questions that may be under way."""
_DROPPED: Final = (AskAuthorization, AskTrial, TrialEnded, MetricsReport)


class LinkChannel:
    """Whichever socket is the current one."""

    def __init__(self, hello: WorkerHello) -> None:
        self._hello = hello
        self._current: _LinkSocket | None = None
        self.worker: Worker

    @property
    def connected(self) -> bool:
        return self._current is not None

    def send(self, message: WorkerMessage) -> bool:
        """Whether there was a link to send it to, and for what can be done without also one that reads."""
        current = self._current
        if current is None:
            return False
        transport = current.transport
        if isinstance(message, _DROPPED) and transport.get_write_buffer_size() > _UNREAD_MAX:
            return False
        transport.write(encode(message))
        return True

    def adopt(self, link: "_LinkSocket") -> None:
        """A new socket to a new link: it gets told who we are and what we serve from."""
        previous, self._current = self._current, link
        if previous is not None:
            previous.transport.abort()
            self.worker.authorizations.link_lost()
            self.worker.health.link_lost()
        # what was revoked while there was none is not told again
        self.worker.authorizations.ask_again(0.0)
        self.send(self._hello)
        snapshot = self.worker.snapshot
        if snapshot is not None:
            self.send(Serving(snapshot.revision, snapshot.errors))
        self.worker.health.link_adopted()

    def lost(self, link: "_LinkSocket") -> None:
        if self._current is link:
            self._current = None
            log.warning("losing the link; serving on from what is known")
            self.worker.authorizations.link_lost()
            self.worker.health.link_lost()

    def receive(self, message: LinkMessage) -> None:
        worker = self.worker
        if isinstance(message, Authorization):
            worker.take_authorization(message)
        elif isinstance(message, Snapshot):
            self.send(worker.take_snapshot(message))
        elif isinstance(message, Revoked):
            worker.take_revocation(message)
        elif isinstance(message, MachineState):
            worker.take_machine_state(message)
        elif isinstance(message, AskMetrics):
            self.send(worker.metrics_report(message.seq))
        else:
            worker.health.receive(message)


class _LinkSocket(asyncio.Protocol):
    def __init__(self, channel: LinkChannel) -> None:
        self._channel = channel
        self._reader: FrameReader[LinkMessage] = FrameReader(LinkMessage)
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self._channel.adopt(self)

    def data_received(self, data: bytes) -> None:
        for message in self._reader.feed(data):
            try:
                self._channel.receive(message)
            except Exception as error:  # noqa: BLE001 - the messages behind it are for others
                self._channel.worker.failures.log(error)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the transport's signature
        self._channel.lost(self)


def link_socket(channel: LinkChannel) -> asyncio.Protocol:
    """The protocol of a new socket to the link."""
    return _LinkSocket(channel)
