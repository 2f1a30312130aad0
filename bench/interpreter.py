"""The Python that runs what is written in Python.

Rules
- The distribution's own, where it has the version of the interpreter at hand, as nginx is the distribution's; else the one
  at hand. `BENCH_PYTHON` names another.
- It matters: one compiled without its own profile (`--enable-optimizations`) or as a shared library, as version managers
  do unless told otherwise, takes about a fifth more for the same call.
- It gets the packages installed here: they are made for every build of one Python version.
"""

import os
import subprocess
import sys
import sysconfig
from functools import cache
from pathlib import Path

from .children import StartError

_DISTRIBUTION = Path(f"/usr/bin/python{sys.version_info.major}.{sys.version_info.minor}")
_PROBE = "import platform, sys, msgspec, uvloop; print(sys.implementation.cache_tag, platform.python_version())"


@cache
def python() -> Path:
    """Raises `StartError` when the one named by `BENCH_PYTHON` will not do."""
    named = os.environ.get("BENCH_PYTHON")
    if named:
        told = _probed(Path(named))
        if told is None:
            raise StartError(
                f"BENCH_PYTHON={named} is no Python {_DISTRIBUTION.name[6:]} that can import what is installed here"
            )
        return Path(named)
    return _DISTRIBUTION if _probed(_DISTRIBUTION) else Path(sys.executable)


def version() -> str:
    """For the list of versions: its number and where it is from."""
    return f"{_probed(python())} ({'the distribution' if python() == _DISTRIBUTION else python()})"


def environment(*first: Path) -> dict[str, str]:
    """That of this process, with these directories first on the path and what is installed here behind them."""
    sites = [*first, Path(sysconfig.get_path("purelib"))]
    return os.environ | {"PYTHONPATH": os.pathsep.join(map(str, sites))}


def _probed(candidate: Path) -> str | None:
    """Its version; None when it does not run, or is of another version than this one."""
    try:
        told = subprocess.run(
            [str(candidate), "-c", _PROBE], env=environment(), capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    tag, _, number = told.stdout.strip().partition(" ")
    return number if told.returncode == 0 and tag == sys.implementation.cache_tag else None
