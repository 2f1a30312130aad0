"""OpenAI's own SDK through a running server: it notices nothing, and the record holds everything."""

import asyncio
import json
import uuid
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import openai
import pytest

from tests.e2e.conftest import DATA_PLANE, Person, linked
from tests.support.fake_provider import FakeProvider
from tests.support.server import PROVIDER_KEY, Server, eventually

SCHEMA: Any = {
    "type": "object",
    "properties": {"path": {"type": "string"}, "lines": {"type": "integer"}},
    "required": ["path", "lines"],
}
CHAT_TOOL: Any = {"type": "function", "function": {"name": "read_file", "parameters": SCHEMA}}
RESPONSES_TOOL: Any = {"type": "function", "name": "read_file", "parameters": SCHEMA, "strict": False}
PATCH_TOOL: Any = {"type": "custom", "name": "apply_patch"}
LONG_PROMPT = "Read this all, please. " * 300


class Answered(NamedTuple):
    """What a call gave: the object, or the events of a stream."""

    result: Any
    headers: Mapping[str, str]

    @property
    def interception_id(self) -> str:
        return self.headers["x-ostiary-interception-id"]


class OpenAISDK:
    """The same calls by the blocking and by the asynchronous client."""

    def __init__(self, kind: str, **options: Any) -> None:
        self._kind = kind
        self._options: dict[str, Any] = {"max_retries": 0, "timeout": 20, **options}

    def chat(self, **request: Any) -> Answered:
        return self._call("chat.completions", request)

    def respond(self, **request: Any) -> Answered:
        return self._call("responses", request)

    def _call(self, path: str, request: dict[str, Any]) -> Answered:
        if self._kind == "async":
            return asyncio.run(self._call_async(path, request))
        with openai.OpenAI(**self._options) as client:
            raw = _resource(client, path).with_raw_response.create(**request)
            parsed = raw.parse()
            return Answered(list(parsed) if request.get("stream") else parsed, raw.headers)

    async def _call_async(self, path: str, request: dict[str, Any]) -> Answered:
        async with openai.AsyncOpenAI(**self._options) as client:
            raw = await _resource(client, path).with_raw_response.create(**request)
            parsed = raw.parse()
            return Answered([event async for event in parsed] if request.get("stream") else parsed, raw.headers)


def _resource(client: Any, path: str) -> Any:
    for name in path.split("."):
        client = getattr(client, name)
    return client


def said(prompt: str) -> Any:
    return [{"role": "user", "content": prompt}]


@pytest.fixture(params=["sync", "async"])
def sdk(request: pytest.FixtureRequest, person: Person) -> OpenAISDK:
    return OpenAISDK(request.param, base_url=person.openai_url, api_key=person.token)


@pytest.fixture
def blocking(person: Person) -> OpenAISDK:
    """Where the kind of client makes no difference."""
    return OpenAISDK("sync", base_url=person.openai_url, api_key=person.token)


class Erring(NamedTuple):
    """A provider of a test's own: what is answered may be held against its key."""

    key: str
    options: dict[str, str]

    def sdk(self, **options: Any) -> OpenAISDK:
        return OpenAISDK("sync", **self.options, **options)


@pytest.fixture
def erring(person: Person, fake: FakeProvider) -> Iterator[Erring]:
    key = f"sk-erring-{uuid.uuid4().hex}"
    with person.server.provider("openai", f"{fake.url}/v1", key) as name:
        yield Erring(key, {"base_url": f"{person.server.url}{DATA_PLANE}/{name}/v1", "api_key": person.token})


def joined(chunks: list[Any]) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


# --- Chat Completions


