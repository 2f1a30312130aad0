"""The full set as gateways read it: every type comes back, and a bad row hides no other."""

from typing import Any

import pytest
from sqlalchemy import event, update

from ostiary.control import audit, providers
from ostiary.control.providers.changes import NewProvider, ProviderChanges
from ostiary.control.store.tables import ai_provider_keys, ai_providers
from ostiary.control.vault import Vault
from ostiary.core.providers import (
    AnthropicSettings,
    BedrockSettings,
    OpenAISettings,
    ProviderSpec,
    ProviderType,
)
from ostiary.core.secret import Secret
from tests.support.control_admin import Plane

ACTOR = audit.Actor(None, "test")
AWS = {"access_key": "AKIAEXAMPLE", "access_key_secret": "secret"}

KINDS: list[tuple[str, str, Any, Any]] = [
    ("openai", "https://a.example/v1", {"selection": "spread"}, OpenAISettings(selection="spread")),
    ("azure", "https://a.example", {"api_version": "2024-10-21"}, OpenAISettings(api_version="2024-10-21")),
    ("google", "https://a.example", None, None),
    ("vercel", "https://a.example", None, None),
    ("openrouter", "https://a.example", None, None),
    ("openai-compat", "http://10.0.0.1:8000/v1", {"stream_usage": "splice"}, OpenAISettings(stream_usage="splice")),
    ("anthropic", "https://a.example", {"selection": "spread"}, AnthropicSettings(selection="spread")),
    ("anthropic", "", {"_type": "bedrock", "region": "us-east-1"}, BedrockSettings(region="us-east-1")),
    (
        "bedrock",
        "",
        {"region": "us-east-1", "model": "m", "protocol": "invoke-model", **AWS},
        BedrockSettings(
            region="us-east-1",
            model="m",
            protocol="invoke-model",
            access_key=Secret("AKIAEXAMPLE"),
            access_key_secret=Secret("secret"),
        ),
    ),
    ("copilot", "https://a.example", None, None),
]


async def read(plane: Plane, vault: Vault | None = None) -> tuple[int, dict[str, ProviderSpec]]:
    async with plane.engine.connect() as conn:
        revision, specs = await providers.read_all(conn, vault or plane.vault)
    assert [spec.name for spec in specs] == sorted(spec.name for spec in specs)
    return revision, {spec.name: spec for spec in specs}


async def create(plane: Plane, wanted: NewProvider) -> str:
    async with plane.engine.begin() as conn:
        return (await providers.create_provider(conn, plane.vault, wanted, ACTOR, audit.LOCAL)).id


@pytest.mark.parametrize("enabled", [True, False])
def test_every_type_comes_back_with_its_settings_and_keys_only_when_enabled(on_plane: Any, enabled: bool) -> None:
    async def body(plane: Plane) -> None:
        assert {kind for kind, *_ in KINDS} == set(ProviderType)
        for number, (kind, base_url, raw, _) in enumerate(KINDS):
            takes_keys = kind not in ("bedrock", "copilot") and not (raw or {}).get("region")
            keys = (Secret("sk-second"), Secret("sk-first")) if takes_keys else ()
            await create(plane, NewProvider(kind, f"p{number}", base_url, enabled=enabled, api_keys=keys, settings=raw))
        revision, specs = await read(plane)
        assert revision == len(KINDS)
        for number, (kind, base_url, raw, expected) in enumerate(KINDS):
            spec = specs[f"p{number}"]
            assert (spec.type, spec.base_url, spec.enabled, spec.error) == (kind, base_url, enabled, "")
            assert spec.settings == (expected if enabled else None)
            takes_keys = kind not in ("bedrock", "copilot") and not (raw or {}).get("region")
            values = [key.value.reveal() for key in spec.keys]
            assert values == (["sk-second", "sk-first"] if enabled and takes_keys else [])

    on_plane(body)


def test_an_empty_set_has_a_revision_too(on_plane: Any) -> None:
    async def body(plane: Plane) -> None:
        assert await read(plane) == (0, {})
        made = await create(plane, NewProvider("openai", "gone", "https://a.example"))
        async with plane.engine.begin() as conn:
            await providers.delete_provider(conn, plane.vault, made, ACTOR, audit.LOCAL)
        assert await read(plane) == (2, {})
        async with plane.engine.connect() as conn:
            assert await providers.current_revision(conn) == 2

    on_plane(body)


