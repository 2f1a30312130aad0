"""What dies behind the workers is not noticed by people whose tokens are known, and nothing is lost or doubled."""

import time
import uuid

import httpx

from tests.support.chaos import chaos, kill_and_await_successor
from tests.support.database_door import DatabaseDoor
from tests.support.fake_provider import FakeProvider
from tests.support.load import BLOCKING, CHAT, MESSAGES, Load
from tests.support.reconcile import metric, reconcile
from tests.support.server import OWNER_TOKEN, Server, StartServer, eventually

CONTROL = "pace=40 events=8"
AUTHORISATION_LAPSES = 5.5
"""Seconds after which nobody's token is known without a doubt any more."""


def progress(load: Load, calls: int) -> None:
    """Wait until so many more calls have ended."""
    seen = len(load.calls)
    eventually(lambda: len(load.calls) >= seen + calls, what=load.summary())


def test_no_request_fails_when_link_control_plane_and_database_are_killed(
    start_server: StartServer, own_fake: FakeProvider
) -> None:
    server = start_server(own_fake, "--workers", "2")
    with Load(server.url, OWNER_TOKEN, concurrency=40, control=CONTROL, kinds=(CHAT, MESSAGES, BLOCKING)) as load:
        progress(load, 80)
        for kind in ("link", "control", "postgres", "control", "link"):
            kill_and_await_successor(server, kind)
            progress(load, 120)
        eventually(lambda: metric(server, "ostiary_link_up") == 1, what="the link is up")
        progress(load, 40)
        calls = load.finish()
    assert not load.failures(), load.summary()
    result = reconcile(server, own_fake, calls)
    assert result.outcomes == {"completed": len(calls)}
    assert not result.late


def outlive_an_outage(start_server: StartServer, fake: FakeProvider, door: DatabaseDoor, take_away: str) -> None:
    server = start_server(fake, "--workers", "2", **door.variables)
    idle = server.new_token("idle")
    assert ask(server, idle).status_code == 200
    with Load(server.url, OWNER_TOKEN, concurrency=20, control=CONTROL, kinds=(CHAT, MESSAGES, BLOCKING)) as load:
        progress(load, 20)
        getattr(door, take_away)()
        lapsed = time.monotonic() + AUTHORISATION_LAPSES
        eventually(lambda: time.monotonic() > lapsed and metric(server, "ostiary_link_up") == 0, within=40)
        progress(load, 60)
        assert ask(server, idle).status_code == 200
        assert ask(server, "ost_never-seen-before").status_code == 503
        assert httpx.get(f"{server.url}/readyz").status_code == 200
        assert metric(server, "ostiary_link_records_pending") > 60
        door.open()
        eventually(lambda: metric(server, "ostiary_link_up") == 1, within=30, what=server.tail())
        progress(load, 20)
        calls = load.finish()
    assert not load.failures(), load.summary()
    assert max(call.stalled for call in calls) < 2.0
    result = reconcile(server, fake, calls)
    assert result.outcomes == {"completed": len(result.by_mark)}


def test_known_people_are_served_through_an_outage_of_the_database_and_their_records_arrive(
    start_server: StartServer, own_fake: FakeProvider, door: DatabaseDoor
) -> None:
    outlive_an_outage(start_server, own_fake, door, "shut")


@chaos
def test_known_people_are_served_while_the_database_hangs(
    start_server: StartServer, own_fake: FakeProvider, door: DatabaseDoor
) -> None:
    outlive_an_outage(start_server, own_fake, door, "hold")


def ask(server: Server, token: str) -> httpx.Response:
    """One blocking call, with a mark of its own."""
    body = {"model": "gpt-5.4-mini", "messages": [{"role": "user", "content": f"fake-mark:{uuid.uuid4()}"}]}
    return httpx.post(
        f"{server.url}{BLOCKING.path}", headers={"Authorization": f"Bearer {token}"}, json=body, timeout=20
    )
