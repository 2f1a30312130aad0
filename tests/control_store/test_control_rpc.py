"""The RPC surface over real HTTP."""

import asyncio
import base64
import hashlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import asyncpg
import pytest
import uvloop
from connectrpc.code import Code
from connectrpc.errors import ConnectError
from sqlalchemy import text

from ostiary.control import database
from ostiary.control.locks import SEED_LOCK
from ostiary.core.ids import new_id
from ostiary.core.secret import Secret
from ostiary.core.settings import DemoProvider
from ostiary.rpc import ostiary_pb2 as pb
from ostiary.rpc import version
from ostiary.rpc.ostiary_connect import AuthorizerClient, ProviderConfiguratorClient, RecorderClient
from tests.support.control_server import GATEWAY_KEY, OWNER_TOKEN, ControlServer, control_settings, serving
from tests.support.postgres import PostgresServer
from tests.support.records import encoded, end, start

T = TypeVar("T")
HEADERS = {version.HEADER_GATEWAY_KEY: GATEWAY_KEY, version.HEADER_API_VERSION: version.CURRENT}
PROVIDERS = (
    DemoProvider("demo-openai", "openai", "http://127.0.0.1:4010/v1", Secret("sk-demo-openai")),
    DemoProvider("demo-anthropic", "anthropic", "http://127.0.0.1:4010", Secret("sk-demo-anthropic")),
)


def served(url: Secret, data_dir: Path, script: Callable[[ControlServer], Awaitable[T]]) -> T:
    async def go() -> T:
        async with serving(control_settings(url, data_dir, demo_providers=PROVIDERS)) as server:
            return await script(server)

    return uvloop.run(go())


def test_records_are_stored_and_acknowledged(database_url: Secret, tmp_path: Path) -> None:
    async def script(server: ControlServer) -> None:
        client = RecorderClient(server.url, send_compression=None)
        one = start()
        batch = pb.RecordBatch(journal_id=new_id(), first_seq=1, records=[*encoded([one, end(one)]), b"nonsense"])
        ack = await client.record(batch, headers=HEADERS)
        assert ack.acked_seq == 3
        assert [(one.seq, bool(one.reason)) for one in ack.rejected] == [(3, True)]
        assert (await server.get(f"/api/v2/ai-gateway/interceptions/{one.id}")).status_code == 200
        with pytest.raises(ConnectError) as caught:
            await client.record(pb.RecordBatch(journal_id=new_id(), first_seq=7, records=[b"x"]), headers=HEADERS)
        assert caught.value.code is Code.FAILED_PRECONDITION
        assert "begin at 1" in caught.value.message

    served(database_url, tmp_path, script)


def test_any_call_can_be_tried_with_curl(database_url: Secret, tmp_path: Path) -> None:
    async def script(server: ControlServer) -> None:
        journal, one = new_id(), start()
        records = [base64.b64encode(payload).decode() for payload in encoded([one])]
        answer = await server.rpc("Recorder/Record", {"journalId": journal, "firstSeq": 1, "records": records})
        assert answer.json() == {"ackedSeq": "1"}
        answer = await server.rpc("Recorder/Record", {"journalId": journal})
        assert answer.json() == {"ackedSeq": "1"}

    served(database_url, tmp_path, script)


REFUSED = [
    ({version.HEADER_GATEWAY_KEY: ""}, 401, "unauthenticated", "is needed"),
    ({version.HEADER_GATEWAY_KEY: "wrong"}, 401, "unauthenticated", "not valid"),
    ({version.HEADER_GATEWAY_KEY: "wrong", version.HEADER_API_VERSION: "9.0"}, 401, "unauthenticated", "not valid"),
    ({version.HEADER_API_VERSION: ""}, 400, "failed_precondition", "MAJOR.MINOR"),
    ({version.HEADER_API_VERSION: "2.0"}, 400, "failed_precondition", "2.0"),
    ({version.HEADER_API_VERSION: "1.999"}, 400, "failed_precondition", version.CURRENT),
]


def test_the_gate_refuses_before_anything_is_read(database_url: Secret, tmp_path: Path) -> None:
    async def script(server: ControlServer) -> None:
        for method in ("Recorder/Record", "Authorizer/IsAuthorized", "ProviderConfigurator/GetAIProviders"):
            for headers, status, code, says in REFUSED:
                answer = await server.rpc(method, {"not": "read"}, **headers)
                assert (answer.status_code, answer.json()["code"]) == (status, code), headers
                assert says in answer.json()["message"]
                assert GATEWAY_KEY not in answer.text

    served(database_url, tmp_path, script)


