"""Anthropic's own SDK through a running server: it notices nothing, and the record holds everything."""

import asyncio
import json
import uuid
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import anthropic
import pytest

from tests.e2e.conftest import DATA_PLANE, Person, linked
from tests.support.fake_provider import FakeProvider
from tests.support.server import PROVIDER_KEY, Server

SCHEMA: Any = {
    "type": "object",
    "properties": {"file_path": {"type": "string"}, "limit": {"type": "integer"}},
    "required": ["file_path", "limit"],
}
TOOL: Any = {"name": "Read", "description": "Reads a file.", "input_schema": SCHEMA}
CACHED_SYSTEM: Any = [{"type": "text", "text": "You read files. " * 200, "cache_control": {"type": "ephemeral"}}]


class Answered(NamedTuple):
    """What a call gave: the message, or the events of a stream."""

    result: Any
    headers: Mapping[str, str]

    @property
    def interception_id(self) -> str:
        return self.headers["x-ostiary-interception-id"]


class AnthropicSDK:
    """The same calls by the blocking and by the asynchronous client."""

    def __init__(self, kind: str, **options: Any) -> None:
        self._kind = kind
        self._options: dict[str, Any] = {"max_retries": 0, "timeout": 20, **options}

    def create(self, **request: Any) -> Answered:
        request = {"max_tokens": 1024, **request}
        if self._kind == "async":
            return asyncio.run(self._create_async(request))
        with anthropic.Anthropic(**self._options) as client:
            raw = client.messages.with_raw_response.create(**request)
            parsed: Any = raw.parse()
            return Answered(list(parsed) if request.get("stream") else parsed, raw.headers)

    async def _create_async(self, request: dict[str, Any]) -> Answered:
        async with anthropic.AsyncAnthropic(**self._options) as client:
            raw = await client.messages.with_raw_response.create(**request)
            parsed: Any = await raw.parse()
            return Answered([event async for event in parsed] if request.get("stream") else parsed, raw.headers)

    def stream(self, **request: Any) -> tuple[Answered, list[str]]:
        """By the SDK's stream helper: the message that it put together, and the kinds of events it gave."""
        request = {"max_tokens": 1024, **request}
        if self._kind == "async":
            return asyncio.run(self._stream_async(request))
        with anthropic.Anthropic(**self._options) as client, client.messages.stream(**request) as stream:
            kinds: list[str] = [event.type for event in stream]
            return Answered(stream.get_final_message(), stream.response.headers), kinds

    async def _stream_async(self, request: dict[str, Any]) -> tuple[Answered, list[str]]:
        async with (
            anthropic.AsyncAnthropic(**self._options) as client,
            client.messages.stream(**request) as stream,
        ):
            kinds: list[str] = [event.type async for event in stream]
            return Answered(await stream.get_final_message(), stream.response.headers), kinds


def said(prompt: str) -> Any:
    return [{"role": "user", "content": prompt}]


@pytest.fixture(params=["sync", "async"])
def sdk(request: pytest.FixtureRequest, person: Person) -> AnthropicSDK:
    return AnthropicSDK(request.param, base_url=person.anthropic_url, api_key=person.token)


@pytest.fixture
def blocking(person: Person) -> AnthropicSDK:
    """Where the kind of client makes no difference."""
    return AnthropicSDK("sync", base_url=person.anthropic_url, api_key=person.token)


@pytest.fixture
def erring(person: Person, fake: FakeProvider) -> Iterator[AnthropicSDK]:
    """By a provider of the test's own: what is answered may be held against its key."""
    with person.server.provider("anthropic", fake.url) as name:
        yield AnthropicSDK("sync", base_url=f"{person.server.url}{DATA_PLANE}/{name}", api_key=person.token)


# --- Messages


def test_a_message_is_answered_and_recorded(sdk: AnthropicSDK, server: Server, person: Person) -> None:
    answered = sdk.create(model="claude-sonnet-5-5", messages=said("say this back"))
    message = answered.result
    assert message.content[0].text == "say this back"

    record = server.interception(answered.interception_id)
    assert record["initiator"]["username"] == person.username
    assert (record["provider"], record["provider_name"]) == ("anthropic", "anthropic")
    assert (record["model"], record["response_model"]) == ("claude-sonnet-5-5", message.model)
    assert (record["route"], record["streaming"]) == ("/v1/messages", False)
    assert (record["outcome"], record["status_code"], record["finish_reason"]) == ("completed", 200, "end_turn")
    assert (record["credential_kind"], record["credential_hint"]) == ("centralized", "sk-p...6789")
    assert PROVIDER_KEY not in json.dumps(record)
    assert record["provider_response_id"] == message.id
    assert [prompt["prompt"] for prompt in record["user_prompts"]] == ["say this back"]
    (usage,) = record["token_usages"]
    assert usage["input_tokens"] == message.usage.input_tokens
    assert usage["output_tokens"] == message.usage.output_tokens
    assert usage["metadata"]["service_tier"] == "standard"
    assert record["tool_usages"] == record["model_thoughts"] == []
    assert set(record["trace"]["stages"]) >= {"identify", "body", "check", "record", "head", "end"}
    assert [attempt["status"] for attempt in record["trace"]["attempts"]] == [200]


