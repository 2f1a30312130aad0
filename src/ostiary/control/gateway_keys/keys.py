"""Gateway keys as rows: made once, shown once, stored as SHA-256 (reference C.8).

Rules
- 43 letters and digits, 256 random bits; the first 11 are shown later on, and no two keys begin alike.
- A key has no end and is not changed: it is deleted, and its name is free again.
"""

import hashlib
import re
import secrets
import string
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import delete, func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from ostiary.control import audit
from ostiary.control.api.errors import ApiError, FieldProblem
from ostiary.control.identity import Person
from ostiary.control.store.tables import ai_gateway_keys
from ostiary.core.ids import new_id
from ostiary.core.secret import Secret

LENGTH: Final = 43
SHOWN: Final = 11
MAX_NAME: Final = 64
MAX_KEYS: Final = 1000
HEARTBEAT_SECONDS: Final = 60

_ALPHABET: Final = string.ascii_letters + string.digits
_NAME: Final = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_KEY: Final = re.compile(rf"[A-Za-z0-9]{{{LENGTH}}}")


@dataclass(frozen=True, slots=True)
class GatewayKey:
    """A key as it may be shown: nothing in it opens a door."""

    id: str
    name: str
    key_prefix: str
    created_at: datetime
    last_heartbeat_at: datetime | None


async def create_key(
    conn: AsyncConnection, caller: Person, name: str, origin: audit.Origin
) -> tuple[GatewayKey, Secret]:
    """A new key and its secret. Raises `ApiError`."""
    if len(name) > MAX_NAME or not _NAME.fullmatch(name):
        detail = f"Must be {MAX_NAME} characters or fewer: lowercase letters, numbers, and single hyphens between them."
        raise ApiError(400, "Invalid key name.", detail, [FieldProblem(field="name", detail=detail)])
    number = await conn.scalar(select(func.count()).select_from(ai_gateway_keys))
    if (number or 0) >= MAX_KEYS:
        raise ApiError(409, f"There are {number} gateway keys.", "Delete some that are not needed.")
    secret = Secret("".join(secrets.choice(_ALPHABET) for _ in range(LENGTH)))
    values = {
        "id": new_id(),
        "name": name,
        "key_prefix": secret.reveal()[:SHOWN],
        "key_sha256": _sha256(secret),
    }
    try:
        async with conn.begin_nested():
            row = (await conn.execute(insert(ai_gateway_keys).values(values).returning(*_shown()))).mappings().one()
    except IntegrityError as exc:
        if "ai_gateway_keys_name" not in str(exc.orig):
            raise
        detail = "Another gateway key has this name: choose another, or delete that one first."
        raise ApiError(400, "Key name must be unique.", detail, [FieldProblem(field="name", detail=detail)]) from None
    key = GatewayKey(**row)
    await audit.record(conn, caller.actor, "create", _resource(key), after=key, origin=origin)
    return key, secret


async def list_keys(conn: AsyncConnection) -> list[GatewayKey]:
    """All keys, by name."""
    rows = (await conn.execute(select(*_shown()))).mappings()
    return sorted((GatewayKey(**row) for row in rows), key=lambda key: key.name)


async def delete_key(conn: AsyncConnection, caller: Person, key_id: str, origin: audit.Origin) -> None:
    """End a key for good. Raises `ApiError`."""
    statement = delete(ai_gateway_keys).where(ai_gateway_keys.c.id == key_id).returning(*_shown())
    row = (await conn.execute(statement)).mappings().one_or_none()
    if row is None:
        raise ApiError(404, "Gateway key not found.", "GET /api/v2/ai-gateway/keys lists the ids.")
    key = GatewayKey(**row)
    await audit.record(conn, caller.actor, "delete", _resource(key), before=key, origin=origin)


async def find_key(conn: AsyncConnection, secret: Secret) -> str | None:
    """The id of the key that a gateway sent; None for what is none."""
    if not _KEY.fullmatch(secret.reveal()):
        return None
    found: str | None = await conn.scalar(
        select(ai_gateway_keys.c.id).where(ai_gateway_keys.c.key_sha256 == _sha256(secret))
    )
    return found


async def key_exists(conn: AsyncConnection, key_id: str) -> bool:
    return bool(await conn.scalar(select(func.count()).where(ai_gateway_keys.c.id == key_id)))


async def beat(conn: AsyncConnection, key_id: str) -> None:
    """Note that a gateway with this key is there, at most once in `HEARTBEAT_SECONDS`, whoever else notes it.

    One noted in the future is from before the clock was set back.
    """
    last = ai_gateway_keys.c.last_heartbeat_at
    some_time_ago = func.now() - func.make_interval(0, 0, 0, 0, 0, 0, HEARTBEAT_SECONDS)
    due = or_(last.is_(None), last < some_time_ago, last > func.now())
    await conn.execute(
        update(ai_gateway_keys).where(ai_gateway_keys.c.id == key_id, due).values(last_heartbeat_at=func.now())
    )


def _shown() -> list[Any]:  # Any: columns of different types
    return [ai_gateway_keys.c[name] for name in GatewayKey.__dataclass_fields__]


def _sha256(secret: Secret) -> bytes:
    return hashlib.sha256(secret.reveal().encode()).digest()


def _resource(key: GatewayKey) -> audit.Resource:
    return audit.Resource("gateway_key", key.id, key.name)
