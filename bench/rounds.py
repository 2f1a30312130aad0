"""Rounds: the same work at each target in turn, again and again, and the medians.

Rules
- Targets alternate within a round, so that a noisy minute hits all of them.
- CPU is the kernel's accounting of the workers over the round, divided by the answers that came in it.
- An error in a round stops the benchmark: a relay that fails fast would look fast.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from . import children, machine
from .targets import Target
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
    """The medians of a target's samples."""

    per_second: float
    cpu_us: float
    p50_ms: float
    p99_ms: float
    around_us: dict[str, float]
    busy: float
    spread: float
    """(largest − smallest) ÷ median of the CPU an answer."""
    samples: int


def closed_round(target: Target, work: Work, seconds: float, cores: machine.Cores, **more: Any) -> Sample:
    return _sampled(target, target.order(work, "closed", seconds, polls=cores.pinned, **more), cores)


def rate_round(target: Target, work: Work, seconds: float, per_second: int, cores: machine.Cores) -> Sample:
    return _sampled(target, target.order(work, "rate", seconds, per_second=per_second), cores)


def interleaved(
    targets: Sequence[Target], count: int, measure: Callable[[Target], Sample], note: Callable[[str], None]
) -> dict[str, Result]:
    """`count` rounds over all targets, after one that does not count."""
    samples: dict[str, list[Sample]] = {target.name: [] for target in targets}
    for number in range(count + 1):
        for target in targets:
            sample = measure(target)
            if number:
                samples[target.name].append(sample)
                note(f"  {target.name:<22} {sample.per_second:>9,.0f}/s {sample.cpu_us:>8.1f} µs CPU")
    return {name: _medians(taken) for name, taken in samples.items()}


def _sampled(target: Target, order: dict[str, Any], cores: machine.Cores) -> Sample:
    before = {pid: machine.cpu_seconds(pid) for pid in target.workers}
    around = {name: machine.tree_cpu_seconds(pid) for name, pid in target.around.items()}
    told = children.run_load(order, cores.load)
    used = {pid: machine.cpu_seconds(pid) - before[pid] for pid in target.workers}
    if told["errors"] or not told["count"]:
        raise RoundError(f"{target.name}: {told['errors']} errors, {told['count']} answers: {told['reasons']}")
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


def _medians(samples: list[Sample]) -> Result:
    cpu = [sample.cpu_us for sample in samples]
    return Result(
        per_second=median(sample.per_second for sample in samples),
        cpu_us=median(cpu),
        p50_ms=median(sample.p50_ms for sample in samples),
        p99_ms=median(sample.p99_ms for sample in samples),
        around_us={name: median(sample.around_us[name] for sample in samples) for name in samples[0].around_us},
        busy=median(sample.busy for sample in samples),
        spread=(max(cpu) - min(cpu)) / median(cpu) if median(cpu) else 0.0,
        samples=len(samples),
    )
