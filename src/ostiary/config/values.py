"""How the text of a setting becomes its value, and how the value is shown again.

Rules
- A kind says in `allowed` what it takes, as the end of the sentence "must be ...": that is all an error needs.
- `parse` takes what a flag, a variable or a TOML key holds and raises `ValueError` with such an ending.
- `show` gives text that `parse` takes back, except of secrets: they are shown masked or not at all.
"""

import base64
import binascii
import ipaddress
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit, urlunsplit

from ostiary.core.secret import Secret
from ostiary.http1.fields import ACTOR_PREFIX, reserved_for
from ostiary.runtime.plan import Address

_TRUE = frozenset(("true", "t", "1", "yes", "y", "on"))
_FALSE = frozenset(("false", "f", "0", "no", "n", "off"))
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)", re.ASCII)
_DURATION_UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]i?b|b)?", re.IGNORECASE | re.ASCII)
_SIZE_UNITS = {
    **{f"{letter}b": 1000**power for power, letter in enumerate("kmgt", 1)},
    **{f"{letter}ib": 1024**power for power, letter in enumerate("kmgt", 1)},
    "b": 1,
    "": 1,
}
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}", re.ASCII)
CONVENTIONS = ("v1.41", "latest")
MIN_BOOTSTRAP_TOKEN = 32
VAULT_KEY_BYTES = 32


@dataclass(frozen=True)
class Kind:
    """One kind of value."""

    allowed: str
    parse: Callable[[object], Any]  # Any: each kind has its own type, which the field's annotation names
    show: Callable[[Any], str] = str
    metavar: str = "TEXT"
    secret: bool = False


def _text(value: object) -> str:
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, bool) or not isinstance(value, (int, float, Path)):
        raise ValueError("text")  # noqa: TRY004  the one exception of `parse`
    return str(value)


def _items(value: object) -> list[str]:
    if isinstance(value, (list, tuple)):
        return [_text(item) for item in value]
    return [item.strip() for item in _text(value).split(",") if item.strip()]


def text() -> Kind:
    return Kind("text", _text)


def boolean() -> Kind:
    allowed = "true or false"

    def parse(value: object) -> bool:
        if isinstance(value, bool):
            return value
        word = value.strip().lower() if isinstance(value, str) else ""
        if word not in _TRUE | _FALSE:
            raise ValueError(allowed)
        return word in _TRUE

    return Kind(allowed, parse, lambda value: "true" if value else "false", "BOOL")


def choice(*names: str) -> Kind:
    allowed = f"{', '.join(names[:-1])} or {names[-1]}"

    def parse(value: object) -> str:
        if not isinstance(value, str) or value.strip().lower() not in names:
            raise ValueError(allowed)
        return value.strip().lower()

    return Kind(allowed, parse, str, "|".join(names))


def integer(low: int, high: int) -> Kind:
    allowed = f"a whole number from {low} to {high}"

    def parse(value: object) -> int:
        if isinstance(value, str) and re.fullmatch(r"\d{1,9}", value.strip(), re.ASCII):
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(allowed)
        return value

    return Kind(allowed, parse, str, "N")


def parse_duration(value: str) -> float | None:
    """Seconds of e.g. `250ms`, `5s`, `10m`, `1h30m`, `60d`; None when it is no duration. A unit is needed."""
    parts = _DURATION_PART.findall(value)
    if not parts or "".join(number + unit for number, unit in parts) != value:
        return None
    return sum(float(number) * _DURATION_UNITS[unit] for number, unit in parts)


def show_duration(seconds: float) -> str:
    """The shortest text for it in the largest unit that divides it."""
    for unit, size in _DURATION_UNITS.items():
        if seconds >= size and not round(seconds * 1000) % round(size * 1000):
            return f"{round(seconds / size)}{unit}"
    return f"{round(seconds * 1000)}ms" if seconds else "0s"


def duration(low: str, high: str) -> Kind:
    allowed = f"a duration from {low} to {high}, e.g. 5s, 10m, 1h or 60d"
    shortest, longest = parse_duration(low), parse_duration(high)
    assert shortest is not None and longest is not None

    def parse(value: object) -> float:
        seconds = parse_duration(value.strip().lower()) if isinstance(value, str) else None
        if seconds is None or not shortest <= seconds <= longest:
            raise ValueError(allowed)
        return seconds

    return Kind(allowed, parse, show_duration, "DURATION")


def duration_or_zero(low: str, high: str) -> Kind:
    """As `duration`, or 0 without a unit."""
    inner = duration(low, high)
    allowed = f"0, or a duration from {low} to {high}, e.g. {high}"

    def parse(value: object) -> float:
        text = value.strip().lower() if isinstance(value, str) else value
        # TOML has numbers; true is none
        if (type(text) is int and text == 0) or text == "0" or (isinstance(text, str) and parse_duration(text) == 0):
            return 0.0
        try:
            return float(inner.parse(value))
        except ValueError:
            raise ValueError(allowed) from None

    return Kind(allowed, parse, lambda seconds: show_duration(seconds) if seconds else "0", "DURATION")


