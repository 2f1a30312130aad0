"""link/journal_files.py: what comes out of a journal directory, whatever the disk did to it."""

import errno
import fcntl
import os
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from ostiary.core.journal import HEADER_SIZE, LOCK_NAME, frame_header, segment_name
from ostiary.core.settings import GatewaySettings
from ostiary.gateway.journal import Journal
from ostiary.link.journal_files import LOST, WINDOW, JournalFiles, Tail, Trouble, journal_ids

SMALL = 400
"""Bytes of a segment in most tests: some records each."""


@pytest.fixture
def new_journal(tmp_path: Path) -> Iterator[Callable[..., Journal]]:
    made: list[Journal] = []

    def make(segment_bytes: int = SMALL) -> Journal:
        settings = GatewaySettings(journal_dir=str(tmp_path), journal_segment_bytes=segment_bytes)
        made.append(Journal.open(tmp_path, settings, str(uuid.uuid4()), time.monotonic))
        return made[-1]

    yield make
    for journal in made:
        journal.close()


def payload(seq: int) -> bytes:
    return b"record %d " % seq + b"." * 40


def fill(journal: Journal, upto: int) -> None:
    while journal.seq < upto:
        journal.append_end(payload(journal.seq + 1))


def drained(files: JournalFiles, max_records: int = 7) -> tuple[dict[int, bytes], list[Trouble]]:
    """Everything that can be read now, under its numbers."""
    records: dict[int, bytes] = {}
    troubles: list[Trouble] = []
    while True:
        run = files.read(max_records, 1 << 30)
        troubles += run.troubles
        if not run.records:
            return records, troubles
        assert run.first_seq not in records
        records |= dict(enumerate(run.records, start=run.first_seq))


def flip(segment: Path, offset: int) -> None:
    data = bytearray(segment.read_bytes())
    data[offset] ^= 0x10
    segment.write_bytes(data)


def test_a_live_journal_is_followed_across_segments(new_journal: Callable[..., Journal]) -> None:
    journal = new_journal()
    files = JournalFiles(journal.path)
    fill(journal, 3)
    assert drained(files)[0] == {seq: payload(seq) for seq in (1, 2, 3)}
    fill(journal, 40)
    assert drained(files) == ({seq: payload(seq) for seq in range(4, 41)}, [])
    assert drained(files) == ({}, [])
    assert not files.adopt()
    files.close()


@given(wanted=st.integers(min_value=1, max_value=50), batch=st.integers(min_value=1, max_value=20))
@hypothesis_settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_reading_begins_anywhere(new_journal: Callable[..., Journal], wanted: int, batch: int) -> None:
    journal = new_journal()
    fill(journal, 40)
    files = JournalFiles(journal.path)
    files.seek(wanted)
    assert drained(files, batch) == ({seq: payload(seq) for seq in range(wanted, 41)}, [])
    assert files.next_seq == max(wanted, 41)
    files.close()
    journal.close()


def test_a_record_larger_than_the_window_comes_out_alone(new_journal: Callable[..., Journal]) -> None:
    journal = new_journal(64 * 1024**2)
    large = b"L" * (3 * WINDOW)
    for one in (b"before", large, b"after"):
        journal.append_end(one)
    files = JournalFiles(journal.path)
    runs = [files.read(1000, 500_000).records for _ in range(4)]
    assert runs == [[b"before"], [large], [b"after"], []]
    files.close()


def test_only_segments_that_are_wholly_acknowledged_are_deleted_and_never_the_last(
    new_journal: Callable[..., Journal],
) -> None:
    journal = new_journal()
    fill(journal, 40)
    files = JournalFiles(journal.path)
    names = sorted(file.name for file in journal.path.glob("*.seg"))
    second = int(names[1].removesuffix(".seg"))
    drained(files)
    files.release(second - 2)
    assert sorted(file.name for file in journal.path.glob("*.seg")) == names
    files.release(second - 1)
    assert sorted(file.name for file in journal.path.glob("*.seg")) == names[1:]
    files.release(40)
    assert sorted(file.name for file in journal.path.glob("*.seg")) == names[-1:]
    files.close()


