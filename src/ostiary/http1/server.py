"""One client connection: heads in, bodies in, answers out.

    READ_HEAD ──head──▶ HOLD ──collect/stream──▶ READ_BODY ──end──▶ BUSY ──finish──▶ NEXT ──▶ READ_HEAD
                          ├──finish, a small body unread──▶ SKIP ──end──▶ NEXT
                          └──answer/refuse──▶ LINGER ──▶ CLOSED

Rules
- No body byte is read on before the exchange asks for it: in HOLD the transport is paused as soon as bytes wait.
- Pipelined requests wait their turn in a bounded buffer, and for the client to take the answers before.
- Time-outs are counted in sweeps of the worker's one clock tick (`tick`), not in timers of each connection: `quiet` is raised
  by every sweep and set to 0 by what counts as progress in the state.
- A body that comes has its time by its size: so little of it a second (`connections.BODY_RATE`) is not for its sake. What
  we hold back ourselves is no time of the client's.
- An answer to a request whose body was not read through ends the connection; what still arrives is dropped, for a while,
  so that the answer is not lost to a reset (RFC 9112 §9.6). What was written has time to get out while the client takes it.
- Nothing is written after the end was begun: `answer` and `finish` are then without effect.
"""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, cast

from .chunks import ChunkedReader
from .errors import BodyError, HeadError
from .head import CHUNKED, LENGTH, NO_BODY, RequestHead, parse_request_head
from .interfaces import ServerExchange

if TYPE_CHECKING:
    from .connections import Connections

_READ_HEAD: Final = 0
_HOLD: Final = 1
_READ_BODY: Final = 2
_BUSY: Final = 3
_NEXT: Final = 4
_SKIP: Final = 5
_LINGER: Final = 6
_CLOSED: Final = 7

_PIPELINE_MAX: Final = 128 * 1024
_LINGER_BYTES: Final = 64 * 1024 * 1024
_LINGER_QUIET: Final = 5.0
_LINGER_TOTAL: Final = 30.0
"""Seconds that an ending connection is read from, between two reads and in all, once everything is written."""

_DRAIN_INLINE: Final = 64 * 1024
"""An unread body up to this size is read and dropped to keep the connection, instead of closing it."""

CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


