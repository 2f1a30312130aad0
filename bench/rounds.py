"""Rounds: the same work at each target in turn, again and again, and the medians.

Rules
- Targets alternate within a round, so that a noisy minute hits all of them; and where several works are compared, each has one
  round in every pass, so that their rounds are spread over all the time there is.
- Of a target's rounds the median counts. The lower quartile stands beside it, for whoever shares the real core with a virtual
  one, or its caches, only ever makes the same instructions take longer.
- CPU is the kernel's accounting of the workers over the round, divided by the answers that came in it. Of what stands around
  them it is taken when all that the round has left to do is done, before the next target has its turn.
- Memory is at hand when a round begins (`machine.have_memory_at_hand`).
- The core beside the worker's is busy in every round: with what stands around the worker, where nothing does with a loop. Two
  cores of a virtual machine are now and then two threads of one real core, and then each costs the other speed.
- Latency is taken from all targets in the same seconds, a call at each in turn, and what is added over the first of them
  is a difference within a round: what disturbs one disturbs all.
- An error in a round stops the benchmark: a relay that fails fast would look fast.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any

from . import children, machine
from .targets import Target, UnsettledError
from .works import Work


class RoundError(Exception):
    """A round whose answers were not all good."""


@dataclass(frozen=True)
class Sample:
    """One target in one round."""

    per_second: float
    cpu_us: float
    """CPU of the workers an answer, in microseconds."""
    p50_ms: float
    p99_ms: float
    around_us: dict[str, float]
    """CPU an answer of what stands around the workers."""
    busy: float
    """Share of one core that the busiest worker used: 1.0 is saturated."""


@dataclass(frozen=True)
class Result:
    """The medians of a target's samples, but for `quiet_us`."""

    per_second: float
    cpu_us: float
    quiet_us: float
    """Lower quartile of the rounds' CPU an answer: what it costs while others disturb little."""
    p50_ms: float
    p99_ms: float
    around_us: dict[str, float]
    busy: float
    cpu_us_of_rounds: tuple[float, ...]

    @property
    def spread(self) -> float:
        """(largest − smallest) ÷ median of the CPU an answer."""
        return (max(self.cpu_us_of_rounds) - min(self.cpu_us_of_rounds)) / self.cpu_us if self.cpu_us else 0.0


@dataclass(frozen=True)
class Latency:
    """A target at a fixed rate, in milliseconds: medians of its rounds' percentiles."""

    p50_ms: float
    p99_ms: float
    p99_low_ms: float
    """The quartiles of the rounds' 99th percentiles: how far they lie apart is how noisy the machine was."""
    p99_high_ms: float
    added_p50_ms: float
    """Over the baseline of the same round; of the baseline itself 0."""
    added_p99_ms: float
    cpu_us: float
    samples: int


def closed_round(target: Target, work: Work, seconds: float, cores: machine.Cores, **more: Any) -> Sample:
    return _sampled(target, target.order(work, "closed", seconds, polls=cores.pinned, **more), cores)


def settle(target: Target) -> None:
    """Wait until what a round has left to what stands around the target is done. Raises `RoundError`."""
    if target.settle is None:
        return
    try:
        target.settle()
    except UnsettledError as exc:
        raise RoundError(f"{target.name}: {exc}") from exc


@dataclass(frozen=True)
class Comparison:
    """One work at several targets. `during`: what has to be so in each of its rounds."""

    name: str
    targets: Sequence[Target]
    measure: Callable[[Target], Sample]
    during: Callable[[], AbstractContextManager[None]] = nullcontext


def spread(
    comparisons: Sequence[Comparison], count: int, note: Callable[[str], None]
) -> tuple[dict[str, dict[str, Result]], dict[str, str]]:
    """`count` passes of a round of each comparison, after a pass that does not count.

    Gives the results by comparison and target, and by comparison why one could not be measured to its end.
    """
    samples = {one.name: {target.name: list[Sample]() for target in one.targets} for one in comparisons}
    failed: dict[str, str] = {}
    for number in range(count + 1):
        for one in comparisons:
            if one.name in failed:
                continue
            try:
                with one.during():
                    taken = {target.name: one.measure(target) for target in one.targets}
            except RoundError as exc:
                failed[one.name] = str(exc)
                note(f"  {one.name} is skipped: {exc}")
                continue
            if number:
                for name, sample in taken.items():
                    samples[one.name][name].append(sample)
                told = ", ".join(f"{name} {sample.cpu_us:.1f} µs" for name, sample in taken.items())
                note(f"  {number:>2}/{count} {one.name}: {told}")
    results = {
        name: {target: summed_up(taken) for target, taken in by_target.items()}
        for name, by_target in samples.items()
        if name not in failed
    }
    return results, failed


