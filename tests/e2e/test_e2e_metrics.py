"""The numbers of a running server's metrics page, after calls whose numbers are known."""

import json
from typing import Any

import pytest

from tests.e2e.conftest import CHAT, DATA_PLANE, MESSAGES, RESPONSES, Api, Person, RawUpstream
from tests.support.fake_provider import FakeProvider
from tests.support.server import eventually

MODEL = "model-of-the-metrics"
RESPONSE: dict[str, Any] = {
    "id": "resp_1",
    "object": "response",
    "status": "completed",
    "model": MODEL,
    "output": [
        {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "read", "arguments": "{}"},
        {"type": "function_call", "id": "fc_2", "call_id": "call_2", "name": "read", "arguments": "{}"},
        {"type": "function_call", "id": "fc_3", "call_id": "call_3", "name": "write", "arguments": "{}"},
    ],
    "usage": {
        "input_tokens": 12033,
        "input_tokens_details": {"cached_tokens": 11904},
        "output_tokens": 44,
        "output_tokens_details": {"reasoning_tokens": 30},
        "total_tokens": 12077,
    },
}
MESSAGE: dict[str, Any] = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": MODEL,
    "stop_reason": "end_turn",
    "content": [{"type": "text", "text": "said"}],
    "usage": {
        "input_tokens": 9,
        "output_tokens": 5,
        "cache_read_input_tokens": 200,
        "cache_creation_input_tokens": 70,
    },
}
COMPLETION: dict[str, Any] = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "model": MODEL,
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "said"}}],
    "usage": {"prompt_tokens": 21, "completion_tokens": 3, "total_tokens": 24},
}


@pytest.mark.parametrize(
    ("api", "said", "tokens", "tools"),
    [
        (
            RESPONSES,
            RESPONSE,
            {"input": 129, "output": 44, "cache_read_input_tokens": 11904, "output_reasoning": 30},
            {"read": 2, "write": 1},
        ),
        (
            MESSAGES,
            MESSAGE,
            {"input": 9, "output": 5, "cache_read_input_tokens": 200, "cache_write_input_tokens": 70},
            {},
        ),
        (CHAT, COMPLETION, {"input": 21, "output": 3, "cache_read_input_tokens": 0}, {}),
    ],
    ids=["responses", "messages", "chat"],
)
def test_a_call_is_counted_once_with_its_numbers(
    person: Person, upstream: RawUpstream, api: Api, said: dict[str, Any], tokens: dict[str, int], tools: dict[str, int]
) -> None:
    server = person.server
    base_url = upstream.url if api is MESSAGES else f"{upstream.url}/v1"
    headers = person.bearer | {"User-Agent": "codex_cli_rs/0.160.0"}
    with server.provider(api.provider, base_url) as name, person.connect() as connection:
        of = {"provider": name, "model": MODEL}
        connection.request("POST", DATA_PLANE + api.path(name), headers, api.body(model=MODEL))
        with upstream.request() as request:
            eventually(lambda: server.metric("ostiary_interceptions_inflight", provider=name) == 1)
            request.answer(json.dumps(said).encode())
        answer = connection.answer()
        assert answer.status == 200
        eventually(lambda: server.metric("ostiary_interceptions_total", **of) == 1)
        status = {"status": "completed", "route": api.route, "client": "Codex"}
        assert server.metric("ostiary_interceptions_total", **of, **status) == 1
        assert server.metric("ostiary_interceptions_inflight", provider=name) == 0
        assert server.metric("ostiary_interceptions_duration_seconds_count", **of) == 1
        assert server.metric("ostiary_prompts_total", **of, client="Codex") == 1
        for kind, number in tokens.items():
            assert server.metric("ostiary_tokens_total", **of, type=kind, client="Codex") == number, kind
        for tool, number in tools.items():
            assert server.metric("ostiary_non_injected_tool_selections_total", **of, name=tool) == number
        assert server.metric("ostiary_non_injected_tool_selections_total", **of) == sum(tools.values())
        assert server.metric("ostiary_passthrough_total", provider=name) == 0
        (usage,) = server.interception(answer.interception_id)["token_usages"]
        assert (usage["input_tokens"], usage["output_tokens"]) == (tokens["input"], tokens["output"])


def test_what_fails_is_counted_without_tokens(person: Person, fake: FakeProvider) -> None:
    server = person.server
    with server.provider("openai", f"{fake.url}/v1") as name:
        for control in ("status=400", "status=500", "cut=before-head"):
            person.call(CHAT.path(name), CHAT.body(), {"X-Fake": control})
        person.call(f"/{name}/v1/models", b"", method="GET")
        eventually(lambda: server.metric("ostiary_interceptions_total", provider=name) == 3)
        assert server.metric("ostiary_interceptions_total", provider=name, status="completed") == 0
        assert server.metric("ostiary_tokens_total", provider=name) == 0
        assert server.metric("ostiary_passthrough_total", provider=name) == 1
        assert server.metric("ostiary_interceptions_inflight", provider=name) == 0
