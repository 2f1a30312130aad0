"""Attempts that are given up before the client has seen a byte of them: what holds them up, and what is left of them."""

from pathlib import Path

import pytest
from gateway_sockets import A1, A2, STREAM, Client, Kind
from gateway_stage import ASK, WHOLE, Records, Step, World, counted, play, says

from ostiary.core.records import Attempt, InterceptionEnd
from ostiary.gateway.answers import HELD_MAX, HELD_RAW_MAX

HINTS = b"HTTP/1.1 103 Early Hints\r\nLink: </%b>; rel=preload\r\n\r\n"
AGAIN: list[Step] = [("connect", 0, 1), says(200), WHOLE]
"""The next attempt goes well."""


def told(wire: bytes, payload: bytes = b"attempt-" * 50 + b"." * 600, *, ends: bool = False) -> Step:
    return lambda world: world.tell(wire, payload, ends_with_stream=ends)


def limited(head: bytes = b"") -> bytes:
    """The beginning of an error that does not end: 400 bytes of 1000."""
    beginning = b"HTTP/1.1 429 No\r\nContent-Type: application/json\r\nRetry-After: 20\r\n" + head
    return beginning + b"Content-Length: 1000\r\n\r\n" + b"attempt-" * 50


def client_of(world: World) -> Client:
    (client,) = {*world.clients_of.values()}
    return client


def attempts(world: World) -> list[Attempt]:
    (ended,) = [record for record in world.records.since() if isinstance(record, InterceptionEnd)]
    assert ended.trace is not None
    return ended.trace.attempts


def keys(world: World) -> list[str]:
    return [sent.key for sent in world.sent]


# --- an error whose body is slow, or long


def test_an_error_that_is_slow_gives_way_to_the_next_key(records: Records) -> None:
    world = play(records, [*ASK, told(limited()), WHOLE, ("time", 0, 2), *AGAIN])
    assert keys(world) == [A1, A2]
    assert client_of(world).out.startswith(b"HTTP/1.1 200")
    assert [(one.status, bool(one.error)) for one in attempts(world)] == [(429, True), (200, False)]
    assert world.upstreams[0].transport.closing, "its rest is not waited for"


def test_an_error_that_is_slow_goes_to_the_client_when_there_is_no_other_key(records: Records) -> None:
    both = [told(limited()), WHOLE, ("time", 0, 2)]
    world = play(records, [*ASK, *both, ("connect", 0, 1), *both, lambda world: world.upstreams[1].transport.end()])
    assert keys(world) == [A1, A2]
    out = client_of(world).out
    assert out.startswith(b"HTTP/1.1 429")
    assert out.endswith(b"attempt-" * 50)


