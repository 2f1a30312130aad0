"""What the API may be asked for, checked field by field.

Rules
- Pure: nothing here reads rows, the clock or randomness.
- Every problem names its field and what is allowed; none quotes a value.
- Settings in a request replace the stored ones, but for what is never shown and thus cannot be sent back: Bedrock's
  access key and its secret stay when they are left out (an empty text clears them), and so does the external id.
- A key goes only where it was given for: a base URL of another origin takes its keys anew, unless an owner says otherwise.
- `api_keys` of a change is the whole list as it shall be, in the order of failover: `{id}` keeps a key, `{api_key}`
  adds one, what is not named is removed.
"""

from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Final, Literal, NamedTuple, get_args, get_origin, get_type_hints
from urllib.parse import urlsplit

import msgspec

from ostiary.core.provider_rules import (
    Problem,
    effective_type,
    key_problem,
    new_name_problem,
    settings_kinds,
    settings_problems,
    takes_keys,
)
from ostiary.core.providers import MAX_KEYS, BedrockSettings, ProviderSettings, ProviderType
from ostiary.core.secret import Secret

MAX_DISPLAY_NAME: Final = 128
MAX_ICON: Final = 512

_KEPT: Final = ("access_key", "access_key_secret", "external_id")
_ALL_KINDS: Final = {kind.__struct_config__.tag: kind for kind in get_args(ProviderSettings)}


class KeyEntry(NamedTuple):
    """One entry of a change's `api_keys`: exactly one of the two is to be set."""

    id: str | None = None
    api_key: Secret | None = None


class KeyPlan(NamedTuple):
    """What to do to a provider's keys."""

    add: tuple[tuple[int, Secret], ...]
    """(position, key)"""
    keep: dict[str, int]
    """id → position"""
    remove: tuple[str, ...]
    """ids"""


class KnownKey(NamedTuple):
    """A key that is there; `value` is None when it cannot be read."""

    id: str
    value: Secret | None


def check_identity(kind: str, name: str) -> list[Problem]:
    """Type and name of a new provider."""
    found = []
    allowed = ", ".join(ProviderType)
    if not kind:
        found.append(Problem("type", f"is required: one of {allowed}"))
    elif kind not in list(ProviderType):
        found.append(Problem("type", f"is not supported: it must be one of {allowed}"))
    if problem := new_name_problem(name):
        found.append(Problem("name", problem))
    return found


def check_texts(display_name: str | None, icon: str | None) -> list[Problem]:
    found = []
    for field, value, limit in (("display_name", display_name, MAX_DISPLAY_NAME), ("icon", icon, MAX_ICON)):
        if value is not None and (len(value) > limit or not value.isprintable() or value != value.strip()):
            found.append(
                Problem(field, f"must be at most {limit} printable characters, without white space around them")
            )
    return found


def check_new_keys(keys: Sequence[Secret]) -> list[Problem]:
    """The keys of a new provider."""
    return plan_keys([], [KeyEntry(api_key=key) for key in keys])[1]


def check_together(
    kind: ProviderType, base_url: str, settings: ProviderSettings | None, key_count: int
) -> list[Problem]:
    """Whether base URL, settings and keys make a provider of that type."""
    found = settings_problems(kind, base_url, settings)
    if key_count and not takes_keys(kind, settings):
        if effective_type(kind, settings) is ProviderType.BEDROCK:
            reason = "Bedrock signs requests with the AWS credentials of its settings"
        else:
            reason = "Copilot takes each person's own token"
        found.append(Problem("api_keys", f"must be empty: {reason}"))
    return found


def check_keys_stay(before: str, after: str, kept: int) -> list[Problem]:
    """Whether keys that are kept would go to another origin (scheme, host, port) than they were given for."""
    if not kept or _origin(before) == _origin(after):
        return []
    detail = (
        "is of another origin, and an admin cannot send keys there that were given for this one: give the keys anew in the "
        "same request (api_keys: [{api_key}]), or let an owner change it"
    )
    return [Problem("base_url", detail)]


