"""What becomes of a request that is to go upstream: its record, its client's answer, its end, and what is told of it.

Rules
- Nothing of a recorded request goes upstream before its start is in the journal; from there on exactly one end follows.
- Whoever ends such a request goes through `settle`, once.
- Until `begun` an answer of ours can take the place of the upstream's; from there on the client's answer can only be cut.
"""

from time import perf_counter_ns, time_ns
from typing import TYPE_CHECKING, Final

from ostiary.core.agents import AgentFirewall, detect_client, session_id
from ostiary.core.records import CredentialKind, Outcome, Trace
from ostiary.http1.errors import Failure, UpstreamError
from ostiary.http1.head import UNTIL_CLOSE, ResponseHead
from ostiary.wire.errors import error_observer
from ostiary.wire.facts import RequestFacts, ResponseFacts
from ostiary.wire.formats import observer_for
from ostiary.wire.include_usage import UsageChunkFilter
from ostiary.wire.observer import BlindObserver, Observer, StreamObserver

from .answers import ChangedAnswer
from .clearance import Clearance
from .decide import NOT_RECORDED
from .failures import CUT_BY_US
from .heads import client_head, server_timing
from .interception import Interception
from .journal import JournalError
from .keep_alive import KeepAlive
from .recording import (
    LOST,
    Ending,
    error_type_of,
    error_type_of_failure,
    passed_through,
    start_record,
    upstream_failed,
)
from .refusals import Refusal
from .telemetry import Telemetry
from .upstream_call import UpstreamCall

if TYPE_CHECKING:
    from .exchange import Exchange

_BODILESS: Final = frozenset((204, 304))

_OTHER_TYPE: Final = "its Content-Type is neither JSON nor a stream of events"


