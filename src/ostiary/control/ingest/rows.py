"""Records as rows: tuples in the order of the columns that `statements` names.

Rules
- Pure. A record that cannot be rows raises `RecordError` with a reason that quotes none of its content.
- PostgreSQL's text holds no NUL: it becomes U+FFFD. What stands in an index is cut at `INDEXED_MAX` characters, since a
  longer value fits no B-tree page; both ends of a comparison are cut alike.
- Ids are canonical UUID text. Empty text is NULL where the column allows it.
"""

import re
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec

from ostiary.core.records import MAX_ERROR_MESSAGE, MAX_TOKENS, InterceptionEnd, InterceptionStart, ToolUsage

INDEXED_MAX: Final = 512
"""Characters of an indexed text that are kept; four bytes each they stay below the 2,704 of a B-tree entry."""

Row = tuple[Any, ...]  # Any: one column each

_UUID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MAX_TIME: Final = int((datetime(9999, 1, 1, tzinfo=UTC) - _EPOCH).total_seconds()) * 1_000_000
_MAX_INT: Final = 2**31 - 1
_MAX_BIGINT: Final = 2**63 - 1
_NUL_ESCAPE: Final = "\\u0000"
_json_encoder = msgspec.json.Encoder()


class RecordError(ValueError):
    """A record that no row can be made of."""


def check_id(value: str, field: str) -> str:
    if not _UUID.fullmatch(value):
        raise RecordError(f"{field} is not a UUID")
    return value


def is_id(value: str) -> bool:
    return _UUID.fullmatch(value) is not None


def moment(micros: int, field: str) -> datetime:
    """A time of a record; Unix microseconds."""
    if not 0 <= micros <= _MAX_TIME:
        raise RecordError(f"{field} is out of range")
    return _EPOCH + timedelta(microseconds=micros)


def micros(at: datetime) -> int:
    """The other way."""
    return (at - _EPOCH) // timedelta(microseconds=1)


def clean(value: str) -> str:
    return value.replace("\x00", "\ufffd") if "\x00" in value else value


def indexed(value: str) -> str:
    return clean(value if len(value) <= INDEXED_MAX else value[:INDEXED_MAX])


def to_json(value: object) -> str:
    """JSON text that `jsonb` takes."""
    text = _json_encoder.encode(value).decode()
    if _NUL_ESCAPE in text:
        text = _json_encoder.encode(_without_nul(msgspec.to_builtins(value))).decode()
    return text


