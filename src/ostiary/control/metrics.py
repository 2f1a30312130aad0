"""What a control plane counts and measures of itself, for the metrics page of its machine.

Rules
- Labels are bounded: routes are those of the API and of RPC, as written in the code; what fits none is `other`.
- Nothing is asked of the database for a request. What only it knows is asked when somebody looks, once in
  `FRESH_SECONDS` at most and within `PATIENCE`; while it does not give its sizes, the last ones are not shown.
- Whether it answers is another question, asked at the same time on a connection of its own: neither sizes that take too
  long nor a pool that is all in use mean that it is away.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final, TypeVar

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import QueuePool
from starlette.routing import Route

from ostiary.core.families import Family, Sample
from ostiary.core.metrics import Registry
from ostiary.core.secret import Secret
from ostiary.rpc.ostiary_pb2 import DESCRIPTOR

from .database import DATABASE_ERRORS, DatabaseUnavailableError, DatabaseUnusableError, connect_driver
from .measures import Measures, read_measures

T = TypeVar("T")

FRESH_SECONDS: Final = 15.0
PATIENCE: Final = "1500ms"
_PATIENCE_SECONDS: Final = 2.0
OTHER: Final = "other"
_REQUEST_BOUNDS: Final = (0.005, 0.02, 0.1, 0.5, 2.0, 10.0)
_BATCH_BOUNDS: Final = (0.01, 0.05, 0.2, 1.0, 5.0, 20.0)
_METHODS: Final = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))

RPC_ROUTES: Final = {
    f"/{service.full_name}/{method.name}": method.server_streaming
    for service in DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
"""Path → whether it lasts until somebody ends it."""


class ControlMetrics:
    """Counters of one control plane."""

    def __init__(self) -> None:
        registry = self._registry = Registry()
        self._requests = registry.counter(
            "ostiary_control_requests", "Requests that the control plane answered.", "route", "method", "status"
        )
        self._seconds = registry.histogram(
            "ostiary_control_request_duration_seconds",
            "From the head of a request to the head of its answer; watches are left out.",
            _REQUEST_BOUNDS,
            "route",
        )
        self._batches = registry.counter("ostiary_control_ingest_batches", "Batches of records that came.", "result")
        self._records = registry.counter(
            "ostiary_control_ingest_records", "Records that were acknowledged, stored before or now.", "result"
        )
        self._batch_seconds = registry.histogram(
            "ostiary_control_ingest_duration_seconds", "Storing a batch of records.", _BATCH_BOUNDS
        ).series()
        self._stored, self._failed = self._batches.cell("stored"), self._batches.cell("failed")
        self._accepted, self._rejected = self._records.cell("accepted"), self._records.cell("rejected")

    def report(self) -> list[Family]:
        return self._registry.report()

    def answered(self, scope: Mapping[str, Any], status: int, seconds: float) -> None:  # Any: an ASGI scope
        """A request got the head of its answer."""
        route, lasts = _route(scope)
        method = scope["method"] if scope["method"] in _METHODS else "OTHER"
        self._requests.cell(route, method, str(status))[0] += 1
        if not lasts:
            self._seconds.series(route).observe(seconds)

    def ingested(self, records: int, rejected: int, seconds: float) -> None:
        self._stored[0] += 1
        self._accepted[0] += records - rejected
        self._rejected[0] += rejected
        self._batch_seconds.observe(seconds)

    def ingest_failed(self) -> None:
        self._failed[0] += 1


def _route(scope: Mapping[str, Any]) -> tuple[str, bool]:  # Any: as above
    path: str = scope["path"]
    route = scope.get("route")
    if isinstance(route, Route):
        # a route does not know the prefix that its router was included with: it is what stands before
        own = route.path_format.format(**scope["path_params"])
        return (path.removesuffix(own) + route.path_format if path.endswith(own) else OTHER), False
    lasts = RPC_ROUTES.get(path)
    return (OTHER, False) if lasts is None else (path, lasts)


class MetricsBoard:
    """All families of one control plane: what it counts, its pools, and what its database says."""

    def __init__(
        self,
        metrics: ControlMetrics,
        url: Secret,
        engine: AsyncEngine,
        rpc_engine: AsyncEngine | None,
        retention: float,
    ) -> None:
        """`url`: of the database; `rpc_engine`: where RPC has connections of its own; `retention`: seconds, 0 for ever."""
        self._metrics = metrics
        self._url = url
        self._engine = engine
        self._rpc_engine = rpc_engine
        self._retention = retention
        self._asking = asyncio.Lock()
        self._measures: Measures | None = None
        self._up = False
        self._asked_at = -FRESH_SECONDS

    async def families(self, *, listening: bool) -> list[Family]:
        """`listening`: whether the database tells of changes."""
        up, measures = await self._measured()
        return [
            *self._metrics.report(),
            self._connections(),
            gauge("ostiary_control_database_up", "Whether the database answers.", float(up)),
            gauge("ostiary_control_listening", "Whether the database tells of changes (LISTEN).", float(listening)),
            gauge("ostiary_control_retention_seconds", "How long records are kept; 0: for ever.", self._retention),
            *_families(measures),
        ]

    async def _measured(self) -> tuple[bool, Measures | None]:
        """Whether the database answers, and its sizes: None while it does not give them."""
        async with self._asking:
            if time.monotonic() - self._asked_at >= FRESH_SECONDS:
                answers, self._measures = await asyncio.gather(_within(self._answers), _within(self._ask))
                # no connection may be left for the question, and all work with those that there are
                self._up = bool(answers) or self._measures is not None
                self._asked_at = time.monotonic()
            return self._up, self._measures

    async def _answers(self) -> bool:
        connection = await connect_driver(self._url)
        try:
            found = await connection.fetchval("SELECT 1")
            await connection.close()
            return bool(found)
        finally:
            connection.terminate()

    async def _ask(self) -> Measures:
        async with self._engine.connect() as connection:
            await connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            await connection.execute(text("SELECT set_config('statement_timeout', :wait, true)"), {"wait": PATIENCE})
            return await read_measures(connection, self._retention)

    def _connections(self) -> Family:
        samples = []
        for name, engine in (("api", self._engine), ("rpc", self._rpc_engine)):
            pool = engine.pool if engine is not None else None
            if isinstance(pool, QueuePool):
                samples += [Sample((name, "used"), pool.checkedout()), Sample((name, "idle"), pool.checkedin())]
        text_ = "Connections to the database, by pool; with one pool RPC uses that of the API."
        return Family("ostiary_control_database_connections", text_, "gauge", ("pool", "state"), samples)


async def _within(question: Callable[[], Coroutine[Any, Any, T]]) -> T | None:
    """None: no answer of the database's in time. Who is given up before he has begun has asked nothing."""
    try:
        async with asyncio.timeout(_PATIENCE_SECONDS):
            return await question()
    except (*DATABASE_ERRORS, DatabaseUnavailableError, DatabaseUnusableError):
        return None


