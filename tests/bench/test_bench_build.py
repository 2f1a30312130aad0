"""Which code is measured."""

import os
import shutil
import zipfile
from pathlib import Path

import pytest

from bench import build
from bench.children import StartError


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A copy of what `bench.build` asks for, with a change."""
    copy = tmp_path / "site"
    shutil.copytree(build.SOURCE / "ostiary" / "http1", copy / "ostiary" / "http1")
    shutil.copy(build.SOURCE / "ostiary" / "__init__.py", copy / "ostiary" / "__init__.py")
    return copy


def test_the_source_tree_is_interpreted() -> None:
    found = build.source()

    assert (found.kind, found.site, found.stale) == ("interpreted", build.SOURCE, 0)
    assert found.environment()["PYTHONPATH"].split(":")[0] == str(build.SOURCE)


def test_a_directory_is_imported_in_place_of_the_source_tree(site: Path) -> None:
    found = build.of_site(site)

    assert (found.kind, found.stale) == ("interpreted", 0)


def test_files_that_differ_from_the_source_tree_are_counted_and_told(site: Path) -> None:
    (site / "ostiary" / "http1" / "chunks.py").write_text("changed = True\n")
    (site / "ostiary" / "http1" / "gone.py").write_text("")

    found = build.of_site(site)

    assert found.stale == 2
    assert "2 of its files differ" in found.describe()


def test_a_directory_without_the_package_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="holds no package"):
        build.of_site(tmp_path)


def test_a_build_that_cannot_be_imported_is_refused_with_the_reason(site: Path) -> None:
    (site / "ostiary" / "http1" / "head.py").write_text("import nowhere_to_be_found\n")

    with pytest.raises(StartError, match="nowhere_to_be_found"):
        build.of_site(site)


def wheel(dist: Path, name: str, age: int) -> Path:
    file = dist / name
    with zipfile.ZipFile(file, "w") as packed:
        packed.writestr("ostiary/__init__.py", "")
    os.utime(file, (1_000_000 - age, 1_000_000 - age))
    return file


def test_the_newest_wheel_for_a_platform_is_taken(tmp_path: Path) -> None:
    wheel(tmp_path, "ostiary-0.1.0-cp311-cp311-linux_x86_64.whl", 20)
    newest = wheel(tmp_path, "ostiary-0.2.0-cp311-cp311-linux_x86_64.whl", 10)
    wheel(tmp_path, "ostiary-0.3.0-py3-none-any.whl", 0)

    assert build.newest_wheel(tmp_path) == newest


def test_without_a_wheel_there_is_none(tmp_path: Path) -> None:
    assert build.newest_wheel(tmp_path / "dist") is None


def test_a_wheel_is_unpacked_and_named(tmp_path: Path, site: Path) -> None:
    file = tmp_path / "ostiary-9.9.9-cp311-cp311-linux_x86_64.whl"
    with zipfile.ZipFile(file, "w") as packed:
        for source in site.rglob("*.py"):
            packed.write(source, source.relative_to(site))

    found = build.of_wheel(file, tmp_path / "unpacked")

    assert found.site == (tmp_path / "unpacked" / file.stem).resolve()
    assert found.origin == file.name
