"""Tokens: made once, shown once, stored as SHA-256.

Rules
- `ost_` and 43 letters and digits: 256 random bits, and a double click selects all of it.
- Everybody manages their own tokens. Owners manage those of all, admins those of everybody but owners: a token of an
  owner in an admin's hand would make the admin an owner.
- Revoking is final, but for the bootstrap token, which each start makes valid again.
"""

import hashlib
import re
import secrets
import string
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Select, func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from ostiary.control import audit
from ostiary.control.api.errors import ApiError, FieldProblem
from ostiary.control.store.tables import tokens, users
from ostiary.core.ids import new_id
from ostiary.core.secret import Secret

from .revocations import note_revocation

if TYPE_CHECKING:
    from .lookup import Person
    from .users import User

_PREFIX: Final = "ost_"
_ALPHABET: Final = string.ascii_letters + string.digits
_RANDOM_CHARACTERS: Final = 43
_SHOWN: Final = len(_PREFIX) + 7

MAX_NAME: Final = 64
MAX_TOKENS: Final = 200
"""Usable tokens a person may have at a time."""
MAX_LIFETIME: Final = timedelta(days=3650)

_LIFETIME: Final = re.compile(r"([1-9][0-9]{0,9})([smhdw]?)")
_UNITS: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


@dataclass(frozen=True, slots=True)
class Token:
    """A token as it may be shown: nothing in it opens a door."""

    id: str
    name: str
    prefix: str
    """Its first characters; empty for one that was given as OSTIARY_BOOTSTRAP_TOKEN."""
    kind: str
    user_id: str
    username: str
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None


def new_token() -> Secret:
    return Secret(_PREFIX + "".join(secrets.choice(_ALPHABET) for _ in range(_RANDOM_CHARACTERS)))


def shown_prefix(token: Secret) -> str:
    """What may be shown of a token that `new_token` made: 41 of its 256 bits."""
    return token.reveal()[:_SHOWN]


def token_sha256(token: Secret, encoding: str = "utf-8") -> bytes:
    """The hash a token is found by. `encoding` is latin-1 for text that a header parser made of bytes."""
    text = token.reveal()
    try:
        raw = text.encode(encoding)
    except UnicodeEncodeError:
        raw = text.encode(errors="surrogatepass")
    return hashlib.sha256(raw).digest()


def expiry(lifetime: str | int | None, expires_at: datetime | None, now: datetime) -> datetime | None:
    """When a new token ends; None for never. Raises `ApiError` naming the field."""
    if lifetime is not None and expires_at is not None:
        raise _invalid("lifetime", "give either lifetime or expires_at")
    field = "expires_at"
    if lifetime is not None:
        field = "lifetime"
        parsed = _LIFETIME.fullmatch(str(lifetime))
        if parsed is None:
            raise _invalid(field, "must be seconds or a number with s, m, h, d or w behind it, e.g. 90d")
        seconds = int(parsed[1]) * _UNITS[parsed[2]]
        expires_at = now + timedelta(seconds=min(seconds, 2 * MAX_LIFETIME.total_seconds()))
    if expires_at is None:
        return None
    if expires_at.tzinfo is None:
        raise _invalid(field, "must say its time zone, e.g. 2030-01-31T12:00:00Z")
    if expires_at <= now:
        raise _invalid(field, "must lie in the future")
    if expires_at > now + MAX_LIFETIME:
        raise _invalid(field, f"may be at most {MAX_LIFETIME.days} days ahead; leave it out for no end")
    return expires_at.astimezone(UTC)


async def create_token(
    conn: AsyncConnection,
    caller: "Person",
    owner: "User",
    name: str,
    expires_at: datetime | None,
    origin: audit.Origin,
) -> tuple[Token, Secret]:
    """A new token of `owner`, made by `caller`; the secret is told here and never again. Raises `ApiError`."""
    _check_may_manage(caller, owner.id, owner.role)
    if not name or name != name.strip() or len(name) > MAX_NAME or not name.isprintable():
        raise _invalid("name", f"must be 1 to {MAX_NAME} printable characters without white space around them")
    # serialises the count below, and the user cannot be deleted or suspended meanwhile
    status = await conn.scalar(
        select(users.c.status).where(users.c.id == owner.id, ~users.c.deleted).with_for_update(key_share=True)
    )
    if status != "active":
        raise ApiError(409, f"User {owner.username!r} is suspended.", "Activate the user before giving out a token.")
    usable = await conn.scalar(
        select(func.count())
        .select_from(tokens)
        .where(
            tokens.c.user_id == owner.id,
            tokens.c.revoked_at.is_(None),
            or_(tokens.c.expires_at.is_(None), tokens.c.expires_at > func.now()),
        )
    )
    if (usable or 0) >= MAX_TOKENS:
        raise ApiError(409, f"User {owner.username!r} has {usable} tokens.", "Revoke some that are not needed.")
    secret = new_token()
    token = await insert_token(conn, owner.id, name, secret, "user", expires_at, prefix=shown_prefix(secret))
    await audit.record(conn, caller.actor, "create", resource(token), after=token, origin=origin)
    return token, secret


