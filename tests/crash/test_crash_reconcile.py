"""`kill -9` in the middle of streams: what reached the provider is recorded exactly once, journal by journal."""

import os
import signal

from tests.support.chaos import kill_everything
from tests.support.fake_provider import FakeProvider
from tests.support.load import Load
from tests.support.reconcile import frames_on_disk, reconcile
from tests.support.server import OWNER_TOKEN, StartServer, eventually

PACED = "pace=100 events=30"
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
    result = reconcile(server, own_fake, calls, on_disk=on_disk)
    assert set(result.outcomes) == {"completed", "interrupted"}, result
    assert result.outcomes["interrupted"] <= len(cut) + len(result.late)
    assert set(on_disk) <= set(result.journals)
