"""The command line, and gateways that cannot take part."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bench import __main__ as command
from bench import build, machine, parts
from bench.fake_upstream import Upstream
from bench.targets import UnavailableError


@pytest.mark.parametrize(
    ("flags", "variables", "chosen"),
    [
        ([], {}, ()),
        (["portkey"], {}, ("portkey",)),
        (["all"], {}, ("litellm", "portkey")),
        ([], {"BENCH_LITELLM": "1"}, ("litellm",)),
        (["portkey"], {"BENCH_LITELLM": "1", "BENCH_PORTKEY": "0"}, ("litellm", "portkey")),
    ],
)
def test_gateways_are_asked_for_by_flag_or_variable(
    flags: list[str], variables: dict[str, str], chosen: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in parts.GATEWAYS:
        monkeypatch.delenv(f"BENCH_{name.upper()}", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    assert command._gateways(flags) == chosen


def test_without_node_portkey_is_left_out_with_the_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "which", lambda _program: None)
    nowhere = Upstream(1, 1, tmp_path / "ca.pem", (0, 0), polls=False)

    with (
        pytest.raises(UnavailableError, match=r"needs Node\.js"),
        parts.GATEWAYS["portkey"](tmp_path, nowhere, machine.cores()),
    ):
        pass


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--only", "nothing"], "`main` has no part nothing"),
        (["growth", "--only", "soak"], "`growth` has no part soak"),
        (["all", "--only", "calls"], "`all` has no part calls"),
    ],
)
def test_a_part_that_a_command_does_not_have_is_an_error(arguments: list[str], told: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench", *arguments], cwd=build.ROOT, capture_output=True, text=True, check=False
    )

    assert done.returncode == 2
    assert told in done.stderr


def test_every_command_runs_and_has_its_parts() -> None:
    assert set(command._RUN) == set(command._COMMANDS)
    assert set(command._PARTS_OF) == {*command._COMMANDS, "all"}
    assert set(command._QUICK_LEAVES_OUT) <= set(parts.PARTS)
