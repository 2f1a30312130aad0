"""gateway/journal.py: ends that found no room are written once, whenever there is room."""

import fcntl
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from ostiary.core.journal import HEADER_SIZE, Rest, parse, segment_first_seq
from ostiary.core.settings import GatewaySettings
from ostiary.gateway.journal import END_RESERVE, RECHECK_INTERVAL, Journal, JournalFull


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def segments(path: Path) -> list[Path]:
    return sorted(file for file in path.iterdir() if segment_first_seq(file.name) is not None)


def owing_with_room_again(root: Path, clock: Clock, *, owed: int) -> tuple[Journal, list[bytes]]:
    """A full journal that owes ends, has just looked for room in vain, and whose oldest segments are then shipped."""
    settings = GatewaySettings(journal_dir=str(root), journal_max_bytes=200_000, journal_segment_bytes=30_000)
    journal = Journal.open(root, settings, str(uuid.uuid4()), clock)
    for _ in range(5):
        journal.append_end(b"r" * 20_000)
    while journal.used_bytes + 10_008 + owed * (END_RESERVE + 13) <= 200_000:
        journal.append_end(b"r" * 10_000)
    for _ in range(owed):
        journal.append_start(b"start")
    ends = [bytes([number]) * 20_000 for number in range(owed)]
    for end in ends:
        with pytest.raises(JournalFull):
            journal.append_end(end)
        journal.owe_end(end)
    for file in segments(journal.path)[:4]:
        file.unlink()
    return journal, ends


def tail(path: Path, count: int) -> list[bytes]:
    """The last records, where the first segments are shipped and gone."""
    read: list[bytes] = []
    for file in segments(path):
        first = segment_first_seq(file.name)
        assert first is not None
        parsed = parse(file.read_bytes(), first)
        assert parsed.rest is Rest.CLEAN
        read += parsed.payloads
    return read[-count:]


@pytest.mark.parametrize("waited", [0.0, 10 * RECHECK_INTERVAL])
def test_every_end_that_is_owed_is_written_once_by_close_and_the_lock_is_given_back(
    tmp_path: Path, waited: float
) -> None:
    clock = Clock()
    journal, ends = owing_with_room_again(tmp_path, clock, owed=3)
    last = journal.seq
    clock.now += waited
    journal.close()
    assert journal.seq == last + 3
    assert tail(journal.path, 4) == [b"start", *ends]
    with (journal.path / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


class HastyClock(Clock):
    """Each look at it is a long time after the one before."""

    def __call__(self) -> float:
        self.now += 2 * RECHECK_INTERVAL
        return self.now


def test_every_end_that_is_owed_is_written_once_however_long_that_takes(tmp_path: Path) -> None:
    clock = HastyClock()
    journal, ends = owing_with_room_again(tmp_path, clock, owed=3)
    last = journal.seq
    journal.settle()
    journal.settle()
    assert journal.seq == last + 3
    assert tail(journal.path, 3) == ends


@pytest.mark.parametrize("append", [Journal.append_start, Journal.append_end])
def test_room_kept_for_ends_that_were_owed_is_free_again_once_they_are_written(
    tmp_path: Path, append: Callable[[Journal, bytes], int]
) -> None:
    clock = Clock()
    journal, _ = owing_with_room_again(tmp_path, clock, owed=4)
    clock.now += RECHECK_INTERVAL
    append(journal, b"while ends are owed")  # looks for room, by which they are paid
    if append is Journal.append_start:
        journal.append_end(b"end")
    for file in segments(journal.path)[:-1]:
        file.unlink()
    clock.now += RECHECK_INTERVAL
    started = 0
    with pytest.raises(JournalFull):
        while True:
            journal.append_start(b"start")
            started += 1
    room = 200_000 - (journal.used_bytes - started * (HEADER_SIZE + 5))
    assert started == room // (HEADER_SIZE + 5 + END_RESERVE)
