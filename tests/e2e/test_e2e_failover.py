"""Keys that are limited, refused or used up: as long as one is left no client notices, and no key is lost for good."""

import os
import subprocess
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from typing import Any, NamedTuple

import pytest

from tests.e2e.conftest import CHAT, MESSAGES, RESPONSES, Api, Person, key_states, masked
from tests.support.chaos import chaos
from tests.support.fake_provider import FakeProvider
from tests.support.raw_http import Answer
from tests.support.server import OSTIARY, OWNER_TOKEN, StartServer, eventually

COUNT_TOKENS = b'{"model":"test-model","messages":[{"role":"user","content":"count"}]}'
EMBEDDINGS = b'{"model":"test-model","input":"embed this"}'


class Pool(NamedTuple):
    """A provider of a test's own, and a person who uses it."""

    person: Person
    fake: FakeProvider
    name: str
    kind: str
    keys: tuple[str, ...]
    begin: int
    """Of the fake provider's ledger."""

    def script(self, number: int, control: str, times: int = 0) -> None:
        self.fake.script_key(self.keys[number], control, times)

    def call(self, path: str, body: bytes = b"", *, method: str = "POST", **headers: str) -> Answer:
        """`path` is below the provider's name."""
        return self.person.call(f"/{self.name}{path}", body, headers, method=method)

    def ask(self, api: Api = CHAT, **more: Any) -> Answer:
        return self.person.call(api.path(self.name), api.body(**more))

    def entries(self) -> list[dict[str, Any]]:
        """What reached the fake provider with one of these keys, in order; `key` is its number."""
        numbers = {sha256(key.encode()).hexdigest(): number for number, key in enumerate(self.keys)}
        came = self.fake.requests(after=self.begin - 1, limit=10_000)["requests"]
        return [one | {"key": numbers[one["key_sha256"]]} for one in came if one["key_sha256"] in numbers]

    def tried(self) -> list[int]:
        """The keys that were used, in order."""
        return [entry["key"] for entry in self.entries()]

    def states(self) -> list[tuple[str, str, str]]:
        return key_states(self.person.server, self.name)

    def record(self, answer: Answer) -> dict[str, Any]:
        return self.person.server.interception(answer.interception_id)


@pytest.fixture
def pool(request: pytest.FixtureRequest, person: Person, fake: FakeProvider) -> Iterator[Pool]:
    """Three keys, by `indirect` of another kind or number: `(kind, number)`."""
    kind, number = getattr(request, "param", ("openai", 3))
    keys = tuple(f"sk-{uuid.uuid4().hex}-{n}" for n in range(number))
    base_url = fake.url if kind == "anthropic" else f"{fake.url}/v1"
    with person.server.provider(kind, base_url, *keys) as name:
        yield Pool(person, fake, name, kind, keys, fake.requests(limit=0)["count"])
    for key in keys:
        fake.script_key(key, "")


claude = pytest.mark.parametrize("pool", [("anthropic", 3)], indirect=True)
pairs = pytest.mark.parametrize("pool", [("openai", 2)], indirect=True)
alone = pytest.mark.parametrize("pool", [("openai", 1)], indirect=True)


def passed_over(pool: Pool, key: int, ask: Callable[[], Answer]) -> None:
    """No worker tries it: the one that has found out knows at once, the others hear of it a moment later."""

    def by_all() -> bool:
        begun = len(pool.tried())
        assert {ask().status for _ in range(12)} == {200}
        return key not in pool.tried()[begun:]

    eventually(by_all)


# --- nobody notices


def openai_calls(pool: Pool, number: int) -> Answer:
    match number % 6:
        case 0:
            return pool.ask(CHAT)
        case 1:
            return pool.ask(CHAT, stream=True)
        case 2:
            return pool.ask(RESPONSES, stream=True)
        case 3:
            return pool.call("/v1/models", method="GET")
        case 4:
            return pool.call("/v1/embeddings", EMBEDDINGS)
        case _:
            return pool.call("/v1/audio/speech", b'{"model":"test-model","input":"say it","voice":"a"}')


