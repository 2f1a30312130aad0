"""Peers that behave badly on the wire, by the hundred or the ten thousand, and traffic that must not notice.

    with Crowd(site.front.port) as crowd:
        peers = crowd.connect(5_000)                 # raw connections that send nothing
        crowd.each(peers, lambda peer: peer.send(b"POST "))
        beside = traffic(site, "beside")             # calls of people, made meanwhile
    check_untouched(alone, beside)

Rules
- All connections of a crowd live on one event loop in a thread of its own; a `Peer` notes what it got and how it ended.
- What reaches the provider carries a mark, so that `reconcile` can tell of every peer what became of its request.
- A slow peer sleeps between its bytes, for that is what it does; nothing else waits for time to pass.
"""

import asyncio
import json
import os
import resource
import socket
import struct
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar, cast

import uvloop

from tests.chaos.harness import Site
from tests.support.load import MIXED, RESPONSES, Call, Kind
from tests.support.reconcile import Reconciled, metric
from tests.support.reconcile import reconcile as reconciled
from tests.support.server import OWNER_TOKEN, Machine, eventually

T = TypeVar("T")

_RESET = struct.pack("ii", 1, 0)
_AT_ONCE = 128
"""Connections that are made at the same time: fewer than wait in a listener's queue."""


def allow_many_files() -> int:
    """As many descriptors for this process as the system allows; gives how many."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return 1 << 20 if hard == resource.RLIM_INFINITY else hard


def request(
    kind: Kind, mark: str, control: str = "", *, token: str = OWNER_TOKEN, fields: str = "", **more: Any
) -> tuple[bytes, bytes]:
    """Head and body of a call that carries a mark; `fields` are lines of the head, `more` members of the body."""
    text = f"fake-mark:{mark} once more"
    said = {"input": text} if kind.path == RESPONSES.path else {"messages": [{"role": "user", "content": text}]}
    body = json.dumps(kind.body | said | more).encode()
    head = (
        f"POST {kind.path} HTTP/1.1\r\nHost: test\r\nAuthorization: Bearer {token}\r\nX-Fake: {control}\r\n"
        f"{fields}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode(), body


class Peer(asyncio.Protocol):
    """One raw connection to the server."""

    KEPT = 256 * 1024
    """Bytes of what came that are kept."""

    def __init__(self, begun: float) -> None:
        """`begun`: when it began to connect; the server may have taken it long before this loop hears of that."""
        self.received = b""
        self.size = 0
        """Bytes that came."""
        self.end = ""
        """`closed` or `reset`, once it has ended."""
        self.seconds = 0.0
        """How long it stood."""
        self.ended_at = 0.0
        """By the monotonic clock."""
        self._begun = begun
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self.size += len(data)
        if len(self.received) < self.KEPT:
            self.received += data[: self.KEPT - len(self.received)]

    def connection_lost(self, exc: Exception | None) -> None:
        self.end = "reset" if exc is not None else "closed"
        self.ended_at = time.monotonic()
        self.seconds = self.ended_at - self._begun

    @property
    def status(self) -> int:
        """Of the first answer; 0 while there is none."""
        return int(self.received[9:12] or 0)

    def send(self, data: bytes) -> None:
        """Without effect once the connection has ended."""
        if not self.end:
            self._transport.write(data)

    def half_close(self) -> None:
        if not self.end and not self._transport.is_closing():
            self._transport.write_eof()

    def close(self) -> None:
        self._transport.close()

    def reset(self) -> None:
        """End it as a crash would."""
        if not self.end:
            _reset_when_closed(self._transport.get_extra_info("socket"))
            self._transport.abort()


def _reset_when_closed(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)


class Crowd:
    """Many peers of one port. A context: those that are left at its end are closed."""

    def __init__(self, port: int) -> None:
        allow_many_files()
        self._port = port
        self._peers: list[Peer] = []
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="crowd")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_failure: object) -> None:
        self.each(self._peers, Peer.close)
        self.run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        """What was begun and is not over ends too."""
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def run(self, play: Coroutine[Any, Any, T], *, within: float = 120.0) -> T:
        """What a coroutine gives that runs on the crowd's loop."""
        return asyncio.run_coroutine_threadsafe(play, self._loop).result(within)

    def begin(self, play: Coroutine[Any, Any, T]) -> "Future[T]":
        """The same, without waiting for it."""
        return asyncio.run_coroutine_threadsafe(play, self._loop)

    def call(self, do: Callable[[], object]) -> None:
        """Do it on the loop, soon."""
        self._loop.call_soon_threadsafe(do)

    def each(self, peers: Sequence[Peer], do: Callable[[Peer], object]) -> None:
        """Do it to each, on the loop."""

        async def all_of_them() -> None:
            for at, peer in enumerate(peers):
                do(peer)
                if at % _AT_ONCE == 0:
                    await asyncio.sleep(0)

        self.run(all_of_them())

    def connect(self, count: int) -> list[Peer]:
        """So many more connections."""
        return self.run(self.connected(count))

    async def connected(self, count: int) -> list[Peer]:
        made: list[Peer] = []
        while len(made) < count:
            size = min(_AT_ONCE, count - len(made))
            new_peer = partial(Peer, time.monotonic())
            pairs = await asyncio.gather(
                *(self._loop.create_connection(new_peer, "127.0.0.1", self._port) for _ in range(size))
            )
            made += [peer for _, peer in pairs]
        self._peers += made
        return made


