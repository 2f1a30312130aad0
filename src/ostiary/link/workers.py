"""The workers of the machine as the link knows them: their sockets, what they serve from, what they counted.

Rules
- One socket a worker index; a new one replaces the old. A worker is known by its index until it says which start it is.
- A worker is told of the providers and of how keys and breakers fare before anything else, and then of each change but its
  own.
- The machine is ready when every worker it should have serves from a snapshot, and the control plane answers or did so
  within the grace. Workers are told on each change, and when they come.
"""

import asyncio
import itertools
import socket
from collections.abc import Callable, Iterable
from typing import NamedTuple

import structlog

from ostiary.core.families import Family
from ostiary.core.health import AskTrial, BreakerReport, KeyReport, TrialAnswer, TrialEnded
from ostiary.core.messages import (
    AskAuthorization,
    AskMetrics,
    MachineState,
    MetricsReport,
    Revoked,
    Serving,
    Snapshot,
    WorkerHello,
    WorkerMessage,
)

from .authorizations import Authorizations
from .backoff import happens
from .channel import Channel
from .connection import Connection
from .health import Board
from .metrics_sum import MachineMetrics

log = structlog.get_logger(__name__)

METRICS_WITHIN = 1.0
"""Seconds a scrape waits for workers that are busy; of those that are too late the last report counts."""


class WorkerState(NamedTuple):
    """A connected worker that has said which start it is."""

    worker: int
    pid: int
    journal_id: str
    revision: int
    """What it serves from; 0 from none."""


class _Question:
    """An `AskMetrics` under way."""

    def __init__(self, workers: Iterable[int]) -> None:
        self.waiting = set(workers)
        self.settled = asyncio.Event()
        if not self.waiting:
            self.settled.set()

    def without(self, worker: int) -> None:
        """This worker has nothing more to say to it."""
        self.waiting.discard(worker)
        if not self.waiting:
            self.settled.set()