async def insert_token(
    conn: AsyncConnection,
    user_id: str,
    name: str,
    secret: Secret,
    kind: str,
    expires_at: datetime | None = None,
    *,
    prefix: str = "",
) -> Token:
    token_id = new_id()
    await conn.execute(
        insert(tokens).values(
            id=token_id,
            user_id=user_id,
            name=name,
            prefix=prefix,
            token_sha256=token_sha256(secret),
            kind=kind,
            expires_at=expires_at,
        )
    )
    return _token((await conn.execute(_select().where(tokens.c.id == token_id))).mappings().one())


async def list_tokens(
    conn: AsyncConnection, *, user_id: str | None, revoked: bool, limit: int, after_id: str | None
) -> list[Token]:
    """Tokens of one person, or of all, newest first."""
    query = _select().order_by(tokens.c.id.desc()).limit(limit)
    if user_id is not None:
        query = query.where(tokens.c.user_id == user_id)
    if not revoked:
        query = query.where(tokens.c.revoked_at.is_(None), ~users.c.deleted)
    if after_id is not None:
        query = query.where(tokens.c.id < after_id)
    return [_token(row) for row in (await conn.execute(query)).mappings()]


async def revoke_token(conn: AsyncConnection, caller: "Person", token_id: str, origin: audit.Origin) -> None:
    """End a token now. One that the caller may not manage does not exist for them. Raises `ApiError`."""
    query = _select().add_columns(users.c.role).where(tokens.c.id == token_id).with_for_update(of=tokens)
    row = (await conn.execute(query)).mappings().one_or_none()
    if row is None or not (row["user_id"] == caller.id or may_manage(caller, row["role"])):
        raise ApiError(404, "Token not found.", "GET /api/v2/tokens lists the ids of yours.")
    await revoke(conn, caller.actor, _token(row), origin)


async def revoke(conn: AsyncConnection, actor: audit.Actor, token: Token, origin: audit.Origin) -> None:
    """End a token, once."""
    if token.revoked_at is not None:
        return
    now = await conn.scalar(
        update(tokens).where(tokens.c.id == token.id).values(revoked_at=func.now()).returning(tokens.c.revoked_at)
    )
    after = replace(token, revoked_at=now)
    await note_revocation(conn, api_key_id=token.id)
    await audit.record(conn, actor, "revoke", resource(token), before=token, after=after, origin=origin)


async def find_by_hash(conn: AsyncConnection, sha256: bytes) -> Token | None:
    row = (await conn.execute(_select().where(tokens.c.token_sha256 == sha256))).mappings().one_or_none()
    return _token(row) if row is not None else None


async def bootstrap_tokens(conn: AsyncConnection, user_id: str) -> list[Token]:
    """All bootstrap tokens there ever were, locked."""
    query = _select().where(tokens.c.user_id == user_id, tokens.c.kind == "bootstrap").with_for_update(of=tokens)
    return [_token(row) for row in (await conn.execute(query)).mappings()]


def may_manage(caller: "Person", role: str) -> bool:
    """Whether `caller` may change people of that role, and their tokens."""
    return caller.role == "owner" or (caller.role == "admin" and role != "owner")


def resource(token: Token) -> audit.Resource:
    return audit.Resource("token", token.id, token.name)


def _check_may_manage(caller: "Person", user_id: str, role: str) -> None:
    if caller.id == user_id or may_manage(caller, role):
        return
    if caller.role == "admin":
        raise ApiError(403, "You may not manage an owner's tokens.", "It takes the role owner.")
    raise ApiError(403, "You may only manage your own tokens.", "Those of others take the role owner or admin.")


def _select() -> Select[Any]:  # Any: rows are read by name
    own = (tokens.c[name] for name in ("id", "name", "prefix", "kind", "user_id"))
    times = (tokens.c[name] for name in ("created_at", "expires_at", "revoked_at"))
    return select(*own, *times, users.c.username).join_from(tokens, users, users.c.id == tokens.c.user_id)


def _token(row: Any) -> Token:  # Any: a RowMapping, perhaps with more columns
    return Token(**{name: row[name] for name in Token.__dataclass_fields__})


def _invalid(field: str, detail: str) -> ApiError:
    return ApiError(400, "Invalid token request.", validations=[FieldProblem(field=field, detail=detail)])
