"""How the gateways are: alive, up to date, with usable keys, and with everything that they appended in the database.

Rules
- A change takes a moment to every worker, a record to the database. What is behind is looked at again for
  `SETTLE_SECONDS` before it counts: then it is stuck, not under way.
- A record counts as arrived when the database has it, whatever the gateway says.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

from ostiary.cli.client import Client
from ostiary.cli.key_health import until, why
from ostiary.cli.output import ago, one_line

from .findings import Finding, Group, number
from .server import gateway_clocks

SETTLE_SECONDS: Final = 12.0
"""More than the ten seconds between two reports of a gateway."""
_POLL: Final = 0.5
_REPLICAS: Final = "/api/v2/ai-gateway/replicas"
_STORED: Final = "/api/v2/diagnosis/stored"

_gateways, _records = Group("gateways"), Group("records")

Replica = dict[str, Any]


class Fleet(NamedTuple):
    """What the gateways say, and how far the database has their journals."""

    revision: int
    """The newest of the providers."""
    replicas: list[Replica]
    stored: dict[str, int]
    """The last record of each of their journals that the database has."""

    @property
    def live(self) -> list[Replica]:
        return [one for one in self.replicas if one["state"] == "live"]


def check(client: Client) -> Iterator[Finding]:
    """All gateways."""
    fleet = settle(lambda: look(client), SETTLE_SECONDS)
    if not fleet.live:
        cure = "start one, or see the log of one that runs: it says why it does not reach the server"
        yield _gateways.wrong("no gateway reports to the server", cure)
    for replica in fleet.replicas:
        if replica["state"] == "live":
            yield from _served(replica, fleet.revision)
            yield from _ailing(replica)
        else:
            yield _gone(replica, unstored(fleet, replica))
    yield from gateway_clocks(fleet.replicas)
    yield from _versions(fleet)
    yield from arrived(fleet)


def settle(look_now: Callable[[], Fleet], patience: float) -> Fleet:
    """How things stand once nothing is under way any more, or when that has taken too long."""
    deadline = time.monotonic() + patience
    while True:
        fleet = look_now()
        waiting = [one for one in fleet.live if behind(one, fleet.revision) or unstored(fleet, one)]
        if (fleet.live and not waiting) or time.monotonic() >= deadline:
            return fleet
        time.sleep(_POLL)


def reports(client: Client, replica_id: str) -> bool:
    """Whether a gateway has reported lately; one that has just started is given the time to do so."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        if any(one["replica_id"] == replica_id for one in client.get(_REPLICAS)["replicas"]):
            return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL)


def look(client: Client) -> Fleet:
    # in this order: what was appended when a gateway reported has had the time until the second answer
    page = client.get(_REPLICAS)
    return Fleet(page["revision"], page["replicas"], client.get(_STORED))


def behind(replica: Replica, newest: int) -> bool:
    """Whether its link or one of its workers serves older providers."""
    return min((one["revision"] for one in replica["workers"]), default=0) < newest or replica["revision"] < newest


def unstored(fleet: Fleet, replica: Replica) -> int:
    """Records that it had appended at its last report and the database has not now."""
    return sum(
        max(0, int(one["appended_seq"]) - fleet.stored.get(one["journal_id"], int(one["acked_seq"])))
        for one in replica["journals"]
    )


def _served(replica: Replica, newest: int) -> Iterator[Finding]:
    host = one_line(replica["hostname"])
    workers = number(len(replica["workers"]), "worker")
    if not replica["workers"]:
        yield _gateways.wrong(f"{host} has no worker that serves", "see its log")
    elif behind(replica, newest):
        serving = min(one["revision"] for one in replica["workers"])
        cure = "its link or a worker is stuck: see its log, then restart it"
        yield _gateways.wrong(f"{host} serves the providers of revision {serving}, the newest is {newest}", cure)
    else:
        yield _gateways.ok(f"{host} ({replica['mode']}): link up, {workers} at revision {newest}")
    for name, reason in replica["provider_errors"].items():
        cure = f"ostiary providers show {one_line(name)}"
        yield _gateways.wrong(f"{host} cannot serve {one_line(name)}: {one_line(reason)}", cure)


def _versions(fleet: Fleet) -> Iterator[Finding]:
    builds = sorted({one_line(one["build"]) for one in fleet.live})
    if len(builds) > 1:
        cure = "bring all to one version, servers first: `ostiary gateway status` says who has which"
        yield _gateways.warning(f"gateways are of different versions: {', '.join(builds)}", cure)


def _gone(replica: Replica, waiting: int) -> Finding:
    host, seen = one_line(replica["hostname"]), ago(replica["last_seen"])
    if waiting:
        cure = "start it again with the same data directory: it ships them then"
        text = f"{host} was heard of {seen}, with {number(waiting, 'record')} on its disk that the database has not"
        return _gateways.wrong(text, cure)
    cure = "see whether it runs and reaches the server; one that was taken away is forgotten after a day"
    return _gateways.warning(f"{host} was heard of {seen}, nothing of it is missing", cure)


def _ailing(replica: Replica) -> Iterator[Finding]:
    """Its keys and breakers that do not let everything through."""
    host = one_line(replica["hostname"])
    for key in replica["keys"]:
        name = one_line(key["provider"])
        text = f"{name}: key {one_line(key['hint'])} is {key['state']} on {host}: {one_line(why(key))}"
        waits = f" (next {until(key)})" if until(key) else ""
        if key["state"] == "suspect":
            cure = f"the provider refuses it: replace it with ostiary providers edit {name}"
            yield _gateways.wrong(text + waits, cure)
        elif key["state"] != "usable":
            cure = "it passes by itself; more keys, or a higher limit at the provider, make it rarer"
            yield _gateways.warning(text + waits, cure)
    for breaker in replica["breakers"]:
        about = f"{one_line(breaker['provider'])} {one_line(breaker['route'])} {one_line(breaker['model'])}"
        text = f"{about}: the circuit breaker of {host} is {one_line(breaker['state'].replace('_', '-'))}"
        if breaker["state"] == "open":
            cure = f"the provider keeps failing: ostiary interceptions list -q provider_name:{one_line(breaker['provider'])}"
            yield _gateways.wrong(f"{text}, its calls get 503", cure)
        elif breaker["state"] != "closed":
            yield _gateways.warning(text, "the next calls decide whether it closes")


def arrived(fleet: Fleet) -> Iterator[Finding]:
    """Whether everything that live gateways appended is in the database."""
    right = True
    for replica in fleet.live:
        host = one_line(replica["hostname"])
        lost = sum(
            max(0, int(one["acked_seq"]) - fleet.stored.get(one["journal_id"], int(one["acked_seq"])))
            for one in replica["journals"]
        )
        if lost:
            cure = "was it restored from a backup? What came after that backup is gone from the gateway's disk too"
            text = f"the database has {number(lost, 'record')} less than it acknowledged to {host}"
            yield _records.wrong(text, cure)
        elif waiting := unstored(fleet, replica):
            cure = (
                "the log of that gateway says why they are not shipped, the log of the server why they are not stored"
            )
            yield _records.wrong(f"{number(waiting, 'record')} of {host} do not get into the database", cure)
        right = right and not lost and not unstored(fleet, replica)
    if right and fleet.live:
        appended = sum(int(one["appended_seq"]) for replica in fleet.live for one in replica["journals"])
        yield _records.ok(f"all of {number(appended, 'record')} that live gateways had told of are stored")
