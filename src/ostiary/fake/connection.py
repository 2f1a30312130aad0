"""One client connection of the fake provider: HTTP/1.1 on llhttp, independent of Ostiary's own engine.

Rules
- Requests are answered in order, one at a time; pipelined ones wait, and reading stops when too many do.
- An answer without delays is one write from the parser's callback. Any other is played by `_Performance`, which stops
  while the client's buffer is full and reports a client that goes in the middle of it.
- A client that ends its side (FIN) has gone, as for most servers.
"""

import asyncio
import socket
import struct
from collections import deque
from typing import Protocol, cast

import httptools

from .aws import AwsRequest, is_for_aws
from .aws_signature import ALGORITHM, signer_of
from .delivery import Client, Script
from .forms import Form
from .ledger import Entry, Outcome
from .provider import FakeProvider, Request, route_label

_MAX_BODY = 64 * 1024 * 1024
_MAX_FORM = 1024 * 1024 * 1024
_MAX_WAITING = 32
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_BAD_REQUEST = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
_TOO_LARGE = b"HTTP/1.1 413 Content Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
_LINGER_RESET = struct.pack("ii", 1, 0)


class Admin(Protocol):
    """Answers `/fake/…`; see `admin`."""

    def __call__(self, method: str, target: str, body: bytes) -> Script: ...


class Turn:
    """One request and its answer."""

    __slots__ = ("arrived", "body", "early", "entry", "form", "headers", "number", "path", "request", "sent", "target")

    def __init__(self, target: str, headers: list[tuple[bytes, bytes]], request: Request) -> None:
        self.target = target
        self.headers = headers
        self.request = request
        self.path = request.path
        self.body = b""
        self.form: Form | None = None
        """In place of `body`, which is not held then."""
        self.entry: Entry | None = None
        self.number = -1
        self.early = False
        self.sent = 0


class Connections:
    """The open ones of a server."""

    def __init__(self) -> None:
        self.open: set[Connection] = set()
        self._gone = asyncio.Event()

    def lost(self, connection: "Connection") -> None:
        self.open.discard(connection)
        if not self.open:
            self._gone.set()

    async def all_gone(self) -> None:
        """Wait until none is left."""
        while self.open:
            self._gone.clear()
            await self._gone.wait()


