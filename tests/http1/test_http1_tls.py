"""TLS towards upstreams, with OpenSSL as the other side: torn anywhere, ended in every way."""

import asyncio
import ssl
from functools import cache
from typing import cast

import pytest
from http1_peers import server_tls, trusting_tls
from hypothesis import given, settings
from hypothesis import strategies as st

from ostiary.http1.tls import UpstreamTLS

VERSIONS = (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)


@cache
def contexts(version: ssl.TLSVersion) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    client, server = trusting_tls(), server_tls("api.test")
    client.maximum_version = server.maximum_version = version
    return client, server


class Tcp:
    """What a loop's transport is, with what was written to it at hand."""

    def __init__(self) -> None:
        self.written = b""
        self.aborted = self.closed = False

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = cast("asyncio.Protocol", protocol)

    def write(self, data: bytes) -> None:
        assert not self.is_closing()
        self.written += data

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.aborted = True

    def is_closing(self) -> bool:
        return self.closed or self.aborted

    def get_write_buffer_size(self) -> int:
        return 0

    def take(self) -> bytes:
        taken, self.written = self.written, b""
        return taken


class Above:
    """Stands where an `UpstreamConnection` does."""

    def __init__(self) -> None:
        self.received = b""
        self.ended = False
        self.lost: list[Exception | None] = []

    def tls_started(self, transport: asyncio.Transport, tcp: asyncio.Transport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        assert data
        assert not self.ended
        self.received += data

    def eof_received(self) -> bool:
        self.ended = True
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.append(exc)


class Peer:
    """A server on the other end of the wire."""

    def __init__(self, version: ssl.TLSVersion) -> None:
        client, server = contexts(version)
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = server.wrap_bio(self._in, self._out, server_side=True)
        self.tcp = Tcp()
        self.above = Above()
        self.ours = UpstreamTLS(cast("asyncio.Transport", self.tcp), self.above, client, "api.test")
        self.received = b""

    async def established(self, cut: int = 1 << 20) -> None:
        task = asyncio.ensure_future(self.ours.handshake())
        await asyncio.sleep(0)
        shaken = False
        for _ in range(8):
            self._in.write(self.tcp.take())
            if not shaken:
                try:
                    self.tls.do_handshake()
                    shaken = True
                except ssl.SSLWantReadError:
                    pass
            self.deliver(cut)
        await task

    def deliver(self, cut: int = 1 << 20) -> None:
        """What the server has to say, `cut` bytes at a time."""
        data = self._out.read()
        for at in range(0, len(data), cut):
            self.tcp.protocol.data_received(data[at : at + cut])

    def say(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[self.tls.write(rest) :]

    def read(self) -> bytes:
        """What we wrote, deciphered."""
        self._in.write(self.tcp.take())
        found = b""
        try:
            while data := self.tls.read(1 << 16):
                found += data
        except ssl.SSLWantReadError:
            pass
        return found

    def bid_farewell(self) -> None:
        with pytest.raises(ssl.SSLError):
            self.tls.unwrap()


PIECES = st.lists(st.integers(1, 50_000), max_size=6)


@given(st.sampled_from(VERSIONS), PIECES, PIECES, st.integers(1, 20_000), st.booleans())
@settings(max_examples=60, deadline=None)
def test_bytes_arrive_both_ways_however_they_are_torn(
    version: ssl.TLSVersion, up: list[int], down: list[int], cut: int, at_once: bool
) -> None:
    async def play() -> None:
        peer = Peer(version)
        await peer.established(cut)
        sent = [bytes([n % 256]) * size for n, size in enumerate(up)]
        if at_once:
            peer.ours.writelines(sent)
        else:
            for piece in sent:
                peer.ours.write(piece)
        assert peer.read() == b"".join(sent)
        said = [bytes([n % 256]) * size for n, size in enumerate(down)]
        for piece in said:
            peer.say(piece)
        peer.deliver(cut)
        assert peer.above.received == b"".join(said)
        assert not peer.above.ended
        peer.say(b"the end")
        peer.bid_farewell()
        peer.deliver(cut)
        assert peer.above.received == b"".join(said) + b"the end"
        assert peer.above.ended
        assert peer.tcp.closed
        peer.tcp.protocol.connection_lost(None)
        assert peer.above.lost == [None]

    asyncio.run(play())


@pytest.mark.parametrize("version", VERSIONS)
def test_an_end_without_farewell_just_breaks(version: ssl.TLSVersion) -> None:
    async def play() -> None:
        peer = Peer(version)
        await peer.established()
        peer.say(b"half")
        peer.deliver()
        assert not peer.tcp.protocol.eof_received()
        peer.tcp.protocol.connection_lost(None)
        assert (peer.above.received, peer.above.ended, peer.above.lost) == (b"half", False, [None])

    asyncio.run(play())


@pytest.mark.parametrize("version", VERSIONS)
def test_a_record_that_was_tampered_with_breaks_the_connection_and_gives_nothing(version: ssl.TLSVersion) -> None:
    async def play() -> None:
        peer = Peer(version)
        await peer.established()
        peer.say(b"secret")
        record = bytearray(peer._out.read())
        record[-1] ^= 1
        peer.tcp.protocol.data_received(bytes(record))
        assert peer.tcp.aborted
        assert not peer.above.received
        peer.tcp.protocol.connection_lost(None)
        (lost,) = peer.above.lost
        assert isinstance(lost, ssl.SSLError)
        peer.ours.write(b"more")  # and raises nothing
        peer.ours.close()

    asyncio.run(play())


def test_our_farewell_is_sent_before_the_connection_is_closed() -> None:
    async def play() -> None:
        peer = Peer(ssl.TLSVersion.TLSv1_3)
        await peer.established()
        peer.ours.write(b"all")
        peer.ours.close()
        peer.ours.close()
        assert peer.tcp.closed
        assert peer.ours.is_closing()
        assert peer.read() == b"all"
        assert peer.tls.read(10) == b""  # close_notify

    asyncio.run(play())


def test_nothing_is_given_after_it_was_closed() -> None:
    async def play() -> None:
        peer = Peer(ssl.TLSVersion.TLSv1_3)
        await peer.established()
        peer.say(b"late")
        peer.ours.abort()
        peer.deliver()
        assert not peer.above.received
        assert peer.tcp.aborted

    asyncio.run(play())


@pytest.mark.parametrize("end", ["lost", "garbage", "cancelled"])
def test_a_handshake_that_fails_says_why_and_tells_nobody_above(end: str) -> None:
    async def play() -> None:
        peer = Peer(ssl.TLSVersion.TLSv1_3)
        task = asyncio.ensure_future(peer.ours.handshake())
        await asyncio.sleep(0)
        assert peer.tcp.take()[:1] == b"\x16"  # a handshake record
        expected: type[BaseException] = ssl.SSLError
        if end == "lost":
            peer.tcp.protocol.connection_lost(None)
            expected = ConnectionResetError
        elif end == "garbage":
            peer.tcp.protocol.data_received(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        else:
            task.cancel()
            expected = asyncio.CancelledError
        with pytest.raises(expected):
            await task
        peer.tcp.protocol.data_received(b"more")
        peer.tcp.protocol.connection_lost(None)
        assert not peer.above.lost

    asyncio.run(play())


def test_what_comes_with_the_end_of_the_handshake_is_not_lost() -> None:
    async def play() -> None:
        peer = Peer(ssl.TLSVersion.TLSv1_2)  # the server has the last word there
        task = asyncio.ensure_future(peer.ours.handshake())
        await asyncio.sleep(0)
        for _ in range(2):
            peer._in.write(peer.tcp.take())
            try:
                peer.tls.do_handshake()
                peer.say(b"too early")
            except ssl.SSLWantReadError:
                pass
            peer.deliver()
        await task
        assert peer.above.received == b"too early"

    asyncio.run(play())
