"""When no key is left, what the client gets: the provider's last answer byte for byte, and from then on ours."""

import gzip
import json
import time
import uuid
from typing import NamedTuple

import anthropic
import openai
import pytest

from tests.e2e.conftest import (
    CHAT,
    DATA_PLANE,
    MESSAGES,
    Api,
    Person,
    RawRequest,
    RawUpstream,
    error_of,
    key_states,
    masked,
)
from tests.support.raw_http import Answer
from tests.support.server import Server, eventually

LIMITED = '{"error":{"message":"Slow down.","type":"requests","param":null,"code":"rate_limit_exceeded"}}'
REFUSED = '{"error":{"message":"Wrong key.","type":"invalid_request_error","param":null,"code":"invalid_api_key"}}'


def known_to_all(server: Server, name: str) -> None:
    """None of the keys is usable, and no worker thinks otherwise: what the API has been told, they have."""
    eventually(lambda: all(state != "usable" for state, _, _ in key_states(server, name)))


class Exchanged(NamedTuple):
    """What came of a call whose upstream is the test itself."""

    requests: list[RawRequest]
    answer: Answer


def played(person: Person, upstream: RawUpstream, path: str, api: Api, *answers: bytes) -> Exchanged:
    """One call; each attempt gets the next answer, and the connection ends behind it."""
    requests = []
    with person.connect() as connection:
        connection.request("POST", DATA_PLANE + path, person.bearer, api.body())
        for answer in answers:
            with upstream.request() as request:
                request.send(answer)
            requests.append(request)
        return Exchanged(requests, connection.answer())


def raw(status: str, body: str, more: str = "") -> bytes:
    return (
        f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        f"Connection: close\r\n{more}\r\n{body}"
    ).encode()


@pytest.mark.parametrize("api", [CHAT, MESSAGES], ids=["openai", "anthropic"])
@pytest.mark.parametrize("limited", [True, False])
def test_with_no_key_left_the_last_answer_is_relayed_and_then_ours_tells_when(
    person: Person, upstream: RawUpstream, api: Api, limited: bool
) -> None:
    base_url = upstream.url if api is MESSAGES else f"{upstream.url}/v1"
    refused = raw("401 Who Are You", REFUSED, "X-Odd:  kept \r\n")
    slow_down = raw("429 Not So Fast", LIMITED, "retry-after: 600\r\nX-Other: 1\r\n")
    sooner = raw("429 Nor So", LIMITED + "\n", "Retry-After: 300\r\n")
    answers = (refused, slow_down, sooner) if limited else (refused, refused, refused)
    keys = [f"sk-{uuid.uuid4().hex}" for _ in answers]
    server = person.server
    with server.provider(api.provider, base_url, *keys) as name:
        done = played(person, upstream, api.path(name), api, *answers)
        sent = [request.header("x-api-key" if api is MESSAGES else "authorization") for request in done.requests]
        assert [(value or "").removeprefix("Bearer ") for value in sent] == keys
        head, _, body = answers[-1].partition(b"\r\n\r\n")
        assert done.answer.status_line == head.split(b"\r\n")[0].decode()
        assert done.answer.body == body
        assert done.answer.header("retry-after") == ("300" if limited else None)
        assert done.answer.header("x-odd") == (None if limited else "kept")
        record = server.interception(done.answer.interception_id)
        assert (record["outcome"], record["status_code"]) == ("upstream_error", done.answer.status)
        assert record["credential_hint"] == masked(keys[-1])
        assert len(record["trace"]["attempts"]) == 3
        known_to_all(server, name)
        answer = person.call(api.path(name), api.body())
        assert answer.status == (429 if limited else 502)
        error = error_of(answer, api)
        assert f"ostiary providers keys {name}" in error["message"]
        if limited:
            assert 240 <= int(answer.header("retry-after") or 0) <= 300
            expected = "rate_limit_error" if api is MESSAGES else "requests"
        else:
            assert answer.header("retry-after") is None
            expected = "api_error" if api is MESSAGES else "server_error"
        assert error["type"] == expected
        record = server.interception(answer.interception_id)
        assert (record["outcome"], record["status_code"]) == ("rejected", answer.status)
        assert "attempts" not in record["trace"]
        outcome = "rate_limited" if limited else "auth_failed"
        assert server.metric("ostiary_key_pool_exhaustions_total", provider=name, outcome=outcome) == 2
        raised_by_sdks(person, name, api, limited=limited)


def raised_by_sdks(person: Person, name: str, api: Api, *, limited: bool) -> None:
    url = f"{person.server.url}{DATA_PLANE}/{name}"
    if api is MESSAGES:
        with (
            anthropic.Anthropic(base_url=url, api_key=person.token, max_retries=0) as claude_client,
            pytest.raises(anthropic.RateLimitError if limited else anthropic.InternalServerError),
        ):
            claude_client.messages.create(
                model="test-model", max_tokens=9, messages=[{"role": "user", "content": "x"}], stream=True
            )
    else:
        with (
            openai.OpenAI(base_url=f"{url}/v1", api_key=person.token, max_retries=0) as client,
            pytest.raises(openai.RateLimitError if limited else openai.InternalServerError),
        ):
            client.chat.completions.create(model="test-model", messages=[{"role": "user", "content": "x"}], stream=True)


