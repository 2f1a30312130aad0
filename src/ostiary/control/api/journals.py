"""`/api/v2/ai-gateway/journals`: how far each journal is stored, for reconciliation (design §8)."""

from typing import Annotated

from fastapi import APIRouter, Depends

from ostiary.control.identity import Person
from ostiary.control.identity.lookup import is_uuid
from ostiary.control.store.journals import get_journal, list_journals
from ostiary.control.store.shapes import JournalDetail, JournalPage

from .deps import ReadConnection, require_role
from .errors import ApiError
from .reading import Limit, Offset

router = APIRouter(tags=["record"])

Auditor = Annotated[Person, Depends(require_role("auditor"))]


@router.get("/journals")
async def list_all(_caller: Auditor, connection: ReadConnection, limit: Limit = 100, offset: Offset = 0) -> JournalPage:
    """Journals, the one that grew last first. Of each, `acked_seq` = `stored` + `duplicate` + `rejected`."""
    return await list_journals(connection, limit=limit, offset=offset)


@router.get("/journals/{journal_id}")
async def get(journal_id: str, _caller: Auditor, connection: ReadConnection) -> JournalDetail:
    """One journal, and which of its frames could not be stored."""
    found = await get_journal(connection, journal_id) if is_uuid(journal_id) else None
    if found is None:
        raise ApiError(404, "Journal not found.", "Nothing of a journal with this id has been delivered.")
    return found
