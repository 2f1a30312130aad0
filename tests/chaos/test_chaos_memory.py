"""Memory after many requests: bounded in every process, whatever they were about and however they ended.

No two requests are alike, for what would grow is what remembers them: tokens, models, paths, field lines, agents, prompts.
One in five ends badly: refused, failed or cut by the provider, or left by its client.
"""

import asyncio
import itertools
import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, cast

import httptools
import pytest
import uvloop

from tests.chaos.harness import LONG
from tests.support.chaos import Say
from tests.support.database_door import DatabaseDoor
from tests.support.fake_provider import FakeProvider, fake_provider
from tests.support.load import BLOCKING, CHAT, MESSAGES, RESPONSES, Kind
from tests.support.reconcile import metric
from tests.support.server import OWNER_TOKEN, Server, StartServer, eventually

CONNECTIONS = 32
WARM = 10_000 if LONG else 4_000
"""Requests after which caches are full and allocators have what they need."""
COUNT = 1_000_000 if LONG else 20_000
TIMES = 3
"""What grows with requests grows each time; what a stall once made an allocator take does not."""
ALLOWED = {"worker": 4.0, "link": 12.0, "control": 24.0} if LONG else {"worker": 1.5, "link": 8.0, "control": 8.0}
"""MiB of growth. Caches go on to fill up to their bounds after the warm-up, and allocators keep what they needed once:
the control plane's for the largest batches of records. So the short form sees a worker that keeps 80 bytes of a request, a
link or a control plane that keeps 420; the long one sees 5, 13 and 26, which is less than any object has."""

KINDS = (CHAT, BLOCKING, MESSAGES, BLOCKING, RESPONSES)
UNRECORDED = {401, 404, 400, 0}
"""0: the client left within its body."""


class Asked(NamedTuple):
    """A request, and what is done beside waiting for the answer."""

    head: bytes
    body: bytes
    leaves: bool = False
    """At the first byte of the answer."""
    halves: bool = False
    """In the middle of the body."""


