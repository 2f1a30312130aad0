"""One data-plane request, from its head to where it goes upstream (design §5): the client's side of it.

    IDENTIFY ─▶ BODY ─▶ CHECK ─▶ REPLY ─▶ over
        └─────────┴───────┴─ refused ──────▲

Rules
- Where a token is cached and a connection idle, all of it runs in plain calls from the client's `data_received` to the
  upstream's write. What must wait (a token to look up, a connection to make) calls back into the next step.
- A request that does not go upstream is refused (`refuse`) and leaves no record. From where it is to go upstream on its
  `Reply` has the answer, the record and the end.
- Whatever is raised on the way ends this request and nothing else (`with exchange`): who calls from outside is not told.
"""

from hashlib import sha256
from time import monotonic, perf_counter_ns, time_ns
from types import TracebackType
from typing import TYPE_CHECKING, Final

import msgspec

from ostiary.core.agents import AgentFirewall, AgentFirewallError, agent_firewall, detect_client, session_id
from ostiary.core.identity import Identity
from ostiary.core.ids import new_id
from ostiary.core.records import Outcome
from ostiary.http1.head import RequestHead
from ostiary.http1.server import ClientConnection
from ostiary.wire.content_coding import CodingError, decode_body
from ostiary.wire.facts import Format, RequestError, RequestFacts
from ostiary.wire.formats import read_request
from ostiary.wire.include_usage import splice_include_usage

from . import decide
from .authorizations import Answer
from .clearance import Clearance
from .dump import Attempt as DumpedAttempt
from .dump import Dumps
from .failures import INTERNAL
from .heads import upstream_head
from .providers import RuntimeKey
from .providers.adapter import AdapterError, Prepared
from .refusals import Refusal, error_body, refusal_head, shape_of
from .reply import Reply
from .routes import Target
from .upload import Upload, is_form
from .upstream_call import UpstreamCall

if TYPE_CHECKING:
    from .worker import Worker

_LARGE_BODY: Final = 4 * 1024 * 1024
"""Bodies from here on are checked one at a time (design §6)."""

_MODEL_MAX: Final = 256
"""Characters of a model's name by which records, breakers and pools know it: a longer one is too much for an index."""

_NOTHING: Final[frozenset[bytes]] = frozenset()


