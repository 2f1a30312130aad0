"""link/metrics_sum.py and link/metrics_page.py: many workers' counters as one page."""

import asyncio
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import uvloop
from prometheus_client.parser import text_string_to_metric_families

from ostiary.core.families import Family, Sample
from ostiary.core.metrics import Registry
from ostiary.link.metrics_page import MAX_HEAD, MetricsServer, render
from ostiary.link.metrics_sum import MachineMetrics, total


def counter(value: float, *, name: str = "ostiary_interceptions", model: str = "m") -> Family:
    return Family(name, "Help.", "counter", ("model",), [Sample((model,), value)])


def gauge(value: float) -> Family:
    return Family("ostiary_inflight", "Help.", "gauge", (), [Sample((), value)])


def values(families: list[Family]) -> dict[tuple[str, tuple[str, ...]], float]:
    return {(family.name, sample.labels): sample.value for family in families for sample in family.samples}


INTERCEPTIONS = ("ostiary_interceptions", ("m",))
INFLIGHT: tuple[str, tuple[str, ...]] = ("ostiary_inflight", ())


def test_counters_never_go_back_when_a_worker_is_replaced_and_its_gauges_go_with_it() -> None:
    machine = MachineMetrics()
    machine.report("start-a", [counter(10), gauge(3)])
    machine.report("start-b", [counter(5), gauge(2)])
    assert values(machine.families()) == {INTERCEPTIONS: 15, INFLIGHT: 5}
    machine.disconnected("start-a")
    assert values(machine.families()) == {INTERCEPTIONS: 15, INFLIGHT: 2}
    machine.replaced("start-a")
    machine.report("start-c", [counter(1), gauge(0)])
    assert values(machine.families()) == {INTERCEPTIONS: 16, INFLIGHT: 2}
    machine.report("start-c", [counter(4), gauge(1)])
    assert values(machine.families()) == {INTERCEPTIONS: 19, INFLIGHT: 3}


def test_a_worker_that_comes_back_over_a_new_socket_counts_once() -> None:
    machine = MachineMetrics()
    machine.report("start-a", [counter(10), gauge(3)])
    machine.disconnected("start-a")
    machine.report("start-a", [counter(12), gauge(1)])
    assert values(machine.families()) == {INTERCEPTIONS: 12, INFLIGHT: 1}


def test_label_sets_are_summed_one_by_one_and_histograms_bucket_by_bucket() -> None:
    registries = [Registry(), Registry()]
    for number, registry in enumerate(registries):
        durations = registry.histogram("ostiary_duration", "Help.", (1.0, 2.0), "model")
        durations.series("m").observe(0.5)
        durations.series(f"only-{number}").observe(5.0)
    (family,) = total([registry.report() for registry in registries])
    assert sorted(family.samples, key=lambda sample: sample.labels) == [
        Sample(("m",), 1.0, (2, 0, 0)),
        Sample(("only-0",), 5.0, (0, 0, 1)),
        Sample(("only-1",), 5.0, (0, 0, 1)),
    ]


def test_a_family_of_another_shape_is_left_out_and_does_not_spoil_the_page() -> None:
    other = Family("ostiary_interceptions", "Help.", "counter", ("provider",), [Sample(("p",), 100)])
    assert values(total([[counter(1)], [other], [counter(2)]])) == {INTERCEPTIONS: 3}


def test_the_page_is_prometheus_text_with_the_prefix_and_suffixes() -> None:
    registry = Registry()
    registry.counter("ostiary_shipped", "Shipped.").cell()[0] = 3
    registry.gauge("up", "Up.").cell()[0] = 1
    durations = registry.histogram("ostiary_duration_seconds", "Took.", (0.5, 2.0), "model").series('odd "name"\n')
    for value in (0.1, 1.0, 9.0):
        durations.observe(value)
    text = render(registry.report(), "")[0].decode()
    parsed = {
        (sample.name, sample.labels.get("le")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert parsed == {
        ("ostiary_shipped_total", None): 3,
        ("ostiary_up", None): 1,
        ("ostiary_duration_seconds_bucket", "0.5"): 1,
        ("ostiary_duration_seconds_bucket", "2.0"): 2,
        ("ostiary_duration_seconds_bucket", "+Inf"): 3,
        ("ostiary_duration_seconds_count", None): 3,
        ("ostiary_duration_seconds_sum", None): 10.1,
    }


# --- over HTTP

Ask = Callable[[bytes], Coroutine[Any, Any, bytes]]


def serve(test: Callable[[Ask], Coroutine[Any, Any, None]], families: Any = None) -> None:
    async def some() -> list[Family]:
        return [counter(7)]

    async def main() -> None:
        listening = socket.socket()
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        port = listening.getsockname()[1]
        server = MetricsServer(families or some)
        await server.start(listening.detach())

        async def ask(request: bytes) -> bytes:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request)
            answer = await asyncio.wait_for(reader.read(), 10)
            writer.close()
            return answer

        try:
            await test(ask)
        finally:
            await server.close()

    uvloop.run(main())


def test_metrics_are_served_and_nothing_else() -> None:
    async def test(ask: Ask) -> None:
        page = await ask(b"GET /metrics?x=1 HTTP/1.1\r\nHost: a\r\n\r\n")
        assert page.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b'ostiary_interceptions_total{model="m"} 7.0\n' in page
        head = await ask(b"HEAD /metrics HTTP/1.1\r\nHost: a\r\n\r\n")
        assert head.endswith(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        assert (await ask(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")).startswith(b"HTTP/1.1 404")
        assert (await ask(b"POST /metrics HTTP/1.1\r\nHost: a\r\n\r\n")).startswith(b"HTTP/1.1 405")
        assert (await ask(b"nonsense\r\n\r\n")).startswith(b"HTTP/1.1 400")
        open_metrics = b"GET /metrics HTTP/1.1\r\nAccept: application/openmetrics-text; version=1.0.0\r\n\r\n"
        assert b"application/openmetrics-text" in await ask(open_metrics)

    serve(test)


def test_a_head_without_end_is_cut_off() -> None:
    async def test(ask: Ask) -> None:
        answer = await ask(b"GET /metrics HTTP/1.1\r\n" + b"X: " + b"y" * MAX_HEAD)
        assert answer.startswith(b"HTTP/1.1 431")

    serve(test)


def test_a_page_that_cannot_be_made_is_an_error_and_the_next_one_is_served() -> None:
    pages = iter([RuntimeError("bug"), [counter(1)]])

    async def families() -> list[Family]:
        page = next(pages)
        if isinstance(page, Exception):
            raise page
        return page

    async def test(ask: Ask) -> None:
        request = b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n"
        assert (await ask(request)).startswith(b"HTTP/1.1 500")
        assert (await ask(request)).startswith(b"HTTP/1.1 200")

    serve(test, families)
