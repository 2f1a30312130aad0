"""A gateway that holds the current providers is answered cheaply, and never before a seed in flight is over."""

import asyncio
from pathlib import Path
from typing import Any

import uvloop
from connectrpc.request import RequestContext
from sqlalchemy import event, text

from ostiary.control import audit, database, providers
from ostiary.control.events import Events
from ostiary.control.locks import SEED_LOCK
from ostiary.control.providers.changes import NewProvider
from ostiary.control.services.providers import ProviderConfiguratorService
from ostiary.control.vault import open_vault
from ostiary.core.secret import Secret
from ostiary.rpc.ostiary_pb2 import GetAIProvidersRequest, GetAIProvidersResponse
from tests.support.control_server import control_settings

CONTEXT: Any = RequestContext  # not looked at


def test_nothing_is_decrypted_for_it_but_it_waits_for_a_seed(database_url: Secret, tmp_path: Path) -> None:
    async def main() -> None:
        engine = await database.connect(database_url)
        vault = await open_vault(engine, control_settings(database_url, tmp_path))
        service = ProviderConfiguratorService(engine, vault, Events(engine, Secret("")))
        statements: list[str] = []
        event.listen(engine.sync_engine, "before_cursor_execute", lambda *given: statements.append(given[2]))

        async def add(name: str) -> None:
            wanted = NewProvider("openai", name, base_url="https://a.example/v1", api_keys=(Secret("sk-" + name),))
            async with engine.begin() as conn:
                await providers.create_provider(conn, vault, wanted, audit.Actor(None, "test"), audit.LOCAL)

        async def ask(known: int) -> GetAIProvidersResponse:
            statements.clear()
            return await service.get_ai_providers(GetAIProvidersRequest(known_revision=known), CONTEXT)

        await add("one")
        first = await ask(0)
        assert [one.name for one in first.providers] == ["one"]
        same = await ask(first.revision)
        assert (same.revision, same.unchanged, len(same.providers)) == (first.revision, True, 0)
        assert not any("ai_provider_keys" in statement for statement in statements), statements

        async with engine.connect() as seeding, engine.connect() as watching:
            await seeding.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": SEED_LOCK})
            asking = asyncio.create_task(ask(first.revision))
            blocked = text(
                "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
                " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
            )
            while not await watching.scalar(blocked):
                assert not asking.done(), "it did not wait"
                await watching.rollback()
            await seeding.execute(
                text("INSERT INTO provider_revisions (actor, reason) VALUES ('seed', 'a seed in flight')")
            )
            await seeding.commit()
        found = await asking
        assert (found.unchanged, found.revision > first.revision) == (False, True)
        assert [key.value for one in found.providers for key in one.keys] == ["sk-one"]
        ahead = await ask(found.revision + 5)  # of a database that was restored from a backup
        assert (ahead.unchanged, ahead.revision, len(ahead.providers)) == (False, found.revision, 1)
        await engine.dispose()

    uvloop.run(main())
