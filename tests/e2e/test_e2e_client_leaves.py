"""Clients that leave before they have their answer, or stop taking it: nothing goes on for them, and the record says so."""

import socket
import struct
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest

from tests.e2e.conftest import (
    APIS,
    CHAT,
    DATA_PLANE,
    MESSAGE_START,
    MESSAGES,
    RESPONSES,
    STREAM_HEAD,
    Api,
    Person,
    RawUpstream,
)
from tests.support.fake_provider import FakeProvider
from tests.support.raw_http import RawConnection, header_in
from tests.support.server import eventually, kept

PROMISE = 0.1
"""Seconds after which nothing goes on for a client that has left."""


def leave(connection: RawConnection, how: str) -> None:
    if how == "reset":
        connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    if how == "half-closed":
        connection.socket.shutdown(socket.SHUT_WR)
    else:
        connection.socket.close()


@pytest.mark.parametrize("how", ["closed", "reset", "half-closed"])
def test_a_client_that_leaves_a_stream_ends_the_upstream_within_100_ms(
    guest: Person, upstream: RawUpstream, how: str
) -> None:
    def seconds(_: int) -> float:
        with guest.connect() as connection:
            path = DATA_PLANE + MESSAGES.path("raw-claude")
            connection.request("POST", path, guest.bearer, MESSAGES.body("never mind", stream=True))
            with upstream.request() as request:
                request.send(STREAM_HEAD + b"%x\r\n%b\r\n" % (len(MESSAGE_START), MESSAGE_START))
                seen = b""
                while b"msg_seen" not in seen:
                    seen += connection.read_some()
                leave(connection, how)
                gone = request.seconds_until_gone()
        record = guest.server.interception(header_in(seen, "x-ostiary-interception-id"))
        assert (record["outcome"], record["status_code"]) == ("client_closed", 200)
        assert [prompt["prompt"] for prompt in record["user_prompts"]] == ["never mind"]
        assert (record["provider_response_id"], record["response_model"]) == ("msg_seen", "claude-seen")
        (usage,) = record["token_usages"]
        assert (usage["input_tokens"], usage["output_tokens"], usage["cache_read_input_tokens"]) == (21, 2, 5)
        return gone

    kept(PROMISE, seconds)


@pytest.mark.parametrize("whole", [True, False])
def test_a_client_that_leaves_at_the_answers_own_end_has_its_answer(
    guest: Person, upstream: RawUpstream, whole: bool
) -> None:
    """It does not wait for the last chunk, and some clients do not; nor is the upstream waited for."""
    end = b"data: [DONE]" if whole else b": nothing"
    said = b'data: {"id":"chat_seen","model":"m","choices":[{"index":0,"delta":{"content":"x"}}]}\n\n%b\n\n' % end
    with guest.connect() as connection:
        path = DATA_PLANE + CHAT.path("raw")
        connection.request("POST", path, guest.bearer, CHAT.body(stream=True, stream_options={"include_usage": True}))
        with upstream.request() as request:
            request.send(STREAM_HEAD + b"%x\r\n%b\r\n" % (len(said), said))
            seen = b""
            while end not in seen:
                seen += connection.read_some()
            connection.socket.close()
            request.seconds_until_gone()
    record = guest.server.interception(header_in(seen, "x-ostiary-interception-id"))
    assert (record["outcome"], record["error_type"]) == (("completed", None) if whole else ("client_closed", "unknown"))
    assert record["provider_response_id"] == "chat_seen"


@pytest.mark.parametrize("api", APIS)
def test_a_client_that_leaves_before_any_answer_ends_the_upstream_within_100_ms(
    guest: Person, upstream: RawUpstream, api: Api
) -> None:
    prompt = f"never mind {api.route}"

    def seconds(_: int) -> float:
        with guest.connect() as connection:
            body = api.body(prompt, stream=True)
            connection.request("POST", DATA_PLANE + api.path(api.raw), guest.bearer, body)
            with upstream.request() as request:
                connection.socket.close()
                return request.seconds_until_gone()

    left = kept(PROMISE, seconds)

    def recorded() -> list[dict[str, Any]]:
        found = guest.server.get("/api/v2/ai-gateway/interceptions", q=f"provider_name:{api.raw}")["results"]
        mine = [one for one in found if [told["prompt"] for told in one["user_prompts"]] == [prompt]]
        return mine if len(mine) == left and all(one["ended_at"] for one in mine) else []

    for record in eventually(recorded, what="all are recorded"):
        assert (record["outcome"], record["status_code"]) == ("client_closed", None)
        assert record["token_usages"] == []


