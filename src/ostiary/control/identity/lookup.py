"""Who a token is, or why it is refused."""

from dataclasses import dataclass
from typing import Final, cast
from uuid import UUID

from sqlalchemy import ColumnElement, and_, case, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from ostiary.control.audit import Actor
from ostiary.control.store.tables import tokens, users
from ostiary.core.identity import Identity, Refusal, Role
from ostiary.core.secret import Secret

from .tokens import token_sha256 as sha256_of


@dataclass(frozen=True, slots=True)
class Person:
    """The caller of a REST request."""

    id: str
    username: str
    email: str
    role: Role
    token_id: str

    @property
    def actor(self) -> Actor:
        return Actor(self.id, self.username)


_QUERY: Final = select(
    tokens.c.id.label("api_key_id"),
    users.c.id.label("owner_id"),
    users.c.username,
    users.c.email,
    users.c.role,
    func.extract("epoch", tokens.c.expires_at).label("expires_at"),
    case(
        (tokens.c.revoked_at.is_not(None), Refusal.REVOKED.value),
        (tokens.c.expires_at <= func.now(), Refusal.EXPIRED.value),
        (users.c.deleted, Refusal.DELETED.value),
        (users.c.status != "active", Refusal.SUSPENDED.value),
        else_="",
    ).label("refusal"),
).join_from(tokens, users, and_(users.c.id == tokens.c.user_id))


async def lookup(
    conn: AsyncConnection, *, token_sha256: bytes | None = None, key_id: str | None = None
) -> Identity | Refusal:
    """The identity behind a token's hash or its id; give exactly one of them. One indexed query."""
    if (token_sha256 is None) == (key_id is None):
        raise ValueError("lookup takes either token_sha256 or key_id")
    found: ColumnElement[bool]
    if token_sha256 is not None:
        found = tokens.c.token_sha256 == token_sha256
    elif key_id is not None and is_uuid(key_id):
        found = tokens.c.id == key_id
    else:
        return Refusal.UNKNOWN
    row = (await conn.execute(_QUERY.where(found))).one_or_none()
    if row is None:
        return Refusal.UNKNOWN
    if row.refusal:
        return Refusal(row.refusal)
    return Identity(
        owner_id=row.owner_id,
        api_key_id=row.api_key_id,
        username=row.username,
        email=row.email,
        role=cast("Role", row.role),  # a CHECK of the table
        expires_at=int(row.expires_at or 0),
    )


async def authenticate(conn: AsyncConnection, token: Secret) -> Person | None:
    """The person behind a token as a header gave it, one character a byte; None when it does not open the door."""
    found = await lookup(conn, token_sha256=sha256_of(token, encoding="latin-1"))
    if isinstance(found, Refusal):
        return None
    return Person(found.owner_id, found.username, found.email, found.role, found.api_key_id)


def is_uuid(text: str) -> bool:
    """Whether `text` is a UUID in its usual form."""
    try:
        return str(UUID(text)) == text.lower()
    except ValueError:
        return False
