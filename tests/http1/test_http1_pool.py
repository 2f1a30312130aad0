"""The pool and its connections against real upstreams, well-behaved and not."""

import asyncio
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest
from http1_peers import (
    PoolLimits,
    asked,
    authority,
    connected,
    pool,
    read_request,
    saying,
    server_tls,
    trusting_tls,
    until,
    upstream,
)
from http1_stage import Answer, perform, turns

from ostiary.http1.errors import Failure, UpstreamError
from ostiary.http1.origin import Origin
from ostiary.http1.pool import Pool

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
MIB = 1024 * 1024


# --- keeping connections


def test_the_connection_used_last_is_used_first() -> None:
    async def play() -> None:
        async with upstream(saying(OK)) as origin, pool() as made:
            one, two, three = [await connected(made, origin) for _ in range(3)]
            for connection in (one, two, three):
                made.release(connection)
            assert made.idle_count == 3
            assert [made.take(origin) for _ in range(4)] == [three, two, one, None]

    perform(play)


@pytest.mark.parametrize("over", ["tcp", "tls"])
def test_a_connection_is_used_again(over: str) -> None:
    async def play() -> None:
        accepted = 0

        async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal accepted
            accepted += 1
            await saying(OK)(reader, writer)

        async with upstream(handler, server_tls() if over == "tls" else None) as origin, pool() as made:
            for _ in range(20):
                answer = await asked(made, origin)
                assert answer.ends == ["done"]
                assert bytes(answer.out) == b"<head>ok"
                assert made.idle_count == 1
            assert accepted == 1

    perform(play)


@pytest.mark.parametrize("size", [0, 1, 2])
def test_no_more_than_the_pool_holds_are_kept_and_none_is_lost(size: int) -> None:
    async def play() -> None:
        async with upstream(saying(OK)) as origin, pool(keepalive_pool=size) as made:
            connections = [await connected(made, origin) for _ in range(4)]
            for connection in connections:
                made.release(connection)
            assert made.idle_count == size
            kept = [made.take(origin) for _ in range(size)]
            assert kept == connections[::-1][:size]
            assert made.take(origin) is None
            await until(lambda: len(made._live) == size)
            for connection in kept:
                assert connection is not None
                made.release(connection)
            assert made.idle_count == size

    perform(play)


def test_origins_do_not_share_connections() -> None:
    async def play() -> None:
        async with upstream(saying(OK)) as one, upstream(saying(OK)) as two, pool() as made:
            await asked(made, one)
            assert made.take(two) is None
            assert made.take(Origin(True, one.host, one.port)) is None
            assert made.take(Origin(False, one.host, one.port)) is not None

    perform(play)


@pytest.mark.parametrize("over", ["tcp", "tls"])
def test_an_idle_connection_that_the_upstream_closes_leaves_the_pool(over: str) -> None:
    async def play() -> None:
        async with (
            upstream(saying(OK, then_close=True), server_tls() if over == "tls" else None) as origin,
            pool() as made,
        ):
            answer = await asked(made, origin)
            assert answer.ends == ["done"]
            await until(lambda: not made._live)
            assert made.idle_count == 0
            assert made.take(origin) is None

    perform(play)


