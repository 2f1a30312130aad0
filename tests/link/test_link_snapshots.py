"""link/snapshots.py: from what the control plane says to what the workers serve from."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop
from connectrpc.code import Code
from connectrpc.errors import ConnectError
from control_far_end import KEY, FarEnd, until

from ostiary.core.messages import Snapshot
from ostiary.core.metrics import Registry
from ostiary.core.providers import (
    AnthropicSettings,
    BedrockSettings,
    OpenAISettings,
    ProviderKey,
    ProviderSpec,
)
from ostiary.core.secret import Secret
from ostiary.link.client import ControlClient
from ostiary.link.connection import Connection
from ostiary.link.snapshots import SnapshotMetrics, SnapshotPoll, provider_spec, snapshot
from ostiary.rpc.ostiary_pb2 import (
    AIProvider,
    AIProviderKey,
    AIProviderKindAnthropic,
    AIProviderKindBedrock,
    AIProviderKindOpenAI,
    GetAIProvidersResponse,
)


def openai(name: str = "openai", **fields: Any) -> AIProvider:
    keys = [AIProviderKey(id="1", value="sk-first"), AIProviderKey(id="2", value="sk-second")]
    return AIProvider(
        id="p1", name=name, type="openai", enabled=True, base_url="https://api.openai.com/v1", keys=keys, **fields
    )


def test_a_provider_arrives_with_its_keys_in_order() -> None:
    spec = provider_spec(openai(openai=AIProviderKindOpenAI(stream_usage="leave")))
    assert spec == ProviderSpec(
        id="p1",
        name="openai",
        type="openai",
        enabled=True,
        base_url="https://api.openai.com/v1",
        keys=(ProviderKey("1", Secret("sk-first")), ProviderKey("2", Secret("sk-second"))),
        settings=OpenAISettings(stream_usage="leave"),
    )


def test_what_is_not_sent_has_its_default() -> None:
    assert provider_spec(openai()).settings is None
    assert provider_spec(openai(openai=AIProviderKindOpenAI())).settings == OpenAISettings()
    assert provider_spec(openai(anthropic=AIProviderKindAnthropic(selection="spread"))).settings == AnthropicSettings(
        selection="spread"
    )
    bedrock = AIProviderKindBedrock(region="eu-west-1", access_key="AKIA", access_key_secret="shh")
    assert provider_spec(openai(bedrock=bedrock)).settings == BedrockSettings(
        region="eu-west-1", access_key=Secret("AKIA"), access_key_secret=Secret("shh")
    )


def test_settings_that_are_not_understood_make_that_provider_an_error_and_only_that_one() -> None:
    strange = openai("strange", openai=AIProviderKindOpenAI(selection="by-moon-phase"))
    answer = GetAIProvidersResponse(revision=3, providers=[openai("good"), strange, openai("also-good")])
    specs = {spec.name: spec for spec in snapshot(answer).providers}
    assert [bool(spec.error) for spec in specs.values()] == [False, True, False]
    assert "upgrade the gateway" in specs["strange"].error
    assert specs["strange"].keys == ()


def test_a_row_that_the_control_plane_could_not_read_keeps_its_reason() -> None:
    spec = provider_spec(AIProvider(id="p", name="broken", type="openai", enabled=True, error="wrong vault key"))
    assert (spec.error, spec.keys, spec.settings) == ("wrong vault key", (), None)


def test_a_type_of_a_newer_control_plane_is_passed_on() -> None:
    assert provider_spec(AIProvider(id="p", name="new", type="quantum", enabled=True)).type == "quantum"


def test_a_name_that_cannot_be_addressed_is_left_out() -> None:
    answer = GetAIProvidersResponse(revision=1, providers=[openai("a"), openai("a"), openai("")])
    assert [spec.name for spec in snapshot(answer).providers] == ["a"]


# --- the poll


class Watch:
    def __init__(self, far: FarEnd, client: ControlClient, interval: float) -> None:
        self.far = far
        self.loaded: list[Snapshot] = []
        self.changes: list[bool] = []
        self.fatal: list[str] = []
        self.connection = Connection(asyncio.get_running_loop().time, grace=60)
        self.metrics = SnapshotMetrics(Registry())
        self.poll = SnapshotPoll(
            client,
            self.connection,
            self.metrics,
            interval,
            on_snapshot=self.loaded.append,
            on_change=lambda: self.changes.append(self.connection.up),
            on_fatal=self.fatal.append,
        )


def watch(test: Callable[[Watch], Coroutine[Any, Any, None]], *, key: str = KEY, interval: float = 0.01) -> None:
    async def main() -> None:
        async with FarEnd() as far, ControlClient(far.url, Secret(key)) as client:
            far.providers = [openai()]
            seen = Watch(far, client, interval)
            running = asyncio.create_task(seen.poll.run())
            try:
                await test(seen)
            finally:
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)

    uvloop.run(main())


def test_providers_are_loaded_once_a_revision() -> None:
    async def test(seen: Watch) -> None:
        await until(lambda: len(seen.far.polls) > 3)
        assert [loaded.revision for loaded in seen.loaded] == [1]
        assert set(seen.far.polls[1:]) == {1}
        seen.far.revision, seen.far.providers = 5, [openai(), openai("second")]
        await until(lambda: len(seen.loaded) == 2)
        assert [spec.name for spec in seen.loaded[1].providers] == ["openai", "second"]

    watch(test)


def test_a_failing_poll_keeps_the_snapshot_and_tells_the_loss_and_the_recovery() -> None:
    async def test(seen: Watch) -> None:
        await until(lambda: seen.loaded)
        seen.far.always["get_ai_providers"] = ConnectError(Code.UNAVAILABLE, "database away")
        await until(lambda: seen.changes == [True, False])
        kept = seen.poll.snapshot
        await until(lambda: seen.metrics.attempted[0] > seen.metrics.succeeded[0] > 0)
        del seen.far.always["get_ai_providers"]
        await until(lambda: seen.changes == [True, False, True])
        assert seen.poll.snapshot is kept
        assert seen.loaded == [kept]

    watch(test)


def test_a_refused_gateway_ends_with_one_line_at_the_start_and_later() -> None:
    async def at_start(seen: Watch) -> None:
        await until(lambda: seen.fatal)
        assert seen.changes == [False]
        assert seen.loaded == []

    async def later(seen: Watch) -> None:
        await until(lambda: seen.loaded)
        seen.far.always["get_ai_providers"] = ConnectError(Code.FAILED_PRECONDITION, "not now")
        await until(lambda: seen.changes == [True, False])
        assert seen.fatal == []
        seen.far.always["get_ai_providers"] = ConnectError(Code.PERMISSION_DENIED, "key deleted")
        await until(lambda: seen.fatal)
        assert "key deleted" in seen.fatal[0]

    watch(at_start, key="wrong")
    watch(later)


def test_a_call_that_failed_makes_the_heartbeat_look_at_once_unless_that_is_no_news() -> None:
    async def test(seen: Watch) -> None:
        await until(lambda: len(seen.far.polls) == 1 and seen.loaded)
        seen.poll.notice(reached=True)
        seen.poll.notice(reached=False)
        await until(lambda: len(seen.far.polls) == 2)

    watch(test, interval=3600)


@pytest.mark.parametrize("secret", ["sk-first", "sk-second"])
def test_no_key_is_in_any_repr_of_a_snapshot(secret: str) -> None:
    loaded = snapshot(GetAIProvidersResponse(revision=1, providers=[openai()]))
    assert secret not in repr(loaded)
