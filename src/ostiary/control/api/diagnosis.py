"""`/api/v2/diagnosis`: what `ostiary doctor` asks a control plane about itself, its database and its way to providers."""

from typing import Annotated

from fastapi import APIRouter, Depends

from ostiary.control.certificates import EndpointCertificate, certificates
from ostiary.control.diagnosis import Diagnosis, diagnose, stored_of_replicas
from ostiary.control.identity import Person
from ostiary.control.providers import list_providers

from .deps import Control, ReadConnection, require_role
from .errors import ApiError

router = APIRouter(prefix="/api/v2/diagnosis", tags=["diagnosis"])

Admin = Annotated[Person, Depends(require_role("admin"))]


@router.get("")
async def get(_caller: Admin, control: Control, connection: ReadConnection) -> Diagnosis:
    """Clocks, versions, migrations, partitions, journals and room of the control plane that answers."""
    return await diagnose(control, connection)


@router.get("/stored")
async def stored(_caller: Admin, connection: ReadConnection) -> dict[str, int]:
    """By journal that a gateway reported last: the number of its last record that is in the database."""
    return await stored_of_replicas(connection)


@router.post("/certificates")
async def certificates_of_providers(_caller: Admin, control: Control) -> list[EndpointCertificate]:
    """Until when the certificates of enabled providers hold: makes a TLS connection to each, and sends nothing on it."""
    async with control.engine.connect() as connection:
        found = await list_providers(connection, control.vault)
    try:
        return await certificates(((one.name, one.base_url) for one in found if one.enabled), control.settings)
    except ValueError as exc:
        raise ApiError(409, "Providers cannot be called.", str(exc)) from None