def test_a_chat_completion_is_answered_and_recorded(sdk: OpenAISDK, server: Server, person: Person) -> None:
    answered = sdk.chat(model="gpt-4.1", messages=said("say this back"))
    completion = answered.result
    assert completion.choices[0].message.content == "say this back"

    record = server.interception(answered.interception_id)
    assert record["initiator"]["username"] == person.username
    tokens = server.get("/api/v2/tokens", user=person.username)
    assert [token["user_id"] for token in tokens if token["id"] == record["api_key_id"]] == [record["initiator"]["id"]]
    assert (record["provider"], record["provider_name"], record["model"]) == ("openai", "openai", "gpt-4.1")
    assert (record["route"], record["route_kind"], record["streaming"]) == ("/v1/chat/completions", "bridged", False)
    assert (record["outcome"], record["status_code"]) == ("completed", 200)
    assert (record["error_type"], record["error_message"]) == (None, None)
    assert (record["credential_kind"], record["credential_hint"]) == ("centralized", "sk-p...6789")
    assert PROVIDER_KEY not in json.dumps(record)
    assert record["metadata"]["request_user_agent"].startswith(("OpenAI/Python", "AsyncOpenAI/Python"))
    assert (record["client"], record["client_session_id"]) == (None, None)
    assert record["provider_response_id"] == completion.id
    assert (record["response_model"], record["finish_reason"]) == (completion.model, "stop")
    assert not record["unparsed"]
    assert [prompt["prompt"] for prompt in record["user_prompts"]] == ["say this back"]
    (usage,) = record["token_usages"]
    assert (usage["input_tokens"], usage["output_tokens"]) == (
        completion.usage.prompt_tokens,
        completion.usage.completion_tokens,
    )
    assert usage["provider_response_id"] == completion.id
    assert usage["raw"] == completion.usage.model_dump(exclude_unset=True)
    assert record["tool_usages"] == record["model_thoughts"] == []


def test_the_trace_tells_every_stage_and_the_attempt(blocking: OpenAISDK, server: Server) -> None:
    record = server.interception(blocking.chat(model="gpt-4.1", messages=said("x")).interception_id)
    trace = record["trace"]
    stages = trace["stages"]
    order = ["identify", "body", "check", "record", "head", "end"]
    assert [stages[name] for name in order] == sorted(stages[name] for name in order)
    assert all(0 < at < 20_000_000 for at in stages.values())
    (attempt,) = trace["attempts"]
    assert (attempt["status"], attempt["key_hint"]) == (200, "sk-p...6789")
    assert stages["record"] <= attempt["at_us"] <= stages["head"]
    assert "edits" not in trace or not trace["edits"]


@pytest.mark.parametrize("asked", [False, True])
def test_a_chat_stream_counts_tokens_whether_or_not_the_client_asks(
    sdk: OpenAISDK, server: Server, asked: bool
) -> None:
    more: Any = {"stream_options": {"include_usage": True}} if asked else {}
    answered = sdk.chat(model="gpt-4.1", messages=said("say this back"), stream=True, **more)
    chunks = answered.result
    assert joined(chunks) == "say this back"
    reporting = [chunk for chunk in chunks if chunk.usage is not None]
    assert len(reporting) == (1 if asked else 0)
    assert asked or all(chunk.choices for chunk in chunks)

    record = server.interception(answered.interception_id)
    assert (record["streaming"], record["outcome"], record["finish_reason"]) == (True, "completed", "stop")
    assert record["provider_response_id"] == chunks[0].id
    (usage,) = record["token_usages"]
    assert usage["output_tokens"] == 3
    if asked:
        assert usage["raw"] == reporting[0].usage.model_dump(exclude_unset=True)
    edits = record["trace"].get("edits", [])
    assert [edit.partition(":")[0] for edit in edits] == ([] if asked else ["stream_options.include_usage"])


@pytest.mark.parametrize("stream", [False, True])
def test_parallel_tool_calls_of_a_chat_are_recorded(sdk: OpenAISDK, server: Server, stream: bool) -> None:
    answered = sdk.chat(model="fake-parallel", messages=said("read two files"), tools=[CHAT_TOOL], stream=stream)
    if stream:
        deltas = [call for chunk in answered.result for call in chunk.choices[0].delta.tool_calls or ()]
        ids = [call.id for call in deltas if call.id]
        sent = ["".join(c.function.arguments or "" for c in deltas if c.index == at) for at in range(2)]
    else:
        calls = answered.result.choices[0].message.tool_calls
        ids, sent = [call.id for call in calls], [call.function.arguments for call in calls]

    record = server.interception(answered.interception_id)
    assert record["finish_reason"] == "tool_calls"
    assert [(use["tool"], use["tool_call_id"], use["input"]) for use in record["tool_usages"]] == [
        ("read_file", call_id, arguments) for call_id, arguments in zip(ids, sent, strict=True)
    ]
    assert len(set(ids)) == 2
    assert not any(use["injected"] or use["truncated"] for use in record["tool_usages"])


