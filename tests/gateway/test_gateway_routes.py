"""Which path goes where, as a table."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ostiary.core.providers import RESERVED_NAMES, ProviderKey, ProviderSpec
from ostiary.core.secret import Secret
from ostiary.gateway.providers import build_provider
from ostiary.gateway.routes import Target, path_problem, split_path


def provider(kind: str, base_url: str, **fields: object):
    spec = ProviderSpec(
        id="p", name="p", type=kind, enabled=True, base_url=base_url, keys=(ProviderKey("k", Secret("sk-1")),), **fields
    )
    return build_provider(spec, allow_byok=True)


@pytest.mark.parametrize(
    ("path", "standalone", "target"),
    [
        (b"/api/v2/ai-gateway/openai/v1/responses", False, Target("openai", b"/v1/responses")),
        (b"/api/v2/aibridge/openai/v1/responses", False, Target("openai", b"/v1/responses")),
        (b"/api/v2/ai-gateway/openai", False, Target("openai", b"")),
        (b"/openai/v1/responses", False, None),
        (b"/openai/v1/responses", True, Target("openai", b"/v1/responses")),
        (b"/api/v2/ai/providers", False, None),
        (b"/api/v2/ai/providers", True, None),
        (b"/", True, None),
        (b"/docs", True, None),
    ],
)
def test_a_path_names_its_provider(path, standalone, target):
    assert split_path(path, standalone=standalone) == target


@pytest.mark.parametrize("name", sorted(RESERVED_NAMES))
def test_reserved_names_belong_to_the_control_plane(name):
    assert split_path(f"/api/v2/ai-gateway/{name}/x".encode(), standalone=True) is None


@pytest.mark.parametrize(
    ("kind", "base_url", "rest", "query", "route", "upstream"),
    [
        ("openai", "https://a/v1/", b"/v1/chat/completions", b"", "bridged", b"/v1/chat/completions"),
        ("openai", "https://a/v1", b"/v1/responses", b"?x=1", "bridged", b"/v1/responses?x=1"),
        ("openai", "https://a/v1", b"/v1/responses/resp_1/cancel", b"", "passthrough", b"/v1/responses/resp_1/cancel"),
        ("openai", "https://a/v1", b"/v1/responses/compact", b"", "metered", b"/v1/responses/compact"),
        (
            "azure",
            "https://a/openai/v1",
            b"/openai/v1/responses/compact",
            b"",
            "metered",
            b"/openai/v1/responses/compact",
        ),
        ("google", "https://a/v1beta/openai/", b"/v1/models", b"", "passthrough", b"/v1beta/openai/models"),
        ("azure", "https://a/o?api-version=1", b"/v1/models", b"?y=2", "passthrough", b"/o/models?api-version=1&y=2"),
        ("vercel", "https://a/v1/", b"/v1/embeddings", b"", "metered", b"/v1/embeddings"),
        ("openrouter", "https://a/api/v1", b"/v1/completions", b"", "metered", b"/api/v1/completions"),
        ("openai-compat", "http://a:8000", b"/v1/models/x", b"", "passthrough", b"/models/x"),
        ("anthropic", "https://a/", b"/v1/messages", b"?beta=true", "bridged", b"/v1/messages?beta=true"),
        ("anthropic", "https://a/x", b"/v1/messages/count_tokens", b"", "passthrough", b"/x/v1/messages/count_tokens"),
        ("anthropic", "https://a", b"/api/event_logging/batch", b"", "passthrough", b"/api/event_logging/batch"),
    ],
)
def test_a_route_is_joined_to_the_base_url(kind, base_url, rest, query, route, upstream):
    built = provider(kind, base_url)
    assert built.error == ""
    found = built.routes.match(rest)
    assert found is not None
    assert found.kind == route
    assert built.upstream_path(rest) + built.upstream_query(query) == upstream


@pytest.mark.parametrize("rest", [b"", b"/", b"/v1", b"/v1/", b"/v1/models/", b"/v1/realtime", b"/chat/completions"])
def test_an_unknown_route_matches_nothing(rest):
    assert provider("openai", "https://a/v1").routes.match(rest) is None


@pytest.mark.parametrize(
    "rest",
    [
        b"/v1/models/../x",
        b"/v1/models/%2e%2e/x",
        b"/v1/models/%2E./x",
        b"/v1/models/a%2fb",
        b"/v1/models/a%5Cb",
        b"/v1//models",
        b"/v1/models/..",
        b"/v1/models/.",
        b"/v1/models/a%252fb",
        b"/v1/models/a\\b",
        b"/v1/models/%00",
    ],
)
def test_a_path_that_could_mean_another_upstream_is_refused(rest):
    assert path_problem(rest) is not None


@pytest.mark.parametrize("rest", [b"/v1/models/ft:gpt-4%3Ax", b"/v1/models/a.b..c", b"/v1/models/%20"])
def test_an_ordinary_path_passes(rest):
    assert path_problem(rest) is None


@given(st.binary(max_size=40))
def test_no_path_passes_that_decodes_to_a_traversal(raw):
    from urllib.parse import unquote_to_bytes

    rest = b"/" + raw
    if path_problem(rest) is None:
        segments = unquote_to_bytes(rest).split(b"/")
        assert b".." not in segments
        assert b"." not in segments


@pytest.mark.parametrize(
    ("kind", "base_url", "keys", "reason"),
    [
        ("openai", "ftp://x", (Secret("k"),), "base_url"),
        ("openai", "https://user:pw@x/", (Secret("k"),), "user name"),
        ("nonsense", "https://x", (Secret("k"),), "unknown provider type"),
        ("openai", "https://x", (Secret("k"), Secret("k")), "duplicate key"),
        ("openai", "https://x", (Secret("k\r\nX: y"),), "no header can carry"),
    ],
)
def test_a_row_that_cannot_be_built_says_why_and_serves_nothing(kind, base_url, keys, reason):
    spec = ProviderSpec(
        "p", "p", kind, True, base_url, keys=tuple(ProviderKey(f"k{i}", key) for i, key in enumerate(keys))
    )
    built = build_provider(spec, allow_byok=True)
    assert built.status == "error"
    assert reason in built.error
    assert "pw" not in built.error
    assert built.routes.match(b"/v1/models") is None


def test_a_provider_without_keys_needs_byok():
    spec = ProviderSpec("p", "p", "anthropic", True, "https://x")
    assert build_provider(spec, allow_byok=True).error == ""
    assert "bring-your-own-key is off" in build_provider(spec, allow_byok=False).error
