"""`/api/v2/ai-gateway/models` and `/clients`: the names that filters can offer (reference G.1)."""

from typing import Annotated

from fastapi import APIRouter, Query

from ostiary.control.store.facets import list_facet
from ostiary.control.store.filters import parse_prefix

from .deps import CurrentUser, ReadConnection
from .reading import Limit, Offset, checked, only

router = APIRouter(tags=["record"])

Prefix = Annotated[str, Query(description="How the names begin")]


@router.get("/models")
async def models(
    caller: CurrentUser, connection: ReadConnection, q: Prefix = "", limit: Limit = 1000, offset: Offset = 0
) -> list[str]:
    """Models that were asked for."""
    prefix = checked("Invalid AI Gateway models search query.", lambda: parse_prefix(q, "model"))
    return await list_facet(connection, "model", prefix, only=only(caller), limit=limit, offset=offset)


@router.get("/clients")
async def clients(
    caller: CurrentUser, connection: ReadConnection, q: Prefix = "", limit: Limit = 1000, offset: Offset = 0
) -> list[str]:
    """Clients that asked."""
    prefix = checked("Invalid AI Gateway clients search query.", lambda: parse_prefix(q, "client"))
    return await list_facet(connection, "client", prefix, only=only(caller), limit=limit, offset=offset)
