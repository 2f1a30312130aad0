"""`ostiary providers keys`: which keys of a provider are usable, which not, why and until when; on every gateway.

Also how the state of a key is put into words, for this command and for `ostiary gateway status`.
"""

from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from .client import Client, segment
from .output import AsJson, Column, ago, local_time, note, parse_time, print_json, print_table, say

_REASONS = {"rate_limited": "rate limited", "quota": "quota used up", "refused": "refused", "recovered": "recovered"}

View = dict[str, Any]
"""A key as one gateway has found it."""


def keys(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its name or id.")],
    timeline: Annotated[bool, typer.Option("--timeline", help="What has become of each key, oldest first.")] = False,
    as_json: AsJson = False,
) -> None:
    """The keys of a provider in the order of failover: usable, cooling or suspect, why and until when.

    Gateways that disagree have a line each: every machine finds out for itself.
    docs/key-pools.md says what the states mean.

    Examples:

      ostiary providers keys openai
      ostiary providers keys openai --timeline
    """
    with Client.here() as client:
        page = client.get(f"/api/v2/ai/providers/{segment(name)}/keys")
    if as_json:
        print_json(page)
        return
    rows = [row for key in page["keys"] for row in _rows(key)]
    hosts = any(row[-2] for row in rows)
    columns = (
        "#",
        "KEY",
        "STATE",
        Column("WHY", cut=True),
        "UNTIL",
        Column("SINCE", drop=2),
        "HOST",
        Column("ID", drop=1),
    )
    shown = [index for index, column in enumerate(columns) if hosts or column != "HOST"]
    print_table(
        [columns[index] for index in shown],
        [[row[index] for index in shown] for row in rows],
        f"{page['provider']} has no keys: people bring their own",
    )
    if page["keys"] and not page["enabled"]:
        note(f"{page['provider']} is disabled: no gateway has its keys")
    if timeline:
        for key in page["keys"]:
            _print_timeline(key)


def why(view: View) -> str:
    """Why a key is in its state: `rate limited for gpt-5`, `refused 3 times`."""
    reason = _REASONS.get(view["reason"], view["reason"])
    if view["state"] == "suspect" and view["strikes"] > 1:
        return f"{reason} {view['strikes']} times"
    if view["state"] == "cooling" and view["model"]:
        others = len({one["model"] for one in view.get("cooling", ())} - {view["model"]})
        return f"{reason} for {view['model']}" + (f" and {others} more" if others else "")
    return str(reason)


def until(view: View, now: datetime | None = None) -> str:
    """When it is usable again, or tried: `in 42s`; `next request` when it is to be tried."""
    moment, now = parse_time(view["until"]), now or datetime.now(UTC)
    if moment is None:
        return ""
    if moment > now:
        return ago(view["until"], now)
    return "next request" if view["state"] == "suspect" else "now"


def _rows(key: dict[str, Any]) -> list[tuple[object, ...]]:
    """One when all gateways agree."""
    views: list[View] = [view for view in key["replicas"] if view["replica_state"] == "live"]
    about = (key["position"], key["masked"])
    if not views:
        return [(*about, "unknown", "no live gateway has told of it", "", "", "", key["id"])]
    if len({(view["state"], why(view)) for view in views}) == 1:
        # the one that lasts longest
        last = max(views, key=lambda view: view["until"] or "")
        return [(*about, *_state(last), "", key["id"])]
    return [(*about, *_state(view), view["hostname"], key["id"]) for view in views]


def _state(view: View) -> tuple[str, ...]:
    return view["state"], why(view), until(view), ago(view["since"])


def _print_timeline(key: dict[str, Any]) -> None:
    told = [view for view in key["replicas"] if view["timeline"]]
    changes = [(one, view["hostname"]) for view in told for one in view["timeline"]]
    changes.sort(key=lambda change: change[0]["at"] or "")
    say("")
    say(f"{key['position']}  {key['masked']}")
    if not told:
        say("nothing has happened to it since its gateways started")
        return
    several = len(told) > 1
    print_table(
        ("AT", *(("HOST",) if several else ()), "STATE", Column("WHY", cut=True), "UNTIL"),
        [
            (local_time(one["at"]), *((host,) if several else ()), one["state"], why(one), local_time(one["until"]))
            for one, host in changes
        ],
        "",
    )
