"""How much room the record takes, table by table and week by week.

Sizes are the file system's and exact; rows are PostgreSQL's estimate, since counting a year of records is no part of
looking at it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Annotated, Final

from pydantic import Field
from sqlalchemy import ColumnElement, RowMapping, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from .housekeeping import RETENTION, TaskRun, last_run
from .tables import PARTITIONED, interceptions, metadata

Rows = Annotated[int, Field(description="An estimate")]
TableBytes = Annotated[int, Field(description="The rows, with what is too long for a row")]


@dataclass(frozen=True, slots=True)
class PartitionSize:
    name: str
    week: Annotated[date | None, Field(description="Its Monday, in UTC; null: what no week holds")]
    rows: Rows
    table_bytes: TableBytes
    index_bytes: int


@dataclass(frozen=True, slots=True)
class TableSize:
    """A table; of a partitioned one the sums."""

    name: str
    rows: Rows
    table_bytes: TableBytes
    index_bytes: int
    partitions: Annotated[list[PartitionSize], Field(description="Oldest first; empty when it has none")]


@dataclass(frozen=True, slots=True)
class Retention:
    seconds: Annotated[int, Field(description="0: records are kept for ever")]
    kept_from: Annotated[
        datetime | None, Field(description="Records of before go; whole weeks at a time. null: none go")
    ]
    last_run: Annotated[TaskRun | None, Field(description="When old records were looked for last, and what went")]


@dataclass(frozen=True, slots=True)
class Storage:
    """What is in the database."""

    at: datetime
    database_bytes: int
    oldest_record: datetime | None
    newest_record: datetime | None
    retention: Retention
    tables: Annotated[list[TableSize], Field(description="The largest first")]


_RELATIONS: Final = text("""
SELECT c.relname AS name, p.relname AS parent, coalesce(pg_table_size(c.oid), 0) AS table_bytes,
       coalesce(pg_indexes_size(c.oid), 0) AS index_bytes,
       CASE WHEN s.n_live_tup > 0 THEN s.n_live_tup ELSE greatest(c.reltuples, 0) END::bigint AS rows
FROM pg_class AS c
JOIN pg_namespace AS n ON n.oid = c.relnamespace AND n.nspname = current_schema()
LEFT JOIN pg_inherits AS h ON h.inhrelid = c.oid
LEFT JOIN pg_class AS p ON p.oid = h.inhparent
LEFT JOIN pg_stat_all_tables AS s ON s.relid = c.oid
WHERE c.relkind = 'r' AND coalesce(p.relname, c.relname) = ANY(:tables)
ORDER BY c.relname
""")


async def read_storage(connection: AsyncConnection, retention: float) -> Storage:
    """`retention`: the setting, in seconds."""
    at, database_bytes = (await connection.execute(text("SELECT now(), pg_database_size(current_database())"))).one()
    rows = (await connection.execute(_RELATIONS, {"tables": list(metadata.tables)})).mappings().all()
    kept_from = datetime.fromtimestamp(at.timestamp() - retention, UTC) if retention else None
    return Storage(
        at=at,
        database_bytes=database_bytes,
        oldest_record=await _end_of_record(connection, interceptions.c.started_at.asc()),
        newest_record=await _end_of_record(connection, interceptions.c.started_at.desc()),
        retention=Retention(round(retention), kept_from, await last_run(connection, RETENTION)),
        tables=sorted(_tables(rows), key=lambda one: (-one.table_bytes - one.index_bytes, one.name)),
    )


async def _end_of_record(connection: AsyncConnection, order: ColumnElement[datetime]) -> datetime | None:
    found: datetime | None = await connection.scalar(select(interceptions.c.started_at).order_by(order).limit(1))
    return found


def _tables(rows: Sequence[RowMapping]) -> list[TableSize]:
    partitions: dict[str, list[PartitionSize]] = {name: [] for name in PARTITIONED}
    found = []
    for row in rows:
        sizes = {name: row[name] for name in ("rows", "table_bytes", "index_bytes")}
        if row["parent"] is None:
            found.append(TableSize(row["name"], **sizes, partitions=[]))
        elif row["parent"] in partitions:
            partitions[row["parent"]].append(PartitionSize(row["name"], _week(row["name"]), **sizes))
    for name, parts in partitions.items():
        found.append(
            TableSize(
                name,
                rows=sum(one.rows for one in parts),
                table_bytes=sum(one.table_bytes for one in parts),
                index_bytes=sum(one.index_bytes for one in parts),
                partitions=parts,
            )
        )
    return found


def _week(name: str) -> date | None:
    try:
        return datetime.strptime(name[-8:], "%Y%m%d").replace(tzinfo=UTC).date()
    except ValueError:
        return None  # `..._default`
