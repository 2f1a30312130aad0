"""How keys and upstreams fare, as this worker knows it: its pools, its breakers, its trials.

Rules
- What a request finds holds here at once and is told to the link, which tells the siblings.
- Trials are granted by the link. Without a link, or when it does not answer within `_ANSWER_WITHIN`, this worker grants
  them itself and draws the conclusions; when the link is back, it is told how things stand.
- Whoever asks for a trial is called back exactly once, and says once what came of a trial that was granted.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Final

import structlog

from ostiary.core.health import (
    AskTrial,
    BreakerReport,
    BreakerSubject,
    KeyReport,
    KeySubject,
    TrialAnswer,
    TrialEnded,
    TrialOutcome,
    TrialSubject,
)
from ostiary.core.messages import WorkerMessage
from ostiary.core.trials import Trials

from .breaker import Breakers, BreakerSettings
from .key_verdict import Verdict
from .keypool import KeyPool
from .providers import RuntimeKey
from .snapshot import Snapshot

log = structlog.get_logger()

_ANSWER_WITHIN: Final = 1.0
_WAITING_MAX: Final = 4096
_LATE_MAX: Final = 1024
_SELF: Final = "self"


class _Question:
    """A trial that the link was asked for."""

    __slots__ = ("answered", "deadline", "limit", "subject")

    def __init__(self, subject: TrialSubject, limit: int, deadline: float, answered: Callable[[bool], None]) -> None:
        self.subject = subject
        self.limit = limit
        self.deadline = deadline
        self.answered = answered


class Health:
    """`send` gives a message to the link and says whether there is one; `clock` is monotonic, `wall` Unix seconds."""

    def __init__(
        self,
        send: Callable[[WorkerMessage], bool],
        clock: Callable[[], float],
        wall: Callable[[], float],
        breaker_settings: BreakerSettings,
    ) -> None:
        self._send = send
        self._clock = clock
        self._wall = wall
        self.pools: dict[str, KeyPool] = {}
        """By provider's name; of providers that have keys."""
        self.breakers = Breakers(breaker_settings)
        self._trials = Trials()
        self._seq = 0
        self._waiting: OrderedDict[int, _Question] = OrderedDict()
        self._late: OrderedDict[int, tuple[TrialSubject, bool]] = OrderedDict()
        """Questions that were decided here before the link answered, and how."""

    def take_snapshot(self, snapshot: Snapshot) -> None:
        """New providers; the state of keys that stay is kept."""
        self.pools = {
            name: KeyPool(name, provider.keys, provider.selection, self.pools.get(name))
            for name, provider in snapshot.providers.items()
            if provider.keys
        }

    def pool(self, provider_name: str) -> KeyPool | None:
        return self.pools.get(provider_name)

    # --- what requests find

    def mark(self, provider_name: str, key: RuntimeKey, verdict: Verdict, model: str) -> tuple[KeyReport, ...]:
        """A provider's verdict on a key. The changes, for counting: none when it was known."""
        pool = self.pools.get(provider_name)
        if pool is None:
            return ()
        reports = pool.mark(key, verdict, model, self._clock(), self._wall())
        for report in reports:
            self._tell_key(report, key.hint)
        return reports

    def failed(self, subject: BreakerSubject) -> BreakerReport | None:
        """A request failed that its breaker had admitted. A report when the breaker opens, for counting."""
        report = self.breakers.failed(subject, self._clock(), self._wall())
        if report is not None:
            self._opened(report)
        return report

    def succeeded(self, subject: BreakerSubject) -> None:
        """A request went well that its breaker had admitted. Needless while `breakers.tracked` is empty."""
        self.breakers.succeeded(subject, self._clock())

    # --- trials

    def ask_trial(self, subject: TrialSubject, limit: int, answered: Callable[[bool], None]) -> None:
        """May a request try this? `answered` is called once, maybe at once."""
        self._seq += 1
        seq = self._seq
        if len(self._waiting) >= _WAITING_MAX or not self._send(AskTrial(seq, subject, limit)):
            self._answer(subject, answered, granted=self._grant(subject, limit))
            return
        self._waiting[seq] = _Question(subject, limit, self._clock() + _ANSWER_WITHIN, answered)

    def key_trial_ended(self, provider_name: str, key: RuntimeKey, outcome: TrialOutcome) -> tuple[KeyReport, ...]:
        """What came of a granted trial of a key: `failed` when it was refused again, which is `mark`ed besides;
        `passed` on an answer that only an accepted key gets. The changes, for counting.
        """
        subject = KeySubject(provider_name, key.digest)
        self._trials.ended(subject, _SELF, outcome)
        self._send(TrialEnded(subject, outcome))
        pool = self.pools.get(provider_name)
        if outcome != "passed" or pool is None:
            return ()
        reports = pool.recovered(key, self._clock(), self._wall())
        for report in reports:
            self._tell_key(report, key.hint)
        return reports

    def breaker_trial_ended(self, subject: BreakerSubject, outcome: TrialOutcome) -> BreakerReport | None:
        """What came of a granted trial of a breaker. A report when that opens or closes it here, for counting."""
        now, wall = self._clock(), self._wall()
        conclusion = self._trials.ended(subject, _SELF, outcome)
        if outcome == "failed":
            reopened = self.breakers.trial_failed(subject, now, wall)
            if reopened is None:
                self._send(TrialEnded(subject, "unknown"))
                return None
            self._send(TrialEnded(subject, outcome, reopened.until))
            self._opened(reopened)
            return reopened
        self._send(TrialEnded(subject, outcome))
        closed = self.breakers.close(subject, now, wall) if conclusion == "recovered" else None
        if closed is not None:
            self._send(closed)
            log.info("closing a circuit breaker", provider_name=closed.provider, route=closed.route, model=closed.model)
        return closed

    def _grant(self, subject: TrialSubject, limit: int) -> bool:
        return self._trials.ask(subject, _SELF, limit, self._clock())

    def _answer(self, subject: TrialSubject, answered: Callable[[bool], None], *, granted: bool) -> None:
        if not granted and isinstance(subject, BreakerSubject):
            self.breakers.denied(subject, self._clock())
        answered(granted)

    def _answer_alone(self, seq: int) -> None:
        question = self._waiting.pop(seq)
        granted = self._grant(question.subject, question.limit)
        if len(self._late) >= _LATE_MAX:
            self._late.popitem(last=False)
        self._late[seq] = (question.subject, granted)
        self._answer(question.subject, question.answered, granted=granted)

    # --- the link

    def receive(self, message: KeyReport | BreakerReport | TrialAnswer) -> None:
        """What a sibling has found, or the answer to a question."""
        now = self._clock()
        if isinstance(message, TrialAnswer):
            self._receive_answer(message)
        elif isinstance(message, KeyReport):
            pool = self.pools.get(message.provider)
            if pool is not None:
                pool.apply(message, now)
        elif self.breakers.apply(message, now):
            self._trials.forget(BreakerSubject(message.provider, message.route, message.model))

    def _receive_answer(self, message: TrialAnswer) -> None:
        question = self._waiting.pop(message.seq, None)
        if question is not None:
            self._answer(question.subject, question.answered, granted=message.granted)
            return
        subject, granted = self._late.pop(message.seq, (None, False))
        if subject is not None and message.granted and not granted:
            self._send(TrialEnded(subject, "unknown"))

    def link_adopted(self) -> None:
        """There is a new link, which knows nothing yet."""
        now = self._clock()
        for pool in self.pools.values():
            for report in pool.reports(now):
                self._send(report)
        for breaker_report in self.breakers.reports(now):
            self._send(breaker_report)

    def link_lost(self) -> None:
        """Its answers will not come."""
        self._late.clear()
        for seq in tuple(self._waiting):
            self._answer_alone(seq)
        self._late.clear()

    def sweep(self) -> None:
        """Every tick: settle the questions that the link has not answered in time, and look what is due."""
        now = self._clock()
        for seq, question in tuple(self._waiting.items()):
            if now < question.deadline:
                break
            self._answer_alone(seq)
        for pool in self.pools.values():
            pool.sweep(now)
        self.breakers.sweep(now)

    # ---

    def _tell_key(self, report: KeyReport, hint: str) -> None:
        self._send(report)
        log.info(
            "changing the state of a key",
            provider_name=report.provider,
            key=hint,
            state=report.state,
            reason=report.reason,
            model=report.model,
        )

    def _opened(self, report: BreakerReport) -> None:
        self._trials.forget(BreakerSubject(report.provider, report.route, report.model))
        self._send(report)
        log.warning("opening a circuit breaker", provider_name=report.provider, route=report.route, model=report.model)
