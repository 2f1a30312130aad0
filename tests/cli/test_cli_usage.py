"""The command line without a server: help, wrong usage, quick start."""

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from typer.main import get_command

from ostiary.cli._lazy import LazyCommand
from ostiary.cli.root import ENTRIES, app, run


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command and group with the words that name it."""
    if isinstance(command, LazyCommand):
        command = command.load()
    yield path, command
    for name, child in getattr(command, "commands", {}).items():
        yield from commands(child, (*path, name))


ALL = dict(commands(get_command(app)))
LEAVES = {path: command for path, command in ALL.items() if not hasattr(command, "commands")}


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_every_command_has_help(path: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*path, "--help"]) == 0
    assert "Usage: ostiary" in capsys.readouterr().out


@pytest.mark.parametrize("path", LEAVES, ids=" ".join)
def test_help_shows_no_value_behind_a_flag_that_takes_none(
    path: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    run([*path, "--help"])
    shown = [line for line in capsys.readouterr().out.splitlines() if "<bool>" in line]
    assert all("--help" in line for line in shown), shown


@pytest.mark.parametrize("path", LEAVES, ids=" ".join)
def test_every_command_shows_an_example_that_names_it(path: tuple[str, ...]) -> None:
    text = LEAVES[path].help
    assert "Example" in text
    assert f"ostiary {' '.join(path)}" in text.partition("Example")[2]


@pytest.mark.parametrize(
    "path", [path for path in LEAVES if path[-1] in ("list", "show", "status", "plan")], ids=" ".join
)
def test_what_shows_something_shows_it_as_json_too(path: tuple[str, ...]) -> None:
    assert "--json" in [option for parameter in LEAVES[path].params for option in parameter.opts]


def test_no_option_takes_a_secret_as_its_value() -> None:
    """But for `gateway start --key`, which the design names; its help points to the file and the variable."""
    own = {("gateway", "start"): {"--key"}}
    options = {
        option
        for path, command in LEAVES.items()
        for parameter in command.params
        for option in parameter.opts
        if option not in own.get(path, set())
    }
    assert not options & {"--key", "--token", "--encryption-keys", "--bootstrap-token", "--password", "--https-proxy"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["servr"], "did you mean"),
        (["providers", "lst"], "did you mean"),
        (["config", "show", "--jsn"], "did you mean --json?"),
        (["server", "--lisen", ":1"], "did you mean --listen?"),
        (["server", "--url", "http://x"], "no such option: --url; it is of `ostiary gateway start` (see"),
        (["gateway", "start", "--retention", "5d"], "no such option: --retention; it is of `ostiary server` (see"),
        (["server", "--encryption-keys", "x"], "can read a command line: it is given as OSTIARY_ENCRYPTION_KEYS"),
        (["server", "--public-url", "x"], "no such option: --public-url (see"),
        (["tokens", "list", "--retention", "5d"], "no such option: --retention (see"),
        (["users", "create"], "missing argument"),
        (
            ["users", "create", "x", "--role", "king"],
            "Invalid value for '--role': 'king' is not one of 'owner', 'admin', 'auditor', 'member'",
        ),
    ],
)
def test_wrong_usage_is_one_line_with_status_2(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("ostiary: ")
    assert captured.err.count("\n") == 1
    assert said in captured.err.lower() or said in captured.err


def test_help_imports_only_what_it_shows() -> None:
    code = (
        "import sys\n"
        "from ostiary.cli.root import run\n"
        "run(['--help'])\n"
        "heavy = {'httpx', 'pydantic', 'pydantic_settings', 'fastapi', 'sqlalchemy', 'connectrpc', 'structlog'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"
    for name in ENTRIES:
        assert name in done.stdout


def test_config_check_tells_what_the_start_will_warn_about(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OSTIARY_OPENAI_BASE_URL", "https://a.example/v1/")
    assert run(["config", "check"]) == 0
    assert "warning: OSTIARY_OPENAI_BASE_URL has no effect without OSTIARY_OPENAI_KEY" in capsys.readouterr().err


def command(*words: str, **options: Any) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run([sys.executable, "-m", "ostiary", *words], stderr=subprocess.PIPE, check=False, **options)


def test_a_full_disk_is_one_line_and_status_1() -> None:
    with open("/dev/full", "wb") as full:
        done = command("config", "show", stdout=full)
    assert (done.returncode, done.stderr.count(b"ostiary: standard output cannot be written: no space left")) == (1, 1)
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr


def test_a_reader_that_has_seen_enough_is_no_failure() -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    done = command("server", "--help", stdout=theirs)
    os.close(theirs)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_closed_standard_output_fails_nothing() -> None:
    closed = (
        "import os, sys; os.close(1); os.execv(sys.executable, [sys.executable, '-m', 'ostiary', 'config', 'show'])"
    )
    done = subprocess.run([sys.executable, "-c", closed], stderr=subprocess.PIPE, check=False)
    assert (done.returncode, b"Traceback" in done.stderr) == (0, False)


def test_a_terminal_of_few_characters_gets_a_question_mark_for_the_rest() -> None:
    done = command("server", "--help", stdout=subprocess.PIPE, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0
    assert b"Start gateway" in done.stdout


def test_a_bad_setting_ends_the_server_with_status_2(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OSTIARY_IDLE_TIMEOUT", "5")
    assert run(["server", "--workers", "none"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "ostiary: 2 settings are wrong:",
        "  --workers must be a whole number from 1 to 256; it is 'none'",
        "  OSTIARY_IDLE_TIMEOUT must be a duration from 1s to 1d, e.g. 5s, 10m, 1h or 60d; it is '5'",
    ]
