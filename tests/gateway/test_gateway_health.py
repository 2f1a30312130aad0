"""What workers know of keys and upstreams, together with the link's board: messages come late, and links die.

The two ends are the real ones; in between are queues of frames, which the tests carry over when they like.
"""

from collections import deque
from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

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
from ostiary.gateway.breaker import ADMITTED, NEEDS_TRIAL, BreakerSettings, Rejected
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


@pytest.fixture
def machine() -> Machine:
    found = Machine()
    found.start_link()
    return found


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


# --- sharing


def test_what_one_worker_finds_holds_for_the_other(machine: Machine) -> None:
    one, other = machine.workers
    one.health.mark("openai", one.keys[0], LIMITED, M)
    one.health.mark("openai", one.keys[1], REFUSED, M)
    break_it(one)
    machine.carry_all()
    assert choice_of(other, machine.now) == choice_of(one, machine.now)
    choice = other.pool.choose(M, machine.now)
    assert isinstance(choice, Chosen)
    assert choice.key.id == "2"
    assert other.health.breakers.admit(CHAT, machine.now) == Rejected(30)


def test_a_worker_that_starts_is_told_how_things_stand(machine: Machine) -> None:
    one, _ = machine.workers
    one.health.mark("openai", one.keys[0], REFUSED, M)
    break_it(one)
    machine.carry_all()
    fresh = machine.restart_worker(1)
    machine.carry_all()
    assert choice_of(fresh, machine.now) == choice_of(one, machine.now)
    assert fresh.health.breakers.admit(CHAT, machine.now) == Rejected(30)


def test_a_new_link_is_told_and_tells_the_others(machine: Machine) -> None:
    one, other = machine.workers
    machine.lose_link()
    one.health.mark("openai", one.keys[0], REFUSED, M)
    one.health.mark("openai", one.keys[1], LIMITED, M)
    break_it(one)
    assert other.pool.healthy
    machine.start_link()
    machine.carry_all()
    assert choice_of(other, machine.now) == choice_of(one, machine.now)
    assert other.health.breakers.admit(CHAT, machine.now) == Rejected(30)


def test_what_was_found_without_a_link_is_not_undone_by_what_the_new_one_hears_from_others(machine: Machine) -> None:
    one, other = machine.workers
    key = one.keys[0]
    one.health.mark("openai", key, REFUSED, M)
    machine.carry_all()
    machine.now += 60
    machine.lose_link()
    assert ask_key(one, key) == [True]
    one.health.key_trial_ended("openai", key, "passed")
    machine.now += 5
    other.health.mark("openai", key, REFUSED, M)  # it has been revoked again
    machine.start_link()
    machine.carry_all()
    for worker in machine.workers:
        choice = worker.pool.choose(M, machine.now)
        assert isinstance(choice, Chosen)
        assert choice.key.id == "1"


def test_a_reload_keeps_the_state_of_keys_that_stay(machine: Machine) -> None:
    one, _ = machine.workers
    one.health.mark("openai", one.keys[0], REFUSED, M)
    one.health.take_snapshot(build_snapshot(2, [spec(), spec(1, "another")], allow_byok=True))
    choice = one.pool.choose(M, machine.now)
    assert isinstance(choice, Chosen)
    assert choice.key.id == "1"
    assert one.health.pools["another"].healthy, "the same key of another provider is another matter"
    one.health.take_snapshot(build_snapshot(3, [], allow_byok=True))
    assert one.health.pool("openai") is None


def test_an_answer_for_a_provider_that_is_gone_changes_nothing(machine: Machine) -> None:
    one, _ = machine.workers
    key = one.keys[0]
    one.health.take_snapshot(build_snapshot(2, [], allow_byok=True))
    assert one.health.mark("openai", key, REFUSED, M) == ()
    assert one.health.key_trial_ended("openai", key, "passed") == ()
    one.health.receive(KeyReport("openai", key.digest, "suspect", "refused", until=2000.0))


# --- trials of keys


def test_one_worker_of_the_machine_tries_a_key(machine: Machine) -> None:
    one, other = machine.workers
    key = one.keys[0]
    one.health.mark("openai", key, REFUSED, M)
    machine.carry_all()
    machine.now += 60
    answers = [ask_key(one, key), ask_key(other, key), ask_key(one, key)]
    assert answers == [[], [], []], "the link has not said yet"
    machine.carry_all()
    assert answers == [[True], [False], [False]]
    one.health.key_trial_ended("openai", key, "passed")
    machine.carry_all()
    assert one.pool.healthy
    assert other.pool.healthy


