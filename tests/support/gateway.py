"""`ostiary gateway start` as a real process, and a proxy as an ingress would be.

The fixture `start_gateway` ends what it started, by its pid.
"""

import contextlib
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.load import BLOCKING
from tests.support.server import OWNER_TOKEN, Machine, Server, eventually, starting


class Gateway(Machine):
    """`ostiary gateway start`, with one worker unless it is told otherwise."""

    command = ("gateway", "start")

    def __init__(self, directory: Path, url: str, key: str, *arguments: str, **variables: str) -> None:
        if "--workers" not in arguments:
            arguments = ("--workers", "1", *arguments)
        known = {"OSTIARY_GATEWAY_KEY": key, "OSTIARY_CONTROL_URL": url}
        super().__init__(directory, "gateway", *arguments, **(known | variables))
        self.control_url = url

    def complaints(self) -> list[str]:
        """What it said to the person at the terminal, other than its log."""
        return [line for line in self.log.read_text().splitlines() if line.startswith("ostiary: ")]


def new_key(server: Server, name: str = "site") -> dict[str, str]:
    answer = server.owner.post("/api/v2/ai-gateway/keys", json={"name": name})
    assert answer.status_code == 201, answer.text
    key: dict[str, str] = answer.json()
    return key


def ask(
    url: str, token: str = OWNER_TOKEN, path: str = BLOCKING.path, *, text: str = "Hello", control: str = ""
) -> httpx.Response:
    """One blocking call, with a mark of its own."""
    content = f"fake-mark:{uuid.uuid4()} {text}"
    body = {"model": "gpt-5.4-mini", "max_tokens": 10, "messages": [{"role": "user", "content": content}]}
    headers = {"Authorization": f"Bearer {token}", "X-Fake": control}
    return httpx.post(url + path, json=body, headers=headers, timeout=20, verify=False)


class Ingress:
    """A TCP proxy in front of the server. While `status` is set it answers everything with that instead."""

    def __init__(self, server: Server) -> None:
        self._target = ("127.0.0.1", server.port)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self.status: int | None = None
        self.answered = 0
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def answer(self, status: int | None) -> None:
        """From now on, also to those who are connected: their connections are cut."""
        self.status = status
        for one in tuple(self._open):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listening.close()
        self.answer(None)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            if self.status is not None:
                client.recv(65536)
                self.answered += 1
                client.sendall(
                    f"HTTP/1.1 {self.status} No\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno".encode()
                )
                return
            with socket.create_connection(self._target) as upstream:
                self._open |= {client, upstream}
                back = threading.Thread(target=self._copy, args=(upstream, client), daemon=True)
                back.start()
                self._copy(client, upstream)
                back.join()
                self._open -= {client, upstream}

    @staticmethod
    def _copy(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        for one in (source, target):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


def recorded(server: Server, ids: list[str], *, within: float = 30.0) -> None:
    """Waits until the server has each of them, ended. Where they are many it looks less often, for a look is long and keeps
    the server from its work, and waits a second more for every thousand."""
    wanted = set(ids)
    missing = wanted

    def all_there() -> bool:
        nonlocal missing
        missing = wanted - {row["id"] for row in server.interceptions() if row["ended_at"]}
        return not missing

    eventually(
        all_there,
        within=within + len(wanted) / 1000,
        every=0.2 + len(wanted) / 20_000,
        what=lambda: f"{len(missing)} of {len(wanted)} records are lost",
    )


StartGateway = Callable[..., Gateway]


@pytest.fixture
def start_gateway() -> Iterator[StartGateway]:
    """Starts gateways of one test: `start_gateway(url, key, *arguments, data_dir=..., **variables)`."""
    with starting(Gateway) as start:
        yield start
