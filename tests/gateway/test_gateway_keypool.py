"""Which key of a pool a request gets, and what answers make of the keys."""

from collections import Counter
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ostiary.core.health import KeyReport
from ostiary.core.secret import Secret
from ostiary.gateway.key_verdict import Verdict
from ostiary.gateway.keypool import Chosen, Exhausted, KeyPool, Selection
from ostiary.gateway.providers import RuntimeKey

A, B, C = (RuntimeKey(name, Secret(f"sk-{name}-0123456789abcdef"), b"") for name in "abc")
M, N = "gpt-5", "gpt-5-mini"
LIMITED = Verdict("rate_limited", 20.0)
SPENT = Verdict("quota", 60.0)
REFUSED = Verdict("refused")
WALL = 1_790_000_000.0


def pool_of(*keys: RuntimeKey, selection: Selection = "primary", previous: KeyPool | None = None) -> KeyPool:
    return KeyPool("openai", keys, selection, previous)


def key_of(choice: Chosen | Exhausted) -> RuntimeKey:
    assert isinstance(choice, Chosen), choice
    return choice.key


def refused(pool: KeyPool, key: RuntimeKey, now: float) -> tuple[KeyReport, ...]:
    return pool.mark(key, REFUSED, M, now, WALL + now)


# --- primary


def test_a_healthy_pool_gives_its_first_key_without_being_asked() -> None:
    pool = pool_of(A, B)
    assert pool.healthy
    assert pool.choose(M, 0.0) == Chosen(A)


def test_a_limited_key_is_passed_over_until_its_deadline_and_for_its_model_only() -> None:
    pool = pool_of(A, B)
    pool.mark(A, LIMITED, M, 100.0, WALL)
    assert not pool.healthy
    assert pool.choose(M, 100.0) == Chosen(B, ((A.hint, "rate_limited"),))
    assert key_of(pool.choose(M, 119.9)) is B
    assert key_of(pool.choose(N, 100.0)) is A
    assert key_of(pool.choose(M, 120.0)) is A
    assert pool.healthy, "nothing speaks against it any more"


def test_an_exhausted_quota_cools_the_whole_key() -> None:
    pool = pool_of(A, B)
    pool.mark(A, SPENT, M, 0.0, WALL)
    assert pool.choose(N, 59.9) == Chosen(B, ((A.hint, "quota"),))
    assert key_of(pool.choose(N, 60.0)) is A


def test_the_later_deadline_holds() -> None:
    pool = pool_of(A)
    pool.mark(A, Verdict("rate_limited", 60.0), M, 0.0, WALL)
    assert pool.mark(A, Verdict("rate_limited", 5.0), M, 1.0, WALL) == ()
    assert pool.choose(M, 7.0) == Exhausted("rate_limited", 53, ((A.hint, "rate_limited"),))
    pool.mark(A, Verdict("rate_limited", 90.0), M, 7.0, WALL)
    assert pool.choose(M, 7.0) == Exhausted("rate_limited", 90, ((A.hint, "rate_limited"),))


def test_many_requests_that_are_limited_at_once_are_one_change() -> None:
    pool = pool_of(A)
    told = [pool.mark(A, LIMITED, M, count / 100, WALL) for count in range(100)]
    assert [len(reports) for reports in told] == [1] + [0] * 99


def test_a_refused_key_is_suspect_until_a_trial_has_passed() -> None:
    pool = pool_of(A, B)
    (report,) = refused(pool, A, 10.0)
    assert report == KeyReport("openai", A.digest, "suspect", "refused", "", 70.0, 1, WALL + 10)
    assert pool.choose(M, 69.9) == Chosen(B, ((A.hint, "refused"),))
    assert pool.choose(M, 70.0) == Chosen(A, needs_trial=True)
    (report,) = pool.recovered(A, 71.0, WALL)
    assert (report.state, report.reason) == ("usable", "recovered")
    assert pool.healthy
    assert pool.choose(M, 71.0) == Chosen(A)


