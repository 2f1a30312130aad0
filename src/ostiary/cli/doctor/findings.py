"""What a check has found: one line, and for what is not in order how to mend it."""

from enum import StrEnum
from typing import Final, NamedTuple


class Status(StrEnum):
    OK = "ok"
    WARNING = "warning"
    """It works, and will not for ever, or not as meant."""
    WRONG = "wrong"
    UNCHECKED = "unchecked"
    """The text says why."""


GROUPS: Final = (
    "server",
    "clocks",
    "database",
    "providers",
    "traffic",
    "gateways",
    "records",
    "certificates",
    "machine",
    "settings",
)
"""In the order of the report."""


class Finding(NamedTuple):
    group: str
    status: Status
    text: str
    cure: str = ""


class Group:
    """Makes the findings of one group."""

    def __init__(self, name: str) -> None:
        assert name in GROUPS
        self._name = name

    def ok(self, text: str) -> Finding:
        return Finding(self._name, Status.OK, text)

    def warning(self, text: str, cure: str) -> Finding:
        return Finding(self._name, Status.WARNING, text, cure)

    def wrong(self, text: str, cure: str) -> Finding:
        return Finding(self._name, Status.WRONG, text, cure)

    def unchecked(self, text: str, cure: str = "") -> Finding:
        return Finding(self._name, Status.UNCHECKED, text, cure)


def number(amount: int, noun: str) -> str:
    """`1 record`, `2,000 records`."""
    return f"{amount:,} {noun}" if amount == 1 else f"{amount:,} {noun}s"


def size(count: float) -> str:
    """Bytes for people: `512 MiB`."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
