"""The providers that the environment describes (reference C.6), read and checked.

Two forms, under each of the prefixes OSTIARY_, CODER_AI_GATEWAY_ and CODER_AIBRIDGE_:

    <prefix>OPENAI_KEY, <prefix>ANTHROPIC_BASE_URL, <prefix>BEDROCK_REGION ...   the providers `openai` and `anthropic`
    <prefix>PROVIDER_<N>_<FIELD>                                               any number of them, N from 0 on

Rules
- Pure: the same variables give the same providers, sorted by name, in whatever order they come.
- An empty variable is an unset one: compose files and charts pass them on empty.
- A mistake that would make a wrong provider is an error that names the variable and what is allowed; what has no
  effect, or was meant for something that is not there, is a warning. Neither quotes the value of a secret.
- One provider is described in one place: under two prefixes, or in both forms, it is an error naming both.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import Final

from msgspec import Struct

from .provider_rules import (
    DEFAULT_BASE_URLS,
    base_url_problem,
    bedrock_region_of,
    key_problem,
    new_name_problem,
    settings_problems,
)
from .providers import MAX_KEYS, BedrockSettings, ProviderSettings, ProviderType
from .secret import Secret

PREFIXES: Final = ("OSTIARY_", "CODER_AI_GATEWAY_", "CODER_AIBRIDGE_")

_OPENAI: Final = ("OPENAI_KEY", "OPENAI_BASE_URL")
_ANTHROPIC: Final = ("ANTHROPIC_KEY", "ANTHROPIC_BASE_URL")
_BEDROCK: Final = (
    "BEDROCK_BASE_URL",
    "BEDROCK_REGION",
    "BEDROCK_ACCESS_KEY",
    "BEDROCK_ACCESS_KEY_SECRET",
    "BEDROCK_MODEL",
    "BEDROCK_SMALL_FAST_MODEL",
)
_SINGLE: Final = _OPENAI + _ANTHROPIC + _BEDROCK
_FIELDS: Final = (
    *("TYPE", "NAME", "KEY", "KEYS", "BASE_URL"),
    *_BEDROCK,
    *("BEDROCK_ACCESS_KEYS", "BEDROCK_ACCESS_KEY_SECRETS"),
)
_REMOVED_FIELDS: Final = {"DUMP_DIR": "there is one dump directory for all providers: set OSTIARY_DUMP_DIR"}
_INDEXED: Final = re.compile(r"PROVIDER_([0-9]+)_(.*)", re.DOTALL)
_MAX_INDEX_DIGITS: Final = 4
_SETTINGS_VARIABLES: Final = {
    "base_url": "BEDROCK_BASE_URL",
    **{f"settings.{field.removeprefix('BEDROCK_').lower()}": field for field in _BEDROCK[1:]},
}
"""Which variable a field of the API is, for messages."""


class ProviderEnvError(ValueError):
    """The environment describes providers wrongly. One line, naming the variable; holds no secret."""


class DesiredProvider(Struct, frozen=True):
    """A provider somebody wants to be there."""

    name: str
    type: ProviderType
    base_url: str
    keys: tuple[Secret, ...] = ()
    settings: ProviderSettings | None = None
    display_name: str = ""
    source: str = ""
    """What describes it, for messages: OSTIARY_PROVIDER_0_*."""
    demo: bool = False
    """One of `--demo`, not of the environment."""


class ProviderEnvironment(Struct, frozen=True):
    """What the environment says."""

    providers: tuple[DesiredProvider, ...] = ()
    """By name."""
    warnings: tuple[str, ...] = ()


def read_provider_environment(variables: Mapping[str, Secret]) -> ProviderEnvironment:
    """The providers of `variables`; others than the provider variables of our prefixes are not looked at.

    Raises `ProviderEnvError`.
    """
    reader = _Reader(variables)
    return ProviderEnvironment(tuple(reader.providers()), tuple(reader.warnings))


class _Group:
    """The variables that describe one provider, by what stands behind their common beginning; empty ones left out."""

    def __init__(self, beginning: str, variables: Mapping[str, str]) -> None:
        self.beginning = beginning
        self._values = {field: value for field, value in sorted(variables.items()) if value}

    def __bool__(self) -> bool:
        return bool(self._values)

    def __contains__(self, field: str) -> bool:
        return field in self._values

    @property
    def source(self) -> str:
        return f"{self.beginning}*"

    def variable(self, field: str) -> str:
        return self.beginning + field

    def any_variable(self) -> str:
        return self.variable(next(iter(self._values)))

    def text(self, field: str, default: str = "") -> str:
        """The value; raises for white space around it."""
        value = self._values.get(field, default)
        if value != value.strip():
            raise ProviderEnvError(f"{self.variable(field)} has white space around its value: remove it")
        return value

    def given(self, fields: Iterable[str]) -> list[str]:
        return [field for field in fields if field in self._values]

    def key_list(self, single: str, several: str = "") -> tuple[str, list[str]]:
        """The key of one field, or the keys of its plural, and the variable they stand in."""
        if single in self and several in self:
            raise ProviderEnvError(
                f"{self.variable(single)} and {self.variable(several)} are both set: keep one of them"
            )
        field = several if several in self else single
        value = self._values.get(field, "")
        keys = [key for key in value.split(",") if key] if field == several else [value] * bool(value)
        variable = self.variable(field)
        for number, key in enumerate(keys, 1):
            which = f"key {number} of {variable}" if len(keys) > 1 else variable
            if problem := key_problem(key):
                raise ProviderEnvError(f"{which} {problem}")
            if key in keys[: number - 1]:
                raise ProviderEnvError(f"{which} is the same as key {keys.index(key) + 1}: remove one of them")
        if len(keys) > MAX_KEYS:
            raise ProviderEnvError(f"{variable} holds {len(keys)} keys; {MAX_KEYS} are allowed")
        return variable, keys


class _Reader:
    def __init__(self, variables: Mapping[str, Secret]) -> None:
        self.warnings: list[str] = []
        single: dict[str, dict[str, str]] = {prefix: {} for prefix in PREFIXES}
        indexed: dict[str, dict[int, dict[str, str]]] = {prefix: {} for prefix in PREFIXES}
        for name, secret in sorted(variables.items()):
            split = _split(name)
            if split is None:
                continue
            prefix, rest = split
            if found := _INDEXED.fullmatch(rest):
                field = _known_field(name, found)
                indexed[prefix].setdefault(int(found[1]), {})[field] = secret.reveal()
            elif rest in _SINGLE:
                single[prefix][rest] = secret.reveal()
            elif secret:
                self._warn_unknown(name, prefix)
        self._single = {prefix: _Group(prefix, fields) for prefix, fields in single.items()}
        self._indexed = {
            prefix: {index: _Group(f"{prefix}PROVIDER_{index}_", fields) for index, fields in groups.items()}
            for prefix, groups in indexed.items()
        }

    def providers(self) -> list[DesiredProvider]:
        found: dict[str, DesiredProvider] = {}
        for provider in [*self._single_providers(), *self._indexed_providers()]:
            other = found.setdefault(provider.name, provider)
            if other is not provider:
                self._check_same(other, provider)
        return [found[name] for name in sorted(found)]

    # --- one provider by variables of its own

    def _single_providers(self) -> Iterator[DesiredProvider]:
        openai = self._only_prefix("openai", _OPENAI)
        if openai is not None and (provider := self._single_openai(openai)):
            yield provider
        anthropic = self._only_prefix("anthropic", _ANTHROPIC + _BEDROCK)
        if anthropic is not None and (provider := self._single_anthropic(anthropic)):
            yield provider

    def _only_prefix(self, name: str, fields: tuple[str, ...]) -> _Group | None:
        """The group that describes the provider; raises when two prefixes do."""
        found = [(group, given) for group in self._single.values() if (given := group.given(fields))]
        if len(found) > 1:
            variables = " and ".join(group.variable(given[0]) for group, given in found)
            raise ProviderEnvError(f"{variables} describe one provider, {name!r}, under two prefixes: keep one of them")
        return found[0][0] if found else None

    def _single_openai(self, group: _Group) -> DesiredProvider | None:
        if "OPENAI_KEY" not in group:
            self._warn_no_effect(group, _OPENAI, group.variable("OPENAI_KEY"))
            return None
        base_url = group.text("OPENAI_BASE_URL", DEFAULT_BASE_URLS[ProviderType.OPENAI])
        _check_url(group, "OPENAI_BASE_URL", base_url)
        keys = _secrets(group.key_list("OPENAI_KEY")[1])
        return DesiredProvider(
            "openai", ProviderType.OPENAI, base_url, keys, None, "openai", f"{group.beginning}OPENAI_*"
        )

    def _single_anthropic(self, group: _Group) -> DesiredProvider | None:
        kind = ProviderType.ANTHROPIC
        bedrock = self._bedrock(group, kind)
        if bedrock is not None:
            if "ANTHROPIC_KEY" in group:
                self.warnings.append(
                    f"{group.variable('ANTHROPIC_KEY')} is ignored because "
                    f"{group.variable(group.given(_BEDROCK)[0])} configures Bedrock: remove one of them"
                )
            self._warn_ignored_url(group, "ANTHROPIC_BASE_URL")
            base_url, settings = bedrock
            source = f"{group.beginning}BEDROCK_*"
            return DesiredProvider("anthropic", kind, base_url, (), settings, "anthropic", source)
        if "ANTHROPIC_KEY" not in group:
            needed = f"{group.variable('ANTHROPIC_KEY')} or {group.variable('BEDROCK_REGION')}"
            self._warn_no_effect(group, _ANTHROPIC + _BEDROCK, needed)
            return None
        self._warn_no_effect(group, _BEDROCK, group.variable("BEDROCK_REGION"))
        base_url = group.text("ANTHROPIC_BASE_URL", DEFAULT_BASE_URLS[kind])
        _check_url(group, "ANTHROPIC_BASE_URL", base_url)
        keys = _secrets(group.key_list("ANTHROPIC_KEY")[1])
        source = f"{group.beginning}ANTHROPIC_*"
        return DesiredProvider("anthropic", kind, base_url, keys, None, "anthropic", source)

    # --- any number of them by index

    def _indexed_providers(self) -> Iterator[DesiredProvider]:
        for prefix, groups in self._indexed.items():
            present = {index: group for index, group in groups.items() if group}
            for expected, index in enumerate(sorted(present)):
                if index != expected:
                    raise ProviderEnvError(
                        f"{present[index].any_variable()} is set, but there is no {prefix}PROVIDER_{expected}_TYPE: "
                        "the numbers must count up from 0 without a gap"
                    )
            for index in sorted(present):
                if provider := self._indexed_provider(present[index]):
                    yield provider

    def _indexed_provider(self, group: _Group) -> DesiredProvider | None:
        kind = self._kind(group)
        if kind is None:
            return None
        name = group.text("NAME", kind.value)
        if problem := new_name_problem(name):
            raise ProviderEnvError(f"{group.variable('NAME')} {problem}")
        bedrock = self._bedrock(group, kind) if kind in (ProviderType.ANTHROPIC, ProviderType.BEDROCK) else None
        if bedrock is None and kind is ProviderType.BEDROCK:
            raise ProviderEnvError(f"{group.variable('BEDROCK_REGION')} is required with TYPE bedrock, e.g. us-east-1")
        key_variable, keys = group.key_list("KEY", "KEYS")
        if bedrock is not None:
            base_url, settings = bedrock
            self._warn_ignored_keys(key_variable, keys, "Bedrock signs its requests with AWS credentials")
            self._warn_ignored_url(group, "BASE_URL")
            return DesiredProvider(name, kind, base_url, (), settings, name, group.source)
        self._check_no_bedrock(group, kind)
        base_url = group.text("BASE_URL", DEFAULT_BASE_URLS.get(kind, ""))
        _check_url(group, "BASE_URL", base_url)
        if kind is ProviderType.COPILOT:
            self._warn_ignored_keys(key_variable, keys, "Copilot takes each person's own token")
            keys = []
        return DesiredProvider(name, kind, base_url, _secrets(keys), None, name, group.source)

    def _kind(self, group: _Group) -> ProviderType | None:
        text = group.text("TYPE").lower()
        allowed = ", ".join(ProviderType)
        if not text:
            raise ProviderEnvError(f"{group.variable('TYPE')} is required: one of {allowed}")
        try:
            return ProviderType(text)
        except ValueError:
            self.warnings.append(
                f"{group.source} is skipped: {group.variable('TYPE')} is not supported{_suggest(text, ProviderType)}; "
                f"supported are {allowed}"
            )
            return None

    def _check_no_bedrock(self, group: _Group, kind: ProviderType) -> None:
        given = group.given((*_BEDROCK, "BEDROCK_ACCESS_KEYS", "BEDROCK_ACCESS_KEY_SECRETS"))
        if given and kind is not ProviderType.ANTHROPIC:
            raise ProviderEnvError(
                f"{group.variable(given[0])} does not apply to TYPE {kind}: it is for TYPE bedrock or anthropic"
            )
        self._warn_no_effect(group, given, group.variable("BEDROCK_REGION"))

    # --- Bedrock

    def _bedrock(self, group: _Group, kind: ProviderType) -> tuple[str, BedrockSettings] | None:
        """Base URL and settings of a Bedrock provider; None when it is not configured: model names alone never do."""
        base_url = group.text("BEDROCK_BASE_URL")
        access_key = self._first_key(group, "BEDROCK_ACCESS_KEY", "BEDROCK_ACCESS_KEYS")
        access_key_secret = self._first_key(group, "BEDROCK_ACCESS_KEY_SECRET", "BEDROCK_ACCESS_KEY_SECRETS")
        settings = BedrockSettings(
            region=group.text("BEDROCK_REGION") or bedrock_region_of(base_url),
            model=group.text("BEDROCK_MODEL"),
            small_fast_model=group.text("BEDROCK_SMALL_FAST_MODEL"),
            access_key=access_key,
            access_key_secret=access_key_secret,
        )
        if not (base_url or settings.configured):
            return None
        for problem in settings_problems(kind, base_url, settings):
            if problem.field != "settings":
                raise ProviderEnvError(f"{group.variable(_SETTINGS_VARIABLES[problem.field])} {problem.detail}")
        if not settings.configured:
            region = group.variable("BEDROCK_REGION")
            if kind is ProviderType.BEDROCK:
                raise ProviderEnvError(
                    f"{region} is required: {group.variable('BEDROCK_BASE_URL')} does not name a region"
                )
            self.warnings.append(
                f"{group.variable('BEDROCK_BASE_URL')} alone does not make requests go to Bedrock: set {region} too"
            )
        elif settings.lacking:
            names = " and ".join(group.variable(_SETTINGS_VARIABLES[f"settings.{name}"]) for name in settings.lacking)
            self.warnings.append(f"without {names} every request to this provider is answered with 503")
        return base_url, settings

    def _first_key(self, group: _Group, single: str, several: str) -> Secret:
        variable, keys = group.key_list(single, several)
        if len(keys) > 1:
            self.warnings.append(f"only the first key of {variable} is used: Bedrock takes one")
        return Secret(keys[0] if keys else "")

    # --- the same provider twice

    def _check_same(self, one: DesiredProvider, other: DesiredProvider) -> None:
        name = one.name
        prefixes = [next(prefix for prefix in PREFIXES if p.source.startswith(prefix)) for p in (one, other)]
        where = f"{one.source} and {other.source}"
        if prefixes[0] != prefixes[1]:
            raise ProviderEnvError(f"{where} describe one provider, {name!r}, under two prefixes: keep one of them")
        if "PROVIDER_" not in one.source:
            raise ProviderEnvError(f"{where} both describe the provider {name!r}: remove one or set another NAME")
        fields = [
            field for field in ("type", "base_url", "keys", "settings") if getattr(one, field) != getattr(other, field)
        ]
        if fields:
            raise ProviderEnvError(
                f"{where} describe the provider {name!r} with different {', '.join(fields)}: remove one or set another NAME"
            )

    # --- warnings

    def _warn_unknown(self, name: str, prefix: str) -> None:
        close = _suggest(name, [prefix + field for field in _SINGLE])
        self.warnings.append(f"{name} is not a variable of ours and has no effect{close}")

    def _warn_no_effect(self, group: _Group, fields: Iterable[str], needed: str) -> None:
        given = group.given(fields)
        if given:
            names = ", ".join(group.variable(field) for field in given)
            self.warnings.append(f"{names} has no effect without {needed}")

    def _warn_ignored_keys(self, variable: str, keys: list[str], reason: str) -> None:
        if keys:
            self.warnings.append(f"the {_count(keys)} of {variable} will not be used: {reason}")

    def _warn_ignored_url(self, group: _Group, field: str) -> None:
        if field in group:
            used = group.variable("BEDROCK_BASE_URL")
            self.warnings.append(
                f"{group.variable(field)} is ignored because Bedrock is configured: set {used} instead"
            )


def _split(name: str) -> tuple[str, str] | None:
    for prefix in PREFIXES:
        if name.startswith(prefix):
            rest = name[len(prefix) :]
            return (prefix, rest) if rest.startswith(("PROVIDER_", "OPENAI_", "ANTHROPIC_", "BEDROCK_")) else None
    return None


def _known_field(name: str, found: re.Match[str]) -> str:
    index, field = found[1], found[2]
    if len(index) > _MAX_INDEX_DIGITS or str(int(index)) != index:
        raise ProviderEnvError(f"{name}: the number must be written as 0, 1, 2 ... without leading zeros, below 10000")
    if field in _FIELDS:
        return field
    if field in _REMOVED_FIELDS:
        raise ProviderEnvError(f"{name} is not supported: {_REMOVED_FIELDS[field]}")
    beginning = name[: len(name) - len(field)]
    close = _suggest(name, [beginning + known for known in _FIELDS])
    raise ProviderEnvError(f"{name} is unknown{close}; known behind {beginning} are {', '.join(_FIELDS)}")


def _check_url(group: _Group, field: str, base_url: str) -> None:
    if problem := base_url_problem(base_url):
        raise ProviderEnvError(f"{group.variable(field)} {problem}")


def _secrets(keys: Iterable[str]) -> tuple[Secret, ...]:
    return tuple(Secret(key) for key in keys)


def _count(keys: list[str]) -> str:
    return "key" if len(keys) == 1 else f"{len(keys)} keys"


def _suggest(word: str, known: Iterable[str]) -> str:
    close = get_close_matches(word, list(known), n=1, cutoff=0.7)
    return f" (did you mean {close[0]}?)" if close else ""
