"""One batch of journal frames, stored in one transaction.

Rules
- The journal's row is locked first, so batches of one journal follow each other; `acked_seq` says what is stored.
  Frames up to it are skipped, a gap behind it is `SequenceGapError`, and nothing is stored twice: ids that exist stay.
- Every frame is counted once: stored, duplicate or rejected. `acked_seq` is their sum, journal by journal.
- No record blocks the others. One that cannot be read or be rows is kept in `ingest_rejected`. What only the database
  finds wrong fails the transaction; it is then repeated in halves behind savepoints until the bad record stands alone.
- An interception that starts and ends in one batch is written once, with its end.
- What comes late for a week that retention has dropped is stored all the same, in the default partition, and kept for
  the retention from then on. The end of a call that was dropped is rejected, and its content not kept aside.
- The lock LINEAGE is held shared while parents are read and their children written; `repair` takes it exclusively.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

import asyncpg
import msgspec
import structlog
from sqlalchemy.ext.asyncio import AsyncEngine

from ostiary.control.database import cause, driver
from ostiary.control.locks import Lock
from ostiary.control.partitions import kept_from
from ostiary.core.records import InterceptionEnd, InterceptionStart, Record, WorkerGone, decode_record

from . import statements as sql
from .lineage import Candidate, Link, Threads, ToolCalls, newer
from .repair import link_late_parents
from .rows import EndRows, RecordError, Row, StartRows, clean, micros, moment
from .siem import interception_log

log = structlog.get_logger(__name__)

CONCURRENT_BATCHES: Final = 6
"""Batches stored at once by one control plane; below the connection pool's size, so reads and answers go on."""
BATCH_TIMEOUT: Final = 60.0
_ATTEMPTS: Final = 3
_KNOWN_FACETS: Final = 10_000
_FACETS_KNOWN_FOR: Final = 6 * 3600.0
"""Seconds until they are told to the database anew: retention removes those that have not been seen for long."""

_RECORD_ERRORS: Final = (
    asyncpg.DataError,
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.ProgramLimitExceededError,
    OverflowError,
)
"""What PostgreSQL or its driver says of a value, not of itself."""
_TRY_AGAIN: Final = (asyncpg.DeadlockDetectedError, asyncpg.SerializationError)

_LIMITS: Final = """
SET LOCAL lock_timeout = '20s';
SET LOCAL statement_timeout = '50s';
SET LOCAL idle_in_transaction_session_timeout = '60s';
SET LOCAL enable_hashjoin = off;
SET LOCAL enable_mergejoin = off;
"""
"""Every join here starts from a batch and goes by an index; statistics of a young partition would say otherwise."""


class SequenceGapError(Exception):
    """The batch begins behind what is stored."""

    def __init__(self, acked_seq: int, first_seq: int) -> None:
        super().__init__(
            f"the journal is stored up to {acked_seq}; a batch must begin at {acked_seq + 1} or before, not at {first_seq}"
        )


class Rejected(NamedTuple):
    """A frame that is no row; of what is in it the reason quotes at most the word of an enumeration."""

    seq: int
    reason: str
    payload: bytes


class Ack(NamedTuple):
    acked_seq: int
    rejected: list[Rejected]


class _Frame(NamedTuple):
    seq: int
    payload: bytes
    rows: StartRows | EndRows | WorkerGone


@dataclass(slots=True)
class _Outcome:
    """What became of some frames."""

    stored: int = 0
    duplicate: int = 0
    rejected: list[Rejected] = field(default_factory=list)
    gone: bool = False
    tool_calls: set[tuple[str, str]] = field(default_factory=set)
    """(call, interception) of calls made, and of calls answered whose maker was not found: see `repair`."""
    facets: set[tuple[str, str, str]] = field(default_factory=set)
    records: list[tuple[StartRows, Link | None] | EndRows] = field(default_factory=list)
    """What was stored, for the interception log."""

    def add(self, other: "_Outcome") -> None:
        self.stored += other.stored
        self.duplicate += other.duplicate
        self.rejected += other.rejected
        self.gone |= other.gone
        self.tool_calls |= other.tool_calls
        self.facets |= other.facets
        self.records += other.records


