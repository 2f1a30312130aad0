"""LiteLLM's proxy beside Ostiary, when it is asked for: what users would pick instead, in Python.

It is installed into a virtual environment of its own, made by the Python that runs Ostiary (`bench.interpreter`), outside the
tree, and kept there for the next run.
"""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from . import children, interpreter, machine
from .fake_upstream import Upstream
from .targets import PROVIDER_KEY, Route, Target, UnavailableError, cache_folder

_INSTALL_SECONDS = 240
_START_SECONDS = 90.0
_MASTER_KEY = "sk-bench-litellm"


@contextmanager
def litellm(folder: Path, upstream: Upstream, cores: machine.Cores) -> Iterator[Target]:
    """One worker with a master key and no database. Raises `UnavailableError`."""
    program = _installed()
    port = children.free_port()
    config = folder / "litellm.yaml"
    # A wildcard route: the model's name, which carries the answer's shape, goes through as it is.
    config.write_text(
        "model_list:\n"
        "  - model_name: '*'\n"
        "    litellm_params:\n"
        "      model: 'openai/*'\n"
        f"      api_base: http://127.0.0.1:{upstream.plain_port}/v1\n"
        f"      api_key: {PROVIDER_KEY}\n"
        "general_settings:\n"
        f"  master_key: {_MASTER_KEY}\n"
        "litellm_settings:\n"
        "  telemetry: false\n"
    )
    log = folder / "litellm.log"
    command = [str(program), "--config", str(config), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
    env = os.environ | {"LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_TELEMETRY": "False"}
    with children.running(command, pinned=cores.under_test, log=log, env=env) as process:
        try:
            children.wait_until(lambda: children.listens(port), process, log, _START_SECONDS)
        except children.StartError as exc:
            raise UnavailableError(str(exc).strip().splitlines()[-1].strip()) from exc
        machine.pin(process.pid, cores.under_test)
        route = Route("", {"Authorization": f"Bearer {_MASTER_KEY}"})
        workers = (process.pid, *machine.children(process.pid))
        yield Target("LiteLLM", port, {"openai": route}, workers)


def version() -> str:
    told = subprocess.run(
        [str(_folder() / "bin" / "python"), "-c", "from importlib.metadata import version; print(version('litellm'))"],
        capture_output=True,
        text=True,
        check=False,
    )
    return told.stdout.strip()


def _folder() -> Path:
    return cache_folder() / f"litellm-{interpreter.version().split()[0]}"


def _installed() -> Path:
    folder = _folder()
    program = folder / "bin" / "litellm"
    if program.exists():
        return program
    folder.parent.mkdir(parents=True, exist_ok=True)
    steps = [
        [str(interpreter.python()), "-m", "venv", str(folder)],
        [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "litellm[proxy]"],
    ]
    for step in steps:
        try:
            done = subprocess.run(step, capture_output=True, text=True, timeout=_INSTALL_SECONDS, check=False)
        except subprocess.TimeoutExpired as exc:
            raise UnavailableError(f"installing it took more than {_INSTALL_SECONDS} s") from exc
        if done.returncode:
            raise UnavailableError(f"installing it failed: {done.stderr.strip()[-300:]}")
    if not program.exists():
        raise UnavailableError("its package has no `litellm` command")
    return program
