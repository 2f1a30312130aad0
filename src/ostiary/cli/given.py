"""What a person hands to a command that must not stand on the command line, or is too big for it."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import typer

from ostiary.core.secret import Secret

from .failure import Failure, wrong_usage

_MAX_FILE = 1024 * 1024


def read_text(path: str, flag: str) -> str:
    """The content of a file; `-` is standard input."""
    if path == "-":
        return sys.stdin.read(_MAX_FILE)
    try:
        content = Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise Failure(f"{flag}: {path} cannot be read: {getattr(exc, 'strerror', None) or 'not UTF-8'}") from None
    if len(content) > _MAX_FILE:
        raise Failure(f"{flag}: {path} is larger than 1 MiB")
    return content


def read_secret_file(path: str, flag: str) -> Secret:
    """A secret alone in a file, white space around it ignored."""
    value = read_text(path, flag).strip()
    if not value:
        raise Failure(f"{flag}: {'standard input' if path == '-' else path} is empty")
    return Secret(value)


def read_secret_variable(name: str, flag: str) -> Secret:
    """A secret in an environment variable."""
    value = os.environ.get(name, "").strip()
    if not value:
        raise Failure(f"{flag}: the environment variable {name} is not set")
    return Secret(value)


def read_keys(variables: list[str], files: list[str]) -> list[Secret]:
    """Provider keys from `--key-env` and `--key-file`, in that order; a file may hold several, one a line."""
    keys = [read_secret_variable(name, "--key-env") for name in variables]
    for path in files:
        lines = [line.strip() for line in read_text(path, "--key-file").splitlines()]
        found = [Secret(line) for line in lines if line]
        if not found:
            raise Failure(f"--key-file: {'standard input' if path == '-' else path} is empty")
        keys += found
    return keys


def read_json_object(path: str, flag: str) -> dict[str, Any]:
    """A JSON object from a file; `-` is standard input."""
    try:
        value = json.loads(read_text(path, flag))
    except ValueError as exc:
        raise Failure(f"{flag}: not JSON: {exc}") from None
    if not isinstance(value, dict):
        raise Failure(f"{flag}: must be a JSON object")
    return value


def prompt_secret(question: str) -> Secret | None:
    """Asks on the terminal without echo; None for an empty answer or when there is no terminal."""
    if not sys.stdin.isatty():
        return None
    answer = typer.prompt(question, default="", hide_input=True, show_default=False, err=True).strip()
    return Secret(answer) if answer else None


def confirm(question: str, yes: bool) -> None:
    """Asks before something that cannot be undone; `--yes` answers. Without a terminal `--yes` is required."""
    if yes:
        return
    if not sys.stdin.isatty():
        wrong_usage(f"{question} Say --yes: there is no terminal to ask on")
    typer.confirm(question, abort=True, err=True)
