"""Every provider's way: API → row → GetAIProviders → link → worker's socket → what the gateway serves from.

All parts are the real ones, on a real database; nothing is handed over but bytes.
"""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
import uvloop
from sqlalchemy import text

from ostiary.control import database
from ostiary.core.messages import FrameReader, LinkMessage, Snapshot, encode
from ostiary.core.providers import (
    AnthropicSettings,
    BedrockSettings,
    OpenAISettings,
    ProviderSettings,
    ProviderSpec,
    ProviderType,
)
from ostiary.core.secret import Secret
from ostiary.gateway.providers import RuntimeProvider
from ostiary.gateway.snapshot import Snapshot as Serving
from ostiary.gateway.snapshot import build_snapshot
from ostiary.link.client import ControlClient
from ostiary.link.snapshots import snapshot
from ostiary.rpc.ostiary_pb2 import GetAIProvidersResponse
from tests.support.control_server import GATEWAY_KEY, OWNER_TOKEN, ControlServer, control_settings, serving

KEYS = ("sk-first-0123456789abcdefgh", "sk-second-0123456789abcdefg")
AWS = ("AKIAEXAMPLE0123456789", "aws-secret-0123456789abcdef")
ROLE = "arn:aws:iam::123456789012:role/r"
PATH = "/api/v2/ai/providers"


class Kind(NamedTuple):
    type: str
    base_url: str
    settings: dict[str, Any] | None
    expected: ProviderSettings | None
    header: bytes
    """The line that a key is sent as; empty: it takes no keys."""


BEARER = b"Authorization: Bearer "
KINDS = {
    "openai": Kind(
        "openai", "https://a.example/v1", {"selection": "spread"}, OpenAISettings(selection="spread"), BEARER
    ),
    "azure": Kind(
        *("azure", "https://a.example/openai/v1", {"api_version": "2024-10-21"}),
        *(OpenAISettings(api_version="2024-10-21"), b"Api-Key: "),
    ),
    "google": Kind("google", "https://a.example/v1beta/openai", None, None, BEARER),
    "vercel": Kind("vercel", "https://a.example/v1", None, None, BEARER),
    "openrouter": Kind("openrouter", "https://a.example/api/v1", None, None, BEARER),
    "compat": Kind(
        *("openai-compat", "http://10.0.0.1:8000/v1", {"stream_usage": "splice"}),
        *(OpenAISettings(stream_usage="splice"), BEARER),
    ),
    "anthropic": Kind(
        "anthropic", "https://a.example", {"selection": "spread"}, AnthropicSettings(selection="spread"), b"X-Api-Key: "
    ),
    "anthropic-on-bedrock": Kind(
        *("anthropic", "", {"_type": "bedrock", "region": "us-east-1", "model": "m", "small_fast_model": "s"}),
        *(BedrockSettings(region="us-east-1", model="m", small_fast_model="s"), b""),
    ),
    "bedrock": Kind(
        "bedrock",
        "",
        {
            "region": "us-east-1",
            "protocol": "invoke-model",
            "access_key": AWS[0],
            "access_key_secret": AWS[1],
        },
        BedrockSettings(
            region="us-east-1",
            protocol="invoke-model",
            access_key=Secret(AWS[0]),
            access_key_secret=Secret(AWS[1]),
        ),
        b"",
    ),
    "bedrock-role": Kind(
        *("bedrock", "", {"region": "us-east-1", "role_arn": ROLE}),
        *(BedrockSettings(region="us-east-1", role_arn=ROLE), b""),
    ),
    "copilot": Kind("copilot", "https://a.example", None, None, b""),
}


class Arrived(NamedTuple):
    answer: GetAIProvidersResponse
    specs: dict[str, ProviderSpec]
    """As the worker decoded them."""
    serving: Serving

    def runtime(self, name: str) -> RuntimeProvider:
        return self.serving.providers[name]


async def load(server: ControlServer) -> Arrived:
    async with ControlClient(server.url, Secret(GATEWAY_KEY)) as client:
        answer = await client.get_ai_providers(0)
    reader: FrameReader[LinkMessage] = FrameReader(LinkMessage)
    (message,) = reader.feed(encode(snapshot(answer)))
    assert isinstance(message, Snapshot)
    specs = {spec.name: spec for spec in message.providers}
    return Arrived(answer, specs, build_snapshot(message.revision, message.providers, allow_byok=True))


async def create(server: ControlServer, name: str, kind: Kind, **fields: Any) -> str:
    body = {"type": kind.type, "name": name, "base_url": kind.base_url, "settings": kind.settings} | fields
    body.setdefault("api_keys", list(KEYS) if kind.header else [])
    made = await server.http.post(PATH, json=body, headers={"Authorization": f"Bearer {OWNER_TOKEN}"})
    assert made.status_code == 201, made.text
    provider_id: str = made.json()["id"]
    return provider_id


def on_server(url: Secret, data_dir: Path, script: Callable[[ControlServer], Awaitable[None]]) -> None:
    async def go() -> None:
        async with serving(control_settings(url, data_dir)) as server:
            await script(server)

    uvloop.run(go())


def without_external_id(settings: ProviderSettings | None) -> ProviderSettings | None:
    """The server makes one for each role."""
    if not isinstance(settings, BedrockSettings):
        return settings
    assert bool(settings.external_id) == bool(settings.role_arn)
    return msgspec.structs.replace(settings, external_id="")


