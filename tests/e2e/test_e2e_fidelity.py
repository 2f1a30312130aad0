"""What passes unchanged in both directions, and what is never passed on: down to the bytes of the heads."""

import hashlib
import json
import re
import zlib
from typing import Any

import pytest

from tests.e2e.conftest import (
    APIS,
    CHAT,
    DATA_PLANE,
    MESSAGES,
    RESPONSES,
    Api,
    Person,
    RawUpstream,
    error_of,
    refused,
)
from tests.support.fake_provider import FakeProvider
from tests.support.server import PROVIDER_KEY, eventually

STREAM = "text/event-stream"


# --- requests


def test_the_head_that_reaches_the_provider_is_the_clients_own_cut_down(guest: Person, upstream: RawUpstream) -> None:
    body = CHAT.body()
    sent = (
        f"POST {DATA_PLANE}/raw/v1/chat/completions HTTP/1.1\r\n"
        "Host: ostiary.example\r\n"
        "user-AGENT: My  Agent/1.0 (odd; spacing)\r\n"
        f"Authorization: Bearer {guest.token}\r\n"
        f"X-Api-Key: {guest.token}\r\n"
        f"Api-Key: {guest.token}\r\n"
        f"Cookie: session={guest.token}\r\n"
        "Connection: keep-alive, X-Only-Here, Content-Type\r\n"
        "X-Only-Here: 1\r\n"
        "Keep-Alive: timeout=5\r\n"
        "Proxy-Authorization: Basic eDp5\r\n"
        "Proxy-Connection: keep-alive\r\n"
        "TE: trailers\r\n"
        "Trailer: X-Sum\r\n"
        "HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n"
        "X-Forwarded-For: 203.0.113.7\r\n"
        "X-Forwarded-Host: a\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Port: 1\r\nX-Real-IP: 203.0.113.7\r\n"
        "Forwarded: for=203.0.113.7\r\n"
        "Via: 1.1 somewhere\r\n"
        "X-Ostiary-Timing: 1\r\n"
        "X-Ostiary-Front-Door: x\r\nX-Ostiary-Gateway-Key: x\r\n"
        "X-Coder-AI-Governance-Request-Id: 1\r\n"
        "X-Coder-Agent-Firewall-Session-Id: 6f0f8a52-1111-4222-8333-944445555666\r\n"
        "X-Coder-Agent-Firewall-Sequence-Number: 7\r\n"
        "Accept: application/json\r\n"
        "OpenAI-Beta: a=1\r\n"
        "openai-beta: b=2\r\n"
        "X-Empty:\r\n"
        "X-Tab:\t tabbed \t\r\n"
        "X-Latin: caf\u00e9\r\n"
        f"content-LENGTH: {len(body)}\r\n"
        "\r\n"
    ).encode("latin-1")
    with guest.connect() as connection:
        connection.send(sent + body)
        with upstream.request() as request:
            request.answer()
        answer = connection.answer()
    assert (
        request.raw
        == (
            "POST /base/v1/chat/completions HTTP/1.1\r\n"
            f"Host: 127.0.0.1:{upstream.port}\r\n"
            "user-AGENT: My  Agent/1.0 (odd; spacing)\r\n"
            "Accept: application/json\r\n"
            "OpenAI-Beta: a=1\r\n"
            "openai-beta: b=2\r\n"
            "X-Empty:\r\n"
            "X-Tab:\t tabbed \t\r\n"
            "X-Latin: caf\u00e9\r\n"
            f"Authorization: Bearer {PROVIDER_KEY}\r\n"
            f"Content-Length: {len(body)}\r\n"
            "\r\n"
        ).encode("latin-1")
        + body
    )
    record = guest.server.interception(answer.interception_id)
    assert record["agent_firewall_session_id"] == "6f0f8a52-1111-4222-8333-944445555666"
    assert record["agent_firewall_sequence_number"] == 7


