"""Files of the data directory that hold a secret: mode 0600 from their first byte on, whole or absent.

Nothing is written or read through a symbolic link in the last part of a path.
"""

import os
import secrets
from pathlib import Path


def create_private(path: Path, text: str) -> None:
    """Make `path` with `text`, on disk before this returns. Raises `FileExistsError` rather than overwrite."""
    staged = _stage(path, text)
    try:
        os.link(staged, path)
    finally:
        staged.unlink()
    sync_directory(path.parent)


def replace_private(path: Path, text: str, *, owner: tuple[int, int] | None = None) -> None:
    """Make `path`, or put `text` in its place, on disk before this returns. A reader finds the old or the new text.

    `owner` (uid, gid) gets the file.
    """
    staged = _stage(path, text, owner)
    try:
        staged.replace(path)
    except BaseException:
        staged.unlink()
        raise
    sync_directory(path.parent)


def read_private(path: Path) -> str:
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), encoding="utf-8") as file:
        return file.read()


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _stage(path: Path, text: str, owner: tuple[int, int] | None = None) -> Path:
    staged = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    fd = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            os.fchmod(fd, 0o600)  # whatever the umask takes away
            if owner is not None:
                os.fchown(fd, *owner)  # by descriptor: the directory may be the owner's
            file.write(text)
            file.flush()
            os.fsync(fd)
    except BaseException:
        staged.unlink()
        raise
    return staged