def parse_size(value: str) -> int | None:
    """Bytes of e.g. `65536`, `32MiB`, `1.5GB`; None when it is no size."""
    match = _SIZE.fullmatch(value)
    return round(float(match[1]) * _SIZE_UNITS[(match[2] or "").lower()]) if match else None


def show_size(value: int) -> str:
    for unit, size in (("GiB", 1024**3), ("MiB", 1024**2), ("KiB", 1024)):
        if value and value % size == 0:
            return f"{value // size}{unit}"
    return str(value)


def size(low: str, high: str) -> Kind:
    allowed = f"a size from {low} to {high}, e.g. 512MiB"
    smallest, largest = parse_size(low), parse_size(high)
    assert smallest is not None and largest is not None

    def parse(value: object) -> int:
        found = None
        if isinstance(value, str):
            found = parse_size(value.strip())
        elif isinstance(value, int) and not isinstance(value, bool):
            found = value
        if found is None or not smallest <= found <= largest:
            raise ValueError(allowed)
        return found

    return Kind(allowed, parse, show_size, "SIZE")


def parse_address(value: str) -> Address | None:
    """`HOST:PORT`, `[IPv6]:PORT` or `:PORT` (all addresses); None when it is neither."""
    host, colon, port = value.rpartition(":")
    if not colon or not re.fullmatch(r"\d{1,5}", port, re.ASCII) or int(port) > 65535:
        return None
    if host.startswith("[") and host.endswith("]"):
        try:
            return Address(str(ipaddress.IPv6Address(host[1:-1])), int(port))
        except ValueError:
            return None
    if not host:
        return Address("0.0.0.0", int(port))  # noqa: S104  asked for by the operator
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?", host, re.ASCII):
        return None
    return Address(host, int(port))


def listen(*, optional: bool = False) -> Kind:
    allowed = "an address with its port, e.g. 127.0.0.1:4000, [::1]:4000 or :4000" + (", or off" if optional else "")

    def parse(value: object) -> Address | None:
        word = value.strip() if isinstance(value, str) else ""
        if optional and word.lower() == "off":
            return None
        found = parse_address(word)
        if found is None:
            raise ValueError(allowed)
        return found

    return Kind(allowed, parse, lambda value: "off" if value is None else str(value), "HOST:PORT")


def directory() -> Kind:
    allowed = "a directory, or a path where one can be made"

    def parse(value: object) -> Path:
        path = _path(value, allowed)
        # os.path answers False where pathlib raises: for a name that is too long, or a closed directory
        if os.path.lexists(path) and not os.path.isdir(path):  # noqa: PTH112
            raise ValueError(allowed)
        return path

    return Kind(allowed, parse, str, "DIR")


def optional_directory() -> Kind:
    """As `directory`; nothing for none."""
    inner = directory()

    def parse(value: object) -> str:
        return str(inner.parse(value)) if value != "" else ""

    return Kind(inner.allowed, parse, metavar="DIR")


def readable_file() -> Kind:
    allowed = "a file that this user can read"

    def parse(value: object) -> Path:
        path = _path(value, allowed)
        if not os.path.isfile(path) or not os.access(path, os.R_OK):  # noqa: PTH113
            raise ValueError(allowed)
        return path

    return Kind(allowed, parse, lambda value: "" if value is None else str(value), "FILE")


def _path(value: object, allowed: str) -> Path:
    try:
        given = _text(value)
        if not given:
            raise ValueError(allowed)  # `--data-dir "$UNSET"`: it would be the working directory
        path = Path(given).expanduser().absolute()
    except RuntimeError:  # `~nobody`
        raise ValueError(allowed) from None
    if "\0" in str(path):
        raise ValueError(allowed)
    return path


def proxy_url() -> Kind:
    """User and password may be in it, so it is a secret; it is shown without them."""
    allowed = (
        "a URL that begins with http://, e.g. http://proxy.example:3128 or http://user:password@proxy.example:3128"
    )

    def parse(value: object) -> Secret:
        given = _text(value)
        url = _web_url(given)
        if url is None or url.scheme != "http":
            raise ValueError(allowed)
        return Secret(given.rstrip("/"))

    def show(value: Secret) -> str:
        url = urlsplit(value.reveal())
        user, at, host = url.netloc.rpartition("@")
        return urlunsplit(url._replace(netloc=f"***@{host}" if at and user else host))

    return Kind(allowed, parse, show, "URL", secret=True)


def header_name(standard: str) -> Kind:
    """The name of a header of ours towards providers (reference D.12); `standard` is allowed in spite of its prefix."""
    allowed = "off or a header name"

    def parse(value: object) -> str:
        given = _text(value)
        if given.lower() in ("", "off"):
            return ""
        lower = given.lower().encode("utf-8")
        if not _HEADER_NAME.fullmatch(given):
            raise ValueError(f"{allowed}, which has letters, digits and !#$%&'*+-.^_`|~ only (RFC 9110)")
        if lower.startswith(ACTOR_PREFIX) and lower != standard.lower().encode("ascii"):
            raise ValueError(f"{allowed}, of those that begin with X-AI-Bridge-Actor only its own, {standard}")
        use = reserved_for(lower)
        if use and lower != standard.lower().encode("ascii"):
            raise ValueError(f"{allowed} without another use; this one {use}")
        return given

    return Kind(allowed, parse, lambda value: value or "off", "NAME")


