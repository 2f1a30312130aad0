"""What seeding does about each wanted provider, given the rows there are.

    no row of that name                       Insert
    only deleted rows of that name            Skip      somebody deleted it: it stays deleted
    a live row that cannot be used            Skip      it is reported as misconfigured, not compared
    a live row with the same identity         Keep      its keys, settings, display name and `enabled` are its own
    a live row with another identity          Drift     the start stops, or goes on with a warning
    a demo row at another port of ours        Repoint
    another row of a demo provider's name     Skip

Rules
- Pure. The plan depends on names, not on the order of anything.
- The identity of a provider is type, base URL and Bedrock region (reference C.6): what else differs was changed on
  purpose, by rotating a key or choosing a model, and never stops a start.
- No step changes a row that somebody made: rows are only added. The one exception are rows of `--demo`, whose address
  changes with the fake provider's port. A demo row is known by its display name `DEMO_DISPLAY_NAME`, which nobody
  else gives; whoever renames it makes it theirs. It is moved only from one loopback port to another.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from msgspec import Struct

from ostiary.core.provider_env import DesiredProvider
from ostiary.core.provider_rules import effective_type
from ostiary.core.providers import BedrockSettings, ProviderSettings

DEMO_DISPLAY_NAME: Final = "Ostiary demo (fake provider)"

_LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")


class ExistingProvider(Struct, frozen=True):
    """A row as far as seeding looks at it."""

    id: str
    name: str
    type: str
    """Effective type: `bedrock` also for an `anthropic` row that Bedrock serves."""
    base_url: str
    bedrock_region: str = ""
    display_name: str = ""
    deleted: bool = False
    unreadable: str = ""
    """Why the row cannot be read or used."""

    @classmethod
    def from_api(cls, shown: Mapping[str, Any]) -> "ExistingProvider":
        """From the JSON of `GET /api/v2/ai/providers?deleted=true`."""
        settings = shown["settings"] or {}
        return cls(
            id=shown["id"],
            name=shown["name"],
            type=shown["effective_type"],
            base_url=shown["base_url"],
            bedrock_region=settings.get("region", "") if settings.get("_type") == "bedrock" else "",
            display_name=shown["display_name"],
            deleted=shown["deleted"],
            unreadable=shown["status"]["reason"],
        )


class Difference(NamedTuple):
    """A field that is one thing in the database and another in the environment."""

    field: str
    database: str
    environment: str

    def __str__(self) -> str:
        return f"{self.field} is {self.database or 'not set'} in the database and {self.environment or 'not set'} here"


class Insert(Struct, frozen=True, tag=True):
    """Add it."""

    provider: DesiredProvider

    @property
    def name(self) -> str:
        return self.provider.name


class Keep(Struct, frozen=True, tag=True):
    """It is there."""

    name: str
    id: str


class Skip(Struct, frozen=True, tag=True):
    """Leave it alone."""

    name: str
    reason: str


class Drift(Struct, frozen=True, tag=True):
    """It is there, and another one."""

    name: str
    id: str
    source: str
    differences: tuple[Difference, ...]

    def __str__(self) -> str:
        differences = ", ".join(map(str, self.differences))
        return f'AI provider "{self.name}" of {self.source} differs from the one in the database: {differences}'


class Repoint(Struct, frozen=True, tag=True):
    """Move a demo row to the port of this start."""

    name: str
    id: str
    base_url: str


Step = Insert | Keep | Skip | Drift | Repoint


def plan(desired: Iterable[DesiredProvider], rows: Iterable[ExistingProvider]) -> list[Step]:
    """A step for each wanted provider, by name. Names of `desired` are unique."""
    by_name: dict[str, ExistingProvider] = {}
    for row in rows:
        if row.name not in by_name or not row.deleted:
            by_name[row.name] = row
    wanted = sorted(desired, key=lambda provider: provider.name)
    return [_step(provider, by_name.get(provider.name)) for provider in wanted]


def bedrock_region(settings: ProviderSettings | None) -> str:
    return settings.region if isinstance(settings, BedrockSettings) else ""


def _step(wanted: DesiredProvider, row: ExistingProvider | None) -> Step:
    if row is None:
        return Insert(wanted)
    if row.deleted:
        return Skip(wanted.name, "it was deleted, and stays so: add it through the API to have it again")
    if row.unreadable:
        return Skip(wanted.name, f"its row cannot be compared: {row.unreadable}")
    differences = tuple(
        Difference(field, database, environment)
        for field, database, environment in (
            ("type", row.type, effective_type(wanted.type, wanted.settings).value),
            ("base_url", row.base_url, wanted.base_url),
            ("bedrock_region", row.bedrock_region, bedrock_region(wanted.settings)),
        )
        if database != environment
    )
    if not differences:
        return Keep(wanted.name, row.id)
    if wanted.demo:
        if row.display_name == DEMO_DISPLAY_NAME and _moved(differences):
            return Repoint(wanted.name, row.id, wanted.base_url)
        return Skip(wanted.name, "there is another provider of that name")
    return Drift(wanted.name, row.id, wanted.source, differences)


def _moved(differences: tuple[Difference, ...]) -> bool:
    """Whether nothing but the loopback port differs."""
    if [difference.field for difference in differences] != ["base_url"]:
        return False
    old, new = (urlsplit(url) for url in differences[0][1:])
    return (
        old.hostname in _LOOPBACK
        and new.hostname in _LOOPBACK
        and (old.scheme, old.path, old.query) == (new.scheme, new.path, new.query)
    )
