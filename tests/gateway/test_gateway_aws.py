"""AWS identities: when credentials are fetched, how long they serve, and what is said when there are none."""

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from ostiary.core.providers import BedrockSettings
from ostiary.core.secret import Secret
from ostiary.fake.aws_identity import ACCESS_KEY, EXTERNAL_ID, ROLE, SECRET_KEY
from ostiary.gateway.providers import aws
from ostiary.gateway.providers.adapter import AdapterError
from ostiary.gateway.providers.aws import BotocoreSource, Credentials, CredentialsError, Identities, Identity
from tests.support.fake_provider import FakeProvider, fake_provider

REGION = "us-east-1"
STATIC: dict[str, Any] = {"access_key": Secret(ACCESS_KEY), "access_key_secret": Secret(SECRET_KEY)}


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


class Scripted:
    """Gives credentials that are valid for `seconds` (None: without an end), or fails; `gate` holds it up."""

    hint = "scripted"

    def __init__(self, clock: Clock, seconds: float | None = 3600.0, *, lasting: bool = False) -> None:
        self.clock = clock
        self.seconds = seconds
        self.lasting = lasting
        self.fetched = 0
        self.error: Exception | None = None
        self.gate = threading.Event()
        self.gate.set()

    def fetch(self) -> Credentials:
        self.fetched += 1
        number = self.fetched
        assert self.gate.wait(20)
        if self.error is not None:
            raise self.error
        expires_at = None if self.seconds is None else self.clock.now + self.seconds
        return Credentials(f"AKIA{number:016}", Secret("secret"), Secret("token"), REGION, expires_at)


Case = tuple[Identity, Scripted, Clock]


def case(seconds: float | None = 3600.0, *, lasting: bool = False) -> Case:
    clock = Clock()
    source = Scripted(clock, seconds, lasting=lasting)
    return Identity(source, clock), source, clock


def run(script: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20):
            await script()

    asyncio.run(bounded())


async def key(identity: Identity) -> str:
    return (await identity.credentials()).access_key[-1]


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def test_a_crowd_of_requests_waits_for_one_fetch() -> None:
    identity, source, _ = case()
    source.gate.clear()

    async def script() -> None:
        crowd = [asyncio.create_task(key(identity)) for _ in range(50)]
        await until(lambda: source.fetched == 1)
        source.gate.set()
        assert await asyncio.gather(*crowd) == ["1"] * 50
        assert source.fetched == 1

    run(script)


def test_credentials_are_fetched_anew_beside_the_requests_before_they_end() -> None:
    identity, source, clock = case(3600)

    async def script() -> None:
        assert await key(identity) == "1"
        clock.now += 3600 - aws.AHEAD_SECONDS - 1
        assert await key(identity) == "1"
        assert source.fetched == 1
        clock.now += 1
        source.gate.clear()
        assert [await key(identity) for _ in range(5)] == ["1"] * 5, "nobody waits for the new ones"
        source.gate.set()
        await until(lambda: identity.hint.endswith("2"))
        assert await key(identity) == "2"
        assert source.fetched == 2

    run(script)


def test_short_lived_credentials_are_renewed_after_three_quarters_and_not_used_at_their_very_end() -> None:
    identity, source, clock = case(20)

    async def script() -> None:
        assert await key(identity) == "1"
        clock.now += 15
        source.gate.clear()
        assert await key(identity) == "1"
        clock.now += 3
        late = asyncio.create_task(key(identity))
        await until(lambda: source.fetched == 2)
        assert not late.done()
        source.gate.set()
        assert await late == "2"

    run(script)


def test_those_without_an_end_are_looked_up_again_but_static_ones_never() -> None:
    renewed, source, clock = case(None)
    static, lasting, _ = case(None, lasting=True)

    async def script() -> None:
        for identity in (renewed, static):
            assert await key(identity) == "1"
        clock.now += aws.RENEW_SECONDS
        for identity in (renewed, static):
            assert await key(identity) == "1"
        await until(lambda: renewed.hint.endswith("2"))
        assert source.fetched == 2
        assert lasting.fetched == 1

    run(script)


def test_a_failure_is_told_to_everybody_for_a_while_and_then_tried_again() -> None:
    identity, source, clock = case()
    source.error = CredentialsError(502, "because")

    async def script() -> None:
        for _ in range(5):
            with pytest.raises(AdapterError, match="because") as caught:
                await identity.credentials()
            assert caught.value.status == 502
        assert source.fetched == 1
        clock.now += aws.FAILURE_SECONDS
        source.error = None
        assert await key(identity) == "2"

    run(script)


def test_a_clock_that_is_set_back_does_not_prolong_a_failure() -> None:
    identity, source, clock = case()
    source.error = CredentialsError(502, "because")

    async def script() -> None:
        with pytest.raises(AdapterError):
            await identity.credentials()
        clock.now -= 86400
        source.error = None
        assert await key(identity) == "2"

    run(script)


