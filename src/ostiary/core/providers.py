"""Providers as every part of the system knows them: types, settings, and the spec a gateway serves from.

One path: environment → seed → rows → GetAIProviders → `ProviderSpec` → runtime provider → snapshot.
"""

import re
from enum import StrEnum
from typing import Literal

import msgspec
from msgspec import Struct

from .secret import Secret, secret_dec_hook, secret_enc_hook


class ProviderType(StrEnum):
    """Reference C.1. The wire family of each is `wire_family`."""

    OPENAI = "openai"
    ANTHROPIC = "anthropic"
    BEDROCK = "bedrock"
    COPILOT = "copilot"
    AZURE = "azure"
    GOOGLE = "google"
    VERCEL = "vercel"
    OPENROUTER = "openrouter"
    OPENAI_COMPAT = "openai-compat"


WireFamily = Literal["openai", "anthropic", "copilot"]


def wire_family(kind: ProviderType) -> WireFamily:
    """What is recorded as `provider`: whose format the provider speaks."""
    if kind in (ProviderType.ANTHROPIC, ProviderType.BEDROCK):
        return "anthropic"
    return "copilot" if kind is ProviderType.COPILOT else "openai"


MAX_KEYS = 32
"""Keys a provider's pool may hold."""

NAME_PATTERN = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
RESERVED_NAMES = frozenset(
    (
        *("keys", "interceptions", "sessions", "models", "clients", "journals", "replicas", "spend", "serve", "proxy"),
        *("storage", "traffic", "api", "healthz", "readyz", "metrics", "docs", "openapi"),
    )
)
"""Refused as provider names because they are paths of ours."""


def name_problem(name: str) -> str | None:
    """What is wrong with a provider's name, as a sentence that says what is allowed; None when nothing is."""
    if not name:
        return "is required"
    if len(name) > 64:
        return "must be 64 characters or fewer"
    if not NAME_PATTERN.fullmatch(name):
        return "must be lowercase letters, digits and single hyphens between them, e.g. openai-eu"
    if name in RESERVED_NAMES:
        return f"is reserved, it is a path of Ostiary's own; not allowed are: {', '.join(sorted(RESERVED_NAMES))}"
    return None


class _Settings(Struct, frozen=True, tag_field="_type", omit_defaults=True):
    """Stored as JSON with `_type` and `_version` beside the fields (reference C.2)."""


class OpenAISettings(_Settings, frozen=True, tag="openai", omit_defaults=True):
    """Settings of everything that speaks OpenAI's format."""

    version: int = msgspec.field(name="_version", default=1)
    stream_usage: Literal["", "splice", "leave"] = ""
    """Whether chat streams get `include_usage` spliced in. Empty: by type (`leave` for openai-compat)."""
    selection: Literal["primary", "spread"] = "primary"
    api_version: str = ""
    """Azure: the `api-version` query parameter."""


class AnthropicSettings(_Settings, frozen=True, tag="anthropic", omit_defaults=True):
    version: int = msgspec.field(name="_version", default=1)
    selection: Literal["primary", "spread"] = "primary"


class BedrockSettings(_Settings, frozen=True, tag="bedrock", omit_defaults=True):
    """Reference C.2, E.1. Of an `anthropic` row too: then that row is served by Bedrock."""

    version: int = msgspec.field(name="_version", default=1)
    region: str = ""
    model: str = ""
    small_fast_model: str = ""
    access_key: Secret = Secret("")
    access_key_secret: Secret = Secret("")
    role_arn: str = ""
    external_id: str = ""
    protocol: Literal["", "invoke-model", "mantle"] = ""

    @property
    def configured(self) -> bool:
        """The model names never count: they have deployment defaults (reference C.2)."""
        return bool(self.region or self.role_arn or self.access_key or self.access_key_secret)

    @property
    def lacking(self) -> tuple[str, ...]:
        """The models that requests need and that are not set; Mantle takes the client's."""
        needed = () if self.protocol == "mantle" else ("model", "small_fast_model")
        return tuple(name for name in needed if not getattr(self, name))


ProviderSettings = OpenAISettings | AnthropicSettings | BedrockSettings


class ProviderKey(Struct, frozen=True):
    """One key of the pool, in the order of failover."""

    id: str
    value: Secret


class ProviderSpec(Struct, frozen=True):
    """One row of the snapshot. A row that could not be read carries `error` and answers 503 with it."""

    id: str
    name: str
    type: str
    """A `ProviderType` value; kept as text because a newer control plane may know more of them."""
    enabled: bool
    base_url: str
    keys: tuple[ProviderKey, ...] = ()
    """Only of enabled providers."""
    settings: ProviderSettings | None = None
    error: str = ""


_settings_encoder = msgspec.json.Encoder(enc_hook=secret_enc_hook)
_settings_decoder: msgspec.json.Decoder[ProviderSettings] = msgspec.json.Decoder(
    ProviderSettings, dec_hook=secret_dec_hook
)


class SettingsError(ValueError):
    """Stored settings that cannot be used; the text says why."""


def encode_settings(settings: ProviderSettings | None) -> bytes | None:
    """JSON for the vault. Holds secrets in clear: encrypt it, never log it. None stays NULL."""
    if settings is None:
        return None
    fields: dict[str, object] = msgspec.json.decode(_settings_encoder.encode(settings))
    return msgspec.json.encode({"_type": fields.pop("_type"), "_version": settings.version, **fields})


def decode_settings(stored: bytes | None) -> ProviderSettings | None:
    """The reverse of `encode_settings`. Raises `SettingsError`; its text never holds a stored value."""
    if stored is None or stored == b"null":
        return None
    try:
        head = msgspec.json.decode(stored)
    except msgspec.DecodeError as exc:
        raise SettingsError("settings are not JSON") from exc
    if not isinstance(head, dict) or not isinstance(head.get("_type"), str):
        raise SettingsError("settings have no _type")
    kind, version = head["_type"], head.get("_version")
    if kind not in ("openai", "anthropic", "bedrock"):
        raise SettingsError(f"settings have the unknown _type {kind!r}; known are openai, anthropic, bedrock")
    if version != 1:
        raise SettingsError(f'unsupported "{kind}" settings version {version} (expected 1)')
    try:
        return _settings_decoder.decode(stored)
    except msgspec.ValidationError as exc:
        raise SettingsError(f"settings of _type {kind!r} do not fit its fields") from exc
