"""A configured upstream as the worker serves from it. Immutable once built."""

from hashlib import sha256
from typing import Final, Literal

from ostiary.core.providers import ProviderSpec, ProviderType, WireFamily, wire_family
from ostiary.core.secret import Secret, mask
from ostiary.gateway.routes import Route, RouteTable
from ostiary.http1.origin import Origin, split_base_url

from .adapter import Adapter


class BuildError(Exception):
    """Why a provider cannot be built; shown to clients and operators, so nothing secret is in it."""


class RuntimeKey:
    """A key of the pool with the header line it is sent as. `digest`: SHA-256 of its value, by which its state is known."""

    __slots__ = ("digest", "hint", "id", "line")

    def __init__(self, key_id: str, value: Secret, line: bytes) -> None:
        self.id = key_id
        self.digest = sha256(value.reveal().encode()).digest()
        self.hint = mask(value.reveal())
        self.line = line

    def __repr__(self) -> str:
        return f"RuntimeKey({self.id}, {self.hint})"


class RuntimeProvider:
    """What a request needs to know of its provider.

    `strip` is cut from the front of the path behind the provider's name before it is joined to `base_path`.
    `splice_usage`: chat streams get `stream_options.include_usage` when the client did not ask for it.
    `selection`: which of its keys a request gets. `brings_own`: requests come with the person's own credential, always.
    """

    __slots__ = (
        "adapter",
        "base_path",
        "base_query",
        "brings_own",
        "enabled",
        "error",
        "family",
        "host_line",
        "keys",
        "name",
        "origin",
        "routes",
        "selection",
        "splice_usage",
        "strip",
        "type",
    )

    def __init__(
        self,
        spec: ProviderSpec,
        family: WireFamily,
        routes: RouteTable,
        *,
        strip: bytes = b"",
        keys: tuple[RuntimeKey, ...] = (),
        splice_usage: bool = False,
        selection: Literal["primary", "spread"] = "primary",
        brings_own: bool = False,
        adapter: Adapter | None = None,
    ) -> None:
        try:
            origin, path, query = split_base_url(spec.base_url)
        except ValueError as exc:
            raise BuildError(f"base_url {exc}") from None
        self.name = spec.name
        self.type = spec.type
        self.enabled = spec.enabled
        self.error = ""
        self.family: WireFamily = family
        self.origin: Origin = origin
        self.host_line = b"Host: " + origin.authority.encode("ascii") + b"\r\n"
        self.base_path = path.encode("ascii")
        self.base_query = query.encode("ascii")
        self.routes = routes
        self.strip = strip
        self.keys = keys
        self.splice_usage = splice_usage
        self.selection: Literal["primary", "spread"] = selection
        self.brings_own = brings_own
        self.adapter = adapter

    @property
    def status(self) -> str:
        """As in `ostiary_provider_info`: enabled, disabled or error."""
        if self.error:
            return "error"
        return "enabled" if self.enabled else "disabled"

    def upstream_path(self, rest: bytes) -> bytes:
        """The path at the upstream for the path `rest` behind our name."""
        return self.base_path + rest[len(self.strip) :]

    def model_of(self, rest: bytes) -> str:  # noqa: ARG002 - of most kinds no path says it
        """The model that the path `rest` behind our name is for, if it says so."""
        return ""

    def upstream_query(self, query: bytes) -> bytes:
        """The query at the upstream: the base URL's own, if it has one, and the request's. Both with their `?`."""
        base_query = self.base_query
        if not base_query:
            return query
        return base_query + b"&" + query[1:] if len(query) > 1 else base_query


_NO_ROUTES: Final = RouteTable()
_NOWHERE: Final = "http://unconfigured.invalid"
_FAMILIES: Final[dict[str, WireFamily]] = {kind: wire_family(kind) for kind in ProviderType}


def broken_provider(spec: ProviderSpec, reason: str) -> RuntimeProvider:
    """A provider that stays in the snapshot, answers 503 with `reason` and takes no other down."""
    stand_in = ProviderSpec(id=spec.id, name=spec.name, type=spec.type, enabled=spec.enabled, base_url=_NOWHERE)
    family = _FAMILIES.get(spec.type, "openai")
    provider = RuntimeProvider(stand_in, family, _NO_ROUTES)
    provider.error = reason
    return provider


def keyed(spec: ProviderSpec, header: bytes, *, allow_byok: bool) -> tuple[RuntimeKey, ...]:
    """The pool's keys, each with its line `header` + value. Raises `BuildError` when nothing could authenticate."""
    if spec.enabled and not spec.keys and not allow_byok:
        raise BuildError("no api keys are configured, and bring-your-own-key is off (allow_byok)")
    keys = []
    seen: set[Secret] = set()
    for key in spec.keys:
        value = key.value.reveal()
        if key.value in seen:
            raise BuildError(f"duplicate key {key.value.masked}")
        if not value.isascii() or not value.isprintable() or value != value.strip():
            raise BuildError(f"the key with id {key.id} holds characters that no header can carry")
        seen.add(key.value)
        keys.append(RuntimeKey(key.id, key.value, header + value.encode("ascii") + b"\r\n"))
    return tuple(keys)


def passthrough(*labels: str) -> tuple[Route, ...]:
    """Routes that are relayed and counted, not recorded."""
    return tuple(Route(label, "passthrough") for label in labels)


def metered(label: str, *, upload: bool = False, model_optional: bool = False) -> Route:
    """A route of which a record is made with usage and no content. An upload's model is optional too."""
    return Route(label, "metered", "metered", upload=upload, model_optional=model_optional or upload)
