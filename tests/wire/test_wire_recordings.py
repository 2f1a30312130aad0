"""Recorded traffic of real providers: what each implies, whole, torn, compressed and in other framings."""

import json
from typing import Any

import pytest

from ostiary.wire.content_coding import MAX_RESPONSE
from ostiary.wire.errors import classify, read_error
from ostiary.wire.facts import ResponseFacts
from ostiary.wire.formats import read_request
from tests.support.wire_streams import DISTURBANCES, RECORDINGS, SSE, Recording, observe, recordings

pytestmark = pytest.mark.skipif(not RECORDINGS.is_dir(), reason="recorded traffic is not on this machine")

ALL = list(recordings()) if RECORDINGS.is_dir() else []
ANSWERS = [recording for recording in ALL if recording.section != "request" and recording.status == 200]


def named(recording: Recording) -> str:
    return f"{recording.name}:{recording.section}"


every_answer = pytest.mark.parametrize("recording", ANSWERS, ids=named)
every_stream = pytest.mark.parametrize("recording", [a for a in ANSWERS if a.content_type == SSE], ids=named)


def seen(recording: Recording, body: bytes | None = None, **how: Any) -> ResponseFacts:
    data = recording.body if body is None else body
    return observe(recording.format, data, content_type=recording.content_type, **how)


def events_of(recording: Recording) -> list[Any]:
    lines = [line[5:].strip() for line in recording.body.splitlines() if line.startswith(b"data:")]
    return [json.loads(line) for line in lines if line != b"[DONE]"]


@every_answer
def test_facts_are_what_a_plain_reading_gives(recording: Recording) -> None:
    """A second reading, written without care for speed: SDK style, one `json.loads` an event."""
    streamed = recording.content_type == SSE
    objects = events_of(recording) if streamed else [json.loads(recording.body)]
    if "fallthrough" in recording.name:
        return
    facts = seen(recording)
    assert not facts.unparsed
    reader = {"messages": plain_messages, "chat_completions": plain_chat, "responses": plain_responses}
    expected = reader[recording.format](objects, streamed=streamed)
    usage = facts.usage
    assert {
        "id": facts.response_id,
        "model": facts.model,
        "usage": None if usage is None else (usage.input_tokens, usage.output_tokens, usage.cache_read_input_tokens),
        "calls": [(call.tool, json.loads(call.input), call.tool_call_id) for call in facts.tool_calls],
        "thoughts": [thought.content for thought in facts.thoughts],
        "complete": facts.complete,
        "text": seen(recording, content="full").output_text,
    } == expected


def plain_messages(objects: list[Any], *, streamed: bool) -> dict[str, Any]:
    if streamed:
        message = objects[0]["message"]
        blocks: list[Any] = []
        for event in objects:
            if event["type"] == "content_block_start":
                blocks.append({"json": ""} | event["content_block"])
            elif event["type"] == "content_block_delta":
                delta = event["delta"]
                member = {"text_delta": "text", "thinking_delta": "thinking", "input_json_delta": "json"}.get(
                    delta["type"]
                )
                if member:
                    blocks[-1][member] += delta.get("partial_json", delta.get(member))
            elif event["type"] == "message_delta":
                message["usage"] |= event["usage"]
        for block in blocks:
            if block["type"] == "tool_use":
                block["input"] = json.loads(block["json"])
    else:
        message, blocks = objects[0], objects[0]["content"]
    usage = message["usage"]
    return {
        "id": message["id"],
        "model": message["model"],
        "usage": (usage["input_tokens"], usage["output_tokens"], usage["cache_read_input_tokens"]),
        "calls": [(b["name"], b["input"], b["id"]) for b in blocks if b["type"] == "tool_use"],
        "thoughts": [b["thinking"] for b in blocks if b["type"] == "thinking"],
        "complete": objects[-1]["type"] in ("message_stop", "message"),
        "text": "".join(b["text"] for b in blocks if b["type"] == "text"),
    }


