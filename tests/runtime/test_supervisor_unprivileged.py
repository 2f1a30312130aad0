"""The same server started by an ordinary user. (Where the tests run as one, all of them show it.)"""

import json
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.supervised import ROOT, eventually, server_plan, supervised

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")


@pytest.fixture(scope="module")
def ordinary_user() -> tuple[str, dict[str, Any]]:
    """A Python that `nobody` can run, and `Popen` arguments to run it as that user."""
    nobody = pwd.getpwnam("nobody")
    modules = os.pathsep.join([str(ROOT), str(ROOT / "src"), sysconfig.get_path("purelib")])
    options: dict[str, Any] = {
        "user": nobody.pw_uid,
        "group": nobody.pw_gid,
        "extra_groups": [],
        "env": {"PATH": "/usr/bin:/bin", "PYTHONPATH": modules, "PYTHONDONTWRITEBYTECODE": "1"},
    }
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for python in (sys.executable, shutil.which(name, path="/usr/local/bin:/usr/bin")):
        try:
            probe = [python or "", "-c", "import ostiary, uvloop, msgspec, asyncpg, structlog, psutil"]
            subprocess.run(probe, check=True, capture_output=True, cwd=ROOT, **options)
        except (OSError, subprocess.SubprocessError):
            continue
        return probe[0], options
    pytest.skip("no Python here that nobody can run with these packages")


@pytest.fixture
def own_directory(open_directory: Path) -> Path:
    nobody = pwd.getpwnam("nobody")
    home = open_directory / "home"
    home.mkdir(mode=0o700)
    os.chown(home, nobody.pw_uid, nobody.pw_gid)
    return home


def test_an_ordinary_user_runs_everything_as_itself_below_a_closed_home(
    own_directory: Path, ordinary_user: tuple[str, dict[str, Any]]
) -> None:
    python, options = ordinary_user
    data_dir = own_directory / "data"
    with supervised(server_plan(data_dir, workers=1), python=python, **options) as server:
        server.wait_ready()
        family = server.family()
        assert {process.uids().real for process in family} == {options["user"]}
        assert json.loads((data_dir / "control-facts").read_text())["server"].startswith("18")
        assert stat.S_IMODE(data_dir.stat().st_mode) == 0o700
        server.signal(signal.SIGTERM)
        assert server.wait_end() == 0, server.err


def test_nothing_outlives_the_killed_supervisor_of_an_ordinary_user(
    own_directory: Path, ordinary_user: tuple[str, dict[str, Any]]
) -> None:
    python, options = ordinary_user
    with supervised(server_plan(own_directory / "data", workers=1), python=python, **options) as server:
        server.wait_ready()
        family = server.family()
        server.process.kill()
        eventually(
            lambda: all(not p.is_running() or p.status() == psutil.STATUS_ZOMBIE for p in family), "all have ended"
        )


def test_a_directory_that_root_has_used_is_refused_with_the_cure(
    open_directory: Path, ordinary_user: tuple[str, dict[str, Any]]
) -> None:
    python, options = ordinary_user
    data_dir = open_directory / "data"
    with supervised(server_plan(data_dir, workers=1)) as as_root:
        as_root.wait_ready()
        as_root.signal(signal.SIGTERM)
        assert as_root.wait_end() == 0
    with supervised(server_plan(data_dir, workers=1), python=python, **options) as server:
        assert server.wait_end() == 1
        (line,) = [line for line in server.err.splitlines() if line.startswith("ostiary: ")]
        assert f"cannot use the data directory {data_dir}: Permission denied" in line
        assert "give this user access to it or choose another --data-dir" in line
