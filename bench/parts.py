"""The parts of the main run. Each measures one thing for every target that is there and adds to `Figures`."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

from . import build, children, fake_upstream, machine, nginx, ostiary, rounds, works
from .fake_upstream import Upstream
from .litellm import litellm
from .portkey import portkey
from .rounds import Comparison, Latency, Result
from .targets import Target, UnavailableError
from .works import Work

NGINX, OURS, DIRECT = "nginx", "Ostiary", "direct"
NGINX_TLS, OURS_TLS = "nginx, TLS upstream", "Ostiary, TLS upstream"
NGINX_LARGE = "nginx, 64 KB buffer"
RATE = 500
_BACKLOG_MAX = 80_000
"""Interceptions to be stored at once; the server counts to 100,000."""
_WARM_SECONDS = 5.0
"""What LiteLLM and Portkey are given before anything counts: their first calls are slower."""


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


FULL = Plan(15, 1.0, 15, 2.0, 1000, 5.0, 10_000, 1_000_000, 150.0)
QUICK = Plan(2, 1.0, 3, 1.0, 200, 2.0, 2_000, 20_000, 10.0)
SHORT = Plan(4, 1.0, 7, 2.0, 500, 3.0, 2_000, 20_000, 10.0)
"""For parts that are run again under other conditions."""

GATEWAYS: dict[str, Callable[[Path, Upstream, machine.Cores], AbstractContextManager[Target]]] = {
    "litellm": litellm,
    "portkey": portkey,
}
"""What users would pick instead; each takes part when it is asked for."""


@dataclass
class Figures:
    """Everything measured, by part; a part that could not run has its reason in `skipped`."""

    compared: dict[str, dict[str, Result]] = field(default_factory=dict)
    """Part → target → medians."""
    neighbours: machine.Neighbours = field(default_factory=machine.Neighbours)
    latency: dict[str, Latency] = field(default_factory=dict)
    gateways: dict[str, dict[str, Result]] = field(default_factory=dict)
    """Work → target → medians, of all relays in the same rounds."""
    builds: dict[str, dict[str, Result]] = field(default_factory=dict)
    """Work → kind of build → medians."""
    stream_bytes: dict[str, float] = field(default_factory=dict)
    """Target and upstream → memory of the worker a live stream."""
    ingest_per_second: float | None = None
    ingest_note: str = ""
    soak: tuple[int, int, int] | None = None
    """Worker's memory after the short run, after the long one, and the long one's count."""
    skipped: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    """What nobody has to have, and why it is not there."""


@dataclass
class Bench:
    """What the parts work with."""

    plan: Plan
    cores: machine.Cores
    folder: Path
    upstream: Upstream
    nginx: nginx.Relays
    measured: build.Build
    server: ostiary.Server | None
    """None when Ostiary did not start."""
    gateways: tuple[str, ...] = ()
    """Which of `GATEWAYS` were asked for."""
    figures: Figures = field(default_factory=Figures)

    def note(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    def another(
        self,
        *,
        name: str,
        measured: build.Build | None = None,
        workers: int = 1,
        home: frozenset[int] | None = None,
        providers: int = 0,
    ) -> AbstractContextManager[ostiary.Server]:
        """One more Ostiary beside the first one; of the same build unless it is named."""
        return ostiary.ostiary(
            self.folder,
            self.upstream,
            self.cores,
            measured or self.measured,
            name=name,
            workers=workers,
            home=home,
            providers=providers,
        )

    def pair(self, *, tls: bool = False) -> list[Target]:
        """nginx and Ostiary, before the plain or the TLS upstream."""
        found = [self.nginx.tls if tls else self.nginx.plain]
        if self.server is not None:
            found.append(self.server.target(OURS_TLS if tls else OURS, tls=tls))
        return found


@contextmanager
def prepared(
    folder: Path, plan: Plan, measured: build.Build, *, gateways: tuple[str, ...] = (), server: bool = True
) -> Iterator[Bench]:
    """Upstream, nginx and Ostiary, up. A `server` that does not start leaves the others; its reason is in `skipped`."""
    cores = machine.cores()
    with ExitStack() as stack:
        upstream = stack.enter_context(fake_upstream.upstream(folder, cores))
        relays = stack.enter_context(nginx.nginx(folder, upstream, cores))
        bench = Bench(plan, cores, folder, upstream, relays, measured, None, gateways)
        if server:
            try:
                bench.server = stack.enter_context(ostiary.ostiary(folder, upstream, cores, measured))
            except children.StartError as exc:
                bench.note(f"Ostiary did not start, nginx and direct only: {exc}")
                bench.figures.skipped["Ostiary"] = "it did not start"
        yield bench


def calls(bench: Bench) -> Comparison:
    return _comparison(bench, "calls", works.CALLS, [bench.upstream.direct(), *bench.pair()])


def calls_40k(bench: Bench) -> Comparison:
    return _comparison(bench, "calls-40k", works.CALLS_40K, [bench.upstream.direct(), *bench.pair()])


def stream(bench: Bench) -> Comparison:
    return _comparison(bench, "stream", works.STREAM, [bench.upstream.direct(), bench.nginx.large, *bench.pair()])


def tls(bench: Bench) -> Comparison:
    return _comparison(bench, "tls", works.CALLS, bench.pair(tls=True), bench.upstream.over_tls)


def _comparison(
    bench: Bench,
    name: str,
    work: Work,
    targets: list[Target],
    during: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Comparison:
    def measure(target: Target) -> rounds.Sample:
        bench.figures.neighbours.look(bench.cores.under_test)
        return rounds.closed_round(target, work, bench.plan.seconds, bench.cores)

    return Comparison(name, targets, measure, during)


def latency(bench: Bench) -> None:
    """At a fixed rate, far from saturation; all in the same seconds."""
    plan = bench.plan
    bench.figures.latency = rounds.in_turns(
        [bench.upstream.direct(), *bench.pair()],
        works.CALLS,
        plan.latency_rounds,
        plan.latency_seconds,
        RATE,
        bench.cores,
        bench.note,
    )


def memory(bench: Bench) -> None:
    """What a worker that has had few streams before grows by when so many paced ones are open, for each of them."""
    _memory_of(bench, bench.nginx.plain)
    with bench.another(name="memory") as server:
        _memory_of(bench, server.target(OURS))
    with bench.upstream.over_tls(), bench.another(name="memory-tls") as server:
        _memory_of(bench, bench.nginx.tls)
        _memory_of(bench, server.target(OURS_TLS, tls=True))


def _memory_of(bench: Bench, target: Target) -> None:
    count = bench.plan.live_streams
    (worker,) = target.workers
    rounds.closed_round(target, works.STREAM, 0.3, bench.cores)  # what the first stream makes once is no stream's
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
    """A server with one worker beside a server with two, each worker on a core of its own and all of them kept busy.

    Two workers do more calls than PostgreSQL can take beside load and provider on the cores that are left; so the link is
    halted while it is measured, and ships between the rounds what the workers have written.
    """
    if bench.server is None:
        raise children.StartError("Ostiary did not start")
    around = bench.cores.load | bench.cores.upstream
    with (
        bench.another(name="one", home=around) as one,
        bench.another(name="two", workers=2, home=around) as two,
    ):
        servers = {"one worker": one, "two workers": two}
        bench.figures.compared["workers"] = rounds.interleaved(
            [server.target(name) for name, server in servers.items()],
            bench.plan.rounds,
            lambda target: _unshipped_round(bench, target, servers[target.name]),
            bench.note,
        )


def _unshipped_round(bench: Bench, target: Target, server: ostiary.Server) -> rounds.Sample:
    """With as many connections for each worker, however many there are."""
    each = works.CALLS.connections * len(target.workers)
    # The token is known before the link is halted: workers serve on with what they have.
    rounds.closed_round(target, works.CALLS, 0.3, bench.cores, connections=each)
    unsettled = replace(target, settle=None)
    with server.link_halted():
        taken = rounds.closed_round(unsettled, works.CALLS, min(bench.plan.seconds, 2.0), bench.cores, connections=each)
    rounds.settle(target)
    return taken


def ingest(bench: Bench) -> None:
    """How fast records reach the database: the link is halted while a backlog grows in the journal, then let go."""
    if bench.server is None:
        raise children.StartError("Ostiary did not start")
    around = bench.cores.second | bench.cores.load | bench.cores.upstream
    with bench.another(name="ingest", home=around) as server:
        target = server.target(OURS)
        began = datetime.now(UTC)
        # The token is known before the link is halted: workers serve on with what they have.
        warmed = children.run_load(target.order(works.RECORDED, "closed", 0.5), bench.cores.load)
        server.wait_recorded(warmed["count"], began, 30.0)
        with server.link_halted():
            order = target.order(works.RECORDED, "closed", bench.plan.ingest_seconds, count=_BACKLOG_MAX)
            sent = children.run_load(order, bench.cores.load)
        started = time.monotonic()
        if sent["errors"]:
            raise rounds.RoundError(f"ingest: {sent['errors']} errors: {sent['reasons']}")
        stored = server.wait_recorded(warmed["count"] + sent["count"], began, 60.0) - warmed["count"]
        seconds = time.monotonic() - started
    bench.figures.ingest_per_second = stored / seconds
    bench.figures.ingest_note = f"{stored:,} interceptions out of the journal in {seconds:.1f} s"
    bench.note(f"  {bench.figures.ingest_per_second:,.0f} interceptions/s: {bench.figures.ingest_note}")
    if stored < sent["count"]:
        raise rounds.RoundError(f"ingest: {sent['count']:,} calls, {stored:,} of them recorded after a minute")


def soak(bench: Bench) -> None:
    """The worker's memory after a short run and after a long one."""
    plan = bench.plan
    sizes = []
    with bench.another(name="soak") as server:  # one that has served nothing yet
        target = server.target(OURS)
        (worker,) = target.workers
        for count in (plan.soak_short, plan.soak_long):
            order = target.order(works.CALLS, "closed", plan.soak_seconds, count=count)
            told = children.run_load(order, bench.cores.load)
            if told["errors"]:
                raise rounds.RoundError(f"soak: {told['errors']} errors: {told['reasons']}")
            sizes.append(machine.memory_bytes(worker))
            bench.note(f"  {told['count']:>9,} calls: {sizes[-1] / 1e6:.1f} MB")
    bench.figures.soak = (sizes[0], sizes[1], told["count"])