def test_a_trial_that_is_refused_doubles_the_wait_of_all(machine: Machine) -> None:
    one, other = machine.workers
    key = one.keys[0]
    one.health.mark("openai", key, REFUSED, M)
    machine.now += 60
    asked = ask_key(one, key)
    machine.carry_all()
    assert asked == [True]
    one.health.mark("openai", key, REFUSED, M)
    one.health.key_trial_ended("openai", key, "failed")
    machine.carry_all()
    for wait, needs_trial in ((119.0, None), (120.0, True)):
        for worker in (one, other):
            choice = worker.pool.choose(M, machine.now + wait)
            assert isinstance(choice, Chosen)
            assert (choice.key.id, choice.needs_trial) == (("0", True) if needs_trial else ("1", False))


def test_a_trial_of_which_nothing_came_may_be_made_by_another(machine: Machine) -> None:
    one, other = machine.workers
    key = one.keys[0]
    one.health.mark("openai", key, REFUSED, M)
    machine.carry_all()
    machine.now += 60
    ask_key(one, key)
    machine.carry_all()
    one.health.key_trial_ended("openai", key, "unknown")
    assert one.pool.key_states(machine.now)[0] == (key, "suspect")
    asked = ask_key(other, key)
    machine.carry_all()
    assert asked == [True]


def test_a_trial_of_a_worker_that_dies_may_be_made_by_another(machine: Machine) -> None:
    one, other = machine.workers
    key = one.keys[0]
    one.health.mark("openai", key, REFUSED, M)
    machine.carry_all()
    machine.now += 60
    ask_key(one, key)
    machine.carry_all()
    machine.restart_worker(0)
    asked = ask_key(other, key)
    machine.carry_all()
    assert asked == [True]


def test_a_trial_that_is_limited_is_told_as_a_recovery_and_a_limit(machine: Machine) -> None:
    one, other = machine.workers
    key = one.keys[0]
    one.health.mark("openai", key, REFUSED, M)
    machine.carry_all()
    machine.now += 60
    ask_key(one, key)
    machine.carry_all()
    reports = one.health.mark("openai", key, LIMITED, M)
    assert [report.state for report in reports] == ["usable", "cooling"]
    assert one.health.key_trial_ended("openai", key, "passed") == ()
    machine.carry_all()
    for worker in (one, other):
        assert worker.pool.choose(M, machine.now + 1) == Chosen(worker.keys[1], ((key.hint, "rate_limited"),))
        assert worker.pool.choose(M, machine.now + 20) == Chosen(worker.keys[0])


# --- trials without an answer


def test_without_a_link_a_worker_grants_trials_itself(machine: Machine) -> None:
    one, _ = machine.workers
    machine.lose_link()
    assert [ask_key(one, one.keys[0]) for _ in range(2)] == [[True], [False]]
    assert [ask_breaker(one) for _ in range(4)] == [[True], [True], [True], [False]]


def test_when_the_link_dies_every_question_is_answered_once(machine: Machine) -> None:
    one, _ = machine.workers
    answers = [ask_breaker(one) for _ in range(5)]
    assert answers == [[]] * 5
    machine.lose_link()
    assert answers == [[True]] * 3 + [[False]] * 2
    machine.start_link()
    machine.carry_all()
    one.health.sweep()
    assert answers == [[True]] * 3 + [[False]] * 2


def test_a_link_that_does_not_answer_is_not_waited_for(machine: Machine) -> None:
    one, _ = machine.workers
    answers = [ask_key(one, one.keys[0]), ask_key(one, one.keys[0])]
    machine.now += 0.9
    one.health.sweep()
    assert answers == [[], []]
    machine.now += 0.1
    one.health.sweep()
    assert answers == [[True], [False]]
    machine.carry_all()
    one.health.sweep()
    assert answers == [[True], [False]], "once"


def test_a_grant_that_comes_too_late_is_given_back(machine: Machine) -> None:
    one, other = machine.workers
    key = one.keys[0]
    mine = [ask_key(one, key)]
    machine.carry_up(0)  # granted, but the answer is slow
    mine.append(ask_key(one, key))
    machine.now += 1.0
    one.health.sweep()
    assert mine == [[True], [False]]
    machine.carry_all()
    one.health.key_trial_ended("openai", key, "unknown")
    machine.carry_all()
    assert ask_key(one, key) == []
    machine.carry_all()
    theirs = ask_key(other, key)
    machine.carry_all()
    assert theirs == [False], "the place is taken once, by the question before"


def test_a_late_grant_to_whom_was_told_no_is_free_for_others(machine: Machine) -> None:
    one, other = machine.workers
    key = one.keys[0]
    machine.lose_link()
    assert ask_key(one, key) == [True]  # under way
    machine.start_link()
    late = ask_key(one, key)
    machine.now += 1.0
    one.health.sweep()
    assert late == [False]
    machine.carry_all()
    theirs = ask_key(other, key)
    machine.carry_all()
    assert theirs == [True]


