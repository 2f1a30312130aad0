"""One client connection: heads in, bodies in, answers out.

    READ_HEAD ──head──▶ HOLD ──collect/stream──▶ READ_BODY ──end──▶ BUSY ──finish──▶ READ_HEAD
                          └──────answer/refuse──────────────────────────▶ LINGER ──▶ closed

Rules
- No body byte is read on before the exchange asks for it: in HOLD the transport is paused as soon as bytes wait.
- Pipelined requests wait their turn in a bounded buffer.
- Time-outs are counted in sweeps of the worker's one clock tick (`tick`), not in timers of each connection: `quiet` is set
  to 0 by every read and raised by every sweep.
- An answer to a request whose body was not read through ends the connection; what still arrives is dropped, for a while,
  so that the answer is not lost to a reset (RFC 9112 §9.6).
"""

import asyncio
from typing import Final, Protocol, cast

from .chunks import ChunkedReader
from .errors import BodyError, HeadError
from .head import CHUNKED, LENGTH, MAX_HEAD, NO_BODY, RequestHead, parse_request_head

_READ_HEAD: Final = 0
_HOLD: Final = 1
_READ_BODY: Final = 2
_BUSY: Final = 3
_LINGER: Final = 4
_CLOSED: Final = 5

_PIPELINE_MAX: Final = 128 * 1024
_LINGER_BYTES: Final = 64 * 1024 * 1024
_LINGER_SECONDS: Final = 5.0
_DRAIN_INLINE: Final = 64 * 1024
"""An unread body up to this size is read and dropped to keep the connection, instead of closing it."""

CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


class ServerExchange(Protocol):
    """One request's life, as its client connection sees it. Every method is called from the event loop, none may raise."""

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


class ServerLimits(Protocol):
    """Seconds, in terms of the worker's sweep."""

    head_timeout: float
    keepalive_timeout: float
    body_timeout: float


class Connections(set["ClientConnection"]):
    """The live client connections of a worker, and what they share."""

    def __init__(self, app: Application, limits: ServerLimits, tick: float) -> None:
        super().__init__()
        self.app = app
        self.tick = tick
        self.head_ticks = limits.head_timeout / tick
        self.keepalive_ticks = limits.keepalive_timeout / tick
        self.body_ticks = limits.body_timeout / tick

    def sweep(self) -> None:
        """Call every `tick` seconds: ends what has been quiet for too long."""
        for connection in tuple(self):
            connection.sweep()

    def close_idle(self) -> None:
        """Drain: close connections that serve no request."""
        for connection in tuple(self):
            connection.close_if_idle()


