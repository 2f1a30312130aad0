"""How the control plane's own tasks went the last time."""

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Final

from pydantic import Field
from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from .tables import housekeeping

RETENTION: Final = "retention"
"""The task that removes what is older than the retention."""


@dataclass(frozen=True, slots=True)
class TaskRun:
    """A run of a task."""

    started_at: datetime
    finished_at: datetime
    complete: Annotated[bool, Field(description="Nothing was left for later")]
    note: Annotated[str, Field(description="Why something was left; empty otherwise")]
    result: Annotated[
        dict[str, int],
        Field(description="`partitions` and `bytes` dropped, and rows deleted by table; zeros are left out"),
    ]


async def store_run(
    connection: AsyncConnection,
    task: str,
    started_at: datetime,
    *,
    complete: bool,
    note: str,
    result: dict[str, int],
) -> None:
    """Keep it in place of the run before."""
    values = {
        "started_at": started_at,
        "finished_at": func.clock_timestamp(),
        "complete": complete,
        "note": note,
        "result": result,
    }
    statement = insert(housekeeping).values(task=task, **values)
    changed = {name: statement.excluded[name] for name in values}
    await connection.execute(statement.on_conflict_do_update(index_elements=[housekeeping.c.task], set_=changed))


async def last_run(connection: AsyncConnection, task: str) -> TaskRun | None:
    """None before the first."""
    h = housekeeping.c
    query = select(h.started_at, h.finished_at, h.complete, h.note, h.result).where(h.task == task)
    row = (await connection.execute(query)).mappings().one_or_none()
    return TaskRun(**row) if row is not None else None
