"""`/api/v2/audit`: who did what, for owners and auditors."""

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel

from ostiary.control.audit import AuditEntry, AuditFilter, entries
from ostiary.control.identity import Person

from .deps import ReadConnection, require_role
from .reading import NO_NUL

router = APIRouter(prefix="/api/v2/audit", tags=["audit"])

Reader = Annotated[Person, Depends(require_role("auditor"))]


def _text(description: str) -> Any:  # Any: what FastAPI's parameter functions give
    """A filter."""
    return Query(pattern=NO_NUL, max_length=256, description=description)


class AuditPage(BaseModel):
    count: int
    """How many entries fit the filters, on all pages."""
    results: list[AuditEntry]


@router.get("")
async def list_entries(
    _caller: Reader,
    conn: ReadConnection,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    after_id: UUID | None = None,
    actor: Annotated[str | None, _text("A username, or `seed` or `bootstrap`.")] = None,
    action: Annotated[str | None, _text("create, update, delete, revoke or rotate.")] = None,
    resource_type: Annotated[str | None, _text("ai_provider, ai_provider_key, user, token ...")] = None,
    resource: Annotated[str | None, _text("Id or name of what was changed.")] = None,
) -> AuditPage:
    """Entries, newest first, from behind the row `after_id` on."""
    wanted = AuditFilter(actor=actor, action=action, resource_type=resource_type, resource=resource)
    count, found = await entries(conn, wanted, limit=limit, after_id=str(after_id) if after_id else None)
    return AuditPage(count=count, results=found)
