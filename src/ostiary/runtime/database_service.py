"""Keeps the embedded PostgreSQL running for as long as the server does.

Rules
- The first start must succeed; what keeps it from that ends the command. Later ends are repaired, with back-off.
- `launch` is called on the loop's own thread: the main one, which ends with the process (see `postgres`).
"""

import asyncio
import signal
import time
from collections.abc import Callable
from contextlib import suppress

from ostiary.core.secret import Secret

from .backoff import Backoff
from .child_process import exit_cause
from .errors import StartError
from .logs import get_logger
from .postgres import EmbeddedPostgres

_READY_TIMEOUT = 300.0
"""Seconds; recovery after a crash reads the whole write-ahead log."""
_LOG_CHECK = 30.0
_POLL = 0.01
_FAST, _IMMEDIATE, _HURRIED = 20.0, 5.0, 2.0
_log = get_logger()


class DatabaseService:
    """`run` until `stop`. `on_ready(url)` is called after every start."""

    def __init__(self, postgres: EmbeddedPostgres, on_ready: Callable[[Secret], None]) -> None:
        self._postgres = postgres
        self._on_ready = on_ready
        self._ended = asyncio.Event()
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Returns after `stop` has been called. Raises `StartError` when the first start fails."""
        backoff = Backoff()
        served = False
        while not self._stopping.is_set():
            started_at = time.monotonic()
            try:
                await self._start()
            except StartError as error:
                if not served:
                    raise
                cause = str(error)
            else:
                if self._stopping.is_set():
                    return
                served = True
                await self._wait_for_end()
                assert self._postgres.process is not None
                cause = exit_cause(self._postgres.process.returncode)
            if self._stopping.is_set():
                return
            delay = backoff.after(time.monotonic() - started_at)
            _log.error("restarting PostgreSQL", cause=cause, delay=delay)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), delay)

    def reap(self) -> None:
        """Look whether the server has ended; on SIGCHLD."""
        process = self._postgres.process
        if process is not None and process.poll() is not None:
            self._ended.set()

    async def stop(self, *, hurry: bool) -> None:
        """End the server: all sessions are cut and everything is written, unless that takes too long."""
        self._stopping.set()
        process = self._postgres.process
        if process is not None:
            first = _HURRIED if hurry else _FAST
            for signum, bound in (
                (signal.SIGINT, first),
                (signal.SIGQUIT, _IMMEDIATE),
                (signal.SIGKILL, _IMMEDIATE),
            ):
                process.send_signal(signum)
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._ended.wait(), bound)
                    break
        self._postgres.remove_socket_dir()

    async def _start(self) -> None:
        await asyncio.to_thread(self._postgres.prepare)
        if self._stopping.is_set():
            return
        self._ended.clear()
        self._postgres.launch()
        deadline = time.monotonic() + _READY_TIMEOUT
        while not self._postgres.is_ready():
            if self._stopping.is_set():
                return
            if time.monotonic() > deadline:
                raise StartError(
                    f"PostgreSQL was not ready after {_READY_TIMEOUT:.0f} s: see its log in the data directory"
                )
            await asyncio.sleep(_POLL)
        self._on_ready(self._postgres.url)

    async def _wait_for_end(self) -> None:
        while not self._ended.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), _LOG_CHECK)
            self._postgres.rotate_log()
