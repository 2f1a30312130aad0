"""A Messages body on its way to InvokeModel: what is changed for which generation of Claude, and that nothing else is."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ostiary.wire import json_edit
from ostiary.wire.bedrock import beta_flags, invoke_body, mapped_model

SONNET_45 = "us.anthropic.claude-sonnet-4-5-20250929-v1:0"
HAIKU_45 = "global.anthropic.claude-haiku-4-5-20251001-v1:0"
OPUS_45 = "anthropic.claude-opus-4-5-20251101-v1:0"
OPUS_46 = "us.anthropic.claude-opus-4-6-v1"
SONNET_46 = "arn:aws:bedrock:eu-west-1:123456789012:inference-profile/eu.anthropic.claude-sonnet-4-6"
OPUS_47 = "eu.anthropic.claude-opus-4-7"
OPUS_48 = "global.anthropic.claude-opus-4-8-20260601-v1:0"
SONNET_5 = "anthropic.claude-sonnet-5"
OPUS_4 = "anthropic.claude-opus-4-20250514-v1:0"
SONNET_37 = "us.anthropic.claude-3-7-sonnet-20250219-v1:0"
OPAQUE = "arn:aws:bedrock:us-east-1:123456789012:application-inference-profile/a1b2c3d4"

ADAPTIVE = [OPUS_47, OPUS_48, SONNET_5, "anthropic.claude-opus-5-20270101-v1:0", "us.anthropic.claude-haiku-5"]
EITHER = [OPUS_46, SONNET_46, OPAQUE]
BUDGET = [SONNET_45, HAIKU_45, OPUS_45, OPUS_4, SONNET_37, "us.anthropic.claude-opus-4-1-20250805-v1:0", "custom-model"]

BASE: dict[str, Any] = {"model": "claude", "max_tokens": 10_000, "messages": [{"role": "user", "content": "hi"}]}


def rewritten(model: str, flags: str = "", **members: Any) -> tuple[dict[str, Any], str]:
    """The body that is sent, and all edits as one text."""
    found = invoke_body(json.dumps(BASE | members).encode(), model, beta_flags(flags.encode()))
    return json.loads(found.body), "\n".join(found.edits)


def test_what_the_path_says_is_not_in_the_body_and_the_version_is() -> None:
    body = b'{ "model" : "claude-x",\n  "stream":true, "max_tokens": 1e3,"messages" : [ {"role":"user","content":"\\u00e9"} ] }'
    found = invoke_body(body, OPUS_46)
    assert found.body == (
        b'{ "max_tokens": 1e3,"messages" : [ {"role":"user","content":"\\u00e9"} ],"anthropic_version":"bedrock-2023-05-31" }'
    )
    assert found.edits == (
        "model: removed, it is in the path",
        "stream: removed, the path says it",
        "anthropic_version: added",
    )


def test_a_version_that_the_client_sent_stays() -> None:
    body, _ = rewritten(OPUS_46, anthropic_version="bedrock-2024-01-01")
    assert body["anthropic_version"] == "bedrock-2024-01-01"


@pytest.mark.parametrize("model", ADAPTIVE)
def test_a_budget_becomes_adaptive_where_nothing_else_is_taken(model: str) -> None:
    body, edits = rewritten(model, thinking={"type": "enabled", "budget_tokens": 4000}, output_config={"effort": "low"})
    assert body["thinking"] == {"type": "adaptive"}
    assert body["output_config"] == {"effort": "low"}
    assert "thinking: enabled became adaptive" in edits
    assert rewritten(model, thinking={"type": "adaptive"})[0]["thinking"] == {"type": "adaptive"}
    assert rewritten(model, thinking={"type": "disabled"})[0]["thinking"] == {"type": "disabled"}


@pytest.mark.parametrize("model", ADAPTIVE)
def test_an_output_format_is_not_taken_on_bedrock(model: str) -> None:
    body, edits = rewritten(model, output_config={"effort": "max", "format": {"type": "json_schema"}})
    assert body["output_config"] == {"effort": "max"}
    assert "output_config: format removed" in edits


@pytest.mark.parametrize("model", EITHER)
@pytest.mark.parametrize("thinking", [{"type": "adaptive"}, {"type": "enabled", "budget_tokens": 2048}])
def test_thinking_stays_where_both_kinds_are_taken_or_the_model_is_not_known(
    model: str, thinking: dict[str, Any]
) -> None:
    body, edits = rewritten(model, thinking=thinking)
    assert body["thinking"] == thinking
    assert "thinking" not in edits


@pytest.mark.parametrize("model", BUDGET)
@pytest.mark.parametrize(
    ("effort", "budget"),
    [("low", 2000), ("medium", 5000), ("high", 8000), ("max", 9500), ("xhigh", 8000), (None, 8000)],
)
def test_adaptive_becomes_a_share_of_max_tokens_where_a_budget_is_needed(
    model: str, effort: str | None, budget: int
) -> None:
    config: dict[str, Any] = {} if effort is None else {"output_config": {"effort": effort}}
    body, edits = rewritten(model, thinking={"type": "adaptive"}, **config)
    assert body["thinking"] == {"type": "enabled", "budget_tokens": budget}
    assert f"a budget of {budget}" in edits
    enabled = {"type": "enabled", "budget_tokens": 1024}
    assert rewritten(model, thinking=enabled)[0]["thinking"] == enabled


@pytest.mark.parametrize(
    ("max_tokens", "thinking"), [(1280, {"type": "enabled", "budget_tokens": 1024}), (1279, {"type": "disabled"})]
)
def test_a_budget_that_would_be_too_small_turns_thinking_off(max_tokens: int, thinking: dict[str, Any]) -> None:
    body, _ = rewritten(SONNET_45, max_tokens=max_tokens, thinking={"type": "adaptive"})
    assert body["thinking"] == thinking


@pytest.mark.parametrize("max_tokens", [None, 0, -5, "many", 1.5, [1]])
def test_without_max_tokens_thinking_is_left_and_that_is_told(max_tokens: Any) -> None:
    body, edits = rewritten(SONNET_45, max_tokens=max_tokens, thinking={"type": "adaptive"}, metadata={"user_id": "x"})
    assert body["thinking"] == {"type": "adaptive"}
    assert "thinking: left as it was, max_tokens: field required" in edits
    assert "metadata" not in body, "the other rewrites go on"


def test_a_max_tokens_beyond_all_numbers_is_left_for_the_model_to_judge() -> None:
    body = b'{"max_tokens":%b,"thinking":{"type":"adaptive"},"messages":[]}' % (b"9" * 400)
    found = invoke_body(body, SONNET_45)
    assert b'"thinking":{"type":"adaptive"}' in found.body
    assert found.edits[0].startswith("thinking: left as it was")


COMMON = (
    "computer-use-2025-01-24,token-efficient-tools-2025-02-19,interleaved-thinking-2025-05-14,output-128k-2025-02-19,"
    "dev-full-thinking-2025-05-14,context-1m-2025-08-07,tool-search-tool-2025-10-19,tool-examples-2025-10-29"
)
EFFORT, CONTEXT = "effort-2025-11-24", "context-management-2025-06-27"


@pytest.mark.parametrize("model", [*ADAPTIVE, *EITHER, *BUDGET])
def test_flags_that_bedrock_knows_go_into_the_body_and_others_are_dropped(model: str) -> None:
    body, edits = rewritten(
        model, f" {COMMON} ,,oauth-2025-04-20, {EFFORT},{CONTEXT},fine-grained-tool-streaming-2025-05-14"
    )
    extra = [EFFORT] if model == OPUS_45 else [CONTEXT] if model in (SONNET_45, HAIKU_45) else []
    assert body["anthropic_beta"] == COMMON.split(",") + extra
    assert "dropped oauth-2025-04-20" in edits
    assert "anthropic_beta: set" in edits


def test_without_a_flag_that_is_taken_there_is_no_list() -> None:
    assert "anthropic_beta" not in rewritten(OPUS_46, "oauth-2025-04-20")[0]
    assert "anthropic_beta" not in rewritten(OPUS_46, "oauth-2025-04-20", anthropic_beta=["unknown"])[0]
    assert "anthropic_beta" not in rewritten(OPUS_46, anthropic_beta={"not": "a list"})[0]


def test_flags_that_stand_in_the_body_already_are_joined_to_the_headers() -> None:
    body, _ = rewritten(
        OPUS_46, "context-1m-2025-08-07", anthropic_beta=["tool-examples-2025-10-29", "context-1m-2025-08-07"]
    )
    assert body["anthropic_beta"] == ["context-1m-2025-08-07", "tool-examples-2025-10-29"]
    body, _ = rewritten(OPUS_46, anthropic_beta=["context-1m-2025-08-07"])
    assert body["anthropic_beta"] == ["context-1m-2025-08-07"]


def test_hundreds_of_flags_do_not_fill_the_trace() -> None:
    _, edits = rewritten(OPUS_46, ",".join(f"flag-{i}-{'x' * 500}" for i in range(300)))
    assert "and 292 more" in edits
    assert len(edits) < 1500


def test_members_that_invoke_model_does_not_take_are_removed() -> None:
    extra: dict[str, Any] = {
        "metadata": {"user_id": "u"},
        "service_tier": "auto",
        "container": "c",
        "inference_geo": "us",
    }
    for model in (SONNET_45, OPUS_46, OPUS_47, OPAQUE):
        body, edits = rewritten(model, **extra)
        assert not set(extra) & set(body)
        assert all(f"{name}: removed" in edits for name in extra)


@pytest.mark.parametrize(
    ("member", "model", "flag", "kept"),
    [
        ("output_config", OPUS_45, EFFORT, True),
        ("output_config", OPUS_45, "", False),
        ("output_config", SONNET_45, EFFORT, False),
        ("output_config", OPUS_46, EFFORT, False),
        ("output_config", OPUS_47, "", True),
        ("context_management", SONNET_45, CONTEXT, True),
        ("context_management", HAIKU_45, CONTEXT, True),
        ("context_management", SONNET_45, "", False),
        ("context_management", OPUS_47, CONTEXT, False),
    ],
)
def test_members_with_a_flag_stay_only_beside_it(member: str, model: str, flag: str, kept: bool) -> None:
    body, _ = rewritten(model, flag, **{member: {"effort": "low"}})
    assert (member in body) is kept


def test_of_a_repeated_member_none_is_left() -> None:
    body = b'{"model":"a","metadata":{},"max_tokens":1,"model":"b","metadata":{},"messages":[],"stream":true,"stream":false}'
    found = invoke_body(body, OPUS_46)
    assert found.body == b'{"max_tokens":1,"messages":[],"anthropic_version":"bedrock-2023-05-31"}'


@pytest.mark.parametrize("body", [b"", b"[1]", b"nonsense", b'{"a":', b'{"a":' * 5000])
def test_what_is_no_object_is_sent_as_it_came_and_that_is_told(body: bytes) -> None:
    found = invoke_body(body, OPUS_46, ["context-1m-2025-08-07"])
    assert found.body == body
    assert found.edits[0].startswith("the body is sent as it came")


@pytest.mark.parametrize("thinking", [None, 5, "adaptive", [], {}, {"type": 7}, {"type": "adaptive "}])
def test_thinking_of_an_unknown_shape_is_left_for_the_model_to_judge(thinking: Any) -> None:
    for model in (SONNET_45, OPUS_46, OPUS_47):
        assert rewritten(model, thinking=thinking)[0]["thinking"] == thinking


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
SPECIAL = ("model", "stream", "thinking", "metadata", "service_tier", "container", "inference_geo", "output_config")
NAMED = (*SPECIAL, "context_management", "anthropic_beta", "anthropic_version", "max_tokens")


@given(
    st.dictionaries(st.text(max_size=8) | st.sampled_from(NAMED), JSON_VALUES, max_size=8),
    st.sampled_from([*ADAPTIVE, *EITHER, *BUDGET]),
    st.sampled_from([None, 1]),
)
def test_every_other_member_stays_byte_for_byte_and_in_order(
    members: dict[str, Any], model: str, indent: int | None
) -> None:
    body = json.dumps(members, indent=indent).encode()
    found = invoke_body(body, model, ["context-1m-2025-08-07"])
    after = json.loads(found.body)
    others = [name for name in members if name not in NAMED]
    assert [name for name in after if name not in NAMED] == others
    for name in others:
        before_at, after_at = json_edit.find(body, name), json_edit.find(found.body, name)
        assert before_at is not None
        assert after_at is not None
        assert found.body[after_at] == body[before_at]
    assert "model" not in after
    assert "stream" not in after
    assert all(name in "\n".join(found.edits) for name in members if name in SPECIAL and name not in after)


@pytest.mark.parametrize(
    ("requested", "model"),
    [
        ("claude-haiku-4-5", "small"),
        ("claude-3-5-haiku-latest", "small"),
        ("claude-opus-4-6", "big"),
        ("anything", "big"),
    ],
)
def test_models_with_haiku_in_their_name_are_the_small_one(requested: str, model: str) -> None:
    assert mapped_model(requested, "big", "small") == model


@given(
    st.dictionaries(st.text(max_size=4), JSON_VALUES, max_size=6), st.sets(st.text(max_size=4), max_size=4), st.data()
)
def test_many_members_are_edited_as_one_after_the_other(
    members: dict[str, Any], removed: set[str], data: st.DataObject
) -> None:
    changes: dict[str, bytes | None] = dict.fromkeys(removed)
    if members:
        changes[data.draw(st.sampled_from(sorted(members)))] = b'"set"'
    changes["added"] = b"[1, 2]"
    expected = {name: value for name, value in members.items() if changes.get(name, b"") is not None}
    expected |= {name: json.loads(value) for name, value in changes.items() if value is not None}
    document = json.dumps(members, indent=data.draw(st.sampled_from([None, 2]))).encode()
    edited = json_edit.edit_members(document, changes)
    assert json.loads(edited) == expected
    assert list(json.loads(edited)) == list(expected)
    assert json_edit.edit_members(document, {}) == document


def test_of_a_repeated_member_the_last_one_is_set_as_that_one_counts() -> None:
    assert json_edit.edit_members(b'{"a":1,"b":0,"a":2}', {"a": b"3"}) == b'{"a":1,"b":0,"a":3}'


def test_a_value_that_is_no_json_and_a_document_that_is_no_object_are_not_edited() -> None:
    with pytest.raises(json_edit.JSONEditError, match="not JSON"):
        json_edit.edit_members(b"{}", {"a": b"{"})
    with pytest.raises(json_edit.JSONEditError, match="not a JSON object"):
        json_edit.edit_members(b"[1]", {"a": None})
