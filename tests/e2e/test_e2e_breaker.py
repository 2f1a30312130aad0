"""An upstream that keeps failing is left alone, for everybody and by every worker, and tried again by one request."""

import secrets
import select
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, NamedTuple

import anthropic
import openai
import pytest

from ostiary.fake.aws_identity import ACCESS_KEY, SECRET_KEY
from tests.e2e.conftest import APIS, CHAT, DATA_PLANE, MESSAGES, RESPONSES, Api, Person, RawUpstream, error_of
from tests.support.fake_provider import FakeProvider
from tests.support.raw_http import Answer, ask
from tests.support.server import Server, eventually, free_port, open_directory

SETTINGS = {
    "OSTIARY_CIRCUIT_BREAKER_FAILURE_THRESHOLD": "2",
    "OSTIARY_CIRCUIT_BREAKER_INTERVAL": "60s",
    "OSTIARY_CIRCUIT_BREAKER_MAX_REQUESTS": "1",
}
STATE, TRIPS, REJECTS = (f"ostiary_circuit_breaker_{name}" for name in ("state", "trips_total", "rejects_total"))
OWN = "sk-somebodys-own-0123456789"


class Breaker(NamedTuple):
    """Of one route and a model that nobody else asks for."""

    server: Server
    fake: FakeProvider
    people: tuple[Person, Person]
    api: Api
    provider: str
    model: str

    def ask(self, control: str = "", *, who: int = 0, own: str = "", model: str = "", **more: Any) -> Answer:
        """On a connection of its own, so that any worker may get it."""
        person = self.people[who]
        credentials = {"X-Ostiary-Token": person.token, "Authorization": f"Bearer {own}"} if own else person.bearer
        headers = {**credentials, "X-Fake-Mark": self.model} | ({"X-Fake": control} if control else {})
        body = self.api.body("long enough to be cut in the middle " * 4, model=model or self.model, **more)
        return ask(self.server.port, "POST", DATA_PLANE + self.api.path(self.provider), headers, body)

    @property
    def reached(self) -> int:
        """How many requests got through to the fake provider."""
        return len(self.fake.entries(self.model))

    def metric(self, name: str) -> float:
        return self.server.metric(name, provider=self.provider, endpoint=self.api.route, model=self.model)

    def fails(self, control: str = "", own: str = "") -> list[int]:
        """Let two people fail in turn, until the machine knows that it is open: so do its workers then.

        Two workers count for themselves at first, so it may take three failures, which is one more than the threshold.
        """
        statuses = [self.ask(control, who=who, own=own, stream=True).status for who in (0, 1, 0)]
        self.opened()
        return statuses[:2]

    def opened(self) -> None:
        """Or half-open already, where this machine has stalled."""
        eventually(lambda: self.server.metric(STATE, provider=self.provider, endpoint=self.api.route) > 0, what="open")

    def rejects(self, times: int, retry_after: int) -> Answer:
        """Whoever asks, by whichever worker, is turned away, and the upstream is not asked."""
        reached = self.reached
        answers = [self.ask(who=number % 2) for number in range(times)]
        assert [answer.status for answer in answers] == [503] * times
        assert all(1 <= int(answer.header("retry-after") or 0) <= retry_after for answer in answers)
        assert self.reached == reached
        return answers[-1]


def breaker(server: Server, fake: FakeProvider, api: Api, provider: str = "") -> Breaker:
    people = (
        Person(server, "ann", server.new_token("ann")),
        Person(server, "bob", server.new_token("bob")),
    )
    return Breaker(server, fake, people, api, provider or api.provider, f"model-{secrets.token_hex(6)}")


def running(fake: FakeProvider, timeout: str) -> Iterator[Server]:
    with open_directory() as directory:
        settings = {**SETTINGS, "OSTIARY_CIRCUIT_BREAKER_TIMEOUT": timeout}
        server = Server(directory, fake, "--workers", "2", **settings).start()
        yield server
        assert server.stop() == 0, server.tail()


@pytest.fixture(scope="module")
def patient(fake: FakeProvider) -> Iterator[Server]:
    """Its breakers stay open for longer than any test."""
    yield from running(fake, "60s")


@pytest.fixture(scope="module")
def hasty(fake: FakeProvider) -> Iterator[Server]:
    yield from running(fake, "1s")


# --- it opens


FAILURES = ["status=500", "status=503", "status=504", "status=529", "cut=before-head", "cut=mid-body", "error-after=3"]


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("control", FAILURES)
def test_failures_of_two_people_shut_everybody_out(patient: Server, fake: FakeProvider, api: Api, control: str) -> None:
    with patient.provider(api.provider, fake.url if api is MESSAGES else f"{fake.url}/v1") as name:
        one = breaker(patient, fake, api, name)
        one.fails(control)
        assert one.reached >= 2
        answer = one.rejects(6, 60)
        error = error_of(answer, api)
        assert "circuit breaker" in error["message"]
        if api is MESSAGES:
            assert error["type"] == "overloaded_error"
        else:
            assert (error["type"], error["code"]) == ("server_error", "service_unavailable")
        record = patient.interception(answer.interception_id)
        assert (record["outcome"], record["status_code"]) == ("rejected", 503)
        assert "attempts" not in record["trace"]
        model = {"provider": name, "endpoint": api.route}
        assert patient.metric(TRIPS, **model) == 1
        assert patient.metric(REJECTS, **model) in (6, 7)
        # others are not concerned: another model, another route
        assert one.ask(model="another-model").status == 200
        if api is CHAT:
            assert one._replace(api=RESPONSES).ask().status == 200


