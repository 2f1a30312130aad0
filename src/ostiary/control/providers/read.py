"""The full set of providers as gateways serve it. What is read here holds keys in clear: it is never logged."""

from typing import Any, Final

import structlog
from sqlalchemy import RowMapping, and_, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from ostiary.control.store.tables import ai_provider_keys, ai_providers, provider_revisions
from ostiary.control.vault import Sealed, Vault
from ostiary.core.providers import ProviderKey, ProviderSpec

from .rows import open_key, read_row

log = structlog.get_logger(__name__)

_MAX_REPORTED: Final = 1000
_reported: dict[str, str] = {}
"""Provider id → the reason that was last logged."""

_REVISION: Final = select(func.coalesce(func.max(provider_revisions.c.revision), 0).label("revision"))

_newest = _REVISION.subquery("newest")
# the revision is there also when no provider is
_QUERY: Final = (
    select(
        _newest.c.revision,
        ai_providers,
        ai_provider_keys.c.id.label("key_id"),
        ai_provider_keys.c.api_key,
        ai_provider_keys.c.vault_key_id,
    )
    .select_from(_newest)
    .outerjoin(ai_providers, ~ai_providers.c.deleted)
    .outerjoin(ai_provider_keys, and_(ai_provider_keys.c.provider_id == ai_providers.c.id, ai_providers.c.enabled))
    .order_by(ai_provider_keys.c.position)
)


async def current_revision(conn: AsyncConnection) -> int:
    """The number of the newest change; 0 before the first."""
    return int(await conn.scalar(_REVISION) or 0)


async def read_all(conn: AsyncConnection, vault: Vault) -> tuple[int, list[ProviderSpec]]:
    """The revision and all providers by name, in one SQL statement.

    Keys and settings only of enabled ones. A row that cannot be read carries its reason as `error` and no keys.
    """
    rows = (await conn.execute(_QUERY)).mappings().all()
    revision: int = rows[0]["revision"]
    by_provider: dict[str, list[RowMapping]] = {}
    for row in rows:
        if row["id"] is not None:
            by_provider.setdefault(row["id"], []).append(row)
    specs = [_spec(vault, group) for group in by_provider.values()]
    # not by the database: its collation may pass over hyphens
    return revision, sorted(specs, key=lambda spec: spec.name)


def _spec(vault: Vault, group: list[RowMapping]) -> ProviderSpec:
    row = group[0]
    about: dict[str, Any] = {name: row[name] for name in ("id", "name", "type", "enabled", "base_url")}
    if not row["enabled"]:
        return ProviderSpec(**about)
    read = read_row(vault, row)
    if read.problem:
        return _misconfigured(about, read.problem)
    keys: list[ProviderKey] = []
    for key in group:
        if key["key_id"] is None:
            continue
        value = open_key(vault, key["key_id"], Sealed(key["api_key"], key["vault_key_id"]))
        if isinstance(value, str):
            return _misconfigured(about, value)
        keys.append(ProviderKey(key["key_id"], value))
    return ProviderSpec(**about, keys=tuple(keys), settings=read.settings)


def _misconfigured(about: dict[str, Any], reason: str) -> ProviderSpec:
    # gateways ask every few seconds: what is known is not said again
    if _reported.get(about["id"]) != reason:
        if len(_reported) >= _MAX_REPORTED:
            _reported.clear()
        _reported[about["id"]] = reason
        log.error(
            "skipping misconfigured provider",
            provider_id=about["id"],
            provider_name=about["name"],
            provider_type=about["type"],
            reason=reason,
        )
    return ProviderSpec(**about, error=reason)
