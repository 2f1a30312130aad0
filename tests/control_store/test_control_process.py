"""The control plane's start, its end, and what keeps it from starting."""

import asyncio
import socket
from pathlib import Path

import httpx
import pytest
import uvloop

from ostiary.control import process
from ostiary.core.messages import ControlBoot, Drain, Drained, Ready
from ostiary.core.secret import Secret
from ostiary.core.settings import ControlSettings
from tests.support.control_server import OWNER_TOKEN, Orders, control_settings, listener, serving


def run_to_its_end(settings: ControlSettings, *, drain_at_once: bool = False) -> tuple[int, Orders]:
    async def go() -> tuple[int, Orders]:
        orders = Orders()
        if drain_at_once:
            orders.order(Drain())
        status = await process.run(ControlBoot(settings), listener().detach(), orders)
        return status, orders

    return uvloop.run(go())


def test_it_starts_on_a_blank_database_serves_and_drains(blank_database_url: Secret, tmp_path: Path) -> None:
    async def go() -> None:
        async with serving(control_settings(blank_database_url, tmp_path)) as server:
            assert (await server.get("/healthz", token=None)).status_code == 200
            assert (await server.get("/readyz", token=None)).content == b""
            page = (await server.get("/api/v2/ai-gateway/interceptions")).json()
            assert page == {"count": 0, "results": []}
        assert await server.running == 0
        assert server.orders.reports[-1] == Drained()
        with pytest.raises(httpx.ConnectError):
            httpx.get(server.url)

    uvloop.run(go())


def test_a_request_in_flight_is_finished_before_the_end(database_url: Secret, tmp_path: Path) -> None:
    async def go() -> None:
        async with serving(control_settings(database_url, tmp_path)) as server:
            host, port = server.url.removeprefix("http://").split(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            head = f"GET /api/v2/ai-gateway/interceptions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {OWNER_TOKEN}\r\n\r\n"
            writer.write(head.encode())
            server.orders.order(Drain())
            answer = await reader.read()
            assert answer.startswith(b"HTTP/1.1 200")
            writer.close()

    uvloop.run(go())


def test_a_drain_during_the_start_ends_it(tmp_path: Path) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = Secret(f"postgresql://user:password@127.0.0.1:{nobody.getsockname()[1]}/ostiary")
        status, orders = run_to_its_end(control_settings(url, tmp_path), drain_at_once=True)
    assert status == 0
    assert orders.reports == [Drained()]


def fatal_message(settings: ControlSettings) -> str:
    status, orders = run_to_its_end(settings)
    assert status != 0
    assert orders.fatal is not None
    assert not any(isinstance(report, Ready) for report in orders.reports)
    message = orders.fatal.message
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    "url",
    ["mysql://user:hush-hush@localhost/x", "hush-hush", "postgresql://user:hush-hush@127.0.0.1:hush-hush/x"],
)
def test_a_database_url_that_cannot_be_read_ends_the_start_without_showing_it(url: str, tmp_path: Path) -> None:
    message = fatal_message(control_settings(Secret(url), tmp_path))
    assert "URL" in message
    assert "hush-hush" not in message


def test_a_database_that_refuses_us_ends_the_start_at_once(database_url: Secret, tmp_path: Path) -> None:
    wrong = Secret(database_url.reveal().replace("/test_", "/hush_hush_"))
    message = fatal_message(control_settings(wrong, tmp_path))
    assert "does not exist" in message
    assert "check the database URL" in message


def test_a_database_that_does_not_answer_is_waited_for_within_a_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "CONNECT_PATIENCE", 0.2)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = Secret(f"postgresql://user:hush-hush@127.0.0.1:{nobody.getsockname()[1]}/ostiary")
        message = fatal_message(control_settings(url, tmp_path))
    assert "cannot be reached" in message
    assert "hush-hush" not in message


def test_what_the_start_finds_wrong_ends_it_with_one_line(database_url: Secret, tmp_path: Path) -> None:
    short = control_settings(database_url, tmp_path, bootstrap_token=Secret("hush-hush"))
    message = fatal_message(short)
    assert "OSTIARY_BOOTSTRAP_TOKEN" in message
    assert "hush-hush" not in message
    no_key = control_settings(database_url, tmp_path, embedded_database=False)
    assert "OSTIARY_ENCRYPTION_KEYS" in fatal_message(no_key)
