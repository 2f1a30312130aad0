"""SIGTERM under load: streams finish, nothing new is taken, everything is shipped; or it is said what is not."""

import errno
import os
import signal
import socket
from collections import Counter
from pathlib import Path

import pytest

from tests.support.database_door import DatabaseDoor
from tests.support.fake_provider import FakeProvider
from tests.support.load import BLOCKING, CHAT, MESSAGES, Load
from tests.support.reconcile import frames_on_disk, metric, reconcile
from tests.support.server import OWNER_TOKEN, Server, StartServer, alive, eventually

ENDLESS = "pace=100 events=10000"


def refuses_connections(server: Server) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", server.port)) == errno.ECONNREFUSED


def outcomes(door: DatabaseDoor) -> Counter[str]:
    return Counter(row["outcome"] for row in door.fetch("SELECT outcome FROM interceptions"))


def signal_stop(server: Server) -> None:
    assert server.process is not None
    server.process.send_signal(signal.SIGTERM)


def end_of(server: Server) -> int:
    """The exit status of a server that has been told to stop."""
    assert server.process is not None
    return server.process.wait(60)


def journals_on_disk(server: Server) -> list[Path]:
    return list((server.data_dir / "journal").glob("*-*"))


def test_a_stop_lets_streams_finish_takes_nothing_new_and_ships_everything(
    start_server: StartServer, own_fake: FakeProvider, door: DatabaseDoor
) -> None:
    server = start_server(own_fake, "--workers", "2", **door.variables)
    long = Load(server.url, OWNER_TOKEN, concurrency=40, total=40, control="pace=100 events=80", prefix="long")
    short = Load(server.url, OWNER_TOKEN, concurrency=60, control="pace=1 events=8", prefix="short")
    with long, short:
        eventually(lambda: len(long.answering) == 40 and len(short.calls) > 120, what=short.summary())
        signal_stop(server)
        eventually(lambda: refuses_connections(server), what=server.tail())
        assert len(long.answering) == 40, "the streams should still be under way"
        calls = [*short.finish(), *long.finish()]
    assert end_of(server) == 0, server.tail()
    assert not [call for call in calls if not call.good], f"{long.summary()}; {short.summary()}"
    assert set(own_fake.marks()) == {call.mark for call in calls}
    assert not journals_on_disk(server)
    assert outcomes(door) == {"completed": len(calls)}


def test_a_stop_without_the_database_says_what_is_left_and_the_next_start_ships_it(
    start_server: StartServer, own_fake: FakeProvider, door: DatabaseDoor
) -> None:
    server = start_server(own_fake, "--workers", "2", **door.variables)
    with Load(server.url, OWNER_TOKEN, concurrency=8, total=24, kinds=(CHAT, MESSAGES, BLOCKING)) as load:
        load.wait()
        calls = list(load.calls)
    eventually(lambda: metric(server, "ostiary_link_records_pending") == 0)
    door.shut()
    with Load(
        server.url, OWNER_TOKEN, concurrency=8, total=40, kinds=(CHAT, MESSAGES, BLOCKING), prefix="late"
    ) as load:
        calls += load.wait()
    assert not load.failures(), load.summary()
    signal_stop(server)
    eventually(lambda: "shipping what is left" in server.tail(), what=server.tail())
    assert metric(server, "ostiary_link_up") == 0
    signal_stop(server)
    status = end_of(server)
    left = sum(frames_on_disk(server.data_dir).values()) - 2 * 24
    assert left == 2 * 40
    assert status not in (0, None), server.tail()
    assert f"{left} records are not shipped" in server.tail(5), server.tail()
    door.open()
    server.start()
    result = reconcile(server, own_fake, calls)
    assert result.outcomes == {"completed": len(calls)}


@pytest.mark.parametrize("how", ["a second signal", "the end of patience"])
def test_what_does_not_finish_is_cut_and_recorded_as_interrupted(
    start_server: StartServer, own_fake: FakeProvider, door: DatabaseDoor, how: str
) -> None:
    patience = "5m" if how == "a second signal" else "300ms"
    server = start_server(own_fake, "--workers", "2", "--drain-timeout", patience, **door.variables)
    with Load(server.url, OWNER_TOKEN, concurrency=20, total=20, control=ENDLESS) as load:
        eventually(lambda: len([call for call in load.answering if call.body]) == 20, what=load.summary())
        signal_stop(server)
        if how == "a second signal":
            eventually(lambda: refuses_connections(server), what=server.tail())
            assert len(load.answering) == 20
            signal_stop(server)
        assert end_of(server) == 0, server.tail()
        calls = load.wait()
    assert not [call for call in calls if call.complete], "a cut answer that looks complete"
    assert outcomes(door) == {"interrupted": 20}
    assert {row["status_code"] for row in door.fetch("SELECT status_code FROM interceptions")} == {200}
    eventually(lambda: own_fake.requests()["aborted"] == 20, what="the provider is told")
    assert not journals_on_disk(server)


def test_a_control_plane_that_hangs_does_not_hold_up_a_stop_that_is_asked_for_twice(
    start_server: StartServer, own_fake: FakeProvider, door: DatabaseDoor
) -> None:
    server = start_server(own_fake, "--workers", "1", **door.variables)
    (control,) = server.children("control")
    with Load(server.url, OWNER_TOKEN, concurrency=4, total=8, kinds=(BLOCKING,)) as load:
        load.wait()
        eventually(lambda: metric(server, "ostiary_link_records_pending") == 0)
        os.kill(control, signal.SIGSTOP)
    with Load(server.url, OWNER_TOKEN, concurrency=4, total=8, kinds=(BLOCKING,), prefix="late") as late:
        late.wait()
    assert not load.failures() + late.failures(), late.summary()
    signal_stop(server)
    eventually(lambda: "shipping what is left" in server.tail(), what=server.tail())
    signal_stop(server)
    assert end_of(server) == 1
    assert "16 records are not shipped" in server.tail(), server.tail()
    assert not alive(control)
    server.start()
    result = reconcile(server, own_fake, load.calls + late.calls)
    assert result.outcomes == {"completed": 16}
