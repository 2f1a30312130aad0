"""link/client.py against a real server: what travels, and what each failure means."""

import asyncio
import ssl
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import trustme
import uvloop
from connectrpc.code import Code
from connectrpc.errors import ConnectError
from control_far_end import KEY, FarEnd

from ostiary import __version__
from ostiary.core.secret import Secret
from ostiary.link.backoff import Backoff
from ostiary.link.client import ControlClient, ControlFailure
from ostiary.link.connection import Connection
from ostiary.rpc import version
from ostiary.rpc.ostiary_pb2 import RecordBatch


def serve(test: Callable[[FarEnd, ControlClient], Coroutine[Any, Any, None]], key: str = KEY) -> None:
    async def main() -> None:
        async with FarEnd() as far, ControlClient(far.url + "/", Secret(key)) as client:
            await test(far, client)

    uvloop.run(main())


async def failure_of(client: ControlClient) -> ControlFailure:
    with pytest.raises(ControlFailure) as caught:
        await client.get_ai_providers(0)
    return caught.value


def test_every_call_carries_key_version_and_build_and_is_not_compressed_on_the_loopback() -> None:
    async def test(far: FarEnd, client: ControlClient) -> None:
        await client.get_ai_providers(0)
        await client.is_authorized(b"x" * 32, 5)
        await client.record(RecordBatch(journal_id="j", first_seq=1, records=[b"a" * 10_000]))
        for headers in far.headers:
            assert headers["x-ostiary-gateway-key"] == KEY
            assert headers["x-ostiary-api-version"] == version.CURRENT
            assert headers["x-ostiary-build"] == __version__
            assert headers.get("content-encoding", "identity") == "identity"
        assert int(far.headers[-1]["content-length"]) > 10_000

    serve(test)


def test_no_proxy_of_the_environment_stands_between_processes_of_one_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)

    async def test(_far: FarEnd, client: ControlClient) -> None:
        assert (await client.get_ai_providers(0)).revision == 1

    serve(test)


def test_a_refused_key_is_fatal_before_and_after_the_first_success() -> None:
    async def test(far: FarEnd, client: ControlClient) -> None:
        failure = await failure_of(client)
        for ever_up in (False, True):
            line = failure.fatal(far.url, ever_up=ever_up)
            assert line
            assert "ostiary gateway keys create" in line
            assert "\n" not in line
            assert "wrong-key" not in line

    serve(test, key="wrong-key")


@pytest.mark.parametrize(
    ("status", "fatal"), [(401, True), (403, True), (404, True), (502, False), (503, False), (302, False)]
)
@pytest.mark.parametrize(
    ("body", "content_type"),
    [(b"<html>no</html>", "text/html"), (b'{"detail":"Not Found"}', "application/json"), (b"", "application/json")],
)
def test_a_plain_answer_is_fatal_only_at_the_start_and_only_if_it_will_not_change(
    status: int, fatal: bool, body: bytes, content_type: str
) -> None:
    async def test(far: FarEnd, client: ControlClient) -> None:
        far.plain = (status, body, content_type)
        failure = await failure_of(client)
        assert failure.plain_status == status
        assert (failure.fatal(far.url, ever_up=False) is not None) is fatal
        assert failure.fatal(far.url, ever_up=True) is None

    serve(test)


@pytest.mark.parametrize(
    ("code", "at_start", "later"),
    [
        (Code.UNAUTHENTICATED, True, True),
        (Code.PERMISSION_DENIED, True, True),
        (Code.FAILED_PRECONDITION, True, False),
        (Code.UNIMPLEMENTED, True, False),
        (Code.UNAVAILABLE, False, False),
        (Code.INTERNAL, False, False),
        (Code.DEADLINE_EXCEEDED, False, False),
    ],
)
def test_an_answer_of_the_control_plane_is_fatal_by_its_code(code: Code, at_start: bool, later: bool) -> None:
    async def test(far: FarEnd, client: ControlClient) -> None:
        far.always["get_ai_providers"] = ConnectError(code, "because")
        failure = await failure_of(client)
        assert failure.code is code
        assert failure.plain_status is None
        assert (failure.fatal(far.url, ever_up=False) is not None) is at_start
        assert (failure.fatal(far.url, ever_up=True) is not None) is later

    serve(test)