def test_questions_are_bounded(machine: Machine) -> None:
    one, _ = machine.workers
    answers = [ask_key(one, one.keys[0]) for _ in range(5000)]
    assert sum(len(answer) for answer in answers) == 5000 - 4096
    machine.lose_link()
    assert all(len(answer) == 1 for answer in answers)
    assert sum(answer == [True] for answer in answers) == 1


# --- trials of breakers


def test_half_open_lets_through_so_many_of_the_whole_machine_and_closes_when_all_pass(machine: Machine) -> None:
    one, other = machine.workers
    break_it(one)
    machine.carry_all()
    machine.now += 30
    assert one.health.breakers.admit(CHAT, machine.now) is NEEDS_TRIAL
    assert other.health.breakers.admit(CHAT, machine.now) is NEEDS_TRIAL
    answers = [ask_breaker(worker) for worker in (one, other, one, other, one)]
    machine.carry_all()
    assert sum(answer == [True] for answer in answers) == 3
    assert other.health.breakers.admit(CHAT, machine.now) == Rejected(1), "who is denied does not ask again at once"
    for worker, answer in zip((one, other, one, other, one), answers, strict=True):
        assert one.health.breakers.states(machine.now) == {CHAT: "half_open"}
        if answer == [True]:
            worker.health.breaker_trial_ended(CHAT, "passed")
        machine.carry_all()
    for worker in (one, other):
        assert worker.health.breakers.admit(CHAT, machine.now) is ADMITTED


def test_one_failed_trial_opens_it_for_all(machine: Machine) -> None:
    one, other = machine.workers
    break_it(one)
    machine.carry_all()
    machine.now += 30
    ask_breaker(one)
    ask_breaker(other)
    machine.carry_all()
    machine.now += 2
    report = other.health.breaker_trial_ended(CHAT, "failed")
    assert report is not None
    assert (report.state, report.until) == ("open", machine.now + 30)
    machine.carry_all()
    assert one.health.breakers.admit(CHAT, machine.now) == Rejected(30)
    machine.now += 1
    assert one.health.breaker_trial_ended(CHAT, "failed") is None, "of a round that is over"
    machine.carry_all()
    assert one.health.breakers.admit(CHAT, machine.now) == Rejected(29)
    assert other.health.breakers.admit(CHAT, machine.now) == Rejected(29)


def test_without_a_link_a_worker_closes_its_breaker_itself_and_tells_when_there_is_one(machine: Machine) -> None:
    one, other = machine.workers
    break_it(one)
    machine.carry_all()
    machine.lose_link()
    machine.now += 30
    assert [ask_breaker(one) for _ in range(3)] == [[True]] * 3
    ended = [one.health.breaker_trial_ended(CHAT, "passed") for _ in range(3)]
    assert [report and report.state for report in ended] == [None, None, "closed"]
    assert one.health.breakers.admit(CHAT, machine.now) is ADMITTED
    assert other.health.breakers.admit(CHAT, machine.now) is NEEDS_TRIAL
    machine.start_link()
    machine.carry_all()
    assert other.health.breakers.admit(CHAT, machine.now) is ADMITTED


def test_a_trial_that_outlives_its_link_still_decides(machine: Machine) -> None:
    one, other = machine.workers
    break_it(one)
    machine.carry_all()
    machine.now += 30
    ask_breaker(one)
    machine.carry_all()
    machine.lose_link()
    machine.start_link()
    one.health.breaker_trial_ended(CHAT, "failed")
    machine.carry_all()
    assert other.health.breakers.admit(CHAT, machine.now) == Rejected(30)


def test_trials_of_before_take_no_place_when_it_was_opened_anew(machine: Machine) -> None:
    one, other = machine.workers
    break_it(one)
    machine.lose_link()
    machine.now += 30
    assert [ask_breaker(one) for _ in range(3)] == [[True]] * 3  # they never end
    machine.start_link()
    machine.carry_all()
    machine.now += 10
    assert [ask_breaker(other) for _ in range(1)] == [[]]
    machine.carry_all()
    assert other.health.breaker_trial_ended(CHAT, "failed") is not None
    machine.carry_all()
    machine.lose_link()
    machine.now += 30
    assert [ask_breaker(one) for _ in range(4)] == [[True]] * 3 + [[False]]


def test_a_failure_ends_the_round_of_trials_that_a_worker_granted_itself(machine: Machine) -> None:
    one, _ = machine.workers
    break_it(one)
    machine.carry_all()
    machine.now += 30
    slow = ask_breaker(one)
    machine.now += 1
    one.health.sweep()
    assert slow == [True]
    assert one.health.breaker_trial_ended(CHAT, "passed") is None
    machine.carry_all()
    quick = ask_breaker(one)
    machine.carry_all()
    assert quick == [True]
    assert one.health.breaker_trial_ended(CHAT, "failed") is not None
    machine.now += 30
    machine.lose_link()
    assert [ask_breaker(one) for _ in range(4)] == [[True]] * 3 + [[False]]


