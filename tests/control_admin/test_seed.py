"""Seeding on a real database: once, sticky, under the lock, audited with what it changed."""

import asyncio
from typing import Any

import pytest
from sqlalchemy import func, select, text, update

from ostiary.control import audit, providers
from ostiary.control.locks import SEED_LOCK
from ostiary.control.providers.changes import ProviderChanges
from ostiary.control.providers.requests import KeyEntry
from ostiary.control.seed import (
    Drift,
    ExistingProvider,
    Insert,
    Keep,
    Repoint,
    SeedError,
    SeedReport,
    Skip,
    executor,
    plan,
    read_provider_environment,
    seed,
)
from ostiary.control.store.tables import ai_providers
from ostiary.control.vault import open_vault
from ostiary.core.providers import BedrockSettings, ProviderSpec
from ostiary.core.secret import Secret
from ostiary.core.settings import DemoProvider
from tests.support.control_admin import Plane

ACTOR = audit.Actor(None, "test")
ENVIRONMENT = {
    "OSTIARY_OPENAI_KEY": "sk-openai-0123456789abcdef",
    "OSTIARY_PROVIDER_0_TYPE": "anthropic",
    "OSTIARY_PROVIDER_0_NAME": "claude",
    "OSTIARY_PROVIDER_0_KEYS": "sk-claude-one-0123456789,sk-claude-two-0123456789",
    "OSTIARY_PROVIDER_1_TYPE": "bedrock",
    "OSTIARY_PROVIDER_1_NAME": "aws",
    "OSTIARY_PROVIDER_1_BEDROCK_REGION": "us-east-1",
    "OSTIARY_PROVIDER_1_BEDROCK_ACCESS_KEY": "AKIAEXAMPLE0123456789",
    "OSTIARY_PROVIDER_1_BEDROCK_ACCESS_KEY_SECRET": "aws-secret-0123456789",
}
SECRETS = [value for value in ",".join(ENVIRONMENT.values()).split(",") if "0123456789" in value]


def secret(variables: dict[str, str]) -> dict[str, Secret]:
    return {name: Secret(value) for name, value in variables.items()}


async def run(plane: Plane, variables: dict[str, str], **changes: Any) -> SeedReport:
    settings = plane.with_settings(seed_environment=secret(variables), **changes)
    return await seed(plane.engine, plane.vault, settings)


async def read(plane: Plane) -> tuple[int, dict[str, ProviderSpec]]:
    async with plane.engine.connect() as conn:
        revision, specs = await providers.read_all(conn, plane.vault)
    return revision, {spec.name: spec for spec in specs}


async def state(plane: Plane) -> list[Any]:
    async with plane.engine.connect() as conn:
        return [
            (await conn.execute(text(f"SELECT {table}::text FROM {table} ORDER BY 1"))).scalars().all()
            for table in ("ai_providers", "ai_provider_keys", "provider_revisions", "audit_log")
        ]


def kinds(report: SeedReport) -> list[tuple[str, str]]:
    return [(type(step).__name__, step.name) for step in report.steps]


def test_an_empty_database_gets_all_providers_in_one_revision(on_plane: Any) -> None:
    async def body(plane: Plane) -> None:
        report = await run(plane, ENVIRONMENT)
        assert kinds(report) == [("Insert", "aws"), ("Insert", "claude"), ("Insert", "openai")]
        revision, specs = await read(plane)
        assert revision == report.revision == 1
        assert [key.value.reveal() for key in specs["claude"].keys] == [
            "sk-claude-one-0123456789",
            "sk-claude-two-0123456789",
        ]
        assert specs["aws"].settings == BedrockSettings(
            region="us-east-1",
            access_key=Secret("AKIAEXAMPLE0123456789"),
            access_key_secret=Secret("aws-secret-0123456789"),
        )
        assert all(spec.enabled and not spec.error for spec in specs.values())
        async with plane.engine.connect() as conn:
            names = (await conn.execute(select(ai_providers.c.display_name).order_by(ai_providers.c.name))).scalars()
            assert list(names) == ["aws", "claude", "openai"]

    on_plane(body)