def test_an_idle_connection_that_speaks_leaves_the_pool() -> None:
    async def play() -> None:
        async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await read_request(reader)
            writer.write(OK)
            await writer.drain()
            await speak.wait()
            writer.write(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")
            await reader.read()

        speak = asyncio.Event()
        async with upstream(handler) as origin, pool() as made:
            assert (await asked(made, origin)).ends == ["done"]
            assert made.idle_count == 1
            speak.set()
            await until(lambda: made.idle_count == 0)

    perform(play)


@pytest.mark.parametrize("over", ["tcp", "tls"])
def test_a_connection_that_has_begun_to_close_is_not_taken(over: str) -> None:
    async def play() -> None:
        async with upstream(saying(OK), server_tls() if over == "tls" else None) as origin, pool() as made:
            for begins in ("speaks", "is closed", "is aborted"):
                connection = await connected(made, origin)
                made.release(connection)
                if begins == "speaks":
                    connection.data_received(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
                elif begins == "is closed":
                    connection.transport.close()
                else:
                    connection.transport.abort()
                assert made.take(origin) is None

    perform(play)


@pytest.mark.parametrize("over", ["tcp", "tls"])
@pytest.mark.parametrize("reset", [False, True])
def test_a_pooled_connection_that_closes_on_the_next_request_is_stale(over: str, reset: bool) -> None:
    async def play() -> None:
        async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await read_request(reader)
            writer.write(OK)
            await read_request(reader)
            if reset:
                linger = b"\x01\x00\x00\x00\x00\x00\x00\x00"
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

        async with upstream(handler, server_tls() if over == "tls" else None) as origin, pool() as made:
            assert (await asked(made, origin)).ends == ["done"]
            answer = await asked(made, origin)
            assert answer.ends == ["failed"]
            assert answer.error is not None
            assert answer.error.failure is Failure.STALE
            await until(lambda: not made._live)

    perform(play)


def test_idle_connections_are_closed_in_time_and_with_the_pool() -> None:
    async def play() -> None:
        async with upstream(saying(OK), server_tls()) as origin, pool() as made:
            await asked(made, origin)
            for _ in range(60):
                made.sweep()
            assert made.idle_count == 1
            made.sweep()
            assert made.idle_count == 0
            assert made.take(origin) is None
            await asked(made, origin)
            made.close()
            assert made.take(origin) is None
            assert made.idle_count == 0

    perform(play)


# --- answers over real sockets


@pytest.mark.parametrize("over", ["tcp", "tls"])
def test_a_stream_torn_at_every_byte(over: str) -> None:
    async def play() -> None:
        body = b"5\r\nhello\r\n7;x\r\n\r\nworld\r\n0\r\nX: y\r\n\r\n"

        async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while True:
                await read_request(reader)
                for at in range(len(CHUNKED + body)):
                    writer.write((CHUNKED + body)[at : at + 1])
                    await turns(3)

        async with upstream(handler, server_tls() if over == "tls" else None) as origin, pool() as made:
            for _ in range(3):
                answer = await asked(made, origin)
                assert bytes(answer.out) == b"<head>" + body
                assert answer.payload == b"hello\r\nworld"
                assert made.idle_count == 1

    perform(play)


@pytest.mark.parametrize(
    ("says", "ends", "out"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\nuntil the end", "done", b"until the end"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello", "failed", b"hello"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello, world", "done", b"hello"),
        (CHUNKED + b"5\r\nhello\r\n", "failed", b"5\r\nhello\r\n"),
        (CHUNKED + b"5\r\nhello\r\n0\r\n", "failed", b"5\r\nhello\r\n0\r\n"),
        (CHUNKED + b"5\r\nhello\r\n0\r\n\r\n\r\n", "done", b"5\r\nhello\r\n0\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello", "done", b"hello"),
    ],
)
@pytest.mark.parametrize("over", ["tcp", "tls"])
def test_answers_of_an_upstream_that_then_closes(over: str, says: bytes, ends: str, out: bytes) -> None:
    async def play() -> None:
        tls = server_tls() if over == "tls" else None
        async with upstream(saying(says, then_close=True), tls) as origin, pool() as made:
            answer = await asked(made, origin)
            assert answer.ends == [ends]
            assert bytes(answer.out) == b"<head>" + out
            await until(lambda: not made._live)

    perform(play)


@contextmanager
def closing_tls_server(says: bytes, *, alert: bool) -> Iterator[tuple[int, threading.Event]]:
    """A TLS upstream that answers and closes without waiting; (its port, when it has).

    Without TLS's own closing alert it is what an attacker in between can do, too.
    """
    listener = socket.create_server(("127.0.0.1", 0))
    closed = threading.Event()

    def serve() -> None:
        plain, _ = listener.accept()
        secured = server_tls().wrap_socket(plain, server_side=True)
        secured.recv(65536)
        secured.sendall(says)
        if alert:
            secured.setblocking(False)
            with suppress(ssl.SSLWantReadError):
                secured.unwrap()
        secured.close()
        closed.set()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listener.getsockname()[1], closed
    finally:
        thread.join()
        listener.close()


def test_a_tls_stream_cut_by_a_third_party_is_no_complete_answer() -> None:
    async def play() -> None:
        with closing_tls_server(b"HTTP/1.1 200 OK\r\n\r\nhalf of it", alert=False) as (port, _):
            async with pool() as made:
                answer = await asked(made, Origin(True, "127.0.0.1", port))
                assert bytes(answer.out) == b"<head>half of it"
                assert answer.error is not None
                assert answer.error.failure is Failure.CUT

    perform(play)


@pytest.mark.parametrize("alert", [True, False])
def test_the_end_of_an_answer_over_tls_is_not_lost_to_a_slow_client(alert: bool) -> None:
    async def play() -> None:
        body = b"x" * 200_000
        says = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 200000\r\n\r\n" + body
        with closing_tls_server(says, alert=alert) as (port, closed):
            async with pool() as made:
                answer = Answer(on_data=lambda a: a.upstream.pause_reading())
                answer.ask(await connected(made, Origin(True, "127.0.0.1", port)))
                await until(lambda: answer.out)
                await asyncio.to_thread(closed.wait)
                await turns(100)
                while not answer.ends:
                    assert answer.upstream is not None
                    answer.upstream.resume_reading()
                    await turns(3)
                assert answer.ends == ["done"]
                assert bytes(answer.out) == b"<head>" + body

    perform(play)


@pytest.mark.parametrize("over", ["tcp", "tls"])
def test_a_paused_answer_waits_in_the_socket_and_goes_on(over: str) -> None:
    async def play() -> None:
        written = 0

        async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal written
            await read_request(reader)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (32 * MIB))
            for _ in range(32 * 4):
                writer.write(b"x" * (MIB // 4))
                await writer.drain()
                written += MIB // 4
            await reader.read()

        async with upstream(handler, server_tls() if over == "tls" else None) as origin, pool() as made:
            answer = Answer(on_data=lambda a: a.upstream.pause_reading())
            answer.ask(await connected(made, origin))
            await until(lambda: answer.out)
            before = -1
            while before != written:
                before = written
                await turns(300)
            assert written < 32 * MIB
            received = len(answer.out)
            while not answer.ends:
                assert answer.upstream is not None
                answer.upstream.resume_reading()
                await turns(1)
            assert received < len(answer.out) == 32 * MIB + len(b"<head>")
            assert made.idle_count == 1
            assert made.take(origin) is answer.upstream

    perform(play)


def test_an_abort_is_seen_by_the_upstream_at_once() -> None:
    async def play() -> None:
        seen = asyncio.Event()

        async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await read_request(reader)
            writer.write(CHUNKED + b"5\r\nhello\r\n")
            try:
                await reader.read()
            finally:
                seen.set()

        async with upstream(handler) as origin, pool() as made:
            answer = Answer()
            connection = await connected(made, origin)
            answer.ask(connection)
            await until(lambda: answer.out)
            connection.abort()
            await seen.wait()
            assert answer.ends == []
            assert made.idle_count == 0

    perform(play)


def test_an_upstream_that_answers_before_it_has_taken_the_request() -> None:
    async def play() -> None:
        async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\n{}")
            await writer.drain()
            await enough.wait()

        enough = asyncio.Event()
        async with upstream(handler) as origin, pool() as made:
            request = b"POST / HTTP/1.1\r\nHost: u\r\nContent-Length: %d\r\n\r\n" % (16 * MIB)
            answer = Answer()
            answer.ask(await connected(made, origin), request, body=b"x" * 16 * MIB)
            await until(lambda: answer.ends)
            assert answer.ends == ["done"]
            assert bytes(answer.out) == b"<head>{}"
            assert made.idle_count == 0
            enough.set()

    perform(play)


# --- connecting


def failure_of(error: pytest.ExceptionInfo[UpstreamError]) -> tuple[Failure, str]:
    return error.value.failure, error.value.detail


def test_a_refused_connection_says_where() -> None:
    async def play() -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        async with pool() as made:
            with pytest.raises(UpstreamError) as error:
                await connected(made, Origin(False, "127.0.0.1", port))
            failure, detail = failure_of(error)
            assert failure is Failure.CONNECT
            assert f"127.0.0.1:{port}" in detail
            assert "refused" in detail.lower()

    perform(play)


def test_a_handshake_that_never_comes_ends_in_time() -> None:
    async def play() -> None:
        async with pool(connect_timeout=0.05) as made:
            with socket.create_server(("127.0.0.1", 0)) as silent:
                with pytest.raises(UpstreamError) as error:
                    await connected(made, Origin(True, "127.0.0.1", silent.getsockname()[1]))
                failure, detail = failure_of(error)
                assert failure is Failure.CONNECT
                assert "in time" in detail

    perform(play)


@pytest.mark.parametrize("host", ["a" * 64 + ".test", "two..dots", "", ".leading", "nul\x00.test"])
def test_a_name_that_nobody_can_look_up_is_a_failure_and_no_silence(host: str) -> None:
    async def play() -> None:
        async with pool() as made:
            for secure in (False, True):
                with pytest.raises(UpstreamError) as error:
                    await connected(made, Origin(secure, host, 9))
                assert failure_of(error)[0] is Failure.CONNECT

    perform(play)


@pytest.mark.parametrize(
    "host",
    [
        "169.254.169.254",
        "fe80::1",
        "::ffff:169.254.169.254",
        "64:ff9b::a9fe:a9fe",
        "fd00:ec2::254",
        "2852039166",
        "0xa9fea9fe",
    ],
)
@pytest.mark.parametrize("proxy", ["", "http://127.0.0.1:9"])
def test_metadata_and_link_local_addresses_are_not_connected_to(host: str, proxy: str) -> None:
    async def play() -> None:
        async with pool(https_proxy=proxy) as made:
            with pytest.raises(UpstreamError) as error:
                await connected(made, Origin(bool(proxy), host, 9))
            failure, detail = failure_of(error)
            assert failure is Failure.FORBIDDEN_ADDRESS
            assert "egress_allow" in detail

    perform(play)


def test_a_peer_that_closes_at_once_fails_one_request_and_hangs_none() -> None:
    async def play() -> None:
        async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.transport.abort()

        for tls in (None, server_tls()):
            async with upstream(handler, tls) as origin, pool() as made:
                for _ in range(40):
                    try:
                        answer = await asked(made, origin)
                    except UpstreamError as error:
                        assert error.failure is Failure.CONNECT
                    else:
                        assert answer.error is not None
                        assert answer.error.failure is Failure.CLOSED_BEFORE_HEAD
                await until(lambda made=made: not made._live)

    perform(play)


def test_a_connection_lost_before_it_is_handed_over_is_a_failure() -> None:
    async def play() -> None:
        async with upstream(saying(OK)) as origin, pool() as made:
            connection = await connected(made, origin)
            connection.abort()
            with pytest.raises(UpstreamError, match="closed the connection at once"):
                made._adopt(connection)

    perform(play)


def test_a_cancelled_connect_calls_nobody_and_leaves_nothing() -> None:
    async def play() -> None:
        told: list[object] = []
        async with upstream(saying(OK), server_tls()) as origin, pool() as made:
            for patience in range(30):
                task = made.connect(origin, told.append, told.append)
                await turns(patience)
                if task.done():
                    break
                task.cancel()
                await asyncio.wait({task})
                assert not told
                assert not made._live
            assert not made._connecting or told

    perform(play)


def test_a_pool_that_closes_gives_up_connecting() -> None:
    async def play() -> None:
        told: list[object] = []
        with socket.create_server(("127.0.0.1", 0)) as silent:
            async with pool() as made:
                task = made.connect(Origin(True, "127.0.0.1", silent.getsockname()[1]), told.append, told.append)
                await turns(20)
                made.close()
                await asyncio.wait({task})
                assert not told

    perform(play)


class TwoAddresses(Pool):
    """As if the name resolved to a second loopback address, and then to the first."""

    async def _resolve(self, origin: Origin, flags: int = 0) -> list[str]:
        return ["127.0.0.2", "127.0.0.1"]


def test_a_dead_address_does_not_keep_from_the_next() -> None:
    async def play() -> None:
        async with upstream(saying(OK), server_tls("api.test")) as target:
            origin = Origin(True, "api.test", target.port)
            made = TwoAddresses(PoolLimits(connect_timeout=1.0), trusting_tls(), tick=1.0)
            refused = await connected(made, origin)
            with socket.create_server(("127.0.0.2", target.port)):  # takes connections and says nothing
                hung = await connected(made, origin)
            for connection in (refused, hung):
                answer = Answer()
                answer.ask(connection)
                await until(lambda answer=answer: answer.ends)
                assert answer.ends == ["done"]
                connection.abort()
            await until(lambda: not made._live)

    perform(play)


def test_an_ipv6_address() -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 loopback here")

    async def play() -> None:
        for tls in (None, server_tls()):
            async with upstream(saying(OK), tls, "::1") as origin, pool() as made:
                assert origin.authority.startswith("[::1]:")
                assert (await asked(made, origin)).ends == ["done"]

    perform(play)


# --- TLS


def test_a_certificate_for_another_name_is_not_accepted() -> None:
    async def play() -> None:
        async with upstream(saying(OK), server_tls("elsewhere.test")) as origin, pool() as made:
            with pytest.raises(UpstreamError) as error:
                await connected(made, origin)
            failure, detail = failure_of(error)
            assert failure is Failure.CONNECT
            assert "certificate" in detail
            assert "127.0.0.1" in detail

    perform(play)


def test_a_certificate_of_a_stranger_is_not_accepted() -> None:
    async def play() -> None:
        async with upstream(saying(OK), server_tls()) as origin, pool(tls=ssl.create_default_context()) as made:
            with pytest.raises(UpstreamError) as error:
                await connected(made, origin)
            assert "certificate" in failure_of(error)[1]

    perform(play)


def test_an_upstream_that_speaks_no_tls_is_a_failure() -> None:
    async def play() -> None:
        async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            await reader.read()

        async with upstream(handler) as origin, pool() as made:
            with pytest.raises(UpstreamError) as error:
                await connected(made, Origin(True, origin.host, origin.port))
            assert failure_of(error)[0] is Failure.CONNECT

    perform(play)


def test_http_1_1_is_what_is_offered_over_tls() -> None:
    async def play() -> None:
        chosen: list[str | None] = []

        async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            chosen.append(writer.get_extra_info("ssl_object").selected_alpn_protocol())
            await saying(OK)(reader, writer)

        tls = server_tls()
        tls.set_alpn_protocols(["h2", "http/1.1"])
        async with upstream(handler, tls) as origin, pool() as made:
            await asked(made, origin)
            assert chosen == ["http/1.1"]
        assert trusting_tls().minimum_version >= ssl.TLSVersion.TLSv1_2
        assert authority().cert_pem.bytes()

    perform(play)