def test_a_tool_call_cut_by_the_token_limit_is_recorded_as_truncated(blocking: OpenAISDK, server: Server) -> None:
    answered = blocking.chat(model="fake-truncated", messages=said("x"), tools=[CHAT_TOOL], stream=True)
    record = server.interception(answered.interception_id)
    (use,) = record["tool_usages"]
    assert use["truncated"]
    with pytest.raises(json.JSONDecodeError):
        json.loads(use["input"])
    assert record["finish_reason"] == "length"


def test_a_tool_result_links_to_the_call_that_asked_for_it(blocking: OpenAISDK, server: Server) -> None:
    asking = blocking.chat(model="gpt-4.1", messages=said("read it"), tools=[CHAT_TOOL])
    message = asking.result.choices[0].message
    call_id = message.tool_calls[0].id
    history = [*said("read it"), message.model_dump(), {"role": "tool", "tool_call_id": call_id, "content": "42 lines"}]
    answering = blocking.chat(model="gpt-4.1", messages=history, tools=[CHAT_TOOL])
    assert answering.result.choices[0].message.content == "read it"

    first = server.interception(asking.interception_id)
    record = linked(server, answering.interception_id)
    assert record["correlating_tool_call_id"] == call_id
    assert record["user_prompts"] == []
    assert record["thread_parent_id"] == record["thread_root_id"] == first["id"]
    assert record["session_id"] == first["session_id"]
    session = server.get(f"/api/v2/ai-gateway/sessions/{first['session_id']}")
    (thread,) = session["threads"]
    assert (thread["prompt"], thread["interceptions"]) == ("read it", 2)
    assert [call["tool"] for action in thread["agentic_actions"] for call in action["tool_calls"]] == ["read_file"]


@pytest.mark.parametrize("stream", [False, True])
def test_cached_and_reasoning_tokens_are_told_apart(blocking: OpenAISDK, server: Server, stream: bool) -> None:
    more: Any = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    answered = blocking.chat(model="gpt-6-sol", messages=said(LONG_PROMPT), reasoning_effort="high", **more)
    told = answered.result[-1].usage if stream else answered.result.usage
    cached = told.prompt_tokens_details.cached_tokens
    reasoning = told.completion_tokens_details.reasoning_tokens
    assert cached > 0
    assert reasoning > 0
    (usage,) = server.interception(answered.interception_id)["token_usages"]
    assert usage["input_tokens"] == told.prompt_tokens - cached
    assert (usage["cache_read_input_tokens"], usage["cache_write_input_tokens"]) == (cached, 0)
    assert usage["output_tokens"] == told.completion_tokens
    assert usage["metadata"]["completion_reasoning"] == reasoning


# --- Responses


@pytest.mark.parametrize("stream", [False, True])
def test_a_response_with_reasoning_and_tools_is_recorded(sdk: OpenAISDK, server: Server, stream: bool) -> None:
    answered = sdk.respond(
        model="fake:tools=2 commentary",
        input="read two files",
        tools=[RESPONSES_TOOL, PATCH_TOOL],
        reasoning={"effort": "high", "summary": "auto"},
        stream=stream,
    )
    response = answered.result[-1].response if stream else answered.result
    assert response.status == "completed"
    if stream:
        kinds = {event.type for event in answered.result}
        assert {"response.created", "response.function_call_arguments.delta", "response.completed"} <= kinds

    record = server.interception(answered.interception_id)
    assert (record["route"], record["streaming"]) == ("/v1/responses", stream)
    assert (record["outcome"], record["provider_response_id"]) == ("completed", response.id)
    assert [prompt["prompt"] for prompt in record["user_prompts"]] == ["read two files"]
    (usage,) = record["token_usages"]
    assert usage["input_tokens"] == response.usage.input_tokens
    assert usage["output_tokens"] == response.usage.output_tokens
    assert usage["metadata"]["output_reasoning"] == response.usage.output_tokens_details.reasoning_tokens > 0
    assert usage["metadata"]["total_tokens"] == response.usage.total_tokens
    calls = [item for item in response.output if item.type in ("function_call", "custom_tool_call")]
    assert [item.type for item in calls] == ["function_call", "custom_tool_call"]
    assert [(use["tool"], use["tool_call_id"], use["item_id"], use["input"]) for use in record["tool_usages"]] == [
        (calls[0].name, calls[0].call_id, calls[0].id, calls[0].arguments),
        (calls[1].name, calls[1].call_id, calls[1].id, calls[1].input),
    ]
    summaries = [part.text for item in response.output if item.type == "reasoning" for part in item.summary]
    assert [(thought["source"], thought["content"]) for thought in record["model_thoughts"]] == [
        *(("reasoning_summary", text) for text in summaries),
        ("commentary", "Calling read_file."),
    ]
    assert summaries


