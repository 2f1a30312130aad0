"""How a child process starts and ends, with the real `python -m ostiary.runtime.child` and this test as supervisor."""

import asyncio
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress

import pytest

from ostiary.core.messages import Drain, Note, Ready, Report, WorkerBoot
from ostiary.core.settings import GatewaySettings, LogSettings
from ostiary.core.supervision import Supervision
from ostiary.runtime.channel import Channel
from tests.support.supervised import ROOT

BOOT = WorkerBoot(0, GatewaySettings(journal_dir="unused", log=LogSettings(format="json")))


# --- entries that run in the child


async def says_what_it_loaded(_boot: WorkerBoot, fd: int | None, supervision: Supervision) -> int:
    import gc

    heavy = ("fastapi", "sqlalchemy", "pydantic", "starlette", "uvicorn", "connectrpc", "rich", "alembic", "typer")
    supervision.report(Ready())
    facts = {
        "heavy": [name for name in heavy if name in sys.modules],
        "loop": type(asyncio.get_running_loop()).__module__,
        "frozen": gc.get_freeze_count() > 0,
        "fd": fd,
    }
    supervision.report(Note(repr(facts)))
    await supervision.next_order()
    return 0


async def leaves_a_thread_behind(_boot: WorkerBoot, _fd: int | None, supervision: Supervision) -> int:
    import threading

    threading.Thread(target=threading.Event().wait).start()
    for _ in range(200):
        supervision.report(Note("x" * 10_000))
    return 5


async def fails(_boot: WorkerBoot, _fd: int | None, _supervision: Supervision) -> int:
    raise RuntimeError("something nobody thought of")


async def blocks_its_loop(_boot: WorkerBoot, _fd: int | None, supervision: Supervision) -> int:
    supervision.report(Ready())
    await asyncio.sleep(0)
    signal.sigwait({signal.SIGUSR1})
    return 0


async def waits(_boot: WorkerBoot, _fd: int | None, supervision: Supervision) -> int:
    supervision.report(Ready())
    while not isinstance((await supervision.next_order()).order, Drain):
        pass
    return 0


# --- the tests


class _Child:
    def __init__(self, process: "subprocess.Popen[bytes]", sock: socket.socket) -> None:
        self.process = process
        self.sock = sock
        self.reports: list[Report] = []
        self.over = asyncio.Event()
        self.channel: Channel[Report] = Channel(
            sock, Report, lambda report, _fd: self.reports.append(report), lambda _reason: self.over.set()
        )

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(60):
            while not condition():
                assert not self.over.is_set(), "the child has ended"
                await asyncio.sleep(0.01)

    async def end(self) -> int:
        async with asyncio.timeout(60):
            await self.over.wait()
        return self.process.wait(60)


@contextmanager
def _child(entry: object, *, stderr: int | None = None) -> Iterator[_Child]:
    ours, theirs = socket.socketpair()
    target = f"tests.runtime.test_child:{entry.__name__}"  # type: ignore[attr-defined]
    argv = [sys.executable, "-m", "ostiary.runtime.child", "worker-0", target, str(theirs.fileno())]
    process = subprocess.Popen(argv, pass_fds=[theirs.fileno()], cwd=ROOT, stderr=stderr)
    theirs.close()
    child = _Child(process, ours)
    try:
        yield child
    finally:
        child.channel.close()
        process.kill()
        process.wait()
        if process.stderr is not None:
            process.stderr.close()


def _play(script: Callable[[], Coroutine[None, None, None]]) -> None:
    asyncio.run(script())


def test_a_worker_is_small_on_uvloop_and_frozen_once_ready() -> None:
    async def script() -> None:
        with _child(says_what_it_loaded) as child:
            child.channel.send(BOOT)
            await child.until(lambda: len(child.reports) == 2)
            assert child.reports[0] == Ready()
            said = child.reports[1]
            assert isinstance(said, Note)
            assert said.message == repr({"heavy": [], "loop": "uvloop", "frozen": True, "fd": None})
            child.channel.send(Drain())
            assert await child.end() == 0

    _play(script)


def test_the_last_words_and_the_status_arrive_even_with_a_thread_left_behind() -> None:
    async def script() -> None:
        with _child(leaves_a_thread_behind) as child:
            child.channel.send(BOOT)
            assert await child.end() == 5
            assert len(child.reports) == 200

    _play(script)


def test_an_unexpected_error_is_logged_and_fails_the_child() -> None:
    async def script() -> None:
        with _child(fails, stderr=subprocess.PIPE) as child:
            child.channel.send(BOOT)
            assert await child.end() == 70
            assert child.process.stderr is not None
            logged = child.process.stderr.read().decode()
            assert "something nobody thought of" in logged
            assert '"component": "worker-0"' in logged

    _play(script)


def test_the_end_of_the_control_socket_is_the_end_of_the_child() -> None:
    async def script() -> None:
        with _child(waits) as child:
            child.channel.send(BOOT)
            await child.until(lambda: child.reports == [Ready()])
            child.channel.close()
            assert child.process.wait(60) == 71

    _play(script)


def test_a_child_without_boot_message_ends_with_its_supervisor_too() -> None:
    async def script() -> None:
        with _child(waits) as child:
            child.channel.close()
            assert child.process.wait(60) == 71

    _play(script)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_to_the_whole_group_are_the_supervisors_business(signum: signal.Signals) -> None:
    async def script() -> None:
        with _child(waits) as child:
            child.channel.send(BOOT)
            await child.until(lambda: child.reports == [Ready()])
            os.kill(child.process.pid, signum)
            child.channel.send(Drain())
            assert await child.end() == 0

    _play(script)


@pytest.mark.skipif(sys.platform != "linux", reason="the death request is Linux's")
def test_a_child_that_is_stuck_ends_with_its_supervisor() -> None:
    program = (
        "import subprocess, sys, socket;"
        "from ostiary.core.messages import *; from ostiary.core.settings import *;"
        "a, b = socket.socketpair();"
        "a.sendall(encode(WorkerBoot(0, GatewaySettings(journal_dir='unused'))));"
        "c = subprocess.Popen([sys.executable, '-m', 'ostiary.runtime.child', 'worker-0',"
        " 'tests.runtime.test_child:blocks_its_loop', str(b.fileno())], pass_fds=[b.fileno()]);"
        "a.recv(1); print(c.pid, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as supervisor:
        assert supervisor.stdout is not None
        pid = int(supervisor.stdout.readline())
        handle = os.pidfd_open(pid)
        supervisor.kill()
    try:
        readable, _, _ = select.select([handle], [], [], 30)
        assert readable, "the stuck child still runs"
    finally:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(handle, signal.SIGKILL)
        os.close(handle)


def test_only_a_boot_message_starts_an_entry() -> None:
    async def script() -> None:
        with _child(waits, stderr=subprocess.PIPE) as child:
            child.channel.send(Drain())
            assert await child.end() == 1

    _play(script)