class ClientConnection(asyncio.Protocol):
    """See the module's rules. `exchange` is the request being served."""

    __slots__ = (
        "_buffer",
        "_chunks",
        "_collected",
        "_collecting",
        "_left",
        "_limit",
        "_reading_paused",
        "_shared",
        "_state",
        "exchange",
        "head",
        "quiet",
        "requests",
        "transport",
        "write",
    )

    def __init__(self, shared: Connections) -> None:
        self._shared = shared
        self._state = _READ_HEAD
        self._buffer = b""
        self._collected: list[bytes] = []
        self._collecting = True
        self._left = 0
        self._limit = 0
        self._chunks: ChunkedReader | None = None
        self._reading_paused = False
        self.exchange: ServerExchange | None = None
        self.head: RequestHead | None = None
        self.quiet = 0
        self.requests = 0

    # --- from the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.write = self.transport.write
        self.transport.set_write_buffer_limits(high=256 * 1024)
        self._shared.add(self)

    def data_received(self, data: bytes) -> None:
        self.quiet = 0
        state = self._state
        if state == _READ_HEAD:
            if self._buffer:
                data = self._buffer + data
            self._look_for_head(data)
        elif state == _READ_BODY:
            self._take_body(data)
        elif state == _LINGER:
            self._left -= len(data)
            if self._left < 0:
                self.transport.abort()
        elif state != _CLOSED:
            self._buffer += data
            if len(self._buffer) > _PIPELINE_MAX:
                self._pause_reading()

    def eof_received(self) -> bool:
        # Half-closed and gone look the same from here, and a client that has gone must not keep an upstream running.
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            exchange.client_gone()
            self.transport.abort()
        return False

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the transport's signature
        self._state = _CLOSED
        self._shared.discard(self)
        self._buffer = b""
        self._collected = []
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            exchange.client_gone()

    def pause_writing(self) -> None:
        if self.exchange is not None:
            self.exchange.client_paused()

    def resume_writing(self) -> None:
        if self.exchange is not None:
            self.exchange.client_resumed()

    # --- reading

    def _look_for_head(self, data: bytes) -> None:
        if data[:1] in (b"\r", b"\n"):
            data = data.lstrip(b"\r\n")  # RFC 9112 §2.2: empty lines before a request line are skipped
            if not data:
                self._buffer = b""
                return
        end = data.find(b"\r\n\r\n")
        if end < 0:
            if len(data) > MAX_HEAD:
                self._refuse(HeadError(431, f"the request head is larger than {MAX_HEAD} bytes"))
            elif not data[:1].isalpha():
                self._refuse(HeadError(400, "this is not an HTTP/1.1 request; is the client speaking TLS or HTTP/2?"))
            else:
                self._buffer = data
            return
        end += 4
        if end > MAX_HEAD:
            self._refuse(HeadError(431, f"the request head is larger than {MAX_HEAD} bytes"))
            return
        try:
            head = parse_request_head(data[:end])
        except HeadError as error:
            self._refuse(error)
            return
        self._buffer = data[end:]
        self._state = _HOLD
        self.head = head
        self.requests += 1
        self._shared.app.begin(self, head)
        if self._state == _HOLD:
            self._pause_reading()

    def collect(self, limit: int) -> None:
        """Read the body into memory, up to `limit` bytes, and hand it to `request_body`."""
        self._begin_body(limit, collecting=True)

    def stream(self) -> None:
        """Hand the body on in pieces, as it comes."""
        self._begin_body(1 << 62, collecting=False)

    def _begin_body(self, limit: int, *, collecting: bool) -> None:
        head = self.head
        assert head is not None
        self._collecting = collecting
        self._limit = limit
        self._chunks = ChunkedReader() if head.framing == CHUNKED else None
        self._left = head.content_length if head.framing == LENGTH else 0
        self._state = _READ_BODY
        if self._left > limit:
            self._too_large()
            return
        if head.expect_continue and head.framing != NO_BODY and not self._buffer:
            self.write(CONTINUE)
        data, self._buffer = self._buffer, b""
        if data or head.framing == NO_BODY:
            self._take_body(data)
        self._resume_reading()

    def _take_body(self, data: bytes) -> None:
        chunks = self._chunks
        if chunks is not None:
            self._take_chunks(chunks, data)
            return
        left = self._left
        size = len(data)
        if size > left:
            self._buffer = data[left:]
            data = data[:left]
            size = left
        self._left = left = left - size
        if not left:
            self._state = _BUSY
        exchange = self.exchange
        if not self._collecting:
            if exchange is not None:
                exchange.request_piece(data, last=not left)
            return
        if left:
            self._collected.append(data)
            return
        if self._collected:
            self._collected.append(data)
            data = b"".join(self._collected)
            self._collected = []
        if exchange is not None:
            exchange.request_body(data)

    def _take_chunks(self, chunks: ChunkedReader, data: bytes) -> None:
        exchange = self.exchange
        try:
            pieces = chunks.feed(data)
        except BodyError as error:
            if exchange is not None:
                exchange.request_broken(str(error))
            return
        done = chunks.done
        if done:
            self._state = _BUSY
            self._buffer = chunks.rest
        if exchange is None:
            return
        if not self._collecting:
            for piece in pieces:
                exchange.request_piece(piece, last=False)
            if done:
                exchange.request_piece(b"", last=True)
            return
        self._left += sum(map(len, pieces))
        self._collected += pieces
        if self._left > self._limit:
            self._too_large()
        elif done:
            body = b"".join(self._collected)
            self._collected = []
            exchange.request_body(body)

    def _too_large(self) -> None:
        self._collected = []
        self._state = _READ_BODY
        if self.exchange is not None:
            self.exchange.request_body_too_large()

    @property
    def body_read(self) -> bool:
        """Whether the request's body has been read through."""
        head = self.head
        return self._state == _BUSY or (self._state == _HOLD and head is not None and head.framing == NO_BODY)

    # --- writing

    def answer(self, head: bytes, body: bytes = b"") -> None:
        """A complete answer of our own. `head` lacks its last empty line and `Connection`; the connection goes on if it can."""
        request = self.head
        keep = request is not None and request.keep_alive and not self._shared.app.draining and self._can_read_on()
        connection = b"\r\n" if keep else b"Connection: close\r\n\r\n"
        if request is not None and request.method == b"HEAD":
            body = b""
        self.write(head + connection + body)
        self.finish(keep=keep)

    def _can_read_on(self) -> bool:
        """Whether what is left of the request is read, or little enough and certain to come."""
        if self.body_read:
            return True
        head = self.head
        if head is None or head.framing != LENGTH or head.expect_continue or self._state != _HOLD:
            return False
        return head.content_length <= _DRAIN_INLINE

    def finish(self, *, keep: bool) -> None:
        """The answer is written: go on with the next request, or close."""
        self.exchange = None
        if self._state == _CLOSED:
            return
        if not keep:
            self._close_lingering()
            return
        head = self.head
        self.head = None
        if self._state == _HOLD and head is not None and head.framing == LENGTH:
            self._skip_body(head.content_length)
        else:
            self._next_request()

    def _skip_body(self, length: int) -> None:
        waiting = len(self._buffer)
        if waiting >= length:
            self._buffer = self._buffer[length:]
            self._next_request()
            return
        self._left = length - waiting
        self._buffer = b""
        self._collecting = False
        self._chunks = None
        self._limit = length
        self.exchange = _Skipping(self)
        self._state = _READ_BODY
        self._resume_reading()

    def _next_request(self) -> None:
        self._state = _READ_HEAD
        self._chunks = None
        self._left = 0
        self._resume_reading()
        if self._buffer:
            # A pipelined request; from the loop, so that a long pipeline does not recurse.
            asyncio.get_running_loop().call_soon(self._next_pipelined)

    def _next_pipelined(self) -> None:
        if self._state == _READ_HEAD and self._buffer:
            data, self._buffer = self._buffer, b""
            self._look_for_head(data)

    def abort(self) -> None:
        """End the connection without a clean end; what was written before is flushed first.

        For an answer with a length or in chunks the missing end is the sign; otherwise only a reset is one.
        """
        self.exchange = None
        if self._state != _CLOSED:
            self._state = _LINGER
            self._left = _LINGER_BYTES
            self.quiet = 0
            self.transport.close()

    def reset(self) -> None:
        """End the connection at once, dropping what is not yet sent."""
        self.exchange = None
        self.transport.abort()

    def _refuse(self, error: HeadError) -> None:
        self._buffer = b""
        self.write(self._shared.app.head_refused(self, error))
        self._close_lingering()

    def _close_lingering(self) -> None:
        everything_read = self.body_read and not self._buffer
        self._state = _LINGER
        self._left = _LINGER_BYTES
        self._buffer = b""
        self._collected = []
        if everything_read or not self.transport.can_write_eof():
            self.transport.close()
            return
        self.transport.write_eof()
        self._resume_reading()
        self.quiet = 0

    # --- flow and time

    def pause_reading(self) -> None:
        """The upstream does not take the body as fast as it comes."""
        self._pause_reading()

    def resume_reading(self) -> None:
        self._resume_reading()

    def _pause_reading(self) -> None:
        if not self._reading_paused and not self.transport.is_closing():
            self._reading_paused = True
            self.transport.pause_reading()

    def _resume_reading(self) -> None:
        if self._reading_paused and not self.transport.is_closing():
            self._reading_paused = False
            self.transport.resume_reading()

    def sweep(self) -> None:
        """One tick has passed."""
        state = self._state
        if state in (_BUSY, _CLOSED):
            return
        self.quiet += 1
        shared = self._shared
        if state == _READ_HEAD:
            if self._buffer:
                # Not reset by reads: a head that comes byte by byte has its time too.
                self._left += 1
                if self._left > shared.head_ticks:
                    self._refuse(HeadError(408, "the request head did not come in time"))
                return
            self._left = 0
            if self.quiet > (shared.keepalive_ticks if self.requests else shared.head_ticks):
                self.transport.close()
        elif state == _READ_BODY:
            if self.quiet > shared.body_ticks and self.exchange is not None and not self._reading_paused:
                self.exchange.request_stalled()
        elif state == _LINGER and self.quiet * shared.tick > _LINGER_SECONDS:
            self.transport.abort()

    def close_if_idle(self) -> None:
        if self._state == _READ_HEAD and not self._buffer:
            self.transport.close()


class _Skipping:
    """Reads and drops a small unread body so that the connection can go on."""

    __slots__ = ("_connection",)

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection

    def request_body(self, body: bytes) -> None: ...

    def request_body_too_large(self) -> None: ...

    def request_piece(self, data: bytes, *, last: bool) -> None:  # noqa: ARG002 - dropped on purpose
        if last:
            self._connection.finish(keep=True)

    def request_broken(self, reason: str) -> None:  # noqa: ARG002
        self._connection.reset()

    def request_stalled(self) -> None:
        self._connection.reset()

    def client_gone(self) -> None: ...

    def client_paused(self) -> None: ...

    def client_resumed(self) -> None: ...
