"""The directory of dumps: `<base>/<provider>/<model>/<unix ms>-<interception id>-<attempt>.req.txt` and its siblings.

Rules
- Whatever a model, a path or an id is called, it is one name in its directory: never a way out of it. Below the base
  directory no symbolic link is followed. Directories are made 0700, files 0600 and never over one that is there.
- What is removed to stay below the limit is named as we name our files; everything else in the base directory is let
  alone and not counted.
- Several workers share the directory. They write different files; one of them at a time looks for what to remove.
- Everything here waits for the disk: it is for the thread that writes dumps, not for the event loop.
"""

import fcntl
import heapq
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Final, NamedTuple

REQUEST: Final = ".req.txt"
RESPONSE: Final = ".resp.txt"
REQUEST_ERROR: Final = ".req_error.txt"
PASSTHROUGH: Final = "passthrough"

_LOCK: Final = ".lock"
_NAME_MAX: Final = 180
"""Bytes of UTF-8; with what stands around it a name stays below the 255 of a file system."""
_TEXT_MAX: Final = 512
"""Characters that are looked at: a model's name can be as long as a request."""
_NAMED_BY_US: Final = re.compile(r"([0-9]{1,16})-.+\.(?:req|resp|req_error)\.txt", re.DOTALL)
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MAKE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_APPEND: Final = os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
_TRIES: Final = 3
_OLDEST_AT_ONCE: Final = 10_000
_KEPT: Final = 7 / 8
"""What is left of the limit after a removal, so that it is not due again at once."""
_BETWEEN_LOOKS: Final = 1 / 32
"""Of the limit: what a worker writes until it looks again."""


def name_of(text: str) -> str:
    """One file name that says `text`: `/` and what cannot be printed become `-`, and it is neither hidden nor too long."""
    text = text[:_TEXT_MAX]
    name = "".join(char if char.isprintable() and char not in "/\\" else "-" for char in text)
    if not name or name[0] in ".-" or name == PASSTHROUGH:
        name = "_" + name
    raw = name.encode()
    if len(raw) <= _NAME_MAX:
        return name
    digest = sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    return f"{raw[: _NAME_MAX - 13].decode('utf-8', 'ignore')}-{digest}"


class Place(NamedTuple):
    """Where the files of one attempt stand."""

    provider: str
    model: str
    stem: str


def place_of(provider: str, model: str | None, path: str, interception_id: str, number: int, at_ms: int) -> Place:
    """The place of an attempt's files; without a model: of a passthrough request, by its path."""
    if not model:
        tail = interception_id[-4:] if number == 1 else ""
        if re.fullmatch("[0-9a-f]{4}", tail) is None:
            tail = secrets.token_hex(2)
        called = name_of(path.partition("?")[0].strip("/"))
        return Place(name_of(provider), PASSTHROUGH, f"{max(0, at_ms)}-{called}-{tail}")
    return Place(name_of(provider), name_of(model), f"{max(0, at_ms)}-{name_of(interception_id)}-{number}")


