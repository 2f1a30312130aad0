"""A provider as the API shows it."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal
from uuid import UUID

import msgspec
from sqlalchemy import RowMapping, select
from sqlalchemy.ext.asyncio import AsyncConnection

from ostiary.control.api.errors import ApiError
from ostiary.control.store.tables import ai_providers
from ostiary.control.vault import Vault
from ostiary.core.provider_rules import effective_type, takes_keys
from ostiary.core.providers import NAME_PATTERN, BedrockSettings, ProviderSettings, ProviderType, encode_settings
from ostiary.core.secret import Secret

from .rows import Read, StoredKey, live_rows, read_row, stored_keys

SECRET_SETTINGS: Final = ("access_key", "access_key_secret")
"""Written, never read."""


@dataclass(frozen=True, slots=True)
class ApiKeyView:
    id: str
    masked: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class ProviderStatus:
    state: Literal["enabled", "disabled", "error"]
    reason: str = ""
    """Why requests to it would answer 503 if it were enabled."""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ProviderView:
    """Everything but secrets."""

    id: str
    type: str
    effective_type: str
    """`bedrock` also for an `anthropic` provider that Bedrock serves."""
    name: str
    display_name: str
    icon: str
    enabled: bool
    deleted: bool
    base_url: str
    api_keys: tuple[ApiKeyView, ...]
    """In the order of failover."""
    settings: dict[str, Any] | None
    status: ProviderStatus
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class ProviderSummary:
    """What everybody may know."""

    name: str
    display_name: str
    status: Literal["enabled", "disabled", "error"]


def summary(view: ProviderView) -> ProviderSummary:
    return ProviderSummary(view.name, view.display_name, view.status.state)


async def list_providers(conn: AsyncConnection, vault: Vault, *, deleted: bool = False) -> list[ProviderView]:
    """All providers by name, disabled ones too; with `deleted` also those that were deleted."""
    query = select(ai_providers).order_by(ai_providers.c.id) if deleted else live_rows()
    rows = (await conn.execute(query)).mappings().all()
    keys = await stored_keys(conn, vault, [row["id"] for row in rows])
    views = [view(row, read_row(vault, row), keys[row["id"]]) for row in rows]
    return sorted(views, key=lambda shown: shown.name)


async def get_provider(conn: AsyncConnection, vault: Vault, id_or_name: str) -> ProviderView:
    """Raises `ApiError` 400 or 404."""
    row = await find_row(conn, id_or_name)
    keys = await stored_keys(conn, vault, [row["id"]])
    return view(row, read_row(vault, row), keys[row["id"]])


async def find_row(conn: AsyncConnection, id_or_name: str) -> RowMapping:
    """The live row of that id or name. Raises `ApiError` 400 or 404."""
    try:
        found = ai_providers.c.id == str(UUID(id_or_name))
    except ValueError:
        if not NAME_PATTERN.fullmatch(id_or_name):
            raise ApiError(
                400,
                "Invalid provider id or name.",
                f"It must be a UUID or a name that matches {NAME_PATTERN.pattern}.",
            ) from None
        found = ai_providers.c.name == id_or_name
    row: RowMapping | None = (await conn.execute(live_rows().where(found))).mappings().one_or_none()
    if row is None:
        raise ApiError(
            404, "AI provider not found.", "`ostiary providers list` or GET /api/v2/ai/providers lists them."
        )
    return row


def view(row: RowMapping, read: Read, keys: list[StoredKey]) -> ProviderView:
    return ProviderView(
        **{name: row[name] for name in ("id", "type", "name", "display_name", "icon", "enabled", "deleted")},
        effective_type=effective_type(read.kind, read.settings) if read.kind else row["type"],
        base_url=row["base_url"],
        api_keys=tuple(ApiKeyView(key.id, key.masked, key.created_at) for key in keys),
        settings=shown_settings(read.settings),
        status=_status(row, read, keys),
        created_at=row["created_at"],
        updated_at=row["updated_at"],
    )


def shown_settings(settings: ProviderSettings | None) -> dict[str, Any] | None:
    """Settings as JSON data, without secrets."""
    if isinstance(settings, BedrockSettings):
        settings = msgspec.structs.replace(settings, access_key=Secret(""), access_key_secret=Secret(""))
    encoded = encode_settings(settings)
    if encoded is None:
        return None
    shown: dict[str, Any] = msgspec.json.decode(encoded)
    # absent, not empty: sent back as they are, they change no secret
    return {name: value for name, value in shown.items() if name not in SECRET_SETTINGS}


def _status(row: RowMapping, read: Read, keys: list[StoredKey]) -> ProviderStatus:
    if not row["enabled"]:
        return ProviderStatus("disabled", read.problem)
    if read.problem or read.kind is None:
        return ProviderStatus("error", read.problem)
    for key in keys:
        if key.value is None:
            return ProviderStatus("error", f"the key {key.masked} ({key.id}) cannot be decrypted: enter it again")
    return ProviderStatus("enabled", warnings=tuple(_warnings(read.kind, read.settings, keys)))


def _warnings(kind: ProviderType, settings: ProviderSettings | None, keys: list[StoredKey]) -> Iterator[str]:
    """What makes gateways refuse requests to a provider that has nothing wrong in it."""
    if takes_keys(kind, settings) and not keys:
        yield "no keys: only requests with a credential of their own are served"
    if isinstance(settings, BedrockSettings) and settings.configured and settings.lacking:
        lacking = " and no ".join(settings.lacking)
        yield f"no {lacking} in its settings: every request is answered with 503 until they are set"
