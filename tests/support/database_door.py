"""An external database that can be taken away: a TCP address in front of the run's PostgreSQL.

`shut` refuses and cuts, as a database does that is down; `hold` lets connections stand and passes nothing on, as one does
that hangs; `open` ends both. The database behind it stays: what is in it can be looked at all the time.
"""

import asyncio
import base64
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar
from urllib.parse import parse_qs, urlsplit, urlunsplit

import asyncpg
import pytest

from ostiary.core.secret import Secret
from tests.support.server import free_port

T = TypeVar("T")


class DatabaseDoor:
    """Of one database; `variables` make `ostiary server` use it."""

    def __init__(self, url: Secret) -> None:
        parts = urlsplit(url.reveal())
        self.dsn = url.reveal().replace("+asyncpg", "", 1)
        directory = parse_qs(parts.query).get("host", [""])[0]
        self._socket = directory and directory + "/.s.PGSQL.5432"
        self._behind = parts.hostname, parts.port or 5432
        self._port = free_port()
        credentials = parts.netloc.rpartition("@")[0]
        self.url = urlunsplit(("postgresql", f"{credentials}@127.0.0.1:{self._port}", parts.path, "", ""))
        self.password = parts.password or ""
        self.encryption_key = self.new_encryption_key()
        self._server: asyncio.Server | None = None
        self._pumps: set[asyncio.Task[None]] = set()
        self._passing = asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="database door")
        self._thread.start()
        self.open()

    @staticmethod
    def new_encryption_key() -> str:
        return base64.b64encode(secrets.token_bytes(32)).decode()

    @property
    def variables(self) -> dict[str, str]:
        return {"OSTIARY_DATABASE_URL": self.url, "OSTIARY_ENCRYPTION_KEYS": self.encryption_key}

    def open(self) -> None:
        self._do(self._open)

    def shut(self) -> None:
        """Refuse new connections, cut those that stand."""
        self._do(self._shut)

    def hold(self) -> None:
        """Pass nothing on."""
        self._do(self._hold)

    def close(self) -> None:
        self.shut()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def fetch(self, query: str, *arguments: Any) -> list[Any]:
        """Rows of the database behind it, whatever the door does."""

        async def ask() -> list[Any]:
            connection = await asyncpg.connect(self.dsn)
            try:
                return list(await connection.fetch(query, *arguments))
            finally:
                await connection.close()

        return asyncio.run(ask())

    def _do(self, work: Callable[[], Any]) -> None:
        asyncio.run_coroutine_threadsafe(work(), self._loop).result(60)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._socket:
            return await asyncio.open_unix_connection(self._socket)
        return await asyncio.open_connection(*self._behind)

    async def _open(self) -> None:
        self._passing.set()
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port)

    async def _shut(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        self._passing.set()
        for pump in self._pumps:
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)

    async def _hold(self) -> None:
        self._passing.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        this = asyncio.current_task()
        assert this is not None
        self._pumps.add(this)
        try:
            inner_reader, inner_writer = await self._connect()
            both = (self._pump(reader, inner_writer), self._pump(inner_reader, writer))
            try:
                await asyncio.gather(*both)
            finally:
                inner_writer.transport.abort()
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()
            self._pumps.discard(this)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            await self._passing.wait()
            writer.write(data)
            await writer.drain()
        with suppress(OSError):
            writer.write_eof()


@contextmanager
def database_door(url: Secret) -> Iterator[DatabaseDoor]:
    door = DatabaseDoor(url)
    try:
        yield door
    finally:
        door.close()


@pytest.fixture
def door(database_url: Secret) -> Iterator[DatabaseDoor]:
    """Before a migrated, empty database of this test's own."""
    with database_door(database_url) as opened:
        yield opened
