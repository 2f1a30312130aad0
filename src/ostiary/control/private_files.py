"""Files of the data directory that hold a secret: mode 0600 from their first byte on, whole or absent."""

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
    _sync_directory(path.parent)


def replace_private(path: Path, text: str) -> None:
    """Make `path`, or put `text` in its place, on disk before this returns. A reader finds the old or the new text."""
    staged = _stage(path, text)
    try:
        staged.replace(path)
    except BaseException:
        staged.unlink()
        raise
    _sync_directory(path.parent)


def _stage(path: Path, text: str) -> Path:
    staged = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    fd = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(fd)
    return staged


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
