"""Providers as the environment describes them (reference C.6)."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ostiary.core.provider_env import (
    PREFIXES,
    DesiredProvider,
    ProviderEnvError,
    ProviderEnvironment,
    read_provider_environment,
)
from ostiary.core.providers import MAX_KEYS, BedrockSettings, ProviderType
from ostiary.core.secret import Secret


def read(**variables: str) -> ProviderEnvironment:
    return read_provider_environment({name: Secret(value) for name, value in variables.items()})


def only(**variables: str) -> DesiredProvider:
    [provider] = read(**variables).providers
    return provider


def revealed(provider: DesiredProvider) -> list[str]:
    return [key.reveal() for key in provider.keys]


def error(**variables: str) -> str:
    with pytest.raises(ProviderEnvError) as caught:
        read(**variables)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- one provider by variables of its own


@pytest.mark.parametrize("prefix", PREFIXES)
def test_openai_and_anthropic_have_variables_of_their_own_under_each_prefix(prefix: str) -> None:
    variables = {
        f"{prefix}OPENAI_KEY": "sk-1,2",
        f"{prefix}ANTHROPIC_KEY": "ak",
        f"{prefix}ANTHROPIC_BASE_URL": "http://a",
    }
    anthropic, openai = read(**variables).providers
    assert (openai.name, openai.type, openai.base_url) == ("openai", ProviderType.OPENAI, "https://api.openai.com/v1/")
    assert revealed(openai) == ["sk-1,2"]
    assert (anthropic.name, anthropic.base_url, revealed(anthropic)) == ("anthropic", "http://a", ["ak"])
    assert openai.display_name == "openai"
    assert openai.source == f"{prefix}OPENAI_*"


def test_without_a_key_nothing_is_described_and_that_is_said() -> None:
    found = read(OSTIARY_OPENAI_BASE_URL="https://a.example", OSTIARY_BEDROCK_MODEL="m", OSTIARY_OPENAI_KEY="")
    assert found.providers == ()
    assert len(found.warnings) == 2
    assert "OSTIARY_OPENAI_BASE_URL has no effect without OSTIARY_OPENAI_KEY" in found.warnings


def test_bedrock_wins_over_an_anthropic_key() -> None:
    found = read(
        OSTIARY_ANTHROPIC_KEY="ak",
        OSTIARY_BEDROCK_REGION="us-east-1",
        OSTIARY_BEDROCK_ACCESS_KEY="AKIA",
        OSTIARY_BEDROCK_ACCESS_KEY_SECRET="secret",
        OSTIARY_BEDROCK_MODEL="m",
    )
    [provider] = found.providers
    assert (provider.name, provider.type, provider.base_url, provider.keys) == (
        "anthropic",
        ProviderType.ANTHROPIC,
        "",
        (),
    )
    assert provider.settings == BedrockSettings(
        region="us-east-1", access_key=Secret("AKIA"), access_key_secret=Secret("secret"), model="m"
    )
    ignored, lacking = sorted(found.warnings)
    assert ignored.startswith("OSTIARY_ANTHROPIC_KEY is ignored because OSTIARY_BEDROCK_")
    assert lacking == "without OSTIARY_BEDROCK_SMALL_FAST_MODEL every request to this provider is answered with 503"


def test_a_bedrock_endpoint_alone_configures_bedrock_when_it_names_its_region() -> None:
    found = read(OSTIARY_BEDROCK_BASE_URL="https://bedrock-runtime.eu-west-1.amazonaws.com")
    assert found.providers[0].settings == BedrockSettings(region="eu-west-1")
    [lacking] = found.warnings
    assert lacking.startswith("without OSTIARY_BEDROCK_MODEL and OSTIARY_BEDROCK_SMALL_FAST_MODEL every request")
    both = {"OSTIARY_BEDROCK_MODEL": "m", "OSTIARY_BEDROCK_SMALL_FAST_MODEL": "s"}
    assert read(OSTIARY_BEDROCK_REGION="eu-west-1", **both).warnings == ()
    unknown = read(OSTIARY_BEDROCK_BASE_URL="https://proxy.example")
    assert unknown.providers[0].settings == BedrockSettings()
    assert "set OSTIARY_BEDROCK_REGION too" in unknown.warnings[0]


# --- any number of them by index


def test_indexed_providers_come_sorted_by_name_with_their_defaults() -> None:
    found = read(
        OSTIARY_PROVIDER_0_TYPE="OpenAI",
        OSTIARY_PROVIDER_0_KEYS="a,,b",
        OSTIARY_PROVIDER_1_TYPE="openai-compat",
        OSTIARY_PROVIDER_1_NAME="local",
        OSTIARY_PROVIDER_1_BASE_URL="http://127.0.0.1:8000/v1",
        OSTIARY_PROVIDER_2_TYPE="anthropic",
        OSTIARY_PROVIDER_2_NAME="claude",
        OSTIARY_PROVIDER_2_KEY="k",
    )
    assert [(provider.name, provider.type.value, revealed(provider)) for provider in found.providers] == [
        ("claude", "anthropic", ["k"]),
        ("local", "openai-compat", []),
        ("openai", "openai", ["a", "b"]),
    ]
    assert found.warnings == ()


def test_ten_providers_count_as_numbers_not_as_text() -> None:
    variables = {f"OSTIARY_PROVIDER_{n}_TYPE": "openai" for n in range(12)}
    variables |= {f"OSTIARY_PROVIDER_{n}_NAME": f"p{n}" for n in range(12)}
    assert len(read(**variables).providers) == 12


def test_an_indexed_bedrock_takes_the_first_of_several_access_keys() -> None:
    found = read(
        OSTIARY_PROVIDER_0_TYPE="bedrock",
        OSTIARY_PROVIDER_0_BASE_URL="https://ignored.example",
        OSTIARY_PROVIDER_0_KEYS="a,b",
        OSTIARY_PROVIDER_0_BEDROCK_REGION="us-east-1",
        OSTIARY_PROVIDER_0_BEDROCK_ACCESS_KEYS="one,two",
        OSTIARY_PROVIDER_0_BEDROCK_ACCESS_KEY_SECRETS="s1,s2",
    )
    [provider] = found.providers
    assert (provider.type, provider.base_url, provider.keys) == (ProviderType.BEDROCK, "", ())
    assert isinstance(provider.settings, BedrockSettings)
    assert provider.settings.access_key == Secret("one")
    assert provider.settings.access_key_secret == Secret("s1")
    assert len(found.warnings) == 5
    assert "the 2 keys of OSTIARY_PROVIDER_0_KEYS will not be used" in " ".join(found.warnings)


def test_an_indexed_anthropic_with_bedrock_keeps_its_type() -> None:
    provider = only(OSTIARY_PROVIDER_0_TYPE="anthropic", OSTIARY_PROVIDER_0_BEDROCK_REGION="us-east-1")
    assert provider.type is ProviderType.ANTHROPIC
    assert provider.settings == BedrockSettings(region="us-east-1")


def test_copilot_needs_no_key_and_ignores_one_with_a_warning() -> None:
    found = read(CODER_AIBRIDGE_PROVIDER_0_TYPE="copilot", CODER_AIBRIDGE_PROVIDER_0_KEY="k")
    assert found.providers[0].keys == ()
    assert "CODER_AIBRIDGE_PROVIDER_0_KEY" in found.warnings[0]


def test_an_unsupported_type_is_skipped_with_a_warning() -> None:
    found = read(OSTIARY_PROVIDER_0_TYPE="opnai", OSTIARY_PROVIDER_1_TYPE="openai")
    assert [provider.name for provider in found.providers] == ["openai"]
    assert "did you mean openai?" in found.warnings[0]
    assert "OSTIARY_PROVIDER_0_TYPE" in found.warnings[0]


def test_the_same_provider_twice_counts_once() -> None:
    same = {"TYPE": "openai", "NAME": "x", "KEY": "k"}
    variables = {f"OSTIARY_PROVIDER_{n}_{field}": value for n in (0, 1) for field, value in same.items()}
    assert only(**variables).name == "x"


def test_other_names_of_our_prefix_are_warned_of_and_foreign_ones_not_read() -> None:
    found = read(
        OSTIARY_OPENAI_KEI="sk",
        OSTIARY_PROVIDER_SERVICE_HOST="10.0.0.1",
        OSTIARY_LISTEN="x",
        OPENAI_API_KEY="sk",
        CODER_AI_GATEWAY_PROXY_ENABLED="true",
    )
    assert found.providers == ()
    assert [warning.split()[0] for warning in found.warnings] == ["OSTIARY_OPENAI_KEI", "OSTIARY_PROVIDER_SERVICE_HOST"]
    assert "did you mean OSTIARY_OPENAI_KEY?" in found.warnings[0]


# --- mistakes


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"0_KEYY": "x"}, ["0_KEYY", "did you mean OSTIARY_PROVIDER_0_KEY?", "BASE_URL"]),
        ({"0_": "x"}, ["0_ is unknown"]),
        ({"00_TYPE": "openai"}, ["00_TYPE"]),
        ({"99999_TYPE": "openai"}, ["99999_TYPE"]),
        ({"0_DUMP_DIR": "/d"}, ["0_DUMP_DIR", "OSTIARY_DUMP_DIR"]),
        ({"1_TYPE": "openai"}, ["1_TYPE", "0_TYPE"]),
        ({"0_KEY": "k"}, ["0_TYPE is required", "openai, anthropic"]),
        ({"0_TYPE": "openai", "0_NAME": "A"}, ["0_NAME", "lowercase"]),
        ({"0_TYPE": "openai", "0_NAME": "keys"}, ["0_NAME", "reserved"]),
        ({"0_TYPE": "openai", "0_BASE_URL": "a"}, ["0_BASE_URL", "http"]),
        ({"0_TYPE": "openai-compat"}, ["0_BASE_URL is required"]),
        ({"0_TYPE": " openai"}, ["0_TYPE", "white space"]),
        ({"0_TYPE": "openai", "0_KEY": "sk-1 "}, ["0_KEY", "white space"]),
        ({"0_TYPE": "openai", "0_KEYS": "a, b"}, ["key 2 of OSTIARY_PROVIDER_0_KEYS", "white space"]),
        ({"0_TYPE": "openai", "0_KEYS": "a,b,a"}, ["key 3", "0_KEYS", "key 1"]),
        ({"0_TYPE": "openai", "0_KEYS": ",".join(map(str, range(MAX_KEYS + 1)))}, ["0_KEYS", str(MAX_KEYS)]),
        ({"0_TYPE": "openai", "0_KEY": "a", "0_KEYS": "b"}, ["0_KEY", "0_KEYS"]),
        ({"0_TYPE": "openai", "0_BEDROCK_REGION": "us-east-1"}, ["0_BEDROCK_REGION", "openai"]),
        ({"0_TYPE": "bedrock"}, ["0_BEDROCK_REGION is required"]),
        ({"0_TYPE": "bedrock", "0_BEDROCK_BASE_URL": "https://a.example"}, ["0_BEDROCK_REGION is required"]),
        ({"OSTIARY_BEDROCK_REGION": "us-east-1", "OSTIARY_BEDROCK_ACCESS_KEY": "A"}, ["ACCESS_KEY_SECRET is required"]),
        ({"OSTIARY_BEDROCK_REGION": "moon"}, ["OSTIARY_BEDROCK_REGION", "us-east-1"]),
        ({"OSTIARY_OPENAI_KEY": "\tsk"}, ["OSTIARY_OPENAI_KEY", "white space"]),
        ({"OSTIARY_OPENAI_KEY": "sk", "OSTIARY_OPENAI_BASE_URL": "https://u:p@a"}, ["OSTIARY_OPENAI_BASE_URL", "password"]),
        ({"OSTIARY_OPENAI_KEY": "a", "CODER_AIBRIDGE_OPENAI_KEY": "a"}, ["OSTIARY_OPENAI_KEY", "CODER_AIBRIDGE_OPENAI_KEY"]),
        ({"OSTIARY_OPENAI_KEY": "a", "CODER_AI_GATEWAY_OPENAI_KEY": "a"}, ["OSTIARY_OPENAI_KEY", "CODER_AI_GATEWAY_"]),
        ({"OSTIARY_OPENAI_KEY": "a", "0_TYPE": "openai"}, ["OSTIARY_OPENAI_*", "0_*"]),
        ({"0_TYPE": "openai", "CODER_AI_GATEWAY_PROVIDER_0_TYPE": "openai"}, ["0_*", "CODER_AI_GATEWAY_PROVIDER_0_*"]),
        ({"0_TYPE": "openai", "CODER_AIBRIDGE_OPENAI_KEY": "a"}, ["0_*", "CODER_AIBRIDGE_OPENAI_*", "two prefixes"]),
        ({"0_TYPE": "openai", "1_TYPE": "openai", "1_KEY": "k"}, ["0_*", "1_*", "keys"]),
    ],
)  # fmt: skip
def test_a_mistake_stops_with_one_line_that_names_the_variable(variables: dict[str, str], named: list[str]) -> None:
    message = error(
        **{"OSTIARY_PROVIDER_" + name if name[0].isdigit() else name: variables[name] for name in variables}
    )
    for part in named:
        assert part in message


def test_no_message_holds_a_secret() -> None:
    secret = "sk-secret-value"
    for variables in (
        {"OSTIARY_OPENAI_KEY": f" {secret}"},
        {"OSTIARY_PROVIDER_0_TYPE": "openai", "OSTIARY_PROVIDER_0_KEYS": f"{secret},{secret}"},
        {"OSTIARY_PROVIDER_0_KEYY": secret},
        {"OSTIARY_PROVIDER_0_NAME": secret.upper(), "OSTIARY_PROVIDER_0_TYPE": "openai"},
        {"OSTIARY_OPENAI_KEY": "k", "OSTIARY_OPENAI_BASE_URL": f"https://u:{secret}@a.example"},
        {"OSTIARY_BEDROCK_REGION": "us-east-1", "OSTIARY_BEDROCK_ACCESS_KEY_SECRET": secret},
        {"OSTIARY_PROVIDER_0_TYPE": secret},
    ):
        try:
            said = repr(read(**variables))
        except ProviderEnvError as exc:
            said = str(exc)
        assert secret not in said


FIELDS = (
    "TYPE",
    "NAME",
    "KEY",
    "KEYS",
    "BASE_URL",
    "BEDROCK_REGION",
    "BEDROCK_ACCESS_KEY",
    "BEDROCK_ACCESS_KEY_SECRET",
)
environments = st.dictionaries(
    st.one_of(
        st.builds("{}PROVIDER_{}_{}".format, st.sampled_from(PREFIXES), st.integers(0, 2), st.sampled_from(FIELDS)),
        st.builds(
            "{}{}".format,
            st.sampled_from(PREFIXES),
            st.sampled_from(["OPENAI_KEY", "ANTHROPIC_KEY", "BEDROCK_REGION", "OPENAI_BASE_URL", "OPENAI_KEI"]),
        ),
    ),
    st.sampled_from(
        ["openai", "anthropic", "bedrock", "copilot", "us-east-1", "https://a.example", "k1", "k1,k2", "", " "]
    ),
    max_size=10,
)


@given(environments, st.randoms())
def test_the_order_of_the_variables_does_not_matter(variables: dict[str, str], random: Any) -> None:
    def outcome(names: list[str]) -> object:
        try:
            return read(**{name: variables[name] for name in names})
        except ProviderEnvError as exc:
            return str(exc)

    shuffled = list(variables)
    random.shuffle(shuffled)
    assert outcome(list(variables)) == outcome(shuffled)


def test_of_several_mistakes_the_same_is_named_in_any_order() -> None:
    mistakes = {"OSTIARY_PROVIDER_1_KEYY": "x", "OSTIARY_PROVIDER_0_TPYE": "x"}
    assert error(**mistakes) == error(**dict(reversed(mistakes.items())))


@given(environments)
def test_what_is_read_has_distinct_sorted_names_and_no_key_where_none_is_used(variables: dict[str, str]) -> None:
    try:
        found = read(**variables)
    except ProviderEnvError:
        return
    names = [provider.name for provider in found.providers]
    assert names == sorted(set(names))
    for provider in found.providers:
        assert len(set(provider.keys)) == len(provider.keys)
        if provider.type in (ProviderType.COPILOT, ProviderType.BEDROCK) or provider.settings is not None:
            assert not provider.keys
