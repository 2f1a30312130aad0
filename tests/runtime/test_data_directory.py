import os
import stat
from pathlib import Path

import pytest

from ostiary.runtime.data_directory import DataDirectory
from ostiary.runtime.errors import StartError

CLOSED = 0o711 if os.geteuid() == 0 else 0o700


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_directory_that_we_make_is_closed_to_others(tmp_path: Path) -> None:
    with DataDirectory(tmp_path / "a" / "b") as directory:
        assert _mode(directory.path) == CLOSED
        assert _mode(directory.path.parent) == 0o755
        assert _mode(directory.path / "lock") == 0o600
        assert _mode(directory.path / "journal") == 0o700


def test_an_open_directory_of_ours_is_closed_again(tmp_path: Path) -> None:
    with DataDirectory(tmp_path / "data"):
        pass
    (tmp_path / "data").chmod(0o777)
    with DataDirectory(tmp_path / "data"):
        assert _mode(tmp_path / "data") == CLOSED


def test_the_mode_of_a_directory_with_other_content_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letters").write_text("")
    tmp_path.chmod(0o750)
    with DataDirectory(tmp_path):
        assert _mode(tmp_path) == 0o750


def test_a_second_server_on_one_directory_is_told_who_has_it(tmp_path: Path) -> None:
    with DataDirectory(tmp_path), pytest.raises(StartError) as error, DataDirectory(tmp_path):
        pass
    assert f"process {os.getpid()}" in str(error.value)
    assert "--data-dir" in str(error.value)
    assert "\n" not in str(error.value)
    with DataDirectory(tmp_path):
        pass


def test_a_killed_holder_is_noticed_and_one_that_ended_well_is_not(tmp_path: Path) -> None:
    with DataDirectory(tmp_path) as first:
        assert not first.unclean
    with DataDirectory(tmp_path) as second:
        assert not second.unclean
    (tmp_path / "lock").write_text("4711\n")
    with DataDirectory(tmp_path) as third:
        assert third.unclean


def test_what_cannot_be_a_directory_is_one_line_with_the_cure(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StartError, match="choose another --data-dir"), DataDirectory(tmp_path / "file" / "data"):
        pass
