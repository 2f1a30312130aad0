"""What routes ask for: the engine, who is calling, from where.

Rules
- A token is read from `Authorization: Bearer`, else `X-Ostiary-Token`, else `X-Api-Key`. No token, an unknown one, an
  expired one, one of a suspended person: 401, and the answer does not tell them apart.
- `owner` may do what any role may.
"""

from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Annotated, Any, Final, cast

from fastapi import Depends, Request
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from starlette.requests import HTTPConnection

from ostiary.control import identity
from ostiary.control.identity import Person
from ostiary.control.state import ControlPlane
from ostiary.core.identity import Role
from ostiary.core.secret import Secret

from .edge import Origin
from .errors import ApiError

READ_TIMEOUT: Final = "15s"
"""What one query of an answer may take."""

HEADER_TOKEN: Final = "X-Ostiary-Token"  # noqa: S105  a header's name


def control_plane(request: Request) -> ControlPlane:
    return cast("ControlPlane", request.app.state.control)


def engine(request: Request) -> AsyncEngine:
    return control_plane(request).engine


def request_token(request: HTTPConnection) -> Secret | None:
    """The token a request carries; None when it carries none."""
    scheme, _, value = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        value = ""
    token = value.strip() or request.headers.get(HEADER_TOKEN, "") or request.headers.get("x-api-key", "")
    return Secret(token) if token else None


async def current_user(request: Request) -> Person:
    """Who is calling; 401 for nobody."""
    token = request_token(request)
    if token is None:
        raise ApiError(
            401,
            "A token is needed.",
            "Send it as `Authorization: Bearer ost_...`.",
            headers={"WWW-Authenticate": "Bearer"},
        )
    async with engine(request).connect() as connection:
        person = await identity.authenticate(connection, token)
    if person is None:
        raise ApiError(
            401,
            "The token is not valid.",
            "It is unknown, expired or revoked, or its user is suspended.",
            headers={"WWW-Authenticate": "Bearer"},
        )
    return person


def require_role(*roles: Role) -> Callable[[Person], Coroutine[Any, Any, Person]]:
    """A dependency that gives the caller when they have one of `roles` or are an owner; 403 otherwise."""
    allowed = {"owner", *roles}

    async def check(person: "CurrentUser") -> Person:
        if person.role not in allowed:
            raise ApiError(
                403,
                "You may not do this.",
                f"It takes the role {' or '.join(sorted(allowed))}; yours is {person.role}.",
            )
        return person

    return check


def request_origin(request: Request) -> Origin:
    """The client's address and the id under which this request is logged."""
    return cast("Origin", request.state.origin)


async def read_connection(request: Request) -> AsyncIterator[AsyncConnection]:
    """A connection in a read-only transaction of one moment, for an answer made of several queries."""
    async with engine(request).connect() as connection:
        await connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        await connection.execute(text("SELECT set_config('statement_timeout', :limit, true)"), {"limit": READ_TIMEOUT})
        yield connection


CurrentUser = Annotated[Person, Depends(current_user)]
RequestOrigin = Annotated[Origin, Depends(request_origin)]
Engine = Annotated[AsyncEngine, Depends(engine)]
Control = Annotated[ControlPlane, Depends(control_plane)]
ReadConnection = Annotated[AsyncConnection, Depends(read_connection)]
