"""A provider that fails, misbehaves or is odd: the client is told the truth, and so is the record."""

import re
import socket
import struct
import time
from typing import Any

import anthropic
import openai
import pytest

from tests.e2e.conftest import (
    APIS,
    CHAT,
    DATA_PLANE,
    MESSAGE_START,
    MESSAGES,
    RESPONSES,
    STREAM_HEAD,
    STRICT,
    Api,
    Person,
    RawRequest,
    RawUpstream,
    error_of,
)
from tests.support.fake_provider import FakeProvider
from tests.support.raw_http import Answer, ask, header_in
from tests.support.server import Server


def failures(server: Server, provider: str, failure: str) -> float:
    return server.metric("ostiary_upstream_failures_total", provider=provider, failure=failure)


def failed(record: dict[str, Any], status: int, error_type: str) -> str:
    """The message of a record that tells of an upstream's failure."""
    assert (record["outcome"], record["status_code"]) == ("upstream_error", status)
    assert record["error_type"] == error_type
    message: str = record["error_message"]
    return message


# --- no answer at all


@pytest.mark.parametrize("api", APIS)
def test_an_upstream_that_refuses_the_connection(guest: Person, api: Api) -> None:
    provider = "dead-claude" if api is MESSAGES else "dead"
    counted = failures(guest.server, provider, "connect")
    answer = guest.call(api.path(provider), api.body("into the void"))
    assert answer.status == 502
    assert f"The provider {provider!r} could not be reached" in error_of(answer, api)["message"]
    record = guest.server.interception(answer.interception_id)
    assert "cannot connect to 127.0.0.1" in failed(record, 502, "server_error")
    assert [prompt["prompt"] for prompt in record["user_prompts"]] == ["into the void"]
    attempts = record["trace"]["attempts"]
    assert len(attempts) == 2, "one retry where nothing can have been done twice"
    assert all("cannot connect" in attempt["error"] for attempt in attempts)
    assert failures(guest.server, provider, "connect") == counted + 2


def test_the_sdks_know_an_unreachable_provider_as_a_server_error(guest: Person) -> None:
    url = f"{guest.server.url}{DATA_PLANE}"
    with openai.OpenAI(base_url=f"{url}/dead/v1", api_key=guest.token, max_retries=0) as client:
        with pytest.raises(openai.InternalServerError, match="could not be reached") as caught:
            client.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}])
        assert caught.value.status_code == 502
    with anthropic.Anthropic(base_url=f"{url}/dead-claude", api_key=guest.token, max_retries=0) as claude:
        with pytest.raises(anthropic.InternalServerError, match="could not be reached") as told:
            claude.messages.create(model="m", max_tokens=1, messages=[{"role": "user", "content": "x"}])
        assert told.value.status_code == 502


def test_passthrough_to_an_upstream_that_refuses_is_not_recorded(guest: Person) -> None:
    answer = ask(guest.server.port, "GET", f"{DATA_PLANE}/dead/v1/models", guest.bearer)
    assert answer.status == 502
    assert answer.header("x-ostiary-interception-id") is None
    assert answer.header("x-ostiary-request-id")


def test_an_address_that_only_machines_have_secrets_at_is_never_connected_to(guest: Person) -> None:
    answer = guest.call(CHAT.path("metadata"), CHAT.body())
    assert answer.status == 502
    assert "egress_allow" in error_of(answer, CHAT)["message"]
    failed(guest.server.interception(answer.interception_id), 502, "server_error")


def test_an_upstream_that_says_nothing(guest: Person) -> None:
    """All three at once: each takes as long as the time-out."""
    begin = time.monotonic()
    apis = (CHAT, RESPONSES, MESSAGES)
    connections = [guest.connect() for _ in apis]
    for api, connection in zip(apis, connections, strict=True):
        connection.request("POST", DATA_PLANE + api.path(), guest.bearer, api.body(model="fake-hang", stream=True))
    for api, connection in zip(apis, connections, strict=True):
        with connection:
            answer = connection.answer()
        assert answer.status == 504
        assert "no response head in time" in error_of(answer, api)["message"]
        record = guest.server.interception(answer.interception_id)
        assert "no response head" in failed(record, 504, "timeout")
    assert STRICT - 1 < time.monotonic() - begin < len(apis) * STRICT


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("place", ["before-head", "mid-head"])
@pytest.mark.parametrize("how", ["", " reset"])
def test_an_upstream_that_closes_before_its_head_is_complete(guest: Person, api: Api, place: str, how: str) -> None:
    answer = guest.call(api.path(), api.body(model=f"fake:cut={place}{how}"))
    assert answer.status == 502
    assert "closed the connection before the response head" in error_of(answer, api)["message"]
    failed(guest.server.interception(answer.interception_id), 502, "server_error")