class Reply:
    """To one exchange. What it does not have keeps the class's default."""

    begun: bool = False
    """The upstream's answer goes to the client."""
    record: Interception | None = None
    """None: nothing is recorded."""
    _closes: bool = False
    """The client has been told, or will be, that its connection ends."""
    _notes: tuple[str, ...] = ()
    _pinged: ChangedAnswer | None = None

    def __init__(self, exchange: "Exchange", clearance: Clearance) -> None:
        self._exchange = exchange
        self._worker = exchange.worker
        self.clearance = clearance
        self._ending = Ending()

    # --- the record's start

    def record_start(self, facts: RequestFacts, client: str, session: str, firewall: AgentFirewall | None) -> bool:
        """Record that the request goes upstream. False when it does not, and has been answered."""
        exchange = self._exchange
        worker = self._worker
        started = start_record(
            exchange.id,
            (time_ns() - perf_counter_ns() + exchange.t0) // 1000,
            exchange.identity,
            exchange.admission,
            self._credential(),
            exchange.head.fields,
            facts,
            client=client,
            session=session,
            revision=worker.revision,
            with_prompt=worker.settings.record_content != "none" and not worker.journal.shed_content,
            firewall=firewall,
        )
        try:
            self.record = record = Interception(worker, started, facts.tool_results)
        except JournalError as error:
            worker.log_journal_failure(error)
            exchange.refuse(NOT_RECORDED)
            return False
        exchange.stages["record"] = perf_counter_ns()
        if not record.durable:
            self.reject(NOT_RECORDED)  # its start stands in the journal: an end has to follow
        return record.durable

    def _credential(self) -> tuple[CredentialKind, str]:
        return "centralized" if self._exchange.own is None else "byok", self.clearance.hint

    # --- the upstream's answer

    def answering(self, head: ResponseHead) -> tuple[Observer | None, ChangedAnswer | None]:
        """This answer goes to the client: who reads it, and how it is changed. `client_head` has to follow."""
        exchange = self._exchange
        exchange.release_body()
        self._ending.status = head.status
        if head.status in _BODILESS or exchange.head.method == b"HEAD":
            return None, None  # a chunk would be taken for the next answer
        settings = self._worker.settings
        wire_format = exchange.format
        coding = head.fields.get(b"content-encoding", b"")
        content_type = head.fields.get(b"content-type", b"")
        transform = None
        adapter = exchange.admission.provider.adapter
        if adapter is not None:
            transform = adapter.transform(exchange.admission.route, head)
            if transform is not None:
                exchange.edits += (transform.edit,)
                content_type = transform.content_type or content_type
        observer = None
        if wire_format is not None:
            memory = self._worker.answer_memory
            if head.status >= 400:
                observer = error_observer(wire_format, content_type, coding, memory)
            if observer is None:
                observer = observer_for(wire_format, content_type, settings.record_content, coding, memory)
                if observer is None and head.status < 300 and wire_format != "metered":
                    observer = BlindObserver(_OTHER_TYPE)
        usage_filter = keep_alive = None
        if not coding and type(observer) is StreamObserver:
            if exchange.splices_usage:
                usage_filter = UsageChunkFilter()
            if wire_format == "messages" and settings.sse_keepalive > 0:
                keep_alive = KeepAlive(settings.sse_keepalive)
        if transform is None and usage_filter is None and keep_alive is None and head.framing != UNTIL_CLOSE:
            return observer, None
        changed = ChangedAnswer(
            exchange.connection.write, observer, transform=transform, usage_filter=usage_filter, keep_alive=keep_alive
        )
        if keep_alive is not None:
            self._pinged = changed
            self._worker.pinged.add(changed)
        return observer, changed

    def client_head(self, head: ResponseHead, changed: ChangedAnswer | None) -> bytes:
        """The head of the answer to the client, to be written at once."""
        exchange = self._exchange
        sent = client_head(
            head,
            exchange.id_line(),
            byok=exchange.presented.byok,
            rechunked=changed is not None,
            content_type=b"" if changed is None else changed.content_type,
            keeps_client=self._keeps_client(),
            timing=server_timing(exchange.stages, exchange.t0) if b"x-ostiary-timing" in exchange.head.fields else b"",
        )
        self.begun = True
        return sent

    def _keeps_client(self) -> bool:
        exchange = self._exchange
        if exchange.upload is not None and not exchange.connection.body_read:
            self._closes = True  # an answer before the end of the request's body leaves no way to go on
        return not self._closes and exchange.head.keep_alive and not self._worker.draining

    def answered(self) -> None:
        """The answer is complete."""
        self._exchange.connection.finish(keep=self._keeps_client())
        self.settle("completed" if self._ending.status < 400 else "upstream_error")

    def cut(self, error: UpstreamError) -> None:
        """The answer broke off."""
        self._ending.error_type = error_type_of_failure(error.failure)
        self._ending.error_message = error.detail
        self._exchange.connection.abort()
        self.settle("upstream_error")

    # --- in its place

    def unreachable(self, error: UpstreamError) -> None:
        """There is no answer."""
        name = self._exchange.admission.provider.name
        status = 504 if error.failure is Failure.HEAD_TIMEOUT else 502
        refusal = Refusal(status, error.failure.value, f"The provider {name!r} could not be reached: {error.detail}.")
        self._ending.error_type = error_type_of_failure(error.failure)
        self._ending.error_message = error.detail
        if self.record is None:
            self._worker.refusals.note(refusal, self._exchange.id, self._exchange.head.path)
        self._answer(refusal)
        self.settle("upstream_error")

    def reject(self, refusal: Refusal) -> None:
        """It does not go upstream."""
        exchange = self._exchange
        if self.record is None:
            exchange.refuse(refusal)
            return
        self._ending.error_type = error_type_of(refusal.status, exchange.admission.provider.family)
        self._ending.error_message = refusal.message
        self._answer(refusal)
        self.settle("rejected")

    def _answer(self, refusal: Refusal) -> None:
        self._ending.status = refusal.status
        self._exchange.answer(refusal)

    def broken_off(self, refusal: Refusal) -> None:
        """The rest of the request does not come."""
        if self.begun:
            self._notes += (refusal.message,)
            self._exchange.connection.abort()
            self.settle("client_closed")
        else:
            self.reject(refusal)

    def failed(self, refusal: Refusal) -> None:
        """A mistake of ours: `refusal` says so to the client, or an answer that is visibly cut."""
        if self.begun:
            self._ending.error_type = "server_error"
            self._ending.error_message = CUT_BY_US
            self._exchange.connection.abort()
            self.settle("interrupted")
        else:
            self.reject(refusal)

    def client_stalled(self) -> None:
        """The client does not take its answer."""
        exchange = self._exchange
        self._notes += ("the client stopped reading",)
        exchange.client_gone()
        exchange.connection.reset()

    # --- the end

    def settle(self, outcome: Outcome) -> None:
        """Write the end of what is recorded, count it, tell of it, let go of the exchange. Never raises."""
        exchange = self._exchange
        if exchange.over:
            return
        exchange.over = True  # whatever is raised from here on is logged, and ends nothing any more
        self._ending.outcome = outcome
        worker = self._worker
        call = exchange.call
        record = self.record
        if record is not None:
            self._end(record, call)
        elif call is not None and worker.telemetry is not None:
            with exchange:
                self._tell_of_passthrough(call, worker.telemetry)
        if self._pinged is not None:
            worker.pinged.discard(self._pinged)
        own, exhausted = exchange.own is not None, self.clearance.exhausted
        exchange.finish(upstream_failed(self._ending, own=own, exhausted=exhausted))

    def _end(self, record: Interception, call: UpstreamCall | None) -> None:
        exchange = self._exchange
        worker = self._worker
        ended_ns = exchange.stages["end"] = perf_counter_ns()
        facts: ResponseFacts | None = None
        trace = LOST
        with exchange:
            facts, trace = self._facts(call), self._trace(call)
        with exchange:
            seconds = (ended_ns - exchange.t0) / 1e9
            ended = record.end(self._ending, hint=self.clearance.hint, facts=facts, trace=trace, seconds=seconds)
            if worker.telemetry is not None:
                worker.telemetry.ended(record.start, ended, exchange.head, exchange.admission.provider)

    def _tell_of_passthrough(self, call: UpstreamCall, telemetry: Telemetry) -> None:
        """There is no record of it, but it has spans."""
        exchange = self._exchange
        fields = exchange.head.fields
        ended_ns = exchange.stages["end"] = perf_counter_ns()
        now_us = time_ns() // 1000
        client = detect_client(fields)
        start, end = passed_through(
            exchange.id,
            (now_us - (ended_ns - exchange.t0) // 1000, now_us),
            exchange.identity,
            exchange.admission,
            self._credential(),
            fields,
            client=client,
            session=session_id(client, fields, ""),
            ending=self._ending,
            trace=self._trace(call),
        )
        telemetry.ended(start, end, exchange.head, exchange.admission.provider)

    def _facts(self, call: UpstreamCall | None) -> ResponseFacts | None:
        """What the answer has said, into the ending too."""
        facts = call.observer.finish() if call is not None and call.observer is not None else None
        exchange = self._exchange
        ending = self._ending
        if call is not None and facts is not None and facts.error is not None and exchange.format is not None:
            ending.take_error(exchange.format, facts.error, call.sent_head)
        elif ending.outcome == "upstream_error" and ending.error_type is None:
            ending.error_type = error_type_of(ending.status, exchange.admission.provider.family)
        elif ending.outcome == "client_closed" and facts is not None and facts.complete and not self._notes:
            # Some clients hang up at the format's own end: they do not wait for the last chunk, which says nothing.
            ending.outcome = "completed"
        elif ending.outcome == "client_closed":
            ending.error_type = "unknown"
        if facts is not None and ending.outcome == "completed":
            if facts.problem:
                self._notes += (f"the answer could not be read: {facts.problem}",)
            elif not facts.complete and not facts.unparsed:
                self._notes += ("the answer ended without the format's own end",)
        return facts

    def _trace(self, call: UpstreamCall | None) -> Trace:
        """The decision trace."""
        exchange = self._exchange
        t0 = exchange.t0
        candidates = list(self.clearance.passed_over)
        if self.clearance.hint:
            candidates.append((self.clearance.hint, ""))
        return Trace(
            candidates,
            list(exchange.edits),
            [] if call is None else list(call.attempts),
            {name: (at - t0) // 1000 for name, at in exchange.stages.items()},
            list(self._notes),
        )