class SlowConnection:
    """A connection whose client takes and gives bytes one small piece at a time. For coroutines of a crowd's loop."""

    def __init__(self, port: int, *, receive_buffer: int = 0) -> None:
        self._port = port
        self._socket = socket.socket()
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if receive_buffer:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)

    async def __aenter__(self) -> Self:
        await asyncio.get_running_loop().sock_connect(self._socket, ("127.0.0.1", self._port))
        return self

    async def __aexit__(self, *_failure: object) -> None:
        self._socket.close()

    async def send(self, data: bytes, piece: int = 0, pause: float = 0.0) -> None:
        """By `piece` bytes, `pause` seconds between them; all at once by default."""
        loop = asyncio.get_running_loop()
        size = piece or len(data)
        for at in range(0, len(data), size):
            await loop.sock_sendall(self._socket, data[at : at + size])
            await asyncio.sleep(pause)

    async def take(self, most: int) -> bytes:
        """What is there, up to `most` bytes; empty at the end, however it came."""
        try:
            return await asyncio.get_running_loop().sock_recv(self._socket, most)
        except ConnectionError:
            return b""

    async def take_all(self, piece: int = 1024 * 1024) -> bytes:
        """Everything until the end, by `piece` bytes at most."""
        parts = []
        while data := await self.take(piece):
            parts.append(data)
        return b"".join(parts)

    def reset_when_closed(self) -> None:
        _reset_when_closed(self._socket)

    def half_close(self) -> None:
        self._socket.shutdown(socket.SHUT_WR)


# --- what others see of it


class Speed(NamedTuple):
    """Of calls, in seconds."""

    calls: list[Call]
    median: float
    p99: float
    slowest: float

    def __str__(self) -> str:
        times = (f"{1000 * seconds:.1f}" for seconds in (self.median, self.p99, self.slowest))
        return f"{len(self.calls)} calls, p50/p99/max {'/'.join(times)} ms"


def traffic(site: Site, prefix: str, *, total: int = 120, concurrency: int = 6) -> Speed:
    """Calls of people, of every format, one after the other on connections of their own: how long they took."""
    with site.load(concurrency=concurrency, total=total, control="events=10", kinds=MIXED, prefix=prefix) as load:
        calls = load.wait()
    assert not load.failures(), load.failures()
    times = sorted(call.seconds for call in calls)
    return Speed(calls, times[len(times) // 2], times[len(times) * 99 // 100], times[-1])


def check_untouched(alone: Speed, beside: Speed) -> None:
    """Every call was answered in full, see `traffic`; and none had to wait for what went on beside.

    The bounds are for machines on which everything else runs too, and for the bad peers, which take their share of the
    processor here, and for one that stalls for two seconds: what waits for a bad peer waits for four or more.
    """
    told = f"alone {alone}; beside {beside}"
    assert beside.median < 5 * alone.median + 0.25, told
    assert beside.slowest < alone.slowest + 3.9, told


def reconcile(site: Site, *speeds: Speed, unsent: Sequence[str] = ()) -> Reconciled:
    """Of all that reached the provider, none lost and none twice; the people's calls as they were answered.

    `unsent`: how a request may have ended that did not reach the provider.
    """
    calls = [call for speed in speeds for call in speed.calls]
    result = reconciled(site.server, site.fake, calls, within=60.0, unsent=unsent)
    assert not result.late, result
    print(result)
    return result


class Usage(NamedTuple):
    """Of the workers of a machine."""

    memory: int
    """Bytes that they have allocated for themselves."""
    descriptors: int
    processor: float
    """Seconds that they have run so far."""


def usage(machine: Machine) -> Usage:
    memory = descriptors = 0
    processor = 0.0
    for pid in machine.children("worker"):
        proc = Path(f"/proc/{pid}")
        memory += sum(
            int(line.split()[1]) * 1024
            for line in (proc / "smaps_rollup").read_text().splitlines()
            if line.startswith("Pss_Anon:")
        )
        descriptors += len(os.listdir(proc / "fd"))
        times = (proc / "stat").read_text().rpartition(")")[2].split()[11:13]
        processor += sum(map(int, times)) / os.sysconf("SC_CLK_TCK")
    return Usage(memory, descriptors, processor)


def await_quiet(site: Site, descriptors: int) -> None:
    """Nothing is under way, and all that the crowd had is given back, but for connections to the provider."""
    eventually(lambda: metric(site.front, "ostiary_interceptions_inflight") == 0)
    eventually(lambda: metric(site.front, "ostiary_client_connections") <= 1, what="connections are closed")
    spare = metric(site.front, "ostiary_upstream_idle_connections")
    eventually(lambda: usage(site.front).descriptors <= descriptors + spare + 2, what="descriptors are given back")
