"""The control plane as a process: start, serve, drain.

Rules
- The start goes in one order: database, migrations, partitions, vault, owner, seeding, then the first request. What
  cannot be got over ends the whole command with one line, a restart in a running server is tried again; nothing is
  served half-started.
- Whether another try could help decides the rest: a database that does not answer is waited for, `CONNECT_PATIENCE`
  seconds; one that refuses us is not.
- Signals are the supervisor's business. `Drain` lets requests finish; a second one cuts them.
"""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

import structlog
import uvicorn
from sqlalchemy.ext.asyncio import AsyncEngine

from ostiary.core.messages import ControlBoot, Drain, Drained, Fatal, Ready
from ostiary.core.settings import ControlSettings
from ostiary.core.supervision import Supervision

from . import database, identity, partitions, retention, seed, vault
from .app import create_app
from .events import Events
from .ingest import link_recent_orphans
from .state import ControlPlane
from .store import rpc_role
from .store.migrate import migrate

log = structlog.get_logger(__name__)

T = TypeVar("T")

CONNECT_PATIENCE: Final = 30.0
_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 2.0
_DRAIN_TIMEOUT: Final = 10
_KEEP_ALIVE: Final = 300
"""Idle seconds of a connection; those of the link and of the front door are kept for reuse."""


class StartError(Exception):
    """The control plane cannot start. One line: the cause and the cure."""


async def run(boot: ControlBoot, fd: int, supervision: Supervision) -> int:
    """Serve on the listening socket `fd` until told to drain. Returns the exit status."""
    listening = socket.socket(fileno=fd)
    drain, cut = asyncio.Event(), asyncio.Event()
    with closing(listening):
        async with _running(_follow(supervision, drain, cut)):
            try:
                control = await _unless(drain, _start(boot.settings, supervision))
            except StartError as exc:
                supervision.report(Fatal(str(exc), 1))
                return 1
            if control is not None:
                try:
                    async with _running(_keep_house(control)), _running(control.events.run()):
                        await _serve(control, listening, supervision, drain, cut)
                finally:
                    await control.dispose()
    supervision.report(Drained())
    return 0


async def _follow(supervision: Supervision, drain: asyncio.Event, cut: asyncio.Event) -> None:
    while True:
        delivered = await supervision.next_order()
        if isinstance(delivered.order, Drain):
            (cut if drain.is_set() else drain).set()


# --- start


async def _start(settings: ControlSettings, supervision: Supervision) -> ControlPlane:
    await _migrate(settings)
    engine = await _connect(settings)
    try:
        await partitions.try_make_ahead(engine, settings.retention)
        with _step("open the vault"):
            opened = await vault.open_vault(engine, settings)
        with _step("make the owner"):
            for note in await identity.bootstrap(engine, settings):
                supervision.report(note)
        with _step("seed the providers"):
            await seed.seed(engine, opened, settings)
        with _step("prepare the database role of RPC"):
            rpc_only = await _rpc_engine(engine, settings)
    except BaseException:
        await engine.dispose()
        raise
    events = Events(engine, settings.database_listen_url or settings.database_url)
    return ControlPlane(engine, settings, opened, events, rpc_only)


async def _rpc_engine(engine: AsyncEngine, settings: ControlSettings) -> AsyncEngine | None:
    """Connections under the narrow role; None, with a line in the log, where this database user cannot have it."""
    try:
        await rpc_role.ensure_role(engine)
        return await rpc_role.connect_as(engine, settings.database_url)
    except rpc_role.RoleUnusableError as exc:
        log.warning("running RPC without a role of its own", cause=str(exc), hint="docs/database.md says what to grant")
        return None


async def _migrate(settings: ControlSettings) -> None:
    # an index on a year of records takes the time it takes
    engine = await _connect(settings, pool_size=1, command_timeout=None)
    try:
        with _step("migrate the database"):
            await migrate(engine)
    finally:
        await engine.dispose()


async def _connect(settings: ControlSettings, **options: Any) -> AsyncEngine:  # Any: options of `database.connect`
    loop = asyncio.get_running_loop()
    deadline, pause, told = loop.time() + CONNECT_PATIENCE, _FIRST_PAUSE, ""
    while True:
        try:
            return await database.connect(settings.database_url, **options)
        except database.DatabaseUnusableError as exc:
            raise StartError(str(exc)) from exc
        except database.DatabaseUnavailableError as exc:
            if loop.time() + pause > deadline:
                raise StartError(f"{exc}; waited {CONNECT_PATIENCE:.0f} s, is it running?") from exc
            if str(exc) != told:
                told = str(exc)
                log.warning("waiting for the database", cause=told)
        await asyncio.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


@contextmanager
def _step(name: str) -> Iterator[None]:
    """A step of the start: whatever fails in it is told as one line."""
    try:
        yield
    except (vault.VaultError, identity.BootstrapError, seed.SeedError) as exc:
        raise StartError(str(exc)) from exc
    except database.DATABASE_ERRORS as exc:
        raise StartError(f"cannot {name}: {database.cause(exc)}") from exc
    except Exception as exc:
        at = database.where(exc)
        log.error("failing to start by a bug", step=name, error=type(exc).__name__, at=at)
        raise StartError(f"cannot {name}: {type(exc).__name__} at {at}; this is a bug") from exc


# --- serve


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers, and telling when it serves."""

    def __init__(self, config: uvicorn.Config, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._tell_started = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._tell_started()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _serve(
    control: ControlPlane, listening: socket.socket, supervision: Supervision, drain: asyncio.Event, cut: asyncio.Event
) -> None:
    config = uvicorn.Config(
        create_app(control),
        http="httptools",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=_KEEP_ALIVE,
        timeout_graceful_shutdown=_DRAIN_TIMEOUT,
    )
    server = _Server(config, lambda: supervision.report(Ready()))

    async def stop() -> None:
        await drain.wait()
        log.info("draining the control plane")
        # watches last as long as they are let
        control.events.stop()
        server.should_exit = True
        await cut.wait()
        server.force_exit = True

    log.info("serving the control plane", address=str(listening.getsockname()))
    async with _running(stop()):
        await server.serve(sockets=[listening])


async def _keep_house(control: ControlPlane) -> None:
    try:
        await link_recent_orphans(control.engine, datetime.now(UTC))
    except database.DATABASE_ERRORS as exc:
        log.warning("leaving recent orphans without parents", cause=database.cause(exc))
    kept = control.settings.retention
    async with _running(retention.keep(control.engine, kept)):
        await partitions.keep_ahead(control.engine, kept)


# --- tasks


@asynccontextmanager
async def _running(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:  # Any: a coroutine's other ends
    """Runs `work` beside the body and ends it with the body."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def _unless(event: asyncio.Event, work: Coroutine[Any, Any, T]) -> T | None:  # Any: a coroutine's other ends
    """What `work` gives; None when the event comes first, then the work is given up."""
    task = asyncio.create_task(work)
    waiting = asyncio.create_task(event.wait())
    try:
        await asyncio.wait((task, waiting), return_when=asyncio.FIRST_COMPLETED)
        return await task if task.done() else None
    finally:
        for one in (task, waiting):
            one.cancel()
        await asyncio.gather(task, waiting, return_exceptions=True)
