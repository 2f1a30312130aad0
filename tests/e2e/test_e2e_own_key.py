"""Bringing one's own key: it goes up untouched, and the Ostiary token beside it never does."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.e2e.conftest import APIS, CHAT, DATA_PLANE, MESSAGES, RESPONSES, Api, Person, RawUpstream, error_of, refused
from tests.support.fake_provider import FakeProvider
from tests.support.raw_http import ask
from tests.support.server import PROVIDER_KEY, Server, open_directory


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_scheme_of_a_token_may_be_spelt_anyhow(person: Person, scheme: str) -> None:
    headers = {"Authorization": f"{scheme}  {person.token} ", "X-Api-Key": "ost_another"}
    assert ask(person.server.port, "POST", DATA_PLANE + CHAT.path(), headers, CHAT.body()).status == 200


@pytest.mark.parametrize("field", ["X-Ostiary-Token", "X-Coder-AI-Governance-Token"])
@pytest.mark.parametrize(
    ("api", "own"),
    [
        (CHAT, {"Authorization": "Bearer sk-my-very-own-key-0123456789"}),
        (RESPONSES, {"Authorization": "Bearer sk-my-very-own-key-0123456789", "Cookie": "a=b"}),
        (CHAT, {"api-key": "sk-my-very-own-key-0123456789"}),
        (MESSAGES, {"X-Api-Key": "sk-my-very-own-key-0123456789"}),
        (MESSAGES, {"authorization": "Bearer sk-my-very-own-key-0123456789"}),
    ],
)
def test_ones_own_key_goes_up_untouched_and_the_token_does_not(
    guest: Person, upstream: RawUpstream, field: str, api: Api, own: dict[str, str]
) -> None:
    name = api.raw
    with guest.connect() as connection:
        connection.request("POST", DATA_PLANE + api.path(name), {field: guest.token, **own}, api.body())
        with upstream.request() as request:
            request.answer()
        answer = connection.answer()
    for known, value in own.items():
        assert (known, value) in request.headers
    assert guest.token.encode() not in request.raw
    assert PROVIDER_KEY.encode() not in request.raw
    record = guest.server.interception(answer.interception_id)
    assert record["initiator"]["username"] == guest.username
    assert (record["credential_kind"], record["credential_hint"]) == ("byok", "sk-m...6789")


def test_ones_own_key_goes_up_on_passthrough_too(guest: Person, upstream: RawUpstream) -> None:
    headers = {"X-Ostiary-Token": guest.token, "Authorization": "Bearer sk-own-0123456789"}
    with guest.connect() as connection:
        connection.request("GET", f"{DATA_PLANE}/raw/v1/models", headers)
        with upstream.request() as request:
            request.answer()
        assert connection.answer().status == 200
    assert request.header("authorization") == "Bearer sk-own-0123456789"
    assert request.header("content-length") is None
    assert guest.token.encode() not in request.raw


@pytest.mark.parametrize("api", APIS)
def test_a_token_beside_no_key_of_ones_own(person: Person, fake: FakeProvider, api: Api) -> None:
    with refused(person.server, fake, "no_own_credential"):
        answer = ask(person.server.port, "POST", DATA_PLANE + api.path(), {"X-Ostiary-Token": person.token}, api.body())
    assert answer.status == 401
    assert "your own provider credential is expected too" in error_of(answer, api)["message"]


def test_no_key_of_ones_own_is_told_before_the_body_is_read(person: Person, fake: FakeProvider) -> None:
    with refused(person.server, fake, "no_own_credential"), person.connect() as connection:
        headers = {"X-Ostiary-Token": person.token, "Content-Length": "1000000"}
        connection.send(connection.head("POST", DATA_PLANE + CHAT.path(), headers))
        assert connection.answer().status == 401


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("field", ["Authorization", "X-Api-Key"])
def test_the_token_itself_is_no_key_of_ones_own(person: Person, fake: FakeProvider, api: Api, field: str) -> None:
    """A client that sends its Ostiary token in both places must not hand it to the provider."""
    again = f"Bearer {person.token}" if field == "Authorization" else person.token
    headers = {"X-Ostiary-Token": person.token, field: again}
    with refused(person.server, fake, "no_own_credential"):
        assert ask(person.server.port, "POST", DATA_PLANE + api.path(), headers, api.body()).status == 401


@pytest.mark.parametrize(
    "headers",
    [
        {"X-Api-Key": "sk-own-0123456789", "Authorization": "Bearer TOKEN"},
        {"X-Api-Key": "TOKEN", "Authorization": "Bearer sk-own-0123456789"},
        {"X-Api-Key": "sk-own-0123456789", "Api-Key": "TOKEN", "Cookie": "token=TOKEN"},
    ],
)
def test_the_token_stays_here_though_it_stands_beside_ones_own_key(
    guest: Person, upstream: RawUpstream, headers: dict[str, str]
) -> None:
    sent = {name: value.replace("TOKEN", guest.token) for name, value in headers.items()}
    with guest.connect() as connection:
        connection.request(
            "POST", DATA_PLANE + MESSAGES.path("raw-claude"), {"X-Ostiary-Token": guest.token, **sent}, MESSAGES.body()
        )
        with upstream.request() as request:
            request.answer()
        connection.answer()
    assert guest.token.encode() not in request.raw
    assert b"sk-own-0123456789" in request.raw


# --- subscriptions


def token_like(begin: str) -> str:
    return begin + "".join(chr(97 + number % 26) for number in range(80)) + "-Z_z"


CLAUDE_CODE = {
    "Authorization": f"Bearer {token_like('sk-ant-oat01-')}",
    "anthropic-beta": "claude-code-20250219,oauth-2025-04-20,interleaved-thinking-2025-05-14",
    "anthropic-version": "2023-06-01",
    "anthropic-dangerous-direct-browser-access": "true",
    "User-Agent": "claude-cli/2.1.0 (external, cli)",
    "X-App": "cli",
}
CODEX = {
    "Authorization": f"Bearer {token_like('eyJhbGciOiJSUzI1NiJ9.')}",
    "chatgpt-account-id": "0f8fad5b-d9cb-469f-a165-70867728950e",
    "OpenAI-Beta": "responses=experimental",
    "originator": "codex_cli_rs",
    "session_id": "01a1fc6c-1d72-7001-b06f-8347b89d6134",
    "User-Agent": "codex_cli_rs/0.160.0 (Linux 6.8; x86_64) xterm",
}
CLAUDE_BODY = (
    b'{"model":"claude-sonnet-4-5","max_tokens":9,"metadata":{"user_id":"user_1_account_2_session_3"},'
    b'"system":[{"type":"text","text":"You are Claude Code, Anthropic\'s official CLI for Claude."}],'
    b'"thinking":{"type":"adaptive"},"tool_choice":{"type":"auto"},"messages":[{"role":"user","content":"hi"}]}'
)
CODEX_BODY = (
    b'{"model":"gpt-5.3-codex","instructions":"You are Codex.","store":false,"stream":false,'
    b'"include":["reasoning.encrypted_content"],"input":[{"role":"user","content":"hi"}],"prompt_cache_key":"k"}'
)


@pytest.mark.parametrize(
    ("api", "headers", "body", "hint"),
    [
        (MESSAGES, CLAUDE_CODE, CLAUDE_BODY, "sk-a...-Z_z"),
        (RESPONSES, CODEX, CODEX_BODY, "eyJh...-Z_z"),
    ],
    ids=["claude", "chatgpt"],
)
def test_a_subscription_passes_untouched(
    guest: Person, upstream: RawUpstream, api: Api, headers: dict[str, str], body: bytes, hint: str
) -> None:
    with guest.connect() as connection:
        path = DATA_PLANE + api.path(api.raw)
        connection.request("POST", path, {"X-Ostiary-Token": guest.token, **headers}, body)
        with upstream.request() as request:
            request.answer()
        answer = connection.answer()
    assert request.body == body
    sent = [field for field in request.headers if field[0] not in ("Host", "Content-Length")]
    assert sent == list(headers.items())  # all of them, in their order and spelling, and nothing beside
    record = guest.server.interception(answer.interception_id)
    assert (record["credential_kind"], record["credential_hint"]) == ("byok", hint)
    assert record["client"] == ("Claude Code" if api is MESSAGES else "Codex")
    credential = headers["Authorization"].removeprefix("Bearer ")
    assert credential not in guest.server.log.read_text()


# --- what is one's own concerns nobody else


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_a_provider_without_keys_serves_who_brings_one(person: Person, fake: FakeProvider, provider: str) -> None:
    api = MESSAGES if provider == "anthropic" else CHAT
    with person.server.provider(provider, fake.url if api is MESSAGES else f"{fake.url}/v1", api_keys=[]) as name:
        own = {"X-Ostiary-Token": person.token, "Authorization": "Bearer sk-my-own-0123456789"}
        answer = ask(person.server.port, "POST", DATA_PLANE + api.path(name), own, api.body())
        assert answer.status == 200
        record = person.server.interception(answer.interception_id)
        assert (record["credential_kind"], record["credential_hint"]) == ("byok", "sk-m...6789")
        without = person.call(api.path(name), api.body())
        assert without.status == 502
        assert "X-Ostiary-Token" in error_of(without, api)["message"]


@pytest.fixture(scope="module")
def ordinary(fake: FakeProvider) -> Iterator[Server]:
    """A server as it comes: with circuit breakers."""
    with open_directory() as directory:
        server = Server(directory, fake, "--workers", "2").start()
        yield server
        assert server.stop() == 0, server.tail()


@pytest.mark.parametrize("api", [CHAT, MESSAGES], ids=["openai", "anthropic"])
def test_one_persons_exhausted_key_and_forbidden_model_change_nothing_for_others(
    ordinary: Server, fake: FakeProvider, api: Api
) -> None:
    troubled = Person(ordinary, "troubled", ordinary.new_token("troubled"))
    others = [Person(ordinary, f"other-{number}", ordinary.new_token(f"other-{number}")) for number in range(4)]
    path = DATA_PLANE + api.path()
    owned = [
        *(f"sk-{what}-{api.provider}-own-0123456789" for what in ("quota", "limited", "revoked", "forbidden")),
        f"sk-unpaid-{api.provider}-own-0123456789",
    ]
    fake.script_key(owned[-1], "status=402 code=insufficient_credits")
    refusals = {429, 401, 403, 402}

    def trouble(number: int) -> int:
        """By keys of their own that are used up, revoked or unpaid; and by the gateway's for a model that is forbidden."""
        if number % 6 == 5:
            return troubled.call(api.path(), api.body(), {"X-Fake": "status=403"}).status
        own = {"X-Ostiary-Token": troubled.token, "Authorization": f"Bearer {owned[number % 6]}"}
        return ask(ordinary.port, "POST", path, own, api.body()).status

    def work(number: int) -> tuple[int, bool]:
        answer = others[number % len(others)].call(api.path(), api.body(stream=bool(number % 2)))
        return answer.status, answer.complete

    with ThreadPoolExecutor(16) as threads:
        troubles = [threads.submit(trouble, number) for number in range(60)]
        works = [threads.submit(work, number) for number in range(100)]
        assert {one.result() for one in troubles} == refusals
        assert {one.result() for one in works} == {(200, True)}
    assert {work(number) for number in range(12)} == {(200, True)}
    of = {"provider": api.provider}
    assert ordinary.metric("ostiary_key_pool_state", state="usable", **of) == 1
    for counted in ("key_pool_state_transitions", "key_pool_exhaustions", "circuit_breaker_trips"):
        assert ordinary.metric(f"ostiary_{counted}_total", **of) == 0, counted
