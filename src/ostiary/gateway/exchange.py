"""One data-plane request, from its head to its settlement (design §5): the client's side of it.

    IDENTIFY ─▶ BODY ─▶ CHECK ─▶ ANSWER ─▶ DONE
        └─────────┴───────┴─ refused ───────▲

Rules
- Where a token is cached and a connection idle, all of it runs in plain calls from the client's `data_received` to the
  upstream's write. What must wait (a token to look up, a connection to make) calls back into the next step.
- Nothing of a recorded request goes upstream before its start is in the journal; from there on exactly one end follows.
- Whoever ends the request goes through `_settle` or `_refuse`, once.
- Whatever is raised on the way ends this request and nothing else (`failed`): who calls from outside is not told.
"""

from hashlib import sha256
from time import monotonic, perf_counter_ns, time_ns
from typing import TYPE_CHECKING, Final

import msgspec

from ostiary.core.agents import AgentFirewall, AgentFirewallError, agent_firewall, detect_client, session_id
from ostiary.core.identity import Identity
from ostiary.core.ids import new_id
from ostiary.core.records import Outcome, Trace
from ostiary.http1.errors import Failure, UpstreamError
from ostiary.http1.head import UNTIL_CLOSE, RequestHead, ResponseHead
from ostiary.http1.server import ClientConnection
from ostiary.wire.content_coding import CodingError, decode_body
from ostiary.wire.errors import error_observer
from ostiary.wire.facts import Format, RequestError, RequestFacts, ResponseFacts
from ostiary.wire.formats import observer_for, read_request
from ostiary.wire.include_usage import UsageChunkFilter, splice_include_usage
from ostiary.wire.observer import Observer, StreamObserver

from . import decide
from .answers import ChangedAnswer
from .authorizations import Answer
from .dump import Attempt as DumpedAttempt
from .dump import Dumps
from .failures import CUT_BY_US, INTERNAL
from .heads import client_head, server_timing, upstream_head
from .interception import Interception
from .journal import JournalError
from .keep_alive import KeepAlive
from .providers import RuntimeKey
from .providers.adapter import AdapterError, Prepared
from .recording import (
    Ending,
    error_type_of,
    error_type_of_failure,
    passed_through,
    start_record,
    upstream_failed,
)
from .refusals import Refusal, error_body, refusal_head, shape_of
from .routes import Target
from .telemetry import Telemetry
from .upload import Upload, is_form
from .upstream_call import UpstreamCall

if TYPE_CHECKING:
    from .worker import Worker

_IDENTIFY: Final = 0
_BODY: Final = 1
_CHECK: Final = 2
_ANSWER: Final = 3
_DONE: Final = 4

_LARGE_BODY: Final = 4 * 1024 * 1024
"""Bodies from here on are checked one at a time (design §6)."""


_MODEL_MAX: Final = 256
"""Characters of a model's name by which records, breakers and pools know it: a longer one is too much for an index."""

_NOTHING: Final[frozenset[bytes]] = frozenset()
_BODILESS: Final = frozenset((204, 304))
_LOST: Final = Trace(notes=["what the answer said was lost to an internal error of the gateway"])


