"""Which models and clients there are, by prefix: what filters offer."""

from typing import Literal

from sqlalchemy import select, true
from sqlalchemy.ext.asyncio import AsyncConnection

from .tables import interception_facets

f = interception_facets.c


async def list_facet(
    connection: AsyncConnection,
    kind: Literal["model", "client"],
    prefix: str,
    *,
    only: str | None,
    limit: int,
    offset: int,
) -> list[str]:
    """Names in order; of `only`'s records alone when it is given."""
    query = (
        select(f.value)
        .distinct()
        .where(
            f.kind == kind,
            f.value.startswith(prefix, autoescape=True) if prefix else true(),
            true() if only is None else f.initiator_id == only,
        )
        .order_by(f.value)
        .limit(limit)
        .offset(offset)
    )
    return list(await connection.scalars(query))
