"""What workers know of keys and upstreams, together with the link's board: messages come late, and links die."""

import pytest
from health_machine import CHAT, LIMITED, REFUSED, M, Machine, ask_breaker, ask_key, break_it, choice_of, spec

from ostiary.core.health import KeyReport
from ostiary.core.messages import WorkerMessage
from ostiary.gateway.breaker import ADMITTED, NEEDS_TRIAL, BreakerSettings, Rejected
from ostiary.gateway.health import Health
from ostiary.gateway.keypool import Chosen
from ostiary.gateway.snapshot import build_snapshot


@pytest.fixture
def machine() -> Machine:
    found = Machine()
    found.start_link()
    return found


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