def test_every_type_is_tried() -> None:
    assert {kind.type for kind in KINDS.values()} == set(ProviderType)


def test_what_was_configured_is_what_is_served(database_url: Secret, tmp_path: Path) -> None:
    async def script(server: ControlServer) -> None:
        ids = {name: await create(server, name, kind) for name, kind in KINDS.items()}
        arrived = await load(server)
        assert list(arrived.specs) == sorted(KINDS)
        assert arrived.serving.revision == len(KINDS)
        for name, kind in KINDS.items():
            spec, runtime = arrived.specs[name], arrived.runtime(name)
            assert (spec.id, spec.type, spec.base_url) == (ids[name], kind.type, kind.base_url)
            assert (spec.enabled, spec.error, without_external_id(spec.settings)) == (True, "", kind.expected), name
            assert [key.value.reveal() for key in spec.keys] == (list(KEYS) if kind.header else []), name
            assert (runtime.name, runtime.type, runtime.enabled) == (name, kind.type, True)
            assert [key.line for key in runtime.keys] == (
                [kind.header + key.encode() + b"\r\n" for key in KEYS] if kind.header else []
            )
            assert [key.id for key in runtime.keys] == [key.id for key in spec.keys]
            if kind.header:
                assert runtime.status == "enabled", runtime.error
                assert runtime.origin.authority in kind.base_url
            for secret in (*KEYS, *AWS):
                assert secret not in f"{spec!r} {runtime.keys!r} {arrived.answer!r}"
        assert arrived.runtime("compat").splice_usage
        assert arrived.runtime("openai").splice_usage

    on_server(database_url, tmp_path, script)


def test_a_disabled_provider_arrives_without_a_secret(database_url: Secret, tmp_path: Path) -> None:
    async def script(server: ControlServer) -> None:
        for name, kind in KINDS.items():
            await create(server, name, kind, enabled=False)
        arrived = await load(server)
        wire = arrived.answer.SerializeToString()
        for secret in (*KEYS, *AWS):
            assert secret.encode() not in wire
        for name, kind in KINDS.items():
            spec, runtime = arrived.specs[name], arrived.runtime(name)
            assert (spec.type, spec.base_url, spec.enabled) == (kind.type, kind.base_url, False)
            assert (spec.keys, spec.settings, spec.error) == ((), None, "")
            assert (runtime.enabled, runtime.keys) == (False, ())
        # and comes back whole
        await server.http.patch(
            f"{PATH}/openai", json={"enabled": True}, headers={"Authorization": f"Bearer {OWNER_TOKEN}"}
        )
        again = await load(server)
        assert [key.value.reveal() for key in again.specs["openai"].keys] == list(KEYS)
        assert again.runtime("openai").status == "enabled"
        assert again.serving.revision > arrived.serving.revision

    on_server(database_url, tmp_path, script)


@pytest.mark.parametrize("all_bad", [False, True])
def test_bad_rows_are_in_error_and_the_good_ones_serve(database_url: Secret, tmp_path: Path, all_bad: bool) -> None:
    good = {} if all_bad else {"good-openai": KINDS["openai"], "good-anthropic": KINDS["anthropic"]}
    edits = {
        "corrupt-settings": ("settings = 'nonsense'", "not a value of this vault"),
        "unsupported-type": ("type = 'quantum'", 'unsupported provider type "quantum"'),
        "bad-url": ("base_url = 'somewhere'", "base_url must be"),
    }

    async def script(server: ControlServer) -> None:
        for name, kind in {**good, **dict.fromkeys(edits, KINDS["openai"])}.items():
            await create(server, name, kind)
        await create(server, "no-keys", KINDS["openai"], api_keys=[])
        await create(server, "bad-key", KINDS["openai"])
        await create(server, "bad-and-off", KINDS["openai"], enabled=False)
        if all_bad:
            await server.http.delete(f"{PATH}/no-keys", headers={"Authorization": f"Bearer {OWNER_TOKEN}"})
        engine = await database.connect(database_url)
        async with engine.begin() as connection:
            for name, (change, _) in edits.items():
                await connection.execute(text(f"UPDATE ai_providers SET {change} WHERE name = '{name}'"))
            await connection.execute(text("UPDATE ai_providers SET settings = 'nonsense' WHERE name = 'bad-and-off'"))
            await connection.execute(
                text(
                    "UPDATE ai_provider_keys SET api_key = 'nonsense' WHERE provider_id ="
                    " (SELECT id FROM ai_providers WHERE name = 'bad-key') AND position = 0"
                )
            )
        await engine.dispose()
        arrived = await load(server)
        for name, (_, reason) in {**edits, "bad-key": ("", "ai_provider_keys.api_key")}.items():
            runtime = arrived.runtime(name)
            assert runtime.status == "error"
            assert reason in runtime.error, name
            assert arrived.serving.errors[name] == runtime.error
            assert (arrived.specs[name].keys, arrived.specs[name].settings, runtime.keys) == ((), None, ())
        assert (arrived.runtime("bad-and-off").status, arrived.runtime("bad-and-off").keys) == ("disabled", ())
        for name, kind in good.items():
            runtime = arrived.runtime(name)
            assert (runtime.status, len(runtime.keys)) == ("enabled", len(KEYS)), runtime.error
            assert runtime.keys[0].line == kind.header + KEYS[0].encode() + b"\r\n"
        if not all_bad:
            assert arrived.runtime("no-keys").status == "enabled", "people may bring their own"

    on_server(database_url, tmp_path, script)
