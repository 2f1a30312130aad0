"""What is decided about a request, without a socket."""

import msgspec
import pytest

from ostiary.core.identity import Identity
from ostiary.core.identity import Refusal as TokenRefusal
from ostiary.core.providers import ProviderKey, ProviderSpec
from ostiary.core.secret import Secret
from ostiary.gateway import decide
from ostiary.gateway.authorizations import Unavailable
from ostiary.gateway.refusals import Refusal, error_body, refusal_head, shape_of
from ostiary.gateway.routes import Target
from ostiary.gateway.snapshot import build_snapshot

SNAPSHOT = build_snapshot(
    7,
    (
        ProviderSpec(
            "1", "openai", "openai", True, "https://o/v1", (ProviderKey("k1", Secret("sk-first-key-000000000")),)
        ),
        ProviderSpec("2", "anthropic", "anthropic", True, "https://a", (ProviderKey("k2", Secret("sk-ant")),)),
        ProviderSpec("3", "off", "openai", False, "https://o/v1"),
        ProviderSpec("4", "broken", "openai", True, "not a url", (ProviderKey("k3", Secret("k")),)),
        ProviderSpec("5", "keyless", "anthropic", True, "https://a"),
    ),
    allow_byok=True,
)


@pytest.mark.parametrize(
    ("fields", "token", "byok"),
    [
        ({b"authorization": b"Bearer ost_a"}, b"ost_a", False),
        ({b"authorization": b"bearer  ost_a "}, b"ost_a", False),
        ({b"x-api-key": b"ost_a"}, b"ost_a", False),
        ({b"api-key": b"ost_a"}, b"ost_a", False),
        ({b"x-api-key": b"ost_a", b"api-key": b"other"}, b"ost_a", False),
        ({b"authorization": b"Bearer ost_a", b"x-api-key": b"other"}, b"ost_a", False),
        ({b"x-ostiary-token": b"ost_a", b"x-api-key": b"sk-own"}, b"ost_a", True),
        ({b"x-coder-ai-governance-token": b"ost_a", b"authorization": b"Bearer sk-own"}, b"ost_a", True),
    ],
)
def test_where_the_token_is_looked_for(fields, token, byok):
    assert decide.credential_of(fields) == decide.Presented(token, byok)


@pytest.mark.parametrize(
    "fields", [{}, {b"authorization": b"Basic eDp5"}, {b"authorization": b"Bearer "}, {b"x-api-key": b""}]
)
def test_nobody_is_nobody(fields):
    assert decide.credential_of(fields) is None


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (TokenRefusal.UNKNOWN, 401),
        (TokenRefusal.EXPIRED, 401),
        (TokenRefusal.REVOKED, 401),
        (TokenRefusal.SUSPENDED, 403),
        (TokenRefusal.DELETED, 403),
        (Unavailable("the database is down"), 503),
    ],
)
def test_a_token_that_does_not_open_says_why(answer, status):
    refusal = decide.identified(answer)
    assert isinstance(refusal, Refusal)
    assert refusal.status == status


def test_an_identity_passes():
    alice = Identity("u", "k", "alice", "", "member")
    assert decide.identified(alice) is alice


def admit(name: str, rest: bytes = b"/v1/messages", method: bytes = b"POST", **options: bool):
    chosen = {"byok": False, "allow_byok": True} | options
    located = decide.locate(SNAPSHOT, Target(name, rest))
    return located if isinstance(located, Refusal) else decide.admit(located, method, **chosen) or located


@pytest.mark.parametrize(
    ("arguments", "status", "word"),
    [
        ({"name": "nobody"}, 404, "anthropic, broken, keyless, off, openai"),
        ({"name": "off"}, 503, "disabled"),
        ({"name": "broken"}, 503, "base_url must be an absolute"),
        ({"name": "openai", "rest": b"/v1/nothing"}, 404, "/v1/chat/completions"),
        ({"name": "openai", "rest": b"/v1/models/../x"}, 400, "segment"),
        ({"name": "anthropic", "method": b"GET"}, 405, "POST only"),
        ({"name": "anthropic", "byok": True, "allow_byok": False}, 403, "allow_byok"),
    ],
)
def test_what_is_not_admitted_says_why(arguments, status, word):
    refusal = admit(**arguments)
    assert isinstance(refusal, Refusal)
    assert refusal.status == status
    assert word in refusal.message


