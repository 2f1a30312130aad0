"""Everything that speaks OpenAI's format. The base URL carries the version, so `/v1` of our path is cut (reference D.1)."""

from typing import Final

from ostiary.core.providers import OpenAISettings, ProviderSpec, ProviderType
from ostiary.gateway.routes import Route, RouteTable

from .base import RuntimeProvider, keyed, passthrough

_ROUTES: Final = RouteTable(
    Route("/v1/chat/completions", "bridged", "chat_completions"),
    Route("/v1/responses", "bridged", "responses"),
    *passthrough("/v1/responses/*", "/v1/conversations", "/v1/conversations/*", "/v1/models", "/v1/models/*"),
)


def build_openai(spec: ProviderSpec, kind: ProviderType, *, allow_byok: bool) -> RuntimeProvider:
    settings = spec.settings if isinstance(spec.settings, OpenAISettings) else OpenAISettings()
    header = b"Api-Key: " if kind is ProviderType.AZURE else b"Authorization: Bearer "
    stream_usage = settings.stream_usage or ("leave" if kind is ProviderType.OPENAI_COMPAT else "splice")
    return RuntimeProvider(
        spec,
        "openai",
        _ROUTES,
        strip=b"/v1",
        keys=keyed(spec, header, allow_byok=allow_byok),
        splice_usage=stream_usage == "splice",
        selection=settings.selection,
    )
