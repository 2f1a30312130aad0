"""One worker's application: what its connections, exchanges and orders share."""

import asyncio
import resource
import ssl
import time
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

import structlog

from ostiary.core.ids import new_id
from ostiary.core.messages import (
    AskAuthorization,
    Authorization,
    MachineState,
    MetricsReport,
    Revoked,
    Serving,
    WorkerMessage,
)
from ostiary.core.messages import Snapshot as SnapshotMessage
from ostiary.core.settings import GatewaySettings
from ostiary.http1.connections import Connections
from ostiary.http1.errors import HeadError
from ostiary.http1.head import RequestHead
from ostiary.http1.origin import Origin, parse_networks, split_base_url
from ostiary.http1.pool import Pool
from ostiary.http1.server import ClientConnection
from ostiary.wire.observer import AnswerMemory

from .answers import ChangedAnswer
from .authorizations import Authorizations
from .breaker import BreakerSettings
from .decide import Admission, locate
from .dump import Dumps
from .exchange import Exchange
from .failures import INTERNAL, Failures
from .front_door import NO_CERTIFICATE, FrontDoorExchange, is_rpc, rpc_error
from .heads import ActorHeaders
from .health import Health
from .journal import Journal, JournalError
from .limits import Limits
from .metrics import GatewayMetrics
from .refusal_log import RefusalLog
from .refusals import Refusal, error_body, refusal_head, shape_of
from .routes import Target, split_path
from .snapshot import Snapshot, build_snapshot
from .telemetry import Telemetry

log = structlog.get_logger()

_OF_OURS: Final = 48
"""Descriptors that a worker has open whatever it serves, generously."""
_KEPT_FREE: Final = 16
"""The part of all descriptors that clients do not get: what they ask for needs connections to providers, and files."""
_CROWDED_LOG_INTERVAL: Final = 5.0
_TICK_MAX: Final = 1.0
_JOURNAL_LOG_INTERVAL: Final = 5.0
_LOCATED_MAX: Final = 4096
_LOCATED_LONGEST: Final = 256
"""Bytes of a path that is remembered."""
_FIRST_REQUEST_SECONDS: Final = 0.5
_DRAIN_STEP: Final = 0.01
_NOTHING_HERE: Final = Refusal(
    404,
    "unknown_path",
    "There is nothing at this path. This gateway serves /api/v2/ai-gateway/<provider>/... and /<provider>/...; "
    "the API is at its server.",
)


class LiveExchange(Protocol):
    """A request under way."""

    def interrupt(self) -> None:
        """Cut it and settle it."""


class _ServerTimes:
    """`ServerLimits` of the settings."""

    def __init__(self, settings: GatewaySettings) -> None:
        self.head_timeout = settings.client_head_timeout
        self.keepalive_timeout = settings.client_keepalive_timeout
        self.body_timeout = settings.client_body_timeout


