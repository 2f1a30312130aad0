"""`/api/v2/ai-gateway/replicas`: the gateways and how they are."""

from typing import Annotated

from fastapi import APIRouter, Depends

from ostiary.control.identity import Person
from ostiary.control.store.replicas import ReplicaPage, list_replicas

from .deps import ReadConnection, require_role

router = APIRouter(tags=["gateways"])


@router.get("/replicas")
async def list_all(
    _caller: Annotated[Person, Depends(require_role("admin", "auditor"))], connection: ReadConnection
) -> ReplicaPage:
    """Every gateway that reported within the last day: its workers, what they serve, what waits to be shipped.

    And how it has found the keys of its providers, with the history of each since the gateway started, and the circuit
    breakers that have been open.
    """
    return await list_replicas(connection)