def test_bad_questions_are_invalid_arguments(database_url: Secret, tmp_path: Path) -> None:
    async def script(server: ControlServer) -> None:
        for method, body in (
            ("Recorder/Record", {"journalId": "no-uuid"}),
            ("Recorder/Record", {"journalId": new_id(), "records": ["eA=="]}),
            ("Authorizer/IsAuthorized", {}),
            ("Authorizer/IsAuthorized", {"tokenSha256": "eA=="}),
        ):
            answer = await server.rpc(method, body)
            assert (answer.status_code, answer.json()["code"]) == (400, "invalid_argument"), body
        assert (await server.rpc("Recorder/Nothing", {})).status_code == 404

    served(database_url, tmp_path, script)


def test_a_token_is_authorized_by_its_hash_and_an_unknown_one_refused(database_url: Secret, tmp_path: Path) -> None:
    async def script(server: ControlServer) -> None:
        client = AuthorizerClient(server.url)
        digest = hashlib.sha256(OWNER_TOKEN.encode()).digest()
        found = await client.is_authorized(pb.IsAuthorizedRequest(token_sha256=digest), headers=HEADERS)
        assert (found.refusal, found.username, found.role) == (pb.AUTHORIZATION_REFUSAL_UNSPECIFIED, "admin", "owner")
        assert found.ttl == 60.0
        by_id = await client.is_authorized(pb.IsAuthorizedRequest(key_id=found.api_key_id), headers=HEADERS)
        assert by_id.owner_id == found.owner_id
        unknown = await client.is_authorized(pb.IsAuthorizedRequest(token_sha256=bytes(32)), headers=HEADERS)
        assert unknown.refusal == pb.AUTHORIZATION_REFUSAL_UNKNOWN
        assert unknown.owner_id == ""

    served(database_url, tmp_path, script)


def test_the_full_set_of_providers_is_given_with_keys(database_url: Secret, tmp_path: Path) -> None:
    async def script(server: ControlServer) -> None:
        client = ProviderConfiguratorClient(server.url)
        found = await client.get_ai_providers(pb.GetAIProvidersRequest(), headers=HEADERS)
        assert [(one.name, one.type, [key.value for key in one.keys]) for one in found.providers] == [
            ("demo-anthropic", "anthropic", ["sk-demo-anthropic"]),
            ("demo-openai", "openai", ["sk-demo-openai"]),
        ]
        assert found.revision > 0
        same = await client.get_ai_providers(pb.GetAIProvidersRequest(known_revision=found.revision), headers=HEADERS)
        assert (same.unchanged, len(same.providers), same.revision) == (True, 0, found.revision)

    served(database_url, tmp_path, script)


def test_providers_are_read_only_after_a_seed_in_flight(database_url: Secret, tmp_path: Path) -> None:
    async def script(server: ControlServer) -> None:
        client = ProviderConfiguratorClient(server.url)
        before = await client.get_ai_providers(pb.GetAIProvidersRequest(), headers=HEADERS)
        engine = await database.connect(database_url)
        async with engine.connect() as seeding, engine.connect() as watching:
            await seeding.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": SEED_LOCK})
            asking = asyncio.create_task(client.get_ai_providers(pb.GetAIProvidersRequest(), headers=HEADERS))
            blocked = text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
            while not await watching.scalar(blocked):
                assert not asking.done(), "it did not wait"
                await watching.rollback()
            await seeding.execute(
                text("UPDATE ai_providers SET base_url = 'http://127.0.0.1:1/seeded' WHERE name = 'demo-openai'")
            )
            assert not asking.done()
            await seeding.commit()
            found = await asking
        await engine.dispose()
        assert {one.name: one.base_url for one in found.providers}["demo-openai"] == "http://127.0.0.1:1/seeded"
        assert len(found.providers) == len(before.providers)

    served(database_url, tmp_path, script)


def test_a_database_that_goes_away_makes_calls_unavailable_and_they_recover(
    postgres_server: PostgresServer, database_url: Secret, tmp_path: Path
) -> None:
    name = urlsplit(database_url.reveal()).path.removeprefix("/")
    journal = new_id()
    batch = {"journalId": journal, "firstSeq": 1, "records": [base64.b64encode(encoded([start()])[0]).decode()]}

    async def script(server: ControlServer) -> None:
        admin = await asyncpg.connect(postgres_server.asyncpg_dsn("postgres"))
        assert (await server.get("/readyz")).status_code == 200
        await admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        await admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name)
        for method, body in (
            ("Recorder/Record", batch),
            ("Authorizer/IsAuthorized", {"keyId": new_id()}),
            ("ProviderConfigurator/GetAIProviders", {}),
        ):
            answer = await server.rpc(method, body)
            assert (answer.status_code, answer.json()["code"]) == (503, "unavailable"), method
        answer = await server.get("/api/v2/ai-gateway/interceptions")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
        assert (await server.get("/readyz")).status_code == 503
        assert (await server.get("/healthz")).status_code == 200
        await admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        await admin.close()
        assert (await server.rpc("Recorder/Record", batch)).json() == {"ackedSeq": "1"}
        assert (await server.get("/readyz")).status_code == 200

    served(database_url, tmp_path, script)
