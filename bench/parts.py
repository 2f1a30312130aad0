"""The parts of a run. Each measures one thing for every target that is there and adds to `Figures`."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from . import children, litellm, machine, ostiary, rounds, works
from .fake_upstream import Upstream
from .rounds import Result
from .targets import Target
from .works import Work

NGINX, OURS, DIRECT = "nginx", "Ostiary", "direct"
NGINX_TLS, OURS_TLS = "nginx, TLS upstream", "Ostiary, TLS upstream"
RATE = 500


@dataclass(frozen=True)
class Plan:
    """How much of everything."""

    rounds: int
    seconds: float
    latency_rounds: int
    latency_seconds: float
    live_streams: int
    ingest_seconds: float
    soak_short: int
    soak_long: int
    soak_seconds: float


FULL = Plan(5, 3.0, 5, 4.0, 1000, 5.0, 10_000, 1_000_000, 150.0)
QUICK = Plan(2, 1.0, 1, 3.0, 200, 2.0, 2_000, 20_000, 10.0)


@dataclass
class Figures:
    """Everything measured, by part; a part that could not run has its reason in `skipped`."""

    compared: dict[str, dict[str, Result]] = field(default_factory=dict)
    """Part → target → medians."""
    stream_bytes: dict[str, float] = field(default_factory=dict)
    """Target and upstream → memory of the worker a live stream."""
    ingest_per_second: float | None = None
    ingest_note: str = ""
    soak: tuple[int, int, int] | None = None
    """Worker's memory after the short run, after the long one, and the long one's count."""
    skipped: dict[str, str] = field(default_factory=dict)


@dataclass
class Bench:
    """What the parts work with."""

    plan: Plan
    cores: machine.Cores
    folder: Path
    upstream: Upstream
    nginx: tuple[Target, Target]
    server: ostiary.Server | None
    """None when Ostiary did not start."""
    figures: Figures = field(default_factory=Figures)

    def note(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    def pair(self, *, tls: bool = False) -> list[Target]:
        """nginx and Ostiary, before the plain or the TLS upstream."""
        found = [self.nginx[1 if tls else 0]]
        if self.server is not None:
            found.append(self.server.target(OURS_TLS if tls else OURS, tls=tls))
        return found


def _compare(bench: Bench, part: str, work: Work, targets: list[Target]) -> None:
    bench.figures.compared[part] = rounds.interleaved(
        targets,
        bench.plan.rounds,
        lambda target: rounds.closed_round(target, work, bench.plan.seconds, bench.cores),
        bench.note,
    )


def calls(bench: Bench) -> None:
    _compare(bench, "calls", works.CALLS, [bench.upstream.direct(), *bench.pair()])


def calls_40k(bench: Bench) -> None:
    _compare(bench, "calls-40k", works.CALLS_40K, [bench.upstream.direct(), *bench.pair()])


def stream(bench: Bench) -> None:
    _compare(bench, "stream", works.STREAM, [bench.upstream.direct(), *bench.pair()])


def tls(bench: Bench) -> None:
    _compare(bench, "tls", works.CALLS, bench.pair(tls=True))


def latency(bench: Bench) -> None:
    """At a fixed rate, far from saturation."""
    bench.figures.compared["latency"] = rounds.interleaved(
        [bench.upstream.direct(), *bench.pair()],
        bench.plan.latency_rounds,
        lambda target: rounds.rate_round(target, works.CALLS, bench.plan.latency_seconds, RATE, bench.cores),
        bench.note,
    )


def memory(bench: Bench) -> None:
    """What the worker grows by when so many paced streams are open, for each of them."""
    count = bench.plan.live_streams
    for over_tls in (False, True):
        for target in bench.pair(tls=over_tls):
            (worker,) = target.workers
            before = machine.memory_bytes(worker)
            order = target.order(works.LIVE, "live", 60.0, connections=count)
            with children.live_streams(order, bench.cores.load):
                grown = median(_sampled_memory(worker)) - before
            bench.figures.stream_bytes[target.name] = grown / count
            bench.note(f"  {target.name:<22} {grown / count / 1000:>9.1f} KB a stream")


def _sampled_memory(pid: int) -> list[int]:
    """A few samples while the events flow."""
    taken = []
    for _ in range(5):
        time.sleep(0.4)
        taken.append(machine.memory_bytes(pid))
    return taken


def two_workers(bench: Bench) -> None:
    """A server with one worker beside a server with two, each worker on a core of its own."""
    if bench.server is None:
        raise children.StartError("Ostiary did not start")
    around = bench.cores.load | bench.cores.upstream
    with (
        ostiary.ostiary(bench.folder, bench.upstream, bench.cores, name="one", home=around) as one,
        ostiary.ostiary(bench.folder, bench.upstream, bench.cores, name="two", workers=2, home=around) as two,
    ):
        _compare(bench, "workers", works.CALLS, [one.target("one worker"), two.target("two workers")])


def ingest(bench: Bench) -> None:
    """How fast records reach the database: the link is halted while a backlog grows in the journal, then let go."""
    if bench.server is None:
        raise children.StartError("Ostiary did not start")
    around = bench.cores.second | bench.cores.load | bench.cores.upstream
    with ostiary.ostiary(bench.folder, bench.upstream, bench.cores, name="ingest", home=around) as server:
        target = server.target(OURS)
        # The token is known before the link is halted: workers serve on with what they have.
        warmed = children.run_load(target.order(works.RECORDED, "closed", 0.5), bench.cores.load)
        server.wait_recorded(warmed["count"], 30.0)
        with server.link_halted():
            sent = children.run_load(
                target.order(works.RECORDED, "closed", bench.plan.ingest_seconds), bench.cores.load
            )
        started = time.monotonic()
        if sent["errors"]:
            raise rounds.RoundError(f"ingest: {sent['errors']} errors: {sent['reasons']}")
        stored = server.wait_recorded(warmed["count"] + sent["count"], 60.0) - warmed["count"]
        seconds = time.monotonic() - started
    bench.figures.ingest_per_second = stored / seconds
    bench.figures.ingest_note = f"{stored:,} interceptions out of the journal in {seconds:.1f} s"
    bench.note(f"  {bench.figures.ingest_per_second:,.0f} interceptions/s: {bench.figures.ingest_note}")
    if stored < sent["count"]:
        raise rounds.RoundError(f"ingest: {sent['count']:,} calls, {stored:,} of them recorded after a minute")


def soak(bench: Bench) -> None:
    """The worker's memory after a short run and after a long one."""
    if bench.server is None:
        raise children.StartError("Ostiary did not start")
    plan = bench.plan
    target = bench.server.target(OURS)
    (worker,) = target.workers
    sizes = []
    for count in (plan.soak_short, plan.soak_long):
        told = children.run_load(target.order(works.CALLS, "closed", plan.soak_seconds, count=count), bench.cores.load)
        if told["errors"]:
            raise rounds.RoundError(f"soak: {told['errors']} errors: {told['reasons']}")
        sizes.append(machine.memory_bytes(worker))
        bench.note(f"  {told['count']:>9,} calls: {sizes[-1] / 1e6:.1f} MB")
    bench.figures.soak = (sizes[0], sizes[1], told["count"])


def beside_litellm(bench: Bench) -> None:
    if not litellm.wanted():
        raise litellm.UnavailableError("only with BENCH_LITELLM=1")
    with litellm.litellm(bench.folder, bench.upstream, bench.cores) as target:
        # It is slow enough that each round needs a few seconds to count anything.
        bench.figures.compared["litellm"] = rounds.interleaved(
            [target, *bench.pair()[1:]],
            2,
            lambda one: rounds.closed_round(one, works.CALLS, max(bench.plan.seconds, 3.0), bench.cores),
            bench.note,
        )


PARTS: dict[str, tuple[str, Callable[[Bench], None]]] = {
    "calls": (works.CALLS.title, calls),
    "calls-40k": (works.CALLS_40K.title, calls_40k),
    "stream": (works.STREAM.title, stream),
    "tls": ("the same calls, TLS to the upstream", tls),
    "latency": (f"{RATE} calls/s", latency),
    "memory": ("live streams", memory),
    "workers": ("two workers beside one", two_workers),
    "ingest": ("records into the database", ingest),
    "soak": ("memory over many calls", soak),
    "litellm": ("LiteLLM, the same calls", beside_litellm),
}
