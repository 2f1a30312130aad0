"""Prints what was measured, and writes it into docs/performance.md.

Rules
- Each command owns one block of that page, between two marks; the rest of the page is by hand and stays as it is.
- A block says when it was made, on what machine, with which versions, and what stood in the way of good figures.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from .parts import DIRECT, NGINX, OURS, TITLES, Figures
from .table import Row, rows
from .works import ALONE, CALLS, CALLS_40K, CHAT_STREAM

PAGE = Path(__file__).parent.parent / "docs" / "performance.md"

Block = Literal["figures", "stages", "growth"]
_MADE_BY: dict[Block, str] = {"figures": "make bench", "stages": "make bench-stages", "growth": "make bench-growth"}


@dataclass(frozen=True)
class Table:
    """Cells of text. The first column is aligned to the left."""

    title: str
    head: list[str]
    rows: list[list[str]]
    note: str = ""

    def as_text(self) -> str:
        lines = [self.head, *self.rows]
        widths = [max(len(line[at]) for line in lines) for at in range(len(self.head))]
        printed = [
            "  ".join(
                cell.rjust(width) if at else cell.ljust(width)
                for at, (cell, width) in enumerate(zip(line, widths, strict=True))
            )
            for line in lines
        ]
        return "\n".join([self.title, *(line.rstrip() for line in printed), *([self.note] if self.note else [])])

    def as_markdown(self) -> str:
        lines = [
            f"**{self.title}**",
            "",
            _line(self.head),
            _line(["---", *("--:" for _ in self.head[1:])]),
            *(_line(row) for row in self.rows),
        ]
        return "\n".join([*lines, "", self.note] if self.note else lines)


@dataclass(frozen=True)
class Conditions:
    """Under which figures were taken."""

    machine: dict[str, str]
    seconds: float
    load: float
    """The load average at the start."""
    pinned: bool
    warnings: list[str] = field(default_factory=list)

    def sentence(self) -> str:
        where = "each role on a core of its own" if self.pinned else "nothing pinned"
        text = f"{self.seconds:.0f} s, {where}; load average at the start {self.load:.1f}."
        return " ".join([text, *(f"Mind: {warning}." for warning in self.warnings)])


def main_tables(figures: Figures) -> list[Table]:
    """What `python -m bench` measures, but for the table of floors and aims."""
    found = [_gateways(figures), _latency(figures), _builds(figures), _medians(figures)]
    return [table for table in found if table.rows]


def as_text(figures: Figures, conditions: Conditions) -> str:
    """The main run for a terminal."""
    head = ["work (one worker)", "floor", "aim", "measured", "", ""]
    cells = [
        [row.work, _numbers(row.floor, row), _numbers(row.aim, row), _measured(row), _word(row), row.detail]
        for row in rows(figures)
    ]
    floors = Table("Floors and aims", head, cells)
    return as_pages([floors, *main_tables(figures)], conditions, _absent(figures))


def as_pages(tables: Iterable[Table], conditions: Conditions, absent: Iterable[str] = ()) -> str:
    """Tables for a terminal."""
    parts = [table.as_text() for table in tables]
    about = ", ".join(f"{name} {value}" for name, value in conditions.machine.items())
    return "\n\n".join([*parts, "\n".join([conditions.sentence(), about, *absent])])


def as_markdown(figures: Figures) -> str:
    """The main run for docs/performance.md, without its conditions."""
    lines = [
        "| work (one worker) | floor | aim | measured | |",
        "|---|---|---|---|---|",
        *(
            f"| {row.work} | {_numbers(row.floor, row)} | {_numbers(row.aim, row)} | **{_measured(row)}** {_word(row)} "
            f"| {row.detail} |"
            for row in rows(figures)
        ),
    ]
    return "\n\n".join(["\n".join(lines), *(table.as_markdown() for table in main_tables(figures))])


def write_main(figures: Figures, conditions: Conditions) -> None:
    write_block("figures", as_markdown(figures), conditions, _absent(figures))


def write_block(block: Block, content: str, conditions: Conditions, absent: Iterable[str] = ()) -> None:
    """Replace one block of docs/performance.md. Raises `ValueError` when its marks are gone."""
    begin, end = f"<!-- {block}: written by `{_MADE_BY[block]}` -->", f"<!-- end of {block} -->"
    page = PAGE.read_text()
    before, found_begin, rest = page.partition(begin)
    _, found_end, after = rest.partition(end)
    if not found_begin or not found_end:
        raise ValueError(f"{PAGE.name} lacks the lines {begin!r} and {end!r}")
    about = [*(f"- {name}: {value}" for name, value in conditions.machine.items()), *(f"- {line}" for line in absent)]
    made = f"{datetime.now(UTC):%Y-%m-%d}. {conditions.sentence()}"
    text = "\n\n".join([content, made, "\n".join(about)])
    PAGE.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}")


def write_json(figures: Figures, conditions: Conditions, file: Path) -> None:
    table = [asdict(row) | {"verdict": row.verdict} for row in rows(figures)]
    content = {"conditions": asdict(conditions), "table": table, "figures": asdict(figures)}
    file.write_text(json.dumps(content, indent=2) + "\n")


def number(value: float) -> str:
    """Whole from 20 on, else with two digits that say something."""
    return f"{value:,.0f}" if abs(value) >= 20 else f"{value:.2f}".rstrip("0").rstrip(".")


_GATEWAY_WORKS = {CALLS.title: "call 2 KB", CALLS_40K.title: "call 40 KB", CHAT_STREAM.title: "stream"}


def _gateways(figures: Figures) -> Table:
    names = list(dict.fromkeys(name for compared in figures.gateways.values() for name in compared))
    head = ["relay"]
    lines = [[name] for name in names]
    for title, work in _GATEWAY_WORKS.items():
        head += [f"{work}: CPU µs", "answers/s"]
        compared = figures.gateways.get(title, {})
        for name, line in zip(names, lines, strict=True):
            one = compared.get(name)
            line += ["–", "–"] if one is None else [number(one.cpu_us), number(one.per_second)]
    head.append("one call at a time: p50 ms")
    for name, line in zip(names, lines, strict=True):
        one = figures.gateways.get(ALONE.title, {}).get(name)
        line.append("–" if one is None else f"{one.p50_ms:.2f}")
    return Table("Other gateways, in the same rounds", head, lines)


def _latency(figures: Figures) -> Table:
    shown = [name for name in (DIRECT, NGINX, OURS) if name in figures.latency]
    return Table(
        "Latency at 500 calls/s, in the same seconds",
        ["", "p50 ms", "p99 ms", "quartiles of the rounds' p99", "added p50", "added p99", "CPU µs"],
        [
            [
                name,
                f"{one.p50_ms:.2f}",
                f"{one.p99_ms:.2f}",
                f"{one.p99_low_ms:.2f} to {one.p99_high_ms:.2f}",
                *(
                    ["", "", ""]
                    if name == DIRECT
                    else [f"{one.added_p50_ms:.2f}", f"{one.added_p99_ms:.2f}", number(one.cpu_us)]
                ),
            ]
            for name in shown
            for one in (figures.latency[name],)
        ],
    )


def _builds(figures: Figures) -> Table:
    return Table(
        "The compiled build beside the same code interpreted, CPU µs an answer",
        ["work", "compiled", "interpreted", "÷"],
        [
            [
                work,
                number(compared["compiled"].cpu_us),
                number(compared["interpreted"].cpu_us),
                number(compared["interpreted"].cpu_us / compared["compiled"].cpu_us),
            ]
            for work, compared in figures.builds.items()
        ],
    )


def _medians(figures: Figures) -> Table:
    found = []
    for part, compared in figures.compared.items():
        for name, result in compared.items():
            around = ", ".join(f"{what} {cpu:.0f}" for what, cpu in result.around_us.items())
            found.append(
                [
                    TITLES[part],
                    name,
                    f"{result.cpu_us:.1f}",
                    f"{result.quiet_us:.1f}",
                    f"{result.per_second:,.0f}",
                    f"{result.p50_ms:.2f} / {result.p99_ms:.2f}",
                    f"{result.spread:.0%}",
                    around,
                ]
            )
    head = [
        "work",
        "target",
        "CPU µs",
        "lower quartile",
        "answers/s",
        "p50 / p99 ms",
        "spread of CPU",
        "around it, CPU µs",
    ]
    return Table("Medians of the rounds", head, found)


def _absent(figures: Figures) -> list[str]:
    missing = {**figures.skipped, **figures.left_out}
    return [f"not measured: {what}: {reason}" for what, reason in missing.items()]


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _measured(row: Row) -> str:
    return "–" if row.measured is None else _numbers(row.measured, row)


def _numbers(values: tuple[float, ...], row: Row) -> str:
    return " / ".join(number(value) for value in values) + row.unit


def _word(row: Row) -> str:
    return {"aim": "ok, aim met", "floor": "ok", "missed": "MISSED", "–": ""}[row.verdict]
