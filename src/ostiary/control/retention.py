"""What is older than the retention goes, while traffic runs.

Rules
- Recorded data goes by the week: a partition all of which is older is dropped (`partitions`). A record is kept for the
  retention at least, and up to seven days longer.
- What no week holds (a skewed clock, a journal that came after its week was dropped) lies in the default partitions and
  goes by the time it was stored, by the database's clock: a record of a machine that booted in 1970 is no old record.
- What is made from records goes when they are gone: sessions without interceptions, names for filters that were not
  seen for the retention. So do rejected frames, and journals that have ended. A journal that just fell silent stays a
  year longer: its machine may come back, and would be asked for everything again.
- The audit log, people, providers, and the numbers of their changes stay: they grow by what people do.
- What is no drop is deleted in batches of `BATCH`, each a transaction of its own, with as long a pause after it as it
  took. Whoever stores takes row locks in the same order or is passed over.
- One control plane at a time; the others try again later. Nothing is removed while the clocks of database and control
  plane differ by more than `MAX_CLOCK_DIFFERENCE`: a wrong clock must not cost a record.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

import structlog
from sqlalchemy import TextClause, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from .database import DATABASE_ERRORS, cause, where
from .locks import Lock
from .partitions import Drops, Week, drop_behind, oldest_kept
from .store.housekeeping import RETENTION, store_run
from .store.replicas import forget_replicas
from .store.tables import PARTITIONED

log = structlog.get_logger(__name__)

INTERVAL: Final = 3600.0
RETRY_INTERVAL: Final = 300.0
BATCH: Final = 1000
SILENT_JOURNALS: Final = timedelta(days=365)
"""How much longer than the retention a journal is kept that has not ended."""
MAX_CLOCK_DIFFERENCE: Final = timedelta(hours=1)
_LIMITS: Final = "SELECT set_config('lock_timeout', '2s', true), set_config('statement_timeout', '30s', true)"
_LIVE_LONG: Final = text(
    "SELECT set_config(name, '0', true) FROM pg_settings"
    " WHERE name IN ('idle_in_transaction_session_timeout', 'transaction_timeout')"
)
"""For the transaction that holds the lock and does nothing else. The second one is known from PostgreSQL 17 on."""

Pause = Callable[[float], Awaitable[None]]


class Result(NamedTuple):
    """What one run did."""

    complete: bool
    note: str
    """Why it is not complete; empty when it is."""
    counts: dict[str, int]
    """`partitions` and `bytes` dropped, and rows deleted by table."""


async def keep(engine: AsyncEngine, retention: float) -> None:
    """Run once an hour for as long as the control plane does, more often while something is left. Never raises."""
    while True:
        delay = INTERVAL if await try_run(engine, retention) else RETRY_INTERVAL
        await asyncio.sleep(delay)


async def try_run(engine: AsyncEngine, retention: float) -> bool:
    """`run`; gives whether nothing is left to be done."""
    try:
        result = await run(engine, retention)
    except DATABASE_ERRORS as exc:
        log.warning("removing old records later", cause=cause(exc))
        return False
    except Exception as exc:  # noqa: BLE001  a bug here must not end a control plane that serves
        log.error("failing to remove old records by a bug", error=type(exc).__name__, at=where(exc))
        return False
    return result is not None and result.complete


async def run(engine: AsyncEngine, retention: float, pause: Pause = asyncio.sleep) -> Result | None:
    """Remove what is older than `retention` seconds (0: nothing) and note how it went; None when another is at it."""
    # the lock is its transaction's, so that it ends with the connection, also behind a pooler
    async with engine.begin() as holding:
        if not await holding.scalar(text("SELECT pg_try_advisory_xact_lock(:key)"), {"key": int(Lock.RETENTION)}):
            return None
        await holding.execute(_LIVE_LONG)
        now: datetime = (await holding.execute(text("SELECT now()"))).scalar_one()
        result = await _Run(engine, now, retention, pause).run()
    async with engine.begin() as connection:
        await store_run(connection, RETENTION, now, complete=result.complete, note=result.note, result=result.counts)
    if result.counts:
        log.info("removed old records", complete=result.complete, **result.counts)
    if result.note:
        log.warning("leaving old records for later", cause=result.note)
    return result


class _Run:
    """One run, by the database's clock."""

    def __init__(self, engine: AsyncEngine, now: datetime, retention: float, pause: Pause) -> None:
        self._engine = engine
        self._now = now
        self._retention = retention
        self._pause = pause
        self._counts: dict[str, int] = {}

    async def run(self) -> Result:
        async with self._engine.begin() as connection:
            self._count("replicas", await forget_replicas(connection))
        oldest = oldest_kept(self._now, self._retention)
        if oldest is None:
            return Result(True, "", self._counts)
        difference = abs(datetime.now(UTC) - self._now)
        if difference > MAX_CLOCK_DIFFERENCE:
            return Result(False, f"the clocks of database and control plane differ by {difference}", self._counts)
        note = self._note_drops(await drop_behind(self._engine, oldest, self._pause))
        bound = self._now - timedelta(seconds=self._retention)
        await self._delete_strays(bound)
        await self._delete_empty_sessions(oldest)
        for table, condition, value in (
            ("interception_facets", "last_seen < :bound", bound),
            ("ingest_rejected", "at < :bound", bound),
            ("journals", "gone AND last_seen < :bound", bound),
            ("journals", "NOT gone AND last_seen < :bound", bound - SILENT_JOURNALS),
        ):
            await self._delete(table, condition, value)
        return Result(not note, note, self._counts)

    def _note_drops(self, drops: Drops) -> str:
        if drops.dropped:
            self._count("partitions", len(drops.dropped))
            self._count("bytes", sum(one.bytes for one in drops.dropped))
            weeks = sorted({one.week.suffix for one in drops.dropped})
            log.info("dropped partitions", count=len(drops.dropped), weeks=weeks)
        return f"somebody holds on to {drops.held}: a dump or a long query" if drops.held else ""

    async def _delete_strays(self, bound: datetime) -> None:
        """Records outside of all weeks, with all that belongs to them."""

        async def batch(connection: AsyncConnection, after: Any) -> tuple[Any, int]:  # Any: a position
            values = {"bound": bound, "after": after or _FIRST_ID, "most": BATCH}
            ids = list(await connection.scalars(_FIND_STRAYS, values))
            if not ids:
                return None, 0
            # the parents first: who closes one holds its row until its children are stored
            gone = (await connection.execute(_DELETE_STRAYS, {"ids": ids, "bound": bound})).all()
            gone_ids = [row.id for row in gone]
            for table in PARTITIONED[1:]:
                await connection.execute(_delete_children(table), {"ids": gone_ids})
            await _delete_sessions(connection, [(row.session_id, row.initiator_id) for row in gone])
            return ids[-1] if len(ids) == BATCH else None, len(gone)

        await self._in_batches("interceptions", batch)

    async def _delete_empty_sessions(self, oldest: Week) -> None:
        """Sessions of which no interception is left; only those before the oldest week can be."""
        midnight = datetime(oldest.monday.year, oldest.monday.month, oldest.monday.day, tzinfo=UTC)

        async def batch(connection: AsyncConnection, after: Any) -> tuple[Any, int]:  # Any: a position
            last_active_at, session_id, initiator_id = after or (_FIRST_TIME, "", _FIRST_ID)
            values = {"bound": midnight, "at": last_active_at, "session": session_id, "initiator": initiator_id}
            rows = (await connection.execute(_FIND_OLD_SESSIONS, values | {"most": BATCH})).all()
            # by a statement of its own: it sees what was committed while the rows were being locked
            deleted = await _delete_sessions(connection, [(row.session_id, row.initiator_id) for row in rows])
            return tuple(rows[-1]) if len(rows) == BATCH else None, deleted

        await self._in_batches("interception_sessions", batch)

    async def _delete(self, table: str, condition: str, bound: datetime) -> None:
        statement = text(
            f"DELETE FROM {table} WHERE ctid = ANY(ARRAY("  # noqa: S608  names of ours
            f"SELECT ctid FROM {table} WHERE {condition} LIMIT :most FOR UPDATE SKIP LOCKED))"
        )

        async def batch(connection: AsyncConnection, _after: Any) -> tuple[Any, int]:  # Any: a position
            deleted = (await connection.execute(statement, {"bound": bound, "most": BATCH})).rowcount
            return deleted == BATCH or None, deleted

        await self._in_batches(table, batch)

    async def _in_batches(
        self, table: str, batch: Callable[[AsyncConnection, Any], Awaitable[tuple[Any, int]]]
    ) -> None:
        """`batch` deletes and gives where to go on, and None at the end, and how many it deleted."""
        after: Any = None  # Any: what `batch` makes of it
        while True:
            began = time.monotonic()
            async with self._engine.begin() as connection:
                await connection.exec_driver_sql(_LIMITS)
                after, deleted = await batch(connection, after)
            self._count(table, deleted)
            if after is None:
                return
            await self._pause(time.monotonic() - began)

    def _count(self, what: str, number: int) -> None:
        if number:
            self._counts[what] = self._counts.get(what, 0) + number


