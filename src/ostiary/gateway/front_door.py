"""One request for the control plane, relayed as it comes: bodies stream both ways, nothing is recorded, no time-outs.

Watches of gateways have no end of their own: a worker that drains cuts them at once, and the gateways watch elsewhere.

The control plane believes `X-Forwarded-*` only beside the per-start secret that is added here; what a client sent under
those names is dropped first.
"""

import asyncio
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote_to_bytes

import msgspec

from ostiary.core.ids import new_id
from ostiary.http1.errors import Failure, UpstreamError
from ostiary.http1.fields import FRONT_DOOR_DROPPED, HOP_BY_HOP, kept_request_lines, kept_response_lines
from ostiary.http1.head import CHUNKED, NO_BODY, UNTIL_CLOSE, RequestHead, ResponseHead
from ostiary.http1.origin import Origin
from ostiary.http1.server import ClientConnection
from ostiary.http1.upstream import UpstreamConnection

from .decide import BODY_TOO_SLOW
from .failures import INTERNAL
from .refusals import Refusal, error_body, refusal_head

if TYPE_CHECKING:
    from .worker import Worker

_RPC_PREFIX: Final = b"/ostiary.v1."
_WATCH: Final = b"/Watch"
NO_CERTIFICATE: Final = Refusal(
    400,
    "no_client_certificate",
    "a client certificate is needed here: start the gateway with --control-cert-file and --control-key-file",
)
_RECHUNKED: Final = HOP_BY_HOP | {b"content-length", b"transfer-encoding"}


def rpc_error(refusal: Refusal) -> bytes:
    """A body in the words of the RPC protocol (Connect)."""
    return msgspec.json.encode({"code": "failed_precondition", "message": refusal.message})


def is_rpc(path: bytes) -> bool:
    """Whether the control plane takes it for a call of a gateway's, however it is written."""
    return _as_served(path).startswith(_RPC_PREFIX)


def _as_served(path: bytes) -> bytes:
    """A path as the control plane's server reads it: decoded once, and else as it stands."""
    return unquote_to_bytes(path) if b"%" in path else path


