"""What a provider may be configured as."""

from typing import Any

import pytest

from ostiary.core.provider_rules import (
    base_url_problem,
    bedrock_region_of,
    effective_type,
    key_problem,
    new_name_problem,
    row_problem,
    settings_problems,
    takes_keys,
)
from ostiary.core.providers import AnthropicSettings, BedrockSettings, OpenAISettings, ProviderType
from ostiary.core.secret import Secret


@pytest.mark.parametrize(
    "url",
    [
        "https://api.openai.com/v1/",
        "http://127.0.0.1:4010",
        "http://[::1]:4010/v1",
        "https://under_score.internal/v1",
        "https://host.",
        "https://my.openai.azure.com/openai?api-version=2024-10-21",
        "https://xn--bcher-kva.example/v1",
    ],
)
def test_good_base_urls(url: str) -> None:
    assert base_url_problem(url) is None


@pytest.mark.parametrize(
    "url",
    [
        "",
        "api.openai.com/v1",
        "//api.openai.com",
        "ftp://a.example",
        "https://",
        "https:///v1",
        "https://a b.example",
        "https://a.example/\n",
        " https://a.example",
        "https://a.example\\@evil.example",
        "https://bücher.example",
        "https://user:password@a.example",
        "https://user@a.example",
        "https://a.example/#top",
        "https://a.example:99999",
        "https://a.example:0",
        "https://a.example:port",
        "http://[::1",
        "http://[zz]/",
        "https://-a.example",
        "https://" + "a" * 2050,
        "file:///etc/passwd",
        "javascript:alert(1)",
    ],
)
def test_bad_base_urls(url: str) -> None:
    assert base_url_problem(url)


def test_a_bad_base_url_is_not_quoted_as_it_may_hold_a_password() -> None:
    assert "hunter2" not in str(base_url_problem("https://user:hunter2@a.example"))


@pytest.mark.parametrize("key", ["", " sk", "sk\n", "s k", "schlüssel", "sk\x00", "x" * 4097])
def test_keys_that_no_header_can_carry(key: str) -> None:
    problem = key_problem(key)
    assert problem
    assert not key or key not in problem


@pytest.mark.parametrize(
    "name", ["", "A", "a_b", "a--b", "-a", "a-", "a b", "a/b", "keys", "healthz", "x" * 65, "ä", "a\n"]
)
def test_bad_names(name: str) -> None:
    assert new_name_problem(name)


def test_a_name_that_looks_like_an_id_is_refused() -> None:
    assert new_name_problem("0190a7d2-0000-7000-8000-000000000000")
    assert new_name_problem("openai-eu-2") is None


KEYS = {"access_key": Secret("AKIA"), "access_key_secret": Secret("s")}


@pytest.mark.parametrize(
    ("kind", "base_url", "settings", "fields"),
    [
        ("openai", "https://a.example", None, []),
        ("openai", "", None, ["base_url"]),
        ("openai", "https://a.example", OpenAISettings(selection="spread"), []),
        ("openai", "https://a.example", OpenAISettings(api_version="2024"), ["settings.api_version"]),
        ("azure", "https://a.example", OpenAISettings(api_version="2024-10-21"), []),
        ("azure", "https://a.example", OpenAISettings(api_version="a&b"), ["settings.api_version"]),
        ("openai", "https://a.example", BedrockSettings(region="us-east-1"), ["settings"]),
        ("anthropic", "https://a.example", AnthropicSettings(), []),
        ("anthropic", "https://a.example", OpenAISettings(), ["settings"]),
        ("anthropic", "", BedrockSettings(region="us-east-1"), []),
        ("copilot", "https://a.example", OpenAISettings(), ["settings"]),
        ("bedrock", "", None, ["base_url", "settings"]),
        ("bedrock", "", BedrockSettings(region="us-east-1"), []),
        ("bedrock", "", BedrockSettings(model="m"), ["settings"]),
        ("bedrock", "", BedrockSettings(**KEYS), ["settings.region"]),
        ("bedrock", "https://a.example", BedrockSettings(**KEYS), []),
        ("bedrock", "", BedrockSettings(region="mars"), ["settings.region"]),
        ("bedrock", "", BedrockSettings(region="us-east-1", access_key=Secret("A")), ["settings.access_key_secret"]),
        ("bedrock", "", BedrockSettings(region="us-east-1", access_key_secret=Secret("A")), ["settings.access_key"]),
        ("bedrock", "", BedrockSettings(region="us-east-1", role_arn="role"), ["settings.role_arn"]),
        ("bedrock", "", BedrockSettings(region="us-east-1", role_arn="arn:aws:iam::123456789012:role/x"), []),
        ("bedrock", "", BedrockSettings(region="us-east-1", protocol="mantle"), ["base_url"]),
        ("bedrock", "https://a.example", BedrockSettings(**KEYS, protocol="mantle"), ["settings.region"]),
        ("bedrock", "", BedrockSettings(region="us-east-1", model="a b"), ["settings.model"]),
    ],
)  # fmt: skip
def test_settings_fit_type_and_url(kind: str, base_url: str, settings: Any, fields: list[str]) -> None:
    assert [problem.field for problem in settings_problems(ProviderType(kind), base_url, settings)] == fields


def test_bedrock_settings_without_any_identity_do_not_make_a_bedrock_provider() -> None:
    models_only = BedrockSettings(model="m", small_fast_model="s")
    assert effective_type(ProviderType.ANTHROPIC, models_only) is ProviderType.ANTHROPIC
    assert effective_type(ProviderType.ANTHROPIC, BedrockSettings(region="us-east-1")) is ProviderType.BEDROCK
    assert row_problem(ProviderType.ANTHROPIC, "https://a.example", models_only) is None
    assert row_problem(ProviderType.BEDROCK, "https://a.example", models_only)


def test_who_takes_keys() -> None:
    assert takes_keys(ProviderType.OPENAI, None)
    assert takes_keys(ProviderType.ANTHROPIC, None)
    assert not takes_keys(ProviderType.ANTHROPIC, BedrockSettings(region="us-east-1"))
    assert not takes_keys(ProviderType.BEDROCK, None)
    assert not takes_keys(ProviderType.COPILOT, None)


def test_a_bedrock_endpoint_names_its_region() -> None:
    assert bedrock_region_of("https://bedrock-runtime.eu-west-1.amazonaws.com") == "eu-west-1"
    assert bedrock_region_of("https://bedrock-mantle.us-east-1.api.aws/anthropic") == "us-east-1"
    assert bedrock_region_of("https://proxy.example") == ""
    assert bedrock_region_of("") == ""
