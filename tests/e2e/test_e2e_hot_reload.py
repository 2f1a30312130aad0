"""Changes of providers and revocations reach every worker of every replica within a second, under load."""

import base64
import json
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from urllib.parse import urlsplit

import httpx
import pytest
import uvloop

from ostiary.core.secret import Secret
from tests.support.database import cut_listeners
from tests.support.fake_provider import FakeProvider
from tests.support.load import BLOCKING, Load
from tests.support.server import PROVIDER_KEY, Server, StartServer, eventually

WITHIN = 1.0
"""Seconds in which a change must have taken effect everywhere."""
STALLED = 5.0
"""Seconds that it may take besides where a machine stalls, or asks late; a change that nobody was told of takes more."""
CHAT = json.dumps({"model": "test-model", "messages": [{"role": "user", "content": "hello"}]}).encode()
REFUSED = (401, 403)


def call(server: Server, provider: str, token: str) -> int:
    """The status of one request on a connection of its own: whichever worker takes it."""
    headers = {"Authorization": f"Bearer {token}", "Connection": "close", "Content-Type": "application/json"}
    path = f"{server.url}/api/v2/ai-gateway/{provider}/v1/chat/completions"
    return httpx.post(path, content=CHAT, headers=headers, timeout=20, trust_env=False).status_code


@contextmanager
def untouched(server: Server, token: str, concurrency: int = 3) -> Iterator[None]:
    """Calls of somebody whom all this does not concern, meanwhile: each is answered in full."""
    with Load(server.url, token, concurrency=concurrency, kinds=(BLOCKING,)) as load:
        yield
    assert len(load.calls) > 20
    assert load.failures() == []
    assert load.refused == 0


def settled(provider: str, token: str, statuses: tuple[int, ...], since: float, *servers: Server) -> bool:
    """Of each server, every request that begins some time after `since` gets one of these. Whether that time was `WITHIN`.

    Those before may get anything. They come from a thread of their own, so that none of them keeps the others waiting.
    """
    due = since + WITHIN

    def before(server: Server) -> None:
        while time.monotonic() < due:
            call(server, provider, token)

    def answers(server: Server) -> set[int]:
        return {call(server, provider, token) for _ in range(20)}

    def after(server: Server) -> bool:
        eventually(lambda: time.monotonic() >= due, within=WITHIN + STALLED)
        assert time.monotonic() < due + STALLED, "no fault was found, but this machine is too slow to find any"
        at_once = answers(server) <= set(statuses)
        if not at_once:
            eventually(lambda: answers(server) <= set(statuses), within=STALLED, what=f"{provider} answers {statuses}")
        return at_once

    with ThreadPoolExecutor(2 * len(servers)) as pool:
        later = [pool.submit(after, server) for server in servers]
        earlier = [pool.submit(before, server) for server in servers]
    for one in earlier:
        one.result()
    at_once = [one.result() for one in later]
    return all(at_once)


def mostly(in_time: list[bool]) -> bool:
    """A stall of the machine may make some changes late, not most of them."""
    return 2 * sum(in_time) > len(in_time)


@pytest.fixture(scope="module")
def member(server: Server) -> str:
    return server.new_token("hot-reload")


def test_a_provider_comes_changes_and_goes_without_a_failed_request_on_others(
    server: Server, fake: FakeProvider, member: str
) -> None:
    api = "/api/v2/ai/providers"
    body = {"type": "openai", "name": "hot", "base_url": f"{fake.url}/v1", "api_keys": [PROVIDER_KEY]}
    with untouched(server, member):
        assert call(server, "hot", member) == 404
        steps = [
            ("POST", api, body, (200,)),
            ("PATCH", f"{api}/hot", {"base_url": "http://127.0.0.1:9/v1"}, (502,)),
            ("PATCH", f"{api}/hot", {"base_url": f"{fake.url}/v1"}, (200,)),
            ("PATCH", f"{api}/hot", {"enabled": False}, (503,)),
            ("PATCH", f"{api}/hot", {"enabled": True}, (200,)),
            ("DELETE", f"{api}/hot", None, (404,)),
        ]
        in_time = []
        for method, path, change, expected in steps:
            answer = server.owner.request(method, path, json=change)
            assert answer.is_success, answer.text
            in_time.append(settled("hot", member, expected, time.monotonic(), server))
    assert mostly(in_time), in_time


def test_a_burst_of_changes_ends_with_the_last_one(server: Server, fake: FakeProvider, member: str) -> None:
    api = "/api/v2/ai/providers"
    body = {"type": "openai", "name": "burst", "base_url": f"{fake.url}/v1", "api_keys": [PROVIDER_KEY]}
    assert server.owner.post(api, json=body).status_code == 201
    with untouched(server, member):
        for number in range(25):
            enabled = bool(number % 2)
            assert server.owner.patch(f"{api}/burst", json={"enabled": enabled}).status_code == 200
        settled("burst", member, (503,), time.monotonic(), server)
    assert server.owner.delete(f"{api}/burst").status_code == 204