class Worker:
    """Implements `http1.server.Application`. `send` gives a message to the link and says whether there is one."""

    def __init__(
        self,
        settings: GatewaySettings,
        journal: Journal,
        tls: ssl.SSLContext,
        send: Callable[[WorkerMessage], bool],
        limits: Limits | None = None,
    ) -> None:
        self.settings = settings
        self.journal = journal
        self._send = send
        self.metrics = GatewayMetrics()
        self.snapshot: Snapshot | None = None
        self.revision = 0
        self.machine = MachineState(ready=False, link_up=False)
        self.draining = False
        self.cutting = False
        self.authorizations = Authorizations(self._ask, time.monotonic, time.time, settings.auth_grace)
        self.health = Health(send, time.monotonic, time.time, _breaker_settings(settings))
        self.limits = limits
        self.actor = ActorHeaders(settings)
        self.dumps = (
            Dumps.open(settings.dump_dir, settings.dump_file_max_bytes, settings.dump_max_bytes)
            if settings.dump_dir
            else None
        )
        self.telemetry = Telemetry.open(settings, self.metrics)
        self.failures = Failures(time.monotonic, self.metrics.internal_errors)
        self.refusals = RefusalLog(time.monotonic, self.metrics.refused)
        self.pinged: set[ChangedAnswer] = set()
        """Streams whose clients are told that they are alive."""
        times = _ServerTimes(settings)
        shortest = min(settings.head_timeout, settings.idle_timeout, times.head_timeout, times.body_timeout)
        self.tick = min(_TICK_MAX, shortest / 4)
        self.connections = Connections(self, times, self.tick, settings.head_max_bytes)
        self.pool = Pool(settings, tls, tick=self.tick, egress_allow=parse_networks(settings.egress_allow))
        self._descriptors = 0
        self._leave_descriptors()
        self._control: Origin | None = split_base_url(settings.control_url)[0] if settings.control_url else None
        self._located: dict[bytes, tuple[Target, Admission]] = {}
        self._standalone = settings.mode == "standalone"
        self._live: set[LiveExchange] = set()
        self._body_memory = 0
        self.answer_memory = AnswerMemory(settings.body_memory_max)
        """Of its own: uploads that are slow to come must not keep answers from being recorded."""
        self._large: deque[Callable[[], None]] = deque()
        self._journal_logged_at = 0.0
        self._crowded_logged_at = 0.0
        self._drained: asyncio.Future[None] | None = None

    # --- http1.server.Application

    def begin(self, connection: ClientConnection, head: RequestHead) -> None:
        """A request has come."""
        path = head.path
        try:
            known = self._located.get(path)
            target = known[0] if known is not None else split_path(path, standalone=self._standalone)
            if target is not None and not head.upgrade.startswith(b"websocket"):
                exchange = Exchange(self, connection, head, target, known[1] if known is not None else None)
                self._live.add(exchange)
                exchange.begin()
            else:
                self._begin_other(connection, head)
        except Exception as error:  # noqa: BLE001 - what is raised here would end the connection without a word
            self.failures.log(error)
            self._answer(connection, path, INTERNAL)

    def _begin_other(self, connection: ClientConnection, head: RequestHead) -> None:
        """What is not the data plane's."""
        path = head.path
        if head.upgrade.startswith(b"websocket"):
            self._answer(connection, path, Refusal(501, "upgrade", "WebSocket is not supported here, use HTTP."))
        elif path == b"/healthz":
            connection.answer(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n")
        elif path == b"/readyz":
            ready = self.snapshot is not None and self.machine.ready and not self.draining
            status = b"200 OK" if ready else b"503 Service Unavailable"
            connection.answer(b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\n")
        elif self._control is not None and self._lacks_certificate(connection, path):
            self._refuse(connection, path, NO_CERTIFICATE, rpc_error(NO_CERTIFICATE))
        elif self._control is not None:
            relay = FrontDoorExchange(self, connection, head)
            self._live.add(relay)
            relay.begin(self._control)
        else:
            self._answer(connection, path, _NOTHING_HERE)

    def _lacks_certificate(self, connection: ClientConnection, path: bytes) -> bool:
        """Gateways show a certificate when `client_ca_file` says so; everybody else may."""
        if not self.settings.client_ca_file or not is_rpc(path):
            return False
        return not connection.transport.get_extra_info("peercert")

    def head_refused(self, connection: ClientConnection, error: HeadError) -> bytes:  # noqa: ARG002 - part of the interface
        return self._last_answer(Refusal(error.status, "bad_head", error.reason))

    def crowded(self, closed: int) -> bytes:
        """Clients have as many connections as there are descriptors for."""
        now = time.monotonic()
        if now - self._crowded_logged_at > _CROWDED_LOG_INTERVAL:
            self._crowded_logged_at = now
            what = "closing idle client connections" if closed else "turning client connections away"
            log.warning(f"{what}: raise the limit of open files", limit=self._descriptors, most=self.connections.most)
        if closed:
            return b""
        text = "This gateway has as many connections as it may open files for. Try again in a moment."
        return self._last_answer(Refusal(503, "connections", text, retry_after=1))

    def _last_answer(self, refusal: Refusal) -> bytes:
        body = error_body("rest", refusal)
        return refusal_head(refusal, len(body), self._refused(refusal, b"") + b"Connection: close\r\n") + b"\r\n" + body

    def _leave_descriptors(self) -> None:
        """Clients get those that nothing else has or may soon need. The limit may be changed from outside."""
        self._descriptors = every = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if every != resource.RLIM_INFINITY:
            kept = max(_OF_OURS, every // _KEPT_FREE)
            self.connections.most = max(1, every - kept - self.pool.open_count)

    def _answer(self, connection: ClientConnection, path: bytes, refusal: Refusal) -> None:
        self._refuse(connection, path, refusal, error_body(shape_of(path, None), refusal))

    def _refuse(self, connection: ClientConnection, path: bytes, refusal: Refusal, body: bytes) -> None:
        connection.answer(refusal_head(refusal, len(body), self._refused(refusal, path)), body)

    def _refused(self, refusal: Refusal, path: bytes) -> bytes:
        """A request that has not become an exchange: the line that tells its client the id it is known by."""
        request_id = new_id()
        self.refusals.note(refusal, request_id, path)
        return b"x-ostiary-request-id: " + request_id.encode("ascii") + b"\r\n"

    # --- for exchanges

    def locate(self, path: bytes, target: Target) -> Admission | Refusal:
        """Where a path leads in the current snapshot; remembered, for paths recur."""
        located = locate(self.snapshot, target)
        if isinstance(located, Admission) and len(path) <= _LOCATED_LONGEST:
            if len(self._located) >= _LOCATED_MAX:
                self._located.clear()
            self._located[path] = (target, located)
        return located

    def ended(self, exchange: LiveExchange) -> None:
        self._live.discard(exchange)
        if self._drained is not None and not self._live and not self._drained.done():
            self._drained.set_result(None)

    def reserve_body(self, size: int) -> bool:
        """Take `size` bytes of the memory for request bodies; False when it is used up."""
        if size > 0 and self._body_memory + size > self.settings.body_memory_max:
            return False
        self._body_memory += size
        return True

    def release_body(self, size: int) -> None:
        self._body_memory -= size

    def check_large(self, check: Callable[[], None]) -> None:
        """Check a large body when its turn comes: one at a time, other requests in between."""
        self._large.append(check)
        if len(self._large) == 1:
            asyncio.get_running_loop().call_soon(self._check_next_large)

    def _check_next_large(self) -> None:
        self._large[0]()  # raises nothing
        self._large.popleft()
        if self._large:
            asyncio.get_running_loop().call_later(0, self._check_next_large)

    def log_journal_failure(self, error: JournalError) -> None:
        """At most one line every few seconds: a full disk concerns every request."""
        now = time.monotonic()
        if now - self._journal_logged_at > _JOURNAL_LOG_INTERVAL:
            self._journal_logged_at = now
            log.error("refusing what cannot be recorded", error=str(error))

    # --- from the link

    def take_snapshot(self, message: SnapshotMessage) -> Serving:
        """Swap in a new set of providers; requests in flight keep theirs."""
        snapshot = build_snapshot(message.revision, message.providers, allow_byok=self.settings.allow_byok)
        self.snapshot = snapshot
        self.revision = message.revision
        self.health.take_snapshot(snapshot)
        self._located = {}
        for name, error in snapshot.errors.items():
            log.warning("skipping misconfigured provider", provider_name=name, error=error)
        return Serving(message.revision, snapshot.errors)

    def _ask(self, digest: bytes) -> bool:
        return self._send(AskAuthorization(digest))

    def take_authorization(self, message: Authorization) -> None:
        self.authorizations.receive(message)

    def take_revocation(self, message: Revoked) -> None:
        """For requests to come; those in flight have been let in."""
        if message.everything:
            self.authorizations.ask_again(message.within)
        else:
            self.authorizations.revoke(message.api_key_id, message.owner_id)

    def take_machine_state(self, message: MachineState) -> None:
        self.machine = message

    def metrics_report(self, seq: int = 0) -> MetricsReport:
        metrics = self.metrics
        journal = self.journal
        metrics.journal_records[0] = float(journal.seq)
        metrics.journal_bytes[0] = float(journal.used_bytes)
        metrics.journal_refusals[0] = float(journal.refusals)
        metrics.journal_sync_failures[0] = float(journal.sync_failures)
        metrics.unread_answers[0] = float(self.answer_memory.refusals)
        metrics.client_connections[0] = float(len(self.connections))
        metrics.upstream_idle[0] = float(self.pool.idle_count)
        return MetricsReport(metrics.report(), seq)

    # --- time

    def sweep(self) -> None:
        """Every `tick` seconds. What fails in one part does not keep the others from it."""
        for part in (
            self.connections.sweep,
            self.pool.sweep,
            self._leave_descriptors,
            self.authorizations.sweep,
            self.health.sweep,
            self.journal.settle,
            self._ping,
        ):
            try:
                part()
            except Exception as error:  # noqa: BLE001
                self.failures.log(error)

    def _ping(self) -> None:
        if self.pinged:
            now = time.monotonic()
            for answer in tuple(self.pinged):
                answer.ping(now)

    # --- the end

    async def drain(self, cut: asyncio.Event) -> None:
        """Finish what runs, up to `drain_timeout` or until `cut` is set; then cut and record the rest as interrupted."""
        self.draining = True
        await self._close_idle(cut)
        for exchange in tuple(self._live):
            if isinstance(exchange, FrontDoorExchange) and exchange.endless:
                exchange.interrupt()
        if self._live:
            self._drained = asyncio.get_running_loop().create_future()
            cutting = asyncio.create_task(_cut_short(cut, self._drained))
            await asyncio.wait({self._drained}, timeout=self.settings.drain_timeout)
            cutting.cancel()
        self.cutting = True
        if self._live:
            log.warning("cutting live requests", count=len(self._live))
        for exchange in tuple(self._live):
            try:
                exchange.interrupt()
            except Exception as error:  # noqa: BLE001 - the others are still to be cut
                self.failures.log(error)
        self.pool.close()
        if self.dumps is not None:
            await asyncio.to_thread(self.dumps.close)
        if self.telemetry is not None:
            await asyncio.to_thread(self.telemetry.close)

    async def _close_idle(self, cut: asyncio.Event) -> None:
        """Close connections without a request; to one that has only just been made, or still is, its first is on the way."""
        deadline = time.monotonic() + _FIRST_REQUEST_SECONDS
        while time.monotonic() < deadline and not cut.is_set():
            fresh = bool(self.connections.handshakes)
            for connection in tuple(self.connections.live):
                if connection.requests:
                    connection.close_if_idle()
                else:
                    fresh = True
            if not fresh:
                return
            await asyncio.sleep(_DRAIN_STEP)
        self.connections.close_idle()


def _breaker_settings(settings: GatewaySettings) -> BreakerSettings:
    return BreakerSettings(
        settings.circuit_breaker_enabled,
        settings.circuit_breaker_failure_threshold,
        settings.circuit_breaker_interval,
        settings.circuit_breaker_timeout,
    )


async def _cut_short(cut: asyncio.Event, drained: "asyncio.Future[None]") -> None:
    await cut.wait()
    if not drained.done():
        drained.set_result(None)
