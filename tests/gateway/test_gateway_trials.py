"""The ledger of half-open trials."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ostiary.core.health import BreakerSubject, KeySubject
from ostiary.core.trials import LEASE, Trials

KEY = KeySubject("openai", b"k" * 32)
BREAKER = BreakerSubject("openai", "/v1/chat/completions", "gpt-5")


def test_a_key_is_tried_by_one_at_a_time() -> None:
    trials = Trials()
    assert trials.ask(KEY, 1, 1, 0.0)
    assert not trials.ask(KEY, 2, 1, 0.0)
    assert not trials.ask(KEY, 1, 1, 0.0)
    assert trials.ended(KEY, 1, "passed") == "recovered"
    assert len(trials) == 0


def test_subjects_do_not_get_in_each_others_way() -> None:
    trials = Trials()
    assert trials.ask(KEY, 1, 1, 0.0)
    assert trials.ask(KeySubject("openai", b"l" * 32), 1, 1, 0.0)
    assert trials.ask(BREAKER, 1, 1, 0.0)


def test_a_breaker_recovers_when_all_its_trials_have_passed() -> None:
    trials = Trials()
    assert [trials.ask(BREAKER, worker, 3, 0.0) for worker in (1, 2, 1, 2)] == [True, True, True, False]
    assert trials.ended(BREAKER, 1, "passed") is None
    assert not trials.ask(BREAKER, 2, 3, 1.0), "one that has passed keeps its place in the round"
    assert trials.ended(BREAKER, 2, "passed") is None
    assert trials.ended(BREAKER, 1, "passed") == "recovered"


def test_one_failure_ends_the_round_and_what_ends_later_counts_nothing() -> None:
    trials = Trials()
    for worker in (1, 2, 3):
        trials.ask(BREAKER, worker, 3, 0.0)
    assert trials.ended(BREAKER, 1, "passed") is None
    assert trials.ended(BREAKER, 2, "failed") == "failed"
    assert trials.ended(BREAKER, 3, "failed") is None
    assert [trials.ask(BREAKER, worker, 3, 30.0) for worker in (4, 5, 6, 7)] == [True, True, True, False]
    assert trials.ended(BREAKER, 3, "failed") is None, "of the round before"
    assert trials.ended(BREAKER, 4, "passed") is None


def test_a_trial_of_which_nothing_can_be_said_gives_its_place_back() -> None:
    trials = Trials()
    assert trials.ask(KEY, 1, 1, 0.0)
    assert trials.ended(KEY, 1, "unknown") is None
    assert trials.ask(KEY, 2, 1, 0.0)


def test_the_trials_of_a_worker_that_is_gone_are_free() -> None:
    trials = Trials()
    assert trials.ask(KEY, 1, 1, 0.0)
    assert trials.ask(BREAKER, 1, 2, 0.0)
    assert trials.ask(BREAKER, 2, 2, 0.0)
    trials.holder_gone(1)
    assert trials.ask(KEY, 2, 1, 0.0)
    assert trials.ask(BREAKER, 3, 2, 0.0)
    assert not trials.ask(BREAKER, 3, 2, 0.0)
    assert trials.ended(KEY, 1, "passed") is None, "it is not there any more"


def test_a_place_is_free_again_when_its_lease_is_over() -> None:
    trials = Trials()
    assert trials.ask(KEY, 1, 1, 100.0)
    assert not trials.ask(KEY, 2, 1, 100.0 + LEASE - 0.01)
    assert trials.ask(KEY, 2, 1, 100.0 + LEASE)


def test_a_trial_that_outlives_its_lease_still_counts() -> None:
    """Or a breaker in front of long answers would never close."""
    trials = Trials()
    for _ in range(3):
        assert trials.ask(BREAKER, 1, 3, 0.0)
    assert [trials.ended(BREAKER, 1, "passed") for _ in range(3)] == [None, None, "recovered"]


def test_trials_that_never_end_do_not_pile_up() -> None:
    trials = Trials()
    for count in range(1000):
        assert trials.ask(KEY, 1, 1, count * LEASE)
    ended = [trials.ended(KEY, 1, "unknown") for _ in range(1000)]
    assert set(ended) == {None}
    assert len(trials) == 0


def test_the_ledger_is_bounded() -> None:
    trials = Trials()
    for number in range(10_000):
        trials.ask(BreakerSubject("openai", "/v1/chat/completions", f"model-{number}"), 1, 3, 0.0)
    assert len(trials) <= 4096
    assert trials.ask(KEY, 1, 1, 0.0), "the oldest give way"


def test_a_forgotten_round_begins_anew() -> None:
    trials = Trials()
    assert trials.ask(KEY, 1, 1, 0.0)
    trials.forget(KEY)
    trials.forget(KEY)
    assert trials.ended(KEY, 1, "failed") is None
    assert trials.ask(KEY, 2, 1, 0.0)


@pytest.mark.parametrize("outcome", ["passed", "failed", "unknown"])
def test_what_was_not_granted_counts_nothing(outcome: str) -> None:
    trials = Trials()
    assert trials.ended(KEY, 1, outcome) is None  # type: ignore[arg-type]
    trials.ask(KEY, 1, 1, 0.0)
    assert trials.ended(KEY, 2, outcome) is None  # type: ignore[arg-type]
    assert not trials.ask(KEY, 2, 1, 0.0)


steps = st.lists(
    st.tuples(st.just("ask"), st.integers(1, 3))
    | st.tuples(st.sampled_from(["passed", "failed", "unknown", "gone"]), st.integers(1, 3))
    | st.tuples(st.just("wait"), st.sampled_from([0, 1, 60, 119, 120, 121, 10**9])),
    max_size=60,
)


@given(st.integers(1, 4), steps)
def test_no_more_run_at_once_than_the_limit_says_and_a_place_always_comes_free(
    limit: int, script: list[tuple[str, int]]
) -> None:
    """Against the simplest account of it: who holds leases, and how many have passed in this round."""
    trials = Trials()
    now, passed = 0.0, 0
    held: list[tuple[int, float]] = []
    for what, number in script:
        if what == "wait":
            now += number
        elif what == "ask":
            free = sum(1 for _, until in held if until > now) + passed < limit
            assert trials.ask(BREAKER, number, limit, now) is free
            if free:
                held = held[-(4 * limit - 1) :] if len(held) >= 4 * limit else held
                held.append((number, now + LEASE))
        elif what == "gone":
            trials.holder_gone(number)
            held = [one for one in held if one[0] != number]
        else:
            conclusion = trials.ended(BREAKER, number, what)  # type: ignore[arg-type]
            mine = next((one for one in held if one[0] == number), None)
            if mine is None:
                assert conclusion is None
                continue
            held.remove(mine)
            passed += what == "passed"
            expected = "failed" if what == "failed" else "recovered" if passed >= limit else None
            assert conclusion == expected
            if expected is not None:
                held, passed = [], 0
    now += LEASE
    assert trials.ask(BREAKER, 9, limit, now), "in the end somebody may try"
