"""Two readers, one meaning: whatever both this engine and h11 accept, they must read the same.

Streams of requests and answers are put together from parts of which some are what smugglers use. Where h11 refuses, this
engine must refuse too, or the reason must be one of the few that say nothing about where a message ends.
"""

import os
from dataclasses import dataclass, field
from typing import Any

import h11
from http1_stage import Answer, App, ClientStage, UpstreamStage, perform, torn_at, turns
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

Message = tuple[bytes, bytes, list[tuple[bytes, bytes]], bytes]


@dataclass
class Reading:
    """What a reader made of a stream: the complete messages, and why it stopped, if it refused."""

    messages: list[Message] = field(default_factory=list)
    refusal: str = ""


def mostly(usual: bytes, *odd: bytes) -> st.SearchStrategy[bytes]:
    """`usual` thirty-nine times of forty: a stream has dozens of places where it can be odd."""
    return st.integers(0, 39).flatmap(lambda n: st.sampled_from(odd) if n == 39 else st.just(usual))


LINE_END = mostly(b"\r\n", b"\n", b"\r", b"\r\r\n", b"\r\n ", b"\r\n\t", b"\n\n", b"\r\n\n", b" \r\n")
END = mostly(b"\r\n", b"\n", b"")
COLON = mostly(b": ", b":", b" :", b":\t", b"\t: ", b":\x0b", b":\x00", b"\x00:", b": \r\n ")
CONTROLS = bytes(set(range(0x20)) - {0x09}) + b"\x7f"
WORD = st.binary(max_size=12).flatmap(lambda raw: mostly(raw.translate(None, CONTROLS), raw))
SIZED = st.sampled_from([b"h", b"hel", b"hello", b"\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n"])
LENGTHS = st.sampled_from(
    [
        b"0",
        b"1",
        b"3",
        b"5",
        b"05",
        b"+5",
        b"-1",
        b"5,5",
        b"5, 5",
        b"5 5",
        b"0x5",
        b"",
        b"5\x0b",
        b"1_0",
        b"\xb2",
        b"5;",
    ]
)
CODINGS = st.sampled_from(
    [
        b"chunked",
        b"Chunked",
        b"CHUNKED ",
        b"gzip, chunked",
        b"chunked, chunked",
        b"identity",
        b"",
        b"xchunked",
        b"chunked;a",
    ]
)


@st.composite
def fields(draw: st.DrawFn) -> bytes:
    lines = []
    for _ in range(draw(st.integers(0, 2))):
        kind = draw(st.integers(0, 12))
        if kind == 0:
            name, value = b"Content-Length", draw(LENGTHS)
        elif kind == 1:
            name, value = b"Transfer-Encoding", draw(CODINGS)
        elif kind == 2:
            name, value = b"Connection", draw(st.sampled_from([b"close", b"keep-alive", b"Close, x", b"x"]))
        elif kind == 3:
            name, value = draw(st.sampled_from([b"X", b"x-y", b"X Y", b"X\x00", b"", b"Transfer_Encoding"])), b"v"
        else:
            name, value = b"X-Any", draw(WORD)
        lines.append(name + draw(COLON) + value + draw(LINE_END))
    return b"".join(lines)


@st.composite
def chunked(draw: st.DrawFn) -> bytes:
    parts = []
    for payload in draw(
        st.lists(st.sampled_from([b"a", b"hello", b"\r\n", b"0\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n"]), max_size=3)
    ):
        size = b"%x" % len(payload)
        size = draw(
            mostly(size, b"0" + size, size.upper(), b"+" + size, b"0x" + size, b" " + size, size + b" ", b"-1", b"")
        )
        extension = draw(mostly(b"", b";a", b";a=b", b' ;a="b"', b";", b";a\n", b";\x00", b";a\r"))
        parts.append(size + extension + draw(LINE_END) + payload + draw(LINE_END))
    trailers = draw(mostly(b"", b"X: y\r\n", b"Content-Length: 5\r\n", b" x\r\n", b"x\r\n", b"X: y\n"))
    parts.append(draw(mostly(b"0", b"00", b"0;a", b"0 ", b"")) + draw(LINE_END) + trailers + draw(LINE_END))
    return b"".join(parts)


