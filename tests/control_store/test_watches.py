"""The watches over real HTTP and a real PostgreSQL: who is told what, when, and after what was lost."""

import asyncio
import base64
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import pytest
import uvloop
from connectrpc.code import Code
from connectrpc.errors import ConnectError
from sqlalchemy import text

from ostiary.control import database, events, identity
from ostiary.control.identity import revocations
from ostiary.control.services import beats
from ostiary.core.messages import Drain
from ostiary.core.secret import Secret
from ostiary.core.settings import DemoProvider
from ostiary.rpc import ostiary_pb2 as pb
from ostiary.rpc import version
from ostiary.rpc.ostiary_connect import AuthorizerClient, ProviderConfiguratorClient
from tests.support.control_server import GATEWAY_KEY, OWNER_TOKEN, ControlServer, control_settings, serving
from tests.support.database import cut_listeners

T = TypeVar("T")
HEADERS = {version.HEADER_GATEWAY_KEY: GATEWAY_KEY, version.HEADER_API_VERSION: version.CURRENT}
OWNER = {"Authorization": f"Bearer {OWNER_TOKEN}"}
WITHIN = 6.0
"""Seconds in which a change must have been told: one, and what a busy machine may take."""
KEYRING = (Secret(base64.b64encode(b"k" * 32).decode()),)
CHANGED = pb.WatchAIProvidersResponse.KIND_CHANGED
BEAT = pb.WatchAIProvidersResponse.KIND_BEAT


@pytest.fixture(autouse=True)
def looks_that_nothing_asked_for_are_rare(monkeypatch: pytest.MonkeyPatch) -> None:
    """A change that is told was heard of."""
    monkeypatch.setattr(events, "POLL_INTERVAL", 600.0)


def served(url: Secret, root: Path, script: Callable[..., Awaitable[T]], servers: int = 1) -> T:
    """Control planes on one database, with what the script needs of each."""

    async def go() -> T:
        async with AsyncExitStack() as stack:
            started = []
            for number in range(servers):
                directory = root / str(number)
                directory.mkdir()
                settings = control_settings(url, directory, embedded_database=False, encryption_keys=KEYRING)
                started.append(await stack.enter_async_context(serving(settings)))
            return await script(*started)

    return uvloop.run(go())


async def soon(stream: AsyncIterator[T]) -> T:
    async with asyncio.timeout(WITHIN):
        return await anext(stream)


def providers_of(server: ControlServer) -> Any:
    client = ProviderConfiguratorClient(server.url, send_compression=None)
    return aclosing(client.watch_ai_providers(pb.WatchAIProvidersRequest(), headers=HEADERS))


def revocations_of(server: ControlServer, after_seq: int = 0) -> Any:
    client = AuthorizerClient(server.url, send_compression=None)
    return aclosing(client.watch_revocations(pb.WatchRevocationsRequest(after_seq=after_seq), headers=HEADERS))


async def add_provider(server: ControlServer, name: str) -> None:
    body = {"type": "openai", "name": name, "base_url": "http://127.0.0.1:1/v1", "api_keys": ["sk-1234567890"]}
    answer = await server.http.post("/api/v2/ai/providers", json=body, headers=OWNER)
    assert answer.status_code == 201, answer.text


async def token_of(server: ControlServer, username: str) -> tuple[str, bytes]:
    """A new token's id and its hash."""
    await server.http.post("/api/v2/users", json={"username": username, "role": "member"}, headers=OWNER)
    answer = await server.http.post("/api/v2/tokens", json={"name": "t", "user": username}, headers=OWNER)
    made = answer.json()
    return made["id"], sha256(made["token"].encode()).digest()


async def ask(server: ControlServer, digest: bytes) -> pb.IsAuthorizedResponse:
    client = AuthorizerClient(server.url, send_compression=None)
    return await client.is_authorized(pb.IsAuthorizedRequest(token_sha256=digest), headers=HEADERS)


async def revoke(server: ControlServer, token_id: str) -> None:
    answer = await server.http.delete(f"/api/v2/tokens/{token_id}", headers=OWNER)
    assert answer.status_code == 204, answer.text


# --- providers


