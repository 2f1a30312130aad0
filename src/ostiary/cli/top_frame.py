"""What `ostiary top` shows of a look: lines of text with their meaning, in the room that there is. Pure."""

from collections.abc import Sequence
from datetime import datetime
from textwrap import wrap
from typing import Any, Literal, NamedTuple

from .key_health import until, why
from .output import Column, ago, one_line, table_lines
from .storage import size
from .top_source import Look, Machine

Tone = Literal["plain", "title", "quiet", "bad"]

Row = Sequence[object]


class Line(NamedTuple):
    text: str
    tone: Tone = "plain"


def frame(look: Look, now: datetime, width: int, height: int | None = None) -> list[Line]:
    """The lines of a look. With `height` the longest lists are cut so that all of it fits."""
    head = [_title(look, now), *_summary(look, width)]
    for machine in look.machines:
        head += _machine(machine, width)
    for one in look.unreachable:
        head += _wrapped(f"cannot show {one.what}: {one_line(one.why, 500)}", width, "bad")
    replicas = look.replicas["replicas"] if look.replicas else []
    sections = [
        section
        for section in (
            _traffic(look, width),
            _errors(look, width),
            _gateways(look, now, width),
            _troubles(replicas, now, width),
        )
        if section
    ]
    room = None if height is None else height - len(head) - 2 * len(sections)
    lines = [*head]
    for section, shown in zip(sections, _shares([len(section) for section in sections], room), strict=True):
        lines += [Line(""), *section[:shown]]
        if shown < len(section):
            lines.append(Line(f"… {len(section) - shown} more", "quiet"))
    lines = [Line(_cut(line.text, width), line.tone) for line in lines]
    return lines if height is None else lines[:height]


def _shares(wanted: list[int], room: int | None) -> list[int]:
    """How many lines of each section are shown: the longest give way first, a title and two rows stay."""
    shown = list(wanted)
    while room is not None and sum(shown) > room:
        longest = max(range(len(shown)), key=lambda index: shown[index], default=None)
        if longest is None or shown[longest] <= 3:
            break
        shown[longest] -= 1
    return shown


def _title(look: Look, now: datetime) -> Line:
    window = f"last {look.traffic['covered_seconds']:.0f} s" if look.traffic else "no traffic to show"
    return Line(f"ostiary top   {one_line(look.server)}   {now.astimezone():%H:%M:%S}   {window}", "title")


def _wrapped(text: str, width: int, tone: Tone = "plain") -> list[Line]:
    return [Line(part, tone) for part in wrap(text, width, max_lines=3, placeholder=" …", subsequent_indent="  ")]


def _summary(look: Look, width: int) -> list[Line]:
    parts = []
    if look.traffic:
        total, seconds = look.traffic["total"], look.traffic["covered_seconds"]
        parts += [
            f"{rate(total['started'], seconds)} requests/s",
            f"{rate(total['input_tokens'], seconds)} tokens/s in",
            f"{rate(total['output_tokens'], seconds)} out",
            f"{total['in_flight']} in flight",
            f"{total['failed']} of {total['ended']} failed",
        ]
    if look.replicas:
        replicas = look.replicas["replicas"]
        live = sum(one["state"] == "live" for one in replicas)
        unshipped = sum(_unshipped(one) for one in replicas)
        parts += [f"{live} of {len(replicas)} gateways live", f"{unshipped} records to ship"]
    return _wrapped(", ".join(parts), width)


def _machine(machine: Machine, width: int) -> list[Line]:
    """What a machine does right now."""
    gauges, rates = machine.gauges, machine.rates
    down = gauges.get("link_up") == 0.0
    parts = ["the server is away"] if down else []
    parts += [
        f"{gauges[name]:.0f} {text}"
        for name, text in (("in_flight", "in flight"), ("connections", "connections"), ("records_pending", "to ship"))
        if name in gauges
    ]
    if "journal_bytes" in gauges:
        parts.append(f"journal {size(round(gauges['journal_bytes']))}")
    if rates is not None:
        parts += [
            f"{rates[name]:.1f} {text}/s"
            for name, text in (("calls", "ended"), ("passthrough", "passed through"), ("refused", "refused"))
            if rates[name] or name == "calls"
        ]
    return _wrapped(f"now at {one_line(machine.url)}: {', '.join(parts)}", width, "bad" if down else "plain")


def _table(columns: Sequence[Column], rows: Sequence[Row], width: int, bad: Sequence[bool] = ()) -> list[Line]:
    if not rows:
        return []
    texts = [[one_line(cell, 500) for cell in row] for row in rows]
    first, *rest = table_lines(columns, texts, width)
    tones: list[Tone] = ["bad" if trouble else "plain" for trouble in (bad or [False] * len(rows))]
    return [Line(first, "title"), *(Line(text, tone) for text, tone in zip(rest, tones, strict=True))]


