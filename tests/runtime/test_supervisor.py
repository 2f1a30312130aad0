"""The supervisor with real processes: small children in place of the parts, a real PostgreSQL."""

import json
import os
import pty
import signal
import socket
import sys
import threading
from pathlib import Path

import psutil
import pytest

from ostiary.core.settings import GatewaySettings
from ostiary.runtime.plan import Address, ServerPlan
from tests.support.server import free_port
from tests.support.supervised import Supervised, ask, eventually, server_plan, supervised

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and relies on the kernel's death request")


def _without_database(data_dir: Path, **changes: object) -> ServerPlan:
    """The shape of `gateway start`: no control plane, no PostgreSQL, up in a moment."""
    return server_plan(data_dir, control=None, **changes)


def _ends(server: Supervised) -> list[str]:
    path = server.data_dir / "order-of-ends"
    return path.read_text().split("\n")[:-1] if path.exists() else []


def _gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_everything_is_up_and_told_at_the_terminal(open_directory: Path) -> None:
    with supervised(server_plan(open_directory / "data", workers=2, demo=True)) as server:
        server.wait_ready()
        assert set(server.pids()) == {"worker-0", "worker-1", "link", "control", "fake", "postgres"}
        facts = json.loads((open_directory / "data/control-facts").read_text())
        assert facts["server"].startswith("18")
        assert facts["url"] in server.out
        assert f"{facts['url']}/docs" in server.out
        assert "demo-openai and demo-anthropic" in server.out
        fake = server.listening_port("fake")
        assert facts["demo"] == [f"http://127.0.0.1:{fake}/v1", f"http://127.0.0.1:{fake}"]
        assert "a word from the control plane" in server.out
        assert "a secret word" not in server.out, "not on a terminal"


def test_the_end_comes_in_the_order_in_which_nothing_is_lost(data_dir: Path) -> None:
    with supervised(server_plan(data_dir, workers=1)) as server:
        server.wait_ready()
        family = server.family()
        server.signal(signal.SIGTERM)
        assert server.wait_end() == 0, server.err
        assert _ends(server) == ["worker drain 1", "link", "control"]
        assert all(_gone(process) for process in family)
        assert not (data_dir / "pg/data/postmaster.pid").exists(), "a clean shutdown"


