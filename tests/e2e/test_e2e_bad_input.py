"""What nobody should send, sent: it is refused in words that help, counted, and never reaches a provider."""

import contextlib
import gzip
import json
import socket
import time
from datetime import UTC, datetime, timedelta

import pytest

from tests.e2e.conftest import APIS, CHAT, DATA_PLANE, MESSAGES, STRICT, Api, Person, error_of, refused
from tests.support.fake_provider import FakeProvider
from tests.support.raw_http import RawConnection, ask
from tests.support.server import Server, eventually

MIB = 1024 * 1024
LIMIT = 32 * MIB


# --- who asks


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize(
    "headers",
    [{}, {"Authorization": ""}, {"Authorization": "Bearer "}, {"Authorization": "Basic eDp5"}, {"X-Api-Key": ""}],
    ids=["nothing", "empty", "bearer of nothing", "basic", "empty key"],
)
def test_no_token(server: Server, fake: FakeProvider, api: Api, headers: dict[str, str]) -> None:
    with refused(server, fake, "no_token"):
        answer = ask(server.port, "POST", DATA_PLANE + api.path(), headers, api.body())
    assert answer.status == 401
    assert "ostiary tokens create" in error_of(answer, api)["message"]
    assert answer.header("www-authenticate") == 'Bearer realm="ostiary"'
    assert answer.header("x-ostiary-request-id")
    assert answer.header("x-ostiary-interception-id") is None


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("field", ["Authorization", "X-Api-Key", "X-Ostiary-Token", "X-Coder-AI-Governance-Token"])
def test_a_wrong_token(server: Server, fake: FakeProvider, api: Api, field: str) -> None:
    token = "ost_this-is-not-one-of-ours-at-all-000000000000"
    value = f"Bearer {token}" if field == "Authorization" else token
    with refused(server, fake, "unknown_token"):
        answer = ask(server.port, "POST", DATA_PLANE + api.path(), {field: value}, api.body())
    assert answer.status == 401
    assert "not one of this Ostiary" in error_of(answer, api)["message"]
    assert token.encode() not in answer.body


def make_token(server: Server, username: str, **fields: str) -> dict[str, str]:
    server.new_token(username)  # makes the person
    made = server.owner.post("/api/v2/tokens", json={"name": f"own-{username}", "user": username, **fields})
    assert made.status_code == 201, made.text
    found: dict[str, str] = made.json()
    return found


def test_an_expired_token_though_it_was_good_a_moment_ago(server: Server, fake: FakeProvider) -> None:
    server.new_token("late")  # makes the person
    ends = datetime.now(UTC) + timedelta(seconds=6)
    token = make_token(server, "late", expires_at=ends.isoformat())["token"]
    bearer = {"Authorization": f"Bearer {token}"}
    with server.client(token) as client:  # the same worker for all calls
        path, body = DATA_PLANE + CHAT.path(), CHAT.body()
        assert client.post(path, content=body).status_code == 200
        eventually(lambda: client.post(path, content=body).status_code == 401, what="the token has ended")
    with refused(server, fake, "expired_token"):
        answer = ask(server.port, "POST", path, bearer, body)
    assert "expired" in error_of(answer, CHAT)["message"]


def test_a_revoked_token(server: Server, fake: FakeProvider) -> None:
    made = make_token(server, "gone")
    assert server.owner.delete(f"/api/v2/tokens/{made['id']}").status_code == 204
    with refused(server, fake, "revoked_token"):
        answer = ask(server.port, "POST", DATA_PLANE + CHAT.path(), {"X-Api-Key": made["token"]}, CHAT.body())
    assert (answer.status, error_of(answer, CHAT)["code"]) == (401, "invalid_api_key")


def test_a_token_revoked_while_it_is_used_ends_within_its_five_seconds(server: Server) -> None:
    made = make_token(server, "going")
    path, body = DATA_PLANE + CHAT.path(), CHAT.body()
    with server.client(made["token"]) as client:
        assert client.post(path, content=body).status_code == 200
        assert server.owner.delete(f"/api/v2/tokens/{made['id']}").status_code == 204
        eventually(lambda: client.post(path, content=body).status_code == 401, within=12.0, every=0.2)


