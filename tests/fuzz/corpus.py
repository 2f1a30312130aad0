"""The inputs that are kept, one a line, written as Python writes bytes.

`corpus/<target>.txt` has those that get far and is written by a run with `--keep`; `corpus/<target>.found.txt` has those that
failed once and is written by hand.

How far an input gets is told by the steps from line to line of our code that it takes: it stays when it takes one that no
shorter input took. That needs no instrument but the interpreter's own.
"""

import ast
import sys
from collections.abc import Iterable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from .targets import Target

DIRECTORY: Final = Path(__file__).with_name("corpus")
MAX_KEPT: Final = 60
"""Of each target."""
MAX_INPUT: Final = 1024
"""Bytes of an input that is kept for how far it gets."""

Step = tuple[str, int, int]


def kept(target: str) -> list[bytes]:
    """The inputs of a target: those that failed once, then those that get far."""
    paths = (DIRECTORY / f"{target}.found.txt", DIRECTORY / f"{target}.txt")
    lines = [line for path in paths if path.exists() for line in path.read_text("ascii").splitlines()]
    found = [ast.literal_eval(line) for line in lines if line]
    assert all(isinstance(one, bytes) for one in found)
    return found


def keep(target: str, inputs: Iterable[bytes]) -> None:
    """Write the inputs of a target that get far, in place of those that it had."""
    (DIRECTORY / f"{target}.txt").write_text("".join(f"{one!r}\n" for one in inputs), "ascii")


def steps(target: "Target", data: bytes) -> set[Step]:
    """The steps that an input takes in our own code. What the target raises, it raises."""
    taken: set[Step] = set()

    def enter(frame: FrameType, _event: str, _arg: Any) -> Any:
        name = frame.f_code.co_filename
        if "/ostiary/" not in name:
            return None
        last = 0

        def line(frame: FrameType, _event: str, _arg: Any) -> Any:
            nonlocal last
            taken.add((name, last, frame.f_lineno))
            last = frame.f_lineno
            return line

        return line

    before = sys.gettrace()
    sys.settrace(enter)
    try:
        target(data)
    finally:
        sys.settrace(before)
    return taken


def minimised(target: "Target", inputs: Iterable[bytes], known: Iterable[bytes] = ()) -> list[bytes]:
    """The inputs that take a step which neither `known` nor a shorter one takes; as many as are kept."""
    seen: set[Step] = set()
    for data in known:
        seen |= steps(target, data)
    chosen = []
    for data in sorted(set(inputs), key=lambda data: (len(data), data)):
        if len(data) > MAX_INPUT or len(chosen) == MAX_KEPT:
            continue
        taken = steps(target, data)
        if not taken <= seen:
            seen |= taken
            chosen.append(data)
    return chosen
