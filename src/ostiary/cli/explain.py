"""`ostiary explain`: the decision trace of a call as a timeline."""

from typing import Annotated, Any

import typer

from ._app import new_app
from .client import Client, segment
from .failure import Failure
from .interceptions import PATH, print_summary
from .output import AsJson, one_line, print_json, say

app = new_app()

_REACHED = {
    "identify": "token known",
    "body": "body read",
    "check": "body checked",
    "record": "start recorded",
    "connect": "connection to the provider open",
    "send": "request sent",
    "head": "provider's head here",
    "first_chunk": "first piece of the answer here",
    "end": "answer complete",
}
"""What has been reached when a stage of the trace is noted (design §5)."""


@app.command()
def explain(
    interception_id: Annotated[
        str,
        typer.Argument(
            metavar="ID", help="From `ostiary interceptions list`, or the x-ostiary-interception-id header."
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Why a call went where it went: keys considered, edits made, attempts, and when each step was reached.

    Example: ostiary explain 0197f9a4-52cf-7000-8c5e-2f5d4a1f3a11
    """
    with Client.here() as client:
        row = client.get(f"{PATH}/{segment(interception_id)}")
    trace = row.get("trace")
    if as_json:
        print_json(trace)
        return
    print_summary(row)
    if not trace:
        raise Failure("this call has no trace: it runs still, or its worker ended before it did")
    for line in trace_lines(trace):
        say(line)


def trace_lines(trace: dict[str, Any]) -> list[str]:
    """A decision trace as text."""
    lines: list[str] = []
    if trace.get("candidates"):
        lines += ["", "keys"]
        lines += [f"    {one_line(hint)}  {one_line(reason) or 'taken'}" for hint, reason in trace["candidates"]]
    lines += ["", "edits", *(f"    {one_line(edit, 1000)}" for edit in trace.get("edits") or ["none: sent as it came"])]
    lines += ["", "timeline, ms since the request's head"]
    lines += timeline(trace.get("stages") or {}, trace.get("attempts") or [])
    if trace.get("notes"):
        lines += ["", "notes", *(f"    {one_line(text, 1000)}" for text in trace["notes"])]
    return lines


def timeline(stages: dict[str, int], attempts: list[dict[str, Any]]) -> list[str]:
    """When each step was reached, with the distance from the one before. Times come in µs."""
    events = [(at, _REACHED.get(name, one_line(name))) for name, at in stages.items()]
    events += [(attempt.get("at_us", 0), _attempt(number, attempt)) for number, attempt in enumerate(attempts, 1)]
    lines, before = [], 0
    for at, what in sorted(events, key=lambda event: event[0]):
        lines.append(f"{at / 1000:12.3f}  {f'+{(at - before) / 1000:.3f}':>12}  {what}")
        before = at
    return lines or ["    nothing was timed"]


def _attempt(number: int, attempt: dict[str, Any]) -> str:
    """At the moment when it was made; what became of it stands behind the arrow."""
    made = [f"attempt {number}"]
    if attempt.get("key_hint"):
        made.append(f"with {one_line(attempt['key_hint'])}")
    made.append("on an open connection" if attempt.get("reused_connection") else "on a new connection")
    became = []
    if attempt.get("status"):
        became.append(f"answered {attempt['status']}")
    if attempt.get("error"):
        became.append(f"failed: {one_line(attempt['error'])}")
    return " ".join(made) + (f" -> {', '.join(became)}" if became else "")
