"""People and services that use Ostiary.

Rules
- A username is unique without regard to case and never changes: it names people in the audit log.
- Owners manage everybody. Admins manage everybody but owners, and make nobody an owner.
- There is always an active owner: the last one cannot be deleted, suspended or given another role, also when two
  owners try to do it to each other at once.
- Deleting is soft: records go on naming the person, their tokens end at once, the name is free again.
"""

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Final, get_args

from sqlalchemy import ColumnElement, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from ostiary.control import audit
from ostiary.control.api.errors import ApiError, FieldProblem
from ostiary.control.store.tables import users
from ostiary.core.identity import Role
from ostiary.core.ids import new_id

from .lookup import Person, is_uuid
from .revocations import note_revocation
from .tokens import may_manage

ROLES: Final[tuple[str, ...]] = get_args(Role)
STATUSES: Final = ("active", "suspended")
RESERVED: Final = frozenset({"me", "all", "seed", "bootstrap", "system", "ostiary"})
"""Words of the API and actors of the audit log."""

MAX_USERNAME: Final = 64
MAX_EMAIL: Final = 254
MAX_DISPLAY_NAME: Final = 128
_USERNAME: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_EMAIL: Final = re.compile(r"[^\s@]+@[^\s@]+")


@dataclass(frozen=True, slots=True)
class User:
    id: str
    username: str
    email: str
    display_name: str
    role: str
    status: str
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class UserChanges:
    """What to change; None leaves as it is."""

    email: str | None = None
    display_name: str | None = None
    role: str | None = None
    status: str | None = None

    def present(self) -> dict[str, str]:
        members = {name: getattr(self, name) for name in UserChanges.__dataclass_fields__}
        return {name: value for name, value in members.items() if value is not None}


_COLUMNS: Final = tuple(users.c[name] for name in User.__dataclass_fields__)


async def create_user(
    conn: AsyncConnection, caller: Person, username: str, values: UserChanges, origin: audit.Origin
) -> User:
    """A new person; without a role a member. Raises `ApiError`."""
    problems = _username_problems(username) + _problems(values)
    if problems:
        raise ApiError(400, "Invalid user request.", validations=problems)
    _check_may_give(caller, values.role or "member")
    user = await insert_user(conn, username, {"role": "member", **values.present()})
    if user is None:
        raise ApiError(409, f"User {username!r} already exists.", "Usernames are unique without regard to case.")
    await audit.record(conn, caller.actor, "create", resource(user), after=user, origin=origin)
    return user


async def insert_user(conn: AsyncConnection, username: str, values: dict[str, str]) -> User | None:
    """The new person; None when the name is taken."""
    values = {"id": new_id(), "username": username, **values}
    row = (await conn.execute(insert(users).values(values).on_conflict_do_nothing().returning(*_COLUMNS))).mappings()
    found = row.one_or_none()
    return User(**found) if found is not None else None


async def list_users(conn: AsyncConnection, *, limit: int, after_id: str | None) -> list[User]:
    """People who are not deleted, oldest first."""
    query = select(*_COLUMNS).where(~users.c.deleted).order_by(users.c.id).limit(limit)
    if after_id is not None:
        query = query.where(users.c.id > after_id)
    return [User(**row) for row in (await conn.execute(query)).mappings()]


async def find_user(conn: AsyncConnection, id_or_name: str, *, lock: bool = False) -> User:
    """The person of that id or username. Raises `ApiError` 400 or 404."""
    matches: ColumnElement[bool]
    if is_uuid(id_or_name):
        matches = users.c.id == id_or_name
    elif len(id_or_name) <= MAX_USERNAME and _USERNAME.fullmatch(id_or_name):
        matches = func.lower(users.c.username) == id_or_name.lower()
    else:
        raise ApiError(400, "Invalid user id or name.", f"It must be a UUID or a username: {_USERNAME_RULE}.")
    query = select(*_COLUMNS).where(matches, ~users.c.deleted)
    row = (await conn.execute(query.with_for_update(key_share=True) if lock else query)).mappings().one_or_none()
    if row is None:
        raise ApiError(404, "User not found.", "`ostiary users list` or GET /api/v2/users lists them.")
    return User(**row)


