"""`/api/v2/users`: the people and services that may use Ostiary."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, Query, status
from pydantic import BaseModel, ConfigDict

from ostiary.control.identity import Person
from ostiary.control.identity.users import (
    User,
    UserChanges,
    create_user,
    delete_user,
    find_user,
    list_users,
    update_user,
)

from .deps import CurrentUser, Engine, ReadConnection, RequestOrigin, require_role
from .errors import ApiError

router = APIRouter(prefix="/api/v2/users", tags=["users"])

Reader = Annotated[Person, Depends(require_role("admin", "auditor"))]
Writer = Annotated[Person, Depends(require_role("admin"))]


class _Writable(BaseModel):
    model_config = ConfigDict(extra="forbid")

    email: str | None = None
    display_name: str | None = None
    role: str | None = None

    def changes(self) -> UserChanges:
        return UserChanges(**self.model_dump(include=set(UserChanges.__dataclass_fields__)))


class CreateUser(_Writable):
    username: str


class UpdateUser(_Writable):
    status: str | None = None
    """`active` or `suspended`: a suspended person's tokens are refused."""


@router.post("", status_code=status.HTTP_201_CREATED)
async def create(body: CreateUser, caller: Writer, engine: Engine, origin: RequestOrigin) -> User:
    """Add a person. Owners add anybody, admins anybody but owners; without a role they are a member."""
    async with engine.begin() as conn:
        return await create_user(conn, caller, body.username, body.changes(), origin)


@router.get("")
async def list_all(
    _caller: Reader,
    conn: ReadConnection,
    limit: Annotated[int, Query(ge=1, le=1000)] = 1000,
    after_id: UUID | None = None,
) -> list[User]:
    """The people there are, oldest first, from behind the row `after_id` on."""
    return await list_users(conn, limit=limit, after_id=str(after_id) if after_id else None)


@router.get("/{id_or_name}")
async def get(id_or_name: str, caller: CurrentUser, conn: ReadConnection) -> User:
    """One person by id or username; `me` is the caller. Members see themselves only."""
    if caller.role == "member" and id_or_name.lower() not in ("me", caller.id, caller.username.lower()):
        raise ApiError(403, "You may only see yourself.", "Ask for /api/v2/users/me.")
    return await find_user(conn, _self(id_or_name, caller))


@router.patch("/{id_or_name}")
async def update(id_or_name: str, body: UpdateUser, caller: Writer, engine: Engine, origin: RequestOrigin) -> User:
    """Change a person's email, display name, role or status."""
    async with engine.begin() as conn:
        return await update_user(conn, caller, _self(id_or_name, caller), body.changes(), origin)


@router.delete("/{id_or_name}", status_code=status.HTTP_204_NO_CONTENT)
async def delete(id_or_name: str, caller: Writer, engine: Engine, origin: RequestOrigin) -> None:
    """Delete a person. Their tokens end, their records stay."""
    async with engine.begin() as conn:
        await delete_user(conn, caller, _self(id_or_name, caller), origin)


def _self(id_or_name: str, caller: Person) -> str:
    return caller.id if id_or_name == "me" else id_or_name
