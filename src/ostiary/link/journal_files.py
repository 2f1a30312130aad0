"""One journal directory, read by the link: records in order, whatever the disk did to them.

Rules
- Records come out under their numbers, without gaps and from any start. In place of one that the disk lost stands
  `LOST`, which the control plane rejects by name: so the numbers still add up, and nothing behind it waits.
- While the worker lives, bytes at the end that are no frame yet are waited for. Once the link holds the lock they are
  cut. Damage anywhere else is passed over, and its segment is renamed to `.damaged` instead of deleted.
- Blocking file I/O of a megabyte at a time: call `read` from a thread. One caller at a time.
"""

import errno
import fcntl
import os
import uuid
from pathlib import Path
from typing import NamedTuple

from ostiary.core.journal import (
    BALLAST_NAME,
    LOCK_NAME,
    ROOT_LOCK_NAME,
    Rest,
    find_next,
    frame_header,
    parse,
    segment_first_seq,
    segment_name,
)

LOST = b"lost: damaged on the gateway's disk"
"""Not a record: the control plane counts it as rejected."""
TOO_LARGE = b"lost: larger than the control plane takes"
MAX_LOST = 10_000_000
"""Records that may be missing in one place; beyond it the names of the segments are not believed."""
WINDOW = 1024 * 1024


class JournalUnreadableError(Exception):
    """The directory is not a journal that can be shipped; the text says why."""


class Trouble(NamedTuple):
    """What was found wrong. `lost` counts records; a torn tail has none, its record was never whole."""

    segment: str
    offset: int
    size: int
    lost: int
    torn: bool


class Run(NamedTuple):
    """Records `first_seq`, `first_seq + 1`, ...; no records: nothing more for now."""

    first_seq: int
    records: list[bytes]
    troubles: list[Trouble]


def journal_ids(root: Path) -> list[str]:
    """The journals below `root`, oldest name first; none when there is no such directory."""
    try:
        return sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and _is_journal_id(entry.name))
    except FileNotFoundError:
        return []


def is_empty(path: Path) -> bool:
    """Whether a journal never got a record: there is nothing to ship and nobody to close."""
    try:
        return _segments(path) in ([], [1]) and not (path / segment_name(1)).stat().st_size
    except FileNotFoundError:
        return True


def _is_journal_id(name: str) -> bool:
    try:
        return str(uuid.UUID(name)) == name
    except ValueError:
        return False