class _Stored(NamedTuple):
    """An interception that an earlier batch began."""

    id: str
    initiator_id: str
    root_id: str | None
    session_id: str
    started_at: datetime
    ended: bool


class Ingest:
    """Stores batches; safe to use from many tasks and many control planes at once."""

    def __init__(self, engine: AsyncEngine, *, structured_logging: bool = False, retention: float = 0.0) -> None:
        """`retention`: seconds that records are kept; 0: for ever."""
        self._engine = engine
        self._structured_logging = structured_logging
        self._retention = retention
        self._slots = asyncio.Semaphore(CONCURRENT_BATCHES)
        self._facets: set[tuple[str, str, str]] = set()
        self._facets_since = time.monotonic()

    async def store(self, journal_id: str, first_seq: int, payloads: Sequence[bytes]) -> Ack:
        """Store frames `first_seq`, `first_seq + 1`, ...; the answer is given once they are committed.

        Raises `SequenceGapError` and what the database raises; then nothing of the batch is stored.
        """
        if not payloads:
            async with self._engine.connect() as connection:
                return Ack(await (await driver(connection)).fetchval(sql.ACKED_SEQ, journal_id) or 0, [])
        batch = _read(journal_id, first_seq, payloads)
        async with self._slots, asyncio.timeout(BATCH_TIMEOUT):
            ack, outcome = await self._store_again_on_conflict(batch)
            # before the answer: a batch whose answer was lost comes again, and with it this
            await link_late_parents(self._engine, outcome.tool_calls)
        self._tell(journal_id, outcome)
        return ack

    async def _store_again_on_conflict(self, batch: "_Batch") -> tuple[Ack, _Outcome]:
        careful = False
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return await self._store_once(batch, careful)
            except _RECORD_ERRORS:
                careful = True
            except _TRY_AGAIN:
                if attempt == _ATTEMPTS:
                    raise
        return await self._store_once(batch, careful)

    async def _store_once(self, batch: "_Batch", careful: bool) -> tuple[Ack, _Outcome]:
        async with self._engine.connect() as connection:
            db = await driver(connection)
            async with db.transaction():
                await db.execute(_LIMITS)
                acked: int = (
                    await db.fetchrow(sql.LOCK_JOURNAL, batch.journal_id)
                    or await db.fetchrow(sql.OPEN_JOURNAL, batch.journal_id)
                )[0]
                if batch.first_seq > acked + 1:
                    raise SequenceGapError(acked, batch.first_seq)
                outcome = _Outcome(
                    rejected=[one for one in batch.unreadable if one.seq > acked],
                    tool_calls=_tool_calls([frame for frame in batch.frames if frame.seq <= acked]),
                )
                if batch.last_seq <= acked:
                    return Ack(acked, []), outcome
                kept = kept_from(datetime.now(UTC), self._retention)
                for run in _runs([frame for frame in batch.frames if frame.seq > acked]):
                    outcome.add(await self._store_run(db, batch.journal_id, run, careful, kept))
                told = await self._add_facets(db, outcome.facets)
                await _finish(db, batch, outcome)
        self._facets |= told  # now that they are committed
        return Ack(batch.last_seq, sorted(outcome.rejected)), outcome

    async def _store_run(
        self,
        db: Any,  # Any: asyncpg
        journal_id: str,
        run: list[_Frame],
        careful: bool,
        kept: str,
    ) -> _Outcome:
        if not careful:
            return await _write(db, journal_id, run, kept)
        try:
            async with db.transaction():
                return await _write(db, journal_id, run, kept)
        except _RECORD_ERRORS as exc:
            if len(run) == 1:
                return _Outcome(
                    rejected=[Rejected(run[0].seq, f"the database refuses it: {cause(exc)}", run[0].payload)]
                )
        half = len(run) // 2
        outcome = await self._store_run(db, journal_id, run[:half], careful, kept)
        outcome.add(await self._store_run(db, journal_id, run[half:], careful, kept))
        return outcome

    async def _add_facets(
        self, db: Any, facets: set[tuple[str, str, str]]
    ) -> set[tuple[str, str, str]]:  # Any: asyncpg
        """Tell the database of those that it was not told of lately, and give them."""
        if len(self._facets) > _KNOWN_FACETS or time.monotonic() - self._facets_since > _FACETS_KNOWN_FOR:
            self._facets.clear()
            self._facets_since = time.monotonic()
        new = facets - self._facets
        if new:
            await db.execute(sql.ADD_FACETS, *_transposed(sorted(new)))
        return new

    def _tell(self, journal_id: str, outcome: _Outcome) -> None:
        for one in outcome.rejected:
            log.error("rejecting record", journal_id=journal_id, seq=one.seq, reason=one.reason, bytes=len(one.payload))
        if outcome.gone:
            log.info("closing journal of an ended worker", journal_id=journal_id)
        if self._structured_logging:
            for record in outcome.records:
                interception_log(record)


