"""GitHub Copilot (reference D.1, D.3).

Rules
- It has no keys: each request carries the person's own GitHub or Copilot token in `Authorization: Bearer`, which goes
  upstream untouched, beside the Ostiary token in `X-Ostiary-Token`. There is no other way in, so `allow_byok`, which is about
  people's own keys in place of ours, does not concern it.
- The base URL is the host's root and our path is kept whole: Copilot's has no `/v1`, but for Anthropic's Messages.
- Chat requests are left as they are: Copilot reports usage on chat streams unasked, in their last chunk.
"""

from typing import Final

from ostiary.core.providers import ProviderSpec
from ostiary.gateway.routes import Route, RouteTable

from .base import RuntimeProvider, passthrough

_ROUTES: Final = RouteTable(
    Route("/chat/completions", "bridged", "chat_completions"),
    Route("/responses", "bridged", "responses"),
    Route("/v1/messages", "bridged", "messages"),
    *passthrough("/models", "/models/*", "/agents/*", "/mcp", "/mcp/*", "/.well-known/*", "/_ping", "/auto"),
)


def build_copilot(spec: ProviderSpec) -> RuntimeProvider:
    return RuntimeProvider(spec, "copilot", _ROUTES, brings_own=True)
