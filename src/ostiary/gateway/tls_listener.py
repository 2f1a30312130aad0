"""A worker's listening socket with TLS: who is accepted, and by which certificate.

Rules
- Connections are accepted here and not by the event loop, which tells of them only once their TLS is established: until
  then they have a descriptor, and nobody has shown that he is anybody. They count (`Connections.begin_handshake`), and the
  oldest of them ends early where there are too many.
- A handshake has as long as a request's head has.
- A context that is in use is never changed: a certificate that does not fit its key would stay in it.
"""

import asyncio
import socket
import ssl
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final, cast

import structlog

from ostiary.core.settings import TLSFiles
from ostiary.http1.connections import Connections
from ostiary.http1.errors import EXHAUSTED
from ostiary.http1.server import ClientConnection

log = structlog.get_logger()

_AT_ONCE: Final = 16
"""Connections that are accepted in one turn of the loop: those that make room for them are closed at its end."""
_PAUSE: Final = 0.1
"""Seconds until the next try when there is no descriptor for one more."""
_LOG_INTERVAL: Final = 5.0

_Handshake = asyncio.Task[Any]  # Any: what the loop gives, a transport and a protocol; both are told to each other


class TLSListener:
    """`failed` is told of what is no fault of the network or the client."""

    def __init__(
        self,
        listener: socket.socket,
        tls: "ServerTLS",
        connections: Connections,
        handshake_timeout: float,
        failed: Callable[[BaseException], object],
    ) -> None:
        self._listener = listener
        self._tls = tls
        self._connections = connections
        self._handshake_timeout = handshake_timeout
        self._failed = failed
        self._loop = asyncio.get_running_loop()
        self._handshakes: set[_Handshake] = set()
        self._pausing: asyncio.TimerHandle | None = None
        self._tell_again_at = 0.0

    def start(self, backlog: int) -> None:
        self._listener.setblocking(False)
        self._listener.listen(backlog)
        self._loop.add_reader(self._listener, self._accept)

    def close(self) -> None:
        """Accept no more. What is under way goes on."""
        if self._pausing is not None:
            self._pausing.cancel()
        self._loop.remove_reader(self._listener)
        self._listener.close()

    def _accept(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                accepted, _address = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in EXHAUSTED:
                    self._pause()
                    return
                continue  # the client has gone already
            self._begin(accepted)

    def _pause(self) -> None:
        now = self._loop.time()
        if not self._connections.make_room() and now >= self._tell_again_at:
            self._tell_again_at = now + _LOG_INTERVAL
            log.warning("leaving client connections waiting: raise the limit of open files")
        self._loop.remove_reader(self._listener)
        self._pausing = self._loop.call_later(_PAUSE, self._loop.add_reader, self._listener, self._accept)

    def _begin(self, accepted: socket.socket) -> None:
        connection = ClientConnection(self._connections)
        shaking = self._loop.connect_accepted_socket(
            lambda: cast("asyncio.Protocol", connection),
            accepted,
            ssl=self._tls.context,
            ssl_handshake_timeout=self._handshake_timeout,
        )
        task = self._loop.create_task(shaking)
        self._handshakes.add(task)
        task.add_done_callback(partial(self._over, connection, accepted))
        if not self._connections.begin_handshake(connection, task.cancel):
            task.cancel()

    def _over(self, connection: ClientConnection, accepted: socket.socket, task: _Handshake) -> None:
        """The connection is told of its transport by now, or will never be."""
        self._handshakes.discard(task)
        self._connections.handshakes.pop(connection, None)
        error = None if task.cancelled() else task.exception()
        if task.cancelled() or error is not None:
            accepted.close()
        if error is not None and not isinstance(error, OSError):
            self._failed(error)


class ServerTLS:
    """The listener's TLS. Files that change are read again; while they are broken, or only half there, the old ones hold.

    With `client_ca_file` everybody is asked for a certificate: who shows one must have it from there, who shows none is
    let in, and refused later on the paths that need one.
    """

    def __init__(self, files: TLSFiles, client_ca_file: str = "") -> None:
        self._files = files
        self._client_ca_file = client_ca_file
        self._stamp = self._stat()
        self.context = self._load()

    def reload_if_changed(self) -> None:
        try:
            stamp = self._stat()
            if stamp == self._stamp:
                return
            self._stamp = stamp
            self.context = self._load()
        except (OSError, ssl.SSLError) as error:
            log.error("keeping the old certificate", error=str(error))
        else:
            log.info("loading a changed certificate", cert_file=self._files.cert_file)

    def _load(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        context.load_cert_chain(self._files.cert_file, self._files.key_file)
        if self._client_ca_file:
            context.verify_mode = ssl.CERT_OPTIONAL
            context.load_verify_locations(self._client_ca_file)
        return context

    def _stat(self) -> tuple[tuple[int, int], ...]:
        stats = [Path(name).stat() for name in (self._files.cert_file, self._files.key_file)]
        return tuple((stat.st_mtime_ns, stat.st_ino) for stat in stats)
