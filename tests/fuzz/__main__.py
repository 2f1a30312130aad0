"""`python -m tests.fuzz [target ...] [--seconds N] [--keep]`: fuzz the parsers, guided by the code that inputs reach.

With atheris (libFuzzer for Python, `pip install atheris`) in the environment it guides; otherwise a loop of our own does,
which finds the same kind of thing more slowly. The first input that fails is shown, and is written to `--found`.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
import traceback
from importlib.util import find_spec
from pathlib import Path

from .corpus import keep, kept, minimised, steps
from .mutation import MAX_SIZE, mutated
from .seeds import SEEDS, TOKENS

if __name__ == "__main__" and "--with-atheris" in sys.argv:
    import atheris

    with atheris.instrument_imports(include=["ostiary"], enable_loader_override=False):
        from .targets import TARGETS
else:
    from .targets import TARGETS


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzz the parsers.")
    parser.add_argument("targets", nargs="*", help=f"of {', '.join(TARGETS)}; all when none is named")
    parser.add_argument("--seconds", type=int, default=60, help="of each target")
    parser.add_argument("--keep", action="store_true", help="write the inputs that reach new code to tests/fuzz/corpus")
    parser.add_argument(
        "--found", type=Path, default=Path(tempfile.gettempdir()), help="where an input that fails goes"
    )
    parser.add_argument("--inputs", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--with-atheris", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.with_atheris:
        _atheris(given.targets[0], given.inputs, given.seconds, given.found)
    failed = 0
    for name in given.targets or TARGETS:
        begin = time.monotonic()
        with tempfile.TemporaryDirectory() as directory:
            inputs = _fuzz(name, given.seconds, Path(directory), given.found)
        if inputs is None:
            failed += 1
        elif given.keep:
            keep(name, minimised(TARGETS[name], [*inputs, *kept(name)], SEEDS[name]))
        print(f"{name}: {'failed' if inputs is None else 'holds'}, {time.monotonic() - begin:.0f} s", flush=True)
    return 1 if failed else 0


def _fuzz(name: str, seconds: int, directory: Path, found: Path) -> list[bytes] | None:
    """The inputs that reach something; None when one failed."""
    if find_spec("atheris") is None:
        return _loop(name, seconds, found)
    for number, data in enumerate([*SEEDS[name], *kept(name)]):
        (directory / str(number)).write_bytes(data)
    command = [sys.executable, "-m", "tests.fuzz", name, "--with-atheris", "--inputs", str(directory)]
    done = subprocess.run([*command, "--seconds", str(seconds), "--found", str(found)], check=False)
    return [path.read_bytes() for path in directory.iterdir()] if done.returncode == 0 else None


def _atheris(name: str, inputs: Path, seconds: int, found: Path) -> None:
    words = inputs.with_name(inputs.name + ".words")
    short = (word for word in TOKENS[name] if len(word) < 64)
    words.write_text("".join('"' + "".join(f"\\x{byte:02x}" for byte in word) + '"\n' for word in short))
    limits = [
        f"-max_total_time={seconds}",
        f"-max_len={MAX_SIZE}",
        "-timeout=10",
        "-rss_limit_mb=1024",
        "-print_final_stats=1",
    ]
    atheris.Setup([name, *limits, f"-dict={words}", f"-artifact_prefix={found}/{name}-", str(inputs)], TARGETS[name])
    atheris.Fuzz()


def _loop(name: str, seconds: int, found: Path) -> list[bytes] | None:
    target, tokens = TARGETS[name], TOKENS[name]
    inputs = [*SEEDS[name], *kept(name)]
    seen = set().union(*(steps(target, data) for data in inputs))
    rng = random.Random(os.urandom(8))
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        data = mutated(rng, rng.choice(inputs), inputs, tokens)
        try:
            taken = steps(target, data)
        except Exception:
            traceback.print_exc()
            place = found / f"{name}-failing"
            place.write_bytes(data)
            print(f"{name}: fails, see above; the input is in {place}: {data[:2000]!r}", file=sys.stderr)
            return None
        if not taken <= seen:
            seen |= taken
            inputs.append(data)
    return inputs


if __name__ == "__main__":
    sys.exit(main())