_FIRST_ID: Final = "00000000-0000-0000-0000-000000000000"
_FIRST_TIME: Final = datetime(1, 1, 1, tzinfo=UTC)

_FIND_STRAYS: Final = text("""
SELECT id::text FROM interceptions_default
WHERE stored_at < :bound AND id > CAST(:after AS uuid) ORDER BY id LIMIT :most
""")

_DELETE_STRAYS: Final = text("""
DELETE FROM interceptions WHERE id = ANY(CAST(:ids AS uuid[])) AND stored_at < :bound
RETURNING id::text, session_id, initiator_id::text
""")

_FIND_OLD_SESSIONS: Final = text("""
SELECT last_active_at, session_id, initiator_id::text FROM interception_sessions
WHERE last_active_at < :bound
  AND (last_active_at, session_id, initiator_id) > (:at, :session, CAST(:initiator AS uuid))
ORDER BY last_active_at, session_id, initiator_id LIMIT :most FOR UPDATE SKIP LOCKED
""")

_DELETE_SESSIONS: Final = text("""
DELETE FROM interception_sessions AS s
USING unnest(CAST(:sessions AS text[]), CAST(:initiators AS uuid[])) AS u(session_id, initiator_id)
WHERE s.session_id = u.session_id AND s.initiator_id = u.initiator_id
  AND NOT EXISTS (SELECT FROM interceptions AS i WHERE i.session_id = s.session_id AND i.initiator_id = s.initiator_id)
""")


def _delete_children(table: str) -> TextClause:
    return text(f"DELETE FROM {table} WHERE interception_id = ANY(CAST(:ids AS uuid[]))")  # noqa: S608  a name of ours


async def _delete_sessions(connection: AsyncConnection, keys: list[tuple[str, str]]) -> int:
    """Those that have no interceptions any more."""
    if not keys:
        return 0
    ordered = sorted(set(keys))
    sessions, initiators = [session for session, _ in ordered], [initiator for _, initiator in ordered]
    return (await connection.execute(_DELETE_SESSIONS, {"sessions": sessions, "initiators": initiators})).rowcount
