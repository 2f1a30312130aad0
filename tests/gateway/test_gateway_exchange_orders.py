"""One request path, whatever comes when: pieces of bodies, answers, ends, time, trials, reloads, clients that leave."""

import asyncio

import pytest
from gateway_sockets import A1, A2
from gateway_stage import ASK, PART, WHOLE, Records, Step, counted, play, says
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ostiary.gateway.answers import HeldAnswer, Patience
from ostiary.http1.head import parse_response_head

STEPS = ("ask", "client", "connect", "say", "bring", "bring", "client", "connect", "say", "time", "trial")
"""More than once: what a request needs to get on."""
RARE = ("cut", "slow_upstream", "slow_client", "leave", "link", "reload", "drain")


def scripts() -> st.SearchStrategy[list[Step]]:
    step = st.tuples(st.sampled_from(STEPS * 3 + RARE), st.integers(0, 3), st.integers(0, 39))
    return st.lists(step, min_size=20, max_size=120)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(script=scripts(), keep_alive=st.sampled_from((0.0, 1.0)), retry_5xx=st.integers(0, 1))
def test_whatever_comes_when_nothing_leaks_and_nobody_is_told_lies(
    records: Records, script: list[Step], keep_alive: float, retry_5xx: int
) -> None:
    play(records, script, sse_keepalive=keep_alive, retry_5xx=retry_5xx)


def test_an_answer_that_was_cut_does_not_become_a_whole_one_while_a_trial_is_waited_for(records: Records) -> None:
    both_refused: list[Step] = [*ASK, says(401), WHOLE, ("connect", 0, 1), says(401), WHOLE]
    later: list[Step] = [("time", 1, 3), *ASK[:2], ("trial", 0, 1), ASK[2], says(401), PART, ("cut", 0, 1)]
    denied: Step = ("trial", 0, 0)
    world = play(records, [*both_refused, *later, denied])
    (client,) = {*world.clients_of.values()}
    assert client.out.count(b"HTTP/1.1 401") == 2
    assert [sent.key for sent in world.sent] == [A1, A2, A1]
    assert counted(world, "ostiary_upstream_failures") == 1, "it was cut once"


@pytest.mark.parametrize("change", range(4), ids=["the same", "another address", "gone", "the first again"])
def test_a_reload_in_the_middle_does_not_end_failover(records: Records, change: int) -> None:
    world = play(records, [*ASK, says(429), PART, ("reload", 0, change), WHOLE, ("connect", 0, 1), says(200), WHOLE])
    assert [(sent.host, sent.key) for sent in world.sent] == [("a.test", A1), ("a.test", A2)]
    (client,) = {*world.clients_of.values()}
    assert client.out.startswith(b"HTTP/1.1 200")


def test_a_request_that_saw_a_reload_leaves_out_the_key_that_is_known_as_limited(records: Records) -> None:
    limited: list[Step] = [*ASK, says(429), WHOLE, ("connect", 0, 1), says(200), WHOLE]
    begun: list[Step] = [("ask", 1, 0), ("client", 1, 2), ("client", 1, 2), ("reload", 0, 0), ("client", 1, 0)]
    world = play(records, [*limited, *begun, ("connect", 0, 1), says(200), WHOLE])
    assert [sent.key for sent in world.sent] == [A1, A2, A2]


def test_a_client_that_was_told_that_its_connection_ends_is_not_left_with_it(records: Records) -> None:
    """The rest of its upload comes in the meantime."""
    begun: list[Step] = [("ask", 0, 4), ("client", 0, 4), ("connect", 0, 1), says(200), PART]
    world = play(records, [*begun, ("client", 0, 0), WHOLE])
    (client,) = {*world.clients_of.values()}
    assert b"Connection: close" in client.out
    assert client.out.endswith(b"}")
    assert not client.waits


@pytest.mark.parametrize("asked", [1, 2], ids=["usage is spliced in", "pings are put in"])
def test_an_answer_without_a_body_gets_none(records: Records, asked: int) -> None:
    world = play(records, [("ask", 0, asked), *ASK[1:], says(204), WHOLE], sse_keepalive=1.0)
    (client,) = {*world.clients_of.values()}
    assert client.out.startswith(b"HTTP/1.1 204")
    assert client.out.endswith(b"\r\n\r\n")
    assert b"chunked" not in client.out


def test_the_framing_of_an_answer_that_is_held_is_bounded_too() -> None:
    async def holds() -> None:
        full: list[bool] = []
        head = parse_response_head(b"HTTP/1.1 401 No\r\nTransfer-Encoding: chunked\r\n\r\n")
        held = HeldAnswer(head, Patience(lambda: full.append(True)), None, "")
        out: list[bytes] = []
        sent = b""
        while not full:
            piece = b"1;" + b"x" * 8190 + b"\r\n.\r\n"
            sent += piece
            held.take(piece)
            held.take_payload(b".")
            assert len(sent) < 1024 * 1024
        held.let_go(out.append, None)
        held.take(piece)
        assert b"".join(out) == sent + piece
        assert full == [True], "told once"

    asyncio.run(holds())
