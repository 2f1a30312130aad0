"""A child as the supervisor sees it."""

import asyncio
import os
import signal
import socket
from collections.abc import Callable

import pytest

from ostiary.core.messages import Drain, Note, Report, WorkerBoot
from ostiary.core.settings import GatewaySettings
from ostiary.core.supervision import Supervision
from ostiary.runtime.child_process import ChildProcess, exit_cause

BOOT = WorkerBoot(0, GatewaySettings(journal_dir="unused"))
WORDS = 12


async def says_a_lot_and_ends(_boot: WorkerBoot, _fd: int | None, supervision: Supervision) -> int:
    for number in range(WORDS):
        supervision.report(Note(f"{number} " + "x" * 10_000))
    return 3


async def says_its_listener_and_waits(_boot: WorkerBoot, fd: int, supervision: Supervision) -> int:
    with socket.socket(fileno=fd) as listener:
        supervision.report(Note(str(listener.getsockname()[1])))
    while not isinstance((await supervision.next_order()).order, Drain):
        pass
    return 0


async def says_what_nobody_understands(_boot: WorkerBoot, _fd: int | None, supervision: Supervision) -> int:
    supervision.report(Drain())  # type: ignore[arg-type]
    await asyncio.Event().wait()
    return 0


class _Watch:
    def __init__(self, entry: Callable[..., object], listener: socket.socket | None, boot: WorkerBoot | None) -> None:
        self.heard: list[Report] = []
        self.ends: list[tuple[str, int]] = []
        target = f"tests.runtime.test_child_process:{entry.__name__}"
        self.child = ChildProcess(
            "worker-0",
            target,
            listener,
            boot,
            lambda _child, report: self.heard.append(report),
            lambda _child, cause, _lived: self.ends.append((cause, len(self.heard))),
        )

    async def __aenter__(self) -> "_Watch":
        asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, self.child.reap)
        self.child.spawn()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.child.kill()
        await self.end()

    async def end(self) -> None:
        async with asyncio.timeout(60):
            await self.child.ended.wait()

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(60):
            while not condition():
                await asyncio.sleep(0.005)


def _pid(watch: _Watch) -> int:
    process = watch.child._process
    assert process is not None
    return process.pid


def test_all_it_said_is_heard_before_its_end_is_told() -> None:
    async def script() -> None:
        async with _Watch(says_a_lot_and_ends, None, BOOT) as watch:
            # it ends while this loop looks away: its exit and its words are all there at once
            os.waitid(os.P_PID, _pid(watch), os.WEXITED | os.WNOWAIT)
            await watch.end()
            assert watch.ends == [("exit status 3", WORDS)]

    asyncio.run(script())


def test_the_next_life_serves_the_same_listening_socket() -> None:
    async def script() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            async with _Watch(says_its_listener_and_waits, listener, BOOT) as watch:
                await watch.until(lambda: len(watch.heard) == 1)
                watch.child.kill()
                await watch.end()
                watch.child.spawn()
                await watch.until(lambda: len(watch.heard) == 2)
                port = str(listener.getsockname()[1])
                assert watch.heard == [Note(port), Note(port)]
                watch.child.send(Drain())
                await watch.end()
                assert [cause for cause, _ in watch.ends] == ["signal SIGKILL", "exit status 0"]

    asyncio.run(script())


def test_a_boot_message_that_comes_later_is_waited_for() -> None:
    async def script() -> None:
        async with _Watch(says_a_lot_and_ends, None, None) as watch:
            assert not watch.child.booted
            watch.child.set_boot(BOOT)
            await watch.end()
            assert watch.ends == [("exit status 3", WORDS)]

    asyncio.run(script())


def test_a_child_that_sends_what_is_no_report_is_ended() -> None:
    async def script() -> None:
        async with _Watch(says_what_nobody_understands, None, BOOT) as watch:
            await watch.end()
            ((cause, heard),) = watch.ends
            assert cause in ("signal SIGKILL", "exit status 71"), "it may notice the closed socket first"
            assert heard == 0

    asyncio.run(script())


def test_a_start_that_the_system_refuses_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/no/such/python")
    child = ChildProcess("worker-0", "nowhere:run", None, BOOT, lambda *_: None, lambda *_: None)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(FileNotFoundError):
        child.spawn()
    assert not child.running
    assert child.ended.is_set()
    assert len(os.listdir("/proc/self/fd")) == before


def test_an_order_to_a_child_that_is_not_there_leaks_no_descriptor() -> None:
    child = ChildProcess("worker-0", "nowhere:run", None, BOOT, lambda *_: None, lambda *_: None)
    read_end, write_end = os.pipe()
    child.send(Drain(), write_end)
    assert os.read(read_end, 1) == b""
    os.close(read_end)


@pytest.mark.parametrize(
    ("returncode", "cause"),
    [(0, "exit status 0"), (70, "exit status 70"), (-9, "signal SIGKILL"), (-200, "signal 200")],
)
def test_the_cause_of_an_end_in_words(returncode: int, cause: str) -> None:
    assert exit_cause(returncode) == cause