def test_anthropics_key_is_sent_its_own_way(guest: Person, upstream: RawUpstream) -> None:
    with guest.connect() as connection:
        headers = {**guest.bearer, "Anthropic-Beta": "x", "Anthropic-Version": "2023-06-01"}
        connection.request("POST", DATA_PLANE + MESSAGES.path("raw-claude"), headers, MESSAGES.body())
        with upstream.request() as request:
            request.answer()
        connection.answer()
    assert request.headers[1:4] == [
        ("Anthropic-Beta", "x"),
        ("Anthropic-Version", "2023-06-01"),
        ("X-Api-Key", PROVIDER_KEY),
    ]
    assert guest.token.encode() not in request.raw


@pytest.mark.parametrize("framing", ["one chunk", "many chunks", "chunks torn apart"])
def test_a_body_in_chunks_arrives_whole_with_its_length(guest: Person, upstream: RawUpstream, framing: str) -> None:
    body = CHAT.body("a body that comes in chunks " * 20)
    size = len(body) if framing == "one chunk" else 7
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    wire = b"".join(b"%x;note=1\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\nX-Sum: 1\r\n\r\n"
    step = 3 if "torn" in framing else len(wire)
    with guest.connect() as connection:
        headers = {**guest.bearer, "Transfer-Encoding": "chunked", "Trailer": "X-Sum"}
        connection.send(connection.head("POST", DATA_PLANE + CHAT.path("raw"), headers))
        for at in range(0, len(wire), step):
            connection.send(wire[at : at + step])
        with upstream.request() as request:
            assert request.body == body
            assert request.header("transfer-encoding") is None
            assert request.header("trailer") is None
            request.answer()
        assert connection.answer().status == 200


@pytest.mark.parametrize("api", APIS)
def test_every_byte_of_a_body_is_kept(guest: Person, fake: FakeProvider, api: Api) -> None:
    """Order, spacing, doubled names, escapes, numbers of any length, fields that nobody knows."""
    plain = api.body("caf\u00e9").decode()
    odd = (
        '\r\n\t {  "new_field" :[1.0, 1e400, 12345678901234567890123, -0.0,"\\u00e9\\/\u2028\U0001f600"],\n'
        '"metadata":{"a":1,"a":2 },\t"temperature" : 1.00,' + plain[1:-1] + ', "model":"the-last-one-counts" } \n'
    ).encode()
    mark = f"odd-{api.route}"
    answer = guest.call(api.path(), odd, {"X-Fake-Mark": mark, "Content-Type": "application/json"})
    assert answer.status == 200
    entry = fake.entry(mark)
    assert (entry["body_bytes"], entry["body_sha256"]) == (len(odd), hashlib.sha256(odd).hexdigest())
    assert guest.server.interception(answer.interception_id)["model"] == "the-last-one-counts"


@pytest.mark.parametrize(
    ("accepted", "forwarded"),
    [
        (None, None),
        ("gzip, deflate, br, zstd", "gzip, deflate, br, zstd"),
        ("gzip, compress, br;q=0.5, dcb , *;q=0", "gzip, br;q=0.5"),
        ("GZIP;q=1.0,Identity", "GZIP;q=1.0,Identity"),
        ("*", "identity"),
        ("compress, dcz", "identity"),
        ("", "identity"),
    ],
)
def test_codings_that_cannot_be_read_are_not_asked_for(
    guest: Person, upstream: RawUpstream, accepted: str | None, forwarded: str | None
) -> None:
    headers = guest.bearer | ({} if accepted is None else {"Accept-Encoding": accepted})
    with guest.connect() as connection:
        connection.request("POST", DATA_PLANE + RESPONSES.path("raw"), headers, RESPONSES.body())
        with upstream.request() as request:
            assert request.header("accept-encoding") == forwarded
            request.answer()
        connection.answer()


def test_a_stream_is_not_edited_where_the_provider_may_refuse_the_field(guest: Person, fake: FakeProvider) -> None:
    body = CHAT.body(stream=True)
    answer = guest.call(CHAT.path("leave"), body, {"X-Fake-Mark": "left-alone"})
    assert fake.entry("left-alone")["body_sha256"] == hashlib.sha256(body).hexdigest()
    record = guest.server.interception(answer.interception_id)
    assert (record["outcome"], record["provider_name"]) == ("completed", "leave")
    assert record["token_usages"] == []


@pytest.mark.parametrize(
    ("options", "spliced"),
    [
        ("", b'"stream_options":{"include_usage":true},'),
        ('"stream_options": {}, ', None),
        ('"stream_options": null, ', None),
        ('"stream_options": {"include_obfuscation": false}, ', None),
        ('"stream_options": {"include_usage": false}, ', None),
    ],
)
def test_usage_is_asked_for_within_the_options_that_are_there(
    guest: Person, upstream: RawUpstream, options: str, spliced: bytes | None
) -> None:
    body = f'{{ "model":"m" , {options}"stream": true,  "messages":[{{"role":"user","content":"x"}}] }}'.encode()
    with guest.connect() as connection:
        connection.request("POST", DATA_PLANE + CHAT.path("raw"), guest.bearer, body)
        with upstream.request() as request:
            request.answer(b"data: [DONE]\n\n", content_type=STREAM)
        connection.answer()
    sent = json.loads(request.body)
    assert sent["stream_options"].pop("include_usage") is True
    assert sent["stream_options"] == {
        name: value for name, value in (json.loads(body).get("stream_options") or {}).items() if name != "include_usage"
    }
    before, _, behind = body.partition(options.encode()) if options else (b"{", b"", body[1:])
    assert request.body.startswith(before)
    assert request.body.endswith(behind)
    if spliced is not None:
        assert request.body == before + spliced + behind


@pytest.mark.parametrize("options", ["[1]", '"yes"', "7", "true"])
def test_options_that_are_no_object_are_left_to_the_provider_and_no_edit_is_told(
    guest: Person, fake: FakeProvider, options: str
) -> None:
    mark = f"odd-options-{options.strip('[]').strip(chr(34))}"
    body = f'{{"model":"m","stream_options":{options},"stream":true,"messages":[{{"role":"user","content":"x"}}]}}'.encode()
    answer = guest.call(CHAT.path("openai"), body, {"X-Fake-Mark": mark})
    assert fake.entry(mark)["body_sha256"] == hashlib.sha256(body).hexdigest()
    assert "edits" not in guest.server.interception(answer.interception_id)["trace"]


# --- answers

ERRORS = {
    "anthropic 429": (
        MESSAGES,
        "HTTP/1.1 429 Slow Down, Please\r\n"
        "Date: Sat, 21 Nov 2026 10:00:00 GMT\r\n"
        "content-type: application/json\r\n"
        "Retry-After: 13\r\n"
        "request-id: req_011CSHoEeqs5C35K2UUqR7Fy\r\n"
        "anthropic-ratelimit-requests-limit: 50\r\n"
        "anthropic-ratelimit-requests-remaining: 0\r\n"
        "Anthropic-RateLimit-Requests-Reset: 2026-11-21T10:00:13Z\r\n"
        "x-should-retry: true\r\n"
        "CF-RAY: 8e5\r\n"
        "X-Odd:  spaced \r\n",
        b'{"type":"error",\n "error": {"type":"rate_limit_error","message":"Too much."} }\n',
        ("rate_limited", "Too much."),
    ),
    "openai 400": (
        CHAT,
        "HTTP/1.1 400 Bad Request\r\n"
        "x-request-id: req_1\r\n"
        "retry-after-ms: 20\r\n"
        "openai-processing-ms: 3\r\n"
        "x-ratelimit-remaining-tokens: 0\r\n"
        "Content-Type: application/json; charset=utf-8\r\n",
        b'{ "error": {"message": "Too long.", "type": "invalid_request_error", "param": "messages",'
        b' "code": "context_length_exceeded"}}',
        ("bad_request", "Too long."),
    ),
    "a page of a proxy": (
        RESPONSES,
        "HTTP/1.1 502 Bad Gateway\r\nServer: cloudflare\r\nContent-Type: text/html\r\n",
        b"<html>\r\n<h1>502 Bad Gateway</h1></html>",
        ("server_error", None),
    ),
    "plain text": (
        RESPONSES,
        "HTTP/1.1 503 Service Unavailable\r\nRetry-After: Sat, 21 Nov 2026 11:00:00 GMT\r\nContent-Type: text/plain\r\n",
        b"upstream connect error",
        ("overloaded", "upstream connect error"),
    ),
    "nothing at all": (MESSAGES, "HTTP/1.1 500 \r\n", b"", ("server_error", None)),
}


@pytest.mark.parametrize("which", ERRORS)
def test_a_providers_error_is_relayed_exactly(guest: Person, upstream: RawUpstream, which: str) -> None:
    api, head, body, (error_type, message) = ERRORS[which]
    with guest.connect() as connection:
        # a model of its own: what an answer says of the key concerns no other test
        connection.request("POST", DATA_PLANE + api.path(api.raw), guest.bearer, api.body(model=which))
        with upstream.request() as request:
            request.send(f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
        answer = connection.answer()
    status_line, *lines = head.removesuffix("\r\n").split("\r\n")
    assert answer.status_line == status_line
    expected = [(n, v.strip()) for n, _, v in (line.partition(":") for line in lines)]
    assert answer.headers == [
        *expected,
        ("Content-Length", str(len(body))),
        ("x-ostiary-interception-id", answer.interception_id),
    ]
    assert (answer.body, answer.complete) == (body, True)
    record = guest.server.interception(answer.interception_id)
    assert (record["outcome"], record["status_code"]) == ("upstream_error", answer.status)
    assert (record["error_type"], record["error_message"]) == (error_type, message)
    assert not record["unparsed"]


def relayed(person: Person, upstream: RawUpstream, head: str, headers: dict[str, str]) -> dict[str, str]:
    """The fields of an answer with this head, as the client gets them."""
    with person.connect() as connection:
        connection.request("POST", DATA_PLANE + CHAT.path("raw"), headers, CHAT.body())
        with upstream.request() as request:
            request.send(f"HTTP/1.1 200 OK\r\n{head}Content-Length: 2\r\n\r\n{{}}".encode())
        answer = connection.answer()
        assert answer.body == b"{}"
        return dict(answer.headers)


def test_what_speaks_of_the_upstreams_connection_or_origin_is_not_relayed(guest: Person, upstream: RawUpstream) -> None:
    head = (
        "Connection: keep-alive, X-Hop\r\nKeep-Alive: timeout=1\r\nX-Hop: 1\r\nProxy-Authenticate: Basic\r\nTrailer: X\r\n"
        'Upgrade: h2c\r\nAlt-Svc: h3=":443"\r\nStrict-Transport-Security: max-age=1\r\nSet-Cookie: __cf_bm=secret\r\n'
        "X-Kept: 1\r\nServer: envoy\r\n"
    )
    fields = relayed(guest, upstream, head, guest.bearer)
    assert set(fields) == {"X-Kept", "Server", "Content-Length", "x-ostiary-interception-id"}
    own = {"X-Ostiary-Token": guest.token, "Authorization": "Bearer sk-own-0123456789"}
    assert relayed(guest, upstream, head, own)["Set-Cookie"] == "__cf_bm=secret"


def test_ids_of_ours_are_not_taken_from_an_upstream(guest: Person, upstream: RawUpstream) -> None:
    """It may be another Ostiary: the client asks this one for its record."""
    head = "X-Ostiary-Interception-Id: theirs\r\nX-Ostiary-Request-Id: theirs\r\n"
    fields = relayed(guest, upstream, head, guest.bearer)
    assert guest.server.interception(fields["x-ostiary-interception-id"])["provider_name"] == "raw"
    assert "theirs" not in fields.values()


def test_chunks_their_extensions_and_trailers_come_as_they_are(guest: Person, upstream: RawUpstream) -> None:
    wire = b'00A;name="a;b"\r\n{"a": [1,2\r\n3\r\n]}\n\r\n000\r\nX-Checksum: 9\r\nServer-Timing: a\r\n\r\n'
    with guest.connect() as connection:
        connection.request("POST", DATA_PLANE + CHAT.path("raw"), guest.bearer, CHAT.body())
        with upstream.request() as request:
            request.send(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n" + wire
            )
            answer = connection.answer()
    assert (answer.wire, answer.body, answer.complete) == (wire, b'{"a": [1,2]}\n', True)


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("how", ["chunks", "length", "close", "gzip"])
def test_events_are_passed_on_as_they_come(guest: Person, upstream: RawUpstream, api: Api, how: str) -> None:
    """The client has each event before the next one is sent; of chat streams the usage is withheld meanwhile."""
    packer = zlib.compressobj(wbits=31)
    plain = [b'data: {"choices":[{"index":0}],"n":%d}\n\n' % number for number in range(4)]
    events = [packer.compress(e) + packer.flush(zlib.Z_SYNC_FLUSH) for e in plain] if how == "gzip" else plain
    framing = {
        "length": f"Content-Length: {sum(map(len, events))}\r\n",
        "close": "Connection: close\r\n",
    }.get(how, "Transfer-Encoding: chunked\r\n")
    coding = "Content-Encoding: gzip\r\n" if how == "gzip" else ""
    path = DATA_PLANE + api.path(api.raw)
    with guest.connect() as connection:
        connection.request("POST", path, guest.bearer | {"Accept-Encoding": "gzip"}, api.body(stream=True))
        with upstream.request() as request:
            request.send(f"HTTP/1.1 200 OK\r\nContent-Type: {STREAM}\r\n{framing}{coding}\r\n".encode())
            seen = b""
            while b"\r\n\r\n" not in seen:
                seen += connection.read_some()  # the head comes without waiting for an event
            for event in events:
                request.send(event if how in ("length", "close") else b"%x\r\n%b\r\n" % (len(event), event))
                while event not in seen:
                    more = connection.read_some()
                    assert more
                    seen += more


def test_the_stages_are_told_on_demand(person: Person) -> None:
    answer = person.call(CHAT.path(), CHAT.body(), {"x-ostiary-timing": "1"})
    timing = answer.header("server-timing")
    assert timing is not None
    assert re.fullmatch(r"\w+;dur=\d+\.\d{3}(, \w+;dur=\d+\.\d{3})*", timing)
    stages = dict(part.split(";dur=") for part in timing.split(", "))
    assert {"identify", "body", "check", "record", "head"} <= set(stages)
    assert all(float(milliseconds) < 20_000 for milliseconds in stages.values())
    assert person.call(CHAT.path(), CHAT.body()).header("server-timing") is None


# --- HTTP


def test_a_client_that_expects_100_continue_gets_it_once_its_token_is_good(person: Person, fake: FakeProvider) -> None:
    headers = {**person.bearer, "Expect": "100-continue", "X-Fake-Mark": "continued"}
    body = CHAT.body()
    with person.connect() as connection:
        connection.send(connection.head("POST", DATA_PLANE + CHAT.path(), headers | {"Content-Length": str(len(body))}))
        assert connection.answer().status == 100
        connection.send(body)
        assert connection.answer().status == 200
    sent = {name.lower() for name, _ in fake.entry("continued")["headers"]}
    assert "expect" not in sent


def test_a_stranger_that_expects_100_continue_gets_his_refusal_at_once(person: Person, fake: FakeProvider) -> None:
    with refused(person.server, fake, "no_token"), person.connect() as connection:
        headers = {"Expect": "100-continue", "Content-Length": "100"}
        connection.send(connection.head("POST", DATA_PLANE + CHAT.path(), headers))
        answer = connection.answer()
        assert answer.status == 401
        assert connection.at_end()


def test_many_requests_on_one_connection(person: Person) -> None:
    with person.connect() as connection:
        ids = []
        for api in (CHAT, MESSAGES, RESPONSES, CHAT):
            for stream in (False, True):
                connection.request("POST", DATA_PLANE + api.path(), person.bearer, api.body(stream=stream))
                answer = connection.answer()
                assert (answer.status, answer.complete) == (200, True)
                ids.append(answer.interception_id)
        # A refusal does not end the connection, when its body is small.
        connection.request("POST", DATA_PLANE + CHAT.path(), {}, CHAT.body())
        assert connection.answer().status == 401
        connection.request("POST", DATA_PLANE + CHAT.path(), person.bearer, CHAT.body())
        ids.append(connection.answer().interception_id)
    assert len(set(ids)) == 9
    assert all(person.server.interception(one)["outcome"] == "completed" for one in ids)


def test_pipelined_requests_are_answered_in_their_order(person: Person, fake: FakeProvider) -> None:
    with person.connect() as connection:
        batch = b""
        for number in range(6):
            body = CHAT.body(f"number {number}", model="fake:delay=40" if number % 2 == 0 else "quick")
            headers = {**person.bearer, "X-Fake-Mark": f"pipelined-{number}", "Content-Length": str(len(body))}
            batch += connection.head("POST", DATA_PLANE + CHAT.path(), headers) + body
        connection.send(batch)
        answers = [connection.answer() for _ in range(6)]
    texts = [answer.json()["choices"][0]["message"]["content"] for answer in answers]
    assert texts == [f"number {number}" for number in range(6)]
    prompts = [person.server.interception(answer.interception_id)["user_prompts"][0]["prompt"] for answer in answers]
    assert prompts == texts
    assert all(len(fake.entries(f"pipelined-{number}")) == 1 for number in range(6))


def test_a_client_may_close_after_its_answer(person: Person) -> None:
    with person.connect() as connection:
        connection.request("POST", DATA_PLANE + CHAT.path(), {**person.bearer, "Connection": "close"}, CHAT.body())
        answer = connection.answer()
        assert (answer.status, answer.header("connection")) == (200, "close")
        assert connection.at_end()


def test_http_1_0_is_not_served_by_providers(person: Person, fake: FakeProvider) -> None:
    with refused(person.server, fake, "http_1_0"), person.connect() as connection:
        request = connection.head("POST", DATA_PLANE + CHAT.path(), {**person.bearer, "Content-Length": "2"})
        connection.send(request.replace(b"HTTP/1.1", b"HTTP/1.0") + b"{}")
        answer = connection.answer()
        assert connection.at_end()
    assert answer.status == 505
    assert "HTTP/1.1" in error_of(answer, CHAT)["message"]


def test_an_interim_answer_comes_first(person: Person) -> None:
    with person.connect() as connection:
        body = CHAT.body(model="fake:interim=103")
        connection.request("POST", DATA_PLANE + CHAT.path(), person.bearer, body)
        assert connection.answer().status == 103
        answer = connection.answer()
    assert (answer.status, answer.complete) == (200, True)


def test_an_answer_before_the_end_of_the_request_is_relayed(guest: Person, fake: FakeProvider) -> None:
    body = MESSAGES.body("x" * (4 * 1024 * 1024))
    answer = guest.call(MESSAGES.path(), body, {"X-Fake": "early status=413"})
    assert answer.status == 413
    assert answer.json()["error"]["type"] == "request_too_large"
    record: dict[str, Any] = guest.server.interception(answer.interception_id)
    assert (record["outcome"], record["error_type"]) == ("upstream_error", "bad_request")
    eventually(lambda: fake.requests(limit=0)["open"] == 0, what="nothing of it is left running")
