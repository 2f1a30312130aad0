"""Every way to say where an answer ends."""

from dataclasses import dataclass
from typing import Any

from http1_stage import Answer, UpstreamStage

EVENTS = [b"data: one\n\n", b"data: two\r\n\r\n", b": \x00\xff\n\n"]
IN_CHUNKS = b"".join(b"%x\r\n%b\r\n" % (len(event), event) for event in EVENTS)


@dataclass
class Framed:
    """One way to say where an answer ends. `closes`: by the end of the stream."""

    name: str
    head: bytes
    body: bytes
    payload: bytes
    method: bytes = b"GET"
    closes: bool = False
    reusable: bool = True


FRAMINGS = [
    Framed("length", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", b"hello", b"hello"),
    Framed("no length", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b"", b""),
    Framed(
        "chunks",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        IN_CHUNKS + b"0\r\n\r\n",
        b"".join(EVENTS),
    ),
    Framed(
        "chunks with extensions and trailers",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b'5;a="b"\r\nhello\r\n00;last\r\nX-Sum: 5\r\nX-Other: \r\n\r\n',
        b"hello",
    ),
    Framed("one empty chunk", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"0\r\n\r\n", b""),
    Framed(
        "chunks of line ends",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"4\r\n\r\n\r\n\r\n1\r\n\n\r\n0\r\n\r\n",
        b"\r\n\r\n\n",
    ),
    Framed("close", b"HTTP/1.1 200 OK\r\n\r\n", b"hello\r\n\r\n", b"hello\r\n\r\n", closes=True, reusable=False),
    Framed("close of HTTP/1.0", b"HTTP/1.0 200 OK\r\n\r\n", b"hello", b"hello", closes=True, reusable=False),
    Framed("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", b"", b"", method=b"HEAD"),
    Framed("HEAD, chunked", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"", b"", method=b"HEAD"),
    Framed("204", b"HTTP/1.1 204 No Content\r\n\r\n", b"", b""),
    Framed("304", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", b"", b""),
    Framed("error", b"HTTP/1.1 529 Overloaded\r\nContent-Length: 2\r\n\r\n", b"{}", b"{}"),
    Framed(
        "length, Connection: close",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\n",
        b"hello",
        b"hello",
        reusable=False,
    ),
    Framed(
        "chunks, Connection: close",
        b"HTTP/1.1 200 OK\r\nConnection: x, Close\r\nTransfer-Encoding: chunked\r\n\r\n",
        IN_CHUNKS + b"0\r\n\r\n",
        b"".join(EVENTS),
        reusable=False,
    ),
    Framed(
        "after interim answers",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
        b"hello",
        b"hello",
    ),
]
by_name: dict[str, Any] = {"argvalues": FRAMINGS, "ids": [framed.name for framed in FRAMINGS]}


def asked(framed: Framed, **how: Any) -> tuple[UpstreamStage, Answer]:
    stage = UpstreamStage()
    answer = Answer(**how)
    answer.ask(stage.upstream, framed.method + b" / HTTP/1.1\r\nHost: u\r\n\r\n")
    return stage, answer
