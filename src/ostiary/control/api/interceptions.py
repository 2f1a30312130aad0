"""`/api/v2/ai-gateway/interceptions`: single requests and what is recorded of them."""

from typing import Annotated

from fastapi import APIRouter, Query

from ostiary.control.store.interceptions import UnknownCursorError, get_interception, list_interceptions
from ostiary.control.store.shapes import InterceptionDetail, InterceptionPage

from .deps import CurrentUser, ReadConnection
from .errors import ApiError
from .reading import Limit, ReadFilters, invalid_cursor, only

router = APIRouter(tags=["record"])


@router.get("/interceptions")
async def list_all(
    caller: CurrentUser,
    connection: ReadConnection,
    filters: ReadFilters,
    limit: Limit = 100,
    after_id: Annotated[str | None, Query(description="Go on after this interception")] = None,
) -> InterceptionPage:
    """Interceptions, newest first. Owners and auditors see all, everyone else their own."""
    try:
        return await list_interceptions(
            connection, filters, me=caller.id, only=only(caller), limit=limit, after_id=after_id or None
        )
    except UnknownCursorError as exc:
        raise invalid_cursor("after_id") from exc


@router.get("/interceptions/{interception_id}")
async def get(interception_id: str, caller: CurrentUser, connection: ReadConnection) -> InterceptionDetail:
    """Everything recorded of one interception, with its decision trace."""
    found = await get_interception(connection, interception_id, only=only(caller))
    if found is None:
        raise ApiError(404, "Interception not found.", "There is none with this id, or it is somebody else's.")
    return found
