"""Builds wheels whose hot path is compiled: `make wheel`, or `OSTIARY_COMPILE=1 pip install .`

mypyc, which is part of mypy, turns the typed modules below into C extensions; the rest of the package stays as it is in the
source. Without `OSTIARY_COMPILE` the wheel is pure Python: it behaves the same and takes about twice the CPU a call. Needs a
C compiler, and every library whose types the modules use.

Rules for a compiled module
- No struct that is decoded: mypyc leaves no types in annotations, and msgspec goes by these. They have modules of their own.
- A class default of None only where its type is not a protocol: mypyc forgets that one.
- One name for one type: an `error` of two `except` clauses has the type of the first, and the second one raises TypeError.
- Types are checked at run time: what is annotated as a frozenset is no set, and a `Raw` is no bytes, whatever the stubs say.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

COMPILED = """
    core/agents core/ids core/journal core/metrics
    http1/chunks http1/connections http1/fields http1/head http1/pool http1/server http1/tls http1/upstream
    wire/anthropic_messages wire/budget wire/events wire/formats wire/lenient wire/observer wire/openai_chat
    wire/openai_responses wire/request wire/sse wire/usage
    gateway/providers/base gateway/providers/openai gateway/snapshot
    gateway/answers gateway/authorizations gateway/clearance gateway/decide gateway/exchange gateway/heads
    gateway/interception gateway/journal gateway/metrics gateway/recording gateway/refusals gateway/reply
    gateway/routes gateway/upload gateway/upstream_call gateway/worker
""".split()  # noqa: SIM905 - a table of names
"""What every call runs through."""

_SETUP = """
import sys
from mypyc.build import mypycify
from setuptools import setup
setup(name="ostiary", packages=[], ext_modules=mypycify(sys.argv[3:], opt_level="3", debug_level="0", target_dir=sys.argv[2]),
      script_args=["build_ext", "--build-lib", sys.argv[1], "--build-temp", sys.argv[2]])
"""

_FLAGS = "-fno-semantic-interposition -fvisibility=hidden"
"""Calls from one compiled function to another go straight there: nothing outside may stand in for it."""


class CompileHook(BuildHookInterface):  # type: ignore[type-arg]
    """Hatchling's hook of a wheel (https://hatch.pypa.io/latest/plugins/build-hook/custom/)."""

    PLUGIN_NAME = "custom"

    def dependencies(self) -> list[str]:
        """For builds in isolation: mypy reads the types of what the modules import."""
        if not _wanted():
            return []
        return ["botocore-stubs>=1.42", "mypy>=2.4", "setuptools>=80", *self.metadata.core.dependencies]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and put the libraries into the wheel. Raises what the compiler says."""
        if version == "editable" or not _wanted():
            return
        self._directory = tempfile.TemporaryDirectory(prefix="ostiary-build-")
        built = Path(self._directory.name)
        subprocess.run(
            [sys.executable, "-c", _SETUP, built / "lib", built / "temp", *(f"ostiary/{name}.py" for name in COMPILED)],
            check=True,
            cwd=Path(self.root) / "src",
            env=os.environ | {"CFLAGS": f"{_FLAGS} {os.environ.get('CFLAGS', '')}"},
            stdout=sys.stderr,
        )
        libraries = sorted((built / "lib").rglob("*.so"))
        if len(libraries) <= len(COMPILED):
            raise RuntimeError(f"mypyc made {len(libraries)} libraries of {len(COMPILED)} modules")
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
        for library in libraries:
            build_data["force_include"][str(library)] = str(library.relative_to(built / "lib"))


def _wanted() -> bool:
    return os.environ.get("OSTIARY_COMPILE", "") not in ("", "0")
