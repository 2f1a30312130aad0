"""Anthropic. The base URL is the host's root, our path is kept whole (reference D.1)."""

from typing import Final

from ostiary.core.providers import AnthropicSettings, ProviderSpec
from ostiary.gateway.routes import Route, RouteTable

from .base import RuntimeProvider, keyed, passthrough

_ROUTES: Final = RouteTable(
    Route("/v1/messages", "bridged", "messages"),
    *passthrough("/v1/messages/count_tokens", "/v1/models", "/v1/models/*", "/api/event_logging/*"),
)


def build_anthropic(spec: ProviderSpec, *, allow_byok: bool) -> RuntimeProvider:
    settings = spec.settings if isinstance(spec.settings, AnthropicSettings) else AnthropicSettings()
    keys = keyed(spec, b"X-Api-Key: ", allow_byok=allow_byok)
    return RuntimeProvider(spec, "anthropic", _ROUTES, keys=keys, selection=settings.selection)
