"""Trying the keys of a provider: what is called, what the answers mean, and what comes back of a real provider."""

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from ostiary.control.providers.trial import Answer, call_of, judge
from ostiary.core.providers import BedrockSettings, OpenAISettings, ProviderType
from ostiary.core.secret import Secret
from tests.support.control_admin import Plane
from tests.support.fake_provider import FakeProvider

OnPlane = Callable[[Callable[[Plane], Awaitable[None]]], None]
GOOD = "sk-good-0123456789abcdefghij"


@pytest.mark.parametrize(
    ("kind", "base_url", "settings", "shown", "header"),
    [
        ("openai", "https://api.openai.com/v1/", None, "https://api.openai.com/v1/models", b"Authorization: Bearer k"),
        ("anthropic", "https://api.anthropic.com/", None, "https://api.anthropic.com/v1/models", b"X-Api-Key: k"),
        (
            "azure",
            "https://a.openai.azure.com/openai/v1",
            None,
            "https://a.openai.azure.com/openai/v1/models",
            b"Api-Key: k",
        ),
        ("openrouter", "https://openrouter.ai/api/v1", None, "https://openrouter.ai/api/v1/key", b"Bearer k"),
        ("openrouter", "http://10.0.0.1/v1", None, "http://10.0.0.1/v1/models", b"Bearer k"),
        ("vercel", "https://ai-gateway.vercel.sh/v1", None, "https://ai-gateway.vercel.sh/v1/credits", b"Bearer k"),
        (
            "openai-compat",
            "http://10.0.0.1:8000/v1?a=b",
            OpenAISettings(),
            "http://10.0.0.1:8000/v1/models",
            b"Bearer k",
        ),
    ],
)
def test_what_is_called_is_cheap_and_needs_the_key(
    kind: str, base_url: str, settings: Any, shown: str, header: bytes
) -> None:
    call = call_of(ProviderType(kind), base_url, settings)
    assert call is not None
    assert call.shown == f"GET {shown}"
    head = call.head(Secret("k"))
    assert header in head
    assert head.startswith(b"GET /")
    assert (b"anthropic-version: " in head) == (kind == "anthropic")
    assert b" k\r\n" not in call.head(None)
    assert "k=" not in repr(call)


def test_azure_is_called_with_its_api_version() -> None:
    settings = OpenAISettings(api_version="2024-10-21")
    for url, query in (
        ("https://a.example", "?api-version=2024-10-21"),
        ("https://a.example?api-version=1", "?api-version=1"),
    ):
        call = call_of(ProviderType.AZURE, url, settings)
        assert call is not None
        assert call.target == f"/models{query}"


def test_who_takes_no_keys_is_not_called() -> None:
    assert call_of(ProviderType.COPILOT, "https://a.example", None) is None
    assert call_of(ProviderType.BEDROCK, "", BedrockSettings(region="us-east-1")) is None
    assert call_of(ProviderType.ANTHROPIC, "", BedrockSettings(region="us-east-1")) is None


@pytest.mark.parametrize(
    ("status", "body", "verdict", "reason"),
    [
        (200, b"{}", "works", ""),
        (401, b'{"error":{"message":"no such key"}}', "refused", "answered 401: no such key"),
        (401, b"<html>", "refused", "answered 401"),
        (403, b'{"type":"error","error":{"type":"x","message":"denied"}}', "refused", "denied"),
        (
            400,
            b'[{"error":{"code":400,"message":"API key not valid. Please pass one."}}]',
            "refused",
            "API key not valid",
        ),
        (400, b'{"error":"bad request"}', "unclear", "bad request"),
        (429, b'{"error":{"message":"quota"}}', "limited", "quota; try again after 7 s"),
        (402, b'{"detail":"no credit"}', "limited", "no credit"),
        (302, b"", "unclear", "redirect"),
        (404, b"", "unclear", "base_url is wrong"),
        (500, b'{"message":"oops"}', "unreachable", "answered 500: oops"),
        (400, b'{"error":[1]}', "unclear", "answered 400"),
    ],
)
def test_what_an_answer_says_of_the_key(status: int, body: bytes, verdict: str, reason: str) -> None:
    found, why = judge(Answer(status, "7", body))
    assert found == verdict
    assert reason in why


def provider(fake_url: str, *keys: str, **fields: Any) -> dict[str, Any]:
    return {"type": "openai", "name": "tried", "base_url": f"{fake_url}/v1", "api_keys": list(keys), **fields}


def test_each_key_is_tried_and_nothing_of_it_is_shown(on_plane: OnPlane, own_fake: FakeProvider) -> None:
    keys = (GOOD, "sk-revoked-0123456789abcdef", "sk-limited-0123456789abcdef", "sk-quota-0123456789abcdefgh")

    async def script(plane: Plane) -> None:
        _, admin = await plane.user("ada", "admin")
        made = await plane.call(admin, "POST", "/api/v2/ai/providers", provider(own_fake.url, *keys, enabled=False))
        assert made.status_code == 201, made.text
        answer = await plane.call(admin, "POST", "/api/v2/ai/providers/tried/test")
        assert answer.status_code == 200, answer.text
        found = answer.json()
        assert (found["provider"], found["called"]) == ("tried", f"GET {own_fake.url}/v1/models")
        shown = found["keys"]
        assert [one["result"] for one in shown] == ["works", "refused", "limited", "limited"]
        assert [one["status_code"] for one in shown] == [200, 401, 429, 429]
        assert [(one["id"], one["masked"]) for one in shown] == [
            (one["id"], one["masked"]) for one in made.json()["api_keys"]
        ]
        assert all(one["latency_ms"] >= 0 for one in shown)
        assert shown[2]["reason"].endswith("try again after 7 s")
        entry = (await plane.audit())[-1]
        assert (entry["actor"], entry["action"], entry["resource_name"]) == ("ada", "test", "tried")
        assert [one["result"] for one in entry["additional"]["keys"]] == ["works", "refused", "limited", "limited"]
        for key in keys:
            assert key not in answer.text
            assert key not in json.dumps(entry["additional"])

    on_plane(script)


