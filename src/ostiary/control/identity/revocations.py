"""Who gateways must ask for again: revocations, numbered in the order in which they become visible.

Rules
- A revocation is written in the transaction that takes the right away, as its last step but the audit entry. From the
  number to the commit a lock is held: whoever has seen number N has missed none below it. Numbers may have holes.
- The newest `KEPT` stay. Who is further behind, or knows a number that there is not (a restored backup), has missed some.
"""

from typing import Final, NamedTuple

from sqlalchemy import delete, func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from ostiary.control.locks import Lock
from ostiary.control.store.tables import revocations

CHANNEL: Final = "revocations"
"""NOTIFY channel; the payload is the new number."""

KEPT: Final = 10_000
PAGE: Final = 1_000

NEWEST: Final = select(func.coalesce(func.max(revocations.c.seq), 0).label("seq"))
"""The newest number that the statement can see; 0 before the first."""


class Revocation(NamedTuple):
    """Exactly one of the ids is set: a token's, or a person's for all their tokens."""

    seq: int
    api_key_id: str | None
    owner_id: str | None


async def note_revocation(conn: AsyncConnection, *, api_key_id: str | None = None, owner_id: str | None = None) -> int:
    """Number the right taken away in this transaction, and tell the listeners when it commits."""
    await conn.execute(select(func.pg_advisory_xact_lock(Lock.REVOKE)))
    statement = insert(revocations).values(api_key_id=api_key_id, owner_id=owner_id).returning(revocations.c.seq)
    seq: int = (await conn.execute(statement)).scalar_one()
    await conn.execute(delete(revocations).where(revocations.c.seq <= seq - KEPT))
    await conn.execute(select(func.pg_notify(CHANNEL, str(seq))))
    return seq


async def newest_revocation(conn: AsyncConnection) -> int:
    return int(await conn.scalar(NEWEST) or 0)


async def missed(conn: AsyncConnection, after_seq: int) -> int | None:
    """The newest number when somebody who stands at `after_seq` cannot be told all that came after; else None."""
    oldest, newest = func.coalesce(func.min(revocations.c.seq), 0), func.coalesce(func.max(revocations.c.seq), 0)
    first, last = (await conn.execute(select(oldest, newest))).one()
    return int(last) if after_seq > last or after_seq < first - 1 else None


async def revocations_after(conn: AsyncConnection, after_seq: int) -> list[Revocation]:
    """The next `PAGE`, in order."""
    query = select(revocations.c.seq, revocations.c.api_key_id, revocations.c.owner_id)
    query = query.where(revocations.c.seq > after_seq).order_by(revocations.c.seq).limit(PAGE)
    return [Revocation(*row) for row in await conn.execute(query)]
