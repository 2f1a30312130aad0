"""Real sockets on both sides of the engine: clients, upstreams and proxies of which each does exactly what a test says."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import cache
from typing import Any

import trustme
from http1_stage import TICK, Answer, App, Limits

from ostiary.core.secret import Secret
from ostiary.http1.connections import Connections
from ostiary.http1.errors import UpstreamError
from ostiary.http1.origin import Origin, parse_networks
from ostiary.http1.pool import Pool, client_tls_context
from ostiary.http1.server import ClientConnection
from ostiary.http1.upstream import UpstreamConnection

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@cache
def authority() -> trustme.CA:
    return trustme.CA()


def server_tls(*names: str) -> ssl.SSLContext:
    """A listener's context with a certificate for these names, by default localhost and 127.0.0.1."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority().issue_cert(*(names or ("localhost", "127.0.0.1", "::1"))).configure_cert(context)
    return context


def trusting_tls() -> ssl.SSLContext:
    """What the pool uses, with the tests' authority."""
    context = client_tls_context()
    authority().configure_trust(context)
    return context


async def until(condition: Callable[[], object]) -> None:
    """Let the loop turn until `condition`; the play's time-out bounds it."""
    while not condition():
        await asyncio.sleep(0)


@asynccontextmanager
async def serving(app: App, tls: ssl.SSLContext | None = None) -> AsyncIterator[tuple[int, Connections]]:
    """Client connections of `app` on a port of loopback."""
    connections = Connections(app, Limits(), TICK)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: ClientConnection(connections), "127.0.0.1", 0, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1], connections
    finally:
        server.close()
        for connection in tuple(connections.live):
            connection.reset()
        await until(lambda: not connections)


@asynccontextmanager
async def upstream(
    handler: Handler, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1"
) -> AsyncIterator[Origin]:
    """A server that does what `handler` does with each of its connections."""
    running: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        running.add(task)
        try:
            await handler(reader, writer)
        except GONE:
            pass
        finally:
            running.discard(task)
            writer.transport.abort()

    server = await asyncio.start_server(serve, host, 0, ssl=tls)
    try:
        yield Origin(tls is not None, host, server.sockets[0].getsockname()[1])
    finally:
        server.close()
        for task in tuple(running):
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


GONE = (ConnectionError, asyncio.IncompleteReadError, ssl.SSLError, RuntimeError, asyncio.CancelledError)
"""How a peer learns that the other side has gone (uvloop: RuntimeError), or the play is over."""


async def read_request(reader: asyncio.StreamReader) -> bytes:
    """A head, and its body by `Content-Length`."""
    head = await reader.readuntil(b"\r\n\r\n")
    for line in head.split(b"\r\n"):
        if line.lower().startswith(b"content-length:"):
            return head + await reader.readexactly(int(line[15:]))
    return head


def saying(*answers: bytes, then_close: bool = False) -> Handler:
    """An upstream that gives these answers to the requests of a connection, in order, the last again and again."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        said = 0
        while True:
            await read_request(reader)
            writer.write(answers[min(said, len(answers) - 1)])
            said += 1
            await writer.drain()
            if then_close:
                writer.close()
                await writer.wait_closed()
                return

    return handler


class PoolLimits(Limits):
    def __init__(self, https_proxy: str = "", **changes: Any) -> None:
        self.https_proxy = Secret(https_proxy)
        for name, value in changes.items():
            setattr(self, name, value)


@asynccontextmanager
async def pool(
    egress_allow: tuple[str, ...] = (), tls: ssl.SSLContext | None = None, **limits: Any
) -> AsyncIterator[Pool]:
    made = Pool(PoolLimits(**limits), tls or trusting_tls(), tick=TICK, egress_allow=parse_networks(egress_allow))
    try:
        yield made
    finally:
        made.close()
        for connection in tuple(made._live):
            connection.abort()
        await until(lambda: not made._live and not made._connecting)


async def connected(made: Pool, origin: Origin) -> UpstreamConnection:
    """A new connection. Raises the `UpstreamError` that the pool reports; checks that it reports once."""
    told: list[UpstreamConnection | UpstreamError] = []
    task = made.connect(origin, told.append, told.append)
    await task
    assert len(told) == 1
    if isinstance(told[0], UpstreamError):
        raise told[0]
    return told[0]


async def asked(
    made: Pool, origin: Origin, request: bytes = b"GET / HTTP/1.1\r\nHost: u\r\n\r\n", **how: Any
) -> Answer:
    """An answer, complete or failed, over an idle connection or a new one."""
    answer = Answer(**how)
    connection = made.take(origin) or await connected(made, origin)
    answer.ask(connection, request)
    await until(lambda: answer.ends)
    return answer