class FrontDoorExchange:
    """Implements `ServerExchange` towards the client and `Consumer` towards the control plane."""

    __slots__ = (
        "_answered",
        "_connecting",
        "_connection",
        "_head",
        "_origin",
        "_rechunked",
        "_upstream",
        "_worker",
        "id",
    )

    def __init__(self, worker: "Worker", connection: ClientConnection, head: RequestHead) -> None:
        self._worker = worker
        self._connection = connection
        self._head = head
        self._upstream: UpstreamConnection | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._answered = False
        self._rechunked = False
        self.id = new_id()

    @property
    def endless(self) -> bool:
        """Whether it lasts until somebody cuts it."""
        path = _as_served(self._head.path)
        return path.startswith(_RPC_PREFIX) and _WATCH in path

    def begin(self, origin: Origin) -> None:
        """Relay to the control plane at `origin`."""
        self._origin = origin
        self._connection.exchange = self
        upstream = self._worker.pool.take(origin)
        if upstream is None:
            self._connect()
            return
        try:
            self._send(upstream)
        except Exception as error:  # noqa: BLE001 - what is raised would be told to nobody; and so below
            self._failed(error)

    def _connect(self) -> None:
        self._connecting = task = self._worker.pool.connect(self._origin, self._send, self.response_failed)
        task.add_done_callback(self._connect_over)

    def _connect_over(self, task: "asyncio.Task[None]") -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._failed(error)

    def _send(self, upstream: UpstreamConnection) -> None:
        self._connecting = None
        self._upstream = upstream
        head = self._head
        connection = self._connection
        peer = connection.transport.get_extra_info("peername")
        lines = kept_request_lines(head, FRONT_DOOR_DROPPED)
        lines += (
            b"Host: " + head.fields.get(b"host", b""),
            b"X-Forwarded-Host: " + head.fields.get(b"host", b""),
            b"X-Forwarded-Proto: " + (b"https" if self._worker.settings.tls is not None else b"http"),
            b"X-Forwarded-For: " + (str(peer[0]).encode("ascii") if peer else b"unknown"),
            b"X-Request-Id: " + self.id.encode("ascii"),
            b"X-Ostiary-Front-Door: " + self._worker.settings.front_door_secret.reveal().encode("ascii"),
            b"\r\n",
        )
        request_line = head.method + b" " + head.target + b" HTTP/1.1\r\n"
        upstream.send(self, request_line + b"\r\n".join(lines), more=head.framing != NO_BODY, patient=True)
        connection.stream()

    def request_piece(self, data: bytes, *, last: bool) -> None:
        upstream = self._upstream
        if upstream is None or self._head.framing == NO_BODY:
            return
        if self._head.framing == CHUNKED:
            if data:
                data = b"%x\r\n%b\r\n" % (len(data), data)
            if last:
                data += b"0\r\n\r\n"
        upstream.send_more(data, last=last)

    def request_body(self, body: bytes) -> None:
        """Bodies are streamed, not collected."""

    def request_body_too_large(self) -> None:
        """There is no limit here: the control plane has its own."""

    def request_broken(self, reason: str) -> None:
        self._break_off(Refusal(400, "bad_framing", f"The request body's framing is broken: {reason}."))

    def request_stalled(self) -> None:
        self._break_off(Refusal(408, "body_timeout", "The request body stopped coming."))

    def request_too_slow(self) -> None:
        self._break_off(BODY_TOO_SLOW)

    def _break_off(self, refusal: Refusal) -> None:
        """A refusal where there is room for one: not in the middle of an answer."""
        self._stop_upstream()
        if self._answered:
            self._connection.abort()
            self._worker.ended(self)
        else:
            self._refuse(refusal)

    def response_interim(self, head: ResponseHead) -> None:
        """An interim answer of the control plane is of no use to a client of ours."""

    def response_head(self, head: ResponseHead) -> None:
        try:
            self._take_head(head)
        except Exception as error:  # noqa: BLE001
            self._failed(error)

    def _take_head(self, head: ResponseHead) -> None:
        upstream = self._upstream
        assert upstream is not None
        self._rechunked = head.framing == UNTIL_CLOSE
        lines = kept_response_lines(head, _RECHUNKED if self._rechunked else HOP_BY_HOP)
        lines.insert(0, head.status_line if head.minor else b"HTTP/1.1 " + head.status_line[9:])
        if self._rechunked:
            lines.append(b"Transfer-Encoding: chunked")
        if not self._keeps_client():
            lines.append(b"Connection: close")
        lines.append(b"\r\n")
        prefix = b"\r\n".join(lines)
        write = self._connection.write
        self._answered = True
        if self._rechunked:
            upstream.relay(prefix, write, self._write_chunk, verbatim=False)
        else:
            upstream.relay(prefix, write, None)

    def _write_chunk(self, data: bytes) -> None:
        if data:
            self._connection.write(b"%x\r\n%b\r\n" % (len(data), data))

    def _keeps_client(self) -> bool:
        # An answer before the end of the request's body leaves no way to go on.
        return self._head.keep_alive and not self._worker.draining and self._connection.body_read

    def response_done(self) -> None:
        self._upstream = None
        if self._rechunked:
            self._connection.write(b"0\r\n\r\n")
        self._connection.finish(keep=self._keeps_client())
        self._worker.ended(self)

    def response_failed(self, error: UpstreamError) -> None:
        self._upstream = None
        self._connecting = None
        if error.failure is Failure.STALE and self._head.framing == NO_BODY:
            # The control plane has closed a pooled connection, as after its restart; a new one is never stale.
            self._connect()
        elif self._answered:
            self._connection.abort()
            self._worker.ended(self)
        else:
            self._refuse(
                Refusal(503, "control_plane_unreachable", f"The control plane is not reachable: {error.detail}.", 2)
            )

    def _refuse(self, refusal: Refusal) -> None:
        self._worker.refusals.note(refusal, self.id, b"")
        body = error_body("rest", refusal)
        id_line = b"x-ostiary-request-id: " + self.id.encode("ascii") + b"\r\n"
        self._connection.answer(refusal_head(refusal, len(body), id_line), body)
        self._worker.ended(self)

    def _failed(self, error: BaseException) -> None:
        """A mistake of ours, on the way of this request."""
        self._worker.failures.log(error, self.id)
        self._break_off(INTERNAL)

    def client_gone(self) -> None:
        self._stop_upstream()
        self._worker.ended(self)

    def interrupt(self) -> None:
        """The worker ends before the request does."""
        self._stop_upstream()
        self._connection.reset()
        self._worker.ended(self)

    def _stop_upstream(self) -> None:
        if self._connecting is not None:
            self._connecting.cancel()
            self._connecting = None
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            upstream.abort()

    def client_paused(self) -> None:
        if self._upstream is not None:
            self._upstream.pause_reading()

    def client_resumed(self) -> None:
        if self._upstream is not None:
            self._upstream.resume_reading()

    def client_stalled(self) -> None:
        """Patience has no end here."""

    def request_paused(self) -> None:
        self._connection.pause_reading()

    def request_resumed(self) -> None:
        self._connection.resume_reading()
