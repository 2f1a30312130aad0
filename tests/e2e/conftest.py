"""Who the end-to-end tests are, the servers they share beside `server`, and a provider whose every byte a test writes."""

import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest

from tests.support.fake_provider import FakeProvider
from tests.support.raw_http import Answer, RawConnection, ask
from tests.support.server import NO_BREAKER, PROVIDER_KEY, Server, eventually, open_directory

DATA_PLANE = "/api/v2/ai-gateway"


class Person(NamedTuple):
    """A member with a token of their own, on one server."""

    server: Server
    username: str
    token: str

    @property
    def bearer(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}

    @property
    def openai_url(self) -> str:
        return f"{self.server.url}{DATA_PLANE}/openai/v1"

    @property
    def anthropic_url(self) -> str:
        return f"{self.server.url}{DATA_PLANE}/anthropic"

    def call(self, path: str, body: bytes, headers: dict[str, str] | None = None, *, method: str = "POST") -> Answer:
        """A request to `path` behind the data plane's prefix, as this person."""
        return ask(self.server.port, method, f"{DATA_PLANE}{path}", self.bearer | (headers or {}), body)

    def connect(self) -> RawConnection:
        return RawConnection(self.server.port)


class Api(NamedTuple):
    """A bridged route, and a request that fits it."""

    provider: str
    route: str
    shape: str
    """Of its errors."""
    more: dict[str, Any]
    prompt_as: str = "messages"

    @property
    def raw(self) -> str:
        """The provider of the strict server behind which a test itself sits."""
        return "raw-claude" if self.shape == "anthropic" else "raw"

    def path(self, provider: str = "") -> str:
        return f"/{provider or self.provider}{self.route}"

    def body(self, prompt: str = "hello", **more: Any) -> bytes:
        asked: Any = prompt if self.prompt_as == "input" else [{"role": "user", "content": prompt}]
        return json.dumps({"model": "test-model", **self.more, self.prompt_as: asked, **more}).encode()


CHAT = Api("openai", "/v1/chat/completions", "openai", {})
RESPONSES = Api("openai", "/v1/responses", "openai", {}, "input")
MESSAGES = Api("anthropic", "/v1/messages", "anthropic", {"max_tokens": 1024})
STRICT = 4.0
"""Seconds of the strict server's time-outs: tests talk within them, and a busy machine may well stall for two."""
STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
MESSAGE_START = (
    b'event: message_start\ndata: {"type":"message_start","message":{"id":"msg_seen","type":"message","role":"assistant",'
    b'"model":"claude-seen","content":[],"usage":{"input_tokens":21,"output_tokens":2,"cache_read_input_tokens":5}}}\n\n'
)
"""How an upstream of a test's own begins a stream of Messages."""

APIS = [pytest.param(api, id=api.route.rpartition("/")[2]) for api in (CHAT, RESPONSES, MESSAGES)]


def error_of(answer: Answer, api: Api) -> dict[str, Any]:
    """The error of an answer of Ostiary's own, in the shape that the client's SDK expects."""
    assert answer.header("content-type") == "application/json"
    body = answer.json()
    if api.shape == "anthropic":
        assert body["type"] == "error"
        assert set(body["error"]) == {"type", "message"}
    else:
        assert set(body["error"]) == {"message", "type", "param", "code"}
    error: dict[str, Any] = body["error"]
    return error


def key_states(server: Server, name: str) -> list[tuple[str, str, str]]:
    """State, reason and model of each key of a provider, as the API tells them."""
    shown = server.get(f"/api/v2/ai/providers/{name}/keys")["keys"]
    found = [key["replicas"][0] if key["replicas"] else {} for key in shown]
    return [(one.get("state", "usable"), one.get("reason", ""), one.get("model", "")) for one in found]


def masked(key: str) -> str:
    """A key as it is shown."""
    return f"{key[:4]}...{key[-4:]}"


def linked(server: Server, interception_id: str) -> dict[str, Any]:
    """A record that answers a tool call, once it has its parent: another worker's record may arrive after it."""

    def found() -> dict[str, Any] | None:
        record = server.interception(interception_id)
        return record if record["thread_parent_id"] else None

    record: dict[str, Any] = eventually(found, what=f"the parent of {interception_id}")
    return record


@contextmanager
def refused(server: Server, fake: FakeProvider, reason: str) -> Iterator[None]:
    """What is sent meanwhile is counted as refused once, for this reason, and does not reach the provider."""
    counted, reached = server.metric("ostiary_refused_requests_total", reason=reason), fake.requests(limit=0)["count"]
    yield
    assert server.metric("ostiary_refused_requests_total", reason=reason) == counted + 1
    assert fake.requests(limit=0)["count"] == reached


@contextmanager
def added_provider(server: Server, name: str, fields: dict[str, Any]) -> Iterator[None]:
    """Another provider, which every worker serves meanwhile, and none afterwards."""

    made = server.owner.post("/api/v2/ai/providers", json={"name": name, **fields})
    assert made.status_code == 201, made.text
    eventually(lambda: server.knows_provider(name) == {True}, what=f"{name} is served")
    yield
    assert server.owner.delete(f"/api/v2/ai/providers/{name}").is_success
    eventually(lambda: server.knows_provider(name) == {False}, what=f"{name} is gone")


