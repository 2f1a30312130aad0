"""Creating, changing and deleting providers through the API.

Each is one transaction of the caller: rows, audit entries, revision and notification commit together.
"""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from ostiary.control import audit
from ostiary.control.api.errors import ApiError, FieldProblem
from ostiary.control.store.tables import ai_providers
from ostiary.control.vault import Vault
from ostiary.core.provider_rules import Problem
from ostiary.core.providers import BedrockSettings, ProviderSettings, ProviderType
from ostiary.core.secret import Secret

from .requests import (
    KeyEntry,
    KeyPlan,
    KnownKey,
    check_identity,
    check_keys_stay,
    check_new_keys,
    check_texts,
    check_together,
    parse_settings,
    plan_keys,
)
from .rows import (
    StoredKey,
    delete_keys,
    insert_keys,
    insert_provider,
    lock_providers,
    move_keys,
    note_revision,
    read_row,
    seal_settings,
    stored_keys,
)
from .views import SECRET_SETTINGS, ProviderView, find_row, get_provider, shown_settings

INVALID: Final = "Invalid AI provider request."
_LOCK_TIMEOUT_MS: Final = 10_000


@dataclass(frozen=True, slots=True)
class NewProvider:
    """What a provider shall be made of, unchecked."""

    type: str
    name: str
    base_url: str = ""
    display_name: str = ""
    icon: str = ""
    enabled: bool = True
    api_keys: tuple[Secret, ...] = ()
    settings: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class ProviderChanges:
    """What shall change, unchecked; None leaves as it is."""

    display_name: str | None = None
    icon: str | None = None
    enabled: bool | None = None
    base_url: str | None = None
    api_keys: tuple[KeyEntry, ...] | None = None
    settings: Mapping[str, Any] | None = None
    clear_settings: bool = False

    @property
    def nothing(self) -> bool:
        return not self.clear_settings and all(
            getattr(self, name) is None for name in ProviderChanges.__dataclass_fields__ if name != "clear_settings"
        )


async def create_provider(
    conn: AsyncConnection, vault: Vault, wanted: NewProvider, actor: audit.Actor, origin: audit.Origin
) -> ProviderView:
    """Raises `ApiError` 400 or 409."""
    problems = check_identity(wanted.type, wanted.name) + check_texts(wanted.display_name, wanted.icon)
    problems += check_new_keys(wanted.api_keys)
    settings: ProviderSettings | None = None
    if wanted.type in list(ProviderType):
        kind = ProviderType(wanted.type)
        settings, found = _parsed(kind, wanted.settings, None)
        # what is missing from settings that could not be read is not their only problem
        problems += found or check_together(kind, wanted.base_url, settings, len(wanted.api_keys))
    _refuse(problems)
    await lock_providers(conn, timeout_ms=_LOCK_TIMEOUT_MS)
    await _check_free(conn, wanted.name)
    columns = {name: getattr(wanted, name) for name in ("type", "name", "base_url", "display_name", "icon", "enabled")}
    provider_id = await insert_provider(conn, vault, columns, settings)
    added = await insert_keys(conn, vault, provider_id, enumerate(wanted.api_keys))
    made = await audit_created(conn, vault, provider_id, added, actor, origin)
    await note_revision(conn, actor, f"create {made.name}")
    return made


async def update_provider(
    conn: AsyncConnection,
    vault: Vault,
    id_or_name: str,
    changes: ProviderChanges,
    actor: audit.Actor,
    origin: audit.Origin,
    *,
    moves_keys: bool = False,
) -> ProviderView:
    """Raises `ApiError` 400, 404 or 409. A change that changes nothing makes no revision.

    `moves_keys`: whether keys that are kept may be sent to another origin.
    """
    if changes.nothing:
        fields = "display_name, icon, enabled, base_url, api_keys, settings"
        raise ApiError(400, INVALID, f"Give at least one field to change: {fields}.")
    await lock_providers(conn, timeout_ms=_LOCK_TIMEOUT_MS)
    row = await find_row(conn, id_or_name)
    before = await get_provider(conn, vault, row["id"])
    read = read_row(vault, row)
    keys = (await stored_keys(conn, vault, [row["id"]]))[row["id"]]

    problems = check_texts(changes.display_name, changes.icon)
    settings, plan = read.settings, KeyPlan((), {key.id: key.position for key in keys}, ())
    if changes.api_keys is not None:
        plan, found = plan_keys([KnownKey(key.id, key.value) for key in keys], changes.api_keys)
        problems += found
    if changes.clear_settings:
        settings = None
    if (changes.settings, changes.base_url, changes.api_keys) != (None, None, None) or changes.clear_settings:
        if read.kind is None:
            raise ApiError(409, f"AI provider {before.name!r} cannot be changed.", f"It has an {read.problem}.")
        found = []
        if changes.settings is not None:
            settings, found = _parsed(read.kind, changes.settings, read.settings)
        base_url = before.base_url if changes.base_url is None else changes.base_url
        problems += found or check_together(read.kind, base_url, settings, len(plan.add) + len(plan.keep))
        if not problems and not moves_keys:
            problems += check_keys_stay(before.base_url, base_url, len(plan.keep))
    _refuse(problems)

    values: dict[str, Any] = {
        name: value
        for name in ("display_name", "icon", "enabled", "base_url")
        if (value := getattr(changes, name)) is not None and value != row[name]
    }
    if (changes.settings is not None or changes.clear_settings) and (settings != read.settings or read.problem):
        values |= seal_settings(vault, row["id"], settings)
    moved = {key.id: plan.keep[key.id] for key in keys if key.id in plan.keep and plan.keep[key.id] != key.position}
    if not values and not moved and not plan.add and not plan.remove:
        return before

    removed = [key for key in keys if key.id in plan.remove]
    await delete_keys(conn, plan.remove)
    await move_keys(conn, moved)
    added = await insert_keys(conn, vault, row["id"], plan.add)
    await conn.execute(
        update(ai_providers).where(ai_providers.c.id == row["id"]).values(updated_at=func.now(), **values)
    )
    after = await get_provider(conn, vault, row["id"])
    await _audit_keys(conn, actor, origin, after, added=added, removed=removed)
    await audit.record(
        conn,
        actor,
        "update",
        _resource(after),
        before=_audited(before, read.settings),
        after=_audited(after, settings),
        additional=_key_changes(added, removed, len(plan.keep)),
        origin=origin,
    )
    await note_revision(conn, actor, f"update {after.name}")
    return after