class Connection(asyncio.Protocol):
    def __init__(self, provider: FakeProvider, admin: Admin, connections: "Connections") -> None:
        self._provider = provider
        self._ledger = provider.ledger
        self._admin = admin
        self._connections = connections
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._body: list[bytes] = []
        self._body_size = 0
        self._reading: Turn | None = None
        self._waiting: deque[Turn] = deque()
        self._performance: _Performance | None = None
        self._write_paused = False
        self._draining = False
        self._dead = False

    # --- the transport's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._connections.open.add(self)

    def data_received(self, data: bytes) -> None:
        if self._dead:
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # The request itself has been answered as a plain one; what follows it is no HTTP.
            self._dead = True
            self._transport.close()
        except httptools.HttpParserError:
            self._refuse(_BAD_REQUEST)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self._dead = True
        self._connections.lost(self)
        if self._performance is not None:
            self._performance.stop()
            self._performance = None
        if self._reading is not None and not self._reading.early:
            self._ended(self._reading, 0, "aborted")
        self._reading = None
        for turn in self._waiting:
            self._ended(turn, 0, "aborted")
        self._waiting.clear()

    def pause_writing(self) -> None:
        self._write_paused = True

    def resume_writing(self) -> None:
        self._write_paused = False
        if self._performance is not None:
            self._performance.resume()
        else:
            self._next_turn()

    # --- the server's side

    @property
    def idle(self) -> bool:
        return self._performance is None and self._reading is None and not self._waiting

    def drain(self) -> None:
        """Close as soon as nothing is under way."""
        self._draining = True
        if self.idle:
            self._transport.close()

    def abort(self) -> None:
        self._transport.abort()

    # --- the parser's side

    def on_message_begin(self) -> None:
        self._url = b""
        self._headers = []
        self._body = []
        self._body_size = 0

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        if self._dead:
            return  # pipelined behind an answer that has ended the connection: it was never read
        parser = self._parser
        turn = self._reading = _turn(self._url, self._headers, parser)
        if turn.request.form_type:
            turn.form = Form(turn.request.form_type, hashing=self._ledger.hashing)
        if not turn.path.startswith("/fake/"):
            ledger = self._ledger
            turn.number = ledger.count
            ledger.count_arrival(route_label(turn.path))
            if ledger.noting:
                request = turn.request
                turn.entry = ledger.arrived(
                    request.method, turn.path, request.query, request.mark, request.key, turn.headers
                )
            self._answer_early(turn)
        if any(name.lower() == b"expect" for name, _ in self._headers) and not turn.early:
            self._transport.write(_CONTINUE)

    def on_body(self, body: bytes) -> None:
        turn = self._reading
        form = turn.form if turn is not None else None
        self._body_size += len(body)
        if self._body_size > (_MAX_BODY if form is None else _MAX_FORM):
            self._refuse(_TOO_LARGE)
        elif form is not None:
            form.add(body)
        elif not (turn is not None and turn.early):
            self._body.append(body)

    def on_message_complete(self) -> None:
        if self._dead:
            return  # what was begun is told when the connection is lost
        turn, self._reading = self._reading, None
        if turn is None or turn.early:
            return
        body = self._body
        turn.body = body[0] if len(body) == 1 else b"".join(body)
        self._body = []
        if turn.entry is not None and turn.form is not None:
            self._ledger.received_form(turn.entry, turn.form)
        elif turn.entry is not None:
            self._ledger.received(turn.entry, turn.body)
        if self._performance is None and not self._write_paused and not self._waiting:
            self._take(turn)
            return
        self._waiting.append(turn)
        if len(self._waiting) == _MAX_WAITING:
            self._transport.pause_reading()

    # --- answering

    def _answer_early(self, turn: Turn) -> None:
        if "early" not in turn.request.control or self._performance is not None or self._waiting:
            return
        token = self._provider.token()
        script = self._provider.early_answer(turn.request, token)
        if script is not None:
            turn.early = True
            self._play(turn, script, token)

    def _next_turn(self) -> None:
        while self._waiting and self._performance is None and not self._write_paused and not self._dead:
            turn = self._waiting.popleft()
            if len(self._waiting) == _MAX_WAITING - 1:
                self._transport.resume_reading()
            self._take(turn)
        if self._draining and self.idle and not self._dead:
            self._transport.close()

    def _take(self, turn: Turn) -> None:
        token = self._provider.token()
        if turn.number < 0:
            self._play(turn, self._admin(turn.request.method, turn.target, turn.body), token)
        else:
            self._play(turn, self._provider.answer(turn.request, turn.body, token, turn.form), token)

    def _play(self, turn: Turn, script: Script, token: bytes) -> None:
        segments = script.segments
        if len(segments) == 1 and not segments[0].delay and not script.tear and script.ending == "keep":
            data = token.join(segments[0].pieces)
            turn.sent = len(data)
            self._transport.write(data)
            self._ended(turn, script.status, "answered")
            if self._draining:
                self._next_turn()
            return
        performance = self._performance = _Performance(self, self._transport, turn, script, token)
        performance.resume()

    def write_paused(self) -> bool:
        return self._write_paused

    def performed(self, turn: Turn, script: Script) -> None:
        """A performance has come to its end."""
        self._performance = None
        self._ended(turn, script.status, "cut" if script.cut else "answered")
        if script.ending == "keep":
            self._next_turn()
            return
        self._dead = True
        if script.ending == "reset":
            _reset(self._transport)
        else:
            self._transport.close()

    def client_went(self, turn: Turn, script: Script) -> None:
        """The client has gone before its answer was complete."""
        self._ended(turn, script.status, "aborted")

    def _ended(self, turn: Turn, status: int, outcome: Outcome) -> None:
        if turn.number < 0:
            return
        ledger = self._ledger
        ledger.count_end(status, outcome)
        if turn.entry is not None:
            ledger.ended(turn.entry, status, outcome, turn.sent)
        if outcome == "aborted":
            mark = turn.entry.mark if turn.entry is not None else turn.request.mark
            ledger.client_went(turn.number, mark, turn.path, turn.sent)

    def _refuse(self, answer: bytes) -> None:
        if not self._dead:
            self._dead = True
            self._transport.write(answer)
            self._transport.close()