def test_a_watch_says_changed_at_once_then_at_each_change_and_beats(
    database_url: Secret, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beats.beating, "__defaults__", (0.2,))

    async def script(server: ControlServer) -> None:
        async with providers_of(server) as watch:
            first = await soon(watch)
            assert first.kind == CHANGED
            await add_provider(server, "one")
            seen = [await soon(watch)]
            while seen[-1].kind == BEAT:
                seen.append(await soon(watch))
            assert seen[-1].kind == CHANGED
            assert seen[-1].revision > first.revision
            beat = await soon(watch)
            assert (beat.kind, beat.revision) == (BEAT, seen[-1].revision)

    served(database_url, tmp_path, script)


def test_a_burst_reaches_a_slow_watcher_as_its_newest_revision(database_url: Secret, tmp_path: Path) -> None:
    async def script(server: ControlServer) -> None:
        async with providers_of(server) as watch:
            await soon(watch)
            for number in range(12):
                await add_provider(server, f"p{number}")
            client = ProviderConfiguratorClient(server.url)
            newest = (await client.get_ai_providers(pb.GetAIProvidersRequest(), headers=HEADERS)).revision
            told = [await soon(watch)]
            while told[-1].revision != newest:
                told.append(await soon(watch))
            assert len(told) <= 12

    served(database_url, tmp_path, script)


def test_control_planes_on_one_database_seed_once_and_tell_each_others_changes_also_after_losing_listen(
    blank_database_url: Secret, tmp_path: Path
) -> None:
    demo = (DemoProvider("demo", "openai", "http://127.0.0.1:4010/v1", Secret("sk-demo-0123456789")),)

    async def go() -> None:
        async with AsyncExitStack() as stack:

            async def start(number: int) -> ControlServer:
                directory = tmp_path / str(number)
                directory.mkdir()
                settings = control_settings(
                    blank_database_url,
                    directory,
                    embedded_database=False,
                    encryption_keys=KEYRING,
                    demo_providers=demo,
                )
                return await stack.enter_async_context(serving(settings))

            # at once: migrations and the seed must not run twice
            one, two = await asyncio.gather(start(0), start(1))
            listed = (await one.get("/api/v2/ai/providers")).json()
            assert str(listed).count("'demo'") >= 1
            client = ProviderConfiguratorClient(two.url)
            answer = await client.get_ai_providers(pb.GetAIProvidersRequest(), headers=HEADERS)
            assert [spec.name for spec in answer.providers] == ["demo"]
            assert len(answer.providers[0].keys) == 1
            at_one = await stack.enter_async_context(providers_of(one))
            at_two = await stack.enter_async_context(providers_of(two))
            for watch in (at_one, at_two):
                assert (await soon(watch)).revision == answer.revision
            await add_provider(one, "by-one")
            assert (await soon(at_two)).kind == CHANGED
            assert (await soon(at_one)).kind == CHANGED
            assert await cut_listeners(blank_database_url) >= 2
            await add_provider(two, "by-two")
            assert (await soon(at_one)).kind == CHANGED
            assert (await soon(at_two)).kind == CHANGED

    uvloop.run(go())


def test_a_draining_control_plane_ends_its_watches_at_once(database_url: Secret, tmp_path: Path) -> None:
    async def script(server: ControlServer) -> None:
        async with providers_of(server) as watch, revocations_of(server) as revoked:
            await soon(watch)
            await soon(revoked)
            server.orders.order(Drain())
            for stream in (watch, revoked):
                with pytest.raises(ConnectError) as caught:
                    await soon(stream)
                assert caught.value.code is Code.UNAVAILABLE

    served(database_url, tmp_path, script)


# --- revocations


def test_each_right_taken_away_is_told_and_numbered(database_url: Secret, tmp_path: Path) -> None:
    async def script(server: ControlServer) -> None:
        token_id, digest = await token_of(server, "alice")
        alice = (await ask(server, digest)).owner_id
        async with revocations_of(server) as watch:
            hello = await soon(watch)
            assert (hello.reset, hello.WhichOneof("subject")) == (True, None)
            await revoke(server, token_id)
            told = await soon(watch)
            assert (told.api_key_id, told.reset) == (token_id, False)
            assert told.seq > hello.seq
            answer = await ask(server, digest)
            assert (answer.refusal, answer.seq) == (pb.AUTHORIZATION_REFUSAL_REVOKED, told.seq)
            for change in ({"role": "auditor"}, {"status": "suspended"}, {"status": "active"}):
                assert (await server.http.patch("/api/v2/users/alice", json=change, headers=OWNER)).status_code == 200
                assert (await soon(watch)).owner_id == alice
            await server.http.patch("/api/v2/users/alice", json={"display_name": "A."}, headers=OWNER)
            await server.http.delete("/api/v2/users/alice", headers=OWNER)
            last = await soon(watch)
            assert (last.owner_id, last.seq) == (alice, told.seq + 4)
        async with revocations_of(server, told.seq) as again:
            assert (await soon(again)).seq == told.seq
            assert [(await soon(again)).owner_id for _ in range(4)] == [alice] * 4

    served(database_url, tmp_path, script)