class _Batch(NamedTuple):
    """A batch as rows, and those of its frames that are none."""

    journal_id: str
    first_seq: int
    last_seq: int
    frames: list[_Frame]
    unreadable: list[Rejected]


def _read(journal_id: str, first_seq: int, payloads: Sequence[bytes]) -> _Batch:
    batch = _Batch(journal_id, first_seq, first_seq + len(payloads) - 1, [], [])
    for seq, payload in enumerate(payloads, start=first_seq):
        try:
            batch.frames.append(_Frame(seq, payload, _rows(decode_record(payload))))
        except (msgspec.DecodeError, RecordError) as exc:
            batch.unreadable.append(Rejected(seq, clean(str(exc))[:300], payload))
    return batch


def _rows(record: Record) -> StartRows | EndRows | WorkerGone:
    if isinstance(record, InterceptionStart):
        return StartRows(record)
    if isinstance(record, InterceptionEnd):
        return EndRows(record)
    moment(record.at, "at")
    return record


def _runs(frames: list[_Frame]) -> list[list[_Frame]]:
    """Runs in which no frame depends on a `WorkerGone` before it."""
    runs: list[list[_Frame]] = [[]]
    for frame in frames:
        if isinstance(frame.rows, WorkerGone):
            runs += [[frame], []]
        else:
            runs[-1].append(frame)
    return [run for run in runs if run]


def _tool_calls(stored: list[_Frame]) -> set[tuple[str, str]]:
    """Of frames that are stored already: late parents are looked for once more."""
    calls: set[tuple[str, str]] = set()
    for frame in stored:
        if isinstance(frame.rows, StartRows) and frame.rows.correlating_tool_call_id:
            calls.add((frame.rows.correlating_tool_call_id, frame.rows.record.id))
        elif isinstance(frame.rows, EndRows):
            calls.update((call, frame.rows.record.id) for call in frame.rows.tool_calls)
    return calls


async def _finish(db: Any, batch: _Batch, outcome: _Outcome) -> None:  # Any: asyncpg
    if outcome.rejected:
        await db.execute(sql.KEEP_REJECTED, batch.journal_id, *_transposed(outcome.rejected))
    await db.execute(
        sql.ADVANCE_JOURNAL,
        batch.journal_id,
        batch.last_seq,
        outcome.stored,
        outcome.duplicate,
        len(outcome.rejected),
        outcome.gone,
    )


async def _write(db: Any, journal_id: str, run: list[_Frame], kept: str) -> _Outcome:  # Any: asyncpg
    if isinstance(run[0].rows, WorkerGone):
        ended = await _interrupt_open(db, journal_id, run[0].rows)
        return _Outcome(stored=1, gone=True, records=[*map(EndRows, ended)])
    return await _RunWriter(db, journal_id, run, kept).write()


