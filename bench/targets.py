"""What is measured: something that relays requests to the fake provider, or the fake provider itself."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from .works import Format, Work

PROVIDER_KEY = "sk-bench-upstream"


class UnsettledError(Exception):
    """What stands around a target has not finished in time."""


class UnavailableError(Exception):
    """A target that cannot take part; the text says why."""


def cache_folder() -> Path:
    """Where what is installed for the benchmark alone is kept, outside the tree."""
    base = Path(os.environ.get("XDG_CACHE_HOME", "") or Path.home() / ".cache")
    return base / "ostiary-bench"


@dataclass(frozen=True)
class Route:
    """How one format is reached at a target."""

    prefix: str
    """Before the work's path."""
    headers: dict[str, str]


@dataclass(frozen=True)
class Target:
    """One system under test, up and warm. `workers` are the processes whose CPU and memory count."""

    name: str
    port: int
    routes: dict[Format, Route]
    workers: tuple[int, ...]
    around: dict[str, int] = field(default_factory=dict)
    """What stands beside the workers (link, control plane, PostgreSQL), each by its first process: CPU reported by name."""
    settle: Callable[[], None] | None = None
    """Waits until what the workers have left for those is done. Raises `UnsettledError`."""

    def order(self, work: Work, mode: str, seconds: float, **more: object) -> dict[str, object]:
        """The order for `bench.load`; `more` overrides what the work says."""
        route = self.routes[work.format]
        request = work.request(f"127.0.0.1:{self.port}", route.prefix, route.headers)
        return {
            "mode": mode,
            "address": ["127.0.0.1", self.port],
            "connections": work.connections,
            "seconds": seconds,
            "request": request.decode("latin-1"),
        } | more


def provider_routes() -> dict[Format, Route]:
    """The routes of whatever passes requests on as they are."""
    return {
        "openai": Route("", {"Authorization": f"Bearer {PROVIDER_KEY}"}),
        "anthropic": Route("", {"X-Api-Key": PROVIDER_KEY}),
    }