def test_the_back_off_doubles_with_each_trial_that_is_refused_up_to_an_hour() -> None:
    pool = pool_of(A)
    now, waits = 0.0, []
    for _ in range(10):
        (report,) = refused(pool, A, now)
        waits.append(report.until - now)
        now = report.until
        assert pool.choose(M, now) == Chosen(A, needs_trial=True)
    assert waits == [60, 120, 240, 480, 960, 1920, 3600, 3600, 3600, 3600]
    pool.recovered(A, now, WALL)
    assert refused(pool, A, now + 1)[0].strikes == 1, "from the beginning again"


def test_refusals_of_requests_that_were_under_way_do_not_add_up() -> None:
    """Fifty calls with a key that is revoked meanwhile are one refusal, not an hour of back-off."""
    pool = pool_of(A)
    assert len(refused(pool, A, 0.0)) == 1
    assert [refused(pool, A, count / 2) for count in range(100)] == [()] * 100
    assert key_of(pool.choose(M, 60.0)) is A


def test_a_suspect_key_is_tried_when_it_is_due_and_not_only_when_it_is_needed() -> None:
    pool = pool_of(A, B)
    refused(pool, B, 0.0)
    assert pool.healthy, "the first key is what a request gets"
    pool.sweep(59.0)
    assert pool.healthy
    pool.sweep(60.0)
    assert not pool.healthy
    assert pool.choose(M, 60.0) == Chosen(B, needs_trial=True)
    assert pool.choose(M, 60.5) == Chosen(A)
    assert pool.healthy, "somebody is trying it"
    pool.sweep(61.0)
    assert not pool.healthy, "nothing came of it"
    pool.recovered(B, 62.0, WALL)
    assert pool.healthy


def test_a_trial_is_proposed_to_one_request_at_a_time() -> None:
    pool = pool_of(A, B)
    refused(pool, A, 0.0)
    assert pool.choose(M, 60.0) == Chosen(A, needs_trial=True)
    assert pool.choose(M, 60.5) == Chosen(B, ((A.hint, "refused"),))
    assert pool.choose(M, 61.0) == Chosen(A, needs_trial=True), "nothing came of the first"


def test_who_is_denied_a_trial_gets_the_next_key() -> None:
    pool = pool_of(A, B)
    refused(pool, A, 0.0)
    assert key_of(pool.choose(M, 60.0)) is A
    assert key_of(pool.choose(M, 60.0, tried={A.digest})) is B


def test_a_request_that_cannot_be_repeated_tries_a_suspect_key_only_when_nothing_else_is_left() -> None:
    pool = pool_of(A, B)
    refused(pool, A, 0.0)
    assert pool.choose(M, 60.0, try_suspects=False) == Chosen(B, ((A.hint, "refused"),))
    pool.mark(B, LIMITED, M, 60.0, WALL)
    assert pool.choose(M, 60.0, try_suspects=False) == Chosen(A, needs_trial=True)


@pytest.mark.parametrize("verdict", [LIMITED, SPENT])
def test_a_trial_that_is_limited_shows_that_the_key_is_accepted(verdict: Verdict) -> None:
    pool = pool_of(A)
    refused(pool, A, 0.0)
    recovered, cooling = pool.mark(A, verdict, M, 60.0, WALL)
    assert (recovered.state, cooling.state, cooling.reason) == ("usable", "cooling", verdict.kind)
    assert isinstance(pool.choose(M, 61.0), Exhausted)
    assert pool.choose(M, 60.0 + verdict.wait) == Chosen(A)


def test_a_limit_that_comes_while_the_back_off_runs_proves_nothing() -> None:
    pool = pool_of(A)
    refused(pool, A, 0.0)
    (report,) = pool.mark(A, LIMITED, M, 1.0, WALL)
    assert report.state == "cooling"
    assert pool.choose(M, 59.0) == Exhausted("auth_failed", 0, ((A.hint, "refused"),))
    assert pool.choose(M, 60.0) == Chosen(A, needs_trial=True)


