"""The embedded PostgreSQL: one server per data directory, a direct child of whoever launches it.

Rules
- Only a unix socket in a 0700 directory, SCRAM with a password from a 0600 file, never `trust`.
- The first start is atomic: the cluster is made beside its place and renamed into it when it is complete.
- A server left over by a killed parent is stopped, once it is proved to be the one of this directory, and started anew:
  its parent's death request went with the parent.
- `prepare` blocks for up to seconds and may run in any thread. `launch` returns at once and must run in a thread that
  lives as long as the server: the kernel ends the server when that *thread* ends.
- Nobody but one process at a time may use a data directory; the caller holds the lock that makes it so.

Files, below the data directory: `pg/data` the cluster, `pg/socket`, `postgres-password`, `log/postgres.log`,
and `pgbin/` when the programs had to be copied.
"""

import hashlib
import os
import secrets
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote, urlencode

from ostiary.control.private_files import read_private, replace_private, sync_directory
from ostiary.core.secret import Secret

from .pgbin import (
    MAJOR,
    PostgresError,
    Programs,
    ServerUser,
    check_reachable,
    find_programs,
    processes_in,
    server_user,
    spawn_options,
)

ROLE = "ostiary"
DATABASE = "ostiary"
_SOCKET_NAME = "/.s.PGSQL.5432"
_MAX_SOCKET_PATH = 103
"""Bytes: `sun_path` is 104 on macOS, 108 on Linux, with the terminating zero."""
_MAX_LOG_BYTES = 8 * 1024**2
_INITDB_TIMEOUT = 120.0
_SURVIVOR_TIMEOUT = 15.0
_POLL = 0.01

# Sized for a small machine beside the gateway; WAL stays well under a gigabyte.
_SERVER_SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "max_connections": "60",
    "shared_buffers": "96MB",
    "io_method": "sync",
    "wal_buffers": "8MB",
    "min_wal_size": "64MB",
    "max_wal_size": "512MB",
    "checkpoint_timeout": "10min",
    "jit": "off",
    "max_parallel_workers_per_gather": "0",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_min_messages": "warning",
    # details and statements of an error may quote a row: they stay out of the log
    "log_error_verbosity": "terse",
    "log_min_error_statement": "panic",
    "log_checkpoints": "off",
}
_FAST_AND_UNSAFE = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off"}


