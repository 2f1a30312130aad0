"""The stage of the request path's plays: one worker, two clients, upstreams, and a clock that the script sets.

The worker is the real one, with its connections, its pool and its journal; the sockets below are not there: a script says
what they bring, and the test looks at what was written to them. Whatever the script was, `play` looks at the end whether
anything is left that should not be (`nothing_is_left`) and whether what clients got is what upstreams said.
"""

import asyncio
import itertools
import re
import ssl
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, cast
from unittest.mock import patch

from gateway_sockets import A1, A2, B1, STATUSES, TOKEN, Answer, Client, Kind, Loop, Sent, Upstream

from ostiary.core.health import AskTrial, TrialAnswer, TrialOutcome, TrialSubject
from ostiary.core.identity import Identity
from ostiary.core.journal import Rest, parse, segment_name
from ostiary.core.messages import AskAuthorization, Authorization, Snapshot, WorkerMessage
from ostiary.core.providers import ProviderKey, ProviderSpec
from ostiary.core.records import InterceptionEnd, InterceptionStart, Record, decode_record
from ostiary.core.secret import Secret
from ostiary.core.settings import GatewaySettings
from ostiary.gateway.health import Health
from ostiary.gateway.journal import Journal
from ostiary.gateway.keep_alive import PING
from ostiary.gateway.limits import ROW, Limits
from ostiary.gateway.worker import Worker

DIGEST = sha256(TOKEN).digest()
IDENTITY = Identity("user", "key-of-user", "ann", "ann@example.test", "member")


def specs(variant: str) -> tuple[ProviderSpec, ...]:
    def spec(name: str, kind: str, host: str, *keys: str) -> ProviderSpec:
        held = tuple(ProviderKey(key, Secret(key)) for key in keys)
        return ProviderSpec(name, name, kind, enabled=True, base_url=f"http://{host}/v1", keys=held)

    if variant == "gone":
        return ()
    host, keys = ("a.test", (A1, A2)) if variant in ("first", "again") else ("b.test", (B1, A2))
    return spec("openai", "openai", host, *keys), spec("claude", "anthropic", host, *keys)


# --- the worker's surroundings


class CountedTrials(Health):
    """Counts who was granted what, and what they said of it."""

    world: "World"

    def ask_trial(self, subject: TrialSubject, limit: int, answered: Callable[[bool], None]) -> None:
        called = False

        def once(granted: bool) -> None:
            nonlocal called
            assert not called
            called = True
            self.world.trials["granted"] += granted
            answered(granted)

        super().ask_trial(subject, limit, once)

    def key_trial_ended(self, *args: Any) -> Any:
        self.world.trials["ended"] += 1
        return super().key_trial_ended(*args)

    def breaker_trial_ended(self, subject: Any, outcome: TrialOutcome) -> Any:
        self.world.trials["ended"] += 1
        return super().breaker_trial_ended(subject, outcome)


class Records:
    """A journal, and what is in it since `begin`."""

    def __init__(self, root: Path) -> None:
        self.journal = Journal.open(root, GatewaySettings(journal_dir=str(root)), "orders", lambda: 0.0)
        self._file = root / "orders" / segment_name(1)
        self._begun = 0
        self._seq = 0

    def begin(self) -> None:
        self._begun, self._seq = self._file.stat().st_size, self.journal.seq

    def since(self) -> list[Record]:
        with self._file.open("rb") as file:
            file.seek(self._begun)
            parsed = parse(file.read(), self._seq + 1)
        assert parsed.rest is Rest.CLEAN
        return [decode_record(payload) for payload in parsed.payloads]


