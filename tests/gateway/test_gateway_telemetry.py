"""What OpenTelemetry is told of an interception: spans and measurements as data, by both sets of names."""

from typing import Any

import msgspec
import pytest

from ostiary.core.providers import ProviderType
from ostiary.core.records import Attempt, InterceptionEnd, InterceptionStart, TokenUsage, Trace
from ostiary.gateway.telemetry_spans import (
    INSTRUMENTS,
    Conventions,
    Ended,
    Measurement,
    attempt_spans,
    measurements,
    operation_of,
    server_span,
    system_of,
)
from tests.support.records import end, start

T0 = 1_790_000_000_000_000
STAGES = {"identify": 10, "body": 20, "check": 30, "record": 40, "connect": 900, "head": 500_000, "end": 2_000_000}


def attempt(at_us: int = 1000, status: int = 200, error: str = "", **more: Any) -> Attempt:
    return Attempt("sk-a...wxyz", True, status, error, at_us, **more)


def ended(*attempts: Attempt, begun: dict[str, Any] | None = None, **fields: Any) -> Ended:
    one = start(started_at=T0, **(begun or {}))
    stages = fields.pop("stages", STAGES)
    trace = Trace([], fields.pop("edits", []), list(attempts), stages, fields.pop("notes", []))
    last = end(one, trace=trace, calls=fields.pop("calls", ()), **fields)
    return Ended(one, last, "POST", ProviderType.ANTHROPIC, "api.anthropic.com", 443)


def usage(**numbers: Any) -> list[TokenUsage]:
    return [TokenUsage("u", T0, "msg_1", **numbers)]


def test_the_request_is_a_server_span_from_its_head_to_its_end() -> None:
    span = server_span(ended(attempt(), edits=["one"], notes=["two"]), user=False)
    assert (span.name, span.kind) == ("POST /{provider}/v1/messages", "server")
    assert (span.start_ns, span.end_ns) == (T0 * 1000, (T0 + 2_000_000) * 1000)
    assert span.events == tuple((name, (T0 + at) * 1000) for name, at in STAGES.items() if name != "end")
    assert not span.failed
    assert {
        "http.request.method": "POST",
        "http.route": "/{provider}/v1/messages",
        "http.response.status_code": 200,
        "user_agent.original": "claude-cli/2.0",
        "gen_ai.request.model": "claude-sonnet-4-5",
        "ostiary.client": "Claude Code",
        "ostiary.provider": "claude-main",
        "ostiary.outcome": "completed",
        "ostiary.edits": ["one"],
        "ostiary.notes": ["two"],
    }.items() <= span.attributes.items()
    assert "error.type" not in span.attributes


def test_who_asked_is_told_only_when_asked_for() -> None:
    given = ended(attempt())
    assert given.start.initiator_id not in str(server_span(given, user=False))
    assert server_span(given, user=True).attributes["user.id"] == given.start.initiator_id


def test_each_attempt_is_a_client_span_that_ends_where_the_next_begins() -> None:
    first, second = attempt_spans(ended(attempt(1000, 429), attempt(300_000)), "v1.41", content=False)
    assert (first.start_ns, first.end_ns) == ((T0 + 1000) * 1000, (T0 + 300_000) * 1000)
    assert (second.start_ns, second.end_ns) == ((T0 + 300_000) * 1000, (T0 + 2_000_000) * 1000)
    assert {span.name for span in (first, second)} == {"chat claude-sonnet-4-5"}
    assert (first.failed, first.attributes["error.type"], first.attributes["http.response.status_code"]) == (
        True,
        "429",
        429,
    )
    assert not second.failed
    assert "gen_ai.usage.input_tokens" not in first.attributes  # the answer is the last one's
    assert second.attributes["gen_ai.response.finish_reasons"] == ["end_turn"]