# --- errors of the only key

LONG = json.dumps({"error": {"message": "x" * 300_000, "type": "requests", "code": "rate_limit_exceeded"}}).encode()
SHORT = LIMITED.encode()
KIND = b"Content-Type: application/json\r\nConnection: close\r\n"


def in_chunks(body: bytes, size: int) -> bytes:
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%X;a=b\r\n%b\r\n" % (len(part), part) for part in parts) + b"000\r\nX-Trailer: t\r\n\r\n"


def length(body: bytes) -> bytes:
    return b"Content-Length: %d\r\n\r\n%b" % (len(body), body)


FRAMED = {
    "with a length": (length(SHORT), SHORT),
    "empty": (length(b""), b""),
    "no JSON": (length(b"<html>no</html>"), b"<html>no</html>"),
    "long": (length(LONG), LONG),
    "chunked": (b"Transfer-Encoding: chunked\r\n\r\n" + in_chunks(SHORT, 7), SHORT),
    "long, chunked": (b"Transfer-Encoding: chunked\r\n\r\n" + in_chunks(LONG, 999), LONG),
    "until the end": (b"\r\n" + SHORT, SHORT),
    "long, until the end": (b"\r\n" + LONG, LONG),
    "gzip": (b"Content-Encoding: gzip\r\n" + length(gzip.compress(SHORT, mtime=0)), gzip.compress(SHORT, mtime=0)),
    "gzip, chunked": (
        b"Content-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n" + in_chunks(gzip.compress(SHORT, mtime=0), 5),
        gzip.compress(SHORT, mtime=0),
    ),
}


@pytest.mark.parametrize("framing", FRAMED)
@pytest.mark.parametrize("status", [b"429 Slow", b"401 No"])
def test_an_error_of_the_only_key_comes_through_whatever_its_framing(
    person: Person, upstream: RawUpstream, framing: str, status: bytes
) -> None:
    rest, body = FRAMED[framing]
    with person.server.provider("openai", f"{upstream.url}/v1") as name:
        done = played(person, upstream, CHAT.path(name), CHAT, b"HTTP/1.1 " + status + b"\r\n" + KIND + rest)
        answer = done.answer
        assert (answer.status_line, answer.complete) == (f"HTTP/1.1 {status.decode()}", True)
        assert answer.body == body
        if b"chunked" in rest:
            assert answer.wire == rest.partition(b"\r\n\r\n")[2]  # to the last extension and trailer
        record = person.server.interception(answer.interception_id)
        assert (record["outcome"], record["status_code"]) == ("upstream_error", int(status[:3]))
        known_to_all(person.server, name)
        assert person.call(CHAT.path(name), CHAT.body()).status == (429 if status.startswith(b"429") else 502)


def test_a_slow_error_gives_way_to_the_next_key(person: Person, upstream: RawUpstream) -> None:
    """After five seconds what has come of it has to do."""
    keys = [f"sk-{uuid.uuid4().hex}" for _ in range(2)]
    with (
        person.server.provider("openai", f"{upstream.url}/v1", *keys) as name,
        person.connect() as connection,
    ):
        connection.request("POST", DATA_PLANE + CHAT.path(name), person.bearer, CHAT.body())
        with upstream.request() as slow:
            begin = time.monotonic()
            slow.send(raw("429 Slow", LIMITED)[:-30])
            with upstream.request() as second:
                assert 4 < time.monotonic() - begin < 15
                assert keys[1].encode() in second.raw
                assert slow.seconds_until_gone() < 15, "its rest is not waited for"
                second.answer()
            answer = connection.answer()
    assert answer.status == 200


def test_a_slow_error_of_the_only_key_is_not_waited_for_to_its_end(person: Person, upstream: RawUpstream) -> None:
    """After five seconds what has come goes out, and the rest as it comes."""
    with (
        person.server.provider("openai", f"{upstream.url}/v1", f"sk-{uuid.uuid4().hex}") as name,
        person.connect() as connection,
    ):
        connection.request("POST", DATA_PLANE + CHAT.path(name), person.bearer, CHAT.body())
        with upstream.request() as request:
            wire = raw("429 Slow", LIMITED)
            begin = time.monotonic()
            request.send(wire[:-30])
            seen = connection.read_some()
            assert 4 < time.monotonic() - begin < 15
            request.send(wire[-30:])
            while not seen.endswith(wire[-30:]):
                more = connection.read_some()
                assert more, seen
                seen += more
    head, _, body = seen.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 429 Slow\r\n")
    assert body == LIMITED.encode()
