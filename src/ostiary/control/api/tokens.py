"""`/api/v2/tokens`: what people and services authenticate with. A token is told once, when it is made."""

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query, status
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.ext.asyncio import AsyncConnection

from ostiary.control.identity import Person
from ostiary.control.identity.tokens import Token, create_token, expiry, list_tokens, revoke_token
from ostiary.control.identity.users import find_user

from .deps import CurrentUser, Engine, ReadConnection, RequestOrigin
from .errors import ApiError

router = APIRouter(prefix="/api/v2/tokens", tags=["tokens"])


class CreateToken(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str
    user: str = "me"
    """Id or username of its owner; without it the caller."""
    lifetime: int | str | None = Field(default=None, examples=["90d", 3600])
    """Seconds, or a number with s, m, h, d or w behind it."""
    expires_at: datetime | None = None
    """Without an end the token is good until it is revoked."""


class TokenInfo(BaseModel):
    """A token without the token."""

    id: str
    name: str
    prefix: str
    kind: str
    user_id: str
    username: str
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None


class CreatedToken(TokenInfo):
    token: str
    """The token itself: shown here and never again."""


@router.post("", status_code=status.HTTP_201_CREATED)
async def create(body: CreateToken, caller: CurrentUser, engine: Engine, origin: RequestOrigin) -> CreatedToken:
    """Make a token, for oneself or, as an owner or admin, for somebody else."""
    expires_at = expiry(body.lifetime, body.expires_at, datetime.now(UTC))
    async with engine.begin() as conn:
        owner = await find_user(conn, caller.id if body.user == "me" else body.user)
        token, secret = await create_token(conn, caller, owner, body.name, expires_at, origin)
    return CreatedToken(**asdict(token), token=secret.reveal())


@router.get("")
async def list_all(
    caller: CurrentUser,
    conn: ReadConnection,
    user: Annotated[str, Query(description="Whose: an id, a username, `me`, or `all`.")] = "me",
    revoked: Annotated[bool, Query(description="Also those that are revoked.")] = False,
    limit: Annotated[int, Query(ge=1, le=1000)] = 1000,
    after_id: UUID | None = None,
) -> list[TokenInfo]:
    """Tokens, newest first, from behind the row `after_id` on. Members see their own."""
    found = await list_tokens(
        conn,
        user_id=await _whose(conn, caller, user),
        revoked=revoked,
        limit=limit,
        after_id=str(after_id) if after_id else None,
    )
    return [_info(token) for token in found]


@router.delete("/{token_id}", status_code=status.HTTP_204_NO_CONTENT)
async def revoke(token_id: UUID, caller: CurrentUser, engine: Engine, origin: RequestOrigin) -> None:
    """End a token now."""
    async with engine.begin() as conn:
        await revoke_token(conn, caller, str(token_id), origin)


async def _whose(conn: AsyncConnection, caller: Person, user: str) -> str | None:
    if user == "me":
        return caller.id
    if caller.role == "member" and user.lower() not in (caller.id, caller.username.lower()):
        raise ApiError(403, "You may only see your own tokens.", "Leave `user` out.")
    return None if user == "all" else (await find_user(conn, user)).id


def _info(token: Token) -> TokenInfo:
    return TokenInfo(**asdict(token))
