"""What providers of OpenAI's format serve beside chat, and where Azure's requests go."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ostiary.core.providers import OpenAISettings, ProviderKey, ProviderSpec
from ostiary.core.secret import Secret
from ostiary.gateway.providers import RuntimeProvider, build_provider

AZURE = "https://r.openai.azure.com"
TYPES = ("openai", "azure", "google", "vercel", "openrouter", "openai-compat")


def built(kind: str, base_url: str = "https://a/v1", api_version: str = "") -> RuntimeProvider:
    spec = ProviderSpec(
        "p", "p", kind, True, base_url, (ProviderKey("k", Secret("sk-1")),), OpenAISettings(api_version=api_version)
    )
    provider = build_provider(spec, allow_byok=True)
    assert provider.error == ""
    return provider


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize(
    ("path", "label", "route_kind", "upload", "model_optional"),
    [
        (b"/v1/completions", "/v1/completions", "metered", False, False),
        (b"/v1/embeddings", "/v1/embeddings", "metered", False, False),
        (b"/v1/moderations", "/v1/moderations", "metered", False, True),
        (b"/v1/images/generations", "/v1/images/generations", "metered", False, True),
        (b"/v1/images/edits", "/v1/images/edits", "metered", True, True),
        (b"/v1/images/variations", "/v1/images/variations", "metered", True, True),
        (b"/v1/images/of-tomorrow", "/v1/images/*", "metered", True, True),
        (b"/v1/audio/speech", "/v1/audio/speech", "metered", False, False),
        (b"/v1/audio/transcriptions", "/v1/audio/transcriptions", "metered", True, True),
        (b"/v1/audio/translations", "/v1/audio/translations", "metered", True, True),
        (b"/v1/audio/voices/voice_1", "/v1/audio/*", "metered", True, True),
        (b"/v1/files", "/v1/files", "metered", True, True),
        (b"/v1/files/file-1", "/v1/files/*", "passthrough", False, False),
        (b"/v1/files/file-1/content", "/v1/files/*", "passthrough", False, False),
        (b"/v1/uploads", "/v1/uploads", "metered", False, True),
        (b"/v1/uploads/upload_1/parts", "/v1/uploads/*", "metered", True, True),
        (b"/v1/batches", "/v1/batches", "metered", False, True),
        (b"/v1/batches/batch_1/cancel", "/v1/batches/*", "passthrough", False, False),
        (b"/v1/models", "/v1/models", "passthrough", False, False),
    ],
)
def test_each_type_serves_the_whole_of_it(kind, path, label, route_kind, upload, model_optional):
    route = built(kind).routes.match(path)
    assert route is not None
    assert (route.label, route.kind, route.upload, route.model_optional) == (label, route_kind, upload, model_optional)
    assert route.format == ("metered" if route_kind == "metered" else None)


def test_only_compatible_servers_are_not_asked_for_usage():
    assert [kind for kind in TYPES if not built(kind).splice_usage] == ["openai-compat"]


def test_azure_has_its_own_header_for_keys():
    (key,) = built("azure", AZURE).keys
    assert key.line == b"Api-Key: sk-1\r\n"


DEPLOYED = b"/openai/deployments/gpt-4.1/chat/completions"


@pytest.mark.parametrize(
    ("base_url", "path", "label", "upstream"),
    [
        ("/openai/v1", b"/v1/chat/completions", "/v1/chat/completions", b"/openai/v1/chat/completions"),
        ("/openai/v1/", b"/openai/v1/embeddings", "/v1/embeddings", b"/openai/v1/embeddings"),
        ("/openai/v1/", DEPLOYED, "/v1/chat/completions", DEPLOYED),
        ("/openai", DEPLOYED, "/v1/chat/completions", DEPLOYED),
        ("", DEPLOYED, "/v1/chat/completions", DEPLOYED),
        ("/openai/deployments/d", DEPLOYED, "/v1/chat/completions", DEPLOYED),
        ("/openai/deployments/d", b"/v1/embeddings", "/v1/embeddings", b"/openai/deployments/d/embeddings"),
        ("/openai/v1", b"/openai/files/file-1", "/v1/files/*", b"/openai/files/file-1"),
        ("/openai/v1", b"/openai/models", "/v1/models", b"/openai/models"),
        ("/hub/openai/v1", DEPLOYED, "/v1/chat/completions", b"/hub" + DEPLOYED),
    ],
)
def test_both_of_azures_shapes_of_paths_are_served(base_url, path, label, upstream):
    provider = built("azure", AZURE + base_url)
    route = provider.routes.match(path)
    assert route is not None
    assert route.label == label
    assert provider.upstream_path(path) == upstream


@pytest.mark.parametrize(
    "path", [b"/openai", b"/openai/deployments/d", b"/openai/deployments/d/secrets", b"/openaix/v1/models"]
)
def test_nothing_else_of_azure_is(path):
    assert built("azure", AZURE).routes.match(path) is None


def test_other_types_do_not_know_azures_paths():
    assert built("openai").routes.match(DEPLOYED) is None


@pytest.mark.parametrize(
    ("base", "setting", "query", "sent"),
    [
        ("", "2024-10-21", b"", b"?api-version=2024-10-21"),
        ("", "2024-10-21", b"?x=1", b"?x=1&api-version=2024-10-21"),
        ("", "2024-10-21", b"?", b"?api-version=2024-10-21"),
        ("", "2024-10-21", b"?x=1&api-version=preview", b"?x=1&api-version=preview"),
        ("", "2024-10-21", b"?API-Version=preview", b"?API-Version=preview"),
        ("", "2024-10-21", b"?x-api-version=1", b"?x-api-version=1&api-version=2024-10-21"),
        ("", "", b"?x=1", b"?x=1"),
        ("?api-version=2023-05-15", "2024-10-21", b"?x=1", b"?api-version=2023-05-15&x=1"),
        ("?api-version=2023-05-15", "", b"?api-version=preview", b"?api-version=preview"),
        ("?tenant=7", "2024-10-21", b"", b"?tenant=7&api-version=2024-10-21"),
    ],
)
def test_azure_gets_one_api_version(base, setting, query, sent):
    assert built("azure", f"{AZURE}/openai/v1{base}", setting).upstream_query(query) == sent


PARAMETERS = st.lists(st.sampled_from([b"api-version=2", b"Api-Version", b"xapi-version=3", b"a=b", b""]), max_size=4)


@given(PARAMETERS.map(lambda some: b"?" + b"&".join(some)), st.sampled_from(["", "?api-version=1", "?a=b"]))
def test_a_version_is_named_once_unless_the_client_names_more(query, base):
    def versions(text: bytes) -> int:
        return [part.partition(b"=")[0].lower() for part in text[1:].split(b"&")].count(b"api-version")

    sent = built("azure", f"{AZURE}/openai{base}", "2024-10-21").upstream_query(query)
    assert versions(sent) == max(1, versions(query))


@pytest.mark.parametrize(
    ("path", "model"),
    [
        (b"/openai/deployments/gpt-mine/chat/completions", "gpt-mine"),
        (b"/openai/deployments/gpt%20of%20mine/embeddings", "gpt of mine"),
        (b"/openai/deployments/%c3%bc/chat/completions", "ü"),
        (b"/openai/deployments/" + b"x" * 300 + b"/chat/completions", "x" * 256),
        (b"/openai/v1/chat/completions", ""),
        (b"/openai/models", ""),
        (b"/v1/chat/completions", ""),
    ],
)
def test_a_deployment_in_azures_path_is_the_model(path: bytes, model: str) -> None:
    assert built("azure", AZURE).model_of(path) == model
    assert built("openai").model_of(path) == ""