def test_a_second_start_changes_nothing_and_an_empty_environment_neither(on_plane: Any) -> None:
    async def body(plane: Plane) -> None:
        await run(plane, ENVIRONMENT)
        before = await state(plane)
        report = await run(plane, ENVIRONMENT)
        assert {type(step) for step in report.steps} == {Keep}
        assert report.revision == 0
        assert (await run(plane, {})).steps == ()
        assert await state(plane) == before

    on_plane(body)


def test_what_people_changed_is_theirs(on_plane: Any) -> None:
    async def body(plane: Plane) -> None:
        await run(plane, ENVIRONMENT)
        async with plane.engine.begin() as conn:
            change = ProviderChanges(enabled=False, api_keys=(KeyEntry(api_key=Secret("sk-by-hand")),))
            await providers.update_provider(conn, plane.vault, "openai", change, ACTOR, audit.LOCAL)
            await providers.delete_provider(conn, plane.vault, "claude", ACTOR, audit.LOCAL)
        before = await state(plane)
        report = await run(plane, ENVIRONMENT)
        assert kinds(report) == [("Keep", "aws"), ("Skip", "claude"), ("Keep", "openai")]
        assert await state(plane) == before

    on_plane(body)


def test_a_new_name_after_deletion_and_a_row_made_by_hand_are_left_alone(on_plane: Any) -> None:
    async def body(plane: Plane) -> None:
        await run(plane, {"OSTIARY_OPENAI_KEY": "k1"})
        async with plane.engine.begin() as conn:
            await providers.delete_provider(conn, plane.vault, "openai", ACTOR, audit.LOCAL)
            wanted = providers.changes.NewProvider("openai", "openai", "https://api.openai.com/v1/")
            await providers.create_provider(conn, plane.vault, wanted, ACTOR, audit.LOCAL)
        before = await state(plane)
        assert kinds(await run(plane, {"OSTIARY_OPENAI_KEY": "k1"})) == [("Keep", "openai")]
        assert await state(plane) == before

    on_plane(body)


def test_drift_stops_the_start_before_anything_is_written(on_plane: Any) -> None:
    drifted = {**ENVIRONMENT, "OSTIARY_OPENAI_BASE_URL": "https://eu.api.openai.com/v1/"}
    drifted |= {"OSTIARY_PROVIDER_2_TYPE": "openai", "OSTIARY_PROVIDER_2_NAME": "new"}

    async def body(plane: Plane) -> None:
        await run(plane, ENVIRONMENT)
        before = await state(plane)
        with pytest.raises(SeedError) as caught:
            await run(plane, drifted)
        message = str(caught.value)
        for part in (
            'AI provider "openai"',
            "OSTIARY_OPENAI_*",
            "base_url is https://api.openai.com/v1/ in the database and https://eu.api.openai.com/v1/ here",
            "OSTIARY_ON_DRIFT=warn",
        ):
            assert part in message
        assert "\n" not in message
        assert await state(plane) == before

    on_plane(body)


def test_with_on_drift_warn_the_database_decides_and_the_rest_is_seeded(on_plane: Any) -> None:
    async def body(plane: Plane) -> None:
        await run(plane, {"OSTIARY_OPENAI_KEY": "k"})
        drifted = {
            "OSTIARY_OPENAI_KEY": "k",
            "OSTIARY_OPENAI_BASE_URL": "https://b.example",
            "OSTIARY_ANTHROPIC_KEY": "a",
        }
        report = await run(plane, drifted, on_drift="warn")
        assert [type(step) for step in report.steps] == [Insert, Drift]
        _, specs = await read(plane)
        assert specs["openai"].base_url == "https://api.openai.com/v1/"
        assert set(specs) == {"anthropic", "openai"}

    on_plane(body)


