"""Tells the control plane how this machine is: every `STATUS_INTERVAL` seconds, and soon after a change.

Rules
- It is a courtesy: a report that fails is tried with the next one, and judges nothing about the link.
- A machine is known by a UUID in its data directory, made on the first start.
- Ids, masked hints and numbers only: what is served and shipped, how keys and breakers fare, no key and no content.
- The answer says what time the control plane has; by how much ours differs is told with the next report.
- It is of a size that the control plane takes: when there is too much, the history of keys is told shorter or not at all.
"""

import asyncio
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal

import structlog

from ostiary import __version__
from ostiary.core.messages import Snapshot
from ostiary.rpc.ostiary_pb2 import (
    BreakerStatus,
    JournalStatus,
    KeyCooling,
    KeyStatus,
    KeyTransition,
    ReportStatusRequest,
    WorkerStatus,
)

from .client import ControlClient, ControlFailure
from .connection import Connection
from .health import Board
from .health_records import TIMELINE, BreakerHealth, KeyHealth
from .shipper import Shipper
from .workers import Workers, WorkerState

log = structlog.get_logger(__name__)

STATUS_INTERVAL = 10.0
LOOK_INTERVAL = 0.5
"""Seconds between two looks whether something has changed."""
REPLICA_FILE = "replica-id"
CLEAR_ANSWER = 1.0
"""Seconds; an answer that took longer says too little about the clocks."""
MAX_KEYS_SIZE = 512 * 1024
"""Bytes for all keys of a report; the control plane takes 1 MiB in all."""
MAX_BREAKERS_SIZE = 128 * 1024
_MAX_TROUBLED = 1000
_MAX_AHEAD_US = 10**17
"""Three thousand years: beyond it the answer was no time, and larger ones do not fit into a report."""

_State = tuple[int, tuple[WorkerState, ...], tuple[tuple[str, str], ...], int]


class StatusReports:
    """`run` it."""

    def __init__(
        self,
        client: ControlClient,
        connection: Connection,
        workers: Workers,
        shipper: Shipper,
        board: Board,
        *,
        data_dir: Path,
        mode: Literal["embedded", "standalone"],
        served: Callable[[], Snapshot | None],
    ) -> None:
        self._client = client
        self._connection = connection
        self._workers = workers
        self._shipper = shipper
        self._board = board
        self._data_dir = data_dir
        self._mode = mode
        self._served = served
        self._told: str | None = None
        self._clock_ahead_us: int | None = None

    async def run(self) -> None:
        """Never returns."""
        replica = await asyncio.to_thread(replica_id, self._data_dir)
        reported: _State | None = None
        due = 0.0
        while True:
            state = self._state()
            if self._connection.up and (state != reported or time.monotonic() >= due):
                await self._report(replica, state)
                reported, due = state, time.monotonic() + STATUS_INTERVAL
            await asyncio.sleep(LOOK_INTERVAL)

    def _state(self) -> _State:
        snapshot = self._served()
        errors = tuple(sorted(self._workers.provider_errors().items()))
        revision = snapshot.revision if snapshot is not None else 0
        return revision, tuple(self._workers.states()), errors, self._board.changes()

    async def _report(self, replica: str, state: _State) -> None:
        revision, workers, errors, _ = state
        status = ReportStatusRequest(
            replica_id=replica,
            hostname=socket.gethostname(),
            build=__version__,
            mode=self._mode,
            revision=revision,
            workers=[WorkerStatus(**worker._asdict()) for worker in workers],
            keys=key_statuses(self._board.key_health()),
            breakers=breaker_statuses(self._board.breaker_health()),
            journals=[JournalStatus(**journal._asdict()) for journal in await self._shipper.states()],
            provider_errors=dict(errors),
            clock_ahead_us=self._clock_ahead_us,
        )
        began_us, began = time.time_ns() // 1000, time.monotonic()
        try:
            answer = await self._client.report_status(status)
        except ControlFailure as failure:
            if failure.code.value != self._told:
                log.info("failing to report this gateway's status", reason=str(failure))
            self._told = failure.code.value
        else:
            self._told = None
            self._clock_ahead_us = clock_ahead_us(began_us, time.monotonic() - began, answer.now_us)


def clock_ahead_us(began_us: int, took: float, control_us: int) -> int | None:
    """By how much our clock is ahead of the one that said `control_us` about half-way; None when that cannot be told."""
    if not control_us or took > CLEAR_ANSWER:
        return None
    ahead = began_us + round(took * 500_000) - control_us
    return ahead if abs(ahead) < _MAX_AHEAD_US else None


def key_statuses(keys: list[KeyHealth]) -> list[KeyStatus]:
    """All keys with as much of their history as there is room for; of too many those that cannot be used."""
    for told in _shorter(keys):
        if sum(one.ByteSize() for one in told) <= MAX_KEYS_SIZE:
            return told
    return []


def _shorter(keys: list[KeyHealth]) -> Iterator[list[KeyStatus]]:
    for newest in (TIMELINE, 8, 2, 0):
        yield [_key_status(key, newest) for key in keys]
    troubled = [key._replace(cooling=()) for key in keys if key.state != "usable"]
    yield [_key_status(key, 0) for key in troubled[:_MAX_TROUBLED]]


def _key_status(key: KeyHealth, newest: int) -> KeyStatus:
    history = key.timeline[-newest:] if newest else ()
    fields = key._asdict() | {
        "cooling": [KeyCooling(**one._asdict()) for one in key.cooling],
        "timeline": [KeyTransition(**one._asdict()) for one in history],
    }
    return KeyStatus(**fields)


def breaker_statuses(breakers: list[BreakerHealth]) -> list[BreakerStatus]:
    """Those that are not closed first, as many as there is room for."""
    told: list[BreakerStatus] = []
    size = 0
    for breaker in sorted(breakers, key=lambda one: one.state == "closed"):
        status = BreakerStatus(**breaker._asdict())
        size += status.ByteSize()
        if size > MAX_BREAKERS_SIZE:
            break
        told.append(status)
    return told


def replica_id(data_dir: Path) -> str:
    """The UUID of this data directory; made when it has none. Where it cannot be kept it is of this process only."""
    path = data_dir / REPLICA_FILE
    try:
        return str(uuid.UUID(path.read_text(encoding="ascii").strip()))
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        log.warning("replacing the unreadable id of this gateway", path=str(path), reason=type(error).__name__)
    made = str(uuid.uuid4())
    try:
        new = path.with_name(f"{REPLICA_FILE}.{made}")
        try:
            with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w") as file:
                file.write(f"{made}\n")
            new.replace(path)
        finally:
            with suppress(OSError):
                new.unlink(missing_ok=True)
    except OSError as error:
        log.warning("failing to keep the id of this gateway", path=str(path), reason=error.strerror)
    return made
