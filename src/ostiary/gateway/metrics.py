"""What a worker counts (reference D.15, prefix `ostiary_`), behind handles that are resolved once per label set.

Labels are bounded: no user ids, no raw paths; `model` is one of the first 200 values of a provider that got a 2xx, else
`other`; `method` is a known verb or OTHER; a tool's name is one of the first 500 of a provider, else `other`.
"""

from bisect import bisect_left
from typing import Final

from ostiary.core.families import Family
from ostiary.core.health import BreakerReport, BreakerSubject, KeyReport
from ostiary.core.metrics import Histogram, Registry
from ostiary.core.records import Outcome
from ostiary.wire.facts import ResponseFacts

_MODELS_MAX: Final = 200
_TOOLS_MAX: Final = 500
_ATTEMPT_BOUNDS: Final = (1.0, 2.0, 3.0, 4.0, 5.0, 10.0, 25.0)
_METHODS: Final = frozenset((b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS"))
_DURATION_BOUNDS: Final = (0.5, 2.0, 5.0, 15.0, 30.0, 60.0, 120.0)
OTHER: Final = "other"

Cell = list[float]


class InterceptionHandles:
    """The cells of one (provider, model, route, client)."""

    __slots__ = (
        "client",
        "client_closed",
        "completed",
        "duration",
        "failed",
        "input",
        "model",
        "output",
        "prompts",
        "provider",
        "tokens",
    )

    def __init__(self, metrics: "GatewayMetrics", provider: str, model: str, route: str, client: str) -> None:
        self.provider = provider
        self.model = model
        self.client = client
        self.completed = metrics.interceptions.cell(provider, model, "completed", route, "POST", client)
        self.client_closed = metrics.client_closed.cell(provider)
        self.failed = metrics.interceptions.cell(provider, model, "failed", route, "POST", client)
        self.duration = metrics.duration.series(provider, model)
        self.prompts = metrics.prompts.cell(provider, model, client)
        self.input = metrics.tokens.cell(provider, model, "input", client)
        self.output = metrics.tokens.cell(provider, model, "output", client)
        self.tokens: dict[str, Cell] = {}


class GatewayMetrics:
    """The families of a worker."""

    def __init__(self) -> None:
        registry = self._registry = Registry()
        self.interceptions = registry.counter(
            "ostiary_interceptions",
            "Interceptions that ended, by status completed or failed.",
            *("provider", "model", "status", "route", "method", "client"),
        )
        self.client_closed = registry.counter(
            "ostiary_interceptions_client_closed", "Failed interceptions whose client hung up.", "provider"
        )
        self._inflight = registry.gauge(
            "ostiary_interceptions_inflight", "Interceptions under way.", "provider", "model", "route"
        )
        self.duration = registry.histogram(
            "ostiary_interceptions_duration_seconds",
            "From the request's head to the end of its answer.",
            _DURATION_BOUNDS,
            *("provider", "model"),
        )
        self._passthrough = registry.counter(
            "ostiary_passthrough", "Requests relayed without a record.", "provider", "route", "method"
        )
        self.prompts = registry.counter("ostiary_prompts", "User prompts recorded.", "provider", "model", "client")
        self.tokens = registry.counter(
            "ostiary_tokens", "Tokens as the providers counted them.", "provider", "model", "type", "client"
        )
        self._tools = registry.counter(
            "ostiary_non_injected_tool_selections", "Tool calls that models asked for.", "provider", "model", "name"
        )
        self._refusals = registry.counter(
            "ostiary_refused_requests", "Requests answered by Ostiary itself before anything was recorded.", "reason"
        )
        self._upstream_failures = registry.counter(
            "ostiary_upstream_failures", "Upstream calls without a complete answer.", "provider", "failure"
        )
        self._key_transitions = registry.counter(
            "ostiary_key_pool_state_transitions", "Changes of keys' states.", "provider", "reason"
        )
        self._key_exhaustions = registry.counter(
            "ostiary_key_pool_exhaustions", "Requests for which no key was left.", "provider", "outcome"
        )
        self._key_attempts = registry.histogram(
            "ostiary_key_pool_failover_attempts",
            "Attempts that a request with a pooled key took.",
            _ATTEMPT_BOUNDS,
            "provider",
        )
        self._breaker_trips = registry.counter(
            "ostiary_circuit_breaker_trips", "Circuit breakers that opened.", "provider", "endpoint", "model"
        )
        self._breaker_rejects = registry.counter(
            "ostiary_circuit_breaker_rejects",
            "Requests that an open circuit breaker kept from the upstream.",
            *("provider", "endpoint", "model"),
        )
        self.journal_records = registry.counter("ostiary_journal_records", "Records appended to journals.").cell()
        self.journal_bytes = registry.gauge("ostiary_journal_bytes", "Bytes of unshipped journal on disk.").cell()
        self.journal_refusals = registry.counter(
            "ostiary_journal_refusals", "Appends that found no room in the journal."
        ).cell()
        self.journal_sync_failures = registry.counter(
            "ostiary_journal_sync_failures", "Failed attempts to sync the journal to the disk."
        ).cell()
        self.unparsed = registry.counter(
            "ostiary_unparsed_answers", "Answers whose facts could not be read in full.", "provider"
        )
        self.unread_answers = registry.counter(
            "ostiary_answers_without_memory", "Answers not read for their record for want of memory (body_memory_max)."
        ).cell()
        self.internal_errors = registry.counter(
            "ostiary_internal_errors", "Requests and steps that a mistake of the gateway ended."
        ).cell()
        self.telemetry_dropped = registry.counter(
            "ostiary_telemetry_dropped", "Interceptions of which OpenTelemetry was not told.", "reason"
        )
        self.client_connections = registry.gauge("ostiary_client_connections", "Open client connections.").cell()
        self.upstream_idle = registry.gauge("ostiary_upstream_idle_connections", "Pooled upstream connections.").cell()
        self._handles: dict[tuple[str, str, str, str], InterceptionHandles] = {}
        self._models: dict[str, set[str]] = {}
        self._attempt_series: dict[str, Histogram] = {}
        self._tool_names: dict[str, set[str]] = {}

    def report(self) -> list[Family]:
        return self._registry.report()

    def refused(self, reason: str) -> None:
        self._refusals.cell(reason)[0] += 1

    def upstream_failed(self, provider: str, failure: str) -> None:
        self._upstream_failures.cell(provider, failure)[0] += 1

    def keys_changed(self, reports: tuple[KeyReport, ...]) -> None:
        """Keys are limited, refused or recovered."""
        for report in reports:
            self._key_transitions.cell(report.provider, report.reason)[0] += 1

    def keys_exhausted(self, provider: str, outcome: str) -> None:
        """`outcome`: rate_limited or auth_failed."""
        self._key_exhaustions.cell(provider, outcome)[0] += 1

    def keys_tried(self, provider: str, attempts: int) -> None:
        """A request with a pooled key has ended."""
        series = self._attempt_series.get(provider)
        if series is None:
            series = self._attempt_series[provider] = self._key_attempts.series(provider)
        series.sum += attempts
        if attempts == 1:
            series.buckets[0] += 1
        else:
            series.buckets[bisect_left(_ATTEMPT_BOUNDS, attempts)] += 1

    def breaker_opened(self, report: BreakerReport | None) -> None:
        if report is not None and report.state == "open":
            model = self._known_model(report.provider, report.model)
            self._breaker_trips.cell(report.provider, report.route, model)[0] += 1

    def breaker_rejected(self, breaker: BreakerSubject) -> None:
        model = self._known_model(breaker.provider, breaker.model)
        self._breaker_rejects.cell(breaker.provider, breaker.route, model)[0] += 1

    def passed_through(self, provider: str, route: str, method: bytes) -> None:
        label = method.decode("ascii") if method in _METHODS else "OTHER"
        self._passthrough.cell(provider, route, label)[0] += 1

    def inflight(self, provider: str, model: str, route: str) -> Cell:
        return self._inflight.cell(provider, self._known_model(provider, model), route)

    def ended(
        self,
        provider: str,
        model: str,
        route: str,
        client: str,
        *,
        status: int,
        outcome: Outcome,
        seconds: float,
        prompted: bool,
        facts: ResponseFacts | None,
    ) -> None:
        """An interception has ended."""
        label = self._model_label(provider, model, accepted=200 <= status < 300)
        key = (provider, label, route, client)
        handles = self._handles.get(key)
        if handles is None:
            handles = self._handles[key] = InterceptionHandles(self, provider, label, route, client or "unknown")
        if outcome == "completed":
            handles.completed[0] += 1
        else:
            handles.failed[0] += 1
            if outcome == "client_closed":
                handles.client_closed[0] += 1
        handles.duration.observe(seconds)
        if prompted:
            handles.prompts[0] += 1
        if facts is None:
            return
        if facts.unparsed:
            self.unparsed.cell(provider)[0] += 1
        usage = facts.usage
        if usage is not None:
            handles.input[0] += usage.input_tokens
            handles.output[0] += usage.output_tokens
            if usage.cache_read_input_tokens or usage.cache_write_input_tokens:
                self._count(handles, "cache_read_input_tokens", usage.cache_read_input_tokens)
                self._count(handles, "cache_write_input_tokens", usage.cache_write_input_tokens)
            for name, value in usage.metadata.items():
                if value and type(value) is int:
                    self._count(handles, name, value)
        for call in facts.tool_calls:
            self._tools.cell(provider, label, self._tool_label(provider, call.tool))[0] += 1

    def _count(self, handles: InterceptionHandles, kind: str, number: int) -> None:
        cell = handles.tokens.get(kind)
        if cell is None:
            cell = self.tokens.cell(handles.provider, handles.model, kind, handles.client)
            handles.tokens[kind] = cell
        cell[0] += number

    def _known_model(self, provider: str, model: str) -> str:
        """The label of a model of which nothing can be told yet."""
        known = self._models.get(provider)
        return model if known is not None and model in known else OTHER

    def _model_label(self, provider: str, model: str, *, accepted: bool) -> str:
        known = self._models.get(provider)
        if known is None:
            known = self._models[provider] = set()
        if model in known:
            return model
        if accepted and len(known) < _MODELS_MAX:
            known.add(model)
            return model
        return OTHER

    def _tool_label(self, provider: str, tool: str) -> str:
        known = self._tool_names.setdefault(provider, set())
        if tool in known or len(known) < _TOOLS_MAX:
            known.add(tool)
            return tool
        return OTHER
