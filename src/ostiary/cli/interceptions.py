"""`ostiary interceptions`: single calls and all that is recorded of them."""

from typing import Annotated, Any

import typer

from ._app import new_app
from .client import Client, segment
from .output import (
    AsJson,
    Column,
    ago,
    count,
    indented,
    local_time,
    nothing_recorded,
    one_line,
    print_fields,
    print_json,
    print_table,
    say,
    took,
    who,
)

app = new_app("Single calls and all that is recorded of them.")

PATH = "/api/v2/ai-gateway/interceptions"
Query = Annotated[
    str | None,
    typer.Option(
        "--query",
        "-q",
        help="key:value pairs: initiator, provider, provider_name, model, client, session_id, started_after, started_before.",
    ),
]
_CONTENT_LINES = 20


@app.command("list")
def list_interceptions(
    query: Query = None,
    limit: Annotated[int, typer.Option(min=1, max=100000, help="How many, newest first.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Calls, newest first.

    Examples:

      ostiary interceptions list
      ostiary interceptions list -q 'initiator:alice provider_name:openai' --limit 100
    """
    with Client.here() as client:
        found = client.every(PATH, "results", limit=limit, q=query)
    if as_json:
        print_json(found)
        return
    rows = [
        (
            row["id"],
            ago(row["started_at"]),
            who(row["initiator"]),
            row["provider_name"],
            row["model"],
            row["outcome"] or "running",
            row["status_code"] or "",
            count(total(row, "input_tokens")),
            count(total(row, "output_tokens")),
            took(row["started_at"], row["ended_at"]),
        )
        for row in found
    ]
    columns = (
        *("ID", "STARTED", Column("WHO", cut=True), Column("PROVIDER", cut=True, drop=2), Column("MODEL", cut=True)),
        *("OUTCOME", Column("STATUS", right=True, drop=1), Column("IN", right=True, drop=4)),
        *(Column("OUT", right=True, drop=5), Column("TOOK", right=True, drop=3)),
    )
    print_table(columns, rows, nothing_recorded("calls", query))


@app.command()
def show(
    interception_id: Annotated[
        str, typer.Argument(metavar="ID", help="From a list, or the x-ostiary-interception-id header.")
    ],
    full: Annotated[bool, typer.Option("--full", help="Texts whole, however long.")] = False,
    as_json: AsJson = False,
) -> None:
    """One call: who, what was asked, tokens, tool calls, thoughts. Why it went where it went: `ostiary explain ID`.

    Example: ostiary interceptions show 0197f9a4-52cf-7000-8c5e-2f5d4a1f3a11
    """
    with Client.here() as client:
        row = client.get(f"{PATH}/{segment(interception_id)}")
    if as_json:
        print_json(row)
        return
    print_summary(row)
    lines = 0 if full else _CONTENT_LINES
    _print_tokens(row["token_usages"])
    for prompt in row["user_prompts"]:
        say(f"\nprompt\n{indented(prompt['prompt'], lines=lines)}")
    for thought in row["model_thoughts"]:
        say(f"\nthought ({one_line(thought['source'])})\n{indented(thought['content'], lines=lines)}")
    for tool in row["tool_usages"]:
        cut = ", cut off" if tool["truncated"] else ""
        say(f"\ntool call {one_line(tool['tool'])}{cut}\n{indented(tool['input'], lines=lines)}")
        if tool["invocation_error"]:
            say(f"    failed: {one_line(tool['invocation_error'])}")
    if row.get("output_text"):
        say(f"\nanswer\n{indented(row['output_text'], lines=lines)}")
    for result in row.get("tool_results") or []:
        say(f"\ntool result\n{indented(result, lines=lines)}")


def print_summary(row: dict[str, Any]) -> None:
    """Who called what, and how it ended."""
    outcome = f"{row['outcome']} {row['status_code'] or ''}" if row["outcome"] else "running"
    print_fields(
        [
            ("id", row["id"]),
            ("who", who(row["initiator"])),
            ("provider", f"{row['provider_name']} ({row['provider']})"),
            ("model", row["model"]),
            ("route", f"{row['route']}{', streaming' if row['streaming'] else ''}"),
            ("client", row["client"]),
            ("session", row["session_id"]),
            ("credential", f"{row['credential_kind']} {row['credential_hint'] or ''}"),
            ("started", local_time(row["started_at"])),
            ("took", took(row["started_at"], row["ended_at"])),
            ("outcome", outcome),
            ("error", ": ".join(part for part in (row["error_type"], row["error_message"]) if part)),
        ]
    )


def total(row: dict[str, Any], field: str) -> int | None:
    """A number of tokens over all upstream calls; None when none is known."""
    usages = row.get("token_usages") or []
    return sum(usage[field] for usage in usages) if usages else None


def _print_tokens(usages: list[dict[str, Any]]) -> None:
    for usage in usages:
        parts = [f"{count(usage['input_tokens'])} in", f"{count(usage['output_tokens'])} out"]
        parts += [
            f"{count(usage[field])} {name}"
            for field, name in (
                ("cache_read_input_tokens", "read from cache"),
                ("cache_write_input_tokens", "to cache"),
            )
            if usage[field]
        ]
        parts += [f"{name} {value}" for name, value in (usage["metadata"] or {}).items()]
        say(f"tokens      {one_line(', '.join(parts), 1000)}")
