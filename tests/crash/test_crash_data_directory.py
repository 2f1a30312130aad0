"""Whose eyes what `ostiary server` writes is open to; and a data directory that PostgreSQL's user cannot get to."""

import os
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.fake_provider import FakeProvider
from tests.support.load import BLOCKING, Load
from tests.support.server import StartServer, open_directory

ROOT = os.geteuid() == 0


@contextmanager
def open_umask() -> Iterator[None]:
    """What is started within makes files for everybody, unless it takes care."""
    before = os.umask(0)
    try:
        yield
    finally:
        os.umask(before)


def modes_below(directory: Path) -> dict[str, int]:
    """Relative path of every directory and file, with its mode; sockets have no say of their own in a closed directory."""
    found = {".": stat.S_IMODE(directory.stat().st_mode)}
    for top, directories, files in os.walk(directory):
        for name in (*directories, *files):
            status = Path(top, name).lstat()
            if not stat.S_ISSOCK(status.st_mode):
                found[str(Path(top, name).relative_to(directory))] = stat.S_IMODE(status.st_mode)
    return found


def test_all_files_of_a_server_are_closed_to_others_whatever_its_umask(
    start_first: StartServer, own_fake: FakeProvider
) -> None:
    with open_umask():
        # without a token of ours, so that one is made and written
        server = start_first(own_fake, "--workers", "2", OSTIARY_BOOTSTRAP_TOKEN="")
    server.wait_ready()
    token = (server.data_dir / "owner-token").read_text().strip()
    with Load(server.url, token, concurrency=4, total=8, kinds=(BLOCKING,)) as load:
        assert not [call for call in load.wait() if not call.good], load.summary()
    modes = modes_below(server.data_dir)
    for expected in ("owner-token", "vault.key", "postgres-password", "lock", "log/postgres.log", "pg/data/PG_VERSION"):
        assert expected in modes, sorted(modes)[:50]
    assert any(path.startswith("journal/") and path.endswith(".seg") for path in modes)
    assert any(path.startswith("journal/") and path.endswith("/lock") for path in modes)
    assert modes.pop(".") == (0o711 if ROOT else 0o700)
    programs = {path for path in modes if path == "pgbin" or path.startswith("pgbin/")}
    open_ones = {path: oct(mode) for path, mode in modes.items() if mode & 0o077 and path not in programs}
    assert not open_ones
    if ROOT:
        foreign = {path.split("/")[0] for path in modes if (server.data_dir / path).lstat().st_uid != 0}
        assert foreign == {"pg"}
        assert not {path for path in programs if modes[path] & 0o022}


def test_below_a_closed_directory_the_server_works_or_says_what_to_do_and_then_works(
    start_server: StartServer, own_fake: FakeProvider
) -> None:
    with open_directory() as top:
        closed = top / "closed"
        closed.mkdir(mode=0o700)
        flags = ("--data-dir", str(closed / "data"))
        server = start_server(own_fake, *flags, ready=False)
        assert server.process is not None
        if ROOT:
            assert server.process.wait(60) == 1
            (line,) = [line for line in server.log.read_text().splitlines() if line.startswith("ostiary: ")]
            assert "Traceback" not in server.log.read_text()
            cure = f"chmod o+x {closed}"
            assert f"through {closed} (mode 0700)" in line
            assert cure in line
            subprocess.run(cure.split(), check=True)
            server.start(ready=False)
        server.wait_ready()
        assert server.get("/api/v2/ai-gateway/interceptions")["count"] == 0
        server.kill()