def anthropic_calls(pool: Pool, number: int) -> Answer:
    match number % 4:
        case 0:
            return pool.ask(MESSAGES)
        case 1:
            return pool.ask(MESSAGES, stream=True)
        case 2:
            return pool.call("/v1/messages/count_tokens", COUNT_TOKENS)
        case _:
            return pool.call("/v1/models", method="GET")


def all_served(pool: Pool, count: int) -> None:
    calls = anthropic_calls if pool.kind == "anthropic" else openai_calls
    with ThreadPoolExecutor(12) as threads:
        answers = list(threads.map(lambda number: calls(pool, number), range(count)))
    assert Counter((answer.status, answer.complete) for answer in answers) == {(200, True): count}


@pytest.mark.parametrize("pool", [("openai", 3), ("anthropic", 3)], indirect=True)
def test_no_client_sees_an_error_while_one_key_is_revoked_and_one_limited(pool: Pool) -> None:
    pool.script(0, "status=401")
    pool.script(1, "status=429 retry-after=600")
    all_served(pool, 120)
    used = Counter(pool.tried())
    assert used[2] == 120
    # each worker may have twelve on the way before it knows, and for the limited key that is so for each model or route
    assert 0 < used[0] <= 24
    assert 0 < used[1] <= 48
    before = pool.tried()
    all_served(pool, 24)
    assert pool.tried()[len(before) :] == [2] * 24
    eventually(lambda: [state for state, _, _ in pool.states()] == ["suspect", "cooling", "usable"])
    gauge = pool.person.server.metric
    for state in ("usable", "cooling", "suspect"):
        eventually(lambda state=state: gauge("ostiary_key_pool_state", provider=pool.name, state=state) == 1)  # type: ignore[misc]
    # by each worker once at most
    assert 1 <= gauge("ostiary_key_pool_state_transitions_total", provider=pool.name, reason="refused") <= 2
    assert gauge("ostiary_key_pool_exhaustions_total", provider=pool.name) == 0
    # the calls that failed over, and no other, took more than one attempt
    histogram = "ostiary_key_pool_failover_attempts"
    one, all_of_them = (gauge(f"{histogram}_bucket", provider=pool.name, le=le) for le in ("1.0", "+Inf"))
    assert 0 < all_of_them - one <= 48


@chaos
def test_a_revoked_key_is_back_within_its_back_off_after_it_is_restored(pool: Pool) -> None:
    """60 s; nothing is restarted, nothing is reloaded."""
    server = pool.person.server
    pool.script(0, "status=401")
    pool.script(1, "status=429 retry-after=1")
    all_served(pool, 24)
    refused = time.monotonic()
    workers = server.children("worker")
    revision = pool.record(pool.ask())["revision"]
    pool.script(0, "")
    known = pool.tried().count(0)

    def back() -> bool:
        assert pool.ask().status == 200
        return pool.tried().count(0) > known

    eventually(back, within=75, every=0.5, what="the key is used again")
    assert 50 < time.monotonic() - refused < 75
    answer = pool.ask()
    assert pool.record(answer)["credential_hint"] == masked(pool.keys[0])
    assert pool.record(answer)["revision"] == revision
    assert server.children("worker") == workers
    assert pool.states()[0][:2] == ("usable", "recovered")


# --- how long a key is left alone


@pairs
def test_a_limited_key_is_back_after_the_time_the_provider_named(pool: Pool) -> None:
    """And no later: some time at least, on a machine that may stall for longer."""

    def back() -> bool:
        assert pool.ask().status == 200
        return pool.tried()[-1] == 0

    def seconds() -> float:
        """For which it was left alone after it was named, as the calls that got another one show."""
        begun = len(pool.entries())
        pool.script(0, "status=429 retry-after=1", times=1)
        assert pool.ask().status == 200
        assert pool.tried()[begun:] == [0, 1]
        eventually(back)
        entries = pool.entries()[begun:]
        assert entries[-1]["at"] - entries[0]["at"] >= 1.0
        instead = [entry["at"] for entry in entries if entry["key"] == 1]
        return float(instead[-1] - entries[0]["at"])

    assert any(seconds() < 2.0 for _ in range(10))


