"""A journal or a disk without room: what cannot be recorded is not sent, what has begun still ends, and it recovers."""

import os
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.harness import LONG, Chance, StartSite, pass_by
from tests.support.chaos import Say
from tests.support.database_door import DatabaseDoor
from tests.support.fake_provider import FakeProvider
from tests.support.gateway import ask
from tests.support.load import CHAT, MESSAGES, Load
from tests.support.reconcile import journals_of, metric, reconcile
from tests.support.server import OWNER_TOKEN, Server, StartServer, eventually
from tests.support.small_disk import SmallDisk

MIB = 1024**2
LARGE = "x" * 20_000
CONCURRENCY = 20


def journal_bytes(server: Server) -> int:
    files = (server.data_dir / "journal").glob("*/*.seg")
    return sum(path.stat().st_size for path in files)


def test_a_full_journal_refuses_and_sends_nothing_until_there_is_room(
    start_server: StartServer, own_fake: FakeProvider, door: DatabaseDoor
) -> None:
    server = start_server(own_fake, "--workers", "1", "--journal-max-bytes", "1MiB", **door.variables)
    with Load(server.url, OWNER_TOKEN, concurrency=5, total=5, control="pace=100 events=60") as load:
        eventually(lambda: len(load.answering) == 5, what=load.summary())
        door.shut()
        answers = [ask(server.url, text=LARGE)]
        while answers[-1].status_code == 200:
            answers.append(ask(server.url, text=LARGE))
            assert len(answers) < 100, "the journal never got full"
        assert answers[-1].status_code == 500
        assert "could not be recorded" in answers[-1].json()["error"]["message"]
        assert "x-ostiary-request-id" in answers[-1].headers
        count = own_fake.requests()["count"]
        refused = [ask(server.url, text=LARGE), ask(server.url, path=MESSAGES.path, text=LARGE)]
        assert [answer.status_code for answer in refused] == [500, 500]
        assert refused[1].json()["type"] == "error"
        assert own_fake.requests()["count"] == count
        assert journal_bytes(server) <= MIB
        assert metric(server, "ostiary_journal_refusals_total") > 0
        calls = load.wait()
    assert not load.failures(), load.summary()
    door.open()
    eventually(lambda: ask(server.url, text=LARGE).status_code == 200, within=30, what=server.tail())
    result = reconcile(server, own_fake, calls)
    assert result.outcomes == {"completed": len(result.by_mark)}


def test_a_full_journal_that_sheds_keeps_usage_and_drops_content(
    start_server: StartServer, own_fake: FakeProvider, door: DatabaseDoor
) -> None:
    flags = ("--workers", "1", "--journal-max-bytes", "1MiB", "--journal-full", "shed-content")
    server = start_server(own_fake, *flags, **door.variables)
    assert ask(server.url).status_code == 200
    door.shut()
    ids = [answer.headers["x-ostiary-interception-id"] for answer in (ask(server.url, text=LARGE) for _ in range(80))]
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
    assert server.interception(ask(server.url).headers["x-ostiary-interception-id"])["user_prompts"]


def all_ended(server: Server, count: int) -> list[dict[str, Any]] | None:
    if metric(server, "ostiary_link_up") != 1:
        return None
    rows = server.interceptions()
    return rows if len(rows) == count and all(row["ended_at"] for row in rows) else None


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"\0" * 4096)
        except OSError:
            return


def test_on_a_full_disk_what_has_begun_ends_nothing_new_begins_and_room_heals_it(
    start_server: StartServer, own_fake: FakeProvider, door: DatabaseDoor, small_disk: SmallDisk
) -> None:
    server = start_server(own_fake, "--workers", "1", data_dir=small_disk(4) / "data", **door.variables)
    with Load(server.url, OWNER_TOKEN, concurrency=10, total=10, control="pace=100 events=60", kinds=(CHAT,)) as load:
        eventually(lambda: len(load.answering) == 10, what=load.summary())
        fill(server.data_dir / "filler")
        answers = [ask(server.url, text=LARGE).status_code for _ in range(5)]
        assert 500 in answers, "the disk is full"
        count = own_fake.requests()["count"]
        assert [ask(server.url, text=LARGE).status_code for _ in range(5)] == [500] * 5
        assert own_fake.requests()["count"] == count
        calls = load.wait()
    assert not load.failures(), load.summary()
    os.unlink(server.data_dir / "filler")
    eventually(lambda: ask(server.url).status_code == 200, what=server.tail())
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
    with Load(server.url, OWNER_TOKEN, concurrency=5, total=5, control="pace=100 events=50") as load:
        eventually(lambda: len(load.answering) == 5, what=load.summary())
        failing.touch()
        count = own_fake.requests()["count"]
        assert [ask(server.url).status_code for _ in range(3)] == [500] * 3
        assert own_fake.requests()["count"] == count
        load.wait()
        failing.unlink()
    assert not load.failures(), load.summary()
    assert ask(server.url).status_code == 200
    rows = eventually(lambda: all_ended(server, 9), what=server.tail())
    assert Counter(row["outcome"] for row in rows) == {"completed": 6, "rejected": 3}
    (journal,) = journals_of(server)
    assert (journal["stored"], journal["duplicate"], journal["rejected"]) == (18, 0, 0)


