"""The fake provider as a child of `ostiary server --demo`, and as the command `ostiary fake-provider`."""

import asyncio
import signal
import socket
from collections.abc import Callable
from contextlib import suppress

import structlog

from ostiary.core.messages import Drain, Drained, FakeBoot, Ready
from ostiary.core.settings import FakeSettings
from ostiary.core.supervision import Supervision

from .ledger import Ledger
from .server import FakeServer, serve, tls_context

_log = structlog.get_logger()


async def run(boot: FakeBoot, fd: int, supervision: Supervision) -> int:
    """Serve on the listening socket `fd` until the supervisor says to drain. Returns the exit status."""
    settings = boot.settings
    server = await _serve(settings, socket.socket(fileno=fd))
    _log.info("serving the fake provider", url=server.url)
    supervision.report(Ready())
    await _drain_order(supervision)
    second = asyncio.create_task(_drain_order(supervision))
    draining = asyncio.create_task(server.drain(settings.drain_timeout))
    await asyncio.wait((draining, second), return_when=asyncio.FIRST_COMPLETED)
    for task in (second, draining):
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    await server.close()
    supervision.report(Drained())
    return 0


async def run_command(
    host: str, port: int, settings: FakeSettings | None = None, on_ready: Callable[[str], None] | None = None
) -> int:
    """Serve on an address until SIGINT or SIGTERM; `on_ready` is told the URL. Raises `OSError` when it is taken."""
    settings = settings or FakeSettings()
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for signum in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signum, stop.set)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((host, port))
    server = await _serve(settings, sock)
    if on_ready is not None:
        on_ready(server.url)
    await stop.wait()
    await server.drain(0.0)
    await server.close()
    return 0


async def _drain_order(supervision: Supervision) -> None:
    while not isinstance((await supervision.next_order()).order, Drain):
        pass


async def _serve(settings: FakeSettings, sock: socket.socket) -> FakeServer:
    tls = None if settings.tls is None else tls_context(settings.tls.cert_file, settings.tls.key_file)
    return await serve(sock=sock, tls=tls, ledger=Ledger(settings.ledger, file=settings.ledger_file))