def test_what_is_still_valid_serves_while_renewing_fails_and_not_longer() -> None:
    identity, source, clock = case(3600)

    async def script() -> None:
        assert await key(identity) == "1"
        source.error = CredentialsError(503, "unreachable")
        clock.now += 3500
        assert await key(identity) == "1"
        await until(lambda: source.fetched == 2)
        clock.now += 99
        with pytest.raises(AdapterError, match="unreachable"):
            await identity.credentials()
        source.error = None
        clock.now += aws.FAILURE_SECONDS
        assert (await identity.credentials()).expires_at == clock.now + 3600

    run(script)


def test_a_fetch_that_hangs_is_waited_for_so_long_and_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aws, "WAIT_SECONDS", 0.2)
    identity, source, clock = case()
    source.gate.clear()

    async def script() -> None:
        with pytest.raises(AdapterError, match="not there within") as caught:
            await identity.credentials()
        assert caught.value.status == 503
        clock.now += 60
        with pytest.raises(AdapterError, match="not there within"):
            await identity.credentials()
        clock.now -= 86400
        with pytest.raises(AdapterError, match="not there within"):
            await identity.credentials()
        assert source.fetched == 1
        source.gate.set()
        await until(lambda: identity.hint != "scripted")
        assert await key(identity) == "1", "what came late is taken"

    run(script)


def test_what_aws_refuses_is_fetched_anew_but_not_for_each_refusal() -> None:
    identity, source, clock = case()

    async def script() -> None:
        assert await key(identity) == "1"
        identity.distrust()
        assert await key(identity) == "1", "they are new"
        clock.now += aws.DISTRUST_SECONDS + 1
        identity.distrust()
        assert await key(identity) == "2"
        identity.distrust()
        assert await key(identity) == "2"
        assert source.fetched == 2

    run(script)


def test_another_event_loop_does_not_wait_for_the_fetch_of_one_that_has_ended() -> None:
    identity, source, _ = case()
    source.gate.clear()

    async def begun() -> None:
        task = asyncio.create_task(identity.credentials())
        await until(lambda: source.fetched == 1)
        task.cancel()

    async def again() -> None:
        source.gate.set()
        assert await key(identity) == "2"

    run(begun)
    run(again)


def test_an_identity_outlives_the_reload_and_the_number_kept_is_bounded() -> None:
    identities = Identities(limit=3)
    settings = BedrockSettings(region=REGION, role_arn=ROLE, **STATIC)
    first = identities.of(settings, REGION)
    assert identities.of(BedrockSettings(region=REGION, model="another", role_arn=ROLE, **STATIC), REGION) is first
    assert identities.of(settings, "eu-west-1") is not first
    for number in range(3):
        identities.of(BedrockSettings(region=REGION, external_id=str(number)), REGION)
    assert identities.of(settings, REGION) is not first


def test_nothing_shows_a_secret() -> None:
    identity = Identities().of(BedrockSettings(region=REGION, **STATIC), REGION)
    held = Credentials(ACCESS_KEY, Secret(SECRET_KEY), Secret("token"), REGION)
    for shown in (repr(identity), identity.hint, repr(held), str(held)):
        assert SECRET_KEY not in shown
        assert ACCESS_KEY not in shown


def test_what_no_header_can_carry_is_an_error_and_not_shown() -> None:
    odd = Credentials("AKIAODD\u20ac-and-long-enough", Secret(SECRET_KEY), Secret("t\u20ac"), REGION)

    async def script() -> None:
        with pytest.raises(AdapterError, match="could not be signed") as caught:
            await aws.signature(odd, "bedrock", "POST", "https://x.invalid/", {"Host": "x.invalid"}, b"")
        assert SECRET_KEY not in str(caught.value)

    run(script)


def test_a_machine_without_threads_left_is_an_error_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    identity, source, clock = case()

    class NoThread:
        def __init__(self, **_: Any) -> None: ...

        def start(self) -> None:
            raise RuntimeError("can't start new thread")

    async def script() -> None:
        with monkeypatch.context() as patched:
            patched.setattr(aws, "Thread", NoThread)
            with pytest.raises(AdapterError, match="RuntimeError"):
                await identity.credentials()
        clock.now += aws.FAILURE_SECONDS
        assert await key(identity) == "1"
        assert source.fetched == 1

    run(script)


# --- where they come from


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeProvider]:
    with fake_provider() as provider:
        yield provider


