"""link/shipper.py with real journals and a real server: nothing lost, nothing twice, nothing left behind."""

import asyncio
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import uvloop
from connectrpc.code import Code
from connectrpc.errors import ConnectError
from control_far_end import KEY, FarEnd, until
from structlog.testing import capture_logs

from ostiary.core.ids import new_id
from ostiary.core.metrics import Registry
from ostiary.core.records import InterceptionEnd, InterceptionStart, WorkerGone, decode_record, encode_record
from ostiary.core.secret import Secret
from ostiary.core.settings import GatewaySettings
from ostiary.gateway.journal import Journal
from ostiary.link.client import ControlClient
from ostiary.link.journal_files import LOST, TOO_LARGE
from ostiary.link.journal_shipper import ShipperMetrics
from ostiary.link.shipper import Shipper
from tests.support.small_disk import SmallDisk


class Rig:
    """A journal root, a far end, and a shipper between them."""

    def __init__(self, root: Path, far: FarEnd) -> None:
        self.root = root
        self.far = far
        self.failures = 0

    def journal(self, segment_bytes: int = 64 * 1024**2) -> Journal:
        settings = GatewaySettings(journal_dir=str(self.root), journal_segment_bytes=segment_bytes)
        return Journal.open(self.root, settings, str(uuid.uuid4()), time.monotonic)

    async def start(self) -> None:
        self.client = ControlClient(self.far.url, Secret(KEY))
        self.metrics = ShipperMetrics(Registry())
        self.shipper = Shipper(self.root, self.client, self.metrics, self._failed)
        self.task = asyncio.create_task(self.shipper.run())

    async def stop(self) -> None:
        self.task.cancel()
        with suppress(asyncio.CancelledError):
            await self.task
        await self.client.__aexit__(None, None, None)

    def _failed(self) -> None:
        self.failures += 1

    async def acked(self, journal: Journal) -> None:
        """Both sides know that all of it is stored."""
        await until(lambda: self.far.journals.get(journal.id, 0) >= journal.seq)
        async with asyncio.timeout(20):
            while await self.shipper.pending():
                await asyncio.sleep(0.005)


Play = Callable[[Callable[[Rig], Coroutine[Any, Any, None]]], None]


@pytest.fixture
def play(tmp_path: Path) -> Iterator[Play]:
    def run(test: Callable[[Rig], Coroutine[Any, Any, None]]) -> None:
        async def main() -> None:
            async with FarEnd() as far:
                rig = Rig(tmp_path / "journal", far)
                await rig.start()
                try:
                    await test(rig)
                finally:
                    await rig.stop()

        uvloop.run(main())

    yield run


def interception() -> tuple[bytes, bytes]:
    name = new_id()
    start = InterceptionStart(name, str(uuid.uuid4()), "k", "openai", "openai", "gpt", "/v1/responses", 1)
    return encode_record(start), encode_record(InterceptionEnd(name, 2, "completed"))


def append(journal: Journal, interceptions: int) -> list[bytes]:
    written = []
    for _ in range(interceptions):
        start, end = interception()
        journal.append_start(start)
        journal.append_end(end)
        written += [start, end]
    return written


def is_gone(payload: bytes) -> bool:
    return isinstance(decode_record(payload), WorkerGone)


def test_a_live_journal_is_shipped_as_it_grows_and_its_full_segments_are_deleted(play: Play) -> None:
    async def test(rig: Rig) -> None:
        journal = rig.journal(segment_bytes=2000)
        written = append(journal, 5)
        await rig.acked(journal)
        written += append(journal, 40)
        await rig.acked(journal)
        assert rig.far.frames[journal.id] == written
        assert rig.far.duplicates == 0
        await until(lambda: len(list(journal.path.glob("*.seg"))) == 1)
        assert rig.shipper.counts() == (1, 0)
        assert await rig.shipper.pending() == 0
        journal.close()

    play(test)


