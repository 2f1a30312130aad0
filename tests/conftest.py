"""Fixtures of all tests: they stand in `tests.support`."""

import os
from importlib.util import find_spec

from hypothesis import settings

pytest_plugins = ["tests.support.postgres", "tests.support.server", "tests.support.chaos", "tests.support.small_disk"]
if find_spec("tests.support.database"):
    pytest_plugins.append("tests.support.database")

# No example has a time: a busy machine may stall in any of them. What is tried is the same in every run but with FUZZ.
settings.register_profile("ostiary", deadline=None, derandomize=not os.environ.get("FUZZ"))
settings.load_profile("ostiary")
