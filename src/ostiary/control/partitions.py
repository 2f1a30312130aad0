"""The weekly partitions of what is recorded (design §12).

Rules
- A week runs from Monday 00:00 UTC. Its bounds are the smallest UUIDv7 of its first and of the next week's first
  millisecond, the same for an interception and its children.
- Weeks are made ahead: from the last one to four after this one, at the start and once a day. What falls into no week
  (a skewed clock, a control plane that was away for a month) is in the default partition; it moves into its week when
  that is made.
- A partition is made as a table of its own and then attached: that way the parent stays open to writers.
- A week that ended longer ago than the retention is dropped, `interceptions` before its children: whoever closes an
  interception holds its row, and so its children's tables, until the commit. Dropping locks writers out, so it waits
  `DROP_PATIENCE` a lock and no more: under a dump or a long query it gives up and comes back. (Detaching concurrently,
  which would wait politely, is not to be had beside a default partition.)
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Final, NamedTuple

import asyncpg
import structlog
from sqlalchemy import exc as sa_exc
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from ostiary.core.ids import first_id_at

from .database import DATABASE_ERRORS, cause, where
from .locks import Lock
from .store.tables import PARTITIONED

log = structlog.get_logger(__name__)

WEEKS_BEHIND: Final = 1
WEEKS_AHEAD: Final = 4
INTERVAL: Final = 24 * 3600.0
"""Seconds between two looks."""
RETRY_INTERVAL: Final = 300.0
LOCK_TIMEOUT: Final = "5s"
"""Attaching locks the default partition for a moment; rather later than making readers wait."""
DROP_PATIENCE: Final = "200ms"
"""Dropping locks the parent, so whoever stores or reads waits with us."""
DROP_PAUSES: Final = (1.0, 2.0, 5.0, 10.0)
"""Seconds between the attempts of one look."""


class Week(NamedTuple):
    """One week's partition of every partitioned table."""

    monday: date

    @property
    def suffix(self) -> str:
        return self.monday.strftime("%Y%m%d")

    @property
    def first_id(self) -> str:
        start = datetime(self.monday.year, self.monday.month, self.monday.day, tzinfo=UTC)
        return first_id_at(int(start.timestamp()) * 1000)

    def shifted(self, weeks: int) -> "Week":
        return Week(self.monday + timedelta(weeks=weeks))


def week_of(moment: datetime) -> Week:
    day = moment.astimezone(UTC).date()
    return Week(day - timedelta(days=day.weekday()))


def oldest_kept(now: datetime, retention: float) -> Week | None:
    """The oldest week of which something is younger than `retention` seconds; None when all are kept (0)."""
    return week_of(now - timedelta(seconds=retention)) if retention else None


def kept_from(now: datetime, retention: float) -> str:
    """The smallest id of that week; empty when all are kept."""
    oldest = oldest_kept(now, retention)
    return oldest.first_id if oldest is not None else ""


def wanted_weeks(now: datetime, retention: float = 0.0) -> Iterator[Week]:
    """The weeks that must have partitions at `now`, oldest first."""
    this_week, oldest = week_of(now), oldest_kept(now, retention)
    weeks = (this_week.shifted(n) for n in range(-WEEKS_BEHIND, WEEKS_AHEAD + 1))
    return (week for week in weeks if oldest is None or week >= oldest)


async def make_ahead(engine: AsyncEngine, now: datetime, retention: float = 0.0) -> int:
    """Make what is missing of the weeks around `now`; gives how many partitions were made.

    `retention`: seconds; weeks that it would drop again are not made. 0: for ever.
    """
    async with engine.connect() as connection:
        missing = await _missing(connection, now, retention)
        await connection.rollback()
        for table, week in missing:
            async with connection.begin():
                await _make(connection, table, week)
    if missing:
        log.info("made partitions", count=len(missing), weeks=sorted({week.suffix for _, week in missing}))
    return len(missing)


class Dropped(NamedTuple):
    """A partition that is gone."""

    table: str
    week: Week
    bytes: int


class Drops(NamedTuple):
    dropped: list[Dropped]
    held: str
    """The partition that somebody held on to, so that it and those after it are left for later; empty when none."""


async def drop_behind(
    engine: AsyncEngine, oldest: Week, pause: Callable[[float], Awaitable[None]] = asyncio.sleep
) -> Drops:
    """Drop the weeks before `oldest`, the oldest one first."""
    async with engine.connect() as connection:
        weeks = [week for week in await _weeks(connection) if week < oldest]
    dropped: list[Dropped] = []
    for week in weeks:
        for table in PARTITIONED:
            done, size = await _drop_patiently(engine, table, week, pause)
            if not done:
                return Drops(dropped, _name(table, week))
            if size is not None:
                dropped.append(Dropped(table, week, size))
    return Drops(dropped, "")


