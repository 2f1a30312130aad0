"""The schema that migrations make, and its partitions."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import TypeVar

import asyncpg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncEngine

from ostiary.control import database, partitions
from ostiary.control.partitions import Week, make_ahead, try_make_ahead, wanted_weeks, week_of
from ostiary.control.store.migrate import migrate
from ostiary.control.store.tables import PARTITIONED, metadata
from ostiary.core.ids import IdSource
from ostiary.core.secret import Secret
from tests.support.postgres import PostgresServer

T = TypeVar("T")


def run(url: Secret, work: Callable[[AsyncEngine], Awaitable[T]]) -> T:
    async def go() -> T:
        engine = await database.connect(url)
        try:
            return await work(engine)
        finally:
            await engine.dispose()

    return asyncio.run(go())


def _is_ours(_object: object, name: str | None, kind: str, _reflected: bool, _compare_to: object) -> bool:
    return not (
        kind == "table" and name and (name.endswith("_default") or name[-8:].isdigit() or name == "alembic_version")
    )


def test_migrations_make_the_tables_that_queries_are_written_against(database_url: Secret) -> None:
    def differences(connection: Connection) -> list[object]:
        context = MigrationContext.configure(
            connection, opts={"include_object": _is_ours, "compare_type": True, "compare_server_default": True}
        )
        return compare_metadata(context, metadata)

    async def work(engine: AsyncEngine) -> list[object]:
        async with engine.connect() as connection:
            return await connection.run_sync(differences)

    assert run(database_url, work) == []


def test_control_planes_that_start_at_once_migrate_once(blank_database_url: Secret) -> None:
    async def start(url: Secret) -> None:
        engine = await database.connect(url)
        try:
            await migrate(engine)
            await make_ahead(engine, datetime.now(UTC))
        finally:
            await engine.dispose()

    async def all_at_once() -> None:
        await asyncio.gather(*(start(blank_database_url) for _ in range(3)))

    asyncio.run(all_at_once())

    async def counts(engine: AsyncEngine) -> tuple[int, int]:
        async with engine.connect() as connection:
            revisions = await connection.scalar(text("SELECT count(*) FROM alembic_version"))
            partitions = await connection.scalar(
                text("SELECT count(*) FROM pg_inherits i JOIN pg_class c ON c.oid = inhrelid AND c.relkind = 'r'")
            )
            return revisions or 0, partitions or 0

    assert run(blank_database_url, counts) == (1, len(PARTITIONED) * (6 + 1))


def test_a_newer_database_is_served_from(database_url: Secret) -> None:
    async def work(engine: AsyncEngine) -> object:
        async with engine.begin() as connection:
            await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        await migrate(engine)
        async with engine.connect() as connection:
            return await connection.scalar(text("SELECT version_num FROM alembic_version"))

    assert run(database_url, work) == "9999"


def test_weeks_begin_on_monday_in_utc() -> None:
    sunday_night = datetime(2026, 11, 22, 23, 59, 59, tzinfo=UTC)
    assert week_of(sunday_night).suffix == "20261116"
    assert week_of(sunday_night + timedelta(seconds=1)).suffix == "20261123"
    west = datetime.fromisoformat("2026-11-22T20:00:00-05:00")
    assert week_of(west).suffix == "20261123"


def test_six_weeks_are_wanted_without_a_gap() -> None:
    weeks = list(wanted_weeks(datetime(2026, 12, 30, tzinfo=UTC)))
    assert [week.suffix for week in weeks] == ["20261221", "20261228", "20270104", "20270111", "20270118", "20270125"]
    assert all(later.first_id > earlier.first_id for earlier, later in pairwise(weeks))


def test_rows_that_waited_in_the_default_partition_move_into_their_week(database_url: Secret) -> None:
    far = datetime.now(UTC) + timedelta(weeks=20)
    ids = IdSource(clock=lambda: int(far.timestamp() * 1e9))
    early, inside = IdSource(clock=lambda: 0)(), ids()

    async def work(engine: AsyncEngine) -> tuple[set[str], set[str], int]:
        insert = text(
            "INSERT INTO user_prompts (interception_id, id, prompt, created_at) VALUES (:parent, :id, 'p', now())"
        )
        async with engine.begin() as connection:
            for parent in (early, inside):
                await connection.execute(insert, {"parent": parent, "id": ids()})
        made = await make_ahead(engine, far)
        async with engine.connect() as connection:
            rest = set(await connection.scalars(text("SELECT interception_id::text FROM user_prompts_default")))
            table = f"user_prompts_{week_of(far).suffix}"
            moved = set(await connection.scalars(text(f"SELECT interception_id::text FROM {table}")))
        return rest, moved, made

    rest, moved, made = run(database_url, work)
    assert (rest, moved) == ({early}, {inside})
    assert made == len(PARTITIONED) * 6


def test_an_id_of_a_week_is_within_its_bounds() -> None:
    moment = datetime(2026, 11, 18, 12, tzinfo=UTC)
    made = IdSource(clock=lambda: int(moment.timestamp() * 1e9))()
    week = Week(week_of(moment).monday)
    assert week.first_id <= made < week.shifted(1).first_id


def test_partitions_that_cannot_be_made_now_do_not_stop_the_start(
    database_url: Secret, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partitions, "LOCK_TIMEOUT", "100ms")

    async def work(engine: AsyncEngine) -> tuple[bool, bool]:
        this_week = f"interceptions_{week_of(datetime.now(UTC)).suffix}"
        async with engine.connect() as dump:
            await dump.execute(text(f"DROP TABLE {this_week}"))
            await dump.commit()
            await dump.execute(text("LOCK TABLE interceptions_default IN ACCESS SHARE MODE"))
            locked = await try_make_ahead(engine)
        return locked, await try_make_ahead(engine)

    assert run(database_url, work) == (False, True)


def test_a_database_that_cannot_hold_every_prompt_is_refused(postgres_server: PostgresServer) -> None:
    async def main() -> None:
        admin = await asyncpg.connect(postgres_server.asyncpg_dsn())
        await admin.execute("CREATE DATABASE narrow TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'")
        try:
            with pytest.raises(database.DatabaseUnusableError, match=r"encoding is LATIN1.*ENCODING 'UTF8'"):
                await database.connect(Secret(postgres_server.database_url("narrow")))
        finally:
            await admin.execute("DROP DATABASE narrow WITH (FORCE)")
            await admin.close()

    asyncio.run(main())
