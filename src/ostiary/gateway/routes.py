"""Which path is what. Pure.

/healthz /readyz                                   answered by the worker
/api/v2/ai-gateway/{provider}/…  (alias aibridge)  data plane, unless {provider} is a reserved name
/{provider}/…                                      data plane too, standalone only
everything else                                    control plane (embedded), 404 (standalone)
"""

import re
from typing import Final

from msgspec import Struct

from ostiary.core.providers import RESERVED_NAMES
from ostiary.core.records import RouteKind
from ostiary.wire.facts import Format

PREFIXES: Final = (b"/api/v2/ai-gateway/", b"/api/v2/aibridge/")

_RESERVED: Final = frozenset(name.encode("ascii") for name in RESERVED_NAMES)


class Route:
    """A route of a provider. Immutable.

    `label` is bounded: it goes into records and metrics in place of the raw path. `upload`: bodies in form encoding are
    streamed to the upstream, not held. `model_optional`: metered, and the provider chooses a model when the request names none.
    """

    __slots__ = ("format", "kind", "label", "model_optional", "upload")

    def __init__(
        self,
        label: str,
        kind: RouteKind,
        format: Format | None = None,  # noqa: A002 - as records call it
        *,
        upload: bool = False,
        model_optional: bool = False,
    ) -> None:
        self.label = label
        self.kind: RouteKind = kind
        self.format: Format | None = format
        self.upload = upload
        self.model_optional = model_optional


class RouteTable:
    """Exact paths, and subtrees (patterns that end in /*), of which the first that fits counts.

    `prefixes`: what some clients put in front in place of `/v1`; the rest of such a path is looked up as if it stood there.
    """

    __slots__ = ("_exact", "_prefixes", "_subtrees", "names")

    def __init__(self, *routes: Route, prefixes: re.Pattern[bytes] | None = None) -> None:
        self._prefixes = prefixes
        self._exact: dict[bytes, Route] = {}
        self._subtrees: list[tuple[bytes, Route]] = []
        self.names = tuple(route.label for route in routes)
        for route in routes:
            path = route.label.encode("ascii")
            if path.endswith(b"/*"):
                self._subtrees.append((path[:-1], route))
            else:
                self._exact[path] = route

    def match(self, path: bytes) -> Route | None:
        """`path` is what stands behind the provider's name, from its slash on."""
        found = self._exact.get(path)
        if found is not None:
            return found
        if self._prefixes is not None and (prefix := self._prefixes.match(path)):
            path = b"/v1" + path[prefix.end() :]
            if path in self._exact:
                return self._exact[path]
        for subtree, route in self._subtrees:
            if path.startswith(subtree) and len(path) > len(subtree):
                return route
        return None


class Target(Struct, frozen=True):
    """A data-plane path: the provider it names and the rest, from its slash on (empty when there is none)."""

    provider: str
    rest: bytes


def split_path(path: bytes, *, standalone: bool) -> Target | None:
    """The data-plane target of a path; None when it is not the data plane's."""
    for prefix in PREFIXES:
        if path.startswith(prefix):
            name, slash, rest = path[len(prefix) :].partition(b"/")
            if name in _RESERVED or not name:
                return None
            return Target(name.decode("ascii"), slash + rest)
    if standalone:
        name, slash, rest = path[1:].partition(b"/")
        if name and name not in _RESERVED:
            return Target(name.decode("ascii"), slash + rest)
    return None


def path_problem(rest: bytes) -> str | None:
    """Why a path is not passed on: it could name something else upstream than it does here (reference D.1)."""
    if b"//" in rest or b"\\" in rest:
        return "the path holds an empty segment or a backslash"
    if b"%" in rest:
        lowered = rest.lower()
        if b"%2f" in lowered or b"%5c" in lowered or b"%00" in lowered or b"%25" in lowered:
            return "the path holds an encoded separator or percent sign"
        rest = lowered.replace(b"%2e", b".")
    if b"/./" in rest or b"/../" in rest or rest.endswith((b"/.", b"/..")):
        return "the path holds a . or .. segment"
    return None
