"""`ostiary sessions`: what agents did, session by session."""

from typing import Annotated, Any

import typer

from ._app import new_app
from .client import Client, segment
from .interceptions import Query
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
    who,
)

app = new_app("Sessions of agents: threads, prompts, tool calls, tokens.")

_PATH = "/api/v2/ai-gateway/sessions"
_CONTENT_LINES = 8
_PAGE = 200
_MAX_THREADS = 10_000


@app.command("list")
def list_sessions(
    query: Query = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many, latest first.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Sessions, the latest active first.

    Examples:

      ostiary sessions list
      ostiary sessions list -q 'initiator:me' --json
    """
    with Client.here() as client:
        answer = client.get(_PATH, limit=limit, q=query)
    if as_json:
        print_json(answer)
        return
    rows = [
        (
            session["id"],
            who(session["initiator"]),
            session.get("client") or "",
            ", ".join(session["models"]),
            session["threads"],
            count(session["token_usage_summary"]["input_tokens"]),
            count(session["token_usage_summary"]["output_tokens"]),
            ago(session["last_active_at"]),
            one_line(session.get("last_prompt") or "", 80),
        )
        for session in answer["sessions"]
    ]
    columns = (
        *("ID", Column("WHO", cut=True), Column("CLIENT", cut=True, drop=3), Column("MODELS", cut=True, drop=6)),
        *(Column("THREADS", right=True, drop=1), Column("IN", right=True, drop=4), Column("OUT", right=True, drop=5)),
        *(Column("ACTIVE", drop=2), Column("LAST PROMPT", cut=True)),
    )
    print_table(columns, rows, nothing_recorded("sessions", query))


@app.command()
def show(
    session_id: Annotated[str, typer.Argument(metavar="ID", help="From `ostiary sessions list`.")],
    user: Annotated[
        str | None, typer.Option(help="Whose, where two people's sessions have that id. [default: the one active last]")
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Texts whole, however long.")] = False,
    as_json: AsJson = False,
) -> None:
    """One session: its threads with prompts, thoughts, tool calls and tokens.

    Example: ostiary sessions show 0197f9a4-52cf-7000-8c5e-2f5d4a1f3a11
    """
    with Client.here() as client:
        session = _whole(client, session_id, user)
    if as_json:
        print_json(session)
        return
    print_fields(
        [
            ("session", session["id"]),
            ("who", who(session["initiator"])),
            ("client", session.get("client")),
            ("models", ", ".join(session["models"])),
            ("started", local_time(session["started_at"])),
            ("ended", local_time(session.get("ended_at"))),
            ("tokens", _tokens(session["token_usage_summary"])),
        ]
    )
    for thread in session["threads"]:
        _print_thread(thread, 0 if full else _CONTENT_LINES)


def _whole(client: Client, session_id: str, user: str | None) -> dict[str, Any]:
    """A session with its threads, of which the API gives a page at a time."""
    path = f"{_PATH}/{segment(session_id)}"
    session: dict[str, Any] = client.get(path, limit=_PAGE, initiator=user)
    owner = session["initiator"]["id"]  # the next page must not be another's, who has become active meanwhile
    page = session["threads"]
    while len(page) == _PAGE and len(session["threads"]) < _MAX_THREADS:
        page = client.get(path, limit=_PAGE, initiator=owner, after_id=page[-1]["id"])["threads"]
        session["threads"] += page
    return session


def _print_thread(thread: dict[str, Any], lines: int) -> None:
    say(f"\n{local_time(thread['started_at'])}  {thread['id']}  {one_line(thread['model'])}")
    if thread.get("prompt"):
        say(indented(thread["prompt"], "  > ", lines))
    for action in thread["agentic_actions"]:
        for thought in action["thinking"]:
            say(indented(thought["text"], "    ~ ", lines))
        for call in action["tool_calls"]:
            say(f"    * {one_line(call['tool'])}")
            say(indented(call["input"], "        ", lines))
    say(f"    {_tokens(thread['token_usage'])}")
    if thread.get("error_type"):
        say(f"    error: {one_line(thread['error_type'])} {one_line(thread.get('error_message') or '')}")


def _tokens(usage: dict[str, Any]) -> str:
    text = f"{count(usage['input_tokens'])} in, {count(usage['output_tokens'])} out"
    if usage.get("cache_read_input_tokens"):
        text += f", {count(usage['cache_read_input_tokens'])} read from cache"
    if usage.get("cache_write_input_tokens"):
        text += f", {count(usage['cache_write_input_tokens'])} to cache"
    return text
