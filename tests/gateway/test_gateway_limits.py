"""Limits over all workers of a machine: never much more than was allowed, never less, and nothing that outlives a worker."""

import os
import signal
import stat
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ostiary.gateway.limits import ROW, Limits, LimitsError, _places
from ostiary.gateway.refusals import Refusal


def row_of(workers: int) -> memoryview:
    return memoryview(bytearray(workers * ROW * 8)).cast("Q")


def fleet(workers: int, **limits: int) -> list[Limits]:
    cells = row_of(workers)
    return [Limits(cells, worker, workers, **limits) for worker in range(workers)]


def test_more_than_the_concurrency_is_refused_on_whichever_worker_it_comes() -> None:
    one, two = fleet(2, max_concurrency=3)
    assert one.enter("a", 0.0) is None
    assert two.enter("b", 0.0) is None
    assert two.enter("a", 0.0) is None
    refusal = one.enter("c", 0.0)
    assert isinstance(refusal, Refusal)
    assert (refusal.status, refusal.reason, refusal.retry_after) == (503, "max_concurrency", 1)
    assert "max_concurrency" in refusal.message
    two.leave()
    assert one.enter("c", 0.0) is None


def test_a_token_has_its_rate_over_all_workers_and_others_have_theirs() -> None:
    one, two = fleet(2, rate_limit=2)
    assert one.enter("a", 5.1) is None
    assert two.enter("a", 5.2) is None
    refusal = one.enter("a", 5.99)
    assert isinstance(refusal, Refusal)
    assert (refusal.status, refusal.reason, refusal.retry_after) == (429, "rate_limit", 1)
    assert one.enter("b", 5.99) is None
    assert two.enter("a", 6.0) is None


def test_what_is_refused_takes_no_place_and_no_rate() -> None:
    (limits,) = fleet(1, max_concurrency=1, rate_limit=2)
    assert limits.enter("a", 0.0) is None
    assert [getattr(limits.enter("a", 0.0), "status", None) for _ in range(5)] == [503] * 5
    limits.leave()
    assert limits.enter("a", 0.0) is None
    limits.leave()
    assert getattr(limits.enter("a", 0.0), "status", None) == 429
    assert limits.enter("a", 1.0) is None


@given(
    st.integers(1, 4),
    st.integers(1, 5),
    st.integers(1, 4),
    st.lists(
        st.tuples(st.integers(0, 3), st.sampled_from(["a", "b", "c", ""]), st.integers(0, 900), st.booleans()),
        max_size=80,
    ),
)
def test_one_after_the_other_exactly_what_is_allowed_is_let_in(
    workers: int, max_concurrency: int, rate_limit: int, steps: list[tuple[int, str, int, bool]]
) -> None:
    limits = fleet(workers, max_concurrency=max_concurrency, rate_limit=rate_limit)
    inside = [0] * workers
    admitted: dict[tuple[int, str], int] = defaultdict(int)
    now = 0
    for index, token, wait, leaves in steps:
        worker = index % workers
        if leaves:
            if inside[worker]:
                limits[worker].leave()
                inside[worker] -= 1
            continue
        now += wait
        window = now // 1000
        refusal = limits[worker].enter(token, now / 1000)
        if sum(inside) >= max_concurrency:
            assert refusal is not None
            assert refusal.status == 503
        elif admitted[window, token] >= rate_limit:
            assert refusal is not None
            assert refusal.status == 429
        else:
            assert refusal is None
            admitted[window, token] += 1
            inside[worker] += 1


@given(st.integers(1, 6), st.integers(1, 8), st.data())
def test_workers_that_look_at_once_let_in_one_too_many_each_at_most(
    workers: int, limit: int, data: st.DataObject
) -> None:
    cells = row_of(workers)
    stale = row_of(workers)
    limits = [Limits(cells, worker, workers, rate_limit=limit) for worker in range(workers)]
    admitted = 0
    for _ in range(data.draw(st.integers(1, 12))):
        stale[:] = cells  # what everybody of this round has read
        seen = memoryview(bytearray(workers * ROW * 8)).cast("Q")
        for worker in data.draw(st.permutations(range(workers))):
            seen[:] = stale
            limits[worker]._cells = seen
            admitted += limits[worker].enter("a", 0.5) is None
            row = slice(worker * ROW, (worker + 1) * ROW)
            cells[row] = seen[row]
    assert min(limit, 1) <= admitted <= limit + workers - 1


def test_a_token_shares_all_its_cells_with_hardly_any_other() -> None:
    tokens = [f"0193-{number:05d}" for number in range(400)]
    (limits,) = fleet(1, rate_limit=1)
    refused = sum(limits.enter(token, 0.0) is not None for token in tokens)
    assert refused <= 2  # expected: 0.007
    assert len({_places(token) for token in tokens}) == len(tokens)


def test_without_limits_nothing_is_opened(tmp_path: Path) -> None:
    assert Limits.open(tmp_path / "limits", 0, 4, 0, 0) is None
    assert not list(tmp_path.iterdir())


def test_a_file_is_private_and_grows_with_the_workers(tmp_path: Path) -> None:
    path = tmp_path / "limits"
    path.write_bytes(b"\xff" * 100)
    path.chmod(0o644)
    first = Limits.open(path, 0, 1, 1, 0)
    assert first is not None
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.stat().st_size == ROW * 8
    wider = Limits.open(path, 1, 2, 1, 0)
    assert wider is not None
    assert first.enter("a", 0.0) is None
    assert wider.enter("a", 0.0) is not None
    first.close()
    wider.close()


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none" / "limits", tmp_path / "link"):
        if path.name == "link":
            path.symlink_to(tmp_path / "elsewhere")
        with pytest.raises(LimitsError, match="rate_limit need the file"):
            Limits.open(path, 0, 1, 0, 1)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(LimitsError, match="it is no file"):
        Limits.open(tmp_path / "pipe", 0, 1, 0, 1)


RACES = """
import sys
from pathlib import Path
from ostiary.gateway.limits import Limits
limits = Limits.open(Path(sys.argv[1]), int(sys.argv[2]), 4, 2000, 1000)
print("ready", flush=True)
sys.stdin.readline()
print(sum(limits.enter("a", 7.0) is None for _ in range(3000)))
"""


def test_real_processes_that_race_let_in_hardly_more_than_allowed(tmp_path: Path) -> None:
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACES, str(tmp_path / "limits"), str(worker)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for worker in range(4)
    ]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    admitted = sum(int(racer.communicate()[0]) for racer in racers)
    assert 1000 <= admitted <= 1003


HOLDS = """
import sys
from pathlib import Path
from ostiary.gateway.limits import Limits
limits = Limits.open(Path(sys.argv[1]), 1, 2, 2, 3)
assert limits.enter("a", 7.0) is None and limits.enter("a", 7.0) is None
print("in", flush=True)
sys.stdin.read()
"""


def test_what_a_killed_worker_held_ends_with_the_start_of_the_next(tmp_path: Path) -> None:
    path = tmp_path / "limits"
    survivor = Limits.open(path, 0, 2, 2, 3)
    assert survivor is not None
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as killed:
        assert killed.stdout is not None
        assert killed.stdout.readline() == b"in\n"
        refusal = survivor.enter("a", 7.0)
        assert refusal is not None
        assert refusal.status == 503
        killed.send_signal(signal.SIGKILL)
    assert survivor.enter("a", 7.0) is not None
    successor = Limits.open(path, 1, 2, 2, 3)
    assert successor is not None
    assert [survivor.enter("a", 7.0), successor.enter("b", 7.0)] == [None, None]
    survivor.close()
    successor.close()
