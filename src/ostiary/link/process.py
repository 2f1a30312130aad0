"""The link's process: one a machine, beside its workers.

It ends with status 0 when told to drain and everything is shipped, 3 when records are left (they are on disk, and the
next start ships them; told a second time it hardly waits for them), 1 when the control plane refuses this gateway
before it ever served. When it is refused later it tells the supervisor, goes on answering from what it knows, and waits
to be told to drain.
"""

import asyncio
import os
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import structlog

from ostiary.core.families import Family, Sample
from ostiary.core.messages import Drain, Drained, Fatal, LinkBoot, MachineReady, NewPeer, Ready, Snapshot
from ostiary.core.metrics import Registry
from ostiary.core.supervision import Supervision

from .authorizations import Authorizations, Memory
from .cache import Cache, CacheKeeper
from .client import ControlClient, ControlFailure
from .connection import Connection
from .health import Board
from .health_metrics import HealthMetrics
from .interception_log import log_records
from .journal_shipper import ShipperMetrics
from .metrics_page import MetricsServer
from .shipper import Shipper
from .snapshots import SnapshotMetrics, SnapshotPoll
from .status import StatusReports
from .watches import ProviderWatch, RevocationWatch
from .workers import Workers

log = structlog.get_logger(__name__)

EXIT_REFUSED = 1
EXIT_RECORDS_LEFT = 3
STATE_INTERVAL = 5.0
"""Seconds between two looks whether the grace has run out, and between two notes of the last contact."""
CONTROL_METRICS_WITHIN = 3.0
"""Seconds a scrape waits for the control plane of this machine; then the page is without its metrics."""
HURRIED = 2.0
"""Seconds to ship what is left once told to cut; none when nobody is there to take it."""
BEAT_FILE = "link-beat"


async def run(boot: LinkBoot, fd: int | None, supervision: Supervision) -> int:
    """`fd`: the metrics listener. Returns the exit status."""
    settings = boot.settings
    try:
        client = ControlClient(
            settings.control_url, settings.gateway_key, settings.control_ca_file, settings.control_tls
        )
    except (OSError, ValueError) as error:
        reason = f"cannot use control_ca_file, control_cert_file or control_key_file: {error}"
        supervision.report(Fatal(reason, EXIT_REFUSED))
        return EXIT_REFUSED
    async with client:
        return await _Link(boot, client, supervision).run(fd)


