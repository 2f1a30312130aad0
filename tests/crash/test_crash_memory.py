"""Memory after many requests: bounded in every process, whatever they were about."""

import asyncio
import json
import os
from pathlib import Path

import httptools
import uvloop

from tests.support.chaos import Say, chaos
from tests.support.database_door import DatabaseDoor
from tests.support.fake_provider import FakeProvider
from tests.support.load import BLOCKING, CHAT
from tests.support.reconcile import metric
from tests.support.server import OWNER_TOKEN, Server, StartServer, eventually

CONNECTIONS = 32
WARM = 3_000
ALLOWED = {"worker": 4.0, "link": 12.0, "control": 24.0}
"""MiB of growth: caches fill up to their bounds, and allocators keep what they once needed."""


class Caller(asyncio.Protocol):
    """Sends one request after another over one connection."""

    def __init__(self, requests: list[bytes], ended: "asyncio.Future[None]") -> None:
        self._requests = requests
        self._ended = ended
        self._transport: asyncio.WriteTransport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        self._next()

    def _next(self) -> None:
        if self._requests:
            self._parser = httptools.HttpResponseParser(self)
            self._transport.write(self._requests.pop())
        else:
            self._ended.set_result(None)
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()  # 503: the breaker of the model that always fails
        assert status in (200, 400, 401, 404, 503, 529), status
        asyncio.get_running_loop().call_soon(self._next)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._ended.done():
            self._ended.set_exception(exc or ConnectionError("the connection ended"))


def call(server: Server, count: int) -> None:
    """So many requests, a mix in which no two are alike."""

    async def run() -> None:
        loop = asyncio.get_running_loop()
        requests = [request(number) for number in range(count)]
        ended = [loop.create_future() for _ in range(CONNECTIONS)]
        for one in ended:
            await loop.create_connection(lambda one=one: Caller(requests, one), "127.0.0.1", server.port)
        await asyncio.gather(*ended)

    uvloop.run(run())


def request(number: int) -> bytes:
    kind = CHAT if number % 3 == 0 else BLOCKING
    text = os.urandom(100).hex()
    model = "fake-529" if number % 50 == 7 else f"gpt-{number % 400}"
    body = json.dumps(kind.body | {"model": model, "messages": [{"role": "user", "content": text}]}).encode()
    token, path = OWNER_TOKEN, kind.path
    if number % 50 == 11:
        token = f"ost_{text}"
    elif number % 50 == 13:
        path = path.replace("/openai/", f"/nobody-{number}/")
    elif number % 50 == 17:
        body = body[:-1]
    head = f"POST {path}?n={number} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\nX-Fake: events=8\r\n"
    return f"{head}User-Agent: agent/{number}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def memory(server: Server) -> dict[str, float]:
    """Proportional memory of each process of ours, in MiB."""
    found = {}
    for kind in ("worker", "link", "control"):
        (pid,) = server.children(kind)
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        (pss,) = [int(line.split()[1]) for line in lines if line.startswith("Pss_Anon:")]
        found[kind] = pss / 1024
    return found


def check_growth(server: Server, count: int) -> str:
    call(server, WARM)
    eventually(lambda: metric(server, "ostiary_link_records_pending") == 0, within=60)
    before = memory(server)
    call(server, count)
    eventually(lambda: metric(server, "ostiary_link_records_pending") == 0, within=120)
    after = memory(server)
    told = ", ".join(f"{kind} {before[kind]:.1f} -> {after[kind]:.1f} MiB" for kind in before)
    for kind, allowed in ALLOWED.items():
        assert after[kind] - before[kind] < allowed, told
    assert len(server.children("worker")) == 1
    return told


def test_memory_does_not_grow_with_twenty_thousand_requests(
    start_server: StartServer, own_fake: FakeProvider, door: DatabaseDoor
) -> None:
    check_growth(start_server(own_fake, "--workers", "1", **door.variables), 20_000)


@chaos
def test_memory_does_not_grow_with_three_hundred_thousand_requests(
    start_server: StartServer, own_fake: FakeProvider, door: DatabaseDoor, say: Say
) -> None:
    say(f"memory: {check_growth(start_server(own_fake, '--workers', '1', **door.variables), 300_000)}")