def test_a_dead_workers_journal_is_shipped_to_its_end_closed_and_removed(play: Play) -> None:
    async def test(rig: Rig) -> None:
        journal = rig.journal()
        written = append(journal, 3)
        start, _ = interception()
        journal.append_start(start)
        journal.close()
        rig.shipper.look_now()
        await until(lambda: not journal.path.exists())
        frames = rig.far.frames[journal.id]
        assert frames[:-1] == [*written, start]
        assert is_gone(frames[-1])
        assert rig.metrics.adopted[0] == 1

    play(test)


def test_the_end_of_a_worker_that_finds_no_room_on_the_disk_is_appended_later(small_disk: SmallDisk) -> None:
    disk = small_disk(3)

    async def test() -> None:
        async with FarEnd() as far:
            rig = Rig(disk, far)
            journal = rig.journal()
            written = append(journal, 3)
            start, _ = interception()
            journal.append_start(start)
            written.append(start)
            journal.close()
            filling = disk / "filling"
            with filling.open("wb", buffering=0) as file, suppress(OSError):
                while file.write(bytes(4096)):
                    pass
            with capture_logs() as lines:
                await rig.start()
                try:
                    await until(lambda: len([one for one in lines if one["log_level"] == "error"]) >= 3)
                    assert far.frames[journal.id] == written, "what stands there is shipped all the same"
                    assert await rig.shipper.drain(0.2) == 1, "its end is left"
                    filling.unlink()
                    rig.shipper.look_now()
                    await until(lambda: not journal.path.exists())
                    assert await rig.shipper.drain(20) == 0
                finally:
                    await rig.stop()
            assert is_gone(far.frames[journal.id].pop())
            assert far.frames[journal.id] == written
            told = [one for one in lines if one["log_level"] == "error"]
            assert {one["event"] for one in told} == {"failing to append the end of the worker to its journal"}
            assert {(one["journal_id"], one["error"]) for one in told} == {(journal.id, "No space left on device")}

    uvloop.run(test())


def test_a_journal_without_a_record_is_removed_without_a_word(play: Play) -> None:
    async def test(rig: Rig) -> None:
        journal = rig.journal()
        journal.close()
        rig.shipper.look_now()
        await until(lambda: not journal.path.exists())
        assert rig.far.batches == []

    play(test)


def test_a_lost_answer_and_failing_batches_store_nothing_twice_and_lose_nothing(play: Play) -> None:
    async def test(rig: Rig) -> None:
        rig.far.lose_answers = 2
        rig.far.failing["record"] = [None, ConnectError(Code.INTERNAL, "no"), ConnectError(Code.UNAVAILABLE, "db")]
        journal = rig.journal()
        written = append(journal, 50)
        await rig.acked(journal)
        written += append(journal, 50)
        await rig.acked(journal)
        assert rig.far.frames[journal.id] == written
        assert len(rig.far.rows) == len(written)
        assert rig.metrics.errors[0] >= 2
        assert rig.failures >= 2
        journal.close()

    play(test)


def test_an_outage_of_the_control_plane_only_delays(play: Play) -> None:
    async def test(rig: Rig) -> None:
        journal = rig.journal()
        written = append(journal, 5)
        await rig.acked(journal)
        await rig.far.stop()
        written += append(journal, 20)
        assert await rig.shipper.pending() == 40
        await rig.far.start()
        await rig.acked(journal)
        assert rig.far.frames[journal.id] == written
        journal.close()

    play(test)


def test_a_restarted_link_asks_where_it_stands_and_sends_only_the_rest(play: Play) -> None:
    async def test(rig: Rig) -> None:
        journal = rig.journal(segment_bytes=2000)
        written = append(journal, 30)
        await rig.acked(journal)
        await rig.stop()
        before = len(rig.far.batches)
        written += append(journal, 3)
        await rig.start()
        await rig.acked(journal)
        assert rig.far.frames[journal.id] == written
        later = rig.far.batches[before:]
        assert later[0][1] == 61
        assert sum(count for _, _, count in later) == 6
        journal.close()

    play(test)