def test_the_stream_helper_of_responses_sees_its_events(person: Person, server: Server) -> None:
    with openai.OpenAI(base_url=person.openai_url, api_key=person.token, max_retries=0) as client:
        with client.responses.stream(model="gpt-6-sol", input="say this back") as stream:
            text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
            final = stream.get_final_response()
        assert text == final.output_text == "say this back"
    eventually(lambda: final.id in [record["provider_response_id"] for record in server.interceptions()])


def test_a_background_response_is_refused_before_it_runs(blocking: OpenAISDK) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        blocking.respond(model="gpt-6-sol", input="x", background=True)
    assert caught.value.status_code == 501
    assert "background" in str(caught.value)


# --- who asks


def test_codex_is_known_by_its_name_and_session(person: Person, server: Server) -> None:
    headers = {"User-Agent": "codex_cli_rs/0.160.0 (Linux 6.8; x86_64) xterm", "session_id": "0198-codex-session"}
    sdk = OpenAISDK("sync", base_url=person.openai_url, api_key=person.token, default_headers=headers)
    record = server.interception(sdk.respond(model="gpt-6-sol", input="x").interception_id)
    assert (record["client"], record["client_session_id"]) == ("Codex", "0198-codex-session")
    assert record["session_id"] != record["id"]
    assert record["metadata"]["request_user_agent"] == headers["User-Agent"]
    again = server.interception(sdk.respond(model="gpt-6-sol", input="y").interception_id)
    assert again["session_id"] == record["session_id"]


def test_members_see_their_own_records_only(person: Person, server: Server) -> None:
    other = server.new_token("bea")
    mine = OpenAISDK("sync", base_url=person.openai_url, api_key=person.token).chat(model="gpt-4.1", messages=said("a"))
    server.interception(mine.interception_id)
    path = f"{DATA_PLANE}/interceptions/{mine.interception_id}"
    with server.client(person.token) as ann, server.client(other) as bea:
        assert ann.get(path).status_code == 200
        assert bea.get(path).status_code in (403, 404)


def test_models_are_listed_and_not_recorded(person: Person, server: Server) -> None:
    before = server.metric("ostiary_passthrough_total", provider="openai")
    with openai.OpenAI(base_url=person.openai_url, api_key=person.token, max_retries=0) as client:
        names = [model.id for model in client.models.list()]
        assert "gpt-4.1" in names
        raw = client.models.with_raw_response.retrieve("gpt-4.1")
        assert raw.parse().id == "gpt-4.1"
        assert "x-ostiary-interception-id" not in raw.headers
        assert raw.headers["x-ostiary-request-id"]
        assert client.responses.input_tokens.count(model="gpt-6-sol", input="count me").input_tokens > 0
    assert server.metric("ostiary_passthrough_total", provider="openai") == before + 3


# --- errors


