"""The audit log: who did what to which resource, from where, and what it was before and after.

Rules
- An entry is a row of the same transaction as the change it tells of: it is there exactly if the change is.
- No secret gets in: a `Secret` is stored masked, and anything that is not plain data is refused.
- Entries are only ever added and read.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from datetime import date, datetime
from typing import Any, Final, Literal, NamedTuple, Protocol

from sqlalchemy import ColumnElement, func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from ostiary.core.ids import new_id
from ostiary.core.secret import Secret

from .store.tables import audit_log

Action = Literal["create", "update", "delete", "revoke", "rotate", "test"]
ResourceType = Literal["ai_provider", "ai_provider_key", "gateway_key", "token", "user", "vault"]


class Actor(NamedTuple):
    """Who did it. `id` is None for what the control plane does by itself; usernames never equal such a name."""

    id: str | None
    name: str


SEED: Final = Actor(None, "seed")
BOOTSTRAP: Final = Actor(None, "bootstrap")


class Resource(NamedTuple):
    type: ResourceType
    id: str
    name: str = ""


class Origin(Protocol):
    """Where the request came from."""

    @property
    def source_ip(self) -> str: ...
    @property
    def request_id(self) -> str: ...


class _Local(NamedTuple):
    source_ip: str = ""
    request_id: str = ""


LOCAL: Final[Origin] = _Local()
"""The control plane itself, not a request."""


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One entry as it is read."""

    id: str
    at: datetime
    actor_id: str | None
    actor: str
    action: str
    resource_type: str
    resource_id: str
    resource_name: str
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    additional: dict[str, Any] | None
    source_ip: str
    request_id: str


@dataclass(frozen=True, slots=True)
class AuditFilter:
    """What to read; None takes all."""

    actor: str | None = None
    action: str | None = None
    resource_type: str | None = None
    resource: str | None = None
    """Id or name."""


async def record(
    conn: AsyncConnection,
    actor: Actor,
    action: Action,
    resource: Resource,
    *,
    before: object = None,
    after: object = None,
    additional: Mapping[str, object] | None = None,
    origin: Origin = LOCAL,
) -> None:
    """Add an entry to the transaction of `conn`. `before` and `after` are mappings or dataclasses.

    Raises `TypeError` for a value that is not plain data: nobody has said how to show it without its secrets.
    """
    await conn.execute(
        insert(audit_log).values(
            id=new_id(),
            actor_id=actor.id,
            actor=actor.name,
            action=action,
            resource_type=resource.type,
            resource_id=resource.id,
            resource_name=resource.name,
            before=plain(before),
            after=plain(after),
            additional=plain(additional),
            source_ip=origin.source_ip,
            request_id=origin.request_id,
        )
    )


def plain(value: object) -> Any:  # Any: JSON
    """`value` as JSON data with every `Secret` masked."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return str(value).replace("\x00", "\N{REPLACEMENT CHARACTER}")  # jsonb takes no NUL
    if isinstance(value, Secret):
        return value.masked
    if isinstance(value, datetime | date):
        return value.isoformat()
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(name): plain(member) for name, member in value.items()}
    if isinstance(value, list | tuple):
        return [plain(member) for member in value]
    raise TypeError(f"an audit entry cannot hold a {type(value).__name__}")


async def entries(
    conn: AsyncConnection, wanted: AuditFilter, *, limit: int, after_id: str | None = None
) -> tuple[int, list[AuditEntry]]:
    """How many entries fit, and up to `limit` of them, newest first, from behind `after_id` on."""
    conditions = _conditions(wanted)
    total = await conn.scalar(select(func.count()).select_from(audit_log).where(*conditions))
    if after_id is not None:
        conditions.append(audit_log.c.id < after_id)
    columns = [audit_log.c[name] for name in AuditEntry.__dataclass_fields__]
    rows = await conn.execute(select(*columns).where(*conditions).order_by(audit_log.c.id.desc()).limit(limit))
    return total or 0, [AuditEntry(**row) for row in rows.mappings()]


def _conditions(wanted: AuditFilter) -> list[ColumnElement[bool]]:
    found: list[ColumnElement[bool]] = []
    if wanted.actor is not None:
        found.append(audit_log.c.actor == wanted.actor)
    if wanted.action is not None:
        found.append(audit_log.c.action == wanted.action)
    if wanted.resource_type is not None:
        found.append(audit_log.c.resource_type == wanted.resource_type)
    if wanted.resource is not None:
        found.append((audit_log.c.resource_id == wanted.resource) | (audit_log.c.resource_name == wanted.resource))
    return found
