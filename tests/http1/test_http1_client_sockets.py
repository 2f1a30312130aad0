"""Client connections on real sockets, plain and over TLS."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from http1_peers import server_tls, serving, trusting_tls, until
from http1_stage import App, Request, ok, perform, turns

GET = b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n"
POST = b"POST /b HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = b"POST /c HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
MIB = 1024 * 1024

Client = tuple[asyncio.StreamReader, asyncio.StreamWriter]
both = pytest.mark.parametrize("over", ["tcp", "tls"])


def said(text: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(text) + text


def hold(_: Request) -> None:
    """The application has not decided yet."""


@asynccontextmanager
async def client_of(app: App, over: str, limit: int = 64 * 1024) -> AsyncIterator[Client]:
    async with serving(app, server_tls() if over == "tls" else None) as (port, _):
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=trusting_tls() if over == "tls" else None, limit=limit
        )
        writer.transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            yield reader, writer
        finally:
            writer.transport.abort()


@both
def test_requests_byte_by_byte_and_all_at_once(over: str) -> None:
    async def play() -> None:
        script = POST + GET + CHUNKED + GET
        expected = said(b"/b hello") + said(b"/a ") + said(b"/c hello") + said(b"/a ")
        async with client_of(App(), over) as (reader, writer):
            for at in range(len(script)):
                writer.write(script[at : at + 1])
                await turns(2)
            assert await reader.readexactly(len(expected)) == expected
            writer.write(script)
            assert await reader.readexactly(len(expected)) == expected

    perform(play)


@both
def test_a_refusal_arrives_though_the_body_is_still_being_sent(over: str) -> None:
    async def play() -> None:
        app = App(begin=lambda r: r.refuse(b"401 Unauthorized", b"x" * 1000))
        async with client_of(app, over) as (reader, writer):
            writer.write(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 33554432\r\n\r\n")

            async def upload() -> None:
                with contextlib.suppress(ConnectionError):  # a TLS client of asyncio ends with the server's alert
                    for _ in range(16):
                        writer.write(b"x" * MIB)
                        await writer.drain()

            uploading = asyncio.create_task(upload())
            answer = await reader.readuntil(b"x" * 1000)
            assert answer.startswith(b"HTTP/1.1 401 Unauthorized\r\n")
            assert b"\r\nConnection: close\r\n" in answer
            await asyncio.wait({uploading})
            writer.close()
            assert not app.requests[0].connection._buffer

    perform(play)


@both
def test_before_admission_the_gateway_takes_no_more_than_a_buffer_of_the_body(over: str) -> None:
    async def play() -> None:
        app = App(begin=hold, body=ok)
        async with client_of(app, over) as (reader, writer):
            writer.write(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % (8 * MIB))
            writer.write(b"x" * 8 * MIB)
            await until(lambda: app.requests)
            await turns(200)
            connection = app.requests[0].connection
            waiting = connection.transport.get_read_buffer_size() if over == "tls" else 0  # type: ignore[attr-defined]
            assert len(connection._buffer) + waiting <= 768 * 1024
            connection.collect(8 * MIB)
            assert (await reader.readexactly(17)) == b"HTTP/1.1 200 OK\r\n"
            assert len(app.requests[0].body) == 8 * MIB

    perform(play)


@both
@pytest.mark.parametrize("leaves", ["politely", "rudely"])
def test_a_client_that_goes_is_told_of_exactly_once(over: str, leaves: str) -> None:
    async def play() -> None:
        for request in (POST, POST[:-1]):
            app = App(body=hold)
            async with client_of(app, over) as (_, writer):
                writer.write(request)
                await until(lambda app=app: app.requests)
                if leaves == "rudely":
                    writer.transport.abort()
                else:
                    writer.close()
                await until(lambda app=app: "gone" in app.requests[0].words)
            await turns(20)
            assert app.requests[0].words.count("gone") == 1

    perform(play)


def test_a_half_closed_client_counts_as_gone() -> None:
    async def play() -> None:
        app = App(body=hold)
        async with client_of(app, "tcp") as (reader, writer):
            writer.write(GET)
            writer.write_eof()
            assert await reader.read() == b""
            assert app.requests[0].words == ["body", "gone"]

    perform(play)


def test_a_half_closed_client_gets_the_answer_that_was_there_before() -> None:
    async def play() -> None:
        async with client_of(App(), "tcp") as (reader, writer):
            writer.write(GET)
            assert await reader.readexactly(3) == said(b"/a ")[:3]
            writer.write_eof()
            assert await reader.read() == said(b"/a ")[3:]

    perform(play)


def flowing(total: int) -> tuple[App, list[int]]:
    """An application that answers with `total` bytes, as fast as the client takes them; the second: buffer sizes seen."""
    seen: list[int] = []
    left = total

    def pour(request: Request) -> None:
        nonlocal left
        connection = request.connection
        while left and request.words[-1] != "paused":
            connection.write(b"x" * min(left, 65536))
            left -= min(left, 65536)
            seen.append(connection.transport.get_write_buffer_size())
        if not left and request.words[-1] != "paused":
            connection.finish(keep=False)

    return App(body=pour, resumed=pour), seen


@both
def test_back_pressure_towards_the_client(over: str) -> None:
    async def play() -> None:
        app, seen = flowing(32 * MIB)
        async with client_of(app, over, limit=MIB) as (reader, writer):
            writer.write(GET)
            received = 0
            while data := await reader.read(300_000):
                received += len(data)
            assert received == 32 * MIB
            assert max(seen) < MIB
            assert "paused" in app.requests[0].words

    perform(play)


@both
def test_back_pressure_from_the_application(over: str) -> None:
    async def play() -> None:
        got: list[int] = []
        app = App(
            begin=lambda r: r.connection.stream(),
            piece=lambda r: (got.append(len(r.told[-1][1])), r.connection.pause_reading()),
        )
        async with client_of(app, over) as (_, writer):
            writer.write(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % (8 * MIB))
            writer.write(b"x" * 8 * MIB)
            await until(lambda: got)
            connection = app.requests[0].connection
            while sum(got) < 8 * MIB:
                pieces = len(got)
                await turns(50)
                assert len(got) == pieces, "paused"
                connection.resume_reading()
                await until(lambda pieces=pieces: len(got) > pieces)

    perform(play)


@both
def test_an_answer_that_closes_is_flushed_to_a_slow_client(over: str) -> None:
    async def play() -> None:
        def pour(request: Request) -> None:
            request.connection.write(b"x" * 4 * MIB)
            request.connection.finish(keep=False)

        app = App(body=pour)
        async with client_of(app, over, limit=1024) as (reader, writer):
            writer.write(GET)
            await until(lambda: app.requests)
            await turns(50)
            received = 0
            while data := await reader.read(65536):
                received += len(data)
            assert received == 4 * MIB

    perform(play)


@both
def test_a_cut_answer_is_flushed_and_then_ends(over: str) -> None:
    async def play() -> None:
        def cut(request: Request) -> None:
            request.connection.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4194304\r\n\r\n" + b"x" * MIB)
            request.connection.abort()

        async with client_of(App(body=cut), over) as (reader, writer):
            writer.write(GET)
            assert len(await reader.read(-1)) == MIB + 44

    perform(play)


def test_a_tls_client_on_the_plain_port_is_refused() -> None:
    async def play() -> None:
        app = App()
        async with serving(app) as (port, connections):
            with pytest.raises(ssl.SSLError):
                await asyncio.open_connection("127.0.0.1", port, ssl=trusting_tls())
            assert [error.status for error in app.refused] == [400]
            assert not app.requests
            await until(lambda: not connections)

    perform(play)


@pytest.mark.parametrize("hello", [GET, b"\x00" * 100, b"\x16\x03\x01\x00\x05hello"])
def test_what_is_no_tls_on_the_tls_port_is_closed(hello: bytes) -> None:
    async def play() -> None:
        app = App()
        async with serving(app, server_tls()) as (port, connections):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(hello)
            assert b"HTTP/1.1 200" not in await reader.read()
            writer.close()
            assert not app.requests
            assert not connections

    perform(play)


@both
def test_a_pipelining_client_that_reads_nothing_holds_a_bounded_answer(over: str) -> None:
    async def play() -> None:
        app = App(body=lambda r: r.refuse(b"200 OK", b"x" * 10_000))
        async with client_of(app, over) as (reader, writer):
            sending = True

            async def flood() -> None:
                while sending:
                    writer.write(GET * 1000)
                    await writer.drain()

            reader._transport.pause_reading()  # type: ignore[attr-defined]
            flooding = asyncio.create_task(flood())
            served = -1
            while served != len(app.requests):
                served = len(app.requests)
                await turns(300)
            connection = app.requests[0].connection
            assert connection.transport.get_write_buffer_size() < MIB
            assert len(connection._buffer) < MIB
            sending = False
            flooding.cancel()

    perform(play)
