"""Application inference profiles: AWS is asked once what a profile leads to, and no request waits or fails for it."""

import asyncio
import json
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from ostiary.core.providers import BedrockSettings, ProviderSpec
from ostiary.core.secret import Secret
from ostiary.fake.aws_identity import ACCESS_KEY, SECRET_KEY
from ostiary.gateway.providers import inference_profiles
from ostiary.gateway.providers.adapter import Prepared
from ostiary.gateway.providers.aws import Identities
from ostiary.gateway.providers.bedrock import build_bedrock
from ostiary.gateway.providers.inference_profiles import InferenceProfiles
from ostiary.wire.formats import read_request
from tests.support.fake_provider import FakeProvider, fake_provider

ARN = "arn:aws:bedrock:eu-west-1:123456789012:application-inference-profile/a1b2c3d4"
OTHER = f"{ARN}-other"
OPUS_47 = "anthropic.claude-opus-4-7"
ENABLED = {"type": "enabled", "budget_tokens": 2000}


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeProvider]:
    with fake_provider() as provider:
        yield provider


@pytest.fixture(autouse=True)
def bedrock_is_fake(fake: FakeProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.client.delete("/fake/aws")
    fake.reset()
    monkeypatch.setenv("AWS_ENDPOINT_URL_BEDROCK", fake.url)
    monkeypatch.setenv("AWS_BEARER_TOKEN_BEDROCK", "of-the-process-and-never-used")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")


def run(script: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20):
            await script()

    asyncio.run(bounded())


class Case:
    """A provider whose `model` is a profile."""

    def __init__(self, secret: str = SECRET_KEY) -> None:
        self.clock = Clock()
        self.profiles = InferenceProfiles(clock=self.clock)
        settings = BedrockSettings(
            region="us-east-1",
            model=ARN,
            small_fast_model=OTHER,
            access_key=Secret(ACCESS_KEY),
            access_key_secret=Secret(secret),
        )
        spec = ProviderSpec("1", "aws", "bedrock", True, "", (), settings)
        self.provider = build_bedrock(spec, allow_byok=False, identities=Identities(), profiles=self.profiles)

    def prepare(self, model: str = "claude-opus-4-7") -> Prepared:
        route = self.provider.routes.match(b"/v1/messages")
        assert route is not None
        assert self.provider.adapter is not None
        body = json.dumps({"model": model, "max_tokens": 4000, "messages": [], "thinking": ENABLED}).encode()
        return self.provider.adapter.prepare(route, b"", {}, body, read_request("messages", body))

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await asyncio.sleep(0.005)


def idle() -> bool:
    """Nothing runs beside the test."""
    return len(asyncio.all_tasks()) == 1


def asked(fake: FakeProvider) -> int:
    return len([entry for entry in fake.requests()["requests"] if "inference-profiles" in entry["path"]])


def test_a_profile_is_asked_about_once_and_then_treated_as_its_model(fake: FakeProvider) -> None:
    fake.client.post("/fake/aws/profiles", json={"arn": ARN, "model": OPUS_47})
    case = Case()

    async def script() -> None:
        crowd = [case.prepare() for _ in range(20)]
        assert {(found.model, json.loads(found.body)["thinking"]["type"]) for found in crowd} == {(ARN, "enabled")}
        await case.until(lambda: case.prepare().model == OPUS_47)
        found = case.prepare()
        assert json.loads(found.body)["thinking"] == {"type": "adaptive"}
        assert found.target.startswith(b"/model/arn%3Aaws%3Abedrock%3Aeu-west-1"), "the profile itself is called"
        assert asked(fake) == 1

    run(script)


def test_a_profile_that_is_not_told_fails_no_request_and_is_asked_again_later(fake: FakeProvider) -> None:
    case = Case()

    async def script() -> None:
        assert case.prepare().model == ARN
        await case.until(lambda: asked(fake) == 1 and idle())
        fake.client.post("/fake/aws/profiles", json={"arn": ARN, "model": OPUS_47})
        for _ in range(5):
            assert case.prepare().model == ARN
        assert idle()
        case.clock.now += inference_profiles.RETRY_SECONDS
        await case.until(lambda: case.prepare().model == OPUS_47)
        assert asked(fake) == 2

    run(script)


def test_without_credentials_that_are_taken_the_profile_stays_unknown(
    fake: FakeProvider, capfd: pytest.CaptureFixture[str]
) -> None:
    case = Case(secret="a-wrong-secret")

    async def script() -> None:
        assert case.prepare().model == ARN
        await case.until(lambda: asked(fake) == 1 and idle())
        assert case.prepare().model == ARN

    run(script)
    assert "a-wrong-secret" not in "".join(capfd.readouterr())


def test_each_of_two_profiles_is_its_own(fake: FakeProvider) -> None:
    fake.client.post("/fake/aws/profiles", json={"arn": ARN, "model": OPUS_47})
    fake.client.post("/fake/aws/profiles", json={"arn": OTHER, "model": "anthropic.claude-haiku-4-5-20251001-v1:0"})
    case = Case()

    async def script() -> None:
        await case.until(lambda: case.prepare().model == OPUS_47)
        await case.until(lambda: case.prepare("claude-haiku-4-5").model == "anthropic.claude-haiku-4-5-20251001-v1:0")

    run(script)


def test_other_ids_are_what_they_are_and_nothing_is_asked(fake: FakeProvider) -> None:
    profiles = InferenceProfiles()
    identity = Identities().of(BedrockSettings(region="us-east-1"), "us-east-1")
    for model in (
        OPUS_47,
        "us.anthropic.claude-sonnet-5",
        "arn:aws:bedrock:us-east-1:1:inference-profile/us.anthropic.x",
    ):
        assert profiles.model_behind(model, identity) == model
    assert asked(fake) == 0


def test_the_number_kept_is_bounded(fake: FakeProvider) -> None:
    profiles = InferenceProfiles(limit=2)
    settings = BedrockSettings(region="us-east-1", access_key=Secret(ACCESS_KEY), access_key_secret=Secret(SECRET_KEY))
    identity = Identities().of(settings, "us-east-1")
    arns = [f"{ARN}{number}" for number in range(3)]
    for arn in arns:
        fake.client.post("/fake/aws/profiles", json={"arn": arn, "model": OPUS_47})

    async def script() -> None:
        for arn in arns:
            while profiles.model_behind(arn, identity) != OPUS_47:
                await asyncio.sleep(0.005)
        assert profiles.model_behind(arns[0], identity) == arns[0]
        while not idle():
            await asyncio.sleep(0.005)

    run(script)
