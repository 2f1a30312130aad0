"""`/api/v2/ai-gateway/storage`: how much room the record takes, and what becomes of old records."""

from typing import Annotated

from fastapi import APIRouter, Depends

from ostiary.control.identity import Person
from ostiary.control.store.storage import Storage, read_storage

from .deps import Control, ReadConnection, require_role

router = APIRouter(tags=["record"])


@router.get("/storage")
async def storage(
    _caller: Annotated[Person, Depends(require_role("admin", "auditor"))], control: Control, connection: ReadConnection
) -> Storage:
    """Sizes of tables, indexes and weekly partitions, how far back the record goes, and the last removal of old records.

    Partitions of weeks to come are empty: they are made four weeks ahead.
    """
    return await read_storage(connection, control.settings.retention)
