"""Until when the certificates of providers hold: a handshake with each of them, and nothing more.

Rules
- The connection goes the way of the gateway's: its CA bundle and proxy, its check of resolved addresses.
- One handshake an address, a few at once, bounded in time and in number.
"""

import asyncio
import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from ostiary.core.secret import Secret
from ostiary.core.settings import ControlSettings
from ostiary.http1.errors import UpstreamError
from ostiary.http1.origin import Origin, parse_networks, split_base_url
from ostiary.http1.pool import Pool, client_tls_context
from ostiary.http1.upstream import UpstreamConnection

AT_ONCE: Final = 8
MAX_ORIGINS: Final = 64
SECONDS: Final = 15.0
"""For all of them together."""
_CONNECT_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class EndpointCertificate:
    """What came of a handshake with the address of some providers."""

    address: str
    providers: tuple[str, ...]
    expires_at: datetime | None
    problem: str
    """Why no certificate was accepted."""


class _Limits(msgspec.Struct, frozen=True):
    """`http1.pool.PoolLimits` for connections on which nothing is sent."""

    https_proxy: Secret
    no_proxy: str
    connect_timeout: float = _CONNECT_SECONDS
    head_timeout: float = _CONNECT_SECONDS
    idle_timeout: float = _CONNECT_SECONDS
    keepalive_pool: int = 1


async def certificates(base_urls: Iterable[tuple[str, str]], settings: ControlSettings) -> list[EndpointCertificate]:
    """Of the https addresses among (provider, base URL). Raises `ValueError` for TLS files that cannot be used."""
    origins: dict[Origin, list[str]] = {}
    for provider, url in base_urls:
        try:
            origin = split_base_url(url)[0]
        except ValueError:
            continue  # the provider's own status says so
        if origin.secure:
            origins.setdefault(origin, []).append(provider)
    try:
        tls = await asyncio.to_thread(client_tls_context, settings.ca_file)
    except (OSError, ssl.SSLError) as exc:
        raise ValueError(f"ca_file cannot be loaded: {exc}") from None
    limits = _Limits(https_proxy=settings.https_proxy, no_proxy=settings.no_proxy)
    pool = Pool(limits, tls, tick=1.0, egress_allow=parse_networks(settings.egress_allow))
    slots = asyncio.Semaphore(AT_ONCE)
    deadline = asyncio.get_running_loop().time() + SECONDS

    async def ask(origin: Origin, providers: list[str]) -> EndpointCertificate:
        expires_at, problem = None, ""
        try:
            async with asyncio.timeout_at(deadline), slots:
                expires_at = await _expiry(pool, origin)
        except TimeoutError:
            problem = f"no handshake within {SECONDS:.0f} s"
        except UpstreamError as exc:
            problem = exc.detail
        return EndpointCertificate(origin.authority, tuple(providers), expires_at, problem)

    return list(await asyncio.gather(*(ask(*item) for item in list(origins.items())[:MAX_ORIGINS])))


async def _expiry(pool: Pool, origin: Origin) -> datetime | None:
    """Raises `UpstreamError`."""
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
        connection = await made
    except asyncio.CancelledError:
        connecting.cancel()
        raise
    try:
        shown: dict[str, Any] = connection.transport.get_extra_info("peercert") or {}  # Any: as `ssl` describes it
        until = shown.get("notAfter")
        return datetime.fromtimestamp(ssl.cert_time_to_seconds(until), UTC) if until else None
    finally:
        connection.abort()
