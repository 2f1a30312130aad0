"""From the facts of an answer to the record of an interception's end. Pure."""

from typing import Any, Final, Literal

from ostiary.core.ids import child_id
from ostiary.core.records import (
    MAX_ERROR_MESSAGE,
    ErrorType,
    InterceptionEnd,
    ModelThought,
    Outcome,
    TokenUsage,
    ToolUsage,
    Trace,
)
from ostiary.http1.errors import Failure
from ostiary.wire.facts import ResponseFacts, ToolCall, Usage

RecordContent = Literal["none", "prompts", "full"]

PROMPT_CHILD: Final = 1
FIRST_CHILD: Final = 2
"""Numbers of what belongs to an interception (`core.ids.child_id`): its prompt, then usage, tool calls, thoughts."""


class Ending:
    """How a request ended, as far as it is known so far; the exchange fills it in."""

    __slots__ = ("error_message", "error_type", "outcome", "status")

    def __init__(self) -> None:
        self.outcome: Outcome = "completed"
        self.status = 0
        self.error_type: ErrorType | None = None
        self.error_message = ""


def error_type_of(status: int, family: str) -> ErrorType:
    """Reference D.5: what kind of error a status is."""
    if status == 429:
        return "rate_limited"
    if status in (401, 403):
        return "unauthorized"
    if status in (408, 504):
        return "timeout"
    if status == 529 or (status == 503 and family == "openai"):
        return "overloaded"
    return "server_error" if status >= 500 else "bad_request"


def error_type_of_failure(failure: Failure) -> ErrorType:
    return "timeout" if failure in (Failure.HEAD_TIMEOUT, Failure.IDLE_TIMEOUT) else "server_error"


def clip(message: str) -> str:
    """At most `MAX_ERROR_MESSAGE` bytes of valid UTF-8."""
    if len(message) * 4 <= MAX_ERROR_MESSAGE:
        return message
    raw = message.encode("utf-8", "replace")
    return message if len(raw) <= MAX_ERROR_MESSAGE else raw[:MAX_ERROR_MESSAGE].decode("utf-8", "ignore")


def end_record(
    interception_id: str,
    now_us: int,
    ending: Ending,
    *,
    hint: str,
    facts: ResponseFacts | None,
    tool_results: tuple[str, ...],
    trace: Trace,
    content: RecordContent,
) -> InterceptionEnd:
    """The end of an interception. What belongs to it is numbered on from `FIRST_CHILD`."""
    if facts is None:
        return InterceptionEnd(
            interception_id,
            now_us,
            ending.outcome,
            status_code=ending.status,
            error_type=ending.error_type,
            error_message=clip(ending.error_message),
            credential_hint=hint,
            trace=trace,
        )
    response_id = facts.response_id
    usage = facts.usage
    number = FIRST_CHILD
    usages = _NONE if usage is None else [_token_usage(child_id(interception_id, number), now_us, response_id, usage)]
    tools: list[ToolUsage] = _NONE
    thoughts: list[ModelThought] = _NONE
    if content != "none":
        if facts.tool_calls:
            tools = [
                _tool_usage(child_id(interception_id, number + at), now_us, response_id, call)
                for at, call in enumerate(facts.tool_calls, 1)
            ]
            number += len(tools)
        if facts.thoughts:
            thoughts = [
                ModelThought(child_id(interception_id, number + at), now_us, thought.content, thought.source)
                for at, thought in enumerate(facts.thoughts, 1)
            ]
    return InterceptionEnd(
        interception_id,
        now_us,
        ending.outcome,
        ending.status,
        ending.error_type,
        clip(ending.error_message),
        hint,
        response_id,
        facts.model,
        facts.finish_reason,
        facts.unparsed,
        usages,
        tools,
        thoughts,
        facts.output_text,
        list(tool_results),
        trace,
    )


_NONE: Final[list[Any]] = []  # Any: empty, whatever it is a list of
"""Shared by records, which are frozen and only encoded."""


def _token_usage(record_id: str, now_us: int, response_id: str, usage: Usage) -> TokenUsage:
    return TokenUsage(
        record_id,
        now_us,
        response_id,
        usage.input_tokens,
        usage.output_tokens,
        usage.cache_read_input_tokens,
        usage.cache_write_input_tokens,
        usage.metadata,
        usage.raw,
    )


def _tool_usage(record_id: str, now_us: int, response_id: str, call: ToolCall) -> ToolUsage:
    return ToolUsage(
        record_id,
        now_us,
        call.tool,
        input=call.input,
        tool_call_id=call.tool_call_id,
        item_id=call.item_id,
        provider_response_id=response_id,
        truncated=call.truncated,
    )


def without_content(record: InterceptionEnd) -> InterceptionEnd:
    """The same end with usage only, for a journal that has no room for more."""
    return InterceptionEnd(
        record.id,
        record.ended_at,
        record.outcome,
        status_code=record.status_code,
        error_type=record.error_type,
        error_message=record.error_message[:200],
        credential_hint=record.credential_hint,
        provider_response_id=record.provider_response_id,
        response_model=record.response_model,
        finish_reason=record.finish_reason,
        unparsed=record.unparsed,
        token_usages=record.token_usages,
        trace=Trace(notes=["content was shed: the journal is full"]),
    )
