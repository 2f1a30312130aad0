"""`ostiary top` and `ostiary storage`, against a control plane."""

import asyncio
import os
import pty
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from command_plane import OWNER_TOKEN, Do, Plane

from ostiary.cli import top_source
from ostiary.cli.client import Client, Place
from ostiary.cli.root import run
from ostiary.cli.storage import size
from ostiary.cli.top_frame import frame, rate, span
from ostiary.cli.top_source import Look, Machine, Source, Unreachable
from ostiary.control.store.replicas import store_replica
from ostiary.core.ids import new_id
from ostiary.core.secret import Secret
from tests.support.records import end, now_us, start

METRICS = """\
# HELP ostiary_interceptions_total Interceptions that ended.
# TYPE ostiary_interceptions_total counter
ostiary_interceptions_total{{provider="a",model="m",status="completed"}} {ended}
ostiary_interceptions_total{{provider="b",model="m",status="failed"}} 2.0
# TYPE ostiary_interceptions_inflight gauge
ostiary_interceptions_inflight{{provider="a",model="m",route="/v1/messages"}} 3.0
# TYPE ostiary_client_connections gauge
ostiary_client_connections 7.0
# TYPE ostiary_journal_bytes gauge
ostiary_journal_bytes 2048.0
# TYPE ostiary_link_records_pending gauge
ostiary_link_records_pending 5.0
# TYPE ostiary_link_up gauge
ostiary_link_up {up}
"""


