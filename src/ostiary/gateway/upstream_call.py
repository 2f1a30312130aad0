"""The upstream side of one exchange: with which credential it is sent, what comes of each attempt, who gets the answer.

    ADMIT ─▶ (TRIAL) ─▶ (AUTHORIZE) ─▶ CONNECT ─▶ AWAIT ─▶ RELAY ─▶ DONE
                ▲             ▲            └─ retry ─┘├──▶ HELD ─▶┤
                └─ next key ──┴───────────────────────┴───────────┘

Rules
- Until the first byte has gone to the client another attempt may follow: on a connection that was stale or could not be
  made (`max_retries`), after a 5xx if `retry_5xx` says so, and with the next key when an answer says that this one is limited
  or refused (design §11). Such an answer is held until its body has been looked at; the last one goes to the client as it came.
- What was sent without being kept (an upload) is not sent again.
- The breaker hears exactly one outcome, and so does each trial that was granted.
- Whatever is raised on the way ends the exchange (`Exchange.failed`): who calls from outside is not told.
"""

import asyncio
import time
from time import perf_counter_ns
from typing import TYPE_CHECKING, Final

from ostiary.core.health import BreakerSubject, KeySubject, TrialOutcome
from ostiary.core.records import Attempt
from ostiary.http1.errors import Failure, UpstreamError
from ostiary.http1.fields import RESPONSE_DROPPED, kept_response_lines
from ostiary.http1.head import MAX_HEAD, UNTIL_CLOSE, ResponseHead
from ostiary.http1.upstream import UpstreamConnection
from ostiary.wire.observer import Observer

from .answers import HELD_RAW_MAX, HELD_SECONDS, ChangedAnswer, HeldAnswer, Write, both, nowhere, timed
from .breaker import NEEDS_TRIAL, Rejected
from .decide import Credential, breaker_open, exhausted, no_key, pool_exhausted
from .dump import Attempt as DumpedAttempt
from .key_verdict import needs_body, read_key_error, verdict
from .keypool import Exhausted, KeyPool
from .providers import RuntimeKey
from .providers.adapter import Adapter, AdapterError, Prepared, TransformError
from .refusals import Refusal

if TYPE_CHECKING:
    from .exchange import Exchange

_CHOOSING: Final = 0
_CONNECT: Final = 1
_AWAIT: Final = 2
_DISCARD: Final = 3
_HELD: Final = 4
_RELAY: Final = 5
_DONE: Final = 6

_NOTHING: Final[frozenset[bytes]] = frozenset()
_ABOUT_THE_PERSON: Final = frozenset((401, 403, 429))
"""What these statuses say when the credential was the person's own."""


