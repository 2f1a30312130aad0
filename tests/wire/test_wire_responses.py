"""OpenAI Responses: requests, blocking answers and streams."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ostiary.wire.facts import ProviderError, Thought, ToolCall
from ostiary.wire.openai_responses import read_body, read_request
from tests.support.wire_streams import DISTURBANCES, Json, observe, pieces_of, sse, torn_everywhere

USAGE = {
    "input_tokens": 100,
    "input_tokens_details": {"cached_tokens": 60, "cache_write_tokens": 10},
    "output_tokens": 20,
    "output_tokens_details": {"reasoning_tokens": 8},
    "total_tokens": 120,
}


def event(kind: str, **members: Any) -> tuple[str, Json]:
    return kind, {"type": kind} | members


def response(status: str, *, output: list[Json] | None = None, **members: Any) -> Json:
    return {
        "id": "resp_1",
        "object": "response",
        "status": status,
        "error": None,
        "incomplete_details": None,
        "model": "gpt-x",
        "instructions": "Be brief. " * 40,
        "output": output or [],
        "service_tier": "default",
        "usage": None,
    } | members


CREATED = event("response.created", response=response("in_progress"))


def ended(status: str = "completed", output: list[Json] | None = None, **members: Any) -> tuple[str, Json]:
    return event(f"response.{status}", response=response(status, output=output, **({"usage": USAGE} | members)))


def item(index: int, kind: str, **members: Any) -> Json:
    return {"id": f"item_{index}", "type": kind, "status": "completed"} | members


def function_call(index: int, arguments: str, **members: Any) -> Json:
    return item(index, "function_call", call_id=f"call_{index}", name="add", arguments=arguments) | members


def expected_call(index: int, arguments: str, *, truncated: bool = False) -> ToolCall:
    return ToolCall("add", arguments, f"call_{index}", f"item_{index}", truncated)


def added(index: int, whole: Json) -> tuple[str, Json]:
    blank = {"status": "in_progress"} | {k: "" for k in ("arguments", "input") if k in whole}
    blank |= {k: [] for k in ("summary", "content") if k in whole}
    return event("response.output_item.added", output_index=index, item=whole | blank)


def done(index: int, whole: Json) -> tuple[str, Json]:
    return event("response.output_item.done", output_index=index, item=whole)


def delta(index: int, kind: str, text: str, **members: Any) -> tuple[str, Json]:
    return event(f"response.{kind}.delta", output_index=index, item_id=f"item_{index}", delta=text, **members)


def calling(index: int, *deltas: str) -> list[tuple[str, Json]]:
    whole = function_call(index, "".join(deltas))
    return [
        added(index, whole),
        *(delta(index, "function_call_arguments", text) for text in deltas),
        event("response.function_call_arguments.done", output_index=index, arguments="".join(deltas)),
        done(index, whole),
    ]


def saying(index: int, *deltas: str, **members: Any) -> list[tuple[str, Json]]:
    text = {"type": "output_text", "text": "".join(deltas), "annotations": []}
    whole = item(index, "message", role="assistant", content=[text], **members)
    return [
        added(index, whole),
        event("response.content_part.added", output_index=index, part={"type": "output_text", "text": ""}),
        *(delta(index, "output_text", piece, content_index=0, obfuscation="xyz") for piece in deltas),
        event("response.output_text.done", output_index=index, text="".join(deltas)),
        event("response.content_part.done", output_index=index, part=text),
        done(index, whole),
    ]


def reasoning(index: int, *summaries: list[str]) -> list[tuple[str, Json]]:
    parts = [{"type": "summary_text", "text": "".join(deltas)} for deltas in summaries]
    whole = item(index, "reasoning", summary=parts, encrypted_content="gAAAA" * 20, content=None)
    deltas = [
        delta(index, "reasoning_summary_text", text, summary_index=at)
        for at, texts in enumerate(summaries)
        for text in texts
    ]
    return [added(index, whole), *deltas, done(index, whole)]


def outputs(*runs: list[tuple[str, Json]]) -> list[Json]:
    return [run[-1][1]["item"] for run in runs]


LONG = ['words and "quotes" \n and response.completed '] * 60
RUNS = (reasoning(0, ["The user", " asks"], ["Then"]), saying(1, *LONG), calling(2, '{"a"', ":3}"), calling(3, "{}"))
FULL = sse([CREATED, *(event for run in RUNS for event in run), ended(output=outputs(*RUNS))])


def test_a_stream_gives_its_facts() -> None:
    facts = observe("responses", FULL)
    assert (facts.response_id, facts.model, facts.finish_reason) == ("resp_1", "gpt-x", "completed")
    assert facts.thoughts == (Thought("The user asks", "reasoning_summary"), Thought("Then", "reasoning_summary"))
    assert facts.tool_calls == (expected_call(2, '{"a":3}'), expected_call(3, "{}"))
    assert facts.usage is not None
    assert (facts.usage.input_tokens, facts.usage.output_tokens) == (30, 20)
    assert (facts.usage.cache_read_input_tokens, facts.usage.cache_write_input_tokens) == (60, 10)
    assert facts.usage.metadata == {"output_reasoning": 8, "total_tokens": 120, "service_tier": "default"}
    assert json.loads(facts.usage.raw) == USAGE
    assert facts.complete
    assert not facts.unparsed
    assert facts.output_text == ""
    assert observe("responses", FULL, content="full").output_text == "".join(LONG)


def test_nothing_but_usage_is_kept_when_no_content_may_be() -> None:
    facts = observe("responses", FULL, content="none")
    assert (facts.tool_calls, facts.thoughts, facts.output_text) == ((), (), "")
    assert facts.usage is not None
    assert facts.complete


@pytest.mark.parametrize("content", ["none", "prompts", "full"])
@pytest.mark.parametrize("disturbance", DISTURBANCES)
def test_facts_survive(disturbance: str, content: Any) -> None:
    disturbed = DISTURBANCES[disturbance](FULL)
    assert observe("responses", disturbed, content=content) == observe("responses", FULL, content=content)


def test_facts_do_not_depend_on_where_the_stream_is_torn() -> None:
    runs = (reasoning(0, ["h", "m"]), calling(1, '{"a"', ":1}"))
    short = sse([CREATED, *(event for run in runs for event in run), ended(output=outputs(*runs))])
    whole = observe("responses", short)
    assert whole.tool_calls == (expected_call(1, '{"a":1}'),)
    for at in torn_everywhere(short):
        assert observe("responses", short, cuts=[at], compact_at=[0]) == whole


@st.composite
def conversations(draw: st.DrawFn) -> tuple[list[Any], list[ToolCall], list[Thought]]:
    runs: list[list[tuple[str, Json]]] = []
    calls: list[ToolCall] = []
    thoughts: list[Thought] = []
    for index in range(draw(st.integers(0, 4))):
        whole, deltas = draw(pieces_of())
        match draw(
            st.sampled_from(["message", "long message", "commentary", "reasoning", "function", "custom", "news"])
        ):
            case "message":
                runs.append(saying(index, *deltas))
            case "long message":
                runs.append(saying(index, *deltas, *LONG))
            case "commentary":
                runs.append(saying(index, *deltas, phase="commentary"))
                thoughts += [Thought(whole, "commentary")] if whole else []
            case "reasoning":
                runs.append(reasoning(index, deltas))
                thoughts += [Thought(whole, "reasoning_summary")] if whole else []
            case "function":
                runs.append(calling(index, *deltas))
                calls.append(expected_call(index, whole))
            case "custom":
                made = item(index, "custom_tool_call", call_id="c", name="patch", input=whole)
                pieces = [delta(index, "custom_tool_call_input", text) for text in deltas]
                runs.append([added(index, made), *pieces, done(index, made)])
                calls.append(ToolCall("patch", whole, "c", f"item_{index}"))
            case _:
                runs.append([added(index, item(index, "news")), done(index, item(index, "news", content=whole))])
    output = outputs(*runs) if draw(st.booleans()) else []
    return [CREATED, *(event for run in runs for event in run), ended(output=output)], calls, thoughts


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
    events, calls, thoughts = conversation
    stream = sse(events, spaced=spaced)
    forms = [stream] if spaced and disturbance == "several data lines" else [stream, DISTURBANCES[disturbance](stream)]
    for form in forms:
        facts = observe("responses", form, cuts=cuts, compact_at=range(8) if compacting else ())
        assert list(facts.tool_calls) == calls
        assert list(facts.thoughts) == thoughts
        assert facts.usage is not None
        assert facts.usage.output_tokens == 20
        assert facts.complete
        assert not facts.unparsed


@settings(max_examples=40, deadline=None)
@given(pieces_of(), st.lists(st.integers(0, 30_000), max_size=4))
def test_what_came_of_a_cut_call_is_kept_and_truncated(pieces: Any, cuts: list[int]) -> None:
    whole, deltas = pieces
    before = [event for run in RUNS[:2] for event in run]
    stream = sse([CREATED, *before, *calling(2, *deltas)[: 1 + len(deltas)]])
    facts = observe("responses", stream, cuts=cuts, compact_at=range(8))
    assert [(call.input, call.tool_call_id) for call in facts.tool_calls] == [(whole, "call_2")]
    try:
        json.loads(whole)
    except ValueError:
        assert facts.tool_calls[0].truncated
    assert not facts.complete
    assert facts.response_id == "resp_1"
    assert facts.usage is None


def test_a_cut_call_of_free_text_is_truncated_even_if_it_reads_as_json() -> None:
    made = item(0, "custom_tool_call", call_id="c", name="patch", input="123")
    facts = observe("responses", sse([CREATED, added(0, made), delta(0, "custom_tool_call_input", "12")]))
    assert facts.tool_calls == (ToolCall("patch", "12", "c", "item_0", truncated=True),)


def test_input_that_comes_in_one_event_is_whole_before_its_item_is() -> None:
    made = item(0, "custom_tool_call", call_id="c", name="patch", input="123")
    whole = event("response.custom_tool_call_input.done", output_index=0, input="123")
    facts = observe("responses", sse([CREATED, added(0, made), whole]))
    assert facts.tool_calls == (ToolCall("patch", "123", "c", "item_0"),)


def test_items_that_overlap_are_read_once() -> None:
    call = [added(0, function_call(0, "{}")), delta(0, "function_call_arguments", '{"a')]
    facts = observe("responses", sse([CREATED, *call, *reasoning(1, ["h", "m"])]))
    assert facts.thoughts == (Thought("hm", "reasoning_summary"),)
    assert facts.tool_calls == (expected_call(0, '{"a', truncated=True),)


# --- items


def call_of(whole: Json) -> ToolCall:
    streamed = observe("responses", sse([CREATED, added(0, whole), done(0, whole), ended(output=[whole])]))
    blocking = read_body(json.dumps(response("completed", output=[whole], usage=USAGE)).encode())
    assert [call.truncated for call in streamed.tool_calls] == [call.truncated for call in blocking.tool_calls]
    assert len(streamed.tool_calls) == 1
    return streamed.tool_calls[0]


@pytest.mark.parametrize(
    ("whole", "expected"),
    [
        (
            item(0, "web_search_call", action={"type": "search", "query": "q"}),
            ToolCall("web_search_call", '{"type":"search","query":"q"}', "", "item_0"),
        ),
        (item(0, "file_search_call", queries=["q"], results=None), ToolCall("file_search_call", '["q"]', "", "item_0")),
        (item(0, "code_interpreter_call", code="1 + 1"), ToolCall("code_interpreter_call", "1 + 1", "", "item_0")),
        (item(0, "image_generation_call", result="iVBOR"), ToolCall("image_generation_call", "", "", "item_0")),
        (
            item(0, "mcp_call", name="roll", arguments='{"d":6}', server_label="dice", output="4"),
            ToolCall("roll", '{"d":6}', "", "item_0"),
        ),
        (
            item(0, "local_shell_call", call_id="c", action={"type": "exec", "command": ["ls"]}),
            ToolCall("local_shell_call", '{"type":"exec","command":["ls"]}', "c", "item_0"),
        ),
        (
            item(0, "apply_patch_call", call_id="c", operation={"type": "delete_file", "path": "x"}),
            ToolCall("apply_patch_call", '{"type":"delete_file","path":"x"}', "c", "item_0"),
        ),
        (
            item(0, "tool_search_call", call_id=None, arguments={"q": "x"}, execution="server"),
            ToolCall("tool_search_call", '{"q":"x"}', "", "item_0"),
        ),
        (
            item(0, "custom_tool_call", call_id="c", name="patch", input="*** Begin\n", namespace="n"),
            ToolCall("patch", "*** Begin\n", "c", "item_0"),
        ),
    ],
)
def test_hosted_and_custom_calls_are_recorded(whole: Json, expected: ToolCall) -> None:
    assert call_of(whole) == expected


def test_items_that_only_the_terminal_event_names_are_read() -> None:
    output = [function_call(0, "{}"), function_call(1, '{"a":1}')]
    facts = observe("responses", sse([CREATED, done(0, output[0]), ended(output=output)]))
    assert facts.tool_calls == (expected_call(0, "{}"), expected_call(1, '{"a":1}'))


def test_item_ids_that_change_from_event_to_event_do_not_double_a_call() -> None:
    events = [CREATED, *calling(0, '{"a"', ":1}"), ended(output=[function_call(0, '{"a":1}', id="yet_another")])]
    events[1][1]["item"] = events[1][1]["item"] | {"id": "another"}
    assert observe("responses", sse(events)).tool_calls == (expected_call(0, '{"a":1}'),)


def test_reasoning_text_that_servers_show_is_a_thought() -> None:
    content = [{"type": "reasoning_text", "text": "hm"}]
    whole = item(0, "reasoning", summary=[], content=content)
    events = [CREATED, added(0, whole), delta(0, "reasoning_text", "h"), delta(0, "reasoning_text", "m")]
    assert observe("responses", sse(events)).thoughts == (Thought("hm"),)
    assert observe("responses", sse([*events, done(0, whole), ended()])).thoughts == (Thought("hm"),)


# --- endings


def test_arguments_cut_by_the_token_limit_are_truncated() -> None:
    cut = function_call(1, '{"a', status="incomplete")
    ending = ended(
        "incomplete", incomplete_details={"reason": "max_output_tokens"}, output=[function_call(0, "{}"), cut]
    )
    facts = observe("responses", sse([CREATED, *calling(0, "{}"), added(1, cut), done(1, cut), ending]))
    assert facts.tool_calls == (expected_call(0, "{}"), expected_call(1, '{"a', truncated=True))
    assert facts.finish_reason == "max_output_tokens"
    assert facts.complete
    assert facts.usage is not None


def test_a_failed_response_gives_its_error() -> None:
    error = {"code": "rate_limit_exceeded", "message": "Slow down"}
    facts = observe("responses", sse([CREATED, ended("failed", error=error, usage=None)]))
    assert facts.error == ProviderError("rate_limit_exceeded", "Slow down", "rate_limit_exceeded")
    assert facts.finish_reason == "failed"
    assert facts.usage is None
    assert facts.complete


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({"code": "ERR", "message": "Wrong"}, ProviderError("ERR", "Wrong", "ERR")),
        (
            {"error": {"type": "server_error", "code": "ERR", "message": "Wrong"}},
            ProviderError("server_error", "Wrong", "ERR"),
        ),
        ({"code": None, "message": "Wrong"}, ProviderError("", "Wrong", "")),
    ],
)
def test_an_error_within_the_stream_is_read(members: Json, expected: ProviderError) -> None:
    facts = observe("responses", sse([CREATED, *saying(0, *LONG)[:-1], event("error", **members)]))
    assert facts.error == expected
    assert not facts.complete


def test_comments_behind_the_terminal_event_are_no_hindrance() -> None:
    assert observe("responses", FULL + b": keep-alive\n\n" * 20) == observe("responses", FULL)


def test_done_behind_the_terminal_event_is_no_hindrance() -> None:
    assert observe("responses", FULL + b"data: [DONE]\n\n") == observe("responses", FULL)


@given(
    st.sampled_from(["type", "response", "item", "output_index", "delta", "error", "arguments"]),
    st.sampled_from(["null", "7", '"x"', "[]", "{}", "[{}]"]),
)
@settings(deadline=None)
def test_unknown_shapes_never_make_a_stream_unreadable(member: str, value: str) -> None:
    odd = f'event: odd\ndata: {{"type":"odd","{member}":{value}}}\n\n'.encode()
    facts = observe("responses", sse([CREATED, *calling(0, "{}")]) + odd + sse([ended()]))
    assert expected_call(0, "{}") in facts.tool_calls
    assert facts.usage is not None
    assert not facts.unparsed


def test_an_error_body_gives_its_error() -> None:
    facts = read_body(b'{"error":{"message":"No","type":"authentication_error","code":"invalid_api_key"}}')
    assert facts.error == ProviderError("authentication_error", "No", "invalid_api_key")
    assert not facts.complete


# --- requests


def request(sent: Any, **members: Any) -> bytes:
    return json.dumps({"model": "gpt-x", "input": sent} | members).encode()


def test_the_prompt_is_a_string_or_the_text_of_a_last_user_item() -> None:
    assert read_request(request("hello")).prompt == "hello"
    assert read_request(request([{"role": "user", "content": "hello"}])).prompt == "hello"
    parts = [{"type": "input_text", "text": "a"}, {"type": "input_image"}, {"type": "input_text", "text": "b"}]
    assert read_request(request([{"type": "message", "role": "user", "content": parts}])).prompt == "a\nb"
    assert read_request(request([{"role": "user", "content": "x"}, {"type": "reasoning"}])).prompt is None
    assert read_request(request("hello"), "none").prompt is None
    assert read_request(request([])).prompt is None


@pytest.mark.parametrize("kind", ["function_call_output", "custom_tool_call_output", "shell_call_output"])
def test_a_last_result_links_to_the_call_it_answers(kind: str) -> None:
    items = [
        {"type": "function_call_output", "call_id": "old", "output": "0"},
        {"type": "function_call", "call_id": "a", "name": "n", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "a", "output": "1"},
        {"type": kind, "call_id": "b", "output": [{"type": "input_text", "text": "2"}]},
    ]
    facts = read_request(request(items), "full")
    assert facts.correlating_tool_call_id == "b"
    assert facts.tool_results == ("1", "2")


def test_what_else_a_request_says() -> None:
    facts = read_request(request("x", stream=True, background=True))
    assert (facts.stream, facts.background) == (True, True)
    assert not read_request(request("x", background="true")).background


def test_an_item_without_a_number_or_an_id_is_read_once() -> None:
    first = {"type": "response.output_item.done", "item": {"type": "function_call", "name": "f", "arguments": "{}"}}
    assert len(observe("responses", sse([first])).tool_calls) == 1
