"""The `interception log` lines: one a record, for who collects them elsewhere (reference G.5).

Message, record types and field names are a public interface: they stay as they are.
"""

import structlog

from .lineage import Link
from .rows import EndRows, StartRows

log = structlog.get_logger("ostiary.interceptions")

_EVENT = "interception log"


def interception_log(stored: tuple[StartRows, Link | None] | EndRows) -> None:
    """Log what one journal frame held."""
    if isinstance(stored, EndRows):
        _end(stored)
    else:
        _start(*stored)


def _start(rows: StartRows, link: Link | None) -> None:
    record = rows.record
    log.info(
        _EVENT,
        record_type="interception_start",
        interception_id=record.id,
        initiator_id=record.initiator_id,
        api_key_id=record.api_key_id,
        provider=record.provider,
        provider_name=record.provider_name,
        model=record.model,
        client=record.client,
        client_session_id=record.client_session_id,
        started_at=rows.started_at.isoformat(),
        metadata={"request_user_agent": record.user_agent},
        correlating_tool_call_id=record.correlating_tool_call_id,
        thread_parent_id=link.parent_id if link else None,
        thread_root_id=link.root_id if link else None,
    )
    if rows.prompt is not None:
        _, prompt_id, prompt, at = rows.prompt
        log.info(
            _EVENT,
            record_type="prompt_usage",
            interception_id=record.id,
            msg_id=prompt_id,
            prompt=prompt,
            created_at=at.isoformat(),
            metadata={},
        )


def _end(rows: EndRows) -> None:
    record = rows.record
    for usage, row in zip(record.token_usages, rows.token_usages, strict=True):
        log.info(
            _EVENT,
            record_type="token_usage",
            interception_id=record.id,
            msg_id=usage.provider_response_id,
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            cache_read_input_tokens=usage.cache_read_input_tokens,
            cache_write_input_tokens=usage.cache_write_input_tokens,
            created_at=row[-1].isoformat(),
            metadata=usage.metadata,
        )
    for tool, row in zip(record.tool_usages, rows.tool_usages, strict=True):
        log.info(
            _EVENT,
            record_type="tool_usage",
            interception_id=record.id,
            msg_id=tool.provider_response_id,
            tool_call_id=tool.tool_call_id,
            item_id=tool.item_id,
            tool=tool.tool,
            input=tool.input,
            server_url=tool.server_url,
            injected=tool.injected,
            invocation_error=tool.invocation_error,
            created_at=row[-1].isoformat(),
            metadata={},
        )
    for thought, row in zip(record.model_thoughts, rows.thoughts, strict=True):
        log.info(
            _EVENT,
            record_type="model_thought",
            interception_id=record.id,
            content=thought.content,
            created_at=row[-1].isoformat(),
            metadata={"source": thought.source},
        )
    log.info(_EVENT, record_type="interception_end", interception_id=record.id, ended_at=rows.values[0].isoformat())