@contextmanager
def greedy_neighbour(path: Path) -> Iterator[None]:
    """Somebody else fills the disk and takes what anybody frees, for as long as this lasts."""
    enough = threading.Event()

    def take() -> None:
        with path.open("wb", buffering=0) as file:
            while not enough.is_set():
                with suppress(OSError):
                    while not enough.is_set():
                        file.write(b"\0" * 4096)
                enough.wait(0.001)

    thread = threading.Thread(target=take, name="greedy neighbour")
    thread.start()
    try:
        yield
    finally:
        enough.set()
        thread.join()
        path.unlink()


def test_ends_that_find_no_room_are_written_once_there_is_some(start_site: StartSite, small_disk: SmallDisk) -> None:
    site = start_site(standalone=True, workers=1, data_dir=small_disk(8) / "data")
    with site.load(concurrency=30, total=30, control="pace=100 events=50") as load:
        eventually(lambda: len(load.answering) >= 25, what=load.summary)
        with greedy_neighbour(site.gateway.data_dir / "filler"):
            calls = load.wait()
            assert metric(site.gateway, "ostiary_journal_refusals_total") > 0, "the disk had room"
    assert not load.failures(), load.summary()
    result = site.reconcile(load)
    assert result.outcomes == {"completed": len(calls)}
    with site.load(concurrency=4, total=8, prefix="after") as after:
        after.wait()
    assert not after.failures(), after.summary()


@pytest.mark.parametrize("standalone", [False, True], ids=["embedded", "standalone"])
def test_the_disk_of_the_machine_at_the_front_is_full_now_and_then_while_its_processes_die(
    start_site: StartSite, small_disk: SmallDisk, chance: Chance, say: Say, standalone: bool
) -> None:
    """An embedded database is on that disk too."""
    site = start_site(standalone=standalone, data_dir=small_disk(16 if standalone else 300) / "data")
    machine = site.front
    victims = ("worker", "link", "", *(() if standalone else ("control", "postgres")))
    story = []
    with site.load(concurrency=CONCURRENCY) as load:
        for dies in chance.sample(victims * 7, 20) if LONG else chance.sample(victims, 3):
            load.progress(chance.randrange(40, 120))
            fill_for = chance.uniform(0.5, 4.0)
            story.append(f"{fill_for:.1f} s full, {dies or 'nobody'} dies")
            print(f"after {len(load.calls)} calls: {story[-1]}")
            with greedy_neighbour(machine.data_dir / "filler"):
                eventually(lambda: load.calls[-1].status == 500, within=30, what=load.summary)
                if dies:
                    site.kill(machine, dies, chance)
                pass_by(fill_for)
            served = len(load.calls)
            eventually(
                lambda served=served: [call for call in load.calls[served:] if call.good], within=60, what=machine.tail
            )
        site.await_link()
        load.progress(40)
        calls = load.finish()
    print(load.summary())
    # ends that found no room go with their worker; no start is taken meanwhile, so that there are no more than were under way
    result = site.reconcile(load, late_each=CONCURRENCY)
    print(result)
    refused = [call for call in calls if call.complete and not call.good]
    assert {call.status for call in refused} <= {500, 503}
    assert {row["outcome"] for row in result.by_mark.values()} <= {"completed", "interrupted"}
    if LONG:
        say(f"full disk, seed {chance.seed_number}: {load.summary()}; {result}; {'; '.join(story)}")
