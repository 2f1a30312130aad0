"""All journals of the machine: finds them, ships each one, and knows what is left.

Few journals and fewer batches are under way at once, whatever the number of directories: what is in memory is bounded.
"""

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import structlog

from ostiary.core.journal import segment_first_seq

from .backoff import LONGEST
from .client import ControlClient
from .journal_files import Tail, is_empty, journal_ids
from .journal_shipper import FOLLOW_INTERVAL, JournalShipper, ShipperMetrics

log = structlog.get_logger(__name__)

CONCURRENT_BATCHES = 4
MAX_JOURNALS = 64
SCAN_INTERVAL = 1.0
"""Seconds between two looks for new journals."""


class JournalState(NamedTuple):
    journal_id: str
    appended_seq: int
    acked_seq: int
    """As far as the control plane has been asked."""
    bytes: int
    live: bool
    """Its worker still writes to it, as far as is known."""


class Shipper:
    """`run` it. `on_failure` is told of every failed call, so that the heartbeat looks at once; `tell` of the records."""

    def __init__(
        self,
        root: Path,
        client: ControlClient,
        metrics: ShipperMetrics,
        on_failure: Callable[[], None],
        tell: Callable[[list[bytes]], None] | None = None,
    ) -> None:
        self._root = root
        self._client = client
        self._metrics = metrics
        self._on_failure = on_failure
        self._tell = tell
        self._slots = asyncio.Semaphore(CONCURRENT_BATCHES)
        self._journals: dict[str, JournalShipper] = {}
        self._tasks: dict[asyncio.Task[None], JournalShipper] = {}
        self._unremovable: set[str] = set()
        self._resting: dict[str, float] = {}
        self._counting = asyncio.Lock()
        self._wake = asyncio.Event()

    async def run(self) -> None:
        """Never returns."""
        waking = asyncio.create_task(self._wake.wait())
        try:
            while True:
                self._start_new()
                done, _ = await asyncio.wait(
                    (waking, *self._tasks), timeout=SCAN_INTERVAL, return_when=asyncio.FIRST_COMPLETED
                )
                if waking in done:
                    self._wake.clear()
                    waking = asyncio.create_task(self._wake.wait())
                for task in [task for task in self._tasks if task.done()]:
                    self._finished(task)
        finally:
            waking.cancel()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(waking, *self._tasks, return_exceptions=True)

    def look_now(self) -> None:
        """The control plane is back, or a worker has gone: do not wait."""
        self._wake.set()
        for journal in self._journals.values():
            journal.look_now()

    async def drain(self, within: float) -> int:
        """Ship to empty; gives the number of records left after that many seconds."""
        deadline = time.monotonic() + within
        self.look_now()
        if records := await self.pending():
            log.info("shipping what is left", records=records, seconds=within)
        while self._unfinished():
            left = deadline - time.monotonic()
            if left <= 0:
                return await self.pending()
            await asyncio.sleep(min(FOLLOW_INTERVAL, left))
        return 0

    async def pending(self) -> int:
        """Records that are not acknowledged, as far as the control plane has been asked: those on disk, and the last one
        of each dead worker's journal that the disk has not taken yet."""
        async with self._counting:
            return await asyncio.to_thread(lambda: sum(self._pending_of(one) for one in journal_ids(self._root)))

    async def states(self) -> list[JournalState]:
        """Every journal on disk."""
        async with self._counting:
            return await asyncio.to_thread(
                lambda: [state for one in journal_ids(self._root) if (state := self._state_of(one)) is not None]
            )

    def counts(self) -> tuple[int, int]:
        """Journals under way: of live workers, and adopted ones."""
        adopted = sum(journal.adopted for journal in self._journals.values())
        return len(self._journals) - adopted, adopted

    def _start_new(self) -> None:
        for journal_id in journal_ids(self._root):
            if len(self._journals) >= MAX_JOURNALS:
                return
            if journal_id in self._journals or journal_id in self._unremovable:
                continue
            if self._resting.get(journal_id, 0.0) <= time.monotonic():
                self._resting.pop(journal_id, None)
                journal = JournalShipper(
                    self._root / journal_id, self._client, self._metrics, self._slots, self._on_failure, self._tell
                )
                self._journals[journal_id] = journal
                self._tasks[asyncio.create_task(journal.ship(), name=f"ship {journal_id}")] = journal

    def _finished(self, task: asyncio.Task[None]) -> None:
        journal = self._tasks.pop(task)
        del self._journals[journal.id]
        if error := task.exception():
            # one odd journal must not take the others down
            log.error("failing on a journal", journal_id=journal.id, exc_info=error)
            self._resting[journal.id] = time.monotonic() + LONGEST
        elif not journal.removed:
            self._unremovable.add(journal.id)

    def _unfinished(self) -> bool:
        return not all(self._is_shipped(one) for one in journal_ids(self._root))

    def _is_shipped(self, journal_id: str) -> bool:
        if journal_id in self._unremovable:
            return True
        journal = self._journals.get(journal_id)
        if journal is None or journal.acked is None:
            # the control plane has not answered for it yet; without a record it need not
            return is_empty(self._root / journal_id)
        return journal.caught_up

    def _pending_of(self, journal_id: str) -> int:
        if journal_id in self._unremovable:
            return 0
        counted = self._count(journal_id)
        if counted is None:
            return 0
        journal = self._journals.get(journal_id)
        return max(0, counted[0] - counted[1]) + (journal is not None and journal.owes_end)

    def _count(self, journal_id: str) -> tuple[int, int] | None:
        """Number of the last record on disk, and of the last one acknowledged; None when the journal has been removed
        meanwhile: then all of it was acknowledged."""
        journal = self._journals.get(journal_id)
        try:
            tail = journal.tail if journal else Tail(self._root / journal_id)
            acked = journal.acked if journal else None
            return tail.next_seq() - 1, tail.first_seq() - 1 if acked is None else acked
        except FileNotFoundError:
            return None

    def _state_of(self, journal_id: str) -> JournalState | None:
        counted = self._count(journal_id)
        journal = self._journals.get(journal_id)
        try:
            with os.scandir(self._root / journal_id) as entries:
                size = sum(entry.stat().st_size for entry in entries if segment_first_seq(entry.name) is not None)
        except FileNotFoundError:
            return None
        live = journal is not None and not journal.adopted
        return JournalState(journal_id, *counted, size, live) if counted is not None else None