class World:
    """One worker, two clients, and what they did."""

    def __init__(self, loop: Loop, records: Records, overrides: dict[str, Any]) -> None:
        self.loop = loop
        loop.world = self
        self.numbers = itertools.count(1)
        self.connecting: list[asyncio.Future[None]] = []
        self.upstreams: list[Upstream] = []
        self.said: dict[int, list[Answer]] = {}
        self.sent: list[Sent] = []
        self.clients_of: dict[int, Client] = {}
        self.asked: list[int] = []
        self.trials: Counter[str] = Counter()
        self.linked = True
        self.records = records
        records.begin()
        limits = Limits(memoryview(bytearray(ROW * 8)).cast("Q"), 0, 1, max_concurrency=2)
        usual: dict[str, Any] = {
            "circuit_breaker_failure_threshold": 2,
            "circuit_breaker_max_requests": 1,
            "idle_timeout": 20.0,
            "head_timeout": 40.0,
        }
        set_up = GatewaySettings(journal_dir="", **(usual | overrides))
        self.worker = worker = Worker(set_up, records.journal, TLS, self.send, limits)
        self.cells = limits._cells
        worker.health.__class__ = CountedTrials
        cast("CountedTrials", worker.health).world = self
        worker.take_snapshot(Snapshot(1, specs("first")))
        self.authorize()
        self.clients = [Client(self), Client(self)]

    def authorize(self) -> None:
        self.worker.take_authorization(Authorization(DIGEST, IDENTITY, ttl=1e6))

    def send(self, message: WorkerMessage) -> bool:
        if self.linked and isinstance(message, AskTrial):
            self.asked.append(message.seq)
        if self.linked and isinstance(message, AskAuthorization):
            self.loop.call_soon(self.authorize)
        return self.linked

    # --- what may happen

    def step(self, name: str, which: int, much: int) -> None:
        getattr(self, "do_" + name)(which, much)

    def _client(self, which: int) -> Client:
        """Another one where it has gone."""
        client = self.clients[which % 2]
        if client.transport.closing:
            self.clients[which % 2] = client = Client(self)
        return client

    def do_ask(self, which: int, much: int) -> None:
        self._client(which).ask(much)

    def request(self, which: int, kind: Kind) -> None:
        """One of the script's own, sent whole."""
        client = self._client(which)
        client.request(kind)
        if client.transport.bring(client.pending):
            client.pending = b""

    def tell(self, wire: bytes, payload: bytes, *, ends_with_stream: bool = False) -> None:
        """What the first upstream that was asked says and the script has thought of, but does not yet `bring`."""
        upstream = self._upstream(0)
        assert upstream is not None
        upstream.tell(Answer(wire, payload, ends_with_stream))

    def do_client(self, which: int, much: int) -> None:
        client = self.clients[which % 2]
        size = SIZES[much % len(SIZES)]
        if client.transport.bring(client.pending[:size]):
            client.pending = client.pending[size:]

    def do_connect(self, which: int, much: int) -> None:
        waiting = [future for future in self.connecting if not future.done()]
        if waiting:
            future = waiting[which % len(waiting)]
            if much % 4:
                future.set_result(None)
            else:
                future.set_exception(ConnectionRefusedError())

    def _upstream(self, which: int) -> Upstream | None:
        live = [one for one in self.upstreams if not one.transport.closing and (one.case or one.pending)]
        return live[which % len(live)] if live else None

    def do_say(self, which: int, much: int) -> None:
        upstream = self._upstream(which)
        if upstream is not None:
            upstream.say(much)

    def do_bring(self, which: int, much: int) -> None:
        upstream = self._upstream(which)
        if upstream is not None:
            upstream.bring(SIZES[much % len(SIZES)])

    def do_cut(self, which: int, much: int) -> None:
        upstream = self._upstream(which)
        if upstream is not None:
            if much % 2:
                upstream.transport.end()
            else:
                upstream.transport.lose(ConnectionResetError())

    def do_slow_upstream(self, which: int, much: int) -> None:
        upstream = self._upstream(which)
        if upstream is not None:
            if much % 2:
                upstream.connection.pause_writing()
            else:
                upstream.connection.resume_writing()

    def do_slow_client(self, which: int, much: int) -> None:
        client = self.clients[which % 2]
        if not client.transport.closing:
            if much % 2:
                client.connection.pause_writing()
            else:
                client.connection.resume_writing()

    def do_leave(self, which: int, much: int) -> None:
        transport = self.clients[which % 2].transport
        if much % 2:
            transport.end()
        else:
            transport.lose(None)

    def do_time(self, which: int, much: int) -> None:
        for _ in range(1 + which):
            self.loop.now += (0.3, 1.1, 5.1, 31.0)[much % 4]
            self.worker.sweep()

    def do_trial(self, which: int, much: int) -> None:
        if self.asked and self.linked:
            seq = self.asked.pop(which % len(self.asked))
            self.worker.health.receive(TrialAnswer(seq, much % 3 != 0))

    def do_link(self, which: int, much: int) -> None:
        del which
        linked, self.linked = self.linked, bool(much % 2)
        if linked and not self.linked:
            self.asked.clear()
            self.worker.health.link_lost()
            self.worker.authorizations.link_lost()
        elif self.linked and not linked:
            self.worker.health.link_adopted()
            self.authorize()

    def do_reload(self, which: int, much: int) -> None:
        del which
        self.worker.take_snapshot(Snapshot(2, specs(("again", "other", "gone", "first")[much % 4])))

    def do_drain(self, which: int, much: int) -> None:
        del which
        self.worker.draining = True
        if much % 4 == 0:
            self.worker.cutting = True
            for exchange in tuple(self.worker._live):
                exchange.interrupt()

    # --- what has to hold

    def nothing_is_left(self) -> None:
        worker = self.worker
        assert not worker._live
        assert worker._body_memory == 0
        assert worker.answer_memory.held == 0
        assert not worker.pinged
        assert self.cells[0] == 0, "places of max_concurrency"
        assert self.trials["granted"] == self.trials["ended"]
        families = {family.name: family for family in worker.metrics.report()}
        assert all(sample.value == 0 for sample in families["ostiary_interceptions_inflight"].samples)
        starts: Counter[str] = Counter()
        ends: Counter[str] = Counter()
        told = 0
        for record in self.records.since():
            if isinstance(record, InterceptionStart):
                starts[record.id] += 1
            elif isinstance(record, InterceptionEnd):
                assert starts[record.id], "an end before its start"
                ends[record.id] += 1
                attempts = record.trace.attempts if record.trace is not None else []
                told += sum("connect to" not in one.error and "no connection" not in one.error for one in attempts)
        assert starts == ends
        assert set(starts.values()) <= {1}
        assert told == sum(sent.method == "POST" for sent in self.sent), "each attempt is told of once"

    def clients_got_the_truth(self) -> None:
        for client in {*self.clients_of.values()}:
            begun = {}
            at = 0
            for case in client.cases:
                if at == len(client.out):
                    break
                begun[case] = at
                interim = re.match(rb"(HTTP/1.1 1\d\d .*?\r\n\r\n)*", client.out[at:], re.DOTALL)
                assert interim is not None
                at += interim.end()
                if at == len(client.out):
                    break
                at = self._read(client, case, at)
                if at < 0:
                    break
            else:
                assert at == len(client.out), "more answers than requests"
            for sent in self.sent:
                if sent.client is client and sent.case in begun:
                    assert sent.client_had <= begun[sent.case], "an attempt after the first byte"
        assert all(count <= 8 for count in Counter(sent.case for sent in self.sent).values())

    def _read(self, client: Client, case: int, at: int) -> int:
        """Judge the answer there. Gives where it ends, -1 when it is the last one."""
        head, mark, rest = client.out[at:].partition(b"\r\n\r\n")
        assert mark, head
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
        status = int(head[9:12])
        if status == 204:
            payload, size, whole = b"", 0, True
        elif fields.get(b"transfer-encoding") == b"chunked":
            payload, size, whole = _dechunked(rest)
        else:
            length = int(fields[b"content-length"])
            payload = rest[:length]
            size, whole = len(payload), len(payload) == length
        ours = whole and payload and b"attempt-" not in payload
        if not ours:
            said = self.said.get(case, [])
            plain = payload.replace(PING, b"")
            ends = [one.payload for one in said if one.payload.startswith(plain)]
            if whole:  # what has no framing is as long as the upstream's stream was
                ends = [one.payload for one in said if one.payload == plain or one.ends_with_stream]
            assert ends, (head, payload[:200], said)
        if not whole:
            assert not client.waits, (
                f"an answer that lacks its end, of a request that is over, on a connection that goes on: {head!r}"
            )
            return -1
        return at + len(head) + 4 + size


