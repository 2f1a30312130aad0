"""The way to PostgreSQL: one SQLAlchemy engine over asyncpg, and what to say when it cannot be had.

Rules
- The URL is given to asyncpg as it is, so everything libpq understands works: several hosts, `sslmode`, `sslrootcert`,
  a unix socket as `?host=/directory`. It holds a password: it stands in no error, log line or repr.
- Statements never print their parameters, and `cause` leaves out PostgreSQL's DETAIL: both quote rows, and rows hold
  prompts and ciphertext.
- Bulk work takes the asyncpg connection itself (`driver`); a transaction is then that of asyncpg.
"""

from pathlib import Path
from typing import Any, Final

import asyncpg
from sqlalchemy import event
from sqlalchemy import exc as sa_exc
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from ostiary.core.secret import Secret

MINIMUM_VERSION: Final = 14
"""The oldest PostgreSQL major version that is supported."""

COMMAND_TIMEOUT: Final = 120.0
"""Far beyond any statement of ours: what takes longer is waiting for a peer that has gone."""

_CONNECT_TIMEOUT: Final = 5.0
_POOL_TIMEOUT: Final = 10.0

DATABASE_ERRORS: Final = (
    sa_exc.DBAPIError,
    sa_exc.TimeoutError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    OSError,
    TimeoutError,
)
"""What a database call may raise for a reason outside this program. Callers answer `unavailable`; it may pass."""

_REFUSALS: Final = (
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.InsufficientPrivilegeError,
)


class DatabaseUnavailableError(Exception):
    """The database does not answer; it may yet. The text is one line and holds no secret."""


class DatabaseUnusableError(Exception):
    """The database or its URL cannot be used until somebody changes something; the text says what."""


async def connect(
    url: Secret, *, pool_size: int = 10, command_timeout: float | None = COMMAND_TIMEOUT, **parameters: str
) -> AsyncEngine:
    """An engine on `url` (postgres://, postgresql:// or postgresql+asyncpg://) that has connected once.

    `command_timeout`: seconds that any one statement may take. `parameters`: settings that every connection begins with.
    Raises `DatabaseUnavailableError` or `DatabaseUnusableError`.
    """
    dsn = _dsn(url)

    async def open_connection() -> Any:  # Any: asyncpg is untyped
        return await asyncpg.connect(
            dsn.reveal(),
            timeout=_CONNECT_TIMEOUT,
            command_timeout=command_timeout,
            server_settings={"application_name": "ostiary-control", **parameters},
        )

    engine = create_async_engine(
        "postgresql+asyncpg://",
        async_creator=open_connection,
        hide_parameters=True,
        pool_size=pool_size,
        max_overflow=pool_size,
        pool_timeout=_POOL_TIMEOUT,
        pool_pre_ping=True,
    )
    event.listen(engine.sync_engine, "checkin", _discard_what_is_in_transaction)
    try:
        await _check(engine)
    except BaseException:
        await engine.dispose()
        raise
    return engine


async def connect_driver(url: Secret, *, command_timeout: float = _CONNECT_TIMEOUT) -> Any:  # Any: asyncpg is untyped
    """A connection of asyncpg beside the engine, for what must stay on one. Raises as `connect`."""
    dsn = _dsn(url)
    try:
        return await asyncpg.connect(
            dsn.reveal(),
            timeout=_CONNECT_TIMEOUT,
            command_timeout=command_timeout,
            server_settings={"application_name": "ostiary-control"},
        )
    except (*DATABASE_ERRORS, ValueError, asyncpg.ClientConfigurationError) as exc:
        raise _connect_error(exc) from exc


def _discard_what_is_in_transaction(connection: Any, record: Any) -> None:  # Any: of the pool
    """Close a connection that comes back in the middle of a transaction, rather than let the next one continue that.

    When a task is cancelled while asyncpg begins a transaction, the transaction stays, and those that follow on the connection
    are savepoints within it: they would seem to be committed, hold their locks, and be gone with the connection.
    """
    if connection is None:
        return
    found = connection.driver_connection
    if found.is_in_transaction() or found._top_xact is not None:
        record.invalidate()


async def driver(connection: AsyncConnection) -> Any:  # Any: asyncpg is untyped
    """The asyncpg connection below; it goes back to the pool with `connection`."""
    raw = await connection.get_raw_connection()
    return raw.driver_connection


def cause(error: BaseException) -> str:
    """What went wrong, on one line, without row contents, statements or parameters."""
    found = _driver_error(error)
    if isinstance(found, asyncpg.DataError):
        return f"{type(found).__name__} (SQLSTATE {found.sqlstate})"  # its message quotes the value
    if isinstance(found, asyncpg.PostgresError):
        return f"{found.args[0]} (SQLSTATE {found.sqlstate})".replace("\n", " ")
    if isinstance(found, sa_exc.TimeoutError):
        return "no free database connection"
    if isinstance(found, TimeoutError):
        return "timed out"
    if isinstance(found, OSError):
        return str(found.strerror or found).replace("\n", " ")
    if isinstance(found, asyncpg.InterfaceError):
        return str(found).replace("\n", " ")
    return type(found).__name__


def where(error: BaseException) -> str:
    """Where an unexpected error was raised, for logs that may not show its text: that may quote a row."""
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    return f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}" if trace else ""


def _dsn(url: Secret) -> Secret:
    scheme, separator, rest = url.reveal().partition("://")
    if not separator or scheme not in ("postgres", "postgresql", "postgresql+asyncpg"):
        raise DatabaseUnusableError(
            "the database URL must begin with postgres:// or postgresql://, e.g. postgresql://user:password@host/ostiary"
        )
    return Secret(f"postgresql://{rest}")


async def _check(engine: AsyncEngine) -> None:
    try:
        async with engine.connect() as connection:
            raw = await driver(connection)
            version: int = raw.get_server_version().major
            encoding: str = raw.get_settings().server_encoding
    except (*DATABASE_ERRORS, ValueError, asyncpg.ClientConfigurationError) as exc:
        raise _connect_error(_driver_error(exc)) from exc
    if version < MINIMUM_VERSION:
        raise DatabaseUnusableError(
            f"the database is PostgreSQL {version}; version {MINIMUM_VERSION} or newer is needed"
        )
    if encoding != "UTF8":
        raise DatabaseUnusableError(
            f"the database's encoding is {encoding}, which cannot hold every prompt; make one with: CREATE DATABASE "
            "ostiary TEMPLATE template0 ENCODING 'UTF8'"
        )


def _connect_error(error: BaseException) -> Exception:
    if isinstance(error, _REFUSALS):
        return DatabaseUnusableError(f"the database refuses us: {cause(error)}; check the database URL")
    if isinstance(error, ValueError | asyncpg.ClientConfigurationError):
        # the parser's own words may quote it
        return DatabaseUnusableError(
            "the database URL cannot be read: look at its port and at what stands behind the question mark, e.g. "
            "postgresql://user:password@host:5432/ostiary?sslmode=require"
        )
    return DatabaseUnavailableError(f"the database cannot be reached: {cause(error)}")


def _driver_error(error: BaseException) -> BaseException:
    return error.driver_exception if isinstance(error, sa_exc.DBAPIError) else error
