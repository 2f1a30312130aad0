"""What the metrics page tells of the database: cheap to ask for, however much there is."""

from dataclasses import dataclass
from typing import Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from .partitions import missing_partitions
from .store.housekeeping import RETENTION
from .store.replicas import STALE_SECONDS


@dataclass(frozen=True, slots=True)
class Measures:
    """Times are Unix seconds; None: there is none."""

    database_bytes: int
    oldest_record: float | None
    partitions_missing: int
    retention_at: float | None
    retention_complete: float | None
    gateways: dict[str, int]
    """By state, live and stale."""


_ASK: Final = text(
    f"""
    SELECT now() AS now, pg_database_size(current_database()) AS bytes,
           (SELECT extract(epoch FROM started_at)::float8 FROM interceptions ORDER BY started_at LIMIT 1) AS oldest,
           (SELECT count(*) FROM replicas WHERE last_seen >= now() - interval '{STALE_SECONDS} seconds') AS live,
           (SELECT count(*) FROM replicas WHERE last_seen < now() - interval '{STALE_SECONDS} seconds') AS stale
    """  # noqa: S608  a number of ours
)
_RETENTION: Final = text(
    "SELECT extract(epoch FROM finished_at)::float8 AS at, complete FROM housekeeping WHERE task = :task"
)


async def read_measures(connection: AsyncConnection, retention: float) -> Measures:
    """`retention`: seconds, 0 for ever. Raises what the database raises."""
    row = (await connection.execute(_ASK)).one()
    run = (await connection.execute(_RETENTION, {"task": RETENTION})).one_or_none()
    return Measures(
        database_bytes=row.bytes,
        oldest_record=row.oldest,
        partitions_missing=len(await missing_partitions(connection, row.now, retention)),
        retention_at=run.at if run is not None else None,
        retention_complete=float(run.complete) if run is not None else None,
        gateways={"live": row.live, "stale": row.stale},
    )
