"""Prints what was measured, and writes it into docs/performance.md between two marks; the rest of that page is by hand."""

import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from .parts import PARTS, Figures
from .table import Row, rows

PAGE = Path(__file__).parent.parent / "docs" / "performance.md"
_BEGIN, _END = "<!-- figures: written by `make bench` -->", "<!-- end of figures -->"


def as_text(figures: Figures, machine: dict[str, str], conditions: str) -> str:
    """For a terminal."""
    table = [("work (one worker)", "floor", "aim", "measured", "", "")]
    table += [
        (row.work, _numbers(row.floor, row), _numbers(row.aim, row), _measured(row), _word(row), row.detail)
        for row in rows(figures)
    ]
    widths = [max(len(line[column]) for line in table) for column in range(5)]
    lines = [
        "  ".join(
            cell.ljust(width) if at in (0, 4) else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=False))
        )
        + f"  {line[5]}"
        for line in table
    ]
    more = [
        "",
        *_throughput_text(figures),
        "",
        conditions,
        ", ".join(f"{name} {value}" for name, value in machine.items()),
    ]
    more += [f"not measured: {part}: {reason}" for part, reason in figures.skipped.items()]
    return "\n".join(line.rstrip() for line in [*lines, *more])


def as_markdown(figures: Figures, machine: dict[str, str], conditions: str) -> str:
    """For docs/performance.md."""
    lines = [
        "| work (one worker) | floor | aim | measured | |",
        "|---|---|---|---|---|",
        *(
            f"| {row.work} | {_numbers(row.floor, row)} | {_numbers(row.aim, row)} | **{_measured(row)}** {_word(row)} "
            f"| {row.detail} |"
            for row in rows(figures)
        ),
        "",
        "Beside the table, medians:",
        "",
        "| work | target | CPU µs | answers/s | p50 / p99 ms | spread of CPU | around it, CPU µs |",
        "|---|---|---|---|---|---|---|",
        *(f"| {' | '.join(cells)} |" for cells in _throughput(figures)),
        "",
        f"{datetime.now(UTC):%Y-%m-%d}. {conditions}",
        "",
        *(f"- {name}: {value}" for name, value in machine.items()),
        *(f"- not measured: {part}: {reason}" for part, reason in figures.skipped.items()),
    ]
    return "\n".join(lines)


def write_page(figures: Figures, machine: dict[str, str], conditions: str) -> None:
    """Replace the figures of docs/performance.md. Raises `ValueError` when its marks are gone."""
    page = PAGE.read_text()
    before, begin, rest = page.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise ValueError(f"{PAGE.name} lacks the lines {_BEGIN!r} and {_END!r}")
    PAGE.write_text(f"{before}{begin}\n\n{as_markdown(figures, machine, conditions)}\n\n{end}{after}")


def write_json(figures: Figures, machine: dict[str, str], file: Path) -> None:
    table = [asdict(row) | {"verdict": row.verdict} for row in rows(figures)]
    file.write_text(json.dumps({"machine": machine, "table": table, "figures": asdict(figures)}, indent=2) + "\n")


def _throughput(figures: Figures) -> list[list[str]]:
    found = []
    for part, compared in figures.compared.items():
        for name, result in compared.items():
            around = ", ".join(f"{what} {cpu:.0f}" for what, cpu in result.around_us.items())
            found.append(
                [
                    PARTS[part][0],
                    name,
                    f"{result.cpu_us:.1f}",
                    f"{result.per_second:,.0f}",
                    f"{result.p50_ms:.2f} / {result.p99_ms:.2f}",
                    f"{result.spread:.0%}",
                    around,
                ]
            )
    return found


def _throughput_text(figures: Figures) -> list[str]:
    table = [["work", "target", "CPU µs", "answers/s", "p50 / p99 ms", "spread", "around it, CPU µs"]]
    table += _throughput(figures)
    if len(table) == 1:
        return []
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in table]


def _measured(row: Row) -> str:
    return "–" if row.measured is None else _numbers(row.measured, row)


def _numbers(values: tuple[float, ...], row: Row) -> str:
    return " / ".join(_number(value) for value in values) + row.unit


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 20 else f"{value:.2f}".rstrip("0").rstrip(".")


def _word(row: Row) -> str:
    return {"aim": "ok, aim met", "floor": "ok", "missed": "MISSED", "–": ""}[row.verdict]