class _Link:
    def __init__(self, boot: LinkBoot, client: ControlClient, supervision: Supervision) -> None:
        settings = boot.settings
        self._settings = settings
        self._client = client
        self._supervision = supervision
        self._registry = Registry()
        self._beat = _Beat(Path(settings.data_dir) / BEAT_FILE)
        self._connection = Connection(time.monotonic, settings.auth_grace, self._beat.last())
        self._refused: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._loaded = asyncio.Event()
        self._poll = SnapshotPoll(
            client,
            self._connection,
            SnapshotMetrics(self._registry),
            settings.poll_interval,
            on_snapshot=self._load,
            on_change=self._link_changed,
            on_fatal=self._refused.set_result,
            fallback=self._from_before,
        )
        self._shipper = Shipper(
            Path(settings.journal_dir),
            client,
            ShipperMetrics(self._registry),
            on_failure=lambda: self._poll.notice(reached=False),
            tell=log_records if settings.structured_logging else None,
        )
        memory = self._memory = Memory(time.monotonic, time.time, settings.auth_ttl, settings.auth_grace)
        self._cache: Cache | None = None
        self._keeper: CacheKeeper | None = None
        if settings.cache_dir:
            self._cache = Cache(Path(settings.cache_dir), settings.gateway_key, client.url)
            self._keeper = CacheKeeper(
                self._cache,
                tokens=memory.kept,
                changes=lambda: memory.changes,
                confirmations=lambda: memory.confirmations,
            )
        self._authorizations = Authorizations(
            client.is_authorized,
            memory,
            link_up=lambda: self._connection.up,
            notice=lambda reached: self._poll.notice(reached=reached),
            loaded=self._loaded,
        )
        self._board = Board(time.monotonic, time.time)
        self._health_metrics = HealthMetrics()
        self._workers = Workers(
            boot.workers,
            self._connection,
            self._authorizations,
            self._board,
            on_ready=lambda: supervision.report(MachineReady()),
            on_gone=self._shipper.look_now,
        )
        self._status = StatusReports(
            client,
            self._connection,
            self._workers,
            self._shipper,
            self._board,
            data_dir=Path(settings.data_dir),
            mode=settings.mode,
            served=lambda: self._poll.snapshot,
        )
        look = partial(self._poll.notice, reached=False)
        self._watches = (
            ProviderWatch(client, self._poll.changed, look),
            RevocationWatch(client, memory, self._workers.revoke, look),
        )

    async def run(self, metrics_fd: int | None) -> int:
        page = MetricsServer(self._families)
        if metrics_fd is not None:
            await page.start(metrics_fd)
        background = [
            asyncio.create_task(self._poll.run()),
            asyncio.create_task(self._shipper.run()),
            asyncio.create_task(self._watch_grace()),
            asyncio.create_task(self._status.run()),
            *([asyncio.create_task(self._keeper.run())] if self._keeper is not None else []),
            *(asyncio.create_task(watch.run()) for watch in self._watches),
        ]
        orders = asyncio.create_task(self._follow_orders())
        self._supervision.report(Ready())
        try:
            return await self._until_the_end(orders, background)
        finally:
            for task in (orders, *background):
                task.cancel()
            await asyncio.gather(orders, *background, return_exceptions=True)
            if self._keeper is not None:
                await self._keeper.close()
            await self._authorizations.close()
            self._workers.close()
            await page.close()

    async def _until_the_end(self, orders: asyncio.Task[int], background: list[asyncio.Task[None]]) -> int:
        watched: set[asyncio.Future[str] | asyncio.Task[int] | asyncio.Task[None]] = {
            orders,
            self._refused,
            *background,
        }
        while True:
            done, watched = await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
            for task in background:
                if task in done:
                    task.result()
            if self._refused in done:
                message = self._refused.result()
                log.error("ending: refused by the control plane", reason=message)
                if self._cache is not None and self._poll.key_refused:
                    self._cache.wipe()
                self._supervision.report(Fatal(message, EXIT_REFUSED))
                if not self._connection.ever_up:
                    return EXIT_REFUSED
            if orders in done:
                return orders.result()

    async def _follow_orders(self) -> int:
        draining: asyncio.Task[int] | None = None
        while True:
            next_order = asyncio.create_task(self._supervision.next_order())
            try:
                await asyncio.wait(
                    {next_order} if draining is None else {next_order, draining}, return_when=asyncio.FIRST_COMPLETED
                )
                if draining is not None and draining.done():
                    return self._drained(draining.result())
                order, fd = await next_order
            finally:
                next_order.cancel()
            match order:
                case NewPeer() if fd is not None:
                    await self._workers.attach(order.worker, fd)
                case Drain():
                    within = self._settings.drain_timeout
                    if draining is not None:
                        draining.cancel()
                        within = HURRIED if self._connection.up else 0.0
                    # who is refused ships nothing any more
                    draining = asyncio.create_task(self._shipper.drain(0.0 if self._refused.done() else within))
                case _:
                    log.error("ignoring an order", order=type(order).__name__)

    def _drained(self, left: int) -> int:
        if left:
            log.warning("leaving records unshipped; the next start ships them", records=left)
        self._supervision.report(Drained(left))
        return EXIT_RECORDS_LEFT if left else 0

    # --- what the parts tell each other

    def _load(self, snapshot: Snapshot) -> None:
        self._workers.load(snapshot)
        self._loaded.set()
        if self._keeper is not None:
            self._keeper.take(snapshot)

    def _from_before(self) -> Snapshot | None:
        """What was served before a restart, while that may still be used."""
        if self._cache is None or self._connection.grace_left <= 0:
            return None
        snapshot = self._cache.read_snapshot()
        if snapshot is not None:
            self._memory.restore(self._cache.read_tokens())
        return snapshot

    def _link_changed(self) -> None:
        self._workers.tell_state()
        if self._connection.up:
            self._beat.note()
            self._shipper.look_now()
            for watch in self._watches:
                watch.look_now()

    async def _watch_grace(self) -> None:
        while True:
            await asyncio.sleep(STATE_INTERVAL)
            # the grace may have run out
            self._workers.tell_state()
            if self._connection.up:
                self._beat.note()

    # --- metrics

    async def _families(self) -> list[Family]:
        workers, control = await asyncio.gather(self._workers.metrics(), self._control_families())
        return [*workers, *self._registry.report(), *self._health(), *await self._gauges(), *control]

    async def _control_families(self) -> list[Family]:
        """What the control plane of this machine tells, also when it is of no use for want of its database, and whether it
        tells anything: one that starts waits for its database first. A gateway elsewhere has none.
        """
        if self._settings.mode != "embedded":
            return []
        try:
            told = await self._client.get_metrics(CONTROL_METRICS_WITHIN)
        except ControlFailure as failure:
            log.debug("rendering metrics without those of the control plane", reason=str(failure))
            told = []
        up = _gauge("ostiary_control_up", "Whether this machine's control plane says how it is.", float(bool(told)))
        return [up, *told]

    def _health(self) -> list[Family]:
        return self._health_metrics.families(self._board.key_health(), self._board.breaker_health())

    async def _gauges(self) -> list[Family]:
        live, adopted = self._shipper.counts()
        return [
            _gauge("ostiary_link_up", "Whether the control plane answers.", float(self._connection.up)),
            _gauge("ostiary_link_workers", "Workers connected to the link.", float(self._workers.connected)),
            _gauge(
                "ostiary_link_records_pending",
                "Records on disk that the control plane does not hold yet.",
                float(await self._shipper.pending()),
            ),
            Family(
                "ostiary_link_journals",
                "Journals under way, of live workers and of dead ones.",
                "gauge",
                ("state",),
                [Sample(("live",), live), Sample(("adopted",), adopted)],
            ),
            Family(
                "ostiary_link_losses",
                "How often the control plane was lost.",
                "counter",
                (),
                [Sample((), self._connection.losses)],
            ),
            Family(
                "ostiary_provider_info",
                "The providers served, and whether they can be used.",
                "gauge",
                ("provider_name", "provider_type", "status"),
                self._provider_samples(),
            ),
        ]

    def _provider_samples(self) -> list[Sample]:
        snapshot = self._poll.snapshot
        broken = self._workers.provider_errors()
        return [
            Sample((spec.name, spec.type, _status(spec.enabled, bool(spec.error) or spec.name in broken)), 1.0)
            for spec in (snapshot.providers if snapshot else ())
        ]


def _gauge(name: str, text: str, value: float) -> Family:
    return Family(name, text, "gauge", (), [Sample((), value)])


def _status(enabled: bool, broken: bool) -> str:
    if not enabled:
        return "disabled"
    return "error" if broken else "enabled"


class _Beat:
    """When the control plane last answered, kept on disk: the grace of a link that restarts counts from there."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def last(self) -> float | None:
        """As a reading of the monotonic clock."""
        try:
            return time.monotonic() - max(0.0, time.time() - self._path.stat().st_mtime)
        except OSError:
            return None

    def note(self) -> None:
        with suppress(OSError):
            os.close(os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
            os.utime(self._path)
