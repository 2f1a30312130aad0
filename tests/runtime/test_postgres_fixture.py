"""The server that all tests share."""

import asyncio
import os

import asyncpg

from tests.support.postgres import PostgresServer


async def _connection_facts(dsn: str) -> tuple[str, bool]:
    connection = await asyncpg.connect(dsn)
    try:
        row = await connection.fetchrow(
            "SELECT current_setting('data_directory') AS at, rolsuper FROM pg_roles WHERE rolname = current_user"
        )
        assert row is not None
        return str(row["at"]), bool(row["rolsuper"])
    finally:
        await connection.close()


def test_the_server_of_the_run_is_reached_from_every_worker_process(postgres_server: PostgresServer) -> None:
    run_directory = os.path.dirname(os.environ["OSTIARY_TESTS_POSTGRES_SOCKET"])
    data_directory, is_superuser = asyncio.run(_connection_facts(postgres_server.asyncpg_dsn("postgres")))
    assert data_directory == f"{run_directory}/pg/data"
    assert is_superuser
