"""Gateway keys: the API, and what the RPC gate makes of them."""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import asyncpg
import httpx
import pytest
import uvloop
from connectrpc.code import Code
from connectrpc.errors import ConnectError

from ostiary.control.gateway_keys import calls
from ostiary.core.secret import Secret
from ostiary.rpc import ostiary_pb2 as pb
from ostiary.rpc import version
from ostiary.rpc.ostiary_connect import ProviderConfiguratorClient
from tests.support.control_server import FRONT_DOOR, OWNER_TOKEN, ControlServer, control_settings, serving

T = TypeVar("T")
PATH = "/api/v2/ai-gateway/keys"
ALPHABET = set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789")


def served(url: Secret, data_dir: Path, script: Callable[[ControlServer], Awaitable[T]]) -> T:
    async def go() -> T:
        async with serving(control_settings(url, data_dir)) as server:
            return await script(server)

    return uvloop.run(go())


async def call(
    server: ControlServer, method: str, path: str, body: Any = None, token: str = OWNER_TOKEN
) -> httpx.Response:
    return await server.http.request(method, path, json=body, headers={"Authorization": f"Bearer {token}"})


async def made(server: ControlServer, name: str = "berlin") -> dict[str, str]:
    answer = await call(server, "POST", PATH, {"name": name})
    assert answer.status_code == 201, answer.text
    key: dict[str, str] = answer.json()
    return key


def headers(key: str, **changes: str) -> dict[str, str]:
    return {version.HEADER_GATEWAY_KEY: key, version.HEADER_API_VERSION: version.CURRENT} | changes


async def rows(url: Secret, query: str, *values: object) -> list[Any]:
    connection = await asyncpg.connect(url.reveal().replace("+asyncpg", ""))
    try:
        return list(await connection.fetch(query, *values))
    finally:
        await connection.close()


def test_a_key_is_told_once_and_stored_as_its_hash(database_url: Secret, tmp_path: Path) -> None:
    async def script(server: ControlServer) -> None:
        key = await made(server)
        secret = key["key"]
        assert set(key) == {"id", "name", "key", "key_prefix", "created_at"}
        assert len(secret) == 43
        assert set(secret) <= ALPHABET
        assert key["key_prefix"] == secret[:11]
        for path in (PATH, "/api/v2/aibridge/keys"):
            (listed,) = (await call(server, "GET", path)).json()
            assert listed == {name: key[name] for name in ("id", "name", "key_prefix", "created_at")} | {
                "last_heartbeat_at": None
            }
        (row,) = await rows(database_url, "SELECT * FROM ai_gateway_keys")
        assert row["key_sha256"] == hashlib.sha256(secret.encode()).digest()
        assert secret not in str(dict(row))
        assert (await call(server, "DELETE", f"{PATH}/{key['id']}")).status_code == 204
        assert (await call(server, "GET", PATH)).json() == []
        entries = (await call(server, "GET", "/api/v2/audit?resource_type=gateway_key")).json()["results"]
        assert [(entry["action"], entry["actor"], entry["resource_name"]) for entry in entries] == [
            ("delete", "admin", "berlin"),
            ("create", "admin", "berlin"),
        ]
        assert secret not in str(entries)
        assert secret[11:] not in str(entries)

    served(database_url, tmp_path, script)


@pytest.mark.parametrize("name", ["", "Berlin", "a--b", "-a", "a-", "a b", "a_b", "ä", "a" * 65])
def test_a_bad_name_is_refused_with_what_is_allowed(name: str, database_url: Secret, tmp_path: Path) -> None:
    async def script(server: ControlServer) -> None:
        answer = await call(server, "POST", PATH, {"name": name})
        assert answer.status_code == 400
        assert answer.json()["message"] == "Invalid key name."
        assert "64 characters or fewer" in answer.json()["detail"]

    served(database_url, tmp_path, script)


def test_what_cannot_be_done_with_keys(database_url: Secret, tmp_path: Path) -> None:
    async def script(server: ControlServer) -> None:
        key = await made(server, "a" * 64)
        answer = await call(server, "POST", PATH, {"name": "a" * 64})
        assert (answer.status_code, answer.json()["message"]) == (400, "Key name must be unique.")
        answer = await call(server, "DELETE", f"{PATH}/nonsense")
        assert (answer.status_code, answer.json()["message"]) == (400, "Invalid key ID.")
        answer = await call(server, "DELETE", f"{PATH}/{'0' * 8}-0000-7000-8000-{'0' * 12}")
        assert answer.status_code == 404
        for role in ("admin", "auditor", "member"):
            await call(server, "POST", "/api/v2/users", {"username": f"a-{role}", "role": role})
            token = (await call(server, "POST", "/api/v2/tokens", {"name": "t", "user": f"a-{role}"})).json()["token"]
            for method, path, body in (
                ("GET", PATH, None),
                ("POST", PATH, {"name": "x"}),
                ("DELETE", f"{PATH}/{key['id']}", None),
            ):
                assert (await call(server, method, path, body, token)).status_code == 403
        assert (await server.http.get(PATH)).status_code == 401
        assert len((await call(server, "GET", PATH)).json()) == 1

    served(database_url, tmp_path, script)


