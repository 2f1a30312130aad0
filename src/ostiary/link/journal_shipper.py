"""Ships one journal, from where the control plane holds it to its end.

Rules
- At-least-once: a batch counts when it is acknowledged. After any failure the control plane is asked anew up to where
  it holds the journal, and shipping goes on from there: a lost answer, a gap, a restored database and a restart of the
  link are one case.
- The journal of a dead worker is adopted: its torn tail is cut, `WorkerGone` is appended, and the directory is removed
  once all of it is acknowledged. Of a live one, acknowledged segments are deleted.
- What cannot be shipped as it is (damaged, too large) is replaced by a record that the control plane rejects by name;
  its segment is kept beside the journals, and an error told. Nothing behind it waits.
"""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

import msgspec
import structlog
from connectrpc.code import Code

from ostiary.core.metrics import Registry
from ostiary.core.records import WorkerGone, decode_record, encode_record
from ostiary.rpc.ostiary_pb2 import RecordAck, RecordBatch

from .backoff import LONGEST, Backoff, happens
from .client import ControlClient, ControlFailure
from .journal_files import LOST, TOO_LARGE, JournalFiles, JournalUnreadableError, Run, Tail

log = structlog.get_logger(__name__)

BATCH_RECORDS = 1000
BATCH_BYTES = 768 * 1024
"""With what is around it below 1 MiB, the limit that ingresses have by default."""
FOLLOW_INTERVAL = 0.05
"""Seconds between two looks at the end of a live journal."""
ADOPT_INTERVAL = 1.0
"""Seconds between two tries of a live worker's lock."""
_REJECTIONS_LOGGED = 10

P = ParamSpec("P")
T = TypeVar("T")


class ShipperMetrics:
    def __init__(self, registry: Registry) -> None:
        self.shipped = registry.counter("ostiary_link_records_shipped", "Records acknowledged.").cell()
        self.rejected = registry.counter(
            "ostiary_link_records_rejected", "Records that the control plane cannot store and keeps aside."
        ).cell()
        self.lost = registry.counter("ostiary_link_records_lost", "Records damaged on disk or too large.").cell()
        self.torn = registry.counter("ostiary_link_torn_tails", "Torn last frames that were cut.").cell()
        self.damaged = registry.counter("ostiary_link_damaged_places", "Damaged places in segments.").cell()
        self.errors = registry.counter("ostiary_link_ship_errors", "Batches that failed and are sent again.").cell()
        self.adopted = registry.counter("ostiary_link_journals_adopted", "Journals of dead workers taken over.").cell()


