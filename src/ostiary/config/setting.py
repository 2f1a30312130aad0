"""What is known of one setting beside its type and its default: it stands in the annotation of the setting's field."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from .values import Kind

Command = Literal["server", "gateway"]
"""`ostiary server` or `ostiary gateway start`."""


@dataclass(frozen=True)
class Setting:
    """An annotation of the field; it reads the field's value too."""

    section: str
    kind: Kind
    help: str
    flag: bool = True
    """False for secrets: an argument list is readable by everybody on the machine."""
    migration: tuple[tuple[str, Mapping[str, str] | None], ...] = ()
    """Names behind `MIGRATION_PREFIXES`, each with what its words mean here when they differ."""
    also: tuple[str, ...] = ()
    """Other variables it is read from when ours is not set, full names."""
    default_text: str = ""
    """For the documentation, when the default depends on the machine."""
    only: Command | None = None
    """The command that has it; None: both."""
    flag_name: str = ""
    """Its flag, when that does not follow from the field's name."""
    migration_only: Command | None = None
    """The command that reads the names of `migration`; None: whichever has the setting."""

    def __get_pydantic_core_schema__(self, _source: Any, _handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self.kind.parse)
