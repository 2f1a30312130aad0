"""Reading sessions, and the threads within one (reference G.1).

Rules
- A session is all of one initiator's interceptions with one session id; it is shown once one of them has ended. Newest
  is the one with the newest prompt.
- A thread is a root interception and all below it. Threads of a session are read oldest first; a cursor is any
  interception of the session and stands for its thread.
- Which sessions there are, and in which order, says `interception_sessions`; what they hold is summed up only for the
  page that is shown.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

from sqlalchemy import ColumnElement, RowMapping, Uuid, and_, exists, func, literal, or_, select, text, true, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from ostiary.control.identity.lookup import is_uuid

from .filters import Filters
from .interceptions import COUNT_LIMIT, Children, UnknownCursorError, conditions, is_initiator, read_children
from .shapes import (
    AgenticAction,
    Initiator,
    Session,
    SessionDetail,
    SessionPage,
    Thinking,
    Thread,
    TokenSummary,
    TokenUsage,
    ToolCall,
)
from .tables import interception_sessions, interceptions, users

MAX_PAGE_INTERCEPTIONS: Final = 5000
"""Interceptions of which the threads of one page are made; a thread beyond it is cut at its newest end."""

s = interception_sessions.c
i = interceptions.c

_SUMMARIES: Final = text("""
WITH wanted AS (
    SELECT * FROM unnest(CAST(:sessions AS text[]), CAST(:initiators AS uuid[])) AS w(session_id, initiator_id)
), member AS (
    SELECT i.id, i.session_id, i.initiator_id, i.provider, i.model, i.client, i.metadata, i.ended_at,
           coalesce(i.thread_root_id, i.id) AS thread_id
    FROM wanted AS w JOIN interceptions AS i ON i.session_id = w.session_id AND i.initiator_id = w.initiator_id
), spent AS (
    SELECT m.session_id, m.initiator_id,
           sum(t.input_tokens)::bigint AS input_tokens, sum(t.output_tokens)::bigint AS output_tokens,
           sum(t.cache_read_input_tokens)::bigint AS cache_read_input_tokens,
           sum(t.cache_write_input_tokens)::bigint AS cache_write_input_tokens
    FROM member AS m JOIN token_usages AS t ON t.interception_id = m.id
    GROUP BY m.session_id, m.initiator_id
), summary AS (
    SELECT session_id, initiator_id, array_agg(DISTINCT provider) AS providers, array_agg(DISTINCT model) AS models,
           max(ended_at) AS ended_at, count(DISTINCT thread_id) AS threads,
           (array_agg(client ORDER BY id DESC) FILTER (WHERE client IS NOT NULL))[1] AS client,
           (array_agg(metadata ORDER BY id) FILTER (WHERE metadata IS NOT NULL))[1] AS metadata
    FROM member GROUP BY session_id, initiator_id
)
SELECT summary.*, spent.input_tokens, spent.output_tokens, spent.cache_read_input_tokens,
       spent.cache_write_input_tokens, prompt.prompt AS last_prompt
