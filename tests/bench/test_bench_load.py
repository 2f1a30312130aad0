"""The load generator, pointed at the fake provider."""

import hashlib
from collections import Counter
from collections.abc import Iterator

import pytest

from bench import children, machine
from bench.load import percentile
from bench.targets import Route, Target, provider_routes
from bench.works import CALLS, SLOW_LIVE, STREAM, Work, call_of, stream_of
from tests.support.fake_provider import FakeProvider, fake_provider

_ANYWHERE: frozenset[int] = frozenset()


@pytest.fixture(scope="module")
def provider() -> Iterator[FakeProvider]:
    with fake_provider() as running:
        yield running


@pytest.fixture
def target(provider: FakeProvider) -> Target:
    return Target("direct", int(provider.url.rpartition(":")[2]), provider_routes(), (provider.pid,))


@pytest.mark.parametrize("work", [CALLS, STREAM, stream_of(10), call_of(100_000)])
def test_closed_load_counts_whole_answers(target: Target, work: Work) -> None:
    order = target.order(work, "closed", 20.0, count=20, connections=4)
    told = children.run_load(order, _ANYWHERE)

    assert told["errors"] == 0
    assert told["count"] == 20
    assert 0 < told["p50"] <= told["p99"]


def test_a_stream_that_lacks_an_event_is_an_error(target: Target) -> None:
    values = ["events=300"] * 50 + ["events=299"]
    order = target.order(STREAM, "closed", 20.0, connections=1, count=len(values), vary=("events=300", values))

    told = children.run_load(order, _ANYWHERE)

    assert told["errors"] == 1
    assert "out of their chunks" in told["reasons"][0]


def test_requests_that_vary_take_their_turn() -> None:
    values = [f"sk-value-{number}" for number in range(5)]
    with fake_provider() as own:
        port = int(own.url.rpartition(":")[2])
        marked = Target("direct", port, {"openai": Route("", {"Authorization": "Bearer the-mark"})}, ())
        order = marked.order(CALLS, "closed", 20.0, connections=3, count=10, vary=("the-mark", values))
        told = children.run_load(order, _ANYWHERE)
        asked = Counter(request["key_sha256"] for request in own.requests()["requests"])

    assert told["errors"] == 0
    assert asked == {hashlib.sha256(value.encode()).hexdigest(): 2 for value in values}


def test_turns_give_every_target_the_same_number_of_calls(target: Target) -> None:
    one = target.order(CALLS, "turns", 1.0, connections=8)
    order = {"mode": "turns", "targets": [one, one], "seconds": 1.0, "per_second": 50}

    told = children.run_load(order, _ANYWHERE)["targets"]

    assert [result["count"] for result in told] == [50, 50]
    assert [result["errors"] for result in told] == [0, 0]


def test_what_was_due_while_every_connection_was_busy_is_sent_late_and_counted_from_when_it_was_due(
    target: Target,
) -> None:
    slow = Work("slow", "", "openai", CALLS.path, CALLS.body.replace(b"size=930", b"delay=200"), connections=1)
    order = {"mode": "turns", "targets": [target.order(slow, "turns", 1.0)], "seconds": 0.5, "per_second": 10}

    (told,) = children.run_load(order | {"seconds": 0.5}, _ANYWHERE)["targets"]

    assert (told["count"], told["errors"]) == (5, 0)
    assert told["p99"] > 0.5  # the fifth waited for four calls of 200 ms, and was due after 400


def test_an_answer_that_is_not_good_is_an_error(target: Target) -> None:
    refused = Work("refused", "", "openai", CALLS.path, CALLS.body.replace(b"size=930", b"status=429"), connections=1)

    told = children.run_load(target.order(refused, "closed", 0.5), _ANYWHERE)

    assert told["count"] == 0
    assert told["errors"] >= 1
    assert "429" in told["reasons"][0]


def test_live_streams_stay_open_and_their_events_are_counted(target: Target) -> None:
    quick = Work("live", "", SLOW_LIVE.format, SLOW_LIVE.path, SLOW_LIVE.body.replace(b"pace=1000", b"pace=20"))
    with children.live_streams(target.order(quick, "live", 20.0, connections=5), _ANYWHERE) as streams:
        seen = streams.ask(10)["events"]
        while streams.ask(10)["events"] < seen + 25:  # the streams go on by themselves
            pass
        assert streams.ask(10)["live"] == 5


def test_streams_that_do_not_begin_are_told(target: Target) -> None:
    refused = Work("live", "", "openai", CALLS.path, CALLS.body.replace(b"size=930", b"status=503"))

    with (
        pytest.raises(children.StartError, match="503"),
        children.live_streams(target.order(refused, "live", 10.0, connections=2), _ANYWHERE),
    ):
        pass


def test_bodies_have_the_size_that_is_asked_for() -> None:
    assert [len(call_of(size).body) for size in (1000, 40_000, 10_000_000)] == [1000, 40_000, 10_000_000]


@pytest.mark.parametrize(("share", "value"), [(0.5, 51.0), (0.99, 100.0), (0.0, 1.0)])
def test_percentiles_of_ordered_numbers(share: float, value: float) -> None:
    assert percentile([float(number) for number in range(1, 101)], share) == value


def test_cpu_of_a_process_is_counted_while_it_works(target: Target, provider: FakeProvider) -> None:
    before = machine.cpu_seconds(provider.pid)
    children.run_load(target.order(CALLS, "closed", 20.0, count=500), _ANYWHERE)

    assert 0.001 < machine.cpu_seconds(provider.pid) - before < 20
