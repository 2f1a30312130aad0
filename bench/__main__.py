"""`python -m bench`: measures, prints, and writes what it found into docs/performance.md.

    python -m bench [main]      floors and aims, beside nginx and what else is asked for
    python -m bench stages      where the time of a call goes
    python -m bench growth      how cost grows with size, length, number, and with fewer cores
    python -m bench all         one after the other

Exit status: 0 all floors held that were measured; 1 one was missed, or a part failed; 2 it could not start.
"""

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from . import build, children, growth, interpreter, litellm, machine, nginx, parts, portkey, report, stages
from .table import rows

_QUICK_LEAVES_OUT = ("workers", "soak", "gateways", "builds")
_COMMANDS = ("main", "stages", "growth")
_PARTS_OF: dict[str, tuple[str, ...]] = {"main": tuple(parts.TITLES), "growth": growth.NAMES, "stages": (), "all": ()}


@dataclass(frozen=True)
class Asked:
    """What one command is to do."""

    quick: bool
    only: list[str]
    gateways: tuple[str, ...]
    plan: parts.Plan
    json: Path | None
    writes: bool
    others: machine.Others
    """What else went on at its start."""


def main() -> int:
    parser = _parser()
    given = parser.parse_args()
    unknown = set(given.only or ()) - set(_PARTS_OF[given.command])
    if unknown:
        parser.error(f"`{given.command}` has no part {', '.join(sorted(unknown))}")
    if nginx.binary() is None:
        print(nginx.INSTALL, file=sys.stderr)
        return 2
    # Turned into an exception, so that an interrupted benchmark ends what it has started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    machine.open_files()
    if given.cores:
        machine.confine(given.cores)
    commands = _COMMANDS if given.command == "all" else (given.command,)
    try:
        with _folder() as folder:
            measured = build.chosen(folder, site=given.site, interpreted=given.interpreted)
            print(f"measuring ostiary {measured.describe()}", file=sys.stderr)
            return max([_run(command, folder, measured, given) for command in commands])
    except children.StartError as exc:
        print(exc, file=sys.stderr)
        return 2


def _run(command: str, folder: Path, measured: build.Build, given: argparse.Namespace) -> int:
    """One command; of several, one that cannot start keeps no other from running."""
    asked = Asked(
        given.quick,
        given.only or [],
        _gateways(given.with_),
        parts.SHORT if given.short else parts.QUICK if given.quick else parts.FULL,
        given.json,
        writes=not (given.quick or given.short or given.only or given.cores or given.no_write),
        others=machine.others(),
    )
    for warning in asked.others.warnings():
        print(f"mind: {warning}", file=sys.stderr)
    try:
        return _RUN[command](folder, measured, asked)
    except children.StartError as exc:
        print(f"{command}: {exc}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description="nginx and Ostiary on the same work.")
    parser.add_argument("command", nargs="?", choices=[*_COMMANDS, "all"], default="main")
    parser.add_argument("--quick", action="store_true", help="about a minute; prints only")
    parser.add_argument("--short", action="store_true", help="all of it in short rounds; prints only")
    names = "; ".join(f"of {command}: {', '.join(known)}" for command, known in _PARTS_OF.items() if known)
    parser.add_argument("--only", action="append", metavar="PART", help=names)
    parser.add_argument(
        "--with",
        dest="with_",
        action="append",
        choices=[*parts.GATEWAYS, "all"],
        default=[],
        help="also measure this gateway, installed if need be; BENCH_LITELLM=1 and BENCH_PORTKEY=1 do the same",
    )
    parser.add_argument("--site", type=Path, metavar="DIR", help="take the package `ostiary` from this directory")
    parser.add_argument(
        "--interpreted", action="store_true", help="measure the source tree also where a wheel is there"
    )
    parser.add_argument("--cores", type=int, metavar="N", help="run everything on so many cores")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every figure to a file")
    parser.add_argument("--no-write", action="store_true", help="leave docs/performance.md as it is")
    return parser


def _gateways(asked: list[str]) -> tuple[str, ...]:
    return tuple(
        name
        for name in parts.GATEWAYS
        if name in asked or "all" in asked or os.environ.get(f"BENCH_{name.upper()}", "") == "1"
    )


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ostiary-bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        # PostgreSQL and nginx may run as other users: they have to get through, not to read.
        folder.chmod(0o711)
        yield folder


def _main(folder: Path, measured: build.Build, asked: Asked) -> int:
    chosen = asked.only or [name for name in parts.TITLES if not (asked.quick and name in _QUICK_LEAVES_OUT)]
    started = time.monotonic()
    with parts.prepared(_below(folder, "main"), asked.plan, measured, gateways=asked.gateways) as bench:
        figures = parts.carry_out(bench, chosen)
    conditions = _conditions(measured, asked, started, figures)
    print(report.as_text(figures, conditions))
    if asked.json is not None:
        report.write_json(figures, conditions, asked.json)
    if asked.writes and figures.skipped:
        print(f"{report.PAGE.name} stays as it is: not everything could be measured", file=sys.stderr)
    elif asked.writes:
        report.write_main(figures, conditions)
    return 1 if figures.skipped or any(row.verdict == "missed" for row in rows(figures)) else 0


def _stages(folder: Path, measured: build.Build, asked: Asked) -> int:
    started = time.monotonic()
    tables, absent = stages.measure(_below(folder, "stages"), measured, quick=asked.quick or asked.plan is parts.SHORT)
    return _tell("stages", tables, absent, _conditions(measured, asked, started), writes=asked.writes)


def _growth(folder: Path, measured: build.Build, asked: Asked) -> int:
    started = time.monotonic()
    chosen = asked.only or list(growth.NAMES)
    tables, absent = growth.measure(_below(folder, "growth"), measured, chosen, quick=asked.quick)
    return _tell("growth", tables, absent, _conditions(measured, asked, started), writes=asked.writes)


_RUN: dict[str, Callable[[Path, build.Build, Asked], int]] = {"main": _main, "stages": _stages, "growth": _growth}


def _tell(
    block: report.Block,
    tables: list[report.Table],
    absent: dict[str, str],
    conditions: report.Conditions,
    *,
    writes: bool,
) -> int:
    lines = [f"not measured: {what}: {reason}" for what, reason in absent.items()]
    print(report.as_pages(tables, conditions, lines))
    if writes:
        report.write_block(block, "\n\n".join(table.as_markdown() for table in tables), conditions, lines)
    return 1 if absent else 0


def _below(folder: Path, name: str) -> Path:
    below = folder / name
    below.mkdir()
    below.chmod(0o711)
    return below


def _conditions(
    measured: build.Build, asked: Asked, started: float, figures: parts.Figures | None = None
) -> report.Conditions:
    about = machine.describe() | {"python": interpreter.version(), "ostiary": measured.describe()}
    took_part = {name for compared in (figures.gateways.values() if figures else ()) for name in compared}
    for name, version in (("LiteLLM", litellm.version), ("Portkey", portkey.version)):
        if name in took_part:
            about[name] = version()
    warnings = asked.others.warnings() + (figures.neighbours.warnings() if figures else [])
    return report.Conditions(about, time.monotonic() - started, asked.others.load, machine.cores().pinned, warnings)


if __name__ == "__main__":
    sys.exit(main())
