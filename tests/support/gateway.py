"""`ostiary gateway start` as a real process, a proxy as an ingress would be, and load that counts.

The fixture `start_gateway` ends what it started, by its pid.
"""

import contextlib
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.server import (
    OSTIARY,
    START_SECONDS,
    Server,
    _environment,
    alive,
    descendants,
    eventually,
    free_port,
    open_directory,
)


class Gateway:
    """`ostiary gateway start`, started as a user would."""

    def __init__(self, directory: Path, url: str, key: str, *arguments: str, **variables: str) -> None:
        self.data_dir = directory / "data"
        self.log = directory / "gateway.log"
        self.port = free_port()
        self.metrics_port = free_port()
        self.scheme = "https" if "--tls-cert-file" in arguments else "http"
        self.url = f"{self.scheme}://127.0.0.1:{self.port}"
        self.control_url = url
        self._arguments = arguments
        self._variables = {"OSTIARY_GATEWAY_KEY": key, "OSTIARY_CONTROL_URL": url, **variables}
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *, ready: bool = True) -> "Gateway":
        command = [
            *(*OSTIARY, "gateway", "start", "--workers", "1"),
            *("--listen", f"127.0.0.1:{self.port}"),
            *("--metrics-listen", f"127.0.0.1:{self.metrics_port}"),
            *("--data-dir", str(self.data_dir)),
            *self._arguments,
        ]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=_environment(**self._variables),
            )
        if ready:
            self.wait_ready()
        return self

    def wait_ready(self) -> None:
        eventually(self.is_ready, within=START_SECONDS, what=f"ready; log:\n{self.tail()}")

    def is_ready(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"the gateway ended with {self.process.returncode}:\n{self.tail()}"
        try:
            return httpx.get(f"{self.url}/readyz", timeout=2, verify=False).status_code == 200
        except httpx.TransportError:
            return False

    def ended(self, *, within: float = 30.0) -> int:
        """Waits until it ends by itself; gives the exit status."""
        assert self.process is not None
        try:
            return self.process.wait(within)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the gateway did not end within {within} s:\n{self.tail()}") from None

    def stop(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.ended(within=60)

    def kill(self) -> None:
        """`kill -9` of the supervisor, and the wait until nothing of it is left."""
        assert self.process is not None
        family = descendants(self.process.pid)
        self.process.kill()
        self.process.wait(10)
        eventually(lambda: not any(alive(pid) for pid in family), what="all processes ended with their supervisor")

    def complaints(self) -> list[str]:
        """What it said to the person at the terminal, other than its log."""
        return [line for line in self.log.read_text().splitlines() if line.startswith("ostiary: ")]

    def tail(self, lines: int = 60) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:]) if self.log.exists() else ""


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
    """Starts gateways of one test: `start_gateway(url, key, *arguments, **variables)`."""
    started: list[Gateway] = []
    with open_directory() as directory:

        def start(url: str, key: str, *arguments: str, ready: bool = True, **variables: Any) -> Gateway:
            own = directory / f"gateway-{len(started)}"
            own.mkdir(mode=0o711)
            one = Gateway(own, url, key, *arguments, **variables)
            started.append(one)
            return one.start(ready=ready)

        yield start
        for one in started:
            if one.process is not None and one.process.poll() is None:
                one.kill()
