"""Every test of the commands starts as a person with nothing set up; with `plane` or `do` as the owner of a server."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_plane import OWNER_TOKEN, Do, Plane, Said

from ostiary.cli.root import run
from ostiary.core.secret import Secret


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory; configuration and data would be below it."""
    for name in [name for name in os.environ if name.startswith(("OSTIARY_", "CODER_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("OSTIARY_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setattr("ostiary.config.loading.SYSTEM_FILE", tmp_path / "none.toml")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def plane(database_url: Secret, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Plane]:
    running = Plane(database_url, tmp_path)
    monkeypatch.setenv("OSTIARY_URL", running.url)
    monkeypatch.setenv("OSTIARY_TOKEN", OWNER_TOKEN)
    yield running
    running.close()


@pytest.fixture
def do(plane: Plane, capsys: pytest.CaptureFixture[str]) -> Do:
    """Runs a command that must succeed, or end with `status`."""

    def call(*arguments: str, status: int = 0) -> Said:
        capsys.readouterr()
        got = run(arguments)
        captured = capsys.readouterr()
        assert got == status, captured.err
        return Said(captured.out, captured.err)

    return call