def test_the_set_is_read_in_one_statement(on_plane: Any) -> None:
    async def body(plane: Plane) -> None:
        for name in ("one", "two"):
            await create(plane, NewProvider("openai", name, "https://a.example", api_keys=(Secret("k"),)))
        statements: list[str] = []
        event.listen(
            plane.engine.sync_engine,
            "before_cursor_execute",
            lambda _c, _u, statement, *_: statements.append(statement),
        )
        await read(plane)
        assert len(statements) == 1

    on_plane(body)


def test_a_bad_row_is_in_error_alone(on_plane: Any) -> None:
    async def body(plane: Plane) -> None:
        ids = {}
        for name in ("corrupt", "cut", "future", "good", "key", "moved", "odd", "off", "url", "version"):
            wanted = NewProvider(
                "openai", name, "https://a.example", api_keys=(Secret("k"),), settings={"selection": "spread"}
            )
            ids[name] = await create(plane, wanted)
        row = ai_providers.c
        place = providers.rows.settings_place

        def sealed(name: str, text: bytes) -> dict[str, Any]:
            ciphertext, key_id = plane.vault.seal(place(ids[name]), text)
            return {"settings": ciphertext, "settings_key_id": key_id}

        async with plane.engine.begin() as conn:

            async def edit(name: str, **values: Any) -> None:
                await conn.execute(update(ai_providers).where(row.id == ids[name]).values(values))

            await edit("corrupt", settings=b"nonsense")
            await edit("off", settings=b"nonsense", enabled=False)
            await edit("cut", **sealed("cut", b'{"_type": "openai"'))
            await edit("moved", **sealed("good", b'{"_type":"openai","_version":1}'))
            await edit("odd", **sealed("odd", b'{"_type":"bedrock","_version":1,"region":"us-east-1"}'))
            await edit("version", **sealed("version", b'{"_type":"openai","_version":7}'))
            await edit("future", type="quantum")
            await edit("url", base_url="somewhere")
            await conn.execute(
                update(ai_provider_keys).where(ai_provider_keys.c.provider_id == ids["key"]).values(api_key=b"nonsense")
            )
        _, specs = await read(plane)
        errors = {name: spec.error for name, spec in specs.items()}
        assert errors.pop("good") == ""
        assert errors.pop("off") == ""
        for name, part in (
            ("corrupt", "not a value of this vault"),
            ("cut", "not JSON"),
            ("future", 'unsupported provider type "quantum"'),
            ("key", "ai_provider_keys.api_key"),
            ("moved", "does not decrypt"),
            ("odd", "must have _type openai"),
            ("url", "base_url must be"),
            ("version", 'unsupported "openai" settings version 7 (expected 1)'),
        ):
            assert part in errors.pop(name), name
        assert errors == {}
        assert all(not spec.keys and spec.settings is None for spec in specs.values() if spec.error)
        assert [key.value for key in specs["good"].keys] == [Secret("k")]

        _, token = await plane.user("root", "owner")
        shown = (await plane.call(token, "GET", "/api/v2/ai/providers")).json()
        assert {provider["name"]: provider["status"]["state"] for provider in shown} == {
            name: "error" if spec.error else "enabled" if spec.enabled else "disabled" for name, spec in specs.items()
        }

        # entering it again heals each, a future type apart
        async with plane.engine.begin() as conn:
            for name in ("corrupt", "cut", "moved", "odd", "version"):
                change = ProviderChanges(settings={"selection": "primary"})
                await providers.update_provider(conn, plane.vault, name, change, ACTOR, audit.LOCAL)
            change = ProviderChanges(base_url="https://a.example")
            await providers.update_provider(conn, plane.vault, "url", change, ACTOR, audit.LOCAL, moves_keys=True)
            change = ProviderChanges(api_keys=(providers.requests.KeyEntry(api_key=Secret("new")),))
            await providers.update_provider(conn, plane.vault, "key", change, ACTOR, audit.LOCAL)
            await providers.update_provider(
                conn, plane.vault, "future", ProviderChanges(enabled=False), ACTOR, audit.LOCAL
            )
        _, specs = await read(plane)
        assert [name for name, spec in specs.items() if spec.error] == []

    on_plane(body)


def test_rows_under_a_key_that_is_not_held_are_in_error(on_plane: Any) -> None:
    async def body(plane: Plane) -> None:
        await create(plane, NewProvider("openai", "sealed", "https://a.example", api_keys=(Secret("k"),)))
        await create(plane, NewProvider("openai", "open", "https://a.example"))
        _, specs = await read(plane, Vault([b"x" * 32]))
        assert "which OSTIARY_ENCRYPTION_KEYS does not hold" in specs["sealed"].error
        assert specs["open"].error == ""

    on_plane(body)
