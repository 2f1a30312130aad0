"""`ostiary storage`: how much room the record takes, and what becomes of old records."""

from typing import Annotated, Any

import typer

from ._app import new_app
from .client import Client
from .output import AsJson, Column, ago, count, local_time, print_fields, print_json, print_table, say

app = new_app()

PATH = "/api/v2/ai-gateway/storage"


@app.command()
def storage(
    partitions: Annotated[bool, typer.Option("--partitions", help="The weeks of each table too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Sizes of tables and indexes, how far back the record goes, and the last removal of old records.

    docs/retention.md says what goes when.

    Examples:

      ostiary storage
      ostiary storage --partitions
    """
    with Client.here() as client:
        found = client.get(PATH)
    if as_json:
        print_json(found)
        return
    retention = found["retention"]
    print_fields(
        [
            ("database", size(found["database_bytes"])),
            ("oldest record", _moment(found["oldest_record"])),
            ("newest record", _moment(found["newest_record"])),
            ("records are kept", f"{retention['seconds'] / 86400:g} days" if retention["seconds"] else "for ever"),
            ("old ones removed", _last_run(retention["last_run"])),
        ]
    )
    say("")
    columns = (
        *(Column("TABLE", cut=True), Column("ROWS ABOUT", right=True), Column("DATA", right=True)),
        *(Column("INDEXES", right=True), Column("WEEKS", right=True, drop=1)),
    )
    print_table(columns, [_table_row(table) for table in found["tables"]], "no tables")
    if partitions:
        _print_partitions(found["tables"])


def size(number: int) -> str:
    """Bytes as people read them: `812 B`, `3.4 MiB`."""
    if number < 1024:
        return f"{number} B"
    power = min(4, (number.bit_length() - 1) // 10)
    return f"{number / 1024**power:.1f} {' KMGT'[power]}iB"


def _table_row(table: dict[str, Any]) -> tuple[object, ...]:
    weeks = sum(one["week"] is not None for one in table["partitions"])
    sizes = (size(table["table_bytes"]), size(table["index_bytes"]))
    return (table["name"], count(table["rows"]), *sizes, weeks or "")


def _print_partitions(tables: list[dict[str, Any]]) -> None:
    """By week, the sums of all tables, and what no week holds."""
    weeks: dict[str | None, list[int]] = {}
    for table in tables:
        for part in table["partitions"]:
            sums = weeks.setdefault(part["week"], [0, 0, 0])
            if table["name"] == "interceptions":
                sums[0] += part["rows"]
            sums[1] += part["table_bytes"]
            sums[2] += part["index_bytes"]
    say("")
    print_table(
        (
            *("WEEK FROM", Column("CALLS ABOUT", right=True), Column("DATA", right=True)),
            Column("INDEXES", right=True),
        ),
        [
            (week or "no week", count(sums[0]), size(sums[1]), size(sums[2]))
            for week, sums in sorted(weeks.items(), key=lambda item: item[0] or "")
        ],
        "no partitions",
    )


def _moment(text: str | None) -> str:
    return f"{local_time(text)} ({ago(text)})" if text else "none"


def _last_run(run: dict[str, Any] | None) -> str:
    if run is None:
        return "not yet"
    went = [f"{count(number)} {name}" for name, number in sorted(run["result"].items()) if name != "bytes"]
    if "bytes" in run["result"]:
        went.append(size(run["result"]["bytes"]))
    text = f"{ago(run['finished_at'])}: {', '.join(went) or 'nothing was old enough'}"
    return text if run["complete"] else f"{text}; not all: {run['note']}"
