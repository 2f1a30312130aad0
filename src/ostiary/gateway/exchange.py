"""One data-plane request, from its head to its settlement (design §5).

    IDENTIFY ─▶ BODY ─▶ CHECK ─▶ CONNECT ─▶ AWAIT ─▶ RELAY ─▶ DONE
        └─────────┴───────┴─ refused ─┴── failed ──┴───────────▲

Rules
- Where a token is cached and a connection idle, all of it runs in plain calls from the client's `data_received` to the
  upstream's write. What must wait (a token to look up, a connection to make) calls back into the next step.
- Nothing of a bridged request goes upstream before its start is in the journal; from there on exactly one end follows.
- Whoever ends the request goes through `_settle`, once.
"""

import asyncio
from hashlib import sha256
from time import perf_counter_ns, time_ns
from typing import TYPE_CHECKING, Final

from ostiary.core.agents import AgentFirewall, AgentFirewallError, agent_firewall
from ostiary.core.identity import Identity
from ostiary.core.ids import new_id
from ostiary.core.records import (
    Attempt,
    InterceptionEnd,
    InterceptionStart,
    Outcome,
    Trace,
    encode_record,
)
from ostiary.http1.errors import Failure, UpstreamError
from ostiary.http1.fields import (
    RESPONSE_DROPPED,
    kept_response_lines,
)
from ostiary.http1.head import CHUNKED, LENGTH, UNTIL_CLOSE, RequestHead, ResponseHead
from ostiary.http1.server import ClientConnection
from ostiary.http1.upstream import COMPACT_BYTES, UpstreamConnection
from ostiary.wire.content_coding import (
    CodingError,
    DecodedTooLongError,
    UnsupportedCodingError,
    decode_body,
)
from ostiary.wire.errors import classify, error_observer
from ostiary.wire.facts import ProviderError, RequestError, RequestFacts
from ostiary.wire.formats import observer_for, read_request
from ostiary.wire.include_usage import UsageChunkFilter, splice_include_usage
from ostiary.wire.observer import Observer, StreamObserver

from . import decide
from .authorizations import Answer
from .heads import client_head, server_timing, upstream_head, without_credentials
from .journal import JournalError, NotDurable
from .recording import Ending, end_record, error_type_of, error_type_of_failure, start_record, without_content
from .refusals import Refusal, error_body, refusal_head, shape_of
from .routes import Target

if TYPE_CHECKING:
    from .worker import Worker

_IDENTIFY: Final = 0
_BODY: Final = 1
_CHECK: Final = 2
_CONNECT: Final = 3
_AWAIT: Final = 4
_RELAY: Final = 5
_DONE: Final = 6

_LARGE_BODY: Final = 4 * 1024 * 1024
"""Bodies from here on are checked one at a time (design §6)."""


_BODY_MEMORY: Final = Refusal(
    503, "body_memory", "The gateway's memory for request bodies is used up. Try again.", retry_after=1
)
_BACKGROUND: Final = Refusal(
    501,
    "background",
    "Background responses cannot be recorded, so they are not served. Leave out `background` or set it to false.",
)
_NOT_RECORDED: Final = Refusal(
    500, "journal", "The request could not be recorded, so it was not sent. Try again later."
)