async def try_make_ahead(engine: AsyncEngine, retention: float = 0.0) -> bool:
    """`make_ahead` for now; gives whether it succeeded. A dump that holds its locks for an hour is no reason to fail."""
    try:
        await make_ahead(engine, datetime.now(UTC), retention)
    except DATABASE_ERRORS as exc:
        # rows go into the default partition meanwhile
        log.warning("making partitions later", cause=cause(exc))
        return False
    except Exception as exc:  # noqa: BLE001  a bug here must not end a control plane that serves
        log.error("failing to make partitions by a bug", error=type(exc).__name__, at=where(exc))
        return False
    return True


async def keep_ahead(engine: AsyncEngine, retention: float = 0.0) -> None:
    """`make_ahead` once a day, for as long as the control plane runs; more often while it fails."""
    delay = RETRY_INTERVAL
    while True:
        await asyncio.sleep(delay)
        delay = INTERVAL if await try_make_ahead(engine, retention) else RETRY_INTERVAL


async def missing_partitions(connection: AsyncConnection, now: datetime, retention: float = 0.0) -> list[str]:
    """The partitions that there must be at `now` and are not, by name."""
    return [_name(table, week) for table, week in await _missing(connection, now, retention)]


async def _missing(connection: AsyncConnection, now: datetime, retention: float) -> list[tuple[str, Week]]:
    present = await _present(connection)
    return [
        (table, week)
        for week in wanted_weeks(now, retention)
        for table in PARTITIONED
        if _name(table, week) not in present
    ]


def _name(table: str, week: Week) -> str:
    return f"{table}_{week.suffix}"


def _key(table: str) -> str:
    return "id" if table == "interceptions" else "interception_id"


async def _present(connection: AsyncConnection) -> set[str]:
    names = await connection.scalars(text("SELECT inhrelid::regclass::text FROM pg_inherits"))
    return set(names)


async def _weeks(connection: AsyncConnection) -> list[Week]:
    """The weeks that any table has a partition of, oldest first."""
    found = set()
    for name in await _present(connection):
        table, _, suffix = name.rpartition("_")
        if table in PARTITIONED and len(suffix) == 8 and suffix.isdigit():
            found.add(Week(datetime.strptime(suffix, "%Y%m%d").replace(tzinfo=UTC).date()))
    return sorted(found)


async def _drop_patiently(
    engine: AsyncEngine, table: str, week: Week, pause: Callable[[float], Awaitable[None]]
) -> tuple[bool, int | None]:
    """Whether it is gone, and the bytes it had if it was us who dropped it."""
    for wait in (*DROP_PAUSES, None):
        try:
            async with engine.begin() as connection:
                return True, await _drop(connection, table, week)
        except sa_exc.DBAPIError as exc:
            if not isinstance(exc.driver_exception, asyncpg.LockNotAvailableError | asyncpg.DeadlockDetectedError):
                raise
        if wait is not None:
            await pause(wait)
    return False, None


async def _drop(connection: AsyncConnection, table: str, week: Week) -> int | None:
    name = _name(table, week)
    await connection.execute(text("SELECT set_config('lock_timeout', :wait, true)"), {"wait": DROP_PATIENCE})
    await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": int(Lock.PARTITIONS)})
    if name not in await _present(connection):
        return None
    size: int | None = await connection.scalar(
        text("SELECT pg_total_relation_size(to_regclass(:name))"), {"name": name}
    )
    await connection.execute(text(f"DROP TABLE {name}"))
    return size


async def _make(connection: AsyncConnection, table: str, week: Week) -> None:
    name, key = _name(table, week), _key(table)
    lower, upper = week.first_id, week.shifted(1).first_id
    await connection.execute(text("SELECT set_config('lock_timeout', :wait, true)"), {"wait": LOCK_TIMEOUT})
    await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": int(Lock.PARTITIONS)})
    if name in await _present(connection):
        return  # another control plane was faster
    # nothing of this week may come into the default partition between the move and the attaching
    await connection.execute(text(f"LOCK TABLE {table}_default IN ACCESS EXCLUSIVE MODE"))
    await connection.execute(text(f"CREATE TABLE {name} (LIKE {table} INCLUDING DEFAULTS INCLUDING CONSTRAINTS)"))
    await connection.execute(
        text(
            f"WITH moved AS (DELETE FROM {table}_default WHERE {key} >= '{lower}' AND {key} < '{upper}' RETURNING *) "  # noqa: S608  names of ours and computed ids
            f"INSERT INTO {name} SELECT * FROM moved"
        )
    )
    await connection.execute(
        text(f"ALTER TABLE {table} ATTACH PARTITION {name} FOR VALUES FROM ('{lower}') TO ('{upper}')")
    )