@pytest.mark.parametrize("api", [CHAT, MESSAGES], ids=["openai", "anthropic"])
def test_sdks_raise_what_they_raise_for_an_overload(patient: Server, fake: FakeProvider, api: Api) -> None:
    with patient.provider(api.provider, fake.url if api is MESSAGES else f"{fake.url}/v1") as name:
        one = breaker(patient, fake, api, name)
        one.fails("status=500")
        url, token = f"{patient.url}{DATA_PLANE}/{name}", one.people[0].token
        if api is MESSAGES:
            with (
                anthropic.Anthropic(base_url=url, api_key=token, max_retries=0) as claude,
                pytest.raises(anthropic.InternalServerError, match="circuit breaker") as refused,
            ):
                claude.messages.create(model=one.model, max_tokens=9, messages=[{"role": "user", "content": "x"}])
            assert refused.value.status_code == 503
        else:
            with (
                openai.OpenAI(base_url=f"{url}/v1", api_key=token, max_retries=0) as client,
                pytest.raises(openai.InternalServerError, match="circuit breaker") as caught,
            ):
                client.chat.completions.create(model=one.model, messages=[{"role": "user", "content": "x"}])
            assert caught.value.code == "service_unavailable"


def nowhere(kind: str) -> dict[str, Any]:
    settings = {"_type": "bedrock", "_version": 1, "region": "us-east-1", "model": "a-model", "small_fast_model": "a"}
    keys = {"access_key": ACCESS_KEY, "access_key_secret": SECRET_KEY}
    return {"api_keys": [], "settings": settings | keys} if kind == "bedrock" else {}


@pytest.mark.parametrize(
    ("kind", "api", "expected"),
    [
        ("openai", CHAT, "server_error"),
        ("anthropic", MESSAGES, "overloaded_error"),
        ("bedrock", MESSAGES, "api_error"),
    ],
)
def test_refused_connections_count_and_each_provider_has_its_shape(
    patient: Server, fake: FakeProvider, kind: str, api: Api, expected: str
) -> None:
    with patient.provider(kind, f"http://127.0.0.1:{free_port()}", **nowhere(kind)) as name:
        one = breaker(patient, fake, api, name)
        assert one.fails() == [502, 502]
        assert error_of(one.rejects(4, 60), api)["type"] == expected


@pytest.mark.parametrize("api", [CHAT, MESSAGES], ids=["openai", "anthropic"])
def test_a_limit_of_all_keys_counts_as_often_as_the_provider_says_it(
    patient: Server, fake: FakeProvider, api: Api
) -> None:
    with patient.provider(api.provider, fake.url if api is MESSAGES else f"{fake.url}/v1") as name:
        one = breaker(patient, fake, api, name)
        assert one.ask("status=429 retry-after=1").status == 429

        def opened() -> bool:
            one.ask("status=429 retry-after=1")
            return patient.metric(TRIPS, provider=name) >= 1

        eventually(opened)
        assert one.reached >= 2


@pytest.mark.parametrize("api", APIS)
def test_the_pools_own_refusals_do_not_open_a_breaker(patient: Server, fake: FakeProvider, api: Api) -> None:
    with patient.provider(api.provider, fake.url if api is MESSAGES else f"{fake.url}/v1") as name:
        one = breaker(patient, fake, api, name)
        assert one.ask("status=429 retry-after=600").status == 429
        eventually(lambda: patient.metric("ostiary_key_pool_state", provider=name, state="cooling") == 1)
        for _ in range(8):
            answer = one.ask()
            assert answer.status == 429
            assert int(answer.header("retry-after") or 0) > 500
        assert patient.metric(TRIPS, provider=name) == 0
        assert one.reached == 1


# --- it stays closed


@pytest.mark.parametrize("control", ["status=400", "status=404", "status=413", "status=422"])
def test_what_a_user_does_wrong_never_counts(patient: Server, fake: FakeProvider, control: str) -> None:
    one = breaker(patient, fake, CHAT)
    assert {one.ask(control).status for _ in range(8)} == {int(control.removeprefix("status="))}
    assert one.ask().status == 200
    assert one.metric(TRIPS) == 0


@pytest.mark.parametrize("control", ["status=401", "status=403", "status=429", "status=402"])
@pytest.mark.parametrize("provider", ["openai", "anthropic", "copilot"])
def test_what_ones_own_credential_is_refused_never_counts(
    patient: Server, fake: FakeProvider, provider: str, control: str
) -> None:
    api = MESSAGES if provider == "anthropic" else CHAT
    with ExitStack() as stack:
        name = stack.enter_context(patient.provider("copilot", fake.url, api_keys=[])) if provider == "copilot" else ""
        one = breaker(patient, fake, api._replace(route="/chat/completions") if name else api, name)
        assert {one.ask(control, own=OWN).status for _ in range(8)} == {int(control.removeprefix("status="))}
        assert one.ask(own=OWN).status == 200
        assert one.reached == 9
        if not name:
            assert one.ask(who=1).status == 200
            assert patient.metric("ostiary_key_pool_state", provider=provider, state="usable") == 1
        assert one.metric(TRIPS) == 0


