"""A migrated database for each test: a clone of one template per run.

`database_url` is an empty but migrated database; `new_database()` of it makes more. The clone is a copy of files
(`CREATE DATABASE ... TEMPLATE`), a tenth of a second or so.
"""

import asyncio
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import asyncpg
import pytest

from ostiary.core.secret import Secret
from tests.support.postgres import PostgresServer

_TEMPLATE_LOCK = 0x7465_7374
"""Advisory lock in the server's `postgres` database under which the workers of a run make the template once."""


def _template_name() -> str:
    """By what is in it: a server that outlives the run may have those of other versions and weeks."""
    from ostiary.control.partitions import week_of
    from ostiary.control.store.migrate import newest_revision

    return f"ostiary_template_{newest_revision()}_{week_of(datetime.now(UTC)).suffix}"


async def _make_template(server: PostgresServer, template: str) -> None:
    # imported here: this module is loaded in every run, the control plane is needed only by some
    from ostiary.control import database
    from ostiary.control.partitions import make_ahead
    from ostiary.control.store.migrate import migrate

    admin = await asyncpg.connect(server.asyncpg_dsn("postgres"))
    try:
        await admin.execute("SELECT pg_advisory_lock($1)", _TEMPLATE_LOCK)
        if await admin.fetchval("SELECT datistemplate FROM pg_database WHERE datname = $1", template):
            return
        await admin.execute(f"DROP DATABASE IF EXISTS {template}")
        await admin.execute(f"CREATE DATABASE {template} TEMPLATE template0 ENCODING 'UTF8'{_copying(admin)}")
        engine = await database.connect(Secret(server.database_url(template)))
        try:
            await migrate(engine)
            await make_ahead(engine, datetime.now(UTC))
        finally:
            await engine.dispose()
        await admin.execute(f"ALTER DATABASE {template} WITH is_template true allow_connections false")
    finally:
        await admin.close()


def _copying(admin: asyncpg.Connection) -> str:
    """PostgreSQL 14 knows no other way and no word for it."""
    return " STRATEGY file_copy" if admin.get_server_version().major >= 15 else ""


async def _clone(server: PostgresServer, template: str, name: str) -> None:
    admin = await asyncpg.connect(server.asyncpg_dsn("postgres"))
    try:
        await admin.execute(f"CREATE DATABASE {name} TEMPLATE {template}{_copying(admin)}")
    finally:
        await admin.close()


async def _drop(server: PostgresServer, names: list[str]) -> None:
    admin = await asyncpg.connect(server.asyncpg_dsn("postgres"))
    try:
        for name in names:
            await admin.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
    finally:
        await admin.close()


@pytest.fixture(scope="session")
def template_database(postgres_server: PostgresServer) -> str:
    """The migrated template's name; connections to it are refused."""
    template = _template_name()
    asyncio.run(_make_template(postgres_server, template))
    return template


@pytest.fixture
def new_database(postgres_server: PostgresServer, template_database: str) -> Iterator[Callable[[], Secret]]:
    """Makes one more migrated, empty database and gives its URL; all are dropped after the test."""
    names: list[str] = []

    def make() -> Secret:
        name = f"test_{uuid.uuid4().hex}"
        asyncio.run(_clone(postgres_server, template_database, name))
        names.append(name)
        return Secret(postgres_server.database_url(name))

    yield make
    asyncio.run(_drop(postgres_server, names))


@pytest.fixture
def database_url(new_database: Callable[[], Secret]) -> Secret:
    """The URL of a migrated, empty database of this test's own."""
    return new_database()


@pytest.fixture
def blank_database_url(postgres_server: PostgresServer) -> Iterator[Secret]:
    """The URL of a database without any table."""
    name = f"test_{uuid.uuid4().hex}"

    async def create() -> None:
        admin = await asyncpg.connect(postgres_server.asyncpg_dsn("postgres"))
        try:
            await admin.execute(f"CREATE DATABASE {name}")
        finally:
            await admin.close()

    asyncio.run(create())
    yield Secret(postgres_server.database_url(name))
    asyncio.run(_drop(postgres_server, [name]))


async def cut_listeners(url: Secret) -> int:
    """Ends every LISTEN connection of this database, as an operator or a failing network would."""
    connection = await asyncpg.connect(url.reveal().replace("+asyncpg", ""))
    try:
        query = (
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = current_database()"
            " AND pid <> pg_backend_pid() AND (query LIKE 'LISTEN%' OR query = 'SELECT 1')"
        )
        return int(await connection.fetchval(query))
    finally:
        await connection.close()