class ClientConnection:
    """See the module's rules. An `asyncio.Protocol`; `exchange` is the request being served."""

    __slots__ = (
        "_body_came",
        "_body_ticks",
        "_buffer",
        "_chunks",
        "_collected",
        "_collecting",
        "_held_back",
        "_left",
        "_limit",
        "_lingered",
        "_reading_paused",
        "_reserve",
        "_shared",
        "_state",
        "_unsent",
        "_writing_paused",
        "exchange",
        "head",
        "quiet",
        "requests",
        "transport",
        "write",
    )

    def __init__(self, shared: "Connections") -> None:
        self._shared = shared
        self._state = _READ_HEAD
        self._buffer = b""
        self._collected = bytearray()
        self._collecting = True
        self._left = 0
        self._limit = 0
        self._reserve: Callable[[int], bool] | None = None
        self._chunks: ChunkedReader | None = None
        self._held_back = False
        self._reading_paused = False
        self._writing_paused = False
        self._lingered = 0
        self._unsent = 0
        self._body_came = 0
        self._body_ticks = 0
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
        state = self._state
        if state == _READ_HEAD:
            self._look_for_head(self._buffer + data if self._buffer else data)
            return
        self.quiet = 0
        if state == _READ_BODY:
            self._take_body(data)
        elif state == _SKIP:
            self._skip(data)
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
        exchange = self.exchange
        if exchange is not None:
            self.reset()
            exchange.client_gone()
        elif self._state < _LINGER:
            self._end()
        return False

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the transport's signature
        self._state = _CLOSED
        self._shared.live.discard(self)
        self._buffer = b""
        self._reserve = None
        self._collected = bytearray()
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            exchange.client_gone()

    def pause_writing(self) -> None:
        self._writing_paused = True
        if self.exchange is not None:
            self.exchange.client_paused()

    def resume_writing(self) -> None:
        self._writing_paused = False
        if self.exchange is not None:
            self.exchange.client_resumed()
        elif self._state == _NEXT:
            self._next_turn()

    # --- reading

    def _look_for_head(self, data: bytes) -> None:
        start = 2 if data[:2] == b"\r\n" else 0  # RFC 9112 §2.2: one empty line before a request line is skipped
        end = data.find(b"\r\n\r\n", start)
        if end < 0:
            if len(data) > self._shared.head_max:
                self._refuse_large_head()
            elif len(data) > start and data != b"\r" and not data[start : start + 1].isalpha():
                self._refuse(HeadError(400, "this is not an HTTP/1.1 request; is the client speaking TLS or HTTP/2?"))
            else:
                self._buffer = data
            return
        end += 4
        if end > self._shared.head_max:
            self._refuse_large_head()
            return
        try:
            head = parse_request_head(data[start:end])
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

    def collect(self, limit: int, reserve: Callable[[int], bool] | None = None) -> None:
        """Read the body into memory, up to `limit` bytes, and hand it to `request_body`.

        `reserve` is asked for each part of it before that is kept, and where it says no, `request_body_too_large` follows.
        """
        self._reserve = reserve
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
        self._body_came = 0
        self._body_ticks = 0
        self._state = _READ_BODY
        if self._left > limit:
            self._too_large()
            return
        if head.expect_continue and head.framing != NO_BODY and not self._buffer:
            self.write(CONTINUE)
        data, self._buffer = self._buffer, b""
        if data or head.framing == NO_BODY:
            self._take_body(data)
        self._allow_reading()

    def _take_body(self, data: bytes) -> None:
        self._body_came += len(data)
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
        collecting = self._collecting
        if collecting:
            reserve = self._reserve
            if reserve is not None and not reserve(size):
                self._too_large()
                return
        self._left = left = left - size
        if not left:
            self._state = _BUSY
            self._reserve = None  # the request's: kept, the two would be garbage in a circle
        exchange = self.exchange
        if not collecting:
            if exchange is not None:
                exchange.request_piece(data, last=not left)
            return
        if left:
            self._collected += data
            return
        if self._collected:
            data = self._take_collected(data)
        if exchange is not None:
            exchange.request_body(data)

    def _take_collected(self, last: bytes) -> bytes:
        collected, self._collected = self._collected, bytearray()
        collected += last
        return bytes(collected)

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
                if self.exchange is not exchange:
                    return
            if done:
                exchange.request_piece(b"", last=True)
            return
        grown = sum(map(len, pieces))
        self._left += grown
        reserve = self._reserve
        if self._left > self._limit or (reserve is not None and not reserve(grown)):
            self._too_large()
            return
        self._collected += b"".join(pieces)
        if done:
            self._reserve = None
            exchange.request_body(self._take_collected(b""))

    def _too_large(self) -> None:
        self._reserve = None
        self._collected = bytearray()
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
        if self._state >= _LINGER:
            self.exchange = None
            return
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
        """The answer is written: go on with the next request if it can be found, or close."""
        self.exchange = None
        if self._state >= _LINGER:
            return
        if not keep or not self._can_read_on():
            self._close_lingering()
            return
        head, self.head = self.head, None
        if self._state == _HOLD and head is not None and head.framing == LENGTH:
            self._state = _SKIP
            self._lingered = 0
            self._left = head.content_length
            self._resume_reading()
            data, self._buffer = self._buffer, b""
            self._skip(data)
        else:
            self._next_request()

    def _skip(self, data: bytes) -> None:
        """Drop a small unread body so that the connection can go on."""
        left = self._left
        self._left = left - len(data)
        if self._left <= 0:
            self._buffer = data[left:]
            self._next_request()

    def _next_request(self) -> None:
        self._chunks = None
        self._left = 0
        self._held_back = False
        self.quiet = 0
        if self._writing_paused:
            self._state = _NEXT  # who does not take answers gets no more of them: they would pile up here
        elif self._buffer:
            self._state = _NEXT
            # A pipelined request; from the loop, so that a long pipeline does not recurse.
            asyncio.get_running_loop().call_soon(self._next_turn)
        else:
            self._state = _READ_HEAD
            self._resume_reading()

    def _next_turn(self) -> None:
        if self._state != _NEXT:
            return
        self._state = _READ_HEAD
        data, self._buffer = self._buffer, b""
        if data:
            self._look_for_head(data)
        if self._state == _READ_HEAD:
            self._resume_reading()

    def abort(self) -> None:
        """End the connection without a clean end; what was written before is flushed first.

        For an answer with a length or in chunks the missing end is the sign; otherwise only a reset is one.
        """
        if self._state < _LINGER:
            self._close()

    def reset(self) -> None:
        """End the connection at once, dropping what is not yet sent."""
        self._end()
        self._state = _CLOSED
        self.transport.abort()

    def _refuse(self, error: HeadError) -> None:
        self._buffer = b""
        self.write(self._shared.app.head_refused(self, error))
        self._close_lingering()

    def _refuse_large_head(self) -> None:
        limit = self._shared.head_max
        self._refuse(HeadError(431, f"the request head is larger than {limit} bytes (setting head_max_bytes)"))

    def _close_lingering(self) -> None:
        everything_read = self.body_read and not self._buffer
        if everything_read or not self.transport.can_write_eof():
            self._close()  # over TLS the transport itself reads on and drops until the client closes, for 30 s
            return
        self._end()
        self.transport.write_eof()
        self._resume_reading()

    def _close(self) -> None:
        self._end()
        self.transport.close()

    def _end(self) -> None:
        self._state = _LINGER
        self._left = _LINGER_BYTES
        self._lingered = 0
        self._unsent = 0
        self.quiet = 0
        self.exchange = None
        self.head = None
        self._chunks = None
        self._reserve = None
        self._buffer = b""
        self._collected = bytearray()

    # --- flow and time

    def pause_reading(self) -> None:
        """The upstream does not take the body as fast as it comes."""
        self._held_back = True
        self._pause_reading()

    def resume_reading(self) -> None:
        self._held_back = False
        self._allow_reading()

    def _allow_reading(self) -> None:
        if not self._held_back and len(self._buffer) <= _PIPELINE_MAX:
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
        if state in (_BUSY, _HOLD, _CLOSED):
            return
        self.quiet += 1
        if state == _READ_HEAD:
            self._sweep_head()
        elif state == _NEXT:
            if self._taken_too_slowly():
                self.reset()
        elif state == _READ_BODY:
            self._sweep_body()
        else:
            self._sweep_end()

    def _sweep_head(self) -> None:
        shared = self._shared
        if self._buffer:
            # Not reset by reads: a head that comes byte by byte has its time too.
            self._left += 1
            if self._left > shared.head_ticks:
                self._refuse(HeadError(408, "the request head did not come in time"))
        else:
            self._left = 0
            if self.quiet > (shared.keepalive_ticks if self.requests else shared.head_ticks):
                self._close()

    def _sweep_body(self) -> None:
        shared = self._shared
        exchange = self.exchange
        if self._reading_paused:
            self.quiet = 0
        elif exchange is not None:
            self._body_ticks += 1
            if self.quiet > shared.body_ticks:
                exchange.request_stalled()
            elif self._body_came < (self._body_ticks - shared.body_grace_ticks) * shared.body_rate:
                exchange.request_too_slow()

    def _sweep_end(self) -> None:
        """LINGER and SKIP: the answer is written, what still comes is dropped."""
        if self._taken_too_slowly():
            self.reset()
        elif not self._unsent:
            self._lingered += 1
            tick = self._shared.tick
            # Over TLS `_unsent` does not count what is encrypted already: that has the whole time.
            silent = self.transport.can_write_eof() and self.quiet * tick > _LINGER_QUIET
            if silent or self._lingered * tick > _LINGER_TOTAL:
                self.reset()

    def _taken_too_slowly(self) -> bool:
        """Whether the client has taken nothing of what waits to be sent for `body_timeout`."""
        unsent = self.transport.get_write_buffer_size()
        if unsent != self._unsent:
            self._unsent = unsent
            self.quiet = 0
        return unsent > 0 and self.quiet > self._shared.body_ticks

    @property
    def idle(self) -> bool:
        """The last answer is sent, and nothing of a next request has come for a sweep at least."""
        return (
            self._state == _READ_HEAD
            and self.quiet > 0
            and not self._buffer
            and not self.transport.get_write_buffer_size()
        )

    def turn_away(self, answer: bytes) -> None:
        """There is no room for this connection, not even to read on until the client has its answer."""
        self.write(answer)
        if self.transport.can_write_eof():
            self._close()
        else:
            self.reset()  # a close would wait for the client to agree; the answer leaves with this turn of the loop

    def close_if_idle(self) -> None:
        """Drain: serves no request, or none that is not answered."""
        if self._state in (_READ_HEAD, _NEXT) and not self._buffer:
            self._close()
        elif self._state == _SKIP:
            self._close_lingering()
