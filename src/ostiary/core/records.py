"""What is recorded of an interception, as it stands in a journal frame and travels to the control plane.

An interception is two records: `InterceptionStart`, in the journal before anything goes upstream, and then
`InterceptionEnd`.
Times are Unix microseconds in UTC. Ids are UUIDv7 text made at the worker, so a record delivered twice stores once.
"""

from typing import Literal

import msgspec
from msgspec import Struct

Outcome = Literal["completed", "client_closed", "upstream_error", "rejected", "interrupted"]
CredentialKind = Literal["centralized", "byok"]
ErrorType = Literal["bad_request", "unauthorized", "rate_limited", "overloaded", "server_error", "timeout", "unknown"]
RouteKind = Literal["bridged", "metered", "passthrough"]

MAX_ERROR_MESSAGE = 1024
"""Bytes of `error_message` that are kept (reference D.5)."""

MAX_TOKENS = 10**12
"""Of one kind in one record: more is no count of tokens."""


class Prompt(Struct, frozen=True, omit_defaults=True):
    """The last user prompt of a request."""

    id: str
    prompt: str


class InterceptionStart(Struct, frozen=True, omit_defaults=True, tag="start"):
    """One client request to a bridged or metered route, before it goes upstream."""

    id: str
    initiator_id: str
    api_key_id: str
    provider: str
    """Wire family: openai, anthropic, copilot."""
    provider_name: str
    model: str
    route: str
    """The path behind the provider's name, e.g. /v1/messages."""
    started_at: int
    streaming: bool = False
    route_kind: RouteKind = "bridged"
    client: str = ""
    """Reference D.7; empty when unknown."""
    user_agent: str = ""
    client_session_id: str = ""
    correlating_tool_call_id: str = ""
    credential_kind: CredentialKind = "centralized"
    credential_hint: str = ""
    revision: int = 0
    request_id: str = ""
    prompt: Prompt | None = None
    agent_firewall_session_id: str = ""
    agent_firewall_sequence_number: int = -1


class TokenUsage(Struct, frozen=True, omit_defaults=True):
    """The provider's final numbers of one upstream call. `input_tokens` excludes what a cache read or took."""

    id: str
    created_at: int
    provider_response_id: str = ""
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_input_tokens: int = 0
    cache_write_input_tokens: int = 0
    metadata: dict[str, int | str] = {}
    raw: str = ""
    """The provider's `usage` object, JSON text as it stood in the answer; empty when there was none."""


class ToolUsage(Struct, frozen=True, omit_defaults=True):
    """A tool call that the model asked for."""

    id: str
    created_at: int
    tool: str
    input: str = ""
    """As the provider sent it: JSON text for functions, free text for custom tools."""
    tool_call_id: str = ""
    item_id: str = ""
    provider_response_id: str = ""
    injected: bool = False
    server_url: str = ""
    invocation_error: str = ""
    truncated: bool = False
    """The input was cut by the token limit or by a cut stream: never complete it, never execute it."""


class ModelThought(Struct, frozen=True, omit_defaults=True):
    """Reasoning the provider showed."""

    id: str
    created_at: int
    content: str
    source: str = "thinking"
    """thinking, reasoning_summary or commentary."""


class Attempt(Struct, frozen=True, omit_defaults=True):
    """One try at an upstream, as the decision trace shows it."""

    key_hint: str = ""
    reused_connection: bool = False
    status: int = 0
    error: str = ""
    at_us: int = 0
    """Microseconds since the head was read."""


class Trace(Struct, frozen=True, omit_defaults=True):
    """Why the request went where it went. `stages` are microseconds since the head was read."""

    candidates: list[tuple[str, str]] = []
    """(key hint, why it was passed over; empty for the one taken)."""
    edits: list[str] = []
    attempts: list[Attempt] = []
    stages: dict[str, int] = {}
    notes: list[str] = []


class InterceptionEnd(Struct, frozen=True, omit_defaults=True, tag="end"):
    """How an interception ended and what was seen of it."""

    id: str
    ended_at: int
    outcome: Outcome
    status_code: int = 0
    """Status the client got; 0 when it left before one."""
    error_type: ErrorType | None = None
    error_message: str = ""
    credential_hint: str = ""
    provider_response_id: str = ""
    response_model: str = ""
    finish_reason: str = ""
    unparsed: bool = False
    """The reader failed on the answer: its bytes flowed, its facts are missing or partial."""
    token_usages: list[TokenUsage] = []
    tool_usages: list[ToolUsage] = []
    model_thoughts: list[ModelThought] = []
    output_text: str = ""
    tool_results: list[str] = []
    trace: Trace | None = None


class WorkerGone(Struct, frozen=True, omit_defaults=True, tag="worker_gone"):
    """Appended by the link to a dead worker's journal: that worker's open interceptions were interrupted."""

    at: int


Record = InterceptionStart | InterceptionEnd | WorkerGone

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Record] = msgspec.msgpack.Decoder(Record)


def encode_record(record: Record) -> bytes:
    """The payload of one journal frame."""
    return _encoder.encode(record)


def decode_record(payload: bytes) -> Record:
    """Raises `msgspec.DecodeError` or `msgspec.ValidationError` for what is not a record of ours."""
    return _decoder.decode(payload)
