"""What of a client's head reaches a provider, by the table of rules."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ostiary.core.providers import ProviderKey, ProviderSpec
from ostiary.core.secret import Secret
from ostiary.core.settings import GatewaySettings
from ostiary.gateway.decide import Admission, locate
from ostiary.gateway.heads import ActorHeaders, upstream_head
from ostiary.gateway.providers.adapter import Prepared
from ostiary.gateway.routes import Target
from ostiary.gateway.snapshot import build_snapshot
from ostiary.http1.fields import REQUEST_RULES, Kept, Rule, kept_lines
from ostiary.http1.head import parse_request_head


@dataclass
class Sent:
    request_line: bytes
    lines: list[bytes]


def admission(rest: bytes = b"/v1/chat/completions") -> Admission:
    keys = (ProviderKey("k", Secret("sk-gateway")),)
    spec = ProviderSpec("p", "openai", "openai", True, "https://api.test/v1/", keys)
    found = locate(build_snapshot(1, (spec,), allow_byok=True), Target("openai", rest))
    assert isinstance(found, Admission)
    return found


def sent(*lines: bytes, own: bool = False, prepared: Prepared | None = None, actor: ActorHeaders | None = None) -> Sent:
    head = parse_request_head(
        b"POST /api/v2/ai-gateway/openai/v1/chat/completions HTTP/1.1\r\nHost: gateway\r\n"
        + b"".join(line + b"\r\n" for line in lines)
        + b"\r\n"
    )
    place = admission()
    made = upstream_head(
        head,
        place,
        None if own or prepared else place.provider.keys[0],
        5,
        own=own,
        misplaced=frozenset(),
        reads_plain=False,
        prepared=prepared,
        actor=actor or ActorHeaders(GatewaySettings(journal_dir="")),
    )
    request_line, *rest = made.removesuffix(b"\r\n\r\n").split(b"\r\n")
    return Sent(request_line, rest)


OURS = [b"Host: api.test", b"Content-Length: 5"]
KEY = b"Authorization: Bearer sk-gateway"


def test_what_no_rule_names_goes_on_as_it_came() -> None:
    lines = [
        b"user-AGENT:  a/1 (x)",
        b"anthropic-beta: a,b",
        b"X-Stainless-OS: Linux",
        b"OpenAI-Organization: o",
        b"traceparent: 00-1-2-01",
        b"X-Amzn-Trace-Id: Root=1",
    ]
    assert sent(*lines).lines == [OURS[0], *lines, KEY, OURS[1]]


def test_no_user_agent_is_made_up() -> None:
    assert sent().lines == [OURS[0], KEY, OURS[1]]


@pytest.mark.parametrize("own", [False, True], ids=["gateway's key", "own key"])
def test_what_connection_names_is_dropped_too(own: bool) -> None:
    lines = sent(b"Connection: keep-alive, X-Hop", b"X-Hop: 1", b"X-Stays: 1", own=own).lines
    assert lines == [OURS[0], b"X-Stays: 1", *([] if own else [KEY]), OURS[1]]


NAMES = [(rule, name) for rule in REQUEST_RULES for name in rule.names.split()]
UNUSUAL = {"transfer-encoding": b"chunked", "expect": b"100-continue", "upgrade": b"h2c"}


@pytest.mark.parametrize(("rule", "pattern"), NAMES, ids=[name for _, name in NAMES])
@pytest.mark.parametrize("own", [False, True], ids=["gateway's key", "own key"])
def test_every_rule_of_the_table_holds(rule: Rule, pattern: str, own: bool) -> None:
    if pattern in ("host", "content-length"):
        return  # always there, written anew
    name = pattern.replace("*", "anything")
    value = UNUSUAL.get(name, b"gzip")
    spelled = name.title().encode("ascii") + b": " + value
    kept = own and rule.when == "gateway_key"
    lines = sent(spelled, own=own).lines
    if name == "accept-encoding":
        assert lines.count(b"Accept-Encoding: gzip") == 1
    else:
        assert (spelled in lines) is kept


def test_an_adapter_says_where_to_and_with_what() -> None:
    prepared = Prepared(
        target=b"/model/x/invoke?y=z",
        body=b"{}",
        model="x",
        dropped=frozenset((b"anthropic-beta",)),
        lines=b"X-Amz-Date: 1\r\n",
        plain_answer=True,
    )
    made = sent(b"Anthropic-Beta: a", b"Accept: b", b"Authorization: Bearer ost_1", prepared=prepared)
    assert made.request_line == b"POST /model/x/invoke?y=z HTTP/1.1"
    assert made.lines == [OURS[0], b"Accept: b", b"Accept-Encoding: identity", b"X-Amz-Date: 1", OURS[1]]


def test_names_an_operator_chose_are_dropped_besides_the_standard_ones() -> None:
    chosen = ActorHeaders(GatewaySettings(journal_dir="", actor_header_id="X-Who"))
    lines = sent(b"x-WHO: somebody else", b"X-AI-Bridge-Actor-Metadata-Team: t", b"X-Whose: w", actor=chosen).lines
    assert lines == [OURS[0], b"X-Whose: w", KEY, OURS[1]]


@given(st.lists(st.text("ab-*", min_size=1, max_size=5), min_size=1, max_size=60))
def test_what_is_remembered_of_names_changes_nothing(names: list[str]) -> None:
    kept = Kept(frozenset((b"a", b"b-a")), (b"ab-",))
    kept._MAX = 7  # type: ignore[misc]
    for _ in range(2):
        lines = [name.encode() + b": v" for name in names]
        head = parse_request_head(
            b"GET / HTTP/1.1\r\nHost: h\r\n" + b"".join(line + b"\r\n" for line in lines) + b"\r\n"
        )
        left = [line for line in lines if line[:-3] not in (b"a", b"b-a") and not line.startswith(b"ab-")]
        assert kept_lines(head, kept)[1:] == left
        assert kept_lines(head, kept, frozenset((b"host",))) == left
        assert len(kept) <= 7
