"""The door of the RPC surface, in front of the RPC library.

Rules
- In this order (reference A.5): no gateway key, a wrong one: `unauthenticated`; a version that does not fit:
  `failed_precondition`, naming both. No byte of the body is read before.
- The key is compared in constant time and appears nowhere else.
- What goes wrong behind the door is answered without its details: the database's troubles as `unavailable`, which
  gateways try again, everything else as `internal`. The log has the cause.
"""

import hmac
import json
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import structlog
from connectrpc.code import Code
from connectrpc.errors import ConnectError
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ostiary.control.database import DATABASE_ERRORS, cause, where
from ostiary.core.secret import Secret
from ostiary.rpc.version import HEADER_API_VERSION, HEADER_BUILD, HEADER_GATEWAY_KEY, incompatibility

log = structlog.get_logger(__name__)

T = TypeVar("T")

_HTTP_STATUS: Final = {Code.UNAUTHENTICATED: 401, Code.FAILED_PRECONDITION: 400, Code.INTERNAL: 500}


class Gate:
    """ASGI middleware in front of the RPC applications."""

    def __init__(self, app: ASGIApp, gateway_key: Secret) -> None:
        self._app = app
        self._gateway_key = gateway_key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        refusal = self._refusal(headers)
        if refusal is not None:
            code, message = refusal
            client = scope.get("client") or ("", 0)
            log.warning(
                "refusing gateway",
                code=code.value,
                reason=message,
                client=client[0],
                build=headers.get(HEADER_BUILD, "")[:64],
            )
            await _answer(send, code, message)
            return
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception as exc:  # noqa: BLE001  the library's own failure must not reach the peer, nor end the server
            log.error("failing rpc by a bug", path=scope["path"], error=type(exc).__name__, at=where(exc))
            if not started:
                await _answer(send, Code.INTERNAL, "internal error; the control plane's log has more")

    def _refusal(self, headers: Headers) -> tuple[Code, str] | None:
        given = headers.get(HEADER_GATEWAY_KEY, "")
        if not given:
            return Code.UNAUTHENTICATED, f"a gateway key is needed in {HEADER_GATEWAY_KEY}"
        expected = self._gateway_key.reveal().encode()
        if not expected or not hmac.compare_digest(given.encode("latin-1"), expected):
            return (
                Code.UNAUTHENTICATED,
                "the gateway key is not valid: it was deleted, or belongs to another control plane",
            )
        problem = incompatibility(headers.get(HEADER_API_VERSION, ""))
        return (Code.FAILED_PRECONDITION, problem) if problem else None


async def guarded(step: str, call: Callable[[], Awaitable[T]]) -> T:
    """The result of an RPC's work; what fails becomes a `ConnectError` that gives nothing away."""
    try:
        return await call()
    except ConnectError:
        raise
    except DATABASE_ERRORS as exc:
        reason = cause(exc)
        log.error("failing rpc for the database", step=step, cause=reason)
        raise ConnectError(Code.UNAVAILABLE, f"{step}: the database cannot be used: {reason}") from exc
    except Exception as exc:
        log.error("failing rpc by a bug", step=step, error=type(exc).__name__, at=where(exc))
        raise ConnectError(Code.INTERNAL, f"{step}: internal error; the control plane's log has more") from exc


async def _answer(send: Send, code: Code, message: str) -> None:
    body = json.dumps({"code": code.value, "message": message}).encode()
    await send(
        {
            "type": "http.response.start",
            "status": _HTTP_STATUS[code],
            "headers": [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())],
        }
    )
    await send({"type": "http.response.body", "body": body})
