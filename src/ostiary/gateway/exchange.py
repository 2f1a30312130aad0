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

from ostiary.core.agents import AgentFirewallError, agent_firewall, detect_client, session_id
from ostiary.core.identity import Identity
from ostiary.core.ids import new_id
from ostiary.core.records import (
    Attempt,
    InterceptionEnd,
    InterceptionStart,
    Outcome,
    Prompt,
    Trace,
    encode_record,
)
from ostiary.http1.errors import Failure, UpstreamError
from ostiary.http1.fields import (
    CREDENTIALS,
    REQUEST_DROPPED,
    RESPONSE_DROPPED,
    kept_request_lines,
    kept_response_lines,
)
from ostiary.http1.head import LENGTH, NO_BODY, UNTIL_CLOSE, RequestHead, ResponseHead
from ostiary.http1.server import ClientConnection
from ostiary.http1.upstream import UpstreamConnection
from ostiary.wire.content_coding import (
    CodingError,
    DecodedTooLongError,
    UnsupportedCodingError,
    decode_body,
    narrow_accept_encoding,
)
from ostiary.wire.facts import RequestError, RequestFacts
from ostiary.wire.formats import read_request
from ostiary.wire.include_usage import splice_include_usage

from . import decide
from .authorizations import Answer
from .journal import JournalError
from .observe import Observation
from .providers import RuntimeProvider
from .refusals import Refusal, error_body, refusal_head, shape_of
from .routes import Route, Target
from .settle import Ending, end_record, error_type_of, error_type_of_failure, error_type_of_name, without_content

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

_DROPPED_CENTRALIZED: Final = REQUEST_DROPPED | CREDENTIALS | {b"accept-encoding"}
_DROPPED_BYOK: Final = REQUEST_DROPPED | {b"accept-encoding"}
_RESPONSE_CENTRALIZED: Final = RESPONSE_DROPPED | {b"set-cookie"}
_IDENTITY_LINE: Final = b"Accept-Encoding: identity\r\n"