async def delete_provider(
    conn: AsyncConnection, vault: Vault, id_or_name: str, actor: audit.Actor, origin: audit.Origin
) -> None:
    """Soft: the row stays, so that seeding does not bring it back; its keys and settings do not. Raises `ApiError`."""
    await lock_providers(conn, timeout_ms=_LOCK_TIMEOUT_MS)
    row = await find_row(conn, id_or_name)
    before = await get_provider(conn, vault, row["id"])
    keys = (await stored_keys(conn, vault, [row["id"]]))[row["id"]]
    await delete_keys(conn, [key.id for key in keys])
    gone = {"deleted": True, "enabled": False, "updated_at": func.now(), **seal_settings(vault, row["id"], None)}
    await conn.execute(update(ai_providers).where(ai_providers.c.id == row["id"]).values(gone))
    await _audit_keys(conn, actor, origin, before, removed=keys)
    await audit.record(
        conn,
        actor,
        "delete",
        _resource(before),
        before=_audited(before, read_row(vault, row).settings),
        additional=_key_changes([], keys, 0),
        origin=origin,
    )
    await note_revision(conn, actor, f"delete {before.name}")


async def audit_created(
    conn: AsyncConnection,
    vault: Vault,
    provider_id: str,
    added: Sequence[StoredKey],
    actor: audit.Actor,
    origin: audit.Origin,
) -> ProviderView:
    """The audit entries of a provider that was just inserted."""
    row = await find_row(conn, provider_id)
    made = await get_provider(conn, vault, provider_id)
    await _audit_keys(conn, actor, origin, made, added=added)
    await audit.record(
        conn,
        actor,
        "create",
        _resource(made),
        after=_audited(made, read_row(vault, row).settings),
        additional=_key_changes(added, [], 0),
        origin=origin,
    )
    return made


def _parsed(
    kind: ProviderType, raw: Mapping[str, Any] | None, current: ProviderSettings | None
) -> tuple[ProviderSettings | None, list[Problem]]:
    if raw is None:
        return None, []
    return parse_settings(kind, raw, current, lambda: secrets.token_urlsafe(24))


def _refuse(problems: Sequence[Problem]) -> None:
    if problems:
        fields = [FieldProblem(field=problem.field, detail=problem.detail) for problem in problems]
        raise ApiError(400, INVALID, validations=fields)


async def _check_free(conn: AsyncConnection, name: str) -> None:
    query = select(ai_providers.c.id).where(ai_providers.c.name == name, ~ai_providers.c.deleted)
    if (await conn.execute(query)).first() is not None:
        raise ApiError(409, f'AI provider "{name}" already exists.', "Change it, or choose another name.")


async def _audit_keys(
    conn: AsyncConnection,
    actor: audit.Actor,
    origin: audit.Origin,
    provider: ProviderView,
    *,
    added: Sequence[StoredKey] = (),
    removed: Sequence[StoredKey] = (),
) -> None:
    about = {"provider_id": provider.id, "provider_name": provider.name}
    for key in added:
        resource = audit.Resource("ai_provider_key", key.id, provider.name)
        await audit.record(conn, actor, "create", resource, after={"api_key": key.masked, **about}, origin=origin)
    for key in removed:
        resource = audit.Resource("ai_provider_key", key.id, provider.name)
        await audit.record(conn, actor, "delete", resource, before={"api_key": key.masked, **about}, origin=origin)


def _key_changes(added: Sequence[StoredKey], removed: Sequence[StoredKey], kept: int) -> dict[str, object]:
    return {
        "added": [{"id": key.id, "masked": key.masked} for key in added],
        "removed": [{"id": key.id, "masked": key.masked} for key in removed],
        "kept": kept,
    }


def _resource(provider: ProviderView) -> audit.Resource:
    return audit.Resource("ai_provider", provider.id, provider.name)


def _audited(provider: ProviderView, settings: ProviderSettings | None) -> dict[str, object]:
    """The provider for an audit entry: secrets of its settings masked, so that a change of them shows."""
    told = asdict(provider)
    shown = shown_settings(settings)
    if shown is not None and isinstance(settings, BedrockSettings):
        shown |= {name: value for name in SECRET_SETTINGS if (value := getattr(settings, name))}
    return told | {"settings": shown}