def test_a_suspect_key_without_quota_is_tried_when_both_are_over() -> None:
    pool = pool_of(A)
    refused(pool, A, 0.0)
    pool.mark(A, Verdict("quota", 100.0), M, 1.0, WALL)
    assert isinstance(pool.choose(M, 100.9), Exhausted)
    assert pool.choose(M, 101.0) == Chosen(A, needs_trial=True)


# --- when nothing is left


def test_exhausted_says_the_shortest_wait_when_one_key_is_only_limited() -> None:
    pool = pool_of(A, B, C)
    refused(pool, A, 0.0)
    pool.mark(B, Verdict("quota", 50.2), M, 0.0, WALL)
    pool.mark(C, Verdict("rate_limited", 30.2), M, 0.0, WALL)
    assert pool.choose(M, 0.0) == Exhausted(
        "rate_limited", 31, ((A.hint, "refused"), (B.hint, "quota"), (C.hint, "rate_limited"))
    )
    assert pool.choose(M, 30.1) == Exhausted(
        "rate_limited", 1, ((A.hint, "refused"), (B.hint, "quota"), (C.hint, "rate_limited"))
    )


def test_keys_whose_short_limits_were_over_while_others_were_tried_are_limited_not_refused() -> None:
    pool = pool_of(A, B)
    for key in (A, B):
        pool.mark(key, Verdict("rate_limited", 0.2), M, 0.0, WALL)
    assert pool.choose(M, 5.0, tried={A.digest, B.digest}) == Exhausted("rate_limited", 1, ())
    assert pool.choose(M, 5.0) == Chosen(A)


def test_exhausted_says_so_when_no_key_is_accepted() -> None:
    pool = pool_of(A, B)
    refused(pool, A, 0.0)
    refused(pool, B, 0.0)
    assert pool.choose(M, 1.0) == Exhausted("auth_failed", 0, ((A.hint, "refused"), (B.hint, "refused")))


def test_a_request_gets_no_key_twice() -> None:
    pool = pool_of(A, B, C)
    tried: list[bytes] = []
    for expected in (A, B, C):
        key = key_of(pool.choose(M, 0.0, tried=tried))
        assert key is expected
        pool.mark(key, LIMITED, M, 0.0, WALL)
        tried.append(key.digest)
    assert pool.choose(M, 0.0, tried=tried) == Exhausted("rate_limited", 20, ())
    assert isinstance(pool.choose(M, 1000.0, tried=tried), Exhausted), "not even when they are usable again"


def test_a_pool_without_keys_gives_none() -> None:
    pool = pool_of()
    assert not pool.healthy
    assert pool.choose(M, 0.0) == Exhausted("auth_failed", 0, ())


# --- over reloads


def test_the_state_of_keys_that_stay_lives_on_whatever_their_order() -> None:
    old = pool_of(A, B)
    old.mark(A, SPENT, M, 0.0, WALL)
    refused(old, B, 0.0)
    new = pool_of(B, C, A, previous=old)
    assert not new.healthy
    assert new.choose(M, 1.0) == Chosen(C, ((B.hint, "refused"),))
    assert new.choose(M, 1.0, tried=[C.digest]) == Exhausted(
        "rate_limited", 59, ((B.hint, "refused"), (A.hint, "quota"))
    )


def test_a_key_that_is_entered_anew_keeps_its_state_for_it_is_the_same_value() -> None:
    old = pool_of(A, B)
    refused(old, A, 0.0)
    again = RuntimeKey("another id", Secret("sk-a-0123456789abcdef"), b"")
    assert key_of(pool_of(again, B, previous=old).choose(M, 1.0)) is B


def test_the_state_of_keys_that_go_is_forgotten() -> None:
    old = pool_of(A, B)
    refused(old, A, 0.0)
    without = pool_of(B, previous=old)
    assert without.healthy
    assert pool_of(A, B, previous=without).healthy
    assert refused(without, A, 1.0) == (), "an answer to a request with a key that is gone by now"


# --- among workers