def test_a_wrong_environment_stops_the_start_with_its_variable(on_plane: Any) -> None:
    async def body(plane: Plane) -> None:
        with pytest.raises(SeedError, match="OSTIARY_PROVIDER_0_KEYY is unknown"):
            await run(plane, {"OSTIARY_PROVIDER_0_KEYY": "x"})
        report = await run(plane, {"OSTIARY_OPENAI_BASE_URL": "https://a.example"})
        assert report.warnings == ("OSTIARY_OPENAI_BASE_URL has no effect without OSTIARY_OPENAI_KEY",)

    on_plane(body)


def test_a_row_that_cannot_be_read_stops_nothing(on_plane: Any) -> None:
    async def body(plane: Plane) -> None:
        await run(plane, ENVIRONMENT)
        async with plane.engine.begin() as conn:
            await conn.execute(update(ai_providers).where(ai_providers.c.name == "aws").values(settings=b"nonsense"))
            await conn.execute(update(ai_providers).where(ai_providers.c.name == "claude").values(type="quantum"))
        assert kinds(await run(plane, ENVIRONMENT)) == [("Skip", "aws"), ("Skip", "claude"), ("Keep", "openai")]

    on_plane(body)


def test_several_control_planes_that_start_at_once_seed_once(on_plane: Any) -> None:
    async def body(plane: Plane) -> None:
        settings = plane.with_settings(seed_environment=secret(ENVIRONMENT))
        vaults = [await open_vault(plane.engine, settings) for _ in range(4)]
        reports = await asyncio.gather(*(seed(plane.engine, vault, settings) for vault in vaults))
        assert sorted(report.revision for report in reports) == [0, 0, 0, 1]
        revision, specs = await read(plane)
        assert (revision, len(specs)) == (1, 3)

    on_plane(body)


def test_seeding_waits_for_the_lock_and_readers_wait_for_seeding(on_plane: Any) -> None:
    async def body(plane: Plane) -> None:
        async with plane.engine.connect() as holder:
            await holder.execute(select(func.pg_advisory_xact_lock(SEED_LOCK)))
            seeding = asyncio.create_task(run(plane, ENVIRONMENT))
            async with asyncio.timeout(30), plane.engine.connect() as watcher:
                waiting = text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
                while not await watcher.scalar(waiting):
                    await watcher.rollback()
            assert not seeding.done()
            assert (await read(plane))[1] == {}
            await holder.rollback()
        assert (await seeding).revision == 1

    on_plane(body)


def test_a_lock_that_is_never_released_is_said_in_one_line(on_plane: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "_LOCK_TIMEOUT_MS", 50)

    async def body(plane: Plane) -> None:
        async with plane.engine.connect() as holder:
            await holder.execute(select(func.pg_advisory_xact_lock_shared(SEED_LOCK)))
            with pytest.raises(SeedError, match="has held the providers' lock"):
                await run(plane, ENVIRONMENT)

    on_plane(body)


