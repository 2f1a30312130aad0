"""The stage of the engine's plays: a wire that records, an application and consumers that note what they are told.

`Wire` is an asyncio transport without a socket. It is as strict as uvloop's: nothing is delivered while reading is paused,
writing after the end of the stream or of the connection raises, `connection_lost` comes once and from the loop.
"""

import asyncio
from collections.abc import Callable, Coroutine
from itertools import pairwise
from typing import Any

import uvloop

from ostiary.core.secret import Secret
from ostiary.http1.connections import Connections
from ostiary.http1.errors import HeadError, UpstreamError
from ostiary.http1.head import MAX_HEAD, RequestHead, ResponseHead
from ostiary.http1.origin import Origin
from ostiary.http1.server import ClientConnection
from ostiary.http1.upstream import UpstreamConnection

TICK = 1.0


def perform(play: Callable[[], Coroutine[Any, Any, None]], timeout: float = 20.0) -> None:
    """Run an async test on uvloop, as the workers do; what the loop would only log fails the test."""

    async def bounded() -> None:
        complaints: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        async with asyncio.timeout(timeout):
            await play()
            await turns()
        assert not complaints, complaints

    uvloop.run(bounded())


async def turns(count: int = 8) -> None:
    """Let the loop run what is scheduled."""
    for _ in range(count):
        await asyncio.sleep(0)


class Wire(asyncio.Transport):
    """See the module. `take_all = False`: the peer's window is closed, what is written stays until `peer_takes`."""

    def __init__(self, protocol: asyncio.Protocol, *, tls: bool = False) -> None:
        super().__init__()
        self.protocol = protocol
        self.tls = tls
        self.sent = bytearray()
        self.writes: list[bytes] = []
        self.take_all = True
        self.eof_sent = False
        self.aborted = False
        self.lost = False
        self.reading = True
        self._unsent = bytearray()
        self._arrived: list[bytes | None] = []
        self._closing = False
        self._ending = False
        self._high, self._low = 64 * 1024, 16 * 1024
        self._paused = False
        self._told = False
        protocol.connection_made(self)

    # what the peer does

    def arrives(self, *segments: bytes) -> None:
        """Segments from the peer; those that come while reading is paused wait."""
        self._arrived += segments
        self._deliver()

    def peer_closes(self) -> None:
        """End of the peer's stream."""
        self._arrived.append(None)
        self._deliver()

    def peer_breaks_tls(self) -> None:
        """The end of the TCP stream without TLS's own: uvloop then says only that the connection is lost."""
        self._lose(None)

    def peer_vanishes(self) -> None:
        """A reset."""
        self._lose(ConnectionResetError())

    def peer_takes(self, size: int | None = None) -> None:
        """The peer reads `size` bytes, by default all, of what waits to be sent."""
        count = len(self._unsent) if size is None else size
        self.sent += self._unsent[:count]
        del self._unsent[:count]
        if self._paused and len(self._unsent) <= self._low:
            self._paused = False
            self.protocol.resume_writing()
        if not self._unsent and self._ending:
            self._lose(None)

    def _deliver(self) -> None:
        while self._arrived and self.reading and not self._closing:
            segment = self._arrived.pop(0)
            if segment is not None:
                self.protocol.data_received(segment)
            else:
                if not self.protocol.eof_received():
                    self.close()

    def _lose(self, exc: Exception | None) -> None:
        if not self.lost:
            self.lost = True
            self._closing = True
            asyncio.get_running_loop().call_soon(self._tell, exc)

    def _tell(self, exc: Exception | None) -> None:
        self._told = True
        self.protocol.connection_lost(exc)

    # asyncio.Transport

    @property
    def closed(self) -> bool:
        return self._closing

    def write(self, data: Any) -> None:
        if self.eof_sent:
            raise RuntimeError("write after write_eof")
        if self._told:
            raise RuntimeError("the handle is closed")
        if self.lost:
            return
        self.writes.append(bytes(data))
        if self.take_all and not self._unsent:
            self.sent += data
            return
        self._unsent += data
        if len(self._unsent) > self._high and not self._paused:
            self._paused = True
            self.protocol.pause_writing()

    def writelines(self, list_of_data: Any) -> None:
        for data in list_of_data:
            self.write(data)

    def write_eof(self) -> None:
        if self.tls:
            raise NotImplementedError
        assert not self._closing
        self.eof_sent = True

    def can_write_eof(self) -> bool:
        return not self.tls

    def get_write_buffer_size(self) -> int:
        return len(self._unsent)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = high or 64 * 1024
        self._low = self._high // 4

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        if not self._closing:
            self.reading = True
            asyncio.get_running_loop().call_soon(self._deliver)

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        self._closing = True
        self._ending = True
        if not self._unsent:
            self._lose(None)

    def abort(self) -> None:
        self.aborted = True
        self._unsent.clear()
        self._lose(None)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default