def test_a_stored_key_opens_rpc_and_its_heartbeat_is_noted(database_url: Secret, tmp_path: Path) -> None:
    async def script(server: ControlServer) -> None:
        key = await made(server)
        secret = key["key"]
        client = ProviderConfiguratorClient(server.url, send_compression=None)
        await client.get_ai_providers(pb.GetAIProvidersRequest(), headers=headers(secret))
        (listed,) = (await call(server, "GET", PATH)).json()
        first = listed["last_heartbeat_at"]
        assert first is not None
        await client.get_ai_providers(pb.GetAIProvidersRequest(), headers=headers(secret))
        (listed,) = (await call(server, "GET", PATH)).json()
        assert listed["last_heartbeat_at"] == first, "noted once a minute"
        for wrong in (secret[:-1] + ("a" if secret[-1] != "a" else "b"), secret[:11], secret + "a", "x"):
            answer = await server.rpc("ProviderConfigurator/GetAIProviders", {}, **headers(wrong))
            assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")
        answer = await server.rpc("ProviderConfigurator/GetAIProviders", {}, **headers(""))
        assert "ostiary gateway keys create" in answer.json()["message"]
        newer = f"{version.MAJOR}.{version.MINOR + 1}"
        answer = await server.rpc(
            "ProviderConfigurator/GetAIProviders", {}, **headers(secret, **{version.HEADER_API_VERSION: newer})
        )
        assert answer.json()["code"] == "failed_precondition"
        assert newer in answer.json()["message"]
        assert version.CURRENT in answer.json()["message"]

    served(database_url, tmp_path, script)


async def first_of_a_watch(server: ControlServer, secret: str) -> tuple[Any, "asyncio.Task[ConnectError | None]"]:
    """The first message of a watch, and what it ends with."""
    client = ProviderConfiguratorClient(server.url, send_compression=None)
    stream = client.watch_ai_providers(pb.WatchAIProvidersRequest(), headers=headers(secret))
    first = await anext(stream)

    async def rest() -> ConnectError | None:
        try:
            async for _ in stream:
                pass
        except ConnectError as error:
            return error
        return None

    return first, asyncio.create_task(rest())


def test_a_deleted_key_ends_its_streams_at_once_and_those_of_no_other(
    database_url: Secret, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not when they are looked at again."""
    monkeypatch.setattr("ostiary.control.services.gate.RECHECK_SECONDS", 600.0)

    async def script(server: ControlServer) -> None:
        one, other = await made(server, "one"), await made(server, "other")
        _, ended = await first_of_a_watch(server, one["key"])
        _, lasting = await first_of_a_watch(server, other["key"])
        assert (await call(server, "DELETE", f"{PATH}/{one['id']}")).status_code == 204
        async with asyncio.timeout(20):
            error = await ended
        assert error is not None
        assert error.code is Code.UNAUTHENTICATED
        assert "deleted" in error.message
        answer = await server.rpc("ProviderConfigurator/GetAIProviders", {}, **headers(one["key"]))
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")
        answer = await server.rpc("ProviderConfigurator/GetAIProviders", {}, **headers(other["key"]))
        assert answer.status_code == 200
        assert not lasting.done()
        lasting.cancel()
        await asyncio.gather(lasting, return_exceptions=True)

    served(database_url, tmp_path, script)


def test_a_key_deleted_elsewhere_ends_its_streams_soon(
    database_url: Secret, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ostiary.control.services.gate.RECHECK_SECONDS", 0.05)

    async def script(server: ControlServer) -> None:
        key = await made(server)
        _, ended = await first_of_a_watch(server, key["key"])
        await rows(database_url, "DELETE FROM ai_gateway_keys")
        async with asyncio.timeout(20):
            error = await ended
        assert error is not None
        assert error.code is Code.UNAUTHENTICATED

    served(database_url, tmp_path, script)


@pytest.mark.parametrize("noted", ["now() - interval '61 s'", "now() + interval '1 day'"], ids=["long ago", "ahead"])
def test_heartbeats_are_noted_by_streams_that_last_also_after_a_clock_was_set_back(
    database_url: Secret, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, noted: str
) -> None:
    monkeypatch.setattr("ostiary.control.services.gate.RECHECK_SECONDS", 0.05)
    monkeypatch.setattr(calls, "HEARTBEAT_SECONDS", 0.1)

    async def script(server: ControlServer) -> None:
        key = await made(server)
        _, ended = await first_of_a_watch(server, key["key"])
        await rows(database_url, f"UPDATE ai_gateway_keys SET last_heartbeat_at = {noted} RETURNING id")
        async with asyncio.timeout(20):
            while not await rows(
                database_url,
                "SELECT 1 FROM ai_gateway_keys WHERE abs(extract(epoch FROM now() - last_heartbeat_at)) < 30",
            ):
                await asyncio.sleep(0.02)
        assert not ended.done()
        ended.cancel()
        await asyncio.gather(ended, return_exceptions=True)

    served(database_url, tmp_path, script)


def test_the_key_appears_in_no_log(database_url: Secret, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def script(server: ControlServer) -> str:
        key = await made(server)
        await server.rpc("ProviderConfigurator/GetAIProviders", {}, **headers(key["key"]))
        await call(server, "DELETE", f"{PATH}/{key['id']}")
        await server.rpc("ProviderConfigurator/GetAIProviders", {}, **headers(key["key"]))
        return key["key"]

    secret = served(database_url, tmp_path, script)
    out, err = capsys.readouterr()
    assert "refusing gateway" in out + err
    assert secret not in out + err
    assert FRONT_DOOR not in out + err
