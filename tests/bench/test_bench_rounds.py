"""What rounds are summed up to."""

import os

import pytest

from bench import machine, rounds
from bench.rounds import Comparison, RoundError, Sample, interleaved, latency, spread, summed_up
from bench.targets import Target, provider_routes
from bench.works import CALLS


def sample(per_second: float, cpu_us: float, link: float = 0.0) -> Sample:
    return Sample(per_second, cpu_us, 1.0, 2.0, {"link": link}, 0.9)


def target(name: str) -> Target:
    return Target(name, 1, provider_routes(), ())


def test_the_middle_round_counts_and_not_the_mean() -> None:
    result = summed_up([sample(100, 10, 1), sample(900, 12, 2), sample(110, 90, 9)])

    assert (result.per_second, result.cpu_us, result.around_us) == (110, 12, {"link": 2})
    assert result.cpu_us_of_rounds == (10, 12, 90)


def test_spread_is_the_range_by_the_median() -> None:
    assert summed_up([sample(1, 8), sample(1, 10), sample(1, 13)]).spread == pytest.approx(0.5)


def test_targets_take_turns_and_the_first_round_does_not_count() -> None:
    asked: list[str] = []

    def measure(one: Target) -> Sample:
        asked.append(one.name)
        return sample(1, 1000.0 if len(asked) <= 2 else 10.0)

    result = interleaved([target("a"), target("b")], 2, measure, lambda _line: None)

    assert asked == ["a", "b"] * 3
    assert {name: one.cpu_us_of_rounds for name, one in result.items()} == {"a": (10.0, 10.0), "b": (10.0, 10.0)}


def test_the_lower_quartile_is_what_it_costs_while_little_disturbs() -> None:
    alone_or_not = [41.0, 66.0, 42.0, 70.0, 68.0, 43.0, 69.0, 67.0]

    assert summed_up([sample(1, cpu) for cpu in alone_or_not]).quiet_us == pytest.approx(42.75)
    assert summed_up([sample(1, 41.0)]).quiet_us == 41.0


def test_works_take_turns_too_and_one_that_fails_leaves_the_others() -> None:
    asked: list[str] = []

    def measure(one: Target) -> Sample:
        asked.append(one.name)
        if one.name == "c" and asked.count("c") == 2:
            raise RoundError("c broke")
        return sample(1, 10.0)

    works = [Comparison("first", [target("a"), target("b")], measure), Comparison("second", [target("c")], measure)]
    results, failed = spread(works, 3, lambda _line: None)

    assert asked == ["a", "b", "c"] * 2 + ["a", "b"] * 2
    assert failed == {"second": "c broke"}
    assert {name: one.cpu_us_of_rounds for name, one in results["first"].items()} == {
        "a": (10.0,) * 3,
        "b": (10.0,) * 3,
    }
    assert list(results) == ["first"]


def test_a_core_that_others_use_too_is_told_by_its_loop() -> None:
    assert machine.Neighbours([7.1, 7.3, 13.5, 7.2, 12.9]).share == pytest.approx(0.4)
    assert "40%" in machine.Neighbours([7.1, 7.3, 13.5, 7.2, 12.9]).warnings()[0]
    assert machine.Neighbours([7.1, 7.3, 8.0]).warnings() == []
    assert machine.Neighbours().warnings() == []


def test_a_look_at_a_core_leaves_this_process_where_it_was() -> None:
    home = os.sched_getaffinity(0)
    neighbours = machine.Neighbours()

    neighbours.look(frozenset((min(home),)))
    neighbours.look(frozenset())

    assert os.sched_getaffinity(0) == home
    assert len(neighbours.seconds) == 1


def test_added_latency_is_the_median_of_differences_within_a_round() -> None:
    quiet_then_noisy_baseline = [(0.1, 1.0, 0.0), (0.1, 1.0, 0.0), (5.0, 50.0, 0.0)]
    ours = [(0.3, 2.0, 80.0), (0.4, 1.5, 90.0), (5.1, 51.0, 85.0)]

    result = latency(ours, quiet_then_noisy_baseline)

    assert result.added_p50_ms == pytest.approx(0.2)
    assert result.added_p99_ms == pytest.approx(1.0)
    assert (result.p50_ms, result.p99_ms, result.cpu_us) == (0.4, 2.0, 85.0)


def test_quartiles_show_how_noisy_the_rounds_were() -> None:
    rounds_taken = [(0.1, float(p99), 1.0) for p99 in (1, 2, 3, 4, 5)]

    result = latency(rounds_taken, rounds_taken)

    assert (result.p99_low_ms, result.p99_ms, result.p99_high_ms) == (2.0, 3.0, 4.0)
    assert (result.added_p50_ms, result.added_p99_ms) == (0.0, 0.0)


def test_one_round_is_its_own_quartiles() -> None:
    result = latency([(0.1, 7.0, 1.0)], [(0.1, 7.0, 1.0)])

    assert (result.p99_low_ms, result.p99_high_ms) == (7.0, 7.0)


@pytest.mark.parametrize("told", [{"errors": 1, "count": 10}, {"errors": 0, "count": 0}])
def test_a_round_with_an_error_or_without_an_answer_is_no_result(
    told: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    load = {"seconds": 1.0, "p50": 0.1, "p99": 0.2, "reasons": ["why"], **told}
    monkeypatch.setattr(rounds.children, "run_load", lambda _order, _pinned: load)

    with pytest.raises(RoundError, match="why"):
        rounds.closed_round(target("relay"), CALLS, 1.0, machine.cores())