class Exchange:
    """See the module's rules. Implements `ServerExchange` towards the client and `Consumer` towards the upstream.

    What a request does not have keeps the class's default: most requests set few of these.
    """

    _admission: decide.Admission
    _attempts: tuple[Attempt, ...] = ()
    _body: bytes = b""
    _body_size: int = 0
    _connecting: asyncio.Task[None] | None = None
    _edits: tuple[str, ...] = ()
    _facts: RequestFacts
    _hint: str = ""
    _identity: Identity
    _inflight: list[float] | None = None
    _misplaced: frozenset[bytes] = frozenset()
    _no_memory: bool = False
    _notes: tuple[str, ...] = ()
    _observer: Observer | None = None
    _usage_filter: UsageChunkFilter | None = None
    _own: decide.Credential | None = None
    _presented: decide.Presented
    _rechunked: bool = False
    _recorded: bool = False
    _retries: int = 0
    _reused: bool = False
    _sent_ns: int = 0
    _splices_usage: bool = False
    _start: InterceptionStart
    _state: int = _IDENTIFY
    _unread: int = 0
    _upstream: UpstreamConnection | None = None
    _upstream_head: bytes = b""

    def __init__(
        self,
        worker: "Worker",
        connection: ClientConnection,
        head: RequestHead,
        target: Target,
        admission: decide.Admission | None,
    ) -> None:
        self._t0 = perf_counter_ns()
        self._worker = worker
        self._connection = connection
        self._head = head
        self._target = target
        self._located = admission
        self._ending = Ending()
        self._stages: dict[str, int] = {}
        self.id = new_id()

    # --- identify, route, admit

    def begin(self) -> None:
        """The head has been read."""
        presented = decide.credential_of(self._head.fields)
        if presented is None:
            self._refuse(decide.NO_TOKEN)
            return
        self._presented = presented
        digest = sha256(presented.token).digest()
        authorizations = self._worker.authorizations
        answer = authorizations.lookup(digest)
        self._connection.exchange = self
        if answer is None:
            authorizations.ask(digest, self._identified)
        else:
            self._identified(answer)

    def _identified(self, answer: Answer) -> None:
        if self._state != _IDENTIFY:
            return  # the client has gone in the meantime
        identity = answer if type(answer) is Identity else decide.identified(answer)
        if isinstance(identity, Refusal):
            self._refuse(identity)
            return
        self._identity = identity
        worker = self._worker
        head = self._head
        admission = self._located or worker.locate(head.path, self._target)
        if isinstance(admission, Refusal):
            self._refuse(admission)
            return
        refusal = decide.admit(admission, head.method, byok=self._presented.byok, allow_byok=worker.settings.allow_byok)
        if refusal is None and self._presented.byok:
            fields = head.fields
            self._misplaced = decide.misplaced_tokens(fields, self._presented.token)
            own = decide.own_credential(admission.provider, fields, self._misplaced)
            if isinstance(own, Refusal):
                refusal = own
            else:
                self._own = own
        if refusal is None and head.minor == 0:
            refusal = Refusal(505, "http_1_0", "Provider routes need HTTP/1.1.")
        if refusal is None and head.framing == LENGTH:
            if worker.reserve_body(head.content_length):
                self._body_size = head.content_length
            else:
                refusal = _BODY_MEMORY
        if refusal is not None:
            self._refuse(refusal)
            return
        self._admission = admission
        self._stages["identify"] = perf_counter_ns()
        self._state = _BODY
        self._connection.collect(worker.settings.body_max_bytes, self._reserve if head.framing == CHUNKED else None)

    # --- body

    def _reserve(self, size: int) -> bool:
        """Memory for the next part of a body in chunks, whose length nobody has told."""
        if self._worker.reserve_body(size):
            self._body_size += size
            return True
        self._no_memory = True
        return False

    def request_body(self, body: bytes) -> None:
        self._stages["body"] = perf_counter_ns()
        self._body = body
        self._state = _CHECK
        if self._admission.route.format is None:
            self._pass_through()
        elif len(body) > _LARGE_BODY:
            self._worker.check_large(self._check)
        else:
            self._check()

    def request_body_too_large(self) -> None:
        if self._no_memory:
            self._refuse(_BODY_MEMORY)
            return
        limit = self._worker.settings.body_max_bytes
        self._refuse(Refusal(413, "body_too_large", f"The request body is larger than {limit // 1024**2} MiB."))

    def request_piece(self, data: bytes, *, last: bool) -> None:
        """Bodies are collected, not streamed."""

    def request_broken(self, reason: str) -> None:
        self._refuse(Refusal(400, "bad_framing", f"The request body's framing is broken: {reason}."))

    def request_stalled(self) -> None:
        self._refuse(Refusal(408, "body_timeout", "The request body stopped coming."))

    # --- check, record start

    def _check(self) -> None:
        if self._state != _CHECK:
            return
        fields = self._head.fields
        worker = self._worker
        plain = self._body
        coding = fields.get(b"content-encoding")
        wire_format = self._admission.route.format
        assert wire_format is not None  # bridged routes have one
        try:
            if coding is not None:
                plain = decode_body(coding, plain, worker.settings.body_max_bytes)
            facts = read_request(wire_format, plain, worker.settings.record_content)
            firewall = agent_firewall(fields)
        except (RequestError, CodingError, AgentFirewallError) as error:
            self._refuse(_bad_request(error))
            return
        if facts.background:
            self._refuse(_BACKGROUND)
            return
        self._facts = facts
        provider = self._admission.provider
        credential = self._own or decide.choose_key(provider)
        self._stages["check"] = perf_counter_ns()
        if not self._record_start(facts, credential, firewall):
            return
        if isinstance(credential, Refusal):
            self._reject(credential)
            return
        self._hint = credential.hint
        self._send(self._edit(facts, plain, decoded=coding is not None), credential)

    def _record_start(
        self, facts: RequestFacts, credential: decide.Credential | Refusal, firewall: AgentFirewall | None
    ) -> bool:
        worker = self._worker
        journal = worker.journal
        started = start_record(
            self.id,
            (time_ns() - perf_counter_ns() + self._t0) // 1000,
            self._identity,
            self._admission,
            credential,
            self._head.fields,
            facts,
            revision=worker.revision,
            with_prompt=worker.settings.record_content != "none" and not journal.shed_content,
            firewall=firewall,
        )
        durable = True
        try:
            journal.append_start(encode_record(started))
        except NotDurable as error:
            worker.log_journal_failure(error)
            durable = False
        except JournalError as error:
            worker.log_journal_failure(error)
            self._refuse(_NOT_RECORDED)
            return False
        self._start = started
        self._recorded = True
        self._inflight = inflight = worker.metrics.inflight(started.provider_name, started.model, started.route)
        inflight[0] += 1
        self._stages["record"] = perf_counter_ns()
        if not durable:
            self._reject(_NOT_RECORDED)  # its start stands in the journal: an end has to follow
        return durable

    # --- edit, send

    def _edit(self, facts: RequestFacts, plain: bytes, *, decoded: bool) -> bytes:
        """The body to send: the client's own bytes but for declared splices."""
        splices = (
            facts.stream
            and not facts.include_usage
            and self._admission.provider.splice_usage
            and self._admission.route.format == "chat_completions"
        )
        if not splices:
            return self._body
        self._splices_usage = True
        self._edits = ("stream_options.include_usage: added; its event is withheld from the client",)
        if decoded:
            self._edits += ("content-encoding: removed, the edited body is sent plain",)
        return splice_include_usage(plain, facts)

    def _pass_through(self) -> None:
        provider = self._admission.provider
        credential = self._own or decide.choose_key(provider)
        if isinstance(credential, Refusal):
            self._refuse(credential)
            return
        self._worker.metrics.passed_through(provider.name, self._admission.route.label, self._head.method)
        self._hint = credential.hint
        self._send(self._body, credential)

    def _send(self, body: bytes, credential: decide.Credential) -> None:
        head = self._head
        admission = self._admission
        self._upstream_head = upstream_head(
            head,
            admission,
            credential.key,
            len(body),
            misplaced=self._misplaced,
            reads_plain=self._splices_usage,
        )
        self._body = body
        pool = self._worker.pool
        upstream = pool.take(admission.provider.origin)
        if upstream is None:
            self._state = _CONNECT
            self._connecting = pool.connect(admission.provider.origin, self._connected, self._connect_failed)
        else:
            self._reused = True
            self._send_over(upstream)

    def _connected(self, upstream: UpstreamConnection) -> None:
        self._connecting = None
        if self._state != _CONNECT:
            self._worker.pool.release(upstream)
            return
        self._stages["connect"] = perf_counter_ns()
        self._reused = False
        self._send_over(upstream)

    def _send_over(self, upstream: UpstreamConnection) -> None:
        self._upstream = upstream
        self._state = _AWAIT
        self._sent_ns = perf_counter_ns()
        upstream.send(self, self._upstream_head, self._body)

    def _connect_failed(self, error: UpstreamError) -> None:
        self._connecting = None
        if self._state == _CONNECT:
            self._sent_ns = perf_counter_ns()
            self._worker.metrics.upstream_failed(self._admission.provider.name, error.failure)
            self._attempted(0, error.detail)
            self._retry_or_fail(error, retry=error.failure is Failure.CONNECT)

    # --- the answer

    def response_interim(self, head: ResponseHead) -> None:
        if head.status != 100:
            lines = kept_response_lines(head, RESPONSE_DROPPED)
            self._connection.write(b"\r\n".join((head.status_line, *lines, b"", b"")))

    def response_head(self, head: ResponseHead) -> None:
        self._stages["head"] = perf_counter_ns()
        self._state = _RELAY
        self._release_body()
        upstream = self._upstream
        assert upstream is not None
        self._ending.status = head.status
        observer = None
        wire_format = self._admission.route.format
        if wire_format is not None:
            fields = head.fields
            coding = fields.get(b"content-encoding", b"")
            content = self._worker.settings.record_content
            content_type = fields.get(b"content-type", b"")
            observer = observer_for(wire_format, content_type, content, coding)
            if observer is None and head.status >= 400:
                observer = error_observer(wire_format, content_type, coding)
            self._observer = observer
            if self._splices_usage and not coding and type(observer) is StreamObserver:
                self._usage_filter = UsageChunkFilter()
        write = self._connection.write
        if head.framing == UNTIL_CLOSE or self._usage_filter is not None:
            # In chunks of ours: an event can be withheld, and a cut can be told from the end.
            self._rechunked = True
            write(self._client_head(head))  # here: what is observed is written before what is relayed
            upstream.relay(b"", write, self._rechunk, verbatim=False)
        elif observer is None:
            upstream.relay(self._client_head(head), write, None)
        else:
            upstream.relay(self._client_head(head), write, observer.feed, compact=observer.compact)

    def _client_head(self, head: ResponseHead) -> bytes:
        return client_head(
            head,
            self._id_line(),
            byok=self._presented.byok,
            rechunked=self._rechunked,
            keeps_client=self._keeps_client(),
            timing=server_timing(self._stages, self._t0) if b"x-ostiary-timing" in self._head.fields else b"",
        )

    def _id_line(self) -> bytes:
        name = b"x-ostiary-interception-id: " if self._recorded else b"x-ostiary-request-id: "
        return name + self.id.encode("ascii")

    def _rechunk(self, payload: bytes) -> None:
        observer = self._observer
        if observer is not None:
            observer.feed(payload)
            self._unread += len(payload)
            if self._unread > COMPACT_BYTES:
                self._unread = 0
                observer.compact()
        usage_filter = self._usage_filter
        self._write_chunk(payload if usage_filter is None else usage_filter.feed(payload))

    def _write_chunk(self, data: bytes) -> None:
        if data:
            self._connection.write(b"%x\r\n%b\r\n" % (len(data), data))

    def _keeps_client(self) -> bool:
        return self._head.keep_alive and not self._worker.draining

    def response_done(self) -> None:
        self._attempted(self._ending.status, "")
        if self._rechunked:
            if self._usage_filter is not None:
                self._write_chunk(self._usage_filter.flush())
            self._connection.write(b"0\r\n\r\n")
        self._upstream = None
        self._connection.finish(keep=self._keeps_client())
        self._settle("completed" if self._ending.status < 400 else "upstream_error")

    def response_failed(self, error: UpstreamError) -> None:
        self._upstream = None
        self._worker.metrics.upstream_failed(self._admission.provider.name, error.failure)
        self._attempted(self._ending.status, error.detail)
        if self._state != _RELAY:
            self._retry_or_fail(error, retry=error.failure is Failure.STALE)
            return
        self._ending.error_type = error_type_of_failure(error.failure)
        self._ending.error_message = error.detail
        self._connection.abort()
        self._settle("upstream_error")

    def _retry_or_fail(self, error: UpstreamError, *, retry: bool) -> None:
        """Nothing has gone to the client: once more where that is safe, else an answer of our own."""
        limit = self._worker.settings.max_retries
        if error.failure is Failure.STALE:
            limit = max(1, limit)  # a stale connection says nothing about the upstream
        provider = self._admission.provider
        if retry and self._retries < limit and not self._worker.cutting:
            self._retries += 1
            self._state = _CONNECT
            self._connecting = self._worker.pool.connect(provider.origin, self._connected, self._connect_failed)
            return
        status = 504 if error.failure is Failure.HEAD_TIMEOUT else 502
        refusal = Refusal(
            status, error.failure.value, f"The provider {provider.name!r} could not be reached: {error.detail}."
        )
        if not self._recorded:
            self._refuse(refusal)
            return
        self._ending.error_type = error_type_of_failure(error.failure)
        self._ending.error_message = error.detail
        self._answer(refusal)
        self._settle("upstream_error")

    # --- endings

    def _refuse(self, refusal: Refusal) -> None:
        """An answer of ours before anything was recorded."""
        self._worker.metrics.refused(refusal.reason)
        self._answer(refusal)
        self._finish()

    def _reject(self, refusal: Refusal) -> None:
        """An answer of ours to a request that is recorded but did not go upstream."""
        self._ending.error_type = error_type_of(refusal.status, self._admission.provider.family)
        self._ending.error_message = refusal.message
        self._answer(refusal)
        self._settle("rejected")

    def _answer(self, refusal: Refusal) -> None:
        self._ending.status = refusal.status
        snapshot = self._worker.snapshot
        provider = snapshot.providers.get(self._target.provider) if snapshot is not None else None
        shape = shape_of(self._target.rest, provider.family if provider is not None else None)
        body = error_body(shape, refusal.status, refusal.message)
        self._connection.answer(refusal_head(refusal, len(body), self._id_line() + b"\r\n"), body)

    def client_gone(self) -> None:
        if self._state == _DONE:
            return
        self._stop_upstream()
        if self._recorded:
            self._settle("client_closed")
        else:
            self._finish()

    def interrupt(self) -> None:
        """The worker ends before the request does."""
        if self._state == _DONE:
            return
        self._stop_upstream()
        self._connection.reset()
        if self._recorded:
            self._settle("interrupted")
        else:
            self._finish()

    def _stop_upstream(self) -> None:
        if self._connecting is not None:
            self._connecting.cancel()
            self._connecting = None
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            upstream.abort()

    def _settle(self, outcome: Outcome) -> None:
        """Write the end of a recorded request, count it, let go of it."""
        if not self._recorded:
            self._finish()
            return
        if self._state == _DONE:
            return
        ended_ns = self._stages["end"] = perf_counter_ns()
        worker = self._worker
        provider = self._admission.provider
        ending = self._ending
        ending.outcome = outcome
        facts = self._observer.finish() if self._observer is not None else None
        if facts is not None and facts.error is not None:
            self._take_error(facts.error)
        elif outcome == "upstream_error" and ending.error_type is None:
            ending.error_type = error_type_of(ending.status, provider.family)
        elif outcome == "client_closed":
            ending.error_type = "unknown"
        if facts is not None and outcome == "completed" and not facts.complete and not facts.unparsed:
            self._notes += ("the answer ended without the format's own end",)
        start = self._start
        self._append_end(
            end_record(
                self.id,
                time_ns() // 1000,
                ending,
                hint=self._hint,
                facts=facts,
                tool_results=self._facts.tool_results,
                trace=self._trace(),
                content="none" if worker.journal.shed_content else worker.settings.record_content,
            )
        )
        worker.metrics.ended(
            provider.name,
            start.model,
            start.route,
            start.client,
            status=ending.status,
            completed=ending.outcome == "completed",
            seconds=(ended_ns - self._t0) / 1e9,
            prompted=start.prompt is not None,
            facts=facts,
        )
        self._finish()

    def _take_error(self, error: ProviderError) -> None:
        """An error that the answer itself speaks of."""
        ending = self._ending
        wire_format = self._admission.route.format
        assert wire_format is not None
        if ending.outcome == "completed":
            ending.outcome = "upstream_error"
        if ending.error_type is None:
            ending.error_type = classify(wire_format, ending.status, error)
        if not ending.error_message:
            ending.error_message = without_credentials(error.message or error.type, self._upstream_head)

    def _append_end(self, record: InterceptionEnd) -> None:
        journal = self._worker.journal
        try:
            journal.append_end(encode_record(record))
        except NotDurable as error:
            self._worker.log_journal_failure(error)
        except JournalError as error:
            self._worker.log_journal_failure(error)
            try:
                journal.append_end(encode_record(without_content(record)))
            except JournalError as again:
                self._worker.log_journal_failure(again)

    def _finish(self) -> None:
        self._state = _DONE
        self._release_body()
        if self._inflight is not None:
            self._inflight[0] -= 1
            self._inflight = None
        self._observer = None
        self._worker.ended(self)

    def _release_body(self) -> None:
        self._body = b""
        if self._body_size:
            self._worker.release_body(self._body_size)
            self._body_size = 0

    # --- flow

    def client_paused(self) -> None:
        if self._upstream is not None:
            self._upstream.pause_reading()

    def client_resumed(self) -> None:
        if self._upstream is not None:
            self._upstream.resume_reading()

    def client_stalled(self) -> None:
        self._notes += ("the client stopped reading",)
        connection = self._connection
        self.client_gone()
        connection.reset()

    def request_paused(self) -> None:
        """The body is sent whole; the transport keeps it until it is taken."""

    def request_resumed(self) -> None: ...

    # --- the decision trace

    def _attempted(self, status: int, error: str) -> None:
        at_us = (self._sent_ns - self._t0) // 1000
        self._attempts += (Attempt(self._hint, self._reused, status, error, at_us),)

    def _trace(self) -> Trace:
        t0 = self._t0
        return Trace(
            [(self._hint, "")] if self._hint else [],
            list(self._edits),
            list(self._attempts),
            {name: (at - t0) // 1000 for name, at in self._stages.items()},
            list(self._notes),
        )


def _bad_request(error: ValueError) -> Refusal:
    """The answer to a body or header that cannot be read."""
    if isinstance(error, DecodedTooLongError):
        return Refusal(413, "body_too_large", str(error))
    if isinstance(error, UnsupportedCodingError):
        return Refusal(415, "unknown_coding", str(error))
    return Refusal(400, "bad_request", str(error))