@pytest.mark.parametrize(("conventions", "written"), [("v1.41", "cache_creation"), ("latest", "cache_write")])
def test_the_answer_by_the_names_of_the_conventions(conventions: Conventions, written: str) -> None:
    numbers = {"input_tokens": 5, "output_tokens": 7, "cache_read_input_tokens": 100, "cache_write_input_tokens": 20}
    given = ended(attempt(), token_usages=usage(**numbers, metadata={"output_reasoning": 3, "service_tier": "x"}))
    (span,) = attempt_spans(given, conventions, content=False)
    assert {name: value for name, value in span.attributes.items() if not name.startswith("ostiary.")} == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "anthropic",
        "gen_ai.request.model": "claude-sonnet-4-5",
        "gen_ai.request.stream": True,
        "gen_ai.response.model": "claude-sonnet-4-5",
        "gen_ai.response.id": "msg_1",
        "gen_ai.response.finish_reasons": ["end_turn"],
        "gen_ai.usage.input_tokens": 125,  # with what the caches read and took
        "gen_ai.usage.output_tokens": 7,
        "gen_ai.usage.cache_read.input_tokens": 100,
        f"gen_ai.usage.{written}.input_tokens": 20,
        "gen_ai.usage.reasoning.output_tokens": 3,
        "http.response.status_code": 200,
        "server.address": "api.anthropic.com",
        "server.port": 443,
    }


@pytest.mark.parametrize("conventions", ["v1.41", "latest"])
def test_the_first_chunk_of_a_stream_counts_from_its_request(conventions: Conventions) -> None:
    def told(**more: Any) -> tuple[list[object], list[float]]:
        given = ended(attempt(1000, 429), attempt(300_000), stages=STAGES | {"first_chunk": 550_000}, **more)
        spans = attempt_spans(given, conventions, content=False)
        measured = [one.value for one in measurements(given, conventions, str) if one.name.endswith("first_chunk")]
        return [span.attributes.get("gen_ai.response.time_to_first_chunk") for span in spans], measured

    assert told() == ([None, 0.25], [0.549])  # each span its own; the metric's call began with the first attempt
    assert told(begun={"streaming": False}) == ([None, None], [])
    assert told(status_code=500, outcome="upstream_error") == ([None, None], [])
    assert told(begun={"route": "/v1/audio/speech", "route_kind": "metered"})[1] == []


def test_content_only_when_asked_for_and_only_what_is_recorded() -> None:
    given = ended(attempt(), calls=["toolu_1"], output_text="A door keeper.")
    (plain,) = attempt_spans(given, "v1.41", content=False)
    assert "door" not in str(plain)
    assert "ostiary?" not in str(plain)
    (span,) = attempt_spans(given, "v1.41", content=True)
    (asked,) = msgspec.json.decode(str(span.attributes["gen_ai.input.messages"]))
    assert asked == {"role": "user", "parts": [{"type": "text", "content": "what is an ostiary?"}]}
    (answer,) = msgspec.json.decode(str(span.attributes["gen_ai.output.messages"]))
    assert (answer["role"], answer["finish_reason"]) == ("assistant", "end_turn")
    assert [part["type"] for part in answer["parts"]] == ["reasoning", "text", "tool_call"]
    bare = ended(attempt(), begun={"prompt": None}, model_thoughts=[])
    (span,) = attempt_spans(bare, "v1.41", content=True)
    assert not [name for name in span.attributes if name.endswith(".messages")]


@pytest.mark.parametrize(
    ("one", "fields", "error", "request_failed"),
    [
        (
            attempt(status=529),
            {"status_code": 529, "outcome": "upstream_error", "error_type": "overloaded"},
            "529",
            True,
        ),
        (attempt(status=400), {"status_code": 400, "outcome": "upstream_error"}, "400", False),
        (
            attempt(status=0, error="connect: refused"),
            {"status_code": 502, "outcome": "upstream_error", "error_type": "server_error"},
            "server_error",
            True,
        ),
        (
            attempt(error="it ended early"),
            {"outcome": "upstream_error", "error_type": "timeout"},
            "timeout",
            True,
        ),
        (attempt(), {"outcome": "client_closed", "error_type": "unknown"}, "", False),
        (attempt(), {"outcome": "interrupted", "error_type": None}, "", True),
    ],
)
def test_what_counts_as_an_error(one: Attempt, fields: dict[str, Any], error: str, request_failed: bool) -> None:
    given = ended(one, **fields)
    (span,) = attempt_spans(given, "v1.41", content=False)
    assert span.attributes.get("error.type", "") == error
    assert span.failed is bool(error)
    assert server_span(given, user=False).failed is request_failed


def test_what_never_went_upstream_has_no_attempt_and_is_not_measured() -> None:
    given = ended(outcome="rejected", status_code=503, token_usages=[])
    assert attempt_spans(given, "v1.41", content=False) == []
    assert measurements(given, "v1.41", str) == []
    assert server_span(given, user=False).attributes["error.type"] == "503"


