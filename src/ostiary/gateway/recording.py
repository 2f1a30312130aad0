"""The two records of an interception: what a request says of itself, and how it ended. Pure."""

from typing import Any, Final, Literal

import msgspec

from ostiary.core.agents import AgentFirewall
from ostiary.core.identity import Identity
from ostiary.core.ids import child_id
from ostiary.core.records import (
    CredentialKind,
    ErrorType,
    InterceptionEnd,
    InterceptionStart,
    ModelThought,
    Outcome,
    Prompt,
    TokenUsage,
    ToolUsage,
    Trace,
)
from ostiary.http1.errors import Failure
from ostiary.wire.errors import classify
from ostiary.wire.facts import Format, ProviderError, RequestFacts, ResponseFacts, ToolCall, Usage, clip

from .decide import Admission
from .heads import without_credentials

RecordContent = Literal["none", "prompts", "full"]

_PROMPT_CHILD: Final = 1
_FIRST_CHILD: Final = 2
"""Numbers of what belongs to an interception (`core.ids.child_id`): its prompt, then usage, tool calls, thoughts."""
_NO_FACTS: Final = RequestFacts("")
_BARE_TEXT: Final = 200
_BARE_OBJECT: Final = 1024
"""Bytes of one text, and of one object, in an end without content."""


class Ending:
    """How a request ended, as far as it is known so far; the exchange fills it in."""

    __slots__ = ("error_message", "error_type", "outcome", "status")

    def __init__(self) -> None:
        self.outcome: Outcome = "completed"
        self.status = 0
        self.error_type: ErrorType | None = None
        self.error_message = ""

    def take_error(self, wire_format: Format, error: ProviderError, sent_head: bytes) -> None:
        """An error that the answer itself speaks of. `sent_head`: its credentials are cut out of what is said."""
        if self.outcome == "completed":
            self.outcome = "upstream_error"
        if self.error_type is None:
            self.error_type = classify(wire_format, self.status, error)
        if not self.error_message:
            self.error_message = without_credentials(error.message or error.type, sent_head)


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


def upstream_failed(ending: Ending, *, own: bool, exhausted: bool) -> bool | None:
    """Whether the upstream has failed in this exchange, as its breaker counts it; None when nothing can be said.

    `own`: with a credential of the client's own; `exhausted`: a 429 is about all keys of the pool (design §11). Only what
    the provider itself answered counts: while the pool refuses, nothing reaches it anyway, and when it may be asked again
    the breaker must not stand in the way.
    """
    if ending.outcome == "completed":
        return False
    if ending.outcome != "upstream_error":
        return None
    if ending.status == 429:
        return True if exhausted and not own else None
    if own and ending.status in (401, 403):
        return None
    return ending.error_type in ("server_error", "overloaded", "timeout") or ending.status >= 500


def start_record(
    interception_id: str,
    started_us: int,
    identity: Identity,
    admission: Admission,
    credential: tuple[CredentialKind, str],
    fields: dict[bytes, bytes],
    facts: RequestFacts,
    *,
    client: str,
    session: str,
    revision: int,
    with_prompt: bool,
    firewall: AgentFirewall | None,
) -> InterceptionStart:
    """The start of an interception, as it goes to the journal before the request goes upstream.

    `credential`: kind and masked hint.
    """
    provider = admission.provider
    route = admission.route
    prompt = None
    if with_prompt and facts.prompt is not None:
        prompt = Prompt(child_id(interception_id, _PROMPT_CHILD), facts.prompt)
    started = InterceptionStart(
        interception_id,
        identity.owner_id,
        identity.api_key_id,
        provider.family,
        provider.name,
        facts.model,
        route.label,
        started_us,
        facts.stream,
        route.kind,
        client,
        fields.get(b"user-agent", b"").decode("latin-1")[:512],
        session,
        facts.correlating_tool_call_id,
        *credential,
        revision,
        "",
        prompt,
    )
    if firewall is None:
        return started
    return msgspec.structs.replace(
        started,
        agent_firewall_session_id=firewall.session_id,
        agent_firewall_sequence_number=firewall.sequence_number,
    )


def passed_through(
    request_id: str,
    times_us: tuple[int, int],
    identity: Identity,
    admission: Admission,
    credential: tuple[CredentialKind, str],
    fields: dict[bytes, bytes],
    *,
    client: str,
    session: str,
    ending: Ending,
    trace: Trace,
) -> tuple[InterceptionStart, InterceptionEnd]:
    """Of a request that is relayed without a record: what telemetry is told. `times_us`: when it began, and ended."""
    start = start_record(
        request_id,
        times_us[0],
        identity,
        admission,
        credential,
        fields,
        _NO_FACTS,
        client=client,
        session=session,
        revision=0,
        with_prompt=False,
        firewall=None,
    )
    end = end_record(request_id, times_us[1], ending, hint="", facts=None, tool_results=(), trace=trace, content="none")
    return msgspec.structs.replace(start, route_kind="passthrough"), end


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
    """The end of an interception. What belongs to it is numbered on from its prompt's number."""
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
    number = _FIRST_CHILD
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


LOST: Final = Trace(notes=["what the answer said was lost to an internal error of the gateway"])

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


def bare_end(interception_id: str, now_us: int, ending: Ending) -> InterceptionEnd:
    """How it ended, without anything that others have said."""
    return InterceptionEnd(
        interception_id,
        now_us,
        ending.outcome,
        status_code=ending.status,
        error_type=ending.error_type,
        unparsed=True,
        trace=LOST,
    )


def without_content(record: InterceptionEnd) -> InterceptionEnd:
    """The same end with usage only, for a journal that has no room for more: encoded, at most `journal.MAX_BARE_END` bytes.

    What others have written is cut for that; their `usage` object and further numbers, which cannot be, are left out.
    """
    return InterceptionEnd(
        record.id,
        record.ended_at,
        record.outcome,
        status_code=record.status_code,
        error_type=record.error_type,
        error_message=clip(record.error_message, 2 * _BARE_TEXT),
        credential_hint=clip(record.credential_hint, _BARE_TEXT),
        provider_response_id=clip(record.provider_response_id, _BARE_TEXT),
        response_model=clip(record.response_model, _BARE_TEXT),
        finish_reason=clip(record.finish_reason, _BARE_TEXT),
        unparsed=record.unparsed,
        token_usages=[_bare_usage(usage) for usage in record.token_usages[:1]],
        trace=Trace(notes=["content was shed: the journal is full"]),
    )


def _bare_usage(usage: TokenUsage) -> TokenUsage:
    metadata = {
        name: clip(value, _BARE_TEXT) if isinstance(value, str) else value for name, value in usage.metadata.items()
    }
    return msgspec.structs.replace(
        usage,
        provider_response_id=clip(usage.provider_response_id, _BARE_TEXT),
        metadata=metadata if len(msgspec.msgpack.encode(metadata)) <= _BARE_OBJECT else {},
        raw=usage.raw if len(usage.raw.encode("utf-8", "replace")) <= _BARE_OBJECT else "",
    )
