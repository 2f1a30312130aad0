"""OpenTelemetry of a whole server, told to a collector; and the `interception log` lines of the machine that serves."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.fake_provider import FakeProvider
from tests.support.otlp import Collector, collector
from tests.support.raw_http import RawConnection, ask
from tests.support.server import PROVIDER_KEY, Server, eventually, open_directory

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"
CONTEXT = f"00-{TRACE}-{PARENT}-01"
LIMITED = "sk-a-key-that-is-limited-0123456789"


@pytest.fixture(scope="module")
def taken() -> Iterator[Collector]:
    with collector() as found:
        yield found


@pytest.fixture(scope="module")
def told(fake: FakeProvider, taken: Collector) -> Iterator[Server]:
    """One worker that sends to the collector, and writes the lines of its own records."""
    with open_directory() as directory:
        server = Server(
            directory,
            fake,
            *("--workers", "1", "--otel-endpoint", taken.url, "--record-content", "full", "--log-format", "json"),
            OSTIARY_STRUCTURED_LOGGING="true",
            OSTIARY_STRUCTURED_LOGGING_SOURCE="both",
            OSTIARY_PROVIDER_2_TYPE="openai",
            OSTIARY_PROVIDER_2_NAME="two-keys",
            OSTIARY_PROVIDER_2_KEYS=f"{LIMITED},{PROVIDER_KEY}",
            OSTIARY_PROVIDER_2_BASE_URL=f"{fake.url}/v1",
            OTEL_SERVICE_NAME="gateway-of-the-tests",
            OTEL_METRIC_EXPORT_INTERVAL="200",
        )
        try:
            yield server.start()
        finally:
            server.stop()


def call(server: Server, model: str, provider: str = "openai", **headers: str) -> str:
    """Ask for a completion; gives the interception's id."""
    body = {"model": model, "messages": [{"role": "user", "content": "a prompt nobody may see"}]}
    given = {"Authorization": f"Bearer {server.new_token('tell')}", "Content-Type": "application/json"} | headers
    answer = ask(
        server.port, "POST", f"/api/v2/ai-gateway/{provider}/v1/chat/completions", given, json.dumps(body).encode()
    )
    assert answer.status == 200
    found = answer.header("x-ostiary-interception-id")
    assert found
    return found


def spans_of(taken: Collector, interception: str, named: str = "ostiary.interception.id") -> list[dict[str, Any]]:
    """The request's span and those of its attempts, once they have arrived."""

    def found() -> list[dict[str, Any]]:
        spans = taken.spans()
        ids = [one["id"] for one in spans if one["attributes"].get(named) == interception]
        return [one for one in spans if one["id"] in ids or one["parent"] in ids]

    spans: list[dict[str, Any]] = eventually(found, what=f"the spans of {interception}")
    return sorted(spans, key=lambda one: one["kind"])


def test_a_call_is_a_trace_below_the_clients_own(told: Server, taken: Collector, fake: FakeProvider) -> None:
    interception = call(told, "test-model", traceparent=CONTEXT, tracestate="vendor=1", **{"X-Fake-Mark": "traced"})
    request, attempt = spans_of(taken, interception)
    assert (request["trace"], request["parent"], request["state"]) == (TRACE, PARENT, "vendor=1")
    assert (attempt["trace"], attempt["parent"]) == (TRACE, request["id"])
    assert request["start"] < attempt["start"] < attempt["end"] <= request["end"]
    assert attempt["name"] == "chat test-model"
    assert attempt["attributes"]["server.address"] == "127.0.0.1"
    assert attempt["attributes"]["server.port"] == int(fake.url.rpartition(":")[2])
    assert attempt["attributes"]["gen_ai.usage.output_tokens"] > 0
    assert [name for name, _ in request["events"]][:4] == ["identify", "body", "check", "record"]
    assert "nobody may see" not in str(taken.spans())
    assert taken.resource()["service.name"] == "gateway-of-the-tests"
    sent = dict(fake.entry("traced")["headers"])
    assert (sent["traceparent"], sent["tracestate"]) == (CONTEXT, "vendor=1")  # as the client's, untouched


def test_each_attempt_of_a_failover_is_a_span(told: Server, taken: Collector, fake: FakeProvider) -> None:
    fake.script_key(LIMITED, "status=429 retry-after=60")
    request, *attempts = spans_of(taken, call(told, "test-model", "two-keys"))
    first, second = sorted(attempts, key=lambda one: one["start"])
    assert (first["attributes"]["http.response.status_code"], first["attributes"]["error.type"]) == (429, "429")
    assert first["failed"]
    assert not second["failed"]
    assert not request["failed"]
    assert first["end"] == second["start"]
    assert LIMITED not in str(taken.spans())