def test_a_streamed_message_has_its_final_numbers_once(sdk: AnthropicSDK, server: Server) -> None:
    answered, kinds = sdk.stream(model="claude-sonnet-5-5", messages=said("say this back, and take your time"))
    message = answered.result
    assert message.content[0].text == "say this back, and take your time"
    assert {"message_start", "content_block_delta", "message_stop"} <= set(kinds)

    record = server.interception(answered.interception_id)
    assert (record["streaming"], record["outcome"]) == (True, "completed")
    assert record["provider_response_id"] == message.id
    (usage,) = record["token_usages"]
    assert usage["output_tokens"] == message.usage.output_tokens == 8
    assert usage["input_tokens"] == message.usage.input_tokens
    start, end = usage["raw"]
    assert (start["output_tokens"], end["output_tokens"]) == (3, 8)
    assert not record["trace"].get("edits")


def test_raw_events_of_a_stream_come_one_by_one(sdk: AnthropicSDK) -> None:
    kinds = [event.type for event in sdk.create(model="claude-sonnet-5-5", messages=said("a b c"), stream=True).result]
    assert kinds[0] == "message_start"
    assert kinds[-2:] == ["message_delta", "message_stop"]


@pytest.mark.parametrize("stream", [False, True])
def test_parallel_tools_and_thinking_are_recorded(sdk: AnthropicSDK, server: Server, stream: bool) -> None:
    request: dict[str, Any] = {
        "model": "fake-parallel",
        "messages": said("read two files"),
        "tools": [TOOL],
        "max_tokens": 4096,
        "thinking": {"type": "enabled", "budget_tokens": 2048},
    }
    answered = sdk.stream(**request)[0] if stream else sdk.create(**request)
    message = answered.result
    calls = [block for block in message.content if block.type == "tool_use"]
    thoughts = [block.thinking for block in message.content if block.type == "thinking"]
    assert len(calls) == 2
    assert thoughts[0].startswith("The user wrote")

    record = server.interception(answered.interception_id)
    assert record["finish_reason"] == "tool_use"
    assert [(use["tool"], use["tool_call_id"]) for use in record["tool_usages"]] == [
        (call.name, call.id) for call in calls
    ]
    assert [json.loads(use["input"]) for use in record["tool_usages"]] == [call.input for call in calls]
    assert not any(use["injected"] or use["truncated"] for use in record["tool_usages"])
    assert [(thought["content"], thought["source"]) for thought in record["model_thoughts"]] == [
        (thoughts[0], "thinking")
    ]


def test_a_tool_result_links_to_the_call_that_asked_for_it(blocking: AnthropicSDK, server: Server) -> None:
    asking = blocking.create(model="claude-sonnet-5-5", messages=said("read it"), tools=[TOOL])
    call = next(block for block in asking.result.content if block.type == "tool_use")
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "42 lines"}
    history = [
        *said("read it"),
        {"role": "assistant", "content": asking.result.model_dump(mode="json")["content"]},
        {"role": "user", "content": [result]},
    ]
    answering = blocking.create(model="claude-sonnet-5-5", messages=history, tools=[TOOL])

    first = server.interception(asking.interception_id)
    record = linked(server, answering.interception_id)
    assert record["correlating_tool_call_id"] == call.id
    assert record["user_prompts"] == []
    assert record["thread_parent_id"] == first["id"]
    assert record["session_id"] == first["session_id"]


def test_a_tool_call_cut_by_the_token_limit_is_recorded_as_truncated(blocking: AnthropicSDK, server: Server) -> None:
    answered = blocking.create(model="fake-truncated", messages=said("x"), tools=[TOOL], stream=True)
    sent = "".join(
        event.delta.partial_json
        for event in answered.result
        if event.type == "content_block_delta" and event.delta.type == "input_json_delta"
    )
    record = server.interception(answered.interception_id)
    (use,) = record["tool_usages"]
    assert (use["input"], use["truncated"], record["finish_reason"]) == (sent, True, "max_tokens")


