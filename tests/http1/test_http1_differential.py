"""Several readers, one meaning: whatever this engine, h11, llhttp and Node's server accept, they must read the same.

Streams of requests and answers are put together from parts of which some are what smugglers use, or are valid ones of which
bytes were changed. Where another reader refuses, this engine must refuse too, or the reason must be one of the few that say
nothing about where a message ends.
"""

import json
import os
import random
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator

import pytest
from http1_stage import perform, torn_at, torn_everywhere
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.http1_readers import (
    Message,
    Reading,
    agree,
    h11_requests,
    h11_response,
    llhttp_requests,
    llhttp_response,
    our_requests,
    our_response,
)
from tests.fuzz.mutation import mutated
from tests.fuzz.seeds import TOKENS


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


LONG = bool(os.environ.get("FUZZ"))
thorough = settings(max_examples=20_000 if LONG else 250, deadline=None, suppress_health_check=list(HealthCheck))
every_reader = pytest.mark.parametrize("reader", [h11_requests, llhttp_requests])


@every_reader
@thorough
@given(STREAMS, CUTS)
def test_requests_mean_the_same_to_others(reader: Callable[[bytes], Reading], stream: bytes, cuts: list[int]) -> None:
    async def play() -> None:
        whole = await our_requests([stream])
        assert await our_requests(torn_at(stream, cuts)) == whole, "tearing changes the meaning"
        agree(whole, reader(stream))

    perform(play)


VALID = [
    b"GET /v1/models?x=1 HTTP/1.1\r\nHost: h\r\nAccept: */*\r\n\r\n",
    b"POST /v1/chat HTTP/1.1\r\nHost: h:80\r\nContent-Length: 5\r\nContent-Type: text/plain\r\n\r\nhello",
    b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n3;a=b\r\nabc\r\n0\r\nX: y\r\n\r\n",
    b"PUT /a HTTP/1.1\r\nhost: h\r\nconnection: keep-alive\r\ncontent-length: 00\r\nx-empty:\r\n\r\n",
    b"GET http://h/a HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n",
    b"POST /e HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n{}",
]


def changed_streams(count: int) -> Iterator[bytes]:
    """Pipelines of valid requests with a few bytes changed: always the same ones."""
    rng = random.Random("changed")
    for _ in range(count):
        stream = b"".join(rng.choices(VALID, k=rng.randint(1, 3)))
        yield mutated(rng, stream, VALID, TOKENS["request_stream"])


@every_reader
def test_changed_requests_mean_the_same_to_others(reader: Callable[[bytes], Reading]) -> None:
    for stream in changed_streams(20_000 if LONG else 400):

        async def play(stream: bytes = stream) -> None:
            agree(await our_requests([stream]), reader(stream))

        perform(play)


@pytest.mark.parametrize("message", VALID)
def test_valid_requests_are_read_by_all_however_they_are_torn(message: bytes) -> None:
    async def play() -> None:
        stream = message + b"GET /next HTTP/1.1\r\nHost: h\r\n\r\n"
        whole = h11_requests(stream)
        assert len(whole.messages) == (1 if b"close" in message else 2)
        theirs = llhttp_requests(stream).messages
        for segments in torn_everywhere(stream):
            ours = await our_requests(segments)
            agree(ours, whole)
            assert len(ours.messages) == len(whole.messages)
            assert [each[3] for each in ours.messages] == [each[3] for each in theirs]

    perform(play)


# --- a server of others


_NODE_SERVER = """
const server = require('http').createServer((request, response) => {
  const parts = [];
  request.on('data', (data) => parts.push(data));
  request.on('end', () => {
    const body = JSON.stringify([request.method, request.url, request.rawHeaders, Buffer.concat(parts).toString('latin1')]);
    response.end(body + '\\n');
  });
});
server.listen(0, '127.0.0.1', () => console.log(server.address().port));
"""


@pytest.fixture(scope="module")
def node_port() -> Iterator[int]:
    node = shutil.which("node")
    if node is None:
        pytest.skip("Node.js is not installed")
    with subprocess.Popen([node, "-e", _NODE_SERVER], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield int(process.stdout.readline())
        process.kill()


def node_requests(port: int, stream: bytes) -> Reading:
    """What Node's server answers, whose body says what it has read."""
    with socket.create_connection(("127.0.0.1", port), 20) as connection:
        data = b""
        try:
            connection.sendall(stream)
            connection.shutdown(socket.SHUT_WR)
            while more := connection.recv(65536):
                data += more
        except ConnectionError:
            pass
    reading = Reading()  # when Node refuses, it forgets the answers to what came before: that is not to be compared
    for line in data.split(b"\n"):
        if line.startswith(b'["'):
            method, url, raw, body = json.loads(line)
            names = [name.lower().encode("latin-1") for name in raw[::2]]
            values = [value.encode("latin-1") for value in raw[1::2]]
            pairs = zip(names, values, strict=True)
            fields = [(name, value.lower() if name == b"transfer-encoding" else value) for name, value in pairs]
            message: Message = (method.encode(), url.encode("latin-1"), fields, body.encode("latin-1"))
            reading.messages.append(message)
    return reading


def test_node_reads_the_same(node_port: int) -> None:
    read = 0
    for stream in changed_streams(5_000 if LONG else 250):

        async def play(stream: bytes = stream) -> None:
            nonlocal read
            ours, theirs = await our_requests([stream]), node_requests(node_port, stream)
            read += len(theirs.messages)
            if b"HEAD" not in stream:
                agree(ours, theirs)

        perform(play)
    assert read > 50


# --- answers


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


@thorough
@given(responses(), CUTS, st.sampled_from(["GET", "HEAD"]))
def test_answers_mean_the_same_to_others(stream: bytes, cuts: list[int], method: str) -> None:
    async def play() -> None:
        theirs = h11_response(stream, method)
        ours, answer = await our_response([stream], method)
        if theirs.status and ours.status:
            assert (ours.status, ours.headers) == (theirs.status, theirs.headers)
        if ours.complete:
            assert theirs.complete, theirs.refusal
            assert ours.payload == theirs.payload
            sent = bytes(answer.out).removeprefix(b"<head>")
            assert stream[: len(stream) - theirs.rest].endswith(sent)
            assert len(sent) >= len(ours.payload)
            if method == "GET":
                other = llhttp_response(stream)
                assert other.status < 200 or (other.status, other.payload) == (ours.status, ours.payload)
        again, _ = await our_response(torn_at(stream, cuts), method)
        if theirs.complete and not theirs.rest:
            assert again == ours, "tearing changes the meaning"

    perform(play)
