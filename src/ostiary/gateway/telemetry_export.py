"""The OpenTelemetry SDK's part: spans and measurements out of `telemetry_spans`, sent over OTLP/HTTP (protobuf).

Rules
- One thread uses it, that of `telemetry`; only `abort` comes from another one.
- `otel_endpoint` says where to. All else is the SDK's own: the OTEL_* variables for headers, certificates, time-outs,
  compression, service name, resource, sampler and the interval of metrics mean what its documentation says.
- What the SDK logs, of a collector that is away a line at each try, is told now and then.
"""

import logging
import time
import uuid
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any, Final, cast

import structlog
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.metrics import Counter, Histogram
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from ostiary.core.settings import GatewaySettings

from .telemetry_spans import INSTRUMENTS, Conventions, Ended, SpanData, attempt_spans, measurements, server_span

log = structlog.get_logger()

_SCHEMA: Final = "https://opentelemetry.io/schemas/1.41.0"
_MODELS_MAX: Final = 200
_OTHER: Final = "other"
_SAID_INTERVAL: Final = 60.0
_KINDS: Final = {"server": trace.SpanKind.SERVER, "client": trace.SpanKind.CLIENT}


class OtlpSink:
    """Implements `telemetry.Sink`. Raises `ValueError` or `OSError` when a variable of the SDK is wrong."""

    def __init__(self, settings: GatewaySettings, environ: Mapping[str, str]) -> None:
        _quieten(logging.getLogger("opentelemetry"))
        self._conventions: Conventions = settings.otel_conventions
        self._content = settings.otel_content
        self._user = settings.otel_user
        self._models: dict[str, set[str]] = {}
        schema = _SCHEMA if self._conventions == "v1.41" else None
        resource = _resource()
        self._spans = _Spans(settings.otel_endpoint, environ) if _wanted("TRACES", environ) else None
        self._tracer: trace.Tracer | None = None
        if self._spans is not None:
            tracers = TracerProvider(resource=resource, shutdown_on_exit=False)
            tracers.add_span_processor(SimpleSpanProcessor(cast("SpanExporter", self._spans)))
            self._tracer = tracers.get_tracer("ostiary", version("ostiary"), schema)
        self._meters: MeterProvider | None = None
        self._instruments: dict[str, Counter | Histogram] = {}
        if _wanted("METRICS", environ):
            self._open_metrics(settings.otel_endpoint, environ, resource, schema)

    def _open_metrics(self, endpoint: str, environ: Mapping[str, str], resource: Resource, schema: str | None) -> None:
        exporter = OTLPMetricExporter(_signal_endpoint("METRICS", endpoint, environ))
        reader = PeriodicExportingMetricReader(exporter)
        self._meters = MeterProvider([reader], resource, shutdown_on_exit=False)
        meter = self._meters.get_meter("ostiary", version("ostiary"), schema)
        for one in INSTRUMENTS[self._conventions]:
            self._instruments[one.name] = (
                meter.create_histogram(
                    one.name, one.unit, one.description, explicit_bucket_boundaries_advisory=list(one.bounds)
                )
                if one.bounds
                else meter.create_counter(one.name, one.unit, one.description)
            )

    def add(self, ended: Ended) -> None:
        if self._tracer is not None:
            self._trace(self._tracer, ended)
        if self._instruments:
            for one in measurements(ended, self._conventions, lambda model: self._model_label(ended, model)):
                instrument = self._instruments[one.name]
                if isinstance(instrument, Counter):
                    instrument.add(one.value, one.attributes)
                else:
                    instrument.record(one.value, one.attributes)

    def flush(self) -> str:
        return self._spans.send() if self._spans is not None else ""

    def abort(self) -> None:
        if self._spans is not None:
            self._spans.abort()

    def close(self) -> None:
        if self._spans is not None:
            self._spans.abort()
        if self._meters is not None:
            self._meters.shutdown()

    def _trace(self, tracer: trace.Tracer, ended: Ended) -> None:
        carrier = {"traceparent": ended.traceparent, "tracestate": ended.tracestate} if ended.traceparent else {}
        parent = TraceContextTextMapPropagator().extract(carrier, Context())
        request = server_span(ended, user=self._user)
        span = _begin(tracer, request, parent)
        below = trace.set_span_in_context(span, Context())
        if span.is_recording():
            for attempt in attempt_spans(ended, self._conventions, content=self._content):
                _begin(tracer, attempt, below).end(attempt.end_ns)
        span.end(request.end_ns)

    def _model_label(self, ended: Ended, model: str) -> str:
        """Of a provider the first 200 names that got an answer; `other` for what else clients write."""
        known = self._models.setdefault(ended.start.provider_name, set())
        if model not in known and len(known) < _MODELS_MAX and 200 <= ended.end.status_code < 300:
            known.add(model)
        return model if model in known else _OTHER


def _begin(tracer: trace.Tracer, data: SpanData, parent: Context) -> trace.Span:
    span = tracer.start_span(
        data.name, parent, _KINDS[data.kind], cast("Any", data.attributes), start_time=data.start_ns
    )
    for name, at_ns in data.events:
        span.add_event(name, timestamp=at_ns)
    if data.failed:
        span.set_status(trace.StatusCode.ERROR, data.description or None)
    return span


class _Spans:
    """Implements `SpanExporter` for the SDK: spans are kept until `send`."""

    def __init__(self, endpoint: str, environ: Mapping[str, str]) -> None:
        # Any: not all of its methods have types
        self._exporter: Any = OTLPSpanExporter(_signal_endpoint("TRACES", endpoint, environ))
        self._waiting: list[ReadableSpan] = []

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self._waiting.extend(spans)
        return SpanExportResult.SUCCESS

    def send(self) -> str:
        """Why it failed, or nothing."""
        waiting, self._waiting = self._waiting, []
        if waiting and self._exporter.export(waiting) is not SpanExportResult.SUCCESS:
            return "the collector did not take the spans"
        return ""

    def abort(self) -> None:
        self._exporter.shutdown()

    def shutdown(self) -> None:
        """The SDK's; ours is `abort`."""

    def force_flush(self, _timeout_millis: int = 30000) -> bool:
        return True


class _SdkLog(logging.Handler):
    """At most one error of the SDK every while."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self._said_at = -_SAID_INTERVAL

    def emit(self, record: logging.LogRecord) -> None:
        now = time.monotonic()
        if now - self._said_at >= _SAID_INTERVAL:
            self._said_at = now
            log.warning("hearing an error of OpenTelemetry", said=record.getMessage())


def _quieten(logger: logging.Logger) -> None:
    logger.propagate = False
    logger.handlers = [_SdkLog()]


def _resource() -> Resource:
    """`service.name` and further attributes are the variables', if they say something."""
    found = Resource.create({"service.version": version("ostiary"), "service.instance.id": str(uuid.uuid4())})
    if str(found.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):
        found = found.merge(Resource({SERVICE_NAME: "ostiary"}))
    return found


def _wanted(signal: str, environ: Mapping[str, str]) -> bool:
    return environ.get(f"OTEL_{signal}_EXPORTER", "").strip().lower() != "none"


def _signal_endpoint(signal: str, endpoint: str, environ: Mapping[str, str]) -> str:
    """OTLP/HTTP: the signal's own variable as it stands, else its path below the endpoint."""
    return environ.get(f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT", "") or f"{endpoint}/v1/{signal.lower()}"