@pytest.mark.parametrize("payload", [HELD_MAX + 1000, 3 * HELD_RAW_MAX])
@pytest.mark.parametrize("chunked", [False, True])
def test_an_error_that_is_long_gives_way_to_the_next_key(records: Records, payload: int, chunked: bool) -> None:
    body = b"attempt-" * (payload // 8)
    framing = b"Content-Length: %d\r\n\r\n" % (len(body) + 1)
    if chunked:
        framing = b"Transfer-Encoding: chunked\r\n\r\n"
        body = b"".join(b"400\r\n" + body[at : at + 1024].ljust(1024) + b"\r\n" for at in range(0, len(body), 1024))
    world = play(records, [*ASK, told(b"HTTP/1.1 429 No\r\n" + framing + body), WHOLE, *AGAIN])
    assert keys(world) == [A1, A2]
    assert client_of(world).out.startswith(b"HTTP/1.1 200")
    assert [one.status for one in attempts(world)] == [429, 200]


REFUSED: list[Step] = [*ASK, says(401), WHOLE, ("connect", 0, 1), says(401), WHOLE, ("time", 1, 3)]
"""Both keys: from now on each is tried by one request at a time."""
SLOW: list[Step] = [*ASK[:2], ("trial", 0, 1), ASK[2], told(limited()), WHOLE]
"""The first key is accepted again, and limited."""


@pytest.mark.parametrize("rest", ["comes", "is cut", "stays away"])
@pytest.mark.parametrize("granted", [False, True])
def test_an_error_that_is_slow_waits_for_the_trial_of_another_key(records: Records, rest: str, granted: bool) -> None:
    def goes_on(world: World) -> None:
        upstream = world.upstreams[-1]
        upstream.transport.paused = False  # what the kernel had before reading was paused
        if rest == "comes":
            upstream.transport.bring(b"." * 600)
        elif rest == "is cut":
            upstream.transport.end()

    finish: list[Step] = AGAIN if granted else [lambda world: world.upstreams[-1].transport.end()]
    script = [*REFUSED, *SLOW, ("time", 0, 2), goes_on, ("trial", 0, int(granted)), *finish]
    world = play(records, script)
    last = client_of(world).out.rpartition(b"HTTP/1.1 ")[2]
    assert keys(world)[2:] == [A1, A2][: 1 + granted]
    assert last.startswith(b"200" if granted else b"429")
    if not granted:
        assert last.endswith(b"." * 600 if rest == "comes" else b"attempt-")
        ends = [record for record in world.records.since() if isinstance(record, InterceptionEnd)]
        assert ends[-1].credential_hint == "sk-a...cdef", "the key that it was answered to"


def test_what_still_comes_of_a_slow_error_is_not_taken_for_an_answer_to_the_next_key(records: Records) -> None:
    """Also when it is longer than what is held."""
    endless = limited().replace(b": 1000", b": 9000000")

    def goes_on(world: World) -> None:
        upstream = world.upstreams[-1]
        upstream.transport.paused = False  # what the kernel had before reading was paused
        upstream.transport.bring(b"." * (HELD_RAW_MAX + 1))

    slow: list[Step] = [*ASK[:2], ("trial", 0, 1), ASK[2], told(endless), WHOLE]
    world = play(records, [*REFUSED, *slow, ("time", 0, 2), goes_on, ("trial", 0, 1), *AGAIN])
    assert keys(world)[2:] == [A1, A2]
    assert client_of(world).out.rpartition(b"HTTP/1.1 ")[2].startswith(b"200")


def test_a_client_that_leaves_while_another_key_is_asked_for(records: Records) -> None:
    world = play(records, [*REFUSED, *SLOW, ("time", 0, 2), ("leave", 0, 0), ("trial", 0, 1)])
    assert all(upstream.transport.closing for upstream in world.upstreams)


# --- 5xx that are not shown


@pytest.mark.parametrize("dumped", [False, True])
@pytest.mark.parametrize("long", [False, True])
def test_a_5xx_that_is_slow_or_long_does_not_hold_up_its_repetition(
    records: Records, tmp_path: Path, dumped: bool, long: bool
) -> None:
    body = b"attempt-" * (HELD_RAW_MAX // 8 + 1 if long else 50)
    endless = b"HTTP/1.1 503 No\r\nContent-Length: 9000000000\r\n\r\n" + body
    waits: list[Step] = [] if long else [("time", 0, 2)]
    overrides = {"dump_dir": str(tmp_path)} if dumped else {}
    world = play(records, [*ASK, told(endless), WHOLE, *waits, *AGAIN], retry_5xx=1, **overrides)
    assert client_of(world).out.startswith(b"HTTP/1.1 200")
    assert [one.status for one in attempts(world)] == [503, 200]
    if dumped:
        world.worker.dumps.close()  # type: ignore[union-attr]
        (kept,) = [path.read_bytes() for path in tmp_path.rglob("*1.resp.txt")]
        assert b"503" in kept
        assert b"not waited for" in kept


# --- interim answers


def hinted(name: bytes, rest: bytes) -> bytes:
    return HINTS % name + rest


OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 18\r\n\r\n" + b'{"id":"attempt-1"}'
LIMITED = b"HTTP/1.1 429 No\r\nRetry-After: 20\r\nContent-Length: 8\r\n\r\nattempt-"
FAILED = b"HTTP/1.1 503 No\r\nContent-Length: 8\r\n\r\nattempt-"


@pytest.mark.parametrize("failed", [LIMITED, FAILED])
def test_an_interim_answer_of_an_attempt_that_failed_is_not_shown(records: Records, failed: bytes) -> None:
    first = [told(hinted(b"wrong", failed)), WHOLE]
    second = [("connect", 0, 1), told(hinted(b"right", OK), b'{"id":"attempt-1"}'), WHOLE]
    world = play(records, [*ASK, *first, *second], retry_5xx=1)
    assert client_of(world).out.startswith(HINTS % b"right" + b"HTTP/1.1 200 OK\r\n")
    assert b"wrong" not in client_of(world).out


def test_an_interim_answer_of_the_last_attempt_is_shown_before_it(records: Records) -> None:
    first = [told(hinted(b"one", LIMITED), b"attempt-"), WHOLE]
    second = [("connect", 0, 1), told(hinted(b"two", LIMITED), b"attempt-"), WHOLE]
    world = play(records, [*ASK, *first, *second])
    assert client_of(world).out.startswith(HINTS % b"two" + b"HTTP/1.1 429")


def test_an_interim_answer_goes_on_at_once_where_no_other_attempt_can_follow(records: Records) -> None:
    own: Kind = (
        "POST",
        "/openai/v1/chat/completions",
        "X-Ostiary-Token: ost_0123456789abcdef0123456789abcdef\r\n",
        STREAM,
    )
    seen: list[bytes] = []

    def asks(world: World) -> None:
        client = world.clients[0]
        client.request(own)
        client.pending = client.pending.replace(
            b"Bearer ost_0123456789abcdef0123456789abcdef", b"Bearer " + A1.encode()
        )
        world.do_client(0, 0)

    looks: Step = lambda world: seen.append(client_of(world).out)  # noqa: E731
    hints = HINTS % b"now"
    script: list[Step] = [asks, ASK[2], told(hinted(b"now", OK), b'{"id":"attempt-1"}')]
    script += [lambda world: world.upstreams[0].bring(len(hints)), looks, WHOLE]
    world = play(records, script)
    assert seen == [hints]
    assert client_of(world).out.startswith(hints + b"HTTP/1.1 200")


def test_interim_answers_that_wait_are_bounded(records: Records) -> None:
    hints = HINTS % (b"x" * 8000)
    world = play(records, [*ASK, told(hints * 50 + OK, b'{"id":"attempt-1"}'), *[WHOLE] * 3])
    interim, _, last = client_of(world).out.rpartition(b"HTTP/1.1 200")
    assert last
    assert 0 < len(interim) <= 64 * 1024


# --- short limits


def test_a_limit_of_less_than_a_second_is_over_when_it_says(records: Records) -> None:
    short = b"HTTP/1.1 429 No\r\nretry-after-ms: 200\r\nContent-Length: 8\r\n\r\nattempt-"
    first: list[Step] = [*ASK, told(short), WHOLE, *AGAIN]
    world = play(records, [*first, ("time", 0, 0), *ASK, says(200), WHOLE])
    assert keys(world) == [A1, A2, A1]
    assert counted(world, "ostiary_key_pool_exhaustions") == 0
