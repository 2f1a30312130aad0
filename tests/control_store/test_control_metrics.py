"""What a control plane tells of itself on the metrics page, and to whom."""

import asyncio
import base64
import gc
from contextlib import closing
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import pytest
import uvloop

from ostiary.control import metrics as control_metrics
from ostiary.control.database import connect
from ostiary.control.metrics import ControlMetrics, MetricsBoard
from ostiary.core.families import Family
from ostiary.core.ids import new_id
from ostiary.core.secret import Secret
from ostiary.rpc import version
from tests.support.control_server import GATEWAY_KEY, OWNER_TOKEN, ControlServer, control_settings, serving
from tests.support.database_door import DatabaseDoor
from tests.support.records import encoded, end, start

Numbers = dict[tuple[str, ...], float]


async def families(server: ControlServer) -> dict[str, Family]:
    answer = await server.rpc("Fleet/GetMetrics", {})
    assert answer.status_code == 200, answer.text
    found = msgspec.msgpack.decode(base64.b64decode(answer.json()["families"]), type=list[Family])
    assert len({one.name for one in found}) == len(found)
    return {one.name.removeprefix("ostiary_control_"): one for one in found}


def numbers(family: Family) -> Numbers:
    return {sample.labels: sample.value for sample in family.samples}


async def new_gateway_key(server: ControlServer) -> str:
    owner = {"Authorization": f"Bearer {OWNER_TOKEN}"}
    made = await server.http.post("/api/v2/ai-gateway/keys", json={"name": "elsewhere"}, headers=owner)
    key: str = made.json()["key"]
    return key