class UpstreamCall:
    """Implements `http1.interfaces.Consumer`. What a call does not have keeps the class's default.

    `own`: the person's own credential, which is among the request's header fields already.
    """

    attempts: tuple[Attempt, ...] = ()
    exhausted: bool = False
    """No key is left to try: what the provider says then is said of all."""
    hint: str = ""
    key: RuntimeKey | None = None
    observer: Observer | None
    passed_over: tuple[tuple[str, str], ...] = ()
    replayable: bool = True
    """The body is kept and can be sent again."""
    sent_head: bytes = b""
    _body: bytes = b""
    _breaker_trial: bool = False
    _changed: ChangedAnswer | None = None
    _discarded_bytes: int = 0
    _dump: DumpedAttempt | None = None
    _held: HeldAnswer | None = None
    _held_error: UpstreamError | None = None
    """Why the answer that is held is not whole."""
    _held_with: tuple[RuntimeKey | None, str] = (None, "")
    """With which key it came, and its hint."""
    _interim: bytes = b""
    """Heads (1xx) that the client gets before that of the answer, if it gets this one."""
    _key_trial: bool = False
    _marked: tuple[tuple[str, str], ...] = ()
    _model: str = ""
    _needs_trial: bool = False
    _noted: bool = False
    _passed_on: bool = False
    """Another key is being asked for, while the rest of the answer that is held may still come."""
    _pending: "asyncio.Task[None] | None" = None
    _prepared: Prepared | None = None
    _retries: int = 0
    _retries_5xx: int = 0
    _reused: bool = False
    _sent_ns: int = 0
    _session: str = ""
    _signature: bytes = b""
    _state: int = _CHOOSING
    _status: int = 0
    _timer: asyncio.TimerHandle | None = None
    """How long the rest of an answer is waited for that the client does not get yet."""
    _tried: frozenset[bytes]
    _upstream: UpstreamConnection | None = None

    def __init__(self, exchange: "Exchange", own: Credential | None, model: str = "", session: str = "") -> None:
        self._exchange = exchange
        self._worker = exchange.worker
        self._provider = exchange.admission.provider
        self._own = own
        self._model = model
        self._session = session
        self._tried = _NOTHING
        self.observer = None  # not a default of the class: mypyc forgets those of a protocol's type

    # --- with which credential

    def choose(self) -> Refusal | None:
        """Find a credential to begin with; a refusal when there is none."""
        provider = self._provider
        own = self._own
        if own is not None:
            self.hint = own.hint
            return None
        if provider.adapter is not None:
            self.hint = provider.adapter.hint
            return None
        keys = provider.keys
        if not keys:
            return no_key(provider)
        pool = self._worker.health.pools.get(provider.name)
        if pool is not None and pool.healthy and pool.keys is keys:
            self.key = key = keys[0]
            self.hint = key.hint
            return None
        return self._choose_key(self._pool())

    def _pool(self) -> KeyPool:
        """The keys of this request's own snapshot, by what is known of them now: keys of another one may be for another
        address."""
        provider = self._provider
        pool = self._worker.health.pools.get(provider.name)
        if pool is None or pool.keys is not provider.keys:
            return KeyPool(provider.name, provider.keys, provider.selection, pool)
        return pool

    def _choose_key(self, pool: KeyPool) -> Refusal | None:
        """The next key that may be used and was not tried yet."""
        model = self._model or self._exchange.admission.route.label
        choice = pool.choose(model, time.monotonic(), self._session, self._tried, try_suspects=self.replayable)
        self.passed_over = self._marked + choice.passed_over
        if isinstance(choice, Exhausted):
            self.exhausted = True
            self._worker.metrics.keys_exhausted(self._provider.name, choice.kind)
            return pool_exhausted(self._provider, choice)
        self.key = choice.key
        self._needs_trial = choice.needs_trial
        self.hint = choice.key.hint
        return None

    # --- before it is sent

    def start(self, body: bytes, prepared: Prepared | None = None) -> None:
        """Send it. Of what is not `replayable` the body follows, once the exchange is told to `upload`."""
        self._body = body
        self._prepared = prepared
        if self._worker.health.breakers.tracked:
            self._ask_breaker()
        else:
            self._ask_key()

    def _ask_breaker(self) -> None:
        """Some upstream has failed lately: perhaps this one."""
        worker = self._worker
        admission = worker.health.breakers.admit(self._breaker, time.monotonic())
        if isinstance(admission, Rejected):
            self._reject_for_breaker(admission.retry_after)
        elif admission is NEEDS_TRIAL:
            limit = worker.settings.circuit_breaker_max_requests
            worker.health.ask_trial(self._breaker, limit, self._breaker_answered)
        else:
            self._ask_key()

    def _breaker_answered(self, granted: bool) -> None:
        self._breaker_trial = granted
        try:
            if self._state == _DONE:
                self._end_breaker_trial("unknown")
            elif granted:
                self._ask_key()
            else:
                self._reject_for_breaker(1)  # others try at this moment
        except Exception as error:  # noqa: BLE001 - see the module's rules; and so below
            self._exchange.failed(error)

    def _reject_for_breaker(self, retry_after: int) -> None:
        breaker = self._breaker
        self._worker.metrics.breaker_rejected(breaker)
        self._exchange.reject(breaker_open(self._provider, breaker, retry_after))

    @property
    def _breaker(self) -> BreakerSubject:
        return BreakerSubject(self._provider.name, self._exchange.admission.route.label, self._model)

    def _ask_key(self) -> None:
        """A suspect key is tried by one request of the machine at a time; AWS wants a signature."""
        adapter = self._provider.adapter
        if self._needs_trial and self.key is not None:
            self._worker.health.ask_trial(KeySubject(self._provider.name, self.key.digest), 1, self._key_answered)
        elif adapter is not None and self._own is None:
            self._pending = task = asyncio.get_running_loop().create_task(self._authorize(adapter))
            task.add_done_callback(self._task_over)
        else:
            self._send()

    def _key_answered(self, granted: bool) -> None:
        self._key_trial = granted
        self._needs_trial = False
        try:
            if self._state == _DONE:
                self._end_key_trial("unknown")
            elif granted:
                self._send()
            else:
                self._next_key()
        except Exception as error:  # noqa: BLE001
            self._exchange.failed(error)

    def _next_key(self) -> None:
        """This key cannot be used: the next one, else the answer that is held, else one of ours."""
        assert self.key is not None
        self._tried |= {self.key.digest}
        refusal = self._choose_key(self._pool())
        if refusal is None:
            self._ask_key()
        elif self._held is not None:
            self._let_go()
        else:
            self._exchange.reject(refusal)

    def _task_over(self, task: "asyncio.Task[None]") -> None:
        """What waited is over. It calls back itself; it is only seen to here when it failed to."""
        if not task.cancelled():
            error = task.exception()
        elif task is self._pending:  # it was not `stop` that did it
            error = asyncio.CancelledError()
        else:
            error = None
        if error is not None:
            self._exchange.failed(error)

    async def _authorize(self, adapter: Adapter) -> None:
        exchange = self._exchange
        prepared = self._prepared
        assert prepared is not None
        refusal = None
        try:
            self._signature, self.hint = await adapter.authorize(exchange.head.method, prepared)
        except AdapterError as error:
            refusal = Refusal(error.status, "no_credential", str(error))
        self._pending = None
        if self._state == _DONE:
            return
        exchange.stages["authorize"] = perf_counter_ns()
        if refusal is not None:
            exchange.reject(refusal)
        else:
            self._send()

    def _send(self) -> None:
        exchange = self._exchange
        self._interim = b""
        if self._held is not None:
            self._forget_held()
        self.sent_head = exchange.upstream_head(self.key, self._prepared, self._signature, len(self._body))
        upstream = self._worker.pool.take(self._provider.origin) if self.replayable else None
        if upstream is None:
            self._connect()
        else:
            self._reused = True
            self._send_over(upstream)

    def _connect(self) -> None:
        self._state = _CONNECT
        self._noted = False
        self._pending = task = self._worker.pool.connect(self._provider.origin, self._connected, self._connect_failed)
        task.add_done_callback(self._task_over)

    def _connected(self, upstream: UpstreamConnection) -> None:
        self._pending = None
        if self._state != _CONNECT:
            self._worker.pool.release(upstream)
            return
        self._exchange.stages["connect"] = perf_counter_ns()
        self._reused = False
        self._send_over(upstream)

    def _send_over(self, upstream: UpstreamConnection) -> None:
        self._upstream = upstream
        self._state = _AWAIT
        self._noted = False
        self._sent_ns = perf_counter_ns()
        if self._worker.dumps is not None:
            self._dump_request()
        if self.replayable:
            upstream.send(self, self.sent_head, self._body)
        else:
            upstream.send(self, self.sent_head, more=True)
            self._exchange.upload()

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
            self._sent_ns = perf_counter_ns()
            if self._worker.dumps is not None:
                self._dump_request()
            self._failed(error, 0)
            if error.failure is Failure.EXHAUSTED:
                self._exchange.reject(exhausted(self._provider, error.detail))
            else:
                self._retry_or_fail(error, retry=error.failure is Failure.CONNECT)

    # --- the answer

    def response_interim(self, head: ResponseHead) -> None:
        """It waits for the head of the answer while another attempt may follow, whose answer it would not belong to."""
        if head.status == 100:
            return
        lines = kept_response_lines(head, RESPONSE_DROPPED)
        interim = b"\r\n".join((head.status_line, *lines, b"", b""))
        if not self._may_repeat() or (self.key is None and not self._worker.settings.retry_5xx):
            self._exchange.connection.write(interim)
        elif len(self._interim) + len(interim) <= MAX_HEAD:
            self._interim += interim

    def response_head(self, head: ResponseHead) -> None:
        self._exchange.stages["head"] = perf_counter_ns()
        self._status = status = head.status
        try:
            if self._dump is not None:
                self._dump.response_head(b"\r\n".join((head.status_line, *head.lines, b"", b"")))
            if status >= 400 and self.key is not None and needs_body(status):
                self._hold(head)
                return
            if status >= 500:
                if self._retries_5xx < self._worker.settings.retry_5xx and self._may_repeat():
                    self._discard()
                    return
            elif self._key_trial or self._breaker_trial:
                self._end_key_trial("passed")
                if self._own is None or status not in _ABOUT_THE_PERSON:
                    self._end_breaker_trial("passed")
            self._relay(head)
        except Exception as error:  # noqa: BLE001
            self._exchange.failed(error)

    def _relay(self, head: ResponseHead) -> None:
        """This is the answer: from here on it goes to the client."""
        self._state = _RELAY
        exchange = self._exchange
        observer, changed = self._begin_answer(head)
        upstream = self._upstream
        assert upstream is not None
        if self._interim:
            exchange.connection.write(self._interim)
        if changed is not None:
            exchange.connection.write(exchange.client_head(head, changed))  # here: what is changed goes past the sink
            change = self._change if self._dump is None else both(self._dump.response, self._change)
            if self._worker.telemetry is not None:
                change = timed(change, exchange.stages)
            upstream.relay(b"", nowhere, change, verbatim=False)
            return
        show: Write | None = None if observer is None else observer.feed
        if self._dump is not None:
            show = self._dump.response if show is None else both(self._dump.response, show)
        if self._worker.telemetry is not None:
            show = timed(show or nowhere, exchange.stages)
        compact = None if observer is None else observer.compact
        upstream.relay(exchange.client_head(head, None), exchange.connection.write, show, compact=compact)

    def _begin_answer(self, head: ResponseHead) -> tuple[Observer | None, ChangedAnswer | None]:
        self._body = b""
        begun = self.observer, self._changed = self._exchange.answering(head)
        return begun

    def _change(self, payload: bytes) -> None:
        """More of an answer that does not go on as it came."""
        changed = self._changed
        assert changed is not None
        try:
            changed.feed(payload, time.monotonic())
        except TransformError as error:
            self._hang_up()
            self._cut(UpstreamError(Failure.PROTOCOL, str(error)))
        except Exception as error:  # noqa: BLE001
            self._exchange.failed(error)

    def _cut(self, error: UpstreamError) -> None:
        """The client's answer ends in the middle."""
        self._failed(error, self._status)
        self._exchange.cut(error)

    def response_done(self) -> None:
        self._upstream = None
        dump = self._dump  # of this attempt: what follows may begin another one
        state = self._state
        try:
            if state == _HELD:
                self._look_at_held()
            elif state == _DISCARD:
                self._discarded()
            else:
                self._complete()
            if dump is not None:
                dump.close()
        except Exception as error:  # noqa: BLE001
            self._exchange.failed(error)

    def _complete(self) -> None:
        if self._changed is not None:
            try:
                self._changed.end(time.monotonic())
            except TransformError as error:
                self._cut(UpstreamError(Failure.PROTOCOL, str(error)))
                return
        self._attempted(self._status, "")
        self._exchange.answered()

    def response_failed(self, error: UpstreamError) -> None:
        self._upstream = None
        state = self._state
        try:
            if state == _HELD:
                self._look_at_held(error)
            elif state == _RELAY:
                self._cut(error)
            elif state == _DISCARD:
                self._failed(error, self._status)
                self._discarded()
            else:
                self._failed(error, 0)
                self._retry_or_fail(error, retry=error.failure is Failure.STALE)
        except Exception as mistake:  # noqa: BLE001
            self._exchange.failed(mistake)

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
            self._exchange.unreachable(error)

    def _may_repeat(self) -> bool:
        return self.replayable and not self._worker.cutting

    def _discard(self) -> None:
        """This 5xx is not shown to the client: what comes of its body within bounds is read, to keep the connection."""
        self._retries_5xx += 1
        self._state = _DISCARD
        upstream = self._upstream
        assert upstream is not None
        self._timer = asyncio.get_running_loop().call_later(HELD_SECONDS, self._discarded_enough)
        if self._dump is None:
            upstream.discard()
        else:
            upstream.relay(b"", self._count_discarded, self._dump.response)

    def _count_discarded(self, data: bytes) -> None:
        self._discarded_bytes += len(data)
        if self._discarded_bytes > HELD_RAW_MAX:
            self._discarded_enough()

    def _discarded_enough(self) -> None:
        """Too long, or too slow."""
        if self._state != _DISCARD:
            return
        self._hang_up()
        try:
            if self._dump is not None:
                self._dump.close("the rest was not waited for")
            self._discarded()
        except Exception as error:  # noqa: BLE001
            self._exchange.failed(error)

    def _discarded(self) -> None:
        """The same again after a 5xx that nobody saw, with a new signature where there is one."""
        self._stop_timer()
        self._discarded_bytes = 0
        self._attempted(self._status, "")
        if self._signature:
            self._ask_key()
        else:
            self._send()

    # --- an answer that may speak of the key

    def _hold(self, head: ResponseHead) -> None:
        self._state = _HELD
        self._held = held = HeldAnswer(head, self._held_enough)
        self._held_with = self.key, self.hint
        self._timer = asyncio.get_running_loop().call_later(HELD_SECONDS, self._held_enough)
        upstream = self._upstream
        assert upstream is not None
        show = held.take_payload if self._dump is None else both(self._dump.response, held.take_payload)
        verbatim = head.framing != UNTIL_CLOSE
        upstream.relay(b"", held.take, show, verbatim=verbatim, compact=held.compact)

    def _look_at_held(self, error: UpstreamError | None = None) -> None:
        """It has come whole, or (`error`) as far as it will."""
        self._stop_timer()
        self._held_error = error
        if self._passed_on:
            return  # another key is being asked for already
        if self._judge_key() and self._may_repeat():
            if error is not None:
                self._failed(error, self._status)
            else:
                self._attempted(self._status, "")
            self._next_key()
        else:
            self._let_go()

    def _held_enough(self) -> None:
        """Too long, or too slow: what has come of it has to do. Its rest waits until it is known whether it is wanted."""
        self._stop_timer()
        try:
            if self._judge_key() and self._may_repeat():
                upstream = self._upstream
                assert upstream is not None
                upstream.pause_reading()
                self._passed_on = True
                self._attempted(self._status, "its body was too slow or too long to wait for")
                self._next_key()
            else:
                self._let_go()
        except Exception as error:  # noqa: BLE001
            self._exchange.failed(error)

    def _judge_key(self) -> bool:
        """Whether the answer that is held says that the key cannot be used."""
        held, key = self._held, self.key
        assert held is not None
        assert key is not None
        fields = held.head.fields
        found = verdict(self._status, fields, read_key_error(fields, held.payload), time.time())
        if found is None:
            self._end_key_trial("unknown" if self._status == 403 else "passed")
            return False
        model = self._model or self._exchange.admission.route.label
        reports = self._worker.health.mark(self._provider.name, key, found, model)
        self._worker.metrics.keys_changed(reports)
        self._marked += ((key.hint, found.kind),)
        self._end_key_trial("failed" if found.kind == "refused" else "passed")
        return True

    def _forget_held(self) -> None:
        """Another attempt follows."""
        self._held = self._held_error = None
        self._passed_on = False
        if self._upstream is not None:
            self._hang_up()
            if self._dump is not None:
                self._dump.close("the rest was not waited for")

    def _let_go(self) -> None:
        """No other answer is to be had: this one goes to the client as it came, and what still comes of it too."""
        held = self._held
        assert held is not None
        self._held = None
        self._state = _RELAY
        self.key, self.hint = self._held_with
        if self._passed_on and self._upstream is not None:
            self._upstream.resume_reading()
        exchange = self._exchange
        observer, changed = self._begin_answer(held.head)
        write = exchange.connection.write
        if self._interim:
            write(self._interim)
        write(exchange.client_head(held.head, changed))
        if changed is not None:
            held.let_go(None, self._change)
        elif observer is not None:
            held.let_go(write, observer.feed, observer.compact)
        else:
            held.let_go(write, None)
        if self._held_error is not None:
            self._cut(self._held_error)
        elif self._upstream is None:
            self._complete()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _hang_up(self) -> None:
        """No more of this attempt's answer is wanted."""
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            upstream.abort()

    # --- the end

    def stop(self) -> None:
        """Nobody wants an answer any more."""
        self._stop_timer()
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.cancel()
        if self._upstream is not None or self._state == _RELAY:
            self._hang_up()
            self._attempted(0 if self._state == _AWAIT else self._status, "")
        if self._dump is not None:
            self._dump.close("nobody waited for the rest")

    def settled(self, *, failed: bool | None) -> None:
        """The exchange has ended: whether the upstream failed in it; None when that cannot be said."""
        self._state = _DONE
        worker = self._worker
        try:
            if self._breaker_trial:
                self._end_breaker_trial("unknown" if failed is None else "failed" if failed else "passed")
            elif failed:
                worker.metrics.breaker_opened(worker.health.failed(self._breaker))
            elif failed is not None and worker.health.breakers.tracked:
                worker.health.succeeded(self._breaker)
            if self.key is not None and self.attempts:
                worker.metrics.keys_tried(self._provider.name, len(self.attempts))
        finally:
            if self._key_trial:
                self._end_key_trial("unknown")

    def _end_key_trial(self, outcome: TrialOutcome) -> None:
        if self._key_trial and self.key is not None:
            self._key_trial = False
            reports = self._worker.health.key_trial_ended(self._provider.name, self.key, outcome)
            self._worker.metrics.keys_changed(reports)

    def _end_breaker_trial(self, outcome: TrialOutcome) -> None:
        if self._breaker_trial:
            self._breaker_trial = False
            report = self._worker.health.breaker_trial_ended(self._breaker, outcome)
            self._worker.metrics.breaker_opened(report)

    # --- flow

    def pause(self) -> None:
        """The client does not take what comes."""
        if self._upstream is not None:
            self._upstream.pause_reading()

    def resume(self) -> None:
        if self._upstream is not None:
            self._upstream.resume_reading()

    def client_stalled(self) -> None:
        self._exchange.client_stalled()

    def request_paused(self) -> None:
        """A body that is held is written whole, and the transport keeps it until it is taken; an upload has to wait."""
        if not self.replayable:
            self._exchange.connection.pause_reading()

    def request_resumed(self) -> None:
        if not self.replayable:
            self._exchange.connection.resume_reading()

    # --- what is told of it

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
        at_us = (self._sent_ns - self._exchange.t0) // 1000
        self.attempts += (Attempt(self.hint, self._reused, status, error, at_us),)

    def _dump_request(self) -> None:
        dumps = self._worker.dumps
        assert dumps is not None
        self._dump = self._exchange.dump(dumps, len(self.attempts) + 1)
        self._dump.request(self.sent_head, self._body)
