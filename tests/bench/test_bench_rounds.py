"""What rounds are summed up to."""

import pytest

from bench import machine, rounds
from bench.rounds import RoundError, Sample, interleaved, latency, medians
from bench.targets import Target, provider_routes
from bench.works import CALLS


def sample(per_second: float, cpu_us: float, link: float = 0.0) -> Sample:
    return Sample(per_second, cpu_us, 1.0, 2.0, {"link": link}, 0.9)


def target(name: str) -> Target:
    return Target(name, 1, provider_routes(), ())


def test_the_middle_round_counts_and_not_the_mean() -> None:
    result = medians([sample(100, 10, 1), sample(900, 12, 2), sample(110, 90, 9)])

    assert (result.per_second, result.cpu_us, result.around_us) == (110, 12, {"link": 2})
    assert result.cpu_us_of_rounds == (10, 12, 90)


def test_spread_is_the_range_by_the_median() -> None:
    assert medians([sample(1, 8), sample(1, 10), sample(1, 13)]).spread == pytest.approx(0.5)


def test_targets_take_turns_and_the_first_round_does_not_count() -> None:
    asked: list[str] = []

    def measure(one: Target) -> Sample:
        asked.append(one.name)
        return sample(1, 1000.0 if len(asked) <= 2 else 10.0)

    result = interleaved([target("a"), target("b")], 2, measure, lambda _line: None)

    assert asked == ["a", "b"] * 3
    assert {name: one.cpu_us_of_rounds for name, one in result.items()} == {"a": (10.0, 10.0), "b": (10.0, 10.0)}


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
