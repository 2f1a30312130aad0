"""What a provider may be configured as, for whoever writes a row: the API, the environment, the reader of rows.

Each rule gives what is wrong as the end of a sentence that begins with the field's name and says what is allowed, or
None. None of them quotes a value: it may be a secret.
"""

import re
from ipaddress import IPv6Address
from typing import Final, NamedTuple
from urllib.parse import SplitResult, urlsplit
from uuid import UUID

from .providers import (
    AnthropicSettings,
    BedrockSettings,
    OpenAISettings,
    ProviderSettings,
    ProviderType,
    name_problem,
)

DEFAULT_BASE_URLS: Final = {
    ProviderType.OPENAI: "https://api.openai.com/v1/",
    ProviderType.ANTHROPIC: "https://api.anthropic.com/",
    ProviderType.COPILOT: "https://api.individual.githubcopilot.com",
    ProviderType.GOOGLE: "https://generativelanguage.googleapis.com/v1beta/openai/",
    ProviderType.OPENROUTER: "https://openrouter.ai/api/v1/",
    ProviderType.VERCEL: "https://ai-gateway.vercel.sh/v1/",
}
"""Of the types whose address is the same for everybody."""

MAX_URL: Final = 2048
MAX_KEY: Final = 4096
MAX_SETTING: Final = 2048

_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9._-]*[A-Za-z0-9_])?\.?")
_REGION = re.compile(r"[a-z]{2,}(-[a-z0-9]+)+")
_ROLE = re.compile(r"arn:aws[a-z-]*:iam::[0-9]{12}:role/[\x21-\x7e]+")
_API_VERSION = re.compile(r"[A-Za-z0-9.-]{1,64}")
_VISIBLE = re.compile(r"[\x21-\x7e]*")
_BEDROCK_HOST = re.compile(r"bedrock-(?:runtime|mantle)(?:-fips)?\.([a-z0-9-]+)\.(?:amazonaws\.com(?:\.cn)?|api\.aws)")

EXAMPLE_URL: Final = "https://api.openai.com/v1/"


class Problem(NamedTuple):
    field: str
    detail: str


def new_name_problem(name: str) -> str | None:
    """`name_problem`, and a new name may not be mistaken for an id either."""
    if problem := name_problem(name):
        return problem
    try:
        UUID(name)
    except ValueError:
        return None
    return "must not be a UUID: providers are found by id or name"


def base_url_problem(url: str) -> str | None:
    """Whether requests can be sent below `url`: absolute, http or https, without credentials or a fragment.

    A query is sent with every request (Azure's `?api-version=`).
    """
    if not url:
        return f"is required: an absolute http or https URL, e.g. {EXAMPLE_URL}"
    if len(url) > MAX_URL:
        return f"must be {MAX_URL} characters or fewer"
    if not _VISIBLE.fullmatch(url) or "\\" in url:
        return "must be plain ASCII without white space"
    parts = _split(url)
    if parts is None or parts.scheme not in ("http", "https") or not _is_host(parts.hostname):
        return f"must be an absolute http or https URL, e.g. {EXAMPLE_URL}"
    if "@" in parts.netloc:
        return "must not hold a user or a password: a credential belongs into the keys"
    if "#" in url:
        return "must not have a fragment (#...): it is never sent"
    return None


def key_problem(key: str) -> str | None:
    """Whether `key` can be sent in a header."""
    if not key:
        return "must not be empty"
    if key != key.strip():
        return "has white space around it: remove it"
    if len(key) > MAX_KEY:
        return f"must be {MAX_KEY} characters or fewer"
    if not _VISIBLE.fullmatch(key):
        return "must be visible ASCII characters without white space"
    return None


def takes_keys(kind: ProviderType, settings: ProviderSettings | None) -> bool:
    """Whether requests are sent with a key of the pool: Bedrock signs them, Copilot's bring their own."""
    return kind is not ProviderType.COPILOT and effective_type(kind, settings) is not ProviderType.BEDROCK


def effective_type(kind: ProviderType, settings: ProviderSettings | None) -> ProviderType:
    """`bedrock` for an `anthropic` provider with Bedrock settings that are configured (reference C.3)."""
    if kind is ProviderType.ANTHROPIC and isinstance(settings, BedrockSettings) and settings.configured:
        return ProviderType.BEDROCK
    return kind


def settings_kinds(kind: ProviderType) -> tuple[type[ProviderSettings], ...]:
    """The settings a provider of that type may have, its usual ones first."""
    if kind is ProviderType.ANTHROPIC:
        return AnthropicSettings, BedrockSettings
    if kind is ProviderType.BEDROCK:
        return (BedrockSettings,)
    return () if kind is ProviderType.COPILOT else (OpenAISettings,)