class Request:
    """One request as the application sees it. `told` is all that it was told, in order."""

    def __init__(self, connection: ClientConnection, head: RequestHead, play: "App") -> None:
        self.connection = connection
        self.head = head
        self.told: list[tuple[Any, ...]] = []
        self._play = play

    def request_body(self, body: bytes) -> None:
        self._note("body", body)

    def request_body_too_large(self) -> None:
        self._note("too large")

    def request_piece(self, data: bytes, *, last: bool) -> None:
        self._note("piece", data, last)

    def request_broken(self, reason: str) -> None:
        self._note("broken", reason)

    def request_stalled(self) -> None:
        self._note("stalled")

    def request_too_slow(self) -> None:
        self._note("too slow")

    def client_gone(self) -> None:
        self._note("gone")

    def client_paused(self) -> None:
        self._note("paused")

    def client_resumed(self) -> None:
        self._note("resumed")

    def _note(self, what: str, *facts: Any) -> None:
        self.told.append((what, *facts))
        self._play.react(self, what)

    @property
    def words(self) -> list[str]:
        return [line[0] for line in self.told]

    @property
    def body(self) -> bytes:
        """What came of the body, whichever way it was asked for."""
        return b"".join(line[1] for line in self.told if line[0] in ("body", "piece"))

    def refuse(self, status: bytes, body: bytes = b"{}") -> None:
        self.connection.answer(b"HTTP/1.1 " + status + b"\r\nContent-Length: %d\r\n" % len(body), body)


