"""`ostiary config`: the settings of `ostiary server` or `ostiary gateway start`, and whether they can be used."""

import os
from typing import Annotated, Any

import typer

from ostiary.config import SETTINGS, Command, ConfigError, Loaded, load
from ostiary.config.settings import Settings, settings_of

from ._app import new_app
from ._settings_flags import ConfigFile, load_or_fail, problem_text
from .failure import Failure
from .output import AsJson, Column, note, print_json, print_table, say

app = new_app("Show the settings of `ostiary server` or `ostiary gateway start`, or check them.")

OfGateway = Annotated[bool, typer.Option("--gateway", help="Those of `ostiary gateway start`.")]


@app.command()
def show(config: ConfigFile = None, gateway: OfGateway = False, as_json: AsJson = False) -> None:
    """Every setting, its value and where it comes from. Secrets are masked.

    Examples:

      ostiary config show
      OSTIARY_WORKERS=8 ostiary config show --json
    """
    command = _command(gateway)
    loaded = load_or_fail({}, config, command)
    rows = [(name, shown(loaded.settings, name), loaded.origins.get(name, "default")) for name in settings_of(command)]
    if as_json:
        print_json(
            {
                "file": str(loaded.file) if loaded.file else None,
                "settings": [{"name": name, "value": value, "from": origin} for name, value, origin in rows],
                "provider_variables": sorted(loaded.provider_environment),
            }
        )
        return
    print_table(("SETTING", Column("VALUE", cut=True), Column("FROM", cut=True)), rows, "")
    for name in loaded.provider_environment:
        say(f"{name}  ***")
    note(f"file: {loaded.file or 'none'}")


@app.command()
def check(config: ConfigFile = None, gateway: OfGateway = False) -> None:
    """Whether `ostiary server` (or the gateway) could start with these settings; exit status 2 when not. Touches nothing.

    Examples:

      ostiary config check
      ostiary config check --config /etc/ostiary/ostiary.toml
      ostiary config check --gateway
    """
    try:
        loaded = load({}, os.environ, file=config, command=_command(gateway))
    except ConfigError as exc:
        raise Failure(problem_text(exc.problems), 2) from None
    for warning in (*loaded.warnings, *loaded.provider_warnings):
        note(f"ostiary: warning: {warning}")
    say(_summary(loaded))


def shown(settings: Settings, name: str) -> str:
    """A setting's value as it may be shown."""
    value: Any = getattr(settings, name)
    return "" if value is None and name != "metrics_listen" else str(SETTINGS[name].kind.show(value))


def _command(gateway: bool) -> Command:
    return "gateway" if gateway else "server"


def _summary(loaded: Loaded) -> str:
    number, variables = len(loaded.origins), len(loaded.provider_environment)
    return (
        f"the settings can be used: {number} {'is' if number == 1 else 'are'} given, the rest have their defaults; "
        f"provider variables: {variables}; file: {loaded.file or 'none'}"
    )
