"""What the gateway adds to a request: the credential, who calls if that is asked for, nothing of its environment."""

from collections.abc import Iterator

import pytest

from tests.e2e.conftest import APIS, DATA_PLANE, MESSAGES, Api, Person, RawUpstream
from tests.support.fake_provider import FakeProvider
from tests.support.server import Server, open_directory

KEY = "sk-key-of-the-provider-0123456789"
MARK = "of-the-environment"
ENVIRONMENT = {
    "OPENAI_API_KEY": f"sk-{MARK}",
    "OPENAI_BASE_URL": f"http://{MARK}.invalid/v1",
    "OPENAI_ORG_ID": f"org-{MARK}",
    "OPENAI_ORGANIZATION": f"org-{MARK}",
    "OPENAI_PROJECT_ID": f"proj-{MARK}",
    "OPENAI_WEBHOOK_SECRET": f"whsec-{MARK}",
    "OPENAI_CUSTOM_HEADERS": f"X-Custom: {MARK}",
    "OPENAI_API_VERSION": MARK,
    "AZURE_OPENAI_API_KEY": f"az-{MARK}",
    "ANTHROPIC_API_KEY": f"sk-ant-{MARK}",
    "ANTHROPIC_AUTH_TOKEN": f"auth-{MARK}",
    "ANTHROPIC_BASE_URL": f"http://{MARK}.invalid",
    "ANTHROPIC_CUSTOM_HEADERS": f"X-Custom: {MARK}",
    "ANTHROPIC_BETAS": MARK,
    "ANTHROPIC_MODEL": MARK,
}
ACTOR = {
    "OSTIARY_SEND_ACTOR_HEADERS": "true",
    "OSTIARY_ACTOR_HEADER_USERNAME": "X-Team-User",
    "OSTIARY_ACTOR_HEADER_EMAIL": "X-AI-Bridge-Actor-Metadata-Email",
}
CLIENT = {
    "User-Agent": "an-agent/1.0",
    "anthropic-version": "2023-06-01",
    "OpenAI-Organization": "org-of-the-client",
    "x-stainless-lang": "python",
    "X-Odd": "kept  as it is",
}
POSING = {
    "X-AI-Bridge-Actor-ID": "somebody-else",
    "x-team-user": "somebody-else",
    "X-AI-Bridge-Actor-Metadata-Username": "somebody-else",
    "X-AI-BRIDGE-ACTOR-METADATA-EMAIL": "somebody-else",
    "X-AI-Bridge-Actor-Metadata-Role": "somebody-else",
}


@pytest.fixture(scope="module")
def zoe(fake: FakeProvider) -> Iterator[Person]:
    """On a server that tells who makes a call, in an environment that SDKs would read."""
    with open_directory() as directory:
        server = Server(directory, fake, "--workers", "1", **ENVIRONMENT, **ACTOR).start()
        yield Person(server, "zoe", server.new_token("zoe", email="zoë@example.com"))
        assert server.stop() == 0, server.tail()


def sent(
    person: Person, upstream: RawUpstream, api: Api, headers: dict[str, str], *, method: str = "POST"
) -> list[tuple[str, str]]:
    """The fields of a request as a provider gets them, but for `Host` and the framing."""
    base_url = upstream.url if api is MESSAGES else f"{upstream.url}/v1"
    with person.server.provider(api.provider, base_url, KEY) as name, person.connect() as connection:
        if method == "GET":
            connection.request("GET", f"{DATA_PLANE}/{name}/v1/models", headers)
        else:
            connection.request("POST", DATA_PLANE + api.path(name), headers, api.body())
        with upstream.request() as request:
            request.answer()
        assert connection.answer().status == 200
    assert MARK.encode() not in request.raw
    assert person.token.encode() not in request.raw
    return [field for field in request.headers if field[0] not in ("Host", "Content-Length")]


def actor(person: Person) -> list[tuple[str, str]]:
    (user,) = [user for user in person.server.get("/api/v2/users") if user["username"] == person.username]
    return [
        ("X-AI-Bridge-Actor-ID", user["id"]),
        ("X-Team-User", "zoe"),
        ("X-AI-Bridge-Actor-Metadata-Email", "zo%C3%AB@example.com"),
    ]


def credential(api: Api) -> tuple[str, str]:
    return ("x-api-key", KEY) if api is MESSAGES else ("authorization", f"Bearer {KEY}")


def lowered(fields: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(name.lower(), value) for name, value in fields]


@pytest.mark.parametrize("api", APIS)
def test_only_the_credential_and_who_calls_is_added(zoe: Person, upstream: RawUpstream, api: Api) -> None:
    fields = sent(zoe, upstream, api, zoe.bearer | CLIENT | POSING)
    assert fields[: len(CLIENT)] == list(CLIENT.items())
    added = lowered(fields[len(CLIENT) :])
    assert sorted(added) == sorted([credential(api), *lowered(actor(zoe))])


@pytest.mark.parametrize("api", APIS)
def test_with_ones_own_key_too(zoe: Person, upstream: RawUpstream, api: Api) -> None:
    own = {"X-Ostiary-Token": zoe.token, "Authorization": "Bearer sk-own-0123456789"}
    fields = sent(zoe, upstream, api, own | CLIENT | POSING)
    expected = [("Authorization", "Bearer sk-own-0123456789"), *CLIENT.items()]
    assert fields[: len(expected)] == expected
    assert sorted(fields[len(expected) :]) == sorted(actor(zoe))


def test_who_calls_is_not_told_on_passthrough(zoe: Person, upstream: RawUpstream) -> None:
    fields = sent(zoe, upstream, MESSAGES, zoe.bearer | CLIENT | POSING, method="GET")
    assert fields[: len(CLIENT)] == list(CLIENT.items())
    assert lowered(fields[len(CLIENT) :]) == [credential(MESSAGES)]


@pytest.mark.parametrize("api", APIS)
def test_unless_asked_for_nobody_is_told_who_calls(person: Person, upstream: RawUpstream, api: Api) -> None:
    standard = {name: value for name, value in POSING.items() if name != "x-team-user"}
    fields = sent(person, upstream, api, person.bearer | CLIENT | standard)
    assert fields[: len(CLIENT)] == list(CLIENT.items())
    assert lowered(fields[len(CLIENT) :]) == [credential(api)]
