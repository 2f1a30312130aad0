"""How findings are shown: a line each, by group; as JSON with the same words."""

import sys
from collections import Counter
from typing import Any, Final

from ostiary.cli.output import one_line, print_json, say

from .findings import Finding, Status

_MARKS: Final = {Status.OK: "ok", Status.WARNING: "WARN", Status.WRONG: "WRONG", Status.UNCHECKED: "??"}
_ERASE: Final = "\r\x1b[2K"


def progress(text: str) -> None:
    """What is being waited for, on a terminal and there only; each text takes the place of the one before."""
    if sys.stderr.isatty():
        from shutil import get_terminal_size

        sys.stderr.write(_ERASE + one_line(text, max(20, get_terminal_size().columns - 1)) if text else _ERASE)
        sys.stderr.flush()


def counts(findings: list[Finding]) -> dict[str, int]:
    found = Counter(finding.status for finding in findings)
    return {status.value: found[status] for status in Status}


def print_report(url: str, findings: list[Finding]) -> None:
    before = ""
    for finding in findings:
        heading = finding.group if finding.group != before else ""
        before = finding.group
        cure = f" -> {one_line(finding.cure, 400)}" if finding.cure else ""
        say(f"{heading:<13} {_MARKS[finding.status]:<6} {one_line(finding.text, 600)}{cure}")
    say("")
    say(f"{url}: {summary(findings)}")


def summary(findings: list[Finding]) -> str:
    """`2 wrong, 1 warning, 3 not checked (??), 12 ok`."""
    found = counts(findings)
    warnings = found["warning"]
    parts = [
        f"{found['wrong']} wrong" if found["wrong"] else "nothing wrong",
        f"{warnings} warning" if warnings == 1 else f"{warnings} warnings",
        *([f"{found['unchecked']} not checked (??)"] if found["unchecked"] else []),
        f"{found['ok']} ok",
    ]
    return ", ".join(parts)


def print_as_json(url: str, findings: list[Finding]) -> None:
    rows: list[dict[str, Any]] = [
        {"group": one.group, "status": one.status.value, "text": one.text, "cure": one.cure} for one in findings
    ]
    print_json({"url": url, "counts": counts(findings), "findings": rows})
