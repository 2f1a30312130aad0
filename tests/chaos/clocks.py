"""Wall clocks that jump: of all processes of a machine at once, PostgreSQL included, while their monotonic clocks go on."""

import mmap
import os
import shutil
import struct
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("clock_shim.c")

HOUR = 3600.0
DAY = 24 * HOUR

# The supervisor gives PostgreSQL an environment of its own.
_FOR_POSTGRES = """
import os, sys
if any(name in sys.orig_argv for name in ("server", "gateway")) and "CHAOS_CLOCK" in os.environ:
    from ostiary.runtime import pgbin
    pgbin._ENVIRONMENT |= {name: os.environ[name] for name in ("LD_PRELOAD", "CHAOS_CLOCK")}
"""


class Clock:
    """A machine's wall clock; `variables` are its environment. At first it is right.

    `directory` is one that every user may pass through.
    """

    def __init__(self, directory: Path) -> None:
        compiler = shutil.which("cc")
        if compiler is None or sys.platform != "linux":
            pytest.skip("needs a C compiler (cc) on Linux: wall clocks are moved by a library that is compiled here")
        library = directory / "clock.so"
        command = [compiler, "-shared", "-fPIC", "-O2", "-Wall", "-o", library, SOURCE]
        made = subprocess.run(command, capture_output=True, text=True, check=False)
        if made.returncode != 0:
            pytest.skip(f"cc cannot make a shared library here: {made.stderr}")
        (directory / "sitecustomize.py").write_text(_FOR_POSTGRES)
        path = directory / "offset"
        path.write_bytes(struct.pack("q", 0))
        for shared in (library, path):
            shared.chmod(0o644)
        with path.open("r+b") as file:
            self._offset = mmap.mmap(file.fileno(), 8)
        self.seconds = 0.0
        """How far it is ahead."""
        self.variables = {
            "LD_PRELOAD": str(library),
            "CHAOS_CLOCK": str(path),
            "PYTHONPATH": os.pathsep.join(filter(None, (str(directory), os.environ.get("PYTHONPATH")))),
        }

    def jump_to(self, seconds: float) -> None:
        """From now on it is so many seconds ahead of the right time."""
        self.seconds = seconds
        struct.pack_into("q", self._offset, 0, int(seconds * 1e9))

    @property
    def now(self) -> datetime:
        return datetime.now(UTC) + timedelta(seconds=self.seconds)