def pooled(guest: Person, upstream: RawUpstream) -> socket.socket:
    """An idle connection that the worker will take for its next request."""
    with guest.connect() as connection:
        connection.request("POST", DATA_PLANE + CHAT.path("raw"), guest.bearer, CHAT.body())
        request = upstream.accept()
        request.send(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}")
        assert connection.answer().status == 200
    return request.connection


def test_a_pooled_connection_that_closes_in_the_moment_of_use_is_replaced(guest: Person, upstream: RawUpstream) -> None:
    body = CHAT.body("x" * 100_000)
    with pooled(guest, upstream) as idle, guest.connect() as connection:
        connection.request("POST", DATA_PLANE + CHAT.path("raw"), guest.bearer, body)
        first = RawRequest(idle)
        idle.close()
        with upstream.request() as second:
            assert second.raw == first.raw
            second.answer()
        answer = connection.answer()
    assert answer.status == 200
    record = guest.server.interception(answer.interception_id)
    assert record["outcome"] == "completed"
    attempts = record["trace"]["attempts"]
    assert [attempt.get("reused_connection", False) for attempt in attempts] == [True, False]
    assert [attempt.get("status", 0) for attempt in attempts] == [0, 200]


def test_a_request_that_may_have_been_heard_is_not_sent_again(guest: Person, upstream: RawUpstream) -> None:
    with pooled(guest, upstream) as idle, guest.connect() as connection:
        connection.request("POST", DATA_PLANE + CHAT.path("raw"), guest.bearer, CHAT.body())
        RawRequest(idle)
        idle.sendall(b"HTTP/1.1 2")
        idle.close()
        answer = connection.answer()
    assert answer.status == 502
    record = guest.server.interception(answer.interception_id)
    failed(record, 502, "server_error")
    assert len(record["trace"]["attempts"]) == 1


NOT_HTTP = {
    "another protocol": b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
    "HTTP/2": b"HTTP/2.0 200 OK\r\nContent-Length: 2\r\n\r\n{}",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 4\r\n\r\n{}{}",
    "both framings": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "an unknown transfer coding": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
    "a signed length": b"HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\n{}",
    "a folded line": b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 0\r\n\r\n",
    "a zero byte": b"HTTP/1.1 200 OK\r\nX: a\0b\r\nContent-Length: 0\r\n\r\n",
    "an endless head": b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70_000,
    "a switch of protocols": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n",
    "no status": b"HTTP/1.1 OK\r\n\r\n",
}


@pytest.mark.parametrize("what", NOT_HTTP)
def test_an_answer_that_is_not_http_of_one_meaning(guest: Person, upstream: RawUpstream, what: str) -> None:
    counted = failures(guest.server, "raw", "protocol")
    with guest.connect() as connection:
        connection.request("POST", DATA_PLANE + CHAT.path("raw"), guest.bearer, CHAT.body())
        with upstream.request() as request:
            request.send(NOT_HTTP[what])
            answer = connection.answer()
    assert answer.status == 502
    error_of(answer, CHAT)
    failed(guest.server.interception(answer.interception_id), 502, "server_error")
    assert failures(guest.server, "raw", "protocol") == counted + 1


# --- half an answer


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize(
    "control",
    [
        "cut=mid-body",
        "cut=mid-event",
        "cut=mid-chunk",
        "cut=mid-body framing=length",
        "length-excess=10 framing=length",
        "cut=mid-body tear=9",
        "cut=mid-body encoding=gzip",
    ],
)
def test_a_stream_cut_in_the_middle_has_no_clean_end(guest: Person, fake: FakeProvider, api: Api, control: str) -> None:
    counted = failures(guest.server, api.provider, "cut")
    usage: dict[str, Any] = {"stream_options": {"include_usage": True}} if api is CHAT else {}
    body = api.body("to be cut " * 30, stream=True, model=f"fake:{control}", **usage)
    headers = {"Accept-Encoding": "gzip"}
    through = guest.call(api.path(), body, headers)
    direct = ask(fake.url, "POST", api.route, {"Authorization": "Bearer sk", **headers}, body)
    assert through.status == direct.status == 200
    assert not through.complete
    assert not direct.complete
    assert through.body
    assert "encoding" in control or len(through.body) == len(direct.body)
    assert not through.wire.endswith(b"\r\n0\r\n\r\n")
    record = guest.server.interception(through.interception_id)
    assert "middle of the response" in failed(record, 200, "server_error")
    assert record["provider_response_id"]
    assert failures(guest.server, api.provider, "cut") == counted + 1