def plain_chat(objects: list[Any], *, streamed: bool) -> dict[str, Any]:
    messages = [choice["delta" if streamed else "message"] for chunk in objects for choice in chunk["choices"]]
    calls: dict[int, list[Any]] = {}
    for message in messages:
        for index, tool in enumerate(message.get("tool_calls") or ()):
            call = calls.setdefault(tool.get("index", index), [tool["function"].get("name"), "", tool.get("id")])
            call[1] += tool["function"]["arguments"]
    usage = next((chunk["usage"] for chunk in reversed(objects) if chunk.get("usage")), None)
    cached = usage["prompt_tokens_details"]["cached_tokens"] if usage else 0
    return {
        "id": objects[0]["id"],
        "model": objects[0]["model"],
        "usage": (usage["prompt_tokens"] - cached, usage["completion_tokens"], cached) if usage else None,
        "calls": [(name, json.loads(arguments), call_id) for name, arguments, call_id in calls.values()],
        "thoughts": [],
        "complete": True,
        "text": "".join(message.get("content") or "" for message in messages),
    }


def plain_responses(objects: list[Any], *, streamed: bool) -> dict[str, Any]:
    last = objects[-1].get("response", {}) if streamed else objects[0]
    first = objects[0]["response"] if streamed else objects[0]
    usage = last.get("usage")
    cached = usage["input_tokens_details"]["cached_tokens"] if usage else 0
    output = last.get("output", [])
    return {
        "id": first["id"],
        "model": first.get("model", ""),
        "usage": (usage["input_tokens"] - cached, usage["output_tokens"], cached) if usage else None,
        "calls": [
            (i["name"], json.loads(i["arguments"]), i["call_id"]) for i in output if i["type"] == "function_call"
        ],
        "thoughts": [part["text"] for i in output if i["type"] == "reasoning" for part in i["summary"]],
        "complete": bool(last),
        "text": "".join(part["text"] for i in output if i["type"] == "message" for part in i["content"]),
    }


@every_answer
def test_facts_do_not_depend_on_where_the_answer_is_torn(recording: Recording) -> None:
    whole = seen(recording)
    size = len(recording.body)
    for at in range(0, size, max(1, size // 400)):
        assert seen(recording, cuts=[at], compact_at=[0]) == whole
    assert seen(recording, cuts=range(0, size, 7), compact_at=range(0, size, 11)) == whole


@every_stream
@pytest.mark.parametrize("disturbance", [name for name in DISTURBANCES if name != "several data lines"])
def test_facts_survive_other_framings(recording: Recording, disturbance: str) -> None:
    assert seen(recording, DISTURBANCES[disturbance](recording.body)) == seen(recording)


@every_stream
def test_a_cut_stream_never_gives_more_than_the_whole(recording: Recording) -> None:
    whole = seen(recording)
    size = len(recording.body)
    for at in range(0, size, max(1, size // 300)):
        part = seen(recording, recording.body[:at])
        assert len(part.tool_calls) <= len(whole.tool_calls)
        for got, full in zip(part.tool_calls, whole.tool_calls, strict=False):
            assert got.tool == full.tool
            assert got.input == full.input or got.truncated
        assert part.response_id in ("", whole.response_id)
        assert not part.unparsed


@pytest.mark.parametrize("recording", [r for r in ALL if r.section == "request"], ids=named)
def test_requests_are_read(recording: Recording) -> None:
    body = json.loads(recording.body)
    facts = read_request(recording.format, recording.body)
    assert facts.model == body["model"]
    assert facts.stream is (body.get("stream") is True)
    last = body.get("messages", body.get("input"))
    if not isinstance(last, str):
        content = last[-1]["content"]
        last = content if isinstance(content, str) else content[-1]["text"]
    assert facts.prompt == last


@pytest.mark.parametrize("recording", [r for r in ALL if r.status >= 400], ids=named)
def test_error_answers_are_read(recording: Recording) -> None:
    sent = json.loads(recording.body)["error"]
    error = read_error(recording.format, recording.content_type, recording.body)
    assert (error.type, error.message, error.code) == (sent["type"], sent["message"], sent["code"])
    kind = classify(recording.format, recording.status, error)
    assert kind == {400: "bad_request", 401: "unauthorized"}[recording.status]


def test_errors_within_streams_are_read() -> None:
    errors = {r.name: seen(r).error for r in ANSWERS if "stream_error" in r.name}
    assert {name: (e.type, e.message) for name, e in errors.items() if e} == {
        "anthropic/stream_error.txtar": ("api_error", "Overloaded"),
        "openai/responses/streaming/stream_error.txtar": ("ERR_SOMETHING", "Something went wrong"),
    }


def test_no_recording_comes_near_the_cap() -> None:
    assert max((len(r.body) for r in ALL), default=0) < MAX_RESPONSE
