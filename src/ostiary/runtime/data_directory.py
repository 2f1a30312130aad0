"""The data directory: one server's, for as long as it runs.

Rules
- A directory that we make, or made, is closed: 0700, as root 0711 so that the user of PostgreSQL gets to `pg/`. What
  lies in it is 0600 anyway. A directory with foreign content keeps its mode.
- One server a directory, by a lock that the kernel takes back whatever happens to its holder.
- The lock file names its holder. A name left in it says that the last holder was killed.
"""

import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from .errors import StartError


class DataDirectory:
    """A context: made and locked inside. Raises `StartError`."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.unclean = False
        """The last server on this directory was killed: what it started may be about to end only now."""
        self._lock = -1

    def __enter__(self) -> Self:
        try:
            self._make()
            self._take_lock()
            (self.path / "journal").mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise StartError(
                f"cannot use the data directory {self.path}: {error.strerror} ({error.filename or 'lock'}); give this "
                "user access to it or choose another --data-dir"
            ) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.ftruncate(self._lock, 0)
        os.close(self._lock)

    def _make(self) -> None:
        missing = [path for path in (self.path, *self.path.parents) if not path.exists()]
        for path in reversed(missing):
            path.mkdir()
            path.chmod(0o755)
        status = self.path.stat()
        ours = (self.path / "lock").exists() or not any(self.path.iterdir())
        if ours and status.st_uid == os.geteuid():
            self.path.chmod(0o711 if os.geteuid() == 0 else 0o700)

    def _take_lock(self) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self._lock = os.open(self.path / "lock", flags, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(self._lock, 20).decode(errors="replace").strip() or "unknown"
            os.close(self._lock)
            raise StartError(
                f"the data directory {self.path} is in use by another Ostiary (process {holder}): stop that one or "
                "choose another --data-dir"
            ) from error
        self.unclean = bool(os.read(self._lock, 1))
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)