def test_what_one_worker_finds_holds_for_the_others() -> None:
    one, other = pool_of(A, B), pool_of(A, B)
    for report in (*one.mark(A, LIMITED, M, 0.0, WALL), *refused(one, B, 1.0)):
        assert other.apply(report, 2.0)
        assert not other.apply(report, 2.0), "twice is once"
    assert other.choose(M, 2.0) == one.choose(M, 2.0)
    assert not other.healthy
    assert other.apply(one.recovered(B, 70.0, WALL)[0], 70.0)
    assert other.choose(M, 70.0) == one.choose(M, 70.0) == Chosen(A)


def test_a_report_of_a_key_that_is_not_here_changes_nothing() -> None:
    pool = pool_of(A)
    (report,) = refused(pool_of(B), B, 0.0)
    assert not pool.apply(report, 0.0)
    assert pool.healthy


def test_a_late_suspicion_does_not_undo_a_recovery() -> None:
    one, other = pool_of(A), pool_of(A)
    (suspicion,) = refused(one, A, 0.0)
    (recovery,) = one.recovered(A, 60.0, WALL)
    assert not other.apply(recovery, 61.0)
    assert not other.apply(suspicion, 62.0)
    assert other.healthy


def test_a_recovery_of_before_does_not_undo_a_younger_suspicion() -> None:
    one, other = pool_of(A), pool_of(A)
    refused(one, A, 0.0)
    (recovery,) = one.recovered(A, 60.0, WALL)
    refused(other, A, 61.0)
    assert not other.apply(recovery, 62.0)
    assert not other.apply(KeyReport("openai", A.digest, "usable", "recovered"), 62.0), "nobody knows of when"
    assert isinstance(other.choose(M, 62.0), Exhausted)


def test_no_report_keeps_a_key_from_use_for_longer_than_an_hour() -> None:
    pool = pool_of(A)
    pool.apply(KeyReport("openai", A.digest, "cooling", "rate_limited", M, until=1e12), 0.0)
    pool.apply(KeyReport("openai", A.digest, "cooling", "quota", until=float("inf")), 0.0)
    pool.apply(KeyReport("openai", A.digest, "suspect", "refused", until=1e12, strikes=99), 0.0)
    assert isinstance(pool.choose(M, 3599.0), Exhausted)
    assert pool.choose(M, 3600.0) == Chosen(A, needs_trial=True)


def test_reports_rebuild_a_sibling() -> None:
    pool = pool_of(A, B, C)
    pool.mark(A, LIMITED, M, 0.0, WALL)
    pool.mark(A, LIMITED, N, 0.0, WALL)
    pool.mark(A, SPENT, M, 0.0, WALL)
    refused(pool, B, 0.0)
    refused(pool, C, 0.0)
    pool.recovered(C, 60.0, WALL)
    sibling = pool_of(A, B, C)
    refused(sibling, C, 1.0)
    for report in pool.reports(10.0):
        sibling.apply(report, 10.0)
    for model in (M, N, "another"):
        for now in (10.0, 20.0, 60.0, 61.0):
            assert sibling.choose(model, now) == pool.choose(model, now)
    assert pool_of(A).reports(0.0) == []


@pytest.mark.parametrize(
    ("now", "states"),
    [
        (5.0, ["cooling", "suspect", "usable"]),
        (20.0, ["usable", "suspect", "usable"]),
        (60.0, ["usable", "suspect", "usable"]),
    ],
)
def test_the_states_are_told_in_the_order_of_the_keys(now: float, states: list[str]) -> None:
    pool = pool_of(A, B, C)
    pool.mark(A, LIMITED, M, 0.0, WALL)
    refused(pool, B, 0.0)
    assert [state for _, state in pool.key_states(now)] == states


def test_models_that_clients_make_up_do_not_pile_up() -> None:
    pool = pool_of(A)
    for number in range(10_000):
        pool.mark(A, Verdict("rate_limited", 3600.0), f"model-{number}", 0.0, WALL)
    assert len(pool.reports(1.0)) <= 128
    assert isinstance(pool.choose("model-9999", 1.0), Exhausted)


# --- spread