class JournalFiles:
    """Opens nothing until it is read. `close` it; `adopt` makes the link its owner."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.id = path.name
        self._lock_fd = -1
        self._want = 1
        self._firsts: list[int] = []
        self._current = 0
        self._fd = -1
        self._offset = 0
        self._at = 1
        self._damaged: set[int] = set()
        self._troubles: list[Trouble] = []
        self._told: set[tuple[int, int, int]] = set()
        self._searched: tuple[int, int, int] | None = None

    @property
    def adopted(self) -> bool:
        """Whether the link holds the lock: nobody else appends."""
        return self._lock_fd >= 0

    @property
    def next_seq(self) -> int:
        """Number of the next record that `read` gives."""
        return self._want

    @property
    def holds_records(self) -> bool:
        """Whether there is or was a record that is not yet removed from disk."""
        return self._want > 1 and bool(_segments(self.path))

    def adopt(self) -> bool:
        """Take the lock if its worker is dead."""
        if self.adopted:
            return True
        with (self.path.parent / ROOT_LOCK_NAME).open("a") as root_lock:
            try:
                fcntl.flock(root_lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            # a worker that is making this directory would hold the lock above
            lock_fd = os.open(self.path / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock_fd)
                return False
            except BaseException:
                os.close(lock_fd)
                raise
        self._lock_fd = lock_fd
        return True

    def seek(self, seq: int) -> None:
        """Go on with this record."""
        self._want = seq
        self._close_segment()

    def read(self, max_records: int, max_bytes: int) -> Run:
        """The next records, one at least if there is one. Raises `OSError` and `JournalUnreadableError`."""
        first = self._want
        records = self._read(max_records, max_bytes)
        self._want += len(records)
        troubles, self._troubles = self._troubles, []
        return Run(first, records, troubles)

    def append(self, seq: int, payload: bytes) -> None:
        """Write a record behind the last one, on behalf of the dead worker. Raises `OSError`."""
        path = self.path / segment_name(seq)
        if path.exists() and path.stat().st_size:
            # rubble from the number on that the record gets
            path.rename(_set_aside_name(path))
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            frame = frame_header(seq, payload) + payload
            if os.write(fd, frame) != len(frame):
                os.ftruncate(fd, 0)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fdatasync(fd)
        finally:
            os.close(fd)
        self._close_segment()

    def release(self, acked: int) -> None:
        """Delete the segments whose records are all acknowledged, except the last one."""
        while len(self._firsts) > 1 and self._firsts[1] <= acked + 1 and self._firsts[0] < self._current:
            self._discard(self._firsts.pop(0))

    def remove(self) -> None:
        """Delete the whole adopted journal: all of it is acknowledged. Raises `OSError`."""
        self._close_segment()
        for first in _segments(self.path):
            self._discard(first)
        (self.path / BALLAST_NAME).unlink(missing_ok=True)
        (self.path / LOCK_NAME).unlink(missing_ok=True)
        self.path.rmdir()

    def mark_damaged(self, seq: int) -> None:
        """Keep the segment that holds this record."""
        self._damaged.add(max((first for first in self._firsts if first <= seq), default=0))

    def close(self) -> None:
        self._close_segment()
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    # --- reading

    def _read(self, max_records: int, max_bytes: int) -> list[bytes]:
        if self._fd < 0 and not self._open_wanted():
            return []
        while True:
            missing = self._at - self._want
            if missing > MAX_LOST:
                raise JournalUnreadableError(
                    f"record {self._want} is wanted, and the next one is {self._at} in {segment_name(self._current)}"
                )
            if missing > 0:
                return [LOST] * min(missing, max_records)
            # listed before its end is read: a segment that has a successor by now is complete
            following = self._following()
            data = self._peek()
            parsed = parse(data, self._at, max_records=max_records, max_bytes=max_bytes, skip_to=self._want)
            self._offset += parsed.end
            self._at = parsed.next_seq
            if parsed.payloads:
                return parsed.payloads
            if parsed.end:
                continue
            if not self._pass_stop(parsed.rest, following):
                return []

    def _peek(self) -> bytes:
        """What stands at the offset: a window, or as much as the frame there takes."""
        data = os.pread(self._fd, WINDOW, self._offset)
        parsed = parse(data, self._at, max_records=1)
        if parsed.rest is Rest.PARTIAL and not parsed.end and parsed.needed > len(data) == WINDOW:
            data = os.pread(self._fd, parsed.needed, self._offset)
        return data

    def _pass_stop(self, rest: Rest, following: int | None) -> bool:
        """Go on behind a place where no whole frame stands; False when there is nothing to read yet."""
        if following is None and (rest is Rest.CLEAN or (rest is Rest.PARTIAL and not self.adopted)):
            return False
        size = os.fstat(self._fd).st_size - self._offset
        if following is not None and self._at >= following:
            self._tell(size, torn=True)
            self._open(following)
            return True
        here = (self._current, self._offset, size)
        if following is None and not self.adopted and here == self._searched:
            return False
        self._searched = here
        rubble = os.pread(self._fd, size, self._offset)
        found = find_next(rubble, self._at)
        if found is not None and (following is None or found.seq < following):
            self._tell(found.offset, lost=self._missing_before(found.seq))
            self._offset += found.offset
            self._at = found.seq
            return True
        if following is not None:
            self._tell(size, lost=self._missing_before(following))
            self._open(following)
            return True
        if self.adopted:
            self._cut(rest, rubble)
        return False

    def _cut(self, rest: Rest, rubble: bytes) -> None:
        """What stands at the end of a dead worker's journal and is no frame."""
        torn = rest is Rest.PARTIAL or not rubble.strip(b"\0")
        self._tell(len(rubble), torn=torn)
        if torn:
            os.truncate(self.path / segment_name(self._current), self._offset)

    def _missing_before(self, seq: int) -> int:
        """Records still wanted of those between the offset and this one."""
        return max(0, seq - max(self._at, self._want))

    def _tell(self, size: int, *, lost: int = 0, torn: bool = False) -> None:
        """Note bytes at the offset that are no record, and how many records are missing there."""
        if not (size or lost):
            return
        if size and not torn:
            self._damaged.add(self._current)
        key = (self._current, self._offset, lost)
        if key not in self._told:
            self._told.add(key)
            self._troubles.append(Trouble(segment_name(self._current), self._offset, size, lost, torn))

    # --- segments

    def _open_wanted(self) -> bool:
        """Open the segment in which the wanted record stands, or the first one behind it."""
        self._firsts = _segments(self.path)
        if not self._firsts:
            return False
        oldest = self._firsts[0]
        self._open(max((first for first in self._firsts if first <= self._want), default=oldest))
        self._tell(0, lost=max(0, oldest - self._want))
        return True

    def _open(self, first: int) -> None:
        self._close_segment()
        self._fd = os.open(self.path / segment_name(first), os.O_RDONLY | os.O_CLOEXEC)
        self._current, self._offset, self._at = first, 0, first

    def _close_segment(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _following(self) -> int | None:
        """First record of the segment behind the current one."""
        if not self._firsts or self._firsts[-1] == self._current:
            self._firsts = _segments(self.path)
        return next((first for first in self._firsts if first > self._current), None)

    def _discard(self, first: int) -> None:
        path = self.path / segment_name(first)
        if first in self._damaged:
            path.rename(_set_aside_name(path))
        else:
            path.unlink(missing_ok=True)


def _segments(path: Path) -> list[int]:
    firsts = (segment_first_seq(entry.name) for entry in os.scandir(path))
    return sorted(first for first in firsts if first is not None)


def _set_aside_name(segment: Path) -> Path:
    """Beside the journal, which will be gone: `<journal id>-<segment>.damaged`."""
    return segment.parent.parent / f"{segment.parent.name}-{segment.name}.damaged"


class Tail:
    """Counts the records of a journal beside a reader, from the segments' names and the last one's frames."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._first = 0
        self._offset = 0
        self._seq = 1

    def first_seq(self) -> int:
        """Number of the oldest record on disk; of the next one when there is none."""
        return min(_segments(self._path), default=self._seq)

    def next_seq(self) -> int:
        """Number behind the last whole frame. Reads what has come since the last call. Raises `OSError`."""
        first = max(_segments(self._path), default=0)
        if not first:
            return self._seq
        if first != self._first:
            self._first, self._offset, self._seq = first, 0, first
        with (self._path / segment_name(first)).open("rb") as segment:
            size = WINDOW
            while True:
                segment.seek(self._offset)
                data = segment.read(size)
                parsed = parse(data, self._seq, skip_to=1 << 62)
                self._offset += parsed.end
                self._seq = parsed.next_seq
                if parsed.rest is Rest.BAD or len(data) < size:
                    return self._seq
                size = max(WINDOW, parsed.needed)