def gauge(name: str, text_: str, value: float | None) -> Family:
    """None: nothing can be said."""
    return Family(name, text_, "gauge", (), [] if value is None else [Sample((), value)])


_MEASURED: Final[tuple[tuple[str, str, Callable[[Measures], float | None]], ...]] = (
    ("ostiary_control_database_bytes", "Size of the database.", lambda found: found.database_bytes),
    (
        "ostiary_control_oldest_record_timestamp_seconds",
        "How far back the record goes, Unix time.",
        lambda found: found.oldest_record,
    ),
    (
        "ostiary_control_partitions_missing",
        "Weekly partitions that should have been made by now.",
        lambda found: found.partitions_missing,
    ),
    (
        "ostiary_control_retention_last_run_timestamp_seconds",
        "When old records were removed last, Unix time.",
        lambda found: found.retention_at,
    ),
    (
        "ostiary_control_retention_complete",
        "Whether that left nothing for later.",
        lambda found: found.retention_complete,
    ),
)


def _families(measures: Measures | None) -> list[Family]:
    gateways = measures.gateways if measures is not None else {}
    return [
        *(gauge(name, text_, value(measures) if measures is not None else None) for name, text_, value in _MEASURED),
        Family(
            "ostiary_control_gateways",
            "Gateways that reported within a day: live, or stale for half a minute and more.",
            "gauge",
            ("state",),
            [Sample((state,), number) for state, number in gateways.items()],
        ),
    ]