def test_a_gap_answer_leads_back_to_where_the_control_plane_is(play: Play) -> None:
    async def test(rig: Rig) -> None:
        journal = rig.journal()
        written = append(journal, 5)
        await rig.acked(journal)
        # the database was restored from a backup that is four records older
        rig.far.journals[journal.id] = 6
        del rig.far.frames[journal.id][6:]
        written += append(journal, 2)
        await rig.acked(journal)
        assert rig.far.frames[journal.id] == written
        journal.close()

    play(test)


def test_records_deleted_before_a_backup_was_restored_are_counted_as_lost(play: Play) -> None:
    async def test(rig: Rig) -> None:
        journal = rig.journal(segment_bytes=1000)
        append(journal, 30)
        await rig.acked(journal)
        await until(lambda: len(list(journal.path.glob("*.seg"))) == 1)
        rig.far.journals[journal.id] = 0
        rig.far.frames[journal.id] = []
        append(journal, 1)
        await rig.acked(journal)
        frames = rig.far.frames[journal.id]
        assert len(frames) == 62
        assert 0 < frames.count(LOST) == rig.metrics.lost[0] == rig.metrics.rejected[0] < 62
        journal.close()

    play(test)


def test_damage_is_passed_over_counted_and_set_aside(play: Play) -> None:
    async def test(rig: Rig) -> None:
        await rig.stop()
        journal = rig.journal(segment_bytes=2000)
        written = append(journal, 30)
        journal.close()
        first = min(journal.path.glob("*.seg"))
        data = bytearray(first.read_bytes())
        data[20] ^= 1
        first.write_bytes(data)
        await rig.start()
        await until(lambda: not journal.path.exists())
        frames = rig.far.frames[journal.id]
        assert frames[:-1] == [LOST, *written[1:]]
        assert is_gone(frames[-1])
        assert (rig.metrics.damaged[0], rig.metrics.lost[0], rig.metrics.rejected[0]) == (1, 1, 1)
        aside = [path.name for path in rig.root.glob("*.damaged")]
        assert aside == [f"{journal.id}-{first.name}.damaged"]

    play(test)


def test_a_segment_that_vanishes_under_the_link_costs_its_records_only(play: Play) -> None:
    async def test(rig: Rig) -> None:
        rig.far.always["record"] = ConnectError(Code.UNAVAILABLE, "database away")
        journal = rig.journal(segment_bytes=1000)
        written = append(journal, 10)
        second, third = (int(path.stem) for path in sorted(journal.path.glob("*.seg"))[1:3])
        (journal.path / f"{second:016d}.seg").unlink()
        del rig.far.always["record"]
        rig.shipper.look_now()
        await rig.acked(journal)
        expected = [LOST if second <= seq < third else payload for seq, payload in enumerate(written, start=1)]
        assert rig.far.frames[journal.id] == expected
        journal.close()

    play(test)


def test_batches_are_bounded_and_a_record_that_is_too_large_holds_nothing_up(play: Play) -> None:
    async def test(rig: Rig) -> None:
        await rig.stop()
        journal = rig.journal()
        written = append(journal, 1500)
        journal.append_end(b"X" * (5 * 1024**2))
        written += [TOO_LARGE, *append(journal, 700)]
        await rig.start()
        await rig.acked(journal)
        assert rig.far.frames[journal.id] == written
        assert max(count for _, _, count in rig.far.batches) <= 1000
        assert rig.metrics.lost[0] == 1
        journal.close()
        await until(lambda: not journal.path.exists())
        assert [path.stat().st_size > 5 * 1024**2 for path in rig.root.glob("*.damaged")] == [True]

    play(test)


def test_a_rejected_record_counts_and_does_not_stop_the_rest(play: Play) -> None:
    async def test(rig: Rig) -> None:
        journal = rig.journal()
        journal.append_end(b"not a record")
        written = append(journal, 2)
        await rig.acked(journal)
        assert rig.far.frames[journal.id] == [b"not a record", *written]
        assert rig.metrics.rejected[0] == 1
        journal.close()

    play(test)


