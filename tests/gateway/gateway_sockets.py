"""What the sockets of the request path's plays would bring: clients, upstreams, and a loop whose clock the script sets.

Everything that is written is judged at once: a key goes only where it may, a client's token nowhere.
"""

import asyncio
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from ostiary.http1.server import ClientConnection
from ostiary.http1.upstream import UpstreamConnection

if TYPE_CHECKING:
    from gateway_stage import World

TOKEN = b"ost_0123456789abcdef0123456789abcdef"

A1, A2, B1 = "sk-a1-0123456789abcdef", "sk-2a-0123456789abcdef", "sk-b1-0123456789abcdef"
KEYS_OF = {"a.test": {A1, A2}, "b.test": {A2, B1}}
"""Which keys may be sent where, over all snapshots."""

ADDRESSES = {"a.test": "192.0.2.1", "b.test": "192.0.2.2"}

PATH = "/api/v2/ai-gateway"
CHAT = b'{"model":"m","messages":[{"role":"user","content":"hello"}]}'
STREAM = b'{"model":"m","stream":true,"messages":[{"role":"user","content":"hello"}]}'
MESSAGES = b'{"model":"m","max_tokens":9,"stream":true,"messages":[{"role":"user","content":"hello"}]}'
FORM_TYPE = 'multipart/form-data; boundary="xx"'
FORM = (
    b'--xx\r\nContent-Disposition: form-data; name="model"\r\n\r\nwhisper\r\n'
    b'--xx\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + b"s" * 3000 + b"\r\n--xx--\r\n"
)


class Loop(asyncio.SelectorEventLoop):
    """Its timers go by the script's clock."""

    now = 1000.0
    world: "World"

    def time(self) -> float:
        return self.now

    async def getaddrinfo(self, host: Any, *_: Any, **__: Any) -> Any:  # Any: of the loop's own method, and so below
        return [(0, 0, 0, "", (ADDRESSES[host], 80))]

    async def create_connection(self, protocol_factory: Any, host: Any = None, *_: Any, **__: Any) -> Any:
        made = self.create_future()
        self.world.connecting.append(made)
        await made
        protocol = protocol_factory()
        upstream = Upstream(self.world, protocol, {address: host for host, address in ADDRESSES.items()}[host])
        self.world.upstreams.append(upstream)
        return upstream.transport, protocol


class Transport:
    """What was written, and whether the other side is read from. `to_peer` is called with what is written."""

    def __init__(self, protocol: Any, written: Callable[[bytes], None]) -> None:  # Any: either side's connection
        self._protocol = protocol
        self._written = written
        self.paused = False
        self.closing = False
        self.lost = False
        self.unsent = 0
        protocol.connection_made(self)

    def write(self, data: bytes) -> None:
        assert type(data) is bytes
        if not self.closing:
            self._written(data)

    def writelines(self, pieces: tuple[bytes, ...]) -> None:
        self.write(b"".join(pieces))

    def set_write_buffer_limits(self, high: int) -> None: ...

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def get_extra_info(self, name: str) -> None: ...

    def is_closing(self) -> bool:
        return self.closing

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        assert not self.closing

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def close(self) -> None:
        self.abort()

    def abort(self) -> None:
        if not self.closing:
            self.closing = True
            asyncio.get_running_loop().call_soon(self.lose, None)

    def lose(self, exc: Exception | None) -> None:
        if not self.lost:
            self.closing = self.lost = True
            self._protocol.connection_lost(exc)

    def bring(self, data: bytes) -> bool:
        if self.closing or self.paused or not data:
            return False
        self._protocol.data_received(data)
        return True

    def end(self) -> None:
        if not self.closing:
            self._protocol.eof_received()
            self.abort()


class Sent(NamedTuple):
    """One attempt as it reached an upstream."""

    case: int
    client: "Client"
    client_had: int
    """Bytes of answers that its client had by then."""
    host: str
    key: str
    method: str


class Answer(NamedTuple):
    """What an upstream may say. `payload` is what the client is to see of it."""

    wire: bytes
    payload: bytes
    ends_with_stream: bool = False


