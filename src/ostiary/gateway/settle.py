"""From the facts of an answer to the record of an interception's end. Pure."""

from collections.abc import Callable
from typing import Literal

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
from ostiary.wire.facts import ResponseFacts

RecordContent = Literal["none", "prompts", "full"]


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


_BY_NAME: dict[str, ErrorType] = {
    "overloaded_error": "overloaded",
    "rate_limit_error": "rate_limited",
    "rate_limit_exceeded": "rate_limited",
    "insufficient_quota": "rate_limited",
    "authentication_error": "unauthorized",
    "permission_error": "unauthorized",
    "invalid_request_error": "bad_request",
    "not_found_error": "bad_request",
    "timeout_error": "timeout",
}


def error_type_of_name(name: str) -> ErrorType:
    """The kind of an error that came in mid-stream, by the provider's own name for it."""
    return _BY_NAME.get(name, "server_error")


def clip(message: str) -> str:
    """At most `MAX_ERROR_MESSAGE` bytes of valid UTF-8."""
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
    new_id: Callable[[], str],
) -> InterceptionEnd:
    """The end of an interception; ids of what belongs to it are made here."""
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
    usages = []
    if usage is not None:
        usages.append(
            TokenUsage(
                new_id(),
                now_us,
                response_id,
                usage.input_tokens,
                usage.output_tokens,
                usage.cache_read_input_tokens,
                usage.cache_write_input_tokens,
                usage.metadata,
                usage.raw,
            )
        )
    tools: list[ToolUsage] = []
    thoughts: list[ModelThought] = []
    if content != "none":
        tools = [
            ToolUsage(
                new_id(),
                now_us,
                call.tool,
                input=call.input,
                tool_call_id=call.tool_call_id,
                item_id=call.item_id,
                provider_response_id=response_id,
                truncated=call.truncated,
            )
            for call in facts.tool_calls
        ]
        thoughts = [ModelThought(new_id(), now_us, thought.content, thought.source) for thought in facts.thoughts]
    return InterceptionEnd(
        interception_id,
        now_us,
        ending.outcome,
        status_code=ending.status,
        error_type=ending.error_type,
        error_message=clip(ending.error_message),
        credential_hint=hint,
        provider_response_id=response_id,
        response_model=facts.model,
        finish_reason=facts.finish_reason,
        unparsed=facts.unparsed,
        token_usages=usages,
        tool_usages=tools,
        model_thoughts=thoughts,
        output_text=facts.output_text,
        tool_results=list(tool_results),
        trace=trace,
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
