"""What commands print.

Rules
- Text from the server can hold anything a user, a model or a provider wrote. Control characters are shown as � before
  they reach a terminal: an escape sequence in a prompt must not move an administrator's cursor.
- On a terminal a table is cut to its width; in a pipe nothing is cut.
- `--json` prints what the API answered, whole.
"""

import json
import re
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

AsJson = Annotated[bool, typer.Option("--json", help="Print the API's answer as JSON.")]

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_PIPE_WIDTH = 1_000_000


def clean(text: object) -> str:
    """Text that cannot drive a terminal. Line breaks and tabs stay."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", str(text).replace("\r\n", "\n"))


def one_line(text: object, limit: int = 200) -> str:
    """`text` on one line, cut at `limit` characters."""
    flat = " ".join(clean(text).split())
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"


def print_json(value: Any) -> None:
    """As JSON on stdout; what could drive a terminal is escaped, which JSON reads back unchanged."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    typer.echo(_CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text))


def say(text: str) -> None:
    """A line on stdout."""
    typer.echo(text)


def note(text: str) -> None:
    """A line for the person, not for a program that reads stdout."""
    typer.echo(text, err=True)


def console() -> "Console":
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH, highlight=False, emoji=False)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]], empty: str) -> None:
    """A table; `empty` instead when there are no rows. A column name that ends in `>` is right-aligned.

    The last column is the one that is cut when the terminal is narrow.
    """
    if not rows:
        note(empty)
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold", show_edge=False)
    for index, name in enumerate(columns):
        last = index == len(columns) - 1
        table.add_column(
            name.rstrip(">"),
            justify="right" if name.endswith(">") else "left",
            no_wrap=True,
            overflow="ellipsis",
            ratio=None,
            min_width=8 if last else None,
        )
    for row in rows:
        table.add_row(*(Text("" if cell is None else one_line(cell, 2000)) for cell in row))
    with console() as screen, screen.capture() as captured:
        screen.print(table)
    # cells are padded to their column; the last one need not be
    typer.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))


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
    """How long something lasted, e.g. `0.42s`."""
    first, last = parse_time(start), parse_time(end)
    return f"{(last - first).total_seconds():.2f}s" if first and last else ""


def who(initiator: dict[str, Any]) -> str:
    """A person's name, or the id of one who is no longer known."""
    return str(initiator["username"] or initiator["id"])


def count(number: object) -> str:
    """A number with separators, empty for none."""
    return f"{number:,}" if isinstance(number, int) else ""
