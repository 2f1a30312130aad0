"""What the two kinds of connection expect of those around them.

Every method is called from the event loop; none may raise, and each may call back into its connection (`answer`, `finish`,
`abort`, `pause_reading` ...) before it returns.
"""

import asyncio
from typing import TYPE_CHECKING, Protocol

from .errors import HeadError, UpstreamError
from .head import RequestHead, ResponseHead

if TYPE_CHECKING:
    from .server import ClientConnection
    from .upstream import UpstreamConnection


class ServerExchange(Protocol):
    """One request's life, as its client connection sees it."""

    def request_body(self, body: bytes) -> None:
        """The whole body, after `collect`."""

    def request_body_too_large(self) -> None:
        """More than `collect` allowed; the rest is not read. Must answer."""

    def request_piece(self, data: bytes, *, last: bool) -> None:
        """After `stream`: payload as it comes, without its framing."""

    def request_broken(self, reason: str) -> None:
        """The body's framing is broken. Must answer or abort."""

    def request_stalled(self) -> None:
        """The body stopped coming for `body_timeout`. Must answer."""

    def request_too_slow(self) -> None:
        """The body comes at less than `BODY_RATE`. Must answer."""

    def client_gone(self) -> None:
        """The client closed the connection before it had its answer."""

    def client_paused(self) -> None:
        """The client does not take what was written: stop reading for it."""

    def client_resumed(self) -> None: ...


class Application(Protocol):
    """What the connections serve."""

    draining: bool

    def begin(self, connection: "ClientConnection", head: RequestHead) -> None:
        """A request has come: answer it, or set `connection.exchange` and call `collect` or `stream`, now or later."""

    def head_refused(self, connection: "ClientConnection", error: HeadError) -> bytes:
        """The complete answer to a head that is refused."""

    def crowded(self, closed: int) -> bytes:
        """There are as many connections as there may be: so many idle ones are closed for a new one. If 0, it is turned away
        with what this gives, or one is whose TLS is not established yet, without a word."""


class ServerLimits(Protocol):
    """Seconds, in terms of the worker's sweep."""

    head_timeout: float
    keepalive_timeout: float
    body_timeout: float


class Consumer(Protocol):
    """Who wants an upstream's answer."""

    def response_interim(self, head: ResponseHead) -> None:
        """A 1xx answer; the final one follows."""

    def response_head(self, head: ResponseHead) -> None:
        """The final head. Must call `relay` or `discard` of the connection before it returns."""

    def response_done(self) -> None:
        """The answer is complete."""

    def response_failed(self, error: UpstreamError) -> None:
        """There will be no (more) answer."""

    def request_paused(self) -> None:
        """The upstream does not take the request's body as fast as it comes."""

    def request_resumed(self) -> None: ...

    def client_stalled(self) -> None:
        """Reading has been paused for the client for longer than `idle_timeout`."""


class Returns(Protocol):
    """Where a connection goes back to: the pool."""

    head_ticks: float
    idle_ticks: float
    keepalive_ticks: float

    def release(self, connection: "UpstreamConnection") -> None: ...

    def forget(self, connection: "UpstreamConnection") -> None: ...


class Secured(Protocol):
    """What stands above TLS: an `asyncio.Protocol` that is told of its transport once that is safe."""

    def tls_started(self, transport: asyncio.Transport, tcp: asyncio.Transport) -> None:
        """In place of `connection_made`. Reading is paused at `tcp`."""

    def data_received(self, data: bytes) -> None: ...

    def eof_received(self) -> bool: ...

    def connection_lost(self, exc: Exception | None) -> None: ...

    def pause_writing(self) -> None: ...

    def resume_writing(self) -> None: ...
