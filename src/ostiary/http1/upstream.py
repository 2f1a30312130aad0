"""One upstream connection: sends a request, tracks the answer's framing, relays its bytes as they came.

    IDLE ──send──▶ AWAIT_HEAD ──head──▶ RELAY ──end──▶ IDLE (pooled) or closed
                       └─1xx─┘            └──discard──▶ DISCARD ──end──▶ IDLE or closed

Rules
- Body bytes go to the sink as they came, chunk framing included. The framing is tracked beside them: lengths are counted,
  chunks are fed to llhttp before the bytes go out, so that what stands behind the end of an answer never reaches a client.
  An answer with a known end is complete there, whatever follows; but such a connection is not used again.
- The consumer is told of exactly one end: `response_done` or `response_failed`, or none after it called `abort`. Nothing
  goes to the sink after it; to the observer only the chunks behind, in the same read, when it was the observer that aborted:
  llhttp is not stopped within a read.
- An answer without framing is complete at the end of the stream; a connection that just breaks, or over TLS one that is
  closed without the peer's alert, cuts it (RFC 9112 §9.8).
- Nothing is retried here; that the connection was pooled and closed before anything came is said by `Failure.STALE`.
"""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, cast

from httptools import HttpParserError, HttpResponseParser

from .errors import Failure, HeadError, UpstreamError
from .head import CHUNKED, LENGTH, MAX_HEAD, NO_BODY, UNTIL_CLOSE, ResponseHead, parse_response_head
from .interfaces import Consumer, Returns

if TYPE_CHECKING:
    from .origin import Origin

_IDLE: Final = 0
_AWAIT_HEAD: Final = 1
_RELAY: Final = 2
_DISCARD: Final = 3
_CLOSED: Final = 4

_DISCARD_MAX: Final = 256 * 1024
"""An answer that is not relayed is read through up to this size to keep the connection; else it is closed."""

COMPACT_BYTES: Final = 16 * 1024

_CHUNKED_HEAD: Final = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"

Sink = Callable[[bytes], object]
Feed = Callable[[bytes | memoryview], object]


class _ChunkTracker:
    """What llhttp calls back for a chunked answer. It does not know its parser: the two would be garbage in a circle."""

    __slots__ = ("complete", "messages", "on_body")

    def __init__(self, observe: Sink | None) -> None:
        self.complete = False
        self.messages = 0
        if observe is not None:
            self.on_body = observe

    def on_message_begin(self) -> None:
        self.messages += 1

    def on_message_complete(self) -> None:
        self.complete = True