class Exchange:
    """See the module's rules. Implements `ServerExchange` towards the client and `Consumer` towards the upstream."""

    __slots__ = (
        "_attempts",
        "_body",
        "_body_size",
        "_connecting",
        "_connection",
        "_edits",
        "_ending",
        "_facts",
        "_head",
        "_hint",
        "_identity",
        "_inflight",
        "_notes",
        "_observation",
        "_presented",
        "_provider",
        "_rechunked",
        "_recorded",
        "_retries",
        "_route",
        "_splices_usage",
        "_stages",
        "_start",
        "_state",
        "_t0",
        "_target",
        "_upstream",
        "_upstream_head",
        "_worker",
        "id",
    )

    _identity: Identity
    _presented: decide.Presented
    _provider: RuntimeProvider
    _route: Route
    _start: InterceptionStart

    def __init__(self, worker: "Worker", connection: ClientConnection, head: RequestHead, target: Target) -> None:
        self._t0 = perf_counter_ns()
        self._worker = worker
        self._connection = connection
        self._head = head
        self._target = target
        self._state = _IDENTIFY
        self._body = b""
        self._body_size = 0
        self._connecting: asyncio.Task[None] | None = None
        self._upstream: UpstreamConnection | None = None
        self._upstream_head = b""
        self._observation: Observation | None = None
        self._facts: RequestFacts | None = None
        self._inflight: list[float] | None = None
        self._recorded = False
        self._splices_usage = False
        self._rechunked = False
        self._retries = 0
        self._hint = ""
        self._ending = Ending()
        self._stages: dict[str, int] = {}
        self._edits: list[str] = []
        self._notes: list[str] = []
        self._attempts: list[Attempt] = []
        self.id = new_id()

    # --- identify, route, admit

    def begin(self) -> None:
        """The head has been read."""
        head = self._head
        presented = decide.credential_of(head.fields)
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
        identity = decide.identified(answer)
        if isinstance(identity, Refusal):
            self._refuse(identity)
            return
        self._identity = identity
        worker = self._worker
        head = self._head
        admission = decide.admit(
            worker.snapshot,
            self._target,
            head.method,
            byok=self._presented.byok,
            allow_byok=worker.settings.allow_byok,
        )
        if isinstance(admission, Refusal):
            self._refuse(admission)
            return
        if head.minor == 0:
            self._refuse(Refusal(505, "http_1_0", "Provider routes need HTTP/1.1."))
            return
        self._provider = admission.provider
        self._route = admission.route
        self._stage("identify")
        if head.framing == LENGTH and not worker.reserve_body(head.content_length):
            self._refuse(
                Refusal(503, "body_memory", "The gateway's memory for request bodies is used up. Try again.", 1)
            )
            return
        self._body_size = head.content_length if head.framing == LENGTH else 0
        self._state = _BODY
        self._connection.collect(worker.settings.body_max_bytes)

    # --- body

    def request_body(self, body: bytes) -> None:
        self._stage("body")
        worker = self._worker
        if len(body) != self._body_size:
            if not worker.reserve_body(len(body) - self._body_size):
                self._refuse(
                    Refusal(503, "body_memory", "The gateway's memory for request bodies is used up. Try again.", 1)
                )
                return
            self._body_size = len(body)
        self._body = body
        self._state = _CHECK
        if self._route.kind == "passthrough":
            self._pass_through()
        elif len(body) > _LARGE_BODY:
            worker.check_large(self._check)
        else:
            self._check()

    def request_body_too_large(self) -> None:
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
        head = self._head
        fields = head.fields
        worker = self._worker
        route = self._route
        body = self._body
        coding = fields.get(b"content-encoding")
        try:
            if coding is not None:
                body = decode_body(coding, body, worker.settings.body_max_bytes)
            wire_format = route.format
            assert wire_format is not None  # bridged routes have one
            facts = read_request(wire_format, body, worker.settings.record_content)
            firewall = agent_firewall(fields)
        except RequestError as error:
            self._refuse(Refusal(400, "bad_request", str(error)))
            return
        except DecodedTooLongError as error:
            self._refuse(Refusal(413, "body_too_large", str(error)))
            return
        except UnsupportedCodingError as error:
            self._refuse(Refusal(415, "unknown_coding", str(error)))
            return
        except CodingError as error:
            self._refuse(Refusal(400, "bad_coding", str(error)))
            return
        except AgentFirewallError as error:
            self._refuse(Refusal(400, "bad_header", str(error)))
            return
        if facts.background:
            self._refuse(
                Refusal(
                    501,
                    "background",
                    "Background responses cannot be recorded, so they are not served. Leave out `background` or set it to "
                    "false.",
                )
            )
            return
        self._facts = facts
        provider = self._provider
        byok = self._presented.byok
        credential = decide.own_credential(provider, fields) if byok else decide.choose_key(provider)
        if byok and isinstance(credential, Refusal):
            self._refuse(credential)
            return
        self._stage("check")
        if not self._record_start(facts, credential, firewall):
            return
        if isinstance(credential, Refusal):
            self._reject(credential)
            return
        self._hint = credential.hint
        self._send(self._edit(body, decoded=coding is not None), credential)

    def _record_start(
        self, facts: RequestFacts, credential: decide.Credential | Refusal, firewall: tuple[str, int] | None
    ) -> bool:
        worker = self._worker
        fields = self._head.fields
        identity = self._identity
        provider = self._provider
        route = self._route
        user_agent = fields.get(b"user-agent", b"").decode("latin-1")[:512]
        client = detect_client(fields)
        prompt = facts.prompt if worker.settings.record_content != "none" and not worker.journal.shed_content else None
        known = None if isinstance(credential, Refusal) else credential
        session_name, sequence = firewall or ("", -1)
        started = InterceptionStart(
            self.id,
            identity.owner_id,
            identity.api_key_id,
            provider.family,
            provider.name,
            facts.model,
            route.label,
            time_ns() // 1000,
            streaming=facts.stream,
            route_kind=route.kind,
            client=client,
            user_agent=user_agent,
            client_session_id=session_id(client, fields, facts.user_id),
            correlating_tool_call_id=facts.correlating_tool_call_id,
            credential_kind=known.kind if known else "centralized",
            credential_hint=known.hint if known else "",
            revision=worker.revision,
            prompt=Prompt(new_id(), prompt) if prompt is not None else None,
            agent_firewall_session_id=session_name,
            agent_firewall_sequence_number=sequence,
        )
        try:
            worker.journal.append_start(encode_record(started))
        except JournalError as error:
            worker.log_journal_failure(error)
            self._refuse(
                Refusal(500, "journal", "The request could not be recorded, so it was not sent. Try again later.")
            )
            return False
        self._start = started
        self._recorded = True
        self._inflight = inflight = worker.metrics.inflight(provider.name, route.label)
        inflight[0] += 1
        self._stage("record")
        return True

    # --- edit, send

    def _edit(self, plain: bytes, *, decoded: bool) -> bytes:
        """The body to send: the client's own bytes but for declared splices."""
        facts = self._facts
        assert facts is not None
        splice = (
            self._provider.splice_usage
            and self._route.format == "chat_completions"
            and facts.stream
            and not facts.include_usage
        )
        if not splice:
            return self._body
        self._splices_usage = True
        self._edits.append("stream_options.include_usage: added; its event is withheld from the client")
        if decoded:
            self._edits.append("content-encoding: removed, the edited body is sent plain")
        return splice_include_usage(plain, facts)

    def _pass_through(self) -> None:
        provider = self._provider
        byok = self._presented.byok
        credential = decide.own_credential(provider, self._head.fields) if byok else decide.choose_key(provider)
        if isinstance(credential, Refusal):
            self._refuse(credential)
            return
        self._worker.metrics.passed_through(provider.name, self._route.label, self._head.method)
        self._hint = credential.hint
        self._send(self._body, credential)

    def _send(self, body: bytes, credential: decide.Credential) -> None:
        head = self._head
        provider = self._provider
        key = credential.key
        dropped = _DROPPED_BYOK if key is None else _DROPPED_CENTRALIZED
        if self._splices_usage and b"content-encoding" in head.fields:
            dropped |= {b"content-encoding"}
        accepted = head.fields.get(b"accept-encoding")
        if self._splices_usage:
            coding_line = _IDENTITY_LINE
        elif accepted is None:
            coding_line = b""
        else:
            coding_line = b"Accept-Encoding: " + narrow_accept_encoding(accepted) + b"\r\n"
        lines = kept_request_lines(head, dropped)
        lines.append(b"")
        has_body = body or head.framing != NO_BODY or head.method in (b"POST", b"PUT", b"PATCH")
        self._upstream_head = b"".join(
            (
                head.method,
                b" ",
                provider.upstream_target(self._target.rest, head.query),
                b" HTTP/1.1\r\n",
                provider.host_line,
                b"\r\n".join(lines),
                b"" if key is None else key.line,
                coding_line,
                b"Content-Length: %d\r\n\r\n" % len(body) if has_body else b"\r\n",
            )
        )
        self._body = body
        self._dispatch()

    def _dispatch(self) -> None:
        """Send over an idle connection, or make one first."""
        pool = self._worker.pool
        origin = self._provider.origin
        upstream = pool.take(origin)
        if upstream is None:
            self._state = _CONNECT
            self._connecting = pool.connect(origin, self._connected, self._connect_failed)
        else:
            self._send_over(upstream, reused=True)

    def _connected(self, upstream: UpstreamConnection) -> None:
        self._connecting = None
        if self._state != _CONNECT:
            self._worker.pool.release(upstream)
            return
        self._stage("connect")
        self._send_over(upstream, reused=False)

    def _send_over(self, upstream: UpstreamConnection, *, reused: bool) -> None:
        self._upstream = upstream
        self._state = _AWAIT
        self._attempts.append(Attempt(self._hint, reused_connection=reused, at_us=self._elapsed_us()))
        upstream.send(self, self._upstream_head, self._body)
        self._stage("send")

    def _connect_failed(self, error: UpstreamError) -> None:
        self._connecting = None
        if self._state == _CONNECT:
            self._attempts.append(Attempt(self._hint, error=error.detail, at_us=self._elapsed_us()))
            self._retry_or_fail(error, retry=error.failure is Failure.CONNECT)

    # --- the answer

    def response_interim(self, head: ResponseHead) -> None:
        if head.status != 100:
            lines = kept_response_lines(head, RESPONSE_DROPPED)
            self._connection.write(b"\r\n".join((head.status_line, *lines, b"", b"")))

    def response_head(self, head: ResponseHead) -> None:
        self._stage("head")
        self._state = _RELAY
        self._release_body()
        self._upstream_head = b""
        upstream = self._upstream
        assert upstream is not None
        status = head.status
        self._ending.status = status
        self._note_status(status)
        wire_format = self._route.format
        if self._recorded and wire_format is not None:
            self._observation = Observation(wire_format, head, self._worker.settings.record_content)
        observation = self._observation
        connection = self._connection
        withholds = self._splices_usage and observation is not None and observation.withhold_usage()
        if withholds or head.framing == UNTIL_CLOSE:
            # In chunks of ours: an event can be withheld, and a cut can be told from the end.
            self._rechunked = True
            upstream.relay(self._client_head(head, rechunked=True), connection.write, self._rechunk, verbatim=False)
            return
        upstream.relay(
            self._client_head(head, rechunked=False),
            connection.write,
            observation.feed if observation is not None else None,
            compact=observation.compact if observation is not None else None,
        )

    def _client_head(self, head: ResponseHead, *, rechunked: bool) -> bytes:
        dropped = RESPONSE_DROPPED if self._presented.byok else _RESPONSE_CENTRALIZED
        if rechunked:
            dropped |= {b"content-length", b"transfer-encoding"}
        lines = kept_response_lines(head, dropped)
        status_line = head.status_line if head.minor else b"HTTP/1.1 " + head.status_line[9:]
        lines.insert(0, status_line)
        name = b"x-ostiary-interception-id: " if self._recorded else b"x-ostiary-request-id: "
        lines.append(name + self.id.encode("ascii"))
        if rechunked:
            lines.append(b"Transfer-Encoding: chunked")
        if self._head.fields.get(b"x-ostiary-timing") == b"1":
            lines.append(b"Server-Timing: " + self._server_timing())
        if not self._keeps_client():
            lines.append(b"Connection: close")
        lines.append(b"\r\n")
        return b"\r\n".join(lines)

    def _rechunk(self, payload: bytes) -> None:
        observation = self._observation
        self._write_chunk(payload if observation is None else observation.take(payload))

    def _write_chunk(self, data: bytes) -> None:
        if data:
            self._connection.write(b"%x\r\n%b\r\n" % (len(data), data))

    def _keeps_client(self) -> bool:
        return self._head.keep_alive and not self._worker.draining

    def response_done(self) -> None:
        if self._rechunked:
            observation = self._observation
            self._write_chunk(b"" if observation is None else observation.rest())
            self._connection.write(b"0\r\n\r\n")
        self._upstream = None
        self._connection.finish(keep=self._keeps_client())
        self._settle("completed" if self._ending.status < 400 else "upstream_error")

    def response_failed(self, error: UpstreamError) -> None:
        upstream, self._upstream = self._upstream, None
        self._worker.metrics.upstream_failed(self._provider.name, error.failure)
        if self._state == _RELAY:
            self._ending.error_type = error_type_of_failure(error.failure)
            self._ending.error_message = error.detail
            self._note_error(error.detail)
            self._connection.abort()
            self._settle("upstream_error")
            return
        self._note_error(error.detail)
        del upstream
        self._retry_or_fail(error, retry=error.failure is Failure.STALE)

    def _retry_or_fail(self, error: UpstreamError, *, retry: bool) -> None:
        """Nothing has gone to the client: once more where that is safe, else an answer of our own."""
        limit = (
            max(1, self._worker.settings.max_retries)
            if error.failure is Failure.STALE
            else self._worker.settings.max_retries
        )
        if retry and self._retries < limit and not self._worker.cutting:
            self._retries += 1
            self._state = _CONNECT
            pool = self._worker.pool
            self._connecting = pool.connect(self._provider.origin, self._connected, self._connect_failed)
            return
        status = 504 if error.failure is Failure.HEAD_TIMEOUT else 502
        name = self._provider.name
        refusal = Refusal(status, error.failure.value, f"The provider {name!r} could not be reached: {error.detail}.")
        self._ending.error_type = error_type_of_failure(error.failure)
        self._ending.error_message = error.detail
        if self._recorded:
            self._answer(refusal)
            self._settle("upstream_error")
        else:
            self._refuse(refusal)

    # --- endings

    def _refuse(self, refusal: Refusal) -> None:
        """An answer of ours before anything was recorded."""
        self._worker.metrics.refused(refusal.reason)
        self._answer(refusal)
        self._finish()

    def _reject(self, refusal: Refusal) -> None:
        """An answer of ours to a request that is recorded but did not go upstream."""
        self._ending.error_type = error_type_of(refusal.status, self._provider.family)
        self._ending.error_message = refusal.message
        self._answer(refusal)
        self._settle("rejected")

    def _answer(self, refusal: Refusal) -> None:
        self._ending.status = refusal.status
        snapshot = self._worker.snapshot
        provider = snapshot.providers.get(self._target.provider) if snapshot is not None else None
        shape = shape_of(self._target.rest, provider.family if provider is not None else None)
        body = error_body(shape, refusal.status, refusal.message)
        name = b"x-ostiary-interception-id: " if self._recorded else b"x-ostiary-request-id: "
        id_line = name + self.id.encode("ascii") + b"\r\n"
        self._connection.answer(refusal_head(refusal, len(body), id_line), body)

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
        self._stage("end")
        ending = self._ending
        ending.outcome = outcome
        observation = self._observation
        facts = observation.finish() if observation is not None else None
        provider = self._provider
        if facts is not None and facts.error is not None:
            self._take_error(outcome, facts.error.type, facts.error.message)
        elif outcome == "upstream_error" and ending.error_type is None:
            ending.error_type = error_type_of(ending.status, provider.family)
        elif outcome == "client_closed":
            ending.error_type = "unknown"
        if facts is not None and outcome == "completed" and not facts.complete and not facts.unparsed:
            self._notes.append("the answer ended without the format's own end")
        start = self._start
        worker = self._worker
        request = self._facts
        assert request is not None
        record = end_record(
            self.id,
            time_ns() // 1000,
            ending,
            hint=self._hint,
            facts=facts,
            tool_results=request.tool_results,
            trace=Trace(
                [(self._hint, "")] if self._hint else [], self._edits, self._attempts, self._stages, self._notes
            ),
            content="none" if worker.journal.shed_content else worker.settings.record_content,
            new_id=new_id,
        )
        self._append_end(record)
        worker.metrics.ended(
            provider.name,
            start.model,
            start.route,
            start.client,
            status=ending.status,
            completed=ending.outcome == "completed",
            seconds=self._elapsed_us() / 1e6,
            prompted=start.prompt is not None,
            facts=facts,
        )
        self._finish()

    def _take_error(self, outcome: Outcome, kind: str, message: str) -> None:
        """An error that the answer itself spoke of: its status says what kind, or in mid-stream its type."""
        ending = self._ending
        if outcome == "completed":
            ending.outcome = "upstream_error"
        if ending.error_type is None:
            status = ending.status
            ending.error_type = (
                error_type_of(status, self._provider.family) if status >= 400 else error_type_of_name(kind)
            )
        if not ending.error_message:
            ending.error_message = message or kind

    def _append_end(self, record: InterceptionEnd) -> None:
        journal = self._worker.journal
        try:
            journal.append_end(encode_record(record))
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
        self._observation = None
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
        self._notes.append("the client stopped reading")
        connection = self._connection
        self.client_gone()
        connection.reset()

    def request_paused(self) -> None:
        """The body is sent whole; the transport keeps it until it is taken."""

    def request_resumed(self) -> None: ...

    # --- the decision trace

    def _elapsed_us(self) -> int:
        return (perf_counter_ns() - self._t0) // 1000

    def _stage(self, name: str) -> None:
        self._stages[name] = (perf_counter_ns() - self._t0) // 1000

    def _note_status(self, status: int) -> None:
        last = self._attempts[-1]
        self._attempts[-1] = Attempt(last.key_hint, last.reused_connection, status, "", last.at_us)

    def _note_error(self, detail: str) -> None:
        if self._attempts:
            last = self._attempts[-1]
            self._attempts[-1] = Attempt(last.key_hint, last.reused_connection, last.status, detail, last.at_us)

    def _server_timing(self) -> bytes:
        """Durations in ms of each stage, in order (W3C Server Timing)."""
        parts = []
        before = 0
        for name, at in self._stages.items():
            parts.append(f"{name};dur={(at - before) / 1000:.3f}")
            before = at
        return ", ".join(parts).encode("ascii")
