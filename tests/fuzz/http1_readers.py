"""Other readers of HTTP/1.1 than the engine: h11 and llhttp, each told a whole stream, and the engine itself.

All give the same `Reading`, so that they can be compared. The engine's is played on a wire without a socket.
"""

import re
from dataclasses import dataclass, field
from typing import Any, Final

import h11
from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser, HttpResponseParser

from tests.http1.http1_stage import Answer, App, ClientStage, UpstreamStage, turns

Message = tuple[bytes, bytes, list[tuple[bytes, bytes]], bytes]
"""Method, target, (lower-cased name, value) of each field, body."""


@dataclass
class Reading:
    """What a reader made of a stream of requests: the complete ones, and why it stopped, if it refused."""

    messages: list[Message] = field(default_factory=list)
    refusal: str = ""
    in_body: bool = False
    """It waits for the rest of a body."""


@dataclass
class Answered:
    """One answer as a reader took it. `rest`: how many bytes of the stream stand behind its end."""

    status: int = 0
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    payload: bytes = b""
    complete: bool = False
    refusal: str = ""
    rest: int = 0


def fields_of(names: list[bytes], lines: list[bytes]) -> list[tuple[bytes, bytes]]:
    """As h11 gives them: it lowers the case of a transfer coding."""
    values = [line.partition(b":")[2].strip(b" \t") for line in lines]
    pairs = zip(names, values, strict=True)
    return [(name, value.lower() if name == b"transfer-encoding" else value) for name, value in pairs]


# --- h11


def h11_requests(stream: bytes) -> Reading:
    reading = Reading()
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    connection.receive_data(stream)
    head: Any = None
    body = b""
    try:
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA or event is h11.PAUSED or isinstance(event, h11.ConnectionClosed):
                return reading
            if isinstance(event, h11.Request):
                head, body = event, b""
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                headers = [(bytes(name), bytes(value)) for name, value in head.headers]
                reading.messages.append((bytes(head.method), bytes(head.target), headers, body))
                connection.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
                connection.send(h11.EndOfMessage())
                if connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
                    return reading
                connection.start_next_cycle()
    except h11.RemoteProtocolError as error:
        reading.refusal = str(error)
        return reading


def h11_response(stream: bytes, method: str) -> Answered:
    answered = Answered()
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
    connection.send(h11.Request(method=method, target="/", headers=[("host", "h")]))
    connection.send(h11.EndOfMessage())
    connection.receive_data(stream)
    connection.receive_data(b"")
    try:
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA or event is h11.PAUSED or isinstance(event, h11.ConnectionClosed):
                return answered
            if isinstance(event, h11.Response):
                answered.status = event.status_code
                answered.headers = [(bytes(name), bytes(value)) for name, value in event.headers]
            elif isinstance(event, h11.Data):
                answered.payload += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                answered.complete = True
                answered.rest = len(connection.trailing_data[0])
                return answered
    except h11.RemoteProtocolError as error:
        answered.refusal = str(error)
        return answered


# --- llhttp


class _Requests:
    """What llhttp calls back for a stream of requests."""

    def __init__(self) -> None:
        self.reading = Reading()
        self.parser: Any = None
        self._begin()

    def _begin(self) -> None:
        self._url = b""
        self._body = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._head_done = False

    def on_message_begin(self) -> None:
        self._begin()

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._head_done:
            return  # a trailer
        name = name.lower()
        value = value.strip(b" \t")
        self._headers.append((name, value.lower() if name == b"transfer-encoding" else value))

    def on_headers_complete(self) -> None:
        self._head_done = True

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        self.reading.messages.append((self.parser.get_method(), self._url, self._headers, self._body))


def _fed(parser: HttpRequestParser | HttpResponseParser, stream: bytes) -> str:
    """Why it was refused, if it was."""
    try:
        parser.feed_data(stream)
    except HttpParserUpgrade:
        return "upgrade"
    except HttpParserError as error:
        return str(error) or type(error).__name__
    return ""


def llhttp_requests(stream: bytes) -> Reading:
    seen = _Requests()
    seen.parser = HttpRequestParser(seen)
    seen.reading.refusal = _fed(seen.parser, stream)
    return seen.reading