def _without_nul(value: Any) -> Any:  # Any: JSON
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, dict):
        return {clean(key): _without_nul(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nul(item) for item in value]
    return value


def _number(value: int, limit: int, field: str) -> int:
    if not 0 <= value <= limit:
        raise RecordError(f"{field} is out of range")
    return value


class StartRows:
    """The rows of one `InterceptionStart`, and of its end when that is in the same batch."""

    __slots__ = (
        "_head",
        "client",
        "client_session_id",
        "correlating_tool_call_id",
        "model",
        "prompt",
        "record",
        "started_at",
    )

    def __init__(self, record: InterceptionStart) -> None:
        self.record = record
        self.started_at = moment(record.started_at, "started_at")
        self.model = indexed(record.model)
        self.client = indexed(record.client)
        self.client_session_id = indexed(record.client_session_id)
        self.correlating_tool_call_id = indexed(record.correlating_tool_call_id)
        provider = clean(record.provider)
        firewall = record.agent_firewall_session_id
        self._head: Row = (
            check_id(record.id, "id"),
            check_id(record.initiator_id, "initiator_id"),
            check_id(record.api_key_id, "api_key_id"),
            provider,
            clean(record.provider_name).strip() or provider,
            self.model,
            clean(record.route),
            record.route_kind,
            record.streaming,
            self.started_at,
            self.client or None,
            self.client_session_id or None,
            self.correlating_tool_call_id or None,
            record.credential_kind,
            _number(record.revision, _MAX_BIGINT, "revision"),
            clean(record.request_id),
            to_json({"request_user_agent": record.user_agent}) if record.user_agent else None,
            # a malformed correlation header is no reason to lose the record (reference B.4)
            firewall if firewall and is_id(firewall) else None,
            min(record.agent_firewall_sequence_number, _MAX_INT)
            if record.agent_firewall_sequence_number >= 0
            else None,
        )
        self.prompt: Row | None = None
        if record.prompt is not None:
            self.prompt = (
                record.id,
                check_id(record.prompt.id, "prompt.id"),
                clean(record.prompt.prompt),
                self.started_at,
            )

    def row(self, journal_id: str, parent_id: str | None, root_id: str | None, end: "EndRows | None") -> Row:
        """The interception's row, as `statements.INTERCEPTION_COLUMNS` has it."""
        hint = clean(self.record.credential_hint)
        if end is not None:
            if end.record.credential_hint and self.record.credential_kind == "centralized":
                hint = clean(end.record.credential_hint)
            tail = end.values
        else:
            tail = _STILL_OPEN
        return (*self._head, journal_id, parent_id, root_id, self.session_id(root_id), hint, *tail)

    def session_id(self, root_id: str | None) -> str:
        return self.client_session_id or root_id or self.record.id


class EndRows:
    """The rows of one `InterceptionEnd`."""

    __slots__ = ("details", "record", "thoughts", "token_usages", "tool_calls", "tool_usages", "values")

    def __init__(self, record: InterceptionEnd) -> None:
        self.record = record
        check_id(record.id, "id")
        self.values: Row = (
            moment(record.ended_at, "ended_at"),
            record.outcome,
            _number(record.status_code, _MAX_INT, "status_code") or None,
            record.error_type,
            _error_message(record.error_message) or None,
            clean(record.provider_response_id) or None,
            clean(record.response_model) or None,
            clean(record.finish_reason) or None,
            record.unparsed,
        )
        self.token_usages: list[Row] = [
            (
                record.id,
                check_id(usage.id, "token_usages.id"),
                clean(usage.provider_response_id),
                _number(usage.input_tokens, MAX_TOKENS, "input_tokens"),
                _number(usage.output_tokens, MAX_TOKENS, "output_tokens"),
                _number(usage.cache_read_input_tokens, MAX_TOKENS, "cache_read_input_tokens"),
                _number(usage.cache_write_input_tokens, MAX_TOKENS, "cache_write_input_tokens"),
                to_json(usage.metadata) if usage.metadata else None,
                clean(usage.raw) or None,
                moment(usage.created_at, "token_usages.created_at"),
            )
            for usage in record.token_usages
        ]
        self.tool_usages: list[Row] = [_tool_usage(record.id, tool) for tool in record.tool_usages]
        self.tool_calls = [indexed(tool.tool_call_id) for tool in record.tool_usages if tool.tool_call_id]
        self.thoughts: list[Row] = [
            (
                record.id,
                check_id(thought.id, "model_thoughts.id"),
                clean(thought.content),
                clean(thought.source),
                moment(thought.created_at, "model_thoughts.created_at"),
            )
            for thought in record.model_thoughts
        ]
        self.details: Row | None = None
        if record.trace is not None or record.output_text or record.tool_results:
            self.details = (
                record.id,
                to_json(record.trace) if record.trace is not None else None,
                clean(record.output_text) or None,
                to_json(record.tool_results) if record.tool_results else None,
            )

    @property
    def update(self) -> Row:
        """The row that closes an interception stored earlier, as `statements.END_COLUMNS` has it."""
        return (self.record.id, clean(self.record.credential_hint), *self.values)


_STILL_OPEN: Final[Row] = (None, None, None, None, None, None, None, None, False)
"""`EndRows.values` of an interception that has not ended."""


def _tool_usage(interception_id: str, tool: ToolUsage) -> Row:
    return (
        interception_id,
        check_id(tool.id, "tool_usages.id"),
        clean(tool.provider_response_id),
        indexed(tool.tool_call_id) or None,
        clean(tool.item_id) or None,
        clean(tool.tool),
        clean(tool.input),
        tool.injected,
        clean(tool.server_url) or None,
        clean(tool.invocation_error) or None,
        tool.truncated,
        moment(tool.created_at, "tool_usages.created_at"),
    )


def _error_message(text: str) -> str:
    encoded = clean(text).encode()
    return encoded[:MAX_ERROR_MESSAGE].decode(errors="ignore")