async def _interrupt_open(db: Any, journal_id: str, gone: WorkerGone) -> list[InterceptionEnd]:  # Any: asyncpg
    """End what the worker left open; gives the ends, of which there are no records."""
    closed = await db.fetch(sql.INTERRUPT_OPEN, journal_id, moment(gone.at, "at"))
    await _touch_sessions(
        db, [(row["session_id"], row["initiator_id"], row["started_at"], None, True) for row in closed]
    )
    return [InterceptionEnd(row["id"], micros(row["ended_at"]), "interrupted") for row in closed]


async def _touch_sessions(db: Any, rows: list[Row]) -> None:  # Any: asyncpg
    """Rows of (session, initiator, started, prompted, ended); several of one session become one."""
    merged: dict[tuple[str, str], Row] = {}
    for session_id, initiator_id, started, prompted, ended in rows:
        _, _, was_started, was_prompted, was_ended = merged.get(
            (session_id, initiator_id), (None, None, started, prompted, ended)
        )
        prompts = [at for at in (prompted, was_prompted) if at is not None]
        merged[session_id, initiator_id] = (
            session_id,
            initiator_id,
            min(started, was_started),
            max(prompts, default=None),
            ended or was_ended,
        )
    if merged:
        await db.execute(sql.TOUCH_SESSIONS, *_transposed(list(merged.values())))