class JournalShipper:
    """`ship()` returns when the journal is gone. `slots` bounds the batches under way on this machine; `on_failure` is
    told of every failed call, `tell` is given each record before it is sent for the first time."""

    def __init__(
        self,
        path: Path,
        client: ControlClient,
        metrics: ShipperMetrics,
        slots: asyncio.Semaphore,
        on_failure: Callable[[], None],
        tell: Callable[[list[bytes]], None] | None = None,
    ) -> None:
        self.id = path.name
        self.tail = Tail(path)
        self.acked: int | None = None
        """As the control plane said last; None while it has not been asked."""
        self.caught_up = False
        """All that is on disk is acknowledged, and somebody else still holds the lock."""
        self.owes_end = False
        """Its worker is dead, and the disk has not taken the last record of the journal yet."""
        self.removed = False
        self._path = path
        self._client = client
        self._metrics = metrics
        self._slots = slots
        self._on_failure = on_failure
        self._tell = tell
        self._told_seq = 0
        """Up to here `tell` has been given them: a batch that is sent again is not told again."""
        self._files = JournalFiles(path)
        self._backoff = Backoff()
        self._wake = asyncio.Event()
        self._next_adoption = 0.0
        self._max_records = BATCH_RECORDS
        self._too_large = 0
        self._last_record = b""
        self._told: Code | None = None

    @property
    def adopted(self) -> bool:
        return self._files.adopted

    def look_now(self) -> None:
        """Something has changed: do not wait."""
        self.caught_up = False
        self._next_adoption = 0.0
        self._wake.set()

    async def ship(self) -> None:
        try:
            await self._resync()
            while not await self._step():
                pass
        finally:
            self._files.close()

    async def _step(self) -> bool:
        """Send the next batch, or look after the journal's end. True: there is nothing left to do, ever."""
        try:
            run = await self._in_thread(self._files.read, self._max_records, BATCH_BYTES)
            self._tell_troubles(run)
            if self._tell is not None:
                self._tell_records(self._tell, run)
        except JournalUnreadableError as exc:
            return await self._unreadable(exc)
        except OSError as exc:
            return await self._disk_failed("failing to read journal", exc)
        if not run.records:
            return await self._at_end()
        await self._send(run)
        return False

    async def _disk_failed(self, what: str, error: OSError) -> bool:
        """The same step again after a while; True: there is no such journal any more."""
        if not self._path.exists():
            log.warning("losing a journal that something else removed", journal_id=self.id)
            return True
        log.error(what, journal_id=self.id, error=error.strerror)
        await self._pause(self._backoff.next())
        self._files.seek(self._files.next_seq)
        return False

    # --- sending

    async def _resync(self) -> None:
        """Learn up to where the control plane holds the journal, and go on behind that."""
        while True:
            try:
                ack = await self._client.record(RecordBatch(journal_id=self.id, first_seq=1))
            except ControlFailure as failure:
                await self._failed(failure)
            else:
                self.acked = ack.acked_seq
                self._files.seek(ack.acked_seq + 1)
                return

    async def _send(self, run: Run) -> None:
        self.caught_up = False
        records = [TOO_LARGE] if run.first_seq == self._too_large else run.records
        try:
            ack = await self._deliver(run.first_seq, records)
        except ControlFailure as failure:
            self._metrics.errors[0] += 1
            if failure.too_large:
                self._send_less(run, failure)
            await self._failed(failure)
            await self._resync()
        else:
            self._last_record = records[-1]
            await self._acknowledged(ack, run, len(records))

    async def _deliver(self, first_seq: int, records: list[bytes]) -> RecordAck:
        async with self._slots:
            ack = await self._client.record(RecordBatch(journal_id=self.id, first_seq=first_seq, records=records))
        if ack.acked_seq < first_seq:
            raise ControlFailure(Code.INTERNAL, f"records from {first_seq} on were acknowledged up to {ack.acked_seq}")
        return ack

    async def _acknowledged(self, ack: RecordAck, run: Run, sent: int) -> None:
        if self._told is not None:
            log.info("shipping journal again", journal_id=self.id, acked_seq=ack.acked_seq)
            self._told = None
        self._backoff.reset()
        self._max_records = min(BATCH_RECORDS, 2 * self._max_records)
        self.acked = ack.acked_seq
        self._metrics.shipped[0] += min(sent, ack.acked_seq - run.first_seq + 1)
        self._metrics.lost[0] += run.records.count(LOST)
        self._metrics.rejected[0] += len(ack.rejected)
        for rejected in ack.rejected[:_REJECTIONS_LOGGED]:
            log.error("recording failed for good", journal_id=self.id, seq=rejected.seq, reason=rejected.reason)
        if ack.acked_seq + 1 != self._files.next_seq:
            self._files.seek(ack.acked_seq + 1)
        await self._in_thread(self._files.release, ack.acked_seq)

    def _send_less(self, run: Run, failure: ControlFailure) -> None:
        if len(run.records) > 1:
            self._max_records = len(run.records) // 2
            return
        self._too_large = run.first_seq
        self._files.mark_damaged(run.first_seq)
        self._metrics.lost[0] += 1
        log.error(
            "setting aside a record that is too large",
            journal_id=self.id,
            seq=run.first_seq,
            bytes=len(run.records[0]),
            reason=str(failure),
        )

    async def _failed(self, failure: ControlFailure) -> None:
        """Tell it once a cause, and wait. An absence of the control plane is told by the heartbeat."""
        self._on_failure()
        if not (failure.passing or failure.too_large) and failure.code is not self._told:
            self._told = failure.code
            log.error("failing to ship journal", journal_id=self.id, code=failure.code.value, reason=str(failure))
        await self._pause(self._backoff.next())

    # --- the end of the journal

    async def _at_end(self) -> bool:
        """All that is there is acknowledged."""
        if not self._files.adopted:
            if time.monotonic() >= self._next_adoption:
                self._next_adoption = time.monotonic() + ADOPT_INTERVAL
                try:
                    adopted = self._files.adopt()
                except OSError as exc:
                    return await self._disk_failed("failing to adopt journal", exc)
                if adopted:
                    self.caught_up = False
                    self._metrics.adopted[0] += 1
                    log.info("adopting journal of a worker that has gone", journal_id=self.id)
                    return False
                self.caught_up = True
            await self._pause(FOLLOW_INTERVAL)
            return False
        try:
            if self._files.holds_records and not self._ends_with_worker_gone():
                gone = encode_record(WorkerGone(at=time.time_ns() // 1000))
                self.owes_end = True
                await self._in_thread(self._files.append, self._files.next_seq, gone)
                self.owes_end = False
                return False
        except OSError as exc:
            return await self._disk_failed("failing to append the end of the worker to its journal", exc)
        try:
            await self._in_thread(self._files.remove)
            self.removed = True
        except OSError as exc:
            log.error("leaving a shipped journal that cannot be removed", path=str(self._path), error=exc.strerror)
        return True

    def _ends_with_worker_gone(self) -> bool:
        try:
            return isinstance(decode_record(self._last_record), WorkerGone)
        except msgspec.DecodeError:
            return False

    async def _unreadable(self, exc: JournalUnreadableError) -> bool:
        log.error("failing to read journal", journal_id=self.id, reason=str(exc))
        if not self._files.adopt():
            await self._pause(LONGEST)
            await self._resync()
            return False
        self._metrics.damaged[0] += 1
        aside = self._path.with_name(f"{self.id}.damaged")
        self._path.rename(aside)
        log.error("setting damaged journal aside", path=str(aside))
        return True

    def _tell_records(self, tell: Callable[[list[bytes]], None], run: Run) -> None:
        """Before they are sent: what an answer that was lost had acknowledged would not come here again."""
        new = run.records[max(0, self._told_seq + 1 - run.first_seq) :]
        if new:
            self._told_seq = run.first_seq + len(run.records) - 1
            tell(new)

    def _tell_troubles(self, run: Run) -> None:
        for trouble in run.troubles:
            where = {"journal_id": self.id, "segment": trouble.segment, "offset": trouble.offset, "bytes": trouble.size}
            if trouble.torn:
                self._metrics.torn[0] += 1
                log.warning("cutting a torn record", **where)
            else:
                self._metrics.damaged[0] += 1
                log.error("passing over damage in a journal", records_lost=trouble.lost, **where)

    # --- waiting

    async def _pause(self, seconds: float) -> None:
        """Wait, unless something changes first."""
        if await happens(self._wake, seconds):
            self._wake.clear()

    async def _in_thread(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Blocking file work; it is over when this returns, cancelled or not: the descriptors are closed next."""
        work = asyncio.ensure_future(asyncio.to_thread(call, *args, **kwargs))
        try:
            return await asyncio.shield(work)
        finally:
            if not work.done():
                await asyncio.wait((work,))
