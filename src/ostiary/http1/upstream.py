"""One upstream connection: sends a request, tracks the answer's framing, relays its bytes as they came.

    IDLE ──send──▶ AWAIT_HEAD ──head──▶ RELAY ──end──▶ IDLE (pooled) or closed
                       └─1xx─┘            └──discard──▶ DISCARD ──end──▶ IDLE or closed

Rules
- Body bytes go to the sink as they came, chunk framing included. The framing is tracked beside them: lengths are counted,
  chunks are fed to llhttp before the bytes go out, so that what stands behind the end of an answer never reaches a client.
- The consumer is told of exactly one end: `response_done` or `response_failed`.
- Nothing is retried here; that the connection was pooled and closed before anything came is said by `Failure.STALE`.
"""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol, cast

from httptools import HttpParserError, HttpResponseParser

from .errors import Failure, HeadError, UpstreamError
from .head import CHUNKED, LENGTH, MAX_HEAD, NO_BODY, UNTIL_CLOSE, ResponseHead, parse_response_head

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


class Consumer(Protocol):
    """Who wants the answer. Called from the event loop; must not raise."""

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


class _ChunkTracker:
    """What llhttp calls back for a chunked answer."""

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


class Returns(Protocol):
    """Where a connection goes back to: the pool."""

    head_ticks: float
    idle_ticks: float
    keepalive_ticks: float

    def release(self, connection: "UpstreamConnection") -> None: ...

    def forget(self, connection: "UpstreamConnection") -> None: ...


