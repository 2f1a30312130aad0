"""What the last minute brought, as `ostiary top` asks for it."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop

from ostiary.control import database
from ostiary.control import traffic as board
from ostiary.control.ingest import Ingest
from ostiary.control.store import traffic
from ostiary.core.ids import IdSource, new_id
from ostiary.core.records import InterceptionEnd, InterceptionStart, Record
from ostiary.core.secret import Secret
from tests.support.control_server import OWNER_TOKEN, ControlServer, control_settings, serving
from tests.support.records import encoded, end, now_us, start

PATH = "/api/v2/ai-gateway/traffic"


class Plane:
    def __init__(self, server: ControlServer, ingest: Ingest) -> None:
        self.server, self.ingest = server, ingest

    async def store(self, *records: Record) -> None:
        ack = await self.ingest.store(new_id(), 1, encoded(records))
        assert ack.rejected == []

    async def traffic(self, window: int = 60) -> Any:
        answer = await self.server.get(PATH, window=window)
        assert answer.status_code == 200, answer.text
        return answer.json()


def play(url: Secret, data_dir: Path, script: Callable[[Plane], Awaitable[None]]) -> None:
    async def go() -> None:
        engine = await database.connect(url)
        try:
            async with serving(control_settings(url, data_dir)) as server:
                await script(Plane(server, Ingest(engine)))
        finally:
            await engine.dispose()

    uvloop.run(go())


@pytest.fixture(autouse=True)
def _read_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board, "FRESH", -1.0)


def ago(seconds: float, **fields: Any) -> InterceptionStart:
    at = now_us() - int(seconds * 1e6)
    ids = IdSource(clock=lambda: at * 1000)
    return start(**({"id": ids(), "started_at": at} | fields))


def ended(one: InterceptionStart, seconds_ago: float = 0.0, **fields: Any) -> InterceptionEnd:
    return end(one, ended_at=now_us() - int(seconds_ago * 1e6), **fields)


def test_calls_failures_and_tokens_are_told_by_provider_and_model(database_url: Secret, tmp_path: Path) -> None:
    async def script(plane: Plane) -> None:
        assert await plane.traffic() | {"at": ""} == {
            "at": "",
            "window_seconds": 60,
            "covered_seconds": 60.0,
            "models": [],
            "errors": [],
            "total": dict.fromkeys(
                [
                    *("started", "ended", "failed", "client_closed", "in_flight", "input_tokens", "output_tokens"),
                    *("cache_read_input_tokens", "cache_write_input_tokens"),
                ],
                0,
            )
            | {"p50_seconds": None, "p95_seconds": None},
        }
        quick, slow, left = (ago(seconds, model="m-1") for seconds in (2, 30, 20))
        await plane.store(quick, ended(quick, 1), slow, ended(slow, 5), left, ended(left, 3, outcome="client_closed"))
        refused = ago(10, model="m-2", provider_name="other")
        await plane.store(refused, ended(refused, outcome="rejected", status_code=429, error_type="rate_limited"))
        bad = ago(10, model="m-2", provider_name="other")
        await plane.store(bad, ended(bad, status_code=400, token_usages=[]))
        running = ago(1000, model="m-2", provider_name="other")
        before, long_ago = ago(100, model="m-1"), ago(3000, model="m-1")
        await plane.store(running, before, ended(before, 80), long_ago, ended(long_ago, 1))
        found = await plane.traffic()
        first, second = found["models"]
        assert (first["provider_name"], first["model"]) == ("claude-main", "m-1")
        assert (first["started"], first["ended"], first["failed"], first["client_closed"]) == (3, 3, 0, 1)
        assert (first["input_tokens"], first["output_tokens"], first["cache_read_input_tokens"]) == (36, 102, 16800)
        assert first["p50_seconds"] == pytest.approx(17, abs=2)
        assert 17 < first["p95_seconds"] < 26
        assert (second["provider_name"], second["model"], second["in_flight"]) == ("other", "m-2", 1)
        assert (second["started"], second["failed"]) == (2, 2)
        total = found["total"]
        assert (total["started"], total["ended"], total["failed"], total["in_flight"]) == (5, 5, 2, 1)
        assert total["input_tokens"] == 48
        kinds = {(one["model"], one["status_code"], one["error_type"], one["count"]) for one in found["errors"]}
        assert kinds == {("m-2", 429, "rate_limited", 1), ("m-2", 400, None, 1)}
        # a call that began before the window counts when it ends in it
        assert (await plane.traffic(10))["models"][0]["ended"] == 3

    play(database_url, tmp_path, script)


def test_a_load_that_is_too_much_to_sum_up_is_told_of_the_time_that_was(
    database_url: Secret, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(traffic, "MOST", 20)

    async def script(plane: Plane) -> None:
        calls = [ago(50 - n) for n in range(50)]
        await plane.store(*calls)
        found = await plane.traffic()
        assert found["covered_seconds"] == pytest.approx(20, abs=3)
        assert found["total"]["started"] / found["covered_seconds"] == pytest.approx(1, abs=0.2)

    play(database_url, tmp_path, script)


def test_however_many_ask_the_database_is_asked_once(
    database_url: Secret, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(board, "FRESH", 60.0)
    asked: list[int] = []

    async def count(connection: Any, window: int) -> traffic.Traffic:
        asked.append(window)
        return await traffic.read_traffic(connection, window)

    monkeypatch.setattr(board, "read_traffic", count)

    async def script(plane: Plane) -> None:
        answers = await asyncio.gather(*(plane.traffic() for _ in range(20)))
        assert asked == [60]
        assert len({one["at"] for one in answers}) == 1
        await plane.traffic(30)
        assert asked == [60, 30]

    play(database_url, tmp_path, script)


def test_only_those_who_may_see_all_records_are_told(database_url: Secret, tmp_path: Path) -> None:
    async def script(plane: Plane) -> None:
        assert (await plane.server.get(PATH, token=None)).status_code == 401
        for role, allowed in (("member", 403), ("auditor", 200), ("admin", 200)):
            token = await _token(plane.server, role)
            for path in (PATH, "/api/v2/ai-gateway/storage"):
                assert (await plane.server.get(path, token=token)).status_code == allowed, (role, path)
        for window in (9, 301):
            assert (await plane.server.get(PATH, window=window)).status_code == 400

    play(database_url, tmp_path, script)


async def _token(server: ControlServer, role: str) -> str:
    headers = {"Authorization": f"Bearer {OWNER_TOKEN}"}
    user = await server.http.post("/api/v2/users", json={"username": f"the-{role}", "role": role}, headers=headers)
    assert user.is_success, user.text
    made = await server.http.post("/api/v2/tokens", json={"user": f"the-{role}", "name": "t"}, headers=headers)
    assert made.is_success, made.text
    return str(made.json()["token"])
