"""What happens to every request before a route sees it.

Rules
- `X-Forwarded-For` and `X-Request-Id` are believed only beside this start's front-door secret: only a gateway worker
  knows it. The front door sets both itself, so the last address is the one it saw.
- Every answer carries `x-ostiary-request-id`; log lines and audit entries have the same id.
- Every answer is counted by its route. What a route raises by a bug is answered here, so that this answer has all that.
- A REST body may have `MAX_BODY` bytes. RPC has limits of its own.
"""

import hmac
import time
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bound_contextvars

from ostiary.control.metrics import ControlMetrics
from ostiary.core.ids import new_id
from ostiary.core.secret import Secret

from .errors import unexpected

HEADER_FRONT_DOOR: Final = "X-Ostiary-Front-Door"
MAX_BODY: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a request came from, as audit entries tell it."""

    source_ip: str
    request_id: str


class Edge:
    """ASGI middleware around everything."""

    def __init__(
        self, app: ASGIApp, front_door_secret: Secret, unlimited: tuple[str, ...], metrics: ControlMetrics
    ) -> None:
        """`unlimited`: path prefixes whose bodies are not limited here."""
        self._app = app
        self._front_door_secret = front_door_secret
        self._unlimited = unlimited
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        origin = self.origin(headers, (scope.get("client") or ("", 0))[0])
        scope.setdefault("state", {})["origin"] = origin
        began = time.monotonic()
        started = False

        async def with_request_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                self._metrics.answered(scope, message["status"], time.monotonic() - began)
                MutableHeaders(scope=message)["x-ostiary-request-id"] = origin.request_id
            await send(message)

        if not scope["path"].startswith(self._unlimited):
            receive = _limited(receive)
        with bound_contextvars(request_id=origin.request_id):
            try:
                await self._app(scope, receive, with_request_id)
            except Exception as exc:
                if started:
                    raise
                await unexpected(Request(scope), exc)(scope, receive, with_request_id)

    def origin(self, headers: Headers, client: str) -> Origin:
        secret = self._front_door_secret.reveal().encode()
        given = headers.get(HEADER_FRONT_DOOR, "").encode("latin-1")
        if not secret or not hmac.compare_digest(given, secret):
            return Origin(client, new_id())
        forwarded = headers.get("x-forwarded-for", "").rpartition(",")[2].strip()
        return Origin(_address(forwarded) or client, headers.get("x-request-id", "")[:64] or new_id())


def _limited(receive: Receive) -> Receive:
    seen = 0

    async def limited() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > MAX_BODY:
            raise HTTPException(413, f"The request body is larger than {MAX_BODY} bytes.")
        return message

    return limited


def _address(text: str) -> str:
    try:
        return str(ip_address(text))
    except ValueError:
        return ""
