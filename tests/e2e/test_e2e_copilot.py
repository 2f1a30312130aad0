"""GitHub Copilot through a running server: everybody's own token goes up, the Ostiary token never does."""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest

from tests.e2e.conftest import DATA_PLANE, Api, Person, added_provider, error_of, refused
from tests.support.fake_provider import FakeProvider
from tests.support.server import Server

OWN = "gho_a-token-of-the-persons-own-0123456789"
COPILOT_CHAT = Api("copilot", "/chat/completions", "openai", {})
COPILOT_RESPONSES = Api("copilot", "/responses", "openai", {}, "input")
COPILOT_MESSAGES = Api("copilot", "/v1/messages", "anthropic", {"max_tokens": 1024})
APIS = [pytest.param(api, id=api.route) for api in (COPILOT_CHAT, COPILOT_RESPONSES, COPILOT_MESSAGES)]


@pytest.fixture(scope="module")
def copilot(server: Server, fake: FakeProvider) -> Iterator[str]:
    """The name of a provider of type copilot."""
    with added_provider(server, "copilot", {"type": "copilot", "base_url": fake.url}):
        yield "copilot"


def own(person: Person, token: str = OWN) -> dict[str, str]:
    return {
        "Authorization": f"Bearer {token}",
        "X-Ostiary-Token": person.token,
        "Copilot-Integration-Id": "vscode-chat",
    }


def last_request(fake: FakeProvider) -> dict[str, Any]:
    found: dict[str, Any] = fake.requests(after=fake.requests(limit=0)["count"] - 2)["requests"][-1]
    return found


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("api", APIS)
def test_each_format_is_recorded(copilot: str, person: Person, fake: FakeProvider, api: Api, stream: bool) -> None:
    body = api.body("say this", stream=stream)
    answer = person.call(api.path(copilot), body, own(person))
    assert answer.status == 200
    assert b"say this" in answer.body.replace(b'"delta":" ', b'"delta":"')
    request = last_request(fake)
    headers = {name.lower(): value for name, value in request["headers"]}
    assert request["path"] == api.route
    assert request["body_sha256"] == hashlib.sha256(body).hexdigest()
    assert headers["authorization"] == f"Bearer sha256:{hashlib.sha256(OWN.encode()).hexdigest()}"
    assert headers["copilot-integration-id"] == "vscode-chat"
    assert person.token not in json.dumps(request)
    assert not any(name.startswith("x-ostiary") for name in headers)
    record = person.server.interception(answer.interception_id)
    assert (record["provider"], record["provider_name"], record["route"]) == ("copilot", "copilot", api.route)
    assert (record["credential_kind"], record["credential_hint"]) == ("byok", "gho_...6789")
    assert [prompt["prompt"] for prompt in record["user_prompts"]] == ["say this"]
    (usage,) = record["token_usages"]
    assert usage["input_tokens"] > 0
    assert usage["output_tokens"] > 0


def test_the_sdks_work(copilot: str, person: Person) -> None:
    url = f"{person.server.url}{DATA_PLANE}/{copilot}"
    headers = {"X-Ostiary-Token": person.token, "Copilot-Integration-Id": "vscode-chat"}
    with openai.OpenAI(base_url=url, api_key=OWN, default_headers=headers, max_retries=0) as client:
        chunks = list(
            client.chat.completions.create(
                model="gpt-4.1", messages=[{"role": "user", "content": "hello"}], stream=True
            )
        )
        assert "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices) == "hello"
        assert chunks[-1].usage is not None
        assert client.responses.create(model="gpt-4.1", input="hello").output_text == "hello"
        assert client.models.list().data
    with anthropic.Anthropic(base_url=url, auth_token=OWN, default_headers=headers, max_retries=0) as claude:
        message = claude.messages.create(
            model="claude-sonnet-4", max_tokens=64, messages=[{"role": "user", "content": "hello"}]
        )
        assert message.content[0].type == "text"
        assert message.content[0].text == "hello"


@pytest.mark.parametrize(
    "path", ["/models", "/models/gpt-4.1", "/agents/swe/x", "/.well-known/oauth-x", "/_ping", "/auto"]
)
def test_the_rest_is_passed_through_with_ones_own_token(
    copilot: str, person: Person, fake: FakeProvider, path: str
) -> None:
    answer = person.call(f"/{copilot}{path}", b"", own(person), method="GET")
    assert answer.status == 200
    assert answer.header("x-ostiary-interception-id") is None
    request = last_request(fake)
    assert request["path"] == path
    assert person.token not in json.dumps(request)


@pytest.mark.parametrize("api", APIS)
def test_without_ones_own_token_the_cure_is_named(copilot: str, person: Person, fake: FakeProvider, api: Api) -> None:
    with refused(person.server, fake, "no_own_credential"):
        answer = person.call(api.path(copilot), api.body(), {})
    assert answer.status == 401
    message = error_of(answer, api)["message"]
    assert "Authorization: Bearer" in message
    assert "X-Ostiary-Token" in message


def test_one_persons_used_up_quota_is_theirs_alone(copilot: str, person: Person, fake: FakeProvider) -> None:
    for status in (401, 403, 429):
        fake.script_key("gho_used-up-0123456789abcdef", f"status={status} retry-after=60")
        for _ in range(8):
            answer = person.call(
                COPILOT_CHAT.path(copilot), COPILOT_CHAT.body(), own(person, "gho_used-up-0123456789abcdef")
            )
            assert answer.status == status
        assert person.call(COPILOT_CHAT.path(copilot), COPILOT_CHAT.body(), own(person)).status == 200
    fake.script_key("gho_used-up-0123456789abcdef", "")
