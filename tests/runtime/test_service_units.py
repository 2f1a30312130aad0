"""The units of `deploy/systemd` beside what they start."""

import configparser
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from ostiary.core.settings import GatewaySettings, LinkSettings
from ostiary.runtime import supervisor

ROOT = Path(__file__).parents[2]
UNITS = sorted(ROOT.glob("deploy/systemd/*.service"))


def _service(unit: Path) -> configparser.SectionProxy:
    parser = configparser.RawConfigParser(strict=True)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string(unit.read_text())
    return parser["Service"]


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_it_starts_a_command_that_is_there(unit: Path) -> None:
    program, *arguments = shlex.split(_service(unit)["ExecStart"])
    assert Path(program).name == "ostiary"
    shown = subprocess.run(
        [sys.executable, "-m", "ostiary", *arguments, "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert "--data-dir" in shown


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_it_waits_for_the_end_as_long_as_the_end_may_take(unit: Path) -> None:
    drains = GatewaySettings(journal_dir="").drain_timeout + LinkSettings("", "", "", "").drain_timeout  # type: ignore[arg-type]
    assert int(_service(unit)["TimeoutStopSec"]) >= drains + 2 * supervisor._DRAIN_MARGIN + supervisor._CONTROL_DRAIN


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_its_state_is_where_the_data_is_and_closed_to_others(unit: Path) -> None:
    service = _service(unit)
    assert service["Environment"] == f"OSTIARY_DATA_DIR=/var/lib/{service['StateDirectory']}"
    assert service["StateDirectoryMode"] == "0700"
    assert service["User"] == "ostiary"


def test_there_is_one_for_the_server_and_one_for_a_gateway() -> None:
    assert [unit.name for unit in UNITS] == ["ostiary-gateway.service", "ostiary.service"]