def test_what_is_passed_on_is_a_trace_too(told: Server, taken: Collector) -> None:
    given = {"Authorization": f"Bearer {told.new_token('list')}", "traceparent": CONTEXT}
    answer = ask(told.port, "GET", "/api/v2/ai-gateway/openai/v1/models", given)
    assert answer.status == 200
    request, attempt = spans_of(taken, str(answer.header("x-ostiary-request-id")), "ostiary.request.id")
    assert (request["name"], attempt["name"]) == ("GET /{provider}/v1/models", "GET /v1/models")
    assert (request["parent"], attempt["parent"]) == (PARENT, request["id"])
    assert attempt["attributes"]["http.response.status_code"] == 200
    assert not any(name.startswith("gen_ai.") for name in attempt["attributes"])


def test_what_is_sent_is_not_lost_at_a_stop(fake: FakeProvider) -> None:
    with collector() as late, open_directory() as directory:
        server = Server(directory, fake, "--workers", "1", "--otel-endpoint", late.url).start()
        interception = call(server, "test-model")
        assert server.stop() == 0
        assert [one["attributes"].get("ostiary.interception.id") for one in late.spans()][1:] == [interception]
        assert late.points()["gen_ai.client.token.usage"]


def test_metrics_of_calls_arrive(told: Server, taken: Collector) -> None:
    call(told, "measured-model")

    def measured() -> list[dict[str, Any]]:
        points = taken.points().get("gen_ai.client.operation.duration", [])
        return [one for one in points if one["attributes"]["gen_ai.request.model"] == "measured-model"]

    (point,) = eventually(measured, what="the metric of a call")
    assert point["count"] == 1
    assert point["attributes"]["gen_ai.provider.name"] == "openai"


@pytest.mark.parametrize("spliced", [True, False], ids=["usage-is-spliced-in", "as-it-came"])
def test_the_first_chunk_of_a_stream_is_told(told: Server, taken: Collector, *, spliced: bool) -> None:
    body = {"model": "first-of-a-stream", "stream": True, "messages": [{"role": "user", "content": "x"}]}
    if not spliced:
        body["stream_options"] = {"include_usage": True}
    headers = {"Authorization": f"Bearer {told.new_token('streamer')}", "X-Fake": "events=4 pace=600"}
    answer = ask(told.port, "POST", "/api/v2/ai-gateway/openai/v1/chat/completions", headers, json.dumps(body).encode())
    interception = answer.header("x-ostiary-interception-id")
    assert interception
    _, attempt = spans_of(taken, interception)
    waited = attempt["attributes"]["gen_ai.response.time_to_first_chunk"]
    assert (
        0.0 < waited < (attempt["end"] - attempt["start"]) / 1e9 - 0.15
    )  # three more events came after it, seconds later

    def measured() -> list[dict[str, Any]]:
        points = taken.points().get("gen_ai.client.operation.time_to_first_chunk", [])
        return [one for one in points if one["attributes"]["gen_ai.request.model"] == "first-of-a-stream"]

    assert eventually(measured, what="the metric of a stream")


def test_server_and_machine_write_a_line_for_each_record(told: Server) -> None:
    interception = call(told, "logged-model")

    def lines() -> dict[str, list[dict[str, Any]]]:
        found: dict[str, list[dict[str, Any]]] = {}
        for text in told.log.read_text().splitlines():
            if interception in text and '"interception log"' in text:
                line = json.loads(text)
                found.setdefault(line["component"], []).append(line)
        return found

    def complete() -> dict[str, list[dict[str, Any]]] | None:
        found = lines()
        ended = [[line for line in of if line["record_type"] == "interception_end"] for of in found.values()]
        return found if len(found) == 2 and all(ended) else None

    found = eventually(complete, what="the lines of both")
    for component, of in found.items():
        kinds = [line["record_type"] for line in of]
        assert kinds == ["interception_start", "prompt_usage", "token_usage", "interception_end"], component
        assert ("thread_root_id" in of[0]) is (component == "control")
        assert of[0]["model"] == "logged-model"
        assert all(line["level"] == "info" for line in of)


def test_a_call_that_its_client_gives_up_is_told_with_what_it_used(told: Server, taken: Collector) -> None:
    body = {"model": "left-model", "max_tokens": 9, "messages": [{"role": "user", "content": "x"}], "stream": True}
    headers = {"Authorization": f"Bearer {told.new_token('leaver')}", "X-Fake": "hang=mid-body after=3"}
    with RawConnection(told.port) as connection:
        path = "/api/v2/ai-gateway/anthropic/v1/messages"
        connection.request("POST", path, headers, json.dumps(body).encode())
        seen = b""
        while b"message_start" not in seen:
            seen += connection.read_some()

    def left() -> list[dict[str, Any]]:
        return [one for one in taken.spans() if one["name"] == "chat left-model"]

    (attempt,) = eventually(left, what="the span of the attempt")
    assert attempt["attributes"]["http.response.status_code"] == 200
    assert attempt["attributes"]["gen_ai.usage.input_tokens"] > 0
    assert "error.type" not in attempt["attributes"]
    (request,) = [one for one in taken.spans() if one["id"] == attempt["parent"]]
    assert request["attributes"]["ostiary.outcome"] == "client_closed"
    assert not request["failed"]
