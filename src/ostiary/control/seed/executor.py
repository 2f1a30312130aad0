"""Carries a seeding plan out.

Rules
- One transaction under the exclusive seed lock: of several control planes that start at once, one inserts and the
  others find its rows; gateways wait and then read the full set.
- Audit entries are rows of that transaction; log lines are written after its commit. Keys stand masked in both.
- Drift stops the start before anything is written; with `on_drift = warn` the row stays as it is and the rest is done.
"""

from collections.abc import Sequence
from typing import Any, Final

import structlog
from msgspec import Struct
from sqlalchemy import RowMapping, func, select, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from ostiary.control import audit
from ostiary.control.providers.changes import audit_created
from ostiary.control.providers.rows import insert_keys, insert_provider, lock_providers, note_revision, read_row
from ostiary.control.store.tables import ai_providers
from ostiary.control.vault import Vault
from ostiary.core.provider_env import DesiredProvider, ProviderEnvError, read_provider_environment
from ostiary.core.provider_rules import effective_type
from ostiary.core.providers import ProviderType
from ostiary.core.settings import ControlSettings, DemoProvider

from .plan import DEMO_DISPLAY_NAME, Drift, ExistingProvider, Insert, Repoint, Skip, Step, bedrock_region, plan

log = structlog.get_logger(__name__)

_LOCK_TIMEOUT_MS: Final = 60_000
_LOCK_NOT_AVAILABLE: Final = "55P03"


class SeedError(Exception):
    """The start must not go on. One line: what is wrong and what to do; holds no secret."""


class SeedReport(Struct, frozen=True):
    """What seeding did."""

    steps: tuple[Step, ...] = ()
    warnings: tuple[str, ...] = ()
    revision: int = 0
    """The revision it made; 0 when it changed nothing."""


async def seed(engine: AsyncEngine, vault: Vault, settings: ControlSettings) -> SeedReport:
    """Bring the providers of the environment, and those of `--demo`, into the database. Raises `SeedError`."""
    desired, warnings = _desired(settings)
    for warning in warnings:
        log.warning("reading provider environment", warning=warning)
    if not desired:
        return SeedReport(warnings=warnings)
    try:
        async with engine.begin() as conn:
            await lock_providers(conn, timeout_ms=_LOCK_TIMEOUT_MS)
            steps = plan(desired, await _existing(conn, vault, [provider.name for provider in desired]))
            drift = [step for step in steps if isinstance(step, Drift)]
            if drift and settings.on_drift == "fail":
                raise SeedError(_drift_message(drift))
            revision = await _carry_out(conn, vault, steps)
    except DBAPIError as exc:
        if getattr(exc.orig, "sqlstate", None) != _LOCK_NOT_AVAILABLE:
            raise
        raise SeedError(
            f"another process has held the providers' lock of the database for {_LOCK_TIMEOUT_MS // 1000} s: look for a "
            "control plane or a session that hangs, end it and start again"
        ) from None
    _log(steps)
    return SeedReport(tuple(steps), warnings, revision)


def _desired(settings: ControlSettings) -> tuple[list[DesiredProvider], tuple[str, ...]]:
    try:
        environment = read_provider_environment(settings.seed_environment)
    except ProviderEnvError as exc:
        raise SeedError(str(exc)) from None
    desired = {provider.name: provider for provider in environment.providers}
    for demo in settings.demo_providers:
        if demo.name in desired:
            raise SeedError(
                f'{desired[demo.name].source} and --demo both describe the provider "{demo.name}": set another NAME'
            )
        desired[demo.name] = _demo(demo)
    return list(desired.values()), environment.warnings


def _demo(demo: DemoProvider) -> DesiredProvider:
    return DesiredProvider(
        name=demo.name,
        type=ProviderType(demo.type),
        base_url=demo.base_url,
        keys=(demo.key,) if demo.key else (),
        display_name=DEMO_DISPLAY_NAME,
        source="--demo",
        demo=True,
    )


async def _existing(conn: AsyncConnection, vault: Vault, names: Sequence[str]) -> list[ExistingProvider]:
    """All rows of those names, deleted ones too."""
    rows = await conn.execute(select(ai_providers).where(ai_providers.c.name.in_(names)).order_by(ai_providers.c.id))
    return [_existing_provider(vault, row) for row in rows.mappings()]


def _existing_provider(vault: Vault, row: RowMapping) -> ExistingProvider:
    read = read_row(vault, row)
    return ExistingProvider(
        id=row["id"],
        name=row["name"],
        type=effective_type(read.kind, read.settings) if read.kind else row["type"],
        base_url=row["base_url"],
        bedrock_region=bedrock_region(read.settings),
        display_name=row["display_name"],
        deleted=row["deleted"],
        unreadable=read.problem,
    )


async def _carry_out(conn: AsyncConnection, vault: Vault, steps: Sequence[Step]) -> int:
    changed = []
    for step in steps:
        if isinstance(step, Insert):
            await _insert(conn, vault, step.provider)
        elif isinstance(step, Repoint):
            await _repoint(conn, step)
        else:
            continue
        changed.append(step.name)
    if not changed:
        return 0
    return await note_revision(conn, audit.SEED, f"seed {', '.join(changed)}")


async def _insert(conn: AsyncConnection, vault: Vault, provider: DesiredProvider) -> None:
    columns: dict[str, Any] = {
        "type": provider.type.value,
        "name": provider.name,
        "display_name": provider.display_name,
        "base_url": provider.base_url,
        "enabled": True,
    }
    provider_id = await insert_provider(conn, vault, columns, provider.settings)
    added = await insert_keys(conn, vault, provider_id, enumerate(provider.keys))
    await audit_created(conn, vault, provider_id, added, audit.SEED, audit.LOCAL)


async def _repoint(conn: AsyncConnection, step: Repoint) -> None:
    row = ai_providers.c
    before = await conn.scalar(select(row.base_url).where(row.id == step.id))
    await conn.execute(
        update(ai_providers).where(row.id == step.id).values(base_url=step.base_url, updated_at=func.now())
    )
    await audit.record(
        conn,
        audit.SEED,
        "update",
        audit.Resource("ai_provider", step.id, step.name),
        before={"base_url": before},
        after={"base_url": step.base_url},
    )


def _drift_message(drift: Sequence[Drift]) -> str:
    return (
        f"{'; '.join(map(str, drift))}. The database decides: change the provider through the API, or remove the "
        "variables, or start with OSTIARY_ON_DRIFT=warn to keep the database's"
    )


def _log(steps: Sequence[Step]) -> None:
    for step in steps:
        if isinstance(step, Insert):
            provider = step.provider
            log.info(
                "seeding provider from environment",
                provider_name=provider.name,
                provider_type=provider.type.value,
                source=provider.source,
                keys=[key.masked for key in provider.keys],
            )
        elif isinstance(step, Repoint):
            log.info("moving demo provider", provider_name=step.name, base_url=step.base_url)
        elif isinstance(step, Skip):
            log.warning("skipping provider of the environment", provider_name=step.name, reason=step.reason)
        elif isinstance(step, Drift):
            log.warning("keeping provider that differs from the environment", provider_name=step.name, drift=str(step))
