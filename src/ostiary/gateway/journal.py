"""The worker's journal: nothing goes upstream before its record is here.

Rules
- One thread appends; an append is one `write(2)`. What is written survives the death of the process. A thread of the
  journal's own runs `fdatasync` every 50 ms while there is something to sync (`journal_sync = interval`), or each append
  waits for it (`always`): then it survives a power loss too.
- An append either leaves a whole frame or nothing: a short write is truncated away at once and raises `JournalFull`.
- Bounded by `journal_max_bytes`. The link deletes segments once they are acknowledged; that is noticed when a segment
  is full and when space seems short.
- Who may start may end: each `append_start` sets `END_RESERVE` bytes aside for the `append_end` that follows it, and a
  ballast file is given up when the disk itself is full. Until the ballast is back no start is taken.
- When somebody else takes that room first, ends are owed: kept in memory, no more of them than calls were under way, and
  written before the ballast is made again.
"""

import errno
import fcntl
import os
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Self

import structlog

from ostiary.core.journal import (
    BALLAST_NAME,
    HEADER_SIZE,
    LOCK_NAME,
    MAX_PAYLOAD,
    ROOT_LOCK_NAME,
    frame_header,
    segment_name,
)
from ostiary.core.settings import GatewaySettings

log = structlog.get_logger(__name__)

END_RESERVE = 4096
"""Bytes that are set aside for an end."""
MAX_BARE_END = END_RESERVE - HEADER_SIZE
"""What an end record without content may have, so that it has room with its frame (`recording.without_content`)."""
BALLAST_BYTES = 1024**2
SYNC_INTERVAL = 0.05
RECHECK_INTERVAL = 0.2
"""Seconds between two looks at the disk while space is short."""

_SMALL = 16 * 1024
"""Bytes that are sooner copied behind their header than written as a second piece."""

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class JournalError(Exception):
    """The record is not in the journal; the text says why and what to do."""


class JournalFull(JournalError):  # noqa: N818 - named after the setting `journal_full`
    """No room: refuse the request, or write the record again without its content."""


class RecordTooLarge(JournalError):  # noqa: N818
    """Beyond what one frame may carry: write the record again without its content."""


class NotDurable(JournalError):  # noqa: N818
    """`journal_sync = always`: the record is in the journal, but `fdatasync` failed. A started one must still end."""


