"""How every child process starts: `python -m ostiary.runtime.child NAME MODULE:FUNCTION CONTROL_FD [LISTEN_FD]`.

Rules
- Only the part that runs is imported, and before the boot message is waited for: what that takes overlaps with the
  rest of the start.
- Settings and secrets come over the control socket, never as arguments or environment.
- The supervisor alone decides about the end: signals to the whole group or from a service manager are its business.
  When it has gone the process ends at once, by the end of the control socket and by the kernel besides.
- Nothing that a part leaves behind (threads, tasks) can hold up the end.
- `Ping` is answered here, whatever the part does meanwhile, as long as its event loop turns. Where each thread stands is
  written to the standard error output when it is killed by `SIGABRT`.
"""

import asyncio
import faulthandler
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from importlib import import_module
from typing import NoReturn

import uvloop

from ostiary.core.messages import ControlBoot, FakeBoot, LinkBoot, Order, Ping, Pong, Ready, Report, WorkerBoot
from ostiary.core.supervision import Delivered, Supervision

from .channel import Channel
from .lifetime import die_with_parent, raise_open_files_limit
from .logs import configure_logging, get_logger

Boot = WorkerBoot | LinkBoot | ControlBoot | FakeBoot
Entry = Callable[[Boot, int | None, Supervision], Awaitable[int]]

_ABANDONED = 71
"""Exit status of a child whose supervisor has gone; nobody is left to read it."""
_FAILED = 70
_FLUSH_SECONDS = 2.0


class ControlSocket:
    """`core.supervision.Supervision` over the control socket."""

    def __init__(self, sock: socket.socket) -> None:
        self._orders: asyncio.Queue[Delivered] = asyncio.Queue()
        self._channel: Channel[Order] = Channel(sock, Order, self._on_order, self._on_closed)

    async def next_order(self) -> Delivered:
        return await self._orders.get()

    def report(self, report: Report) -> None:
        if isinstance(report, Ready):
            # what the start has made stays: the collector need not look at it again
            gc.collect()
            gc.freeze()
        self._channel.send(report)

    def flush(self) -> None:
        self._channel.flush(_FLUSH_SECONDS)

    def _on_order(self, order: Order, fd: int | None) -> None:
        if isinstance(order, Ping):
            self._channel.send(Pong())
        else:
            self._orders.put_nowait(Delivered(order, fd))

    def _on_closed(self, reason: str) -> None:
        if reason:
            get_logger().error("reading a broken order", reason=reason)
        os._exit(_ABANDONED)


async def _run(name: str, entry: Entry, control: socket.socket, listen_fd: int | None) -> int:
    supervision = ControlSocket(control)
    boot, _ = await supervision.next_order()
    if not isinstance(boot, Boot):
        raise TypeError(f"the first order is {type(boot).__name__}, not a boot message")
    configure_logging(boot.settings.log, name)
    try:
        return await entry(boot, listen_fd, supervision)
    except Exception:  # noqa: BLE001 - whatever it is, it is logged and the supervisor starts the child anew
        get_logger().exception("ending after an unexpected error")
        return _FAILED
    finally:
        supervision.flush()


def main(arguments: list[str]) -> NoReturn:
    name, target, *descriptors = arguments
    die_with_parent(os.getppid(), signal.SIGKILL)
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)
    faulthandler.enable()
    raise_open_files_limit()
    control, listening = int(descriptors[0]), int(descriptors[1]) if descriptors[1:] else None
    for fd in (control, listening):
        if fd is not None:
            os.set_inheritable(fd, False)
    module, _, function = target.partition(":")
    entry: Entry = getattr(import_module(module), function)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        status = runner.run(_run(name, entry, socket.socket(fileno=control), listening))
        logging.shutdown()
        with suppress(OSError):
            sys.stdout.flush()
        # a thread left behind must not hold up the end: what has to be on disk is there by now
        os._exit(status)


if __name__ == "__main__":
    main(sys.argv[1:])
