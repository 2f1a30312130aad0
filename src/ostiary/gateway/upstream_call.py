"""The upstream side of one exchange: its attempts, what comes of each, and who gets the answer.

    CLEARANCE ─▶ (AUTHORIZE) ─▶ CONNECT ─▶ AWAIT ─▶ RELAY ─▶ DONE
        ▲              ▲            └─ retry ─┘├──▶ HELD ─▶┤
        └─ next key ───┴───────────────────────┴───────────┘

Rules
- Until the first byte has gone to the client another attempt may follow: on a connection that was stale or could not be
  made (`max_retries`), after a 5xx if `retry_5xx` says so, and with the next key when an answer says that this one is limited
  or refused (design §11). Such an answer is held until its body has been looked at; the last one goes to the client as it came.
- What was sent without being kept (an upload) is not sent again.
- What breaker and key pool say before an attempt, and hear of it, is the `Clearance`'s.
- Whatever is raised on the way ends the exchange (`with exchange`): who calls from outside is not told.
"""

import asyncio
import time
from time import perf_counter_ns
from typing import TYPE_CHECKING, Final

from ostiary.core.records import Attempt
from ostiary.http1.errors import Failure, UpstreamError
from ostiary.http1.fields import RESPONSE_DROPPED, kept_response_lines
from ostiary.http1.head import MAX_HEAD, UNTIL_CLOSE, ResponseHead
from ostiary.http1.upstream import UpstreamConnection
from ostiary.wire.observer import Observer

from .answers import ChangedAnswer, HeldAnswer, Patience, Write, both, nowhere, timed
from .decide import exhausted
from .dump import Attempt as DumpedAttempt
from .key_verdict import needs_body
from .providers.adapter import Adapter, AdapterError, Prepared, TransformError
from .refusals import Refusal

if TYPE_CHECKING:
    from .exchange import Exchange
    from .reply import Reply

_CLEARANCE: Final = 0
_CONNECT: Final = 1
_AWAIT: Final = 2
_DISCARD: Final = 3
_HELD: Final = 4
_RELAY: Final = 5
_DONE: Final = 6


