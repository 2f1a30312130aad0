"""Commands whose module is imported when they run, or when their own help is asked for."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any, NamedTuple, cast

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command


class Entry(NamedTuple):
    """A top-level command: where its `app` is, the line that help shows, the group it stands in."""

    module: str
    help: str
    panel: str


class LazyCommand(TyperCommand):
    """Stands for a command of another module until its arguments are parsed."""

    def __init__(self, name: str, entry: Entry) -> None:
        super().__init__(name, help=entry.help, rich_help_panel=entry.panel)
        self._module = entry.module

    def load(self) -> TyperCommand | TyperGroup:
        app = cast("typer.Typer", import_module(self._module).app)
        command = cast("TyperCommand | TyperGroup", get_command(app))
        command.name = self.name
        _show_flags_as_such(command)
        return command

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """The context of the real command: the group runs whatever command the context names."""
        return self.load().make_context(info_name, args, parent, **extra)


def _show_flags_as_such(command: Any) -> None:
    """In help a flag has no type behind it: `--demo <bool>` reads as if it took a value, which is refused."""
    for parameter in command.params:
        if getattr(parameter, "is_flag", False) and parameter.metavar is None:
            parameter.metavar = ""
    for child in getattr(command, "commands", {}).values():
        _show_flags_as_such(child)


def lazy_group(entries: Mapping[str, Entry]) -> type[TyperGroup]:
    """A group class for `typer.Typer(cls=...)` that has these commands."""

    class Root(TyperGroup):
        def __init__(self, **attrs: Any) -> None:
            attrs["commands"] = {name: LazyCommand(name, entry) for name, entry in entries.items()}
            super().__init__(**attrs)

    return Root