@pytest.mark.parametrize("abstract", [False, True])
def test_a_service_manager_is_told_when_it_serves_and_when_it_ends(open_directory: Path, abstract: bool) -> None:
    path = str(open_directory / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(30)
        manager.bind("\0" + path if abstract else path)
        environment = os.environ | {"NOTIFY_SOCKET": "@" + path if abstract else path}
        with supervised(_without_database(open_directory / "data", workers=1), env=environment) as server:
            assert manager.recv(1000).startswith(b"READY=1\nSTATUS=serving on 127.0.0.1:")
            assert "NOTIFY_SOCKET" not in ask(server.listening_port("worker-0"))["environment"]
            server.signal(signal.SIGTERM)
            assert manager.recv(1000) == b"STOPPING=1\nSTATUS=draining"
            assert server.wait_end() == 0


def test_a_service_manager_that_has_gone_keeps_nobody_from_serving(open_directory: Path) -> None:
    environment = os.environ | {"NOTIFY_SOCKET": str(open_directory / "nobody-there")}
    with supervised(_without_database(open_directory / "data", workers=1), env=environment) as server:
        server.wait_ready()
        server.signal(signal.SIGTERM)
        assert server.wait_end() == 0


def test_a_signal_during_the_start_ends_it_well(open_directory: Path) -> None:
    with supervised(server_plan(open_directory / "data", workers=2)) as server:
        family = eventually(lambda: server.process.poll() is None and server.family(), "the first children")
        server.signal(signal.SIGTERM)
        assert server.wait_end() == 0, server.err
        assert all(_gone(process) for process in family)
    with supervised(server_plan(open_directory / "data", workers=2)) as server:
        server.wait_ready()


def test_nothing_outlives_a_killed_supervisor(data_dir: Path) -> None:
    with supervised(server_plan(data_dir, workers=2, demo=True)) as server:
        server.wait_ready()
        family = server.family()
        assert len(family) > 6
        server.process.kill()
        eventually(lambda: all(_gone(process) for process in family), "all have ended")


def test_nothing_outlives_a_supervisor_killed_during_the_start(open_directory: Path) -> None:
    with supervised(server_plan(open_directory / "data", workers=2)) as server:
        family = eventually(lambda: server.process.poll() is None and server.family(), "the first children")
        server.process.kill()
        eventually(lambda: all(_gone(process) for process in family), "all have ended")


def test_a_start_right_after_a_kill_takes_over(data_dir: Path) -> None:
    plan = server_plan(data_dir, workers=2, listen=Address("127.0.0.1", free_port()))
    with supervised(plan) as first:
        first.wait_ready()
        first.process.kill()
        with supervised(plan) as second:
            second.wait_ready()
            second.signal(signal.SIGTERM)
            assert second.wait_end() == 0


def test_a_killed_worker_is_replaced_and_joined_to_the_link(open_directory: Path) -> None:
    with supervised(_without_database(open_directory / "data", workers=2)) as server:
        server.wait_ready()
        metrics = server.listening_port("link")
        before = server.pids()
        eventually(lambda: len(ask(metrics)["workers"]) == 2, "both workers have joined")
        os.kill(before["worker-1"], signal.SIGKILL)
        after = eventually(
            lambda: (pid := ask(metrics)["workers"]["1"]) != before["worker-1"] and pid, "the new worker has joined"
        )
        assert server.pids()["worker-1"] == after
        assert server.pids()["worker-0"] == before["worker-0"]
        assert "signal SIGKILL" in server.err


def test_a_killed_link_is_replaced_and_gets_every_worker_again(open_directory: Path) -> None:
    with supervised(_without_database(open_directory / "data", workers=2)) as server:
        server.wait_ready()
        before = server.pids()
        metrics = server.listening_port("link")
        os.kill(before["link"], signal.SIGKILL)

        def joined_anew() -> bool:
            facts = ask(metrics)  # the listening socket has stayed open: this waits for the new link
            return facts["pid"] != before["link"] and facts["workers"] == {
                "0": before["worker-0"],
                "1": before["worker-1"],
            }

        eventually(joined_anew, "the new link has both workers")


def test_a_connection_made_while_the_worker_is_dead_is_served_by_its_successor(open_directory: Path) -> None:
    with supervised(_without_database(open_directory / "data", workers=1)) as server:
        server.wait_ready()
        port, first = server.listening_port("worker-0"), server.pids()["worker-0"]
        os.kill(first, signal.SIGSTOP)
        with socket.create_connection(("127.0.0.1", port), timeout=20) as early:
            os.kill(first, signal.SIGKILL)
            with early.makefile() as lines:
                assert json.loads(lines.readline())["pid"] != first


def test_a_worker_that_hangs_is_replaced_and_tells_where_it_hung(open_directory: Path) -> None:
    data_dir = open_directory / "data"
    with supervised(_without_database(data_dir, workers=1, hang_timeout=3.0)) as server:
        server.wait_ready()
        port, first = server.listening_port("worker-0"), server.pids()["worker-0"]
        (data_dir / "worker-hangs").touch()
        with socket.create_connection(("127.0.0.1", port)):
            eventually(lambda: server.pids().get("worker-0", first) != first, "another worker")
        assert ask(port)["pid"] != first
        assert "signal SIGABRT" in server.err
        assert "small_children.py" in server.err.partition("Fatal Python error: Aborted")[2]


def test_a_stopped_child_is_replaced_and_one_that_answers_stays(open_directory: Path) -> None:
    with supervised(_without_database(open_directory / "data", workers=1, hang_timeout=3.0)) as server:
        server.wait_ready()
        before = server.pids()
        os.kill(before["link"], signal.SIGSTOP)
        eventually(lambda: server.pids().get("link", before["link"]) != before["link"], "another link")
        assert "signal SIGKILL" in server.err
        assert server.pids()["worker-0"] == before["worker-0"]


def test_a_killed_postgres_is_started_again(data_dir: Path) -> None:
    with supervised(server_plan(data_dir, workers=1)) as server:
        server.wait_ready()
        before = server.pids()["postgres"]
        os.kill(before, signal.SIGKILL)
        after = eventually(lambda: (pid := server.pids().get("postgres")) != before and pid, "a new postmaster")
        pid_file = data_dir / "pg/data/postmaster.pid"
        eventually(
            lambda: (
                pid_file.exists()
                and pid_file.read_text().startswith(f"{after}\n")
                and pid_file.read_text().rstrip().endswith("ready")
            ),
            "the new postmaster serves",
        )
        server.signal(signal.SIGTERM)
        assert server.wait_end() == 0, server.err


def test_records_that_could_not_be_shipped_are_told_and_are_the_exit_status(open_directory: Path) -> None:
    data_dir = open_directory / "data"
    with supervised(_without_database(data_dir, workers=1)) as server:
        server.wait_ready()
        (data_dir / "records-left").write_text("17")
        server.signal(signal.SIGTERM)
        assert server.wait_end() == 1
        assert f"17 records are not shipped: they stay in {data_dir}/journal" in server.err


def test_a_second_signal_cuts_what_still_runs(open_directory: Path) -> None:
    data_dir = open_directory / "data"
    with supervised(_without_database(data_dir, workers=1)) as server:
        server.wait_ready()
        port = server.listening_port("worker-0")
        (data_dir / "worker-has-a-stream").touch()
        server.signal(signal.SIGTERM)
        eventually(lambda: _ends(server) == ["worker drain 1"], "the worker drains")
        assert server.process.poll() is None
        with pytest.raises(ConnectionRefusedError):
            ask(port)
        server.signal(signal.SIGTERM)
        assert server.wait_end() == 0, server.err
        assert _ends(server) == ["worker drain 1", "worker drain 2", "link"]


def test_a_third_signal_kills_what_does_not_listen(open_directory: Path) -> None:
    stubborn = {"worker": "tests.support.small_children:stubborn"}
    with supervised(_without_database(open_directory / "data", workers=1), stubborn) as server:
        server.wait_ready()
        for said in ("draining", "cutting"):
            server.signal(signal.SIGINT)
            eventually(lambda said=said: said in server.err, said)  # type: ignore[misc]
        server.signal(signal.SIGINT)
        assert server.wait_end() == 1
        assert "worker-0 did not end in time and was killed" in server.err


def test_a_worker_that_does_not_drain_in_time_is_told_to_cut(open_directory: Path) -> None:
    data_dir = open_directory / "data"
    settings = GatewaySettings(journal_dir=str(data_dir / "journal"), drain_timeout=-9.9)  # 0.1 s with the margin
    with supervised(_without_database(data_dir, workers=1, gateway=settings)) as server:
        server.wait_ready()
        (data_dir / "worker-has-a-stream").touch()
        server.signal(signal.SIGTERM)
        assert server.wait_end() == 0, server.err
        assert _ends(server) == ["worker drain 1", "worker drain 2", "link"]


def test_a_fatal_report_ends_the_command_with_its_line_and_status(open_directory: Path) -> None:
    data_dir = open_directory / "data"
    data_dir.mkdir()
    (data_dir / "control-refuses").touch()
    with supervised(server_plan(data_dir, workers=1)) as server:
        family = eventually(lambda: server.process.poll() is None and server.family(), "the first children")
        assert server.wait_end() == 3
        assert "ostiary: the encryption key is not the one of this database: bring it back\n" in server.err
        assert "ready" not in server.out
        assert all(_gone(process) for process in family)


def test_a_control_plane_that_cannot_come_back_ends_nothing_and_is_tried_until_it_can(data_dir: Path) -> None:
    with supervised(server_plan(data_dir, workers=1)) as server:
        server.wait_ready()
        before = server.pids()
        refuses = data_dir / "control-refuses"
        refuses.touch()
        os.kill(before["control"], signal.SIGKILL)
        said = "failing to start child again"
        eventually(lambda: server.err.count(said) >= 2, "it is tried more than once")
        refuses.unlink()
        known = data_dir / "control-facts"
        eventually(lambda: json.loads(known.read_text())["pid"] != before["control"], "it is back")
        assert server.process.poll() is None
        assert server.pids()["worker-0"] == before["worker-0"]
        assert "the encryption key is not the one of this database" in server.err
        server.signal(signal.SIGTERM)
        assert server.wait_end() == 0, server.err


def test_a_worker_that_cannot_come_back_ends_the_command(open_directory: Path) -> None:
    """Its connections would wait in the kernel for ever, and nobody would know."""
    data_dir = open_directory / "data"
    with supervised(_without_database(data_dir, workers=2)) as server:
        server.wait_ready()
        (data_dir / "worker-refuses").touch()
        os.kill(server.pids()["worker-1"], signal.SIGKILL)
        assert server.wait_end() == 4
        assert "ostiary: the certificate cannot be read" in server.err


def test_a_child_that_never_gets_ready_ends_the_start(open_directory: Path) -> None:
    data_dir = open_directory / "data"
    data_dir.mkdir()
    (data_dir / "worker-never-ready").touch()
    with supervised(_without_database(data_dir, workers=1)) as server:
        assert server.wait_end() == 1
        assert "ostiary: worker-0 ended 5 times during the start (exit status 7)" in server.err


@pytest.mark.skipif(os.geteuid() != 0, reason="only root changes the user")
def test_run_as_root_below_a_closed_directory_it_says_why_not_and_what_to_do(open_directory: Path) -> None:
    open_directory.chmod(0o700)
    with supervised(server_plan(open_directory / "data")) as server:
        assert server.wait_end() == 1
        lines = [line for line in server.err.splitlines() if line.startswith("ostiary: ")]
        assert len(lines) == 1
        assert f"cannot reach {open_directory}/data/pg through {open_directory} (mode 0700)" in lines[0]
        assert f"chmod o+x {open_directory}" in lines[0]


def test_a_second_server_on_the_data_directory_is_refused(open_directory: Path) -> None:
    plan = _without_database(open_directory / "data", workers=1)
    with supervised(plan) as first:
        first.wait_ready()
        with supervised(server_plan(open_directory / "data")) as second:
            assert second.wait_end() == 1
            assert f"in use by another Ostiary (process {first.process.pid})" in second.err
        assert first.process.poll() is None


def test_secrets_are_in_no_argument_and_no_environment_of_a_child(data_dir: Path) -> None:
    with supervised(server_plan(data_dir, workers=1)) as server:
        server.wait_ready()
        password = (data_dir / "postgres-password").read_text()
        for process in server.family():
            if process.name().startswith("python"):
                shown = " ".join(process.cmdline()) + repr(process.environ())
                assert "a-secret-of-the-environment" not in shown
                assert password not in shown


def test_children_may_open_as_many_files_as_the_system_allows(open_directory: Path) -> None:
    with supervised(_without_database(open_directory / "data", workers=1)) as server:
        server.wait_ready()
        soft, hard = psutil.Process(server.pids()["worker-0"]).rlimit(psutil.RLIMIT_NOFILE)
        assert soft == hard


def test_on_a_terminal_what_is_shown_once_is_shown_and_hanging_up_ends(data_dir: Path) -> None:
    main_end, terminal = pty.openpty()
    shown = bytearray()

    def read_terminal() -> None:
        try:
            while data := os.read(main_end, 4096):
                shown.extend(data)
        except OSError:
            return

    reader = threading.Thread(target=read_terminal)
    with supervised(server_plan(data_dir, workers=1), stdout=terminal) as server:
        os.close(terminal)
        reader.start()
        eventually(lambda: b"Ostiary is ready" in shown, "ready")
        assert b"a secret word" in shown
        server.signal(signal.SIGHUP)
        assert server.wait_end() == 0, server.err
    reader.join(10)
    os.close(main_end)


def test_without_a_terminal_a_hangup_is_ignored(open_directory: Path) -> None:
    with supervised(_without_database(open_directory / "data", workers=1)) as server:
        server.wait_ready()
        server.signal(signal.SIGHUP)
        eventually(lambda: "ignoring SIGHUP" in server.err, "the hangup is noticed")
        server.signal(signal.SIGTERM)
        assert server.wait_end() == 0
