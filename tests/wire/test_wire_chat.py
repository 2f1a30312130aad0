"""OpenAI Chat Completions: requests, blocking answers and streams, of OpenAI and of servers like it."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ostiary.wire.facts import ProviderError, Thought, ToolCall
from ostiary.wire.openai_chat import read_body, read_request
from tests.support.wire_streams import DISTURBANCES, Json, observe, pieces_of, sse, torn_everywhere

DONE = "data: [DONE]\n\n"
USAGE = {
    "prompt_tokens": 100,
    "completion_tokens": 15,
    "total_tokens": 115,
    "prompt_tokens_details": {"cached_tokens": 64, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 4},
}


def chunk(*choices: Json, **members: Any) -> Json:
    base = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "model": "gpt-x", "choices": list(choices)}
    return base | {"usage": None} | members


def says(delta: Json, *, index: int = 0, finish: str | None = None) -> Json:
    return chunk({"index": index, "delta": delta, "logprobs": None, "finish_reason": finish})


def calls(*tools: Json, **members: Any) -> Json:
    return says({"tool_calls": list(tools)}, **members)


def call(index: int | None, arguments: Any = "", *, id: str | None = None, name: str | None = None) -> Json:  # noqa: A002
    tool: Json = {"index": index} if index is not None else {}
    function = {"arguments": arguments} | ({"name": name} if name is not None else {})
    return tool | ({"id": id, "type": "function"} if id is not None else {}) | {"function": function}


LONG = [says({"content": 'words and "quotes" and [] {} \n lines'}) for _ in range(60)]
FINAL_USAGE = chunk(usage=USAGE, service_tier="default")

FULL = sse(
    [
        says({"role": "assistant", "content": ""}),
        *LONG,
        calls(call(0, "", id="call_a", name="read")),
        calls(call(0, '{"path"')),
        calls(call(0, ':"é"}')),
        calls(call(1, '{"x":1}', id="call_b", name="grep")),
        *LONG,
        says({}, finish="tool_calls"),
        FINAL_USAGE,
        DONE,
    ]
)


def test_a_stream_gives_its_facts() -> None:
    facts = observe("chat_completions", FULL)
    assert (facts.response_id, facts.model, facts.finish_reason) == ("chatcmpl-1", "gpt-x", "tool_calls")
    assert facts.tool_calls == (ToolCall("read", '{"path":"é"}', "call_a"), ToolCall("grep", '{"x":1}', "call_b"))
    assert facts.usage is not None
    assert (facts.usage.input_tokens, facts.usage.output_tokens) == (36, 15)
    assert (facts.usage.cache_read_input_tokens, facts.usage.cache_write_input_tokens) == (64, 0)
    assert facts.usage.metadata == {"prompt_audio": 0, "completion_reasoning": 4, "service_tier": "default"}
    assert json.loads(facts.usage.raw) == USAGE
    assert facts.complete
    assert not facts.unparsed
    assert facts.output_text == ""
    assert observe("chat_completions", FULL, content="full").output_text.startswith('words and "quotes"')


def test_nothing_but_usage_is_kept_when_no_content_may_be() -> None:
    facts = observe("chat_completions", FULL, content="none")
    assert (facts.tool_calls, facts.thoughts, facts.output_text) == ((), (), "")
    assert facts.usage is not None
    assert facts.finish_reason == "tool_calls"
    assert facts.complete


@pytest.mark.parametrize("content", ["none", "prompts", "full"])
@pytest.mark.parametrize("disturbance", [name for name in DISTURBANCES if name != "several data lines"])
def test_facts_survive(disturbance: str, content: Any) -> None:
    disturbed = DISTURBANCES[disturbance](FULL)
    assert observe("chat_completions", disturbed, content=content) == observe("chat_completions", FULL, content=content)


def test_facts_do_not_depend_on_where_the_stream_is_torn() -> None:
    short = sse(
        [
            says({"content": "hi"}),
            calls(call(0, '{"a"', id="c", name="n")),
            calls(call(0, ":1}")),
            says({}, finish="tool_calls"),
            FINAL_USAGE,
            DONE,
        ]
    )
    whole = observe("chat_completions", short)
    assert whole.tool_calls == (ToolCall("n", '{"a":1}', "c"),)
    for at in torn_everywhere(short):
        assert observe("chat_completions", short, cuts=[at], compact_at=[0]) == whole


@st.composite
def conversations(draw: st.DrawFn) -> tuple[list[Json | str], list[ToolCall], str, str]:
    events: list[Json | str] = [says({"role": "assistant", "content": None})]
    thought = draw(pieces_of()) if draw(st.booleans()) else ("", [])
    events += [says({"content": None, "reasoning_content": piece}) for piece in thought[1]]
    if draw(st.booleans()):
        events += LONG
    expected = []
    for index in range(draw(st.integers(0, 3))):
        whole, deltas = draw(pieces_of())
        events.append(calls(call(index, "", id=f"call_{index}", name=f"tool_{index}")))
        events += [calls(call(index, delta)) for delta in deltas]
        expected.append(ToolCall(f"tool_{index}", whole, f"call_{index}"))
        if draw(st.booleans()):
            events += LONG
    finish = draw(st.sampled_from(["stop", "tool_calls"]))
    events += [says({}, finish=finish), FINAL_USAGE, DONE]
    return events, expected, thought[0], finish


@settings(max_examples=60, deadline=None)
@given(
    conversations(),
    st.sampled_from(sorted(DISTURBANCES)),
    st.lists(st.integers(0, 30_000), max_size=5),
    st.booleans(),
    st.booleans(),
)
def test_any_conversation_is_read_right(
    conversation: Any, disturbance: str, cuts: list[int], compacting: bool, spaced: bool
) -> None:
    events, expected, thought, finish = conversation
    stream = sse(events, spaced=spaced)
    forms = [stream] if disturbance == "several data lines" else [stream, DISTURBANCES[disturbance](stream)]
    for form in forms:
        facts = observe("chat_completions", form, cuts=cuts, compact_at=range(8) if compacting else ())
        assert list(facts.tool_calls) == expected
        assert "".join(t.content for t in facts.thoughts) == thought
        assert facts.finish_reason == finish
        assert facts.usage is not None
        assert facts.usage.output_tokens == 15
        assert facts.complete
        assert not facts.unparsed


# --- usage


def test_of_usage_on_every_chunk_the_last_counts() -> None:
    growing = [
        chunk({"index": 0, "delta": {"content": "x" * 80}}, usage={"prompt_tokens": 5, "completion_tokens": n})
        for n in range(40)
    ]
    facts = observe("chat_completions", sse([*growing, says({}, finish="stop"), DONE]))
    assert facts.usage is not None
    assert (facts.usage.input_tokens, facts.usage.output_tokens) == (5, 39)


def test_usage_in_the_middle_of_a_long_stream_is_found() -> None:
    facts = observe("chat_completions", sse([*LONG, FINAL_USAGE, *LONG, DONE]))
    assert facts.usage is not None
    assert facts.usage.output_tokens == 15


@pytest.mark.parametrize("beside", [{}, {"usage": None}], ids=["alone", "beside-null"])
@pytest.mark.parametrize("text", [LONG, []], ids=["long", "short"])
def test_groq_tells_usage_in_an_object_of_its_own(text: list[Json], beside: Json) -> None:
    first = says({"role": "assistant"}) | {"x_groq": {"id": "req_1"}}
    last = says({}, finish="stop") | {"x_groq": {"id": "req_1", "usage": USAGE}}
    last = {name: value for name, value in last.items() if name != "usage"} | beside
    facts = observe("chat_completions", sse([first, *text, last, DONE]))
    assert facts.usage is not None
    assert (facts.usage.input_tokens, facts.usage.output_tokens, facts.usage.cache_read_input_tokens) == (36, 15, 64)
    assert facts.finish_reason == "stop"


@pytest.mark.parametrize("text", [LONG, []], ids=["long", "short"])
def test_moonshot_tells_usage_in_the_choice_that_ends(text: list[Json]) -> None:
    ending = {"index": 0, "delta": {}, "finish_reason": "stop", "usage": USAGE}
    without = {name: value for name, value in chunk(ending).items() if name != "usage"}
    facts = observe("chat_completions", sse([*text, without, DONE]))
    assert facts.usage is not None
    assert (facts.usage.input_tokens, facts.usage.output_tokens, facts.usage.cache_read_input_tokens) == (36, 15, 64)


def test_usage_of_the_whole_answer_counts_where_a_choice_has_none() -> None:
    ending = {"index": 0, "delta": {}, "finish_reason": "stop", "usage": None}
    facts = observe("chat_completions", sse([*LONG, chunk(ending, usage=USAGE), DONE]))
    assert facts.usage is not None
    assert facts.usage.output_tokens == 15


def test_no_usage_is_no_usage() -> None:
    assert observe("chat_completions", sse([*LONG, says({}, finish="stop"), DONE])).usage is None


def test_more_cached_than_prompt_tokens_is_clamped_and_named() -> None:
    odd = {"prompt_tokens": 10, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 12}}
    usage = read_body(json.dumps(chunk(usage=odd)).encode()).usage
    assert usage is not None
    assert (usage.input_tokens, usage.cache_read_input_tokens) == (0, 12)
    assert usage.metadata["clamped"] == "input_tokens"


def test_cache_writes_are_not_counted_as_fresh_input() -> None:
    details = {"cached_tokens": 3, "cache_write_tokens": 4, "audio_tokens": None}
    usage = read_body(
        json.dumps(
            chunk(usage={"prompt_tokens": 10.0, "completion_tokens": 1, "prompt_tokens_details": details})
        ).encode()
    ).usage
    assert usage is not None
    assert (usage.input_tokens, usage.cache_read_input_tokens, usage.cache_write_input_tokens) == (3, 3, 4)
    assert usage.metadata == {}


def test_a_total_that_is_not_the_sum_is_told() -> None:
    """Of Gemini and Grok, whose reasoning is in no other number that is added up."""
    reported = {"prompt_tokens": 21, "completion_tokens": 6, "completion_tokens_details": {"reasoning_tokens": 60}}
    for total, told in ((87, {"total_tokens": 87}), (27, {})):
        usage = read_body(json.dumps(chunk(usage=reported | {"total_tokens": total})).encode()).usage
        assert usage is not None
        assert (usage.input_tokens, usage.output_tokens) == (21, 6)
        assert usage.metadata == {"completion_reasoning": 60} | told


def test_deepseek_names_its_cache_hits_otherwise() -> None:
    usage = read_body(
        json.dumps(chunk(usage={"prompt_tokens": 10, "completion_tokens": 1, "prompt_cache_hit_tokens": 8})).encode()
    ).usage
    assert usage is not None
    assert (usage.input_tokens, usage.cache_read_input_tokens) == (2, 8)


# --- tool calls of servers that differ


def tool_calls_of(*events: Json, finish: str | None = "tool_calls") -> tuple[ToolCall, ...]:
    ending = [says({}, finish=finish)] if finish else []
    return observe("chat_completions", sse([*events, *ending, DONE])).tool_calls


def test_calls_without_an_index_are_told_by_their_ids() -> None:
    found = tool_calls_of(
        calls(call(None, '{"a"', id="x", name="n")), calls(call(None, ":1}")), calls(call(None, "{}", id="y", name="m"))
    )
    assert found == (ToolCall("n", '{"a":1}', "x"), ToolCall("m", "{}", "y"))


def test_calls_that_all_have_index_zero_are_told_by_their_ids() -> None:
    found = tool_calls_of(calls(call(0, "{}", id="x", name="n"), call(0, "[]", id="y", name="n")))
    assert found == (ToolCall("n", "{}", "x"), ToolCall("n", "[]", "y"))


def test_a_repeated_id_and_name_go_on_with_the_same_call() -> None:
    found = tool_calls_of(calls(call(0, '{"a"', id="x", name="n")), calls(call(0, ":1}", id="x", name="n")))
    assert found == (ToolCall("n", '{"a":1}', "x"),)


def test_a_new_id_without_a_name_goes_on_with_the_same_call() -> None:
    found = tool_calls_of(calls(call(0, '{"a"', id="x", name="n")), calls(call(0, ":1}", id="y")))
    assert found == (ToolCall("n", '{"a":1}', "x"),)


def test_null_and_empty_members_are_no_calls() -> None:
    found = tool_calls_of(
        says({"content": "a", "tool_calls": None}),
        calls(),
        calls(call(0, None, id="x", name="n")),
        calls(call(0, "{}")),
    )
    assert found == (ToolCall("n", "{}", "x"),)


def test_arguments_that_are_an_object_are_kept_as_json() -> None:
    assert tool_calls_of(calls(call(0, {"a": 1}, id="x", name="n"))) == (ToolCall("n", '{"a":1}', "x"),)


def test_custom_tools_and_old_functions_are_calls_too() -> None:
    custom = {"index": 0, "id": "c", "type": "custom", "custom": {"name": "patch", "input": "*** Begin"}}
    assert tool_calls_of(calls(custom), calls({"index": 0, "custom": {"input": " Patch"}})) == (
        ToolCall("patch", "*** Begin Patch", "c"),
    )
    old = [says({"function_call": {"name": "f", "arguments": "{"}}), says({"function_call": {"arguments": "}"}})]
    assert tool_calls_of(*LONG, *old, *LONG, finish="function_call") == (ToolCall("f", "{}", ""),)


@pytest.mark.parametrize("spaced", [False, True])
def test_all_choices_are_read_wherever_they_end(spaced: bool) -> None:
    first = [says({}, finish="stop"), *LONG]
    second = [calls(call(0, "{", id="a", name="n"), index=1), *LONG, says({}, index=1, finish="tool_calls"), *LONG]
    facts = observe("chat_completions", sse([*LONG, *first, *second, DONE], spaced=spaced))
    assert facts.tool_calls == (ToolCall("n", "{", "a"),)
    assert facts.finish_reason == "stop"


def test_reasoning_between_tool_calls_is_read_once() -> None:
    thinking = [says({"reasoning_content": "hm "})]
    first, second = calls(call(0, "{}", id="a", name="n")), calls(call(1, "[]", id="b", name="n"))
    events = [*thinking, *LONG, first, *LONG, *thinking, *LONG, second, *LONG, says({}, finish="tool_calls"), DONE]
    facts = observe("chat_completions", sse(events))
    assert facts.tool_calls == (ToolCall("n", "{}", "a"), ToolCall("n", "[]", "b"))
    assert facts.thoughts == (Thought("hm hm "),)


# --- thoughts


def test_reasoning_that_servers_show_is_a_thought() -> None:
    for member in ("reasoning_content", "reasoning"):
        facts = observe(
            "chat_completions", sse([says({member: "hm"}), says({member: " ok"}), *LONG, says({}, finish="stop"), DONE])
        )
        assert facts.thoughts == (Thought("hm ok"),)
    both = observe("chat_completions", sse([says({"reasoning_content": "hm", "reasoning": "hm"}), DONE]))
    assert both.thoughts == (Thought("hm"),)


@pytest.mark.parametrize("spaced", [False, True])
def test_what_mistral_thinks_in_parts_of_the_content_is_a_thought(spaced: bool) -> None:
    def thinks(*texts: str) -> Json:
        return {"type": "thinking", "thinking": [{"type": "text", "text": text} for text in texts], "closed": True}

    events = [
        says({"role": "assistant", "content": ""}),
        *[says({"content": [thinks("hm ", "so ")]}) for _ in range(40)],
        says({"content": [thinks("ok"), {"type": "text", "text": "It is"}]}),
        *LONG,
        says({}, finish="stop"),
        DONE,
    ]
    stream = sse(events, spaced=spaced)
    for cuts in ((), range(3000, len(stream), 3000)):
        facts = observe("chat_completions", stream, cuts=cuts, compact_at=range(len(cuts)))
        assert facts.thoughts == (Thought("hm so " * 40 + "ok"),)
    whole = chunk({"index": 0, "message": {"content": [thinks("hm"), {"type": "text", "text": "It is"}]}})
    facts = read_body(json.dumps(whole).encode(), "full")
    assert (facts.thoughts, facts.output_text) == ((Thought("hm"),), "It is")
    assert read_body(json.dumps(whole).encode(), "none").thoughts == ()


# --- what is cut


def test_arguments_cut_by_the_token_limit_are_truncated() -> None:
    events = (calls(call(0, "{}", id="a", name="n")), calls(call(1, '{"x', id="b", name="m")))
    found = tool_calls_of(*events, finish="length")
    assert found == (ToolCall("n", "{}", "a"), ToolCall("m", '{"x', "b", truncated=True))


def test_arguments_of_a_cut_stream_are_truncated() -> None:
    stream = sse([*LONG, calls(call(0, "{}", id="a", name="n")), calls(call(1, '{"x', id="b", name="m"))])
    facts = observe("chat_completions", stream[:-20])
    assert [call.truncated for call in facts.tool_calls] == [False]
    assert not facts.complete
    facts = observe("chat_completions", stream)
    assert facts.tool_calls[1] == ToolCall("m", '{"x', "b", truncated=True)


def test_free_text_at_the_limit_is_truncated_when_it_is_the_last() -> None:
    texts = [("a", "*** Whole"), ("b", "123")]
    custom = [{"index": i, "id": id_, "custom": {"name": "p", "input": t}} for i, (id_, t) in enumerate(texts)]
    found = tool_calls_of(calls(*custom), finish="length")
    assert found == (ToolCall("p", "*** Whole", "a"), ToolCall("p", "123", "b", truncated=True))


def test_an_error_within_the_stream_is_read() -> None:
    error = {"error": {"message": "Overloaded", "type": "server_error", "code": 502}}
    facts = observe("chat_completions", sse([*LONG, error, DONE]))
    assert facts.error == ProviderError("server_error", "Overloaded", "502")
    plain = observe("chat_completions", sse([*LONG, {"error": "gone"}]))
    assert plain.error == ProviderError("", "gone")
    told = {"object": "error", "message": "too long", "type": "BadRequestError", "param": None, "code": 400}
    itself = observe("chat_completions", sse([*LONG, told, DONE]))
    assert itself.error == ProviderError("BadRequestError", "too long", "400")
    assert not plain.complete


# --- what is odd


@given(
    st.sampled_from(["id", "model", "choices", "usage", "error", "service_tier"]),
    st.sampled_from(["7", "[]", "[7]", "{}", "[{}]", '[{"delta":3}]', "true"]),
)
@settings(deadline=None)
def test_unknown_shapes_never_make_a_stream_unreadable(member: str, value: str) -> None:
    odd = f'data: {{"{member}":{value}}}\n\n'.encode()
    stream = (
        sse([calls(call(0, "{}", id="a", name="n"))]) + odd + sse([says({}, finish="tool_calls"), FINAL_USAGE, DONE])
    )
    facts = observe("chat_completions", stream)
    assert facts.tool_calls == (ToolCall("n", "{}", "a"),)
    assert facts.usage is not None
    assert facts.usage.output_tokens == 15
    assert not facts.unparsed


def test_an_empty_stream_is_not_complete() -> None:
    facts = observe("chat_completions", b": keep-alive\n\n" * 3)
    assert not facts.complete
    assert not facts.unparsed
    assert facts.usage is None


def test_done_as_text_is_not_the_end() -> None:
    facts = observe("chat_completions", sse([says({"content": "data: [DONE]"})]))
    assert not facts.complete


# --- blocking answers


def test_a_blocking_answer_gives_its_facts() -> None:
    message = {
        "role": "assistant",
        "content": "hello",
        "tool_calls": [
            {"id": "a", "type": "function", "function": {"name": "n", "arguments": '{"x":1}'}},
            {"id": "b", "type": "function", "function": {"name": "n", "arguments": "{"}},
        ],
    }
    facts = read_body(
        json.dumps(chunk({"index": 0, "message": message, "finish_reason": "length"}, usage=USAGE)).encode(), "full"
    )
    assert facts.tool_calls == (ToolCall("n", '{"x":1}', "a"), ToolCall("n", "{", "b", truncated=True))
    assert facts.output_text == "hello"
    assert facts.usage is not None
    assert json.loads(facts.usage.raw) == USAGE
    assert facts.complete


def test_an_error_body_gives_its_error() -> None:
    facts = read_body(
        b'{"error":{"message":"No","type":"invalid_request_error","param":null,"code":"invalid_api_key"}}'
    )
    assert facts.error == ProviderError("invalid_request_error", "No", "invalid_api_key")
    assert not facts.complete


# --- requests


def request(*messages: Any, **members: Any) -> bytes:
    return json.dumps({"model": "gpt-x", "messages": messages} | members).encode()


def test_the_prompt_is_the_last_text_of_a_last_user_message() -> None:
    assert read_request(request({"role": "user", "content": "hello"})).prompt == "hello"
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}, {"type": "image_url", "image_url": {}}]
    assert read_request(request({"role": "user", "content": parts})).prompt == "b"
    assert read_request(request({"role": "user", "content": ""})).prompt is None
    assert read_request(request({"role": "system", "content": "x"})).prompt is None
    assert read_request(request({"role": "user", "content": "hello"}), "none").prompt is None


def test_a_last_tool_message_links_to_the_call_it_answers() -> None:
    results = [
        {"role": "tool", "tool_call_id": "a", "content": "1"},
        {"role": "tool", "tool_call_id": "b", "content": [{"type": "text", "text": "2"}]},
    ]
    body = request(
        {"role": "tool", "tool_call_id": "old", "content": "0"}, {"role": "assistant", "content": None}, *results
    )
    assert read_request(body).correlating_tool_call_id == "b"
    assert read_request(body, "full").tool_results == ("1", "2")


def test_what_else_a_request_says() -> None:
    facts = read_request(request(stream=True, stream_options={"include_usage": True}))
    assert (facts.stream, facts.include_usage, facts.has_stream_options) == (True, True, True)
    facts = read_request(request(stream=1, stream_options=None))
    assert (facts.stream, facts.include_usage, facts.has_stream_options) == (False, False, True)
    assert not read_request(request()).has_stream_options


@pytest.mark.parametrize("end", [b"data: [DONE]\n\n", b"data:[DONE]\n\n"])
@pytest.mark.parametrize("behind", [b": not the [DONE] that counts\n\n", b"[DONE]\n\n"])
def test_the_end_is_seen_whatever_stands_behind_it(end: bytes, behind: bytes) -> None:
    for before in (b"", b"\n", b'data: {"id":"c"}\n\n'):
        assert observe("chat_completions", before + end + behind).complete
    assert not observe("chat_completions", behind).complete


def test_lines_of_one_event_are_not_taken_for_several_events() -> None:
    event = b'data: {"choices":[{"index":0,"x":"\ndata: ","finish_reason":"stop"}]}\n\n'
    assert observe("chat_completions", event + event) == observe("chat_completions", b"\n\n" + event + event)
    assert observe("chat_completions", event + event).unparsed