def test_seeding_is_audited_and_no_secret_is_logged_or_audited(
    on_plane: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    async def body(plane: Plane) -> None:
        await run(plane, ENVIRONMENT)
        entries = await plane.audit()
        assert {entry["actor"] for entry in entries} == {"seed"}
        assert sorted((entry["action"], entry["resource_type"], entry["resource_name"]) for entry in entries) == [
            ("create", "ai_provider", "aws"),
            ("create", "ai_provider", "claude"),
            ("create", "ai_provider", "openai"),
            ("create", "ai_provider_key", "claude"),
            ("create", "ai_provider_key", "claude"),
            ("create", "ai_provider_key", "openai"),
        ]
        printed = capfd.readouterr()
        assert printed.out.count("seeding provider from environment") == 3
        assert "sk-o...cdef" in printed.out
        for value in SECRETS:
            assert value not in printed.out + printed.err + repr(entries)

    on_plane(body)


# --- the demo's providers


def demo(port: int, name: str = "demo-openai") -> tuple[DemoProvider, ...]:
    return (DemoProvider(name, "openai", f"http://127.0.0.1:{port}/openai/v1", Secret("demo-key")),)


def test_demo_providers_are_seeded_and_follow_the_port_of_each_start(on_plane: Any) -> None:
    async def body(plane: Plane) -> None:
        assert kinds(await run(plane, {}, demo_providers=demo(4010))) == [("Insert", "demo-openai")]
        assert kinds(await run(plane, {}, demo_providers=demo(4010))) == [("Keep", "demo-openai")]
        report = await run(plane, {}, demo_providers=demo(5555))
        assert [type(step) for step in report.steps] == [Repoint]
        revision, specs = await read(plane)
        assert revision == report.revision == 2
        assert specs["demo-openai"].base_url == "http://127.0.0.1:5555/openai/v1"
        assert [key.value for key in specs["demo-openai"].keys] == [Secret("demo-key")]
        entry = (await plane.audit())[-1]
        assert (entry["before"]["base_url"], entry["actor"]) == ("http://127.0.0.1:4010/openai/v1", "seed")

    on_plane(body)


def test_a_demo_provider_somebody_made_theirs_or_deleted_stays_so(on_plane: Any) -> None:
    async def body(plane: Plane) -> None:
        await run(plane, {}, demo_providers=demo(4010))
        async with plane.engine.begin() as conn:
            change = ProviderChanges(display_name="Mine")
            await providers.update_provider(conn, plane.vault, "demo-openai", change, ACTOR, audit.LOCAL)
        assert [type(step) for step in (await run(plane, {}, demo_providers=demo(5555))).steps] == [Skip]
        async with plane.engine.begin() as conn:
            await providers.delete_provider(conn, plane.vault, "demo-openai", ACTOR, audit.LOCAL)
        assert [type(step) for step in (await run(plane, {}, demo_providers=demo(5555))).steps] == [Skip]
        assert (await read(plane))[1] == {}

    on_plane(body)


def test_one_name_in_the_environment_and_the_demo_is_an_error_naming_both(on_plane: Any) -> None:
    async def body(plane: Plane) -> None:
        with pytest.raises(SeedError, match=r"OSTIARY_OPENAI_.* and --demo both describe"):
            await run(plane, {"OSTIARY_OPENAI_KEY": "k"}, demo_providers=demo(4010, "openai"))

    on_plane(body)


# --- planning from outside


def test_the_plan_made_from_the_api_is_the_one_that_seeding_makes(on_plane: Any) -> None:
    environment = {**ENVIRONMENT, "OSTIARY_PROVIDER_2_TYPE": "google", "CODER_AIBRIDGE_BEDROCK_REGION": "eu-west-1"}

    async def body(plane: Plane) -> None:
        _, token = await plane.user("root", "owner")
        await run(plane, environment)
        async with plane.engine.begin() as conn:
            await providers.delete_provider(conn, plane.vault, "google", ACTOR, audit.LOCAL)
            change = ProviderChanges(base_url="https://b.example")
            await providers.update_provider(conn, plane.vault, "openai", change, ACTOR, audit.LOCAL, moves_keys=True)
            await conn.execute(update(ai_providers).where(ai_providers.c.name == "aws").values(settings=b"nonsense"))
        shown = (await plane.call(token, "GET", "/api/v2/ai/providers", deleted=True)).json()
        desired = read_provider_environment(secret(environment)).providers
        outside = plan(desired, [ExistingProvider.from_api(provider) for provider in shown])
        inside = (await run(plane, environment, on_drift="warn")).steps
        assert [type(step) for step in outside] == [Keep, Skip, Keep, Skip, Drift]
        assert tuple(outside) == inside

    on_plane(body)
