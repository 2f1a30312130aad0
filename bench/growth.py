"""How cost grows: with sizes, lengths and numbers, and with fewer cores than the main run has.

Each part gives tables. Where nginx can do the same work it stands beside, in the same rounds: what grows for both is the
work's, not ours.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import build, children, machine, ostiary, rounds, works
from .parts import DIRECT, NGINX, NGINX_TLS, OURS, OURS_TLS, QUICK, SHORT, Bench, prepared
from .report import Table, number
from .rounds import Result
from .targets import Target

_BODIES = (1000, 10_000, 40_000, 100_000, 1_000_000, 10_000_000)
_EVENTS = (10, 100, 300, 1000, 10_000)
_PROVIDERS = (1, 10, 50, 200)
_TOKENS = (1, 100, 1000, 10_000)
_STREAMS = (100, 1000, 5000, 10_000)
_WINDOW_SECONDS = 5.0
_MARK = "0000-bench-mark"
_FILES_BESIDE = 200
"""Files that a worker has open beside its connections, with some to spare. A sixteenth it keeps free besides."""


@dataclass
class Growth:
    """What the parts work with, and what they have found."""

    bench: Bench
    measured: build.Build
    quick: bool
    tables: list[Table] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)

    def some(self, numbers: tuple[int, ...]) -> tuple[int, ...]:
        """All of them; of a quick run the two smallest."""
        return numbers[:2] if self.quick else numbers


def measure(
    folder: Path, measured: build.Build, chosen: list[str], *, quick: bool
) -> tuple[list[Table], dict[str, str]]:
    """The tables of these parts, and what could not be measured, with the reason."""
    tables: list[Table] = []
    absent: dict[str, str] = {}
    if beside := [name for name in chosen if name in PARTS]:
        with prepared(folder, QUICK if quick else SHORT, measured) as bench:
            growth = Growth(bench, measured, quick, tables, absent)
            if bench.server is None:
                raise children.StartError("Ostiary did not start")
            for name in beside:
                bench.note(f"growth: {name}")
                try:
                    PARTS[name](growth)
                except (children.StartError, rounds.RoundError) as exc:
                    bench.note(f"  skipped: {exc}")
                    absent[name] = str(exc)
    if CORES in chosen:  # when what the others needed has ended
        found, absent_there = _fewer_cores(measured, folder, quick=quick)
        tables += found
        absent |= absent_there
    return tables, absent


def bodies(growth: Growth) -> None:
    """Calls with larger and larger requests."""
    bench = growth.bench
    sizes = growth.some(_BODIES)
    found = [_compared(bench, works.call_of(size), [bench.upstream.direct(), *bench.pair()]) for size in sizes]
    more = further([compared[OURS].quiet_us for compared in found], [size / 1000 for size in sizes])
    lines = [
        [works.kilobytes(size), *_side_by_side(compared), each]
        for size, compared, each in zip(sizes, found, more, strict=True)
    ]
    head = ["request", *_SIDE_BY_SIDE, "µs for each further KB"]
    growth.tables.append(Table("By size of the request, answer 1.5 KB: CPU a call", head, lines))


def streams(growth: Growth) -> None:
    """Streams with more and more events, sent as fast as they are taken."""
    bench = growth.bench
    lengths = growth.some(_EVENTS)
    found = [_compared(bench, works.stream_of(events), [bench.upstream.direct(), *bench.pair()]) for events in lengths]
    more = further([compared[OURS].quiet_us for compared in found], list(map(float, lengths)))
    lines = [
        [f"{events:,}", *_side_by_side(compared), each]
        for events, compared, each in zip(lengths, found, more, strict=True)
    ]
    head = ["events", *_SIDE_BY_SIDE, "µs for each further event"]
    growth.tables.append(Table("By length of a stream, about 200 bytes an event: CPU a stream", head, lines))


def further(costs: list[float], amounts: list[float]) -> list[str]:
    """What each unit costs that an amount has more than the one before; of the first nothing can be said."""
    return [
        "",
        *(
            f"{(cost - before) / (amount - less):.2f}"
            for before, cost, less, amount in zip(costs, costs[1:], amounts, amounts[1:], strict=False)
        ),
    ]


def providers(growth: Growth) -> None:
    """Servers with more and more providers, calls spread over all of them."""
    bench = growth.bench
    lines = []
    for count in growth.some(_PROVIDERS):
        began = time.monotonic()
        with bench.another(name=f"providers-{count}", providers=count) as server:
            ready = time.monotonic() - began
            target = server.marked(OURS, provider=_MARK)
            (worker,) = target.workers
            vary = (_MARK, [ostiary.provider_name(number) for number in range(count)])
            result = _spread(bench, target, vary)
            memory = machine.memory_bytes(worker) / 1e6
        lines.append([str(count), number(result.quiet_us), number(result.per_second), f"{memory:.0f}", f"{ready:.1f}"])
    head = ["providers", "CPU µs a call", "answers/s", "worker's memory, MB", "seconds from start to ready"]
    growth.tables.append(Table("By number of providers, calls spread over all of them", head, lines))


def tokens(growth: Growth) -> None:
    """One server, more and more people with a token each, calls spread over all of them."""
    bench = growth.bench
    lines = []
    with bench.another(name="tokens") as server:
        made: list[str] = []
        target = server.marked(OURS, token=_MARK)
        (worker,) = target.workers
        _spread(bench, server.target(OURS), None)  # what every first call takes is taken before
        for count in growth.some(_TOKENS):
            began = time.monotonic()
            fresh = server.make_tokens(len(made), count - len(made))
            seconds = time.monotonic() - began
            made += fresh
            bench.note(f"  {len(fresh):,} people and tokens made in {seconds:.1f} s")
            first = _each_once(bench, target, fresh)
            result = _spread(bench, target, (_MARK, made))
            lines.append(
                [
                    f"{count:,}",
                    number(result.quiet_us),
                    number(result.per_second),
                    f"{machine.memory_bytes(worker) / 1e6:.0f}",
                    f"{first['p50'] * 1e3:.1f} / {first['p99'] * 1e3:.1f}",
                ]
            )
    head = ["tokens", "CPU µs a call", "answers/s", "worker's memory, MB", "first call of a token, p50 / p99 ms"]
    note = "The first call of a token asks the control plane who it is; 32 such calls at a time."
    growth.tables.append(Table("By number of people, a token each, calls spread over all of them", head, lines, note))


def _each_once(bench: Bench, target: Target, fresh: list[str]) -> dict[str, Any]:
    """One call with each of these tokens, of which the worker does not know yet."""
    connections = min(32, len(fresh))
    order = target.order(works.CALLS, "closed", 60.0, connections=connections, count=len(fresh), vary=(_MARK, fresh))
    told = children.run_load(order, bench.cores.load)
    if told["errors"]:
        raise rounds.RoundError(f"{target.name}: {told['errors']} errors: {told['reasons']}")
    return told


def live(growth: Growth) -> None:
    """More and more streams at once, an event a second each: CPU an event, memory a stream."""
    bench = growth.bench
    most = (machine.open_files() * 15 // 16 - _FILES_BESIDE) // 2
    lines = []
    for wanted in growth.some(_STREAMS):
        count = min(wanted, most)
        cells = [f"{count:,}"]
        for target in bench.pair()[::-1]:
            cells += _live_cells(bench, target, count)
        lines.append(cells)
    note = (
        "" if most >= _STREAMS[-1] else f"A process may open {machine.open_files():,} files here, two for each stream."
    )
    head = ["streams", "Ostiary: CPU µs an event", "KB a stream", "nginx: CPU µs an event", "KB a stream"]
    growth.tables.append(Table("By number of streams at once, an event a second in each", head, lines, note))


def _live_cells(bench: Bench, target: Target, count: int) -> list[str]:
    (worker,) = target.workers
    before = machine.memory_bytes(worker)
    order = target.order(works.SLOW_LIVE, "live", 120.0, connections=count)
    with children.live_streams(order, bench.cores.load) as open_streams:
        first = open_streams.ask(30)
        used = machine.cpu_seconds(worker)
        time.sleep(_WINDOW_SECONDS)
        spent = machine.cpu_seconds(worker) - used
        events = open_streams.ask(30)["events"] - first["events"]
        grown = machine.memory_bytes(worker) - before
    if events < count * _WINDOW_SECONDS * 0.5:
        raise rounds.RoundError(f"{target.name}: {events:,} events of {count:,} streams in {_WINDOW_SECONDS:.0f} s")
    bench.note(f"  {target.name:<22} {count:>6,} streams {spent / events * 1e6:8.1f} µs an event")
    return [f"{spent / events * 1e6:.1f}", f"{grown / count / 1000:.1f}"]


def _compared(bench: Bench, work: works.Work, targets: list[Target]) -> dict[str, Result]:
    bench.note(f" {work.title}")
    return rounds.interleaved(
        targets,
        bench.plan.rounds,
        lambda target: rounds.closed_round(target, work, bench.plan.seconds, bench.cores),
        bench.note,
    )


def _spread(bench: Bench, target: Target, vary: tuple[str, list[str]] | None) -> Result:
    """Rounds of calls that are spread over all values of the mark."""
    more: dict[str, Any] = {} if vary is None else {"vary": vary}
    return rounds.interleaved(
        [target],
        bench.plan.rounds,
        lambda one: rounds.closed_round(one, works.CALLS, bench.plan.seconds, bench.cores, **more),
        bench.note,
    )[target.name]


_SIDE_BY_SIDE = ("Ostiary µs", "nginx µs", "÷", "answers/s", "direct, answers/s", "around Ostiary µs")


def _side_by_side(compared: dict[str, Result]) -> list[str]:
    ours, theirs = compared[OURS], compared[NGINX]
    return [
        number(ours.quiet_us),
        number(theirs.quiet_us),
        f"{ours.quiet_us / theirs.quiet_us:.2f}",
        number(ours.per_second),
        number(compared[DIRECT].per_second),
        number(sum(ours.around_us.values())),
    ]


# --- fewer cores: the benchmark once more, kept on so many of them


_ON_FEWER = ("calls", "calls-40k", "stream", "tls", "latency")


def _fewer_cores(measured: build.Build, folder: Path, *, quick: bool) -> tuple[list[Table], dict[str, str]]:
    usable = len(os.sched_getaffinity(0))
    counts = [count for count in (usable, 2, 1) if count <= usable]
    found: dict[int, dict[str, Any]] = {}
    absent: dict[str, str] = {}
    for count in dict.fromkeys(counts):
        print(f"growth: on {count} of the cores", file=sys.stderr, flush=True)
        file = folder / f"cores-{count}.json"
        size = "--quick" if quick else "--short"
        only = [argument for part in _ON_FEWER for argument in ("--only", part)]
        command = [sys.executable, "-m", "bench", size, *only, "--cores", str(count), "--json", str(file)]
        done = subprocess.run(
            [*command, "--site", str(measured.site)],
            cwd=build.ROOT,
            stdout=subprocess.DEVNULL,
            check=False,
        )
        if file.exists():
            found[count] = json.loads(file.read_text())["figures"]
        else:
            absent[f"on {count} cores"] = f"the run ended with status {done.returncode}"
    return [cores_table(found)] if found else [], absent


def cores_table(found: dict[int, dict[str, Any]]) -> Table:
    """Number of cores → figures of a run on so many, side by side."""
    lines: list[list[str]] = []
    for what, part, ours, theirs in _RATIOS:
        lines.append([f"CPU per {what} ÷ nginx", *(_ratio(one, part, ours, theirs) for one in found.values())])
    for name in (OURS, NGINX):
        for what, part in _RATES:
            lines.append([f"{what}, {name}", *(_rate(one, part, name) for one in found.values())])
    for what, name in (("direct", DIRECT), ("added by nginx", NGINX), ("added by Ostiary", OURS)):
        cells = (_latency_cell(one, name, added=name != DIRECT) for one in found.values())
        lines.append([f"500 calls/s, {what}: p50 / p99 ms", *cells])
    heads = ["1 core" if count == 1 else f"{count} cores" for count in found]
    return Table("By number of cores for everything together", ["", *heads], lines)


_RATIOS = (
    ("call", "calls", OURS, NGINX),
    ("call with 40 KB", "calls-40k", OURS, NGINX),
    ("stream", "stream", OURS, NGINX),
    ("call over TLS", "tls", OURS_TLS, NGINX_TLS),
)
_RATES = (("calls/s", "calls"), ("streams/s", "stream"))


def _ratio(figures: dict[str, Any], part: str, ours: str, theirs: str) -> str:
    compared = figures["compared"].get(part, {})
    if ours not in compared or theirs not in compared:
        return "–"
    return f"{compared[ours]['quiet_us'] / compared[theirs]['quiet_us']:.2f}"


def _rate(figures: dict[str, Any], part: str, name: str) -> str:
    one = figures["compared"].get(part, {}).get(name)
    return "–" if one is None else number(one["per_second"])


def _latency_cell(figures: dict[str, Any], name: str, *, added: bool) -> str:
    one = figures["latency"].get(name)
    if one is None:
        return "–"
    kind = "added_" if added else ""
    return f"{one[f'{kind}p50_ms']:.2f} / {one[f'{kind}p99_ms']:.2f}"


PARTS: dict[str, Callable[[Growth], None]] = {
    "bodies": bodies,
    "streams": streams,
    "providers": providers,
    "tokens": tokens,
    "live": live,
}
CORES = "cores"
NAMES = (*PARTS, CORES)
