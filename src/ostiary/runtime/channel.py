"""One end of the control socket between the supervisor and a child.

Rules
- Frames of `core.messages`; a descriptor travels with the first byte of its frame, so it has arrived when the frame
  is complete. `NewPeer` is the one message that has one: descriptors are matched to those in order.
- Sending never blocks: what the socket does not take waits here.
- The other end closing is the news that its process has gone. It is told once, after the last words have been read:
  that nothing can be sent any more is not yet the end.
"""

import asyncio
import os
import socket
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import msgspec

from ostiary.core.messages import FrameReader, NewPeer, Order, Report, encode

M = TypeVar("M")

_READ = 64 * 1024
_MAX_DESCRIPTORS = 64
_RECEIVE_FLAGS = getattr(socket, "MSG_CMSG_CLOEXEC", 0)


class Channel(Generic[M]):
    """Opens at once on the running loop. `messages` is the union of what this end receives.

    `on_message(message, fd)` owns the descriptor it is given. `on_closed(reason)` comes once: "" when the
    other process has gone, else what is wrong with the frame it sent.
    """

    def __init__(
        self,
        sock: socket.socket,
        messages: Any,  # Any: a union of types is not a `type`
        on_message: Callable[[M, int | None], None],
        on_closed: Callable[[str], None],
    ) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._reader: FrameReader[M] = FrameReader(messages)
        self._on_message = on_message
        self._on_closed = on_closed
        self._received: deque[int] = deque()
        self._unsent: deque[tuple[memoryview, int | None]] = deque()
        self._loop = asyncio.get_running_loop()
        self._closed = False
        self._deaf = False
        self._loop.add_reader(sock, self._on_readable)

    def send(self, message: Order | Report, fd: int | None = None) -> None:
        """Send, or keep until it can be sent. Takes `fd` over. Nothing is sent to an end that has gone."""
        if self._closed or self._deaf:
            _close(fd)
            return
        self._unsent.append((memoryview(encode(message)), fd))
        if len(self._unsent) == 1:
            self._on_writable()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._sock)
        self._stop_sending()
        self._sock.close()
        while self._received:
            _close(self._received.popleft())

    def flush(self, timeout: float) -> None:
        """Block until everything is sent, the other end has gone, or `timeout` seconds have passed. For messages
        without descriptors."""
        if self._closed:
            return
        self._loop.remove_writer(self._sock)
        self._sock.settimeout(timeout)
        try:
            while self._unsent:
                self._sock.sendall(self._unsent[0][0])
                self._unsent.popleft()
        except OSError:
            self.close()

    def _send_first(self, data: memoryview, fd: int) -> None:
        sent = socket.send_fds(self._sock, [data], [fd])
        self._unsent[0] = (data[sent:], None)
        os.close(fd)

    def _on_writable(self) -> None:
        try:
            while self._unsent:
                data, fd = self._unsent[0]
                if fd is None:
                    self._unsent[0] = (data[self._sock.send(data) :], None)
                else:
                    self._send_first(data, fd)
                if not self._unsent[0][0]:
                    self._unsent.popleft()
        except BlockingIOError:
            self._loop.add_writer(self._sock, self._on_writable)
        except OSError:
            self._stop_sending()
        else:
            self._loop.remove_writer(self._sock)

    def _stop_sending(self) -> None:
        self._deaf = True
        self._loop.remove_writer(self._sock)
        while self._unsent:
            _close(self._unsent.popleft()[1])

    def _on_readable(self) -> None:
        try:
            data, descriptors, _, _ = socket.recv_fds(self._sock, _READ, _MAX_DESCRIPTORS, _RECEIVE_FLAGS)
        except BlockingIOError:
            return
        except OSError:
            data, descriptors = b"", []
        self._received.extend(descriptors)
        if not data:
            self._lost("")
            return
        try:
            for message in self._reader.feed(data):
                fd = self._received.popleft() if isinstance(message, NewPeer) else None
                self._on_message(message, fd)
                if self._closed:
                    return
        except (ValueError, IndexError, msgspec.MsgspecError) as error:
            self._lost(f"{type(error).__name__}: {error}")

    def _lost(self, reason: str) -> None:
        if not self._closed:
            self.close()
            self._on_closed(reason)


def _close(fd: int | None) -> None:
    if fd is not None:
        os.close(fd)
