"""OpenTelemetry traces and metrics of a worker (design §14): from the event loop to a thread that sends them.

Rules
- Nothing here waits: an interception that has ended goes into a queue, all else (spans, encoding, HTTP) is the thread's.
- The queue is bounded in entries and in bytes of content. What finds no room, and what the collector does not take, is
  lost: counted in `ostiary_telemetry_dropped_total`, with a warning now and then. The traffic goes on.
- Content leaves the records here already unless it is asked for: it does not stay in memory for nothing.
- The SDK is imported when telemetry is opened, so a gateway without it does not pay for it.
"""

import os
import sys
import threading
import time
from collections.abc import Mapping
from queue import Empty, SimpleQueue
from typing import Final, Protocol

import msgspec
import structlog

from ostiary.core.records import InterceptionEnd, InterceptionStart
from ostiary.core.settings import GatewaySettings
from ostiary.http1.head import RequestHead

from .metrics import Cell, GatewayMetrics
from .providers import RuntimeProvider
from .telemetry_spans import Ended

log = structlog.get_logger()

QUEUE_MAX: Final = 2048
"""Interceptions that wait, of one worker; and bytes of their content, about."""
QUEUE_BYTES: Final = 32 * 1024 * 1024
BATCH_MAX: Final = 256
FLUSH_SECONDS: Final = 1.0
"""An interception that has ended is sent after this at the latest, where the collector keeps up."""
CLOSE_SECONDS: Final = 3.0
"""How long the worker's end waits for what is in the queue."""
_WARNING_INTERVAL: Final = 30.0
_SWITCH_SECONDS: Final = 0.0005
"""How long the thread may keep the interpreter from the event loop at a time; Python's own 5 ms would be felt."""


class Sink(Protocol):
    """Where the thread puts what it takes out of the queue."""

    def add(self, ended: Ended) -> None:
        """Make spans and measurements of it."""

    def flush(self) -> str:
        """Send the spans; why that failed, or nothing."""
        ...

    def abort(self) -> None:
        """Give up what is being sent; called by another thread."""

    def close(self) -> None:
        """Send the measurements, and no more."""


class Telemetry:
    """Tell it of each interception that has `ended`."""

    def __init__(self, sink: Sink, metrics: GatewayMetrics, *, content: bool, queue_max: int = QUEUE_MAX) -> None:
        self._content = content
        self._queue_max = queue_max
        self._queue: SimpleQueue[_Entry | None] = SimpleQueue()
        self._told = 0
        """Entries, as is `_Thread.taken`: each is changed by one thread only. So are the bytes."""
        self._told_bytes = 0
        self._closed = False
        self._dropped = metrics.telemetry_dropped.cell("queue_full")
        self._warned_at = -_WARNING_INTERVAL
        self._sink = sink
        self._thread = _Thread(self._queue, sink, metrics.telemetry_dropped.cell("export_failed"))
        self._thread.start()

    @classmethod
    def open(
        cls, settings: GatewaySettings, metrics: GatewayMetrics, environ: Mapping[str, str] = os.environ
    ) -> "Telemetry | None":
        """None when it is switched off, or when an OTEL_* variable is wrong: that is told and no reason to stop."""
        if not settings.otel_endpoint or environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
            return None
        from .telemetry_export import OtlpSink  # here: the SDK takes 0.1 s and 16 MB

        try:
            sink = OtlpSink(settings, environ)
        except (ValueError, OSError) as error:
            log.error("leaving telemetry off: an OTEL_* variable is wrong", error=str(error))
            return None
        protocol = environ.get("OTEL_EXPORTER_OTLP_PROTOCOL", "").strip()
        if protocol not in ("", "http/protobuf"):
            log.warning("sending telemetry as http/protobuf all the same", otel_exporter_otlp_protocol=protocol)
        sys.setswitchinterval(_SWITCH_SECONDS)
        return cls(sink, metrics, content=settings.otel_content)

    def ended(
        self, start: InterceptionStart, end: InterceptionEnd, head: RequestHead, provider: RuntimeProvider
    ) -> None:
        """An interception has ended."""
        size = 0
        if self._content:
            size = _content_size(start, end)
        else:
            start, end = _without_content(start, end)
        thread = self._thread
        if self._told - thread.taken >= self._queue_max or self._told_bytes - thread.taken_bytes + size > QUEUE_BYTES:
            self._drop()
            return
        self._told += 1
        self._told_bytes += size
        origin = provider.origin
        fields = head.fields
        self._queue.put(
            (
                Ended(
                    start,
                    end,
                    head.method.decode("latin-1"),
                    provider.type,
                    origin.host,
                    origin.port,
                    fields.get(b"traceparent", b"").decode("latin-1"),
                    fields.get(b"tracestate", b"").decode("latin-1"),
                ),
                size,
            )
        )

    def close(self, timeout: float = CLOSE_SECONDS) -> None:
        """Send what has been told, for `timeout` seconds at most."""
        if self._closed:
            return
        self._closed = True
        self._queue.put(None)
        self._thread.join(timeout)
        if self._thread.is_alive():
            self._sink.abort()
            log.warning("leaving telemetry unsent", interceptions=self._told - self._thread.taken)

    def _drop(self) -> None:
        self._dropped[0] += 1
        now = time.monotonic()
        if now - self._warned_at >= _WARNING_INTERVAL:
            self._warned_at = now
            log.warning("dropping telemetry, the collector is too slow", dropped=int(self._dropped[0]))


