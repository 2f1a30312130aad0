"""TLS towards an upstream, over a plain connection: OpenSSL between two buffers, and no more in between than that.

Rules
- The event loop's own TLS costs twice as much a call: it goes through an exception, a copy and a callback more each way. It
  also drops what it has not passed on when it is paused and the end comes.
- Once established it is to the `UpstreamConnection` above what a TCP transport is. Reading is paused below, at the TCP
  connection: what it has brought until then is passed on.
- The peer's `close_notify` is the end of the stream (`eof_received`); a TCP connection that ends without it just breaks.
- Records that carry no data (session tickets, key updates) are taken care of by OpenSSL, which may have an answer to be sent.
"""

import asyncio
import contextlib
import errno
import os
import ssl
from collections.abc import Iterable
from typing import Any, Final, cast

from .interfaces import Secured

_RECORD: Final = 16 * 1024
"""The most that one record carries (RFC 8446 §5.1), and so the most that one read gives."""


class UpstreamTLS:
    """An `asyncio.Protocol` to the TCP connection, and the `asyncio.Transport` of the connection above.

    Raises `ssl.SSLError` for what `context` cannot make a client of.
    """

    __slots__ = ("_closing", "_connection", "_established", "_failure", "_incoming", "_outgoing", "_tcp", "_tls")

    def __init__(self, tcp: asyncio.Transport, connection: Secured, context: ssl.SSLContext, host: str) -> None:
        self._tcp = tcp
        self._connection = connection
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)
        self._established: asyncio.Future[None] | None = None
        self._failure: Exception | None = None
        self._closing = False

    async def handshake(self) -> None:
        """Establish it. Raises `OSError`, of which `ssl.SSLError` is one. The caller aborts `tcp` then, or when cancelled."""
        established: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._established = established
        self._tcp.set_protocol(cast("asyncio.BaseProtocol", self))
        self._shake_hands()
        await established
        self._established = None
        self._connection.tls_started(cast("asyncio.Transport", self), self._tcp)
        if self._incoming.pending:
            self._read()

    def _shake_hands(self) -> None:
        established = self._established
        if established is None or established.done():
            return
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
            return
        except ssl.SSLError as error:
            self._flush()  # the alert that says why
            established.set_exception(error)
            return
        self._flush()
        established.set_result(None)

    # --- from TCP

    def data_received(self, data: bytes) -> None:
        self._incoming.write(data)
        if self._established is None:
            self._read()
        else:  # what comes before `handshake` has gone on waits for it
            self._shake_hands()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._closing = True
        established = self._established
        if established is None:
            self._connection.connection_lost(self._failure or exc)
        elif not established.done():
            established.set_exception(exc or ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET)))

    def pause_writing(self) -> None:
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        self._connection.resume_writing()

    def _read(self) -> None:
        """Pass on what has come."""
        tls = self._tls
        incoming = self._incoming
        received = self._connection.data_received
        try:
            while not self._closing:
                data = tls.read(_RECORD)
                if not data:
                    self._ended_by_peer()
                    return
                received(data)
                # Asking once more when nothing is left would cost an exception.
                if not incoming.pending and not tls.pending():
                    break
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self._ended_by_peer()
            return
        except ssl.SSLError as error:
            self._fail(error)
            return
        if self._outgoing.pending:
            self._flush()

    def _ended_by_peer(self) -> None:
        self._connection.eof_received()
        self.close()

    def _fail(self, error: Exception) -> None:
        self._failure = error
        self._flush()
        self.abort()

    def _flush(self) -> None:
        if self._outgoing.pending and not self._tcp.is_closing():
            self._tcp.write(self._outgoing.read())

    # --- for the connection above

    def write(self, data: bytes) -> None:
        if self._closing:
            return
        try:
            written = self._tls.write(data)
            if written < len(data):
                self._write_rest(memoryview(data)[written:])
        except ssl.SSLError as error:
            self._fail(error)
            return
        self._tcp.write(self._outgoing.read())

    def _write_rest(self, rest: memoryview) -> None:
        """A record was full."""
        while rest:
            rest = rest[self._tls.write(rest) :]

    def writelines(self, pieces: Iterable[bytes]) -> None:
        for piece in pieces:
            self.write(piece)

    def close(self) -> None:
        """Say that this was all, and close."""
        if self._closing:
            return
        self._closing = True
        with contextlib.suppress(ssl.SSLError):  # it waits for the peer's answer, which nobody else does
            self._tls.unwrap()
        self._flush()
        self._tcp.close()

    def abort(self) -> None:
        self._closing = True
        self._tcp.abort()

    def is_closing(self) -> bool:
        return self._closing or self._tcp.is_closing()

    def get_write_buffer_size(self) -> int:
        return self._tcp.get_write_buffer_size()

    def get_extra_info(self, name: str, default: Any = None) -> Any:  # Any: as asyncio has it
        if name == "peercert":
            return self._tls.getpeercert()
        return self._tcp.get_extra_info(name, default)
