"""The supervisor: starts everything, keeps it running, and ends it in the order in which nothing is lost.

Rules
- One set of listening sockets for its whole life; a child that is started again serves the same one, so a connection
  made in between waits and is served.
- Everything starts at once. Who needs what is not there yet (the control plane its database, the link its control
  plane) waits for it in its boot message or in a listen queue.
- A child or PostgreSQL that ends is started again, with back-off; a worker and the link get a new socketpair whenever
  one of them is new. A child that never gets ready ends the command, as `Fatal` does: its exit status is the cause.
  But what keeps the successor of a control plane or link that has served from starting (no database, a certificate that
  is being replaced) ends nothing: the workers serve on, and it is tried again. A worker that cannot start ends the
  command: its share of the connections would wait for ever.
- A child that serves is asked over and over whether its event loop turns. Each question that finds it still silent counts,
  so that a machine that slept, or a supervisor that was held up itself, kills nobody. Who is silent for `hang_timeout` is
  killed: first so that it writes down where its threads stand, then for good.
- End: workers, link (ships what the workers left), control plane, fake provider, PostgreSQL. A second signal cuts,
  a third kills. What is left unshipped is said, and makes the exit status non-zero.
- It must survive: it holds no request, parses no input, and everything that can wait is bounded.

The same for `ostiary server` and `ostiary gateway start`: see `plan`.
"""

import asyncio
import os
import secrets
import signal
import socket
import time
from collections.abc import Mapping
from pathlib import Path

import msgspec

from ostiary.core.messages import (
    ChildKind,
    ControlBoot,
    Drain,
    Drained,
    FakeBoot,
    Fatal,
    LinkBoot,
    MachineReady,
    NewPeer,
    Note,
    Ready,
    Report,
    WorkerBoot,
)
from ostiary.core.secret import Secret

from .child_process import Boot, ChildProcess
from .data_directory import DataDirectory
from .database_service import DatabaseService
from .errors import StartError
from .lifetime import forbid_core_dumps, raise_open_files_limit
from .listeners import Sockets, bound_address
from .logs import configure_logging, get_logger
from .plan import ENTRIES, ServerPlan, completed
from .postgres import EmbeddedPostgres
from .service_manager import ServiceManager
from .terminal import Terminal, banner

_SUCCESSION_PATIENCE = 3.0
"""Seconds for which the children of a killed server may still hold its addresses."""
_START_ATTEMPTS = 5
_CUT_SECONDS = 5.0
_DRAIN_MARGIN = 10.0
"""On top of what a child is allowed by its own settings."""
_CONTROL_DRAIN, _FAKE_DRAIN = 15.0, 5.0
_PINGS = 6
"""So many questions without an answer make `hang_timeout`."""
_log = get_logger()


def run(plan: ServerPlan, entries: Mapping[ChildKind, str] = ENTRIES) -> int:
    """Run `plan` in this process, which must have no event loop, until a signal or a fatal error; the exit status."""
    configure_logging(plan.log, "supervisor")
    os.umask(0o077)
    terminal = Terminal()
    try:
        return asyncio.run(supervise(plan, entries, terminal))
    except StartError as error:
        terminal.failure(str(error))
        return error.exit_status


async def supervise(plan: ServerPlan, entries: Mapping[ChildKind, str], terminal: Terminal) -> int:
    """`run` on the loop of the main thread. Raises `StartError` when nothing could be started."""
    raise_open_files_limit()
    forbid_core_dumps()
    with DataDirectory(Path(plan.data_dir)) as directory:
        sockets = Sockets.bind(plan, _SUCCESSION_PATIENCE if directory.unclean else 0.0)
        try:
            plan = msgspec.structs.replace(
                plan,
                listen=bound_address(sockets.public[0]),
                metrics_listen=bound_address(sockets.metrics) if sockets.metrics else None,
            )
            return await Supervisor(plan, directory.path, sockets, entries, terminal).run()
        finally:
            sockets.close()


