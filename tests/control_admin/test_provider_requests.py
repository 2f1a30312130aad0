"""Requests of the providers API, checked field by field: pure."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ostiary.control.providers.requests import (
    KeyEntry,
    KnownKey,
    check_identity,
    check_together,
    parse_settings,
    plan_keys,
)
from ostiary.core.providers import (
    MAX_KEYS,
    AnthropicSettings,
    BedrockSettings,
    OpenAISettings,
    ProviderSettings,
    ProviderType,
)
from ostiary.core.secret import Secret


def settings(kind: str, raw: Any, current: ProviderSettings | None = None) -> tuple[Any, list[str]]:
    parsed, problems = parse_settings(ProviderType(kind), raw, current, lambda: "made-up")
    return parsed, [problem.field for problem in problems]


@pytest.mark.parametrize(
    ("kind", "raw", "expected"),
    [
        ("openai", {}, OpenAISettings()),
        ("openai", {"_type": "openai", "_version": 1, "selection": "spread"}, OpenAISettings(selection="spread")),
        ("azure", {"api_version": "2024-10-21"}, OpenAISettings(api_version="2024-10-21")),
        ("openai-compat", {"stream_usage": "splice"}, OpenAISettings(stream_usage="splice")),
        ("anthropic", {"selection": "spread"}, AnthropicSettings(selection="spread")),
        ("anthropic", {"_type": "bedrock", "region": "us-east-1"}, BedrockSettings(region="us-east-1")),
        ("bedrock", {"region": "us-east-1", "model": None}, BedrockSettings(region="us-east-1")),
    ],
)
def test_settings_that_fit(kind: str, raw: Any, expected: Any) -> None:
    assert settings(kind, raw) == (expected, [])


@pytest.mark.parametrize(
    ("kind", "raw", "field"),
    [
        ("openai", {"_type": "bedrock"}, "settings._type"),
        ("openai", {"_type": "nonsense"}, "settings._type"),
        ("openai", {"_type": 3}, "settings._type"),
        ("openai", {"_type": ["openai"]}, "settings._type"),
        ("openai", {"_version": 2}, "settings._version"),
        ("openai", {"selction": "spread"}, "settings.selction"),
        ("openai", {"selection": "random"}, "settings.selection"),
        ("openai", {"version": 1}, "settings.version"),
        ("anthropic", {"region": "us-east-1"}, "settings.region"),
        ("bedrock", {"region": 1}, "settings.region"),
        ("bedrock", {"protocol": "soap"}, "settings.protocol"),
        ("bedrock", {"external_id": "mine"}, "settings.external_id"),
        ("copilot", {"_type": "openai"}, "settings"),
    ],
)
def test_settings_that_do_not_fit_name_the_field(kind: str, raw: Any, field: str) -> None:
    assert settings(kind, raw) == (None, [field])


STORED = BedrockSettings(
    region="us-east-1",
    model="m",
    access_key=Secret("AKIA"),
    access_key_secret=Secret("secret"),
    role_arn="arn:aws:iam::123456789012:role/x",
    external_id="given",
)


def test_what_is_never_shown_stays_when_it_is_left_out() -> None:
    parsed, _ = settings("bedrock", {"region": "eu-west-1"}, STORED)
    assert parsed == BedrockSettings(
        region="eu-west-1", access_key=Secret("AKIA"), access_key_secret=Secret("secret"), external_id="given"
    )


def test_an_empty_secret_is_cleared() -> None:
    parsed, _ = settings("bedrock", {"region": "eu-west-1", "access_key": "", "access_key_secret": ""}, STORED)
    assert not parsed.access_key
    assert not parsed.access_key_secret


def test_the_external_id_is_made_once_and_cannot_be_chosen() -> None:
    role = {"region": "us-east-1", "role_arn": "arn:aws:iam::123456789012:role/x"}
    assert settings("bedrock", role)[0].external_id == "made-up"
    assert settings("bedrock", role, STORED)[0].external_id == "given"
    assert settings("bedrock", {**role, "external_id": "given"}, STORED)[1] == []
    assert settings("bedrock", {**role, "external_id": "other"}, STORED)[1] == ["settings.external_id"]


def test_without_a_type_a_change_keeps_the_kind_of_settings() -> None:
    assert settings("anthropic", {"region": "eu-west-1"}, STORED)[0].region == "eu-west-1"


@pytest.mark.parametrize(
    ("kind", "name", "fields"), [("", "", ["type", "name"]), ("x", "ok", ["type"]), ("openai", "ok", [])]
)
def test_type_and_name(kind: str, name: str, fields: list[str]) -> None:
    assert [problem.field for problem in check_identity(kind, name)] == fields


@pytest.mark.parametrize(
    ("kind", "settings_", "count", "fields"),
    [
        ("openai", None, 1, []),
        ("copilot", None, 1, ["api_keys"]),
        ("bedrock", BedrockSettings(region="us-east-1"), 1, ["api_keys"]),
        ("anthropic", BedrockSettings(region="us-east-1"), 1, ["api_keys"]),
        ("anthropic", BedrockSettings(region="us-east-1"), 0, []),
        ("anthropic", AnthropicSettings(), 2, []),
    ],
)
def test_keys_only_where_they_are_used(kind: str, settings_: Any, count: int, fields: list[str]) -> None:
    found = check_together(ProviderType(kind), "https://a.example", settings_, count)
    assert [problem.field for problem in found] == fields


# --- keys

KNOWN = [KnownKey("1", Secret("a")), KnownKey("2", Secret("b")), KnownKey("3", None)]


def key_problems(*entries: KeyEntry) -> list[str]:
    return [problem.field for problem in plan_keys(KNOWN, entries)[1]]


def test_the_list_is_the_whole_new_state() -> None:
    plan, problems = plan_keys(KNOWN, [KeyEntry(api_key=Secret("c")), KeyEntry(id="2")])
    assert problems == []
    assert plan.add == ((0, Secret("c")),)
    assert plan.keep == {"2": 1}
    assert plan.remove == ("1", "3")
    assert plan_keys(KNOWN, [])[0].remove == ("1", "2", "3")


@pytest.mark.parametrize(
    ("entries", "fields"),
    [
        ([KeyEntry()], ["api_keys[0]"]),
        ([KeyEntry(id="1", api_key=Secret("c"))], ["api_keys[0]"]),
        ([KeyEntry(id="9")], ["api_keys[0]"]),
        ([KeyEntry(id="1"), KeyEntry(id="1")], ["api_keys[1]"]),
        ([KeyEntry(id="1"), KeyEntry(api_key=Secret("a"))], ["api_keys[1]"]),
        ([KeyEntry(api_key=Secret("a")), KeyEntry(id="1")], ["api_keys[0]"]),
        ([KeyEntry(api_key=Secret("c")), KeyEntry(api_key=Secret("c"))], ["api_keys[1]"]),
        ([KeyEntry(api_key=Secret(""))], ["api_keys[0]"]),
        ([KeyEntry(api_key=Secret(" c"))], ["api_keys[0]"]),
        # a removed key may come back under a new id
        ([KeyEntry(id="2"), KeyEntry(api_key=Secret("a"))], []),
    ],
)
def test_wrong_key_lists_name_the_entry(entries: list[KeyEntry], fields: list[str]) -> None:
    assert key_problems(*entries) == fields


def test_a_pool_is_bounded() -> None:
    entries = [KeyEntry(api_key=Secret(f"k{number}")) for number in range(MAX_KEYS + 1)]
    assert key_problems(*entries) == ["api_keys"]
    assert key_problems(*entries[:-1]) == []


entry = st.one_of(
    st.builds(lambda key_id: KeyEntry(id=key_id), st.sampled_from(["1", "2", "3", "9"])),
    st.builds(lambda value: KeyEntry(api_key=Secret(value)), st.sampled_from(["a", "b", "c", "d", ""])),
)


@given(st.lists(entry, max_size=6))
def test_a_plan_without_problems_gives_exactly_the_wanted_order(entries: list[KeyEntry]) -> None:
    plan, problems = plan_keys(KNOWN, entries)
    assert set(plan.keep) | set(plan.remove) >= {"1", "2", "3"}
    assert not set(plan.keep) & set(plan.remove)
    if problems:
        return
    after = {position: key_id for key_id, position in plan.keep.items()} | {
        position: value.reveal() for position, value in plan.add
    }
    assert [after[position] for position in sorted(after)] == [
        wanted.id or wanted.api_key.reveal() for wanted in entries if wanted.id or wanted.api_key
    ]
    values = [known.value for known in KNOWN if known.id in plan.keep and known.value] + [
        value for _, value in plan.add
    ]
    assert len(set(values)) == len(values)