def interleaved(
    targets: Sequence[Target], count: int, measure: Callable[[Target], Sample], note: Callable[[str], None]
) -> dict[str, Result]:
    """`count` rounds over all targets, after one that does not count. Raises `RoundError`."""
    results, failed = spread([Comparison("CPU", targets, measure)], count, note)
    for why in failed.values():
        raise RoundError(why)
    return results["CPU"]


def in_turns(
    targets: Sequence[Target],
    work: Work,
    count: int,
    seconds: float,
    per_second: int,
    cores: machine.Cores,
    note: Callable[[str], None],
) -> dict[str, Latency]:
    """`count` rounds of `per_second` calls at each target, after one that does not count. The first is the baseline."""
    taken: list[list[tuple[float, float, float]]] = []
    for number in range(count + 1):
        measured = _turns_round(targets, work, seconds, per_second, cores)
        if number:
            taken.append(measured)
    result = {}
    for at, target in enumerate(targets):
        result[target.name] = one = latency([measured[at] for measured in taken], [measured[0] for measured in taken])
        note(
            f"  {target.name:<22} p50 {one.p50_ms:.2f} ms, p99 {one.p99_ms:.2f} ms "
            f"({one.p99_low_ms:.2f} to {one.p99_high_ms:.2f})"
        )
    return result


def latency(rounds: list[tuple[float, float, float]], baseline: list[tuple[float, float, float]]) -> Latency:
    """Of p50 and p99 in ms and CPU in µs, round by round, beside those of the baseline in the same rounds."""
    p99 = [one[1] for one in rounds]
    low, high = quartiles(p99)
    pairs = list(zip(rounds, baseline, strict=True))
    return Latency(
        p50_ms=median(one[0] for one in rounds),
        p99_ms=median(p99),
        p99_low_ms=low,
        p99_high_ms=high,
        added_p50_ms=median(one[0] - base[0] for one, base in pairs),
        added_p99_ms=median(one[1] - base[1] for one, base in pairs),
        cpu_us=median(one[2] for one in rounds),
        samples=len(rounds),
    )


def _turns_round(
    targets: Sequence[Target], work: Work, seconds: float, per_second: int, cores: machine.Cores
) -> list[tuple[float, float, float]]:
    order = {
        "mode": "turns",
        "targets": [target.order(work, "turns", seconds) for target in targets],
        "seconds": seconds,
        "per_second": per_second,
        "polls": cores.pinned,
    }
    machine.have_memory_at_hand()
    before = [_cpu(target) for target in targets]
    told = children.run_load(order, cores.load)["targets"]
    used = [_cpu(target) - at_first for target, at_first in zip(targets, before, strict=True)]
    for target, one in zip(targets, told, strict=True):
        _check(target, one)
    return [(one["p50"] * 1e3, one["p99"] * 1e3, cpu / one["count"] * 1e6) for one, cpu in zip(told, used, strict=True)]


def _cpu(target: Target) -> float:
    return sum(machine.cpu_seconds(pid) for pid in target.workers)


def _check(target: Target, told: dict[str, Any]) -> None:
    if told["errors"] or not told["count"]:
        raise RoundError(f"{target.name}: {told['errors']} errors, {told['count']} answers: {told['reasons']}")


def _sampled(target: Target, order: dict[str, Any], cores: machine.Cores) -> Sample:
    machine.have_memory_at_hand()
    before = {pid: machine.cpu_seconds(pid) for pid in target.workers}
    around = {name: machine.tree_cpu_seconds(pid) for name, pid in target.around.items()}
    alone = cores.pinned and not target.around
    with children.busy(cores.second) if alone else nullcontext():
        told = children.run_load(order, cores.load)
    used = {pid: machine.cpu_seconds(pid) - before[pid] for pid in target.workers}
    _check(target, told)
    settle(target)
    count = told["count"]
    return Sample(
        per_second=told.get("counted", count) / told["seconds"],
        cpu_us=sum(used.values()) / count * 1e6,
        p50_ms=told["p50"] * 1e3,
        p99_ms=told["p99"] * 1e3,
        around_us={
            name: (machine.tree_cpu_seconds(target.around[name]) - seconds) / count * 1e6
            for name, seconds in around.items()
        },
        busy=max(used.values(), default=0.0) / told["seconds"],
    )


def summed_up(samples: list[Sample]) -> Result:
    cpu = [sample.cpu_us for sample in samples]
    return Result(
        per_second=median(sample.per_second for sample in samples),
        cpu_us=median(cpu),
        quiet_us=quartiles(cpu)[0],
        p50_ms=median(sample.p50_ms for sample in samples),
        p99_ms=median(sample.p99_ms for sample in samples),
        around_us={name: median(sample.around_us[name] for sample in samples) for name in samples[0].around_us},
        busy=median(sample.busy for sample in samples),
        cpu_us_of_rounds=tuple(cpu),
    )


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """The lower and the upper one; of a single value both are that."""
    if len(values) == 1:
        return values[0], values[0]
    low, _, high = quantiles(values, n=4, method="inclusive")
    return low, high
