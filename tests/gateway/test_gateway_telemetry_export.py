"""Telemetry against a collector: what arrives there, and what becomes of it while the collector is slow or away."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from structlog.testing import capture_logs

from ostiary.core.providers import ProviderKey, ProviderSpec
from ostiary.core.records import InterceptionEnd, InterceptionStart
from ostiary.core.secret import Secret
from ostiary.core.settings import GatewaySettings
from ostiary.gateway.metrics import GatewayMetrics
from ostiary.gateway.providers import build_provider
from ostiary.gateway.telemetry import Telemetry
from ostiary.gateway.telemetry_spans import Ended
from ostiary.http1.head import RequestHead
from tests.support.otlp import Collector, collector
from tests.support.records import end, start
from tests.support.supervised import eventually

KEY = ProviderKey("k", Secret("sk-a-provider-key-0123456789"))
PROVIDER = build_provider(
    ProviderSpec("i", "claude-main", "anthropic", enabled=True, base_url="https://api.anthropic.com", keys=(KEY,)),
    allow_byok=True,
)
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"


@pytest.fixture
def taken() -> Iterator[Collector]:
    with collector() as found:
        yield found


def head(*lines: bytes) -> RequestHead:
    found = RequestHead(1, list(lines), b"POST", b"/api/v2/ai-gateway/claude-main/v1/messages")
    found.fields = dict(line.split(b": ") for line in lines)
    return found


def opened(
    url: str, metrics: GatewayMetrics | None = None, environ: dict[str, str] | None = None, **more: Any
) -> Telemetry:
    settings = GatewaySettings(journal_dir="", otel_endpoint=url, **more)
    found = Telemetry.open(settings, metrics or GatewayMetrics(), environ or {})
    assert found is not None
    return found


def tell(telemetry: Telemetry, *lines: bytes, **fields: Any) -> tuple[InterceptionStart, InterceptionEnd]:
    one = start(**fields)
    last = end(one, calls=["toolu_1"], output_text="A door keeper.")
    telemetry.ended(one, last, head(*lines), PROVIDER)
    return one, last


def dropped(metrics: GatewayMetrics, reason: str) -> float:
    return metrics.telemetry_dropped.cell(reason)[0]


def test_spans_and_metrics_arrive_with_what_they_say(taken: Collector) -> None:
    telemetry = opened(taken.url)
    one, _ = tell(telemetry, b"traceparent: 00-" + TRACE.encode() + b"-" + PARENT.encode() + b"-01", b"tracestate: a=b")
    telemetry.close(30)
    attempt, request = taken.spans()
    assert (request["name"], request["kind"]) == ("POST /{provider}/v1/messages", 2)
    assert (request["trace"], request["parent"], request["state"]) == (TRACE, PARENT, "a=b")
    assert request["start"] == one.started_at * 1000
    assert request["attributes"]["ostiary.interception.id"] == one.id
    assert request["schema"] == "https://opentelemetry.io/schemas/1.41.0"
    assert (attempt["name"], attempt["kind"]) == ("chat claude-sonnet-4-5", 3)
    assert (attempt["trace"], attempt["parent"]) == (TRACE, request["id"])
    assert attempt["attributes"]["server.address"] == "api.anthropic.com"
    assert attempt["attributes"]["gen_ai.provider.name"] == "anthropic"
    assert {"service.name", "service.version", "service.instance.id"} <= taken.resource().keys()
    assert taken.resource()["service.name"] == "ostiary"
    assert not [word for word in ("door", "ostiary?", one.initiator_id) if word in str(taken.spans())]
    points = taken.points()
    (duration,) = points["gen_ai.client.operation.duration"]
    assert (duration["count"], duration["unit"]) == (1, "s")
    assert duration["bounds"][0] == 0.01
    assert duration["bounds"][-1] == 81.92
    kinds = {point["attributes"]["gen_ai.token.type"]: point for point in points["gen_ai.client.token.usage"]}
    assert {kind: point["sum"] for kind, point in kinds.items()} == {"input": 5690, "output": 34}
    assert kinds["input"]["bounds"] == [4.0**power for power in range(14)]


def test_the_opt_in_changes_the_names(taken: Collector) -> None:
    telemetry = opened(taken.url, otel_conventions="latest", otel_content=True, otel_user=True)
    one, _ = tell(telemetry)
    telemetry.close(30)
    attempt, request = taken.spans()
    assert request["attributes"]["user.id"] == one.initiator_id
    assert "what is an ostiary?" in attempt["attributes"]["gen_ai.input.messages"]
    assert "A door keeper." in attempt["attributes"]["gen_ai.output.messages"]
    assert "gen_ai.client.inference.duration" in taken.points()
    assert "gen_ai.client.token.usage" not in taken.points()


@pytest.mark.parametrize(
    "line", [b"traceparent: nonsense", b"traceparent: 00-" + b"0" * 32 + b"-" + b"0" * 16 + b"-01"]
)
def test_a_trace_context_that_is_none_begins_a_trace(line: bytes, taken: Collector) -> None:
    telemetry = opened(taken.url)
    tell(telemetry, line)
    telemetry.close(30)
    attempt, request = taken.spans()
    assert request["parent"] == ""
    assert int(request["trace"], 16)
    assert attempt["trace"] == request["trace"]


def test_what_the_client_does_not_sample_is_measured_and_not_traced(taken: Collector) -> None:
    telemetry = opened(taken.url)
    tell(telemetry, b"traceparent: 00-" + TRACE.encode() + b"-" + PARENT.encode() + b"-00")
    telemetry.close(30)
    assert not taken.spans()
    assert taken.points()["gen_ai.client.operation.duration"][0]["count"] == 1


def test_variables_of_opentelemetry_are_heeded(taken: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (
        ("OTEL_SERVICE_NAME", "our-gateway"),
        ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=42"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
        ("OTEL_METRICS_EXPORTER", "none"),
    ):
        monkeypatch.setenv(name, value)
    telemetry = opened(taken.url, environ=dict(os.environ))
    tell(telemetry)
    telemetry.close(30)
    assert taken.resource()["service.name"] == "our-gateway"
    assert taken.resource()["deployment.environment.name"] == "test"
    assert taken.headers[0]["x-tenant"] == "42"
    assert taken.headers[0]["content-encoding"] == "gzip"
    assert not taken.metrics


def test_a_signal_may_go_elsewhere_or_nowhere(taken: Collector) -> None:
    elsewhere = {"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": f"{taken.url}/v1/metrics"}
    telemetry = opened("http://127.0.0.1:1", environ=elsewhere)
    tell(telemetry)
    telemetry.close(30)
    assert not taken.traces
    assert taken.points()


def test_off_is_off() -> None:
    assert Telemetry.open(GatewaySettings(journal_dir=""), GatewayMetrics(), {}) is None
    settings = GatewaySettings(journal_dir="", otel_endpoint="http://127.0.0.1:1")
    assert Telemetry.open(settings, GatewayMetrics(), {"OTEL_SDK_DISABLED": "true"}) is None


def test_a_worker_without_it_does_not_import_the_sdk() -> None:
    asked = (
        "import sys, ostiary.gateway.process; print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, check=True)
    assert done.stdout.strip() == b"[]"


def test_a_wrong_variable_is_told_and_the_gateway_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "-5")
    settings = GatewaySettings(journal_dir="", otel_endpoint="http://127.0.0.1:1")
    with capture_logs() as lines:
        assert Telemetry.open(settings, GatewayMetrics(), {}) is None
    assert [line["event"] for line in lines] == ["leaving telemetry off: an OTEL_* variable is wrong"]


def test_a_protocol_that_is_not_spoken_is_told(taken: Collector) -> None:
    with capture_logs() as lines:
        telemetry = opened(taken.url, environ={"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"})
    tell(telemetry)
    telemetry.close(30)
    assert [line["otel_exporter_otlp_protocol"] for line in lines] == ["grpc"]
    assert taken.spans()


def test_names_of_models_are_bounded(taken: Collector) -> None:
    telemetry = opened(taken.url)
    for number in range(300):
        tell(telemetry, model=f"model-{number}")
    telemetry.close(30)
    models = {
        point["attributes"]["gen_ai.request.model"] for point in taken.points()["gen_ai.client.operation.duration"]
    }
    assert len(models) == 201
    assert "other" in models


def test_telling_never_waits_for_the_collector_and_what_does_not_fit_is_counted(taken: Collector) -> None:
    metrics = GatewayMetrics()
    taken.let_go.clear()
    telemetry = opened(taken.url, metrics)
    tell(telemetry)
    assert taken.arrived.acquire(timeout=10)  # the thread waits for an answer from here on
    with capture_logs() as lines:
        for _ in range(2100):
            tell(telemetry)
    assert dropped(metrics, "queue_full") == 2101 - 2048
    assert [line["event"] for line in lines] == ["dropping telemetry, the collector is too slow"]
    taken.let_go.set()
    telemetry.close(30)
    assert len(taken.spans()) == 2 * 2048


def test_content_that_waits_is_bounded_too(taken: Collector) -> None:
    metrics = GatewayMetrics()
    taken.let_go.clear()
    telemetry = opened(taken.url, metrics, otel_content=True)
    one, last = tell(telemetry)
    assert taken.arrived.acquire(timeout=10)
    large = end(one, output_text="x" * (12 * 1024 * 1024))
    for _ in range(3):
        telemetry.ended(one, large, head(), PROVIDER)
    assert dropped(metrics, "queue_full") == 1
    telemetry.ended(one, last, head(), PROVIDER)  # there is still room for a small one
    assert dropped(metrics, "queue_full") == 1
    taken.let_go.set()
    telemetry.close(30)
    assert len(taken.spans()) == 8


@pytest.mark.parametrize("status", [400, 0])
def test_what_the_collector_does_not_take_is_counted(status: int, taken: Collector, monkeypatch: Any) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "10" if status else "1")
    metrics = GatewayMetrics()
    taken.status = status
    with capture_logs() as lines:
        telemetry = opened(taken.url if status else "http://127.0.0.1:1", metrics)
        tell(telemetry)
        tell(telemetry)
        eventually(lambda: dropped(metrics, "export_failed") == 2, "two are lost")
        telemetry.close(30)
    told = [line["event"] for line in lines]
    assert sorted(told) == ["failing to send telemetry", "hearing an error of OpenTelemetry"]  # however often it failed


def test_it_recovers_when_the_collector_does(taken: Collector) -> None:
    metrics = GatewayMetrics()
    taken.status = 400
    telemetry = opened(taken.url, metrics)
    tell(telemetry)
    eventually(lambda: dropped(metrics, "export_failed") == 1, "one is lost")
    taken.status = 200
    tell(telemetry)
    telemetry.close(30)
    assert len(taken.spans()) == 2


def test_the_end_waits_for_a_collector_only_so_long(taken: Collector) -> None:
    taken.let_go.clear()
    telemetry = opened(taken.url)
    tell(telemetry)
    assert taken.arrived.acquire(timeout=10)
    with capture_logs() as lines:
        telemetry.close(0.05)
    assert [line["event"] for line in lines] == ["leaving telemetry unsent"]


class OddSink:
    """One that cannot make a span of its first interception."""

    def __init__(self) -> None:
        self.added: list[Ended] = []
        self.flushed = threading.Event()
        self.odd = True

    def add(self, ended: Ended) -> None:
        if self.odd:
            self.odd = False
            raise KeyError("a name of content that nobody may see")
        self.added.append(ended)

    def flush(self) -> str:
        self.flushed.set()
        return ""

    def abort(self) -> None:
        """Nothing is sent."""

    def close(self) -> None:
        """As above."""


def test_an_odd_record_takes_no_other_down_and_is_not_quoted() -> None:
    sink, metrics = OddSink(), GatewayMetrics()
    with capture_logs() as lines:
        telemetry = Telemetry(sink, metrics, content=False)
        tell(telemetry)
        tell(telemetry)
        telemetry.close(30)
    assert len(sink.added) == 1
    assert sink.flushed.is_set()
    assert dropped(metrics, "export_failed") == 1
    assert "nobody may see" not in str(lines)


def test_content_does_not_wait_in_memory_when_it_is_not_sent() -> None:
    sink = OddSink()
    sink.odd = False
    telemetry = Telemetry(sink, GatewayMetrics(), content=False)
    one, last = tell(telemetry)
    telemetry.close(30)
    (kept,) = sink.added
    assert (kept.start.prompt, kept.end.output_text, kept.end.tool_usages, kept.end.model_thoughts) == (
        None,
        "",
        [],
        [],
    )
    assert kept.end.token_usages == last.token_usages
    assert one.prompt is not None
