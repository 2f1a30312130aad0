"""Every command line that the pages show is one that the commands take."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.main import get_command

from ostiary.cli._lazy import LazyCommand
from ostiary.cli.root import app

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
ALERTS = ROOT / "deploy" / "prometheus" / "ostiary.rules.yml"
_CODE = re.compile(r"^```\w*\n(.*?)^```|^ {4}(?! )([^\n]+)|`([^`\n]+)`", re.MULTILINE | re.DOTALL)
_COMMAND = re.compile(r"(?:^|[\s(/])ostiary (?!ostiary )(?=[a-z-])(.*)")
_ENDS = re.compile(r"\)|\s#|\s[|>&<;]|;|…")
_PLACEHOLDER = re.compile(r"[A-Z_{}$./-]+|\$\(.*")


def command_lines(page: str) -> Iterator[str]:
    """What stands behind `ostiary` in code, up to a comment, a pipe or a redirection; synopses and prose left out."""
    for block in _CODE.findall(page):
        text = re.sub(r"{{.*?}}", "NAME", "".join(block).replace("\\\n", " "))
        for line in text.splitlines():
            found = _COMMAND.search(line)
            if found is None:
                continue
            words = _ENDS.split(found[1])[0].strip()
            if words and "[" not in words and " | " not in line.replace(found[0], ""):
                yield words


def documented() -> list[tuple[str, str]]:
    pages = [(page.name, page.read_text()) for page in PAGES] + [(ALERTS.name, ALERTS.read_text())]
    return [(name, line) for name, text in pages for line in dict.fromkeys(command_lines(text))]


def problem(line: str) -> str | None:
    """Why the command line would be refused, or nothing. What has a placeholder for a value, or none yet, is fine."""
    command: Any = get_command(app)
    words = shlex.split(line)
    path = []
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        if words[0] not in command.commands:
            return f"there is no command {' '.join([*path, words[0]])}"
        path.append(words[0])
        command = command.commands[words.pop(0)]
        if isinstance(command, LazyCommand):
            command = command.load()
    try:
        command.make_context(" ".join(path), words)
    except typer.TyperException as wrong:
        kind = type(wrong).__name__
        if kind in ("MissingParameter", "NoArgsIsHelpError"):
            return None
        if kind == "BadParameter" and any(_PLACEHOLDER.fullmatch(word) for word in words):
            return None
        return wrong.format_message()
    except typer.Exit:
        pass
    return None


@pytest.mark.parametrize(("page", "line"), documented())
def test_commands_take_what_the_pages_show(page: str, line: str) -> None:
    assert problem(line) is None, f"{page}: ostiary {line}: {problem(line)}"


def test_enough_of_them_were_found() -> None:
    found = documented()
    assert len(found) > 80
    assert ("observability.md", "server --otel-endpoint http://127.0.0.1:4318") in found


@pytest.mark.parametrize(
    "line", ["servr", "server --bogus", "server --structured-logging true", "providers add x --type none", "top now"]
)
def test_a_command_line_that_is_not_taken_is_noticed(line: str) -> None:
    assert problem(line) is not None
