"""Where an upstream is, and which addresses are never connected to. Pure."""

import ipaddress
import urllib.parse
from collections.abc import Iterable, Sequence
from typing import Final

from msgspec import Struct

IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

_REFUSED: Final[tuple[IPNetwork, ...]] = tuple(
    ipaddress.ip_network(text)
    for text in (
        "169.254.0.0/16",  # link-local, most clouds' metadata service
        "fe80::/10",
        "fd00:ec2::/32",  # AWS over IPv6: metadata, credentials of containers
        "fd20:ce::254/128",  # Google metadata over IPv6
        "100.100.100.200/32",  # Alibaba metadata
        "168.63.129.16/32",  # Azure wire server
        "192.0.0.192/32",  # Oracle metadata
    )
)
"""Design §6: link-local and cloud metadata. Loopback and private networks are allowed: admins set base URLs."""

_LOW_BITS_ARE_IPV4: Final = tuple(
    ipaddress.IPv6Network(text)
    for text in (
        "64:ff9b::/96",  # NAT64 (RFC 6052)
        "64:ff9b:1::/48",  # NAT64 within a network (RFC 8215), as usual with /96
        "::/96",  # IPv4-compatible (RFC 4291 §2.5.5.1), but for :: and ::1
    )
)


class Origin(Struct, frozen=True):
    """Scheme, host and port of an upstream. `host` is without brackets."""

    secure: bool
    host: str
    port: int

    @property
    def authority(self) -> str:
        """For the `Host` field: the port only where it is not the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.secure else 80) else f"{host}:{self.port}"


def split_base_url(url: str) -> tuple[Origin, str, str]:
    """An absolute http(s) URL as (origin, path without trailing slash, query with its `?`). Raises `ValueError`."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must be an absolute http:// or https:// URL")
    if parts.username is not None or parts.password is not None:
        raise ValueError("must not hold a user name or password")
    if parts.fragment:
        raise ValueError("must not hold a fragment")
    secure = parts.scheme == "https"
    port = parts.port or (443 if secure else 80)
    if not all("!" <= char <= "~" for char in parts.path + parts.query):
        raise ValueError("must be visible ASCII; percent-encode the rest")
    host = parts.hostname.encode("idna").decode("ascii") if not parts.hostname.isascii() else parts.hostname
    return Origin(secure, host, port), parts.path.rstrip("/"), f"?{parts.query}" if parts.query else ""


def parse_networks(texts: Iterable[str]) -> tuple[IPNetwork, ...]:
    """Addresses or CIDR networks. Raises `ValueError` naming the first that is neither."""
    return tuple(ipaddress.ip_network(text, strict=False) for text in texts)


def is_refused(address: str, allowed: Sequence[IPNetwork]) -> bool:
    """Whether a resolved address must not be connected to."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        ip = _embedded_ipv4(ip) or ip
    if any(ip in network for network in allowed if network.version == ip.version):
        return False
    return any(ip in network for network in _REFUSED if network.version == ip.version)


def _embedded_ipv4(ip: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that a packet to `ip` ends at."""
    if ip.ipv4_mapped is not None or ip.sixtofour is not None:
        return ip.ipv4_mapped or ip.sixtofour
    if int(ip) > 1 and any(ip in network for network in _LOW_BITS_ARE_IPV4):
        return ipaddress.IPv4Address(int(ip) & 0xFFFF_FFFF)
    return None


def bypasses_proxy(host: str, port: int, no_proxy: str) -> bool:
    """Whether `NO_PROXY` names this host: a name, a domain (with or without a leading dot), an address, a network, or `*`."""
    lowered = host.lower()
    for entry in no_proxy.lower().split(","):
        name = entry.strip().removeprefix("*.")
        if not name:
            continue
        if name == "*" or name in (lowered, f"{lowered}:{port}"):
            return True
        if lowered.endswith("." + name.lstrip(".")):
            return True
        if "/" in name and _in_network(lowered, name):
            return True
    return lowered in ("localhost", "127.0.0.1", "::1")


def _in_network(host: str, network: str) -> bool:
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(network, strict=False)
    except ValueError:
        return False