def test_a_stream_cut_in_the_middle_has_no_clean_end_when_its_usage_is_withheld(guest: Person) -> None:
    through = guest.call(CHAT.path(), CHAT.body("to be cut " * 30, stream=True, model="fake:cut=mid-event"))
    assert not through.complete
    assert through.body.startswith(b"data: {")
    assert through.body.endswith(b"\n\n"), "half an event cannot be judged, so it is not passed on"
    failed(guest.server.interception(through.interception_id), 200, "server_error")


@pytest.mark.parametrize("api", APIS)
def test_a_body_cut_in_the_middle(guest: Person, api: Api) -> None:
    answer = guest.call(api.path(), api.body("to be cut " * 30, model="fake:cut=mid-body"))
    assert (answer.status, answer.complete) == (200, False)
    assert answer.body.startswith(b"{")
    record = guest.server.interception(answer.interception_id)
    failed(record, 200, "server_error")
    assert record["token_usages"] == record["tool_usages"] == []


@pytest.mark.parametrize("api", APIS)
def test_a_stream_that_is_reset(guest: Person, api: Api) -> None:
    answer = guest.call(api.path(), api.body("to be cut " * 30, stream=True, model="fake-reset"))
    assert (answer.status, answer.complete) == (200, False)
    failed(guest.server.interception(answer.interception_id), 200, "server_error")


def test_a_stream_that_stalls_is_cut_after_its_time(guest: Person) -> None:
    apis = (CHAT, RESPONSES, MESSAGES)
    connections = [guest.connect() for _ in apis]
    for api, connection in zip(apis, connections, strict=True):
        body = api.body("stalling " * 30, stream=True, model="fake-hang-body")
        connection.request("POST", DATA_PLANE + api.path(), guest.bearer, body)
    for connection in connections:
        with connection:
            answer = connection.answer()
        assert (answer.status, answer.complete) == (200, False)
        record = guest.server.interception(answer.interception_id)
        assert "stalled" in failed(record, 200, "timeout")


@pytest.mark.parametrize("end", ["closed", "reset"])
def test_an_answer_without_framing_ends_with_its_connection(guest: Person, upstream: RawUpstream, end: str) -> None:
    """A clean close is its end; a reset is none, and the client must see the difference."""
    with guest.connect() as connection:
        connection.request("POST", DATA_PLANE + MESSAGES.path("raw-claude"), guest.bearer, MESSAGES.body(stream=True))
        with upstream.request() as request:
            request.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + MESSAGE_START)
            seen = b""
            while b"msg_seen" not in seen:
                seen += connection.read_some()
            if end == "reset":
                request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        rest = b""
        while not (end == "closed" and rest.endswith(b"0\r\n\r\n")) and (more := connection.read_some()):
            rest += more
    assert b"Transfer-Encoding: chunked" in seen
    assert (seen + rest).endswith(b"\r\n0\r\n\r\n") == (end == "closed")
    record = guest.server.interception(header_in(seen, "x-ostiary-interception-id"))
    assert record["outcome"] == ("completed" if end == "closed" else "upstream_error")
    assert record["provider_response_id"] == "msg_seen"
    assert [usage["cache_read_input_tokens"] for usage in record["token_usages"]] == [5]


def test_broken_chunks_of_an_answer_cut_it(guest: Person, upstream: RawUpstream) -> None:
    with guest.connect() as connection:
        connection.request("POST", DATA_PLANE + MESSAGES.path("raw-claude"), guest.bearer, MESSAGES.body(stream=True))
        with upstream.request() as request:
            request.send(STREAM_HEAD + b"%x\r\n%b\r\n" % (len(MESSAGE_START), MESSAGE_START))
            while b"msg_seen" not in (seen := connection.read_some()):
                pass
            request.send(b"zz\r\nnonsense\r\n0\r\n\r\n")
            rest = b""
            while more := connection.read_some():
                rest += more
    assert b"nonsense" not in seen + rest
    record = guest.server.interception(header_in(seen, "x-ostiary-interception-id"))
    assert "chunks" in failed(record, 200, "server_error")


