"""link/health.py: how the machine's keys and breakers fare. Time is a number of the test's."""

from hashlib import sha256
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from ostiary.core.health import (
    AskTrial,
    BreakerReport,
    BreakerSubject,
    KeyReport,
    KeySubject,
    TrialEnded,
    TrialSubject,
    suspect_wait,
)
from ostiary.core.providers import ProviderKey, ProviderSpec
from ostiary.core.secret import Secret
from ostiary.link import health, health_metrics, health_records
from ostiary.link.health import Board
from ostiary.link.health_metrics import HealthMetrics
from ostiary.link.health_records import Cooling, KeyHealth, Transition

FIRST, SECOND = "sk-first-key-0123456789", "sk-second-key-0123456789"
UNIX = 1_800_000_000


def digest(value: str) -> bytes:
    return sha256(value.encode()).digest()


def provider(*keys: str, name: str = "openai", **fields: Any) -> ProviderSpec:
    made = tuple(ProviderKey(f"id-of-{key[-10:]}", Secret(key)) for key in keys)
    return ProviderSpec(
        **{"id": name, "name": name, "type": "openai", "enabled": True, "base_url": "", "keys": made} | fields
    )


class Times:
    """A monotonic clock that starts at 1,000 and a wall clock that shows `UNIX` then."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.skew = 0.0

    def board(self, *providers: ProviderSpec) -> Board:
        board = Board(lambda: self.now, lambda: UNIX + self.now - 1000 + self.skew)
        board.serve(providers or (provider(FIRST, SECOND),))
        return board

    def cooling(self, seconds: float, key: str = FIRST, model: str = "", reason: Any = "rate_limited") -> KeyReport:
        return KeyReport("openai", digest(key), "cooling", reason, model, self.now + seconds, at=UNIX + self.now - 1000)

    def suspect(self, strikes: int = 1, key: str = FIRST, ago: float = 0) -> KeyReport:
        until, at = self.now - ago + suspect_wait(strikes), UNIX + self.now - 1000 - ago
        return KeyReport("openai", digest(key), "suspect", "refused", until=until, strikes=strikes, at=at)

    def recovered(self, key: str = FIRST) -> KeyReport:
        return KeyReport("openai", digest(key), "usable", "recovered", until=self.now, at=UNIX + self.now - 1000)

    def open(self, seconds: float, model: str = "m", name: str = "openai") -> BreakerReport:
        return BreakerReport(name, "/v1/responses", model, "open", self.now + seconds, UNIX + self.now - 1000)

    def closed(self, model: str = "m") -> BreakerReport:
        return BreakerReport("openai", "/v1/responses", model, "closed", self.now, UNIX + self.now - 1000)


def brief(key: KeyHealth) -> tuple[str, str, str, int]:
    return key.state, key.reason, key.model, key.until


def samples(board: Board) -> dict[tuple[str, ...], float]:
    families = HealthMetrics().families(board.key_health(), board.breaker_health())
    return {sample.labels: sample.value for family in families for sample in family.samples}


def test_every_key_of_an_enabled_provider_is_shown_in_the_order_of_failover() -> None:
    off = provider("sk-of-a-disabled-one-0", name="off", enabled=False)
    board = Times().board(provider(SECOND, FIRST), off, provider("sk-x", name="bad", error="unreadable"))
    shown = [(key.provider, key.key_id, key.hint, key.state) for key in board.key_health()]
    assert shown == [
        ("openai", f"id-of-{SECOND[-10:]}", "sk-s...6789", "usable"),
        ("openai", f"id-of-{FIRST[-10:]}", "sk-f...6789", "usable"),
    ]


def test_a_cooling_key_is_not_shown_as_cooling_after_its_time() -> None:
    times = Times()
    board = times.board()
    assert board.take(times.cooling(60, model="gpt-5"))
    first, second = board.key_health()
    assert brief(first) == ("cooling", "rate_limited", "gpt-5", UNIX + 60)
    assert (first.since, brief(second)) == (UNIX, ("usable", "", "", 0))
    changes = board.changes()
    times.now += 59.9
    assert board.changes() == changes
    times.now += 0.1
    assert board.changes() != changes
    (first, _) = board.key_health()
    assert brief(first) == ("usable", "recovered", "", 0)
    assert (first.since, first.cooling) == (UNIX + 60, ())
    assert first.timeline == (Transition(UNIX, "cooling", "rate_limited", "gpt-5", UNIX + 60, 0),)
    assert board.reports() == []


def test_of_two_reports_the_later_deadline_holds_and_an_older_one_is_no_news() -> None:
    times = Times()
    board = times.board()
    assert board.take(times.cooling(60))
    assert not board.take(times.cooling(60))
    assert not board.take(times.cooling(30))
    times.now += 5
    assert board.take(times.cooling(70))
    (first, _) = board.key_health()
    assert (first.since, first.until) == (UNIX, UNIX + 75)
    assert [(one.at, one.until) for one in first.timeline] == [(UNIX, UNIX + 75)], "it went on; nothing new began"
    assert not board.take(times.cooling(0)), "over when it came"


def test_a_key_that_cools_for_several_models_shows_the_longest_and_all_of_them() -> None:
    times = Times()
    board = times.board()
    board.take(times.cooling(60, model="a"))
    board.take(times.cooling(90, model="b"))
    (first, _) = board.key_health()
    assert brief(first) == ("cooling", "rate_limited", "b", UNIX + 90)
    board.take(times.cooling(30, reason="quota"))
    (first, _) = board.key_health()
    assert brief(first) == ("cooling", "quota", "", UNIX + 30), "the whole key"
    assert first.cooling == (
        Cooling("a", "rate_limited", UNIX + 60),
        Cooling("b", "rate_limited", UNIX + 90),
        Cooling("", "quota", UNIX + 30),
    )
    times.now += 60
    (first, _) = board.key_health()
    assert brief(first) == ("cooling", "rate_limited", "b", UNIX + 90)


def test_a_suspect_key_stays_one_past_its_deadline_until_it_recovers() -> None:
    times = Times()
    board = times.board()
    board.take(times.suspect())
    times.now += 3600
    (first, _) = board.key_health()
    assert brief(first) == ("suspect", "refused", "", UNIX + 60)
    assert board.take(times.suspect(2))
    (first, _) = board.key_health()
    assert (first.since, first.until, first.strikes) == (UNIX, UNIX + 3720, 2)
    times.now += 120
    assert board.take(times.recovered())
    assert not board.take(times.recovered())
    (first, _) = board.key_health()
    assert (brief(first), first.since) == (("usable", "recovered", "", 0), UNIX + 3720)
    assert [(one.state, one.strikes) for one in first.timeline] == [("suspect", 1), ("suspect", 2), ("usable", 0)]


def test_of_a_refusal_and_a_recovery_the_younger_holds_in_whatever_order_they_come() -> None:
    times = Times()
    board = times.board()
    refused = times.suspect()
    times.now += 61
    recovered = times.recovered()
    assert board.take(recovered), "another worker may hold it suspect"
    assert not board.take(refused)
    assert board.key_health()[0].state == "usable"
    times.now += 5
    assert board.take(times.suspect())
    assert not board.take(recovered)
    assert board.key_health()[0].state == "suspect"
    older = KeyReport("openai", digest(FIRST), "usable", "recovered", until=times.now - 1)
    assert board.take(older), "younger than the recovery before"
    assert board.key_health()[0].state == "suspect"
    times.now += 1
    assert board.take(KeyReport("openai", digest(FIRST), "usable", "recovered")), "without a time: now"
    assert board.key_health()[0].state == "usable"


def test_of_an_opening_and_a_closing_the_younger_holds_in_whatever_order_they_come() -> None:
    times = Times()
    board = times.board()
    opened = times.open(30)
    times.now += 31
    assert board.take(times.closed())
    assert board.take(opened), "who holds it open is answered by what is told of the closing"
    assert board.breaker_health()[0].state == "closed"
    assert board.reports() == [times.closed()]
    times.now += 1
    assert board.take(times.open(30))
    assert [one.state for one in board.reports()] == ["open"]


def test_a_worker_that_comes_is_told_what_holds_and_who_missed_something_what_has_recovered() -> None:
    times = Times()
    board = times.board()
    cooling, suspect, opened = times.cooling(90, SECOND, "a"), times.suspect(key=SECOND), times.open(30)
    for report in (cooling, suspect, opened, times.suspect(), times.open(30, "n")):
        assert board.take(report)
    times.now += 60
    recovered, closed = times.recovered(), times.closed("n")
    assert board.take(recovered)
    assert board.take(closed)
    told = board.reports()
    assert sorted(map(repr, told)) == sorted(map(repr, (suspect, cooling, opened, recovered, closed)))


def test_what_is_known_of_a_key_outlives_its_id_and_ends_with_the_key() -> None:
    times = Times()
    board = times.board()
    board.take(times.suspect())
    board.take(times.suspect(key=SECOND))
    board.serve((provider(FIRST, keys=(ProviderKey("entered-anew", Secret(FIRST)),)),))
    (key,) = board.key_health()
    assert (key.key_id, key.state) == ("entered-anew", "suspect")
    assert len(board.reports()) == 1
    assert not board.take(times.suspect(key=SECOND)), "of a key that is gone"
    board.serve((provider(FIRST, enabled=False),))
    assert (board.key_health(), board.reports()) == ([], [])
    board.serve((provider(FIRST),))
    assert [key.state for key in board.key_health()] == ["usable"]


def test_breakers_of_providers_that_are_gone_are_forgotten() -> None:
    times = Times()
    board = times.board()
    board.take(times.open(30))
    assert not board.take(times.open(30, name="other"))
    board.serve((provider(FIRST, name="other"),))
    assert board.breaker_health() == []


def test_before_there_is_a_snapshot_what_workers_say_is_kept_for_it() -> None:
    times = Times()
    board = Board(lambda: times.now, lambda: UNIX)
    assert board.take(times.suspect())
    assert board.take(times.suspect(key="of no provider"))
    assert board.take(times.open(30))
    assert board.key_health() == []
    board.serve((provider(FIRST),))
    assert [key.state for key in board.key_health()] == ["suspect"]
    assert len(board.reports()) == 2


def test_an_open_breaker_is_half_open_after_its_time_and_closed_when_it_is_told() -> None:
    times = Times()
    board = times.board()
    assert board.take(times.open(30))
    assert not board.take(times.open(20))
    assert not board.take(BreakerReport("openai", "/v1/responses", "m", "half_open")), "follows from the deadline"
    (one,) = board.breaker_health()
    assert (one.state, one.since, one.until) == ("open", UNIX, UNIX + 30)
    times.now += 30
    (one,) = board.breaker_health()
    assert (one.state, one.since, one.until) == ("half_open", UNIX + 30, 0)
    assert not board.take(times.open(0))
    assert board.take(times.open(60))
    assert board.breaker_health()[0].state == "open"
    times.now += 1
    assert board.take(times.closed())
    (one,) = board.breaker_health()
    assert (one.state, one.since, one.until) == ("closed", UNIX + 31, 0)


def test_the_metrics_count_keys_by_state_and_level_the_breakers() -> None:
    times = Times()
    board = times.board(provider(FIRST, SECOND), provider("sk-third-key-0123456789", name="other"))
    board.take(times.cooling(60, model="a"))
    board.take(times.suspect(key=SECOND))
    for model in ("open", "half", "closed"):
        board.take(times.open(60 if model == "open" else 10, model))
    times.now += 10
    board.take(times.closed("closed"))
    assert samples(board) == {
        ("openai", "usable"): 0,
        ("openai", "cooling"): 1,
        ("openai", "suspect"): 1,
        ("other", "usable"): 1,
        ("other", "cooling"): 0,
        ("other", "suspect"): 0,
        ("openai", "/v1/responses", "open"): 1,
        ("openai", "/v1/responses", "half"): 0.5,
        ("openai", "/v1/responses", "closed"): 0,
    }


def test_all_of_it_is_bounded_whatever_clients_call_their_models() -> None:
    times = Times()
    board = times.board()
    for number in range(health.MAX_BREAKERS + 50):
        board.take(times.open(60, f"m{number}"))
    for number in range(100):
        board.take(times.cooling(60 + number, model=f"m{number}"))
    assert not board.take(times.cooling(60, model="m" * 10_000))
    assert asks(board, 0, BreakerSubject("openai", "/v1/responses", "m" * 10_000))
    assert len(board.breaker_health()) == health.MAX_BREAKERS
    (first, _) = board.key_health()
    assert len(first.timeline) == health_records.TIMELINE
    assert [one.model for one in first.cooling] == [f"m{number}" for number in range(68, 100)]
    labels = [labels for labels in samples(board) if len(labels) == 3]
    assert len(labels) == health_metrics.MAX_MODEL_LABELS + 1
    assert ("openai", "/v1/responses", "other") in labels
    board.take(times.closed("m1049"))
    board.take(times.open(60, "one more"))
    assert "m1049" not in [one.model for one in board.breaker_health()], "one that is closed goes first"
    nowhere = Board(lambda: times.now, lambda: UNIX)
    assert sum(nowhere.take(times.suspect(key=str(number))) for number in range(2000)) == health.MAX_UNPLACED


def test_a_wall_clock_that_jumps_moves_no_deadline_and_nothing_that_is_shown() -> None:
    times = Times()
    board = times.board()
    board.take(times.cooling(60))
    changes, shown = board.changes(), board.key_health()
    times.skew = -86_400
    assert (board.changes(), board.key_health()) == (changes, shown)
    times.now += 59
    assert board.key_health()[0].state == "cooling"
    times.now += 1
    assert board.key_health()[0].state == "usable"


def test_nothing_that_is_shown_holds_a_key_or_its_digest() -> None:
    times = Times()
    board = times.board()
    board.take(times.suspect())
    shown = repr((board.key_health(), board.breaker_health(), samples(board)))
    assert FIRST not in shown
    assert repr(digest(FIRST)) not in shown


SUSPECT = KeySubject("openai", digest(FIRST))
BREAKER = BreakerSubject("openai", "/v1/responses", "m")


def asks(board: Board, worker: int, subject: TrialSubject, limit: int = 1) -> bool:
    return board.ask(worker, AskTrial(1, subject, limit))


def test_one_request_of_the_machine_tries_a_suspect_key_and_not_before_its_time() -> None:
    times = Times()
    board = times.board()
    board.take(times.suspect())
    times.now += 59
    assert not asks(board, 0, SUSPECT)
    times.now += 1
    assert asks(board, 0, SUSPECT)
    assert not asks(board, 1, SUSPECT)
    assert board.ended(0, TrialEnded(SUSPECT, "unknown")) is None
    assert asks(board, 1, SUSPECT)
    assert not asks(board, 0, SUSPECT)
    board.take(times.suspect(2))
    assert not asks(board, 0, SUSPECT), "it failed elsewhere meanwhile"
    times.now += 120
    assert asks(board, 0, SUSPECT)
    board.gone(0)
    assert asks(board, 1, SUSPECT)


def test_a_breaker_closes_for_all_when_as_many_trials_have_passed_as_it_takes() -> None:
    times = Times()
    board = times.board()
    board.take(times.open(30))
    assert not asks(board, 0, BREAKER, 2)
    times.now += 30
    assert [asks(board, worker, BREAKER, 2) for worker in (0, 1, 0)] == [True, True, False]
    assert board.ended(0, TrialEnded(BREAKER, "passed")) is None
    assert board.breaker_health()[0].state == "half_open"
    assert not asks(board, 0, BREAKER, 2), "two in all"
    told = board.ended(1, TrialEnded(BREAKER, "passed"))
    assert told == BreakerReport("openai", "/v1/responses", "m", "closed", times.now, UNIX + 30)
    assert board.breaker_health()[0].state == "closed"


def test_a_trial_that_fails_opens_the_breaker_for_all_until_its_deadline() -> None:
    times = Times()
    board = times.board()
    board.take(times.open(30))
    times.now += 30
    assert [asks(board, worker, BREAKER, 2) for worker in (0, 1)] == [True, True]
    told = board.ended(0, TrialEnded(BREAKER, "failed", times.now + 30))
    assert told == BreakerReport("openai", "/v1/responses", "m", "open", times.now + 30, at=UNIX + 30)
    (one,) = board.breaker_health()
    assert (one.state, one.until) == ("open", UNIX + 60)
    assert board.ended(1, TrialEnded(BREAKER, "passed")) is None, "its round is over"
    assert not asks(board, 1, BREAKER, 2)


_moves = st.lists(
    st.tuples(
        st.sampled_from(["cooling", "suspect", "usable", "wait"]),
        st.sampled_from([FIRST, SECOND]),
        st.sampled_from(["", "a", "b"]),
        st.integers(0, 90),
    ),
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(_moves)
def test_what_a_board_tells_makes_another_board_show_the_same(moves: list[tuple[str, str, str, int]]) -> None:
    """A worker that hears only the news, and one that hears only `reports` at the end, know what the board knows."""
    times = Times()
    board, follower, late = times.board(), times.board(), times.board()
    for move, key, model, seconds in moves:
        if move == "wait":
            times.now += seconds
            continue
        report = {
            "cooling": times.cooling(seconds, key, model),
            "suspect": times.suspect(1 + seconds % 4, key),
            "usable": times.recovered(key),
        }[move]
        if board.take(report):
            follower.take(report)
    for report in board.reports():
        late.take(report)
    shown = [(brief(key), sorted(key.cooling)) for key in board.key_health()]
    assert [(brief(key), sorted(key.cooling)) for key in follower.key_health()] == shown
    for (state, _, *rest), (expected, _, *others) in zip(
        [brief(key) for key in late.key_health()], [one for one, _ in shown], strict=True
    ):
        assert (state, rest) == (expected, others)
    assert all(key.state != "cooling" or key.until > UNIX + times.now - 1000 for key in board.key_health())
