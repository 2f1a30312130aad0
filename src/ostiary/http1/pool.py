"""Keep-alive connections per origin, and how new ones are made.

Rules
- Idle connections of an origin are a plain last-in-first-out deque: the warmest goes first, the rest grow old and close.
- An address is checked after the name was resolved and is what is connected to, so a name cannot change in between.
- Of several addresses each is tried in turn, with its share of `connect_timeout`.
- Through `HTTPS_PROXY` (CONNECT) the proxy resolves; only literal addresses can be checked then.
"""

import asyncio
import base64
import contextlib
import socket
import ssl
import urllib.parse
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, Protocol, cast

from ostiary.core.secret import Secret

from .errors import EXHAUSTED, Failure, UpstreamError
from .origin import IPNetwork, Origin, bypasses_proxy, is_refused
from .tls import UpstreamTLS
from .upstream import UpstreamConnection

KEEPALIVE_SECONDS: Final = 60.0
"""Idle time after which a pooled connection is closed: below the 75 s that servers commonly keep."""


class PoolLimits(Protocol):
    """Times in seconds; `keepalive_pool` is connections per origin."""

    @property
    def connect_timeout(self) -> float: ...
    @property
    def head_timeout(self) -> float: ...
    @property
    def idle_timeout(self) -> float: ...
    @property
    def keepalive_pool(self) -> int: ...
    @property
    def https_proxy(self) -> Secret: ...
    @property
    def no_proxy(self) -> str: ...


class Pool:
    """The upstream connections of a worker."""

    def __init__(
        self, limits: PoolLimits, tls: ssl.SSLContext, *, tick: float, egress_allow: Sequence[IPNetwork] = ()
    ) -> None:
        self._limits = limits
        self._tls = tls
        self._egress_allow = egress_allow
        self._idle: dict[Origin, deque[UpstreamConnection]] = {}
        self._live: set[UpstreamConnection] = set()
        self._connecting: set[asyncio.Task[None]] = set()
        self.head_ticks = limits.head_timeout / tick
        self.idle_ticks = limits.idle_timeout / tick
        self.keepalive_ticks = KEEPALIVE_SECONDS / tick

    def take(self, origin: Origin) -> UpstreamConnection | None:
        """An idle connection, or None."""
        idle = self._idle.get(origin)
        while idle:
            connection = idle.pop()
            if connection.usable:
                return connection
        return None

    def connect(
        self,
        origin: Origin,
        ready: Callable[[UpstreamConnection], object],
        failed: Callable[[UpstreamError], object],
    ) -> asyncio.Task[None]:
        """Make a connection and call exactly one of the two, unless the returned task is cancelled before."""
        task = asyncio.get_running_loop().create_task(self._connect_then(origin, ready, failed))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)
        return task

    async def _connect_then(
        self,
        origin: Origin,
        ready: Callable[[UpstreamConnection], object],
        failed: Callable[[UpstreamError], object],
    ) -> None:
        try:
            async with asyncio.timeout(self._limits.connect_timeout):
                connection = await self._open(origin)
        except TimeoutError:
            failed(UpstreamError(Failure.CONNECT, f"no connection to {origin.authority} in time"))
        except UpstreamError as error:
            failed(error)
        except ssl.SSLCertVerificationError as refused:
            detail = f"the certificate of {origin.authority} was not accepted: {refused.verify_message}"
            failed(UpstreamError(Failure.CONNECT, detail))
        except (OSError, ValueError) as exc:  # ValueError: a name that no resolver would be asked for
            failed(UpstreamError(_failure(exc), f"cannot connect to {origin.authority}: {_reason(exc)}"))
        else:
            ready(connection)

    async def _open(self, origin: Origin) -> UpstreamConnection:
        proxy = self._limits.https_proxy
        if proxy and origin.secure and not bypasses_proxy(origin.host, origin.port, self._limits.no_proxy):
            return await self._open_through(proxy, origin)
        usable = await self._resolve(origin)
        share = self._limits.connect_timeout / len(usable)
        failure: OSError | None = None
        for address in usable:
            try:
                async with asyncio.timeout(share):
                    return await self._open_at(address, origin)
            except ssl.SSLError:
                raise
            except OSError as exc:
                failure = exc
        assert failure is not None
        raise failure

    async def _open_at(self, address: str, origin: Origin) -> UpstreamConnection:
        loop = asyncio.get_running_loop()
        if origin.secure:
            tcp, before_tls = await loop.create_connection(_BeforeTLS, address, origin.port)
            if before_tls.spoke:
                tcp.abort()
                raise UpstreamError(Failure.CONNECT, f"{origin.authority} does not speak TLS")
            return await self._secure(tcp, origin)
        connection = UpstreamConnection(self, origin)
        await loop.create_connection(lambda: cast("asyncio.Protocol", connection), address, origin.port)
        return self._adopt(connection)

    async def _secure(self, tcp: asyncio.Transport, origin: Origin) -> UpstreamConnection:
        connection = UpstreamConnection(self, origin)
        try:
            await UpstreamTLS(tcp, connection, self._tls, origin.host).handshake()
            return self._adopt(connection)
        except BaseException:
            tcp.abort()
            raise

    async def _resolve(self, origin: Origin, flags: int = 0) -> list[str]:
        """The addresses that may be connected to. Raises `OSError`, or `UpstreamError` where there are only others."""
        loop = asyncio.get_running_loop()
        infos = await loop.getaddrinfo(origin.host, origin.port, type=socket.SOCK_STREAM, flags=flags)
        addresses = [str(info[4][0]) for info in infos]
        usable = [address for address in addresses if not is_refused(address, self._egress_allow)]
        if not usable:
            raise UpstreamError(
                Failure.FORBIDDEN_ADDRESS,
                f"{origin.host} is a link-local or cloud-metadata address; allow it with egress_allow if it is meant",
            )
        return usable

    async def _open_through(self, proxy: Secret, origin: Origin) -> UpstreamConnection:
        """A TLS connection through an HTTP proxy's CONNECT (RFC 9110 §9.3.6)."""
        with contextlib.suppress(socket.gaierror):  # a name: the proxy resolves it
            await self._resolve(origin, socket.AI_NUMERICHOST)
        loop = asyncio.get_running_loop()
        parts = urllib.parse.urlsplit(proxy.reveal())
        port = parts.port or (443 if parts.scheme == "https" else 80)
        tunnel = _Tunnel(loop.create_future())
        try:
            transport, _ = await loop.create_connection(
                lambda: tunnel, parts.hostname or "", port, ssl=self._tls if parts.scheme == "https" else None
            )
        except (OSError, ValueError) as exc:
            detail = f"cannot connect to the proxy {parts.hostname}:{port}: {_reason(exc)}"
            raise UpstreamError(_failure(exc), detail) from exc
        try:
            target = f"{origin.host}:{origin.port}" if ":" not in origin.host else f"[{origin.host}]:{origin.port}"
            request = f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n"
            if parts.username is not None:
                pair = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
                request += f"Proxy-Authorization: Basic {base64.b64encode(pair.encode()).decode()}\r\n"
            transport.write(request.encode() + b"\r\n")
            await tunnel.answered
        except BaseException:
            transport.abort()
            raise
        return await self._secure(transport, origin)

    def _adopt(self, connection: UpstreamConnection) -> UpstreamConnection:
        if not connection.usable:  # its end has been told already, to nobody
            raise UpstreamError(Failure.CONNECT, f"{connection.origin.authority} closed the connection at once")
        self._live.add(connection)
        return connection

    def release(self, connection: UpstreamConnection) -> None:
        """An answer is complete and the connection may serve another."""
        idle = self._idle.get(connection.origin)
        if idle is None:
            idle = self._idle[connection.origin] = deque()
        idle.append(connection)
        if len(idle) > self._limits.keepalive_pool:
            idle.popleft().close()

    def forget(self, connection: UpstreamConnection) -> None:
        """A connection is closed."""
        self._live.discard(connection)
        idle = self._idle.get(connection.origin)
        if idle is not None:
            with contextlib.suppress(ValueError):
                idle.remove(connection)
            if not idle:
                del self._idle[connection.origin]

    @property
    def idle_count(self) -> int:
        return sum(map(len, self._idle.values()))

    @property
    def open_count(self) -> int:
        """Connections that stand, or that are being made."""
        return len(self._live) + len(self._connecting)

    def sweep(self) -> None:
        """Call every tick."""
        for connection in tuple(self._live):
            connection.sweep()

    def close(self) -> None:
        """Close what is idle and give up connecting."""
        for task in tuple(self._connecting):
            task.cancel()
        for idle in tuple(self._idle.values()):
            for connection in tuple(idle):
                connection.close()


