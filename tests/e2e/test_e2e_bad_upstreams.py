"""Providers that talk nonsense: no call hangs, no worker dies, no number is made up, and the client gets what was said."""

import itertools
import json
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from email.utils import formatdate
from functools import partial
from typing import Any

import pytest

from tests.e2e.conftest import APIS, CHAT, DATA_PLANE, MESSAGES, Api, Person, RawUpstream, added_provider
from tests.support.raw_http import Answer
from tests.support.server import eventually

_numbers = itertools.count(1)


@contextmanager
def provider_of_ones_own(guest: Person, upstream: RawUpstream, api: Api, keys: int = 1) -> Iterator[str]:
    """Its keys and their states are nobody else's."""
    number = f"{os.getpid()}-{next(_numbers)}"
    name = f"bad-{number}"
    fields = {
        "type": "anthropic" if api is MESSAGES else "openai",
        "base_url": upstream.url if api is MESSAGES else f"{upstream.url}/v1",
        "api_keys": [f"sk-bad-{number}-{key}-0123456789abcdef" for key in range(keys)],
    }
    with added_provider(guest.server, name, fields):
        yield name


def exchange(guest: Person, upstream: RawUpstream, path: str, body: bytes, *answers: bytes) -> Answer:
    """One call; each of its attempts gets the next of the answers, and then the end of its connection."""

    def serve() -> None:
        for answer in answers:
            with upstream.request() as request:
                request.send(answer)

    with guest.connect() as connection, ThreadPoolExecutor(1) as pool:
        connection.request("POST", DATA_PLANE + path, guest.bearer, body)
        served = pool.submit(serve)  # beside the client: no more is taken than it reads
        answer = connection.answer()
        served.result()
        return answer


