"""The load generator: `python -m bench.load` reads one JSON order on stdin and prints one JSON result.

Rules
- It shares no code with what it measures. One uvloop process on plain protocols, which is faster than anything it is
  pointed at (a run against the fake provider alone is part of every benchmark and shows it).
- Every answer is checked: status 200, framing complete, as many bytes as the first but for 2 % that framing may differ by.
  The first and one in fifty are taken out of their chunks, and half an event less or more is seen. What is wrong is an
  error, and so is an answer that has not ended 15 s after the round; a round with errors is no result.
- An order that `polls` has the loop never sleep, so that nobody pays for waking it (`bench.polling` says why).
- `closed`: each connection sends the next request when the answer is in; with a `count`, exactly so many are sent.
- `turns`: requests start on a fixed schedule, at each target in turn, whatever the answers do; latency counts from the
  scheduled time (no coordinated omission). So all targets are measured in the same seconds.
- `live`: streams that stay open until stdin ends; a line says when all have begun, and each line that comes in is answered
  by how many events have come so far.
"""

import asyncio
import ctypes
import gc
import json
import math
import os
import re
import struct
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import cycle
from typing import Any

import uvloop

_LENGTH = re.compile(rb"\r\ncontent-length:[ ]*(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:[ ]*chunked", re.IGNORECASE)
_END = b"\r\n0\r\n\r\n"
_DRAIN_SECONDS = 15.0
_LOOKED_AT = 50
"""Of so many answers on a connection one is taken out of its chunks."""
_LESS_THAN_AN_EVENT = 1 / 600
"""Of a stream of 300 events."""


class BadAnswerError(Exception):
    """An answer that a benchmark must not count."""


class Client(asyncio.Protocol):
    """One connection: `send()`, then `done(seconds)` when the answer is complete. `requests` are shared, and have no end."""

    def __init__(
        self,
        requests: Iterator[bytes],
        done: Callable[["Client", float], None],
        failed: Callable[[str], None],
    ) -> None:
        self.transport: asyncio.Transport
        self.began = False
        self.busy = False
        self._requests = requests
        self._done = done
        self._failed = failed
        self._started = 0.0
        self._clock = time.perf_counter
        self._head = b""
        self._left = 0
        self._chunked = False
        self._tail = b""
        self._size = 0
        self._answers = 0
        self._kept: list[bytes] | None = None
        self._payload = 0
        self.expected = 0
        self.received = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def connection_lost(self, exc: Exception | None) -> None:
        if self.busy:
            self._failed(f"connection closed in the middle of an answer ({exc or 'end of file'})")

    def send(self, started: float | None = None) -> None:
        self.busy = True
        self._started = self._clock() if started is None else started
        self._head = b""
        self._size = 0
        self._kept = [] if self._answers % _LOOKED_AT == 0 else None
        self._answers += 1
        self.transport.write(next(self._requests))

    def data_received(self, data: bytes) -> None:
        try:
            if self._receive(data):
                self.busy = False
                self._done(self, self._clock() - self._started)
        except BadAnswerError as exc:
            self.busy = False
            self.transport.abort()
            self._failed(str(exc))

    def _receive(self, data: bytes) -> bool:
        """Whether the answer is complete."""
        self.received += len(data)
        if self._kept is not None:
            self._kept.append(data)
        if not self._left and not self._chunked:
            data = self._take_head(data)
            if not self._left and not self._chunked:
                return False
        self.began = True
        if self._chunked:
            self._size += len(data)
            self._tail = data[-7:] if len(data) >= 7 else (self._tail + data)[-7:]
            if self._tail != _END:
                return False
            self._chunked = False
        else:
            self._left -= len(data)
            self._size += len(data)
            if self._left > 0:
                return False
            if self._left < 0:
                raise BadAnswerError("more bytes than Content-Length says")
        if not self.expected:
            self.expected = self._size
        elif abs(self._size - self.expected) > self.expected // 50:
            # Framing may differ by where a relay cut its chunks.
            raise BadAnswerError(f"a body of {self._size} bytes, the first had {self.expected}")
        if self._kept is not None:
            self._check_payload(payload_size(b"".join(self._kept)))
        return True

    def _check_payload(self, size: int) -> None:
        if not self._payload:
            self._payload = size
        elif abs(size - self._payload) > self._payload * _LESS_THAN_AN_EVENT:
            raise BadAnswerError(f"{size} bytes out of their chunks, the first had {self._payload}")

    def _take_head(self, data: bytes) -> bytes:
        head = self._head = self._head + data if self._head else data
        end = head.find(b"\r\n\r\n")
        if end < 0:
            return b""
        if not head.startswith(b"HTTP/1.1 200"):
            raise BadAnswerError(f"answer {head[:300].decode('latin-1')!r}")
        length = _LENGTH.search(head, 0, end + 2)
        if length is not None:
            self._left = int(length[1])
        elif _CHUNKED.search(head, 0, end + 2) is not None:
            self._chunked = True
            self._tail = b""
        if not self._left and not self._chunked:
            raise BadAnswerError("an answer without a body")
        body = head[end + 4 :]
        self._head = b""
        return body