def test_a_dead_workers_torn_tail_is_cut_and_told_once(new_journal: Callable[..., Journal]) -> None:
    journal = new_journal()
    fill(journal, 10)
    last = max(journal.path.glob("*.seg"))
    whole = last.stat().st_size
    with last.open("ab") as file:
        file.write(frame_header(11, b"x" * 100) + b"x" * 60)
    files = JournalFiles(journal.path)
    assert drained(files) == ({seq: payload(seq) for seq in range(1, 11)}, [])
    journal.close()
    assert files.adopt()
    assert drained(files) == ({}, [Trouble(last.name, whole, 68, 0, torn=True)])
    assert last.stat().st_size == whole
    assert drained(files) == ({}, [])
    files.close()


def test_zeros_left_by_a_power_loss_are_a_torn_tail(new_journal: Callable[..., Journal]) -> None:
    journal = new_journal()
    fill(journal, 3)
    journal.close()
    last = max(journal.path.glob("*.seg"))
    with last.open("ab") as file:
        file.write(bytes(4096))
    files = JournalFiles(journal.path)
    assert files.adopt()
    records, troubles = drained(files)
    assert list(records) == [1, 2, 3]
    assert [(trouble.size, trouble.torn) for trouble in troubles] == [(4096, True)]
    files.close()


def test_damage_in_the_middle_costs_the_records_under_it_and_keeps_the_segment(
    new_journal: Callable[..., Journal], tmp_path: Path
) -> None:
    journal = new_journal()
    fill(journal, 40)
    first, second = sorted(journal.path.glob("*.seg"))[:2]
    flip(first, HEADER_SIZE + len(payload(1)) + HEADER_SIZE + 5)
    files = JournalFiles(journal.path)
    records, troubles = drained(files)
    assert records == {seq: LOST if seq == 2 else payload(seq) for seq in range(1, 41)}
    assert [(t.segment, t.lost, t.torn) for t in troubles] == [(first.name, 1, False)]
    files.release(40)
    assert not first.exists()
    assert not second.exists()
    assert (tmp_path / f"{journal.id}-{first.name}.damaged").exists()
    assert journal_ids(tmp_path) == [journal.id]
    files.close()


def test_a_damaged_length_does_not_hide_the_records_behind_it(new_journal: Callable[..., Journal]) -> None:
    journal = new_journal(64 * 1024**2)
    fill(journal, 20)
    only = max(journal.path.glob("*.seg"))
    flip(only, 1)
    files = JournalFiles(journal.path)
    journal.close()
    assert files.adopt()
    records, troubles = drained(files)
    assert records == {seq: LOST if seq == 1 else payload(seq) for seq in range(1, 21)}
    assert [t.torn for t in troubles] == [False]
    files.close()


def test_damage_in_a_live_journal_does_not_stop_what_comes_behind_it(new_journal: Callable[..., Journal]) -> None:
    journal = new_journal(64 * 1024**2)
    fill(journal, 3)
    only = max(journal.path.glob("*.seg"))
    with only.open("r+b") as file:
        file.seek(only.stat().st_size - 3)
        file.write(b"###")
    files = JournalFiles(journal.path)
    assert list(drained(files)[0]) == [1, 2]
    assert drained(files) == ({}, [])
    fill(journal, 6)
    assert drained(files)[0] == {3: LOST} | {seq: payload(seq) for seq in (4, 5, 6)}
    files.close()


def test_a_missing_segment_leaves_no_gap_in_the_numbers(new_journal: Callable[..., Journal]) -> None:
    journal = new_journal()
    fill(journal, 40)
    names = sorted(journal.path.glob("*.seg"))
    gone, after = (int(one.stem) for one in names[1:3])
    names[1].unlink()
    files = JournalFiles(journal.path)
    records, troubles = drained(files)
    assert records == {seq: LOST if gone <= seq < after else payload(seq) for seq in range(1, 41)}
    assert sum(trouble.lost for trouble in troubles) == after - gone
    files.close()