@pytest.mark.parametrize("way", ["revoked", "suspended", "deleted"])
def test_who_loses_the_right_is_refused_by_every_worker(server: Server, way: str) -> None:
    token = server.new_token(f"leaving-{way}")
    with ThreadPoolExecutor(6) as pool:
        known = list(pool.map(lambda _: call(server, "openai", token), range(30)))
    assert set(known) == {200}
    if way == "revoked":
        (listed,) = server.get("/api/v2/tokens", user=f"leaving-{way}")
        answer = server.owner.delete(f"/api/v2/tokens/{listed['id']}")
    elif way == "suspended":
        answer = server.owner.patch(f"/api/v2/users/leaving-{way}", json={"status": "suspended"})
    else:
        answer = server.owner.delete(f"/api/v2/users/leaving-{way}")
    assert answer.is_success, answer.text
    settled("openai", token, REFUSED, time.monotonic(), server)


def test_a_revocation_that_races_with_the_first_use_wins(server: Server) -> None:
    server.new_token("racing")
    in_time = []
    with ThreadPoolExecutor(6) as pool:
        for number in range(12):
            made = server.owner.post("/api/v2/tokens", json={"name": f"r{number}", "user": "racing"}).json()
            uses = [pool.submit(call, server, "openai", made["token"]) for _ in range(4)]
            revoking = pool.submit(server.owner.delete, f"/api/v2/tokens/{made['id']}")
            uses += [pool.submit(call, server, "openai", made["token"]) for _ in range(4)]
            assert revoking.result().status_code == 204
            in_time.append(settled("openai", made["token"], REFUSED, time.monotonic(), server))
            assert {use.result() for use in uses} <= {200, *REFUSED}
    assert mostly(in_time), in_time


def test_two_servers_on_one_database_seed_once_and_follow_each_other_also_after_losing_listen(
    start_server: StartServer, fake: FakeProvider, blank_database_url: Secret
) -> None:
    variables = {
        "OSTIARY_DATABASE_URL": blank_database_url.reveal(),
        "OSTIARY_ENCRYPTION_KEYS": base64.b64encode(b"k" * 32).decode(),
    }
    one = start_server(fake, "--workers", "2", ready=False, **variables)
    two = start_server(fake, "--workers", "2", ready=False, **variables)
    for server in (one, two):
        server.wait_ready()
    assert urlsplit(one.url).port != urlsplit(two.url).port
    listed = two.get("/api/v2/ai/providers")
    assert sorted(provider["name"] for provider in listed) == ["anthropic", "openai"]
    assert [len(provider["api_keys"]) for provider in listed] == [1, 1]
    created = [
        entry
        for entry in one.get("/api/v2/audit", limit=100)["results"]
        if (entry["action"], entry["resource_type"]) == ("create", "ai_provider")
    ]
    assert len(created) == 2

    token = one.new_token("both")
    in_time = []
    with untouched(one, token, 2), untouched(two, token, 2):
        for cut in (False, True):
            if cut:
                assert uvloop.run(cut_listeners(blank_database_url)) >= 2
            for here, there in ((one, two), (two, one)):
                name = f"by-{here.port}-{int(cut)}"
                body = {"type": "openai", "name": name, "base_url": f"{fake.url}/v1", "api_keys": [PROVIDER_KEY]}
                assert here.owner.post("/api/v2/ai/providers", json=body).status_code == 201
                in_time.append(settled(name, token, (200,), time.monotonic(), here, there))
                leaving = here.new_token(f"leaving-{name}")
                for server in (here, there):
                    assert call(server, "openai", leaving) == 200
                assert here.owner.delete(f"/api/v2/users/leaving-{name}").status_code == 204
                in_time.append(settled("openai", leaving, REFUSED, time.monotonic(), there, here))
    assert mostly(in_time), in_time
    for server in (one, two):
        assert server.stop() == 0


def test_a_control_plane_that_dies_is_caught_up_with(start_server: StartServer, fake: FakeProvider) -> None:
    server = start_server(fake, "--workers", "2")
    token, leaving = server.new_token("staying"), server.new_token("leaving")
    with untouched(server, token):
        assert call(server, "openai", leaving) == 200
        for _ in range(2):
            (control,) = server.children("control")
            os.kill(control, signal.SIGKILL)
            eventually(lambda gone=control: server.children("control") not in ([], [gone]), what="a new control plane")
        assert eventually(lambda: server.owner.delete("/api/v2/users/leaving").status_code == 204, what="control plane")
        settled("openai", leaving, REFUSED, time.monotonic(), server)
    assert server.stop() == 0
