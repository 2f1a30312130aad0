"""What is counted of an interception, and that no label grows without bound."""

from ostiary.core.records import Outcome
from ostiary.gateway.metrics import OTHER, GatewayMetrics
from ostiary.wire.facts import ResponseFacts, ToolCall, Usage

CLIENT_CLOSED = "ostiary_interceptions_client_closed"


def samples(metrics: GatewayMetrics, name: str) -> dict[tuple[str, ...], float]:
    (family,) = [family for family in metrics.report() if family.name == name]
    return {sample.labels: sample.value for sample in family.samples if sample.value}


def ended(
    metrics: GatewayMetrics,
    model: str = "m",
    *,
    status: int = 200,
    outcome: Outcome | None = None,
    facts: ResponseFacts | None = None,
) -> None:
    outcome = outcome or ("completed" if status == 200 else "upstream_error")
    metrics.ended(
        "p", model, "/v1/messages", "", status=status, outcome=outcome, seconds=1.0, prompted=True, facts=facts
    )


def test_tokens_are_counted_by_kind_and_zeros_make_no_series():
    metrics = GatewayMetrics()
    usage = Usage(129, 44, 11904, 0, {"output_reasoning": 7, "total_tokens": 0, "service_tier": "x"}, "")
    ended(metrics, facts=ResponseFacts(usage=usage))
    assert samples(metrics, "ostiary_tokens") == {
        ("p", "m", "input", "unknown"): 129,
        ("p", "m", "output", "unknown"): 44,
        ("p", "m", "cache_read_input_tokens", "unknown"): 11904,
        ("p", "m", "output_reasoning", "unknown"): 7,
    }


def test_a_model_that_never_worked_is_other():
    metrics = GatewayMetrics()
    ended(metrics, "made-up", status=404)
    ended(metrics, "real")
    counted = samples(metrics, "ostiary_interceptions")
    assert {(labels[1], labels[2]): value for labels, value in counted.items()} == {
        (OTHER, "failed"): 1,
        ("real", "completed"): 1,
    }


def test_clients_that_hung_up_are_among_the_failed_and_counted_apart():
    metrics = GatewayMetrics()
    ended(metrics)
    assert [
        sample.labels for family in metrics.report() if family.name == CLIENT_CLOSED for sample in family.samples
    ] == [
        ("p",)  # there before it happens, so that alerts can subtract it
    ]
    ended(metrics, outcome="client_closed")
    ended(metrics, status=500)
    assert samples(metrics, CLIENT_CLOSED) == {("p",): 1}
    assert samples(metrics, "ostiary_interceptions")["p", "m", "failed", "/v1/messages", "POST", "unknown"] == 2


def test_models_and_tools_are_bounded():
    metrics = GatewayMetrics()
    for number in range(700):
        ended(metrics, f"m{number}", facts=ResponseFacts(tool_calls=(ToolCall(f"t{number}"),)))
    assert len({labels[1] for labels in samples(metrics, "ostiary_interceptions")}) == 201
    assert len({labels[2] for labels in samples(metrics, "ostiary_non_injected_tool_selections")}) == 501


def test_the_gauge_of_what_is_under_way_returns_to_zero():
    metrics = GatewayMetrics()
    ended(metrics, "m")
    cell = metrics.inflight("p", "m", "/v1/messages")
    cell[0] += 1
    assert samples(metrics, "ostiary_interceptions_inflight") == {("p", "m", "/v1/messages"): 1}
    cell[0] -= 1
    assert samples(metrics, "ostiary_interceptions_inflight") == {}


def test_an_unknown_method_is_other():
    metrics = GatewayMetrics()
    metrics.passed_through("p", "/v1/models", b"BREW")
    assert samples(metrics, "ostiary_passthrough") == {("p", "/v1/models", "OTHER"): 1}