class _RunWriter:
    """Writes starts and ends; one is made for each run of frames."""

    def __init__(self, db: Any, journal_id: str, run: list[_Frame], kept: str) -> None:  # Any: asyncpg
        """`kept`: the smallest id of which records are still kept."""
        self._db = db
        self._journal_id = journal_id
        self._kept = kept
        self._outcome = _Outcome()
        self._starts: dict[str, StartRows] = {}
        self._ends: dict[str, _Frame] = {}
        self._links: dict[str, Link] = {}
        self._sessions: list[Row] = []
        for frame in run:
            if isinstance(frame.rows, StartRows):
                self._take(self._starts, frame.rows.record.id, frame.rows)
            elif isinstance(frame.rows, EndRows):
                self._take(self._ends, frame.rows.record.id, frame)

    def _take(self, into: dict[str, Any], interception_id: str, value: object) -> None:  # Any: either dict
        if interception_id in into:
            self._outcome.duplicate += 1
        else:
            into[interception_id] = value

    async def write(self) -> _Outcome:
        stored = await self._find([id_ for id_ in self._ends if id_ not in self._starts])
        await self._link(stored)
        written = await self._insert_starts()
        left = {id_: frame for id_, frame in self._ends.items() if id_ not in written}
        stored |= await self._find([id_ for id_ in left if id_ in self._starts])
        await self._close(left, stored)
        await self._insert_children()
        await _touch_sessions(self._db, self._sessions)
        return self._outcome

    async def _find(self, ids: list[str]) -> dict[str, _Stored]:
        if not ids:
            return {}
        return {row["id"]: _Stored(*row) for row in await self._db.fetch(sql.FIND_INTERCEPTIONS, ids)}

    async def _link(self, stored: dict[str, _Stored]) -> None:
        """Parents of this run's starts: in this run, or in the database."""
        orphans = sorted(
            (start.record.id, start.record.initiator_id, start.correlating_tool_call_id)
            for start in self._starts.values()
            if start.correlating_tool_call_id
        )
        if not orphans:
            return
        await self._db.execute("SELECT pg_advisory_xact_lock_shared($1)", int(Lock.LINEAGE))
        candidates = {
            child: Candidate(parent, root)
            for child, parent, root in await self._db.fetch(sql.FIND_PARENTS, *_transposed(orphans))
        }
        calls = ToolCalls()
        for interception_id, frame in self._ends.items():
            start = self._starts.get(interception_id)
            initiator = start.record.initiator_id if start else None
            if initiator is None and interception_id in stored:
                initiator = stored[interception_id].initiator_id
            if initiator is not None and isinstance(frame.rows, EndRows):
                for call in frame.rows.tool_calls:
                    calls.add(initiator, call, interception_id)
        threads = Threads({id_: one.root_id for id_, one in stored.items()})
        for child, initiator, call in orphans:
            parent = newer(calls.newest_before(initiator, call, child), candidates.get(child))
            if parent is None:
                self._outcome.tool_calls.add((call, child))
            else:
                self._links[child] = threads.link(child, parent.parent_id, parent.root_id)

    async def _insert_starts(self) -> set[str]:
        """Insert this run's starts; gives the ids that were new."""
        if not self._starts:
            return set()
        rows = []
        for interception_id, start in self._starts.items():
            frame = self._ends.get(interception_id)
            end = frame.rows if frame and isinstance(frame.rows, EndRows) else None
            link = self._links.get(interception_id)
            rows.append(start.row(self._journal_id, link and link.parent_id, link and link.root_id, end))
        written = {row[0] for row in await self._db.fetch(sql.INSERT_INTERCEPTIONS, *_transposed(rows))}
        for interception_id, start in self._starts.items():
            if interception_id in written:
                self._count_start(start, self._links.get(interception_id))
                if interception_id in self._ends:
                    self._count_end(self._ends[interception_id])
            else:
                self._outcome.duplicate += 1
        return written

    def _count_start(self, start: StartRows, link: Link | None) -> None:
        outcome, initiator = self._outcome, start.record.initiator_id
        outcome.stored += 1
        outcome.records.append((start, link))
        outcome.facets.add(("model", start.model, initiator))
        if start.client:
            outcome.facets.add(("client", start.client, initiator))
        self._sessions.append(
            (
                start.session_id(link.root_id if link else None),
                initiator,
                start.started_at,
                start.started_at if start.prompt else None,
                start.record.id in self._ends,
            )
        )

    def _count_end(self, frame: _Frame) -> None:
        assert isinstance(frame.rows, EndRows)
        self._outcome.stored += 1
        self._outcome.records.append(frame.rows)

    async def _close(self, left: dict[str, _Frame], stored: dict[str, _Stored]) -> None:
        """Close interceptions that an earlier batch began."""
        open_: list[Row] = []
        for interception_id, frame in left.items():
            assert isinstance(frame.rows, EndRows)
            if interception_id not in stored:
                self._outcome.rejected.append(self._without_start(interception_id, frame))
            elif stored[interception_id].ended:
                self._outcome.duplicate += 1
            else:
                open_.append(frame.rows.update)
        if not open_:
            return
        closed = {row[0] for row in await self._db.fetch(sql.CLOSE_INTERCEPTIONS, *_transposed(open_))}
        for interception_id, *_ in open_:
            if interception_id in closed:
                one = stored[interception_id]
                self._count_end(left[interception_id])
                self._sessions.append((one.session_id, one.initiator_id, one.started_at, None, True))
            else:
                self._outcome.duplicate += 1

    def _without_start(self, interception_id: str, frame: _Frame) -> Rejected:
        if interception_id < self._kept:
            return Rejected(frame.seq, "its interception was removed: it is older than the retention", b"")
        return Rejected(frame.seq, "its interception is not known: no start of it is stored", frame.payload)

    async def _insert_children(self) -> None:
        """What belongs to the starts and ends that are new; of the others it is stored already."""
        records = self._outcome.records
        prompts = [one[0].prompt for one in records if not isinstance(one, EndRows) and one[0].prompt]
        ends = [one for one in records if isinstance(one, EndRows)]
        for end in ends:
            self._outcome.tool_calls.update((call, end.record.id) for call in end.tool_calls)
        for statement, rows in (
            (sql.INSERT_USER_PROMPTS, prompts),
            (sql.INSERT_TOKEN_USAGES, [row for end in ends for row in end.token_usages]),
            (sql.INSERT_TOOL_USAGES, [row for end in ends for row in end.tool_usages]),
            (sql.INSERT_MODEL_THOUGHTS, [row for end in ends for row in end.thoughts]),
            (sql.INSERT_DETAILS, [end.details for end in ends if end.details]),
        ):
            if rows:
                await self._db.execute(statement, *_transposed(rows))


def _transposed(rows: Sequence[Sequence[Any]]) -> list[tuple[Any, ...]]:  # Any: columns
    return list(zip(*rows, strict=True))
