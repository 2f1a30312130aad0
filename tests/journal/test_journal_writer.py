"""gateway/journal.py: what an append leaves on disk, and what it does when there is no room."""

import contextlib
import errno
import fcntl
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from ostiary.core.journal import HEADER_SIZE, Rest, parse, segment_first_seq
from ostiary.core.settings import GatewaySettings
from ostiary.gateway.journal import (
    END_RESERVE,
    RECHECK_INTERVAL,
    Journal,
    JournalError,
    JournalFull,
    NotDurable,
    RecordTooLarge,
)
from tests.support.small_disk import SmallDisk


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


Open = Callable[..., Journal]


@pytest.fixture
def open_journal(tmp_path: Path) -> Iterator[Open]:
    opened: list[Journal] = []

    def make(clock: Callable[[], float] = time.monotonic, **settings: object) -> Journal:
        root = tmp_path / "journal"
        made = Journal.open(root, GatewaySettings(journal_dir=str(root), **settings), str(uuid.uuid4()), clock)  # type: ignore[arg-type]
        opened.append(made)
        return made

    yield make
    for journal in opened:
        journal.close()


def segments(path: Path) -> list[Path]:
    return sorted(file for file in path.iterdir() if segment_first_seq(file.name) is not None)


def records(path: Path) -> list[bytes]:
    """All records, checking that each segment is whole and begins with the number in its name."""
    read: list[bytes] = []
    for file in segments(path):
        first = segment_first_seq(file.name)
        assert first is not None
        assert not read or first == len(read) + 1
        parsed = parse(file.read_bytes(), first)
        assert parsed.rest is Rest.CLEAN
        read += parsed.payloads
    return read


def test_an_append_is_on_disk_under_the_next_number_when_it_returns(open_journal: Open) -> None:
    journal = open_journal()
    assert [journal.append_start(b"start"), journal.append_end(b"end"), journal.append_start(b"more")] == [1, 2, 3]
    assert records(journal.path) == [b"start", b"end", b"more"]
    assert journal.seq == 3
    assert journal.bytes_appended == journal.used_bytes == 3 * HEADER_SIZE + 12


def test_only_the_owner_may_read_it_and_the_lock_is_held(open_journal: Open) -> None:
    journal = open_journal()
    assert journal.path.parent.stat().st_mode & 0o777 == 0o700
    assert journal.path.stat().st_mode & 0o777 == 0o700
    assert {file.stat().st_mode & 0o777 for file in journal.path.iterdir()} == {0o600}
    with (journal.path / "lock").open() as lock:
        with pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        journal.close()
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


@given(
    sizes=st.lists(st.integers(min_value=1, max_value=600), min_size=1, max_size=60),
    segment_bytes=st.integers(min_value=1, max_value=2000),
)
@hypothesis_settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_segments_together_hold_every_record_in_order(open_journal: Open, sizes: list[int], segment_bytes: int) -> None:
    journal = open_journal(journal_segment_bytes=segment_bytes)
    expected = [bytes([i % 251]) * size for i, size in enumerate(sizes)]
    for payload in expected:
        journal.append_end(payload)
    assert records(journal.path) == expected
    for file in segments(journal.path)[:-1]:
        assert file.stat().st_size <= max(segment_bytes, HEADER_SIZE + 600)
    journal.close()


def test_a_full_journal_refuses_starts_and_takes_them_again_once_segments_are_gone(open_journal: Open) -> None:
    clock = Clock()
    journal = open_journal(clock, journal_max_bytes=64_000, journal_segment_bytes=4_000)
    with pytest.raises(JournalFull, match="journal_max_bytes"):
        while True:
            journal.append_start(b"s" * 1000)
            journal.append_end(b"e" * 1000)
    assert journal.full
    assert journal.refusals == 1
    before = journal.seq
    for file in segments(journal.path)[:5]:
        file.unlink()
    clock.now += RECHECK_INTERVAL
    assert not journal.full
    assert journal.append_start(b"again") == before + 1


def test_the_bound_holds_for_what_is_on_disk(open_journal: Open) -> None:
    journal = open_journal(journal_max_bytes=100_000)
    with pytest.raises(JournalFull):
        while True:
            journal.append_start(os.urandom(700))
    assert sum(file.stat().st_size for file in segments(journal.path)) == journal.used_bytes <= 100_000


def test_every_interception_that_started_can_end_in_a_full_journal(open_journal: Open) -> None:
    journal = open_journal(journal_max_bytes=200_000)
    started = 0
    with pytest.raises(JournalFull):
        while True:
            journal.append_start(b"s" * 100)
            started += 1
    assert started > 10
    with pytest.raises(JournalFull):
        journal.append_end(b"content" * 50_000)
    for _ in range(started):
        journal.append_end(b"e" * (END_RESERVE - HEADER_SIZE))
    assert len(records(journal.path)) == 2 * started


def test_content_is_shed_before_the_journal_is_full_and_only_when_asked_for(open_journal: Open) -> None:
    sheds = open_journal(journal_max_bytes=80_000, journal_full="shed-content")
    refuses = open_journal(journal_max_bytes=80_000)
    assert not sheds.shed_content
    for _ in range(71):
        sheds.append_end(b"r" * 1000)
        refuses.append_end(b"r" * 1000)
    assert sheds.shed_content
    assert not sheds.full
    assert not refuses.shed_content


def test_a_record_beyond_a_frame_is_refused_and_leaves_nothing(open_journal: Open) -> None:
    journal = open_journal()
    with pytest.raises(RecordTooLarge):
        journal.append_end(bytes(64 * 1024**2 + 1))
    assert (journal.append_end(b"x"), records(journal.path)) == (1, [b"x"])