def settings_problems(kind: ProviderType, base_url: str, settings: ProviderSettings | None) -> list[Problem]:
    """What is wrong with base URL and settings together, by field of the API."""
    bedrock = isinstance(settings, BedrockSettings)
    found: list[Problem] = []
    if base_url or not bedrock:
        detail = base_url_problem(base_url)
        found += [Problem("base_url", detail)] if detail else []
    if settings is not None and not isinstance(settings, settings_kinds(kind)):
        return [*found, Problem("settings", _wrong_kind(kind))]
    if isinstance(settings, OpenAISettings) and settings.api_version:
        if kind is not ProviderType.AZURE:
            found.append(Problem("settings.api_version", "is for providers of type azure only"))
        elif not _API_VERSION.fullmatch(settings.api_version):
            found.append(Problem("settings.api_version", "must be letters, digits, dots and hyphens, e.g. 2024-10-21"))
    if isinstance(settings, BedrockSettings):
        found += _bedrock_problems(base_url, settings)
    elif kind is ProviderType.BEDROCK:
        found.append(Problem("settings", "are required for type bedrock: at least _type bedrock and a region"))
    return found


def row_problem(kind: ProviderType, base_url: str, settings: ProviderSettings | None) -> str | None:
    """Why a stored provider cannot be served, as a sentence; None when it can. Laxer than what may be written anew."""
    if settings is not None and not isinstance(settings, settings_kinds(kind)):
        return f"settings {_wrong_kind(kind)}"
    bedrock = isinstance(settings, BedrockSettings) and settings.configured
    if kind is ProviderType.BEDROCK and not bedrock:
        return "no Bedrock settings are configured: set a region, a role or an access key"
    detail = base_url_problem(base_url) if base_url or not bedrock else None
    return f"base_url {detail}" if detail else None


def bedrock_region_of(base_url: str) -> str:
    """The AWS region that a Bedrock endpoint names; empty when it names none."""
    parts = _split(base_url)
    found = _BEDROCK_HOST.fullmatch(parts.hostname or "") if parts else None
    return found[1] if found else ""


def _bedrock_problems(base_url: str, settings: BedrockSettings) -> list[Problem]:
    found: list[Problem] = []
    if not settings.configured:
        found.append(Problem("settings", "need at least one of region, role_arn, access_key with access_key_secret"))
    elif not settings.region and not base_url:
        found.append(Problem("settings.region", "is required when there is no base URL, e.g. us-east-1"))
    if settings.region and not _REGION.fullmatch(settings.region):
        found.append(Problem("settings.region", "must be an AWS region, e.g. us-east-1"))
    if bool(settings.access_key) != bool(settings.access_key_secret):
        lacking = "access_key_secret" if settings.access_key else "access_key"
        found.append(Problem(f"settings.{lacking}", "is required: access_key and access_key_secret go together"))
    if settings.role_arn and not _ROLE.fullmatch(settings.role_arn):
        found.append(
            Problem("settings.role_arn", "must be the ARN of a role, e.g. arn:aws:iam::123456789012:role/name")
        )
    if settings.protocol == "mantle":
        if not settings.region:
            found.append(Problem("settings.region", "is required with protocol mantle"))
        if not base_url:
            example = "https://bedrock-mantle.us-east-1.api.aws/anthropic"
            found.append(Problem("base_url", f"is required with protocol mantle, e.g. {example}"))
    for name in ("access_key", "access_key_secret"):
        secret = getattr(settings, name).reveal()
        detail = key_problem(secret) if secret else None
        found += [Problem(f"settings.{name}", detail)] if detail else []
    for name in ("model", "small_fast_model", "external_id"):
        value = getattr(settings, name)
        if len(value) > MAX_SETTING or not _VISIBLE.fullmatch(value):
            found.append(Problem(f"settings.{name}", f"must be at most {MAX_SETTING} visible ASCII characters"))
    return found


def _wrong_kind(kind: ProviderType) -> str:
    allowed = [kind_of.__struct_config__.tag for kind_of in settings_kinds(kind)]
    if not allowed:
        return f"are not for providers of type {kind}: leave them out"
    return f"of a provider of type {kind} must have _type {' or '.join(map(str, allowed))}"


def _split(url: str) -> SplitResult | None:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    return parts if port != 0 else None


def _is_host(host: str | None) -> bool:
    if not host:
        return False
    if ":" not in host:
        return bool(_HOST.fullmatch(host))
    try:
        IPv6Address(host)
    except ValueError:
        return False
    return True