class _Response:
    """What llhttp calls back for one answer; interim ones are forgotten."""

    def __init__(self) -> None:
        self.answered = Answered()
        self.parser: Any = None

    def on_message_begin(self) -> None:
        if not self.answered.complete:
            self.answered = Answered()

    def on_headers_complete(self) -> None:
        if not self.answered.complete:
            self.answered.status = self.parser.get_status_code()

    def on_header(self, name: bytes, value: bytes) -> None:
        answered = self.answered
        if not answered.complete and not answered.status:
            value = value.strip(b" \t")
            answered.headers.append((name.lower(), value.lower() if name.lower() == b"transfer-encoding" else value))

    def on_body(self, body: bytes) -> None:
        if not self.answered.complete:
            self.answered.payload += body

    def on_message_complete(self) -> None:
        if self.answered.status >= 200:
            self.answered.complete = True


def llhttp_response(stream: bytes) -> Answered:
    """Of an answer to a GET: this parser cannot be told of a HEAD. What ends with the stream is not `complete`."""
    seen = _Response()
    seen.parser = HttpResponseParser(seen)
    seen.answered.refusal = _fed(seen.parser, stream)
    return seen.answered


# --- the engine


async def our_requests(segments: list[bytes]) -> Reading:
    reading = Reading()

    def body(request: Any) -> None:
        head = request.head
        reading.messages.append((head.method, head.target, fields_of(head.names, head.lines), request.body))
        request.connection.answer(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n")

    def broken(request: Any) -> None:
        reading.refusal = "body"
        request.connection.reset()

    stage = ClientStage(App(body=body, broken=broken))
    for segment in segments:
        if not stage.wire.closed:
            stage.wire.arrives(segment)
            await turns(4)
    begun = -1
    while begun < len(stage.app.requests):  # others may wait in the pipeline
        begun = len(stage.app.requests)
        await turns(4)
    if stage.app.refused:
        reading.refusal = "head"
    reading.in_body = len(stage.app.requests) > len(reading.messages) and not reading.refusal
    return reading


HARMLESS: Final = ("no request line received", "Invalid character in chunk extensions", "upgrade")
"""What others refuse and the engine need not: an empty line before the request line (RFC 9112 §2.2), how the extension of a
chunk is written, which is ignored, an offer to upgrade, which is not taken."""

_FRAMING: Final = re.compile("(?i)content-length|transfer-encoding|unexpected content|Only Transfer")


def harmless(refusal: str, fields: list[tuple[bytes, bytes]]) -> bool:
    """Whether a message with these fields may be accepted though another reader refuses it.

    Trailers that name fields of the framing are dropped, as any are; other readers judge them.
    """
    chunked = (b"transfer-encoding", b"chunked") in fields
    return refusal.startswith(HARMLESS) or (chunked and _FRAMING.search(refusal) is not None)


def agree(ours: Reading, theirs: Reading) -> None:
    """What both accept they read the same; nothing that they refuse is accepted, and no body is longer here than there."""
    both = min(len(theirs.messages), len(ours.messages))
    for mine, other in zip(ours.messages[:both], theirs.messages[:both], strict=True):
        absolute = b"://" in other[1]  # which the engine takes apart, and the others do not
        assert mine == (other[0], mine[1] if absolute else other[1], *other[2:])
    if len(ours.messages) > both and theirs.refusal:
        assert harmless(theirs.refusal, ours.messages[both][2]), (theirs.refusal, ours.messages[both])
    if len(theirs.messages) > both:
        assert not ours.in_body, f"the engine waits for more of a body where others see {theirs.messages[both]}"


async def our_response(segments: list[bytes], method: str) -> tuple[Answered, Answer]:
    answered = Answered()
    stage = UpstreamStage()
    answer = Answer()
    answer.ask(stage.upstream, method.encode() + b" / HTTP/1.1\r\nHost: u\r\n\r\n")
    for segment in segments:
        stage.wire.arrives(segment)
    stage.wire.peer_closes()
    await turns(3)
    assert len(answer.ends) == 1
    if answer.head is not None:
        answered.status = answer.head.status
        answered.headers = fields_of(answer.head.names, answer.head.lines)
    answered.payload = answer.payload
    answered.complete = answer.ends == ["done"]
    if answer.error is not None:
        answered.refusal = answer.error.detail
    return answered, answer
