"""What can be seen only on the machine itself: files and their owners, room for the journal, limits, settings.

Rules
- Nothing is opened that holds a secret: names, modes, owners and sizes are looked at, never contents. (The lock and the
  id of the gateway are read; they are neither.)
- What this user may not look at is said, not guessed.
"""

import os
import re
import shlex
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from ostiary.config import Command, ConfigError, Loaded, load

from .findings import Finding, Group, number, size
from .server import FEW_FILES, LEAST_FREE

MAX_ENTRIES: Final = 500_000
"""Files that are looked at below one directory."""
_ENOUGH_FILES: Final = 8192
_MOST_OPEN: Final = 0.8
_SHOWN: Final = 3

_machine, _settings = Group("machine"), Group("settings")


def settings(environ: Mapping[str, str], command: Command = "server") -> tuple[Loaded | None, list[Finding]]:
    """The settings as this command finds them, and what is wrong with them."""
    try:
        loaded = load({}, environ, command=command)
    except ConfigError as error:
        cure = "docs/configuration.md has every setting; `ostiary config check` tries them again"
        return None, [_settings.wrong(problem, cure) for problem in error.problems]
    found = [_settings.warning(warning, "ostiary config show") for warning in loaded.warnings]
    if loaded.settings.dump_dir:
        cure = "unset OSTIARY_DUMP_DIR once it has been found out what it was set for, and delete the directory"
        text = f"dumps are on: prompts and answers stand in clear below {loaded.settings.dump_dir}"
        found.append(_settings.warning(text, cure))
    if not found:
        file = f" and {loaded.file}" if loaded.file else ""
        found.append(_settings.ok(f"those of this environment{file} can be used, {len(loaded.origins)} are given"))
    return loaded, found


def directory(data_dir: Path, loaded: Loaded | None, reports: Callable[[str], bool] | None) -> Iterator[Finding]:
    """A data directory of a server or a gateway. `reports`: whether a replica does so to the server; None: not known."""
    try:
        if not (data_dir / "lock").exists():
            yield _machine.unchecked(
                f"no data directory of a server at {data_dir}: files, limits and room of its machine are not looked at",
                "run doctor there as the server's user; name another directory with --data-dir",
            )
            return
        replica_id = _text(data_dir / "replica-id")
        holder = _text(data_dir / "lock")
    except PermissionError as error:
        cure = "run doctor as the server's user, or as root"
        yield _machine.unchecked(f"{error.filename} is closed to this user, as it should be", cure)
        return
    if reports is not None and not reports(replica_id):
        cure = "set OSTIARY_URL to the server of this directory, or --data-dir to that of this server"
        yield _machine.warning(f"the gateway of {data_dir} does not report to this server", cure)
    yield from modes(data_dir)
    if loaded is not None and loaded.settings.dump_dir and Path(loaded.settings.dump_dir).exists():
        yield from modes(Path(loaded.settings.dump_dir))
    yield from room(data_dir, loaded)
    yield from damage(data_dir)
    yield from limits(data_dir, holder)


# --- files


class _Walked(NamedTuple):
    seen: int
    open_ones: list[str]
    foreign: list[str]
    closed_to_us: list[str]


def modes(top: Path) -> Iterator[Finding]:
    """Whose eyes the files below a directory are open to, and whose they are."""
    found = _walk(top)
    if found.open_ones:
        cure = f"chmod go-rwx {_quoted(found.open_ones)}"
        yield _machine.wrong(f"open to other users: {_some(found.open_ones)}", cure)
    if found.foreign:
        cure = f"chown them to the owner of {top}, and find out who wrote there"
        yield _machine.wrong(f"not the server's own: {_some(found.foreign)}", cure)
    if found.closed_to_us:
        yield _machine.unchecked(f"closed to this user: {_some(found.closed_to_us)}", "run doctor as the server's user")
    if found.seen >= MAX_ENTRIES:
        yield _machine.unchecked(f"{top} has more than {MAX_ENTRIES:,} entries: the rest is not looked at")
    if not (found.open_ones or found.foreign or found.closed_to_us):
        yield _machine.ok(f"{top}: modes and owners of {number(found.seen, 'file')} are right")


def _walk(top: Path) -> _Walked:
    status = top.stat()
    found = _Walked(1, [], [], [])
    # as root it may be passed through, not read: the user of PostgreSQL has to get to pg/
    if stat.S_IMODE(status.st_mode) & (0o066 if status.st_uid == 0 else 0o077):
        found.open_ones.append(str(top))
    pg_owner = _owner(top / "pg")

    def cannot(error: OSError) -> None:
        if isinstance(error, PermissionError):
            found.closed_to_us.append(str(error.filename))

    seen = 1
    for parent, directories, files in os.walk(top, onerror=cannot):
        below = Path(parent).relative_to(top).parts
        for name in (*directories, *files):
            seen += 1
            _look(Path(parent, name), (*below, name), status.st_uid, pg_owner, found)
        if seen >= MAX_ENTRIES:
            break
    return found._replace(seen=seen)


