"""`/api/v2/ai-gateway/keys`: by which gateways that run elsewhere are known (reference C.8). For owners only."""

from dataclasses import asdict
from datetime import datetime
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, status
from pydantic import BaseModel, ConfigDict

from ostiary.control.gateway_keys import GatewayKey, create_key, delete_key, list_keys
from ostiary.control.identity import Person

from .deps import Control, Engine, ReadConnection, RequestOrigin, require_role
from .errors import ApiError

router = APIRouter(prefix="/keys", tags=["gateway keys"])

Owner = Annotated[Person, Depends(require_role())]


class CreateKey(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str


class CreatedKey(BaseModel):
    id: str
    name: str
    key: str
    """The key itself: shown here and never again."""
    key_prefix: str
    created_at: datetime


@router.post("", status_code=status.HTTP_201_CREATED)
async def create(body: CreateKey, caller: Owner, engine: Engine, origin: RequestOrigin) -> CreatedKey:
    """Make a key. Replicas of one deployment may share it."""
    async with engine.begin() as conn:
        key, secret = await create_key(conn, caller, body.name, origin)
    shown = {name: value for name, value in asdict(key).items() if name in CreatedKey.model_fields}
    return CreatedKey(**shown, key=secret.reveal())


@router.get("")
async def list_all(_caller: Owner, conn: ReadConnection) -> list[GatewayKey]:
    """All keys by name, and when a gateway last showed each."""
    return await list_keys(conn)


@router.delete("/{key_id}", status_code=status.HTTP_204_NO_CONTENT)
async def delete(key_id: str, caller: Owner, control: Control, origin: RequestOrigin) -> None:
    """End a key now. Gateways that use it finish what they have begun and end."""
    try:
        wanted = str(UUID(key_id))
    except ValueError:
        raise ApiError(400, "Invalid key ID.", "GET /api/v2/ai-gateway/keys lists the ids.") from None
    async with control.engine.begin() as conn:
        await delete_key(conn, caller, wanted, origin)
    control.gateway_calls.end(wanted)
