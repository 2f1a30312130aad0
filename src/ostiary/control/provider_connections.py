"""Connections of the control plane to providers, for a trial or a look: they go the way of the gateway's.

That is its engine, its CA bundle and proxy, its check of resolved addresses. Nothing is kept alive.
"""

import asyncio
import ssl
from typing import Final

import msgspec

from ostiary.core.secret import Secret
from ostiary.core.settings import ControlSettings
from ostiary.http1.errors import UpstreamError
from ostiary.http1.origin import Origin, parse_networks
from ostiary.http1.pool import Pool, client_tls_context
from ostiary.http1.upstream import UpstreamConnection

CALL_SECONDS: Final = 10.0


class _Limits(msgspec.Struct, frozen=True):
    """`http1.pool.PoolLimits`; the time of a call is bounded by whoever makes it."""

    https_proxy: Secret
    no_proxy: str
    connect_timeout: float = 5.0
    head_timeout: float = CALL_SECONDS
    idle_timeout: float = CALL_SECONDS
    keepalive_pool: int = 1


async def open_pool(settings: ControlSettings) -> Pool:
    """Raises `ValueError` for TLS files that cannot be used."""
    try:
        tls = await asyncio.to_thread(client_tls_context, settings.ca_file)
    except (OSError, ssl.SSLError) as exc:
        raise ValueError(f"ca_file cannot be loaded: {exc}") from None
    limits = _Limits(https_proxy=settings.https_proxy, no_proxy=settings.no_proxy)
    return Pool(limits, tls, tick=1.0, egress_allow=parse_networks(settings.egress_allow))


async def connected(pool: Pool, origin: Origin) -> UpstreamConnection:
    """A connection, which the caller aborts. Raises `UpstreamError`; when it is cancelled nothing stays open."""
    made: asyncio.Future[UpstreamConnection] = asyncio.get_running_loop().create_future()

    def ready(connection: UpstreamConnection) -> None:
        if made.done():
            connection.abort()  # nobody waits for it any more
        else:
            made.set_result(connection)

    def failed(error: UpstreamError) -> None:
        if not made.done():
            made.set_exception(error)

    connecting = pool.connect(origin, ready, failed)
    try:
        return await made
    except asyncio.CancelledError:
        connecting.cancel()
        raise