def response(body: bytes, content_type: str = "application/json", status: str = "200 OK", *more: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Type: {content_type}", f"Content-Length: {len(body)}", *more, "", ""]
    return "\r\n".join(lines).encode() + body


def ended(guest: Person, answer: Answer) -> dict[str, Any]:
    record = guest.server.interception(answer.interception_id)
    assert record["ended_at"]
    return record


# --- answers that are not what they say

DEEP = b"[" * 200_000 + b"]" * 200_000
GIANT = b'{"id":"x","choices":[],"pad":"' + b"x" * (8 * 1024 * 1024) + b'"}'
ODD_NUMBERS = (
    b'{"id":"x","model":"m","type":"message","usage":{"prompt_tokens":-5,"completion_tokens":1e400,"input_tokens":-7,'
    b'"output_tokens":"many","total_tokens":null}}'
)
HUGE_NUMBERS = (
    b'{"id":"x","model":"m","type":"message","usage":{"prompt_tokens":99999999999999999999999999,"completion_tokens":3,'
    b'"input_tokens":99999999999999999999999999,"output_tokens":3}}'
)
NOT_WHAT_IT_SAYS = {
    "html": response(b"<html><body>It works!</body></html>", "text/html"),
    "html as json": response(b"<html><body>It works!</body></html>"),
    "truncated json": response(b'{"id":"x","choices":[{"message":{"conte'),
    "an array": response(b"[1,2,3]"),
    "null": response(b"null"),
    "wrong types": response(b'{"id":7,"model":[],"choices":{"a":1},"content":"x","output":3,"usage":[1]}'),
    "nothing at all": response(b""),
    "no media type": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
    "a broken media type": response(b"{}", ";;;=,"),
    "not utf-8": response(b'{"id":"\xff\xfe","choices":[]}'),
    "deep": response(DEEP),
    "giant": response(GIANT),
    "odd numbers": response(ODD_NUMBERS),
    "huge numbers": response(HUGE_NUMBERS),
    "garbage as events": response(
        b"\x00\xff garbage\n\ndata: {nonsense\n\n:::\n\ndata: [DONE]\n\n", "text/event-stream"
    ),
    "deep events": response(b"data: " + DEEP + b"\n\n", "text/event-stream"),
    "an event that never ends": response(b"data: " + b"x" * 3_000_000, "text/event-stream"),
    "json as events": response(b'{"id":"x"}', "text/event-stream"),
    "events as json": response(b'data: {"id":"x"}\n\n'),
    "not gzip": response(b"this is not gzip", "application/json", "200 OK", "Content-Encoding: gzip"),
    "an unknown coding": response(b"{}", "application/json", "200 OK", "Content-Encoding: rot13"),
}


@pytest.mark.parametrize("api", APIS)
def test_answers_that_are_not_what_they_say_go_through_and_nothing_is_made_up_of_them(
    guest: Person, upstream: RawUpstream, api: Api
) -> None:
    for name, wire in NOT_WHAT_IT_SAYS.items():
        answer = exchange(guest, upstream, api.path(api.raw), api.body(stream="event" in name), wire)
        assert (answer.status, answer.complete) == (200, True), name
        assert answer.body == wire.partition(b"\r\n\r\n")[2], name
        record = ended(guest, answer)
        assert (record["outcome"], record["status_code"]) == ("completed", 200), name
        for usage in record["token_usages"]:
            assert 0 <= usage["input_tokens"] < 2**63, (name, usage)
            assert 0 <= usage["output_tokens"] in (0, 3), (name, usage)
        if "numbers" not in name:
            assert record["token_usages"] == [], name
        assert record["tool_usages"] == [], name


@pytest.mark.parametrize("api", APIS)
def test_an_answer_shorter_than_it_says_is_cut_for_the_client_too(
    guest: Person, upstream: RawUpstream, api: Api
) -> None:
    wire = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n{"id":"x"'
    answer = exchange(guest, upstream, api.path(api.raw), api.body(), wire)
    assert (answer.status, answer.body, answer.complete) == (200, b'{"id":"x"', False)
    record = ended(guest, answer)
    assert (record["outcome"], record["error_type"]) == ("upstream_error", "server_error")
    assert record["token_usages"] == []


@pytest.mark.parametrize("status", ["401 Unauthorized", "429 Too Many Requests", "400 Bad Request"])
def test_a_refusal_shorter_than_it_says_is_cut_for_the_client_too(
    guest: Person, upstream: RawUpstream, status: str
) -> None:
    """Such an answer is held, as it may speak of the key."""
    wire = f'HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n{{"error":'.encode()
    with provider_of_ones_own(guest, upstream, CHAT) as provider:
        counted = guest.server.metric("ostiary_upstream_failures_total", provider=provider)
        answer = exchange(guest, upstream, CHAT.path(provider), CHAT.body(), wire)
        assert (answer.status, answer.body, answer.complete) == (int(status[:3]), b'{"error":', False)
        assert ended(guest, answer)["outcome"] == "upstream_error"
        assert guest.server.metric("ostiary_upstream_failures_total", provider=provider) == counted + 1


def test_a_long_body_that_will_not_be_read_is_refused_at_once_and_for_what_it_is(guest: Person) -> None:
    """Longer than all the memory for bodies together, of which it takes nothing."""
    with guest.connect() as connection:
        length = {"Content-Length": str(10 * 1024**3)}
        connection.send(connection.head("POST", DATA_PLANE + CHAT.path(), guest.bearer | length))
        answer = connection.answer()
    assert answer.status == 413
    assert "body_max_bytes" in answer.json()["error"]["message"]


# --- how long to wait

# Header lines, and the seconds that a client is told then; None: any that are bounded.
FAR, PAST = formatdate(time.time() + 365 * 86400, usegmt=True), formatdate(time.time() - 3600, usegmt=True)
WAITS: dict[str, tuple[list[str], int | None]] = {
    "a year": (["Retry-After: 31536000"], 3600),
    "a date in a year": ([f"Retry-After: {FAR}"], 3600),
    "a date in the past": ([f"Retry-After: {PAST}"], 1),
    "no date": (["Retry-After: Fri, 99 Foo 99999 99:99:99 GMT"], 60),
    "a year beyond all": (["Retry-After: Fri, 31 Dec 999999 23:59:59 GMT"], None),
    "nonsense": (["Retry-After: soon\t;)"], 60),
    "nothing": (["Retry-After:"], 60),
    "negative": (["Retry-After: -5"], 60),
    "huge": (["Retry-After: " + "9" * 5000], 3600),
    "exponent": (["Retry-After: 1e300"], 60),
    "not a number": (["retry-after-ms: NaN"], 60),
    "infinite": (["retry-after-ms: Infinity"], 60),
    "not a number, and seconds": (["retry-after-ms: NaN", "Retry-After: 7"], 7),
    "a fraction": (["retry-after-ms: 1500.5"], 2),
    "twice": (["Retry-After: 5", "Retry-After: 9"], None),
}


def timeline(guest: Person, provider: str) -> Any:
    """What was told of its only key so far."""
    (key,) = guest.server.get(f"/api/v2/ai/providers/{provider}/keys")["keys"]
    return key["replicas"] and key["replicas"][0]["timeline"]


@pytest.mark.parametrize("name", WAITS)
def test_how_long_a_key_rests_is_bounded_whatever_the_provider_says(
    guest: Person, upstream: RawUpstream, name: str
) -> None:
    lines, expected = WAITS[name]
    body = json.dumps({"error": {"message": "slow down", "type": "requests", "code": "rate_limit_exceeded"}}).encode()
    with provider_of_ones_own(guest, upstream, CHAT) as provider:
        wire = response(body, "application/json", "429 Too Many Requests", *lines)
        first = exchange(guest, upstream, CHAT.path(provider), CHAT.body(), wire)
        assert (first.status, first.body) == (429, body), "as it came"
        assert ended(guest, first)["error_type"] == "rate_limited"
        if expected is not None:
            (cooled,) = eventually(partial(timeline, guest, provider), what="told to the control plane")
            rests = datetime.fromisoformat(cooled["until"]) - datetime.fromisoformat(cooled["at"])
            assert expected <= rests.total_seconds() <= expected + 2  # both are told in whole seconds
            if expected < 5:
                return  # it may be over on a busy machine
        began = time.monotonic()
        second = guest.call(CHAT.path(provider), CHAT.body())  # nobody answers it upstream
        assert time.monotonic() - began < 15
        assert second.status == 429
        assert "have reached their limits" in second.json()["error"]["message"]
        wait = int(second.header("retry-after") or "")
        assert 1 <= wait <= 3600
        assert expected is None or expected - 60 <= wait <= expected
        assert ended(guest, second)["outcome"] == "rejected"