def chosen(pool: KeyPool, sessions: Iterable[str], now: float = 0.0) -> dict[str, RuntimeKey]:
    return {session: key_of(pool.choose(M, now, session)) for session in sessions}


SESSIONS = [f"session-{number}" for number in range(300)]


def test_spread_gives_new_sessions_to_all_keys_and_every_worker_agrees() -> None:
    here, there = pool_of(A, B, C, selection="spread"), pool_of(C, A, B, selection="spread")
    assert not here.healthy, "it has to be asked"
    keys = chosen(here, SESSIONS)
    assert keys == chosen(there, reversed(SESSIONS))
    counts = Counter(key.id for key in keys.values())
    assert min(counts.values()) > 60


def test_spread_keeps_a_session_on_its_key() -> None:
    """There its prompts are cached."""
    pool = pool_of(A, B, C, selection="spread")
    first = key_of(pool.choose(M, 0.0, "session"))
    others = [key for key in (A, B, C) if key is not first]
    pool.mark(first, LIMITED, N, 1.0, WALL)
    assert key_of(pool.choose(M, 2.0, "session")) is first
    assert key_of(pool.choose(M, 2.0, "a new one")) in others, "which was limited less recently"


def test_spread_moves_a_session_when_its_key_is_limited_and_leaves_it_there() -> None:
    pool = pool_of(A, B, C, selection="spread")
    first = key_of(pool.choose(M, 0.0, "session"))
    pool.mark(first, LIMITED, M, 1.0, WALL)
    second = key_of(pool.choose(M, 2.0, "session"))
    assert second is not first
    assert key_of(pool.choose(M, 1000.0, "session")) is second


def test_spread_prefers_the_key_that_was_limited_least_recently() -> None:
    pool = pool_of(A, B, C, selection="spread")
    for now, key in enumerate((B, C, A)):
        pool.mark(key, LIMITED, M, float(now * 10), WALL)
    assert set(chosen(pool, SESSIONS, 100.0).values()) == {B}
    assert len(set(chosen(pool, [f"later {name}" for name in SESSIONS], 5000.0).values())) == 3, "long forgotten"


def test_spread_lets_calls_without_a_session_take_turns() -> None:
    pool = pool_of(A, B, C, selection="spread")
    assert Counter(key_of(pool.choose(M, 0.0)).id for _ in range(30)) == {"a": 10, "b": 10, "c": 10}


def test_spread_lets_new_sessions_try_a_suspect_key() -> None:
    pool = pool_of(A, B, selection="spread")
    session = next(name for name in SESSIONS if key_of(pool.choose(M, 0.0, name)) is B)
    refused(pool, A, 1.0)
    assert key_of(pool.choose(M, 2.0, "another")) is B
    assert pool.choose(M, 61.0, session) == Chosen(B, ((A.hint, "refused"),)), "its cache is worth more"
    assert pool.choose(M, 61.0, "a new one") == Chosen(A, needs_trial=True)
    refused(pool, B, 62.0)
    pool.recovered(A, 63.0, WALL)
    assert pool.choose(M, 64.0, session) == Chosen(A, ((B.hint, "refused"),))


def test_sessions_survive_a_reload_and_do_not_pile_up() -> None:
    pool = pool_of(A, B, C, selection="spread")
    first = key_of(pool.choose(M, 0.0, "session"))
    pool.mark(first, LIMITED, N, 1.0, WALL)
    pool = pool_of(A, B, C, selection="spread", previous=pool)
    assert key_of(pool.choose(M, 2.0, "session")) is first
    for number in range(20_000):
        pool.choose(M, 2.0, f"session {number}")
    assert len(pool._sessions) <= 8192
    assert key_of(pool.choose(M, 3.0, "session")) is not first, "it was the one not seen for longest"


@given(st.text(), st.text(max_size=20))
def test_any_name_of_a_session_or_model_will_do(session: str, model: str) -> None:
    pool = pool_of(A, B, selection="spread")
    key = key_of(pool.choose(model, 0.0, session))
    pool.mark(key, LIMITED, model, 0.0, WALL)
    pool.choose(model, 0.0, session)