@pytest.mark.parametrize(
    ("model", "exception", "error_type"),
    [
        ("fake-400", openai.BadRequestError, "bad_request"),
        ("fake-401", openai.AuthenticationError, "unauthorized"),
        ("fake-403", openai.PermissionDeniedError, "unauthorized"),
        ("fake-404", openai.NotFoundError, "bad_request"),
        ("fake-429-3", openai.RateLimitError, "rate_limited"),
        ("fake-quota", openai.RateLimitError, "rate_limited"),
        ("fake-500", openai.InternalServerError, "server_error"),
        ("fake-503", openai.InternalServerError, "overloaded"),
        ("fake-529", openai.InternalServerError, "overloaded"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_provider_error_raises_its_exception_and_is_recorded(
    erring: Erring,
    server: Server,
    model: str,
    exception: type[openai.APIStatusError],
    error_type: str,
    stream: bool,
) -> None:
    with pytest.raises(exception) as caught:
        erring.sdk().chat(model=model, messages=said("x"), stream=stream)
    error = caught.value
    assert error.request_id
    assert error.response.headers.get("retry-after") == ("3" if model == "fake-429-3" else None)
    record = server.interception(error.response.headers["x-ostiary-interception-id"])
    assert (record["outcome"], record["status_code"]) == ("upstream_error", error.status_code)
    assert record["error_type"] == error_type
    assert isinstance(error.body, dict)
    assert record["error_message"] == error.body["message"]
    assert record["token_usages"] == []


def test_the_sdk_retries_by_the_providers_own_words(erring: Erring, server: Server, fake: FakeProvider) -> None:
    fake.script_key(erring.key, "status=429 retry-after=1", times=1)
    sdk = erring.sdk(max_retries=1)
    prompt = "once more, said the caller"
    answered = sdk.chat(model="gpt-4.1", messages=said(prompt), extra_headers={"X-Fake-Mark": "sdk-retry"})
    assert answered.result.choices[0].message.content == prompt
    assert [entry["status"] for entry in fake.entries("sdk-retry")] == [429, 200]
    assert server.interception(answered.interception_id)["outcome"] == "completed"


def test_a_token_of_nobody_is_an_authentication_error(server: Server) -> None:
    sdk = OpenAISDK("sync", base_url=f"{server.url}{DATA_PLANE}/openai/v1", api_key="ost_of_nobody")
    with pytest.raises(openai.AuthenticationError, match="not one of this Ostiary") as caught:
        sdk.chat(model="gpt-4.1", messages=said("x"))
    assert caught.value.response.headers["x-ostiary-request-id"]
    assert caught.value.code == "invalid_api_key"


def test_an_unknown_provider_is_not_found_and_names_what_there_is(person: Person, server: Server) -> None:
    sdk = OpenAISDK("sync", base_url=f"{server.url}{DATA_PLANE}/opneai/v1", api_key=person.token)
    with pytest.raises(openai.NotFoundError, match="anthropic, openai"):
        sdk.chat(model="gpt-4.1", messages=said("x"))


@pytest.mark.parametrize("api", ["chat", "responses", "responses failed"])
def test_an_error_within_a_stream_reaches_the_sdk_and_the_record(person: Person, server: Server, api: str) -> None:
    prompt = "a long enough prompt to stream " * 4
    with openai.OpenAI(base_url=person.openai_url, api_key=person.token, max_retries=0) as client:
        raw: Any
        if api == "chat":
            raw = client.chat.completions.with_raw_response.create(
                model="fake-error", messages=said(prompt), stream=True
            )
            with pytest.raises(openai.APIError, match="had an error"):
                list(raw.parse())
        else:
            control = "fake:error-after=6 failed code=rate_limit_exceeded message=slowly"
            model = "fake-error" if api == "responses" else control
            answer = client.responses.with_raw_response.create(model=model, input=prompt, stream=True)
            assert [event.type for event in answer.parse()][-1] == (
                "error" if api == "responses" else "response.failed"
            )
            raw = answer
    record = server.interception(raw.headers["x-ostiary-interception-id"])
    assert (record["outcome"], record["status_code"]) == ("upstream_error", 200)
    assert record["error_type"] == ("rate_limited" if "failed" in api else "server_error")
    assert record["error_message"]
    assert record["provider_response_id"]


@pytest.mark.parametrize("model", ["fake-cut", "fake-cut-chunk", "fake-reset"])
def test_a_stream_that_is_cut_is_no_clean_end_for_the_sdk(person: Person, server: Server, model: str) -> None:
    with openai.OpenAI(base_url=person.openai_url, api_key=person.token, max_retries=0) as client:
        raw = client.chat.completions.with_raw_response.create(
            model=model, messages=said("to be cut " * 20), stream=True
        )
        with pytest.raises(openai.APIConnectionError):
            list(raw.parse())
    record = server.interception(raw.headers["x-ostiary-interception-id"])
    assert (record["outcome"], record["status_code"], record["error_type"]) == ("upstream_error", 200, "server_error")
    assert "middle of the response" in record["error_message"]
