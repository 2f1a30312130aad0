"""Workers and the link's board, for tests of what they know of keys and upstreams together.

The two ends are the real ones; in between are queues of frames, which the tests carry over when they like.
"""

from collections import deque
from functools import partial

from ostiary.core.health import (
    AskTrial,
    BreakerReport,
    BreakerSubject,
    KeyReport,
    KeySubject,
    TrialAnswer,
    TrialEnded,
)
from ostiary.core.messages import FrameReader, LinkMessage, WorkerMessage, encode
from ostiary.core.providers import ProviderKey, ProviderSpec
from ostiary.core.secret import Secret
from ostiary.gateway.breaker import BreakerSettings
from ostiary.gateway.health import Health
from ostiary.gateway.key_verdict import Verdict
from ostiary.gateway.keypool import Chosen, KeyPool
from ostiary.gateway.providers import RuntimeKey
from ostiary.gateway.snapshot import build_snapshot
from ostiary.link.health import Board

M = "gpt-5"
CHAT = BreakerSubject("openai", "/v1/chat/completions", M)
LIMITED = Verdict("rate_limited", 20.0)
REFUSED = Verdict("refused")


def spec(keys: int = 3, name: str = "openai") -> ProviderSpec:
    values = tuple(ProviderKey(str(number), Secret(f"sk-{number}-0123456789abcdef")) for number in range(keys))
    return ProviderSpec("id", name, "openai", enabled=True, base_url="https://api.openai.com/v1", keys=values)


class Wire:
    """One worker's socket to one link: what was sent and has not arrived yet."""

    def __init__(self) -> None:
        self.up: deque[bytes] = deque()
        self.down: deque[bytes] = deque()


class WorkerEnd:
    """A worker as far as its health goes."""

    def __init__(self, machine: "Machine") -> None:
        self.wire: Wire | None = None
        self.health = Health(self.send, lambda: machine.now, lambda: 1.79e9 + machine.now, BreakerSettings())
        self.health.take_snapshot(build_snapshot(1, [spec()], allow_byok=True))

    def send(self, message: WorkerMessage) -> bool:
        if self.wire is None:
            return False
        self.wire.up.append(encode(message))
        return True

    @property
    def pool(self) -> KeyPool:
        pool = self.health.pool("openai")
        assert pool is not None
        return pool

    @property
    def keys(self) -> tuple[RuntimeKey, ...]:
        return self.pool.keys


class Machine:
    """Two workers and, while there is one, a link."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.board: Board | None = None
        self.workers = [WorkerEnd(self), WorkerEnd(self)]

    def start_link(self) -> None:
        self.board = Board(lambda: self.now, lambda: 1.79e9 + self.now)
        self.board.serve([spec()])
        for worker in self.workers:
            worker.wire = Wire()
            worker.wire.down.extend(encode(report) for report in self.board.reports())
            worker.health.link_adopted()

    def lose_link(self) -> None:
        self.board = None
        for worker in self.workers:
            worker.wire = None
        for worker in self.workers:
            worker.health.link_lost()

    def restart_worker(self, index: int) -> WorkerEnd:
        """Its link is told by the closed socket, and answers its greeting with all that it knows."""
        assert self.board is not None
        self.board.gone(index)
        worker = self.workers[index] = WorkerEnd(self)
        worker.wire = Wire()
        worker.wire.down.extend(encode(report) for report in self.board.reports())
        worker.health.link_adopted()
        return worker

    def carry_up(self, index: int) -> bool:
        """The oldest message of a worker arrives at the link."""
        wire = self.workers[index].wire
        if wire is None or not wire.up or self.board is None:
            return False
        (message,) = FrameReader[WorkerMessage](WorkerMessage).feed(wire.up.popleft())
        board = self.board
        if isinstance(message, KeyReport | BreakerReport):
            if board.take(message):
                self._share(message, but=index)
        elif isinstance(message, AskTrial):
            wire.down.append(encode(TrialAnswer(message.seq, board.ask(index, message))))
        elif isinstance(message, TrialEnded) and (report := board.ended(index, message)) is not None:
            self._share(report)
        return True

    def carry_down(self, index: int) -> bool:
        """The oldest message of the link arrives at a worker."""
        worker = self.workers[index]
        if worker.wire is None or not worker.wire.down:
            return False
        (message,) = FrameReader[LinkMessage](LinkMessage).feed(worker.wire.down.popleft())
        assert isinstance(message, KeyReport | BreakerReport | TrialAnswer)
        worker.health.receive(message)
        return True

    def carry_all(self) -> None:
        moves = [partial(move, index) for index in (0, 1) for move in (self.carry_up, self.carry_down)]
        while any(move() for move in moves):
            pass

    def _share(self, report: KeyReport | BreakerReport, but: int = -1) -> None:
        for index, worker in enumerate(self.workers):
            if worker.wire is not None and index != but:
                worker.wire.down.append(encode(report))


def choice_of(worker: WorkerEnd, now: float) -> tuple[object, ...]:
    choice = worker.pool.choose(M, now)
    if isinstance(choice, Chosen):
        return choice.key.id, choice.passed_over, choice.needs_trial
    return choice.kind, choice.retry_after, choice.passed_over


def ask_key(worker: WorkerEnd, key: RuntimeKey) -> list[bool]:
    answers: list[bool] = []
    worker.health.ask_trial(KeySubject("openai", key.digest), 1, answers.append)
    return answers


def ask_breaker(worker: WorkerEnd) -> list[bool]:
    answers: list[bool] = []
    worker.health.ask_trial(CHAT, 3, answers.append)
    return answers


def break_it(worker: WorkerEnd) -> None:
    assert [worker.health.failed(CHAT) is not None for _ in range(5)] == [False] * 4 + [True]
