"""Where the time of a call goes, for each build that there is.

Three measurements, none of them a guess:
- the stages and the whole without sockets (`bench.inside`), in an interpreter of its own on the core under test;
- a worker under the same load as in the main run: what it takes more than the whole without sockets is the event loop, the
  sockets and the kernel; the kernel books its user and its system time apart;
- `perf record` on that worker, where perf is there and may look: in whose code the samples fall.
"""

import json
import shutil
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from . import build, children, interpreter, machine, ostiary, parts, rounds, works
from .report import Table, number
from .targets import Target
from .works import Work

_SECONDS = 6.0
_QUICK_SECONDS = 1.5
_PERF_SECONDS = 4
_TOKEN = "ost_" + "b" * 40


@dataclass(frozen=True)
class Case:
    """A work whose stages are measured. `live`: under load too."""

    name: str
    work: Work
    by_event: bool
    live: bool


CASES = (
    Case("call", works.CALLS, by_event=False, live=True),
    Case("stream in one read", works.STREAM, by_event=False, live=True),
    Case("stream, a read an event", works.STREAM, by_event=True, live=False),
)

_GROUPS = (
    ("Ostiary's compiled modules", ("__mypyc",)),
    ("uvloop, with libuv", ("loop.cpython",)),
    ("msgspec", ("_core.cpython",)),
    ("llhttp", ("parser.cpython",)),
    ("SHA-256, CRC-32", ("libcrypto", "libz.", "zlib", "_hashlib", "_sha")),
    ("Python: interpreter and runtime", ("python",)),
    ("C library", ("libc.", "libc-", "libm.", "ld-linux", "libpthread")),
)
"""By names of files, the first that fits; the kernel and what fits nothing besides."""
KERNEL, REST = "kernel: sockets, files, scheduling", "the rest"


@dataclass
class Measured:
    """Of one build: microseconds, and shares of perf's samples."""

    inside: dict[str, Any] = field(default_factory=dict)
    live_us: dict[str, float] = field(default_factory=dict)
    system_share: dict[str, float] = field(default_factory=dict)
    samples: dict[str, float] = field(default_factory=dict)


def measure(folder: Path, measured: build.Build, *, quick: bool) -> tuple[list[Table], dict[str, str]]:
    """The tables, and what could not be measured, with the reason."""
    builds = [measured]
    if measured.kind == "compiled":
        builds.append(build.source())
    absent: dict[str, str] = {}
    found: dict[str, Measured] = {}
    with parts.prepared(folder, parts.QUICK if quick else parts.FULL, measured, server=False) as bench:
        for one in builds:
            bench.note(f"stages: {one.kind}")
            found[one.kind] = result = Measured()
            below = folder / f"stages-{one.kind}"
            below.mkdir()
            result.inside = _inside(bench, below, one, _QUICK_SECONDS if quick else _SECONDS)
            for case, told in result.inside.items():
                absent |= {f"{one.kind}: {case}: {stage}": reason for stage, reason in told["failed"].items()}
            with bench.another(name=f"live-{one.kind}", measured=one) as server:
                _live(bench, server, result)
                if not quick:
                    try:
                        result.samples = samples(bench, server.target(parts.OURS), below)
                    except children.StartError as exc:
                        absent["perf"] = str(exc)
    return tables(found), absent


def tables(found: dict[str, Measured]) -> list[Table]:
    """For the page."""
    made = [_stage_table(found), _live_table(found)]
    if any(one.samples for one in found.values()):
        made.append(_sample_table(found))
    return made


def _stage_table(found: dict[str, Measured]) -> Table:
    columns = [(kind, case.name) for kind in found for case in CASES]
    names = list(
        dict.fromkeys(name for one in found.values() for told in one.inside.values() for name in told["stages"])
    )

    def told(kind: str, case: str) -> dict[str, Any]:
        content: dict[str, Any] = found[kind].inside[case]
        return content

    def stage(kind: str, case: str, name: str) -> str:
        spent = told(kind, case)["stages"].get(name)
        return "–" if spent is None else f"{spent:.1f}"

    return Table(
        "Stages of a call without sockets, µs",
        ["stage", *(f"{kind}: {case}" for kind, case in columns)],
        [
            *([name, *(stage(kind, case, name) for kind, case in columns)] for name in names),
            [
                "between the stages",
                *(
                    f"{told(kind, case)['whole'] - sum(told(kind, case)['stages'].values()):.1f}"
                    for kind, case in columns
                ),
            ],
            ["**the whole**", *(f"**{told(kind, case)['whole']:.1f}**" for kind, case in columns)],
        ],
    )


def _live_table(found: dict[str, Measured]) -> Table:
    return Table(
        "The same in a worker under load, µs",
        ["work", "build", "worker's CPU", "of it in the kernel", "without sockets", "sockets and event loop"],
        [
            [
                case.name,
                kind,
                number(one.live_us[case.name]),
                f"{one.system_share[case.name]:.0%}",
                number(one.inside[case.name]["whole"]),
                number(one.live_us[case.name] - one.inside[case.name]["whole"]),
            ]
            for case in CASES
            for kind, one in found.items()
            if case.name in one.live_us
        ],
    )


def _sample_table(found: dict[str, Measured]) -> Table:
    with_samples = {kind: one for kind, one in found.items() if one.samples}
    names = list(dict.fromkeys(name for one in with_samples.values() for name in one.samples))
    largest = {name: max(one.samples.get(name, 0.0) for one in with_samples.values()) for name in names}
    return Table(
        "Whose code a worker under calls runs, by samples of perf",
        ["", *with_samples],
        [
            [name, *(f"{one.samples.get(name, 0.0):.0%}" for one in with_samples.values())]
            for name in sorted(names, key=lambda name: -largest[name])
            if largest[name] >= 0.005
        ],
    )


