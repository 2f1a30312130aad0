"""Limits and names of actor headers: what they may be, what is said when they are not, what they are called there."""

import msgspec
import pytest

from ostiary.config import ConfigError, load
from ostiary.config.plan import server_plan
from ostiary.config.settings import SETTINGS
from ostiary.config.values import header_name
from ostiary.core.settings import GatewaySettings

STANDARD = "X-AI-Bridge-Actor-ID"


@pytest.fixture(autouse=True)
def _nowhere(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("nowhere"))


def problems(**environ: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as raised:
        load({}, environ)
    return raised.value.problems


def gateway(**environ: str) -> GatewaySettings:
    return server_plan(load({}, environ)).gateway


@pytest.mark.parametrize("prefix", ["OSTIARY_", "CODER_AI_GATEWAY_", "CODER_AIBRIDGE_"])
def test_the_reference_s_names_mean_the_same_here(prefix: str) -> None:
    given = {
        "MAX_CONCURRENCY": ("7", 7),
        "RATE_LIMIT": ("8", 8),
        "SEND_ACTOR_HEADERS": ("true", True),
        "ACTOR_HEADER_ID": ("X-Id", "X-Id"),
        "ACTOR_HEADER_USERNAME": ("off", ""),
        "ACTOR_HEADER_EMAIL": ("X-Email", "X-Email"),
        "DUMP_DIR": ("/dumps", "/dumps"),
        "CIRCUIT_BREAKER_ENABLED": ("false", False),
        "CIRCUIT_BREAKER_FAILURE_THRESHOLD": ("6", 6),
        "CIRCUIT_BREAKER_INTERVAL": ("1m30s", 90.0),
        "CIRCUIT_BREAKER_TIMEOUT": ("500ms", 0.5),
        "CIRCUIT_BREAKER_MAX_REQUESTS": ("2", 2),
    }
    loaded = load({}, {prefix + name: value for name, (value, _) in given.items()})
    assert loaded.warnings == ()
    found = msgspec.structs.asdict(server_plan(loaded).gateway)
    assert {name: found[name.lower()] for name in given} == {name: value for name, (_, value) in given.items()}


@pytest.mark.parametrize(
    "name", ["X-Who", "x-user", "X_User", "who!", "X-Actor", "OpenAI-Safety-Identifier", "a" * 128]
)
def test_names_that_a_header_of_ours_may_have(name: str) -> None:
    assert header_name(STANDARD).parse(name) == name


@pytest.mark.parametrize("name", [STANDARD, STANDARD.lower(), STANDARD.upper()])
def test_its_own_standard_name_is_allowed(name: str) -> None:
    assert gateway(OSTIARY_ACTOR_HEADER_ID=name).actor_header_id == name
    assert "only its own, X-AI-Bridge-Actor-Metadata-Email" in problems(OSTIARY_ACTOR_HEADER_EMAIL=name)[0]


@pytest.mark.parametrize("name", ["X Who", "X-Who:", "X-Who\r\nX: y", "Zoë", "(who)", "a" * 129])
def test_what_is_no_name(name: str) -> None:
    (problem,) = problems(OSTIARY_ACTOR_HEADER_ID=name)
    assert "(RFC 9110)" in problem


# reference D.12, each in some spelling
TAKEN = [
    "Authorization",
    "x-api-key",
    "COOKIE",
    "Set-Cookie",
    "Host",
    "User-Agent",
    "Content-Length",
    "Content-Type",
    "Content-Encoding",
    "Accept-Encoding",
    "Connection",
    "Keep-Alive",
    "Te",
    "Trailer",
    "Transfer-Encoding",
    "Upgrade",
    "Forwarded",
    "X-Forwarded-For",
    "X-Forwarded-Host",
    "X-Forwarded-Proto",
    "X-Forwarded-Port",
    "Proxy-Authorization",
    "Proxy-Authenticate",
    "Coder-Session-Token",
    "X-Coder-Ai-Governance-Token",
    "X-Coder-Ai-Governance-Request-Id",
    "X-Coder-Agent-Firewall-Session-Id",
    "X-Coder-Agent-Firewall-Sequence-Number",
    "X-Ostiary-Token",
    "Api-Key",
    "Expect",
    "Anthropic-Version",
    "X-Amz-Date",
]


@pytest.mark.parametrize("name", TAKEN)
def test_names_with_another_use_are_refused_with_what_that_is(name: str) -> None:
    (problem,) = problems(OSTIARY_ACTOR_HEADER_USERNAME=name)
    assert problem.startswith(
        "OSTIARY_ACTOR_HEADER_USERNAME must be off or a header name without another use; this one "
    )
    assert problem.endswith(f"; it is {name!r}")


def test_two_headers_need_two_names_whatever_their_case() -> None:
    (problem,) = problems(OSTIARY_ACTOR_HEADER_ID="X-Who", OSTIARY_ACTOR_HEADER_EMAIL="x-who")
    assert problem == "actor_header_id and actor_header_email must be different headers; both are 'x-who'"
    assert gateway(OSTIARY_ACTOR_HEADER_ID="off", OSTIARY_ACTOR_HEADER_USERNAME="off").actor_header_username == ""


def test_one_body_must_fit_into_the_memory_for_bodies() -> None:
    (problem,) = problems(OSTIARY_BODY_MAX_BYTES="64MiB", OSTIARY_BODY_MEMORY_MAX="32MiB")
    assert problem == (
        "OSTIARY_BODY_MAX_BYTES and OSTIARY_BODY_MEMORY_MAX must leave room for one body: "
        "body_max_bytes is 64MiB, body_memory_max 32MiB"
    )
    assert problems(OSTIARY_BODY_MAX_BYTES="1GiB")[0].startswith("OSTIARY_BODY_MAX_BYTES must leave")


def test_an_empty_name_in_a_file_and_the_word_off_are_the_same() -> None:
    kind = SETTINGS["actor_header_id"].kind
    assert kind.parse("") == kind.parse("OFF") == ""
    assert kind.show("") == "off"