class _Performance:
    """Plays a script: one segment after its delay, in bites of `tear` bytes when it is torn."""

    __slots__ = (
        "_bites",
        "_connection",
        "_due",
        "_index",
        "_loop",
        "_script",
        "_timer",
        "_token",
        "_transport",
        "_turn",
    )

    def __init__(
        self, connection: Connection, transport: asyncio.Transport, turn: Turn, script: Script, token: bytes
    ) -> None:
        self._connection = connection
        self._transport = transport
        self._turn = turn
        self._script = script
        self._token = token
        self._loop = asyncio.get_running_loop()
        self._due = self._loop.time()
        self._index = 0
        self._bites: deque[bytes] = deque()
        self._timer: asyncio.Handle | None = None

    def resume(self) -> None:
        """Go on; also when the client's buffer has room again."""
        if self._timer is None:
            self._step()

    def stop(self) -> None:
        """The client has gone."""
        if self._timer is not None:
            self._timer.cancel()
        self._connection.client_went(self._turn, self._script)

    def _wake(self) -> None:
        self._timer = None
        self._step(due=True)

    def _step(self, *, due: bool = False) -> None:
        segments, transport = self._script.segments, self._transport
        while not self._connection.write_paused():
            if self._bites:
                bite = self._bites.popleft()
                self._turn.sent += len(bite)
                transport.write(bite)
                # The next bite in the next round of the loop, so that each is a packet of its own.
                self._timer = self._loop.call_soon(self._wake)
                return
            if self._index == len(segments):
                if self._script.ending != "hang":
                    self._connection.performed(self._turn, self._script)
                return
            segment = segments[self._index]
            if segment.delay and not due:
                self._due = max(self._due + segment.delay, self._loop.time())
                self._timer = self._loop.call_at(self._due, self._wake)
                return
            due = False
            self._index += 1
            data = self._token.join(segment.pieces)
            size = self._script.tear
            if size:
                self._bites.extend(data[at : at + size] for at in range(0, len(data), size))
            elif data:
                self._turn.sent += len(data)
                transport.write(data)


def _turn(url: bytes, headers: list[tuple[bytes, bytes]], parser: "httptools.HttpRequestParser") -> Turn:
    key = control = mark = accept = form_type = ""
    copilot = False
    anthropic = azure = signed = False
    for name, value in headers:
        slot = _INTERESTING.get(name) or _INTERESTING.get(name.lower())
        if slot is None:
            continue
        text = value.decode("latin-1")
        if slot == "authorization":
            scheme, _, credential = text.partition(" ")
            signed = scheme == ALGORITHM
            key = credential.strip() if scheme.lower() == "bearer" else signer_of(text) if signed else key
        elif slot == "key":
            key = text
            azure = name.lower() == b"api-key"
            anthropic = anthropic or not azure
        elif slot == "control":
            control = text
        elif slot == "mark":
            mark = text
        elif slot == "accept":
            accept = f"{accept},{text}" if accept else text
        elif slot == "type":
            form_type = text if text.lower().startswith("multipart/form-data") else ""
        elif slot == "copilot":
            copilot = True
        else:
            anthropic = True
    target = url.decode("latin-1")
    method = parser.get_method().decode()
    client = Client(method, parser.get_http_version() == "1.0", parser.should_keep_alive(), accept)
    path, _, query = target.partition("?")
    aws = None
    azure = azure and path.startswith("/openai/")  # Mantle has such paths too, but takes no `api-key`
    if not form_type and not azure and is_for_aws(path, signed=signed):  # AWS takes no forms, Azure does
        aws = AwsRequest(method, target, headers, key, signed, control)
    request = Request(method, path, key, control, mark, anthropic, client, aws, query, form_type, copilot)
    return Turn(target, headers, request)


_INTERESTING = {
    b"authorization": "authorization",
    b"x-api-key": "key",
    b"api-key": "key",
    b"x-fake": "control",
    b"x-fake-mark": "mark",
    b"accept-encoding": "accept",
    b"content-type": "type",
    b"copilot-integration-id": "copilot",
    b"anthropic-version": "anthropic",
}


def _reset(transport: asyncio.Transport) -> None:
    """End with a TCP reset: what was written may be lost on the way, as when a peer crashes."""
    sock: socket.socket | None = transport.get_extra_info("socket")
    if sock is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
    transport.abort()
