"""What commands print.

Rules
- Text from the server can hold anything a user, a model or a provider wrote. Control characters are shown as � before
  they reach a terminal: an escape sequence in a prompt must not move an administrator's cursor.
- On a terminal a table is made to fit its width; in a pipe nothing is cut or left out.
- `--json` prints what the API answered, whole.
"""

import json
import re
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from shutil import get_terminal_size
from typing import Annotated, Any, NamedTuple

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_GAP = "  "
_CUT_WIDTH = 12


def clean(text: object) -> str:
    """Text that cannot drive a terminal. Line breaks and tabs stay."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", str(text).replace("\r\n", "\n"))


def one_line(text: object, limit: int = 200) -> str:
    """`text` on one line, cut at `limit` characters."""
    flat = " ".join(clean(text).split())
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"


def print_json(value: Any) -> None:
    """As JSON on stdout; what could drive a terminal is escaped, which JSON reads back unchanged."""
    narrow = not (sys.stdout.encoding or "utf-8").lower().startswith("utf")
    text = json.dumps(value, indent=2, ensure_ascii=narrow)
    typer.echo(_CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text))


def say(text: str) -> None:
    """A line on stdout."""
    typer.echo(text)


def note(text: str) -> None:
    """A line for the person, not for a program that reads stdout."""
    typer.echo(text, err=True)


class Column(NamedTuple):
    """A column of a table, and what becomes of it when the terminal is too narrow."""

    name: str
    right: bool = False
    cut: bool = False
    """It may be cut down to `_CUT_WIDTH`. Ids are never cut: they are for copying."""
    drop: int = 0
    """Its turn to be left out when cutting is not enough; 0: never."""


def print_table(columns: Sequence[Column | str], rows: Sequence[Sequence[object]], empty: str) -> None:
    """A table; `empty` instead when there are no rows."""
    if not rows:
        note(empty)
        return
    texts = [["" if cell is None else one_line(cell, 2000) for cell in row] for row in rows]
    width = get_terminal_size().columns if sys.stdout.isatty() else None
    for line in table_lines([Column(one) if isinstance(one, str) else one for one in columns], texts, width):
        say(line)


def nothing_recorded(what: str, query: str | None) -> str:
    """What an empty list of the record says: that nothing matches is not that there is nothing."""
    if query:
        return f"no {what} match {one_line(query)}"
    return f"no {what} yet; point a client at <server>/api/v2/ai-gateway/<provider>"


def table_lines(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int | None) -> list[str]:
    """Header and rows as text, in `width` cells when one is given."""
    from rich.cells import cell_len

    wanted = [
        max(cell_len(column.name), *(cell_len(row[index]) for row in rows)) for index, column in enumerate(columns)
    ]
    shown = _fitting(columns, wanted, width)
    lines = []
    for row in ([column.name for column in columns], *rows):
        cells = [_cell(row[index], cells, columns[index].right) for index, cells in shown]
        lines.append(_GAP.join(cells).rstrip())
    return lines


def _fitting(columns: Sequence[Column], wanted: Sequence[int], width: int | None) -> list[tuple[int, int]]:
    """(index, cells) of the columns that are shown."""
    shown = dict(enumerate(wanted))
    if width is None:
        return list(shown.items())

    def excess() -> int:
        return sum(shown.values()) + len(_GAP) * (len(shown) - 1) - width

    def least() -> int:
        return excess() - sum(max(0, shown[index] - _CUT_WIDTH) for index in shown if columns[index].cut)

    for index in sorted(shown, key=lambda index: columns[index].drop):
        if columns[index].drop and least() > 0:
            del shown[index]
    while excess() > 0:
        widest = max((index for index in shown if columns[index].cut), key=lambda index: shown[index], default=None)
        if widest is None or shown[widest] <= _CUT_WIDTH:
            break
        shown[widest] -= 1
    return list(shown.items())


def _cell(text: str, cells: int, right: bool) -> str:
    from rich.cells import cell_len, set_cell_size

    if cell_len(text) > cells:
        return set_cell_size(text, cells - 1) + "…"
    padding = " " * (cells - cell_len(text))
    return padding + text if right else text + padding


def print_fields(pairs: Sequence[tuple[str, object]]) -> None:
    """Names and values, one a line; empty values are left out."""
    shown = [(name, one_line(value, 2000)) for name, value in pairs if value not in (None, "", [], {})]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        say(f"{name:<{width}}  {value}")


def indented(text: object, prefix: str = "    ", lines: int = 0) -> str:
    """`text` as a block; with `lines` only so many of them."""
    content = clean(text).splitlines() or [""]
    if lines and len(content) > lines:
        content = [*content[:lines], f"… {len(content) - lines} more lines"]
    return "\n".join(prefix + line for line in content)


def parse_time(text: str | None) -> datetime | None:
    """An API time (RFC 3339); None for none, and for what is not one."""
    if not text:
        return None
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None


def local_time(text: str | None) -> str:
    """An API time on this machine's clock, to the second."""
    moment = parse_time(text)
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S") if moment else ""


def ago(text: str | None, now: datetime | None = None) -> str:
    """An API time as its distance from now: `12s ago`, `in 3d`."""
    moment = parse_time(text)
    if moment is None:
        return ""
    seconds = round(((now or datetime.now(UTC)) - moment).total_seconds())
    distance = abs(seconds)
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if distance >= size:
            amount = f"{distance // size}{unit}"
            break
    else:
        amount = f"{distance}s"
    return f"{amount} ago" if seconds >= 0 else f"in {amount}"


def took(start: str | None, end: str | None) -> str:
    """How long something lasted: `42ms`, `1.50s`."""
    first, last = parse_time(start), parse_time(end)
    if first is None or last is None:
        return ""
    seconds = (last - first).total_seconds()
    return f"{seconds:.2f}s" if seconds >= 1 else f"{seconds * 1000:.0f}ms"


def who(initiator: dict[str, Any]) -> str:
    """A person's name, or the id of one who is no longer known."""
    return str(initiator["username"] or initiator["id"])


def count(number: object) -> str:
    """A number with separators, empty for none."""
    return f"{number:,}" if isinstance(number, int) else ""