@given(cut=st.integers(min_value=0, max_value=2500), garbage=st.binary(max_size=200))
@hypothesis_settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_stands_on_disk_no_number_is_given_a_wrong_record(
    new_journal: Callable[..., Journal], cut: int, garbage: bytes
) -> None:
    journal = new_journal()
    fill(journal, 40)
    journal.close()
    for segment in sorted(journal.path.glob("*.seg")):
        size = segment.stat().st_size
        if cut < size:
            data = segment.read_bytes()
            segment.write_bytes(data[:cut] + garbage + data[cut + len(garbage) :])
            break
        cut -= size
    files = JournalFiles(journal.path)
    assert files.adopt()
    records, _ = drained(files)
    assert sorted(records) == list(range(1, len(records) + 1))
    assert all(record in (LOST, payload(seq)) for seq, record in records.items())
    assert list(records.values()).count(LOST) + 40 - len(records) <= 1 + (len(garbage) + 56) // 57
    files.close()


def test_what_the_link_appends_follows_what_is_read_even_behind_rubble(new_journal: Callable[..., Journal]) -> None:
    journal = new_journal(64 * 1024**2)
    fill(journal, 3)
    journal.close()
    only = max(journal.path.glob("*.seg"))
    with only.open("ab") as file:
        file.write(b"\0\0\0\x05rubble that is no frame, and no torn one")
    files = JournalFiles(journal.path)
    assert files.adopt()
    drained(files)
    files.append(files.next_seq, b"gone")
    assert drained(files) == ({4: b"gone"}, [])
    again = JournalFiles(journal.path)
    assert drained(again)[0] == {seq: payload(seq) for seq in (1, 2, 3)} | {4: b"gone"}
    again.close()
    files.close()


def test_records_that_were_acknowledged_before_the_disk_lost_them_leave_no_gap(
    new_journal: Callable[..., Journal],
) -> None:
    journal = new_journal()
    fill(journal, 5)
    journal.close()
    files = JournalFiles(journal.path)
    assert files.adopt()
    files.seek(9)
    assert drained(files) == ({}, [])
    files.append(9, b"gone")
    assert drained(files) == ({9: b"gone"}, [])
    files.close()


def test_an_empty_last_segment_takes_the_appended_record(new_journal: Callable[..., Journal], tmp_path: Path) -> None:
    journal = new_journal()
    journal.close()
    files = JournalFiles(journal.path)
    assert files.adopt()
    assert drained(files) == ({}, [])
    assert not files.holds_records
    files.remove()
    assert journal_ids(tmp_path) == []
    files.close()


def test_a_directory_that_is_being_made_is_not_adopted(tmp_path: Path) -> None:
    path = tmp_path / str(uuid.uuid4())
    path.mkdir()
    files = JournalFiles(path)
    with (tmp_path / ".lock").open("w") as root_lock:
        fcntl.flock(root_lock, fcntl.LOCK_EX)
        assert not files.adopt()
    assert files.adopt()
    files.close()


def test_a_lock_that_the_disk_does_not_give_leaves_no_file_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / str(uuid.uuid4())
    path.mkdir()
    files = JournalFiles(path)

    def no_locks(file: int | IO[str], how: int) -> None:
        """As on a file system that has no room for any."""
        if isinstance(file, int):
            raise OSError(errno.ENOLCK, "No locks available")
        flock(file, how)

    flock = fcntl.flock
    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(OSError, match="No locks available"):
        files.adopt()
    assert not files.adopted
    assert str(path / LOCK_NAME) not in [
        os.readlink(one) for one in Path("/proc/self/fd").iterdir() if one.is_symlink()
    ]
    monkeypatch.undo()
    assert files.adopt()
    files.close()


def test_only_directories_named_by_a_uuid_are_journals(tmp_path: Path) -> None:
    name = str(uuid.uuid4())
    for each in (name, "lost+found", name.upper()[:-1], f"{name}.damaged"):
        (tmp_path / each).mkdir()
    (tmp_path / str(uuid.uuid4())).write_text("a file")
    assert journal_ids(tmp_path) == [name]
    assert journal_ids(tmp_path / "missing") == []


def test_the_tail_counts_whole_records_as_they_come(new_journal: Callable[..., Journal]) -> None:
    journal = new_journal(64 * 1024**2)
    tail = Tail(journal.path)
    assert (tail.first_seq(), tail.next_seq()) == (1, 1)
    fill(journal, 3)
    assert tail.next_seq() == 4
    journal.append_end(b"L" * (3 * WINDOW))
    fill(journal, 10)
    assert tail.next_seq() == 11
    with (journal.path / segment_name(1)).open("ab") as file:
        file.write(b"\0\0\0")
    assert tail.next_seq() == 11
