"""Fixtures of all tests: they stand in `tests.support`."""

from importlib.util import find_spec

pytest_plugins = ["tests.support.postgres", "tests.support.server", "tests.support.chaos", "tests.support.small_disk"]
if find_spec("tests.support.database"):
    pytest_plugins.append("tests.support.database")
