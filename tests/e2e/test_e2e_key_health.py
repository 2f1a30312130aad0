"""What one worker learns of a key or an upstream: every worker of the machine knows it, and so do the API and the metrics."""

import os
import signal
from collections.abc import Iterator
from hashlib import sha256
from typing import Any

import pytest

from tests.support.fake_provider import FakeProvider
from tests.support.server import Server, StartServer, eventually

KEYS = {"first": "sk-first-key-0123456789", "second": "sk-second-key-0123456789", "third": "sk-third-key-0123456789"}
STATE = "ostiary_key_pool_state"
BREAKER = "ostiary_circuit_breaker_state"


class Pool:
    """A server with two workers, and a provider `pool` on a fake one with three keys."""

    def __init__(self, server: Server, fake: FakeProvider) -> None:
        self.server = server
        self.fake = fake
        fields = {"type": "openai", "base_url": f"{fake.url}/v1", "api_keys": list(KEYS.values())}
        made = server.owner.post("/api/v2/ai/providers", json={"name": "pool", **fields})
        assert made.status_code == 201, made.text
        eventually(lambda: server.knows_provider("pool") == {True}, what="every worker serves it")

    def call(self) -> int:
        """Over a connection of its own, so that any worker may get it."""
        body = {"model": "test-model", "messages": [{"role": "user", "content": "hi"}]}
        with self.server.client() as client:
            return client.post("/api/v2/ai-gateway/pool/v1/chat/completions", json=body).status_code

    def asked(self, key: str) -> int:
        """How often the provider was asked with a key."""
        digest = sha256(KEYS[key].encode()).hexdigest()
        told = self.fake.requests(limit=10_000)
        assert len(told["requests"]) == told["count"], "there were more than it tells of at once"
        return sum(one["key_sha256"] == digest for one in told["requests"])

    def keys(self) -> list[dict[str, Any]]:
        """As the API shows them on this machine."""
        found = self.server.get("/api/v2/ai/providers/pool/keys")["keys"]
        return [{**key["replicas"][0], "masked": key["masked"]} for key in found if key["replicas"]]

    def states(self) -> list[str]:
        return [key["state"] for key in self.keys()]


@pytest.fixture
def pool(start_server: StartServer, own_fake: FakeProvider) -> Iterator[Pool]:
    settings = {"OSTIARY_CIRCUIT_BREAKER_TIMEOUT": "1s", "OSTIARY_CIRCUIT_BREAKER_FAILURE_THRESHOLD": "3"}
    server = start_server(own_fake, "--workers", "2", **settings)
    yield Pool(server, own_fake)
    log = server.log.read_text()
    assert not any(key in log for key in KEYS.values())


def test_a_key_is_refused_once_for_all_workers_and_stays_known_when_a_worker_or_the_link_dies(pool: Pool) -> None:
    server = pool.server
    pool.fake.script_key(KEYS["first"], "status=401")
    # longer than the test
    pool.fake.script_key(KEYS["second"], "status=429 retry-after=600")
    before = pool.asked("first"), pool.asked("second")
    assert pool.call() == 200
    eventually(lambda: pool.states() == ["suspect", "cooling", "usable"], what="told to the control plane")

    def nothing_is_asked_again() -> None:
        assert {pool.call() for _ in range(12)} == {200}
        assert (pool.asked("first"), pool.asked("second")) == (before[0] + 1, before[1] + 1)

    nothing_is_asked_again()
    suspect, cooling, usable = pool.keys()
    assert [suspect["masked"], suspect["reason"], suspect["strikes"]] == ["sk-f...6789", "refused", 1]
    assert (cooling["reason"], cooling["model"]) == ("rate_limited", "test-model")
    assert [one["state"] for one in suspect["timeline"]] == ["suspect"]
    assert usable["timeline"] == []
    for state, number in (("usable", 1), ("cooling", 1), ("suspect", 1)):
        assert server.metric(STATE, provider="pool", state=state) == number

    for kind, number in (("worker", 2), ("link", 1)):
        (victim, *_) = server.children(kind)
        os.kill(victim, signal.SIGKILL)
        eventually(
            lambda kind=kind, victim=victim, number=number: (  # type: ignore[misc]
                len(server.children(kind)) == number and victim not in server.children(kind) and server.is_ready()
            ),
            within=30,
            what=f"a new {kind}",
        )
        # the new one has been told all when the machine tells of its new state
        eventually(lambda: server.metric(STATE, provider="pool", state="suspect") == 1, what="known to the link")
        eventually(lambda: len(server.get("/api/v2/ai-gateway/replicas")["replicas"][0]["workers"]) == 2)
        nothing_is_asked_again()
    assert pool.states() == ["suspect", "cooling", "usable"]


def test_an_upstream_that_fails_is_left_alone_by_every_worker_until_it_is_well(pool: Pool) -> None:
    server = pool.server
    for key in KEYS.values():
        pool.fake.script_key(key, "status=503")
    eventually(lambda: pool.call() and server.metric(BREAKER, provider="pool") == 1, what="open")
    for key in KEYS.values():
        pool.fake.script_key(key, "")
    eventually(lambda: pool.call() == 200 and server.metric(BREAKER, provider="pool") == 0, what="closed")
    assert {pool.call() for _ in range(8)} == {200}

    def told() -> bool:
        (breaker,) = server.get("/api/v2/ai-gateway/replicas")["replicas"][0]["breakers"]
        about = (breaker["provider"], breaker["route"], breaker["model"], breaker["state"])
        return about == ("pool", "/v1/chat/completions", "test-model", "closed")

    eventually(told, what="told to the control plane")