class Journal:
    """One start of one worker. Made by `Journal.open`; not thread-safe."""

    def __init__(self, path: Path, settings: GatewaySettings, lock_fd: int, clock: Callable[[], float]) -> None:
        self.path = path
        self.id = path.name
        self.seq = 0
        """Number of the last record appended."""
        self.bytes_appended = 0
        self.refusals = 0
        """Appends that found no room."""
        self._clock = clock
        self._sheds = settings.journal_full == "shed-content"
        self._syncs_always = settings.journal_sync == "always"
        self._max_bytes = settings.journal_max_bytes
        # several segments must fit, or none could be deleted while one is written
        self._segment_bytes = max(HEADER_SIZE, min(settings.journal_segment_bytes, settings.journal_max_bytes // 8))
        self._soft_limit = self._max_bytes - self._max_bytes // 8
        self._sealed: deque[tuple[str, int]] = deque()
        self._sealed_bytes = 0
        self._size = 0
        self._reserved = 0
        self._owed: deque[bytes] = deque()
        self._next_check = 0.0
        self._segment_broken = False
        self._lock_fd = lock_fd
        self._dir_fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._ballast = _make_ballast(self._dir_fd)
        self._segment = segment_name(1)
        self._fd = self._create(self._segment)
        self._sync = _Sync(self._dir_fd)
        self._sync.run(self._fd)
        if not self._syncs_always:
            self._sync.start(lambda: (self.seq, self._fd))

    @classmethod
    def open(cls, root: Path, settings: GatewaySettings, journal_id: str, clock: Callable[[], float]) -> Self:
        """Make `<root>/<journal_id>/` and lock it. `clock` gives monotonic seconds. Raises `JournalError`."""
        path = root / journal_id
        try:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            root_fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                root_lock = os.open(root / ROOT_LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                try:
                    # under this lock the link sees the directory either not at all or already locked
                    fcntl.flock(root_lock, fcntl.LOCK_EX)
                    path.mkdir(mode=0o700)
                    lock_fd = os.open(path / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                    fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                finally:
                    os.close(root_lock)
                os.fsync(root_fd)
            finally:
                os.close(root_fd)
            return cls(path, settings, lock_fd, clock)
        except OSError as exc:
            raise JournalError(
                f"cannot make the journal {path}: {exc.strerror}; the data directory must be writable and have space"
            ) from exc

    @property
    def used_bytes(self) -> int:
        """On disk, as far as known: what the link has deleted is noticed late."""
        return self._sealed_bytes + self._size

    @property
    def sync_failures(self) -> int:
        return self._sync.failures

    @property
    def full(self) -> bool:
        """Whether a start would be refused."""
        if self._ballast and self._fits(END_RESERVE, self._reserved + END_RESERVE):
            return False
        self._recheck()
        return not (self._ballast and self._fits(END_RESERVE, self._reserved + END_RESERVE))

    @property
    def shed_content(self) -> bool:
        """Whether records should come without content from here on (`journal_full = shed-content`)."""
        if not self._sheds or self.used_bytes + self._reserved <= self._soft_limit:
            return False
        self._recheck()
        return self.used_bytes + self._reserved > self._soft_limit

    def append_start(self, payload: bytes) -> int:
        """Append the record that opens an interception; gives its number. Raises `JournalError`.

        Every success must be followed by one `append_end`.
        """
        size = HEADER_SIZE + len(payload)
        if not (self._ballast and self._fits(size, self._reserved + END_RESERVE)):
            self._recheck()
            if not (self._ballast and self._fits(size, self._reserved + END_RESERVE)):
                self.refusals += 1
                raise JournalFull(self._full_message())
        if not self._write(payload, size):
            self.refusals += 1
            raise JournalFull(self._full_message())
        self._reserved += END_RESERVE
        return self._appended(size)

    def append_end(self, payload: bytes) -> int:
        """Append the record that closes an interception; gives its number. Raises `JournalError`.

        A record of at most `MAX_BARE_END` bytes always has room in the journal, and on the disk as long as the ballast
        lasts.
        """
        size = HEADER_SIZE + len(payload)
        if not self._fits(size, max(0, self._reserved - END_RESERVE)):
            self._recheck()
        return self._put_end(payload, size)

    def _put_end(self, payload: bytes, size: int) -> int:
        """Append an end where there is room as far as is known. Looks for no more: looking pays what is owed, by this."""
        reserved = max(0, self._reserved - END_RESERVE)
        if not self._fits(size, reserved):
            self.refusals += 1
            raise JournalFull(self._full_message())
        if not self._write(payload, size) and not (self._drop_ballast() and self._write(payload, size)):
            self.refusals += 1
            raise JournalFull(self._full_message())
        self._reserved = reserved
        return self._appended(size)

    def owe_end(self, payload: bytes) -> None:
        """Keep an end that `append_end` did not take; it is written once there is room. Until then no start is taken.

        `payload` should have at most `MAX_BARE_END` bytes.
        """
        self._drop_ballast()
        self._owed.append(payload)

    def settle(self) -> None:
        """Look whether what is owed can be written now."""
        if self._owed:
            self._recheck()

    def close(self) -> None:
        """Sync and unlock: the link takes what is left, and closes what has no end."""
        if self._fd < 0:
            return
        self._recount()
        self._pay()
        self._sync.stop()
        self._sync.run(self._fd)
        self._drop_ballast()
        for fd in (self._fd, self._dir_fd, self._lock_fd):
            os.close(fd)
        self._fd = -1

    def _fits(self, size: int, reserved: int) -> bool:
        return self._sealed_bytes + self._size + size + reserved <= self._max_bytes

    def _write(self, payload: bytes, size: int) -> bool:
        """Put one frame into the segment; False when the disk has no room for it, and then nothing was left there."""
        if self._fd < 0:
            raise JournalError("the journal is closed")
        if size > HEADER_SIZE + MAX_PAYLOAD:
            raise RecordTooLarge(f"a record of {size - HEADER_SIZE} bytes; {MAX_PAYLOAD} are allowed")
        if (self._size and self._size + size > self._segment_bytes) or self._segment_broken:
            self._rotate()
        try:
            written = self._put(frame_header(self.seq + 1, payload), payload)
        except OSError as exc:
            self._cut_back()
            if exc.errno in _NO_SPACE:
                return False
            raise JournalError(f"cannot write to {self.path / self._segment}: {exc.strerror}; check the disk") from exc
        if written != size:
            self._cut_back()
            return False
        return True

    def _put(self, header: bytes, payload: bytes) -> int:
        if len(payload) <= _SMALL:
            return os.write(self._fd, header + payload)
        return os.writev(self._fd, (header, payload))

    def _appended(self, size: int) -> int:
        self.seq += 1
        self._size += size
        self.bytes_appended += size
        if self._syncs_always and not self._sync.run(self._fd):
            raise NotDurable(f"cannot sync {self.path / self._segment}: check the disk")
        return self.seq

    def _cut_back(self) -> None:
        try:
            os.ftruncate(self._fd, self._size)
        except OSError as exc:
            # a torn frame at the end of a segment does no harm once the next segment has begun
            self._segment_broken = True
            log.error("leaving a broken segment", segment=str(self.path / self._segment), error=exc.strerror)

    def _rotate(self) -> None:
        """Begin the next segment. When that fails, the current one goes on beyond its size."""
        name = segment_name(self.seq + 1)
        try:
            fd = self._create(name)
        except OSError as exc:
            if self._segment_broken:
                raise JournalFull(f"cannot begin {self.path / name}: {exc.strerror}; free disk space") from exc
            return
        self._sealed.append((self._segment, self._size))
        self._sealed_bytes += self._size
        left, self._fd = self._fd, fd
        self._segment, self._size, self._segment_broken = name, 0, False
        self._sync.retire(left)
        self._recount()

    def _create(self, name: str) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        return os.open(name, flags, 0o600, dir_fd=self._dir_fd)

    def _recount(self) -> None:
        """Forget the segments that the link has deleted; it deletes the oldest first."""
        while self._sealed:
            name, size = self._sealed[0]
            if os.access(name, os.F_OK, dir_fd=self._dir_fd):
                return
            self._sealed.popleft()
            self._sealed_bytes -= size

    def _recheck(self) -> None:
        """Look again for space, but not at every request of a flood."""
        now = self._clock()
        if now < self._next_check or self._fd < 0:
            return
        self._next_check = now + RECHECK_INTERVAL
        self._recount()
        if not self._ballast and self._pay():
            self._ballast = _make_ballast(self._dir_fd)

    def _pay(self) -> bool:
        """Write the ends that are owed; False when some are left."""
        while self._owed:
            payload = self._owed[0]
            try:
                self._put_end(payload, HEADER_SIZE + len(payload))
            except NotDurable:
                pass  # it is written
            except JournalError:
                return False
            self._owed.popleft()
        return True

    def _drop_ballast(self) -> bool:
        """Free the space kept for ends; False when there is none."""
        if not self._ballast:
            return False
        self._ballast = False
        self._next_check = self._clock() + RECHECK_INTERVAL
        try:
            os.unlink(BALLAST_NAME, dir_fd=self._dir_fd)
        except OSError:
            return False  # somebody has made room with it already
        return True

    def _full_message(self) -> str:
        return (
            f"the journal {self.path} is full ({self.used_bytes} of {self._max_bytes} bytes used): the control plane "
            "does not take records, or the disk has no space; see journal_max_bytes"
        )


def _make_ballast(dir_fd: int) -> bool:
    """Take real blocks, which the last writes of a full disk can have instead; False when there are none."""
    try:
        fd = os.open(BALLAST_NAME, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=dir_fd)
    except OSError:
        return False
    try:
        os.posix_fallocate(fd, 0, BALLAST_BYTES)
    except OSError:
        os.unlink(BALLAST_NAME, dir_fd=dir_fd)
        return False
    finally:
        os.close(fd)
    return True


class _Sync:
    """Brings the journal to the disk: the segment, segments left behind, and their directory."""

    def __init__(self, dir_fd: int) -> None:
        self.failures = 0
        self._dir_fd = dir_fd
        self._dir_dirty = True
        self._retired: deque[int] = deque()
        self._stopped = threading.Event()
        self._syncer: threading.Thread | None = None

    def start(self, current: Callable[[], tuple[int, int]]) -> None:
        """Sync every 50 ms while the number in `current() -> (last record, descriptor)` grows."""
        self._syncer = threading.Thread(target=self._loop, args=(current,), name="journal-sync", daemon=True)
        self._syncer.start()

    def stop(self) -> None:
        self._stopped.set()
        if self._syncer is not None:
            self._syncer.join()

    def retire(self, fd: int) -> None:
        """Take over the descriptor of a full segment; the next run syncs and closes it."""
        self._retired.append(fd)
        self._dir_dirty = True

    def run(self, fd: int) -> bool:
        """Sync all there is now, in the calling thread."""
        done = self._sync_one(os.fdatasync, fd)
        while self._retired:
            left = self._retired.popleft()
            done &= self._sync_one(os.fdatasync, left)
            os.close(left)
        if self._dir_dirty:
            self._dir_dirty = False
            if not self._sync_one(os.fsync, self._dir_fd):
                self._dir_dirty = True
                return False
        return done

    def _loop(self, current: Callable[[], tuple[int, int]]) -> None:
        synced = 0
        while not self._stopped.wait(SYNC_INTERVAL):
            # The number is read before the descriptor, so it never covers more than what is synced. A rotation in
            # between is no harm: only this thread closes retired descriptors, and it does so after this one's sync.
            seq, fd = current()
            if seq != synced and self.run(fd):
                synced = seq

    def _sync_one(self, sync: Callable[[int], None], fd: int) -> bool:
        try:
            sync(fd)
        except OSError as exc:
            self.failures += 1
            if self.failures == 1 or self.failures % 1000 == 0:
                log.error("failing to sync the journal", error=exc.strerror, failures=self.failures)
            return False
        return True
