"""`GET /metrics` on the metrics listener.

Rules
- One request a connection, a small head, a time-out, few connections: it is for a scraper, on an address of its own.
- Rendering is `prometheus_client`'s, from the families of `core.metrics`; the page is asked for anew at each scrape.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterable, Iterator
from itertools import accumulate
from typing import cast

import httptools
import structlog
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from ostiary.core.families import Family

log = structlog.get_logger(__name__)

PREFIX = "ostiary_"
MAX_HEAD = 16 * 1024
MAX_CONNECTIONS = 32
REQUEST_TIMEOUT = 10.0
_TEXT = "text/plain; charset=utf-8"

Families = Callable[[], Awaitable[list[Family]]]


def metric(family: Family) -> Metric:
    """One family as Prometheus knows it."""
    name = family.name if family.name.startswith(PREFIX) else PREFIX + family.name
    made: CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily
    if family.kind == "histogram":
        made = HistogramMetricFamily(name, family.help, labels=family.label_names)
        bounds = [*(str(bound) for bound in family.bounds), "+Inf"]
        for sample in family.samples:
            counts = accumulate(sample.buckets)
            made.add_metric(sample.labels, list(zip(bounds, counts, strict=True)), sum_value=sample.value)
        return made
    kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
    made = kind(name, family.help, labels=family.label_names)
    for sample in family.samples:
        made.add_metric(sample.labels, sample.value)
    return made


class _Page(Collector):
    def __init__(self, families: Iterable[Family]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        return map(metric, self._families)


def render(families: Iterable[Family], accept: str) -> tuple[bytes, str]:
    """The page and its content type."""
    encode, content_type = choose_encoder(accept)
    return encode(_Page(families)), content_type


class MetricsServer:
    """Serves on a listening socket that is already bound. `families` gathers the page's content."""

    def __init__(self, families: Families) -> None:
        self._families = families
        self._connections: set[_Connection] = set()
        self._server: asyncio.Server | None = None

    async def start(self, fd: int) -> None:
        """Takes over the descriptor."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Connection(self), sock=socket.socket(fileno=fd))

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for connection in tuple(self._connections):
            connection.abort()

    def opened(self, connection: "_Connection") -> bool:
        if len(self._connections) >= MAX_CONNECTIONS:
            return False
        self._connections.add(connection)
        return True

    def closed(self, connection: "_Connection") -> None:
        self._connections.discard(connection)

    async def answer(self, method: str, path: str, accept: str) -> tuple[str, bytes, str]:
        """Status line, body and content type."""
        if path != "/metrics":
            return "404 Not Found", b"only /metrics is served here\n", _TEXT
        if method not in ("GET", "HEAD"):
            return "405 Method Not Allowed", b"only GET and HEAD are allowed\n", _TEXT
        body, content_type = render(await self._families(), accept)
        return "200 OK", body, content_type


class _Connection(asyncio.Protocol):
    """One request, one answer, closed. Also the callbacks of its parser."""

    def __init__(self, server: MetricsServer) -> None:
        self._server = server
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._answering: asyncio.Task[None] | None = None
        self._received = 0
        self._target = b""
        self._accept = b""

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    # --- the parser's callbacks

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"accept":
            self._accept = value

    def on_headers_complete(self) -> None:
        if self._answering is None:
            self._answering = asyncio.get_running_loop().create_task(self._answer())

    # --- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if not self._server.opened(self):
            self.abort()
            return
        self._timer = asyncio.get_running_loop().call_later(REQUEST_TIMEOUT, self.abort)

    def data_received(self, data: bytes) -> None:
        if self._answering is not None:
            return
        self._received += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass
        except httptools.HttpParserError:
            self._write("400 Bad Request", b"malformed request\n", _TEXT)
            return
        if self._received > MAX_HEAD and self._answering is None:
            self._write("431 Request Header Fields Too Large", b"", _TEXT)

    def connection_lost(self, _exc: Exception | None) -> None:
        self._transport = None
        self._server.closed(self)
        if self._timer is not None:
            self._timer.cancel()
        if self._answering is not None:
            self._answering.cancel()

    async def _answer(self) -> None:
        method = self._parser.get_method().decode("latin-1")
        path = self._target.partition(b"?")[0].decode("latin-1")
        try:
            status, body, content_type = await self._server.answer(method, path, self._accept.decode("latin-1"))
        except Exception:  # a bug in one family must not look like an outage of the machine
            log.exception("failing to render the metrics page")
            status, body, content_type = "500 Internal Server Error", b"see the log\n", _TEXT
        self._write(status, body, content_type, only_head=method == "HEAD")

    def _write(self, status: str, body: bytes, content_type: str, *, only_head: bool = False) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        head = (
            f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n"
            "Cache-Control: no-store\r\nConnection: close\r\n\r\n"
        )
        self._transport.write(head.encode("latin-1") + (b"" if only_head else body))
        self._transport.close()