class Exchange:
    """Implements `http1.interfaces.ServerExchange`; its `UpstreamCall` is the other side.

    What a request does not have keeps the class's default: most requests set few of these.
    """

    admission: decide.Admission
    may_change: bool = False
    """The answer may have to differ from what the upstream sends."""
    _body_size: int = 0
    _closes: bool = False
    """The client has been told, or will be, that its connection ends."""
    _call: UpstreamCall | None = None
    _edits: tuple[str, ...] = ()
    _format: Format | None = None
    """None: nothing is recorded."""
    _identity: Identity
    _large_body: bytes = b""
    """One that waits for its turn to be checked."""
    _limited: bool = False
    _misplaced: frozenset[bytes]
    _no_memory: bool = False
    _notes: tuple[str, ...] = ()
    _own: decide.Credential | None = None
    _pinged: ChangedAnswer | None = None
    _presented: decide.Presented
    _record: Interception | None = None
    _splices_usage: bool = False
    _state: int = _IDENTIFY
    _upload: Upload | None = None

    def __init__(
        self,
        worker: "Worker",
        connection: ClientConnection,
        head: RequestHead,
        target: Target,
        admission: decide.Admission | None,
    ) -> None:
        self.t0 = perf_counter_ns()
        self.worker = worker
        self.connection = connection
        self.head = head
        self._target = target
        self._located = admission
        self._ending = Ending()
        self._misplaced = _NOTHING
        self.stages: dict[str, int] = {}
        self.id = new_id()

    # --- identify, route, admit

    def begin(self) -> None:
        """The head has been read."""
        try:
            presented = decide.credential_of(self.head.fields)
            if presented is None:
                self._refuse(decide.NO_TOKEN)
                return
            self._presented = presented
            digest = sha256(presented.token).digest()
            authorizations = self.worker.authorizations
            answer = authorizations.lookup(digest)
            self.connection.exchange = self
            if answer is None:
                authorizations.ask(digest, self._identified_later)
            else:
                self._identified(answer)
        except Exception as error:  # noqa: BLE001 - see the module's rules; and so below
            self.failed(error)

    def _identified_later(self, answer: Answer) -> None:
        if self._state != _IDENTIFY:
            return  # the client has gone in the meantime
        try:
            self._identified(answer)
        except Exception as error:  # noqa: BLE001
            self.failed(error)

    def _identified(self, answer: Answer) -> None:
        identity = answer if type(answer) is Identity else decide.identified(answer)
        if isinstance(identity, Refusal):
            self._refuse(identity)
            return
        self._identity = identity
        worker = self.worker
        head = self.head
        admission = self._located or worker.locate(head.path, self._target)
        if isinstance(admission, Refusal):
            self._refuse(admission)
            return
        self.admission = admission
        refusal = self._admit(admission)
        if refusal is not None:
            self._refuse(refusal)
            return
        self.stages["identify"] = perf_counter_ns()
        self._state = _BODY
        if admission.route.upload and self._format is not None and is_form(head.fields):
            self._upload = Upload(head)
            self.connection.stream()
        else:
            self.connection.collect(worker.settings.body_max_bytes, self._reserve)

    def _admit(self, admission: decide.Admission) -> Refusal | None:
        """Whether this request may go where its path leads, and with what; its place is taken."""
        worker = self.worker
        head = self.head
        presented = self._presented
        provider, route = admission.provider, admission.route
        refusal = decide.admit(admission, head.method, byok=presented.byok, allow_byok=worker.settings.allow_byok)
        if refusal is not None:
            return refusal
        if presented.byok or provider.brings_own:
            self._misplaced = decide.misplaced_tokens(head.fields, presented.token)
            own = decide.own_credential(provider, head.fields, self._misplaced)
            if isinstance(own, Refusal):
                return own
            self._own = own
        if head.minor == 0:
            return decide.HTTP_1_0
        limits = worker.limits
        if limits is not None:
            refusal = limits.enter(self._identity.api_key_id, monotonic())
            if refusal is not None:
                return refusal
            self._limited = True
        if route.kind != "metered" or head.method == b"POST":
            self._format = route.format
        return None

    # --- body

    def _reserve(self, size: int) -> bool:
        """Memory for the next part of a body. Not for what is only announced: that costs a client nothing."""
        if self.worker.reserve_body(size):
            self._body_size += size
            return True
        self._no_memory = True
        return False

    def request_body(self, body: bytes) -> None:
        self.stages["body"] = perf_counter_ns()
        self._state = _CHECK
        try:
            if self._format is None:
                self._pass_through(body)
            elif len(body) > _LARGE_BODY:
                self._large_body = body
                self.worker.check_large(self._check_large)
            else:
                self._check(body)
        except Exception as error:  # noqa: BLE001
            self.failed(error)

    def _check_large(self) -> None:
        """Its turn has come. A request that has ended in the meantime has let go of its body."""
        body, self._large_body = self._large_body, b""
        if self._state != _CHECK:
            return
        try:
            self._check(body)
        except Exception as error:  # noqa: BLE001
            self.failed(error)

    def request_body_too_large(self) -> None:
        if self._no_memory:
            self._refuse(decide.BODY_MEMORY)
            return
        self._refuse(decide.body_too_large(self.worker.settings.body_max_bytes))

    def request_piece(self, data: bytes, *, last: bool) -> None:
        upload = self._upload
        assert upload is not None
        call = self._call
        try:
            if upload.sent and call is not None:
                call.send_more(upload.framed(data, last=last), last=last)
            elif upload.take(data, last=last):
                upload.started = True
                self.connection.pause_reading()
                self._begin_upload(upload)
        except Exception as error:  # noqa: BLE001
            self.failed(error)

    def request_broken(self, reason: str) -> None:
        self._break_off(Refusal(400, "bad_framing", f"The request body's framing is broken: {reason}."))

    def request_stalled(self) -> None:
        self._break_off(Refusal(408, "body_timeout", "The request body stopped coming."))

    def request_too_slow(self) -> None:
        self._break_off(decide.BODY_TOO_SLOW)

    def _break_off(self, refusal: Refusal) -> None:
        """The rest of the body will not come."""
        if self._call is not None:
            self._call.stop()
        if self._state == _ANSWER:
            self._notes += (refusal.message,)
            self.connection.abort()
            self._settle("client_closed")
        else:
            self.reject(refusal)

    # --- check, record start

    def _check(self, body: bytes) -> None:
        fields = self.head.fields
        worker = self.worker
        plain = body
        coding = fields.get(b"content-encoding")
        admission = self.admission
        adapter = admission.provider.adapter
        prepared = refusal = None
        wire_format = self._format
        assert wire_format is not None
        try:
            if coding is not None:
                plain = decode_body(coding, plain, worker.settings.body_max_bytes)
            facts = read_request(wire_format, plain, worker.settings.record_content)
            firewall = agent_firewall(fields)
            if not 0 < len(facts.model) <= _MODEL_MAX:
                facts = self._named(facts)
            refusal = decide.check(facts, admission.route)
            if adapter is not None and refusal is None:
                prepared = adapter.prepare(admission.route, self.head.query, fields, plain, facts)
                facts = msgspec.structs.replace(facts, model=prepared.model[:_MODEL_MAX])
        except (RequestError, CodingError, AgentFirewallError, AdapterError) as error:
            self._refuse(decide.bad_request(error))
            return
        if refusal is not None:
            self._refuse(refusal)
            return
        call = self._call_upstream(facts, firewall)
        if call is None:
            return
        sent = self._edit(body, plain, facts, prepared)
        if coding is not None and not self._reserve(max(0, len(sent) - len(body))):
            self.reject(decide.BODY_MEMORY)  # it is kept as it is sent, and that may be a thousand times what came
            return
        call.start(sent, prepared)

    def _named(self, facts: RequestFacts) -> RequestFacts:
        """With the model that the path names, where the body names none; and no more of a name than is kept."""
        model = facts.model[:_MODEL_MAX] or self.admission.model
        return msgspec.structs.replace(facts, model=model)

    def _begin_upload(self, upload: Upload) -> None:
        self.stages["body"] = perf_counter_ns()
        self._state = _CHECK
        try:
            firewall = agent_firewall(self.head.fields)
        except AgentFirewallError as error:
            self._refuse(decide.bad_request(error))
            return
        call = self._call_upstream(self._named(RequestFacts(upload.model, upload.stream)), firewall)
        if call is not None:
            call.start(b"")

    def upload(self) -> None:
        """The upstream is there: let it have the body."""
        upload, call = self._upload, self._call
        assert upload is not None
        assert call is not None
        beginning = upload.beginning()
        self.connection.resume_reading()
        call.send_more(beginning, last=upload.ended)

    def _call_upstream(self, facts: RequestFacts, firewall: AgentFirewall | None) -> UpstreamCall | None:
        """Record that the request goes upstream; None when it does not, and has been answered."""
        fields = self.head.fields
        client = detect_client(fields)
        session = session_id(client, fields, facts.user_id)
        self._call = call = UpstreamCall(self, self._own, facts.model, session or self._identity.api_key_id)
        call.replayable = self._upload is None
        refusal = call.choose()
        self.stages["check"] = perf_counter_ns()
        if not self._record_start(facts, call.hint, client, session, firewall):
            return None
        if refusal is not None:
            self.reject(refusal)
            return None
        return call

    def _record_start(
        self, facts: RequestFacts, hint: str, client: str, session: str, firewall: AgentFirewall | None
    ) -> bool:
        worker = self.worker
        started = start_record(
            self.id,
            (time_ns() - perf_counter_ns() + self.t0) // 1000,
            self._identity,
            self.admission,
            ("centralized" if self._own is None else "byok", hint),
            self.head.fields,
            facts,
            client=client,
            session=session,
            revision=worker.revision,
            with_prompt=worker.settings.record_content != "none" and not worker.journal.shed_content,
            firewall=firewall,
        )
        try:
            self._record = record = Interception(worker, started, facts.tool_results)
        except JournalError as error:
            worker.log_journal_failure(error)
            self._refuse(decide.NOT_RECORDED)
            return False
        self.stages["record"] = perf_counter_ns()
        if not record.durable:
            self.reject(decide.NOT_RECORDED)  # its start stands in the journal: an end has to follow
        return record.durable

    # --- edit, send

    def _edit(self, body: bytes, plain: bytes, facts: RequestFacts, prepared: Prepared | None) -> bytes:
        """The body to send: the client's own bytes but for declared splices."""
        worker = self.worker
        provider = self.admission.provider
        self.may_change = provider.adapter is not None or worker.settings.sse_keepalive > 0
        if prepared is not None:
            self._edits = prepared.edits
            edited = prepared.body
        elif facts.stream and not facts.include_usage and provider.splice_usage and self._format == "chat_completions":
            self._splices_usage = self.may_change = True
            self._edits = ("stream_options.include_usage: added; its event is withheld from the client",)
            edited = splice_include_usage(plain, facts)
        else:
            return body
        if b"content-encoding" in self.head.fields:
            self._edits += ("content-encoding: removed, the edited body is sent plain",)
        return edited

    def _pass_through(self, body: bytes) -> None:
        admission = self.admission
        provider = admission.provider
        self._call = call = UpstreamCall(self, self._own, "", self._identity.api_key_id)
        refusal = call.choose()
        prepared = None
        if refusal is None and provider.adapter is not None:
            try:
                prepared = provider.adapter.prepare(admission.route, self.head.query, self.head.fields, body, None)
                body = prepared.body
                self.may_change = True
            except AdapterError as error:
                refusal = decide.bad_request(error)
        if refusal is not None:
            self._refuse(refusal)
            return
        self.worker.metrics.passed_through(provider.name, admission.route.label, self.head.method)
        call.start(body, prepared)

    def upstream_head(self, key: RuntimeKey | None, prepared: Prepared | None, signature: bytes, length: int) -> bytes:
        """The head of the next attempt."""
        upload = self._upload
        return upstream_head(
            self.head,
            self.admission,
            key,
            length if upload is None else upload.length,
            own=self._own is not None,
            misplaced=self._misplaced,
            reads_plain=self._splices_usage,
            prepared=prepared,
            lines_of_ours=signature,
            actor=self.worker.actor,
            identity=self._identity,
        )

    def dump(self, dumps: Dumps, number: int) -> DumpedAttempt:
        """Where the next attempt is dumped."""
        model = self._record.start.model if self._record is not None else None
        path = self._target.rest.decode("latin-1")
        name = self.admission.provider.name
        return dumps.attempt(name, model, path, self.id, number, time_ns() // 1_000_000)

    # --- the answer

    def answering(self, head: ResponseHead) -> tuple[Observer | None, ChangedAnswer | None]:
        """This answer goes to the client: who reads it, and how it is changed. `client_head` has to follow."""
        self._release_body()
        self._ending.status = head.status
        if head.status in _BODILESS or self.head.method == b"HEAD":
            return None, None  # a chunk would be taken for the next answer
        wire_format = self._format
        fields = head.fields
        coding = fields.get(b"content-encoding", b"")
        content_type = fields.get(b"content-type", b"")
        transform = None
        adapter = self.admission.provider.adapter
        if adapter is not None:
            transform = adapter.transform(self.admission.route, head)
            if transform is not None:
                self._edits += (transform.edit,)
                content_type = transform.content_type or content_type
        observer = None
        if wire_format is not None:
            memory = self.worker.answer_memory
            observer = observer_for(wire_format, content_type, self.worker.settings.record_content, coding, memory)
            if observer is None and head.status >= 400:
                observer = error_observer(wire_format, content_type, coding, memory)
        if not self.may_change and head.framing != UNTIL_CLOSE:
            return observer, None
        stream = not coding and type(observer) is StreamObserver
        usage_filter = UsageChunkFilter() if stream and self._splices_usage else None
        interval = self.worker.settings.sse_keepalive
        keep_alive = KeepAlive(interval) if stream and interval > 0 and wire_format == "messages" else None
        if transform is None and usage_filter is None and keep_alive is None and head.framing != UNTIL_CLOSE:
            return observer, None
        changed = ChangedAnswer(
            self.connection.write, observer, transform=transform, usage_filter=usage_filter, keep_alive=keep_alive
        )
        if keep_alive is not None:
            self._pinged = changed
            self.worker.pinged.add(changed)
        return observer, changed

    def client_head(self, head: ResponseHead, changed: ChangedAnswer | None) -> bytes:
        """The head of the answer to the client, to be written at once."""
        sent = client_head(
            head,
            self._id_line(),
            byok=self._presented.byok,
            rechunked=changed is not None,
            content_type=b"" if changed is None else changed.content_type,
            keeps_client=self._keeps_client(),
            timing=server_timing(self.stages, self.t0) if b"x-ostiary-timing" in self.head.fields else b"",
        )
        self._state = _ANSWER
        return sent

    def _id_line(self) -> bytes:
        name = b"x-ostiary-interception-id: " if self._record is not None else b"x-ostiary-request-id: "
        return name + self.id.encode("ascii")

    def _keeps_client(self) -> bool:
        if self._upload is not None and not self.connection.body_read:
            self._closes = True  # an answer before the end of the request's body leaves no way to go on
        return not self._closes and self.head.keep_alive and not self.worker.draining

    def answered(self) -> None:
        """The answer is complete."""
        self.connection.finish(keep=self._keeps_client())
        self._settle("completed" if self._ending.status < 400 else "upstream_error")

    def cut(self, error: UpstreamError) -> None:
        """The answer broke off."""
        self._ending.error_type = error_type_of_failure(error.failure)
        self._ending.error_message = error.detail
        self.connection.abort()
        self._settle("upstream_error")

    def unreachable(self, error: UpstreamError) -> None:
        """There is no answer."""
        name = self.admission.provider.name
        status = 504 if error.failure is Failure.HEAD_TIMEOUT else 502
        refusal = Refusal(status, error.failure.value, f"The provider {name!r} could not be reached: {error.detail}.")
        self._ending.error_type = error_type_of_failure(error.failure)
        self._ending.error_message = error.detail
        if self._record is None:
            self.worker.metrics.refused(refusal.reason)
        self._answer(refusal)
        self._settle("upstream_error")

    # --- endings

    def _refuse(self, refusal: Refusal) -> None:
        """An answer of ours before anything was recorded."""
        self.worker.metrics.refused(refusal.reason)
        self._answer(refusal)
        self._finish(None)

    def reject(self, refusal: Refusal) -> None:
        """An answer of ours to a request that did not go upstream."""
        if self._record is None:
            self._refuse(refusal)
            return
        self._ending.error_type = error_type_of(refusal.status, self.admission.provider.family)
        self._ending.error_message = refusal.message
        self._answer(refusal)
        self._settle("rejected")

    def _answer(self, refusal: Refusal) -> None:
        self._ending.status = refusal.status
        snapshot = self.worker.snapshot
        provider = snapshot.providers.get(self._target.provider) if snapshot is not None else None
        shape = shape_of(self._target.rest, provider.family if provider is not None else None)
        body = error_body(shape, refusal)
        self.connection.answer(refusal_head(refusal, len(body), self._id_line() + b"\r\n"), body)

    def failed(self, error: BaseException) -> None:
        """A mistake of ours: the client gets a 500, or an answer that is visibly cut, and the record its end."""
        worker = self.worker
        worker.failures.log(error, self.id)
        if self._state == _DONE:
            return
        try:
            self._stop_call()
            if self._state == _ANSWER:
                self._ending.error_type = "server_error"
                self._ending.error_message = CUT_BY_US
                self.connection.abort()
                self._settle("interrupted")
            else:
                self.reject(INTERNAL)
        except Exception as again:  # noqa: BLE001
            worker.failures.log(again, self.id)
            self.connection.reset()
            self._settle("interrupted")

    def client_gone(self) -> None:
        if self._state == _DONE:
            return
        self._stop_call()
        self._settle("client_closed")

    def interrupt(self) -> None:
        """The worker ends before the request does."""
        if self._state == _DONE:
            return
        self._stop_call()
        self.connection.reset()
        self._settle("interrupted")

    def _stop_call(self) -> None:
        if self._call is not None:
            try:
                self._call.stop()
            except Exception as error:  # noqa: BLE001
                self.worker.failures.log(error, self.id)

    def _settle(self, outcome: Outcome) -> None:
        """Write the end of a recorded request, count it, let go of it. Never raises."""
        if self._state == _DONE:
            return
        worker = self.worker
        ending = self._ending
        ending.outcome = outcome
        call = self._call
        record = self._record
        if record is None or call is None:
            if call is not None and worker.telemetry is not None:
                self._tell_of_passthrough(call, worker.telemetry)
            exhausted = call is not None and call.exhausted
            self._finish(upstream_failed(ending, own=self._own is not None, exhausted=exhausted))
            return
        ended_ns = self.stages["end"] = perf_counter_ns()
        try:
            facts, trace = self._facts(call), self._trace(call)
        except Exception as error:  # noqa: BLE001
            worker.failures.log(error, self.id)
            facts, trace = None, _LOST
        try:
            ended = record.end(ending, hint=call.hint, facts=facts, trace=trace, seconds=(ended_ns - self.t0) / 1e9)
            if worker.telemetry is not None:
                worker.telemetry.ended(record.start, ended, self.head, self.admission.provider)
        except Exception as error:  # noqa: BLE001
            worker.failures.log(error, self.id)
        self._finish(upstream_failed(ending, own=self._own is not None, exhausted=call.exhausted))

    def _tell_of_passthrough(self, call: UpstreamCall, telemetry: Telemetry) -> None:
        """There is no record of it, but it has spans."""
        fields = self.head.fields
        try:
            ended_ns = self.stages["end"] = perf_counter_ns()
            now_us = time_ns() // 1000
            client = detect_client(fields)
            start, end = passed_through(
                self.id,
                (now_us - (ended_ns - self.t0) // 1000, now_us),
                self._identity,
                self.admission,
                ("centralized" if self._own is None else "byok", call.hint),
                fields,
                client=client,
                session=session_id(client, fields, ""),
                ending=self._ending,
                trace=self._trace(call),
            )
            telemetry.ended(start, end, self.head, self.admission.provider)
        except Exception as error:  # noqa: BLE001
            self.worker.failures.log(error, self.id)

    def _facts(self, call: UpstreamCall) -> ResponseFacts | None:
        """What the answer has said, into the ending too."""
        facts = call.observer.finish() if call.observer is not None else None
        ending = self._ending
        if facts is not None and facts.error is not None and self._format is not None:
            ending.take_error(self._format, facts.error, call.sent_head)
        elif ending.outcome == "upstream_error" and ending.error_type is None:
            ending.error_type = error_type_of(ending.status, self.admission.provider.family)
        elif ending.outcome == "client_closed":
            ending.error_type = "unknown"
        if facts is not None and ending.outcome == "completed":
            if facts.problem:
                self._notes += (f"the answer could not be read: {facts.problem}",)
            elif not facts.complete and not facts.unparsed:
                self._notes += ("the answer ended without the format's own end",)
        return facts

    def _finish(self, failed: bool | None) -> None:
        """`failed`: whether the upstream did; None when nothing can be said of it."""
        self._state = _DONE
        self._release_body()
        worker = self.worker
        if self._limited and worker.limits is not None:
            worker.limits.leave()
        if self._pinged is not None:
            worker.pinged.discard(self._pinged)
        call, self._call = self._call, None  # the two would be garbage in a circle
        worker.ended(self)
        if call is not None:
            try:
                call.settled(failed=failed)
            except Exception as error:  # noqa: BLE001
                worker.failures.log(error, self.id)

    def _release_body(self) -> None:
        if self._body_size:
            self._large_body = b""
            self.worker.release_body(self._body_size)
            self._body_size = 0

    # --- flow

    def client_paused(self) -> None:
        if self._call is not None:
            self._call.pause()

    def client_resumed(self) -> None:
        if self._call is not None:
            self._call.resume()

    def client_stalled(self) -> None:
        self._notes += ("the client stopped reading",)
        connection = self.connection
        self.client_gone()
        connection.reset()

    # --- the decision trace

    def _trace(self, call: UpstreamCall) -> Trace:
        t0 = self.t0
        candidates = list(call.passed_over)
        if call.hint:
            candidates.append((call.hint, ""))
        return Trace(
            candidates,
            list(self._edits),
            list(call.attempts),
            {name: (at - t0) // 1000 for name, at in self.stages.items()},
            list(self._notes),
        )