def test_draining_ships_everything_or_says_how_much_is_left(play: Play) -> None:
    async def test(rig: Rig) -> None:
        journals = [rig.journal() for _ in range(3)]
        for journal in journals:
            append(journal, 20)
            journal.close()
        assert await rig.shipper.drain(20) == 0
        assert [path for path in rig.root.iterdir() if path.is_dir()] == []
        rig.far.always["record"] = ConnectError(Code.UNAVAILABLE, "database away")
        journal = rig.journal()
        append(journal, 4)
        journal.close()
        assert await rig.shipper.drain(0.2) == 8

    play(test)


def test_a_journal_that_cannot_be_read_leaves_the_others_alone(play: Play) -> None:
    async def test(rig: Rig) -> None:
        await rig.stop()
        bad = rig.journal()
        bad.close()
        (bad.path / "0000000000000001.seg").rename(bad.path / "0900000000000000.seg")
        good = rig.journal()
        written = append(good, 3)
        await rig.start()
        await rig.acked(good)
        assert rig.far.frames[good.id] == written
        await until(lambda: (rig.root / f"{bad.id}.damaged").exists())
        good.close()

    play(test)


WRITER = """
import os, sys, time
from pathlib import Path
from ostiary.core.ids import new_id
from ostiary.core.records import InterceptionEnd, InterceptionStart, encode_record
from ostiary.core.settings import GatewaySettings
from ostiary.gateway.journal import Journal

root, journal_id = Path(sys.argv[1]), sys.argv[2]
settings = GatewaySettings(journal_dir=str(root), journal_segment_bytes=200_000)
journal = Journal.open(root, settings, journal_id, time.monotonic)
out = os.open(sys.argv[3], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
while True:
    name = new_id()
    start = InterceptionStart(name, name, "k", "openai", "openai", "gpt", "/v1/responses", 1, user_agent="u" * 300)
    os.write(out, b"%d\\n" % journal.append_start(encode_record(start)))
    os.write(out, b"%d\\n" % journal.append_end(encode_record(InterceptionEnd(name, 2, "completed"))))
"""


def start_writer(root: Path, journal_id: str, told: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", WRITER, str(root), journal_id, str(told)])


def last_told(told: Path) -> int:
    """The last number that the child got back from an append."""
    lines = told.read_bytes().split(b"\n")
    return int(lines[-2]) if len(lines) > 1 else 0


def test_what_a_worker_appended_before_kill_9_is_shipped_exactly_once(play: Play, tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        workers = []
        for number in range(2):
            told = tmp_path / f"told-{number}"
            told.touch()
            journal_id = str(uuid.uuid4())
            workers.append((start_writer(rig.root, journal_id, told), journal_id, told))
        try:
            for _, journal_id, told in workers:
                await until(lambda told=told: last_told(told) > 1000)
                await until(lambda journal_id=journal_id: rig.far.journals.get(journal_id, 0) > 200)
        finally:
            for process, _, _ in workers:
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
        # the link dies too, with batches under way
        await rig.stop()
        rig.far.lose_answers = 2
        await rig.start()
        for _, journal_id, told in workers:
            await until(lambda journal_id=journal_id: not (rig.root / journal_id).exists())
            frames = rig.far.frames[journal_id]
            # appended = acknowledged; the last append may not have been told any more
            assert rig.far.journals[journal_id] == len(frames)
            assert len(frames) - 1 - last_told(told) in (0, 1)
            assert is_gone(frames[-1])
            records = [decode_record(frame) for frame in frames[:-1]]
            starts = [record.id for record in records if isinstance(record, InterceptionStart)]
            ends = [record.id for record in records if isinstance(record, InterceptionEnd)]
            assert len(set(starts)) == len(starts)
            assert starts[: len(ends)] == ends
        assert rig.far.duplicates == 0
        assert rig.far.rejected == []
        assert rig.metrics.lost[0] == 0

    play(test)
