"""Bringing one's own key: it goes up untouched, and the Ostiary token beside it never does."""

import pytest

from tests.e2e.conftest import APIS, CHAT, DATA_PLANE, MESSAGES, RESPONSES, Api, Person, RawUpstream, error_of, refused
from tests.support.fake_provider import FakeProvider
from tests.support.raw_http import ask
from tests.support.server import PROVIDER_KEY


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
