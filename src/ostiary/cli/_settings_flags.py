"""The flags of a command that takes settings, made from the table of settings."""

import inspect
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from ostiary.config import SETTINGS, Command, ConfigError, Loaded, load
from ostiary.config.settings import default_text, flag, settings_of, variable

from .failure import Failure
from .output import note

ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="Settings file. (OSTIARY_CONFIG) \\[default: ./ostiary.toml]"),
]


def with_settings_flags(run: Callable[[Loaded], int], of: Command = "server") -> Callable[..., int]:
    """A Typer command with a flag for each setting of `of` that has one; `run` gets the settings when they can be used."""

    def command(config: Path | None = None, **flags: Any) -> int:
        given = {name: value for name, value in flags.items() if value is not None}
        return run(load_or_fail(given, config, of))

    parameters = [
        inspect.Parameter("config", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=ConfigFile),
        *(_parameter(name) for name, setting in settings_of(of).items() if setting.flag),
    ]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    command.__doc__ = run.__doc__
    command.__name__ = run.__name__
    return command


def load_or_fail(flags: Mapping[str, object], file: Path | None, of: Command = "server") -> Loaded:
    """The settings; warnings go to stderr. Raises `Failure` with every problem."""
    try:
        loaded = load(flags, os.environ, file=file, command=of)
    except ConfigError as exc:
        raise Failure(problem_text(exc.problems), 2) from None
    for warning in loaded.warnings:
        note(f"ostiary: warning: {warning}")
    return loaded


def problem_text(problems: tuple[str, ...]) -> str:
    """One problem on its line, several below each other."""
    if len(problems) == 1:
        return problems[0]
    return f"{len(problems)} settings are wrong:\n" + "\n".join(f"  {problem}" for problem in problems)


def where_given(option: str, command_path: str) -> str:
    """Where a setting is given that is no flag of this command; empty when `option` is none of a setting's."""
    commands: dict[str, Command] = {"ostiary server": "server", "ostiary gateway start": "gateway"}
    name = next((name for name in SETTINGS if flag(name) == option), "")
    if not name or command_path not in commands:
        return ""
    if name in settings_of(commands[command_path]):
        return f"everybody on the machine can read a command line: it is given as {variable(name)}"
    return f"it is of `{next(path for path, of in commands.items() if name in settings_of(of))}`"


def _parameter(name: str) -> inspect.Parameter:
    setting = SETTINGS[name]
    default = default_text(name).replace("`", "")
    text = f"{setting.help} ({variable(name)}) [default: {default}]".replace("[", "\\[")
    names = [flag(name)]
    kind: Any = str | None
    metavar: str | None = setting.kind.metavar
    if metavar == "BOOL":
        names = [f"{flag(name)}/--no-{flag(name)[2:]}"]
        kind, metavar = bool | None, None
    option = typer.Option(*names, metavar=metavar, help=text, rich_help_panel=setting.section, show_default=False)
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind, option])