class UpstreamConnection(asyncio.Protocol):
    """See the module's rules. One consumer at a time."""

    __slots__ = (
        "_buffer",
        "_compact",
        "_consumer",
        "_head",
        "_left",
        "_observe",
        "_parser",
        "_patient",
        "_paused",
        "_pool",
        "_prefix",
        "_shown",
        "_sink",
        "_state",
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
        self._parser: HttpResponseParser | None = None
        self._tracker: _ChunkTracker | None = None
        self._sink: Sink | None = None
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
        self._shown = 0
        self._state = _RELAY
        self._sink = sink
        self._observe = observe
        self._verbatim = verbatim
        self._prefix = prefix

    def discard(self) -> None:
        """From within `response_head`: the answer is not wanted; `response_done` follows all the same."""
        self._state = _DISCARD
        self._sink = None
        self._observe = None

    def abort(self) -> None:
        """Nobody wants the answer any more: close at once. The consumer is not called again."""
        self._consumer = None
        if self._state != _CLOSED:
            self.transport.abort()

    def pause_reading(self) -> None:
        if not self._paused and self._state != _CLOSED:
            self._paused = True
            self.quiet = 0
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        if self._paused and self._state != _CLOSED:
            self._paused = False
            self.quiet = 0
            self.transport.resume_reading()

    # --- from the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self.quiet = 0
        state = self._state
        if state == _RELAY:
            self._relay_body(data)
        elif state == _AWAIT_HEAD:
            self._take_head(self._buffer + data if self._buffer else data)
        elif state == _DISCARD:
            self._discard_body(data)
        else:
            # An answer to nothing: whatever it is, it belongs to no request.
            self.transport.abort()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        state, self._state = self._state, _CLOSED
        self._pool.forget(self)
        self._buffer = b""
        consumer, self._consumer = self._consumer, None
        if consumer is None:
            return
        head = self._head
        if state == _AWAIT_HEAD:
            failure = Failure.STALE if self.uses > 1 and not self._buffer else Failure.CLOSED_BEFORE_HEAD
            consumer.response_failed(UpstreamError(failure, _lost("before the response head", exc)))
        elif head is not None and head.framing == UNTIL_CLOSE and exc is None:
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
        while True:
            end = data.find(b"\r\n\r\n") + 4
            if end < 4 or end > MAX_HEAD:
                if len(data) > MAX_HEAD:
                    self._fail(Failure.PROTOCOL, f"the response head is larger than {MAX_HEAD} bytes")
                    return
                self._buffer = data
                return
            try:
                head = parse_response_head(data[:end], to_head_request=self._to_head_request)
            except HeadError as error:
                self._fail(Failure.PROTOCOL, error.reason)
                return
            if head.status >= 200:
                break
            if head.status == 101:
                self._fail(Failure.PROTOCOL, "the upstream switched protocols unasked")
                return
            assert consumer is not None
            consumer.response_interim(head)
            if self._consumer is None:
                return
            data = data[end:]
        self._head = head
        self._buffer = b""
        assert consumer is not None
        consumer.response_head(head)
        state = self._state
        if state == _CLOSED or self._consumer is None:
            return
        rest = data[end:]
        framing = head.framing
        if framing == CHUNKED:
            observe = self._observe if state == _RELAY else None
            tracker = _ChunkTracker(observe)
            parser = HttpResponseParser(tracker)
            parser.feed_data(_CHUNKED_HEAD)
            self._tracker = tracker
            self._parser = parser
        elif framing == LENGTH:
            self._left = head.content_length
        if state == _RELAY:
            prefix, self._prefix = self._prefix, b""
            self._relay_first(prefix, rest)
        else:
            self._discard_body(rest)

    def _relay_first(self, prefix: bytes, rest: bytes) -> None:
        """The head goes out in one write with what has come of the body."""
        head = self._head
        sink = self._sink
        assert head is not None
        assert sink is not None
        if not rest and head.framing != NO_BODY:
            sink(prefix)
            return
        if not self._verbatim:
            sink(prefix)
            self._relay_body(rest)
            return

        def first(data: bytes) -> None:
            self._sink = sink
            sink(prefix + data)

        self._sink = first
        self._relay_body(rest)
        if self._sink is first:
            # Broken framing: nothing of the body was passed on, the head is.
            sink(prefix)

    def _relay_body(self, data: bytes) -> None:
        parser = self._parser
        sink = self._sink
        assert sink is not None
        if parser is not None:
            tracker = self._tracker
            assert tracker is not None
            try:
                parser.feed_data(data)
            except HttpParserError as exc:
                self._fail(Failure.PROTOCOL, f"broken chunked encoding: {exc}")
                return
            if tracker.messages > 1:
                self._fail(Failure.PROTOCOL, "bytes after the end of the response")
                return
            if self._verbatim:
                sink(data)
            if tracker.complete:
                self._complete()
            elif self._compact is not None:
                self._count_shown(len(data))
            return
        head = self._head
        assert head is not None
        framing = head.framing
        if framing == LENGTH:
            left = self._left - len(data)
            if left < 0:
                self._fail(Failure.PROTOCOL, "bytes after the end of the response")
                return
            self._left = left
        elif framing == NO_BODY:
            if data:
                self._fail(Failure.PROTOCOL, "bytes after the end of the response")
                return
            left = 0
        else:
            left = 1
        if self._verbatim:
            sink(data)
        if data and self._observe is not None:
            self._observe(data)
        if not left:
            self._complete()
        elif self._compact is not None:
            self._count_shown(len(data))

    def _count_shown(self, size: int) -> None:
        self._shown += size
        if self._shown > COMPACT_BYTES and self._compact is not None:
            self._shown = 0
            self._compact()

    def _discard_body(self, data: bytes) -> None:
        head = self._head
        assert head is not None
        if head.framing == UNTIL_CLOSE or head.content_length > _DISCARD_MAX:
            self._complete(reusable=False)
            return
        if head.framing == CHUNKED:
            self._left += len(data)
            if self._left > _DISCARD_MAX:
                self._complete(reusable=False)
                return
        self._sink = _nowhere
        self._relay_body(data)

    def _complete(self, *, reusable: bool = True) -> None:
        consumer, self._consumer = self._consumer, None
        head, self._head = self._head, None
        self._parser = None
        self._tracker = None
        self._sink = None
        self._observe = None
        self._compact = None
        self._buffer = b""
        self._left = 0
        assert head is not None
        if (
            reusable
            and head.keep_alive
            and self.request_complete
            and self._state != _CLOSED
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
        consumer, self._consumer = self._consumer, None
        self._state = _CLOSED
        self.transport.abort()
        if consumer is not None:
            consumer.response_failed(UpstreamError(failure, detail))

    # --- time

    def sweep(self) -> None:
        """One tick has passed."""
        self.quiet += 1
        state = self._state
        pool = self._pool
        if state == _IDLE:
            if self.quiet > pool.keepalive_ticks:
                self.transport.close()
        elif self._patient or state == _CLOSED:
            return
        elif state == _AWAIT_HEAD:
            if self.quiet > pool.head_ticks and self.request_complete:
                self._fail(Failure.HEAD_TIMEOUT, "no response head in time")
        elif self._paused:
            if self.quiet > pool.idle_ticks and self._consumer is not None:
                self._consumer.client_stalled()
        elif self.quiet > pool.idle_ticks:
            self._fail(Failure.IDLE_TIMEOUT, "the response stalled")

    def close(self) -> None:
        """Close an idle connection."""
        self.transport.close()


def _nowhere(data: bytes) -> None:
    """Sink of what is not wanted."""


def _lost(when: str, exc: Exception | None) -> str:
    return f"the upstream closed the connection {when}" + (f" ({type(exc).__name__})" if exc else "")
