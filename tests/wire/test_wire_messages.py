"""Anthropic Messages: requests, blocking answers and streams."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ostiary.wire.anthropic_messages import read_body, read_request
from ostiary.wire.facts import Content, ProviderError, Thought, ToolCall
from tests.support.wire_streams import DISTURBANCES, WORDS, Json, observe, pieces_of, sse, torn_everywhere

START_USAGE = {"input_tokens": 11, "cache_read_input_tokens": 7, "cache_creation_input_tokens": 3, "output_tokens": 1}


def start(usage: Json | None = None) -> tuple[str, Json]:
    message = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-x", "content": []}
    return "message_start", {"type": "message_start", "message": message | {"usage": usage or START_USAGE}}


def opened(index: int, block: Json) -> tuple[str, Json]:
    return "content_block_start", {"type": "content_block_start", "index": index, "content_block": block}


def delta(index: int, kind: str, member: str, text: str) -> tuple[str, Json]:
    return "content_block_delta", {
        "type": "content_block_delta",
        "index": index,
        "delta": {"type": kind, member: text},
    }


def closed(index: int) -> tuple[str, Json]:
    return "content_block_stop", {"type": "content_block_stop", "index": index}


def end(stop_reason: str | None, usage: Json) -> tuple[str, Json]:
    return "message_delta", {"type": "message_delta", "delta": {"stop_reason": stop_reason}, "usage": usage}


STOP = ("message_stop", {"type": "message_stop"})
PING = ("ping", {"type": "ping"})


def tool(index: int, *deltas: str, name: str = "Read", kind: str = "tool_use") -> list[tuple[str, Json]]:
    block = {"type": kind, "id": f"toolu_{index}", "name": name, "input": {}}
    return [
        opened(index, block),
        *(delta(index, "input_json_delta", "partial_json", d) for d in deltas),
        closed(index),
    ]


def text(index: int, *deltas: str) -> list[tuple[str, Json]]:
    return [
        opened(index, {"type": "text", "text": ""}),
        *(delta(index, "text_delta", "text", d) for d in deltas),
        closed(index),
    ]


def thinking(index: int, *deltas: str) -> list[tuple[str, Json]]:
    return [
        opened(index, {"type": "thinking", "thinking": "", "signature": ""}),
        *(delta(index, "thinking_delta", "thinking", d) for d in deltas),
        delta(index, "signature_delta", "signature", "Eu8B=="),
        closed(index),
    ]


LONG = ['words and "quotes" and \n lines ' * 8] * 30
"""Text enough that a reader passes over it."""

FULL = sse(
    [
        start(),
        *thinking(0, "Let me ", 'see "foo"'),
        PING,
        *text(1, *LONG),
        *tool(2, "", '{"path": "/tmp', '/é"}'),
        *text(3, *LONG),
        *tool(4, '{"a":1}', name="Grep"),
        end("tool_use", {"output_tokens": 61}),
        STOP,
    ]
)


def test_a_stream_gives_its_facts() -> None:
    facts = observe("messages", FULL)
    assert facts.response_id == "msg_1"
    assert facts.model == "claude-x"
    assert facts.tool_calls == (
        ToolCall("Read", '{"path": "/tmp/é"}', "toolu_2"),
        ToolCall("Grep", '{"a":1}', "toolu_4"),
    )
    assert facts.thoughts == (Thought('Let me see "foo"'),)
    assert facts.finish_reason == "tool_use"
    assert facts.usage is not None
    assert (facts.usage.input_tokens, facts.usage.output_tokens) == (11, 61)
    assert (facts.usage.cache_read_input_tokens, facts.usage.cache_write_input_tokens) == (7, 3)
    assert json.loads(facts.usage.raw) == [START_USAGE, {"output_tokens": 61}]
    assert facts.complete
    assert not facts.unparsed
    assert facts.output_text == ""


def test_output_text_is_kept_only_when_asked_for() -> None:
    assert observe("messages", FULL, content="full").output_text == "".join(LONG * 2)


def test_nothing_but_usage_is_kept_when_no_content_may_be() -> None:
    facts = observe("messages", FULL, content="none")
    assert (facts.tool_calls, facts.thoughts, facts.output_text) == ((), (), "")
    assert facts.usage is not None
    assert facts.usage.output_tokens == 61
    assert facts.finish_reason == "tool_use"
    assert facts.complete


@pytest.mark.parametrize("content", ["none", "prompts", "full"])
@pytest.mark.parametrize("disturbance", DISTURBANCES)
def test_facts_survive(disturbance: str, content: Any) -> None:
    disturbed = DISTURBANCES[disturbance](FULL)
    assert observe("messages", disturbed, content=content) == observe("messages", FULL, content=content)


def test_spaced_json_gives_the_same_facts() -> None:
    events = [
        start(),
        *thinking(0, "hm"),
        *text(1, *LONG),
        *tool(2, '{"a"', ":1}"),
        end("tool_use", {"output_tokens": 5}),
    ]
    spaced, compact = observe("messages", sse(events, spaced=True)), observe("messages", sse(events))
    assert spaced.tool_calls == compact.tool_calls == (ToolCall("Read", '{"a":1}', "toolu_2"),)
    assert spaced.thoughts == compact.thoughts
    assert spaced.usage is not None
    assert spaced.usage.output_tokens == 5


def test_facts_do_not_depend_on_where_the_stream_is_torn() -> None:
    short = sse(
        [
            start(),
            *thinking(0, "hm\n"),
            *text(1, "hello"),
            *tool(2, '{"a"', ":1}"),
            end("tool_use", {"output_tokens": 5}),
            STOP,
        ]
    )
    whole = observe("messages", short)
    assert whole.tool_calls == (ToolCall("Read", '{"a":1}', "toolu_2"),)
    for at in torn_everywhere(short):
        assert observe("messages", short, cuts=[at], compact_at=[0]) == whole
    crlf = short.replace(b"\n", b"\r\n")
    for at in torn_everywhere(crlf):
        assert observe("messages", crlf, cuts=[at], compact_at=[0]) == whole


@st.composite
def conversations(draw: st.DrawFn) -> tuple[list[tuple[str, Json]], list[ToolCall], list[Thought]]:
    """Blocks in order or overlapping, with awkward texts, and the facts that they hold."""
    runs: list[list[tuple[str, Json]]] = []
    calls: list[ToolCall] = []
    thoughts: list[Thought] = []
    for index in range(draw(st.integers(0, 4))):
        whole, deltas = draw(pieces_of())
        match draw(st.sampled_from(["text", "thinking", "tool_use", "server_tool_use", "redacted_thinking", "news"])):
            case "text":
                runs.append(text(index, *deltas, *(LONG if draw(st.booleans()) else [])))
            case "thinking":
                runs.append(thinking(index, *deltas))
                thoughts += [Thought(whole)] if whole else []
            case "redacted_thinking":
                runs.append([opened(index, {"type": "redacted_thinking", "data": whole}), closed(index)])
            case "news":
                runs.append([opened(index, {"type": "news"}), delta(index, "news_delta", "news", whole), closed(index)])
            case kind:
                runs.append(tool(index, *deltas, kind=kind))
                calls.append(ToolCall("Read", whole or "{}", f"toolu_{index}"))
    events = [start(), *merged(draw, runs), end("tool_use", {"output_tokens": 5}), STOP]
    return events, calls, thoughts


def merged(draw: st.DrawFn, runs: list[list[Any]]) -> list[Any]:
    if not draw(st.booleans()):
        return [event for run in runs for event in run]
    # Overlapping: openings keep their order, the rest is shuffled between the blocks.
    out = [run[0] for run in runs]
    rests = [run[1:] for run in runs if run[1:]]
    while rests:
        at = draw(st.integers(0, len(rests) - 1))
        out.append(rests[at].pop(0))
        rests = [rest for rest in rests if rest]
    return out


@settings(max_examples=60, deadline=None)
@given(
    conversations(), st.sampled_from(sorted(DISTURBANCES)), st.lists(st.integers(0, 20_000), max_size=5), st.booleans()
)
def test_any_conversation_is_read_right(conversation: Any, disturbance: str, cuts: list[int], compacting: bool) -> None:
    events, calls, thoughts = conversation
    stream = sse(events)
    for form in (stream, DISTURBANCES[disturbance](stream)):
        facts = observe("messages", form, cuts=cuts, compact_at=range(8) if compacting else ())
        assert list(facts.tool_calls) == calls
        assert list(facts.thoughts) == thoughts
        assert facts.usage is not None
        assert facts.usage.output_tokens == 5
        assert facts.complete
        assert not facts.unparsed


# --- usage


def test_usage_is_cumulative_and_the_last_number_wins() -> None:
    final = {
        "input_tokens": None,
        "cache_read_input_tokens": 9,
        "output_tokens": 40,
        "server_tool_use": {"web_search_requests": 2},
    }
    first = START_USAGE | {
        "service_tier": "standard",
        "cache_creation": {"ephemeral_5m_input_tokens": 2, "ephemeral_1h_input_tokens": 1},
        "server_tool_use": {"web_search_requests": 1, "web_fetch_requests": 1},
    }
    facts = observe("messages", sse([start(first), end(None, {"output_tokens": 20}), end("end_turn", final), STOP]))
    usage = facts.usage
    assert usage is not None
    assert (usage.input_tokens, usage.output_tokens, usage.cache_read_input_tokens) == (11, 40, 9)
    assert usage.metadata == {
        "cache_ephemeral_5m_input": 2,
        "cache_ephemeral_1h_input": 1,
        "web_search_requests": 2,
        "web_fetch_requests": 1,
        "service_tier": "standard",
    }
    assert json.loads(usage.raw) == [first, final]


ITERATIONS = [
    {"type": "compaction", "input_tokens": 180_000, "output_tokens": 3500, "cache_read_input_tokens": 7},
    {"type": "message", "model": "claude-x", "input_tokens": 11, "output_tokens": 20},
    {"type": "advisor_message", "model": "claude-y", "input_tokens": 500, "output_tokens": 60},
    {"type": "compaction", "input_tokens": 20_000, "output_tokens": 500, "cache_creation_input_tokens": None},
    {"type": "something_new", "input_tokens": 4},
    "odd",
]
LEFT_OUT = {
    "compaction_input": 200_000,
    "compaction_output": 4000,
    "compaction_cache_read_input": 7,
    "advisor_input": 500,
    "advisor_output": 60,
}
"""What the totals beside them do not include."""


def test_what_a_stream_cost_besides_its_answer_is_told_by_kind() -> None:
    final = {"output_tokens": 20, "iterations": ITERATIONS}
    facts = observe("messages", sse([start(), *text(0, *["some words"] * 60), end("end_turn", final), STOP]))
    assert facts.usage is not None
    assert (facts.usage.input_tokens, facts.usage.output_tokens) == (11, 20)
    assert facts.usage.metadata == LEFT_OUT
    assert facts.model == "claude-x"


def test_what_a_blocking_answer_cost_besides_itself_is_told_by_kind() -> None:
    usage = {"input_tokens": 11, "output_tokens": 20, "speed": "fast", "iterations": ITERATIONS}
    answer = {"id": "msg_1", "type": "message", "model": "claude-x", "content": [], "usage": usage}
    facts = read_body(json.dumps(answer).encode())
    assert facts.usage is not None
    assert (facts.usage.input_tokens, facts.usage.output_tokens) == (11, 20)
    assert facts.usage.metadata == LEFT_OUT | {"speed": "fast"}
    assert json.loads(facts.usage.raw) == usage


@pytest.mark.parametrize("content", ["none", "prompts", "full"])
def test_a_model_that_took_over_in_the_middle_of_a_stream_is_the_one_that_answered(content: Content) -> None:
    served = {"type": "fallback_message", "model": "claude-y", "input_tokens": 11, "output_tokens": 20}
    declined = {"type": "message", "model": "claude-x", "input_tokens": 11, "output_tokens": 2}
    final = {"output_tokens": 20, "iterations": [declined, served]}
    boundary = [opened(1, {"type": "fallback", "from": {"model": "claude-x"}, "to": {"model": "claude-y"}}), closed(1)]
    said = [*text(0, *["some words"] * 60), *boundary, *text(2, *["some words"] * 60)]
    facts = observe("messages", sse([start(), *said, end("end_turn", final), STOP]), content=content)
    assert facts.model == "claude-y"
    assert facts.usage is not None
    assert facts.usage.metadata == {}


@pytest.mark.parametrize("odd", [None, {}, "many", [None, 3, {"type": 4, "model": 5}, {"type": "fallback_message"}]])
def test_iterations_of_an_unknown_shape_break_nothing(odd: Any) -> None:
    facts = observe("messages", sse([start(), end("end_turn", {"output_tokens": 20, "iterations": odd}), STOP]))
    assert facts.usage is not None
    assert (facts.usage.output_tokens, facts.usage.metadata, facts.model) == (20, {}, "claude-x")


def test_numbers_that_make_no_sense_are_clamped_and_named() -> None:
    facts = observe(
        "messages", sse([start({"input_tokens": -4, "output_tokens": 1}), end("end_turn", {"output_tokens": -1})])
    )
    assert facts.usage is not None
    assert (facts.usage.input_tokens, facts.usage.output_tokens) == (0, 0)
    assert facts.usage.metadata["clamped"] == "input_tokens,output_tokens"


@pytest.mark.parametrize("usage", ["null", "[]", '"many"', '{"output_tokens":"12"}', '{"output_tokens":true}'])
def test_usage_of_an_unknown_shape_breaks_nothing(usage: str) -> None:
    stream = f'event: message_delta\ndata: {{"type":"message_delta","delta":{{"stop_reason":"end_turn"}},"usage":{usage}}}\n\n'
    facts = observe("messages", stream.encode())
    assert facts.finish_reason == "end_turn"
    assert facts.usage is None or facts.usage.output_tokens == 0
    assert not facts.unparsed


# --- what is cut


def test_a_tool_input_cut_by_the_token_limit_is_truncated_and_not_completed() -> None:
    stream = sse(
        [start(), *tool(0, '{"a":1}'), *tool(1, '{"path": "/tm'), end("max_tokens", {"output_tokens": 9}), STOP]
    )
    facts = observe("messages", stream)
    assert facts.tool_calls == (
        ToolCall("Read", '{"a":1}', "toolu_0"),
        ToolCall("Read", '{"path": "/tm', "toolu_1", truncated=True),
    )
    assert facts.complete


def test_a_tool_call_cut_before_its_first_delta_is_truncated() -> None:
    limited = observe("messages", sse([start(), *tool(0), end("max_tokens", {"output_tokens": 9}), STOP]))
    assert limited.tool_calls == (ToolCall("Read", "{}", "toolu_0", truncated=True),)
    whole = observe("messages", sse([start(), *tool(0), end("tool_use", {"output_tokens": 9}), STOP]))
    assert whole.tool_calls == (ToolCall("Read", "{}", "toolu_0"),)


def test_a_call_without_input_before_the_cut_one_is_whole() -> None:
    facts = observe(
        "messages", sse([start(), *tool(0), *tool(1, '{"a'), end("max_tokens", {"output_tokens": 9}), STOP])
    )
    assert [(call.input, call.truncated) for call in facts.tool_calls] == [("{}", False), ('{"a', True)]


@pytest.mark.parametrize("content", ["prompts", "full"])
def test_text_under_the_index_of_a_tool_call_is_no_input(content: Any) -> None:
    events = tool(0, '{"a"', ":1}")
    stray = delta(0, "text_delta", "text", "\n")
    facts = observe("messages", sse([start(), *events[:2], stray, *events[2:], STOP]), content=content)
    assert facts.tool_calls == (ToolCall("Read", '{"a":1}', "toolu_0"),)


def test_a_cut_stream_keeps_what_was_seen() -> None:
    stream = sse([start(), *thinking(0, "hm"), *tool(1, '{"path": "/tmp/', "x")])[:-80]
    facts = observe("messages", stream)
    assert facts.thoughts == (Thought("hm"),)
    assert facts.tool_calls[0].truncated
    assert facts.tool_calls[0].input.startswith('{"path": "/tmp/')
    assert facts.usage is not None
    assert not facts.complete


def test_an_error_within_the_stream_is_read() -> None:
    error = ("error", {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}})
    for before in ([], text(0, *LONG)[:-1]):
        facts = observe("messages", sse([start(), *before, error]))
        assert facts.error == ProviderError("overloaded_error", "Overloaded")
        assert facts.usage is not None
        assert not facts.complete


def test_input_that_stands_in_the_block_start_is_kept() -> None:
    block = {"type": "tool_use", "id": "t", "name": "Read", "input": {"path": "/x"}}
    facts = observe(
        "messages", sse([start(), opened(0, block), closed(0), end("tool_use", {"output_tokens": 1}), STOP])
    )
    assert facts.tool_calls == (ToolCall("Read", '{"path":"/x"}', "t"),)


# --- what is odd


@given(
    st.sampled_from(["type", "index", "delta", "content_block", "message", "usage", "error"]),
    st.sampled_from(["null", "7", '"x"', "[]", "{}", "[{}]"]),
)
@settings(deadline=None)
def test_unknown_shapes_never_make_a_stream_unreadable(member: str, value: str) -> None:
    odd = f'event: odd\ndata: {{"type":"odd","{member}":{value}}}\n\n'.encode()
    stream = sse([start(), *tool(0, '{"a":1}')]) + odd + sse([end("tool_use", {"output_tokens": 5}), STOP])
    facts = observe("messages", stream)
    assert facts.tool_calls == (ToolCall("Read", '{"a":1}', "toolu_0"),)
    assert facts.usage is not None
    assert facts.usage.output_tokens == 5
    assert not facts.unparsed


def test_bad_utf8_is_replaced_and_the_rest_is_read() -> None:
    stream = sse([start(), *tool(0, '{"a":"X"}'), end("tool_use", {"output_tokens": 5}), STOP]).replace(
        b"X", b"caf\xff"
    )
    facts = observe("messages", stream)
    assert facts.tool_calls == (ToolCall("Read", '{"a":"caf\ufffd"}', "toolu_0"),)
    assert facts.usage is not None
    assert facts.usage.output_tokens == 5


def test_a_lone_surrogate_does_not_hide_its_event() -> None:
    stream = sse([start(), *tool(0, '{"a":"X"}'), end("tool_use", {"output_tokens": 5}), STOP]).replace(
        b"X", b"\\ud83d"
    )
    facts = observe("messages", stream)
    assert facts.tool_calls == (ToolCall("Read", '{"a":"?"}', "toolu_0"),)


def test_an_event_that_is_not_json_marks_the_record_and_hides_nothing_else() -> None:
    stream = (
        sse([start()])
        + b"event: x\ndata: {oops\n\n"
        + sse([*tool(0, '{"a":1}'), end("tool_use", {"output_tokens": 5}), STOP])
    )
    facts = observe("messages", stream)
    assert facts.unparsed
    assert facts.problem
    assert facts.tool_calls == (ToolCall("Read", '{"a":1}', "toolu_0"),)
    assert facts.complete


# --- blocking answers


def answer(**members: Any) -> bytes:
    return json.dumps({"id": "msg_1", "type": "message", "model": "claude-x", "usage": START_USAGE} | members).encode()


def test_a_blocking_answer_gives_its_facts() -> None:
    facts = read_body(
        answer(
            content=[
                {"type": "thinking", "thinking": "hm", "signature": "x"},
                {"type": "redacted_thinking", "data": "x"},
                {"type": "text", "text": "hello", "citations": None},
                {"type": "server_tool_use", "id": "srv", "name": "web_search", "input": {"query": "q"}},
                {"type": "web_search_tool_result", "tool_use_id": "srv", "content": [{"type": "web_search_result"}]},
                {"type": "tool_use", "id": "t", "name": "Read", "input": {"path": "/é"}},
            ],
            stop_reason="tool_use",
        ),
        "full",
    )
    assert facts.thoughts == (Thought("hm"),)
    assert facts.tool_calls == (
        ToolCall("web_search", '{"query": "q"}', "srv"),
        ToolCall("Read", '{"path": "/\\u00e9"}', "t"),
    )
    assert facts.output_text == "hello"
    assert facts.finish_reason == "tool_use"
    assert facts.usage is not None
    assert json.loads(facts.usage.raw) == START_USAGE
    assert facts.complete


def test_a_blocking_tool_call_at_the_token_limit_is_truncated() -> None:
    tool_use = {"type": "tool_use", "id": "t", "name": "Read", "input": {}}
    facts = read_body(answer(content=[tool_use, tool_use], stop_reason="max_tokens"))
    assert [call.truncated for call in facts.tool_calls] == [False, True]


def test_an_error_body_gives_its_error() -> None:
    facts = read_body(b'{"type":"error","error":{"type":"rate_limit_error","message":"Slow down"},"request_id":"r"}')
    assert facts.error == ProviderError("rate_limit_error", "Slow down")
    assert not facts.complete


def test_a_member_of_unknown_shape_hides_only_itself() -> None:
    facts = read_body(
        answer(content=[7, {"type": "tool_use", "id": 5, "name": "Read", "input": 1}], stop_reason={"x": 1})
    )
    assert facts.tool_calls == (ToolCall("Read", "1", ""),)
    assert facts.response_id == "msg_1"
    assert not facts.unparsed


# --- requests


def request(*messages: Any, **members: Any) -> bytes:
    return json.dumps({"model": "claude-x", "messages": messages} | members).encode()


def user(*parts: Any) -> Json:
    return {"role": "user", "content": list(parts)}


def result(tool_use_id: str, content: Any = "done") -> Json:
    return {"type": "tool_result", "tool_use_id": tool_use_id, "content": content}


def test_the_prompt_is_the_last_text_of_a_last_user_message() -> None:
    assert read_request(request({"role": "user", "content": "hello"})).prompt == "hello"
    body = request(user({"type": "text", "text": "a"}, {"type": "image", "source": {}}, {"type": "text", "text": "b"}))
    assert read_request(body).prompt == "b"
    assert read_request(body, "none").prompt is None
    assert read_request(request({"role": "user", "content": "x"}, {"role": "assistant", "content": "y"})).prompt is None
    assert read_request(request(user(result("t")))).prompt is None
    assert read_request(request()).prompt is None


def test_the_last_tool_result_links_to_the_call_it_answers() -> None:
    assert read_request(request(user(result("t1"), result("t2"), result("")))).correlating_tool_call_id == "t2"
    assert read_request(request(user(result("t1"), {"type": "text", "text": "go on"}))).prompt == "go on"
    assert read_request(request(user(result("t1")), user({"type": "text", "text": "x"}))).correlating_tool_call_id == ""


def test_new_tool_results_are_kept_only_with_full_content() -> None:
    old = [user(result("t0", "old")), {"role": "assistant", "content": []}]
    parts = [{"type": "text", "text": "b"}, {"type": "image", "source": {}}, {"type": "text", "text": "c"}]
    body = request(*old, user(result("t1", "a"), result("t2", parts)), user({"type": "text", "text": "x"}))
    assert read_request(body, "full").tool_results == ("a", "b\nc")
    assert read_request(body, "prompts").tool_results == ()


def test_what_else_a_request_says() -> None:
    facts = read_request(request(stream=True, metadata={"user_id": "user_1_account__session_2"}))
    assert facts.stream
    assert facts.user_id == "user_1_account__session_2"
    assert not read_request(request(stream="true")).stream


@given(WORDS)
def test_any_text_is_read_as_it_is(prompt: str) -> None:
    assert (read_request(request({"role": "user", "content": prompt})).prompt or "") == prompt