@pytest.fixture(autouse=True)
def no_aws_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the machine's own."""
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SESSION_TOKEN", "PROFILE", "REGION", "DEFAULT_REGION"):
        monkeypatch.delenv(f"AWS_{name}", raising=False)
    for name in ("CONFIG_FILE", "SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(f"AWS_{name}", "/dev/null")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture
def sts(fake: FakeProvider, monkeypatch: pytest.MonkeyPatch) -> FakeProvider:
    fake.client.delete("/fake/aws")
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", fake.url)
    return fake


def fetched(region: str = REGION, **settings: Any) -> Credentials:
    return BotocoreSource(BedrockSettings(**settings), region).fetch()


def refused(region: str = REGION, **settings: Any) -> tuple[int, str]:
    async def ask() -> tuple[int, str]:
        with pytest.raises(AdapterError) as caught:
            await Identity(BotocoreSource(BedrockSettings(**settings), region)).credentials()
        return caught.value.status, str(caught.value)

    status, said = asyncio.run(ask())
    assert SECRET_KEY not in said
    return status, said


def test_static_keys_are_used_as_they_are() -> None:
    found = fetched(**STATIC)
    assert (found.access_key, found.secret_key.reveal(), found.token.reveal()) == (ACCESS_KEY, SECRET_KEY, "")
    assert found.expires_at is None


def test_a_role_is_assumed_with_its_external_id(sts: FakeProvider) -> None:
    found = fetched(role_arn=ROLE, external_id=EXTERNAL_ID, **STATIC)
    assert found.access_key.startswith("ASIA")
    assert found.token
    assert found.expires_at == pytest.approx(time.time() + 3600, abs=60)
    assert found.access_key in sts.client.get("/fake/aws").json()["issued"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"external_id": "another", **STATIC}, "AccessDenied"),
        ({**STATIC}, "AccessDenied"),
        (
            {"external_id": EXTERNAL_ID, "access_key": Secret(ACCESS_KEY), "access_key_secret": Secret("x")},
            "SignatureDoesNotMatch",
        ),
        (
            {"external_id": EXTERNAL_ID, "access_key": Secret("AKIAX"), "access_key_secret": Secret("x")},
            "InvalidClientTokenId",
        ),
    ],
)
def test_a_role_that_is_refused_says_why_and_what_to_check(
    sts: FakeProvider,
    settings: dict[str, Any],
    said: str,
) -> None:
    status, text = refused(role_arn=ROLE, **settings)
    assert status == 502
    assert said in text
    assert ROLE in text
    assert "external id" in text


def test_an_sts_that_cannot_be_reached_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", "http://127.0.0.1:9")
    status, text = refused(role_arn=ROLE, **STATIC)
    assert status == 503
    assert "http://127.0.0.1:9" in text


def test_the_environment_comes_first_in_the_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAFROMENV")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "t")
    found = fetched()
    assert (found.access_key, found.secret_key.reveal(), found.token.reveal()) == ("AKIAFROMENV", "s", "t")


def test_one_of_two_keys_in_the_environment_is_an_error_that_names_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAFROMENV")
    status, text = refused()
    assert status == 503
    assert "AWS_SECRET_ACCESS_KEY" in text


def test_a_profile_of_a_shared_file_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    file = tmp_path / "credentials"
    file.write_text("[team]\naws_access_key_id = AKIAFROMFILE\naws_secret_access_key = s\nregion = eu-north-1\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    monkeypatch.setenv("AWS_PROFILE", "team")
    assert fetched().access_key == "AKIAFROMFILE"
    monkeypatch.setenv("AWS_PROFILE", "absent")
    status, text = refused()
    assert status == 503
    assert "absent" in text


def test_the_instance_gives_credentials_with_an_end_and_its_region(
    fake: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.client.put("/fake/aws/metadata", json={"seconds": 7200, "region": "ap-south-1"})
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "false")
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", fake.url)
    found = fetched(region="")
    assert found.region == "ap-south-1"
    assert found.expires_at == pytest.approx(time.time() + 7200, abs=60)
    assert found.token


def test_a_role_is_assumed_by_the_instance(sts: FakeProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "false")
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", sts.url)
    assert fetched(role_arn=ROLE, external_id=EXTERNAL_ID).access_key.startswith("ASIA")
    assert len(sts.client.get("/fake/aws").json()["issued"]) >= 2


def test_a_metadata_service_that_cannot_be_reached_ends_fast_and_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "false")
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://127.0.0.1:9")
    begun = time.monotonic()
    status, text = refused()
    assert time.monotonic() - begun < 10
    assert status == 503
    assert "http://127.0.0.1:9" in text
    assert "access_key" in text


def test_a_metadata_service_that_never_answers_ends_soon_and_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "false")
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", url)
        begun = time.monotonic()
        status, text = refused()
    assert time.monotonic() - begun < 10
    assert status == 503
    assert url in text


def test_a_metadata_service_that_is_turned_off_is_told() -> None:
    status, text = refused()
    assert status == 503
    assert "AWS_EC2_METADATA_DISABLED" in text


@pytest.mark.parametrize("name", ["AWS_REGION", "AWS_DEFAULT_REGION"])
def test_a_region_that_nothing_names_comes_from_the_environment(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "sa-east-1")
    assert fetched(region="", **STATIC).region == "sa-east-1"


def test_without_any_region_the_error_says_where_to_set_it() -> None:
    status, text = refused(region="", **STATIC)
    assert status == 503
    assert "AWS_REGION" in text
