"""Fixtures of the crash tests."""

from collections.abc import Iterator

import pytest

from tests.support.database_door import door
from tests.support.fake_provider import FakeProvider
from tests.support.server import Server, StartServer, open_directory

__all__ = ["door"]


@pytest.fixture
def start_first(start_server: StartServer) -> Iterator[StartServer]:
    """Begins the first start of a server, `initdb` included; the servers of `start_server` have that behind them."""
    begun: list[Server] = []
    with open_directory() as directory:

        def start(fake: FakeProvider | None, *arguments: str, **variables: str) -> Server:
            data_dir = directory / "data"
            server = start_server(fake, "--data-dir", str(data_dir), *arguments, ready=False, **variables)
            server.data_dir = data_dir
            begun.append(server)
            return server

        yield start
        for server in begun:
            if server.process is not None and server.process.poll() is None:
                server.kill()