@pytest.mark.parametrize("stream", [False, True])
def test_cache_reads_and_writes_are_told_apart(blocking: AnthropicSDK, server: Server, stream: bool) -> None:
    request: dict[str, Any] = {
        "model": "claude-sonnet-5-5",
        "system": CACHED_SYSTEM,
        "messages": said("from the cache"),
    }
    answered = blocking.stream(**request)[0] if stream else blocking.create(**request)
    told = answered.result.usage
    assert told.cache_read_input_tokens > 0
    assert told.cache_creation_input_tokens > 0
    (usage,) = server.interception(answered.interception_id)["token_usages"]
    assert usage["input_tokens"] == told.input_tokens
    assert usage["cache_read_input_tokens"] == told.cache_read_input_tokens
    assert usage["cache_write_input_tokens"] == told.cache_creation_input_tokens
    assert usage["metadata"]["cache_ephemeral_5m_input"] == told.cache_creation_input_tokens
    assert usage["metadata"]["cache_ephemeral_1h_input"] == 0


def test_tokens_are_counted_and_models_listed_without_a_record(person: Person, server: Server) -> None:
    before = server.metric("ostiary_passthrough_total", provider="anthropic")
    with anthropic.Anthropic(base_url=person.anthropic_url, api_key=person.token, max_retries=0) as client:
        raw = client.messages.with_raw_response.count_tokens(model="claude-sonnet-5-5", messages=said("count me"))
        assert raw.parse().input_tokens > 0
        assert "x-ostiary-interception-id" not in raw.headers
        assert raw.headers["x-ostiary-request-id"]
        assert "claude-sonnet-5-5" in [model.id for model in client.models.list()]
        assert client.models.retrieve("claude-sonnet-5-5").id == "claude-sonnet-5-5"
    assert server.metric("ostiary_passthrough_total", provider="anthropic") == before + 3


# --- who asks


def test_a_token_may_come_as_a_bearer_token(person: Person, server: Server) -> None:
    sdk = AnthropicSDK("sync", base_url=person.anthropic_url, auth_token=person.token, api_key=None)
    record = server.interception(sdk.create(model="claude-sonnet-5-5", messages=said("x")).interception_id)
    assert record["initiator"]["username"] == person.username
    assert record["credential_kind"] == "centralized"


SESSION = "7c1f0b1e-5a9e-4d55-9f0e-6a2a54f3c001"


@pytest.mark.parametrize(
    ("headers", "user_id"),
    [
        ({"X-Claude-Code-Session-Id": SESSION}, f"user_ab_account__session_{uuid.UUID(int=1)}"),
        ({}, f"user_0f3a_account_77_session_{SESSION}"),
        ({}, json.dumps({"device_id": "d", "account_uuid": "", "session_id": SESSION})),
    ],
    ids=["header", "user_id", "user_id as JSON"],
)
def test_claude_code_is_known_by_its_name_and_session(
    person: Person, server: Server, headers: dict[str, str], user_id: str
) -> None:
    agent = {"User-Agent": "claude-cli/2.4.1 (external, cli)", **headers}
    sdk = AnthropicSDK("sync", base_url=person.anthropic_url, api_key=person.token, default_headers=agent)
    answered = sdk.create(model="claude-sonnet-5-5", messages=said("x"), metadata={"user_id": user_id}, stream=True)
    record = server.interception(answered.interception_id)
    assert (record["client"], record["client_session_id"]) == ("Claude Code", SESSION)
    assert record["session_id"] != record["id"]


def test_what_the_client_says_to_the_provider_reaches_it(person: Person, fake: FakeProvider) -> None:
    headers = {"anthropic-beta": "interleaved-thinking-2025-05-14,fine-grained", "X-Fake-Mark": "sdk-beta"}
    sdk = AnthropicSDK("sync", base_url=person.anthropic_url, api_key=person.token, default_headers=headers)
    sdk.create(model="claude-sonnet-5-5", messages=said("x"))
    sent = {name.lower(): value for name, value in fake.entry("sdk-beta")["headers"]}
    assert sent["anthropic-beta"] == headers["anthropic-beta"]
    assert sent["anthropic-version"] >= "2023-06-01"
    assert sent["user-agent"].startswith("Anthropic/Python")
    assert sent["x-stainless-lang"] == "python"


# --- errors