class DumpFiles:
    """The files below one base directory. Everything raises `OSError`."""

    def __init__(self, base: str, total_max_bytes: int) -> None:
        self.base = base
        self._total_max = total_max_bytes
        self._written = 0

    def removal_due(self) -> bool:
        """Whether enough was written to look for what to remove."""
        return self._written > self._total_max * _BETWEEN_LOOKS

    def prepare(self) -> None:
        """Make the base directory."""
        Path(self.base).mkdir(0o700, parents=True, exist_ok=True)

    def append(self, place: Place, kind: str, data: bytes, *, new: bool) -> None:
        """Add to a file, which is made when it is `new`. `FileNotFoundError`: it has been removed in the meantime."""
        for left in reversed(range(_TRIES if new else 1)):
            try:
                self._append(place, kind, data, new=new)
                break
            except FileNotFoundError:
                if not left:
                    raise
                self._make(place)  # its directory; another worker may remove an empty one at any moment
        self._written += len(data)

    def _append(self, place: Place, kind: str, data: bytes, *, new: bool) -> None:
        with self._directory(place.provider, place.model) as directory:
            fd = os.open(place.stem + kind, _MAKE if new else _APPEND, 0o600, dir_fd=directory)
            try:
                _write_all(fd, data)
            finally:
                os.close(fd)

    def _make(self, place: Place) -> None:
        self.prepare()
        with self._directory() as base, suppress(FileExistsError):
            os.mkdir(place.provider, 0o700, dir_fd=base)
        with self._directory(place.provider) as provider, suppress(FileExistsError):
            os.mkdir(place.model, 0o700, dir_fd=provider)

    @contextmanager
    def _directory(self, *names: str) -> Iterator[int]:
        """A descriptor of the directory that these names lead to from the base directory."""
        fd = os.open(self.base, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for name in names:
                fd, outer = os.open(name, _DIRECTORY, dir_fd=fd), fd
                os.close(outer)
            yield fd
        finally:
            os.close(fd)

    # --- removal

    def remove_oldest(self) -> int:
        """Remove the oldest files until what is left is below the limit; gives how many. Another worker may be at it."""
        self._written = 0
        self.prepare()
        with self._directory() as base:
            lock = os.open(_LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=base)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return self._remove_oldest(base)
            except BlockingIOError:
                return 0
            finally:
                os.close(lock)

    def _remove_oldest(self, base: int) -> int:
        removed = 0
        limit = self._total_max
        while True:
            total, oldest = _look(base)
            if total <= limit:
                return removed
            limit = int(self._total_max * _KEPT)
            before = removed
            for old in oldest:
                if total <= limit:
                    return removed
                if _remove(base, old):
                    total -= old.size
                    removed += 1
            if removed == before:
                return removed  # none of them can be removed


class _Old(NamedTuple):
    """A file, in the order of removal."""

    at_ms: int
    name: str
    provider: str
    model: str
    size: int


def _look(base: int) -> tuple[int, list[_Old]]:
    """The size of all our files, and the oldest of them."""
    total = 0

    def counted() -> Iterator[_Old]:
        nonlocal total
        for old in _files(base):
            total += old.size
            yield old

    oldest = heapq.nsmallest(_OLDEST_AT_ONCE, counted())
    return total, oldest


def _files(base: int) -> Iterator[_Old]:
    """Our files, in no order."""
    for provider, provider_fd in _directories(base):
        for model, model_fd in _directories(provider_fd):
            with os.scandir(model_fd) as entries:
                for entry in entries:
                    named = _NAMED_BY_US.fullmatch(entry.name)
                    if named is None:
                        continue
                    with suppress(FileNotFoundError):
                        if entry.is_file(follow_symlinks=False):
                            stat = entry.stat(follow_symlinks=False)
                            size = max(stat.st_size, stat.st_blocks * 512)
                            yield _Old(int(named[1]), entry.name, provider, model, size)


def _directories(fd: int) -> Iterator[tuple[str, int]]:
    """The directories in a directory, each with a descriptor that is open until the next one is asked for."""
    with os.scandir(fd) as entries:
        names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    for name in names:
        try:
            inner = os.open(name, _DIRECTORY, dir_fd=fd)
        except OSError:
            continue  # gone, or not ours to read
        try:
            yield name, inner
        finally:
            os.close(inner)


def _remove(base: int, old: _Old) -> bool:
    """Remove a file, and its directory when it was the last one there."""
    try:
        provider = os.open(old.provider, _DIRECTORY, dir_fd=base)
    except OSError:
        return False
    try:
        model = os.open(old.model, _DIRECTORY, dir_fd=provider)
        try:
            os.unlink(old.name, dir_fd=model)
        finally:
            os.close(model)
        with suppress(OSError):
            os.rmdir(old.model, dir_fd=provider)
    except OSError:
        return False
    finally:
        os.close(provider)
    return True


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
