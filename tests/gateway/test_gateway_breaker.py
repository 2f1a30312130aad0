"""Circuit breakers: when they open, whom they let through, and how siblings come to agree."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from ostiary.core.health import BreakerReport, BreakerSubject
from ostiary.core.trials import LEASE, Trials
from ostiary.gateway.breaker import ADMITTED, NEEDS_TRIAL, Breakers, BreakerSettings, Rejected

CHAT = BreakerSubject("openai", "/v1/chat/completions", "gpt-5")
OTHER = BreakerSubject("openai", "/v1/chat/completions", "gpt-5-mini")
WALL = 1_790_000_000.0


def breakers(**changes: object) -> Breakers:
    return Breakers(BreakerSettings(**changes))  # type: ignore[arg-type]


def opened(at: float = 0.0, **changes: object) -> Breakers:
    found = breakers(**changes)
    for _ in range(found.settings.failure_threshold):
        found.failed(CHAT, at, WALL)
    return found


def test_nothing_is_kept_of_what_goes_well() -> None:
    healthy = breakers()
    assert healthy.admit(CHAT, 0.0) is ADMITTED
    healthy.succeeded(CHAT, 0.0)
    assert not healthy.tracked


def test_it_opens_after_so_many_failures_in_a_row_and_for_its_subject_only() -> None:
    found = breakers()
    assert [found.failed(CHAT, 1.0, WALL) for _ in range(4)] == [None] * 4
    assert found.admit(CHAT, 1.0) is ADMITTED
    report = found.failed(CHAT, 1.0, WALL)
    assert report == BreakerReport("openai", "/v1/chat/completions", "gpt-5", "open", 31.0, WALL)
    assert found.admit(CHAT, 1.0) == Rejected(30)
    assert found.admit(OTHER, 1.0) is ADMITTED


def test_a_success_ends_the_row() -> None:
    found = breakers()
    for _ in range(10):
        for _ in range(4):
            assert found.failed(CHAT, 1.0, WALL) is None
        found.succeeded(CHAT, 1.0)
        assert not found.tracked


def test_failures_count_within_an_interval_only() -> None:
    found = breakers()
    for _ in range(4):
        found.failed(CHAT, 0.0, WALL)
    assert found.failed(CHAT, 10.0, WALL) is None, "a new interval"
    assert [found.failed(CHAT, 19.9, WALL) is None for _ in range(4)] == [True, True, True, False]


def test_what_failed_long_ago_is_dropped() -> None:
    found = breakers()
    found.failed(CHAT, 0.0, WALL)
    found.sweep(9.9)
    assert found.tracked
    found.sweep(10.0)
    assert not found.tracked


def test_the_wait_that_is_told_is_rounded_up() -> None:
    found = opened(timeout=30.0)
    assert found.admit(CHAT, 0.5) == Rejected(30)
    assert found.admit(CHAT, 29.5) == Rejected(1)
    assert found.admit(CHAT, 30.0) is NEEDS_TRIAL


def test_what_was_under_way_when_it_opened_changes_nothing() -> None:
    found = opened()
    assert found.failed(CHAT, 5.0, WALL) is None
    found.succeeded(CHAT, 5.0)
    assert found.admit(CHAT, 6.0) == Rejected(24)
    found.succeeded(CHAT, 31.0)
    assert found.failed(CHAT, 31.0, WALL) is None
    assert found.admit(CHAT, 31.0) is NEEDS_TRIAL


def test_a_trial_that_fails_opens_it_again() -> None:
    found = opened()
    report = found.trial_failed(CHAT, 32.0, WALL)
    assert report is not None
    assert (report.state, report.until) == ("open", 62.0)
    assert found.admit(CHAT, 61.0) == Rejected(1)


def test_a_trial_that_fails_when_all_is_decided_is_a_failure_like_any_other() -> None:
    found = opened()
    assert found.trial_failed(CHAT, 32.0, WALL) is not None
    assert found.trial_failed(CHAT, 40.0, WALL) is None, "it is open"
    assert found.admit(CHAT, 62.0) is NEEDS_TRIAL
    assert found.close(CHAT, 62.0, WALL) is not None
    assert found.trial_failed(CHAT, 63.0, WALL) is None, "it is closed"
    assert found.admit(CHAT, 63.0) is ADMITTED
    for _ in range(4):
        found.failed(CHAT, 63.0, WALL)
    assert found.admit(CHAT, 63.0) == Rejected(30), "with four more it is enough"


def test_it_closes_when_half_open_only_and_is_forgotten_after_a_while() -> None:
    found = opened()
    assert found.close(CHAT, 29.0, WALL) is None
    report = found.close(CHAT, 33.0, WALL)
    assert report is not None
    assert (report.state, report.until) == ("closed", 33.0)
    assert found.close(CHAT, 33.0, WALL) is None
    assert found.admit(CHAT, 33.0) is ADMITTED
    found.sweep(62.0)
    assert found.states(62.0) == {CHAT: "closed"}
    found.sweep(63.0)
    assert not found.tracked


def test_a_trial_that_was_denied_is_not_asked_for_again_at_once() -> None:
    found = opened()
    assert found.admit(CHAT, 30.0) is NEEDS_TRIAL
    found.denied(CHAT, 30.0)
    assert found.admit(CHAT, 30.1) == Rejected(1)
    assert found.admit(CHAT, 30.5) is NEEDS_TRIAL
    found.denied(OTHER, 30.0)


def test_turned_off_it_lets_everything_through() -> None:
    found = opened(enabled=False)
    assert found.trial_failed(CHAT, 0.0, WALL) is None
    assert not found.apply(BreakerReport(*_names(CHAT), "open", 30.0), 0.0)
    assert not found.tracked
    assert found.admit(CHAT, 0.0) is ADMITTED


@pytest.mark.parametrize("threshold", [1, 2, 20])
def test_the_threshold_is_a_setting(threshold: int) -> None:
    found = breakers(failure_threshold=threshold, interval=60.0, timeout=5.0)
    reports = [found.failed(CHAT, float(count), WALL) for count in range(threshold)]
    assert [report is not None for report in reports] == [False] * (threshold - 1) + [True]
    assert found.admit(CHAT, threshold - 1 + 4.0) == Rejected(1)
    assert found.admit(CHAT, threshold - 1 + 5.0) is NEEDS_TRIAL


def test_models_that_clients_make_up_do_not_pile_up() -> None:
    found = breakers()
    for number in range(10_000):
        found.failed(BreakerSubject("openai", "/v1/chat/completions", f"model-{number}"), 0.0, WALL)
    assert len(found.tracked) <= 4096


def test_an_open_breaker_that_is_in_use_outlives_them() -> None:
    found = opened()
    for number in range(10_000):
        found.failed(BreakerSubject("openai", "/v1/chat/completions", f"model-{number}"), 0.0, WALL)
        found.admit(CHAT, 1.0)
    assert found.admit(CHAT, 1.0) == Rejected(29)


# --- siblings


def _names(subject: BreakerSubject) -> tuple[str, str, str]:
    return subject.provider, subject.route, subject.model


def test_a_sibling_opens_and_closes_with_it() -> None:
    one, other = opened(), breakers()
    (report,) = one.reports(1.0)
    assert other.apply(report, 1.0)
    assert not other.apply(report, 1.0), "twice is once"
    assert other.admit(CHAT, 1.0) == Rejected(29)
    closed = one.close(CHAT, 31.0, WALL)
    assert closed is not None
    assert other.apply(closed, 31.0)
    assert other.admit(CHAT, 31.0) is ADMITTED


def test_a_late_opening_does_not_undo_a_closing() -> None:
    one, other = opened(), breakers()
    (opening,) = one.reports(1.0)
    closed = one.close(CHAT, 31.0, WALL)
    assert closed is not None
    assert not other.apply(closed, 31.0)
    assert not other.apply(opening, 32.0)
    assert other.admit(CHAT, 32.0) is ADMITTED


def test_a_closing_of_before_does_not_undo_a_younger_opening() -> None:
    one, other = opened(), opened(at=40.0)
    closed = one.close(CHAT, 35.0, WALL)
    assert closed is not None
    assert not other.apply(closed, 41.0)
    assert other.admit(CHAT, 41.0) == Rejected(29)


def test_a_closing_without_a_time_is_of_now() -> None:
    found = opened()
    assert found.apply(BreakerReport(*_names(CHAT), "closed"), 31.0)
    assert found.admit(CHAT, 31.0) is ADMITTED


def test_no_report_keeps_it_open_for_longer_than_its_timeout() -> None:
    found = breakers()
    assert found.apply(BreakerReport(*_names(CHAT), "open", 1e12), 100.0)
    assert found.admit(CHAT, 129.0) == Rejected(1)
    assert found.admit(CHAT, 130.0) is NEEDS_TRIAL


def test_half_open_is_what_everybody_sees_for_himself() -> None:
    found = breakers()
    assert not found.apply(BreakerReport(*_names(CHAT), "half_open"), 0.0)
    assert not found.tracked
    found = opened()
    assert found.states(29.0) == {CHAT: "open"}
    assert found.states(30.0) == {CHAT: "half_open"}


events = st.lists(
    st.tuples(st.sampled_from(["open", "closed"]), st.integers(100, 200)), min_size=1, max_size=6, unique=True
)


@given(events, st.data())
def test_reports_in_any_order_and_doubled_come_to_the_same(facts: list[tuple[str, int]], data: st.DataObject) -> None:
    """By the account: it is open when it was opened last, or at the same time."""
    now = 220.0
    reports = [
        BreakerReport(*_names(CHAT), state, at + 30.0 if state == "open" else float(at))  # type: ignore[arg-type]
        for state, at in facts
    ]
    order = data.draw(st.permutations(reports + reports[::2]))
    found = breakers()
    for report in order:
        found.apply(report, now)
    last_open = max((at for state, at in facts if state == "open"), default=-1)
    last_closed = max((at for state, at in facts if state == "closed"), default=-1)
    if last_closed + 30 <= now and last_open < last_closed:
        return  # long enough ago for an older opening to be believed again
    expected = (
        ADMITTED if last_open < last_closed else Rejected(last_open + 30 - 220) if last_open > 190 else NEEDS_TRIAL
    )
    assert found.admit(CHAT, now) == expected


class OneBreaker(RuleBasedStateMachine):
    """With the ledger of trials, against a simple account."""

    @initialize(threshold=st.integers(1, 4), limit=st.integers(1, 4), start=st.sampled_from([0, 1, 10**7]))
    def begin(self, threshold: int, limit: int, start: int) -> None:
        self.now = start
        self.threshold, self.limit = threshold, limit
        self.breakers = Breakers(BreakerSettings(failure_threshold=threshold))
        self.trials = Trials()
        self.open_until: int | None = None
        self.row: list[int] = []
        self.running: list[int] = []
        """Until when each trial holds its place."""
        self.passed = 0

    @rule(seconds=st.sampled_from([0, 0, 1, 5, 10, 29, 30, 31, int(LEASE), 400 * 86_400]))
    def wait(self, seconds: int) -> None:
        self.now += seconds

    def opens(self, report: BreakerReport | None) -> None:
        assert report is not None
        assert (report.state, report.until) == ("open", self.now + 30)
        self.open_until, self.row, self.running, self.passed = self.now + 30, [], [], 0
        self.trials.forget(CHAT)

    def counts(self, report: BreakerReport | None) -> None:
        """A failure of what was admitted."""
        if self.open_until is not None:
            assert report is None
            return
        if self.row and self.now >= self.row[0] + 10:
            self.row = []
        self.row.append(self.now)
        if len(self.row) >= self.threshold:
            self.opens(report)
        else:
            assert report is None

    @rule()
    def fail(self) -> None:
        self.counts(self.breakers.failed(CHAT, self.now, WALL))

    @rule()
    def succeed(self) -> None:
        self.breakers.succeeded(CHAT, self.now)
        if self.open_until is None:
            self.row = []

    @rule()
    def sweep(self) -> None:
        self.breakers.sweep(self.now)

    @rule()
    def request(self) -> None:
        admission = self.breakers.admit(CHAT, self.now)
        if self.open_until is None:
            assert admission is ADMITTED
        elif self.now < self.open_until:
            assert admission == Rejected(self.open_until - self.now), "let through before its deadline"
        else:
            assert admission is NEEDS_TRIAL
            granted = self.trials.ask(CHAT, "self", self.limit, self.now)
            held = sum(1 for until in self.running if until > self.now)
            assert granted is (held + self.passed < self.limit), "half-open lets through what it says"
            if granted:
                self.running.append(self.now + int(LEASE))

    @rule(outcome=st.sampled_from(["passed", "passed", "failed", "unknown"]))
    def trial_ends(self, outcome: str) -> None:
        if not self.running:
            return
        self.running.pop(0)
        conclusion = self.trials.ended(CHAT, "self", outcome)  # type: ignore[arg-type]
        if outcome == "failed":
            assert conclusion == "failed"
            self.opens(self.breakers.trial_failed(CHAT, self.now, WALL))
            return
        self.passed += outcome == "passed"
        if outcome == "passed" and self.passed >= self.limit:
            assert conclusion == "recovered"
            assert self.breakers.close(CHAT, self.now, WALL) is not None
            self.open_until, self.running, self.passed = None, [], 0
        else:
            assert conclusion is None

    @rule()
    def late_trial_fails(self) -> None:
        """One of a round that is over."""
        if self.open_until is None or self.now < self.open_until:
            self.counts(self.breakers.trial_failed(CHAT, self.now, WALL))

    def teardown(self) -> None:
        if hasattr(self, "now"):
            later = self.now + max(30, int(LEASE))
            if self.breakers.admit(CHAT, later) is not ADMITTED:
                assert self.breakers.admit(CHAT, later) is NEEDS_TRIAL
                if self.passed < self.limit:
                    assert self.trials.ask(CHAT, "self", self.limit, later), "it never closes again"


TestOneBreaker = OneBreaker.TestCase
TestOneBreaker.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