def test_a_provider_that_quotes_the_key_does_not_give_it_away(on_plane: OnPlane, own_fake: FakeProvider) -> None:
    body = json.dumps({"error": {"message": f"Incorrect API key: {GOOD}\u001b[2J\nsee\n" + "x" * 1000}})
    own_fake.replay("/v1/models", method="GET", status=401, body=body)

    async def script(plane: Plane) -> None:
        _, owner = await plane.user("ada", "owner")
        await plane.call(owner, "POST", "/api/v2/ai/providers", provider(own_fake.url, GOOD))
        answer = await plane.call(owner, "POST", "/api/v2/ai/providers/tried/test")
        (key,) = answer.json()["keys"]
        assert key["result"] == "refused"
        assert "Incorrect API key: sk-g...ghij [2J see x" in key["reason"]
        assert len(key["reason"]) == 300
        assert GOOD not in answer.text

    on_plane(script)


def test_what_cannot_be_reached_says_why(on_plane: OnPlane) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{silent.getsockname()[1]}"

    async def script(plane: Plane) -> None:
        _, admin = await plane.user("ada", "admin")
        for name, url, why in (
            ("closed", closed, "cannot connect"),
            ("metadata", "http://169.254.169.254/latest", "allow it with egress_allow"),
            ("nameless", "http://nowhere.invalid/v1", "cannot connect"),
        ):
            wanted = {"type": "openai", "name": name, "base_url": url, "api_keys": [GOOD]}
            assert (await plane.call(admin, "POST", "/api/v2/ai/providers", wanted)).status_code == 201
            (key,) = (await plane.call(admin, "POST", f"/api/v2/ai/providers/{name}/test")).json()["keys"]
            assert (key["result"], key["status_code"]) == ("unreachable", None)
            assert why in key["reason"], key

    on_plane(script)


def test_without_keys_it_is_called_without_one(on_plane: OnPlane, own_fake: FakeProvider) -> None:
    async def script(plane: Plane) -> None:
        _, admin = await plane.user("ada", "admin")
        await plane.call(admin, "POST", "/api/v2/ai/providers", provider(own_fake.url))
        found = (await plane.call(admin, "POST", "/api/v2/ai/providers/tried/test")).json()
        (call,) = found["keys"]
        assert (call["id"], call["result"], call["status_code"]) == ("", "refused", 401)
        assert found["notes"] == ["it has no keys: called without one"]
        copilot = {"type": "copilot", "name": "copilot", "base_url": "https://a.example"}
        await plane.call(admin, "POST", "/api/v2/ai/providers", copilot)
        found = (await plane.call(admin, "POST", "/api/v2/ai/providers/copilot/test")).json()
        assert (found["called"], found["keys"]) == ("", [])
        assert "not used with keys" in found["notes"][0]
        for kind in ("bedrock", "anthropic"):
            settings = {"_type": "bedrock", "_version": 1, "region": "us-east-1"}
            bedrock = {"type": kind, "name": f"{kind}-aws", "base_url": "https://a.example", "settings": settings}
            await plane.call(admin, "POST", "/api/v2/ai/providers", bedrock)
            found = (await plane.call(admin, "POST", f"/api/v2/ai/providers/{kind}-aws/test")).json()
            assert not found["keys"]
            assert "signed where the gateway runs" in found["notes"][0]

    on_plane(script)


def test_only_owners_and_admins_may_and_a_broken_row_is_told(on_plane: OnPlane, own_fake: FakeProvider) -> None:
    async def script(plane: Plane) -> None:
        _, admin = await plane.user("ada", "admin")
        await plane.call(admin, "POST", "/api/v2/ai/providers", provider(own_fake.url, GOOD))
        for role in ("auditor", "member"):
            _, token = await plane.user(role, role)
            assert (await plane.call(token, "POST", "/api/v2/ai/providers/tried/test")).status_code == 403
        assert own_fake.requests()["count"] == 0
        assert (await plane.call(admin, "POST", "/api/v2/ai/providers/missing/test")).status_code == 404
        async with plane.engine.begin() as conn:
            await conn.exec_driver_sql("UPDATE ai_providers SET type = 'nonsense'")
        answer = await plane.call(admin, "POST", "/api/v2/ai/providers/tried/test")
        assert answer.status_code == 409
        assert "unsupported provider type" in answer.json()["detail"]

    on_plane(script)


def test_a_list_that_is_open_to_all_says_nothing_about_a_key(on_plane: OnPlane) -> None:
    async def script(plane: Plane) -> None:
        _, admin = await plane.user("ada", "admin")
        body = b'{"data":[]}'
        reply = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(reply)
            await writer.drain()
            writer.close()

        async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            wanted = provider(f"http://127.0.0.1:{port}", GOOD, type="openai-compat")
            await plane.call(admin, "POST", "/api/v2/ai/providers", wanted)
            found = (await plane.call(admin, "POST", "/api/v2/ai/providers/tried/test")).json()
        assert found["keys"][0]["result"] == "works"
        assert "says nothing about the key" in found["notes"][0]

    on_plane(script)