def payload_size(answer: bytes) -> int:
    """How many bytes an answer's body has without its framing. Raises `BadAnswerError`."""
    head, _, body = answer.partition(b"\r\n\r\n")
    if _CHUNKED.search(head + b"\r\n") is None:
        return len(body)
    size = at = 0
    while True:
        end = body.find(b"\r\n", at)
        try:
            chunk = int(body[at:end].partition(b";")[0], 16)
        except ValueError:
            raise BadAnswerError("broken chunks") from None
        if not chunk:
            return size
        size += chunk
        at = end + 2 + chunk + 2


class LiveClient(Client):
    """One whose events are counted as they come."""

    events = 0

    def data_received(self, data: bytes) -> None:
        self.events += data.count(b"\n\n")
        super().data_received(data)


class Run:
    """One order being carried out at one target. What cannot be sent when it is due waits for a connection."""

    def __init__(self, order: dict[str, Any], kind: type[Client] = Client) -> None:
        self.order = order
        self.requests = cycle(_requests(order))
        self.latencies: list[float] = []
        self.errors: list[str] = []
        self.error_count = 0
        self.stopping = False
        self.clients: list[Client] = []
        self.waiting: deque[float] = deque()
        self.free: list[Client] = []
        self._kind = kind

    def failed(self, reason: str) -> None:
        self.error_count += 1
        if len(self.errors) < 5:
            self.errors.append(reason)

    async def connect(self, done: Callable[[Client, float], None]) -> None:
        loop = asyncio.get_running_loop()
        host, port = self.order["address"]
        count = self.order["connections"]

        async def one() -> Client:
            _, client = await loop.create_connection(lambda: self._kind(self.requests, done, self.failed), host, port)
            return client

        for start in range(0, count, 100):
            self.clients += await asyncio.gather(*(one() for _ in range(start, min(start + 100, count))))

    def due(self, at: float) -> None:
        """A request is to be sent now."""
        if self.free:
            self.free.pop().send(at)
        else:
            self.waiting.append(at)

    def answered(self, client: Client, seconds: float) -> None:
        """Of what was `due`."""
        self.latencies.append(seconds)
        if self.waiting:
            client.send(self.waiting.popleft())
        else:
            self.free.append(client)

    async def drain(self) -> None:
        """Wait for what is under way, so that the next round starts on quiet connections."""
        deadline = time.perf_counter() + _DRAIN_SECONDS
        while (busy := sum(client.busy for client in self.clients)) and time.perf_counter() < deadline:
            await asyncio.sleep(0.005)
        for _ in range(busy):
            self.failed(f"an answer had not ended {_DRAIN_SECONDS:.0f} s after the round")

    def close(self) -> None:
        for client in self.clients:
            client.busy = False
            client.transport.abort()

    def result(self, seconds: float) -> dict[str, Any]:
        ordered = sorted(self.latencies)
        return {
            "count": len(ordered),
            "seconds": seconds,
            "bytes": sum(client.received for client in self.clients),
            "errors": self.error_count + len(self.waiting),
            "reasons": self.errors or (["requests that were due were never sent"] if self.waiting else []),
            "p50": percentile(ordered, 0.50),
            "p99": percentile(ordered, 0.99),
        }


def _requests(order: dict[str, Any]) -> list[bytes]:
    """The order's request; where it is to `vary`, one for each value in the place of the mark. All take their turn."""
    text = order["request"]
    if "vary" not in order:
        return [text.encode("latin-1")]
    mark, values = order["vary"]
    return [text.replace(mark, value).encode("latin-1") for value in values]


