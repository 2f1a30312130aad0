"""Records as a gateway worker makes them, for tests of what stores and shows them."""

import time
from collections.abc import Sequence
from typing import Any

from ostiary.core.ids import new_id
from ostiary.core.records import (
    Attempt,
    InterceptionEnd,
    InterceptionStart,
    ModelThought,
    Prompt,
    Record,
    TokenUsage,
    ToolUsage,
    Trace,
    encode_record,
)


def now_us() -> int:
    return time.time_ns() // 1000


def start(**fields: Any) -> InterceptionStart:
    """A start with a prompt; any field can be given."""
    at = fields.get("started_at", now_us())
    defaults: dict[str, Any] = {
        "id": new_id(),
        "initiator_id": new_id(),
        "api_key_id": new_id(),
        "provider": "anthropic",
        "provider_name": "claude-main",
        "model": "claude-sonnet-4-5",
        "route": "/v1/messages",
        "started_at": at,
        "streaming": True,
        "client": "Claude Code",
        "user_agent": "claude-cli/2.0",
        "credential_hint": "sk-a...wxyz",
        "revision": 3,
        "request_id": new_id(),
        "prompt": Prompt(new_id(), "what is an ostiary?"),
    }
    return InterceptionStart(**(defaults | fields))


def end(of: InterceptionStart, *, calls: Sequence[str] = (), **fields: Any) -> InterceptionEnd:
    """How `of` ended: one token usage, a tool usage for each of `calls`, a thought, a trace."""
    at = of.started_at + 1_500_000
    defaults: dict[str, Any] = {
        "id": of.id,
        "ended_at": at,
        "outcome": "completed",
        "status_code": 200,
        "provider_response_id": "msg_1",
        "response_model": of.model,
        "finish_reason": "end_turn",
        "token_usages": [
            TokenUsage(
                new_id(),
                at,
                "msg_1",
                input_tokens=12,
                output_tokens=34,
                cache_read_input_tokens=5600,
                cache_write_input_tokens=78,
                metadata={"web_search_requests": 1},
                raw='{"input_tokens": 12, "output_tokens": 34}',
            )
        ],
        "tool_usages": [
            ToolUsage(new_id(), at, "Bash", '{"command": "ls"}', tool_call_id=call, provider_response_id="msg_1")
            for call in calls
        ],
        "model_thoughts": [ModelThought(new_id(), at, "The user asks about doors.")],
        "trace": Trace(
            candidates=[("sk-a...wxyz", "")], attempts=[Attempt("sk-a...wxyz", True, 200, "", 90)], stages={"head": 12}
        ),
    }
    return InterceptionEnd(**(defaults | fields))


def encoded(records: Sequence[Record]) -> list[bytes]:
    return [encode_record(record) for record in records]