FROM summary LEFT JOIN spent USING (session_id, initiator_id)
LEFT JOIN LATERAL (
    SELECT p.prompt FROM member AS m JOIN user_prompts AS p ON p.interception_id = m.id
    WHERE m.session_id = summary.session_id AND m.initiator_id = summary.initiator_id
    ORDER BY p.created_at DESC, p.id DESC LIMIT 1
) AS prompt ON true
""")

_METADATA_SUMS: Final = text("""
SELECT e.key, sum(e.value::numeric)::bigint AS total
FROM interceptions AS i
JOIN token_usages AS t ON t.interception_id = i.id
CROSS JOIN LATERAL jsonb_each(t.metadata) AS e
WHERE i.session_id = :session AND i.initiator_id = :initiator AND jsonb_typeof(e.value) = 'number'
GROUP BY e.key ORDER BY e.key
""")


async def list_sessions(
    connection: AsyncConnection,
    filters: Filters,
    *,
    me: str,
    only: str | None,
    limit: int,
    offset: int = 0,
    after_session_id: str | None = None,
    after_initiator_id: str | None = None,
) -> SessionPage:
    """A page of what matches. Raises `UnknownCursorError`.

    `after_initiator_id`: whose session `after_session_id` is, for two people's sessions may have one id.
    """
    visible = [s.ended, true() if only is None else s.initiator_id == only]
    matches = [*visible, *_matching(filters, me)]
    counted = select(s.session_id).where(*matches).limit(COUNT_LIMIT).subquery()
    count = await connection.scalar(select(func.count()).select_from(counted)) or 0
    query = (
        select(interception_sessions, func.coalesce(users.c.username, "").label("username"))
        .outerjoin(users, users.c.id == s.initiator_id)
        .where(*matches)
        .order_by(s.last_active_at.desc(), s.session_id.desc(), s.initiator_id.desc())
        .limit(limit)
        .offset(offset)
    )
    if after_session_id is not None:
        owners = [is_initiator(s.initiator_id, filters.initiator, me)] if filters.initiator else []
        owners += [s.initiator_id == after_initiator_id] if after_initiator_id else []
        after = await _position(connection, after_session_id, [*visible, *owners])
        query = query.where(tuple_(s.last_active_at, s.session_id, s.initiator_id) < after)
    rows = (await connection.execute(query)).mappings().all()
    summaries = await _summaries(connection, rows)
    # one whose records have all gone by retention is about to go too
    shown = [(row, summaries.get((row["session_id"], row["initiator_id"]))) for row in rows]
    return SessionPage(count, [_session(row, summary) for row, summary in shown if summary is not None])


async def get_session(
    connection: AsyncConnection,
    session_id: str,
    *,
    me: str,
    only: str | None,
    limit: int,
    initiator: str = "",
    after_id: str | None = None,
    before_id: str | None = None,
) -> SessionDetail | None:
    """A session and a page of its threads; None when there is none that the reader may see.

    Of two people's sessions with one id it is that of `initiator`, else the one active last. Raises `UnknownCursorError`.
    """
    owner = is_initiator(s.initiator_id, initiator, me) if initiator else true()
    row = await _newest(connection, session_id, and_(owner, true() if only is None else s.initiator_id == only))
    if row is None:
        return None
    initiator_id: str = row["initiator_id"]
    summary = (await _summaries(connection, [row])).get((session_id, initiator_id))
    if summary is None:
        return None
    sums = await connection.execute(_METADATA_SUMS, {"session": session_id, "initiator": initiator_id})
    mine = and_(i.session_id == session_id, i.initiator_id == initiator_id)
    ids = await _thread_ids(connection, mine, limit, after_id, before_id)
    threads, truncated = await _threads(connection, mine, ids)
    ends = [thread.ended_at for thread in threads if thread.ended_at is not None]
    shown = _session(row, summary)
    return SessionDetail(
        id=session_id,
        initiator=shown.initiator,
        providers=shown.providers,
        models=shown.models,
        client=shown.client,
        metadata=shown.metadata,
        page_started_at=threads[0].started_at if threads else None,
        page_ended_at=max(ends, default=None),
        started_at=shown.started_at,
        ended_at=shown.ended_at,
        token_usage_summary=_tokens(summary, {row.key: row.total for row in sums}),
        threads=threads,
        truncated=truncated,
    )


def _matching(filters: Filters, me: str) -> list[ColumnElement[bool]]:
    found: list[ColumnElement[bool]] = []
    if filters.initiator:
        found.append(is_initiator(s.initiator_id, filters.initiator, me))
    if filters.session_id:
        found.append(s.session_id == filters.session_id)
    of_members = conditions(filters)
    if of_members:
        found.append(exists().where(i.session_id == s.session_id, i.initiator_id == s.initiator_id, *of_members))
    return found


async def _position(
    connection: AsyncConnection, after_session_id: str, visible: Sequence[ColumnElement[bool]]
) -> ColumnElement[Any]:  # Any: the triple of the order
    row = (
        await connection.execute(
            select(s.last_active_at, s.session_id, s.initiator_id)
            .where(s.session_id == after_session_id, *visible)
            .order_by(s.last_active_at, s.initiator_id)
            .limit(1)
        )
    ).one_or_none()
    if row is None:
        raise UnknownCursorError(after_session_id)
    return tuple_(literal(row.last_active_at), literal(row.session_id), literal(row.initiator_id, s.initiator_id.type))


async def _newest(connection: AsyncConnection, session_id: str, whose: ColumnElement[bool]) -> RowMapping | None:
    return (
        (
            await connection.execute(
                select(interception_sessions, func.coalesce(users.c.username, "").label("username"))
                .outerjoin(users, users.c.id == s.initiator_id)
                .where(s.session_id == session_id, whose)
                .order_by(s.last_active_at.desc())
                .limit(1)
            )
        )
        .mappings()
        .one_or_none()
    )


async def _summaries(connection: AsyncConnection, rows: Sequence[RowMapping]) -> dict[tuple[str, str], RowMapping]:
    if not rows:
        return {}
    keys = {
        "sessions": [row["session_id"] for row in rows],
        "initiators": [row["initiator_id"] for row in rows],
    }
    found = (await connection.execute(_SUMMARIES, keys)).mappings().all()
    return {(row["session_id"], str(row["initiator_id"])): row for row in found}


def _session(row: RowMapping, summary: RowMapping) -> Session:
    return Session(
        id=row["session_id"],
        initiator=Initiator(row["initiator_id"], row["username"]),
        providers=summary["providers"],
        models=summary["models"],
        client=summary["client"],
        metadata=summary["metadata"] or {},
        started_at=row["started_at"],
        ended_at=summary["ended_at"],
        threads=summary["threads"],
        token_usage_summary=_tokens(summary, {}),
        last_prompt=summary["last_prompt"],
        last_active_at=row["last_active_at"],
    )


def _tokens(row: RowMapping, metadata: dict[str, int]) -> TokenSummary:
    return TokenSummary(
        row["input_tokens"] or 0,
        row["output_tokens"] or 0,
        row["cache_read_input_tokens"] or 0,
        row["cache_write_input_tokens"] or 0,
        metadata,
    )


_thread_id: Final = func.coalesce(i.thread_root_id, i.id)


async def _thread_ids(
    connection: AsyncConnection, mine: ColumnElement[bool], limit: int, after_id: str | None, before_id: str | None
) -> list[str]:
    thread = _thread_id.label("thread")
    query = select(thread).where(mine).group_by(thread).limit(limit)
    if after_id is not None:
        query = query.where(_thread_id > await _thread_of(connection, mine, after_id))
    if before_id is not None:
        query = query.where(_thread_id < await _thread_of(connection, mine, before_id))
    # back from a cursor, else forward: the page that lies next to it
    backwards = before_id is not None and after_id is None
    found = await connection.scalars(query.order_by(thread.desc() if backwards else thread))
    return sorted(str(id_) for id_ in found)


async def _thread_of(connection: AsyncConnection, mine: ColumnElement[bool], cursor: str) -> ColumnElement[str]:
    # the root of a thread may have gone by retention, and stands for it still
    named = select(_thread_id).where(mine, or_(i.id == cursor, i.thread_root_id == cursor)).limit(1)
    found = await connection.scalar(named) if is_uuid(cursor) else None
    if found is None:
        raise UnknownCursorError(cursor)
    return literal(str(found), Uuid(as_uuid=False))


async def _threads(
    connection: AsyncConnection, mine: ColumnElement[bool], ids: Sequence[str]
) -> tuple[list[Thread], bool]:
    """The threads, and whether interceptions of them had to be left out."""
    query = (
        select(interceptions, _thread_id.label("thread"))
        .where(mine, _thread_id.in_(ids))
        .order_by(_thread_id, i.id)
        .limit(MAX_PAGE_INTERCEPTIONS + 1)
    )
    rows = (await connection.execute(query)).mappings().all() if ids else []
    truncated = len(rows) > MAX_PAGE_INTERCEPTIONS
    rows = rows[:MAX_PAGE_INTERCEPTIONS]
    children = await read_children(connection, [row["id"] for row in rows])
    by_thread: dict[str, list[RowMapping]] = {}
    for row in rows:
        by_thread.setdefault(str(row["thread"]), []).append(row)
    return [_thread(id_, members, children) for id_, members in by_thread.items()], truncated


def _thread(thread_id: str, members: list[RowMapping], children: Children) -> Thread:
    root, last = members[0], members[-1]
    prompts = children.user_prompts.get(root["id"], [])
    ends: list[datetime] = [row["ended_at"] for row in members if row["ended_at"] is not None]
    return Thread(
        id=thread_id,
        prompt=prompts[-1].prompt if prompts else None,
        model=root["model"],
        provider=root["provider"],
        provider_name=root["provider_name"],
        credential_kind=root["credential_kind"],
        credential_hint=root["credential_hint"],
        started_at=root["started_at"],
        ended_at=max(ends, default=None),
        error_type=last["error_type"],
        error_message=last["error_message"],
        token_usage=_sum([usage for row in members for usage in children.token_usages.get(row["id"], [])]),
        agentic_actions=[action for row in members if (action := _action(row, children)) is not None],
        interceptions=len(members),
        agent_firewall_session_id=root["agent_firewall_session_id"],
        agent_firewall_sequence_number=root["agent_firewall_sequence_number"],
    )


def _action(row: RowMapping, children: Children) -> AgenticAction | None:
    tools = children.tool_usages.get(row["id"], [])
    thoughts = children.model_thoughts.get(row["id"], [])
    if not tools and not thoughts:
        return None
    return AgenticAction(
        interception_id=row["id"],
        model=row["model"],
        token_usage=_sum(children.token_usages.get(row["id"], [])),
        thinking=[Thinking(thought.content) for thought in thoughts],
        tool_calls=[
            ToolCall(
                id=tool.id,
                interception_id=tool.interception_id,
                provider_response_id=tool.provider_response_id,
                tool_call_id=tool.tool_call_id,
                server_url=tool.server_url,
                tool=tool.tool,
                injected=tool.injected,
                input=tool.input,
                truncated=tool.truncated,
                metadata={},
                created_at=tool.created_at,
            )
            for tool in tools
        ],
    )


def _sum(usages: Sequence[TokenUsage]) -> TokenSummary:
    metadata: dict[str, int] = {}
    for usage in usages:
        for name, value in usage.metadata.items():
            if isinstance(value, int) and not isinstance(value, bool):
                metadata[name] = metadata.get(name, 0) + value
    return TokenSummary(
        sum(usage.input_tokens for usage in usages),
        sum(usage.output_tokens for usage in usages),
        sum(usage.cache_read_input_tokens for usage in usages),
        sum(usage.cache_write_input_tokens for usage in usages),
        metadata,
    )
