"""What seeding does about each wanted provider: pure."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ostiary.control.seed import Drift, ExistingProvider, Insert, Keep, Repoint, Skip, Step, plan
from ostiary.control.seed.plan import DEMO_DISPLAY_NAME
from ostiary.core.provider_env import DesiredProvider
from ostiary.core.provider_rules import effective_type
from ostiary.core.providers import BedrockSettings, OpenAISettings, ProviderType
from ostiary.core.secret import Secret

WANTED = DesiredProvider("openai", ProviderType.OPENAI, "https://a.example", (Secret("k"),), source="OSTIARY_OPENAI_*")


def row_of(provider: DesiredProvider, **changes: Any) -> ExistingProvider:
    """The row that inserting `provider` makes, changed."""
    settings = provider.settings
    known: dict[str, Any] = {
        "id": f"id-{provider.name}",
        "name": provider.name,
        "type": effective_type(provider.type, settings).value,
        "base_url": provider.base_url,
        "bedrock_region": settings.region if isinstance(settings, BedrockSettings) else "",
        "display_name": provider.display_name,
    }
    return ExistingProvider(**(known | changes))


def only(provider: DesiredProvider, *rows: ExistingProvider) -> Step:
    [step] = plan([provider], rows)
    return step


def test_an_absent_provider_is_inserted() -> None:
    other = row_of(WANTED, name="other", id="o")
    assert only(WANTED, other) == Insert(WANTED)


def test_the_same_provider_is_kept_whatever_its_keys_and_names_are() -> None:
    assert only(WANTED, row_of(WANTED, display_name="renamed by hand")) == Keep("openai", "id-openai")
    assert only(DesiredProvider("openai", ProviderType.OPENAI, "https://a.example"), row_of(WANTED)) == Keep(
        "openai", "id-openai"
    )


def test_a_deleted_provider_stays_deleted_unless_there_is_a_live_one_too() -> None:
    deleted = row_of(WANTED, deleted=True, base_url="https://old.example", id="old")
    assert isinstance(only(WANTED, deleted), Skip)
    assert only(WANTED, deleted, row_of(WANTED)) == Keep("openai", "id-openai")
    assert only(WANTED, row_of(WANTED), deleted) == Keep("openai", "id-openai")


def test_a_row_that_cannot_be_used_is_left_alone() -> None:
    step = only(WANTED, row_of(WANTED, base_url="nonsense", unreadable="base_url must be absolute"))
    assert isinstance(step, Skip)
    assert "base_url must be absolute" in step.reason


def test_drift_names_each_field_that_differs_and_nothing_else() -> None:
    aws = DesiredProvider("a", ProviderType.BEDROCK, "", settings=BedrockSettings(region="us-east-1"), source="X_*")
    step = only(aws, row_of(aws, base_url="https://b.example", bedrock_region="eu-west-1"))
    assert isinstance(step, Drift)
    assert [tuple(difference) for difference in step.differences] == [
        ("base_url", "https://b.example", ""),
        ("bedrock_region", "eu-west-1", "us-east-1"),
    ]
    assert str(step) == (
        'AI provider "a" of X_* differs from the one in the database: base_url is https://b.example in the database and '
        "not set here, bedrock_region is eu-west-1 in the database and us-east-1 here"
    )


def test_credentials_and_models_of_bedrock_are_no_drift() -> None:
    settings = BedrockSettings(region="us-east-1", access_key=Secret("a"), access_key_secret=Secret("b"), model="m")
    aws = DesiredProvider("a", ProviderType.BEDROCK, "", settings=settings)
    assert isinstance(only(aws, row_of(aws)), Keep)


def test_anthropic_served_by_bedrock_is_the_same_as_bedrock() -> None:
    settings = BedrockSettings(region="us-east-1")
    wanted = DesiredProvider("a", ProviderType.ANTHROPIC, "", settings=settings)
    assert isinstance(only(wanted, row_of(wanted, type="bedrock")), Keep)
    assert isinstance(only(wanted, row_of(wanted, type="anthropic")), Drift)


DEMO = DesiredProvider(
    "demo-openai",
    ProviderType.OPENAI,
    "http://127.0.0.1:5000/openai/v1",
    display_name=DEMO_DISPLAY_NAME,
    source="--demo",
    demo=True,
)


def test_a_demo_row_follows_the_port() -> None:
    moved = row_of(DEMO, base_url="http://127.0.0.1:4444/openai/v1")
    assert only(DEMO, moved) == Repoint("demo-openai", "id-demo-openai", DEMO.base_url)
    assert isinstance(only(DEMO, row_of(DEMO)), Keep)


@pytest.mark.parametrize(
    "changes",
    [
        {"display_name": "mine"},
        {"base_url": "https://api.openai.com/v1"},
        {"base_url": "http://10.0.0.1:5000/openai/v1"},
        {"base_url": "http://127.0.0.1:4444/other"},
        {"base_url": "https://127.0.0.1:4444/openai/v1"},
        {"type": "anthropic"},
        {"deleted": True},
    ],
)
def test_a_row_of_that_name_that_is_not_ours_is_left_alone_and_stops_nothing(changes: Any) -> None:
    moved = {"base_url": "http://127.0.0.1:4444/openai/v1"} | changes
    assert isinstance(only(DEMO, row_of(DEMO, **moved)), Skip)


def test_a_row_like_the_demo_is_not_moved_for_the_environment() -> None:
    wanted = DesiredProvider("demo-openai", ProviderType.OPENAI, DEMO.base_url, source="OSTIARY_PROVIDER_0_*")
    assert isinstance(only(wanted, row_of(DEMO, base_url="http://127.0.0.1:4444/openai/v1")), Drift)


# --- properties

names = st.sampled_from(["a", "b", "c", "d"])
urls = st.sampled_from(["https://a.example", "https://b.example", "http://127.0.0.1:1/v1", "http://127.0.0.1:2/v1"])
wanted_providers = st.builds(
    lambda name, kind, url, region, demo: DesiredProvider(
        name,
        kind,
        url,
        settings=BedrockSettings(region=region) if kind is ProviderType.BEDROCK else None,
        display_name=DEMO_DISPLAY_NAME if demo else name,
        demo=demo,
    ),
    names,
    st.sampled_from([ProviderType.OPENAI, ProviderType.BEDROCK, ProviderType.COPILOT]),
    urls,
    st.sampled_from(["us-east-1", "eu-west-1"]),
    st.booleans(),
)
wishes = st.lists(wanted_providers, max_size=4, unique_by=lambda provider: provider.name)
existing = st.builds(
    ExistingProvider,
    id=st.uuids().map(str),
    name=names,
    type=st.sampled_from(["openai", "bedrock", "copilot", "future"]),
    base_url=urls,
    bedrock_region=st.sampled_from(["", "us-east-1"]),
    display_name=st.sampled_from(["", "x", DEMO_DISPLAY_NAME]),
    deleted=st.booleans(),
    unreadable=st.sampled_from(["", "", "corrupt"]),
)


def rows_with_one_live_row_a_name(rows: list[ExistingProvider]) -> list[ExistingProvider]:
    live: set[str] = set()
    kept = []
    for row in rows:
        if row.deleted or row.name not in live:
            kept.append(row)
            live |= set() if row.deleted else {row.name}
    return kept


tables = st.lists(existing, max_size=8).map(rows_with_one_live_row_a_name)


def carried_out(steps: list[Step], rows: list[ExistingProvider]) -> list[ExistingProvider]:
    after = {row.id: row for row in rows}
    for step in steps:
        if isinstance(step, Insert):
            made = row_of(step.provider)
            after[made.id] = made
        elif isinstance(step, Repoint):
            after[step.id] = ExistingProvider(
                **{field: getattr(after[step.id], field) for field in after[step.id].__struct_fields__}
                | {"base_url": step.base_url}
            )
    return list(after.values())


@given(wishes, tables)
def test_a_second_run_changes_nothing(desired: list[DesiredProvider], rows: list[ExistingProvider]) -> None:
    after = carried_out(plan(desired, rows), rows)
    again = plan(desired, after)
    assert not [step for step in again if isinstance(step, Insert | Repoint)]
    assert [row.base_url for row in carried_out(again, after)] == [row.base_url for row in after]


@given(wishes, tables, st.randoms())
def test_any_order_gives_one_plan(desired: list[DesiredProvider], rows: list[ExistingProvider], random: Any) -> None:
    # of several deleted rows of one name any may speak for the name: they say the same
    shuffled, mixed = desired.copy(), rows.copy()
    random.shuffle(shuffled)
    random.shuffle(mixed)
    assert plan(shuffled, mixed) == plan(desired, rows)


@given(wishes, tables)
def test_no_plan_touches_a_row_it_did_not_create(desired: list[DesiredProvider], rows: list[ExistingProvider]) -> None:
    by_id = {row.id: row for row in rows}
    wanted = {provider.name: provider for provider in desired}
    steps = plan(desired, rows)
    assert [step.name for step in steps] == sorted(wanted)
    live = {row.name for row in rows if not row.deleted}
    known = {row.name for row in rows}
    for step in steps:
        if isinstance(step, Insert):
            assert step.name not in known
        elif isinstance(step, Repoint):
            row = by_id[step.id]
            assert wanted[step.name].demo
            assert row.display_name == DEMO_DISPLAY_NAME
            assert row.base_url.startswith("http://127.0.0.1:")
            assert not row.deleted
        elif isinstance(step, Keep | Drift):
            assert step.name in live


def test_settings_other_than_bedrock_are_no_drift() -> None:
    wanted = DesiredProvider("a", ProviderType.OPENAI, "https://a.example", settings=OpenAISettings(selection="spread"))
    assert isinstance(only(wanted, row_of(wanted)), Keep)
