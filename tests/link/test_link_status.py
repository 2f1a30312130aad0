"""By what a machine is known to its control plane, and how much it tells."""

import uuid
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from ostiary.core.health import BreakerStateName, KeyStateName
from ostiary.link.health_records import BreakerHealth, Cooling, KeyHealth, Transition
from ostiary.link.status import (
    MAX_BREAKERS_SIZE,
    MAX_KEYS_SIZE,
    REPLICA_FILE,
    breaker_statuses,
    clock_ahead_us,
    key_statuses,
    replica_id,
)
from ostiary.rpc.ostiary_pb2 import ReportStatusRequest


def test_a_data_directory_has_one_id_for_good(tmp_path: Path) -> None:
    made = replica_id(tmp_path)
    assert str(uuid.UUID(made)) == made
    assert replica_id(tmp_path) == made
    assert [path.name for path in tmp_path.iterdir()] == [REPLICA_FILE]
    assert (tmp_path / REPLICA_FILE).stat().st_mode & 0o777 == 0o600
    other = tmp_path / "other"
    other.mkdir()
    assert replica_id(other) != made


def test_one_that_cannot_be_read_is_replaced_and_told(tmp_path: Path) -> None:
    for broken in (b"", b"half-a-uu", b"\xff\xfe"):
        (tmp_path / REPLICA_FILE).write_bytes(broken)
        with capture_logs() as logs:
            made = replica_id(tmp_path)
        assert [entry["event"] for entry in logs] == ["replacing the unreadable id of this gateway"]
        assert replica_id(tmp_path) == made


def test_where_it_cannot_be_kept_there_is_one_all_the_same(tmp_path: Path) -> None:
    with capture_logs() as logs:
        made = replica_id(tmp_path / "missing")
    assert str(uuid.UUID(made)) == made
    assert [entry["event"] for entry in logs] == ["failing to keep the id of this gateway"]


def health_of(number: int, state: KeyStateName, model: str = "m" * 500) -> KeyHealth:
    timeline = tuple(Transition(number, "cooling", "rate_limited", model, number, 0) for number in range(32))
    cooling = (Cooling(model, "rate_limited", 1),) * 32
    return KeyHealth("pool", f"{number}", "sk-1...wxyz", state, "rate_limited", 1, model, 1, 0, cooling, timeline)


def test_the_history_of_keys_is_told_as_far_as_there_is_room() -> None:
    for keys, told, newest in ((1, 1, 32), (20, 20, 8), (3000, 500, 0)):
        statuses = key_statuses([health_of(number, "suspect" if number < 500 else "usable") for number in range(keys)])
        assert sum(one.ByteSize() for one in statuses) <= MAX_KEYS_SIZE
        assert [one.key_id for one in statuses] == [str(number) for number in range(told)]
        assert {len(one.timeline) for one in statuses} == {newest}
        assert all(one.timeline[-1].at == 31 for one in statuses if newest)


def test_breakers_that_are_not_closed_are_told_first() -> None:
    states: list[BreakerStateName] = ["closed", "open", "half_open"]
    many = [BreakerHealth("pool", "/v1", f"{number}{'m' * 500}", states[number % 3], 1, 1) for number in range(900)]
    told = breaker_statuses(many)
    assert sum(one.ByteSize() for one in told) <= MAX_BREAKERS_SIZE
    assert 200 < len(told) < 600
    assert "closed" not in [one.state for one in told]


def test_clocks_are_compared_by_the_middle_of_the_question() -> None:
    assert clock_ahead_us(10_000_000, 0.5, 10_250_000) == 0
    assert clock_ahead_us(10_000_000, 0.5, 7_250_000) == 3_000_000
    assert clock_ahead_us(10_000_000, 0.0, 14_000_000) == -4_000_000
    assert clock_ahead_us(10_000_000, 5.0, 7_000_000) is None  # it says too little
    assert clock_ahead_us(10_000_000, 0.5, 0) is None  # a control plane of before


@pytest.mark.parametrize("said", [2**63 - 1, -(2**63)])
@pytest.mark.parametrize("ours", [0, 1_800_000_000_000_000])
def test_what_is_no_time_is_not_told_on(said: int, ours: int) -> None:
    ahead = clock_ahead_us(ours, 0.5, said)
    assert ahead is None
    assert not ReportStatusRequest(clock_ahead_us=ahead).HasField("clock_ahead_us")


def test_a_clock_that_stands_at_its_beginning_is_told() -> None:
    assert clock_ahead_us(0, 0.0, 1_800_000_000_000_000) == -1_800_000_000_000_000
