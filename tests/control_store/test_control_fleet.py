"""Fleet.ReportStatus and what is shown of it."""

import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import uvloop
from sqlalchemy import text

from ostiary.control import database
from ostiary.control.store import replicas
from ostiary.core.ids import new_id
from ostiary.core.secret import Secret
from tests.support.control_server import OWNER_TOKEN, ControlServer, control_settings, serving

PATH = "/api/v2/ai-gateway/replicas"


def served(url: Secret, data_dir: Path, script: Callable[[ControlServer], Awaitable[None]]) -> None:
    async def go() -> None:
        async with serving(control_settings(url, data_dir)) as server:
            await script(server)

    uvloop.run(go())


def status(**fields: Any) -> dict[str, Any]:
    return {"replicaId": new_id(), "hostname": "berlin-1", "build": "1.2.3", "mode": "standalone"} | fields


async def execute(url: Secret, statement: str) -> None:
    engine = await database.connect(url)
    async with engine.begin() as connection:
        await connection.execute(text(statement))
    await engine.dispose()


def test_what_a_gateway_says_is_shown_as_it_said_it_last(database_url: Secret, tmp_path: Path) -> None:
    async def script(server: ControlServer) -> None:
        journal = {"journalId": new_id(), "appendedSeq": "12", "ackedSeq": "10", "bytes": "4096", "live": True}
        first = status(
            revision="7",
            workers=[{"worker": 1, "pid": 4711, "journalId": journal["journalId"], "revision": "7"}],
            keys=[{"provider": "openai", "keyId": "k", "hint": "sk-1...wxyz", "state": "cooling", "until": "99"}],
            breakers=[{"provider": "openai", "route": "/v1/responses", "model": "m", "state": "open"}],
            journals=[journal],
            providerErrors={"odd\u0000": "no keys"},
            clockAheadUs="-2500400",
        )
        before = time.time_ns() // 1000
        answer = (await server.rpc("Fleet/ReportStatus", first)).json()
        assert before <= int(answer["nowUs"]) <= time.time_ns() // 1000
        page = (await server.get(PATH)).json()
        assert page["count"] == 1
        (shown,) = page["replicas"]
        assert (shown["replica_id"], shown["state"], shown["revision"]) == (first["replicaId"], "live", 7)
        assert (shown["hostname"], shown["build"], shown["mode"]) == ("berlin-1", "1.2.3", "standalone")
        worker = {"worker": 1, "pid": 4711, "journal_id": journal["journalId"], "revision": 7}
        assert shown["workers"] == [worker]
        assert shown["keys"][0]["hint"] == "sk-1...wxyz"
        assert shown["breakers"][0]["state"] == "open"
        assert (shown["journals"][0]["appended_seq"], shown["journals"][0]["acked_seq"]) == (12, 10)
        assert shown["clock_ahead_ms"] == -2500
        assert shown["provider_errors"] == {"odd\N{REPLACEMENT CHARACTER}": "no keys"}

        again = status(replicaId=first["replicaId"], hostname="berlin-2", build="x" * 10_000)
        assert (await server.rpc("Fleet/ReportStatus", again)).status_code == 200
        (later,) = (await server.get(PATH)).json()["replicas"]
        assert (later["hostname"], later["workers"], later["provider_errors"]) == ("berlin-2", [], {})
        assert later["clock_ahead_ms"] is None
        assert len(later["build"]) == 512
        assert later["first_seen"] == shown["first_seen"]
        assert later["last_seen"] > shown["last_seen"]

    served(database_url, tmp_path, script)


def test_who_stops_reporting_is_stale_and_then_forgotten(database_url: Secret, tmp_path: Path) -> None:
    async def script(server: ControlServer) -> None:
        quiet, gone, here = (status(hostname=name) for name in ("quiet", "gone", "here"))
        for one in (quiet, gone):
            await server.rpc("Fleet/ReportStatus", one)
        await execute(
            database_url,
            "UPDATE replicas SET last_seen = now() - CASE hostname WHEN 'gone' THEN interval '25 hours'"
            " ELSE interval '31 seconds' END",
        )
        await server.rpc("Fleet/ReportStatus", here)
        shown = (await server.get(PATH)).json()["replicas"]
        assert [(one["hostname"], one["state"]) for one in shown] == [("here", "live"), ("quiet", "stale")]
        await server.rpc("Fleet/ReportStatus", quiet)
        shown = (await server.get(PATH)).json()["replicas"]
        assert [(one["hostname"], one["state"]) for one in shown] == [("here", "live"), ("quiet", "live")]

    served(database_url, tmp_path, script)


def test_no_more_are_kept_than_allowed(database_url: Secret, tmp_path: Path) -> None:
    async def script(server: ControlServer) -> None:
        await execute(
            database_url,
            "INSERT INTO replicas (replica_id, hostname, mode, build, revision, status, last_seen)"
            " SELECT gen_random_uuid(), 'old', 'embedded', '', 0, '{}', now() - interval '1 hour'"
            f" FROM generate_series(1, {replicas.MAX_REPLICAS + 5})",
        )
        newest = status()
        await server.rpc("Fleet/ReportStatus", newest)
        shown = (await server.get(PATH)).json()
        assert shown["count"] == replicas.MAX_REPLICAS
        assert newest["replicaId"] in [one["replica_id"] for one in shown["replicas"]]

    served(database_url, tmp_path, script)


def test_nonsense_is_refused_and_says_what_is_allowed(database_url: Secret, tmp_path: Path) -> None:
    async def script(server: ControlServer) -> None:
        for wrong, said in (
            (status(replicaId="me"), "replica_id must be a UUID"),
            (status(mode="both"), "mode must be one of embedded, standalone"),
        ):
            answer = await server.rpc("Fleet/ReportStatus", wrong)
            assert (answer.status_code, answer.json()["code"]) == (400, "invalid_argument")
            assert answer.json()["message"] == said
        answer = await server.rpc("Fleet/ReportStatus", status(build="x" * 2_000_000))
        assert answer.json()["code"] == "resource_exhausted"
        answer = await server.rpc("Fleet/ReportStatus", status(revision=str(2**64 - 1)))
        assert answer.status_code == 200

    served(database_url, tmp_path, script)


def test_owners_admins_and_auditors_may_look(database_url: Secret, tmp_path: Path) -> None:
    async def script(server: ControlServer) -> None:
        owner = {"Authorization": f"Bearer {OWNER_TOKEN}"}
        expected = {"admin": 200, "auditor": 200, "member": 403}
        for role, code in expected.items():
            await server.http.post("/api/v2/users", json={"username": role, "role": role}, headers=owner)
            made = await server.http.post("/api/v2/tokens", json={"name": "t", "user": role}, headers=owner)
            assert (await server.get(PATH, made.json()["token"])).status_code == code, role
        assert (await server.get(PATH)).status_code == 200
        assert (await server.get(PATH, None)).status_code == 401

    served(database_url, tmp_path, script)
