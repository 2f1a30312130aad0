"""`/api/v2/ai-gateway/sessions`: what belongs together, as threads and the model's actions (reference G.1)."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Path, Query

from ostiary.control.store.interceptions import UnknownCursorError
from ostiary.control.store.sessions import get_session, list_sessions
from ostiary.control.store.shapes import SessionDetail, SessionPage

from .deps import CurrentUser, ReadConnection
from .errors import ApiError, FieldProblem
from .reading import NO_NUL, Limit, Offset, ReadFilters, invalid_cursor, only

router = APIRouter(tags=["record"])


@router.get("/sessions")
async def list_all(
    caller: CurrentUser,
    connection: ReadConnection,
    filters: ReadFilters,
    limit: Limit = 100,
    offset: Offset = 0,
    after_session_id: Annotated[
        str | None, Query(pattern=NO_NUL, description="Go on after this session; not with offset")
    ] = None,
    after_initiator_id: Annotated[
        UUID | None,
        Query(
            description="Whose session after_session_id is: two people's may have one id, and without it some may be missed"
        ),
    ] = None,
) -> SessionPage:
    """Sessions of which something has ended, the one with the newest prompt first."""
    if after_session_id and offset:
        problem = FieldProblem(field="offset", detail="must not be given beside after_session_id")
        raise ApiError(400, "Invalid pagination cursor.", validations=[problem])
    try:
        return await list_sessions(
            connection,
            filters,
            me=caller.id,
            only=only(caller),
            limit=limit,
            offset=offset,
            after_session_id=after_session_id or None,
            after_initiator_id=str(after_initiator_id) if after_initiator_id else None,
        )
    except UnknownCursorError as exc:
        raise invalid_cursor("after_session_id") from exc


@router.get("/sessions/{session_id:path}")
async def get(
    session_id: Annotated[str, Path(pattern=NO_NUL)],
    caller: CurrentUser,
    connection: ReadConnection,
    limit: Annotated[int, Query(ge=1, le=200, description="Threads of a page")] = 50,
    initiator: Annotated[
        str,
        Query(
            pattern=NO_NUL,
            max_length=256,
            description="Whose, where two people's sessions have that id: an id, a username or `me`; else the one active last",
        ),
    ] = "",
    after_id: Annotated[str | None, Query(description="Threads after that of this interception")] = None,
    before_id: Annotated[str | None, Query(description="Threads before that of this interception")] = None,
) -> SessionDetail:
    """A session and a page of its threads, oldest first."""
    try:
        found = await get_session(
            connection,
            session_id,
            me=caller.id,
            only=only(caller),
            limit=limit,
            initiator=initiator,
            after_id=after_id or None,
            before_id=before_id or None,
        )
    except UnknownCursorError as exc:
        raise invalid_cursor("after_id" if exc.args[0] == after_id else "before_id") from exc
    if found is None:
        raise ApiError(404, "Session not found.", "There is none with this id, or it is somebody else's.")
    return found