def _traffic(look: Look, width: int) -> list[Line]:
    if not look.traffic:
        return []
    seconds, models = look.traffic["covered_seconds"], look.traffic["models"]
    columns = (
        *(Column("PROVIDER", cut=True), Column("MODEL", cut=True), Column("REQ/S", right=True)),
        *(Column("IN FLIGHT", right=True, drop=4), Column("FAILED", right=True), Column("LEFT", right=True, drop=1)),
        *(Column("TOK/S IN", right=True, drop=5), Column("OUT", right=True, drop=6)),
        *(Column("P50", right=True, drop=2), Column("P95", right=True, drop=3)),
    )
    rows = [
        (
            *(one["provider_name"], one["model"], rate(one["started"], seconds), one["in_flight"]),
            *(one["failed"], one["client_closed"], rate(one["input_tokens"], seconds)),
            *(rate(one["output_tokens"], seconds), span(one["p50_seconds"]), span(one["p95_seconds"])),
        )
        for one in models
    ]
    return _table(columns, rows, width, [one["failed"] > 0 for one in models]) or [
        Line(f"no requests within the last {look.traffic['window_seconds']} s", "quiet")
    ]


def _errors(look: Look, width: int) -> list[Line]:
    errors = look.traffic["errors"] if look.traffic else []
    columns = (
        *(Column("FAILED", right=True), Column("STATUS", right=True), Column("WHY", cut=True)),
        *(Column("PROVIDER", cut=True), Column("MODEL", cut=True)),
    )
    rows = [
        (
            *(one["count"], one["status_code"] or "", one["error_type"] or one["outcome"]),
            *(one["provider_name"], one["model"]),
        )
        for one in errors
    ]
    return _table(columns, rows, width)


def _gateways(look: Look, now: datetime, width: int) -> list[Line]:
    if not look.replicas:
        return []
    newest = look.replicas["revision"]
    replicas = look.replicas["replicas"]
    columns = (
        *(Column("GATEWAY", cut=True), Column("STATE"), Column("MODE", drop=1), Column("WORKERS", right=True, drop=2)),
        *(
            Column("REVISION", right=True, drop=3),
            Column("TO SHIP", right=True),
            Column("KEYS", cut=True),
            Column("SEEN"),
        ),
    )
    rows = [
        (
            *(one["hostname"], one["state"], one["mode"], len(one["workers"]), f"{one['revision']} of {newest}"),
            *(_unshipped(one), _keys(one["keys"]), ago(one["last_seen"], now)),
        )
        for one in replicas
    ]
    bad = [one["state"] != "live" or bool(one["provider_errors"]) for one in replicas]
    return _table(columns, rows, width, bad) or [Line("no gateway has reported within the last day", "quiet")]


def _troubles(replicas: Sequence[dict[str, Any]], now: datetime, width: int) -> list[Line]:
    """Keys that are not usable, breakers that are not closed, providers that cannot be served."""
    rows: list[Row] = []
    for one in replicas:
        if one["state"] != "live":
            continue
        host = one["hostname"]
        rows += [
            (host, key["provider"], f"key {key['hint']}", key["state"], why(key), until(key, now))
            for key in one["keys"]
            if key["state"] != "usable"
        ]
        rows += [
            (
                *(host, breaker["provider"], f"breaker {breaker['route']}", breaker["state"].replace("_", "-")),
                *(breaker["model"], until(breaker, now)),
            )
            for breaker in one["breakers"]
            if breaker["state"] != "closed"
        ]
        rows += [(host, name, "provider", "unusable", reason, "") for name, reason in one["provider_errors"].items()]
    columns = (
        *(Column("GATEWAY", cut=True), Column("PROVIDER", cut=True), Column("WHAT", cut=True), Column("STATE")),
        *(Column("WHY", cut=True), Column("UNTIL")),
    )
    return _table(columns, rows, width, [True] * len(rows))


def _keys(keys: Sequence[dict[str, Any]]) -> str:
    """`4 usable, 1 cooling`."""
    states: dict[str, int] = {}
    for key in keys:
        states[key["state"]] = states.get(key["state"], 0) + 1
    order = sorted(states, key=lambda state: (state != "usable", state))
    return ", ".join(f"{states[state]} {state}" for state in order)


def _unshipped(replica: dict[str, Any]) -> int:
    return sum(max(0, journal["appended_seq"] - journal["acked_seq"]) for journal in replica["journals"])


def rate(number: float, seconds: float) -> str:
    """A second's share: `0.3`, `12`, `4.2k`."""
    value = number / seconds if seconds else 0.0
    for unit in ("", "k"):
        if value < 1000:
            return f"{value:.1f}{unit}" if 0 < value < 10 else f"{value:.0f}{unit}"
        value /= 1000
    return f"{value:.1f}M"


def span(seconds: float | None) -> str:
    """How long calls take: `42ms`, `1.5s`, `3m`."""
    if seconds is None:
        return ""
    if seconds < 1:
        return f"{seconds * 1000:.0f}ms"
    return f"{seconds:.1f}s" if seconds < 100 else f"{seconds / 60:.0f}m"


def _cut(text: str, width: int) -> str:
    from rich.cells import cell_len, set_cell_size

    return text if cell_len(text) <= width else set_cell_size(text, width - 1) + "…"
