"""Every test of the commands starts as a person with nothing set up."""

import os
from pathlib import Path

import pytest


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