def test_times_go_on_when_the_wall_clock_is_set_back() -> None:
    given = ended(attempt(), ended_at=T0 - 5_000_000)
    assert server_span(given, user=False).end_ns == (T0 + 2_000_000) * 1000
    bare = msgspec.structs.replace(given, end=msgspec.structs.replace(given.end, trace=None))
    span = server_span(bare, user=False)
    assert span.end_ns == span.start_ns


def named(found: list[Measurement]) -> dict[str, float]:
    """Values by name, and by kind of token where there is one."""
    kind = "gen_ai.token.type"
    return {f"{one.name} {one.attributes.get(kind, '')}".rstrip(): one.value for one in found}


TOLD: dict[str, Any] = {"token_usages": usage(input_tokens=5, output_tokens=7, cache_read_input_tokens=100)}


def test_measurements_of_v1_41() -> None:
    found = measurements(ended(attempt(), **TOLD), "v1.41", str.upper)
    assert named(found) == {
        "gen_ai.client.operation.duration": 1.999,
        "gen_ai.client.token.usage input": 105,
        "gen_ai.client.token.usage output": 7,
    }
    assert found[0].attributes == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "anthropic",
        "gen_ai.request.model": "CLAUDE-SONNET-4-5",
        "gen_ai.response.model": "CLAUDE-SONNET-4-5",
        "server.address": "api.anthropic.com",
        "server.port": 443,
    }


def test_measurements_of_the_names_after_it() -> None:
    usage_ = "gen_ai.client.inference.usage."
    assert named(measurements(ended(attempt(), **TOLD), "latest", str)) == {
        "gen_ai.client.inference.duration": 1.999,
        "gen_ai.client.inference.operation.input_tokens": 105,
        "gen_ai.client.inference.operation.output_tokens": 7,
        usage_ + "input_tokens": 105,
        usage_ + "output_tokens": 7,
        usage_ + "cache_read.input_tokens": 100,
        usage_ + "cache_write.input_tokens": 0,
        usage_ + "reasoning.output_tokens": 0,
    }
    embeddings = {"route": "/v1/embeddings", "route_kind": "metered"}
    assert named(measurements(ended(attempt(), begun=embeddings, **TOLD), "latest", str)) == {
        "gen_ai.client.embeddings.duration": 1.999,
        "gen_ai.client.embeddings.operation.input_tokens": 105,
    }
    speech = {"route": "/v1/audio/speech", "route_kind": "metered"}
    assert list(named(measurements(ended(attempt(), begun=speech, **TOLD), "latest", str))) == [
        "gen_ai.client.operation.duration"
    ]


def test_no_usage_is_not_a_usage_of_nothing_and_an_error_is_counted_as_one() -> None:
    given = ended(attempt(status=500), outcome="upstream_error", status_code=500, token_usages=[])
    (one,) = measurements(given, "v1.41", str)
    assert one.attributes["error.type"] == "500"


@pytest.mark.parametrize("conventions", ["v1.41", "latest"])
@pytest.mark.parametrize("route", ["/v1/messages", "/v1/embeddings", "/v1/completions", "/v1/images/*"])
def test_every_measurement_has_its_instrument(conventions: Conventions, route: str) -> None:
    kind = "bridged" if route == "/v1/messages" else "metered"
    given = ended(attempt(), begun={"route": route, "route_kind": kind}, **TOLD)
    known = {one.name for one in INSTRUMENTS[conventions]}
    assert {one.name for one in measurements(given, conventions, str)} <= known


def test_names_of_operations_and_providers() -> None:
    def operation(route: str, kind: Any = "metered") -> str:
        return operation_of(start(route=route, route_kind=kind))

    assert operation("/v1/responses", "bridged") == "chat"
    assert operation("/v1/completions") == "text_completion"
    assert operation("/v1/embeddings") == "embeddings"
    assert operation("/v1/images/*") == "images"
    assert operation("/v1/audio/speech") == "speech"
    assert [system_of(kind) for kind in (ProviderType.BEDROCK, ProviderType.AZURE, ProviderType.OPENROUTER)] == [
        "aws.bedrock",
        "azure.ai.openai",
        "openrouter",
    ]


def test_records_are_not_changed_by_being_told() -> None:
    given = ended(attempt(), calls=["toolu_1"])
    before = msgspec.msgpack.encode(given)
    server_span(given, user=True), attempt_spans(given, "latest", content=True), measurements(given, "latest", str)
    assert msgspec.msgpack.encode(given) == before
    assert isinstance(given.start, InterceptionStart)
    assert isinstance(given.end, InterceptionEnd)
