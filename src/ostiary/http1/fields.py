"""Which fields are stripped from heads, and the cutting of outgoing heads from the lines of incoming ones. Pure.

One table for both directions (design §6, reference D.12). Names are lower case.
"""

from itertools import compress
from operator import not_
from typing import Final

from .head import Head, RequestHead, ResponseHead

HOP_BY_HOP: Final = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer upgrade http2-settings".split()
)
"""RFC 9110 §7.6.1, besides what `Connection` names. `Transfer-Encoding` is the engine's: it stays with verbatim framing."""

PROXY_CHAIN: Final = frozenset(
    (
        b"forwarded",
        b"x-forwarded-for",
        b"x-forwarded-host",
        b"x-forwarded-proto",
        b"x-forwarded-port",
        b"x-real-ip",
        b"via",
    )
)

OURS: Final = frozenset(
    (
        b"x-ostiary-token",
        b"x-ostiary-timing",
        b"x-ostiary-front-door",
        b"x-ostiary-gateway-key",
        b"x-coder-ai-governance-token",
        b"x-coder-ai-governance-request-id",
        b"x-coder-agent-firewall-session-id",
        b"x-coder-agent-firewall-sequence-number",
    )
)
"""Said to us, not to the provider."""

_BODY_FRAMING: Final = frozenset((b"content-length", b"transfer-encoding"))

_CONNECTION_ONLY: Final = _BODY_FRAMING | {b"close", b"keep-alive"}
"""Options of `Connection` that drop no field: without its framing a body would be read as the next message."""

_FRAMING: Final = _BODY_FRAMING | {b"host", b"expect"}
"""Written anew for each upstream request."""

REQUEST_DROPPED: Final = HOP_BY_HOP | PROXY_CHAIN | OURS | _FRAMING

CREDENTIALS: Final = frozenset((b"authorization", b"x-api-key", b"api-key", b"cookie"))
"""Never forwarded in centralized mode: they hold an Ostiary token or belong to another origin."""

FRONT_DOOR_DROPPED: Final = HOP_BY_HOP | PROXY_CHAIN | {b"x-ostiary-front-door", b"host", b"expect"}

RESPONSE_DROPPED: Final = HOP_BY_HOP | {b"alt-svc", b"strict-transport-security"}
"""They speak of the upstream's origin, not of ours."""


_USUAL_CONNECTION: Final = (None, b"keep-alive", b"close")


def kept_request_lines(head: RequestHead, dropped: frozenset[bytes]) -> list[bytes]:
    """The lines of `head` to send on, as they came."""
    return _kept(head, dropped)


def kept_response_lines(head: ResponseHead, dropped: frozenset[bytes]) -> list[bytes]:
    """The lines of `head` to send on, as they came."""
    return _kept(head, dropped)


def _kept(head: Head, dropped: frozenset[bytes]) -> list[bytes]:
    if head.fields.get(b"connection") not in _USUAL_CONNECTION:
        dropped = dropped.union(set(head.connection_options()) - _CONNECTION_ONLY)
    return list(compress(head.lines, map(not_, map(dropped.__contains__, head.names))))
