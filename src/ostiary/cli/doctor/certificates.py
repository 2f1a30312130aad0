"""Until when certificates hold: the server's own, as this machine sees it, and the providers', as the server sees them."""

import socket
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from urllib.parse import urlsplit

from ostiary.cli.client import Client
from ostiary.cli.output import one_line, parse_time

from .findings import Finding, Group, number

OURS_WITHIN: Final = timedelta(days=14)
THEIRS_WITHIN: Final = timedelta(days=3)
"""Others renew their own: late is only what ends at once."""
_HANDSHAKE_SECONDS: Final = 5.0

_certificates = Group("certificates")


def listener(url: str) -> Iterator[Finding]:
    """The certificate that clients of `url` are shown; an expired one has made every call fail before."""
    parts = urlsplit(url)
    if parts.scheme != "https" or parts.hostname is None:
        return
    where = (parts.hostname, parts.port or 443)
    try:
        with (
            socket.create_connection(where, _HANDSHAKE_SECONDS) as plain,
            ssl.create_default_context().wrap_socket(plain, server_hostname=parts.hostname) as secured,
        ):
            shown: Any = secured.getpeercert()  # Any: as `ssl` describes a certificate
    except OSError as error:
        reason = getattr(error, "verify_message", "") or error.strerror or type(error).__name__
        text = f"{parts.netloc}: no handshake of our own ({reason})"
        yield _certificates.unchecked(text, "a proxy may stand between: check the certificate where it ends")
        return
    until = datetime.fromtimestamp(ssl.cert_time_to_seconds(shown["notAfter"]), UTC)
    cure = "renew it and put it in the place of tls_cert_file and tls_key_file: they are read again without a restart"
    yield lasting(f"the server's certificate ({parts.netloc})", until, datetime.now(UTC), OURS_WITHIN, cure)


def endpoints(client: Client) -> Iterator[Finding]:
    """Those of the providers, as the server's machine sees them."""
    for one in client.post("/api/v2/diagnosis/certificates"):
        yield endpoint(one, datetime.now(UTC))


def endpoint(one: dict[str, Any], now: datetime) -> Finding:
    """One address, and the providers behind it."""
    names = ", ".join(one_line(name) for name in one["providers"])
    about = f"{one_line(one['address'])} ({names})"
    if one["problem"]:
        cure = "a certificate of a CA of your own: set OSTIARY_CA_FILE; otherwise see the way there, its DNS and proxy"
        return _certificates.wrong(f"{about}: {one_line(one['problem'])}", cure)
    until = parse_time(one["expires_at"])
    if until is None:
        return _certificates.unchecked(f"{about}: its certificate says no end")
    return lasting(about, until, now, THEIRS_WITHIN, "whoever runs that address has to renew it")


def lasting(about: str, until: datetime, now: datetime, within: timedelta, cure: str) -> Finding:
    left = until - now
    if left <= timedelta(0):
        return _certificates.wrong(f"{about} has expired on {until:%Y-%m-%d %H:%M} UTC", cure)
    text = f"{about}: {number(left.days, 'day')} left" if left.days else f"{about}: {left.seconds // 3600} h left"
    return _certificates.warning(text, cure) if left < within else _certificates.ok(text)