@pytest.mark.parametrize("api", APIS)
def test_a_token_of_a_suspended_person(server: Server, fake: FakeProvider, api: Api) -> None:
    username = f"suspended-{api.route.rpartition('/')[2].replace('/', '-')}"
    token = server.new_token(username)
    assert server.owner.patch(f"/api/v2/users/{username}", json={"status": "suspended"}).status_code == 200
    with refused(server, fake, "suspended_user"):
        answer = ask(server.port, "POST", DATA_PLANE + api.path(), {"X-Api-Key": token}, api.body())
    assert answer.status == 403
    assert "suspended" in error_of(answer, api)["message"]


# --- the body


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "empty"),
        (b"  \r\n", "empty"),
        (b"{", "not JSON"),
        (b'{"model": "x", }', "not JSON"),
        (b"model=x&stream=true", "not JSON"),
        (b"\xff\xfe{\x00", "not JSON"),
        (b"[]", "not a JSON object"),
        (b'"model"', "not a JSON object"),
        (b"null", "not a JSON object"),
        (b"{}", 'no "model"'),
        (b'{"model": ""}', 'no "model"'),
        (b'{"model": null}', 'no "model"'),
        (b'{"model": ["x"]}', 'no "model"'),
        (b'{"model": "x", "input": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
    ],
)
def test_a_body_that_cannot_be_routed(person: Person, fake: FakeProvider, api: Api, body: bytes, says: str) -> None:
    with refused(person.server, fake, "bad_request"):
        answer = person.call(api.path(), body)
    assert answer.status == 400
    assert says in error_of(answer, api)["message"]
    assert answer.header("x-ostiary-request-id")


def test_a_request_without_any_body(person: Person, fake: FakeProvider) -> None:
    with refused(person.server, fake, "bad_request"), person.connect() as connection:
        connection.request("POST", DATA_PLANE + CHAT.path(), person.bearer)
        assert connection.answer().status == 400


@pytest.mark.parametrize("api", APIS)
def test_a_body_announced_too_large_is_refused_before_it_comes(person: Person, fake: FakeProvider, api: Api) -> None:
    with refused(person.server, fake, "body_too_large"), person.connect() as connection:
        connection.send(
            connection.head("POST", DATA_PLANE + api.path(), {**person.bearer, "Content-Length": str(LIMIT + 1)})
        )
        answer = connection.answer()
        assert connection.at_end()
    assert answer.status == 413
    assert "32 MiB" in error_of(answer, api)["message"]
    assert answer.header("connection") == "close"


def test_a_body_of_the_allowed_size_passes_and_one_byte_more_does_not(person: Person, fake: FakeProvider) -> None:
    body = MESSAGES.body("x")
    full = body[:-1] + b" " * (LIMIT - len(body)) + b"}"
    assert len(full) == LIMIT
    answer = person.call(MESSAGES.path(), full, {"X-Fake-Mark": "full-size"})
    assert answer.status == 200
    assert fake.entry("full-size")["body_bytes"] == LIMIT
    with refused(person.server, fake, "body_too_large"):
        assert person.call(MESSAGES.path(), full + b" ").status == 413


