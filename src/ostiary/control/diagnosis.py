"""What a control plane finds out about itself and its database, for `ostiary doctor`.

Rules
- Facts, not judgements: what is too much or too old is the doctor's to say.
- It reads, in the transaction it is given, and every list is bounded. Names and counts only: no row's content.
"""

import asyncio
import resource
import shutil
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal

from sqlalchemy import RowMapping, Text, cast, func, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from ostiary import __version__

from .partitions import missing_partitions
from .state import ControlPlane
from .store.migrate import known_revisions, newest_revision
from .store.tables import PARTITIONED, ingest_rejected, journals

MAX_LISTED: Final = 20
MAX_COUNTED: Final = 1000
"""Rows of a default partition that are counted."""
RECENT: Final = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """The control plane's process and its machine."""

    build: str
    now: datetime
    embedded_database: bool
    listening: bool
    """The database tells it of changes; otherwise it polls."""
    open_files_limit: int | None
    """Null: none."""
    data_dir: str
    disk_free_bytes: int | None
    """Where the data directory is; null when that cannot be found out."""
    disk_total_bytes: int | None


@dataclass(frozen=True, slots=True)
class DatabaseFacts:
    version: str
    now: datetime
    clock_error_ms: int
    """How far `now` may be off: what asking for it took."""
    ahead_ms: int
    """By how much its clock is ahead of the control plane's; negative: behind."""
    migration: str
    newest_migration: str
    """That this control plane knows."""
    migration_state: Literal["current", "older", "newer"]
    size_bytes: int
    connections: int
    max_connections: int
    rpc_role: bool
    """What gateways ask and tell runs under a role that may do nothing else."""


@dataclass(frozen=True, slots=True)
class DefaultRows:
    """Rows that are in no week's partition; of more than a thousand only that many are counted."""

    table: str
    rows: int


@dataclass(frozen=True, slots=True)
class PartitionFacts:
    missing: list[str]
    default_rows: list[DefaultRows]


@dataclass(frozen=True, slots=True)
class Unbalanced:
    """A journal of which acknowledged is not stored + duplicate + rejected."""

    journal_id: str
    acked_seq: int
    stored: int
    duplicate: int
    rejected: int


@dataclass(frozen=True, slots=True)
class Rejections:
    """Records of the last day that could not be stored, by reason."""

    reason: str
    count: int
    journal_id: str
    """One of those they stand in."""
    last: datetime


@dataclass(frozen=True, slots=True)
class JournalFacts:
    count: int
    unbalanced_count: int
    unbalanced: list[Unbalanced]
    rejected: int
    """Records that could not be stored, ever."""
    rejected_lately: list[Rejections]


@dataclass(frozen=True, slots=True)
class Diagnosis:
    server: ServerFacts
    database: DatabaseFacts
    partitions: PartitionFacts
    journals: JournalFacts


async def diagnose(control: ControlPlane, connection: AsyncConnection) -> Diagnosis:
    """Raises what the database raises."""
    database = await _database(control, connection)
    return Diagnosis(
        server=await asyncio.to_thread(_server, control),
        database=database,
        partitions=await _partitions(connection, database.now, control.settings.retention),
        journals=await _journals(connection),
    )


async def stored_of_replicas(connection: AsyncConnection) -> dict[str, int]:
    """Up to where the journals that gateways reported last are stored, by id; 0 for those nothing has come of."""
    found = await connection.execute(_STORED)
    return {row.journal_id: row.acked_seq for row in found}


_STORED: Final = text(
    """
    SELECT told.journal_id, coalesce(j.acked_seq, 0) AS acked_seq
    FROM (
        SELECT DISTINCT journal ->> 'journal_id' AS journal_id
        FROM replicas, jsonb_path_query(status, '$.journals[*]') AS journal
    ) AS told
    LEFT JOIN journals AS j ON CAST(j.journal_id AS text) = told.journal_id
    WHERE told.journal_id IS NOT NULL
    LIMIT 100000
    """
)


