"""How keys and breakers fare, as gateways tell it and as the API shows it."""

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import uvloop
from sqlalchemy import text

from ostiary.control import database
from ostiary.core.ids import new_id
from ostiary.core.secret import Secret
from tests.support.control_server import OWNER_TOKEN, ControlServer, control_settings, serving

KEYS = ["sk-first-key-0123456789-aaaa", "sk-second-key-0123456789-bbbb"]
OWNER = {"Authorization": f"Bearer {OWNER_TOKEN}"}
COOLING = {"state": "cooling", "reason": "rate_limited", "model": "gpt-5", "until": "1800000060"}


def served(url: Secret, data_dir: Path, script: Callable[[ControlServer], Awaitable[None]]) -> None:
    async def go() -> None:
        async with serving(control_settings(url, data_dir)) as server:
            await script(server)

    uvloop.run(go())


async def add_provider(server: ControlServer, name: str = "pool") -> list[str]:
    """Gives the ids of its keys."""
    body = {"name": name, "type": "openai", "base_url": "http://127.0.0.1:1/v1", "api_keys": KEYS}
    made = await server.http.post("/api/v2/ai/providers", json=body, headers=OWNER)
    assert made.status_code == 201, made.text
    return [key["id"] for key in made.json()["api_keys"]]


async def report(server: ControlServer, host: str, keys: list[dict[str, Any]], **fields: Any) -> str:
    replica_id = new_id()
    status = {"replicaId": replica_id, "hostname": host, "build": "1.2.3", "mode": "standalone", "keys": keys}
    answer = await server.rpc("Fleet/ReportStatus", status | fields)
    assert answer.status_code == 200, answer.text
    return replica_id


def status_of(key_id: str, provider: str = "pool", **fields: Any) -> dict[str, Any]:
    return {"provider": provider, "keyId": key_id, "hint": "sk-f...aaaa", "state": "usable"} | fields


async def execute(url: Secret, statement: str, **parameters: str) -> None:
    engine = await database.connect(url)
    async with engine.begin() as connection:
        await connection.execute(text(statement), parameters)
    await engine.dispose()


def test_replicas_show_keys_and_breakers_with_times(database_url: Secret, tmp_path: Path) -> None:
    async def script(server: ControlServer) -> None:
        key = status_of(
            "k",
            **COOLING,
            since="1800000000",
            cooling=[{"model": "gpt-5", "reason": "rate_limited", "until": "1800000060"}],
            timeline=[{"at": "1800000000", **COOLING}],
        )
        breaker = {"provider": "pool", "route": "/v1/responses", "model": "m", "state": "open"}
        await report(
            server, "a", [key, status_of("l")], breakers=[breaker | {"until": "1800000030", "since": "1800000000"}]
        )
        (shown,) = (await server.get("/api/v2/ai-gateway/replicas")).json()["replicas"]
        limited = {"state": "cooling", "reason": "rate_limited", "model": "gpt-5", "until": "2027-01-15T08:01:00Z"}
        assert shown["keys"][0] == {
            "provider": "pool",
            "key_id": "k",
            "hint": "sk-f...aaaa",
            **limited,
            "since": "2027-01-15T08:00:00Z",
            "strikes": 0,
            "cooling": [{"model": "gpt-5", "reason": "rate_limited", "until": "2027-01-15T08:01:00Z"}],
            "timeline": [{"at": "2027-01-15T08:00:00Z", **limited, "strikes": 0}],
        }
        assert (shown["keys"][1]["until"], shown["keys"][1]["timeline"]) == (None, [])
        assert shown["breakers"] == [
            breaker | {"until": "2027-01-15T08:00:30Z", "since": "2027-01-15T08:00:00Z"},
        ]

    served(database_url, tmp_path, script)


def test_the_keys_of_a_provider_are_shown_in_order_with_what_each_gateway_has_found(
    database_url: Secret, tmp_path: Path
) -> None:
    async def script(server: ControlServer) -> None:
        first, second = await add_provider(server)
        await add_provider(server, "other")
        refused = {"state": "suspect", "reason": "refused", "strikes": 2, "until": "1800000120"}
        here = await report(server, "b", [status_of(first), status_of(second, **refused)])
        there = await report(server, "a", [status_of(first, **COOLING), status_of(first, "other", **refused)])
        await report(server, "gone", [status_of(first)])
        await execute(
            database_url, "UPDATE replicas SET last_seen = now() - interval '1 minute' WHERE hostname = 'gone'"
        )
        page = (await server.get("/api/v2/ai/providers/pool/keys")).json()
        assert (page["provider"], page["enabled"]) == ("pool", True)
        assert [(key["position"], key["id"], key["masked"]) for key in page["keys"]] == [
            (1, first, "sk-f...aaaa"),
            (2, second, "sk-s...bbbb"),
        ]
        found = [(one["hostname"], one["replica_state"], one["state"]) for one in page["keys"][0]["replicas"]]
        assert found == [("a", "live", "cooling"), ("b", "live", "usable"), ("gone", "stale", "usable")]
        assert [one["replica_id"] for one in page["keys"][0]["replicas"][:2]] == [there, here]
        (suspect,) = page["keys"][1]["replicas"]
        assert (suspect["state"], suspect["reason"], suspect["strikes"]) == ("suspect", "refused", 2)
        assert suspect["until"] == "2027-01-15T08:02:00Z"
        assert not any(key in str(page) for key in KEYS)
        assert (await server.get("/api/v2/ai/providers/none/keys")).status_code == 404
        assert (await server.get("/api/v2/ai/providers/no%20name/keys")).status_code == 400

    served(database_url, tmp_path, script)


