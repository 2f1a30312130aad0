"""A collector: takes OTLP over HTTP, decodes what comes by OpenTelemetry's own protocol buffers, and keeps it."""

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

pytest.importorskip("opentelemetry.sdk")
pytest.importorskip("opentelemetry.exporter.otlp.proto.http")

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


class Collector:
    """What came, decoded. `status` is what it answers with; `let_go` unset makes it wait with its answers."""

    def __init__(self) -> None:
        self.status = 200
        self.let_go = threading.Event()
        self.let_go.set()
        self.traces: list[Any] = []
        self.metrics: list[Any] = []
        self.headers: list[dict[str, str]] = []
        self.arrived = threading.Semaphore(0)
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def take(self, path: str, body: bytes, headers: dict[str, str]) -> int:
        self.headers.append(headers)
        self.arrived.release()
        assert self.let_go.wait(30)
        if self.status == 200:
            kind, kept = {
                "/v1/traces": (ExportTraceServiceRequest, self.traces),
                "/v1/metrics": (ExportMetricsServiceRequest, self.metrics),
            }[path]
            kept.append(kind.FromString(body))
        return self.status

    def spans(self) -> list[dict[str, Any]]:
        """As plain data, in the order of their end."""
        return [
            {
                "name": span.name,
                "kind": span.kind,
                "trace": span.trace_id.hex(),
                "id": span.span_id.hex(),
                "parent": span.parent_span_id.hex(),
                "state": span.trace_state,
                "start": span.start_time_unix_nano,
                "end": span.end_time_unix_nano,
                "attributes": _attributes(span.attributes),
                "events": [(event.name, event.time_unix_nano) for event in span.events],
                "failed": span.status.code == 2,
                "description": span.status.message,
                "schema": scope.schema_url,
            }
            for request in list(self.traces)
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def resource(self) -> dict[str, Any]:
        found: dict[str, Any] = _attributes(self.traces[0].resource_spans[0].resource.attributes)
        return found

    def points(self) -> dict[str, list[dict[str, Any]]]:
        """The last value of each metric, by its name."""
        found: dict[str, list[dict[str, Any]]] = {}
        for request in self.metrics:
            for resource in request.resource_metrics:
                for scope in resource.scope_metrics:
                    for metric in scope.metrics:
                        histogram = metric.WhichOneof("data") == "histogram"
                        points = metric.histogram.data_points if histogram else metric.sum.data_points
                        found[metric.name] = [
                            {
                                "attributes": _attributes(point.attributes),
                                "count": point.count if histogram else 0,
                                "sum": point.sum if histogram else point.as_double or point.as_int,
                                "bounds": list(point.explicit_bounds) if histogram else [],
                                "unit": metric.unit,
                            }
                            for point in points
                        ]
        return found


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(item) for item in value.array_value.values]
    return getattr(value, kind)


@contextmanager
def collector() -> Iterator[Collector]:
    """One that listens on a free port meanwhile."""
    taken = Collector()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers["Content-Encoding"] == "gzip":
                body = gzip.decompress(body)
            assert self.headers["Content-Type"] == "application/x-protobuf"
            status = taken.take(self.path, body, {name.lower(): value for name, value in self.headers.items()})
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    taken.port = server.server_port
    serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    serving.start()
    try:
        yield taken
    finally:
        taken.let_go.set()
        server.shutdown()
        server.server_close()
        serving.join()
