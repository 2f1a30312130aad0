"""What gateways told of themselves, as they told it last.

Rules
- A replica that has not been heard of for `STALE_SECONDS` is shown as stale; it may be down or cut off. After `KEPT` it
  is forgotten, and of more than `MAX_REPLICAS` the ones heard of last are kept.
- The database's clock decides: control planes may differ.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Final, Literal

from pydantic import Field
from sqlalchemy import Text, bindparam, case, func, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from .fleet_health import KeyOnReplica, ReplicaBreaker, ReplicaKey, key_health, replica_breaker, replica_key
from .tables import provider_revisions, replicas

STALE_SECONDS: Final = 30
"""Three reports that did not come."""
KEPT: Final = "1 day"
MAX_REPLICAS: Final = 1000

r = replicas.c


@dataclass(frozen=True, slots=True)
class Replica:
    """A gateway as it described itself last; `state` is `stale` when its reports have stopped coming."""

    replica_id: str
    state: Literal["live", "stale"]
    hostname: str
    mode: str
    build: str
    revision: int
    """Of the providers that its link holds; that of each worker stands with the worker."""
    workers: list[dict[str, Any]]
    keys: list[ReplicaKey]
    breakers: list[ReplicaBreaker]
    journals: list[dict[str, Any]]
    provider_errors: dict[str, str]
    clock_ahead_ms: Annotated[
        int | None,
        Field(description="By how much its clock is ahead of the server's; negative: behind. null: not known"),
    ]
    first_seen: datetime
    last_seen: datetime


@dataclass(frozen=True, slots=True)
class ReplicaPage:
    count: int
    revision: int
    """The newest one, which every live replica should serve."""
    replicas: list[Replica]


_PRUNE: Final = text(
    # what another report prunes at the same moment is left to it
    """
    DELETE FROM replicas WHERE replica_id IN (
        SELECT replica_id FROM replicas
        WHERE last_seen < now() - CAST(:kept AS text)::interval
           OR replica_id NOT IN (SELECT replica_id FROM replicas ORDER BY last_seen DESC, replica_id LIMIT :most)
        FOR UPDATE SKIP LOCKED
    )
    """
)


_STATE: Final = case(
    (r.last_seen < func.now() - text(f"interval '{STALE_SECONDS} seconds'"), "stale"), else_="live"
).label("state")
_KEYS_OF_PROVIDER: Final = func.jsonb_path_query_array(
    r.status,
    text("'$.keys[*] ? (@.provider == $name)'"),
    func.jsonb_build_object("name", bindparam("provider", type_=Text)),
).label("keys")


async def store_replica(connection: AsyncConnection, replica_id: str, **columns: Any) -> None:
    """Keep what a replica says of itself in place of what it said before, and forget those long gone."""
    statement = insert(replicas).values(replica_id=replica_id, **columns)
    changed = {name: statement.excluded[name] for name in columns} | {"last_seen": func.now()}
    await connection.execute(statement.on_conflict_do_update(index_elements=[r.replica_id], set_=changed))
    await forget_replicas(connection)


async def forget_replicas(connection: AsyncConnection) -> int:
    """Forget those long gone; gives how many."""
    return (await connection.execute(_PRUNE, {"kept": KEPT, "most": MAX_REPLICAS})).rowcount


async def list_replicas(connection: AsyncConnection) -> ReplicaPage:
    """All replicas, live ones first, by host name."""
    query = select(replicas, _STATE).order_by("state", r.hostname, r.replica_id).limit(MAX_REPLICAS)
    rows = (await connection.execute(query)).mappings().all()
    newest = await connection.scalar(select(func.coalesce(func.max(provider_revisions.c.revision), 0)))
    return ReplicaPage(len(rows), newest or 0, [_shape(dict(row)) for row in rows])


async def keys_of_provider(connection: AsyncConnection, provider: str) -> dict[str, list[KeyOnReplica]]:
    """Key id → how each replica that knows the key has found it, live ones first, by host name."""
    query = select(r.replica_id, r.hostname, _STATE, _KEYS_OF_PROVIDER).order_by("state", r.hostname, r.replica_id)
    found: dict[str, list[KeyOnReplica]] = {}
    for row in await connection.execute(query.limit(MAX_REPLICAS), {"provider": provider}):
        for said in row.keys:
            shown = KeyOnReplica(row.replica_id, row.hostname, row.state, **key_health(said))
            found.setdefault(said.get("key_id", ""), []).append(shown)
    return found


def _shape(row: dict[str, Any]) -> Replica:
    status = row.pop("status")
    return Replica(
        **row,
        workers=status.get("workers", []),
        keys=[replica_key(said) for said in status.get("keys", [])],
        breakers=[replica_breaker(said) for said in status.get("breakers", [])],
        journals=status.get("journals", []),
        provider_errors=status.get("provider_errors", {}),
        clock_ahead_ms=_clock_ahead_ms(status.get("clock_ahead_us")),
    )


def _clock_ahead_ms(said: Any) -> int | None:  # Any: a value of JSON
    return round(said / 1000) if isinstance(said, int) else None