@pytest.mark.parametrize("after", [1, 10_000])
def test_who_cannot_be_told_all_is_reset(
    database_url: Secret, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    monkeypatch.setattr(revocations, "KEPT", 2)

    async def script(server: ControlServer) -> None:
        for _ in range(5):
            await revoke(server, (await token_of(server, "alice"))[0])
        newest = (await ask(server, bytes(32))).seq
        async with revocations_of(server, after) as watch:
            await soon(watch)
            told = await soon(watch)
            assert (told.reset, told.seq) == (True, newest)
        engine = await database.connect(database_url)
        async with engine.connect() as connection:
            assert await connection.scalar(text("SELECT count(*) FROM revocations")) == 2
        await engine.dispose()

    served(database_url, tmp_path, script)


def test_a_revocation_that_commits_late_is_not_passed_over(database_url: Secret, tmp_path: Path) -> None:
    async def script(server: ControlServer) -> None:
        first, _ = await token_of(server, "alice")
        second, _ = await token_of(server, "alice")
        engine = await database.connect(database_url)
        async with revocations_of(server) as watch, engine.connect() as slow, engine.connect() as looking:
            await soon(watch)
            late = await revocations.note_revocation(slow, api_key_id=first)
            revoking = asyncio.create_task(revoke(server, second))
            blocked = text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
            while not await looking.scalar(blocked):
                assert not revoking.done(), "the later number became visible before the earlier one"
                await looking.rollback()
            assert await identity.newest_revocation(looking) < late
            await slow.commit()
            await revoking
            told = [await soon(watch), await soon(watch)]
            assert [one.api_key_id for one in told] == [first, second]
            assert told[0].seq == late
        await engine.dispose()

    served(database_url, tmp_path, script)


def test_control_planes_on_one_database_tell_each_others_revocations_also_after_losing_listen(
    database_url: Secret, tmp_path: Path
) -> None:
    async def script(one: ControlServer, two: ControlServer) -> None:
        first, _ = await token_of(one, "alice")
        second, _ = await token_of(one, "alice")
        async with revocations_of(two) as watch:
            await soon(watch)
            await revoke(one, first)
            assert (await soon(watch)).api_key_id == first
            assert await cut_listeners(database_url) >= 2
            await revoke(one, second)
            assert (await soon(watch)).api_key_id == second

    served(database_url, tmp_path, script, servers=2)


def test_a_pooler_that_passes_no_notification_on_delays_a_change_and_loses_none(
    database_url: Secret, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "POLL_INTERVAL", 0.1)

    async def script(server: ControlServer) -> None:
        engine = await database.connect(database_url)
        async with providers_of(server) as watch, revocations_of(server) as revoked:
            revision = (await soon(watch)).revision
            await soon(revoked)
            async with engine.begin() as connection:
                # as if their NOTIFY had been lost
                await connection.execute(
                    text("INSERT INTO provider_revisions (actor, reason) VALUES ('test', 'unheard')")
                )
                await connection.execute(text("INSERT INTO revocations (owner_id) VALUES (gen_random_uuid())"))
            assert (await soon(watch)).revision > revision
            assert (await soon(revoked)).owner_id
        await engine.dispose()

    served(database_url, tmp_path, script)


def test_a_listen_url_that_leads_nowhere_costs_the_notifications_and_not_the_start(
    database_url: Secret, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "POLL_INTERVAL", 0.1)
    nowhere = Secret("postgresql://127.0.0.1:9/none")

    async def go() -> None:
        settings = control_settings(database_url, tmp_path, database_listen_url=nowhere)
        async with serving(settings) as server, providers_of(server) as watch:
            await soon(watch)
            await add_provider(server, "one")
            assert (await soon(watch)).kind == CHANGED

    uvloop.run(go())
