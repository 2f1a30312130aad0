"""The door of the RPC surface, in front of the RPC library.

Rules
- In this order (reference A.5): no gateway key, a wrong one: `unauthenticated`; a version that does not fit:
  `failed_precondition`, naming both; a path that is not exactly that of a method: `unimplemented`. No byte of the body
  is read before, and nothing behind the door reads a path in another way than it was judged here.
- The embedded link's key of this start is compared in constant time; every other is looked up by its hash. Neither
  appears anywhere else.
- What is for the machine of the control plane alone (`OWN_MACHINE_ONLY`) is `permission_denied` with every stored key.
- When a gateway key is deleted its calls end: what has not been answered is `unauthenticated`, a stream ends with it.
- What goes wrong behind the door is answered without its details: the database's troubles as `unavailable`, which
  gateways try again, everything else as `internal`. The log has the cause.
"""

import asyncio
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
from ostiary.control.gateway_keys import GatewayCalls
from ostiary.control.gateway_keys.calls import RECHECK_SECONDS
from ostiary.control.metrics import RPC_ROUTES
from ostiary.core.secret import Secret
from ostiary.rpc.version import HEADER_API_VERSION, HEADER_BUILD, HEADER_GATEWAY_KEY, incompatibility

log = structlog.get_logger(__name__)

T = TypeVar("T")

_HTTP_STATUS: Final = {
    Code.UNAUTHENTICATED: 401,
    Code.PERMISSION_DENIED: 403,
    Code.FAILED_PRECONDITION: 400,
    Code.UNIMPLEMENTED: 404,
    Code.INTERNAL: 500,
    Code.UNAVAILABLE: 503,
}
OWN_MACHINE_ONLY: Final = frozenset(("/ostiary.v1.Fleet/GetMetrics",))
_EMBEDDED: Final = ""
"""In place of a stored key's id."""
_UNKNOWN_KEY: Final = "the gateway key is not valid: it was deleted, or belongs to another control plane"
_CONNECT_STREAM: Final = "application/connect+"


class Gate:
    """ASGI middleware in front of the RPC applications."""

    def __init__(self, app: ASGIApp, gateway_key: Secret, calls: GatewayCalls) -> None:
        """`gateway_key`: the embedded link's; `calls` knows all others."""
        self._app = app
        self._gateway_key = gateway_key
        self._calls = calls

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        try:
            key_id = await self._admit(headers, scope["path"])
        except _Refusal as refusal:
            client = scope.get("client") or ("", 0)
            log.warning(
                "refusing gateway",
                code=refusal.code.value,
                reason=refusal.message,
                client=client[0],
                build=headers.get(HEADER_BUILD, "")[:64],
            )
            await _answer(send, refusal.code, refusal.message)
            return
        answer = _Answer(send)
        try:
            if key_id == _EMBEDDED:
                await self._app(scope, receive, answer.send)
            else:
                await self._while_valid(key_id, self._app(scope, receive, answer.send), answer)
        except Exception as exc:  # noqa: BLE001  the library's own failure must not reach the peer, nor end the server
            log.error("failing rpc by a bug", path=scope["path"], error=type(exc).__name__, at=where(exc))
            if not answer.started:
                await _answer(send, Code.INTERNAL, "internal error; the control plane's log has more")

    async def _admit(self, headers: Headers, path: str) -> str:
        """The id of the stored key that was sent, `_EMBEDDED` for the embedded link's. Raises `_Refusal`."""
        given = headers.get(HEADER_GATEWAY_KEY, "")
        if not given:
            raise _Refusal(
                Code.UNAUTHENTICATED,
                f"a gateway key is needed in {HEADER_GATEWAY_KEY}: make one with `ostiary gateway keys create NAME`",
            )
        expected = self._gateway_key.reveal().encode()
        key_id: str | None = _EMBEDDED
        if not expected or not hmac.compare_digest(given.encode("latin-1"), expected):
            try:
                key_id = await self._calls.identify(Secret(given))
            except DATABASE_ERRORS as exc:
                reason = f"the gateway key cannot be looked up: {cause(exc)}"
                raise _Refusal(Code.UNAVAILABLE, reason) from exc
        if key_id is None:
            raise _Refusal(Code.UNAUTHENTICATED, _UNKNOWN_KEY)
        problem = incompatibility(headers.get(HEADER_API_VERSION, ""))
        if problem:
            raise _Refusal(Code.FAILED_PRECONDITION, problem)
        if path not in RPC_ROUTES:
            # the RPC library also finds a method behind the path that it was mounted at
            raise _Refusal(Code.UNIMPLEMENTED, "there is no RPC at this path")
        if key_id != _EMBEDDED and path in OWN_MACHINE_ONLY:
            raise _Refusal(Code.PERMISSION_DENIED, "only the link on the control plane's own machine may ask this")
        return key_id

    async def _while_valid(self, key_id: str, call: Awaitable[None], answer: "_Answer") -> None:
        """Run a call until its end or that of its key."""
        with self._calls.running(key_id) as deleted:
            running = asyncio.ensure_future(call)
            try:
                while not running.done():
                    await asyncio.wait({running, deleted}, timeout=RECHECK_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                    if deleted.done() and not running.done():
                        answer.take_over()
                        break
                    if not running.done():
                        await self._calls.recheck(key_id)
            finally:
                running.cancel()
                await asyncio.wait({running})
            if answer.taken_over:
                await answer.end(Code.UNAUTHENTICATED, "the gateway key was deleted")
            elif not running.cancelled():
                running.result()


class _Refusal(Exception):  # noqa: N818 - an answer
    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class _Answer:
    """What has been sent of an answer, so that it can be ended in another way than it was meant to."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._streaming = False
        self._ended = False
        self.started = False
        self.taken_over = False

    async def send(self, message: Message) -> None:
        if self.taken_over:
            return
        if message["type"] == "http.response.start":
            self.started = True
            self._streaming = Headers(raw=message["headers"]).get("content-type", "").startswith(_CONNECT_STREAM)
        elif message["type"] == "http.response.body":
            self._ended = not message.get("more_body", False)
        await self._send(message)

    def take_over(self) -> None:
        """What the call still sends is dropped."""
        self.taken_over = True

    async def end(self, code: Code, message: str) -> None:
        """End it with an error. An answer that cannot hold one is cut off."""
        if not self.started:
            await _answer(self._send, code, message)
        elif self._streaming and not self._ended:
            # the last envelope of a stream: its flags, its length, JSON (Connect protocol)
            payload = json.dumps({"error": {"code": code.value, "message": message}}).encode()
            body = b"\x02" + len(payload).to_bytes(4, "big") + payload
            await self._send({"type": "http.response.body", "body": body})


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
