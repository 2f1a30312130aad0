"""What a provider is told of the person behind a call: only what the operator chose, and nothing a client made up."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_gateway_heads import admission

from ostiary.core.identity import Identity
from ostiary.core.settings import GatewaySettings
from ostiary.gateway.heads import ActorHeaders, upstream_head
from ostiary.http1.head import parse_request_head

ADA = Identity("0193-id", "key", "ada", "ada@example.test", "member")


def headers(**settings: str | bool) -> ActorHeaders:
    return ActorHeaders(GatewaySettings(journal_dir="", **settings))  # type: ignore[arg-type]


def lines_sent(actor: ActorHeaders, rest: bytes, *client: bytes, own: bool = False) -> list[bytes]:
    place = admission(rest)
    raw = b"POST /x HTTP/1.1\r\nHost: h\r\n" + b"".join(line + b"\r\n" for line in client) + b"\r\n"
    made = upstream_head(
        parse_request_head(raw),
        place,
        None if own else place.provider.keys[0],
        2,
        own=own,
        misplaced=frozenset(),
        reads_plain=False,
        actor=actor,
        identity=ADA,
    )
    return [line for line in made.split(b"\r\n") if line.lower().startswith((b"x-ai-bridge", b"x-mail", b"x-who"))]


CHAT = b"/v1/chat/completions"
SPOOFED = (b"X-AI-Bridge-Actor-ID: root", b"x-ai-bridge-actor-metadata-email: root@example.test", b"X-Who: root")


def test_nothing_is_told_unless_it_is_asked_for() -> None:
    assert not headers().sent
    assert lines_sent(headers(actor_header_username="X-Who"), CHAT, *SPOOFED) == []


@pytest.mark.parametrize("own", [False, True], ids=["gateway's key", "own key"])
def test_the_person_takes_the_place_of_whatever_a_client_claims(own: bool) -> None:
    standard = headers(send_actor_headers=True)
    assert lines_sent(standard, CHAT, *SPOOFED[:2], own=own) == [
        b"X-AI-Bridge-Actor-ID: 0193-id",
        b"X-AI-Bridge-Actor-Metadata-Username: ada",
    ]
    chosen = headers(
        send_actor_headers=True, actor_header_id="", actor_header_username="X-Who", actor_header_email="X-Mail"
    )
    assert lines_sent(chosen, CHAT, *SPOOFED, own=own) == [b"X-Who: ada", b"X-Mail: ada@example.test"]


@pytest.mark.parametrize("rest", [b"/v1/models", b"/v1/embeddings"])
def test_other_routes_than_bridged_ones_tell_nothing_and_pass_no_claim(rest: bytes) -> None:
    assert lines_sent(headers(send_actor_headers=True, actor_header_username="X-Who"), rest, *SPOOFED) == []


def test_with_all_names_empty_nothing_is_sent() -> None:
    assert not headers(send_actor_headers=True, actor_header_id="", actor_header_username="").sent


def test_what_is_unknown_of_a_person_has_no_line() -> None:
    actor = headers(send_actor_headers=True, actor_header_email="X-Mail")
    assert b"X-Mail" not in actor.lines(Identity("i", "k", "ada", "", "member"))


def test_values_are_visible_ascii() -> None:
    actor = headers(send_actor_headers=True, actor_header_id="X-Who", actor_header_username="")
    assert actor.lines(Identity("a/b+c@d.e", "k", "", "", "member")) == b"X-Who: a/b+c@d.e\r\n"
    assert actor.lines(Identity("Zoë 50%\r\nX: y", "k", "", "", "member")) == b"X-Who: Zo%C3%AB%2050%25%0D%0AX:%20y\r\n"


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), st.text(st.characters(exclude_categories=["Cs"])))
def test_no_value_ends_its_line_and_all_can_be_read_back(owner: str, username: str) -> None:
    from urllib.parse import unquote_to_bytes

    actor = headers(send_actor_headers=True, actor_header_id="X-Who", actor_header_username="X-Name")
    lines = actor.lines(Identity(owner, "k", username, "", "member")).split(b"\r\n")
    wanted = {b"X-Who": owner, b"X-Name": username}
    assert lines.pop() == b""
    for line in lines:
        name, _, value = line.partition(b": ")
        assert all(0x21 <= byte <= 0x7E for byte in value)
        assert unquote_to_bytes(value).decode() == wanted.pop(name)
    assert all(not value for value in wanted.values())