def _look(path: Path, parts: tuple[str, ...], owner: int, pg_owner: int | None, found: _Walked) -> None:
    try:
        status = path.lstat()
    except OSError:
        return  # gone meanwhile: segments come and go
    # a socket or a link has no say of its own; programs of PostgreSQL are no secret, and its user runs them
    has_mode = not (stat.S_ISSOCK(status.st_mode) or stat.S_ISLNK(status.st_mode))
    forbidden = 0o022 if owner == 0 and parts[0] == "pgbin" else 0o077
    if has_mode and status.st_mode & forbidden:
        found.open_ones.append(str(path))
    if status.st_uid != (pg_owner if parts[0] == "pg" else owner):
        found.foreign.append(str(path))


def _owner(path: Path) -> int | None:
    try:
        return path.lstat().st_uid
    except OSError:
        return None


def damage(data_dir: Path) -> Iterator[Finding]:
    """Parts of journals that could not be read and were set aside."""
    found = sorted(str(path) for path in (data_dir / "journal").rglob("*.damaged"))
    if found:
        cure = (
            "look at the disk (dmesg, SMART); the records in them are counted as rejected. Delete the files afterwards"
        )
        yield _machine.warning(f"damaged parts of journals were set aside: {_some(found)}", cure)


# --- room


def room(data_dir: Path, loaded: Loaded | None) -> Iterator[Finding]:
    """Whether the disk has what journals may still take."""
    journal = data_dir / "journal"
    free = shutil.disk_usage(journal if journal.exists() else data_dir).free
    if free < LEAST_FREE:
        cure = "make room: when it is full requests are refused, since they cannot be recorded"
        yield _machine.wrong(f"{size(free)} free for journals below {journal}", cure)
        return
    if loaded is None:
        yield _machine.ok(f"{size(free)} free for journals")
        return
    used = sum(_size(path) for path in journal.rglob("*.seg"))
    most = loaded.settings.workers * loaded.settings.journal_max_bytes
    if free < most - used:
        cure = (
            "make room, or lower OSTIARY_JOURNAL_MAX_BYTES, so that journal_full decides what happens and not the disk"
        )
        yield _machine.warning(
            f"journals may grow to {size(most)} while the database is away; {size(free)} are free", cure
        )
    else:
        yield _machine.ok(f"{size(free)} free, journals may grow to {size(most)}")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


# --- limits


def limits(data_dir: Path, holder: str) -> Iterator[Finding]:
    """How many files and connections the processes of the directory's server may open, and have open."""
    if not Path("/proc/self/limits").exists():
        yield _machine.unchecked("limits of open files: this system does not show them (no /proc)")
        return
    supervisor = int(holder) if holder.isdigit() else 0
    workers = [pid for pid in _children(supervisor) if "ostiary.runtime.child worker" in _command_line(pid)]
    if not workers:
        yield _machine.warning(f"no server or gateway runs on {data_dir}", "start it; its log says why it ended")
        return
    least = min((limit for pid in workers if (limit := _open_files_limit(pid)) is not None), default=None)
    cure = "raise the hard limit: LimitNOFILE=65536 in a systemd unit, --ulimit nofile=65536 of a container"
    if least is None:
        yield _machine.unchecked("limits of open files: the workers end just now", "run doctor again")
    elif least < FEW_FILES:
        yield _machine.wrong(f"a worker may open {number(least, 'file')}: two a call, and some for itself", cure)
    elif least < _ENOUGH_FILES:
        yield _machine.warning(
            f"a worker may open {number(least, 'file')}: enough for {least // 2 - 50} calls at once", cure
        )
    else:
        yield _machine.ok(f"a worker may open {number(least, 'file')}")
    for pid in workers:
        used, limit = _open_files(pid), _open_files_limit(pid)
        if used is not None and limit is not None and used > _MOST_OPEN * limit:
            yield _machine.wrong(f"worker {pid} has {used:,} of {limit:,} files open", cure)


def _children(pid: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and pid:
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == pid:
                found.append(int(entry.name))
    return found


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def _open_files_limit(pid: int) -> int | None:
    try:
        found = re.search(r"^Max open files +(\d+) ", Path(f"/proc/{pid}/limits").read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) if found else None


def _open_files(pid: int) -> int | None:
    try:
        return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except FileNotFoundError:
        return ""


def _some(paths: list[str]) -> str:
    more = f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else ""
    return ", ".join(paths[:_SHOWN]) + more


def _quoted(paths: list[str]) -> str:
    more = " ..." if len(paths) > _SHOWN else ""
    return shlex.join(paths[:_SHOWN]) + more
