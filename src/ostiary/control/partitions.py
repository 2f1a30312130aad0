"""The weekly partitions of what is recorded (design §12).

Rules
- A week runs from Monday 00:00 UTC. Its bounds are the smallest UUIDv7 of its first and of the next week's first
  millisecond, the same for an interception and its children.
- Weeks are made ahead: from the last one to four after this one, at the start and once a day. What falls into no week
  (a skewed clock, a control plane that was away for a month) is in the default partition; it moves into its week when
  that is made.
- A partition is made as a table of its own and then attached: that way the parent stays open to writers.
"""

import asyncio
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Final, NamedTuple

import structlog
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


def wanted_weeks(now: datetime) -> Iterator[Week]:
    """The weeks that must have partitions at `now`, oldest first."""
    this_week = week_of(now)
    return (this_week.shifted(n) for n in range(-WEEKS_BEHIND, WEEKS_AHEAD + 1))


async def make_ahead(engine: AsyncEngine, now: datetime) -> int:
    """Make what is missing of the weeks around `now`; gives how many partitions were made."""
    async with engine.connect() as connection:
        missing = await _missing(connection, now)
        await connection.rollback()
        for table, week in missing:
            async with connection.begin():
                await _make(connection, table, week)
    if missing:
        log.info("made partitions", count=len(missing), weeks=sorted({week.suffix for _, week in missing}))
    return len(missing)


async def try_make_ahead(engine: AsyncEngine) -> bool:
    """`make_ahead` for now; gives whether it succeeded. A dump that holds its locks for an hour is no reason to fail."""
    try:
        await make_ahead(engine, datetime.now(UTC))
    except DATABASE_ERRORS as exc:
        # rows go into the default partition meanwhile
        log.warning("making partitions later", cause=cause(exc))
        return False
    except Exception as exc:  # noqa: BLE001  a bug here must not end a control plane that serves
        log.error("failing to make partitions by a bug", error=type(exc).__name__, at=where(exc))
        return False
    return True


async def keep_ahead(engine: AsyncEngine) -> None:
    """`make_ahead` once a day, for as long as the control plane runs; more often while it fails."""
    delay = RETRY_INTERVAL
    while True:
        await asyncio.sleep(delay)
        delay = INTERVAL if await try_make_ahead(engine) else RETRY_INTERVAL


async def missing_partitions(connection: AsyncConnection, now: datetime) -> list[str]:
    """The partitions that there must be at `now` and are not, by name."""
    return [_name(table, week) for table, week in await _missing(connection, now)]


async def _missing(connection: AsyncConnection, now: datetime) -> list[tuple[str, Week]]:
    present = await _present(connection)
    return [(table, week) for week in wanted_weeks(now) for table in PARTITIONED if _name(table, week) not in present]


def _name(table: str, week: Week) -> str:
    return f"{table}_{week.suffix}"


def _key(table: str) -> str:
    return "id" if table == "interceptions" else "interception_id"


async def _present(connection: AsyncConnection) -> set[str]:
    names = await connection.scalars(text("SELECT inhrelid::regclass::text FROM pg_inherits"))
    return set(names)


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
