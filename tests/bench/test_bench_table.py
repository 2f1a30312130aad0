"""Floors, aims and verdicts."""

from typing import Any

import pytest

from bench.parts import DIRECT, NGINX, NGINX_TLS, OURS, OURS_TLS, Figures
from bench.rounds import Latency, Result
from bench.table import Row, rows
from bench.works import CALLS


def result(cpu_us: float, per_second: float = 1000.0) -> Result:
    return Result(per_second, cpu_us, 1.0, 1.0, 2.0, {}, 1.0, (cpu_us,))


def added(p50: float, p99: float) -> Latency:
    return Latency(1.0 + p50, 2.0 + p99, 0.0, 9.0, p50, p99, 80.0, 15)


@pytest.mark.parametrize(
    ("measured", "verdict"), [(None, "–"), ((1.7,), "aim"), ((1.71,), "floor"), ((3.0,), "floor"), ((3.01,), "missed")]
)
def test_verdict_of_a_number_that_should_be_small(measured: tuple[float, ...] | None, verdict: str) -> None:
    assert Row("work", (3.0,), (1.7,), measured).verdict == verdict


@pytest.mark.parametrize(("measured", "verdict"), [(200.0, "aim"), (199.0, "floor"), (49.9, "missed")])
def test_verdict_of_a_number_that_should_be_large(measured: float, verdict: str) -> None:
    assert Row("work", (50.0,), (200.0,), (measured,), more_is_better=True).verdict == verdict


def test_of_several_numbers_the_worst_decides() -> None:
    assert Row("latency", (0.6, 4.0), (0.3, 2.0), (0.1, 3.0)).verdict == "floor"
    assert Row("latency", (0.6, 4.0), (0.3, 2.0), (0.7, 1.0)).verdict == "missed"


def by_work(figures: Figures) -> dict[str, Row]:
    return {row.work: row for row in rows(figures)}


def test_a_run_that_measured_nothing_misses_nothing() -> None:
    found = rows(Figures())

    assert len(found) == 10
    assert {row.verdict for row in found} == {"–"}


@pytest.mark.parametrize(
    ("part", "work", "ours", "theirs"),
    [
        ("calls", "CPU per call, 2 KB → 1.5 KB, ÷ nginx", OURS, NGINX),
        ("calls-40k", "CPU per call with a 40 KB request, ÷ nginx", OURS, NGINX),
        ("stream", "CPU per stream, ÷ nginx", OURS, NGINX),
        ("tls", "the same calls over TLS to the upstream, ÷ nginx with TLS", OURS_TLS, NGINX_TLS),
    ],
)
def test_cpu_is_divided_by_that_of_nginx(part: str, work: str, ours: str, theirs: str) -> None:
    figures = Figures(compared={part: {ours: result(30.0), theirs: result(20.0), DIRECT: result(1.0)}})

    assert by_work(figures)[work].measured == (1.5,)


def test_latency_is_what_is_added_and_may_be_negative_in_noise() -> None:
    figures = Figures(latency={DIRECT: added(0.0, 0.0), NGINX: added(0.1, 0.2), OURS: added(0.2, -0.5)})

    row = by_work(figures)["added latency at 500 calls/s, p50 / p99, over direct"]

    assert row.measured == (0.2, -0.5)
    assert "direct 1.00 / 2.00 ms" in row.detail


def test_litellm_factor_is_of_rates_in_the_same_rounds() -> None:
    figures = Figures(gateways={CALLS.title: {OURS: result(80.0, 12_000.0), "LiteLLM": result(9000.0, 80.0)}})

    row = by_work(figures)["calls/s ÷ LiteLLM, same core, same work"]

    assert row.measured == (150.0,)
    assert row.verdict == "floor"


@pytest.mark.parametrize(
    ("figures", "work", "measured"),
    [
        (
            {"stream_bytes": {OURS: 8000.0, OURS_TLS: 50_000.0, NGINX: 1.0, NGINX_TLS: 1.0}},
            "memory per live stream, plain / TLS upstream",
            (8.0, 50.0),
        ),
        (
            {"compared": {"workers": {"one worker": result(100.0), "two workers": result(104.0)}}},
            "CPU per call with two workers ÷ with one",
            (1.04,),
        ),
        ({"soak": (100, 105, 1_000_000)}, "memory after 1 M requests ÷ after 10 k", (1.05,)),
        ({"ingest_per_second": 5000.0}, "control plane ingest, interceptions/s sustained", (5000.0,)),
    ],
)
def test_other_lines_of_the_table(figures: dict[str, Any], work: str, measured: tuple[float, ...]) -> None:
    assert by_work(Figures(**figures))[work].measured == pytest.approx(measured)