def _inside(bench: parts.Bench, below: Path, measured: build.Build, seconds: float) -> dict[str, Any]:
    """`bench.inside` in an interpreter that takes `ostiary` from the build. Raises `StartError`."""
    ordered = [write_case(below, case, bench.upstream.plain_port) for case in CASES]
    order = below / "order.json"
    order.write_text(json.dumps({"folder": str(below), "seconds": seconds, "works": ordered}))
    log = below / "inside.log"
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [str(interpreter.python()), "-m", "bench.inside", str(order)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=sink,
            env=measured.environment(),
            cwd=build.ROOT,
        )
        machine.pin(process.pid, bench.cores.under_test)
        told, _ = process.communicate(timeout=seconds * len(CASES) + 120)
    if process.returncode:
        raise children.StartError(f"the stages could not be measured:\n{log.read_text()[-1500:]}")
    content: dict[str, Any] = json.loads(told)
    return content


def write_case(below: Path, case: Case, port: int) -> dict[str, Any]:
    """Put the request and the fake provider's answer into files; gives what `bench.inside` is told of them."""
    work = case.work
    credential = {"X-Api-Key": "sk"} if work.format == "anthropic" else {"Authorization": "Bearer sk"}
    name = case.name.replace(" ", "-").replace(",", "")
    answer, request = below / f"{name}.answer", below / f"{name}.request"
    answer.write_bytes(_answer(port, work.request("127.0.0.1", "", credential)))
    prefix = f"/api/v2/ai-gateway/bench-{work.format}"
    request.write_bytes(work.request("127.0.0.1", prefix, {"Authorization": f"Bearer {_TOKEN}"}))
    return {
        "name": case.name,
        "format": work.format,
        "request": str(request),
        "answer": str(answer),
        "by_event": case.by_event,
        "token": _TOKEN,
    }


def _answer(port: int, request: bytes) -> bytes:
    """All the bytes that the upstream answers a request with."""
    head, _, body = request.partition(b"\r\n\r\n")
    asked = head + b"\r\nConnection: close\r\n\r\n" + body
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(asked)
        taken = bytearray()
        while piece := connection.recv(1 << 20):
            taken += piece
    # What was said for this one request is not what a kept connection hears.
    return bytes(taken).replace(b"Connection: close\r\n", b"", 1).replace(b"connection: close\r\n", b"", 1)


def _live(bench: parts.Bench, server: ostiary.Server, result: Measured) -> None:
    target = server.target(parts.OURS)
    (worker,) = target.workers
    for case in CASES:
        if not case.live:
            continue
        rounds.closed_round(target, case.work, bench.plan.seconds, bench.cores)  # does not count
        before = machine.user_system_seconds(worker)
        taken = [
            rounds.closed_round(target, case.work, bench.plan.seconds, bench.cores).cpu_us
            for _ in range(bench.plan.rounds)
        ]
        user, system = (now - then for now, then in zip(machine.user_system_seconds(worker), before, strict=True))
        result.live_us[case.name] = median(taken)
        result.system_share[case.name] = system / (user + system)
        bench.note(f"  {case.name:<22} {median(taken):8.1f} µs CPU")


def samples(bench: parts.Bench, target: Target, below: Path) -> dict[str, float]:
    """Group → share of the samples that perf takes of a worker under calls. Raises `StartError`."""
    perf = shutil.which("perf")
    if perf is None:
        raise children.StartError("perf is not installed; the table of samples is left out")
    data = below / "perf.data"
    (worker,) = target.workers
    record = [perf, "record", "-q", "-F", "1999", "-p", str(worker), "-o", str(data), "--", "sleep", str(_PERF_SECONDS)]
    with _loaded(bench, target):
        done = subprocess.run(record, capture_output=True, text=True, check=False, timeout=_PERF_SECONDS + 30)
    if done.returncode:
        raise children.StartError(f"perf record failed: {done.stderr.strip()[-200:]}")
    told = subprocess.run(
        [perf, "report", "-i", str(data), "--stdio", "--sort", "dso", "-g", "none", "--percentage", "absolute"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    found = grouped(told.stdout)
    if not found:
        raise children.StartError(f"perf report says nothing: {told.stderr.strip()[-200:]}")
    return found


@contextmanager
def _loaded(bench: parts.Bench, target: Target) -> Iterator[None]:
    """Calls go on while the body runs."""
    with ThreadPoolExecutor(1) as pool:
        load = pool.submit(rounds.closed_round, target, works.CALLS, _PERF_SECONDS + 1.5, bench.cores)
        yield
        load.result()


def grouped(report: str) -> dict[str, float]:
    """`perf report --sort dso` as shares of the groups."""
    found: dict[str, float] = {}
    for line in report.splitlines():
        share, _, name = line.strip().partition("%")
        if line.startswith("#") or not name.strip():
            continue
        try:
            part = float(share) / 100
        except ValueError:
            continue
        group = _group(name.strip())
        found[group] = found.get(group, 0.0) + part
    return found


def _group(name: str) -> str:
    if "kernel" in name or name == "[vdso]":
        return KERNEL
    for group, marks in _GROUPS:
        if any(mark in name for mark in marks):
            return group
    return REST