class Exchange:
    """Implements `http1.interfaces.ServerExchange`; its `UpstreamCall` is the other side, its `Reply` the way back.

    What a request does not have keeps the class's default: most requests set few of these.
    """

    admission: decide.Admission
    call: UpstreamCall | None = None
    edits: tuple[str, ...] = ()
    """What is changed of the request and of its answer, for the trace."""
    format: Format | None = None
    """None: nothing is recorded."""
    identity: Identity
    over: bool = False
    """It ends, or has ended."""
    own: decide.Credential | None = None
    """The client's own credential, which goes upstream in place of one of ours."""
    presented: decide.Presented
    splices_usage: bool = False
    """The client has not asked for the usage, and does not get it."""
    upload: Upload | None = None
    _body_size: int = 0
    _large_body: bytes = b""
    """One that waits for its turn to be checked."""
    _limited: bool = False
    _misplaced: frozenset[bytes]
    _no_memory: bool = False
    _reply: Reply | None = None

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
        self._misplaced = _NOTHING
        self.stages: dict[str, int] = {}
        self.id = new_id()

    # --- identify, route, admit

    def begin(self) -> None:
        """The head has been read."""
        with self:
            presented = decide.credential_of(self.head.fields)
            if presented is None:
                self.refuse(decide.NO_TOKEN)
                return
            self.presented = presented
            digest = sha256(presented.token).digest()
            authorizations = self.worker.authorizations
            answer = authorizations.lookup(digest)
            self.connection.exchange = self
            if answer is None:
                authorizations.ask(digest, self._identified_later)
            else:
                self._identified(answer)

    def _identified_later(self, answer: Answer) -> None:
        with self:
            if not self.over:  # or the client has gone in the meantime
                self._identified(answer)

    def _identified(self, answer: Answer) -> None:
        identity = answer if type(answer) is Identity else decide.identified(answer)
        if isinstance(identity, Refusal):
            self.refuse(identity)
            return
        self.identity = identity
        worker = self.worker
        head = self.head
        admission = self._located or worker.locate(head.path, self._target)
        if isinstance(admission, Refusal):
            self.refuse(admission)
            return
        self.admission = admission
        refusal = self._admit(admission)
        if refusal is not None:
            self.refuse(refusal)
            return
        self.stages["identify"] = perf_counter_ns()
        if admission.route.upload and self.format is not None and is_form(head.fields):
            self.upload = Upload(head)
            self.connection.stream()
        else:
            self.connection.collect(worker.settings.body_max_bytes, self._reserve)

    def _admit(self, admission: decide.Admission) -> Refusal | None:
        """Whether this request may go where its path leads, and with what; its place is taken."""
        worker = self.worker
        head = self.head
        presented = self.presented
        provider, route = admission.provider, admission.route
        refusal = decide.admit(admission, head.method, byok=presented.byok, allow_byok=worker.settings.allow_byok)
        if refusal is not None:
            return refusal
        if presented.byok or provider.brings_own:
            self._misplaced = decide.misplaced_tokens(head.fields, presented.token)
            own = decide.own_credential(provider, head.fields, self._misplaced)
            if isinstance(own, Refusal):
                return own
            self.own = own
        if head.minor == 0:
            return decide.HTTP_1_0
        limits = worker.limits
        if limits is not None:
            refusal = limits.enter(self.identity.api_key_id, monotonic())
            if refusal is not None:
                return refusal
            self._limited = True
        if route.kind != "metered" or head.method == b"POST":
            self.format = route.format
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
        with self:
            self.stages["body"] = perf_counter_ns()
            if self.format is None:
                self._pass_through(body)
            elif len(body) > _LARGE_BODY:
                self._large_body = body
                self.worker.check_large(self._check_large)
            else:
                self._check(body)

    def _check_large(self) -> None:
        """Its turn has come. A request that has ended in the meantime has let go of its body."""
        body, self._large_body = self._large_body, b""
        with self:
            if not self.over:
                self._check(body)

    def request_body_too_large(self) -> None:
        with self:
            limit = self.worker.settings.body_max_bytes
            self.refuse(decide.BODY_MEMORY if self._no_memory else decide.body_too_large(limit))

    def request_piece(self, data: bytes, *, last: bool) -> None:
        with self:
            upload = self.upload
            assert upload is not None
            call = self.call
            if upload.sent and call is not None:
                call.send_more(upload.framed(data, last=last), last=last)
            elif upload.take(data, last=last):
                upload.started = True
                self.connection.pause_reading()
                self._begin_upload(upload)

    def request_broken(self, reason: str) -> None:
        self._break_off(Refusal(400, "bad_framing", f"The request body's framing is broken: {reason}."))

    def request_stalled(self) -> None:
        self._break_off(Refusal(408, "body_timeout", "The request body stopped coming."))

    def request_too_slow(self) -> None:
        self._break_off(decide.BODY_TOO_SLOW)

    def _break_off(self, refusal: Refusal) -> None:
        """The rest of the body will not come."""
        with self:
            self._stop_call()
            if self._reply is not None:
                self._reply.broken_off(refusal)
            else:
                self.refuse(refusal)

    # --- check

    def _check(self, body: bytes) -> None:
        fields = self.head.fields
        worker = self.worker
        plain = body
        coding = fields.get(b"content-encoding")
        admission = self.admission
        adapter = admission.provider.adapter
        prepared = refusal = None
        wire_format = self.format
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
            self.refuse(decide.bad_request(error))
            return
        if refusal is not None:
            self.refuse(refusal)
            return
        reply = self._to_be_sent(facts, firewall)
        if reply is None:
            return
        sent = self._edit(body, plain, facts, prepared)
        if coding is not None and not self._reserve(max(0, len(sent) - len(body))):
            reply.reject(decide.BODY_MEMORY)  # it is kept as it is sent, and that may be a thousand times what came
            return
        self._send(reply, sent, prepared)

    def _named(self, facts: RequestFacts) -> RequestFacts:
        """With the model that the path names, where the body names none; and no more of a name than is kept."""
        model = facts.model[:_MODEL_MAX] or self.admission.model
        return msgspec.structs.replace(facts, model=model)

    def _begin_upload(self, upload: Upload) -> None:
        self.stages["body"] = perf_counter_ns()
        try:
            firewall = agent_firewall(self.head.fields)
        except AgentFirewallError as error:
            self.refuse(decide.bad_request(error))
            return
        reply = self._to_be_sent(self._named(RequestFacts(upload.model, upload.stream)), firewall)
        if reply is not None:
            self._send(reply, b"", None)

    def _to_be_sent(self, facts: RequestFacts, firewall: AgentFirewall | None) -> Reply | None:
        """Choose a credential, and record that the request goes upstream. None: it does not, and has been answered."""
        fields = self.head.fields
        client = detect_client(fields)
        session = session_id(client, fields, facts.user_id)
        self._reply = reply = Reply(self, self._clearance(facts.model, session))
        refusal = reply.clearance.choose()
        self.stages["check"] = perf_counter_ns()
        if not reply.record_start(facts, client, session, firewall):
            return None
        if refusal is not None:
            reply.reject(refusal)
            return None
        return reply

    def _clearance(self, model: str, session: str) -> Clearance:
        session = session or self.identity.api_key_id
        return Clearance(self.worker, self.admission, self.own, model, session, try_suspects=self.upload is None)

    # --- edit, send

    def _edit(self, body: bytes, plain: bytes, facts: RequestFacts, prepared: Prepared | None) -> bytes:
        """The body to send: the client's own bytes but for declared splices."""
        provider = self.admission.provider
        if prepared is not None:
            self.edits = prepared.edits
            edited = prepared.body
        elif facts.stream and not facts.include_usage and provider.splice_usage and self.format == "chat_completions":
            edited = splice_include_usage(plain, facts)
            if edited == plain:  # what it has there is left to the provider to refuse
                return body
            self.splices_usage = True
            self.edits = ("stream_options.include_usage: added; its event is withheld from the client",)
        else:
            return body
        if b"content-encoding" in self.head.fields:
            self.edits += ("content-encoding: removed, the edited body is sent plain",)
        return edited

    def _pass_through(self, body: bytes) -> None:
        admission = self.admission
        provider = admission.provider
        self._reply = reply = Reply(self, self._clearance("", ""))
        refusal = reply.clearance.choose()
        prepared = None
        if refusal is None and provider.adapter is not None:
            try:
                prepared = provider.adapter.prepare(admission.route, self.head.query, self.head.fields, body, None)
                body = prepared.body
            except AdapterError as error:
                refusal = decide.bad_request(error)
        if refusal is not None:
            self.refuse(refusal)
            return
        self.worker.metrics.passed_through(provider.name, admission.route.label, self.head.method)
        self._send(reply, body, prepared)

    def _send(self, reply: Reply, body: bytes, prepared: Prepared | None) -> None:
        self.call = call = UpstreamCall(self, reply, body, prepared, replayable=self.upload is None)
        reply.clearance.ask(call)

    def send_upload(self) -> None:
        """The upstream is there: let it have the body."""
        upload, call = self.upload, self.call
        assert upload is not None
        assert call is not None
        beginning = upload.beginning()
        self.connection.resume_reading()
        call.send_more(beginning, last=upload.ended)

    def upstream_head(self, key: RuntimeKey | None, prepared: Prepared | None, signature: bytes, length: int) -> bytes:
        """The head of the next attempt."""
        upload = self.upload
        return upstream_head(
            self.head,
            self.admission,
            key,
            length if upload is None else upload.length,
            own=self.own is not None,
            misplaced=self._misplaced,
            reads_plain=self.splices_usage,
            prepared=prepared,
            lines_of_ours=signature,
            actor=self.worker.actor,
            identity=self.identity,
        )

    def dump(self, dumps: Dumps, number: int) -> DumpedAttempt:
        """Where the next attempt is dumped."""
        record = self._reply.record if self._reply is not None else None
        model = record.start.model if record is not None else None
        path = self._target.rest.decode("latin-1")
        name = self.admission.provider.name
        return dumps.attempt(name, model, path, self.id, number, time_ns() // 1_000_000)

    # --- the end

    def refuse(self, refusal: Refusal) -> None:
        """An answer of ours, and no record."""
        self.worker.refusals.note(refusal, self.id, self.head.path)
        self.answer(refusal)
        self.finish(None)

    def answer(self, refusal: Refusal) -> None:
        """An answer of ours, in the words of the provider that the client thinks it speaks to."""
        snapshot = self.worker.snapshot
        provider = snapshot.providers.get(self._target.provider) if snapshot is not None else None
        shape = shape_of(self._target.rest, provider.family if provider is not None else None)
        body = error_body(shape, refusal)
        self.connection.answer(refusal_head(refusal, len(body), self.id_line() + b"\r\n"), body)

    def id_line(self) -> bytes:
        """Under which name the client is told our id."""
        reply = self._reply
        recorded = reply is not None and reply.record is not None
        return (b"x-ostiary-interception-id: " if recorded else b"x-ostiary-request-id: ") + self.id.encode("ascii")

    def client_gone(self) -> None:
        if not self.over:
            self._stop_call()
            self._end("client_closed")

    def interrupt(self) -> None:
        """The worker ends before the request does."""
        if not self.over:
            self._stop_call()
            self.connection.reset()
            self._end("interrupted")

    def _end(self, outcome: Outcome) -> None:
        """Without an answer."""
        if self._reply is not None:
            self._reply.settle(outcome)
        elif not self.over:
            self.finish(None)

    def _stop_call(self) -> None:
        if self.call is not None:
            try:
                self.call.stop()
            except Exception as error:  # noqa: BLE001 - a call that cannot be stopped ends all the same
                self.worker.failures.log(error, self.id)

    def finish(self, failed: bool | None) -> None:
        """Let go of everything. `failed`: whether the upstream did; None when nothing can be said of it."""
        self.over = True
        self.release_body()
        worker = self.worker
        if self._limited and worker.limits is not None:
            worker.limits.leave()
        call = self.call
        self.call = self._reply = None  # they would be garbage in a circle
        worker.ended(self)
        if call is not None:
            with self:
                call.settled(failed=failed)

    def release_body(self) -> None:
        """The request is not sent once more."""
        if self._body_size:
            self._large_body = b""
            self.worker.release_body(self._body_size)
            self._body_size = 0

    # --- mistakes of ours

    def __enter__(self) -> None:
        """`with exchange:` around whatever is called from outside: what is raised there ends the exchange (`failed`), and
        is not told to who called."""

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> bool:
        if error is None or not isinstance(error, Exception):
            return False
        self.failed(error)
        return True

    def failed(self, error: BaseException) -> None:
        """A mistake of ours: the client gets a 500, or an answer that is visibly cut, and the record its end."""
        worker = self.worker
        worker.failures.log(error, self.id)
        if self.over:
            return
        try:
            self._stop_call()
            if self._reply is not None:
                self._reply.failed(INTERNAL)
            else:
                self.refuse(INTERNAL)
        except Exception as again:  # noqa: BLE001 - not even that: the end has to follow
            worker.failures.log(again, self.id)
            self.connection.reset()
            self._end("interrupted")

    # --- flow

    def client_paused(self) -> None:
        if self.call is not None:
            self.call.pause()

    def client_resumed(self) -> None:
        if self.call is not None:
            self.call.resume()
