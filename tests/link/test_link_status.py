"""By what a machine is known to its control plane."""

import uuid
from pathlib import Path

from structlog.testing import capture_logs

from ostiary.link.status import REPLICA_FILE, replica_id


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