@st.composite
def framed(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A framing field and a body that fits it, in most cases."""
    kind = draw(st.sampled_from(["none", "length", "chunked", "wild"]))
    if kind == "length":
        body = draw(SIZED)
        length = draw(mostly(b"%d" % len(body), b"%d" % (len(body) - 1), b"%d" % (len(body) + 1), b"+%d" % len(body)))
        return b"Content-Length" + draw(COLON) + length + draw(LINE_END), body
    if kind == "chunked":
        return b"Transfer-Encoding" + draw(COLON) + draw(mostly(b"chunked", b"Chunked", b"x")) + draw(LINE_END), draw(
            chunked()
        )
    return b"", draw(st.one_of(SIZED, chunked(), WORD)) if kind == "wild" else b""


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    line = (
        draw(mostly(b"POST", b"GET", b"HEAD", b"get", b"PO ST", b"POST ", b"\r\nPOST", b"\nPOST", b"P\x00ST"))
        + draw(mostly(b" ", b"  ", b"\t"))
        + draw(mostly(b"/a", b"/", b"/?b=c", b"/a b", b"/\x00", b"/\x7f", b"/\xff", b"/\t", b"a"))
        + draw(mostly(b" ", b"  ", b"\t", b""))
        + draw(mostly(b"HTTP/1.1", b"HTTP/1.0", b"HTTP/1.2", b"HTTP/2.0", b"http/1.1", b"HTTP/1.1 ", b"HTTP/0.9", b""))
    )
    host = draw(mostly(b"Host: h\r\n", b"", b"Host: h\r\nHost: h\r\n", b"Host : h\r\n", b"Host: \r\n", b" Host: h\r\n"))
    framing, body = draw(framed())
    more = draw(fields())
    return line + draw(LINE_END) + host + draw(st.sampled_from([framing + more, more + framing])) + draw(END) + body


STREAMS = st.lists(requests(), min_size=1, max_size=3).map(b"".join)
CUTS = st.lists(st.integers(0, 400), max_size=4)


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


async def our_requests(segments: list[bytes]) -> Reading:
    reading = Reading()

    def body(request: Any) -> None:
        head = request.head
        headers = []
        for name, line in zip(head.names, head.lines, strict=True):
            value = line.partition(b":")[2].strip(b" \t")
            headers.append((name, value.lower() if name == b"transfer-encoding" else value))  # h11 lowers it
        reading.messages.append((head.method, head.target, headers, request.body))
        request.connection.answer(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n")

    def broken(request: Any) -> None:
        reading.refusal = "body"
        request.connection.reset()

    stage = ClientStage(App(body=body, broken=broken))
    for segment in segments:
        if not stage.wire.closed:
            stage.wire.arrives(segment)
            await turns(4)
    if stage.app.refused:
        reading.refusal = "head"
    return reading


HARMLESS = ("no request line received",)
"""What h11 refuses and we need not: an empty line before the request line (RFC 9112 §2.2)."""

thorough = settings(
    max_examples=20_000 if os.environ.get("FUZZ") else 250, deadline=None, suppress_health_check=list(HealthCheck)
)


@thorough
@given(STREAMS, CUTS)
def test_requests_mean_the_same_to_h11(stream: bytes, cuts: list[int]) -> None:
    async def play() -> None:
        theirs = h11_requests(stream)
        whole = await our_requests([stream])
        assert await our_requests(torn_at(stream, cuts)) == whole, "tearing changes the meaning"
        both = min(len(theirs.messages), len(whole.messages))
        assert whole.messages[:both] == theirs.messages[:both]
        if len(whole.messages) > both and theirs.refusal:
            assert theirs.refusal.startswith(HARMLESS), (theirs.refusal, whole.messages[both])

    perform(play)


@st.composite
def responses(draw: st.DrawFn) -> bytes:
    status = draw(mostly(b"200", b"204", b"304", b"404", b"529", b"20", b"2000", b"099", b"101"))
    version = draw(mostly(b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0", b"http/1.1"))
    reason = draw(mostly(b" OK", b"", b" ", b" \xe4", b" a\tb", b" a\x00", b"  OK"))
    framing, body = draw(framed())
    more = draw(fields())
    interim = draw(mostly(b"", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Hints\r\nLink: x\r\n\r\n" * 2))
    head = version + draw(mostly(b" ", b"  ")) + status + reason + draw(LINE_END)
    behind = draw(mostly(b"", b"\r\n", b"HTTP/1.1 200 OK\r\n\r\n", b"x", b"0\r\n\r\n"))
    return interim + head + draw(st.sampled_from([framing + more, more + framing])) + draw(END) + body + behind


@dataclass
class Answered:
    """One answer as a reader took it. `rest`: how many bytes of the stream stand behind its end."""

    status: int = 0
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    payload: bytes = b""
    complete: bool = False
    refusal: str = ""
    rest: int = 0


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
        values = [line.partition(b":")[2].strip(b" \t") for line in answer.head.lines]
        pairs = zip(answer.head.names, values, strict=True)
        answered.headers = [(name, value.lower() if name == b"transfer-encoding" else value) for name, value in pairs]
    answered.payload = answer.payload
    answered.complete = answer.ends == ["done"]
    if answer.error is not None:
        answered.refusal = answer.error.detail
    return answered, answer


@thorough
@given(responses(), CUTS, st.sampled_from(["GET", "HEAD"]))
def test_answers_mean_the_same_to_h11(stream: bytes, cuts: list[int], method: str) -> None:
    async def play() -> None:
        theirs = h11_response(stream, method)
        ours, answer = await our_response([stream], method)
        if theirs.status and ours.status:
            assert (ours.status, ours.headers) == (theirs.status, theirs.headers)
        if ours.complete:
            assert theirs.complete or theirs.refusal.startswith(HARMLESS), theirs.refusal
            assert ours.payload == theirs.payload
            sent = bytes(answer.out).removeprefix(b"<head>")
            assert stream[: len(stream) - theirs.rest].endswith(sent)
            assert len(sent) >= len(ours.payload)
        again, _ = await our_response(torn_at(stream, cuts), method)
        if theirs.complete and not theirs.rest:
            assert again == ours, "tearing changes the meaning"

    perform(play)
