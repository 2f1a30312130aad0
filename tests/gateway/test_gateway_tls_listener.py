"""The listener with TLS on real sockets: certificates that change while it serves, and a drain while hands are shaken."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import trustme
import uvloop
from structlog.testing import capture_logs

from ostiary.core.messages import WorkerMessage
from ostiary.core.settings import GatewaySettings, TLSFiles
from ostiary.gateway.journal import Journal
from ostiary.gateway.tls_listener import ServerTLS, TLSListener
from ostiary.gateway.worker import Worker
from ostiary.http1.pool import client_tls_context

HEALTHZ = b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n"


class Pair(NamedTuple):
    """A certificate and its key."""

    cert: bytes
    key: bytes


class Served(NamedTuple):
    worker: Worker
    listener: TLSListener
    tls: ServerTLS
    port: int


class Site:
    """The files that the listener reads, and a client's trust in who has signed them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.files = TLSFiles(str(directory / "cert.pem"), str(directory / "key.pem"))
        self.trust = ssl.create_default_context()
        self._authority = trustme.CA()
        self._authority.configure_trust(self.trust)
        self._changed = count(1)
        self.write(self.new_pair())

    def new_pair(self) -> Pair:
        made = self._authority.issue_cert("127.0.0.1")
        return Pair(made.cert_chain_pems[0].bytes(), made.private_key_pem.bytes())

    def write(self, pair: Pair) -> None:
        """Each is replaced by a file of its own, as by who renews certificates."""
        for name, data in zip((self.files.cert_file, self.files.key_file), pair, strict=True):
            new = self.directory / f"new-{next(self._changed)}"
            new.write_bytes(data)
            new.replace(name)

    async def certificate(self, port: int) -> bytes:
        """What a newcomer is shown, who then is served."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=self.trust)
        try:
            writer.write(HEALTHZ)
            assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
            return bytes(writer.get_extra_info("ssl_object").getpeercert(binary_form=True))
        finally:
            writer.transport.abort()


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@asynccontextmanager
async def serving(site: Site) -> AsyncIterator[Served]:
    journal = Journal.open(site.directory, GatewaySettings(journal_dir=str(site.directory)), "one", lambda: 0.0)
    failures: list[BaseException] = []
    worker = Worker(GatewaySettings(journal_dir=""), journal, client_tls_context(), unlinked)
    tls = ServerTLS(site.files)
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    listener = TLSListener(listening, tls, worker.connections, 10.0, failures.append)
    listener.start(16)
    try:
        yield Served(worker, listener, tls, port)
    finally:
        if listening.fileno() >= 0:
            listener.close()
        for connection in tuple(worker.connections.live):
            connection.reset()
        await until(lambda: not worker.connections.live)
        journal.close()
    assert not failures


def unlinked(_: WorkerMessage) -> bool:
    return False


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0)


def perform(play: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20):
            await play()

    uvloop.run(bounded())


def der(pair: Pair) -> bytes:
    return ssl.PEM_cert_to_DER_cert(pair.cert.decode())


HALF: dict[str, Callable[[Pair, Pair], Pair]] = {
    "a new certificate with the old key": lambda old, new: Pair(new.cert, old.key),
    "a new key with the old certificate": lambda old, new: Pair(old.cert, new.key),
    "a new certificate with a key that is none": lambda old, new: Pair(new.cert, b"none"),
    "a new certificate with half a key": lambda old, new: Pair(new.cert, new.key[: len(new.key) // 2]),
    "half a certificate": lambda old, new: Pair(new.cert[: len(new.cert) // 2], new.key),
    "nothing yet": lambda old, new: Pair(b"", b""),
}


@pytest.mark.parametrize("half", HALF)
def test_while_a_new_certificate_is_not_whole_the_old_one_is_shown(site: Site, half: str) -> None:
    async def play() -> None:
        old, new = site.new_pair(), site.new_pair()
        site.write(old)
        async with serving(site) as served:
            assert await site.certificate(served.port) == der(old)
            site.write(HALF[half](old, new))
            with capture_logs() as logs:
                served.tls.reload_if_changed()
            assert [line["event"] for line in logs] == ["keeping the old certificate"]
            assert await site.certificate(served.port) == der(old)
            site.write(new)
            with capture_logs() as logs:
                served.tls.reload_if_changed()
                served.tls.reload_if_changed()
            assert [line["event"] for line in logs] == ["loading a changed certificate"]
            assert await site.certificate(served.port) == der(new)

    perform(play)


def test_a_drain_waits_for_who_is_still_shaking_hands(site: Site) -> None:
    async def play() -> None:
        async with serving(site) as served:
            worker = served.worker
            reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
            await until(lambda: worker.connections.handshakes)
            served.listener.close()
            draining = asyncio.create_task(worker.drain(asyncio.Event()))
            for _ in range(16):
                await asyncio.sleep(0)
            assert not draining.done()
            await writer.start_tls(site.trust, server_hostname="127.0.0.1")
            writer.write(HEALTHZ)
            assert (await reader.read()).startswith(b"HTTP/1.1 200 OK\r\n")
            writer.transport.abort()
            await draining

    perform(play)


def test_a_drain_does_not_wait_for_ever_for_who_only_begins_a_handshake(site: Site) -> None:
    async def play() -> None:
        async with serving(site) as served:
            _, writer = await asyncio.open_connection("127.0.0.1", served.port)
            await until(lambda: served.worker.connections.handshakes)
            served.listener.close()
            await served.worker.drain(asyncio.Event())
            writer.transport.abort()
            await until(lambda: not served.worker.connections.handshakes)

    perform(play)
