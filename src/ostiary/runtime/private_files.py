"""Files that only their owner may read."""

import os
from pathlib import Path


def write_private(path: Path, content: str, *, owner: tuple[int, int] | None = None) -> None:
    """Create `path` with mode 0600 and `content`, on disk before this returns.

    Raises `FileExistsError` when anything, a symbolic link too, has that name: nothing is ever written through.
    `owner` (uid, gid) gets the file.
    """
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        os.fchmod(fd, 0o600)
        if owner is not None:
            os.fchown(fd, *owner)
        file.write(content)
        file.flush()
        os.fsync(fd)


def read_private(path: Path) -> str:
    """The content of a private file, without following a link in its last part."""
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), encoding="utf-8") as file:
        return file.read()


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
