"""A journal or a disk without room: what cannot be recorded is not sent, what has begun still ends, and it recovers."""

import os
import subprocess
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.database_door import DatabaseDoor
from tests.support.fake_provider import FakeProvider
from tests.support.load import BLOCKING, CHAT, MESSAGES, Load
from tests.support.reconcile import journals_of, metric, reconcile
from tests.support.server import OWNER_TOKEN, Server, StartServer, eventually, open_directory

MIB = 1024**2
LONG = "x" * 20_000


def ask(server: Server, text: str = "", path: str = BLOCKING.path) -> httpx.Response:
    content = f"fake-mark:{uuid.uuid4()} {text}"
    body = {"model": "gpt-5.4-mini", "max_tokens": 10, "messages": [{"role": "user", "content": content}]}
    headers = {"Authorization": f"Bearer {OWNER_TOKEN}", "X-Fake": "text=short"}
    return httpx.post(f"{server.url}{path}", headers=headers, json=body, timeout=20)


def journal_bytes(server: Server) -> int:
    files = (server.data_dir / "journal").glob("*/*.seg")
    return sum(path.stat().st_size for path in files)


def test_a_full_journal_refuses_and_sends_nothing_until_there_is_room(
    start_server: StartServer, own_fake: FakeProvider, door: DatabaseDoor
) -> None:
    server = start_server(own_fake, "--workers", "1", "--journal-max-bytes", "1MiB", **door.variables)
    with Load(server.url, OWNER_TOKEN, concurrency=5, total=5, control="pace=50 events=60") as load:
        eventually(lambda: len(load.answering) == 5, what=load.summary())
        door.shut()
        answers = [ask(server, LONG)]
        while answers[-1].status_code == 200:
            answers.append(ask(server, LONG))
            assert len(answers) < 100, "the journal never got full"
        assert answers[-1].status_code == 500
        assert "could not be recorded" in answers[-1].json()["error"]["message"]
        assert "x-ostiary-request-id" in answers[-1].headers
        count = own_fake.requests()["count"]
        refused = [ask(server, LONG), ask(server, path=MESSAGES.path, text=LONG)]
        assert [answer.status_code for answer in refused] == [500, 500]
        assert refused[1].json()["type"] == "error"
        assert own_fake.requests()["count"] == count
        assert journal_bytes(server) <= MIB
        assert metric(server, "ostiary_journal_refusals_total") > 0
        calls = load.wait()
    assert not load.failures(), load.summary()
    door.open()
    eventually(lambda: ask(server, LONG).status_code == 200, within=30, what=server.tail())
    result = reconcile(server, own_fake, calls)
    assert result.outcomes == {"completed": len(result.by_mark)}


def test_a_full_journal_that_sheds_keeps_usage_and_drops_content(
    start_server: StartServer, own_fake: FakeProvider, door: DatabaseDoor
) -> None:
    flags = ("--workers", "1", "--journal-max-bytes", "1MiB", "--journal-full", "shed-content")
    server = start_server(own_fake, *flags, **door.variables)
    assert ask(server).status_code == 200
    door.shut()
    ids = [answer.headers["x-ostiary-interception-id"] for answer in (ask(server, LONG) for _ in range(80))]
    assert journal_bytes(server) <= MIB
    door.open()
    rows = {row["id"]: row for row in eventually(lambda: all_ended(server, 81), within=30, what=server.tail())}
    with_prompt = [bool(rows[one]["user_prompts"]) for one in ids]
    assert with_prompt[0]
    assert not with_prompt[-1]
    assert 20 < sum(with_prompt) < 60
    for row in rows.values():
        assert row["outcome"] == "completed"
        assert len(row["token_usages"]) == 1
    assert own_fake.requests()["count"] == 81
    assert server.interception(ask(server).headers["x-ostiary-interception-id"])["user_prompts"]


def all_ended(server: Server, count: int) -> list[dict[str, Any]] | None:
    if metric(server, "ostiary_link_up") != 1:
        return None
    rows = server.interceptions()
    return rows if len(rows) == count and all(row["ended_at"] for row in rows) else None


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A file system of 4 MiB."""
    with open_directory() as top:
        disk = top / "disk"
        disk.mkdir()
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=4m,mode=0711", "tmpfs", disk], capture_output=True, check=False
        )
        if mounted.returncode != 0:
            pytest.skip("may not mount a small file system here")
        try:
            yield disk
        finally:
            subprocess.run(["umount", "-l", disk], check=True)


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"\0" * 4096)
        except OSError:
            return


def test_on_a_full_disk_what_has_begun_ends_nothing_new_begins_and_room_heals_it(
    start_server: StartServer, own_fake: FakeProvider, door: DatabaseDoor, small_disk: Path
) -> None:
    data_dir = str(small_disk / "data")
    server = start_server(own_fake, "--workers", "1", "--data-dir", data_dir, ready=False, **door.variables)
    server.data_dir = small_disk / "data"
    server.wait_ready()
    with Load(server.url, OWNER_TOKEN, concurrency=10, total=10, control="pace=100 events=15", kinds=(CHAT,)) as load:
        eventually(lambda: len(load.answering) == 10, what=load.summary())
        fill(small_disk / "filler")
        answers = [ask(server, LONG).status_code for _ in range(5)]
        assert 500 in answers, "the disk is full"
        count = own_fake.requests()["count"]
        assert [ask(server, LONG).status_code for _ in range(5)] == [500] * 5
        assert own_fake.requests()["count"] == count
        calls = load.wait()
    assert not load.failures(), load.summary()
    os.unlink(small_disk / "filler")
    eventually(lambda: ask(server).status_code == 200, what=server.tail())
    result = reconcile(server, own_fake, calls)
    assert result.outcomes == {"completed": len(result.by_mark)}
    assert server.stop() == 0


FAILING_SYNC = """
import errno, os
_sync = os.fdatasync
def fdatasync(fd):
    if os.path.exists(os.environ["CRASH_TEST_FAILING_SYNC"]):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    _sync(fd)
if "CRASH_TEST_FAILING_SYNC" in os.environ:
    os.fdatasync = fdatasync
"""


def test_what_cannot_be_made_durable_is_refused_and_its_record_says_so(
    start_server: StartServer, own_fake: FakeProvider, door: DatabaseDoor, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(FAILING_SYNC)
    failing = tmp_path / "failing"
    variables = {
        "PYTHONPATH": os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH")))),
        "CRASH_TEST_FAILING_SYNC": str(failing),
        "OSTIARY_JOURNAL_SYNC": "always",
    }
    server = start_server(own_fake, "--workers", "1", **variables, **door.variables)
    with Load(server.url, OWNER_TOKEN, concurrency=5, total=5, control="pace=50 events=30") as load:
        eventually(lambda: len(load.answering) == 5, what=load.summary())
        failing.touch()
        count = own_fake.requests()["count"]
        assert [ask(server).status_code for _ in range(3)] == [500] * 3
        assert own_fake.requests()["count"] == count
        load.wait()
        failing.unlink()
    assert not load.failures(), load.summary()
    assert ask(server).status_code == 200
    rows = eventually(lambda: all_ended(server, 9), what=server.tail())
    assert Counter(row["outcome"] for row in rows) == {"completed": 6, "rejected": 3}
    (journal,) = journals_of(server)
    assert (journal["stored"], journal["duplicate"], journal["rejected"]) == (18, 0, 0)