class UpstreamConnection:
    """See the module's rules. An `asyncio.Protocol`. One consumer at a time."""

    __slots__ = (
        "_buffer",
        "_compact",
        "_consumer",
        "_ended",
        "_feed",
        "_head",
        "_heard",
        "_left",
        "_observe",
        "_patient",
        "_paused",
        "_pool",
        "_prefix",
        "_segment",
        "_shown",
        "_sink",
        "_state",
        "_tcp",
        "_to_head_request",
        "_tracker",
        "_verbatim",
        "origin",
        "quiet",
        "request_complete",
        "transport",
        "uses",
    )

    def __init__(self, pool: Returns, origin: "Origin") -> None:
        self._pool = pool
        self.origin = origin
        self._state = _IDLE
        self._consumer: Consumer | None = None
        self._buffer = b""
        self._prefix = b""
        self._head: ResponseHead | None = None
        self._left = 0
        self._segment = b""
        self._heard = False
        self._ended = False
        self._feed: Feed | None = None
        self._tracker: _ChunkTracker | None = None
        self._sink: Sink = _nowhere
        self._observe: Sink | None = None
        self._compact: Callable[[], object] | None = None
        self._shown = 0
        self._verbatim = True
        self._paused = False
        self._patient = False
        self._to_head_request = False
        self.request_complete = True
        self.quiet = 0
        self.uses = 0

    # --- for the consumer

    def send(
        self, consumer: Consumer, head: bytes, body: bytes = b"", *, more: bool = False, patient: bool = False
    ) -> None:
        """Send a request. `more`: its body goes on with `send_more`. `patient`: no time-outs."""
        self._consumer = consumer
        self._heard = False
        self._state = _AWAIT_HEAD
        self._patient = patient
        self._to_head_request = head.startswith(b"HEAD ")
        self.request_complete = not more
        self.quiet = 0
        self.uses += 1
        if len(body) > 16 * 1024:
            self.transport.writelines((head, body))  # do not join a head and a large body
        else:
            self.transport.write(head + body)

    def send_more(self, data: bytes, *, last: bool) -> None:
        """More of the body, framed as the head announced."""
        if self._state == _CLOSED:
            return
        self.quiet = 0
        if data:
            self.transport.write(data)
        self.request_complete = last

    def relay(
        self,
        prefix: bytes,
        sink: Sink,
        observe: Sink | None,
        *,
        verbatim: bool = True,
        compact: Callable[[], object] | None = None,
    ) -> None:
        """From within `response_head`: write `prefix` and then the body to `sink`, show its payload to `observe`.

        Not `verbatim`: the payload goes to `observe` only, which writes what it wants to write. `compact` is called after
        every `COMPACT_BYTES` shown, so that `observe` may be a plain list's append.
        """
        self._compact = compact
        self._state = _RELAY
        self._sink = sink if verbatim or prefix else _nowhere
        self._observe = observe
        self._verbatim = verbatim
        self._prefix = prefix

    def discard(self) -> None:
        """From within `response_head`: the answer is not wanted; `response_done` follows all the same."""
        self._state = _DISCARD

    def abort(self) -> None:
        """Nobody wants the answer any more: close at once. The consumer is not called again."""
        if self._state != _CLOSED:
            self._state = _CLOSED
            self._forget_answer()
            self.transport.abort()

    @property
    def usable(self) -> bool:
        """Whether a request can be sent: idle, and neither side has begun to close."""
        return self._state == _IDLE and not self.transport.is_closing()

    def pause_reading(self) -> None:
        if not self._paused and self._state != _CLOSED:
            self._paused = True
            self.quiet = 0
            self._tcp.pause_reading()

    def resume_reading(self) -> None:
        if self._paused and self._state != _CLOSED:
            self._paused = False
            self.quiet = 0
            self._tcp.resume_reading()

    # --- from the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = self._tcp = cast("asyncio.Transport", transport)

    def tls_started(self, transport: asyncio.Transport, tcp: asyncio.Transport) -> None:
        """In place of `connection_made`: `transport` is TLS over `tcp`, and `tcp` is what is paused."""
        self.transport = transport
        self._tcp = tcp

    def data_received(self, data: bytes) -> None:
        state = self._state
        if state == _RELAY:
            self.quiet = 0
            feed = self._feed
            if feed is not None:
                self._take_chunks(feed, data)
            else:
                self._take_counted(data)
        elif state == _AWAIT_HEAD:
            self._heard = True  # and `quiet` goes on: a head that comes byte by byte has its time too
            self._take_head(self._buffer + data if self._buffer else data)
        elif state == _DISCARD:
            self.quiet = 0
            self._discard_body(data)
        elif state == _IDLE:
            # An answer to nothing: whatever it is, it belongs to no request.
            self._state = _CLOSED
            self.transport.abort()

    def eof_received(self) -> bool:
        self._ended = True
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        state, self._state = self._state, _CLOSED
        self._pool.forget(self)
        head = self._head
        consumer = self._forget_answer()
        if consumer is None:
            return
        if state == _AWAIT_HEAD:
            failure = Failure.STALE if self.uses > 1 and not self._heard else Failure.CLOSED_BEFORE_HEAD
            consumer.response_failed(UpstreamError(failure, _lost("before the response head", exc)))
        elif head is not None and head.framing == UNTIL_CLOSE and self._ended and exc is None:
            consumer.response_done()
        else:
            consumer.response_failed(UpstreamError(Failure.CUT, _lost("in the middle of the response", exc)))

    def pause_writing(self) -> None:
        if self._consumer is not None:
            self._consumer.request_paused()

    def resume_writing(self) -> None:
        if self._consumer is not None:
            self._consumer.request_resumed()

    # --- reading

    def _take_head(self, data: bytes) -> None:
        consumer = self._consumer
        assert consumer is not None
        while True:
            end = data.find(b"\r\n\r\n") + 4
            if end < 4 or end > MAX_HEAD:
                if len(data) > MAX_HEAD:
                    self._fail(Failure.PROTOCOL, f"the response head is larger than {MAX_HEAD} bytes")
                else:
                    self._buffer = data
                return
            try:
                head = parse_response_head(data[:end], to_head_request=self._to_head_request)
            except HeadError as error:
                self._fail(Failure.PROTOCOL, error.reason)
                return
            self.quiet = 0
            if head.status >= 200:
                break
            consumer.response_interim(head)
            if self._consumer is None:
                return
            data = data[end:]
        self._head = head
        self._buffer = b""
        if head.framing == LENGTH:
            self._left = head.content_length
        consumer.response_head(head)
        if self._consumer is None:
            return
        if head.framing == CHUNKED:
            self._tracker = tracker = _ChunkTracker(self._observe)
            self._feed = HttpResponseParser(tracker).feed_data
            self._feed(_CHUNKED_HEAD)
            if self._state == _RELAY and end < len(data):
                self._take_chunks(self._feed, data, end)  # with the head before it: a burst is not copied to be cut off
                return
        rest = data[end:]
        if self._state == _DISCARD:
            self._discard_body(rest)
        elif rest or head.framing == NO_BODY:
            self._take_body(rest)
        else:
            self._pass_on(b"", 0, 0)

    def _take_body(self, data: bytes) -> None:
        if self._feed is not None:
            self._take_chunks(self._feed, data)
        else:
            self._take_counted(data)

    def _take_counted(self, data: bytes) -> None:
        head = self._head
        assert head is not None
        left = 1
        excess = False
        if head.framing != UNTIL_CLOSE:
            left = self._left - len(data)
            if left < 0:
                excess = True
                data = data[: self._left]
                left = 0
            self._left = left
        self._pass_on(data, 0, len(data))
        if data and self._observe is not None:
            self._observe(data)
        if self._state == _CLOSED:
            return
        if not left:
            self._complete(reusable=not excess)
        elif self._compact is not None:
            self._shown += len(data)
            if self._shown > COMPACT_BYTES:
                self._shown = 0
                self._compact()

    def _take_chunks(self, feed: Feed, data: bytes, begin: int = 0) -> None:
        """The body is what stands from `begin` on."""
        tracker = self._tracker
        assert tracker is not None
        try:
            feed(memoryview(data)[begin:] if begin else data)
        except HttpParserError as exc:
            self._fail_body("bytes after the end of the response" if tracker.complete else f"broken chunks: {exc}")
            return
        if self._state == _CLOSED:
            return
        if not tracker.complete:
            self._segment = data if len(data) > 3 else self._segment[-3:] + data
            self._pass_on(data, begin, len(data))
            if self._compact is not None:
                self._shown += len(data) - begin
                if self._shown > COMPACT_BYTES:
                    self._shown = 0
                    self._compact()
        elif tracker.messages > 1:
            self._fail_body("bytes after the end of the response")
        else:
            excess = self._line_ends_behind(data)
            self._pass_on(data, begin, len(data) - excess)
            if self._state != _CLOSED:
                self._complete(reusable=not excess)

    def _line_ends_behind(self, data: bytes) -> int:
        """How many bytes of `data` are line ends behind the end of the body: llhttp skips them unseen.

        The last line that is not empty (the last chunk's, or a trailer) ends in CRLF, and one more CRLF ends the body.
        """
        tail = data[-8:]
        if not tail.rstrip(b"\r\n"):
            tail = self._segment[-4:] + data
        return max(0, len(tail) - len(tail.rstrip(b"\r\n")) - 4)

    def _pass_on(self, data: bytes, begin: int, end: int) -> None:
        """A part of `data` to the sink; the head goes out in one write with what has come of the body."""
        if self._prefix:
            prefix, self._prefix = self._prefix, b""
            sink = self._sink
            if not self._verbatim:
                self._sink = _nowhere
                end = begin
            sink(b"".join((prefix, memoryview(data)[begin:end])))
        elif begin == 0 and end == len(data):
            self._sink(data)
        else:
            self._sink(data[begin:end])

    def _fail_body(self, detail: str) -> None:
        """Broken framing: nothing of this read goes out, but the head does, so that the client sees an answer cut."""
        if self._state != _CLOSED:
            if self._prefix:
                self._sink(self._prefix)
            self._fail(Failure.PROTOCOL, detail)

    def _discard_body(self, data: bytes) -> None:
        head = self._head
        assert head is not None
        self._shown += len(data)
        if head.framing == UNTIL_CLOSE or max(self._left, self._shown) > _DISCARD_MAX:
            self._complete(reusable=False)
        else:
            self._take_body(data)

    def _complete(self, *, reusable: bool) -> None:
        head = self._head
        assert head is not None
        consumer = self._forget_answer()
        if (
            reusable
            and head.keep_alive
            and self.request_complete
            and not self.transport.is_closing()
            and not self.transport.get_write_buffer_size()
        ):
            self._state = _IDLE
            self.quiet = 0
            self.resume_reading()
            self._pool.release(self)
        else:
            self._state = _CLOSED
            self.transport.abort()
        if consumer is not None:
            consumer.response_done()

    def _fail(self, failure: Failure, detail: str) -> None:
        consumer = self._forget_answer()
        self._state = _CLOSED
        self.transport.abort()
        if consumer is not None:
            consumer.response_failed(UpstreamError(failure, detail))

    def _forget_answer(self) -> Consumer | None:
        """Let go of all that belongs to one answer. Gives who is to be told of its end."""
        consumer, self._consumer = self._consumer, None
        self._head = None
        self._feed = None
        self._tracker = None
        self._sink = _nowhere
        self._observe = None
        self._compact = None
        self._buffer = b""
        self._prefix = b""
        self._segment = b""
        self._left = 0
        self._shown = 0
        return consumer

    # --- time

    def sweep(self) -> None:
        """One tick has passed."""
        self.quiet += 1
        state = self._state
        pool = self._pool
        if state == _IDLE:
            if self.quiet > pool.keepalive_ticks:
                self.close()
        elif self._patient or state == _CLOSED:
            return
        elif state == _AWAIT_HEAD:
            if self.quiet > pool.head_ticks:
                self._fail(Failure.HEAD_TIMEOUT, "no response head in time")
        elif self._paused:
            if self.quiet > pool.idle_ticks and self._consumer is not None:
                self._consumer.client_stalled()
        elif self.quiet > pool.idle_ticks:
            self._fail(Failure.IDLE_TIMEOUT, "the response stalled")

    def close(self) -> None:
        """Close an idle connection."""
        self._state = _CLOSED
        self._pool.forget(self)
        self.transport.close()


def _lost(when: str, exc: Exception | None) -> str:
    return f"the upstream closed the connection {when}" + (f" ({type(exc).__name__})" if exc else "")


def _nowhere(data: bytes) -> None:
    """Sink of what is not wanted."""
