"""The pool and its connections against real upstreams, well-behaved and not."""

import asyncio
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest
from http1_peers import (
    asked,
    connected,
    pool,
    read_request,
    saying,
    server_tls,
    until,
    upstream,
)
from http1_stage import Answer, perform, turns

from ostiary.http1.errors import Failure
from ostiary.http1.origin import Origin

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