def test_what_stands_behind_an_answer_belongs_to_nobody(guest: Person, upstream: RawUpstream) -> None:
    poison = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 8\r\n\r\n{"evil":1}'
    path, body = DATA_PLANE + CHAT.path("raw"), CHAT.body()
    for framing in (b"Content-Length: 2\r\n\r\n{}", b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"):
        with guest.connect() as connection:
            connection.request("POST", path, guest.bearer, body)
            with upstream.request() as request:
                request.send(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n" + framing + poison)
                first = connection.answer()
            if first.complete:
                assert first.body == b"{}"
                connection.request("POST", path, guest.bearer, body)
                with upstream.request() as request:  # on a connection of its own
                    request.answer(b'{"good":1}')
                    assert connection.answer().body == b'{"good":1}'
            assert b"evil" not in first.wire


def test_a_redirect_is_relayed_and_not_followed(guest: Person, upstream: RawUpstream) -> None:
    with guest.connect() as connection:
        connection.request("POST", DATA_PLANE + CHAT.path("raw"), guest.bearer, CHAT.body())
        with upstream.request() as request:
            request.send(
                b"HTTP/1.1 307 Temporary Redirect\r\nLocation: http://127.0.0.1:9/x\r\nContent-Length: 0\r\n"
                b"Connection: close\r\n\r\n"
            )
            answer = connection.answer()
    assert (answer.status, answer.header("location")) == (307, "http://127.0.0.1:9/x")


# --- odd, but right

ODDITIES = [
    "crlf",
    "comments=1",
    "unknown",
    "multiline",
    "pings=1",
    "tear=1",
    "chunk=1",
    "chunk=11 crlf",
    "crlf comments=2 unknown multiline tear=3",
    "encoding=br crlf comments=1 unknown tear=5",
    "framing=close crlf unknown",
]


def without_ids(stream: bytes) -> bytes:
    """Of two answers to the same request only these differ."""
    return re.sub(rb'[0-9a-f]{24,}|"(created|created_at|completed_at)": ?\d+', b"", stream)


@pytest.mark.parametrize("api", APIS)
def test_an_odd_stream_comes_untouched_and_is_read_right(guest: Person, fake: FakeProvider, api: Api) -> None:
    usage: dict[str, Any] = {"stream_options": {"include_usage": True}} if api is CHAT else {}
    headers = {"Accept-Encoding": "br"}
    answers: dict[str, Answer] = {}
    for oddity in ODDITIES:
        control = f"fake:{oddity} input-tokens=31 output-tokens=17 cache-read=3"
        body = api.body("odd, is it not? " * 5, stream=True, model=control, **usage)
        through = guest.call(api.path(), body, headers)
        direct = ask(fake.url, "POST", api.route, {"Authorization": "Bearer sk", **headers}, body)
        assert through.complete, oddity
        if "encoding" in oddity:
            assert through.header("content-encoding") == "br"
        else:
            assert without_ids(through.body) == without_ids(direct.body), oddity
        answers[oddity] = through
    for oddity, answer in answers.items():
        record = guest.server.interception(answer.interception_id)
        assert (record["outcome"], record["unparsed"]) == ("completed", False), oddity
        assert record["provider_response_id"], oddity
        (told,) = record["token_usages"]
        assert (told["output_tokens"], told["cache_read_input_tokens"]) == (17, 3), oddity
        assert told["input_tokens"] == 31, oddity
        assert not record["trace"].get("notes"), oddity


def test_an_odd_stream_loses_nothing_but_the_usage_nobody_asked_for(guest: Person, fake: FakeProvider) -> None:
    for oddity in (one for one in ODDITIES if "encoding" not in one):
        body = CHAT.body("odd, is it not? " * 5, stream=True, model=f"fake:{oddity} output-tokens=17")
        through = guest.call(CHAT.path(), body)
        asking = body.replace(b"{", b'{"stream_options":{"include_usage":true},', 1)
        direct = ask(fake.url, "POST", CHAT.route, {"Authorization": "Bearer sk"}, asking)
        events = re.findall(rb"(?s).+?(?:\r\n\r\n|\n\n)", direct.body)
        withheld = [event for event in events if re.search(rb'(?s)"choices": ?\[\].*"usage": ?\{', event)]
        assert len(withheld) == 1
        expected = b"".join(event for event in events if event not in withheld)
        assert through.complete
        assert without_ids(through.body) == without_ids(expected), oddity
        record = guest.server.interception(through.interception_id)
        assert [usage["output_tokens"] for usage in record["token_usages"]] == [17], oddity


@pytest.mark.parametrize("asked", [False, True])
def test_an_answer_is_read_as_what_it_says_it_is(guest: Person, upstream: RawUpstream, asked: bool) -> None:
    """JSON to a request for a stream, events to a request for none."""
    whole = b'{"id":"msg_seen","type":"message","model":"m","content":[],"usage":{"input_tokens":21,"output_tokens":4}}'
    with guest.connect() as connection:
        path = DATA_PLANE + MESSAGES.path("raw-claude")
        connection.request("POST", path, guest.bearer, MESSAGES.body(stream=asked))
        with upstream.request() as request:
            request.answer(
                whole if asked else MESSAGE_START, content_type="application/json" if asked else "text/event-stream"
            )
        answer = connection.answer()
    record = guest.server.interception(answer.interception_id)
    assert (record["provider_response_id"], record["streaming"]) == ("msg_seen", asked)
    assert [usage["input_tokens"] for usage in record["token_usages"]] == [21]


def test_an_answer_in_an_unknown_coding_flows_and_is_recorded_as_unread(guest: Person, upstream: RawUpstream) -> None:
    body = bytes(range(256))
    unread = guest.server.metric("ostiary_unparsed_answers_total", provider="raw")
    with guest.connect() as connection:
        connection.request("POST", DATA_PLANE + CHAT.path("raw"), guest.bearer, CHAT.body())
        with upstream.request() as request:
            head = (
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Encoding: dcb\r\nConnection: close\r\n"
            )
            request.send(head + b"Content-Length: 256\r\n\r\n" + body)
        answer = connection.answer()
    assert (answer.body, answer.header("content-encoding")) == (body, "dcb")
    record = guest.server.interception(answer.interception_id)
    assert (record["outcome"], record["unparsed"]) == ("completed", True)
    assert guest.server.metric("ostiary_unparsed_answers_total", provider="raw") == unread + 1


@pytest.mark.parametrize(
    "content_type", [b"", b"Content-Type: text/plain\r\n", b"Content-Type: application/x-ndjson\r\n"]
)
def test_an_answer_that_does_not_say_what_it_is_flows_and_is_recorded_as_unread(
    guest: Person, upstream: RawUpstream, content_type: bytes
) -> None:
    body = b'data: {"id":"x","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4}}\n\ndata: [DONE]\n\n'
    with guest.connect() as connection:
        connection.request("POST", DATA_PLANE + CHAT.path("raw"), guest.bearer, CHAT.body(stream=True))
        with upstream.request() as request:
            request.send(b"HTTP/1.1 200 OK\r\n%bContent-Length: %d\r\n\r\n%b" % (content_type, len(body), body))
            answer = connection.answer()
    assert answer.body == body
    record = guest.server.interception(answer.interception_id)
    assert (record["outcome"], record["unparsed"], record["token_usages"]) == ("completed", True, [])
    (note,) = record["trace"]["notes"]
    assert "Content-Type" in note


@pytest.mark.parametrize(
    "said",
    [b'[{"error":{"code":400,"message":"no such thing"}}]', b'{"detail":"no such thing"}'],
    ids=["list", "detail"],
)
@pytest.mark.parametrize("api", APIS)
def test_what_a_provider_says_of_its_error_is_recorded_in_whatever_shape(
    guest: Person, upstream: RawUpstream, api: Api, said: bytes
) -> None:
    with guest.connect() as connection:
        connection.request("POST", DATA_PLANE + api.path(api.raw), guest.bearer, api.body())
        with upstream.request() as request:
            head = b"HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
            request.send(head % len(said) + said)
            answer = connection.answer()
    assert (answer.status, answer.body) == (400, said)
    record = guest.server.interception(answer.interception_id)
    assert (record["outcome"], record["error_type"], record["unparsed"]) == ("upstream_error", "bad_request", False)
    assert record["error_message"] == "no such thing"


def test_an_answer_that_is_no_json_though_it_says_so(guest: Person, upstream: RawUpstream) -> None:
    with guest.connect() as connection:
        connection.request("POST", DATA_PLANE + CHAT.path("raw"), guest.bearer, CHAT.body())
        with upstream.request() as request:
            request.answer(b"<html>surprise</html>")
        answer = connection.answer()
    assert answer.body == b"<html>surprise</html>"
    record = guest.server.interception(answer.interception_id)
    assert (record["outcome"], record["unparsed"]) == ("completed", True)
