"""`/api/v2/ai/providers/{idOrName}/keys`: how the keys of one provider fare on each gateway."""

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Depends
from pydantic import Field

from ostiary.control.identity import Person
from ostiary.control.providers import get_provider
from ostiary.control.store.fleet_health import KeyOnReplica
from ostiary.control.store.replicas import keys_of_provider

from .deps import Control, ReadConnection, require_role

router = APIRouter(prefix="/api/v2/ai/providers", tags=["providers"])


@dataclass(frozen=True, slots=True)
class PooledKey:
    """A key of a provider's pool."""

    position: Annotated[int, Field(description="From 1, in the order of failover")]
    id: str
    masked: str
    created_at: datetime
    replicas: Annotated[
        list[KeyOnReplica],
        Field(
            description="What each gateway has found that serves it, live ones first; empty when none has told of it yet"
        ),
    ]


@dataclass(frozen=True, slots=True)
class ProviderKeys:
    """The key pool of a provider."""

    provider: str
    enabled: Annotated[bool, Field(description="Gateways know only the keys of enabled providers")]
    keys: list[PooledKey]


@router.get("/{id_or_name}/keys")
async def list_keys(
    id_or_name: str,
    _caller: Annotated[Person, Depends(require_role("admin", "auditor"))],
    control: Control,
    connection: ReadConnection,
) -> ProviderKeys:
    """The provider's keys in the order of failover, masked, and for each gateway which are usable, cooling or suspect.

    Gateways tell of a change within about a second.
    """
    provider = await get_provider(connection, control.vault, id_or_name)
    found = await keys_of_provider(connection, provider.name)
    keys = [
        PooledKey(position, key.id, key.masked, key.created_at, found.get(key.id, []))
        for position, key in enumerate(provider.api_keys, start=1)
    ]
    return ProviderKeys(provider.name, provider.enabled, keys)
