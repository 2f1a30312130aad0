"""Processes of the benchmark: started, pinned, and ended by pid whatever happens."""

import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from . import machine

_END_SECONDS = (5.0, 5.0)
"""How long a process may take for the first signal, and then for the second one."""


_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def _end_with_parent() -> None:
    """In the child: the kernel ends it when the benchmark is killed."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


class StartError(Exception):
    """A process that did not come up; the text says why and what to do."""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


@contextmanager
def running(
    command: list[str],
    *,
    pinned: frozenset[int],
    log: Path,
    env: dict[str, str] | None = None,
    stop: signal.Signals = signal.SIGTERM,
) -> Iterator[subprocess.Popen[bytes]]:
    """A process whose output goes to `log`; ended on the way out, with its children when it does not end them itself."""
    with log.open("wb") as sink:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            env=env,
            start_new_session=True,
            preexec_fn=_end_with_parent,
        )
    machine.pin(process.pid, pinned)
    try:
        yield process
    finally:
        end(process, stop)


def end(process: "subprocess.Popen[bytes]", stop: signal.Signals = signal.SIGTERM) -> None:
    left = machine.children(process.pid)
    for seconds in _END_SECONDS:
        if process.poll() is None:
            process.send_signal(stop)
            with suppress(subprocess.TimeoutExpired):
                process.wait(seconds)
    if process.poll() is None:
        process.kill()
        process.wait()
    for pid in left:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def wait_until(ready: Callable[[], bool], process: "subprocess.Popen[bytes]", log: Path, seconds: float) -> None:
    """Raises `StartError`, with the end of the log, when the process ends or `seconds` pass before it is ready."""
    deadline = time.monotonic() + seconds
    while True:
        if ready():
            return
        if process.poll() is not None or time.monotonic() > deadline:
            reason = (
                f"ended with status {process.poll()}" if process.poll() is not None else f"not ready in {seconds} s"
            )
            told = log.read_text(errors="replace").strip().splitlines()[-15:]
            raise StartError(f"{_command(process)}… {reason}:\n  " + "\n  ".join(told))
        time.sleep(0.02)


def _command(process: "subprocess.Popen[bytes]") -> str:
    return " ".join(map(str, process.args[:3])) if isinstance(process.args, list) else str(process.args)


@contextmanager
def busy(core: frozenset[int]) -> Iterator[None]:
    """A loop keeps a core busy meanwhile."""
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", "while True: pass"], stdin=subprocess.DEVNULL, preexec_fn=_end_with_parent
    )
    machine.pin(process.pid, core)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=0.5).close()
    except OSError:
        return False
    return True


def run_load(order: dict[str, Any], pinned: frozenset[int]) -> dict[str, Any]:
    """Carry out one order of `bench.load` to its end."""
    with load_process(pinned) as process:
        told, _ = process.communicate(json.dumps(order) + "\n", timeout=order["seconds"] + 90)
    content: dict[str, Any] = json.loads(told)
    return content


@contextmanager
def load_process(pinned: frozenset[int]) -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.load"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=_end_with_parent,
    )
    machine.pin(process.pid, pinned)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


class LiveStreams:
    """Streams that are open now."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def ask(self, seconds: float) -> dict[str, Any]:
        """How many have begun, and how many events have come in all."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self.next_word(seconds)

    def next_word(self, seconds: float) -> dict[str, Any]:
        """What the load says next. Raises `StartError` when a stream has failed, or nothing is said."""
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], seconds)
        told: dict[str, Any] = (
            json.loads(self._process.stdout.readline()) if ready else {"live": 0, "reasons": ["no word from the load"]}
        )
        if not ready or told["errors"]:
            raise StartError(f"{told['live']} streams are open: {told['reasons']}")
        return told


@contextmanager
def live_streams(order: dict[str, Any], pinned: frozenset[int]) -> Iterator[LiveStreams]:
    """Streams that stay open while the body runs. Raises `StartError` when not all began."""
    with load_process(pinned) as process:
        assert process.stdin is not None
        process.stdin.write(json.dumps(order) + "\n")
        process.stdin.flush()
        streams = LiveStreams(process)
        told = streams.next_word(order["seconds"] + 30)
        if told["live"] < order["connections"]:
            raise StartError(f"{told['live']} of {order['connections']} streams began")
        yield streams
        process.stdin.close()
        process.wait(30)
