"""A child as the supervisor sees it: started any number of times, on the same listening socket.

Rules
- An exit is told when the process is reaped *and* its control socket is read to the end: the last words come first.
- A child whose words cannot be understood is killed.
- The environment of the server stays here as far as it is ours: what children need is in their boot message.
"""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable

from ostiary.core.messages import ControlBoot, FakeBoot, LinkBoot, Order, Ping, Pong, Ready, Report, WorkerBoot

from .backoff import Backoff
from .channel import Channel
from .logs import get_logger

Boot = WorkerBoot | LinkBoot | ControlBoot | FakeBoot

_OUR_VARIABLES = ("OSTIARY_", "CODER_AI_GATEWAY_", "CODER_AIBRIDGE_")
_log = get_logger()


class ChildProcess:
    """One child. `entry` is `module:function`; `boot` may be given later, the child waits for it."""

    def __init__(
        self,
        name: str,
        entry: str,
        listener: socket.socket | None,
        boot: Boot | None,
        on_report: Callable[["ChildProcess", Report], None],
        on_exit: Callable[["ChildProcess", str, float], None],
    ) -> None:
        self.name = name
        self.ready = False
        """It serves; since its last start."""
        self.refused = False
        """The last thing it said was that it cannot start, and that is no reason to end."""
        self.final = False
        """Not to be started again."""
        self.records_left: int | None = None
        """Of the link's last word: how many records it could not ship."""
        self.ended = asyncio.Event()
        self.ended.set()
        self.backoff = Backoff()
        self._entry = entry
        self._listener = listener
        self._boot = boot
        self._on_report = on_report
        self._on_exit = on_exit
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: Channel[Report] | None = None
        self._exit_cause: str | None = None
        self._started_at = 0.0
        self._unanswered = 0

    @property
    def running(self) -> bool:
        return self._process is not None

    @property
    def booted(self) -> bool:
        return self._boot is not None

    def spawn(self) -> None:
        """Start it. Raises `OSError` when the system has no room for it."""
        ours, theirs = socket.socketpair()
        descriptors = [theirs.fileno()] + ([self._listener.fileno()] if self._listener else [])
        argv = [sys.executable, "-m", "ostiary.runtime.child", self.name, self._entry, *map(str, descriptors)]
        environment = {name: value for name, value in os.environ.items() if not name.startswith(_OUR_VARIABLES)}
        with theirs:
            try:
                # a session of its own: Ctrl-C at the terminal is for the supervisor alone
                self._process = subprocess.Popen(
                    argv, pass_fds=descriptors, env=environment, stdin=subprocess.DEVNULL, start_new_session=True
                )
            except OSError:
                ours.close()
                raise
        self._exit_cause = None
        self._started_at = time.monotonic()
        self._unanswered = 0
        self.ended.clear()
        self._channel = Channel(ours, Report, self._on_message, self._on_closed)
        if self._boot is not None:
            self._channel.send(self._boot)

    def set_boot(self, boot: Boot) -> None:
        """Give the boot message that was not known yet."""
        self._boot = boot
        if self._channel is not None:
            self._channel.send(boot)

    def send(self, order: Order, fd: int | None = None) -> None:
        """Send an order, taking `fd` over; nothing happens when the child is not there."""
        if self._channel is not None:
            self._channel.send(order, fd)
        elif fd is not None:
            os.close(fd)

    def ping(self) -> int:
        """Ask one that serves whether its event loop turns: how many times in a row it has been asked without an answer."""
        if not self.ready:
            return 0
        unanswered = self._unanswered
        if not unanswered:
            self.send(Ping())
        self._unanswered += 1
        return unanswered

    def kill(self, signum: signal.Signals = signal.SIGKILL) -> None:
        if self._process is not None:
            self._process.send_signal(signum)

    def reap(self) -> None:
        """Look whether the process has ended; on SIGCHLD."""
        if self._process is not None and self._exit_cause is None and self._process.poll() is not None:
            self._exit_cause = exit_cause(self._process.returncode)
            self._tell_exit()

    def _on_message(self, report: Report, _fd: int | None) -> None:
        if isinstance(report, Pong):
            self._unanswered = 0
            return
        if isinstance(report, Ready):
            self.ready = True
            self.refused = False
        self._on_report(self, report)

    def _on_closed(self, reason: str) -> None:
        self._channel = None
        if reason:
            _log.error("killing child that sent a broken report", child=self.name, reason=reason)
            self.kill()
        self._tell_exit()

    def _tell_exit(self) -> None:
        if self._exit_cause is not None and self._channel is None:
            self._process = None
            self.ready = False
            self.ended.set()
            self._on_exit(self, self._exit_cause, time.monotonic() - self._started_at)


def exit_cause(returncode: int) -> str:
    """A process's end in words, from `Popen.returncode`."""
    if returncode >= 0:
        return f"exit status {returncode}"
    try:
        return f"signal {signal.Signals(-returncode).name}"
    except ValueError:
        return f"signal {-returncode}"