def test_redirects_are_not_followed() -> None:
    async def main() -> None:
        asked = 0

        async def redirect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal asked
            while await reader.readline() not in (b"\r\n", b""):
                pass
            asked += 1
            writer.write(b"HTTP/1.1 307 Go\r\nLocation: /elsewhere\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            writer.close()

        async with await asyncio.start_server(redirect, "127.0.0.1", 0) as server:
            host, port = server.sockets[0].getsockname()
            async with ControlClient(f"http://{host}:{port}", Secret(KEY)) as client:
                assert (await failure_of(client)).plain_status == 307
        assert asked == 1

    uvloop.run(main())


def test_a_call_that_is_not_answered_ends_at_its_time_out_and_a_cancelled_one_is_cancelled() -> None:
    async def test(far: FarEnd, client: ControlClient) -> None:
        far.hold = asyncio.Event()
        with pytest.raises(ControlFailure) as caught:
            await client.is_authorized(b"t", 0.05)
        assert caught.value.code is Code.DEADLINE_EXCEEDED
        before = len(far.asked)
        call = asyncio.create_task(client.is_authorized(b"t", 30))
        while len(far.asked) == before:
            await asyncio.sleep(0.005)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        far.hold.set()

    serve(test)


def test_a_dead_control_plane_is_unavailable_and_back_after_its_restart() -> None:
    async def test(far: FarEnd, client: ControlClient) -> None:
        await client.get_ai_providers(0)
        await far.stop()
        with pytest.raises(ControlFailure) as caught:
            await client.get_ai_providers(0, within=0.3)
        assert caught.value.passing
        await far.start()
        async with asyncio.timeout(10):
            while True:
                try:
                    await client.get_ai_providers(0)
                except ControlFailure:
                    continue
                break

    serve(test)


def test_the_waiting_time_doubles_from_50_ms_to_10_s_with_jitter() -> None:
    longest = Backoff(chance=lambda: 1.0)
    assert [longest.next() for _ in range(10)] == [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0]
    longest.reset()
    assert longest.next() == 0.05
    assert Backoff(chance=lambda: 0.0).next() == 0.025


def test_the_grace_runs_from_the_last_answer() -> None:
    now = 100.0
    connection = Connection(lambda: now, grace=60.0)
    assert connection.grace_left == 0.0
    assert connection.succeeded()
    assert not connection.succeeded()
    now = 500.0
    assert connection.grace_left == 60.0
    connection.succeeded()
    assert connection.failed()
    now = 520.0
    assert connection.grace_left == 40.0
    now = 700.0
    assert connection.grace_left == 0.0
    assert not connection.failed()
    assert connection.losses == 1
    assert Connection(lambda: now, grace=60.0, last_success=690.0).grace_left == 50.0


@pytest.mark.parametrize(
    ("trusted", "own", "said"),
    [(False, False, "name it with control_ca_file"), (True, True, "basicConstraints=critical,CA:FALSE")],
)
def test_a_certificate_that_is_not_accepted_says_how_it_would_be(
    trusted: bool, own: bool, said: str, tmp_path: Path
) -> None:
    authority = trustme.CA()
    shown = authority if own else authority.issue_cert("127.0.0.1")
    chain = [authority.cert_pem] if own else shown.cert_chain_pems
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    shown.private_key_pem.write_to_path(str(tmp_path / "server.pem"))
    for blob in chain:
        blob.write_to_path(str(tmp_path / "server.pem"), append=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.pem")

    async def main() -> str:
        server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=context)
        url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with server, ControlClient(url, Secret(KEY), str(tmp_path / "ca.pem") if trusted else "") as client:
            return str(await failure_of(client))

    assert said in uvloop.run(main())