class UpstreamCall:
    """Implements `http1.interfaces.Consumer`. What a call does not have keeps the class's default.

    `replayable`: the body is kept and can be sent again. Of what is not, it follows once the exchange is told to send it.
    """

    attempts: tuple[Attempt, ...] = ()
    observer: Observer | None
    sent_head: bytes = b""
    _changed: ChangedAnswer | None = None
    _dump: DumpedAttempt | None = None
    _held: HeldAnswer | None = None
    _interim: bytes = b""
    """Heads (1xx) that the client gets before that of the answer, if it gets this one."""
    _noted: bool = False
    _patience: Patience | None = None
    """With the rest of an answer that the client does not get, or not yet."""
    _pending: "asyncio.Task[None] | None" = None
    _retries: int = 0
    _retries_5xx: int = 0
    _reused: bool = False
    _sent_ns: int = 0
    _signature: bytes = b""
    _state: int = _CLEARANCE
    _status: int = 0
    _upstream: UpstreamConnection | None = None

    def __init__(
        self, exchange: "Exchange", reply: "Reply", body: bytes, prepared: Prepared | None, *, replayable: bool
    ) -> None:
        self.exchange = exchange
        self._reply = reply
        self._clearance = reply.clearance
        self._worker = exchange.worker
        self._provider = exchange.admission.provider
        self._body = body
        self._prepared = prepared
        self._replayable = replayable
        self.observer = None  # not a default of the class: mypyc forgets those of a protocol's type

    # --- before it is sent

    def reject(self, refusal: Refusal) -> None:
        """It is not cleared: the answer that is held, else one of ours."""
        if self._held is not None:
            self._let_go(self._held)
        else:
            self._reply.reject(refusal)

    def next_key(self) -> None:
        """The key cannot be used."""
        refusal = self._clearance.next_key()
        if refusal is None:
            self._clearance.ask_key(self)
        else:
            self.reject(refusal)

    def go(self) -> None:
        """It is cleared. AWS wants a signature."""
        adapter = self._provider.adapter
        if adapter is not None and self.exchange.own is None:
            self._wait_for(asyncio.get_running_loop().create_task(self._authorize(adapter)))
        else:
            self._send()

    def _wait_for(self, task: "asyncio.Task[None]") -> None:
        """It calls back itself."""
        self._pending = task
        task.add_done_callback(self._task_over)

    def _task_over(self, task: "asyncio.Task[None]") -> None:
        """What was waited for is over: did it fail to call back?"""
        error: BaseException | None = None
        if not task.cancelled():
            error = task.exception()
        elif task is self._pending:  # it was not `stop` that did it
            error = asyncio.CancelledError()
        if error is not None:
            self.exchange.failed(error)

    async def _authorize(self, adapter: Adapter) -> None:
        prepared = self._prepared
        assert prepared is not None
        refusal = None
        try:
            self._signature, self._clearance.hint = await adapter.authorize(self.exchange.head.method, prepared)
        except AdapterError as error:
            refusal = Refusal(error.status, "no_credential", str(error))
        self._pending = None
        if self._state == _DONE:
            return
        self.exchange.stages["authorize"] = perf_counter_ns()
        if refusal is not None:
            self._reply.reject(refusal)
        else:
            self._send()

    def _send(self) -> None:
        self._interim = b""
        if self._held is not None:
            self._forget_held()
        key = self._clearance.key
        self.sent_head = self.exchange.upstream_head(key, self._prepared, self._signature, len(self._body))
        upstream = self._worker.pool.take(self._provider.origin) if self._replayable else None
        if upstream is None:
            self._connect()
        else:
            self._reused = True
            self._send_over(upstream)

    def _connect(self) -> None:
        self._state = _CONNECT
        self._wait_for(self._worker.pool.connect(self._provider.origin, self._connected, self._connect_failed))

    def _connected(self, upstream: UpstreamConnection) -> None:
        self._pending = None
        if self._state != _CONNECT:
            self._worker.pool.release(upstream)
            return
        self.exchange.stages["connect"] = perf_counter_ns()
        self._reused = False
        self._send_over(upstream)

    def _send_over(self, upstream: UpstreamConnection) -> None:
        self._upstream = upstream
        self._state = _AWAIT
        self._begin_attempt()
        if self._replayable:
            upstream.send(self, self.sent_head, self._body)
        else:
            upstream.send(self, self.sent_head, more=True)
            self.exchange.send_upload()

    def send_more(self, data: bytes, *, last: bool) -> None:
        """More of an upload, framed as the head says."""
        upstream = self._upstream
        if upstream is not None:
            if self._dump is not None:
                self._dump.request_piece(data)
            upstream.send_more(data, last=last)

    def _connect_failed(self, error: UpstreamError) -> None:
        self._pending = None
        if self._state == _CONNECT:
            self._begin_attempt()
            self._failed(error, 0)
            if error.failure is Failure.EXHAUSTED:
                self._reply.reject(exhausted(self._provider, error.detail))
            else:
                self._retry_or_fail(error, retry=error.failure is Failure.CONNECT)

    # --- the answer

    def response_interim(self, head: ResponseHead) -> None:
        """It waits for the head of the answer while another attempt may follow, whose answer it would not belong to."""
        if head.status == 100:
            return
        lines = kept_response_lines(head, RESPONSE_DROPPED)
        interim = b"\r\n".join((head.status_line, *lines, b"", b""))
        if not self._may_repeat() or (self._clearance.key is None and not self._worker.settings.retry_5xx):
            self.exchange.connection.write(interim)
        elif len(self._interim) + len(interim) <= MAX_HEAD:
            self._interim += interim

    def response_head(self, head: ResponseHead) -> None:
        with self.exchange:
            self.exchange.stages["head"] = perf_counter_ns()
            self._status = status = head.status
            if self._dump is not None:
                self._dump.response_head(b"\r\n".join((head.status_line, *head.lines, b"", b"")))
            if status >= 400 and self._clearance.key is not None and needs_body(status):
                self._hold(head)
                return
            if status < 500:
                self._clearance.accepted(status)
            elif self._retries_5xx < self._worker.settings.retry_5xx and self._may_repeat():
                self._discard()
                return
            self._relay(head)

    def _relay(self, head: ResponseHead) -> None:
        """This is the answer."""
        self._begin_answer(head)
        upstream, observer, changed = self._upstream, self.observer, self._changed
        assert upstream is not None
        write = self.exchange.connection.write
        if changed is not None:
            write(self._reply.client_head(head, changed))  # here: what is changed goes past the sink
            upstream.relay(b"", nowhere, self._shown(self._change), verbatim=False)
        elif observer is not None:
            show = self._shown(observer.feed)
            upstream.relay(self._reply.client_head(head, None), write, show, compact=observer.compact)
        else:
            upstream.relay(self._reply.client_head(head, None), write, self._shown(None))

    def _shown(self, show: Write | None) -> Write | None:
        """To whom the payload is shown: also to a dump, and to who wants to know when the first of it came."""
        if self._dump is not None:
            show = self._dump.response if show is None else both(self._dump.response, show)
        return show if self._worker.telemetry is None else timed(show or nowhere, self.exchange.stages)

    def _begin_answer(self, head: ResponseHead) -> None:
        """From here on it goes to the client: first the heads that have waited for its own."""
        self._state = _RELAY
        self._body = b""
        self.observer, self._changed = self._reply.answering(head)
        if self._interim:
            self.exchange.connection.write(self._interim)

    def _change(self, payload: bytes) -> None:
        """More of an answer that does not go on as it came."""
        if self._state != _RELAY:
            return  # it was cut, and this came in the same read as what it was cut for
        changed = self._changed
        assert changed is not None
        with self.exchange:
            try:
                changed.feed(payload, time.monotonic())
            except TransformError as error:
                self._hang_up()
                self._cut(UpstreamError(Failure.PROTOCOL, str(error)))

    def _cut(self, error: UpstreamError) -> None:
        """The client's answer ends in the middle."""
        self._failed(error, self._status)
        self._reply.cut(error)

    def response_done(self) -> None:
        self._upstream = None
        dump = self._dump  # of this attempt: what follows may begin another one
        with self.exchange:
            if self._held is not None:
                self._look_at_held(self._held)
            elif self._state == _DISCARD:
                self._discarded()
            else:
                self._complete()
            if dump is not None:
                dump.close()

    def _complete(self) -> None:
        if self._changed is not None:
            try:
                self._changed.end(time.monotonic())
            except TransformError as error:
                self._cut(UpstreamError(Failure.PROTOCOL, str(error)))
                return
        self._attempted(self._status, "")
        self._reply.answered()

    def response_failed(self, error: UpstreamError) -> None:
        self._upstream = None
        with self.exchange:
            if self._held is not None:
                self._held.error = error
                self._look_at_held(self._held)
            elif self._state == _RELAY:
                self._cut(error)
            elif self._state == _DISCARD:
                self._failed(error, self._status)
                self._discarded()
            else:
                self._failed(error, 0)
                self._retry_or_fail(error, retry=error.failure is Failure.STALE)

    # --- once more

    def _retry_or_fail(self, error: UpstreamError, *, retry: bool) -> None:
        """Nothing has gone to the client: once more where that is safe, else an answer of our own."""
        limit = self._worker.settings.max_retries
        if error.failure is Failure.STALE:
            limit = max(1, limit)  # a stale connection says nothing about the upstream
        if retry and self._retries < limit and not self._worker.cutting:
            self._retries += 1
            self._connect()
        else:
            self._reply.unreachable(error)

    def _may_repeat(self) -> bool:
        return self._replayable and not self._worker.cutting

    def _discard(self) -> None:
        """This 5xx is not shown to the client: what comes of its body within bounds is read, to keep the connection."""
        self._retries_5xx += 1
        self._state = _DISCARD
        upstream = self._upstream
        assert upstream is not None
        self._patience = patience = Patience(self._discarded_enough)
        if self._dump is None:
            upstream.discard()
        else:
            upstream.relay(b"", patience.took, self._dump.response)

    def _discarded_enough(self) -> None:
        """Too long, or too slow."""
        with self.exchange:
            self._leave_rest()
            self._discarded()

    def _discarded(self) -> None:
        """The same again after a 5xx that nobody saw, with a new signature where there is one."""
        self._lose_patience()
        self._attempted(self._status, "")
        if self._signature:
            self.go()
        else:
            self._send()

    # --- an answer that may speak of the key

    def _hold(self, head: ResponseHead) -> None:
        self._state = _HELD
        self._patience = patience = Patience(self._held_enough)
        self._held = held = HeldAnswer(head, patience, self._clearance.key, self._clearance.hint)
        upstream = self._upstream
        assert upstream is not None
        show = held.take_payload if self._dump is None else both(self._dump.response, held.take_payload)
        verbatim = head.framing != UNTIL_CLOSE
        upstream.relay(b"", held.take, show, verbatim=verbatim, compact=held.compact)

    def _look_at_held(self, held: HeldAnswer) -> None:
        """It has come whole, or as far as it will."""
        self._lose_patience()
        if held.passed_on:
            return  # another key is being asked for already
        if self._is_about_key(held):
            if held.error is not None:
                self._failed(held.error, self._status)
            else:
                self._attempted(self._status, "")
            self.next_key()
        else:
            self._let_go(held)

    def _held_enough(self) -> None:
        """Too long, or too slow: what has come of it has to do. Its rest waits until it is known whether it is wanted."""
        with self.exchange:
            held = self._held
            assert held is not None
            if self._is_about_key(held):
                upstream = self._upstream
                assert upstream is not None
                upstream.pause_reading()
                held.passed_on = True
                self._attempted(self._status, "its body was too slow or too long to wait for")
                self.next_key()
            else:
                self._let_go(held)

    def _is_about_key(self, held: HeldAnswer) -> bool:
        """Whether it says that its key cannot be used, and another one may be."""
        return self._clearance.refuses_key(self._status, held.head.fields, held.payload) and self._may_repeat()

    def _forget_held(self) -> None:
        """Another attempt follows."""
        self._held = None
        if self._upstream is not None:
            self._leave_rest()

    def _let_go(self, held: HeldAnswer) -> None:
        """No other answer is to be had: this one goes to the client as it came, and what still comes of it too."""
        self._held = None
        self._clearance.key, self._clearance.hint = held.key, held.hint
        self._begin_answer(held.head)
        if held.passed_on and self._upstream is not None:
            self._upstream.resume_reading()
        observer, changed, write = self.observer, self._changed, self.exchange.connection.write
        write(self._reply.client_head(held.head, changed))
        if changed is not None:
            held.let_go(None, self._change)
        elif observer is not None:
            held.let_go(write, observer.feed, observer.compact)
        else:
            held.let_go(write, None)
        if held.error is not None:
            self._cut(held.error)
        elif self._upstream is None:
            self._complete()

    def _lose_patience(self) -> None:
        """Nothing more is waited for."""
        patience, self._patience = self._patience, None
        if patience is not None:
            patience.end()

    def _leave_rest(self) -> None:
        """Of an answer that the client does not get."""
        self._hang_up()
        if self._dump is not None:
            self._dump.close("the rest was not waited for")

    def _hang_up(self) -> None:
        """No more of this attempt's answer is wanted."""
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            upstream.abort()

    # --- the end

    def stop(self) -> None:
        """Nobody wants an answer any more."""
        self._lose_patience()
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.cancel()
        if self._upstream is not None or self._state == _RELAY:
            self._attempted(0 if self._state == _AWAIT else self._status, "")
            self._hang_up()
        if self._dump is not None:
            self._dump.close("nobody waited for the rest")

    def settled(self, *, failed: bool | None) -> None:
        """The exchange has ended: whether the upstream failed in it; None when that cannot be said."""
        self._state = _DONE
        self._clearance.settled(failed=failed, attempts=len(self.attempts))

    # --- flow

    def pause(self) -> None:
        """The client does not take what comes."""
        if self._upstream is not None:
            self._upstream.pause_reading()

    def resume(self) -> None:
        if self._upstream is not None:
            self._upstream.resume_reading()

    def client_stalled(self) -> None:
        self._reply.client_stalled()

    def request_paused(self) -> None:
        """A body that is held is written whole, and the transport keeps it until it is taken; an upload has to wait."""
        if not self._replayable:
            self.exchange.connection.pause_reading()

    def request_resumed(self) -> None:
        if not self._replayable:
            self.exchange.connection.resume_reading()

    # --- what is told of it

    def _begin_attempt(self) -> None:
        self._noted = False
        self._sent_ns = perf_counter_ns()
        dumps = self._worker.dumps
        if dumps is not None:
            self._dump = self.exchange.dump(dumps, len(self.attempts) + 1)
            self._dump.request(self.sent_head, self._body)

    def _failed(self, error: UpstreamError, status: int) -> None:
        if self._noted:
            return  # its answer was held, and is let go only now
        self._worker.metrics.upstream_failed(self._provider.name, error.failure)
        if self._dump is not None:
            self._dump.failed(error.detail)
        self._attempted(status, error.detail)

    def _attempted(self, status: int, error: str) -> None:
        if self._noted:
            return
        self._noted = True
        at_us = (self._sent_ns - self.exchange.t0) // 1000
        self.attempts += (Attempt(self._clearance.hint, self._reused, status, error, at_us),)