def builds(bench: Bench) -> None:
    """The build that is measured beside the same code interpreted."""
    if bench.server is None:
        raise children.StartError("Ostiary did not start")
    if bench.measured.kind != "compiled":
        bench.figures.left_out["compiled build"] = "there is none here; `make wheel` makes it"
        return
    with bench.another(name="interpreted", measured=build.source()) as interpreted:
        for work in (works.CALLS, works.CALLS_40K, works.STREAM):
            bench.figures.builds[work.title] = rounds.interleaved(
                [bench.server.target("compiled"), interpreted.target("interpreted")],
                max(2, bench.plan.rounds // 2 + 1),
                lambda target, work=work: rounds.closed_round(target, work, bench.plan.seconds, bench.cores),  # type: ignore[misc]
                bench.note,
            )


def gateways(bench: Bench) -> None:
    """All relays on the same work in the same rounds; a gateway that fails at a work is left out of it."""
    others: list[Target] = []
    with ExitStack() as stack:
        for name, started in GATEWAYS.items():
            if name not in bench.gateways:
                bench.figures.left_out[name] = f"not asked for (--with {name})"
                continue
            try:
                others.append(stack.enter_context(started(bench.folder, bench.upstream, bench.cores)))
            except UnavailableError as exc:
                bench.note(f"  {name} is left out: {exc}")
                bench.figures.left_out[name] = str(exc)
        for work, seconds in (
            (works.CALLS, _WARM_SECONDS),
            (works.CALLS_40K, 1.0),
            (works.CHAT_STREAM, 1.0),
            (works.ALONE, 1.0),
        ):
            able = [target for target in others if _answers(bench, target, work, seconds)]
            if able:
                bench.figures.gateways[work.title] = _beside(bench, work, able)


def _answers(bench: Bench, target: Target, work: Work, seconds: float) -> bool:
    """Whether a gateway can do this work at all; its first calls are slower and do not count."""
    try:
        rounds.closed_round(target, work, seconds, bench.cores)
    except rounds.RoundError as exc:
        bench.figures.left_out[f"{target.name}: {work.title}"] = str(exc)
        return False
    return True


def _beside(bench: Bench, work: Work, others: list[Target]) -> dict[str, Result]:
    """They are slow enough that a round needs a few seconds to count anything."""
    seconds = max(bench.plan.seconds, 3.0)
    return rounds.interleaved(
        [*bench.pair(), *others],
        3,
        lambda target: rounds.closed_round(target, work, seconds, bench.cores),
        bench.note,
    )


COMPARED: dict[str, tuple[str, Callable[[Bench], Comparison]]] = {
    "calls": (works.CALLS.title, calls),
    "calls-40k": (works.CALLS_40K.title, calls_40k),
    "stream": (works.STREAM.title, stream),
    "tls": ("the same calls, TLS to the upstream", tls),
}
"""What is measured for its ratio to nginx: together, so that the rounds of each are spread over the whole time."""

PARTS: dict[str, tuple[str, Callable[[Bench], None]]] = {
    "latency": (f"{RATE} calls/s", latency),
    "memory": ("live streams", memory),
    "workers": ("two workers beside one", two_workers),
    "ingest": ("records into the database", ingest),
    "gateways": ("other gateways, the same calls", gateways),
    "builds": ("compiled beside interpreted", builds),
    "soak": ("memory over many calls", soak),
}


TITLES = {name: title for name, (title, _) in COMPARED.items()} | {name: title for name, (title, _) in PARTS.items()}


def carry_out(bench: Bench, chosen: list[str]) -> Figures:
    """Measure these parts; one that cannot be measured leaves its reason."""
    figures = bench.figures
    together = [name for name in chosen if name in COMPARED]
    if together:
        bench.note("; ".join(f"{name}: {TITLES[name]}" for name in together))
        found, failed = rounds.spread([COMPARED[name][1](bench) for name in together], bench.plan.rounds, bench.note)
        figures.compared |= found
        figures.skipped |= failed
    for name in chosen:
        if name in COMPARED:
            continue
        bench.note(f"{name}: {TITLES[name]}")
        try:
            PARTS[name][1](bench)
        except (children.StartError, rounds.RoundError) as exc:
            bench.note(f"  skipped: {exc}")
            figures.skipped[name] = str(exc)
    return figures