def plan_keys(current: Sequence[KnownKey], wanted: Sequence[KeyEntry]) -> tuple[KeyPlan, list[Problem]]:
    """How to get from the keys that are there to those that are wanted, and what is wrong with the wish."""
    known = {key.id: key.value for key in current}
    add: list[tuple[int, Secret]] = []
    keep: dict[str, int] = {}
    found: list[Problem] = []
    for position, entry in enumerate(wanted):
        field = f"api_keys[{position}]"
        if (entry.id is None) == (entry.api_key is None):
            found.append(Problem(field, "must have exactly one of id, to keep a key, and api_key, to add one"))
        elif entry.id is not None:
            if entry.id not in known:
                found.append(Problem(field, "id is not that of a key of this provider"))
            elif entry.id in keep:
                found.append(Problem(field, "id is in the list already"))
            keep[entry.id] = position
        elif entry.api_key is not None:
            if problem := key_problem(entry.api_key.reveal()):
                found.append(Problem(field, problem))
            add.append((position, entry.api_key))
    if len(wanted) > MAX_KEYS:
        found.append(Problem("api_keys", f"are {len(wanted)}; {MAX_KEYS} are allowed"))
    kept = {value for key_id, value in known.items() if key_id in keep and value is not None}
    for position, key in add:
        if key in kept:
            found.append(Problem(f"api_keys[{position}]", "is the same key as another of the list"))
        kept.add(key)
    remove = tuple(key_id for key_id in known if key_id not in keep)
    return KeyPlan(tuple(add), keep, remove), found


def parse_settings(
    kind: ProviderType,
    raw: Mapping[str, Any],
    current: ProviderSettings | None,
    new_external_id: Callable[[], str],
) -> tuple[ProviderSettings | None, list[Problem]]:
    """The settings that a request asks for, given the stored ones; None when it has a problem."""
    struct, problem = _struct_of(kind, raw, current)
    if problem is not None or struct is None:
        return None, [problem] if problem else []
    hints = get_type_hints(struct)
    fields = [name for name in struct.__struct_fields__ if name != "version"]
    values: dict[str, Any] = {}
    found: list[Problem] = []
    for name, value in raw.items():
        field = f"settings.{name}"
        if name == "_type" or (name == "_version" and value == 1):
            continue
        if name == "_version":
            found.append(Problem(field, "must be 1, the only version there is"))
        elif name not in fields:
            found.append(Problem(field, f"is not a setting of this _type{_suggest(name, fields)}: {', '.join(fields)}"))
        elif value is not None:
            parsed, detail = _parse(hints[name], value)
            found += [Problem(field, detail)] if detail else []
            values[name] = parsed
    if struct is BedrockSettings:
        found += _keep_hidden(values, current)
    if found:
        return None, found
    settings: ProviderSettings = struct(**values)
    if isinstance(settings, BedrockSettings) and settings.role_arn and not settings.external_id:
        settings = msgspec.structs.replace(settings, external_id=new_external_id())
    return settings, []


def _origin(url: str) -> tuple[str, str | None, int | None]:
    try:
        parts = urlsplit(url)
        return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:  # a row from elsewhere: equal to no other
        return url, None, None


def _struct_of(
    kind: ProviderType, raw: Mapping[str, Any], current: ProviderSettings | None
) -> tuple[type[ProviderSettings] | None, Problem | None]:
    allowed = settings_kinds(kind)
    if not allowed:
        return None, Problem("settings", f"are not for providers of type {kind}: leave them out")
    usual = type(current) if isinstance(current, allowed) else allowed[0]
    tags = [str(struct.__struct_config__.tag) for struct in allowed]
    tag = raw.get("_type", usual.__struct_config__.tag)
    if tag not in tags:
        known = "is not for providers" if isinstance(tag, str) and tag in _ALL_KINDS else "is not known for providers"
        return None, Problem("settings._type", f"{known} of type {kind}: it must be {' or '.join(tags)}")
    return allowed[tags.index(tag)], None


def _parse(hint: Any, value: Any) -> tuple[Any, str]:  # Any: a type annotation, and JSON
    if not isinstance(value, str):
        return None, "must be a text"
    if hint is Secret:
        return Secret(value), ""
    if get_origin(hint) is Literal and value not in get_args(hint):
        return None, f"must be one of {', '.join(option for option in get_args(hint) if option)}"
    return value, ""


def _keep_hidden(values: dict[str, Any], current: ProviderSettings | None) -> list[Problem]:
    before = current if isinstance(current, BedrockSettings) else BedrockSettings()
    found = []
    if values.get("external_id", before.external_id) != before.external_id:
        found.append(Problem("settings.external_id", "is made by the server when a role_arn is set, and stays"))
    for name in _KEPT:
        values.setdefault(name, getattr(before, name))
    return found


def _suggest(word: str, known: Sequence[str]) -> str:
    close = get_close_matches(word, known, n=1)
    return f" (did you mean {close[0]}?)" if close else ""