def _dechunked(data: bytes) -> tuple[bytes, int, bool]:
    payload, at = b"", 0
    while True:
        line, mark, _ = data[at:].partition(b"\r\n")
        if not mark:
            return payload, at, False
        size = int(line, 16)
        at += len(line) + 2
        if not size:
            return payload, at + 2, data[at : at + 2] == b"\r\n"
        part = data[at : at + size]
        payload += part
        if len(data) < at + size + 2:
            return payload, at, False
        at += size + 2


SIZES = (1_000_000, 7, 90, 400, 2000)
TLS: Final = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

Step = tuple[str, int, int] | Callable[["World"], object]


def play(records: Records, script: Sequence[Step], *, mistakes: int = 0, **overrides: Any) -> World:
    """`mistakes` of the gateway's own are expected; `overrides` of the settings."""
    loop = Loop()
    failures: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: failures.append(context))

    async def run() -> World:
        world = World(loop, records, overrides)
        for step in script:
            if callable(step):
                step(world)
            else:
                world.step(*step)
            for _ in range(6):
                await asyncio.sleep(0)
            assert not failures, failures
        for client in {*world.clients_of.values()}:
            client.waits = not client.transport.closing and client.connection.exchange is None
            client.transport.lose(None)
        world.do_time(0, 1)  # questions about trials that nobody answers
        for _ in range(10):
            await asyncio.sleep(0)
        world.worker.pool.close()
        await asyncio.sleep(0)
        return world

    with patch.object(time, "monotonic", loop.time), closing(loop):
        world = loop.run_until_complete(run())
    assert not failures, failures
    assert counted(world, "ostiary_internal_errors") == mistakes
    world.nothing_is_left()
    world.clients_got_the_truth()
    return world


ASK: tuple[Step, ...] = (("ask", 0, 0), ("client", 0, 0), ("connect", 0, 1))
WHOLE: Step = ("bring", 0, 0)
PART: Step = ("bring", 0, 2)
"""The head, and some of the body."""


def says(status: int, kind: int = 0) -> Step:
    return "say", 0, STATUSES.index(status) + kind * len(STATUSES)


def counted(world: World, name: str) -> float:
    """All series of a counter."""
    (family,) = (family for family in world.worker.metrics.report() if family.name == name)
    total: float = sum(sample.value for sample in family.samples)
    return total