@pytest.fixture(scope="session")
def person(server: Server) -> Person:
    return Person(server, "ann", server.new_token("ann"))


class RawUpstream:
    """A provider that says nothing by itself: a test reads what came, and writes what goes back."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(20)
        self.port = int(self._listener.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"

    def accept(self) -> "RawRequest":
        """The first request of the next connection."""
        connection, _ = self._listener.accept()
        connection.settimeout(20)
        return RawRequest(connection)

    @contextmanager
    def request(self) -> Iterator["RawRequest"]:
        """The same; the connection ends afterwards."""
        request = self.accept()
        with request.connection:
            yield request

    def close(self) -> None:
        self._listener.close()


class RawRequest:
    """A request as its bytes came."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        data = b""
        while b"\r\n\r\n" not in data:
            more = connection.recv(65536)
            assert more, f"no whole request: {data!r}"
            data += more
        head, _, self.body = data.partition(b"\r\n\r\n")
        self.line, *lines = head.decode("latin-1").split("\r\n")
        self.headers = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]
        length = int(self.header("content-length") or 0)
        while len(self.body) < length:
            more = connection.recv(65536)
            assert more, "the request's body was cut"
            self.body += more
        self.raw = head + b"\r\n\r\n" + self.body

    def header(self, name: str) -> str | None:
        values = [value for known, value in self.headers if known.lower() == name.lower()]
        assert len(values) < 2, f"{name} stands there {len(values)} times"
        return values[0] if values else None

    def send(self, data: bytes) -> None:
        self.connection.sendall(data)

    def answer(self, body: bytes = b"{}", status: str = "200 OK", content_type: str = "application/json") -> None:
        """A whole answer, after which the connection is not used again."""
        head = (
            f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n"
        )
        self.send(head.encode() + b"\r\n" + body)

    def seconds_until_gone(self) -> float:
        """How long it takes from now until the other side has closed or reset the connection."""
        begin = time.monotonic()
        try:
            while self.connection.recv(65536):
                pass
        except ConnectionError:
            pass
        return time.monotonic() - begin


@pytest.fixture(scope="session")
def upstream() -> Iterator[RawUpstream]:
    found = RawUpstream()
    yield found
    found.close()


@pytest.fixture(scope="session")
def strict_server(fake: FakeProvider, upstream: RawUpstream) -> Iterator[Server]:
    """One worker with short time-outs and little memory for bodies, and providers that do not work.

    Beside `openai` and `anthropic` it has `raw` and `raw-claude` (the test's own), `dead` and `dead-claude` (nobody
    listens), `metadata` (of a cloud), `leave` (openai-compat: streams are not edited), `off` (disabled) and
    `keyless`.
    """
    taken = socket.socket()
    taken.bind(("127.0.0.1", 0))  # nobody else gets the port, and nobody listens there
    nobody = f"http://127.0.0.1:{taken.getsockname()[1]}"
    specs = [
        ("openai", "raw", f"{upstream.url}/base/v1"),
        ("anthropic", "raw-claude", upstream.url),
        ("openai", "dead", f"{nobody}/v1"),
        ("anthropic", "dead-claude", nobody),
        ("openai-compat", "leave", f"{fake.url}/v1"),
        ("openai", "metadata", "http://169.254.169.254/v1"),
    ]
    variables: dict[str, str] = {}
    for number, (kind, name, url) in enumerate(specs, 2):
        of = f"OSTIARY_PROVIDER_{number}_"
        variables |= {f"{of}TYPE": kind, f"{of}NAME": name, f"{of}BASE_URL": url, f"{of}KEY": PROVIDER_KEY}
    for setting in ("HEAD_TIMEOUT", "IDLE_TIMEOUT", "CLIENT_HEAD_TIMEOUT", "CLIENT_BODY_TIMEOUT"):
        variables[f"OSTIARY_{setting}"] = f"{STRICT:.0f}s"
    variables["OSTIARY_BODY_MEMORY_MAX"] = "64MiB"
    with open_directory() as directory:
        running = Server(directory, fake, "--workers", "1", **NO_BREAKER, **variables).start()
        added: list[dict[str, Any]] = [
            {
                "type": "openai",
                "name": "off",
                "enabled": False,
                "base_url": fake.url,
                "api_keys": ["sk-of-a-disabled-provider"],
            },
            {"type": "openai", "name": "keyless", "base_url": f"{fake.url}/v1"},
        ]
        for provider in added:
            made = running.owner.post("/api/v2/ai/providers", json=provider)
            assert made.status_code == 201, made.text

        for provider in added:
            eventually(lambda name=provider["name"]: running.knows_provider(name) == {True}, what="they are served")
        yield running
        running.kill()
        taken.close()


@pytest.fixture(scope="session")
def guest(strict_server: Server) -> Person:
    """On the strict server."""
    return Person(strict_server, "guest", strict_server.new_token("guest"))
