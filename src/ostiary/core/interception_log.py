"""The fields of the `interception log` lines: one a record, for who collects them elsewhere (reference G.5).

Event, record types and field names are a public interface: they stay as they are. Of a start, the control plane adds
`thread_parent_id` and `thread_root_id`, which nobody else knows. Times are ISO 8601 in UTC.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from .records import InterceptionEnd, InterceptionStart, Record

EVENT: Final = "interception log"
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

Fields = dict[str, Any]  # Any: what JSON holds


def record_lines(record: Record) -> Iterator[Fields]:
    """The lines of one record, each as its fields. Raises `OverflowError` for a time that no calendar has."""
    if isinstance(record, InterceptionStart):
        yield from _start(record)
    elif isinstance(record, InterceptionEnd):
        yield from _end(record)


def _time(micros: int) -> str:
    return (_EPOCH + timedelta(microseconds=micros)).isoformat()


def _start(record: InterceptionStart) -> Iterator[Fields]:
    yield {
        "record_type": "interception_start",
        "interception_id": record.id,
        "initiator_id": record.initiator_id,
        "api_key_id": record.api_key_id,
        "provider": record.provider,
        "provider_name": record.provider_name,
        "model": record.model,
        "client": record.client,
        "client_session_id": record.client_session_id,
        "started_at": _time(record.started_at),
        "metadata": {"request_user_agent": record.user_agent},
        "correlating_tool_call_id": record.correlating_tool_call_id,
    }
    if record.prompt is not None:
        yield {
            "record_type": "prompt_usage",
            "interception_id": record.id,
            "msg_id": record.prompt.id,
            "prompt": record.prompt.prompt,
            "created_at": _time(record.started_at),
            "metadata": {},
        }


def _end(record: InterceptionEnd) -> Iterator[Fields]:
    for usage in record.token_usages:
        yield {
            "record_type": "token_usage",
            "interception_id": record.id,
            "msg_id": usage.provider_response_id,
            "input_tokens": usage.input_tokens,
            "output_tokens": usage.output_tokens,
            "cache_read_input_tokens": usage.cache_read_input_tokens,
            "cache_write_input_tokens": usage.cache_write_input_tokens,
            "created_at": _time(usage.created_at),
            "metadata": usage.metadata,
        }
    for tool in record.tool_usages:
        yield {
            "record_type": "tool_usage",
            "interception_id": record.id,
            "msg_id": tool.provider_response_id,
            "tool_call_id": tool.tool_call_id,
            "item_id": tool.item_id,
            "tool": tool.tool,
            "input": tool.input,
            "server_url": tool.server_url,
            "injected": tool.injected,
            "invocation_error": tool.invocation_error,
            "created_at": _time(tool.created_at),
            "metadata": {},
        }
    for thought in record.model_thoughts:
        yield {
            "record_type": "model_thought",
            "interception_id": record.id,
            "content": thought.content,
            "created_at": _time(thought.created_at),
            "metadata": {"source": thought.source},
        }
    yield {"record_type": "interception_end", "interception_id": record.id, "ended_at": _time(record.ended_at)}
