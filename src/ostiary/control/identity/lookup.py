"""Who a token is, or why it is refused."""

from dataclasses import dataclass
from typing import Any, Final, cast
from uuid import UUID

from sqlalchemy import ColumnElement, case, false, func, join, outerjoin, select
from sqlalchemy.ext.asyncio import AsyncConnection

from ostiary.control.audit import Actor
from ostiary.control.store.tables import tokens, users
from ostiary.core.identity import Identity, Refusal, Role
from ostiary.core.secret import Secret

from .revocations import NEWEST
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


_newest = NEWEST.subquery("newest_revocation")
# one statement sees one moment; the number is there also when no token is
_QUERY: Final = select(
    _newest.c.seq,
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
)


async def lookup(
    conn: AsyncConnection, *, token_sha256: bytes | None = None, key_id: str | None = None
) -> Identity | Refusal:
    """The identity behind a token's hash or its id; give exactly one of them. One indexed query."""
    found, _ = await lookup_numbered(conn, token_sha256=token_sha256, key_id=key_id)
    return found


async def lookup_numbered(
    conn: AsyncConnection, *, token_sha256: bytes | None = None, key_id: str | None = None
) -> tuple[Identity | Refusal, int]:
    """`lookup`, and the newest revocation that the answer knows of."""
    if (token_sha256 is None) == (key_id is None):
        raise ValueError("lookup takes either token_sha256 or key_id")
    matches: ColumnElement[bool]
    if token_sha256 is not None:
        matches = tokens.c.token_sha256 == token_sha256
    else:
        matches = tokens.c.id == key_id if key_id is not None and is_uuid(key_id) else false()
    person = join(tokens, users, users.c.id == tokens.c.user_id)
    row = (await conn.execute(_QUERY.select_from(outerjoin(_newest, person, matches)))).one()
    return _found(row), row.seq


def _found(row: Any) -> Identity | Refusal:  # Any: a Row of `_QUERY`
    if row.api_key_id is None:
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