class Page:
    """A metrics page; what it answers can be changed."""

    def __init__(self) -> None:
        self.ended, self.up, self.status, self.text = 10, 1, 200, METRICS
        self.asked: list[dict[str, str]] = []
        page = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                page.asked.append(dict(self.headers))
                body = page.text.format(ended=page.ended, up=page.up).encode()
                self.send_response(page.status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def page() -> Iterator[Page]:
    made = Page()
    yield made
    made.close()


def recorded(plane: Plane) -> None:
    at = now_us()
    good, bad, running = (start(model=model, started_at=at - 2_000_000) for model in ("m-good", "m-bad", "m-running"))
    plane.record(
        *(good, end(good, ended_at=at)),
        *(bad, end(bad, ended_at=at, outcome="upstream_error", status_code=529, error_type="overloaded")),
        running,
    )


def reported(plane: Plane) -> None:
    """A standalone gateway that told of itself."""
    key = {"key_id": new_id(), "reason": "", "model": "", "until": 0, "since": 0, "strikes": 0}
    soon = int(time.time()) + 50
    status = {
        "workers": [{"worker": 0, "pid": 1, "journal_id": new_id(), "revision": 0}],
        "keys": [
            key | {"provider": "openai", "hint": "sk-a...1111", "state": "usable"},
            key
            | {
                "provider": "openai",
                "hint": "sk-b...2222",
                "state": "cooling",
                "reason": "rate_limited",
                "until": soon,
            },
        ],
        "breakers": [
            {"provider": "openai", "route": "/v1/responses", "model": "m-bad", "state": "open", "until": soon}
        ],
        "journals": [{"journal_id": new_id(), "appended_seq": 120, "acked_seq": 78}],
        "provider_errors": {"broken": "no \x1b[31mregion"},
    }

    async def store() -> None:
        async with plane.engine.begin() as connection:
            await store_replica(
                connection, new_id(), hostname="berlin", mode="standalone", build="1", revision=0, status=status
            )

    asyncio.run_coroutine_threadsafe(store(), plane._loop).result(20)


def test_one_frame_shows_traffic_gateways_keys_breakers_and_what_waits(plane: Plane, do: Do, page: Page) -> None:
    recorded(plane)
    reported(plane)
    shown = do("top", "--once", "--window", "60", "--metrics", page.address).out
    lines = {line.split()[0]: " ".join(line.split()) for line in shown.splitlines() if line}
    assert "0.1 requests/s" in shown
    assert "1 in flight, 1 of 2 failed, 1 of 1 gateways live, 42 records to ship" in shown
    assert f"now at http://{page.address}/metrics: 3 in flight, 7 connections, 5 to ship, journal 2.0 KiB" in shown
    rows = [" ".join(line.split()) for line in shown.splitlines()]
    assert "claude-main m-bad 0.0 0 1 0 0.2 0.6 2.0s 2.0s" in rows
    assert "1 529 overloaded claude-main m-bad" in rows
    assert any(row.startswith("berlin live standalone 1 0 of 0 42 1 usable, 1 cooling") for row in rows)
    assert any(row.startswith("berlin openai key sk-b...2222 cooling rate limited in ") for row in rows)
    assert any(row.startswith("berlin openai breaker /v1/responses open m-bad in ") for row in rows)
    assert "berlin broken provider unusable no �[31mregion" in rows
    assert "sk-a...1111" not in shown
    assert lines["ostiary"].startswith(f"ostiary top {plane.url}")
    assert all("authorization" not in {name.lower() for name in headers} for headers in page.asked)


def test_json_is_one_look_with_what_the_api_said(plane: Plane, do: Do, page: Page) -> None:
    recorded(plane)
    reported(plane)
    found = do("top", "--json", "--metrics", f"http://{page.address}/metrics").json
    assert found["traffic"]["total"]["started"] == 3
    assert found["replicas"]["replicas"][0]["hostname"] == "berlin"
    (machine,) = found["machines"]
    assert (machine["in_flight"], machine["link_up"], machine["rates"]) == (3.0, 1.0, None)
    assert found["unreachable"] == []


def test_what_cannot_be_reached_is_said_and_the_rest_shown(plane: Plane, do: Do, page: Page) -> None:
    page.status = 503
    shown = do("top", "--once", "--metrics", page.address, "--metrics", "127.0.0.1:1").out
    assert f"cannot show http://{page.address}/metrics: it answers 503, not with metrics" in shown
    assert "cannot show http://127.0.0.1:1/metrics: it cannot be reached" in shown
    assert "no requests within the last 20 s" in shown
    page.status, page.text = 200, "<html> {ended}"
    assert "it is no page of metrics" in do("top", "--once", "--metrics", page.address).out
    page.text = "other_metric {ended}\n"
    assert "it is not of an Ostiary gateway" in do("top", "--once", "--metrics", page.address).out


def test_a_token_that_may_not_see_all_ends_it_with_the_reason(
    plane: Plane, do: Do, monkeypatch: pytest.MonkeyPatch
) -> None:
    do("users", "create", "ada")
    monkeypatch.setenv("OSTIARY_TOKEN", do("tokens", "create", "t", "--user", "ada", "--json").json["token"])
    failed = do("top", "--once", status=1)
    assert "You may not do this: It takes the role admin or auditor or owner; yours is member" in failed.err
    assert failed.out == ""
    assert "It takes the role" in do("storage", status=1).err


def test_a_server_that_is_away_ends_it(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OSTIARY_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("OSTIARY_TOKEN", OWNER_TOKEN)
    assert run(["top", "--once"]) == 1
    assert "cannot reach http://127.0.0.1:1" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [["--metrics", "ftp://x"], ["--window", "5"], ["--interval", "0.1"]])
def test_wrong_options_are_named(plane: Plane, do: Do, wrong: list[str]) -> None:
    assert wrong[0] in do("top", "--once", *wrong, status=2).err


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_rates_of_a_machine_are_of_the_time_between_two_looks(plane: Plane, page: Page) -> None:
    clock = Clock()
    with Client(Place(plane.url, Secret(OWNER_TOKEN), "", "")) as client:
        source = Source(client, 60, [f"http://{page.address}/metrics"], guessed=False, clock=clock)
        assert source.look().machines[0].rates is None
        page.ended, clock.now = 30, 1004.0
        rates = source.look().machines[0].rates
        assert rates is not None
        assert rates["calls"] == 5.0
        page.ended, clock.now = 0, 1006.0
        rates = source.look().machines[0].rates
        assert rates is not None
        assert rates["calls"] == 0.0  # a link that was started anew
        source.close()


def test_gateways_are_asked_for_no_more_often_than_they_report(plane: Plane) -> None:
    clock = Clock()
    asked: list[str] = []
    with Client(Place(plane.url, Secret(OWNER_TOKEN), "", "")) as client:
        get = client.get

        def count(path: str, **query: object) -> Any:
            asked.append(path)
            return get(path, **query)

        client.get = count  # type: ignore[method-assign]
        source = Source(client, 60, [], guessed=True, clock=clock)
        for _ in range(5):
            clock.now += 2.0
            assert source.look().replicas is not None
        source.close()
    assert asked.count(top_source.TRAFFIC) == 5
    assert asked.count(top_source.REPLICAS) == 2


def test_the_page_of_this_machine_is_only_guessed_for_the_server_that_the_settings_are_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OSTIARY_METRICS_LISTEN", "0.0.0.0:9999")
    assert top_source.metrics_pages([], "http://127.0.0.1:4000") == (["http://127.0.0.1:9999/metrics"], True)
    assert top_source.metrics_pages([], "http://127.0.0.1:4555") == ([], True)
    assert top_source.metrics_pages([], "https://ai.example.com:4000") == ([], True)
    monkeypatch.setenv("OSTIARY_METRICS_LISTEN", "off")
    assert top_source.metrics_pages([], "http://127.0.0.1:4000") == ([], True)
    assert top_source.metrics_pages(["h:1", "https://x/m"], "http://h")[0] == ["http://h:1/metrics", "https://x/m"]


COUNTS: dict[str, Any] = dict.fromkeys(
    [
        *("started", "ended", "failed", "client_closed", "in_flight", "input_tokens", "output_tokens"),
        *("cache_read_input_tokens", "cache_write_input_tokens"),
    ],
    7,
) | {"p50_seconds": 0.25, "p95_seconds": 61.0}


def big_look() -> Look:
    models = [COUNTS | {"provider_name": f"provider-{n}", "model": f"a-model-with-a-long-name-{n}"} for n in range(100)]
    errors = [
        {"provider_name": "p", "model": "m", "outcome": "rejected", "status_code": n, "error_type": None, "count": n}
        for n in range(20)
    ]
    traffic = {"covered_seconds": 60.0, "window_seconds": 60, "total": COUNTS, "models": models, "errors": errors}
    machines = [Machine("http://h:2112/metrics", {"in_flight": 1.0, "link_up": 0.0}, None)]
    return Look("http://s", traffic, None, machines, [Unreachable("gateways", "a reason " * 30)])


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40), (60, 12), (200, 300)])
def test_a_frame_fits_its_terminal(width: int, height: int) -> None:
    lines = frame(big_look(), datetime.now(UTC), width, height)
    assert len(lines) <= height
    assert max(len(line.text) for line in lines) <= width
    text = "\n".join(line.text for line in lines)
    assert "provider-0" in text
    assert "cannot show gateways: a reason" in text
    assert "the server is away" in text
    if height >= 24:
        assert "REQ/S" in text
        assert "STATUS" in text
    assert ("… " in text) == (height < 300)