def ok(request: Request) -> None:
    """Answer with the request's target and what its body was."""
    said = request.head.target + b" " + request.body
    request.connection.answer(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n" % len(said), said)


Reaction = Callable[[Request], object]


class App:
    """`reactions` are by what a request is told, "begin" first; without any, bodies are collected and answered."""

    def __init__(self, **reactions: Reaction) -> None:
        self.draining = False
        self.requests: list[Request] = []
        self.refused: list[HeadError] = []
        self.crowds: list[int] = []
        self._reactions = reactions or {"body": ok, "too_large": lambda r: r.refuse(b"413 Large")}
        self._limit = 1024 * 1024

    def begin(self, connection: ClientConnection, head: RequestHead) -> None:
        request = Request(connection, head, self)
        self.requests.append(request)
        connection.exchange = request
        if "begin" in self._reactions:
            self._reactions["begin"](request)
        else:
            connection.collect(self._limit)

    def react(self, request: Request, what: str) -> None:
        reaction = self._reactions.get(what.replace(" ", "_"))
        if reaction is not None:
            reaction(request)

    def crowded(self, closed: int) -> bytes:
        self.crowds.append(closed)
        return b"" if closed else b"HTTP/1.1 503 Full\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"

    def head_refused(self, connection: ClientConnection, error: HeadError) -> bytes:
        self.refused.append(error)
        return b"HTTP/1.1 %d Refused\r\nContent-Length: 0\r\nConnection: close\r\n\r\n" % error.status


class Limits:
    """Of clients and upstreams. In ticks as well as in seconds, as a tick is a second here."""

    head_timeout = 10.0
    keepalive_timeout = 75.0
    body_timeout = 30.0
    connect_timeout = 5.0
    idle_timeout = 30.0
    keepalive_pool = 4
    https_proxy = Secret("")
    no_proxy = ""


class ClientStage:
    """One client connection, its wire and the application behind it."""

    def __init__(self, app: App | None = None, *, tls: bool = False, head_max: int = MAX_HEAD) -> None:
        self.app = app or App()
        self.connections = Connections(self.app, Limits(), TICK, head_max)
        self.connection = ClientConnection(self.connections)
        self.wire = Wire(self.connection, tls=tls)

    @property
    def request(self) -> Request:
        """The latest request."""
        return self.app.requests[-1]

    def ticks(self, count: int) -> None:
        for _ in range(count):
            self.connections.sweep()


class Answer:
    """A consumer that relays to memory. `out` is what a client would get, `seen` what the observer got."""

    def __init__(
        self,
        *,
        verbatim: bool = True,
        discard: bool = False,
        on_head: "Callable[[Answer, ResponseHead], object] | None" = None,
        on_data: "Callable[[Answer], object] | None" = None,
    ) -> None:
        self.out = bytearray()
        self.seen: list[bytes] = []
        self.told: list[str] = []
        self.error: UpstreamError | None = None
        self.head: ResponseHead | None = None
        self.interim: list[int] = []
        self.compacted = 0
        self.upstream: UpstreamConnection | None = None
        self._verbatim = verbatim
        self._discard = discard
        self._on_head = on_head
        self._on_data = on_data

    @property
    def ends(self) -> list[str]:
        return [word for word in self.told if word in ("done", "failed")]

    @property
    def payload(self) -> bytes:
        return b"".join(self.seen)

    def ask(self, upstream: UpstreamConnection, head: bytes = b"GET / HTTP/1.1\r\nHost: u\r\n\r\n", **how: Any) -> None:
        self.upstream = upstream
        upstream.send(self, head, **how)

    def response_interim(self, head: ResponseHead) -> None:
        self._check_open()
        self.interim.append(head.status)

    def response_head(self, head: ResponseHead) -> None:
        self._check_open()
        self.told.append("head")
        self.head = head
        assert self.upstream is not None
        if self._on_head is not None:
            self._on_head(self, head)
        elif self._discard:
            self.upstream.discard()
        else:
            self.upstream.relay(
                b"<head>", self._write, self.seen.append, verbatim=self._verbatim, compact=self._compact
            )

    def _write(self, data: bytes) -> None:
        self._check_open()
        self.out += data
        if self._on_data is not None:
            self._on_data(self)

    def _compact(self) -> None:
        self.compacted += 1

    def _check_open(self) -> None:
        assert not self.ends, f"called after its end: {self.told}"

    def response_done(self) -> None:
        self._check_open()
        self.told.append("done")

    def response_failed(self, error: UpstreamError) -> None:
        self._check_open()
        self.told.append("failed")
        self.error = error

    def request_paused(self) -> None:
        self.told.append("request paused")

    def request_resumed(self) -> None:
        self.told.append("request resumed")

    def client_stalled(self) -> None:
        self.told.append("client stalled")


class Shelf:
    """Where an upstream connection goes back to, in the place of a pool."""

    head_ticks = 10.0
    idle_ticks = 30.0
    keepalive_ticks = 60.0

    def __init__(self) -> None:
        self.released = 0
        self.forgotten = 0

    def release(self, connection: UpstreamConnection) -> None:
        self.released += 1

    def forget(self, connection: UpstreamConnection) -> None:
        self.forgotten += 1


class UpstreamStage:
    """One upstream connection on a wire."""

    def __init__(self, *, tls: bool = False) -> None:
        self.shelf = Shelf()
        self.upstream = UpstreamConnection(self.shelf, Origin(tls, "upstream.test", 443 if tls else 80))
        self.wire = Wire(self.upstream, tls=tls)


def torn_everywhere(data: bytes) -> list[list[bytes]]:
    """`data` whole, in single bytes, and cut in two at every place."""
    cuts = [[data[:at], data[at:]] for at in range(1, len(data))]
    return [[data], [data[at : at + 1] for at in range(len(data))], *cuts]


def torn_at(data: bytes, cuts: list[int]) -> list[bytes]:
    """`data` cut at these places, as far as it has them."""
    at = [0, *sorted({cut for cut in cuts if 0 < cut < len(data)}), len(data)]
    return [data[start:end] for start, end in pairwise(at) if start < end]
