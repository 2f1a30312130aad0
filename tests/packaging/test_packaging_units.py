"""The units of `deploy/systemd`: what they start can be started, and is given the time that a stop may take."""

import shlex
from pathlib import Path
from typing import Final

import pytest

from ostiary.config import Command, load
from ostiary.config.plan import gateway_plan

URL: Final = "https://ostiary.example"
MARGINS: Final = 20.0
"""Seconds that the supervisor gives workers and link on top of their drains."""
CONTROL_AND_DATABASE: Final = 15.0 + 25.0
UNITS: Final = Path(__file__).resolve().parents[2] / "deploy" / "systemd"


def values(unit: str, name: str) -> list[str]:
    """What a unit says for one name, in order."""
    lines = (UNITS / unit).read_text().splitlines()
    return [value for key, found, value in (line.partition("=") for line in lines) if found and key == name]


@pytest.mark.parametrize(
    ("unit", "words", "after_the_link"),
    [
        ("ostiary.service", ["server"], CONTROL_AND_DATABASE),
        ("ostiary-gateway.service", ["gateway", "start"], 0.0),
    ],
)
def test_a_unit_starts_a_command_and_waits_for_its_end(unit: str, words: list[str], after_the_link: float) -> None:
    (start,) = values(unit, "ExecStart")
    program, *arguments = shlex.split(start)
    assert (Path(program).name, arguments) == ("ostiary", words)
    # a TERM to each process at once is a smart shutdown for PostgreSQL, which waits for its sessions
    assert values(unit, "KillMode") == ["mixed"]
    (seconds,) = values(unit, "TimeoutStopSec")
    plan = gateway_plan(load({}, {"OSTIARY_CONTROL_URL": URL, "OSTIARY_GATEWAY_KEY": "k" * 43}, command="gateway"))
    drains = plan.gateway.drain_timeout + plan.link.drain_timeout + MARGINS
    assert float(seconds) >= drains + after_the_link


@pytest.mark.parametrize("unit", ["ostiary.service", "ostiary-gateway.service"])
def test_what_a_unit_sets_is_a_setting_and_lies_in_its_state_directory(unit: str, tmp_path: Path) -> None:
    command: Command = "gateway" if "gateway" in unit else "server"
    given = dict(entry.split("=", 1) for entry in values(unit, "Environment"))
    (state,) = values(unit, "StateDirectory")
    assert given["OSTIARY_DATA_DIR"] == f"%S/{state}"
    (tmp_path / "gateway-key").write_text("k" * 43)
    environ = {name: value.replace("%S", str(tmp_path)).replace("%d", str(tmp_path)) for name, value in given.items()}
    if command == "gateway":
        environ["OSTIARY_CONTROL_URL"] = URL
    loaded = load({}, environ, file=None, command=command)
    assert loaded.warnings == ()
    assert set(loaded.origins.values()) >= set(given)