class EmbeddedPostgres:
    """A PostgreSQL below `data_dir`, which exists and belongs to us.

    `durable=False` gives up safety against power loss, for tests. `settings` override the server's.
    `process` is set by `launch`.
    """

    def __init__(self, data_dir: Path, *, durable: bool = True, settings: dict[str, str] | None = None) -> None:
        self._data_dir = data_dir.absolute()
        self._pg_dir = self._data_dir / "pg"
        self._data = self._pg_dir / "data"
        self._log_path = self._data_dir / "log" / "postgres.log"
        self._settings = _SERVER_SETTINGS | ({} if durable else _FAST_AND_UNSAFE) | (settings or {})
        self._durable = durable
        self._socket_dir = self._pg_dir / "socket"
        self._password = Secret("")
        self._user: ServerUser | None = None
        self._programs: Programs | None = None
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> Secret:
        """SQLAlchemy URL (asyncpg) of the database as its owner; known after `prepare`."""
        password = quote(self._password.reveal(), safe="")
        where = urlencode({"host": str(self._socket_dir)})
        return Secret(f"postgresql+asyncpg://{ROLE}:{password}@/{DATABASE}?{where}")

    def prepare(self) -> None:
        """Bring everything into the state in which `launch` can start the server; make the cluster on the first start.

        Raises `PostgresError`.
        """
        try:
            self._prepare()
        except OSError as error:
            raise PostgresError(
                f"cannot prepare PostgreSQL below {self._data_dir}: {error.strerror} ({error.filename or 'no file'})"
            ) from error

    def _prepare(self) -> None:
        user = self._user = server_user(self._pg_dir)
        programs = self._programs = find_programs(user, self._data_dir)
        self._own_directory(self._pg_dir, user)
        check_reachable(user, self._pg_dir, programs)
        self._log_path.parent.mkdir(mode=0o700, exist_ok=True)
        self.rotate_log()
        if self._data.exists():
            self._check_version()
            self._stop_survivor(user)
            self._load_password(user, programs)
        else:
            self._create_cluster(user, programs)
        self._socket_dir = self._choose_socket_dir(user)
        # left by a killed server; no other server uses this directory
        Path(f"{self._socket_dir}{_SOCKET_NAME}.lock").unlink(missing_ok=True)

    def launch(self) -> subprocess.Popen[bytes]:
        """Start the prepared server. It ends, at once, when the calling thread ends. Raises `PostgresError`."""
        assert self._user is not None
        assert self._programs is not None
        settings = self._settings | {"unix_socket_directories": _quoted_in_list(str(self._socket_dir))}
        argv = [os.fspath(self._programs.postgres), "-D", os.fspath(self._data)]
        for name, value in settings.items():
            argv += ["-c", f"{name}={value}"]
        # SIGQUIT is PostgreSQL's immediate shutdown: the next start recovers from the log
        options = spawn_options(self._user, self._data, signal.SIGQUIT)
        try:
            with self._open_log() as log:
                self.process = subprocess.Popen(argv, stdout=log, stderr=log, **options)
        except (OSError, subprocess.SubprocessError) as error:
            raise PostgresError(f"cannot start {argv[0]} in {self._data}: {error}") from error
        return self.process

    def is_ready(self) -> bool:
        """Whether the launched server accepts connections. Raises `PostgresError` when it has ended instead."""
        assert self.process is not None
        if self.process.poll() is not None:
            raise PostgresError(
                f"PostgreSQL ended during its start ({self._last_log_line()}): see {self._log_path} for the cause"
            )
        with suppress(OSError):
            lines = self._pid_file.read_text(errors="replace").splitlines()
            return len(lines) >= 8 and lines[0] == str(self.process.pid) and lines[7].strip() == "ready"
        return False

    def wait_ready(self, timeout: float = 60.0) -> None:
        """Block until the server accepts connections; crash recovery may take its time."""
        deadline = time.monotonic() + timeout
        while not self.is_ready():
            if time.monotonic() > deadline:
                raise PostgresError(
                    f"PostgreSQL was not ready after {timeout:.0f} s ({self._last_log_line()}): see {self._log_path}"
                )
            time.sleep(_POLL)

    def start(self) -> Secret:
        """`prepare`, `launch` and `wait_ready` in one; gives the URL."""
        self.prepare()
        self.launch()
        self.wait_ready()
        return self.url

    def stop(self, timeout: float = 20.0) -> None:
        """Fast shutdown (sessions are ended, everything is written), immediate shutdown after `timeout` seconds."""
        process = self.process
        if process is None:
            return
        for signum, bound in ((signal.SIGINT, timeout), (signal.SIGQUIT, 5.0), (signal.SIGKILL, None)):
            process.send_signal(signum)
            with suppress(subprocess.TimeoutExpired):
                process.wait(bound)
                break
        self.remove_socket_dir()

    def remove_socket_dir(self) -> None:
        """After the server's end: leave no directory of ours outside the data directory."""
        if self._socket_dir.parent != self._pg_dir:
            shutil.rmtree(self._socket_dir, ignore_errors=True)

    def rotate_log(self) -> None:
        """Keep the log bounded: past 8 MiB it is copied to `postgres.log.1` and emptied. The server keeps writing."""
        with suppress(FileNotFoundError):
            if self._log_path.stat().st_size > _MAX_LOG_BYTES:
                shutil.copy(self._log_path, self._log_path.with_suffix(".log.1"))
                os.truncate(self._log_path, 0)

    # --- directories

    def _own_directory(self, path: Path, user: ServerUser) -> None:
        path.mkdir(mode=0o700, exist_ok=True)
        if path.stat().st_uid != user.uid:
            os.chown(path, user.uid, user.gid)

    def _choose_socket_dir(self, user: ServerUser) -> Path:
        inside = self._pg_dir / "socket"
        if len(os.fsencode(inside)) + len(_SOCKET_NAME) <= _MAX_SOCKET_PATH:
            self._own_directory(inside, user)
            return inside
        # one name per data directory, so that a killed server leaves no more than one behind
        name = hashlib.sha256(os.fsencode(self._data_dir)).hexdigest()[:12]
        outside = Path(tempfile.gettempdir()) / f"ostiary-{os.geteuid()}-{name}"
        with suppress(FileExistsError):
            outside.mkdir(mode=0o700)
            os.chown(outside, user.uid, user.gid)
        status = outside.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != user.uid or status.st_mode & 0o077:
            raise PostgresError(
                f"{outside}, for the socket of PostgreSQL, is not a 0700 directory of user {user.name}: remove it, or "
                f"choose a data directory with a shorter path than {self._data_dir}"
            )
        return outside

    # --- the cluster

    def _create_cluster(self, user: ServerUser, programs: Programs) -> None:
        staging = self._pg_dir / "data.new"
        password_file = self._pg_dir / "initdb-password"
        shutil.rmtree(staging, ignore_errors=True)
        self._password = Secret(secrets.token_urlsafe(32))
        try:
            replace_private(password_file, self._password.reveal() + "\n", owner=(user.uid, user.gid))
            argv: list[str | Path] = [programs.initdb, "-D", staging, "--username", ROLE, "--pwfile", password_file]
            argv += ["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C"]
            argv += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--no-instructions"]
            self._run(user, argv if self._durable else [*argv, "--no-sync"])
        finally:
            password_file.unlink(missing_ok=True)
        self._single_user(user, programs, staging, f"CREATE DATABASE {DATABASE}")
        self._store_password()
        staging.rename(self._data)
        sync_directory(self._pg_dir)

    @property
    def _password_path(self) -> Path:
        return self._data_dir / "postgres-password"

    def _store_password(self) -> None:
        replace_private(self._password_path, self._password.reveal())

    def _load_password(self, user: ServerUser, programs: Programs) -> None:
        with suppress(FileNotFoundError):
            self._password = Secret(read_private(self._password_path))
            return
        # the file was lost, the cluster was not: whoever owns the directory may set a new password
        self._password = Secret(secrets.token_urlsafe(32))
        self._single_user(user, programs, self._data, f"ALTER ROLE {ROLE} PASSWORD '{self._password.reveal()}'")
        self._store_password()

    def _single_user(self, user: ServerUser, programs: Programs, data: Path, statement: str) -> None:
        unsafe = [] if self._durable else ["-F"]
        argv: list[str | Path] = [programs.postgres, "--single", "-D", data, *unsafe, "postgres"]
        self._run(user, argv, stdin=statement)

    def _run(self, user: ServerUser, argv: list[str | Path], stdin: str = "") -> None:
        options = spawn_options(user, self._pg_dir, signal.SIGKILL)
        del options["stdin"]
        name = Path(argv[0]).name
        try:
            done = subprocess.run(
                argv, input=stdin, capture_output=True, text=True, check=False, timeout=_INITDB_TIMEOUT, **options
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise PostgresError(f"{name} of PostgreSQL cannot be run for {self._pg_dir}: {error}") from error
        said = (done.stderr.strip() or done.stdout.strip() or f"status {done.returncode}").splitlines()
        # single-user mode ends with status 0 also when its statement failed
        failed = [line for line in said if "ERROR:" in line or "FATAL:" in line or "error:" in line]
        if done.returncode != 0 or failed:
            reason = (failed or said[-1:])[0].strip()
            raise PostgresError(f"{name} of PostgreSQL failed for {self._pg_dir}: {reason}")

    def _check_version(self) -> None:
        try:
            made_by = (self._data / "PG_VERSION").read_text().strip()
        except OSError as error:
            raise PostgresError(
                f"{self._data} holds no PostgreSQL cluster ({error.strerror}: PG_VERSION): restore a backup, or move it "
                "away to start with an empty database"
            ) from error
        if made_by != MAJOR:
            raise PostgresError(
                f"{self._data} was made by PostgreSQL {made_by} and this Ostiary brings {MAJOR}: run pg_dump with the "
                f"Ostiary that made it, move {self._pg_dir} away, start, and load the dump; or set OSTIARY_DATABASE_URL"
            )

    # --- a server that outlived its parent

    def _stop_survivor(self, user: ServerUser) -> None:
        deadline = time.monotonic() + _SURVIVOR_TIMEOUT
        pid = self._recorded_pid()
        for signum, until in (
            (signal.SIGINT, deadline - 5),
            (signal.SIGQUIT, deadline - 2),
            (signal.SIGKILL, deadline),
        ):
            left = processes_in(self._data, user)
            # its sessions end with the postmaster, and by themselves when that was killed
            for target in (pid,) if pid in left and signum != signal.SIGKILL else left:
                with suppress(ProcessLookupError):
                    os.kill(target, signum)
            while processes_in(self._data, user) and time.monotonic() < until:
                time.sleep(_POLL)
        left = processes_in(self._data, user)
        if left:
            raise PostgresError(f"PostgreSQL still runs in {self._data} and cannot be stopped: end process {left[0]}")
        if pid is not None and _is_alive(pid):
            # another process has that pid by now; the server would take it for a rival and refuse to start
            self._pid_file.unlink(missing_ok=True)

    @property
    def _pid_file(self) -> Path:
        return self._data / "postmaster.pid"

    def _recorded_pid(self) -> int | None:
        with suppress(OSError, ValueError):
            return int(self._pid_file.read_text().split("\n", 1)[0])
        return None

    # --- log

    def _open_log(self) -> BinaryIO:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.fdopen(os.open(self._log_path, flags, 0o600), "ab")

    def _last_log_line(self) -> str:
        with suppress(OSError):
            lines = self._log_path.read_bytes()[-4096:].decode(errors="replace").strip().splitlines()
            causes = [line for line in lines if "FATAL:" in line or "PANIC:" in line] or lines
            return causes[-1].strip() if causes else "nothing in its log"
        return "no log"


def _quoted_in_list(path: str) -> str:
    """One element of a PostgreSQL list setting."""
    return '"' + path.replace('"', '""') + '"'


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
