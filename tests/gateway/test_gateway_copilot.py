"""GitHub Copilot: its routes, its paths, and no keys of ours."""

import pytest

from ostiary.core.providers import ProviderSpec
from ostiary.gateway.providers import RuntimeProvider, build_provider


def copilot(base_url: str = "https://api.individual.githubcopilot.com", **fields) -> RuntimeProvider:
    return build_provider(ProviderSpec("p", "p", "copilot", True, base_url), **({"allow_byok": True} | fields))


@pytest.mark.parametrize(
    ("path", "label", "kind", "format_"),
    [
        (b"/chat/completions", "/chat/completions", "bridged", "chat_completions"),
        (b"/responses", "/responses", "bridged", "responses"),
        (b"/v1/messages", "/v1/messages", "bridged", "messages"),
        (b"/models", "/models", "passthrough", None),
        (b"/models/session", "/models/*", "passthrough", None),
        (b"/agents/swe/custom-agents/o/r", "/agents/*", "passthrough", None),
        (b"/mcp", "/mcp", "passthrough", None),
        (b"/mcp/readonly", "/mcp/*", "passthrough", None),
        (b"/.well-known/oauth-protected-resource", "/.well-known/*", "passthrough", None),
        (b"/_ping", "/_ping", "passthrough", None),
        (b"/auto", "/auto", "passthrough", None),
    ],
)
def test_its_routes(path, label, kind, format_):
    provider = copilot("https://api.business.githubcopilot.com/below")
    route = provider.routes.match(path)
    assert route is not None
    assert (route.label, route.kind, route.format) == (label, kind, format_)
    assert provider.upstream_path(path) == b"/below" + path


@pytest.mark.parametrize("path", [b"/v1/chat/completions", b"/v1/models", b"/embeddings", b"/token", b"/", b"/models/"])
def test_what_it_does_not_serve(path):
    assert copilot().routes.match(path) is None


@pytest.mark.parametrize("allow_byok", [True, False])
def test_a_request_brings_its_own_token_and_is_not_edited(allow_byok):
    provider = copilot(allow_byok=allow_byok)
    assert (provider.error, provider.family, provider.brings_own, provider.keys) == ("", "copilot", True, ())
    assert not provider.splice_usage