@pairs
def test_a_limit_concerns_one_model_only(pool: Pool) -> None:
    pool.script(0, "status=429 retry-after=600", times=1)
    assert pool.ask().status == 200
    assert pool.ask(model="another-model").status == 200
    assert pool.tried() == [0, 1, 0]
    passed_over(pool, 0, pool.ask)
    eventually(lambda: pool.states()[0] == ("cooling", "rate_limited", "test-model"))


@pairs
@pytest.mark.parametrize(
    "control", ["status=429 code=insufficient_quota error-type=insufficient_quota", "status=402 retry-after=600"]
)
def test_a_key_without_quota_is_left_alone_for_every_model(pool: Pool, control: str) -> None:
    pool.script(0, control, times=1)
    assert pool.ask().status == 200
    assert pool.tried() == [0, 1]
    passed_over(pool, 0, lambda: pool.ask(RESPONSES, model="another-model"))
    passed_over(pool, 0, lambda: pool.call("/v1/embeddings", EMBEDDINGS))
    eventually(lambda: pool.states()[0] == ("cooling", "quota", ""))


@pairs
@pytest.mark.parametrize("status", [400, 403])
def test_an_answer_that_names_the_key_counts_whatever_its_status(pool: Pool, status: int) -> None:
    pool.script(0, f"status={status} code=invalid_api_key")
    assert pool.ask().status == 200
    assert pool.tried() == [0, 1]
    passed_over(pool, 0, pool.ask)
    eventually(lambda: pool.states()[0][:2] == ("suspect", "refused"))


@pairs
@pytest.mark.parametrize(
    "control", ["status=403", "status=400", "status=404", "status=413", "status=500", "status=529"]
)
def test_what_is_not_about_the_key_is_relayed_and_marks_nothing(pool: Pool, control: str) -> None:
    pool.script(0, control, times=1)
    assert pool.ask().status == int(control.removeprefix("status="))
    assert pool.ask().status == 200
    assert pool.tried() == [0, 0]
    assert [state for state, _, _ in pool.states()] == ["usable", "usable"]


# --- what is sent again


@pytest.mark.parametrize("api", [CHAT, RESPONSES], ids=["chat", "responses"])
@pytest.mark.parametrize("stream", [False, True])
def test_every_attempt_sends_the_same_bytes(pool: Pool, api: Api, stream: bool) -> None:
    pool.script(0, "status=401")
    pool.script(1, "status=429")
    body = api.body("long enough " * 6000, stream=stream).replace(b", ", b",\t ")
    answer = pool.call(api.route, body)
    assert (answer.status, answer.complete) == (200, True)
    entries = pool.entries()
    assert [entry["key"] for entry in entries] == [0, 1, 2]
    assert len({(entry["path"], entry["body_bytes"], entry["body_sha256"]) for entry in entries}) == 1
    spliced = api is CHAT and stream  # a chat stream is asked for its usage
    if not spliced:
        assert entries[0]["body_sha256"] == sha256(body).hexdigest()
    heads = [[field for field in entry["headers"] if field[0].lower() != "authorization"] for entry in entries]
    assert heads[0] == heads[1] == heads[2]
    assert len(pool.record(answer)["trace"].get("edits", [])) == spliced


@claude
@pytest.mark.parametrize(("method", "path"), [("GET", "/v1/models?limit=3"), ("POST", "/v1/messages/count_tokens")])
def test_passthrough_fails_over_with_the_same_bytes(pool: Pool, method: str, path: str) -> None:
    pool.script(0, "status=401")
    pool.script(1, "status=429")
    body = COUNT_TOKENS if method == "POST" else b""
    assert pool.call(path, body, method=method).status == 200
    entries = pool.entries()
    assert [entry["key"] for entry in entries] == [0, 1, 2]
    assert {(entry["method"], entry["query"]) for entry in entries} == {(method, path.partition("?")[2])}
    if body:
        assert {entry["body_sha256"] for entry in entries} == {sha256(body).hexdigest()}


