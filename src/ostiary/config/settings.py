"""Every setting of `ostiary server` and `ostiary gateway start`, once: name, kind, default, what it does.

The flag, the environment variable and the key in `ostiary.toml` follow from a field's name: `drain_timeout` is
`--drain-timeout`, `OSTIARY_DRAIN_TIMEOUT` and `drain_timeout = "5m"`. Help texts, error messages, `ostiary config show`
and docs/configuration.md are made from this table. A setting that has no effect yet does not stand in it.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from pydantic_settings import BaseSettings, SettingsConfigDict

from .call_settings import CallSettings
from .installation_settings import InstallationSettings
from .setting import Command, Setting

PREFIX = "OSTIARY_"
MIGRATION_PREFIXES = ("CODER_AI_GATEWAY_", "CODER_AIBRIDGE_")
"""Read for those who come from there (reference H); ours wins nothing over them: setting both differently is an error."""


class Settings(CallSettings, InstallationSettings, BaseSettings):
    """The settings of a command that serves, parsed and checked one by one. Made by `ostiary.config.load`.

    The fields of the last base come first (pydantic), in error messages and in the documentation too.
    """

    model_config = SettingsConfigDict(frozen=True, extra="forbid", validate_default=False, hide_input_in_errors=True)


def _table() -> dict[str, Setting]:
    found = {}
    for name, field in Settings.model_fields.items():
        (setting,) = (item for item in field.metadata if isinstance(item, Setting))
        found[name] = setting
    return found


SETTINGS: Mapping[str, Setting] = _table()
"""By field name, in the order of the documentation."""


def settings_of(command: Command) -> dict[str, Setting]:
    """Those a command has."""
    return {name: setting for name, setting in SETTINGS.items() if setting.only in (None, command)}


def variable(name: str) -> str:
    """The environment variable of a setting."""
    return PREFIX + name.upper()


def flag(name: str) -> str:
    """The flag of a setting."""
    return SETTINGS[name].flag_name or "--" + name.replace("_", "-")


def default_text(name: str) -> str:
    """The default as documentation shows it."""
    setting = SETTINGS[name]
    if setting.default_text:
        return setting.default_text
    shown = setting.kind.show(Settings.model_fields[name].default)
    return f"`{shown}`" if shown else "none"


def default_data_dir(environ: Mapping[str, str], command: Command = "server") -> Path:
    """`/var/lib/ostiary` for root, else below the user's data home. A gateway has its own: a directory serves one."""
    name = "ostiary" if command == "server" else "ostiary-gateway"
    if os.geteuid() == 0:
        return Path("/var/lib") / name
    home = environ.get("XDG_DATA_HOME", "")
    base = Path(home) if home.startswith("/") else Path("~/.local/share").expanduser()
    return base / name
