"""Clients that read their answers slowly, or not at all: how long that is waited for (`idle_timeout`)."""

import socket
import time
from collections.abc import Iterator

import pytest

from tests.e2e.conftest import CHAT, DATA_PLANE
from tests.support.fake_provider import fake_provider
from tests.support.server import Server, open_directory

IDLE = 3.0
"""A busy machine may stall for two."""
RATE = 200_000
"""Bytes a second of a slow reader: in `IDLE`, a small part of what the kernel keeps for a connection where it may."""
SIZE = 6_000_000
"""More than all that is kept for a client on the way."""
STEADY = 4_500_000
"""Enough that some of it has to wait for the kernel while a slow reader reads on."""


@pytest.fixture(scope="module")
def site() -> Iterator[tuple[Server, str]]:
    with open_directory() as directory, fake_provider() as fake:
        server = Server(directory, fake, "--workers", "1", OSTIARY_IDLE_TIMEOUT=f"{IDLE:.0f}s").start()
        yield server, server.new_token("ann")
        server.kill()


class Reader:
    """A client with a small window that has asked for an answer of `size` characters and got its head."""

    def __init__(self, server: Server, token: str, size: int) -> None:
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.socket.settimeout(20)
        self.socket.connect(("127.0.0.1", server.port))
        body = CHAT.body()
        head = f"POST {DATA_PLANE}{CHAT.path('openai')} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\n"
        self.socket.sendall(f"{head}X-Fake: size={size}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        received = b""
        while b"\r\n\r\n" not in received:
            received += self.socket.recv(4096)
        first, _, rest = received.partition(b"\r\n\r\n")
        lines = (line.partition(": ") for line in first.decode().lower().split("\r\n"))
        fields = {name: value for name, _, value in lines}
        self.id = fields["x-ostiary-interception-id"]
        self.length = int(fields["content-length"])
        self.got = len(rest)

    def read(self, rate: float) -> None:
        """To the end, at so many bytes a second."""
        begun = time.monotonic() - self.got / rate
        while self.got < self.length:
            due = int(rate * (time.monotonic() - begun)) - self.got
            if due <= 0:
                time.sleep(0.01)  # it is slow
                continue
            data = self.socket.recv(due)
            if not data:
                return
            self.got += len(data)


def test_a_client_that_reads_slowly_but_steadily_gets_all_of_it(site: tuple[Server, str]) -> None:
    server, token = site
    reader = Reader(server, token, STEADY)
    with reader.socket:
        reader.read(RATE)
    assert reader.got == reader.length
    assert server.interception(reader.id)["outcome"] == "completed"


def test_a_client_that_stops_reading_is_cut_after_the_idle_time_and_its_record_says_so(
    site: tuple[Server, str],
) -> None:
    server, token = site
    reader = Reader(server, token, SIZE)
    with reader.socket:
        record = server.interception(reader.id)
        assert record["outcome"] == "client_closed"
        assert "the client stopped reading" in record["trace"]["notes"]
        stages = record["trace"]["stages"]
        assert IDLE * 1e6 < stages["end"] - stages["head"] < 15e6
        reader.read(100 * RATE)
        assert reader.got < reader.length, "it can tell that this is not all"
