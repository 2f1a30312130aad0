"""`ostiary gateway status`: every gateway that reports to the server, and what is wrong with it and around it."""

from typing import Any

from .client import Client
from .key_health import until, why
from .output import AsJson, Column, ago, count, note, one_line, print_json, print_table, say

_PATH = "/api/v2/ai-gateway/replicas"


def status(as_json: AsJson = False) -> int:
    """Every gateway: whether it reports, what it serves, how many records wait to be shipped.

    Below them the keys that cannot be used everywhere and the circuit breakers
    that are not closed; those pass by themselves.

    Exit status 1 when one has stopped reporting or has a provider that it cannot serve.

    Examples:

      ostiary gateway status
      ostiary gateway status --json
    """
    with Client.here() as client:
        page = client.get(_PATH)
    replicas = page["replicas"]
    troubled = [replica for replica in replicas if replica["state"] != "live" or replica["provider_errors"]]
    if as_json:
        print_json(page)
        return 1 if troubled else 0
    rows = [_row(replica, page["revision"]) for replica in replicas]
    columns = (
        *(Column("HOST", cut=True), "ID", "STATE", Column("MODE", drop=1), Column("BUILD", drop=2)),
        *(Column("WORKERS", right=True), Column("REVISION", right=True), Column("UNSHIPPED", right=True), "SEEN"),
    )
    print_table(columns, rows, "no gateway has reported within the last day")
    if ailing := [row for replica in replicas if replica["state"] == "live" for row in _ailing(replica)]:
        say("")
        what = (Column("WHAT", cut=True), "STATE", Column("WHY", cut=True), "UNTIL")
        print_table((Column("HOST", cut=True), "PROVIDER", *what), ailing, "")
    for replica in troubled:
        for name, reason in replica["provider_errors"].items():
            note(f"{one_line(replica['hostname'])} cannot serve {one_line(name)}: {one_line(reason)}")
    return 1 if troubled else 0


def _ailing(replica: dict[str, Any]) -> list[tuple[object, ...]]:
    """Its keys and breakers that do not let everything through."""
    host = replica["hostname"]
    return [
        *(
            (host, key["provider"], f"key {key['hint']}", key["state"], why(key), until(key))
            for key in replica["keys"]
            if key["state"] != "usable"
        ),
        *(
            (
                *(host, breaker["provider"], f"breaker {breaker['route']}", breaker["state"].replace("_", "-")),
                *(breaker["model"], until(breaker)),
            )
            for breaker in replica["breakers"]
            if breaker["state"] != "closed"
        ),
    ]


def _row(replica: dict[str, Any], newest: int) -> tuple[object, ...]:
    serving = min((worker["revision"] for worker in replica["workers"]), default=replica["revision"])
    unshipped = sum(max(0, journal["appended_seq"] - journal["acked_seq"]) for journal in replica["journals"])
    return (
        replica["hostname"],
        replica["replica_id"][:8],
        replica["state"],
        replica["mode"],
        replica["build"],
        len(replica["workers"]),
        str(serving) if serving == newest else f"{serving} of {newest}",
        count(unshipped),
        ago(replica["last_seen"]),
    )
