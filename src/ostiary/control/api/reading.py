"""What the reading routes share: who sees what, pages, `q`.

Rules
- An owner and an auditor see all records, everyone else their own (design §13). What may not be seen is not there.
- A wrong cursor or filter is told in one form on every route (reference G.1).
"""

from collections.abc import Callable
from typing import Annotated, Final, TypeVar

from fastapi import Depends, Query

from ostiary.control.identity import Person
from ostiary.control.store.filters import FilterError, Filters, parse_filters

from .deps import CurrentUser
from .errors import ApiError, FieldProblem

PREFIX: Final = "/api/v2/ai-gateway"
ALIAS: Final = "/api/v2/aibridge"
"""The reference's earlier name of the same routes."""

NO_NUL: Final = r"^[^\x00]*$"
"""What text of a request is that the database can be asked for: PostgreSQL's has no NUL."""

T = TypeVar("T")

_READERS_OF_ALL: Final = ("owner", "auditor")


def only(person: Person) -> str | None:
    """The initiator whose records alone this person may see; None when all."""
    return None if person.role in _READERS_OF_ALL else person.id


def read_filters(
    q: Annotated[str, Query(description='`key:value` or `key:"a value"`, separated by spaces')] = "",
) -> Filters:
    return checked("Invalid search query.", lambda: parse_filters(q))


def checked(message: str, read: Callable[[], T]) -> T:
    """What `read` gives; 400 with its problems when it cannot."""
    try:
        return read()
    except FilterError as exc:
        problems = [FieldProblem(field=problem.field, detail=problem.detail) for problem in exc.problems]
        raise ApiError(400, message, str(exc), problems) from exc


def invalid_cursor(name: str) -> ApiError:
    detail = "names nothing that you can see"
    return ApiError(400, "Invalid pagination cursor.", validations=[FieldProblem(field=name, detail=detail)])


Reader = CurrentUser
ReadFilters = Annotated[Filters, Depends(read_filters)]
Limit = Annotated[int, Query(ge=1, le=1000, description="Rows of a page")]
Offset = Annotated[int, Query(ge=0, le=2**31 - 1, description="Rows to pass over")]
