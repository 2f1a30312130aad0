"""Every parser under any bytes: the inputs that were kept, some changes of them, and with FUZZ=1 as many as there is time for.

`docs/testing.md` says how to fuzz for longer and how to keep what is found.
"""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.corpus import kept, steps
from tests.fuzz.mutation import mutated
from tests.fuzz.seeds import SEEDS, TOKENS
from tests.fuzz.targets import TARGETS

FUZZ_SECONDS = os.environ.get("FUZZ_SECONDS", "60")
CHANGED = 150

every_target = pytest.mark.parametrize("name", TARGETS)


def holds(name: str, data: bytes) -> None:
    try:
        TARGETS[name](data)
    except BaseException as error:
        error.add_note(f"{name} fails with {data!r}")
        raise


@every_target
def test_what_was_found_once_holds(name: str) -> None:
    for data in [*SEEDS[name], *kept(name)]:
        holds(name, data)


@every_target
def test_small_changes_of_it_hold(name: str) -> None:
    """Always the same ones: what chance would find belongs to FUZZ=1."""
    rng = random.Random(name)
    inputs = [*SEEDS[name], *kept(name)]
    for _ in range(CHANGED):
        holds(name, mutated(rng, rng.choice(inputs), inputs, TOKENS[name]))


@every_target
def test_its_first_inputs_get_beyond_the_first_check(name: str) -> None:
    """A seed that is refused at once would leave the parser behind the check unfuzzed."""
    nothing = steps(TARGETS[name], b"")
    assert max(len(steps(TARGETS[name], data) - nothing) for data in SEEDS[name]) > 1


@pytest.mark.skipif(not os.environ.get("FUZZ"), reason="FUZZ=1 fuzzes every parser for FUZZ_SECONDS (60)")
@every_target
def test_chance_finds_nothing(name: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.fuzz", name, "--seconds", FUZZ_SECONDS, "--found", str(tmp_path)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-6000:]
