"""What every format's requests have in common."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ostiary.wire.facts import Format, RequestError
from ostiary.wire.formats import read_request

FORMATS: tuple[Format, ...] = ("chat_completions", "responses", "messages")
every_format = pytest.mark.parametrize("format_", FORMATS)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda children: (
        st.lists(children, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "type", "content", "text", "tool_call_id", "output", "x"]), children, max_size=4
        )
    ),
    max_leaves=8,
)


@every_format
@pytest.mark.parametrize(
    ("body", "cause"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"{", "is not JSON"),
        (b"model=gpt", "is not JSON"),
        (b'{"model":"m"} x', "is not JSON"),
        (b'{"model":"m","x":NaN}', "is not JSON"),
        (b"[]", "is not a JSON object"),
        (b'"m"', "is not a JSON object"),
        (b"null", "is not a JSON object"),
        (b'{"model":"m","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_cause_and_the_cure(format_: Format, body: bytes, cause: str) -> None:
    with pytest.raises(RequestError, match=cause) as refused:
        read_request(format_, body)
    assert "; " in str(refused.value)


@every_format
@pytest.mark.parametrize("body", [b"{}", b'{"model":""}', b'{"model":7}', b'{"model":null,"messages":[]}'])
def test_a_model_that_is_missing_or_no_text_is_empty(format_: Format, body: bytes) -> None:
    assert read_request(format_, body).model == ""


@given(
    st.sampled_from(FORMATS),
    st.dictionaries(
        st.sampled_from(["messages", "input", "stream", "stream_options", "metadata", "background", "tools"]),
        json_values,
    ),
    st.sampled_from(["none", "prompts", "full"]),
)
def test_unknown_shapes_never_refuse_a_request(format_: Format, members: dict[str, Any], content: Any) -> None:
    facts = read_request(format_, json.dumps(members | {"model": "m"}).encode(), content)
    assert facts.model == "m"
    assert facts.stream is (members.get("stream") is True)


@every_format
def test_only_what_is_read_needs_to_be_sound(format_: Format) -> None:
    body = b'\xef\xbb\xbf{"model":"m","stream":true,"user":"\\ud800","x":"\xff"}'
    facts = read_request(format_, body)
    assert (facts.model, facts.stream) == ("m", True)


@every_format
def test_large_bodies_are_read_by_their_last_message(format_: Format) -> None:
    turns = [{"role": "user", "content": "x" * 1000}, {"role": "assistant", "content": "y" * 1000}] * 200
    last = {"role": "user", "content": "now"}
    body = json.dumps({"messages": [*turns, last], "input": [*turns, last], "model": "m"}).encode()
    assert read_request(format_, body).prompt == "now"


INSTRUCTIONS: tuple[list[dict[str, Any]], ...] = (
    [{"role": "system", "content": "be brief"}],
    [{"role": "developer", "content": [{"type": "text", "text": "be brief"}]}],
    [{"type": "message", "role": "system", "content": []}, {"role": "system", "content": "and polite"}],
)
"""As clients put them behind the user's turn."""


def body_of(*turns: dict[str, Any]) -> bytes:
    return json.dumps({"model": "m", "messages": turns, "input": turns}).encode()


@every_format
@pytest.mark.parametrize("instructions", INSTRUCTIONS)
def test_instructions_behind_the_users_turn_do_not_hide_its_prompt(
    format_: Format, instructions: list[dict[str, Any]]
) -> None:
    asked = {"role": "user", "content": "now"}
    answered = {"role": "assistant", "content": "then"}
    assert read_request(format_, body_of(asked, *instructions)).prompt == "now"
    assert read_request(format_, body_of(asked, *instructions), "none").prompt is None
    assert read_request(format_, body_of(asked, answered, *instructions)).prompt is None
    assert read_request(format_, body_of(*instructions)).prompt is None


@every_format
@pytest.mark.parametrize("instructions", INSTRUCTIONS)
def test_instructions_behind_a_tool_result_do_not_hide_whose_call_it_answers(
    format_: Format, instructions: list[dict[str, Any]]
) -> None:
    results: dict[Format, dict[str, Any]] = {
        "chat_completions": {"role": "tool", "tool_call_id": "call_1", "content": "done"},
        "responses": {"type": "function_call_output", "call_id": "call_1", "output": "done"},
        "messages": {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "call_1", "content": "done"}]},
    }
    facts = read_request(format_, body_of({"role": "user", "content": "do"}, results[format_], *instructions), "full")
    assert (facts.correlating_tool_call_id, facts.tool_results, facts.prompt) == ("call_1", ("done",), None)
