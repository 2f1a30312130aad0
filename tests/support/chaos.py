"""What the long runs are marked with, what they say at the end of a run, and how crashes are made."""

import os
import signal
from collections.abc import Callable
from contextlib import suppress

import pytest

from tests.support.server import Machine, alive, descendants, eventually

chaos = pytest.mark.skipif(not os.environ.get("CHAOS"), reason="long: set CHAOS=1")


Say = Callable[[str], None]


@pytest.fixture
def say(record_property: Callable[[str, object], None]) -> Say:
    """Adds to the summary of the run, also with pytest-xdist."""
    return lambda text: record_property("said", text)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", "") == "call":
                for name, text in report.user_properties:
                    if name == "said":
                        terminalreporter.write_line(text)


def kill_everything(server: Machine) -> None:
    """`kill -9` of the supervisor and of every process below it, all at one moment."""
    assert server.process is not None
    family = [server.process.pid, *descendants(server.process.pid)]
    for pid in family:
        with suppress(ProcessLookupError):  # ended with its supervisor already
            os.kill(pid, signal.SIGKILL)
    server.process.wait(30)
    eventually(lambda: not any(alive(pid) for pid in family), what="everything ended")
