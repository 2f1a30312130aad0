"""File systems of a few MiB, to be filled. Where they may not be mounted their tests are skipped."""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.support.server import open_directory

SmallDisk = Callable[[int], Path]
"""`small_disk(4)`: an empty directory on a file system of so many MiB, which every user may pass through."""


@contextmanager
def mounted(directory: Path, mebibytes: int) -> Iterator[None]:
    """A small file system in the place of that directory."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m,mode=0711", "tmpfs", directory]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"may not mount a small file system here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", directory], check=True)


@pytest.fixture
def small_disk() -> Iterator[SmallDisk]:
    with open_directory() as top, ExitStack() as disks:

        def make(mebibytes: int) -> Path:
            disk = top / f"disk-{len(list(top.iterdir()))}"
            disk.mkdir()
            disks.enter_context(mounted(disk, mebibytes))
            return disk

        yield make
