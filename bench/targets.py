"""What is measured: something that relays requests to the fake provider, or the fake provider itself."""

from dataclasses import dataclass, field

from .works import Format, Work

PROVIDER_KEY = "sk-bench-upstream"


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

    def order(self, work: Work, mode: str, seconds: float, **more: object) -> dict[str, object]:
        """The order for `bench.load`."""
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
