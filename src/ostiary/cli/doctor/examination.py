"""Runs checks side by side, within a time.

Rules
- A check that fails is not the doctor's end: what it could not find out becomes a finding, with the reason.
- What has not come back in time is a finding too. Its thread is left behind: the command ends without it.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

from ostiary.cli.failure import Failure

from .findings import GROUPS, Finding, Group

AT_ONCE: Final = 8

Progress = Callable[[str], None]


class Check(NamedTuple):
    """`run` gives findings, of any group; `group` is that of what it could not do."""

    group: str
    about: str
    run: Callable[[], Iterable[Finding]]


def examine(checks: Sequence[Check], deadline: float, progress: Progress) -> list[Finding]:
    """The findings of all checks, by group, then in the order of the checks. `deadline` is on the monotonic clock."""
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[int, list[Finding]]] = queue.SimpleQueue()
    for index in range(len(checks)):
        waiting.put(index)

    def work() -> None:
        while True:
            try:
                index = waiting.get_nowait()
            except queue.Empty:
                return
            done.put((index, _run(checks[index])))

    for _ in range(min(AT_ONCE, len(checks))):
        threading.Thread(target=work, daemon=True).start()
    found: dict[int, list[Finding]] = {}
    while len(found) < len(checks):
        left = ", ".join(check.about for index, check in enumerate(checks) if index not in found)
        progress(f"{len(found)} of {len(checks)} checks done, waiting for {left}")
        try:
            index, findings = done.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            break
        found[index] = findings
    for index, check in enumerate(checks):
        if index not in found:
            cure = "give it more time with --within"
            found[index] = [Group(check.group).unchecked(f"{check.about}: not done in time", cure)]
    return in_order(finding for index in sorted(found) for finding in found[index])


def in_order(findings: Iterable[Finding]) -> list[Finding]:
    """By group."""
    return sorted(findings, key=lambda finding: GROUPS.index(finding.group))


def _run(check: Check) -> list[Finding]:
    try:
        return list(check.run())
    except Failure as failure:
        return [Group(check.group).unchecked(f"{check.about}: {failure.message}")]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        text = f"{check.about}: the server's answer is not understood ({type(error).__name__}: {error})"
        return [Group(check.group).unchecked(text, "use the `ostiary` command of the server's version")]
    except Exception as error:  # noqa: BLE001  one check must not take the others down
        return [Group(check.group).unchecked(f"{check.about}: {type(error).__name__}: {error}")]