def test_before_the_first_snapshot_everything_is_503():
    refusal = decide.locate(None, Target("openai", b"/v1/models"))
    assert isinstance(refusal, Refusal)
    assert refusal.status == 503


def test_what_is_admitted_has_its_provider_and_route():
    admission = admit("anthropic")
    assert isinstance(admission, decide.Admission)
    assert (admission.provider.name, admission.route.label) == ("anthropic", "/v1/messages")


def test_a_pool_without_keys_is_502():
    refusal = decide.no_key(SNAPSHOT.providers["keyless"])
    assert refusal.status == 502
    assert "ostiary providers edit" in refusal.message


@pytest.mark.parametrize(
    ("name", "fields", "hint"),
    [
        ("anthropic", {b"x-api-key": b"sk-own-key-0000000000", b"authorization": b"Bearer other"}, "sk-o...0000"),
        ("anthropic", {b"authorization": b"Bearer sk-own-key-0000000000"}, "sk-o...0000"),
        ("openai", {b"authorization": b"Bearer sk-own-key-0000000000"}, "sk-o...0000"),
    ],
)
def test_byok_takes_the_clients_own_credential(name, fields, hint):
    credential = decide.own_credential(SNAPSHOT.providers[name], fields)
    assert credential == decide.Credential(hint)


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({b"authorization": b"Bearer the-token"}, {b"authorization"}),
        ({b"x-api-key": b"the-token", b"authorization": b"Bearer sk-own"}, {b"x-api-key"}),
        ({b"cookie": b"a=1; t=the-token", b"api-key": b"sk-own"}, {b"cookie"}),
        ({b"authorization": b"Bearer ost_another", b"x-api-key": b"ost_another"}, {b"authorization", b"x-api-key"}),
        ({b"authorization": b"Bearer sk-own", b"cookie": b"host_id=1"}, set()),
        ({}, set()),
    ],
)
def test_ostiary_tokens_among_the_clients_own_credentials_are_found(fields, found):
    assert decide.misplaced_tokens(fields, b"the-token") == found


def test_an_ostiary_token_is_no_own_credential():
    fields = {b"x-api-key": b"the-token", b"authorization": b"Bearer sk-own-key-0000000000"}
    misplaced = decide.misplaced_tokens(fields, b"the-token")
    credential = decide.own_credential(SNAPSHOT.providers["anthropic"], fields, misplaced)
    assert credential == decide.Credential("sk-o...0000")
    assert isinstance(
        decide.own_credential(SNAPSHOT.providers["openai"], {b"api-key": b"ost_x"}, frozenset((b"api-key",))), Refusal
    )


def test_byok_without_an_own_credential_is_401_with_the_cure():
    refusal = decide.own_credential(SNAPSHOT.providers["openai"], {b"x-api-key": b"sk"})
    assert isinstance(refusal, Refusal)
    assert refusal.status == 401
    assert "Authorization" in refusal.message


@pytest.mark.parametrize(
    ("path", "family", "shape"),
    [
        (b"/v1/messages", None, "anthropic"),
        (b"/v1/messages/count_tokens", "openai", "anthropic"),
        (b"/v1/chat/completions", "anthropic", "openai"),
        (b"/v1/models", "anthropic", "anthropic"),
        (b"/v1/models", None, "openai"),
    ],
)
def test_errors_have_the_shape_the_client_expects(path, family, shape):
    assert shape_of(path, family) == shape


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 408, 413, 415, 429, 500, 501, 502, 503, 504])
def test_error_bodies_are_what_the_sdks_parse(status):
    anthropic = msgspec.json.decode(error_body("anthropic", Refusal(status, "reason", "why")))
    assert anthropic["type"] == "error"
    assert anthropic["error"]["message"] == "why"
    assert anthropic["error"]["type"].endswith(("_error", "_large"))
    openai = msgspec.json.decode(error_body("openai", Refusal(status, "reason", "why")))
    assert set(openai["error"]) == {"message", "type", "param", "code"}
    head = refusal_head(Refusal(status, "x", "why", retry_after=3), 10, b"")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert b"Retry-After: 3\r\n" in head
