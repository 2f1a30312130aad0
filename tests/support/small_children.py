"""Small children for the supervisor's tests: they do what the supervisor can see of the real ones, and no more.

A file of the right name in the data directory makes one misbehave.
"""

import asyncio
import json
import os
import signal
import socket
from pathlib import Path

import asyncpg

from ostiary.core.messages import (
    ControlBoot,
    Drain,
    Drained,
    FakeBoot,
    Fatal,
    LinkBoot,
    MachineReady,
    NewPeer,
    Note,
    Ready,
    WorkerBoot,
)
from ostiary.core.supervision import Supervision

_peers: list[socket.socket] = []
"""Kept open."""


async def _answer_with(facts: dict[str, object], listener: int, hangs: Path | None = None) -> asyncio.Server:
    """Answer every connection with one line of JSON; once the file `hangs` is there, take it away and hang instead."""

    async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if hangs is not None and hangs.exists():
            hangs.unlink()
            signal.pause()
        writer.write(json.dumps(facts).encode() + b"\n")
        await writer.drain()
        writer.close()

    return await asyncio.start_server(answer, sock=socket.socket(fileno=listener))


async def worker(boot: WorkerBoot, listener: int, supervision: Supervision) -> int:
    knobs = Path(boot.settings.journal_dir).parent
    if (knobs / "worker-never-ready").exists():
        return 7
    if (knobs / "worker-refuses").exists():
        supervision.report(Fatal("the certificate cannot be read", 4))
        return 4
    facts: dict[str, object] = {"pid": os.getpid(), "worker": boot.worker, "environment": dict(os.environ)}
    server = await _answer_with(facts, listener, knobs / "worker-hangs")
    supervision.report(Ready())
    drains = 0
    while True:
        order, fd = await supervision.next_order()
        if isinstance(order, NewPeer):
            assert fd is not None
            peer = socket.socket(fileno=fd)
            peer.send(json.dumps([order.worker, os.getpid()]).encode())
            _peers.append(peer)
        elif isinstance(order, Drain):
            drains += 1
            server.close()
            with (knobs / "order-of-ends").open("a") as file:
                file.write(f"worker drain {drains}\n")
            if drains == 2 or not (knobs / "worker-has-a-stream").exists():
                supervision.report(Drained())
                return 0


async def link(boot: LinkBoot, listener: int | None, supervision: Supervision) -> int:
    knobs = Path(boot.settings.data_dir)
    joined: dict[str, object] = {}
    facts: dict[str, object] = {"pid": os.getpid(), "workers": joined}
    if listener is not None:
        await _answer_with(facts, listener)
    supervision.report(Ready())
    supervision.report(MachineReady())
    loop = asyncio.get_running_loop()
    while True:
        order, fd = await supervision.next_order()
        if isinstance(order, NewPeer):
            assert fd is not None
            peer = socket.socket(fileno=fd)
            peer.setblocking(False)
            index, pid = json.loads(await loop.sock_recv(peer, 100))
            assert index == order.worker
            joined[str(index)] = pid
            _peers.append(peer)
        elif isinstance(order, Drain):
            with (knobs / "order-of-ends").open("a") as file:
                file.write("link\n")
            left = knobs / "records-left"
            supervision.report(Drained(int(left.read_text()) if left.exists() else 0))
            return 0


async def control(boot: ControlBoot, listener: int, supervision: Supervision) -> int:
    knobs = Path(boot.settings.data_dir)
    if (knobs / "control-refuses").exists():
        supervision.report(Fatal("the encryption key is not the one of this database: bring it back", 3))
        return 3
    facts: dict[str, object] = {"pid": os.getpid(), "demo": [p.base_url for p in boot.settings.demo_providers]}
    if boot.settings.embedded_database:
        connection = await asyncpg.connect(boot.settings.database_url.reveal().replace("+asyncpg", ""))
        facts["server"] = await connection.fetchval("SHOW server_version")
        facts["postmaster"] = int((knobs / "pg/data/postmaster.pid").read_text().split()[0])
        await connection.close()
    await _answer_with(facts, listener)
    (knobs / "control-facts").write_text(json.dumps(facts | {"url": boot.settings.public_url}))
    supervision.report(Note("a word from the control plane"))
    supervision.report(Note("a secret word", only_terminal=True))
    supervision.report(Ready())
    while not isinstance((await supervision.next_order()).order, Drain):
        pass
    with (knobs / "order-of-ends").open("a") as file:
        file.write("control\n")
    return 0


async def fake(_boot: FakeBoot, listener: int, supervision: Supervision) -> int:
    await _answer_with({"pid": os.getpid()}, listener)
    supervision.report(Ready())
    while not isinstance((await supervision.next_order()).order, Drain):
        pass
    return 0


async def stubborn(_boot: WorkerBoot, _listener: int, supervision: Supervision) -> int:
    """A worker that ends by no order."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    supervision.report(Ready())
    while True:
        await supervision.next_order()
