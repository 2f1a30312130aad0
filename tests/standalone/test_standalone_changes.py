"""Changes at the server, as replicas elsewhere see them: within a second, and nobody else fails."""

import time
from collections.abc import Callable

import httpx

from tests.support.fake_provider import FakeProvider
from tests.support.gateway import Gateway, StartGateway, ask, new_key
from tests.support.load import BLOCKING, Load
from tests.support.server import Server, StartServer, eventually, kept

SOON = 1.0
LATE = 5.0
"""Seconds by which a busy machine may be late now and then; what nobody was told of takes longer."""


def in_every_replica(gateways: list[Gateway], check: Callable[[Gateway], bool], what: str) -> float:
    """How many seconds it takes from now until it is."""
    begun = time.monotonic()
    for gateway in gateways:
        found = f"{what} at {gateway.url}"
        eventually(lambda gateway=gateway: check(gateway), within=SOON + LATE, every=0.01, what=found)
    return time.monotonic() - begun


def test_provider_changes_and_revocations_reach_every_replica_under_load(
    start_server: StartServer, own_fake: FakeProvider, start_gateway: StartGateway
) -> None:
    server = start_server(own_fake, "--workers", "1")
    key = new_key(server)["key"]
    gateways = [start_gateway(server.url, key) for _ in range(2)]
    token = server.new_token("rita")

    def answer(gateway: Gateway) -> int:
        return ask(gateway.url, token, "/second/v1/chat/completions").status_code

    def change(method: str, path: str, body: object = None) -> None:
        response = server.owner.request(method, f"/api/v2/ai/providers{path}", json=body)
        assert response.is_success, response.text

    def revoked(number: int) -> float:
        """A token that everybody has let in a moment ago: whoever is not told asks again five seconds later."""
        leaving = server.new_token(f"leaving-{number}")
        assert [ask(gateway.url, leaving).status_code for gateway in gateways] == [200, 200]
        (mine,) = server.get("/api/v2/tokens", user=f"leaving-{number}")
        assert server.owner.delete(f"/api/v2/tokens/{mine['id']}").status_code == 204
        return in_every_replica(
            gateways, lambda gateway: ask(gateway.url, leaving).status_code == 401, "the revocation"
        )

    with (
        Load(gateways[0].url, server.new_token("lena"), concurrency=1, kinds=(BLOCKING,), prefix="one") as one,
        Load(gateways[1].url, server.new_token("lars"), concurrency=1, kinds=(BLOCKING,), prefix="two") as two,
    ):
        one.progress(5)
        two.progress(5)
        second = {
            "type": "openai",
            "name": "second",
            "base_url": f"{own_fake.url}/v1",
            "api_keys": ["sk-second-0123456789"],
        }
        seconds = []
        change("POST", "", second)
        seconds.append(in_every_replica(gateways, lambda gateway: answer(gateway) == 200, "the new provider"))
        change("PATCH", "/second", {"base_url": "http://127.0.0.1:9/v1"})
        seconds.append(in_every_replica(gateways, lambda gateway: answer(gateway) == 502, "its new address"))
        change("PATCH", "/second", {"enabled": False})
        seconds.append(in_every_replica(gateways, lambda gateway: answer(gateway) == 503, "that it is disabled"))
        change("DELETE", "/second")
        seconds.append(in_every_replica(gateways, lambda gateway: answer(gateway) == 404, "that it is gone"))
        assert sorted(seconds)[1] < SOON, seconds
        kept(SOON, revoked)
        one.progress(5)
        two.progress(5)
    assert one.failures() + two.failures() == []
    assert one.refused + two.refused == 0
    for gateway in gateways:
        assert gateway.stop() == 0


def test_replicas_of_one_key_end_together_and_those_of_another_stay(
    server: Server, start_gateway: StartGateway
) -> None:
    shared, other = new_key(server, "shared"), new_key(server, "stays")
    pair = [start_gateway(server.url, shared["key"]) for _ in range(2)]
    lone = start_gateway(server.url, other["key"])
    assert server.owner.delete(f"/api/v2/ai-gateway/keys/{shared['id']}").status_code == 204
    for gateway in pair:
        assert gateway.ended(within=30) != 0
    assert httpx.get(f"{lone.url}/readyz").status_code == 200
    assert lone.stop() == 0
