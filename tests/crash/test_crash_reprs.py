"""What holds a secret prints without it: settings, boot messages, plans, providers, requests, RPC messages."""

import base64
from pathlib import Path
from pprint import pformat
from typing import Any

import msgspec
import pytest

from ostiary.config import load
from ostiary.config.plan import server_plan
from ostiary.core.messages import ControlBoot, LinkBoot, Snapshot, WorkerBoot
from ostiary.core.providers import BedrockSettings, ProviderKey, ProviderSpec
from ostiary.core.secret import Secret
from ostiary.core.settings import DemoProvider
from ostiary.gateway.decide import Presented
from ostiary.gateway.providers.base import RuntimeKey
from ostiary.gateway.snapshot import build_snapshot
from ostiary.http1.head import parse_request_head
from ostiary.rpc.ostiary_pb2 import AIProvider, AIProviderKey, AIProviderKindBedrock, GetAIProvidersResponse
from ostiary.runtime.plan import Address, completed

SECRET = "a-secret-that-nobody-may-see-0123456789"
KEY = base64.b64encode(b"0123456789abcdef0123456789abcdef").decode()


def whole_plan(tmp_path: Path) -> Any:
    environment = {
        "OSTIARY_DATABASE_URL": f"postgres://ostiary:{SECRET}@127.0.0.1/ostiary",
        "OSTIARY_ENCRYPTION_KEYS": KEY,
        "OSTIARY_BOOTSTRAP_TOKEN": SECRET,
        "OSTIARY_HTTPS_PROXY": f"http://user:{SECRET}@127.0.0.1:1",
        "OSTIARY_PROVIDER_0_TYPE": "openai",
        "OSTIARY_PROVIDER_0_KEY": SECRET,
        "OSTIARY_DATA_DIR": str(tmp_path),
        "OSTIARY_DEMO": "true",
    }
    plan = server_plan(load({}, environment))
    return completed(plan, control_port=1, fake=Address("127.0.0.1", 2), draw=lambda: SECRET)


def holders(tmp_path: Path) -> list[Any]:
    plan = whole_plan(tmp_path)
    assert plan.gateway.https_proxy.reveal() == f"http://user:{SECRET}@127.0.0.1:1"
    bedrock = BedrockSettings(region="eu", access_key=Secret(SECRET), access_key_secret=Secret(SECRET))
    spec = ProviderSpec("1", "openai", "openai", True, "https://a.example/v1", (ProviderKey("1", Secret(SECRET)),))
    snapshot = Snapshot(1, (spec, ProviderSpec("2", "b", "bedrock", True, "", settings=bedrock)))
    built = build_snapshot(1, snapshot.providers, allow_byok=True)
    head = parse_request_head(f"GET / HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {SECRET}\r\n\r\n".encode())
    message = GetAIProvidersResponse(
        providers=[
            AIProvider(
                keys=[AIProviderKey(id="1", value=SECRET)],
                bedrock=AIProviderKindBedrock(access_key=SECRET, access_key_secret=SECRET),
            )
        ]
    )
    provider = message.providers[0]
    return [
        plan,
        *(WorkerBoot(0, plan.gateway), LinkBoot(plan.link, 1), ControlBoot(plan.control)),
        DemoProvider("demo", "openai", "http://a", Secret(SECRET)),
        *(snapshot, built, *built.providers.values(), *(key for one in built.providers.values() for key in one.keys)),
        *(head, Presented(SECRET.encode(), byok=True), RuntimeKey("1", Secret(SECRET), SECRET.encode())),
        *(message, provider, provider.keys, provider.keys[0], provider.bedrock),
    ]


def test_nothing_that_holds_a_secret_prints_it(tmp_path: Path) -> None:
    for holder in holders(tmp_path):
        for text in (repr(holder), str(holder), f"{holder}", pformat(holder), repr([holder])):
            assert SECRET not in text, type(holder)
            assert KEY not in text, type(holder)


def test_what_is_loaded_from_flags_and_environment_prints_without_secrets(tmp_path: Path) -> None:
    loaded = load({}, {"OSTIARY_BOOTSTRAP_TOKEN": SECRET, "OSTIARY_DATA_DIR": str(tmp_path)})
    assert loaded.settings.bootstrap_token.reveal() == SECRET
    for text in (repr(loaded), repr(loaded.settings), str(loaded.settings)):
        assert SECRET not in text


def test_a_secret_does_not_leave_by_a_serialiser_that_was_not_meant_for_it() -> None:
    with pytest.raises(TypeError):
        msgspec.json.encode({"key": Secret(SECRET)})
    with pytest.raises(TypeError):
        msgspec.msgpack.encode(ProviderKey("1", Secret(SECRET)))