def test_chunks_that_grow_too_large(person: Person, fake: FakeProvider) -> None:
    chunk = b"%x\r\n%b\r\n" % (MIB, b" " * MIB)
    with refused(person.server, fake, "body_too_large"), person.connect() as connection:
        headers = {**person.bearer, "Transfer-Encoding": "chunked"}
        connection.send(connection.head("POST", DATA_PLANE + CHAT.path(), headers))
        for _ in range(LIMIT // MIB):
            connection.send(chunk)
        connection.send(b"1\r\n \r\n")
        answer = connection.answer()
        assert connection.at_end()
    assert answer.status == 413


@pytest.mark.parametrize("framing", ["length", "chunks"])
def test_bodies_beyond_the_memory_for_them_have_to_wait(guest: Person, fake: FakeProvider, framing: str) -> None:
    """There is room for two of this size. What is held for a client that leaves is free again; what is only announced is."""
    size = 30 * MIB
    chunk = b"%x\r\n%b\r\n" % (MIB, b" " * MIB)
    extra = {"Content-Length": str(size)} if framing == "length" else {"Transfer-Encoding": "chunked"}
    start = [b" " * MIB if framing == "length" else chunk] * 29

    def begin() -> RawConnection:
        connection = guest.connect()
        connection.send(connection.head("POST", DATA_PLANE + CHAT.path(), {**guest.bearer, **extra}))
        with contextlib.suppress(ConnectionError):
            for piece in start:
                connection.send(piece)
        return connection

    announced = [guest.connect() for _ in range(4)]
    for connection in announced:
        headers = {**guest.bearer, "Content-Length": str(size)}
        connection.send(connection.head("POST", DATA_PLANE + CHAT.path(), headers) + b" ")
    with begin() as first, begin() as second:
        with refused(guest.server, fake, "body_memory"), begin() as third:
            answer = third.answer()
            assert (answer.status, answer.header("retry-after")) == (503, "1")
            assert "memory" in error_of(answer, CHAT)["message"]
        for connection in (first, second):
            connection.socket.close()
    body = CHAT.body()
    eventually(lambda: guest.call(CHAT.path(), body + b" " * (size - len(body))).status == 200)
    for connection in announced:
        connection.socket.close()


def test_a_small_body_that_swells_beyond_the_limit(person: Person, fake: FakeProvider) -> None:
    bomb = gzip.compress(CHAT.body()[:-1] + b" " * LIMIT + b"}", compresslevel=1)
    assert len(bomb) < MIB
    with refused(person.server, fake, "body_too_large"):
        answer = person.call(CHAT.path(), bomb, {"Content-Encoding": "gzip"})
    assert answer.status == 413


@pytest.mark.parametrize(
    ("coding", "status", "reason"),
    [
        ("compress", 415, "unknown_coding"),
        ("gzip, br", 415, "unknown_coding"),
        ("gzip", 400, "bad_request"),
        ("br", 400, "bad_request"),
        ("zstd", 400, "bad_request"),
        ("deflate", 400, "bad_request"),
    ],
)
def test_a_body_that_is_not_in_its_coding(
    person: Person, fake: FakeProvider, coding: str, status: int, reason: str
) -> None:
    with refused(person.server, fake, reason):
        answer = person.call(CHAT.path(), CHAT.body(), {"Content-Encoding": coding})
    assert answer.status == status
    assert "send" in error_of(answer, CHAT)["message"]


@pytest.mark.parametrize(
    "fields",
    [
        {"X-Coder-Agent-Firewall-Session-Id": "6f0f8a52-1111-4222-8333-944445555666"},
        {
            "X-Coder-Agent-Firewall-Session-Id": "not-a-uuid",
            "X-Coder-Agent-Firewall-Sequence-Number": "1",
        },
    ],
    ids=["half", "no uuid"],
)
def test_agent_firewall_fields_that_cannot_be_recorded(
    person: Person, fake: FakeProvider, fields: dict[str, str]
) -> None:
    with refused(person.server, fake, "bad_request"):
        answer = person.call(CHAT.path(), CHAT.body(), fields)
    assert answer.status == 400
    assert "agent firewall" in error_of(answer, CHAT)["message"]


# --- a stranger with much to say


@pytest.mark.parametrize("framing", ["length", "chunks"])
def test_a_stranger_is_refused_after_the_head_and_nothing_of_32_mib_is_kept(
    server: Server, fake: FakeProvider, framing: str
) -> None:
    body = b"x" * MIB
    headers = {"Content-Length": str(LIMIT)} if framing == "length" else {"Transfer-Encoding": "chunked"}
    with refused(server, fake, "no_token"), RawConnection(server.port) as connection:
        before = server.resident("worker")
        connection.send(connection.head("POST", DATA_PLANE + CHAT.path(), headers))
        answer = connection.answer()  # before a byte of the body has been sent
        assert answer.status == 401
        assert answer.header("connection") == "close"
        largest = 0
        try:
            for _ in range(32):
                connection.send(body if framing == "length" else b"%x\r\n%b\r\n" % (MIB, body))
                largest = max(largest, server.resident("worker"))
        except ConnectionError:
            pass  # it may be cut off at any time
        assert largest - before < LIMIT // 2


# --- silence


def test_a_body_that_stops_coming(guest: Person, fake: FakeProvider) -> None:
    with refused(guest.server, fake, "body_timeout"), guest.connect() as connection:
        headers = {**guest.bearer, "Content-Length": "1000"}
        connection.send(connection.head("POST", DATA_PLANE + CHAT.path(), headers) + b'{"model":')
        answer = connection.answer()
        assert connection.at_end()
    assert answer.status == 408
    error_of(answer, CHAT)


def test_a_head_that_never_ends(guest: Person, fake: FakeProvider) -> None:
    with refused(guest.server, fake, "bad_head"), guest.connect() as connection:
        connection.send(b"POST / HTTP/1.1\r\nHost: x\r\n")
        begin = time.monotonic()
        assert connection.answer().status == 408
        assert connection.at_end()
        assert time.monotonic() - begin < STRICT + 5.5, "sooner than by the usual time-out"


# --- malformed and ambiguous HTTP

TARGET = (DATA_PLANE + CHAT.path()).encode()


def head(*lines: bytes, start: bytes = b"POST " + TARGET + b" HTTP/1.1", host: bytes = b"Host: ostiary\r\n") -> bytes:
    return start + b"\r\n" + host + b"".join(line + b"\r\n" for line in lines) + b"\r\n"


MALFORMED = {
    "both framings": (400, head(b"Content-Length: 2", b"Transfer-Encoding: chunked") + b"{}"),
    "both framings, the other way round": (400, head(b"Transfer-Encoding: chunked", b"Content-Length: 2") + b"{}"),
    "a coding before chunked": (400, head(b"Transfer-Encoding: gzip, chunked")),
    "chunked twice": (400, head(b"Transfer-Encoding: chunked, chunked")),
    "chunked in two lines": (400, head(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked")),
    "chunked in disguise": (400, head(b"Transfer-Encoding: xchunked")),
    "identity": (400, head(b"Transfer-Encoding: identity", b"Content-Length: 2") + b"{}"),
    "two lengths": (400, head(b"Content-Length: 2", b"Content-Length: 3") + b"{}"),
    "the same length twice": (400, head(b"Content-Length: 2", b"Content-Length: 2") + b"{}"),
    "a list of lengths": (400, head(b"Content-Length: 2, 2") + b"{}"),
    "a signed length": (400, head(b"Content-Length: +2") + b"{}"),
    "a negative length": (400, head(b"Content-Length: -2")),
    "a hexadecimal length": (400, head(b"Content-Length: 0x2") + b"{}"),
    "a length beyond all numbers": (400, head(b"Content-Length: 99999999999999999999")),
    "two hosts": (400, head(b"Host: other")),
    "no host": (400, head(host=b"")),
    "a host that is a list": (400, head(host=b"Host: a, b\r\n")),
    "another host than the target's": (400, head(start=b"POST http://other" + TARGET + b" HTTP/1.1")),
    "a folded line": (400, head(b"X-Long: a", b" b")),
    "a zero byte in a field": (400, head(b"X-Odd: a\0b")),
    "a bare CR in a field": (400, head(b"X-Odd: a\rb")),
    "a space before the colon": (400, head(b"Content-Length : 2") + b"{}"),
    "a name with a space": (400, head(b"X Odd: a")),
    "a field without a colon": (400, head(b"nonsense")),
    "two tokens": (400, head(b"Authorization: Bearer a", b"Authorization: Bearer b")),
    "two keys": (400, head(b"X-Api-Key: a", b"X-Api-Key: b")),
    "two codings": (400, head(b"Content-Encoding: gzip", b"Content-Encoding: br")),
    "bare line feeds": (400, b"POST " + TARGET + b" HTTP/1.1\nHost: x\nContent-Length: 0\n\n\r\n\r\n"),
    "no version": (400, head(start=b"POST " + TARGET)),
    "another version": (400, head(start=b"POST " + TARGET + b" HTTP/1.2")),
    "HTTP/2 in plain": (505, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "two spaces": (400, head(start=b"POST  " + TARGET + b" HTTP/1.1")),
    "a fragment": (400, head(start=b"POST " + TARGET + b"#x HTTP/1.1")),
    "letters beyond ASCII": (400, head(start=b"POST " + TARGET + b"\xc3\xa9 HTTP/1.1")),
    "no such method": (400, head(start=b"P\xd6ST " + TARGET + b" HTTP/1.1")),
    "CONNECT": (501, head(start=b"CONNECT api.openai.com:443 HTTP/1.1")),
    "a star": (400, head(start=b"OPTIONS * HTTP/1.1")),
    "another expectation": (417, head(b"Expect: 200-ok", b"Content-Length: 2")),
    "a head over 64 KiB": (431, head(b"X-Long: " + b"a" * 70_000)),
    "a head over 64 KiB that goes on": (431, b"POST / HTTP/1.1\r\nHost: x\r\nX-Long: " + b"a" * 70_000),
    "TLS": (400, bytes.fromhex("16030100c8010000c40303") + b"\0" * 60),
    "words": (400, b"hello there\r\n\r\n"),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_malformed_or_ambiguous_http_is_refused_and_closed(server: Server, fake: FakeProvider, what: str) -> None:
    status, data = MALFORMED[what]
    smuggled = head(b"X-Fake-Mark: smuggled", b"Content-Length: 2") + b"{}"
    with refused(server, fake, "bad_head"), RawConnection(server.port) as connection:
        connection.send(data + smuggled)
        answer = connection.answer()
        assert connection.at_end(), "something was answered after the refusal"
    assert answer.status == status, answer.body
    assert answer.header("connection") == "close"
    assert answer.json()["message"]


def test_what_was_good_before_the_malformed_request_is_answered(person: Person, fake: FakeProvider) -> None:
    body = CHAT.body()
    with person.connect() as connection:
        headers = {**person.bearer, "Content-Length": str(len(body)), "X-Fake-Mark": "good-before-bad"}
        good = connection.head("POST", DATA_PLANE + CHAT.path(), headers) + body
        connection.send(good + MALFORMED["both framings"][1] + good)
        assert connection.answer().status == 200
        assert connection.answer().status == 400
        assert connection.at_end()
    assert len(fake.entries("good-before-bad")) == 1


@pytest.mark.parametrize(
    "chunks",
    [
        b"zz\r\n{}\r\n0\r\n\r\n",
        b"-2\r\n{}\r\n0\r\n\r\n",
        b"0x2\r\n{}\r\n0\r\n\r\n",
        b"2\r\n{}XX0\r\n\r\n",
        b"2\n{}\n0\n\n\r\n",
        b"fffffffffffffffff\r\n{}",
        b"2;" + b"a" * 70_000 + b"\r\n{}\r\n0\r\n\r\n",
    ],
    ids=["no number", "negative", "prefixed", "no line end", "bare line feeds", "too large", "endless extension"],
)
def test_broken_chunks_are_refused_and_closed(person: Person, fake: FakeProvider, chunks: bytes) -> None:
    with refused(person.server, fake, "bad_framing"), person.connect() as connection:
        headers = {**person.bearer, "Transfer-Encoding": "chunked"}
        connection.send(connection.head("POST", DATA_PLANE + CHAT.path(), headers) + chunks)
        answer = connection.answer()
        assert connection.at_end()
    assert answer.status == 400
    assert "framing" in error_of(answer, CHAT)["message"]


def test_a_client_that_leaves_within_its_request_is_forgotten(person: Person, fake: FakeProvider) -> None:
    reached = fake.requests(limit=0)["count"]
    open_before = person.server.metric("ostiary_client_connections")
    with person.connect() as connection:
        connection.send(
            connection.head("POST", DATA_PLANE + CHAT.path(), {**person.bearer, "Content-Length": "100"}) + b"{"
        )
        eventually(lambda: person.server.metric("ostiary_client_connections") > open_before)
        connection.socket.shutdown(socket.SHUT_RDWR)
    eventually(lambda: person.server.metric("ostiary_client_connections") <= open_before)
    assert fake.requests(limit=0)["count"] == reached


def test_what_is_refused_names_no_secret(server: Server, person: Person) -> None:
    for path in (DATA_PLANE + CHAT.path(), f"{DATA_PLANE}/nobody/v1/messages"):
        answer = ask(server.port, "POST", path, {"Authorization": f"Bearer {person.token}"}, b"{")
        assert person.token not in json.dumps(answer.headers) + answer.body.decode()