def test_numbers_are_short() -> None:
    assert [rate(n, 60) for n in (0, 1, 30, 600, 90_000, 6e6, 6e8)] == [
        "0",
        "0.0",
        "0.5",
        "10",
        "1.5k",
        "100k",
        "10.0M",
    ]
    assert [span(n) for n in (None, 0.0421, 1.5, 240.0)] == ["", "42ms", "1.5s", "4m"]
    assert [size(n) for n in (0, 812, 1024, 3_565_158, 2**40)] == ["0 B", "812 B", "1.0 KiB", "3.4 MiB", "1.0 TiB"]


def shown_until(fd: int, wanted: Callable[[bytes], bool]) -> bytes:
    seen, deadline = b"", time.monotonic() + 30
    while not wanted(seen) and time.monotonic() < deadline:
        if select.select([fd], [], [], 0.1)[0]:
            try:
                seen += os.read(fd, 65536)
            except OSError:
                break
    return seen


@pytest.mark.parametrize("ended_by", [signal.SIGINT, signal.SIGTERM])
def test_the_live_view_ends_cleanly_and_leaves_the_terminal_as_it_was(plane: Plane, ended_by: signal.Signals) -> None:
    recorded(plane)
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", "from ostiary.cli import main; main()", "top", "--interval", "1"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "100", "LINES": "30"},
        start_new_session=True,
    )
    os.close(theirs)
    try:
        first = shown_until(ours, lambda seen: b"m-running" in seen)
        assert b"\x1b[?1049h" in first
        assert b"m-running" in first
        recorded(plane)
        again = shown_until(ours, lambda seen: b"2 in flight" in seen)
        assert b"2 in flight" in again
        plane.record(*[start(model="m-late")])
        process.send_signal(ended_by)
        rest = shown_until(ours, lambda seen: b"\x1b[?1049l" in seen)
        assert b"\x1b[?1049l" in rest
        assert b"\x1b[?25h" in rest
        assert b"Traceback" not in rest
        assert b"stopped" not in rest
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def test_storage_shows_sizes_weeks_and_what_was_removed(plane: Plane, do: Do) -> None:
    from ostiary.control import retention

    recorded(plane)
    before = do("storage").out
    assert "old ones removed  not yet" in before
    assert "records are kept  60 days" in before

    asyncio.run_coroutine_threadsafe(retention.run(plane.engine, 86400.0), plane._loop).result(20)
    shown = do("storage", "--partitions").out
    rows = [line.split() for line in shown.splitlines() if line]
    (interceptions,) = (row for row in rows if row[0] == "interceptions")
    assert interceptions[-1].isdigit()
    assert any(row[:2] == ["no", "week"] for row in rows)
    assert "old ones removed" in shown
    assert do("storage", "--json").json["retention"]["last_run"]["complete"] is True