def answer(number: int, choice: int) -> Answer:
    """`number` marks its bytes."""
    mark = f"attempt-{number}-".encode()
    status, kind = STATUSES[choice % len(STATUSES)], choice // len(STATUSES) % 5
    body = b'{"error":{"message":"%b","type":"t","code":"c"}}' % mark if status >= 400 else b'{"id":"%b"}' % mark
    head = b"HTTP/1.1 %d Any\r\nContent-Type: application/json\r\n" % status
    if status == 429:
        head += b"Retry-After: 20\r\n"
    if status == 204:
        head = head.replace(b"application/json", b"text/event-stream")
        return Answer(head + b"\r\n", b"")
    if kind == 0:
        return Answer(head + b"Content-Length: %d\r\n\r\n" % len(body) + body, body)
    if kind == 1:
        chunks = b"%x\r\n%b\r\n" % (len(body), body) + b"0\r\n\r\n"
        return Answer(
            b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks, body
        )
    if kind == 2:
        return Answer(head + b"\r\n" + body, body, ends_with_stream=True)
    if kind == 3:
        events = b'event: message_start\ndata: {"type":"message_start","m":"%b"}\n\n' % mark + b'data: {"more":1}\n\n'
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (events[:20], events[20:])) + b"0\r\n\r\n"
        head = head.replace(b"application/json", b"text/event-stream")
        return Answer(head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks, events)
    body += b" " * (70 * 1024)
    return Answer(head + b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body, body)


STATUSES = (200, 429, 401, 403, 400, 500, 529, 204)


class Upstream:
    """One connection that was made: what has been asked on it, what is still to be said."""

    def __init__(self, world: "World", connection: UpstreamConnection, host: str) -> None:
        self.connection = connection
        self._world = world
        self._host = host
        self.case = 0
        self.pending = b""
        self.ends_with_stream = False
        self.transport = Transport(connection, self._written)

    def _written(self, data: bytes) -> None:
        for head in re.findall(rb"(?:POST|GET) [^ ]+ HTTP/1.1\r\n.*?\r\n\r\n", data, re.DOTALL):
            lines = head.decode().split("\r\n")
            fields = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:] if line)}
            self.case = int(fields["x-case"])
            self.pending = b""
            if "x-ostiary-front-door" in fields:
                continue  # for the control plane: no attempt is told of, and the token is meant for it
            assert fields["host"] == self._host
            assert TOKEN.decode() not in head.decode()
            key = (
                fields.get("authorization", "").removeprefix("Bearer ") or fields.get("x-api-key") or fields["api-key"]
            )
            assert key in KEYS_OF[self._host], f"{key} was sent to {self._host}"
            client = self._world.clients_of[self.case]
            self._world.sent.append(Sent(self.case, client, len(client.out), self._host, key, lines[0].split()[0]))

    def say(self, choice: int) -> None:
        if self.case and not self.pending:
            self.tell(answer(next(self._world.numbers), choice))

    def tell(self, said: Answer) -> None:
        if self.case and not self.pending:
            self._world.said.setdefault(self.case, []).append(said)
            self.pending, self.ends_with_stream = said.wire, said.ends_with_stream
            self.case = 0

    def bring(self, size: int) -> None:
        if self.transport.bring(self.pending[:size]):
            self.pending = self.pending[size:]
            if not self.pending and self.ends_with_stream:
                self.transport.end()


class Client:
    def __init__(self, world: "World") -> None:
        self.world = world
        self.out = b""
        self.pending = b""
        self.cases: list[int] = []
        self.waits = False
        """At the script's end: its connection is open, and no request under way."""
        self.connection = ClientConnection(world.worker.connections)
        self.transport = Transport(self.connection, self._written)

    def _written(self, data: bytes) -> None:
        self.out += data

    def ask(self, kind: int) -> None:
        self.request(KINDS[kind % len(KINDS)])

    def request(self, kind: "Kind") -> None:
        case = next(self.world.numbers)
        method, path, head, body = kind
        lines = f"{method} {PATH}{path} HTTP/1.1\r\nHost: gw\r\nX-Case: {case}\r\n{head}"
        lines += f"Authorization: Bearer {TOKEN.decode()}\r\n"
        if "chunked" in head:
            body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:30], body[30:])) + b"0\r\n\r\n"
        elif body:
            lines += f"Content-Length: {len(body)}\r\n"
        self.pending += lines.encode() + b"\r\n" + body
        self.cases.append(case)
        self.world.clients_of[case] = self


Kind = tuple[str, str, str, bytes]
"""Method, path behind `PATH`, header lines, body."""

CHUNKED = "Transfer-Encoding: chunked\r\n"
KINDS: tuple[Kind, ...] = (
    ("POST", "/openai/v1/chat/completions", "", CHAT),
    ("POST", "/openai/v1/chat/completions", CHUNKED, STREAM),
    ("POST", "/claude/v1/messages", "", MESSAGES),
    ("GET", "/openai/v1/models", "", b""),
    ("POST", "/openai/v1/audio/transcriptions", f"Content-Type: {FORM_TYPE}\r\n", FORM),
    ("POST", "/openai/v1/audio/transcriptions", f"Content-Type: {FORM_TYPE}\r\n{CHUNKED}", FORM),
    ("POST", "/openai/v1/chat/completions", "", b'{"no": "model"}'),
    ("POST", "/openai/v1/chat/completions", CHUNKED + "Expect: 100-continue\r\n", CHAT),
)