def test_turned_off_nothing_is_told_of_breakers() -> None:
    sent: list[WorkerMessage] = []
    health = Health(
        lambda message: sent.append(message) is None, lambda: 0.0, lambda: 0.0, BreakerSettings(enabled=False)
    )
    assert [health.failed(CHAT) for _ in range(100)] == [None] * 100
    assert sent == []


# --- all together


class Restored(RuleBasedStateMachine):
    """Keys are revoked and restored, limits come and go, messages and links are late or lost."""

    @initialize()
    def begin(self) -> None:
        self.machine = Machine()
        self.machine.start_link()
        self.valid = {key.digest: True for key in self.machine.workers[0].keys}
        self.under_way: list[tuple[WorkerEnd, RuntimeKey]] = []
        self.asked = 0
        self.answered = 0

    @rule(seconds=st.sampled_from([0.0, 0.01, 0.5, 1.0, 20.0, 60.0, 61.0, 3600.0, 1e8]))
    def wait(self, seconds: float) -> None:
        self.machine.now += seconds
        for worker in self.machine.workers:
            worker.health.sweep()

    @rule(number=st.integers(0, 2), valid=st.booleans())
    def revoke_or_restore(self, number: int, valid: bool) -> None:
        self.valid[self.machine.workers[0].keys[number].digest] = valid

    @rule(index=st.integers(0, 1), limited=st.booleans())
    def request(self, index: int, limited: bool) -> None:
        """With failover, as an exchange does it; a trial goes on when it is granted."""
        worker = self.machine.workers[index]
        tried: set[bytes] = set()
        while isinstance(choice := worker.pool.choose(M, self.machine.now, tried=tried), Chosen):
            key = choice.key
            tried.add(key.digest)
            if choice.needs_trial:
                self.asked += 1
                worker.health.ask_trial(KeySubject("openai", key.digest), 1, self.granted(worker, key))
            elif not self.valid[key.digest]:
                worker.health.mark("openai", key, REFUSED, M)
            elif limited:
                worker.health.mark("openai", key, LIMITED, M)
            else:
                return

    def granted(self, worker: WorkerEnd, key: RuntimeKey) -> Callable[[bool], None]:
        def answered(granted: bool) -> None:
            self.answered += 1
            if granted:
                self.under_way.append((worker, key))

        return answered

    @rule(unknown=st.booleans())
    def trial_ends(self, unknown: bool) -> None:
        if not self.under_way:
            return
        worker, key = self.under_way.pop(0)
        if unknown:
            worker.health.key_trial_ended("openai", key, "unknown")
        elif self.valid[key.digest]:
            worker.health.key_trial_ended("openai", key, "passed")
        else:
            worker.health.mark("openai", key, REFUSED, M)
            worker.health.key_trial_ended("openai", key, "failed")

    @rule(index=st.integers(0, 1), up=st.booleans(), count=st.integers(1, 5))
    def carry(self, index: int, up: bool, count: int) -> None:
        for _ in range(count):
            (self.machine.carry_up if up else self.machine.carry_down)(index)

    @rule()
    def lose_link(self) -> None:
        self.machine.lose_link()

    @rule()
    def start_link(self) -> None:
        if self.machine.board is None:
            self.machine.start_link()

    def teardown(self) -> None:
        """Once messages pass, the workers agree; and every key that is restored is back within its back-off."""
        if not hasattr(self, "machine"):
            return
        machine = self.machine
        if machine.board is None:
            machine.start_link()
        machine.carry_all()
        self.wait(1.0)
        machine.carry_all()
        assert self.asked == self.answered, "everybody is called back, and once"
        while self.under_way:
            self.trial_ends(unknown=True)
        machine.carry_all()
        one, other = machine.workers
        assert standing(one, machine.now) == standing(other, machine.now)
        for digest in self.valid:
            self.valid[digest] = True
        machine.now += 3600.0
        for worker in machine.workers:
            worker.health.sweep()
        for _ in range(3):
            self.request(0, limited=False)
            machine.carry_all()
            while self.under_way:
                self.trial_ends(unknown=False)
            machine.carry_all()
        for worker in machine.workers:
            assert isinstance(worker.pool.choose(M, machine.now), Chosen)
            assert worker.pool.healthy


def standing(worker: WorkerEnd, now: float) -> set[tuple[object, ...]]:
    return {
        (report.key_sha256, report.state, report.model, report.until, report.strikes)
        for report in worker.pool.reports(now)
        if report.state != "usable"
    }


TestRestored = Restored.TestCase
TestRestored.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
