"""Puts a fake provider on a socket.

`serve` is the one way in, for tests, the command and the child process alike:

    async with await serve() as fake:          # a free loopback port
        client = openai.AsyncOpenAI(base_url=f"{fake.url}/v1", api_key="sk-any")
"""

import asyncio
import socket
import ssl
from contextlib import suppress
from types import TracebackType
from typing import Self

from .admin import AdminPaths
from .connection import Connection, Connections
from .ledger import Ledger
from .provider import FakeProvider

_BACKLOG = 4096


class FakeServer:
    """A fake provider that listens."""

    def __init__(self, provider: FakeProvider, server: asyncio.Server, connections: Connections, scheme: str) -> None:
        self.provider = provider
        self._server = server
        self._connections = connections
        host, self.port = server.sockets[0].getsockname()[:2]
        self.url = f"{scheme}://{f'[{host}]' if ':' in host else host}:{self.port}"
        """Without a path: OpenAI's SDK wants `/v1` after it, Anthropic's nothing."""

    @property
    def connections(self) -> int:
        """Open ones."""
        return len(self._connections.open)

    async def drain(self, timeout: float) -> int:  # noqa: ASYNC109 - a bound on streams, not on the caller's patience
        """Accept nothing more and wait up to `timeout` seconds for what runs. Returns how many connections were cut."""
        self._server.close()
        for connection in list(self._connections.open):
            connection.drain()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._connections.all_gone(), timeout)
        return self._cut()

    async def close(self) -> None:
        """Stop now."""
        self._server.close()
        self._cut()
        await self._connections.all_gone()
        self.provider.ledger.close()

    def _cut(self) -> int:
        left = list(self._connections.open)
        for connection in left:
            connection.abort()
        return len(left)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()


async def serve(
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    sock: socket.socket | None = None,
    tls: ssl.SSLContext | None = None,
    ledger: Ledger | None = None,
    reuse_port: bool = False,
) -> FakeServer:
    """Listen on `sock`, or on `host` and `port` (0: any free one). Raises `OSError` when the address is taken."""
    provider = FakeProvider(ledger)
    admin = AdminPaths(provider)
    connections = Connections()

    def connection() -> Connection:
        return Connection(provider, admin, connections)

    loop = asyncio.get_running_loop()
    if sock is not None:
        server = await loop.create_server(connection, sock=sock, ssl=tls, backlog=_BACKLOG)
    else:
        server = await loop.create_server(connection, host, port, ssl=tls, backlog=_BACKLOG, reuse_port=reuse_port)
    return FakeServer(provider, server, connections, "http" if tls is None else "https")


def tls_context(cert_file: str, key_file: str) -> ssl.SSLContext:
    """A server's context from PEM files, for HTTP/1.1 only."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert_file, key_file)
    context.set_alpn_protocols(["http/1.1"])
    return context
