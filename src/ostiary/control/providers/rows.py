"""The SQL of providers and their keys, shared by the API and by seeding."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

from sqlalchemy import RowMapping, Select, delete, func, insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from ostiary.control.audit import Actor
from ostiary.control.locks import SEED_LOCK
from ostiary.control.store.tables import ai_provider_keys, ai_providers, provider_revisions
from ostiary.control.vault import Place, Sealed, Vault, VaultError
from ostiary.core.ids import new_id
from ostiary.core.provider_rules import row_problem
from ostiary.core.providers import ProviderSettings, ProviderType, SettingsError, decode_settings, encode_settings
from ostiary.core.secret import Secret

CHANNEL: Final = "ai_providers_changed"
"""NOTIFY channel; the payload is the new revision."""


class StoredKey(NamedTuple):
    """A row of `ai_provider_keys`, opened."""

    id: str
    position: int
    masked: str
    created_at: datetime
    value: Secret | None
    """None when it cannot be opened."""


class Read(NamedTuple):
    """What became of a row's type and settings."""

    kind: ProviderType | None
    settings: ProviderSettings | None
    problem: str
    """Why the row cannot be served; empty when it can."""


async def lock_providers(conn: AsyncConnection, *, timeout_ms: int) -> None:
    """Wait until nobody else changes or reads the set; for the rest of the transaction."""
    await conn.execute(text("SELECT set_config('lock_timeout', :timeout, true)"), {"timeout": f"{timeout_ms}ms"})
    await conn.execute(select(func.pg_advisory_xact_lock(SEED_LOCK)))


async def note_revision(conn: AsyncConnection, actor: Actor, reason: str) -> int:
    """Number the change made in this transaction, and tell the listeners when it commits."""
    statement = insert(provider_revisions).values(actor=actor.name, reason=reason)
    revision: int = (await conn.execute(statement.returning(provider_revisions.c.revision))).scalar_one()
    await conn.execute(select(func.pg_notify(CHANNEL, str(revision))))
    return revision


def settings_place(provider_id: str) -> Place:
    return Place("ai_providers", "settings", provider_id)


def key_place(key_id: str) -> Place:
    return Place("ai_provider_keys", "api_key", key_id)


def seal_settings(vault: Vault, provider_id: str, settings: ProviderSettings | None) -> dict[str, Any]:
    """The columns of stored settings; no settings are NULL."""
    encoded = encode_settings(settings)
    if encoded is None:
        return {"settings": None, "settings_key_id": None}
    sealed = vault.seal(settings_place(provider_id), encoded)
    return {"settings": sealed.ciphertext, "settings_key_id": sealed.key_id}


def read_row(vault: Vault, row: RowMapping) -> Read:
    """Type and settings of a row of `ai_providers`, and what is wrong with it. Never raises: rows may be edited."""
    try:
        kind = ProviderType(row["type"])
    except ValueError:
        return Read(None, None, f'unsupported provider type "{row["type"]}"; supported are {", ".join(ProviderType)}')
    try:
        settings = open_settings(vault, row)
    except (VaultError, SettingsError) as exc:
        return Read(kind, None, str(exc))
    return Read(kind, settings, row_problem(kind, row["base_url"], settings) or "")


def open_settings(vault: Vault, row: RowMapping) -> ProviderSettings | None:
    """Raises `VaultError` or `SettingsError`."""
    stored = row["settings"]
    if stored is None:
        return None
    return decode_settings(vault.open(settings_place(row["id"]), Sealed(stored, row["settings_key_id"] or "")))


async def insert_provider(
    conn: AsyncConnection, vault: Vault, values: dict[str, Any], settings: ProviderSettings | None
) -> str:
    """A new row; `values` are its plain columns. Gives its id."""
    provider_id = new_id()
    sealed = seal_settings(vault, provider_id, settings)
    await conn.execute(insert(ai_providers).values(id=provider_id, **values, **sealed))
    return provider_id


async def insert_keys(
    conn: AsyncConnection, vault: Vault, provider_id: str, keys: Iterable[tuple[int, Secret]]
) -> list[StoredKey]:
    """New keys at the given positions."""
    made = []
    for position, key in keys:
        key_id = new_id()
        sealed = vault.seal(key_place(key_id), key.reveal().encode())
        row = await conn.execute(
            insert(ai_provider_keys)
            .values(
                id=key_id,
                provider_id=provider_id,
                position=position,
                api_key=sealed.ciphertext,
                vault_key_id=sealed.key_id,
                masked=key.masked,
            )
            .returning(ai_provider_keys.c.created_at)
        )
        made.append(StoredKey(key_id, position, key.masked, row.scalar_one(), key))
    return made


async def delete_keys(conn: AsyncConnection, key_ids: Sequence[str]) -> None:
    if key_ids:
        await conn.execute(delete(ai_provider_keys).where(ai_provider_keys.c.id.in_(key_ids)))


async def move_keys(conn: AsyncConnection, positions: dict[str, int]) -> None:
    """Give keys new positions; two may swap."""
    if not positions:
        return
    await conn.execute(text("SET CONSTRAINTS ai_provider_keys_position DEFERRED"))
    for key_id, position in positions.items():
        await conn.execute(
            update(ai_provider_keys)
            .where(ai_provider_keys.c.id == key_id)
            .values(position=position, updated_at=func.now())
        )


async def stored_keys(conn: AsyncConnection, vault: Vault, provider_ids: Sequence[str]) -> dict[str, list[StoredKey]]:
    """The keys of several providers, in the order of failover."""
    found: dict[str, list[StoredKey]] = {provider_id: [] for provider_id in provider_ids}
    columns = ai_provider_keys.c
    query = select(ai_provider_keys).where(columns.provider_id.in_(provider_ids))
    for row in await conn.execute(query.order_by(columns.provider_id, columns.position)):
        value = open_key(vault, row.id, Sealed(row.api_key, row.vault_key_id))
        found[row.provider_id].append(
            StoredKey(row.id, row.position, row.masked, row.created_at, value if isinstance(value, Secret) else None)
        )
    return found


def open_key(vault: Vault, key_id: str, sealed: Sealed) -> Secret | str:
    """The key, or why it cannot be opened."""
    try:
        return Secret(vault.open(key_place(key_id), sealed).decode())
    except VaultError as exc:
        return str(exc)
    except UnicodeDecodeError:
        return f"{key_place(key_id)} is not text: enter it again"


def live_rows() -> Select[Any]:  # Any: rows are read by name
    return select(ai_providers).where(~ai_providers.c.deleted)
