"""Fixtures of the chaos tests."""

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos.harness import Chance, Site, StartSite
from tests.support.database_door import DatabaseDoor, door
from tests.support.fake_provider import FakeProvider
from tests.support.gateway import StartGateway, new_key, start_gateway
from tests.support.server import StartServer

__all__ = ["door", "start_gateway"]


@pytest.fixture
def chance(record_property: Callable[[str, object], None]) -> Chance:
    """Of this test alone; the seed stands in what a failed test has printed."""
    seed = int(os.environ.get("CHAOS_SEED") or random.SystemRandom().randrange(1 << 32))
    print(f"again with CHAOS_SEED={seed}")
    record_property("seed", seed)
    return Chance(seed)


@pytest.fixture
def start_site(start_server: StartServer, start_gateway: StartGateway, own_fake: FakeProvider) -> StartSite:
    """Starts a server (`workers`), with a standalone gateway before it or without.

    The database is embedded, or behind a `door`. `variables` are the server's; `front`, `flags` and `data_dir` are of the
    machine at the front.
    """

    def start(
        *,
        standalone: bool = False,
        door: DatabaseDoor | None = None,
        workers: int = 2,
        flags: tuple[str, ...] = (),
        front: dict[str, str] | None = None,
        data_dir: Path | None = None,
        **variables: str,
    ) -> Site:
        known = {} if door is None else door.variables
        known |= variables
        at_front = ("--workers", str(workers), *flags)
        if not standalone:
            return Site(start_server(own_fake, *at_front, data_dir=data_dir, **known, **(front or {})), own_fake)
        server = start_server(own_fake, "--workers", "1", **known)
        key = new_key(server)["key"]
        return Site(server, own_fake, start_gateway(server.url, key, *at_front, data_dir=data_dir, **(front or {})))

    return start
