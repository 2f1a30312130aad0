"""Links to parents that were recorded after their children.

The journals of two workers arrive in any order: a tool's answer may be stored before the call it answers, and two
batches that are stored at once do not see each other. So after a batch is committed, its tool calls are looked up once
more; what is found is linked here. It is rare, and takes the lock LINEAGE for itself: no child is written meanwhile
below a root that moves.
"""

from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Any, Final

import structlog
from sqlalchemy.ext.asyncio import AsyncEngine

from ostiary.control.database import driver
from ostiary.control.locks import Lock
from ostiary.core.ids import first_id_at

from . import statements as sql
from .lineage import Link, repaired

log = structlog.get_logger(__name__)

RECENT: Final = timedelta(hours=1)
_LIMITS: Final = "SET LOCAL lock_timeout = '20s'; SET LOCAL statement_timeout = '50s'"


async def link_late_parents(engine: AsyncEngine, tool_calls: Collection[tuple[str, str]]) -> int:
    """Link what answers one of `tool_calls`, each with the interception that made or answers it.

    Gives how many were linked. A child is younger than its parent, so nothing older than all of these is looked at.
    """
    if not tool_calls:
        return 0
    calls, oldest = sorted({call for call, _ in tool_calls}), min(id_ for _, id_ in tool_calls)
    async with engine.connect() as connection:
        db = await driver(connection)
        if not await db.fetchrow(f"{sql.FIND_LATE_PARENTS} LIMIT 1", calls, oldest):
            return 0
        async with db.transaction():
            await db.execute(_LIMITS)
            await db.execute("SELECT pg_advisory_xact_lock($1)", int(Lock.LINEAGE))
            links = repaired(tuple(row) for row in await db.fetch(sql.FIND_LATE_PARENTS, calls, oldest))
            if links:
                await _apply(db, links)
    log.info("linking late parents", count=len(links))
    return len(links)


async def link_recent_orphans(engine: AsyncEngine, now: datetime) -> int:
    """The same for what was stored lately: for the end of a control plane between a commit and its look."""
    since = first_id_at(int((now - RECENT).timestamp() * 1000))
    async with engine.connect() as connection:
        orphans = await (await driver(connection)).fetch(sql.FIND_ORPHANS, since)
    return await link_late_parents(engine, [(row[0], row[1]) for row in orphans])


async def _apply(db: Any, links: list[Link]) -> None:  # Any: asyncpg
    children = [link.child_id for link in links]
    roots = [link.root_id for link in links]
    await db.execute(sql.LINK_CHILDREN, children, [link.parent_id for link in links], roots)
    await db.execute(sql.MOVE_DESCENDANTS, children, roots)
    await db.execute(sql.REBUILD_SESSIONS, roots)
    await db.execute(sql.DROP_EMPTY_SESSIONS, children)