_Entry = tuple[Ended, int]


class _Thread(threading.Thread):
    """Takes interceptions out of the queue and sends them in batches."""

    def __init__(self, queue: "SimpleQueue[_Entry | None]", sink: Sink, failed: Cell) -> None:
        super().__init__(name="telemetry", daemon=True)
        self.taken = 0
        self.taken_bytes = 0
        self._queue = queue
        self._sink = sink
        self._failed = failed
        self._warned_at = -_WARNING_INTERVAL

    def run(self) -> None:
        ended = False
        while not ended:
            batch, ended = self._next_batch()
            for one in batch:
                self._add(one[0])
            error = self._flush() if batch else ""
            if error:
                self._lose(len(batch), error)
            self.taken += len(batch)
            self.taken_bytes += sum(size for _, size in batch)
        self._close()

    def _next_batch(self) -> tuple[list[_Entry], bool]:
        """Waits for one and then a little for more; True when no more will come."""
        entry = self._queue.get()
        batch: list[_Entry] = []
        deadline = time.monotonic() + FLUSH_SECONDS
        while entry is not None:
            batch.append(entry)
            if len(batch) >= BATCH_MAX:
                return batch, False
            try:
                entry = self._queue.get(timeout=max(0.0, deadline - time.monotonic()))
            except Empty:
                return batch, False
        return batch, True

    def _add(self, ended: Ended) -> None:
        try:
            self._sink.add(ended)
        except Exception as error:  # noqa: BLE001 - whatever a record holds, the next one is told
            self._lose(1, f"{type(error).__name__} while a span was made")

    def _flush(self) -> str:
        try:
            return self._sink.flush()
        except Exception as error:  # noqa: BLE001 - as above, for a collector's answer
            return f"{type(error).__name__} while spans were sent"

    def _close(self) -> None:
        try:
            self._sink.close()
        except Exception as error:  # noqa: BLE001 - as above
            self._lose(0, f"{type(error).__name__} while the last metrics were sent")

    def _lose(self, count: int, error: str) -> None:
        self._failed[0] += count
        now = time.monotonic()
        if now - self._warned_at >= _WARNING_INTERVAL:
            self._warned_at = now
            log.warning("failing to send telemetry", error=error, dropped=int(self._failed[0]))


def _content_size(start: InterceptionStart, end: InterceptionEnd) -> int:
    size = len(end.output_text) + sum(len(call.input) for call in end.tool_usages)
    size += sum(len(thought.content) for thought in end.model_thoughts)
    return size + (len(start.prompt.prompt) if start.prompt is not None else 0)


def _without_content(start: InterceptionStart, end: InterceptionEnd) -> tuple[InterceptionStart, InterceptionEnd]:
    if start.prompt is not None:
        start = msgspec.structs.replace(start, prompt=None)
    if end.output_text or end.tool_usages or end.model_thoughts or end.tool_results:
        end = msgspec.structs.replace(end, output_text="", tool_usages=[], model_thoughts=[], tool_results=[])
    return start, end
