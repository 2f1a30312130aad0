"""Who the end-to-end tests are, and the servers they share beside `server`."""

from typing import NamedTuple

import pytest

from tests.support.raw_http import Answer, ask
from tests.support.server import Server

DATA_PLANE = "/api/v2/ai-gateway"


class Person(NamedTuple):
    """A member with a token of their own, on one server."""

    server: Server
    username: str
    token: str

    @property
    def bearer(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}

    @property
    def openai_url(self) -> str:
        return f"{self.server.url}{DATA_PLANE}/openai/v1"

    @property
    def anthropic_url(self) -> str:
        return f"{self.server.url}{DATA_PLANE}/anthropic"

    def call(self, path: str, body: bytes, headers: dict[str, str] | None = None, *, method: str = "POST") -> Answer:
        """A request to `path` behind the data plane's prefix, as this person."""
        return ask(self.server.port, method, f"{DATA_PLANE}{path}", self.bearer | (headers or {}), body)


@pytest.fixture(scope="session")
def person(server: Server) -> Person:
    return Person(server, "ann", server.new_token("ann"))
