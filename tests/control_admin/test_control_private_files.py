"""Files that hold a secret: closed to others from the first byte on, whole or absent, never written through a link."""

import os
import resource
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ostiary.control.private_files import create_private, read_private, replace_private

WRITERS = [create_private, replace_private]


@pytest.fixture(params=[0o000, 0o377], ids=["open umask", "closed umask"])
def any_umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.usefixtures("any_umask")
def test_it_is_for_its_owner_whatever_the_umask(write: Callable[[Path, str], None], tmp_path: Path) -> None:
    path = tmp_path / "secret"
    write(path, "s3cret")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_private(path) == "s3cret"
    assert [entry.name for entry in tmp_path.iterdir()] == ["secret"]


def test_what_is_there_is_not_overwritten_by_making_it(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("first")
    with pytest.raises(FileExistsError):
        create_private(path, "second")
    assert path.read_text() == "first"
    assert [entry.name for entry in tmp_path.iterdir()] == ["secret"]


def test_who_reads_while_it_is_replaced_has_the_old_text(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    replace_private(path, "first")
    with path.open() as reading:
        replace_private(path, "second")
        assert reading.read() == "first"
    assert read_private(path) == "second"


def test_when_it_cannot_take_its_place_nothing_of_it_is_left(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    (path / "inside").mkdir(parents=True)
    with pytest.raises(OSError):
        replace_private(path, "s3cret")
    assert [entry.name for entry in tmp_path.iterdir()] == ["secret"]


@pytest.mark.parametrize("write", WRITERS)
def test_when_the_disk_does_not_take_all_of_it_nothing_of_it_is_left(
    write: Callable[[Path, str], None], tmp_path: Path
) -> None:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4, limit[1]))
    try:
        with pytest.raises(OSError):
            write(tmp_path / "secret", "s3cret")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert list(tmp_path.iterdir()) == []


def test_a_link_is_neither_written_nor_read_through(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("untouched")
    link.symlink_to(target)
    with pytest.raises(OSError):
        read_private(link)
    with pytest.raises(FileExistsError):
        create_private(link, "s3cret")
    replace_private(link, "s3cret")
    assert (target.read_text(), link.is_symlink(), read_private(link)) == ("untouched", False, "s3cret")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_its_owner_may_be_another(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    replace_private(path, "s3cret", owner=(12345, 54321))
    status = path.stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (12345, 54321, 0o600)