def aborts_of(fake: FakeProvider, mark: str) -> list[dict[str, Any]]:
    return [abort for abort in fake.requests(limit=0)["aborts"] if abort["mark"] == mark]


@pytest.mark.parametrize("api", APIS)
def test_the_fake_provider_sees_the_abort_too(guest: Person, fake: FakeProvider, api: Api) -> None:
    """By its own clock, which is the same one: from the client's leaving to the abort of its stream."""

    def seconds(number: int) -> float:
        mark = f"left-{api.route}-{number}"
        with guest.connect() as connection:
            headers = {**guest.bearer, "X-Fake-Mark": mark}
            body = api.body("a stream that takes its time " * 5, stream=True, model="fake:pace=400")
            connection.request("POST", DATA_PLANE + api.path(), headers, body)
            seen = b""
            while b"data: " not in seen:
                seen += connection.read_some()
            left = time.monotonic()
        abort = eventually(partial(aborts_of, fake, mark))
        record = guest.server.interception(header_in(seen, "x-ostiary-interception-id"))
        assert record["outcome"] == "client_closed"
        assert record["provider_response_id"]
        return float(abort[0]["monotonic"]) - left

    kept(PROMISE, seconds)


def test_a_client_that_stops_reading_fills_no_memory_and_is_given_up(guest: Person, upstream: RawUpstream) -> None:
    piece = b"x" * 65536
    with guest.connect() as connection:
        connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.request("POST", DATA_PLANE + CHAT.path("raw"), guest.bearer, CHAT.body())
        with upstream.request() as request:
            request.send(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1000000000\r\n\r\n")
            taken = 0
            with pytest.raises(ConnectionError):
                while taken < 100_000_000:
                    taken += request.connection.send(piece)  # waits once nobody reads any more
        seen = connection.read_some()
    assert taken < 24_000_000, "what the client does not take was read nevertheless"
    record = guest.server.interception(header_in(seen, "x-ostiary-interception-id"))
    assert (record["outcome"], record["status_code"]) == ("client_closed", 200)
    assert record["trace"]["notes"] == ["the client stopped reading"]


# --- many at once

CROWD = [
    ("fake-cut", "stay"),
    ("fake-reset", "stay"),
    ("fake-cut-head", "stay"),
    ("fake-error", "stay"),
    ("fake-429", "stay"),
    ("fake:pace=20", "stay"),
    ("fake:pace=500", "leave"),
    ("fake-hang-body", "leave"),
    ("fake-hang", "leave"),
    ("fake-hang-body", "stay"),
    ("fake-hang", "stay"),
]


def one_of_a_crowd(person: Person, number: int) -> str:
    """What became of one call: cut, ended, or left by its client."""
    api = (CHAT, RESPONSES, MESSAGES)[number % 3]
    model, conduct = CROWD[number % len(CROWD)]
    if model == "fake-429":
        model += f"-{number}"  # the key is not used again for this model
    with person.connect() as connection:
        body = api.body(f"crowd member {number} " * 9, stream=True, model=model)
        connection.request("POST", DATA_PLANE + api.path(), person.bearer, body)
        if conduct == "leave":
            if model != "fake-hang":
                connection.read_some()
            return "left"
        return "ended" if connection.answer().complete else "cut"


def test_nothing_is_left_of_a_crowd(guest: Person, fake: FakeProvider) -> None:
    size = 6 * len(CROWD)
    with ThreadPoolExecutor(24) as pool:
        ends = Counter(pool.map(partial(one_of_a_crowd, guest), range(size)))
    assert ends == {"left": 18, "cut": 18, "ended": 30}

    def recorded() -> list[dict[str, Any]]:
        mine = [
            record
            for record in guest.server.interceptions()
            if any(told["prompt"].startswith("crowd member") for told in record["user_prompts"])
        ]
        return mine if len(mine) == size and all(record["ended_at"] for record in mine) else []

    outcomes = Counter(record["outcome"] for record in eventually(recorded, what="all are recorded"))
    assert outcomes == {"client_closed": 18, "completed": 6, "upstream_error": 42}
    eventually(lambda: guest.server.metric("ostiary_interceptions_inflight") == 0)
    eventually(lambda: guest.server.metric("ostiary_client_connections") <= 1, what="connections are closed")
    eventually(lambda: fake.requests(limit=0)["open"] == 0, what="no upstream is left running")