def asked(number: int) -> Asked:
    kind: Kind = KINDS[number % len(KINDS)]
    text = os.urandom(100).hex()
    token, path, control = OWNER_TOKEN, kind.path, "events=12"
    model = f"gpt-{number * 7919 % 397}"
    case = number % 50
    if case == 7:
        model = "fake-529"  # always: its breaker opens
    elif case == 11:
        token = f"ost_{text}"
    elif case == 13:
        path = path.replace("/openai/", f"/nobody-{number}/").replace("/anthropic/", f"/nobody-{number}/")
    elif case in (19, 22):
        kind, path, control = CHAT, CHAT.path, "events=40 pace=50"
    elif case in (23, 37):
        control += " cut=mid-body" + (" reset" if case == 37 else "")
    said = {"input": text} if kind is RESPONSES else {"messages": [{"role": "user", "content": text}]}
    body = json.dumps(kind.body | said | {"model": model}).encode()
    if case == 17:
        body = body[:-1]
    head = (
        f"POST {path}?n={number} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\nX-Fake: {control}\r\n"
        f"User-Agent: agent/{number}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return Asked(head.encode(), body, leaves=case in (19, 22), halves=case == 29)


class Wire(asyncio.Protocol):
    """One connection of a client; a request at a time."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.lost = False
        self._transport = cast("asyncio.Transport", transport)
        self._status = 0
        self._asked = Asked(b"", b"")
        self._told: asyncio.Future[str | int] | None = None

    def ask(self, one: Asked) -> "asyncio.Future[str | int]":
        """How it ended: a status, or in words."""
        told = self._told = asyncio.get_running_loop().create_future()
        self._asked = one
        self._status = 0
        self._parser = httptools.HttpResponseParser(self)
        if one.halves:
            self._transport.write(one.head + one.body[: len(one.body) // 2])
            self._leave(0)
        else:
            self._transport.write(one.head + one.body)
        return told

    def data_received(self, data: bytes) -> None:
        if self._asked.leaves and data.startswith(b"HTTP/1.1 200"):
            self._leave("left")
        elif not self.lost:
            self._parser.feed_data(data)

    def on_headers_complete(self) -> None:
        self._status = self._parser.get_status_code()

    def on_message_complete(self) -> None:
        self._tell(self._status)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        self._tell("cut" if self._status else f"lost: {exc}")

    def _leave(self, how: str | int) -> None:
        self.lost = True
        self._transport.abort()
        self._tell(how)

    def _tell(self, how: str | int) -> None:
        if self._told is not None and not self._told.done():
            self._told.set_result(how)


def call(server: Server, numbers: Iterator[int]) -> Counter[str | int]:
    """Make these requests; how they ended."""
    ends: Counter[str | int] = Counter()

    async def caller() -> None:
        loop = asyncio.get_running_loop()
        wire = None
        for number in numbers:
            if wire is None or wire.lost:
                _, wire = await loop.create_connection(Wire, "127.0.0.1", server.port)
            ends[await wire.ask(asked(number))] += 1

    async def run() -> None:
        async with asyncio.TaskGroup() as callers:
            for _ in range(CONNECTIONS):
                callers.create_task(caller())

    uvloop.run(run())
    return ends


def memory(server: Server) -> dict[str, float]:
    """What each process of ours has allocated for itself, in MiB."""
    found = {}
    for kind in ALLOWED:
        (pid,) = server.children(kind)
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        (pss,) = [int(line.split()[1]) for line in lines if line.startswith("Pss_Anon:")]
        found[kind] = pss / 1024
    return found


def await_shipped(server: Server) -> None:
    eventually(lambda: metric(server, "ostiary_interceptions_inflight") == 0, within=30)
    eventually(lambda: metric(server, "ostiary_link_records_pending") == 0, within=180)


def check_record(server: Server, fake: FakeProvider, door: DatabaseDoor, ends: Counter[str | int]) -> None:
    """Requests, journal and rows: as many of each sort as the clients have seen, none lost, none twice."""
    recorded = {
        "completed": ends[200],
        "upstream_error": ends[529] + ends["cut"],
        "rejected": ends[503],
        "client_closed": ends["left"],
    }
    assert set(ends) <= {200, 529, 503, "cut", "left", *UNRECORDED}, ends
    found = door.fetch("SELECT outcome, count(*), count(ended_at) FROM interceptions GROUP BY outcome")
    assert {outcome: count for outcome, count, _ in found} == recorded, ends
    assert all(count == ended for _, count, ended in found)
    rows = sum(recorded.values())
    usages = door.fetch(
        "SELECT outcome, count(*), count(DISTINCT i.id) FROM token_usages u JOIN interceptions i ON i.id = u.interception_id"
        " GROUP BY outcome"
    )
    # of those that were cut every other one is of the Messages API, which tells of usage in its first event
    assert {outcome: (count, of) for outcome, count, of in usages} == {
        "completed": (ends[200], ends[200]),
        "upstream_error": (ends["cut"] // 2, ends["cut"] // 2),
    }
    ((stored, acked, other),) = door.fetch("SELECT stored, acked_seq, duplicate + rejected FROM journals")
    assert (stored, acked, other) == (2 * rows, 2 * rows, 0)
    assert metric(server, "ostiary_journal_records_total") == 2 * rows
    assert fake.requests(limit=0)["count"] == rows - recorded["rejected"]


@pytest.fixture
def counting_fake(tmp_path: Path) -> Iterator[FakeProvider]:
    """A fake provider that only counts."""
    with fake_provider(directory=tmp_path, ledger="counts") as provider:
        yield provider


def test_memory_is_flat_over_requests_of_every_sort(
    start_server: StartServer, counting_fake: FakeProvider, door: DatabaseDoor, say: Say
) -> None:
    server = start_server(counting_fake, "--workers", "1", **door.variables)
    numbers = itertools.count()
    ends = call(server, itertools.islice(numbers, WARM))
    await_shipped(server)
    after, told = memory(server), ""
    for _ in range(TIMES):
        before = after
        ends += call(server, itertools.islice(numbers, COUNT))
        await_shipped(server)
        after = memory(server)
        told += ", ".join(f"{kind} {before[kind]:.1f} -> {after[kind]:.1f} MiB" for kind in before) + "; "
        flat = all(after[kind] - before[kind] < allowed for kind, allowed in ALLOWED.items())
        if flat:
            break
    print(told, ends)
    assert flat, told
    eventually(lambda: metric(server, "ostiary_client_connections") <= 1, what="connections are closed")
    check_record(server, counting_fake, door, ends)
    if LONG:
        say(f"memory over {COUNT:,} requests: {told}; {dict(ends)}")
