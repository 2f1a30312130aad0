"""The official SDKs against the fake provider: they must not be able to tell."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import anthropic
import openai
import pytest

from ostiary.fake import serve

T = TypeVar("T")

SCHEMA: Any = {
    "type": "object",
    "properties": {"path": {"type": "string"}, "lines": {"type": "integer"}},
    "required": ["path", "lines"],
}
CHAT_TOOL: Any = {"type": "function", "function": {"name": "read_file", "parameters": SCHEMA}}
RESPONSES_TOOL: Any = {"type": "function", "name": "read_file", "parameters": SCHEMA, "strict": False}
CLAUDE_TOOL: Any = {"name": "Read", "input_schema": SCHEMA}
ASK: Any = [{"role": "user", "content": "say this back to me"}]


def with_openai(use: Callable[[openai.AsyncOpenAI], Awaitable[T]], key: str = "sk-good") -> T:
    async def run() -> T:
        async with (
            await serve() as fake,
            openai.AsyncOpenAI(base_url=f"{fake.url}/v1", api_key=key, max_retries=0, timeout=20) as client,
        ):
            return await use(client)

    return asyncio.run(run())


def with_anthropic(use: Callable[[anthropic.AsyncAnthropic], Awaitable[T]], key: str = "sk-good") -> T:
    async def run() -> T:
        async with (
            await serve() as fake,
            anthropic.AsyncAnthropic(base_url=fake.url, api_key=key, max_retries=0, timeout=20) as client,
        ):
            return await use(client)

    return asyncio.run(run())


# --- Chat Completions


def test_chat_echoes_the_last_user_prompt() -> None:
    answer = with_openai(lambda client: client.chat.completions.create(model="gpt-4.1", messages=ASK))
    assert answer.choices[0].message.content == "say this back to me"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


@pytest.mark.parametrize("include_usage", [False, True])
def test_chat_stream_reports_usage_only_when_asked(include_usage: bool) -> None:
    async def use(client: openai.AsyncOpenAI) -> list[Any]:
        more: Any = {"stream_options": {"include_usage": True}} if include_usage else {}
        return [
            chunk
            async for chunk in await client.chat.completions.create(model="gpt-4.1", messages=ASK, stream=True, **more)
        ]

    chunks = with_openai(use)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == "say this back to me"
    assert len({chunk.id for chunk in chunks}) == 1
    reporting = [chunk for chunk in chunks if chunk.usage is not None]
    if include_usage:
        assert [chunk.choices for chunk in reporting] == [[]]
        assert reporting[0] is chunks[-1]
    else:
        assert not reporting
        assert all(chunk.choices for chunk in chunks)


def test_chat_calls_tools_in_parallel_on_demand() -> None:
    async def use(client: openai.AsyncOpenAI) -> Any:
        async with client.chat.completions.stream(
            model="fake-parallel",
            messages=ASK,
            tools=[CHAT_TOOL],
        ) as stream:
            return await stream.get_final_completion()

    completion = with_openai(use)
    calls = completion.choices[0].message.tool_calls
    assert [call.function.name for call in calls] == ["read_file", "read_file"]
    assert len({call.id for call in calls}) == 2
    assert all(json.loads(call.function.arguments) == {"path": "path", "lines": 1} for call in calls)
    assert completion.choices[0].finish_reason == "tool_calls"


def test_chat_answers_in_words_after_a_tool_result() -> None:
    messages: Any = [
        *ASK,
        {
            "role": "assistant",
            "tool_calls": [{"id": "call_1", "type": "function", "function": {"name": "read_file", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "done"},
    ]
    answer = with_openai(
        lambda client: client.chat.completions.create(model="gpt-4.1", messages=messages, tools=[CHAT_TOOL])
    )
    assert answer.choices[0].message.tool_calls is None
    assert answer.choices[0].message.content == "say this back to me"


# --- Responses


def test_responses_blocking_and_streaming_give_the_same_response() -> None:
    request: Any = {"model": "gpt-6-sol", "input": "say this back", "reasoning": {"summary": "auto"}}

    async def use(client: openai.AsyncOpenAI) -> Any:
        blocking = await client.responses.create(**request)
        async with client.responses.stream(**request) as stream:
            numbers = [event.sequence_number async for event in stream]
            return blocking, await stream.get_final_response(), numbers

    blocking, streamed, numbers = with_openai(use)
    assert blocking.output_text == streamed.output_text == "say this back"
    assert [item.type for item in streamed.output] == ["reasoning", "message"]
    assert streamed.output[0].summary[0].text == blocking.output[0].summary[0].text
    assert streamed.usage.output_tokens == blocking.usage.output_tokens
    assert streamed.usage.output_tokens_details.reasoning_tokens > 0
    assert streamed.id != blocking.id
    assert numbers == list(range(len(numbers)))


def test_responses_call_functions_and_free_form_tools() -> None:
    tools: Any = [RESPONSES_TOOL, {"type": "custom", "name": "apply_patch"}, {"type": "web_search"}]

    async def use(client: openai.AsyncOpenAI) -> Any:
        async with client.responses.stream(model="fake-parallel", input="patch it", tools=tools) as stream:
            return await stream.get_final_response()

    response = with_openai(use)
    assert [item.type for item in response.output] == ["function_call", "custom_tool_call"]
    assert json.loads(response.output[0].arguments) == {"path": "path", "lines": 1}
    assert response.output[1].input == "patch it"
    assert len(response.tools) == 3  # the request's own, repeated


def test_responses_truncated_answer_is_incomplete() -> None:
    response = with_openai(
        lambda client: client.responses.create(model="fake-truncated", input="x", tools=[RESPONSES_TOOL])
    )
    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    with pytest.raises(json.JSONDecodeError):
        json.loads(response.output[-1].arguments)  # type: ignore[union-attr]


# --- Messages


def test_messages_blocking_with_thinking_and_tool() -> None:
    message = with_anthropic(
        lambda client: client.messages.create(
            model="claude-sonnet-5-5",
            max_tokens=100,
            messages=ASK,
            tools=[CLAUDE_TOOL],
            thinking={"type": "enabled", "budget_tokens": 1024},
        )
    )
    assert [block.type for block in message.content] == ["thinking", "text", "tool_use"]
    assert message.content[2].input == {"path": "path", "lines": 1}  # type: ignore[union-attr]
    assert message.stop_reason == "tool_use"


def test_messages_stream_accumulates_to_the_blocking_answer() -> None:
    request: Any = {"model": "fake-parallel", "max_tokens": 100, "messages": ASK, "tools": [CLAUDE_TOOL]}

    async def use(client: anthropic.AsyncAnthropic) -> Any:
        blocking = await client.messages.create(**request)
        async with client.messages.stream(**request) as stream:
            return blocking, await stream.get_final_message()

    blocking, streamed = with_anthropic(use)
    assert [block.type for block in streamed.content] == ["text", "tool_use", "tool_use"]
    for one, other in zip(blocking.content, streamed.content, strict=True):
        assert getattr(one, "text", None) == getattr(other, "text", None)
        assert getattr(one, "input", None) == getattr(other, "input", None)
    assert streamed.usage.output_tokens == blocking.usage.output_tokens
    assert streamed.stop_reason == blocking.stop_reason == "tool_use"


def test_messages_usage_shows_the_cache_when_the_prompt_is_marked() -> None:
    marked: Any = [
        {"role": "user", "content": [{"type": "text", "text": "x" * 4000, "cache_control": {"type": "ephemeral"}}]}
    ]
    usage = with_anthropic(
        lambda client: client.messages.create(model="claude-sonnet-5-5", max_tokens=100, messages=marked)
    ).usage
    assert usage.cache_read_input_tokens
    assert usage.cache_creation_input_tokens
    assert usage.input_tokens + usage.cache_read_input_tokens + usage.cache_creation_input_tokens > 1000


def test_messages_stream_says_little_at_its_start_and_the_final_numbers_at_its_end() -> None:
    async def use(client: anthropic.AsyncAnthropic) -> list[Any]:
        stream = await client.messages.create(
            model="fake:output-tokens=77 cache-read=5", max_tokens=100, messages=ASK, stream=True
        )
        return [event async for event in stream]

    events = with_anthropic(use)
    assert events[0].message.usage.output_tokens < 77
    final = next(event for event in events if event.type == "message_delta")
    assert (final.usage.output_tokens, final.usage.cache_read_input_tokens) == (77, 5)


# --- Beside generation


def test_models_are_listed_and_found_in_either_shape() -> None:
    async def openai_models(client: openai.AsyncOpenAI) -> Any:
        listed = [model.id async for model in client.models.list()]
        return listed, await client.models.retrieve(listed[0])

    async def anthropic_models(client: anthropic.AsyncAnthropic) -> Any:
        listed = [model.id async for model in client.models.list()]
        return listed, await client.models.retrieve(listed[0])

    for listed, one in (with_openai(openai_models), with_anthropic(anthropic_models)):
        assert one.id == listed[0]
        assert "fake-429" not in listed  # a pattern, not a name
        assert "fake-cut" in listed
    with pytest.raises(openai.NotFoundError):
        with_openai(lambda client: client.models.retrieve("no-such-model"))


def test_embeddings_are_the_same_for_the_same_input_in_both_encodings() -> None:
    async def use(client: openai.AsyncOpenAI) -> Any:
        packed = await client.embeddings.create(model="text-embedding-3-small", input=["one", "two"])
        plain = await client.embeddings.create(
            model="text-embedding-3-small", input=["one", "two"], encoding_format="float"
        )
        return packed, plain

    packed, plain = with_openai(use)
    assert len(packed.data[0].embedding) == 1536
    assert packed.data[0].embedding == pytest.approx(plain.data[0].embedding, rel=1e-6)
    assert packed.data[0].embedding != packed.data[1].embedding


def test_tokens_are_counted_without_max_tokens() -> None:
    count = with_anthropic(lambda client: client.messages.count_tokens(model="claude-sonnet-5-5", messages=ASK))
    assert count.input_tokens > 0


# --- Errors


@pytest.mark.parametrize(
    ("model", "error"),
    [
        ("fake-400", openai.BadRequestError),
        ("fake-401", openai.AuthenticationError),
        ("fake-429", openai.RateLimitError),
        ("fake-500", openai.InternalServerError),
    ],
)
def test_a_model_name_asks_for_an_error(model: str, error: type[openai.APIStatusError]) -> None:
    with pytest.raises(error) as caught:
        with_openai(lambda client: client.chat.completions.create(model=model, messages=ASK))
    assert caught.value.response.headers.get("retry-after") == ("7" if model == "fake-429" else None)


def test_overloaded_claude_is_a_529_in_its_own_shape() -> None:
    with pytest.raises(anthropic.APIStatusError) as caught:
        with_anthropic(lambda client: client.messages.create(model="fake-529", max_tokens=9, messages=ASK))
    assert caught.value.status_code == 529
    assert caught.value.body["error"]["type"] == "overloaded_error"  # type: ignore[index]


def test_revoked_and_limited_keys_are_refused() -> None:
    with pytest.raises(openai.AuthenticationError) as refused:
        with_openai(lambda client: client.models.list(), key="sk-revoked-1")
    assert refused.value.code == "invalid_api_key"
    with pytest.raises(anthropic.RateLimitError):
        with_anthropic(
            lambda client: client.messages.create(model="claude-sonnet-5-5", max_tokens=9, messages=ASK),
            key="sk-limited-1",
        )


def test_an_error_in_the_middle_of_a_stream_reaches_every_sdk() -> None:
    async def chat(client: openai.AsyncOpenAI) -> None:
        stream = await client.chat.completions.create(
            model="fake:error-after=1", messages=[{"role": "user", "content": "one two three four five"}], stream=True
        )
        assert [chunk async for chunk in stream]

    async def claude(client: anthropic.AsyncAnthropic) -> None:
        stream = await client.messages.create(model="fake-error", max_tokens=9, messages=ASK, stream=True)
        assert [event async for event in stream]

    async def responses(client: openai.AsyncOpenAI) -> list[Any]:
        stream = await client.responses.create(model="fake:error-after=4 code=ERR", input="x", stream=True)
        return [event async for event in stream]

    with pytest.raises(openai.APIError, match="server had an error"):
        with_openai(chat)
    with pytest.raises(anthropic.APIStatusError, match="Overloaded"):
        with_anthropic(claude)
    events = with_openai(responses)
    assert (events[-1].type, events[-1].code, events[-1].sequence_number) == ("error", "ERR", 4)


def test_a_cut_stream_is_an_error_to_the_client() -> None:
    async def use(client: openai.AsyncOpenAI) -> None:
        stream = await client.chat.completions.create(model="fake-cut", messages=ASK, stream=True)
        async for _ in stream:
            pass

    with pytest.raises(openai.APIConnectionError):
        with_openai(use)


@pytest.mark.parametrize(
    "model", ["fake-crlf", "fake-torn", "fake:encoding=auto", "fake:multiline unknown comments=1", "fake:chunk=3"]
)
def test_oddities_do_not_change_what_a_correct_reader_gets(model: str) -> None:
    async def chat(client: openai.AsyncOpenAI) -> str:
        stream = await client.chat.completions.create(model=model, messages=ASK, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])

    async def claude(client: anthropic.AsyncAnthropic) -> str:
        stream = await client.messages.create(model=model, max_tokens=9, messages=ASK, stream=True)
        return "".join([event.delta.text async for event in stream if event.type == "content_block_delta"])  # type: ignore[union-attr]

    assert with_openai(chat) == "say this back to me"
    assert with_anthropic(claude) == "say this back to me"
