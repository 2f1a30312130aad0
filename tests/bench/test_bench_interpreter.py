"""Which Python runs what is measured."""

import platform
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import interpreter
from bench.children import StartError


@pytest.fixture(autouse=True)
def asked_anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("BENCH_PYTHON", raising=False)
    interpreter.python.cache_clear()
    yield
    interpreter.python.cache_clear()


def test_the_named_one_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_PYTHON", sys.executable)

    assert interpreter.python() == Path(sys.executable)
    assert interpreter.version().startswith(platform.python_version())


@pytest.mark.parametrize("named", ["/nowhere/python", "/bin/false"])
def test_one_that_will_not_do_is_refused(named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_PYTHON", named)

    with pytest.raises(StartError, match=f"BENCH_PYTHON={named}"):
        interpreter.python()


def test_without_a_name_it_is_of_the_version_at_hand() -> None:
    assert interpreter.version().split()[0].rpartition(".")[0] == f"{sys.version_info.major}.{sys.version_info.minor}"