@pytest.mark.parametrize(
    ("model", "exception", "error_type"),
    [
        ("fake-400", anthropic.BadRequestError, "bad_request"),
        ("fake-401", anthropic.AuthenticationError, "unauthorized"),
        ("fake-403", anthropic.PermissionDeniedError, "unauthorized"),
        ("fake-404", anthropic.NotFoundError, "bad_request"),
        ("fake-413", anthropic.APIStatusError, "bad_request"),
        ("fake-429-3", anthropic.RateLimitError, "rate_limited"),
        ("fake-500", anthropic.InternalServerError, "server_error"),
        ("fake-504", anthropic.InternalServerError, "timeout"),
        ("fake-529", anthropic.InternalServerError, "overloaded"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_provider_error_raises_its_exception_and_is_recorded(
    erring: AnthropicSDK,
    server: Server,
    model: str,
    exception: type[anthropic.APIStatusError],
    error_type: str,
    stream: bool,
) -> None:
    with pytest.raises(exception) as caught:
        erring.create(model=model, messages=said("x"), stream=stream)
    error = caught.value
    assert error.status_code == int(model.split("-")[1])
    assert error.request_id
    assert error.response.headers["anthropic-organization-id"]
    assert error.response.headers.get("retry-after") == ("3" if model == "fake-429-3" else None)
    assert isinstance(error.body, dict)
    record = server.interception(error.response.headers["x-ostiary-interception-id"])
    assert (record["outcome"], record["status_code"]) == ("upstream_error", error.status_code)
    assert (record["error_type"], record["error_message"]) == (error_type, error.body["error"]["message"])


def test_an_error_within_a_stream_raises_and_is_recorded(person: Person, server: Server) -> None:
    with anthropic.Anthropic(base_url=person.anthropic_url, api_key=person.token, max_retries=0) as client:
        raw = client.messages.with_raw_response.create(
            model="fake-error", max_tokens=9, messages=said("long enough to stream " * 9), stream=True
        )
        with pytest.raises(anthropic.APIStatusError, match="Overloaded"):
            list(raw.parse())
    record = server.interception(raw.headers["x-ostiary-interception-id"])
    assert (record["outcome"], record["status_code"]) == ("upstream_error", 200)
    assert (record["error_type"], record["error_message"]) == ("overloaded", "Overloaded")
    (usage,) = record["token_usages"]
    assert usage["output_tokens"] == 3


@pytest.mark.parametrize("model", ["fake-cut", "fake-cut-chunk", "fake-reset"])
def test_a_stream_that_is_cut_is_no_clean_end_for_the_sdk(person: Person, server: Server, model: str) -> None:
    with anthropic.Anthropic(base_url=person.anthropic_url, api_key=person.token, max_retries=0) as client:
        raw = client.messages.with_raw_response.create(
            model=model, max_tokens=9, messages=said("to be cut " * 20), stream=True
        )
        seen: list[str] = []
        with pytest.raises(Exception, match="without sending complete message body"):
            seen.extend(event.type for event in raw.parse())
    assert seen
    record = server.interception(raw.headers["x-ostiary-interception-id"])
    assert (record["outcome"], record["status_code"], record["error_type"]) == ("upstream_error", 200, "server_error")
    assert record["provider_response_id"].startswith("msg_")


def test_a_token_of_nobody_is_an_authentication_error(server: Server) -> None:
    sdk = AnthropicSDK("sync", base_url=f"{server.url}{DATA_PLANE}/anthropic", api_key="ost_of_nobody")
    with pytest.raises(anthropic.AuthenticationError, match="not one of this Ostiary") as caught:
        sdk.create(model="claude-sonnet-5-5", messages=said("x"))
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["error"]["type"] == "authentication_error"
    assert caught.value.response.headers["x-ostiary-request-id"]


def test_a_suspended_person_is_denied(server: Server) -> None:
    token = server.new_token("suspended-claude-user")
    assert server.owner.patch("/api/v2/users/suspended-claude-user", json={"status": "suspended"}).status_code == 200
    sdk = AnthropicSDK("sync", base_url=f"{server.url}{DATA_PLANE}/anthropic", api_key=token)
    with pytest.raises(anthropic.PermissionDeniedError, match="suspended"):
        sdk.create(model="claude-sonnet-5-5", messages=said("x"))


def test_an_unknown_provider_is_not_found_and_names_what_there_is(person: Person, server: Server) -> None:
    sdk = AnthropicSDK("sync", base_url=f"{server.url}{DATA_PLANE}/claude", api_key=person.token)
    with pytest.raises(anthropic.NotFoundError, match="anthropic, openai"):
        sdk.create(model="claude-sonnet-5-5", messages=said("x"))