def networks() -> Kind:
    allowed = "IP addresses or networks with commas between them, e.g. 169.254.10.0/24"

    def parse(value: object) -> tuple[str, ...]:
        try:
            return tuple(str(ipaddress.ip_network(item)) for item in _items(value))
        except ValueError:
            raise ValueError(allowed) from None

    return Kind(allowed, parse, ",".join, "LIST")


def database_url() -> Kind:
    allowed = "a PostgreSQL URL, e.g. postgresql://user:password@host:5432/ostiary?sslmode=require"

    def parse(value: object) -> Secret:
        given = value.reveal() if isinstance(value, Secret) else _text(value)
        scheme, separator, rest = given.partition("://")
        if not separator or not rest or scheme not in ("postgres", "postgresql", "postgresql+asyncpg"):
            raise ValueError(allowed)
        return Secret(given)

    return Kind(allowed, parse, _masked, "URL", secret=True)


def vault_keys() -> Kind:
    allowed = (
        f"keys of {VAULT_KEY_BYTES} random bytes in base64, the current one first, with commas between them; "
        f"make one with: openssl rand -base64 {VAULT_KEY_BYTES}"
    )

    def parse(value: object) -> tuple[Secret, ...]:
        items = _items(value)
        for item in items:
            try:
                size_ok = len(base64.b64decode(item, validate=True)) == VAULT_KEY_BYTES
            except (binascii.Error, ValueError):
                size_ok = False
            if not size_ok:
                raise ValueError(allowed)
        if len(set(items)) != len(items):
            raise ValueError("different keys; one is given twice")
        return tuple(Secret(item) for item in items)

    return Kind(allowed, parse, lambda keys: ", ".join("***" for _ in keys), "KEYS", secret=True)


def bootstrap_token() -> Kind:
    # it travels in a header, so it is made of what a header may hold
    allowed = f"at least {MIN_BOOTSTRAP_TOKEN} printable ASCII characters; make one with: openssl rand -hex 32"

    def parse(value: object) -> Secret:
        given = _text(value)
        if len(given) < MIN_BOOTSTRAP_TOKEN or not re.fullmatch(r"[ -~]+", given):
            raise ValueError(allowed)
        return Secret(given)

    return Kind(allowed, parse, _masked, "TOKEN", secret=True)


def server_url() -> Kind:
    allowed = "the URL of an Ostiary server without a path, e.g. https://ostiary.example"

    def parse(value: object) -> str:
        given = _text(value).rstrip("/")
        url = _web_url(given)
        if url is None or url.path or "@" in url.netloc:
            raise ValueError(allowed)
        return given

    return Kind(allowed, parse, metavar="URL")


def collector_url() -> Kind:
    """Nothing for none."""
    allowed = "the base URL of an OTLP/HTTP collector, e.g. http://127.0.0.1:4318; credentials go into headers"

    def parse(value: object) -> str:
        given = _text(value).rstrip("/")
        url = _web_url(given)
        if given and (url is None or "@" in url.netloc):
            raise ValueError(allowed)
        return given

    return Kind(allowed, parse, metavar="URL")


def _web_url(given: str) -> SplitResult | None:
    """None for what is no address of HTTP, or has more than a path behind it."""
    try:
        url = urlsplit(given)
        usable = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:
        return None
    return url if usable and not url.query and not url.fragment else None


def conventions() -> Kind:
    """Also the words of OTEL_SEMCONV_STABILITY_OPT_IN: a list of which one item concerns us."""
    allowed = f"{CONVENTIONS[0]} or {CONVENTIONS[1]}"

    def parse(value: object) -> str:
        words = [word.lower() for word in _items(value)]
        if len(words) == 1 and words[0] in CONVENTIONS:
            return words[0]
        if not all(re.fullmatch(r"[a-z_]+(/[a-z]+)?", word, re.ASCII) for word in words):
            raise ValueError(allowed)
        return CONVENTIONS["gen_ai_latest_experimental" in words]

    return Kind(allowed, parse, str, "|".join(CONVENTIONS))


def captured_content() -> Kind:
    """Also the words of OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT; there are spans here and no events."""
    plain = boolean()
    words = {"span_only": True, "span_and_event": True, "event_only": False, "no_content": False}

    def parse(value: object) -> bool:
        word = value.strip().lower() if isinstance(value, str) else ""
        found: bool = words[word] if word in words else plain.parse(value)
        return found

    return Kind(plain.allowed, parse, plain.show, plain.metavar)


def gateway_key() -> Kind:
    allowed = "a gateway key; make one on the server with: ostiary gateway keys create NAME"

    def parse(value: object) -> Secret:
        given = _text(value).strip()
        if not re.fullmatch(r"[!-~]{16,256}", given):
            raise ValueError(allowed)
        return Secret(given)

    return Kind(allowed, parse, _masked, "KEY", secret=True)


def _masked(secret: Secret) -> str:
    return "***" if secret else ""
