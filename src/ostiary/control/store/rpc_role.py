"""The PostgreSQL role under which gateways are answered: it may do what RPC needs and nothing else (design §9).

Rules
- It is looked after at every start, not by a migration: roles belong to the whole server and are in no dump of a
  database, and new tables bring new rights.
- It cannot log in. Connections take it on as they are made (`role` among their settings), so that no pooler can hand it
  to somebody else.
- A database user who may neither make roles nor use this one is no reason not to start: RPC then runs as that user,
  which is logged. docs/database.md says what to run once instead.
"""

from typing import Final

import asyncpg
import structlog
from sqlalchemy import exc as sa_exc
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from ostiary.control import database
from ostiary.control.locks import Lock
from ostiary.core.secret import Secret

log = structlog.get_logger(__name__)

ROLE: Final = "ostiary_rpc"
LOCK_TIMEOUT: Final = "60s"
_ATTEMPTS: Final = 5

RIGHTS: Final[dict[str, tuple[str, ...]]] = {
    # who may call
    "users": ("SELECT",),
    "tokens": ("SELECT",),
    "revocations": ("SELECT",),
    "ai_gateway_keys": ("SELECT", "UPDATE (last_heartbeat_at)"),
    # what is served
    "ai_providers": ("SELECT",),
    "ai_provider_keys": ("SELECT",),
    "provider_revisions": ("SELECT",),
    # records: written, and read only as far as threads and sessions are made from them
    "journals": ("SELECT", "INSERT", "UPDATE"),
    "ingest_rejected": ("INSERT",),
    "interceptions": ("SELECT", "INSERT", "UPDATE"),
    "interception_details": ("INSERT",),
    "token_usages": ("INSERT",),
    "user_prompts": ("SELECT (interception_id, created_at)", "INSERT"),
    "tool_usages": ("SELECT (interception_id, tool_call_id)", "INSERT"),
    "model_thoughts": ("INSERT",),
    "interception_sessions": ("SELECT", "INSERT", "UPDATE", "DELETE"),
    "interception_facets": ("SELECT", "INSERT", "UPDATE (last_seen)"),
    "replicas": ("SELECT", "INSERT", "UPDATE", "DELETE"),
}


class RoleUnusableError(Exception):
    """The role cannot be had with this database user; the text says why and what to do."""


async def ensure_role(engine: AsyncEngine, role: str = ROLE) -> None:
    """Make the role if need be, allow ourselves to take it on, and give it its rights in this database.

    Raises `RoleUnusableError`, and what the database raises.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            async with engine.begin() as connection:
                await connection.execute(text("SELECT set_config('lock_timeout', :wait, true)"), {"wait": LOCK_TIMEOUT})
                # the second one too: making partitions writes to the same rows of the catalogue as GRANT
                for lock in (Lock.MIGRATE, Lock.PARTITIONS):
                    await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": int(lock)})
                await _make(connection, role)
                await _become_member(connection, role)
                await _grant(connection, role)
        except sa_exc.DBAPIError as exc:
            if isinstance(exc.driver_exception, asyncpg.InsufficientPrivilegeError):
                raise RoleUnusableError(
                    f"this database user may not make the role {role}, nor take it on: {exc.driver_exception.args[0]}"
                ) from exc
            if attempt == _ATTEMPTS or not isinstance(exc.driver_exception, _PASSING):
                raise
        else:
            return


async def connect_as(engine: AsyncEngine, url: Secret, role: str = ROLE) -> AsyncEngine:
    """An engine whose connections act as the role, in the schema of `engine`. Raises `RoleUnusableError`."""
    async with engine.connect() as connection:
        schema: str = await connection.scalar(text("SELECT quote_ident(current_schema())")) or "public"
    try:
        narrow = await database.connect(url, role=role, search_path=schema)
    except (database.DatabaseUnusableError, database.DatabaseUnavailableError) as exc:
        raise RoleUnusableError(f"no connection can be made with the role {role}: {exc}") from exc
    try:
        async with narrow.connect() as connection:
            actor = await connection.scalar(text("SELECT current_user"))
    except BaseException:
        await narrow.dispose()
        raise
    if actor != role:
        await narrow.dispose()
        raise RoleUnusableError(f"connections made with the role {role} act as {actor}: a pooler stands between")
    return narrow


_PASSING: Final = (
    # another database of this server makes the role at the same moment
    asyncpg.UniqueViolationError,
    asyncpg.DuplicateObjectError,
    asyncpg.InternalServerError,  # "tuple concurrently updated"
)


async def _make(connection: AsyncConnection, role: str) -> None:
    query = text("SELECT rolsuper OR rolcreaterole OR rolcreatedb OR rolbypassrls FROM pg_roles WHERE rolname = :role")
    mighty = await connection.scalar(query, {"role": role})
    if mighty:
        raise RoleUnusableError(f"the role {role} exists and may do more than RPC needs: take its attributes away")
    if mighty is None:
        await connection.exec_driver_sql(f"CREATE ROLE {role} NOLOGIN")
        log.info("making the database role of RPC", role=role)


async def _become_member(connection: AsyncConnection, role: str) -> None:
    version: int = await connection.scalar(text("SELECT current_setting('server_version_num')::int")) or 0
    # since 16 a member may lack the right to take the role on
    right = "SET" if version >= 160000 else "MEMBER"
    allowed = await connection.scalar(
        text("SELECT pg_has_role(current_user, :role, :right)"), {"role": role, "right": right}
    )
    if not allowed:
        await connection.exec_driver_sql(f"GRANT {role} TO CURRENT_USER")


async def _grant(connection: AsyncConnection, role: str) -> None:
    schema = await connection.scalar(text("SELECT quote_ident(current_schema())"))
    await _close(connection, schema, role)
    await connection.exec_driver_sql(f"GRANT USAGE ON SCHEMA {schema} TO {role}")
    for table, rights in RIGHTS.items():
        await connection.exec_driver_sql(f"GRANT {', '.join(rights)} ON {table} TO {role}")


async def _close(connection: AsyncConnection, schema: str, role: str) -> None:
    """Before PostgreSQL 15 everybody may make tables and functions in the schema `public`: as in later ones, nobody may."""
    query = text(
        "SELECT has_schema_privilege(:role, oid, 'CREATE') AS open,"
        " pg_has_role(current_user, nspowner, 'USAGE') AS ours, quote_ident(current_user) AS us"
        " FROM pg_namespace WHERE nspname = current_schema()"
    )
    found = (await connection.execute(query, {"role": role})).one()
    if not found.open:
        return
    if found.ours:
        await connection.exec_driver_sql(f"REVOKE CREATE ON SCHEMA {schema} FROM PUBLIC")
        log.info("closing the schema to other database users", schema=schema)
    else:
        log.warning(
            "leaving the schema open to every database user",
            schema=schema,
            hint=f"as its owner: GRANT CREATE ON SCHEMA {schema} TO {found.us}; REVOKE CREATE ON SCHEMA {schema} FROM PUBLIC",
        )
