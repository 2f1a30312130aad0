"""Brings the database up to the newest migration, at every start.

Rules
- All migrations run in one transaction, under an advisory lock that ends with it: of two control planes that start at
  once one waits for the other, and one that dies leaves nothing half-done.
- A database newer than this program is left as it is: migrations are additive within a minor version, so the previous
  control plane goes on working on it.
"""

from pathlib import Path
from typing import Final

import structlog
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncEngine

from ostiary.control.locks import Lock

log = structlog.get_logger(__name__)

LOCK_TIMEOUT: Final = "60s"
"""How long a start waits for another control plane that migrates."""


async def migrate(engine: AsyncEngine) -> None:
    """Run what is missing. Raises what the database raises; then nothing has changed."""
    async with engine.begin() as connection:
        await connection.execute(text("SELECT set_config('lock_timeout', :wait, true)"), {"wait": LOCK_TIMEOUT})
        await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": int(Lock.MIGRATE)})
        await connection.run_sync(_upgrade)


def newest_revision() -> str:
    """The newest migration that this program knows."""
    return ScriptDirectory.from_config(_config()).get_current_head() or ""


def known_revisions() -> frozenset[str]:
    """All migrations that this program knows."""
    return frozenset(known.revision for known in ScriptDirectory.from_config(_config()).walk_revisions())


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")).replace("%", "%%"))
    return config


def _upgrade(connection: Connection) -> None:
    config = _config()
    config.attributes["connection"] = connection
    script = ScriptDirectory.from_config(config)
    here = MigrationContext.configure(connection).get_current_revision()
    newest = script.get_current_head()
    if here == newest:
        return
    if here is not None and here not in {known.revision for known in script.walk_revisions()}:
        log.warning("serving from a newer database", database_revision=here, program_revision=newest)
        return
    log.info("migrating database", database_revision=here, program_revision=newest)
    command.upgrade(config, "head")
