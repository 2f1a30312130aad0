"""What routes ask for: the engine, who is calling, from where.

Rules
- A token is read from `Authorization: Bearer`, else `X-Ostiary-Token`, else `X-Api-Key`. No token, an unknown one, an
  expired one, one of a suspended person: 401, and the answer does not tell them apart.
- `owner` may do what any role may.
- `X-Forwarded-For` is believed only beside this start's front-door secret: only a gateway worker knows it.
"""

import hmac
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Annotated, Any, Final, cast

from fastapi import Depends, Request
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from starlette.requests import HTTPConnection

from ostiary.control import identity
from ostiary.control.identity import Person
from ostiary.control.state import ControlPlane
from ostiary.core.identity import Role
from ostiary.core.ids import new_id
from ostiary.core.secret import Secret

from .errors import ApiError

HEADER_FRONT_DOOR: Final = "X-Ostiary-Front-Door"
HEADER_REQUEST_ID: Final = "X-Ostiary-Request-Id"
HEADER_TOKEN: Final = "X-Ostiary-Token"  # noqa: S105  a header's name


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a request came from, as audit entries tell it."""

    source_ip: str
    request_id: str


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
    secret = control_plane(request).settings.front_door_secret
    headers = request.headers
    client = request.client.host if request.client else ""
    if not secret or not hmac.compare_digest(
        headers.get(HEADER_FRONT_DOOR, "").encode(errors="replace"), secret.reveal().encode()
    ):
        return Origin(client, new_id())
    # the front door appends the address it saw: what stands before it is the client's own claim
    forwarded = headers.get("x-forwarded-for", "").rpartition(",")[2].strip()
    return Origin(_address(forwarded) or client, headers.get(HEADER_REQUEST_ID, "")[:64] or new_id())


async def read_connection(request: Request) -> AsyncIterator[AsyncConnection]:
    """A connection in a read-only transaction of one moment, for an answer made of several queries."""
    async with engine(request).connect() as connection:
        await connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        yield connection


def _address(text: str) -> str:
    try:
        return str(ip_address(text))
    except ValueError:
        return ""


CurrentUser = Annotated[Person, Depends(current_user)]
RequestOrigin = Annotated[Origin, Depends(request_origin)]
Engine = Annotated[AsyncEngine, Depends(engine)]
Control = Annotated[ControlPlane, Depends(control_plane)]
ReadConnection = Annotated[AsyncConnection, Depends(read_connection)]
