"""The load generator: `python -m bench.load` reads one JSON order on stdin and prints one JSON result.

Rules
- It shares no code with what it measures. One uvloop process on plain protocols, which is faster than anything it is
  pointed at (a run against the fake provider alone is part of every benchmark and shows it).
- Every answer is checked: status 200, framing complete, the same number of body bytes as the first. Anything else is an
  error, and a round with errors is no result.
- An order that `polls` has the loop never sleep, so that nobody pays for waking it (`bench.polling` says why).
- `closed`: each connection sends the next request when the answer is in. `rate`: requests start on a fixed schedule,
  whatever the answers do, and latency counts from the scheduled time (no coordinated omission). `live`: streams that
  stay open until stdin ends; a line `live` says when all have begun.
"""

import asyncio
import json
import math
import re
import ssl
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import uvloop

_LENGTH = re.compile(rb"\r\ncontent-length:[ ]*(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:[ ]*chunked", re.IGNORECASE)
_END = b"\r\n0\r\n\r\n"
_DRAIN_SECONDS = 15.0


class BadAnswerError(Exception):
    """An answer that a benchmark must not count."""


class Client(asyncio.Protocol):
    """One connection: `send()`, then `done(seconds)` when the answer is complete."""

    def __init__(self, request: bytes, done: Callable[["Client", float], None], failed: Callable[[str], None]) -> None:
        self.transport: asyncio.Transport
        self.began = False
        self.busy = False
        self._request = request
        self._done = done
        self._failed = failed
        self._started = 0.0
        self._clock = time.perf_counter
        self._head = b""
        self._left = 0
        self._chunked = False
        self._tail = b""
        self._size = 0
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
        self.transport.write(self._request)

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
            # Framing may differ by where a relay cut its chunks; a missing event would be more.
            raise BadAnswerError(f"a body of {self._size} bytes, the first had {self.expected}")
        return True

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


class Run:
    """One order being carried out."""

    def __init__(self, order: dict[str, Any]) -> None:
        self.order = order
        self.request = order["request"].encode("latin-1")
        self.latencies: list[float] = []
        self.errors: list[str] = []
        self.error_count = 0
        self.stopping = False
        self.clients: list[Client] = []
        self._tls = _trust(order["ca_file"]) if order.get("ca_file") else None

    def failed(self, reason: str) -> None:
        self.error_count += 1
        if len(self.errors) < 5:
            self.errors.append(reason)

    async def connect(self, count: int, done: Callable[[Client, float], None]) -> None:
        loop = asyncio.get_running_loop()
        host, port = self.order["address"]

        async def one() -> Client:
            _, client = await loop.create_connection(
                lambda: Client(self.request, done, self.failed), host, port, ssl=self._tls
            )
            return client

        for start in range(0, count, 100):
            self.clients += await asyncio.gather(*(one() for _ in range(start, min(start + 100, count))))

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
            "errors": self.error_count,
            "reasons": self.errors,
            "p50": _percentile(ordered, 0.50),
            "p99": _percentile(ordered, 0.99),
        }


async def closed(order: dict[str, Any]) -> dict[str, Any]:
    run = Run(order)
    record, clock = run.latencies.append, time.perf_counter
    limit = order.get("count") or math.inf

    def done(client: Client, seconds: float) -> None:
        record(seconds)
        if len(run.latencies) >= limit:
            finished.set()
        if not run.stopping:
            client.send()

    finished = asyncio.Event()
    await run.connect(order["connections"], done)
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
    # What is under way ends here, so that the next round starts on quiet connections.
    deadline = clock() + _DRAIN_SECONDS
    while any(client.busy for client in run.clients) and clock() < deadline:
        await asyncio.sleep(0.005)
    result = run.result(seconds) | {"counted": counted}
    run.close()
    return result


async def rate(order: dict[str, Any]) -> dict[str, Any]:
    run = Run(order)
    free: list[Client] = []
    late = 0

    def done(client: Client, seconds: float) -> None:
        run.latencies.append(seconds)
        free.append(client)

    await run.connect(order["connections"], done)
    free.extend(run.clients)
    loop, clock = asyncio.get_running_loop(), time.perf_counter
    interval = 1 / order["per_second"]
    total = int(order["seconds"] * order["per_second"])
    finished = asyncio.Event()
    begin = clock() + 0.05
    number = 0

    def fire() -> None:
        """Spins: the loop's timers come in whole milliseconds, more than what is measured here."""
        nonlocal number, late
        while number < total and clock() >= begin + number * interval:
            if free:
                free.pop().send(begin + number * interval)
            else:
                late += 1
            number += 1
        if number < total:
            loop.call_soon(fire)
        else:
            finished.set()

    fire()
    await finished.wait()
    deadline = clock() + _DRAIN_SECONDS
    while any(client.busy for client in run.clients) and clock() < deadline:
        await asyncio.sleep(0.005)
    result = run.result(order["seconds"]) | {"late": late}
    run.close()
    return result


async def live(order: dict[str, Any]) -> dict[str, Any]:
    run = Run(order)
    loop = asyncio.get_running_loop()
    await run.connect(order["connections"], lambda _client, _seconds: run.failed("a stream ended too soon"))
    for client in run.clients:
        client.send()
    deadline = time.perf_counter() + order["seconds"]
    while not all(client.began for client in run.clients) and time.perf_counter() < deadline and not run.error_count:
        await asyncio.sleep(0.05)
    began = sum(client.began for client in run.clients)
    print(json.dumps({"live": began, "errors": run.error_count, "reasons": run.errors}), flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    result = run.result(0.0)
    run.close()
    return result


def poll(loop: asyncio.AbstractEventLoop) -> None:
    """Keep `loop` from ever waiting: see `bench.polling`."""
    loop.call_soon(poll, loop)


def _percentile(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0


def _trust(ca_file: str) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=ca_file)


def main() -> None:
    order = json.loads(sys.stdin.readline())
    mode = {"closed": closed, "rate": rate, "live": live}[order["mode"]]
    print(json.dumps(uvloop.run(mode(order))), flush=True)


if __name__ == "__main__":
    main()