SHORT_WRITE = """
import resource, sys, time
from pathlib import Path
from ostiary.core.settings import GatewaySettings
from ostiary.gateway.journal import Journal, JournalFull

root = Path(sys.argv[1])
journal = Journal.open(root, GatewaySettings(journal_dir=str(root)), sys.argv[2], time.monotonic)
journal.append_start(b"a" * 1000)
resource.setrlimit(resource.RLIMIT_FSIZE, (1500, resource.RLIM_INFINITY))
for _ in range(2):
    try:
        journal.append_start(b"b" * 1000)
    except JournalFull:
        print("full", journal.seq, (journal.path / "0000000000000001.seg").stat().st_size)
journal.append_end(b"c" * 100)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(journal.append_start(b"d" * 1000))
journal.close()
"""


def test_a_short_write_is_truncated_away_and_counts_as_full(tmp_path: Path) -> None:
    journal_id = str(uuid.uuid4())
    done = subprocess.run(
        [sys.executable, "-c", SHORT_WRITE, str(tmp_path), journal_id], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["full", "1", "1008", "full", "1", "1008", "3"]
    assert records(tmp_path / journal_id) == [b"a" * 1000, b"c" * 100, b"d" * 1000]


@pytest.fixture
def disk(small_disk: SmallDisk) -> Path:
    return small_disk(3)


def test_on_a_full_disk_the_ballast_lets_what_started_end_and_nothing_new_starts(disk: Path) -> None:
    clock = Clock()
    journal = Journal.open(disk, GatewaySettings(journal_dir=str(disk)), str(uuid.uuid4()), clock)
    started = 0
    with pytest.raises(JournalFull):
        while True:
            journal.append_start(b"s" * 50_000)
            started += 1
    for _ in range(started):
        journal.append_end(b"e" * 4000)
    clock.now += RECHECK_INTERVAL
    assert journal.full
    with pytest.raises(JournalFull):
        journal.append_start(b"small")
    assert len(records(journal.path)) == 2 * started
    journal.close()


def fill(path: Path) -> None:
    with path.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"\0" * 512)


def test_an_end_is_owed_when_somebody_else_takes_the_ballast_and_is_written_before_the_next_start(
    disk: Path,
) -> None:
    clock = Clock()
    journal = Journal.open(disk, GatewaySettings(journal_dir=str(disk)), str(uuid.uuid4()), clock)
    ends = [b"e" * 4060 + bytes([number]) for number in range(3)]
    for _ in ends:
        journal.append_start(b"start")
    fill(disk / "others")
    (journal.path / "ballast").unlink()
    fill(disk / "others")
    for end in ends:
        with pytest.raises(JournalFull):
            journal.append_end(end)
        journal.owe_end(end)
    clock.now += RECHECK_INTERVAL
    journal.settle()
    assert len(records(journal.path)) == 3
    (disk / "others").unlink()
    with pytest.raises(JournalFull):
        journal.append_start(b"too early to look again")
    clock.now += RECHECK_INTERVAL
    journal.append_start(b"next")
    assert records(journal.path) == [b"start"] * 3 + [*ends, b"next"]
    journal.append_end(b"end")
    journal.close()


def test_what_is_owed_is_written_without_another_request_and_at_the_latest_at_the_end(disk: Path) -> None:
    clock = Clock()
    for settled in (True, False):
        journal = Journal.open(disk, GatewaySettings(journal_dir=str(disk)), str(uuid.uuid4()), clock)
        journal.append_start(b"start")
        journal.owe_end(b"end")
        if settled:
            clock.now += RECHECK_INTERVAL
            journal.settle()
            assert records(journal.path) == [b"start", b"end"]
            assert not journal.full
        journal.close()
        assert records(journal.path) == [b"start", b"end"]


def test_appended_records_are_synced_without_being_waited_for(
    open_journal: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = open_journal()
    synced = threading.Event()
    real = os.fdatasync

    def watched(fd: int) -> None:
        real(fd)
        synced.set()

    monkeypatch.setattr(os, "fdatasync", watched)
    journal.append_end(b"record")
    assert synced.wait(10)
    assert journal.sync_failures == 0


def test_failing_syncs_are_counted_and_tried_again(open_journal: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = open_journal()
    failed_twice = threading.Event()
    calls: list[int] = []

    def failing(fd: int) -> None:
        calls.append(fd)
        if len(calls) >= 2:
            failed_twice.set()
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", failing)
    journal.append_end(b"record")
    assert failed_twice.wait(10)
    assert journal.sync_failures >= 1


def test_always_waits_for_the_disk_and_says_when_it_failed(open_journal: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = open_journal(journal_sync="always", journal_segment_bytes=100)
    synced: list[int] = []
    real = os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda fd: (real(fd), synced.append(fd))[1])
    for _ in range(4):
        journal.append_end(b"r" * 60)
    assert len(synced) >= 4

    def failing(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", failing)
    with pytest.raises(NotDurable, match="check the disk"):
        journal.append_start(b"kept")
    monkeypatch.setattr(os, "fdatasync", real)
    assert journal.append_end(b"end") == 6
    assert records(journal.path)[4:] == [b"kept", b"end"]


def test_a_closed_journal_takes_nothing(open_journal: Open) -> None:
    journal = open_journal()
    journal.append_start(b"one")
    journal.close()
    with pytest.raises(JournalError, match="closed"):
        journal.append_end(b"two")
    assert records(journal.path) == [b"one"]


def test_a_directory_that_cannot_be_made_is_named_with_the_cure(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(JournalError, match="must be writable"):
        Journal.open(blocked, GatewaySettings(journal_dir=str(blocked)), str(uuid.uuid4()), time.monotonic)
