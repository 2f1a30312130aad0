"""Every file that a server and a standalone gateway make, after traffic, with dumps on and an open umask: closed to others.

What design §2 leaves open as root is the way to PostgreSQL's own directory: the data directory may be passed through,
and the copied programs may be read. The doctor looks at the same rules, so it is asked too.
"""

import os
import stat
from pathlib import Path

from ostiary.cli.doctor import machine
from ostiary.cli.doctor.findings import Status
from tests.crash.test_crash_data_directory import ROOT, open_umask
from tests.support.fake_provider import FakeProvider
from tests.support.gateway import StartGateway, new_key, start_gateway
from tests.support.load import BLOCKING, CHAT, MESSAGES, Load
from tests.support.server import OWNER_TOKEN, StartServer, eventually

__all__ = ["start_gateway"]


def left_open(top: Path) -> list[str]:
    """What others than its owner may do anything with, or get to."""
    found = []
    for parent, directories, files in os.walk(top):
        for path in (Path(parent, name) for name in (*directories, *files)):
            status = path.lstat()
            if stat.S_ISLNK(status.st_mode) or stat.S_ISSOCK(status.st_mode):
                continue  # the directory they are in decides
            programs = ROOT and path.relative_to(top).parts[0] == "pgbin"
            if status.st_mode & (0o022 if programs else 0o077):
                found.append(f"{stat.S_IMODE(status.st_mode):o} {path.relative_to(top)}")
    return found


def check(data_dir: Path, dumps: Path) -> None:
    assert stat.S_IMODE(data_dir.stat().st_mode) == (0o711 if ROOT else 0o700)
    assert stat.S_IMODE(dumps.stat().st_mode) == 0o700
    assert list(dumps.rglob("*.req.txt"))
    assert not left_open(data_dir)
    assert not left_open(dumps)
    for top in (data_dir, dumps):
        assert [one.status for one in machine.modes(top)] == [Status.OK]


def test_all_files_of_a_server_and_of_a_gateway_are_closed_to_others(
    start_server: StartServer, start_gateway: StartGateway, own_fake: FakeProvider, tmp_path: Path
) -> None:
    paths = (tmp_path / "server-dumps", tmp_path / "gateway-dumps")
    with open_umask():
        server = start_server(own_fake, "--workers", "2", OSTIARY_DUMP_DIR=str(paths[0]))
        key = new_key(server)["key"]
        gateway = start_gateway(server.url, key, OSTIARY_DUMP_DIR=str(paths[1]))
    for url in (server.url, gateway.url):
        with Load(url, OWNER_TOKEN, concurrency=4, total=12, kinds=(BLOCKING, CHAT, MESSAGES)) as load:
            assert not [call for call in load.wait() if not call.good], load.summary()
    # those of the last calls are written within a second
    for path in paths:
        eventually(lambda path=path: len(list(path.rglob("*.resp.txt"))) >= 12, what=f"dumps in {path}")
    eventually(lambda: list((gateway.data_dir / "link").iterdir()), what="what a gateway was told last is kept")
    for data_dir, dumps in zip((server.data_dir, gateway.data_dir), paths, strict=True):
        assert list((data_dir / "journal").rglob("*.seg"))
        check(data_dir, dumps)
    assert gateway.stop() == 0
    assert server.stop() == 0
    for data_dir, dumps in zip((server.data_dir, gateway.data_dir), paths, strict=True):
        check(data_dir, dumps)