@pairs
def test_an_upload_is_not_sent_twice_but_the_next_one_gets_another_key(pool: Pool) -> None:
    pool.script(0, "status=401")
    form = (
        b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n'
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n' + bytes(200_000) + b"\r\n--b--\r\n"
    )
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    assert pool.call("/v1/audio/transcriptions", form, **headers).status == 401
    eventually(lambda: pool.states()[0][0] == "suspect")
    assert pool.call("/v1/audio/transcriptions", form, **headers).status == 200
    assert pool.tried() == [0, 1]


@pairs
@pytest.mark.parametrize("control", ["status=429 cut=mid-body", "status=401 reset cut=mid-body"])
def test_an_error_about_the_key_that_is_cut_fails_over_too(pool: Pool, control: str) -> None:
    pool.script(0, control)
    assert pool.ask().status == 200
    assert pool.tried() == [0, 1]
    passed_over(pool, 0, pool.ask)


@pairs
@pytest.mark.parametrize("control", ["cut=mid-body after=3", "error-after=3", "cut=mid-chunk", "reset cut=mid-body"])
def test_after_the_first_byte_there_is_no_other_attempt(pool: Pool, control: str) -> None:
    body = CHAT.body("a stream that does not get far " * 4, stream=True)
    answer = pool.call(CHAT.route, body, **{"X-Fake": control})
    assert answer.status == 200
    assert answer.complete == control.startswith("error")
    assert b"data: " in answer.body
    record = pool.record(answer)
    assert record["outcome"] == "upstream_error"
    assert len(record["trace"]["attempts"]) == 1
    assert pool.tried() == [0]


@alone
def test_a_cut_error_of_the_only_key_is_cut_for_the_client_too(pool: Pool) -> None:
    pool.script(0, "status=429 cut=mid-body")
    answer = pool.ask()
    assert (answer.status, answer.complete) == (429, False)
    record = pool.record(answer)
    assert (record["outcome"], record["status_code"]) == ("upstream_error", 429)


# --- an upstream that fails is asked once, unless more is wanted


@pairs
@pytest.mark.parametrize("stream", [False, True])
def test_a_server_error_is_neither_repeated_nor_a_matter_of_keys(pool: Pool, stream: bool) -> None:
    pool.script(0, "status=503", times=1)
    answer = pool.ask(stream=stream)
    assert (answer.status, pool.tried()) == (503, [0])
    assert len(pool.record(answer)["trace"]["attempts"]) == 1


def test_with_retry_5xx_a_server_error_is_repeated_with_the_same_bytes(
    start_server: StartServer, fake: FakeProvider
) -> None:
    server = start_server(fake, "--workers", "1", OSTIARY_RETRY_5XX="2")
    person = Person(server, "ann", server.new_token("ann"))
    key = f"sk-{uuid.uuid4().hex}"
    with server.provider("openai", f"{fake.url}/v1", key) as name:
        pool = Pool(person, fake, name, "openai", (key,), fake.requests(limit=0)["count"])
        for failures, status, attempts in ((2, 200, 3), (3, 503, 3)):
            before = len(pool.entries())
            pool.script(0, "status=503", times=failures)
            answer = pool.ask(stream=True)
            assert (answer.status, answer.complete) == (status, True)
            entries = pool.entries()[before:]
            assert len(entries) == attempts
            assert len({entry["body_sha256"] for entry in entries}) == 1
            tried = pool.record(answer)["trace"]["attempts"]
            assert [one["status"] for one in tried] == [503, 503, status]
        cut = pool.call(CHAT.route, CHAT.body("cut in the middle " * 9, stream=True), **{"X-Fake": "cut=mid-body"})
        assert (cut.status, cut.complete) == (200, False)
        assert len(pool.record(cut)["trace"]["attempts"]) == 1


# --- what is told of it


