"""What the reading side gives: recorded data as the REST API shows it (design §13 "Reading the record", reference G.1)."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

Json = Any
"""A JSON value as it stands in the database."""


@dataclass(frozen=True, slots=True)
class Initiator:
    """Who sent an interception. The name is empty when that person is no longer known."""

    id: str
    username: str


@dataclass(frozen=True, slots=True)
class TokenUsage:
    """The provider's final numbers of one upstream call; `raw` is its own `usage` object."""

    id: str
    interception_id: str
    provider_response_id: str
    input_tokens: int
    output_tokens: int
    cache_read_input_tokens: int
    cache_write_input_tokens: int
    metadata: dict[str, Json]
    raw: Json
    created_at: datetime


@dataclass(frozen=True, slots=True)
class UserPrompt:
    id: str
    interception_id: str
    prompt: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class ToolUsage:
    """A tool call that the model asked for; `input` as the provider sent it."""

    id: str
    interception_id: str
    provider_response_id: str
    tool_call_id: str | None
    item_id: str | None
    tool: str
    input: str
    injected: bool
    server_url: str | None
    invocation_error: str | None
    truncated: bool
    created_at: datetime


@dataclass(frozen=True, slots=True)
class ModelThought:
    id: str
    interception_id: str
    content: str
    source: str
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Interception:
    """One client request and what is recorded of it."""

    id: str
    initiator: Initiator
    api_key_id: str
    provider: str
    provider_name: str
    model: str
    client: str | None
    client_session_id: str | None
    session_id: str
    thread_parent_id: str | None
    thread_root_id: str | None
    correlating_tool_call_id: str | None
    route: str
    route_kind: str
    streaming: bool
    started_at: datetime
    ended_at: datetime | None
    outcome: str | None
    status_code: int | None
    error_type: str | None
    error_message: str | None
    credential_kind: str
    credential_hint: str
    provider_response_id: str | None
    response_model: str | None
    finish_reason: str | None
    unparsed: bool
    revision: int
    request_id: str
    journal_id: str
    metadata: dict[str, Json]
    agent_firewall_session_id: str | None
    agent_firewall_sequence_number: int | None
    token_usages: list[TokenUsage]
    user_prompts: list[UserPrompt]
    tool_usages: list[ToolUsage]
    model_thoughts: list[ModelThought]


@dataclass(frozen=True, slots=True, kw_only=True)
class InterceptionDetail(Interception):
    """Everything recorded of an interception: the decision trace too, and the texts where they are recorded."""

    trace: Json
    output_text: str | None
    tool_results: list[str] | None


@dataclass(frozen=True, slots=True)
class InterceptionPage:
    """`count` is of all that match, up to `store.interceptions.COUNT_LIMIT`."""

    count: int
    results: list[Interception]


@dataclass(frozen=True, slots=True)
class TokenSummary:
    """Sums over token usages; `metadata` sums the numbers of the same name in theirs."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_input_tokens: int = 0
    cache_write_input_tokens: int = 0
    metadata: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A row of the list of sessions."""

    id: str
    initiator: Initiator
    providers: list[str]
    models: list[str]
    client: str | None
    metadata: dict[str, Json]
    started_at: datetime
    ended_at: datetime | None
    threads: int
    token_usage_summary: TokenSummary
    last_prompt: str | None
    last_active_at: datetime


@dataclass(frozen=True, slots=True)
class SessionPage:
    count: int
    sessions: list[Session]


@dataclass(frozen=True, slots=True)
class Thinking:
    text: str


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool call within an agentic action."""

    id: str
    interception_id: str
    provider_response_id: str
    tool_call_id: str | None
    server_url: str | None
    tool: str
    injected: bool
    input: str
    truncated: bool
    metadata: dict[str, Json]
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class AgenticAction:
    """One interception in which the model thought or called tools."""

    interception_id: str
    model: str
    token_usage: TokenSummary
    thinking: list[Thinking]
    tool_calls: list[ToolCall]


@dataclass(frozen=True, slots=True, kw_only=True)
class Thread:
    """A root interception and all that hang below it; its model, provider and credential are the root's."""

    id: str
    prompt: str | None
    model: str
    provider: str
    provider_name: str
    credential_kind: str
    credential_hint: str
    started_at: datetime
    ended_at: datetime | None
    error_type: str | None
    error_message: str | None
    token_usage: TokenSummary
    agentic_actions: list[AgenticAction]
    interceptions: int
    agent_firewall_session_id: str | None
    agent_firewall_sequence_number: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionDetail:
    """A session, and a page of its threads, oldest first."""

    id: str
    initiator: Initiator
    providers: list[str]
    models: list[str]
    client: str | None
    metadata: dict[str, Json]
    page_started_at: datetime | None
    page_ended_at: datetime | None
    started_at: datetime
    ended_at: datetime | None
    token_usage_summary: TokenSummary
    threads: list[Thread]
    truncated: bool
    """The page's threads have more interceptions than are shown."""


@dataclass(frozen=True, slots=True)
class Journal:
    """How far a journal is stored: `acked_seq` = `stored` + `duplicate` + `rejected`, and what was appended at the end."""

    journal_id: str
    acked_seq: int
    stored: int
    duplicate: int
    rejected: int
    gone: bool
    first_seen: datetime
    last_seen: datetime


@dataclass(frozen=True, slots=True)
class JournalPage:
    count: int
    journals: list[Journal]


@dataclass(frozen=True, slots=True)
class RejectedFrame:
    seq: int
    reason: str
    bytes: int
    at: datetime


@dataclass(frozen=True, slots=True)
class JournalDetail:
    journal: Journal
    rejected: list[RejectedFrame]
