"""Known shapes of smuggling and splitting through a running server: the provider sees one request, the client one answer."""

import contextlib
import re
import socket
import threading
from collections.abc import Iterator

import pytest

from tests.fuzz.smuggling import REQUESTS, RESPONSES, SERVED, Place, Shape, Splitting
from tests.support.fake_provider import FakeProvider
from tests.support.raw_http import RawConnection
from tests.support.server import PROVIDER_KEY, Server

PREFIX = "/api/v2/ai-gateway"
PATH = f"{PREFIX}/openai/v1/conversations"


@pytest.fixture(scope="module")
def token(server: Server) -> str:
    return server.new_token("smuggler")


def everything(connection: RawConnection) -> bytes:
    """Until the server closes; fails when it waits for more from a client that has said all it has to say."""
    data = b""
    while more := connection.read_some():
        data += more
    return data


def taken_apart(data: bytes) -> list[bytes]:
    """Answers, each from its status on."""
    return re.split(rb"HTTP/1\.1 (?=\d{3} )", data)[1:]


@pytest.mark.parametrize("number", range(len(REQUESTS)), ids=[shape.name for shape in REQUESTS])
def test_the_provider_never_sees_two_requests(server: Server, fake: FakeProvider, token: str, number: int) -> None:
    shape: Shape = REQUESTS[number]
    host = f"127.0.0.1:{server.port}".encode()
    mark = f"smuggling-{number}".encode()
    at = Place(PATH.encode(), host, token.encode(), mark)
    before = fake.requests(limit=0)["count"]
    next_one = at.head(b"Connection: close", line=b"GET /healthz HTTP/1.1")
    with RawConnection(server.port) as connection:
        with contextlib.suppress(ConnectionError):  # a server that refuses may close before all is sent
            connection.send(shape.build(at))
            connection.send(next_one)
        data = everything(connection)
    answers = taken_apart(data.replace(b"HTTP/1.1 100 Continue\r\n\r\n", b""))
    assert fake.entries(f"smuggling-{number}-inner") == []
    reached = fake.requests(limit=0)["count"] - before
    if shape.expected == SERVED:
        assert len(answers) == 2, data
        assert answers[1].startswith(b"200 "), "the next request was poisoned"
        declined = answers[0].startswith(b"501 ")  # WebSockets, which the gateway does not speak
        assert reached == len(fake.entries(f"smuggling-{number}-outer")) == (0 if declined else 1), data
    else:
        assert len(answers) == 1, data
        assert answers[0].startswith(b"%d " % shape.expected), data
        assert b"\r\nconnection: close\r\n" in answers[0].lower()
        assert reached == 0


def test_two_requests_that_are_two_are_seen_as_two(server: Server, fake: FakeProvider, token: str) -> None:
    """What the tests above look for would be found."""
    at = Place(PATH.encode(), f"127.0.0.1:{server.port}".encode(), token.encode(), b"smuggling-open")
    with RawConnection(server.port) as connection:
        connection.send(at.sized(body=b"{}") + at.inner)
        connection.answer()
        connection.answer()
    assert len(fake.entries("smuggling-open-outer")) == 1
    assert len(fake.entries("smuggling-open-inner")) == 1


class Splitter:
    """A provider that answers every first request of a connection with the same bytes, and counts."""

    def __init__(self) -> None:
        self.says = b""
        self.requests = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._listener.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.settimeout(20)
            while b"\r\n\r\n" in (data := connection.recv(65536)):
                self.requests += 1
                says = self.says if b"/v1/models" in data else b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnext"
                connection.sendall(says)
                if b"Content-Length" not in says and b"chunked" not in says:
                    return


@pytest.fixture(scope="module")
def splitter() -> Iterator[Splitter]:
    found = Splitter()
    yield found
    found.close()


@pytest.fixture(scope="module")
def split(server: Server, splitter: Splitter) -> Iterator[str]:
    with server.provider("openai", f"{splitter.url}/v1", PROVIDER_KEY) as name:
        yield name


@pytest.mark.parametrize("splitting", RESPONSES, ids=lambda splitting: splitting.name)
def test_the_client_gets_one_answer_and_the_next_is_its_own(
    server: Server, splitter: Splitter, split: str, token: str, splitting: Splitting
) -> None:
    splitter.says = splitting.raw
    bearer = {"Authorization": f"Bearer {token}"}
    with RawConnection(server.port) as connection:
        connection.request("GET", f"{PREFIX}/{split}/v1/models", bearer)
        connection.request("GET", f"{PREFIX}/{split}/v1/files/next", bearer | {"Connection": "close"})
        data = everything(connection)
    assert b"stolen" not in data
    assert b"splitted" not in data
    answers = [part for part in taken_apart(data) if not part.startswith(b"103 ")]
    if splitting.payload is not None:
        assert answers[0].endswith(b"\r\n\r\n" + splitting.payload)
    elif splitting.begun:
        (cut,) = answers
        assert cut.startswith(b"200 "), data
        assert b"\r\ntransfer-encoding: chunked\r\n" in cut.lower(), data
        assert not cut.endswith(b"\r\n0\r\n\r\n"), "a cut that looks whole"
        return
    else:
        assert answers[0].startswith(b"502 "), data
    assert len(answers) == 2, data
    assert answers[1].startswith(b"200 "), data
    assert answers[1].endswith(b"next")
