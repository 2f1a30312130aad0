"""A link process whose supervisor and workers are the test's, with a control plane at the far end."""

import asyncio
import os
import socket
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from control_far_end import KEY, FarEnd

from ostiary.core.ids import new_id
from ostiary.core.messages import (
    AskMetrics,
    FrameReader,
    LinkBoot,
    LinkMessage,
    MachineState,
    MetricsReport,
    NewPeer,
    Order,
    Report,
    Serving,
    Snapshot,
    WorkerHello,
    WorkerMessage,
    encode,
)
from ostiary.core.metrics import Registry
from ostiary.core.records import InterceptionEnd, encode_record
from ostiary.core.secret import Secret
from ostiary.core.settings import GatewaySettings, LinkSettings
from ostiary.core.supervision import Delivered
from ostiary.gateway.journal import Journal
from ostiary.link.process import run

M = TypeVar("M")
Play = Callable[..., None]
"""The fixture `play`: runs a test with a machine; `workers` is how many it should have, the rest are settings."""


class Worker:
    """The worker's end of a link socket, with a real journal; it serves whatever it is given."""

    def __init__(self, sock: socket.socket, index: int, journal: Journal) -> None:
        self.index = index
        self.said: list[LinkMessage] = []
        self.journal = journal
        self.registry = Registry()
        self.requests = self.registry.counter("ostiary_requests", "Requests.").cell()
        self.inflight = self.registry.gauge("ostiary_inflight", "In flight.").cell()
        self.answers_metrics = True
        self.serves = True
        self.reads = asyncio.Event()
        """Cleared: from the next piece on nothing is read any more."""
        self.reads.set()
        self.closed = asyncio.Event()
        self._sock = sock
        self._reader: FrameReader[LinkMessage] = FrameReader(LinkMessage)
        self._reading = asyncio.create_task(self._read())

    def send(self, message: WorkerMessage) -> None:
        self.send_bytes(encode(message))

    def send_bytes(self, data: bytes) -> None:
        self._sock.sendall(data)

    def latest(self, kind: type[M]) -> M | None:
        return next((message for message in reversed(self.said) if isinstance(message, kind)), None)

    @property
    def ready(self) -> bool:
        state = self.latest(MachineState)
        return state is not None and state.ready

    def record(self) -> None:
        self.journal.append_end(encode_record(InterceptionEnd(new_id(), 1, "completed")))

    def die(self) -> None:
        self._reading.cancel()
        self._sock.close()
        self.journal.close()

    async def _read(self) -> None:
        loop = asyncio.get_running_loop()
        self.send(WorkerHello(self.index, self.journal.id, os.getpid()))
        with suppress(OSError):
            while data := await loop.sock_recv(self._sock, 65536):
                await self.reads.wait()
                for message in self._reader.feed(data):
                    self.said.append(message)
                    if isinstance(message, Snapshot) and self.serves:
                        self.send(Serving(message.revision))
                    if isinstance(message, AskMetrics) and self.answers_metrics:
                        self.send(MetricsReport(self.registry.report(), message.seq))
        self.closed.set()


class Machine:
    """A link process, supervised by the test: `core.supervision.Supervision` over a queue."""

    def __init__(self, far: FarEnd, root: Path, workers: int) -> None:
        self.far = far
        self.root = root
        self.workers = workers
        self.reports: list[Report] = []
        self.settings: dict[str, Any] = {"poll_interval": 0.02, "drain_timeout": 10.0}
        self.metrics_port = 0
        self._living: list[Worker] = []

    async def start(self) -> None:
        self._orders: asyncio.Queue[Delivered] = asyncio.Queue()
        listening = socket.socket()
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        self.metrics_port = listening.getsockname()[1]
        settings = LinkSettings(
            control_url=self.far.url,
            gateway_key=Secret(self.settings.pop("key", KEY)),
            journal_dir=str(self.root / "journal"),
            data_dir=str(self.root),
            **self.settings,
        )
        self.process = asyncio.create_task(run(LinkBoot(settings, self.workers), listening.detach(), self))

    async def next_order(self) -> Delivered:
        return await self._orders.get()

    def report(self, report: Report) -> None:
        self.reports.append(report)

    def order(self, order: Order, fd: int | None = None) -> None:
        self._orders.put_nowait(Delivered(order, fd))

    def worker(self, index: int, journal: Journal | None = None) -> Worker:
        """A new worker, or with its journal the new link socket of one."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        root = self.root / "journal"
        new = GatewaySettings(journal_dir=str(root))
        worker = Worker(ours, index, journal or Journal.open(root, new, str(uuid.uuid4()), time.monotonic))
        self._living.append(worker)
        self.order(NewPeer(index), theirs.detach())
        return worker

    async def crash(self) -> None:
        self.process.cancel()
        await asyncio.gather(self.process, return_exceptions=True)

    async def page(self) -> dict[str, float]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.metrics_port)
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n")
        body = (await reader.read()).partition(b"\r\n\r\n")[2].decode()
        writer.close()
        lines = [line for line in body.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}

    async def end(self) -> None:
        for worker in self._living:
            worker.die()
        await self.crash()
