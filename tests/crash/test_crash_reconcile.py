"""`kill -9` in the middle of streams: what reached the provider is recorded exactly once, journal by journal."""

import os
import random
import signal
from collections.abc import Callable

from tests.support.chaos import Say, chaos, kill_everything
from tests.support.fake_provider import FakeProvider
from tests.support.load import CHAT, MESSAGES, RESPONSES, Load
from tests.support.reconcile import Reconciled, frames_on_disk, reconcile
from tests.support.server import OWNER_TOKEN, Server, StartServer, eventually

PACED = "pace=100 events=12"
STREAMS = 200


def test_streams_cut_by_a_dead_worker_and_a_dead_machine_are_recorded_once(
    start_server: StartServer, own_fake: FakeProvider
) -> None:
    server = start_server(own_fake, "--workers", "2")
    with Load(server.url, OWNER_TOKEN, concurrency=STREAMS, total=3 * STREAMS, control=PACED) as load:
        eventually(lambda: len(load.answering) > STREAMS * 3 // 4, what=load.summary())
        first, _ = workers = sorted(server.children("worker"))
        os.kill(first, signal.SIGKILL)
        eventually(lambda: len(server.children("worker")) == 2 and workers != sorted(server.children("worker")))
        eventually(lambda: len(load.calls) > STREAMS and len(load.answering) > STREAMS * 3 // 4, what=load.summary())
        kill_everything(server)
        on_disk = frames_on_disk(server.data_dir)
        server.start()
        calls = load.wait()
    assert len(calls) == 3 * STREAMS
    cut = [call for call in calls if not call.complete]
    assert STREAMS // 2 < len(cut) < len(calls) - STREAMS // 4, load.summary()
    assert not [call for call in calls if call.complete and call.status == 200 and not call.good], (
        "a cut that looks whole"
    )
    result = reconcile(server, own_fake, calls)
    assert set(result.outcomes) == {"completed", "interrupted"}, result
    assert result.outcomes["interrupted"] <= len(cut) + len(result.late)
    assert len(result.late) < 10, result
    _compare_with_disk(result, on_disk)


def _compare_with_disk(result: Reconciled, on_disk: dict[str, int]) -> None:
    """What the journals held when everything died has arrived, to the last whole frame, and each was closed."""
    assert on_disk
    for journal_id, last in on_disk.items():
        journal = result.journals[journal_id]
        assert journal["gone"]
        assert journal["acked_seq"] == last + 1, f"{last} records were on disk: {journal}"


@chaos
def test_ten_thousand_streams_while_random_processes_are_killed(
    start_server: StartServer, own_fake: FakeProvider, say: Say
) -> None:
    total, seed = 10_000, random.randrange(1 << 32)
    chance = random.Random(seed)
    server = start_server(own_fake, "--workers", "3")
    victims: list[str] = []
    with Load(
        server.url, OWNER_TOKEN, concurrency=STREAMS, total=total, control=PACED, kinds=(CHAT, MESSAGES, RESPONSES)
    ) as load:
        while not load.over:
            _await_calls(load, len(load.calls) + chance.randrange(100, 600))
            if total - len(load.calls) > STREAMS:
                victims.append(_kill_one(server, chance))
        calls = load.wait()
    result = reconcile(server, own_fake, calls, within=120)
    assert len(result.late) < total / 500, result
    say(f"chaos, seed {seed}: {total} streams, killed {', '.join(victims)}")
    say(f"  clients: {load.summary()}")
    say(f"  record: {result}")
    say(f"  at the provider: {len(own_fake.marks())} marks; difference 0")


def _await_calls(load: Load, count: int) -> None:
    eventually(lambda: load.over or len(load.calls) >= count, within=120, what=load.summary())


def _kill_one(server: Server, chance: random.Random) -> str:
    """End one process as a crash would, the supervisor and all of the machine included."""
    assert server.process is not None
    kinds: dict[str, Callable[[], list[int]]] = {
        "worker": lambda: server.children("worker"),
        "link": lambda: server.children("link"),
        "control": lambda: server.children("control"),
        "postgres": lambda: server.children("postgres"),
    }
    name = chance.choice([*kinds, "supervisor", "everything"])
    if name == "supervisor":
        server.kill()
        server.start()
    elif name == "everything":
        kill_everything(server)
        server.start()
    else:
        pids = eventually(kinds[name], what=f"a {name} runs")
        os.kill(chance.choice(pids), signal.SIGKILL)
    return name
