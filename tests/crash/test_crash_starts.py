"""Starts that cannot succeed: one line with the cause and the cure, an exit status, and nothing left running."""

import os
import socket
from pathlib import Path

import httpx
import pytest

from tests.support.chaos import chaos, kill_everything
from tests.support.database_door import DatabaseDoor
from tests.support.fake_provider import FakeProvider
from tests.support.load import BLOCKING, Load
from tests.support.server import OWNER_TOKEN, Server, StartServer, alive, descendants, eventually


def end_of(server: Server, within: float = 30) -> tuple[int, str]:
    """Exit status and the line that says why, of a server that ends by itself; nothing of it is left."""
    assert server.process is not None
    pid = server.process.pid
    status = server.process.wait(within)
    text = server.log.read_text()
    assert "Traceback" not in text, text
    lines = [line for line in text.splitlines() if line.startswith("ostiary: ")]
    assert len(lines) == 1, text
    assert "Ostiary is ready" not in text.partition(lines[0])[2]
    assert not [one for one in processes_of(server) if one != pid]
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", server.port)), "something still listens"
    return status, lines[0]


def processes_of(server: Server) -> list[int]:
    """Processes that have to do with a server's data directory: children by their log, PostgreSQL by its command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
                out = os.readlink(entry / "fd/2")
            except OSError:
                continue
            if os.fsencode(server.data_dir) in command or out == str(server.log):
                found.append(int(entry.name))
    return found


def test_a_second_server_on_one_data_directory_is_refused_and_does_the_first_no_harm(
    start_server: StartServer, door: DatabaseDoor
) -> None:
    first = start_server(None, **door.variables)
    assert first.process is not None
    second = start_server(None, ready=False, **door.variables)
    second.stop()
    second.data_dir = first.data_dir
    second.log.unlink()
    second.start(ready=False)
    assert second.process is not None
    assert second.process.wait(60) == 1
    (line,) = second.log.read_text().splitlines()
    assert line.startswith("ostiary: ")
    assert f"in use by another Ostiary (process {first.process.pid})" in line
    assert "--data-dir" in line
    assert first.is_ready()


@pytest.mark.parametrize("flag", ["--listen", "--metrics-listen"])
def test_an_address_in_use_is_named_with_the_flag_that_changes_it(start_server: StartServer, flag: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        server = start_server(None, flag, address, ready=False)
        assert server.process is not None
        assert server.process.wait(60) == 1
        (line,) = server.log.read_text().splitlines()
    assert address in line
    assert "in use" in line
    assert flag in line


def test_a_data_directory_that_cannot_be_made_is_named(start_server: StartServer, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    server = start_server(None, "--data-dir", str(tmp_path / "file" / "data"), ready=False)
    assert server.process is not None
    assert server.process.wait(60) != 0
    (line,) = server.log.read_text().splitlines()
    assert str(tmp_path / "file") in line
    assert line.startswith("ostiary: ")


def test_a_vault_key_that_is_not_this_databases_stops_the_start(
    start_server: StartServer, own_fake: FakeProvider, door: DatabaseDoor
) -> None:
    assert start_server(own_fake, **door.variables).stop() == 0
    door.encryption_key = door.new_encryption_key()
    status, line = end_of(start_server(own_fake, ready=False, **door.variables))
    assert status == 1
    assert "OSTIARY_ENCRYPTION_KEYS" in line
    assert door.encryption_key not in line


def test_a_database_that_refuses_the_password_stops_the_start_without_showing_it(
    start_server: StartServer, door: DatabaseDoor
) -> None:
    variables = door.variables | {"OSTIARY_DATABASE_URL": door.url.replace(door.password, "wrong-password-of-the-test")}
    server = start_server(None, ready=False, **variables)
    status, line = end_of(server)
    assert status == 1
    assert "password authentication failed" in line
    assert "wrong-password-of-the-test" not in server.log.read_text()


def test_a_server_that_waits_for_its_database_serves_nothing_and_can_be_stopped(
    start_server: StartServer, own_fake: FakeProvider, door: DatabaseDoor
) -> None:
    door.shut()
    server = start_server(own_fake, ready=False, **door.variables)
    eventually(lambda: "waiting for the database" in server.tail(), what=server.tail())
    assert httpx.get(f"{server.url}/healthz").status_code == 200
    assert httpx.get(f"{server.url}/readyz").status_code == 503
    assert server.stop(within=30) == 0, server.tail()
    assert own_fake.requests()["count"] == 0


@chaos
def test_a_database_that_never_comes_stops_the_start(start_server: StartServer, door: DatabaseDoor) -> None:
    door.shut()
    status, line = end_of(start_server(None, ready=False, **door.variables), within=90)
    assert status == 1
    assert "Connection refused" in line


def test_kill_9_of_the_supervisor_leaves_no_process_and_the_next_start_serves_the_same_record(
    start_server: StartServer,
) -> None:
    server = start_server(None, "--demo", "--workers", "2")
    assert server.process is not None
    family = descendants(server.process.pid)
    kinds = {kind: server.children(kind) for kind in ("worker", "link", "control", "fake", "postgres")}
    assert {kind: len(pids) for kind, pids in kinds.items()} == {
        "worker": 2,
        "link": 1,
        "control": 1,
        "fake": 1,
        "postgres": 1,
    }
    assert len(family) > 6, "PostgreSQL has processes of its own"
    demo = BLOCKING.path.replace("/openai/", "/demo-openai/")
    with httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {OWNER_TOKEN}"}, timeout=20) as client:
        body = {"model": "gpt-5.4-mini", "messages": [{"role": "user", "content": "before"}]}
        made = client.post(demo, json=body).headers["x-ostiary-interception-id"]
        client.get("/healthz")  # by the same worker, which answers it once the call's end is in the journal
    server.process.kill()
    server.process.wait(30)
    eventually(lambda: not [pid for pid in family if alive(pid)], what="all have ended with their supervisor")
    assert not processes_of(server)
    server.start()
    assert server.interception(made)["outcome"] == "completed"


@pytest.mark.parametrize(
    "moment",
    [
        pytest.param("pg/data.new", marks=chaos),
        pytest.param("journal", marks=chaos),
        "migrating database",
        pytest.param("vault.key", marks=chaos),
        pytest.param("seeding provider", marks=chaos),
    ],
)
def test_kill_9_in_the_middle_of_the_first_start_leaves_nothing_that_the_next_one_trips_over(
    start_first: StartServer, own_fake: FakeProvider, moment: str
) -> None:
    server = start_first(own_fake, "--workers", "1")
    eventually(lambda: (server.data_dir / moment).exists() or moment in server.tail(), every=0.001, within=60)
    kill_everything(server)
    eventually(lambda: not processes_of(server), what="nothing of it is left")
    server.log.unlink()
    server.start()
    with Load(server.url, OWNER_TOKEN, concurrency=1, total=2, kinds=(BLOCKING,)) as load:
        assert not [call for call in load.wait() if not call.good], load.summary()
    assert [user["username"] for user in server.get("/api/v2/users")] == ["admin"]
    assert server.stop() == 0
    assert "Traceback" not in server.log.read_text()
