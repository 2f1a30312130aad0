"""How far journals are stored: what reconciliation is made from (design §8)."""

from typing import Final

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from .shapes import Journal, JournalDetail, JournalPage, RejectedFrame
from .tables import ingest_rejected, journals

MAX_REJECTED: Final = 1000
"""Rejected frames shown of one journal."""

j = journals.c
r = ingest_rejected.c


async def list_journals(connection: AsyncConnection, *, limit: int, offset: int) -> JournalPage:
    """Journals, the one that grew last first."""
    count = await connection.scalar(select(func.count()).select_from(journals)) or 0
    rows = await connection.execute(
        select(journals).order_by(j.last_seen.desc(), j.journal_id.desc()).limit(limit).offset(offset)
    )
    return JournalPage(count, [Journal(**row) for row in rows.mappings()])


async def get_journal(connection: AsyncConnection, journal_id: str) -> JournalDetail | None:
    """A journal and its rejected frames, without their contents."""
    row = (await connection.execute(select(journals).where(j.journal_id == journal_id))).mappings().one_or_none()
    if row is None:
        return None
    rejected = await connection.execute(
        select(r.seq, r.reason, func.octet_length(r.payload).label("bytes"), r.at)
        .where(r.journal_id == journal_id)
        .order_by(r.seq)
        .limit(MAX_REJECTED)
    )
    return JournalDetail(Journal(**row), [RejectedFrame(**one) for one in rejected.mappings()])