def test_the_record_tells_which_keys_were_tried_and_why_others_were_not(pool: Pool) -> None:
    pool.script(0, "status=401")
    pool.script(1, "status=429 retry-after=600")
    first, second, third = (masked(key) for key in pool.keys)
    record = pool.record(pool.ask())
    assert (record["outcome"], record["status_code"]) == ("completed", 200)
    assert (record["credential_kind"], record["credential_hint"]) == ("centralized", third)
    attempts = record["trace"]["attempts"]
    assert [(one["key_hint"], one["status"]) for one in attempts] == [(first, 401), (second, 429), (third, 200)]
    assert sorted(one["at_us"] for one in attempts) == [one["at_us"] for one in attempts]
    (usage,) = record["token_usages"]
    assert usage["output_tokens"] > 0

    def passed_over() -> Any:
        """By the worker that had it first, or by the one that was told."""
        later = pool.record(pool.ask())
        assert len(later["trace"]["attempts"]) == 1
        return later["trace"]["candidates"]

    assert passed_over() == [[first, "refused"], [second, "rate_limited"], [third, ""]]


def test_an_admin_sees_what_has_become_of_each_key(pool: Pool) -> None:
    pool.script(0, "status=401")
    pool.script(1, "status=429 retry-after=600")
    assert pool.ask().status == 200
    eventually(lambda: [state for state, _, _ in pool.states()] == ["suspect", "cooling", "usable"])
    done = subprocess.run(
        [*OSTIARY, "providers", "keys", pool.name],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"OSTIARY_URL": pool.person.server.url, "OSTIARY_TOKEN": OWNER_TOKEN},
        check=True,
    )
    lines = [line.split() for line in done.stdout.splitlines()[1:]]
    assert [line[1:3] for line in lines] == [
        [masked(key), state] for key, state in zip(pool.keys, ("suspect", "cooling", "usable"), strict=True)
    ]
    assert "rate limited for test-model" in done.stdout
    assert not any(key in done.stdout + done.stderr for key in pool.keys)


def test_state_outlives_a_change_of_the_provider_that_keeps_the_key(pool: Pool) -> None:
    server = pool.person.server
    pool.script(0, "status=401")
    pool.script(1, "status=429 retry-after=600")
    before = pool.record(pool.ask())["revision"]
    known = Counter(pool.tried())
    shown = server.get(f"/api/v2/ai/providers/{pool.name}")["api_keys"]
    added = f"sk-{uuid.uuid4().hex}-added"
    kept = [{"id": shown[1]["id"]}, {"id": shown[0]["id"]}, {"id": shown[2]["id"]}, {"api_key": added}]
    assert server.owner.patch(f"/api/v2/ai/providers/{pool.name}", json={"api_keys": kept}).status_code == 200
    eventually(lambda: pool.record(pool.ask())["revision"] > before)
    for _ in range(8):
        assert pool.ask().status == 200
    used = Counter(pool.tried())
    assert (used[0], used[1]) == (known[0], known[1])


# --- spread


def test_spread_keeps_a_session_on_its_key_and_uses_them_all(person: Person, fake: FakeProvider) -> None:
    keys = tuple(f"sk-{uuid.uuid4().hex}-{n}" for n in range(3))
    # their ids and the keys' are random: that 40 sessions leave one of three keys out happens once in four million runs
    sessions = [str(uuid.uuid4()) for _ in range(40)]
    settings = {"settings": {"selection": "spread"}}
    with person.server.provider("anthropic", fake.url, *keys, **settings) as name:
        pool = Pool(person, fake, name, "anthropic", keys, fake.requests(limit=0)["count"])

        def used(session: str) -> int:
            """By whichever worker takes it."""
            headers = {"User-Agent": "claude-cli/2.0", "X-Claude-Code-Session-Id": session, "X-Fake-Mark": session}
            assert person.call(MESSAGES.path(name), MESSAGES.body(), headers).status == 200
            return next(entry["key"] for entry in reversed(pool.entries()) if entry["mark"] == session)

        first = {session: used(session) for session in sessions}
        assert set(first.values()) == {0, 1, 2}
        for _ in range(3):
            assert {session: used(session) for session in sessions} == first
        # a key that is limited loses its sessions, which stay together on what they got instead
        pool.script(0, "status=429 retry-after=600")
        moved = {session: used(session) for session in sessions}
        assert 0 not in moved.values()
        assert {s: key for s, key in moved.items() if first[s] != 0} == {s: k for s, k in first.items() if k != 0}
        assert {session: used(session) for session in sessions} == moved
