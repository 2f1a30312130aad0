"""Directories that the user of PostgreSQL can reach, which pytest's own are not for root."""

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ostiary.runtime.postgres import EmbeddedPostgres


@pytest.fixture
def open_directory() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="ostiary-test-"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def made_data_dir() -> Iterator[Path]:
    """A data directory whose first start is behind it."""
    directory = Path(tempfile.mkdtemp(prefix="ostiary-test-"))
    directory.chmod(0o711)
    server = EmbeddedPostgres(directory, durable=False)
    try:
        server.start()
    finally:
        server.stop()
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def data_dir(open_directory: Path, made_data_dir: Path) -> Path:
    """A copy of it; an initdb in every test would take most of their time."""
    subprocess.run(["cp", "-a", made_data_dir, open_directory / "data"], check=True)
    return open_directory / "data"
