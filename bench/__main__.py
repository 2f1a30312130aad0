"""`python -m bench`: measures, prints the table of design §15, and writes docs/performance.md unless it is a quick run.

Exit status: 0 all floors held that were measured; 1 one was missed, or a part failed; 2 it could not start.
"""

import argparse
import resource
import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from . import children, fake_upstream, litellm, machine, nginx, ostiary, parts, report, rounds
from .table import rows

_QUICK_LEAVES_OUT = ("workers", "soak", "litellm")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description="nginx and Ostiary on the same work.")
    parser.add_argument("--quick", action="store_true", help="about a minute; prints only")
    parser.add_argument(
        "--only", action="append", choices=list(parts.PARTS), metavar="PART", help=", ".join(parts.PARTS)
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every figure to a file")
    given = parser.parse_args()
    if nginx.binary() is None:
        print(nginx.INSTALL, file=sys.stderr)
        return 2
    # Turned into an exception, so that an interrupted benchmark ends what it has started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    _raise_open_files()
    chosen = given.only or [name for name in parts.PARTS if not (given.quick and name in _QUICK_LEAVES_OUT)]
    started = time.monotonic()
    try:
        figures = _measure(parts.QUICK if given.quick else parts.FULL, chosen)
    except children.StartError as exc:
        print(exc, file=sys.stderr)
        return 2
    about, conditions = machine.describe(), _conditions(time.monotonic() - started)
    if litellm.wanted() and "litellm" in figures.compared:
        about["litellm"] = litellm.version()
    print(report.as_text(figures, about, conditions))
    if given.json is not None:
        report.write_json(figures, about, given.json)
    failed = any(part != "litellm" for part in figures.skipped)
    if not given.quick and not given.only and not failed:
        report.write_page(figures, about, conditions)
    return 1 if failed or any(row.verdict == "missed" for row in rows(figures)) else 0


def _measure(plan: parts.Plan, chosen: list[str]) -> parts.Figures:
    cores = machine.cores()
    with ExitStack() as stack:
        folder = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="ostiary-bench-", ignore_cleanup_errors=True))
        )
        # PostgreSQL and nginx may run as other users: they have to get through, not to read.
        folder.chmod(0o711)
        upstream = stack.enter_context(fake_upstream.upstream(folder, cores))
        relays = stack.enter_context(nginx.nginx(folder, upstream, cores))
        bench = parts.Bench(plan, cores, folder, upstream, relays, None)
        try:
            bench.server = stack.enter_context(ostiary.ostiary(folder, upstream, cores))
        except children.StartError as exc:
            bench.note(f"Ostiary did not start, nginx and direct only: {exc}")
            bench.figures.skipped["Ostiary"] = "it did not start"
        for name in chosen:
            title, measure = parts.PARTS[name]
            bench.note(f"{name}: {title}")
            try:
                measure(bench)
            except (children.StartError, rounds.RoundError, litellm.UnavailableError) as exc:
                bench.note(f"  skipped: {exc}")
                bench.figures.skipped[name] = str(exc)
        return bench.figures


def _conditions(seconds: float) -> str:
    pinned = (
        "each role on a core of its own" if machine.cores().pinned else "too few cores to pin: rates are indicative"
    )
    return f"{seconds:.0f} s, {pinned}; load average at the end {machine.load_average():.1f}."


def _raise_open_files() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    sys.exit(main())