async def update_user(
    conn: AsyncConnection, caller: Person, id_or_name: str, changes: UserChanges, origin: audit.Origin
) -> User:
    """Change a person. Raises `ApiError`."""
    wanted = changes.present()
    if not wanted:
        allowed = ", ".join(UserChanges.__dataclass_fields__)
        raise ApiError(400, "Invalid user request.", f"Give at least one field to change: {allowed}.")
    if problems := _problems(changes):
        raise ApiError(400, "Invalid user request.", validations=problems)
    await _lock_owners(conn)
    before = await find_user(conn, id_or_name, lock=True)
    _check_may_change(caller, before)
    _check_may_give(caller, wanted.get("role", before.role))
    if wanted.get("role", "owner") != "owner" or wanted.get("status", "active") != "active":
        await _check_not_last_owner(conn, before)
    if all(getattr(before, name) == value for name, value in wanted.items()):
        return before
    row = await conn.execute(
        update(users).where(users.c.id == before.id).values(updated_at=func.now(), **wanted).returning(*_COLUMNS)
    )
    after = User(**row.mappings().one())
    if (after.role, after.status) != (before.role, before.status):
        await note_revocation(conn, owner_id=after.id)
    await audit.record(conn, caller.actor, "update", resource(after), before=before, after=after, origin=origin)
    return after


async def delete_user(conn: AsyncConnection, caller: Person, id_or_name: str, origin: audit.Origin) -> None:
    """Delete a person softly. Raises `ApiError`."""
    await _lock_owners(conn)
    user = await find_user(conn, id_or_name, lock=True)
    _check_may_change(caller, user)
    await _check_not_last_owner(conn, user)
    await conn.execute(update(users).where(users.c.id == user.id).values(deleted=True, updated_at=func.now()))
    await note_revocation(conn, owner_id=user.id)
    await audit.record(conn, caller.actor, "delete", resource(user), before=user, origin=origin)


def resource(user: User) -> audit.Resource:
    return audit.Resource("user", user.id, user.username)


_USERNAME_RULE: Final = (
    f"1 to {MAX_USERNAME} letters, digits, dots, hyphens and underscores, beginning and ending with a letter or digit"
)


async def _lock_owners(conn: AsyncConnection) -> None:
    """Changes of owners happen one after the other; in id order, so that two never wait for each other."""
    await conn.execute(
        select(users.c.id)
        .where(users.c.role == "owner", ~users.c.deleted)
        .order_by(users.c.id)
        .with_for_update(key_share=True)
    )


async def _check_not_last_owner(conn: AsyncConnection, user: User) -> None:
    if user.role != "owner" or user.status != "active":
        return
    others = await conn.scalar(
        select(func.count())
        .select_from(users)
        .where(users.c.role == "owner", users.c.status == "active", ~users.c.deleted, users.c.id != user.id)
    )
    if not others:
        raise ApiError(
            409,
            f"User {user.username!r} is the last active owner.",
            "Make somebody else an owner first: without one nobody could administer Ostiary.",
        )


def _check_may_change(caller: Person, user: User) -> None:
    if not may_manage(caller, user.role):
        raise ApiError(403, f"You may not change user {user.username!r}.", "Owners are changed by owners only.")


def _check_may_give(caller: Person, role: str) -> None:
    if role == "owner" and caller.role != "owner":
        raise ApiError(403, "You may not make somebody an owner.", "It takes the role owner.")


def _username_problems(username: str) -> list[FieldProblem]:
    if not username:
        return [FieldProblem(field="username", detail="is required")]
    if len(username) > MAX_USERNAME or not _USERNAME.fullmatch(username) or is_uuid(username):
        return [FieldProblem(field="username", detail=f"must be {_USERNAME_RULE}, and not a UUID")]
    if username.lower() in RESERVED:
        return [FieldProblem(field="username", detail=f"is reserved; so are: {', '.join(sorted(RESERVED))}")]
    return []


def _problems(values: UserChanges) -> list[FieldProblem]:
    found: dict[str, str] = {}
    if values.email and (
        len(values.email) > MAX_EMAIL or not values.email.isprintable() or not _EMAIL.fullmatch(values.email)
    ):
        found["email"] = f"must be an address like name@example.com of at most {MAX_EMAIL} characters, or empty"
    shown = values.display_name or ""
    if len(shown) > MAX_DISPLAY_NAME or shown != shown.strip() or not shown.isprintable():
        found["display_name"] = f"must be at most {MAX_DISPLAY_NAME} printable characters, or empty"
    if values.role is not None and values.role not in ROLES:
        found["role"] = f"must be one of {', '.join(ROLES)}"
    if values.status is not None and values.status not in STATUSES:
        found["status"] = f"must be one of {', '.join(STATUSES)}"
    return [FieldProblem(field=field, detail=detail) for field, detail in found.items()]
