"""Until when the certificates of providers hold: a handshake with each of them, and nothing more.

Rules
- The connection goes the way of the gateway's (`provider_connections`).
- One handshake an address, a few at once, bounded in time and in number.
"""

import asyncio
import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from ostiary.core.settings import ControlSettings
from ostiary.http1.errors import UpstreamError
from ostiary.http1.origin import Origin, split_base_url
from ostiary.http1.pool import Pool

from .provider_connections import connected, open_pool

AT_ONCE: Final = 8
MAX_ORIGINS: Final = 64
SECONDS: Final = 15.0
"""For all of them together."""


@dataclass(frozen=True, slots=True)
class EndpointCertificate:
    """What came of a handshake with the address of some providers."""

    address: str
    providers: tuple[str, ...]
    expires_at: datetime | None
    problem: str
    """Why no certificate was accepted."""


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
    pool = await open_pool(settings)
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
    connection = await connected(pool, origin)
    try:
        shown: dict[str, Any] = connection.transport.get_extra_info("peercert") or {}  # Any: as `ssl` describes it
        until = shown.get("notAfter")
        return datetime.fromtimestamp(ssl.cert_time_to_seconds(until), UTC) if until else None
    finally:
        connection.abort()