class Supervisor:
    """One life of the server: construct, `run`, discard."""

    def __init__(
        self,
        plan: ServerPlan,
        data_dir: Path,
        sockets: Sockets,
        entries: Mapping[ChildKind, str],
        terminal: Terminal,
    ) -> None:
        self._plan = plan = completed(
            plan,
            control_port=bound_address(sockets.control).port if sockets.control else 0,
            fake=bound_address(sockets.fake) if sockets.fake else None,
            draw=lambda: secrets.token_urlsafe(32),
        )
        self._data_dir = data_dir
        self._sockets = sockets
        self._terminal = terminal
        self._service_manager = ServiceManager()
        self._started_at = time.monotonic()
        self._workers = [
            self._child(f"worker-{index}", entries["worker"], sock, WorkerBoot(index, plan.gateway, plan.workers))
            for index, sock in enumerate(sockets.public)
        ]
        self._link = self._child("link", entries["link"], sockets.metrics, LinkBoot(plan.link, len(self._workers)))
        self._control = self._fake = None
        self._database: DatabaseService | None = None
        if plan.control is not None:
            control_boot: Boot | None = ControlBoot(plan.control)
            if plan.control.embedded_database:
                control_boot = None
                self._database = DatabaseService(EmbeddedPostgres(data_dir), self._on_database_ready)
            self._control = self._child("control", entries["control"], sockets.control, control_boot)
        if plan.fake is not None:
            self._fake = self._child("fake", entries["fake"], sockets.fake, FakeBoot(plan.fake.settings))
        self._children = [c for c in (self._control, self._link, *self._workers, self._fake) if c is not None]
        self._respawns: dict[ChildProcess, asyncio.TimerHandle] = {}
        self._machine_ready = False
        self._announced = False
        self._status = 0
        self._signals = 0
        self._ending, self._cut, self._kill = asyncio.Event(), asyncio.Event(), asyncio.Event()

    def _child(self, name: str, entry: str, listener: socket.socket | None, boot: Boot | None) -> ChildProcess:
        return ChildProcess(name, entry, listener, boot, self._on_report, self._on_exit)

    async def run(self) -> int:
        """Start everything, wait for the reason to end, end everything; the exit status."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGCHLD, self._reap)
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, self._on_signal)
        loop.add_signal_handler(signal.SIGHUP, self._on_hangup)
        database = asyncio.create_task(self._run_database())
        for child in self._children:
            self._spawn(child)
        watch = asyncio.create_task(self._watch())
        await self._ending.wait()
        watch.cancel()
        self._service_manager.stopping("draining")
        await self._end_everything()
        await database
        return self._status

    # --- while it runs

    def _spawn(self, child: ChildProcess) -> None:
        self._respawns.pop(child, None)
        try:
            child.spawn()
        except OSError as error:
            self._on_exit(child, f"it cannot be started: {error.strerror}", 0.0)
            return
        if child is self._link:
            for worker in self._workers:
                self._connect(worker)
        elif child in self._workers:
            self._connect(child)

    def _connect(self, worker: ChildProcess) -> None:
        """Join a worker and the link by a new socketpair, once both are there."""
        if worker.running and self._link.running:
            ours, theirs = socket.socketpair()
            order = NewPeer(self._workers.index(worker))
            self._link.send(order, ours.detach())
            worker.send(order, theirs.detach())

    async def _run_database(self) -> None:
        if self._database is None:
            return
        try:
            await self._database.run()
        except StartError as error:
            self._fail(str(error), error.exit_status)
        except Exception as error:  # noqa: BLE001 - nobody awaits this task before the end: without it the start would hang
            _log.exception("running PostgreSQL")
            self._fail(f"PostgreSQL cannot be run ({type(error).__name__}): the log has the traceback", 70)

    def _on_database_ready(self, url: Secret) -> None:
        assert self._control is not None
        assert self._plan.control is not None
        if not self._control.booted:
            self._control.set_boot(ControlBoot(msgspec.structs.replace(self._plan.control, database_url=url)))

    async def _watch(self) -> None:
        """Kill who hangs."""
        timeout = self._plan.hang_timeout
        while timeout:
            await asyncio.sleep(timeout / _PINGS)
            for child in self._children:
                silent = child.ping()
                if silent == _PINGS:
                    _log.error("killing child that hangs", child=child.name, seconds=timeout)
                    child.kill(signal.SIGABRT)
                elif silent > _PINGS:  # it is stopped, or in the kernel
                    child.kill()

    def _reap(self) -> None:
        for child in self._children:
            child.reap()
        if self._database is not None:
            self._database.reap()

    def _on_report(self, child: ChildProcess, report: Report) -> None:
        match report:
            case Ready():
                self._announce_when_ready()
            case MachineReady():
                self._machine_ready = True
                self._announce_when_ready()
            case Note():
                self._terminal.note(report)
            case Fatal() if self._announced and not child.ready and child not in self._workers:
                _log.error("failing to start child again", child=child.name, cause=report.message)
                child.refused = True
            case Fatal():
                child.final = True
                self._fail(report.message, report.exit_status)
            case Drained():
                child.records_left = report.records_left

    def _announce_when_ready(self) -> None:
        if self._machine_ready and not self._announced and all(child.ready for child in self._children):
            self._announced = True
            _log.info("serving", seconds=round(time.monotonic() - self._started_at, 2), workers=len(self._workers))
            self._service_manager.ready(f"serving on {self._plan.listen}")
            self._terminal.banner(banner(self._plan, self._data_dir))

    def _on_exit(self, child: ChildProcess, cause: str, lived: float) -> None:
        if child.final:
            _log.debug("child ended", child=child.name, cause=cause)
            return
        delay = child.backoff.after(lived)
        _log.error("restarting child", child=child.name, cause=cause, lived=round(lived, 2), delay=delay)
        if not self._announced and child.backoff.failures >= _START_ATTEMPTS:
            child.final = True
            self._fail(f"{child.name} ended {_START_ATTEMPTS} times during the start ({cause}): the log says why", 1)
            return
        self._respawns[child] = asyncio.get_running_loop().call_later(delay, self._spawn, child)

    def _fail(self, message: str, status: int) -> None:
        self._terminal.failure(message)
        self._status = self._status or status
        self._ending.set()

    def _on_signal(self) -> None:
        self._signals += 1
        if self._signals == 1:
            _log.info("draining", hint="a second signal cuts what still runs")
            self._ending.set()
        elif self._signals == 2:
            _log.warning("cutting what still runs")
            self._cut.set()
        else:
            self._kill.set()

    def _on_hangup(self) -> None:
        if self._terminal.attached:
            self._on_signal()  # the terminal has been closed
        else:
            _log.info("ignoring SIGHUP", hint="certificates and key files are re-read when they change")

    # --- the end

    async def _end_everything(self) -> None:
        for sock in self._sockets.public:
            sock.close()  # once the workers let go of it too, new connections are refused, not left to wait
        await self._end_children(self._workers, self._plan.gateway.drain_timeout + _DRAIN_MARGIN)
        await self._end_link()
        if self._control is not None:
            await self._end_children([self._control], _CONTROL_DRAIN)
        if self._fake is not None:
            await self._end_children([self._fake], _FAKE_DRAIN)
        if self._database is not None:
            await self._database.stop(hurry=self._kill.is_set())

    async def _end_link(self) -> None:
        link, control = self._link, self._control
        refused = link.final  # by a fatal error, which has been told: it may be ending this moment
        if refused and not link.running:
            return
        if link in self._respawns:
            self._respawns[link].cancel()
            self._spawn(link)  # what dead workers left has to be shipped
        if control is not None and (not control.booted or control.final or control.refused):
            # nobody is or will be there to ship to, a control plane that has refused may still be on its way out:
            # the link's first `Drain`, so that the next one makes it say what is left and end
            link.send(Drain())
        await self._end_children([link], self._plan.link.drain_timeout + _DRAIN_MARGIN)
        where = self._plan.link.journal_dir
        if link.records_left is None and not refused:
            self._unclean(f"the link ended without a word: what it has not shipped stays in {where} for the next start")
        elif link.records_left:
            left, stay = ("record is", "it stays") if link.records_left == 1 else ("records are", "they stay")
            self._unclean(f"{link.records_left} {left} not shipped: {stay} in {where} for the next start")

    def _unclean(self, message: str) -> None:
        if not self._status:
            self._status = 1
        self._terminal.failure(message)

    async def _end_children(self, children: list[ChildProcess], bound: float) -> None:
        for child in children:
            child.final = True
            if child in self._respawns:
                self._respawns.pop(child).cancel()
            if child.booted:
                child.send(Drain())
            else:
                child.kill()
        await self._ended(children, bound, self._cut)
        for child in children:
            child.send(Drain())  # the second one: cut
        await self._ended(children, _CUT_SECONDS, self._kill)
        for child in children:
            if child.running:
                self._unclean(f"{child.name} did not end in time and was killed")
                child.kill()
        await self._ended(children, _CUT_SECONDS, asyncio.Event())

    @staticmethod
    async def _ended(children: list[ChildProcess], bound: float, earlier: asyncio.Event) -> None:
        """Wait until all have ended, `earlier` happens, or `bound` seconds have passed."""

        async def all_ended() -> None:
            for child in children:
                await child.ended.wait()

        async def told() -> None:
            await earlier.wait()

        waits = {asyncio.create_task(all_ended()), asyncio.create_task(told())}
        await asyncio.wait(waits, timeout=bound, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        await asyncio.wait(waits)