def test_requests_records_and_the_database_are_told(database_url: Secret, tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(control_settings(database_url, tmp_path, retention=86400.0)) as server:
            one, journal = start(initiator_id=new_id()), new_id()
            payloads = [base64.b64encode(frame).decode() for frame in encoded([one, end(one)])]
            body: dict[str, Any] = {"journalId": journal, "firstSeq": 1, "records": [*payloads, "bm9uc2Vuc2U="]}
            assert (await server.rpc("Recorder/Record", body)).status_code == 200
            gap = await server.rpc("Recorder/Record", body | {"firstSeq": 9})
            assert gap.json()["code"] == "failed_precondition"
            assert (
                await server.rpc("Fleet/ReportStatus", {"replicaId": new_id(), "mode": "embedded"})
            ).status_code == 200
            for _ in range(2):
                assert (await server.get(f"/api/v2/ai-gateway/interceptions/{one.id}")).status_code == 200
            assert (await server.get("/api/v2/ai-gateway/interceptions", token="nobody")).status_code == 401
            found = await families(server)
            assert {
                ("/ostiary.v1.Recorder/Record", "POST", "200"): 1,
                ("/ostiary.v1.Recorder/Record", "POST", "400"): 1,
                ("/api/v2/ai-gateway/interceptions/{interception_id}", "GET", "200"): 2,
                ("/api/v2/ai-gateway/interceptions", "GET", "401"): 1,
            }.items() <= numbers(found["requests"]).items()
            times = found["request_duration_seconds"]
            (rpc,) = [one for one in times.samples if one.labels == ("/ostiary.v1.Recorder/Record",)]
            assert sum(rpc.buckets) == 2
            assert numbers(found["ingest_batches"]) == {("stored",): 1, ("failed",): 1}
            assert numbers(found["ingest_records"]) == {("accepted",): 2, ("rejected",): 1}
            assert sum(found["ingest_duration_seconds"].samples[0].buckets) == 1
            assert numbers(found["database_up"]) == {(): 1}
            assert numbers(found["database_bytes"])[()] > 1024**2
            assert abs(numbers(found["oldest_record_timestamp_seconds"])[()] - one.started_at / 1e6) < 1
            assert numbers(found["partitions_missing"]) == {(): 0}
            assert numbers(found["retention_seconds"]) == {(): 86400}
            assert numbers(found["gateways"]) == {("live",): 1, ("stale",): 0}
            assert {labels[0] for labels in numbers(found["database_connections"])} == {"api", "rpc"}

    uvloop.run(main())


def test_what_has_broken_shows(database_url: Secret, tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(control_settings(database_url, tmp_path)) as server:
            admin = await asyncpg.connect(database_url.reveal().replace("+asyncpg", ""))
            names = await admin.fetch("SELECT relname FROM pg_class WHERE relname ~ '^token_usages_[0-9]{8}$' LIMIT 2")
            for row in names:
                await admin.execute(f"DROP TABLE {row['relname']}")
            await admin.execute("UPDATE housekeeping SET complete = false")
            await admin.execute(
                "INSERT INTO replicas (replica_id, hostname, mode, build, revision, status, last_seen)"
                " VALUES ($1, 'gone', 'standalone', '', 0, '{}', now() - interval '1 minute')",
                new_id(),
            )
            await admin.close()
            found = await families(server)
            assert numbers(found["partitions_missing"]) == {(): 2}
            assert numbers(found["gateways"]) == {("live",): 0, ("stale",): 1}

    uvloop.run(main())


def test_without_its_database_it_tells_what_it_knows_itself(
    database_url: Secret, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(control_metrics, "FRESH_SECONDS", 0.0)

    async def main(door: DatabaseDoor) -> None:
        async with serving(control_settings(Secret(door.url), tmp_path)) as server:
            assert numbers((await families(server))["database_up"]) == {(): 1}
            for away in (door.shut, door.hold):
                await asyncio.to_thread(away)
                found = await families(server)
                assert numbers(found["database_up"]) == {(): 0}
                assert numbers(found["database_bytes"]) == {}
                assert numbers(found["gateways"]) == {}
                assert numbers(found["requests"])
                await asyncio.to_thread(door.open)
                async with asyncio.timeout(20):
                    while numbers((await families(server))["database_up"]) != {(): 1}:
                        pass

    with closing(DatabaseDoor(database_url)) as door:
        uvloop.run(main(door))


def test_a_database_whose_sizes_take_too_long_is_not_away(
    database_url: Secret, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(control_metrics, "FRESH_SECONDS", 0.0)
    monkeypatch.setattr(control_metrics, "PATIENCE", "500ms")
    monkeypatch.setattr(control_metrics, "_PATIENCE_SECONDS", 30.0)

    async def main() -> None:
        async with serving(control_settings(database_url, tmp_path)) as server:
            somebody = await asyncpg.connect(database_url.reveal().replace("+asyncpg", ""))
            async with somebody.transaction():
                await somebody.execute("LOCK TABLE replicas, interceptions")
                found = await families(server)
                assert numbers(found["database_up"]) == {(): 1}
                assert numbers(found["database_bytes"]) == {}
            await somebody.close()
            async with asyncio.timeout(20):
                while not numbers((await families(server))["database_bytes"]):
                    pass

    uvloop.run(main())


def test_a_database_whose_connections_are_all_in_use_here_is_not_away(
    database_url: Secret, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(control_metrics, "_PATIENCE_SECONDS", 0.5)

    async def main() -> None:
        engine = await connect(database_url, pool_size=1)
        board = MetricsBoard(ControlMetrics(), database_url, engine, None, 0.0)
        async with engine.connect(), engine.connect():
            found = {one.name: one for one in await board.families(listening=True)}
        assert numbers(found["ostiary_control_database_connections"])["api", "used"] == 2
        assert numbers(found["ostiary_control_database_up"]) == {(): 1}
        assert numbers(found["ostiary_control_database_bytes"]) == {}
        await engine.dispose()

    uvloop.run(main())


def test_a_page_that_is_given_up_before_the_database_is_asked_leaves_nothing_behind(
    database_url: Secret, recwarn: pytest.WarningsRecorder
) -> None:
    async def main() -> None:
        engine = await connect(database_url, pool_size=1)
        board = MetricsBoard(ControlMetrics(), database_url, engine, None, 0.0)
        page = asyncio.create_task(board.families(listening=True))
        await asyncio.sleep(0)  # it has begun, its questions have not
        page.cancel()
        with pytest.raises(asyncio.CancelledError):
            await page
        await engine.dispose()

    uvloop.run(main())
    gc.collect()
    assert [str(one.message) for one in recwarn] == []


def test_only_the_link_of_its_own_machine_may_ask(database_url: Secret, tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(control_settings(database_url, tmp_path)) as server:
            elsewhere = {version.HEADER_GATEWAY_KEY: await new_gateway_key(server)}
            assert (await server.rpc("Authorizer/IsAuthorized", {"keyId": new_id()}, **elsewhere)).status_code == 200
            refused = await server.rpc("Fleet/GetMetrics", {}, **elsewhere)
            assert (refused.status_code, refused.json()["code"]) == (403, "permission_denied")
            unknown = await server.rpc("Fleet/GetMetrics", {}, **{version.HEADER_GATEWAY_KEY: "guess"})
            assert (unknown.status_code, unknown.json()["code"]) == (401, "unauthenticated")
            assert (await server.get("/metrics")).status_code == 404

    uvloop.run(main())


def test_no_way_of_writing_the_path_leads_around_that(database_url: Secret, tmp_path: Path) -> None:
    exact = b"/ostiary.v1.Fleet/GetMetrics"
    written_otherwise = (b"/%6Fstiary.v1.Fleet/GetMetrics", b"/ostiary.v1.Fleet%2FGetMetric%73")
    others = (
        b"/ostiary.v1.Fleet" + exact,
        b"/%6Fstiary.v1.Fleet/ostiary.v1.Fleet/GetMetric%73",
        b"/ostiary.v1.Fleet%2F" + exact[1:],
        b"/ostiary.v1.Fleet/" + exact,
        b"/ostiary.v1.Recorder" + exact,
        b"/ostiary.v1.Recorder/.." + exact,
        b"/ostiary.v1.Fleet/./GetMetrics",
        exact + b"/",
        exact + b"%0A",
        exact + b"%00",
        b"/ostiary.v1.Fleet",
    )

    async def main() -> None:
        async with serving(control_settings(database_url, tmp_path)) as server:
            elsewhere = await new_gateway_key(server)

            async def status(target: bytes, key: str) -> int:
                sent = {version.HEADER_GATEWAY_KEY: key, version.HEADER_API_VERSION: version.CURRENT}
                answer = await server.http.post("/", json={}, headers=sent, extensions={"target": target})
                return answer.status_code

            for target in (exact, *written_otherwise):
                assert (await status(target, GATEWAY_KEY), await status(target, elsewhere)) == (200, 403), target
            for target in others:
                assert (await status(target, GATEWAY_KEY), await status(target, elsewhere)) == (404, 404), target

    uvloop.run(main())