def test_a_key_that_no_gateway_has_told_of_is_there_all_the_same(database_url: Secret, tmp_path: Path) -> None:
    async def script(server: ControlServer) -> None:
        await add_provider(server)
        page = (await server.get("/api/v2/ai/providers/pool/keys")).json()
        assert [key["replicas"] for key in page["keys"]] == [[], []]

    served(database_url, tmp_path, script)


def test_owners_admins_and_auditors_may_look_at_keys(database_url: Secret, tmp_path: Path) -> None:
    async def script(server: ControlServer) -> None:
        await add_provider(server)
        path = "/api/v2/ai/providers/pool/keys"
        for role, code in {"admin": 200, "auditor": 200, "member": 403}.items():
            await server.http.post("/api/v2/users", json={"username": role, "role": role}, headers=OWNER)
            made = await server.http.post("/api/v2/tokens", json={"name": "t", "user": role}, headers=OWNER)
            assert (await server.get(path, made.json()["token"])).status_code == code, role
        assert (await server.get(path)).status_code == 200
        assert (await server.get(path, None)).status_code == 401

    served(database_url, tmp_path, script)


def test_what_no_gateway_should_say_harms_nobody(database_url: Secret, tmp_path: Path) -> None:
    async def script(server: ControlServer) -> None:
        first, _ = await add_provider(server)
        odd = status_of(
            first,
            state="melted\u0000" + "x" * 1000,
            until=str(2**63 - 1),
            since="-5",
            timeline=[{"at": str(-(2**63)), "model": "m\u0000" * 600}],
        )
        await report(server, "odd", [odd])
        (shown,) = (await server.get("/api/v2/ai/providers/pool/keys")).json()["keys"][0]["replicas"]
        assert (len(shown["state"]), shown["until"], shown["since"]) == (512, None, None)
        assert (shown["timeline"][0]["at"], len(shown["timeline"][0]["model"])) == (None, 512)
        assert "\u0000" not in str(shown)
        assert (await server.get("/api/v2/ai-gateway/replicas")).status_code == 200

    served(database_url, tmp_path, script)


def test_what_a_gateway_of_an_earlier_version_said_is_still_shown(database_url: Secret, tmp_path: Path) -> None:
    async def script(server: ControlServer) -> None:
        first, _ = await add_provider(server)
        key = {"provider": "pool", "key_id": first, "hint": "h", "state": "usable", "reason": "", "until": 0}
        await execute(
            database_url,
            "INSERT INTO replicas (replica_id, hostname, mode, build, revision, status)"
            " VALUES (gen_random_uuid(), 'old', 'embedded', '1.0', 1, CAST(:status AS jsonb))",
            status=json.dumps({"keys": [key]}),
        )
        (shown,) = (await server.get("/api/v2/ai/providers/pool/keys")).json()["keys"][0]["replicas"]
        assert (shown["state"], shown["until"], shown["since"], shown["timeline"]) == ("usable", None, None, [])
        (replica,) = (await server.get("/api/v2/ai-gateway/replicas")).json()["replicas"]
        assert (replica["keys"][0]["hint"], replica["breakers"], replica["journals"]) == ("h", [], [])

    served(database_url, tmp_path, script)


def test_the_api_describes_what_it_shows_of_keys(database_url: Secret, tmp_path: Path) -> None:
    async def script(server: ControlServer) -> None:
        api = (await server.get("/openapi.json")).json()
        operation = api["paths"]["/api/v2/ai/providers/{id_or_name}/keys"]["get"]
        assert "in the order of failover" in operation["description"]
        schemas = api["components"]["schemas"]
        for name in ("ReplicaKey", "KeyOnReplica", "KeyTransition", "KeyCooling", "ReplicaBreaker", "PooledKey"):
            assert schemas[name]["description"], name
        assert "suspect" in schemas["KeyOnReplica"]["properties"]["state"]["description"]
        assert schemas["Replica"]["properties"]["keys"]["items"]["$ref"].endswith("/ReplicaKey")

    served(database_url, tmp_path, script)