def _server(control: ControlPlane) -> ServerFacts:
    settings = control.settings
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        disk = shutil.disk_usage(settings.data_dir)
    except OSError:
        disk = None
    return ServerFacts(
        build=__version__,
        now=datetime.now(UTC),
        embedded_database=settings.embedded_database,
        listening=control.events.listening,
        open_files_limit=None if limit == resource.RLIM_INFINITY else limit,
        data_dir=settings.data_dir,
        disk_free_bytes=disk.free if disk else None,
        disk_total_bytes=disk.total if disk else None,
    )


_ABOUT: Final = text(
    """
    SELECT clock_timestamp() AS now,
           current_setting('server_version') AS version,
           pg_database_size(current_database()) AS size,
           (SELECT CAST(sum(numbackends) AS int) FROM pg_stat_database) AS connections,
           CAST(current_setting('max_connections') AS int) AS max_connections,
           (SELECT version_num FROM alembic_version) AS migration
    """
)


async def _database(control: ControlPlane, connection: AsyncConnection) -> DatabaseFacts:
    await connection.execute(text("SELECT 1"))  # the next one is for the clock: no connecting in it
    before, began = datetime.now(UTC), time.monotonic()
    row = (await connection.execute(_ABOUT)).mappings().one()
    took = timedelta(seconds=time.monotonic() - began)
    newest, known = await asyncio.to_thread(lambda: (newest_revision(), known_revisions()))
    return DatabaseFacts(
        version=row["version"].partition(" ")[0],
        now=row["now"],
        clock_error_ms=_ms(took / 2),
        ahead_ms=_ms(row["now"] - (before + took / 2)),
        migration=row["migration"],
        newest_migration=newest,
        migration_state=_migration_state(row["migration"], newest, known),
        size_bytes=row["size"],
        connections=row["connections"],
        max_connections=row["max_connections"],
        rpc_role=control.rpc_only is not None,
    )


def _migration_state(here: str, newest: str, known: frozenset[str]) -> Literal["current", "older", "newer"]:
    if here == newest:
        return "current"
    return "older" if here in known else "newer"


async def _partitions(connection: AsyncConnection, now: datetime, retention: float) -> PartitionFacts:
    missing = await missing_partitions(connection, now, retention)
    found = []
    for table in PARTITIONED:
        query = text(f"SELECT count(*) FROM (SELECT 1 FROM {table}_default LIMIT {MAX_COUNTED}) AS counted")  # noqa: S608  names of ours
        if rows := await connection.scalar(query):
            found.append(DefaultRows(table, rows))
    return PartitionFacts(missing, found)


async def _journals(connection: AsyncConnection) -> JournalFacts:
    j, r = journals.c, ingest_rejected.c
    unbalanced = j.acked_seq != j.stored + j.duplicate + j.rejected
    counts = select(func.count(), func.count().filter(unbalanced)).select_from(journals)
    count, wrong = (await connection.execute(counts)).one()
    listed = select(*(j[name] for name in Unbalanced.__dataclass_fields__)).where(unbalanced)
    recent = (
        select(
            r.reason,
            func.count().label("count"),
            func.min(cast(r.journal_id, Text)).label("journal_id"),
            func.max(r.at).label("last"),
        )
        .where(r.at > func.now() - RECENT)
        .group_by(r.reason)
        .order_by(func.count().desc(), r.reason)
    )
    return JournalFacts(
        count=count,
        unbalanced_count=wrong,
        unbalanced=[Unbalanced(**row) for row in await _first(connection, listed.order_by(j.journal_id))],
        rejected=await connection.scalar(select(func.count()).select_from(ingest_rejected)) or 0,
        rejected_lately=[Rejections(**row) for row in await _first(connection, recent)],
    )


async def _first(connection: AsyncConnection, query: Any) -> list[RowMapping]:  # Any: selects of different rows
    return list((await connection.execute(query.limit(MAX_LISTED))).mappings())


def _ms(length: timedelta) -> int:
    return round(length.total_seconds() * 1000)
