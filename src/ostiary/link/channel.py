"""A worker's socket.

Rules
- Frames of `core.messages`. What is not one is a bug of ours or of another build: the socket is closed and told.
- A revocation is never dropped: what does not fit any more becomes the order to ask for every known token again.
- Nor is how keys and breakers fare: a worker that missed some of it is told all of it once it reads again.
- Bounded: a worker that does not read gets the newest snapshot and state once it reads again, and its answers are
  dropped beyond `MAX_UNREAD` bytes; it asks again.
"""

import asyncio
from collections.abc import Iterable
from typing import Protocol, cast

import msgspec
import structlog

from ostiary.core.health import BreakerReport, KeyReport, TrialAnswer
from ostiary.core.messages import (
    AskMetrics,
    Authorization,
    FrameReader,
    LinkMessage,
    MachineState,
    Revoked,
    Snapshot,
    WorkerMessage,
    encode,
)

log = structlog.get_logger(__name__)

MAX_UNREAD = 8 * 1024**2
_HIGH_WATER = 256 * 1024


class Owner(Protocol):
    def worker_connected(self, channel: "Channel") -> None: ...

    def worker_said(self, channel: "Channel", message: WorkerMessage) -> None: ...

    def worker_reads_again(self, channel: "Channel") -> None:
        """It has missed reports: `share_all` them."""

    def worker_lost(self, channel: "Channel") -> None: ...


class Channel(asyncio.Protocol):
    """The link's end of one socket; `worker` is the index it was made for."""

    def __init__(self, worker: int, owner: Owner) -> None:
        self.worker = worker
        self.dropped = 0
        self._owner = owner
        self._transport: asyncio.Transport | None = None
        self._reader: FrameReader[WorkerMessage] = FrameReader(WorkerMessage)
        self._paused = False
        self._missed_reports = False
        self._later: dict[type[Snapshot | MachineState | Revoked], Snapshot | MachineState | Revoked] = {}

    def revoke(self, message: Revoked) -> None:
        if self._unread > MAX_UNREAD:
            self._later[Revoked] = Revoked(everything=True)
        else:
            self._write(message)

    def send(self, message: Snapshot | MachineState | Revoked) -> None:
        """State: only the newest of each kind matters."""
        if self._paused:
            self._later[type(message)] = message
        else:
            self._write(message)

    def share(self, report: KeyReport | BreakerReport) -> None:
        if self._paused:
            self._missed_reports = True
        else:
            self._write(report)

    def share_all(self, reports: Iterable[KeyReport | BreakerReport]) -> None:
        """All that holds. Written also when it is a lot, or a worker would never have the last of it."""
        self._missed_reports = False
        for report in reports:
            self._write(report)

    def answer(self, message: Authorization | AskMetrics | TrialAnswer) -> bool:
        """Whether it could be said."""
        if self._unread > MAX_UNREAD:
            if not self.dropped:
                log.warning("dropping answers to a worker that does not read", worker=self.worker)
            self.dropped += 1
            return False
        self._write(message)
        return True

    @property
    def _unread(self) -> int:
        return self._transport.get_write_buffer_size() if self._transport is not None else 0

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _write(self, message: LinkMessage) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(encode(message))

    # --- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=_HIGH_WATER)
        self._owner.worker_connected(self)

    def data_received(self, data: bytes) -> None:
        try:
            for message in self._reader.feed(data):
                self._owner.worker_said(self, message)
        except (msgspec.DecodeError, ValueError) as exc:
            log.error("closing the socket of a worker that speaks something else", worker=self.worker, reason=str(exc))
            self.close()

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        later, self._later = self._later, {}
        for message in later.values():
            self.send(message)
        if self._missed_reports and not self._paused:
            self._owner.worker_reads_again(self)

    def connection_lost(self, _exc: Exception | None) -> None:
        self._transport = None
        self._owner.worker_lost(self)
