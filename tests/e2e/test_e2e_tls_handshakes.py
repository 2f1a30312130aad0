"""Clients that connect to the TLS listener and then say nothing, or too little: they take no room from people."""

import resource
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
import trustme

from tests.e2e.conftest import CHAT, DATA_PLANE
from tests.support.fake_provider import fake_provider
from tests.support.server import Server, eventually, open_directory

FILES = 400
HELLO = 8.0
"""Seconds that a handshake may take here."""


class Secured(NamedTuple):
    server: Server
    trust: ssl.SSLContext
    token: str

    @property
    def worker(self) -> int:
        (pid,) = self.server.children("worker")
        return pid

    @property
    def descriptors(self) -> int:
        return sum(1 for _ in Path(f"/proc/{self.worker}/fd").iterdir())

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.server.port), timeout=30)

    def limit_files(self, files: int) -> None:
        """What the worker may open; it notices by its next sweep."""
        hard = resource.prlimit(self.worker, resource.RLIMIT_NOFILE)[1]
        resource.prlimit(self.worker, resource.RLIMIT_NOFILE, (files, hard))

    def turned_away(self) -> float:
        return self.server.metric("ostiary_refused_requests_total", reason="connections")

    def call(self, client: httpx.Client) -> int:
        url = f"{self.server.url}{DATA_PLANE}{CHAT.path('openai')}"
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        return client.post(url, content=CHAT.body(), headers=headers).status_code


@pytest.fixture(scope="module")
def secured() -> Iterator[Secured]:
    with open_directory() as directory, fake_provider() as fake:
        authority = trustme.CA()
        made = authority.issue_cert("127.0.0.1")
        made.private_key_pem.write_to_path(directory / "key.pem")
        made.cert_chain_pems[0].write_to_path(directory / "cert.pem")
        trust = ssl.create_default_context()
        authority.configure_trust(trust)
        files = ("--tls-cert-file", str(directory / "cert.pem"), "--tls-key-file", str(directory / "key.pem"))
        server = Server(directory, fake, "--workers", "1", *files, OSTIARY_CLIENT_HEAD_TIMEOUT=f"{HELLO:.0f}s").start()
        secured = Secured(server, trust, server.new_token("ann"))
        secured.limit_files(FILES)
        with secured.connect() as unheard:
            assert not unheard.recv(1), "it has ended by a sweep, and so the limit has been noticed"
        yield secured
        server.kill()


def served(secured: Secured) -> bool:
    """Whether somebody new is, who has to shake hands first."""
    with httpx.Client(verify=secured.trust, timeout=20) as client:
        try:
            return secured.call(client) == 200
        except httpx.TransportError:
            return False


def say_nothing(_: socket.socket) -> None:
    """Not a byte."""


def begin_a_hello(connection: socket.socket) -> None:
    connection.sendall(bytes.fromhex("1603010200010001fc0303"))


@pytest.mark.parametrize("begin", [say_nothing, begin_a_hello])
def test_people_are_served_while_others_only_begin_a_handshake(
    secured: Secured, begin: Callable[[socket.socket], None]
) -> None:
    turned_away = secured.turned_away()
    with httpx.Client(verify=secured.trust, timeout=20) as client, ExitStack() as stack:
        assert secured.call(client) == 200
        for number in range(2 * FILES):
            connection = stack.enter_context(secured.connect())
            with suppress(OSError):
                begin(connection)
            if number % 50 == 49:
                assert secured.descriptors < FILES
                assert secured.call(client) == 200, "who is here already"
                # long before those who say nothing have had their time
                eventually(lambda: served(secured), within=HELLO / 2, what="who comes now")
    assert "turning client connections away" in secured.server.tail()
    eventually(lambda: secured.turned_away() >= turned_away + FILES)
    eventually(lambda: secured.descriptors < FILES // 4, what="they leave nothing behind")


def test_idle_clients_that_do_not_agree_to_a_close_make_room(secured: Secured) -> None:
    """Over TLS each side says that it closes; these take no notice of what the server says."""
    with httpx.Client(verify=secured.trust, timeout=20) as client, ExitStack() as stack:
        for number in range(2 * FILES):
            connection = stack.enter_context(secured.connect())
            with suppress(OSError):
                stack.enter_context(secured.trust.wrap_socket(connection, server_hostname="127.0.0.1"))
            if number % 50 == 49:
                assert secured.descriptors < FILES - 8
                assert secured.call(client) == 200
                eventually(lambda: served(secured), what="idle ones make room")
    eventually(lambda: secured.descriptors < FILES // 4, what="they leave nothing behind")


def test_where_there_is_no_descriptor_left_at_all_handshakes_end_and_later_all_are_served(secured: Secured) -> None:
    with ExitStack() as stack:
        early = stack.enter_context(secured.connect())
        early.settimeout(HELLO - 2)
        secured.limit_files(secured.descriptors)
        for _ in range(FILES):
            stack.enter_context(secured.connect())
        with suppress(ConnectionResetError):
            assert not early.recv(1), "the oldest has made room, before its time was over"
        secured.limit_files(FILES)
        eventually(lambda: served(secured), what="the higher limit is noticed")
    assert "Traceback" not in secured.server.log.read_text()
