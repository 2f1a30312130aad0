"""`/api/v2/vault`: the keys that encrypt at rest, by id, and their rotation."""

from typing import Annotated

from fastapi import APIRouter, Depends

from ostiary.control.identity import Person
from ostiary.control.vault import RotationReport, VaultKeyStatus, key_status, rotate

from .deps import Control, ReadConnection, RequestOrigin, require_role

router = APIRouter(prefix="/api/v2/vault", tags=["vault"])


@router.get("")
async def get_status(
    _caller: Annotated[Person, Depends(require_role("admin", "auditor"))], control: Control, conn: ReadConnection
) -> list[VaultKeyStatus]:
    """Every key of the keyring and of the database, and how many values it encrypts. The encrypting one is first."""
    return await key_status(conn, control.vault)


@router.post("/rotate")
async def rotate_keys(
    caller: Annotated[Person, Depends(require_role())], control: Control, origin: RequestOrigin
) -> RotationReport:
    """Encrypt every stored secret under the first key of OSTIARY_ENCRYPTION_KEYS. Every control plane must have it."""
    return await rotate(control.engine, control.vault, caller.actor, origin)