async def closed(order: dict[str, Any]) -> dict[str, Any]:
    run = Run(order)
    record, clock = run.latencies.append, time.perf_counter
    limit = order.get("count") or math.inf
    sent = order["connections"]

    def done(client: Client, seconds: float) -> None:
        nonlocal sent
        record(seconds)
        if len(run.latencies) >= limit:
            finished.set()
        elif not run.stopping and sent < limit:
            sent += 1
            client.send()

    finished = asyncio.Event()
    await run.connect(done)
    if order.get("polls"):
        poll(asyncio.get_running_loop())
    started = clock()
    for client in run.clients:
        client.send()
    with suppress(TimeoutError):
        await asyncio.wait_for(finished.wait(), order["seconds"])
    run.stopping = True
    seconds = clock() - started
    counted = len(run.latencies)
    await run.drain()
    result = run.result(seconds) | {"counted": counted}
    run.close()
    return result


async def turns(order: dict[str, Any]) -> dict[str, Any]:
    runs = [Run(target) for target in order["targets"]]
    for run in runs:
        await run.connect(run.answered)
        run.free.extend(run.clients)
    clock = time.perf_counter
    interval = 1 / (order["per_second"] * len(runs))
    total = int(order["seconds"] / interval)
    finished = asyncio.Event()
    begin = clock() + 0.05
    number = 0

    def fire() -> None:
        nonlocal number
        while number < total and clock() >= (at := begin + number * interval):
            runs[number % len(runs)].due(at)
            number += 1
        if number >= total:
            finished.set()

    stop = _repeat(fire, interval, spins=bool(order.get("polls")))
    await finished.wait()
    stop()
    for run in runs:
        await run.drain()
    results = [run.result(order["seconds"]) for run in runs]
    for run in runs:
        run.close()
    return {"targets": results}


def _repeat(call: Callable[[], None], interval: float, *, spins: bool) -> Callable[[], None]:
    """Have the loop `call` again and again; gives what ends it.

    The loop's own timers come in whole milliseconds, more than what is measured here. So it spins where it has a core of
    its own; else a timer of the kernel's wakes it.
    """
    loop = asyncio.get_running_loop()
    if spins:
        going = True

        def again() -> None:
            if going:
                call()
                loop.call_soon(again)

        def end() -> None:
            nonlocal going
            going = False

        again()
        return end
    timer = _kernel_timer(interval)

    def tick() -> None:
        os.read(timer, 8)
        call()

    def close() -> None:
        loop.remove_reader(timer)
        os.close(timer)

    loop.add_reader(timer, tick)
    return close


def _kernel_timer(interval: float) -> int:
    """A descriptor that is readable every `interval` seconds (timerfd_create(2); `os` has it from Python 3.13 on)."""
    libc = ctypes.CDLL(None, use_errno=True)
    monotonic, nonblocking = 1, os.O_NONBLOCK | os.O_CLOEXEC
    timer = libc.timerfd_create(monotonic, nonblocking)
    nanoseconds = max(1, int(interval * 1e9))
    spec = struct.pack("4q", *divmod(nanoseconds, 10**9), *divmod(nanoseconds, 10**9))
    if timer < 0 or libc.timerfd_settime(timer, 0, spec, None) < 0:
        raise OSError(ctypes.get_errno(), "the kernel gives no timer")
    return int(timer)


async def live(order: dict[str, Any]) -> dict[str, Any]:
    run = Run(order, LiveClient)
    loop = asyncio.get_running_loop()
    await run.connect(lambda _client, _seconds: run.failed("a stream ended too soon"))
    for client in run.clients:
        client.send()
    deadline = time.perf_counter() + order["seconds"]
    while not all(client.began for client in run.clients) and time.perf_counter() < deadline and not run.error_count:
        await asyncio.sleep(0.05)

    def tell() -> None:
        began = sum(client.began for client in run.clients)
        events = sum(client.events for client in run.clients if isinstance(client, LiveClient))
        told = {"live": began, "events": events, "errors": run.error_count, "reasons": run.errors}
        print(json.dumps(told), flush=True)

    tell()
    while await loop.run_in_executor(None, sys.stdin.readline):
        tell()
    result = run.result(0.0)
    run.close()
    return result


def poll(loop: asyncio.AbstractEventLoop) -> None:
    """Keep `loop` from ever waiting: see `bench.polling`."""
    loop.call_soon(poll, loop)


def percentile(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0


def main() -> None:
    order = json.loads(sys.stdin.readline())
    mode = {"closed": closed, "turns": turns, "live": live}[order["mode"]]
    gc.disable()  # its pauses would be charged to what is measured; a run makes no garbage in circles
    print(json.dumps(uvloop.run(mode(order))), flush=True)


if __name__ == "__main__":
    main()