class _BeforeTLS(asyncio.Protocol):
    """Until the handshake begins the upstream has nothing to say."""

    spoke = False

    def data_received(self, data: bytes) -> None:  # noqa: ARG002 - the transport's signature
        self.spoke = True


class _Tunnel(asyncio.Protocol):
    """Waits for a proxy's answer to CONNECT."""

    def __init__(self, answered: "asyncio.Future[None]") -> None:
        self.answered = answered
        self._buffer = b""

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self.answered.done():
            return
        if b"\r\n\r\n" in self._buffer:
            status = self._buffer[9:12] if self._buffer.startswith(b"HTTP/1.") else b"?"
            if status[:1] == b"2":
                self.answered.set_result(None)
            else:
                self._refused(f"the proxy answered CONNECT with status {status.decode('ascii', 'replace')}")
        elif len(self._buffer) > 16 * 1024:
            self._refused("the proxy's answer to CONNECT is too long")

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the transport's signature
        if not self.answered.done():
            self._refused("the proxy closed the connection")

    def _refused(self, detail: str) -> None:
        self.answered.set_exception(UpstreamError(Failure.CONNECT, detail))


def _failure(exc: Exception) -> Failure:
    """Why there is no connection."""
    return Failure.EXHAUSTED if isinstance(exc, OSError) and exc.errno in EXHAUSTED else Failure.CONNECT


def _reason(exc: Exception) -> str:
    return getattr(exc, "strerror", None) or type(exc).__name__


def client_tls_context(ca_file: str = "") -> ssl.SSLContext:
    """TLS towards upstreams: verified, 1.2 or newer, HTTP/1.1 only. Raises `OSError` for an unreadable CA file."""
    context = ssl.create_default_context(cafile=ca_file or None)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    return context
