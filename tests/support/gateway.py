"""`ostiary gateway start` as a real process, a proxy as an ingress would be, and load that counts.

The fixture `start_gateway` ends what it started, by its pid.
"""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.server import Machine, Server, eventually, open_directory


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


CHAT = {"model": "gpt-5.4-mini", "messages": [{"role": "user", "content": "Hello"}]}


def ask(url: str, token: str, path: str = "/api/v2/ai-gateway/openai/v1/chat/completions") -> httpx.Response:
    headers = {"Authorization": f"Bearer {token}"}
    return httpx.post(url + path, json=CHAT, headers=headers, timeout=20, verify=False)


class Load:
    """Calls one after the other in several threads, until told to stop; each call is in `ids` or in `failures`.

    While `refusals_allowed` a connection that is refused is tried again, as a load balancer would elsewhere.
    """

    def __init__(self, gateway: Gateway, token: str, threads: int = 3) -> None:
        self.ids: list[str] = []
        self.failures: list[str] = []
        self.refusals_allowed = False
        self._gateway = gateway
        self._token = token
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(threads)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)

    def wait_for_more(self, calls: int) -> None:
        """Until so many more have been answered."""
        begun = len(self.ids) + len(self.failures)
        eventually(lambda: len(self.ids) + len(self.failures) >= begun + calls, within=60, what="calls are answered")

    def _run(self) -> None:
        headers = {"Authorization": f"Bearer {self._token}"}
        url = f"{self._gateway.url}/api/v2/ai-gateway/openai/v1/chat/completions"
        with httpx.Client(headers=headers, timeout=20, verify=False) as client:
            while not self._stop.is_set():
                try:
                    answer = client.post(url, json=CHAT)
                except httpx.TransportError as error:
                    if not self.refusals_allowed:
                        self.failures.append(repr(error))
                    self._stop.wait(0.02)
                    continue
                if answer.status_code == 200:
                    self.ids.append(answer.headers["x-ostiary-interception-id"])
                else:
                    self.failures.append(f"{answer.status_code} {answer.text}")


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
    """Waits until the server has each of them, ended."""
    missing: set[str] = set()

    def all_there() -> bool:
        nonlocal missing
        missing = set(ids) - {row["id"] for row in server.interceptions() if row["ended_at"]}
        return not missing

    started = time.monotonic()
    while not all_there():
        assert time.monotonic() - started < within, f"{len(missing)} of {len(ids)} records are lost"
        time.sleep(0.2)


StartGateway = Callable[..., Gateway]


@pytest.fixture
def start_gateway() -> Iterator[StartGateway]:
    """Starts gateways of one test: `start_gateway(url, key, *arguments, data_dir=..., **variables)`."""
    started: list[Gateway] = []
    with open_directory() as directory:

        def start(
            url: str, key: str, *arguments: str, ready: bool = True, data_dir: Path | None = None, **variables: Any
        ) -> Gateway:
            own = directory / f"gateway-{len(started)}"
            own.mkdir(mode=0o711)
            one = Gateway(own, url, key, *arguments, **variables)
            one.data_dir = data_dir or one.data_dir
            started.append(one)
            return one.start(ready=ready)

        yield start
        for one in started:
            if one.process is not None and one.process.poll() is None:
                one.kill()
