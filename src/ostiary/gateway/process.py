"""A worker process: start, the supervisor's orders, drain."""

import asyncio
import os
import select
import socket
import ssl
import time
import uuid
from pathlib import Path
from typing import cast

import structlog

from ostiary.core.messages import Drain, Drained, Fatal, NewPeer, Ready, WorkerBoot, WorkerHello
from ostiary.core.supervision import Supervision
from ostiary.http1.pool import client_tls_context
from ostiary.http1.server import ClientConnection

from .journal import Journal, JournalError
from .limits import Limits, LimitsError
from .link_channel import LinkChannel, link_socket
from .tls_listener import ServerTLS, TLSListener
from .worker import Worker

log = structlog.get_logger()

_BACKLOG = 4096
_UNSENT_MAX = 128 * 1024
"""Bytes that the kernel takes for a client ahead of what is on its way to it. By itself it takes megabytes, and says that it
has room again when a third of them has gone: a client that reads slowly would look like one that does not read."""
_REPORT_INTERVAL = 5.0
_TAKE_SECONDS = 1.0
_READ_TURNS = 8
"""Turns of the loop in which what a new connection has sent is read."""


async def run(boot: WorkerBoot, fd: int, supervision: Supervision) -> int:
    """Serve the listening socket `fd` until the supervisor says otherwise. Gives the exit status."""
    settings = boot.settings
    journal_id = str(uuid.uuid4())
    try:
        limits = Limits.open(
            Path(settings.journal_dir).parent / "limits",
            boot.worker,
            boot.workers,
            settings.max_concurrency,
            settings.rate_limit,
        )
        tls = client_tls_context(settings.ca_file)
        listener_tls = ServerTLS(settings.tls, settings.client_ca_file) if settings.tls is not None else None
        # last: a start that fails leaves no journal behind
        journal = Journal.open(Path(settings.journal_dir), settings, journal_id, time.monotonic)
    except (JournalError, LimitsError) as error:
        supervision.report(Fatal(str(error)))
        return 1
    except (OSError, ssl.SSLError) as error:
        supervision.report(
            Fatal(f"cannot load a TLS file (ca_file, tls_cert_file, tls_key_file, client_ca_file): {error}")
        )
        return 1
    channel = LinkChannel(WorkerHello(boot.worker, journal_id, os.getpid()))
    worker = Worker(settings, journal, tls, channel.send, limits)
    channel.worker = worker
    loop = asyncio.get_running_loop()
    connections = worker.connections
    listener = socket.socket(fileno=fd)
    if hasattr(socket, "TCP_NOTSENT_LOWAT"):  # of all that are accepted
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_MAX)
    server: asyncio.Server | TLSListener
    if listener_tls is None:
        server = await loop.create_server(
            lambda: cast("asyncio.Protocol", ClientConnection(connections)), sock=listener, backlog=_BACKLOG
        )
    else:
        server = TLSListener(listener, listener_tls, connections, settings.client_head_timeout, worker.failures.log)
        server.start(_BACKLOG)
    supervision.report(Ready())
    cut = asyncio.Event()
    ticking = asyncio.create_task(_tick(worker, channel, listener_tls))
    try:
        await _follow_orders(supervision, channel)
        ordering = asyncio.create_task(_second_drain(supervision, channel, cut))
        worker.draining = True
        await _take_what_has_come(listener)
        server.close()
        await worker.drain(cut)
        ordering.cancel()
    finally:
        ticking.cancel()
        channel.send(worker.metrics_report())
        journal.close()
    supervision.report(Drained())
    return 0


async def _follow_orders(supervision: Supervision, channel: LinkChannel) -> None:
    """Until the first `Drain`."""
    while True:
        order, fd = await supervision.next_order()
        if isinstance(order, Drain):
            return
        if isinstance(order, NewPeer) and fd is not None:
            await _connect_link(channel, fd)


async def _take_what_has_come(listener: socket.socket) -> None:
    """Accept the connections, and read the requests, that the kernel holds for us already: a close would reset them."""
    listener.listen(0)  # hardly any more of them
    waiting = select.poll()
    waiting.register(listener, select.POLLIN)
    deadline = time.monotonic() + _TAKE_SECONDS
    while waiting.poll(0) and time.monotonic() < deadline:  # noqa: ASYNC110 - the loop's own descriptor, looked at between its turns
        await asyncio.sleep(0)
    for _ in range(_READ_TURNS):
        await asyncio.sleep(0)


async def _second_drain(supervision: Supervision, channel: LinkChannel, cut: asyncio.Event) -> None:
    await _follow_orders(supervision, channel)
    cut.set()


async def _connect_link(channel: LinkChannel, fd: int) -> None:
    loop = asyncio.get_running_loop()
    await loop.create_unix_connection(lambda: link_socket(channel), sock=socket.socket(fileno=fd))


async def _tick(worker: Worker, channel: LinkChannel, listener_tls: ServerTLS | None) -> None:
    reported = time.monotonic()
    while True:
        await asyncio.sleep(worker.tick)
        worker.sweep()
        now = time.monotonic()
        if now - reported >= _REPORT_INTERVAL:
            reported = now
            try:
                channel.send(worker.metrics_report())
                if listener_tls is not None:
                    listener_tls.reload_if_changed()
            except Exception as error:  # noqa: BLE001 - without its ticks a worker has no time-outs any more
                worker.failures.log(error)
