"""Reading interceptions, newest first.

Rules
- `only`: the one initiator whose records the reader may see; None for a reader of all. What may not be seen is not
  there: no error, count or cursor tells of it.
- A page is one query for the rows and one for each kind of children; both go by index and by partition.
"""

from collections.abc import Sequence
from typing import Any, Final

import msgspec
from sqlalchemy import ColumnElement, RowMapping, Table, func, literal, or_, select, true, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from ostiary.control.identity.lookup import is_uuid

from .filters import ME, Filters
from .shapes import (
    Initiator,
    Interception,
    InterceptionDetail,
    InterceptionPage,
    Json,
    ModelThought,
    TokenUsage,
    ToolUsage,
    UserPrompt,
)
from .tables import (
    interception_details,
    interceptions,
    model_thoughts,
    token_usages,
    tool_usages,
    user_prompts,
    users,
)

COUNT_LIMIT: Final = 100_000
"""Beyond this a count says just this: counting a year of records is no part of showing a page."""

i = interceptions.c
_ROW: Final = select(interceptions, func.coalesce(users.c.username, "").label("username")).outerjoin(
    users, users.c.id == i.initiator_id
)


class UnknownCursorError(ValueError):
    """The row to go on after is not there, or not the reader's."""


def is_initiator(column: ColumnElement[Any], wanted: str, me: str) -> ColumnElement[bool]:  # Any: a uuid column
    """Whether a column is the initiator that a filter names: a user's id, a name, or `me`."""
    if wanted.lower() == ME:
        return column == me
    named = select(users.c.id).where(func.lower(users.c.username) == wanted.lower())
    if is_uuid(wanted):
        return or_(column == wanted, column.in_(named))
    return column.in_(named)


def conditions(filters: Filters) -> list[ColumnElement[bool]]:
    """What a filter asks of an interception, the initiator and the session apart."""
    found: list[ColumnElement[bool]] = [
        column == value
        for column, value in (
            (i.provider, filters.provider),
            (i.provider_name, filters.provider_name),
            (i.model, filters.model),
            (i.client, filters.client),
        )
        if value
    ]
    if filters.started_after is not None:
        found.append(i.started_at > filters.started_after)
    if filters.started_before is not None:
        found.append(i.started_at < filters.started_before)
    return found


async def list_interceptions(
    connection: AsyncConnection,
    filters: Filters,
    *,
    me: str,
    only: str | None,
    limit: int,
    after_id: str | None = None,
) -> InterceptionPage:
    """A page of what matches. Raises `UnknownCursorError`."""
    matches = [_visible(only), *conditions(filters)]
    if filters.initiator:
        matches.append(is_initiator(i.initiator_id, filters.initiator, me))
    if filters.session_id:
        matches.append(i.session_id == filters.session_id)
    counted = select(i.id).where(*matches).limit(COUNT_LIMIT).subquery()
    count = await connection.scalar(select(func.count()).select_from(counted)) or 0
    query = _ROW.where(*matches).order_by(i.started_at.desc(), i.id.desc()).limit(limit)
    if after_id is not None:
        query = query.where(tuple_(i.started_at, i.id) < await _position(connection, after_id, only))
    rows = (await connection.execute(query)).mappings().all()
    children = await read_children(connection, [row["id"] for row in rows])
    return InterceptionPage(count, [Interception(**_fields(row), **children.of(row["id"])) for row in rows])


async def get_interception(
    connection: AsyncConnection, interception_id: str, *, only: str | None
) -> InterceptionDetail | None:
    """All of one interception; None when there is none that the reader may see."""
    if not is_uuid(interception_id):
        return None
    row = (await connection.execute(_ROW.where(i.id == interception_id, _visible(only)))).mappings().one_or_none()
    if row is None:
        return None
    children = await read_children(connection, [row["id"]])
    details = interception_details
    more = (
        (await connection.execute(select(details).where(details.c.interception_id == interception_id)))
        .mappings()
        .one_or_none()
    )
    return InterceptionDetail(
        **_fields(row),
        **children.of(row["id"]),
        trace=more["trace"] if more else None,
        output_text=more["output_text"] if more else None,
        tool_results=more["tool_results"] if more else None,
    )


class Children:
    """What belongs to some interceptions, by interception and in the order of its making."""

    def __init__(self) -> None:
        self.token_usages: dict[str, list[TokenUsage]] = {}
        self.user_prompts: dict[str, list[UserPrompt]] = {}
        self.tool_usages: dict[str, list[ToolUsage]] = {}
        self.model_thoughts: dict[str, list[ModelThought]] = {}

    def of(self, interception_id: str) -> dict[str, Any]:  # Any: a list of one kind each
        return {
            "token_usages": self.token_usages.get(interception_id, []),
            "user_prompts": self.user_prompts.get(interception_id, []),
            "tool_usages": self.tool_usages.get(interception_id, []),
            "model_thoughts": self.model_thoughts.get(interception_id, []),
        }


async def read_children(connection: AsyncConnection, ids: Sequence[str]) -> Children:
    found = Children()
    if not ids:
        return found
    for row in await _rows_of(connection, token_usages, ids):
        fields = dict(row) | {"metadata": row["metadata"] or {}, "raw": _raw(row["raw"])}
        found.token_usages.setdefault(row["interception_id"], []).append(TokenUsage(**fields))
    for row in await _rows_of(connection, user_prompts, ids):
        found.user_prompts.setdefault(row["interception_id"], []).append(UserPrompt(**row))
    for row in await _rows_of(connection, tool_usages, ids):
        found.tool_usages.setdefault(row["interception_id"], []).append(ToolUsage(**row))
    for row in await _rows_of(connection, model_thoughts, ids):
        found.model_thoughts.setdefault(row["interception_id"], []).append(ModelThought(**row))
    return found


async def _rows_of(connection: AsyncConnection, table: Table, ids: Sequence[str]) -> Sequence[RowMapping]:
    query = select(table).where(table.c.interception_id.in_(ids)).order_by(table.c.created_at, table.c.id)
    return (await connection.execute(query)).mappings().all()


async def _position(
    connection: AsyncConnection, after_id: str, only: str | None
) -> ColumnElement[Any]:  # Any: the pair
    if not is_uuid(after_id):
        raise UnknownCursorError(after_id)
    row = (await connection.execute(select(i.started_at, i.id).where(i.id == after_id, _visible(only)))).one_or_none()
    if row is None:
        raise UnknownCursorError(after_id)
    return tuple_(literal(row.started_at), literal(row.id, i.id.type))


def _visible(only: str | None) -> ColumnElement[bool]:
    return true() if only is None else i.initiator_id == only


_OMITTED: Final = frozenset(("initiator_id", "username", "metadata", "stored_at"))


def _fields(row: RowMapping) -> dict[str, Any]:  # Any: one column each
    fields = {name: value for name, value in row.items() if name not in _OMITTED}
    return fields | {
        "initiator": Initiator(row["initiator_id"], row["username"]),
        "metadata": row["metadata"] or {},
    }


def _raw(text: str | None) -> Json:
    """The provider's own object; as text when it is no JSON after all."""
    if text is None:
        return None
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text