class Workers:
    """`expected` workers make the machine ready; `on_ready` is told once, `on_gone` whenever one is lost."""

    def __init__(
        self,
        expected: int,
        connection: Connection,
        authorizations: Authorizations,
        board: Board,
        *,
        on_ready: Callable[[], None],
        on_gone: Callable[[], None],
    ) -> None:
        self._expected = expected
        self._connection = connection
        self._authorizations = authorizations
        self._board = board
        self._on_ready = on_ready
        self._on_gone = on_gone
        self._channels: dict[int, Channel] = {}
        self._journals: dict[int, str] = {}
        self._pids: dict[int, int] = {}
        self._serving: dict[int, Serving] = {}
        self._snapshot: Snapshot | None = None
        self._told: MachineState | None = None
        self._was_ready = False
        self._metrics = MachineMetrics()
        self._question_numbers = itertools.count(1)
        self._questions: dict[int, _Question] = {}

    async def attach(self, worker: int, fd: int) -> None:
        """A worker's socket, from the supervisor."""
        if (old := self._channels.get(worker)) is not None:
            self._forget(worker)
            old.close()
        channel = Channel(worker, self)
        self._channels[worker] = channel
        loop = asyncio.get_running_loop()
        await loop.create_unix_connection(lambda: channel, sock=socket.socket(fileno=fd))

    @property
    def connected(self) -> int:
        return len(self._channels)

    def states(self) -> list[WorkerState]:
        """By index."""
        return [
            WorkerState(worker, self._pids[worker], self._journals[worker], serving.revision if serving else 0)
            for worker, serving in ((worker, self._serving.get(worker)) for worker in sorted(self._channels))
            if worker in self._pids
        ]

    def provider_errors(self) -> dict[str, str]:
        """Provider name → why a worker could not build it."""
        return {name: reason for serving in self._serving.values() for name, reason in serving.provider_errors.items()}

    def load(self, snapshot: Snapshot) -> None:
        """Serve from this."""
        first = self._snapshot is None
        self._snapshot = snapshot
        self._board.serve(snapshot.providers)
        for channel in self._channels.values():
            channel.send(snapshot)
        if first:  # what was told of keys before was lost on a worker that had none
            for report in self._board.reports():
                self._share(report)

    def revoke(self, message: Revoked) -> None:
        """Forget, or ask again."""
        for channel in self._channels.values():
            channel.revoke(message)

    def tell_state(self) -> None:
        """Tell all workers whether the machine is ready, if that or the link has changed."""
        state = self._state()
        if state.ready and not self._was_ready:
            self._was_ready = True
            self._on_ready()
        if state != self._told:
            self._told = state
            for channel in self._channels.values():
                channel.send(state)

    async def metrics(self) -> list[Family]:
        """What all workers counted, asked for now."""
        seq = next(self._question_numbers)
        question = self._questions[seq] = _Question(self._channels)
        for channel in self._channels.values():
            channel.answer(AskMetrics(seq))
        try:
            if not await happens(question.settled, METRICS_WITHIN):
                log.debug("rendering metrics without waiting longer", workers=sorted(question.waiting))
        finally:
            del self._questions[seq]
        return self._metrics.families()

    def close(self) -> None:
        for channel in tuple(self._channels.values()):
            channel.close()

    def _state(self) -> MachineState:
        # a control plane without any provider has revision 0, which a worker can serve from too
        loaded = self._snapshot.revision if self._snapshot is not None else None
        serving = sum(1 for said in self._serving.values() if said.revision > 0 or said.revision == loaded)
        ready = serving >= self._expected and self._connection.grace_left > 0
        return MachineState(ready, self._connection.up)

    def _answer_trial(self, channel: Channel, question: AskTrial) -> None:
        granted = self._board.ask(channel.worker, question)
        said = channel.answer(TrialAnswer(question.seq, granted))
        if granted and not said:
            self._board.ended(channel.worker, TrialEnded(question.subject, "unknown"))

    def _end_trial(self, worker: int, trial: TrialEnded) -> None:
        report = self._board.ended(worker, trial)
        if report is None:
            return
        if report.state == "closed":  # opening is logged by the worker that found the reason
            log.info(
                "closing a circuit breaker",
                provider_name=report.provider,
                route=report.route,
                model=report.model,
            )
        self._share(report)

    def _share(self, report: KeyReport | BreakerReport, but: Channel | None = None) -> None:
        """Tell all workers, not the one that said it."""
        for channel in self._channels.values():
            if channel is not but:
                channel.share(report)

    # --- channel.Owner

    def worker_connected(self, channel: Channel) -> None:
        if self._snapshot is not None:
            channel.send(self._snapshot)
        # right behind it, before the worker serves
        channel.share_all(self._board.reports())
        channel.send(self._state())
        self.tell_state()

    def worker_said(self, channel: Channel, message: WorkerMessage) -> None:
        worker = channel.worker
        if self._channels.get(worker) is not channel:
            return
        match message:
            case AskAuthorization():
                self._authorizations.request(message.token_sha256, channel.answer)
            case MetricsReport():
                if worker in self._journals:
                    self._metrics.report(self._journals[worker], message.families)
                if message.seq in self._questions:
                    self._questions[message.seq].without(worker)
            case Serving():
                self._serving[worker] = message
                self.tell_state()
            case WorkerHello():
                self._greet(worker, message)
            case KeyReport() | BreakerReport():
                if self._board.take(message):
                    self._share(message, but=channel)
            case AskTrial():
                self._answer_trial(channel, message)
            case TrialEnded():
                self._end_trial(worker, message)

    def worker_reads_again(self, channel: Channel) -> None:
        channel.share_all(self._board.reports())

    def worker_lost(self, channel: Channel) -> None:
        worker = channel.worker
        if self._channels.get(worker) is not channel:
            return
        self._forget(worker)
        log.info("losing a worker", worker=worker)
        self.tell_state()
        self._on_gone()

    def _forget(self, worker: int) -> None:
        """All that held for its socket; its counters stay."""
        del self._channels[worker]
        self._serving.pop(worker, None)
        self._board.gone(worker)
        if worker in self._journals:
            self._metrics.disconnected(self._journals[worker])
        for question in self._questions.values():
            question.without(worker)

    def _greet(self, worker: int, hello: WorkerHello) -> None:
        before = self._journals.get(worker)
        if before is not None and before != hello.journal_id:
            self._metrics.replaced(before)
        self._journals[worker] = hello.journal_id
        self._pids[worker] = hello.pid
        log.info("meeting a worker", worker=worker, worker_pid=hello.pid, journal_id=hello.journal_id)