def test_an_upstream_that_fails_for_ones_own_key_too_counts(patient: Server, fake: FakeProvider) -> None:
    with patient.provider("openai", f"{fake.url}/v1") as name:
        one = breaker(patient, fake, CHAT, name)
        assert one.fails("status=500", own=OWN) == [500, 500]
        one.rejects(4, 60)


def test_only_failures_in_a_row_count(patient: Server, fake: FakeProvider) -> None:
    """By one worker: each counts for itself until the breaker opens."""
    one = breaker(patient, fake, CHAT)
    with patient.client(one.people[0].token) as client:
        for number in range(10):
            headers = {"X-Fake": "status=500"} if number % 2 else {}
            answer = client.post(DATA_PLANE + CHAT.path(), content=CHAT.body(model=one.model), headers=headers)
            assert answer.status_code == (500 if number % 2 else 200)
    assert one.metric(TRIPS) == 0


# --- it is tried again


class HalfOpen(NamedTuple):
    """A breaker that was opened a moment ago, whose upstream is the test itself."""

    one: Breaker
    upstream: RawUpstream
    threads: ThreadPoolExecutor

    def trial(self) -> "Future[Answer]":
        """The first request that is let through again."""
        return self.threads.submit(lambda: eventually(self.let_through, what="a trial is let through"))

    def let_through(self) -> Answer | None:
        answer = self.one.ask()
        return None if answer.status == 503 else answer


@pytest.fixture(params=[CHAT, MESSAGES], ids=["openai", "anthropic"])
def half_open(
    request: pytest.FixtureRequest, hasty: Server, fake: FakeProvider, upstream: RawUpstream
) -> Iterator[HalfOpen]:
    api: Api = request.param
    base_url = upstream.url if api is MESSAGES else f"{upstream.url}/v1"
    with hasty.provider(api.provider, base_url) as name, ThreadPoolExecutor(4) as threads:
        one = breaker(hasty, fake, api, name)
        with one.people[0].connect() as connection:  # the same worker for both
            for person in one.people:
                path, body = DATA_PLANE + api.path(name), api.body(model=one.model)
                connection.request("POST", path, person.bearer, body)
                with upstream.request() as asked:
                    asked.answer(status="500 Down")
                assert connection.answer().status == 500
        one.opened()
        yield HalfOpen(one, upstream, threads)


def test_one_request_tries_it_and_its_success_lets_everybody_in(half_open: HalfOpen) -> None:
    one, upstream = half_open.one, half_open.upstream
    trial = half_open.trial()
    with upstream.request() as asked:
        # while it is under way nobody else is let through: nothing would answer
        one.rejects(6, 1)
        asked.answer()
    assert trial.result().status == 200
    gone_by = {"provider": one.provider, "endpoint": one.api.route}
    eventually(lambda: one.server.metric(STATE, **gone_by) == 0)
    for number in range(6):
        later = half_open.threads.submit(one.ask, who=number % 2)
        with upstream.request() as asked:
            asked.answer()
        assert later.result().status == 200
    assert one.server.metric(TRIPS, **gone_by) == 1


def test_a_trial_that_fails_shuts_it_again(half_open: HalfOpen) -> None:
    one, upstream = half_open.one, half_open.upstream
    trial = half_open.trial()
    with upstream.request() as asked:
        asked.answer(status="502 Still Down")
    assert trial.result().status == 502
    gone_by = {"provider": one.provider, "endpoint": one.api.route}
    eventually(lambda: one.server.metric(TRIPS, **gone_by) == 2)
    again = half_open.trial()
    with upstream.request() as asked:
        asked.answer()
    assert again.result().status == 200
    eventually(lambda: one.server.metric(STATE, **gone_by) == 0)


def test_a_trial_whose_client_leaves_says_nothing_and_the_next_one_tries(half_open: HalfOpen) -> None:
    one, upstream = half_open.one, half_open.upstream
    person = one.people[0]
    coming = half_open.threads.submit(upstream.accept)

    def leave() -> bool:
        """Whether the request of a client that leaves was the trial: it is not answered at once."""
        with person.connect() as connection:
            path, body = DATA_PLANE + one.api.path(one.provider), one.api.body(model=one.model)
            connection.request("POST", path, person.bearer, body)
            eventually(lambda: coming.done() or select.select([connection.socket], [], [], 0)[0])
            return coming.done()

    eventually(leave, what="a trial is let through")
    asked = coming.result()
    with asked.connection:
        assert asked.seconds_until_gone() < 15
    trial = half_open.trial()
    with upstream.request() as asked:
        asked.answer()
    assert trial.result().status == 200
    assert one.server.metric(TRIPS, provider=one.provider) == 1
