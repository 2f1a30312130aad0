"""A whole Ostiary, started through its command: authentication, journal, breaker, metrics and embedded PostgreSQL on.

The workers' CPU is what is compared; that of the link, the control plane and PostgreSQL is reported beside it.
"""

import http.client
import json
import os
import secrets
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

from . import children, interpreter, machine
from .build import Build
from .fake_upstream import Upstream
from .targets import PROVIDER_KEY, Route, Target, UnsettledError

_READY_SECONDS = 60.0
_BASE = "/api/v2/ai-gateway"
_SETTLE_SECONDS = 60.0
_MAKERS = 8
"""Connections over which users and tokens are made."""


class Server:
    """A running server."""

    def __init__(self, process: "subprocess.Popen[bytes]", port: int, metrics: int, token: str) -> None:
        self._process = process
        self._port = port
        self._metrics = metrics
        self._token = token
        self.workers = self._children("worker")
        self.around = {
            "link": self._children("link")[0],
            "control plane": self._children("control")[0],
            "PostgreSQL": self._postmaster(),
        }

    def pin(self, cores: machine.Cores, home: frozenset[int]) -> None:
        """Each worker to a core under test, everything else to `home`."""
        for pid in (self._process.pid, *machine.children(self._process.pid)):
            machine.pin(pid, home)
        both = sorted(cores.under_test | cores.second)
        for number, pid in enumerate(self.workers):
            machine.pin(pid, frozenset(both[number % len(both) : number % len(both) + 1]) if both else frozenset())

    def target(self, name: str, *, tls: bool = False) -> Target:
        """Its route to the plain or to the TLS upstream."""
        suffix = "-tls" if tls else ""
        headers = {"Authorization": f"Bearer {self._token}"}
        return Target(
            name,
            self._port,
            {
                "openai": Route(f"{_BASE}/bench-openai{suffix}", headers),
                "anthropic": Route(f"{_BASE}/bench-anthropic{suffix}", headers),
            },
            self.workers,
            self.around,
            self.settle,
        )

    def marked(self, name: str, *, token: str = "", provider: str = "") -> Target:
        """Its route for calls that vary: in each, something else stands where the request has this mark."""
        headers = {"Authorization": f"Bearer {token or self._token}"}
        route = Route(f"{_BASE}/{provider or 'bench-openai'}", headers)
        return Target(name, self._port, {"openai": route}, self.workers, self.around, self.settle)

    def make_tokens(self, first: int, count: int) -> list[str]:
        """So many more people with a token each, the first with this number; gives the tokens."""

        def make(numbers: range) -> list[str]:
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
            try:
                return [self._make_token(connection, f"bench-{number}") for number in numbers]
            finally:
                connection.close()

        shares = [range(first + at, first + count, _MAKERS) for at in range(min(_MAKERS, count))]
        with ThreadPoolExecutor(_MAKERS) as pool:
            return [token for made in pool.map(make, shares) for token in made]

    def _make_token(self, connection: http.client.HTTPConnection, user: str) -> str:
        self._ask(connection, "POST", "/api/v2/users", {"username": user})
        made = self._ask(connection, "POST", "/api/v2/tokens", {"name": "bench", "user": user})
        return str(made["token"])

    def recorded(self, since: datetime) -> int:
        """How many interceptions that have begun since then are in the database; the server counts to 100,000."""
        query = urlencode({"q": f"started_after:{since.isoformat()}", "limit": 1})
        return int(self._get(f"{_BASE}/interceptions?{query}")["count"])

    def wait_recorded(self, count: int, since: datetime, seconds: float) -> int:
        """Wait until so many are stored, or `seconds` have passed; how many there are then."""
        deadline = time.monotonic() + seconds
        while (stored := self.recorded(since)) < count and time.monotonic() < deadline:
            time.sleep(0.2)
        return stored

    def settle(self) -> None:
        """Wait until all that the journals hold is in the database."""
        deadline = time.monotonic() + _SETTLE_SECONDS
        while pending := self._pending():
            if time.monotonic() > deadline:
                raise UnsettledError(f"{pending:,} records were not in the database after {_SETTLE_SECONDS:.0f} s")
            time.sleep(0.05)

    def _pending(self) -> int:
        with urlopen(f"http://127.0.0.1:{self._metrics}/metrics", timeout=30) as page:
            for line in page.read().decode().splitlines():
                name, _, value = line.partition(" ")
                if name == "ostiary_link_records_pending":
                    return int(float(value))
        raise children.StartError("the metrics page does not tell how many records are pending")

    @contextmanager
    def link_halted(self) -> Iterator[None]:
        """Stop the link's clock for a while: records wait in the journal."""
        link = self.around["link"]
        os.kill(link, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(link, signal.SIGCONT)

    def _get(self, path: str) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        try:
            return self._ask(connection, "GET", path)
        finally:
            connection.close()

    def _ask(self, connection: http.client.HTTPConnection, method: str, path: str, body: object = None) -> Any:
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"}
        connection.request(method, path, headers=headers, body=None if body is None else json.dumps(body))
        response = connection.getresponse()
        told = response.read()
        if response.status not in (200, 201):
            raise children.StartError(f"{method} {path}: {response.status} {told[:300]!r}")
        return json.loads(told)

    def _children(self, kind: str) -> tuple[int, ...]:
        mark = f"ostiary.runtime.child {kind}"
        return tuple(pid for pid in machine.children(self._process.pid) if mark in machine.command_line(pid))

    def _postmaster(self) -> int:
        """The first of PostgreSQL's processes; the others are its children."""
        found = [pid for pid in machine.children(self._process.pid) if "/postgres " in machine.command_line(pid)]
        return found[0]


@contextmanager
def ostiary(
    folder: Path,
    upstream: Upstream,
    cores: machine.Cores,
    build: Build,
    *,
    name: str = "ostiary",
    workers: int = 1,
    home: frozenset[int] | None = None,
    providers: int = 0,
) -> Iterator[Server]:
    """`ostiary server` on a fresh data directory `name` below `folder`; all but the workers runs on the cores `home`.

    `providers`: how many more to configure, `bench-0000` and so on, all with the plain upstream.
    """
    port, metrics = children.free_port(), children.free_port()
    token = secrets.token_hex(24)
    log = folder / f"{name}.log"
    command = [
        *(str(interpreter.python()), "-m", "ostiary", "server"),
        *("--listen", f"127.0.0.1:{port}", "--metrics-listen", f"127.0.0.1:{metrics}"),
        *("--data-dir", str(folder / name), "--workers", str(workers), "--ca-file", str(upstream.ca_file)),
        *("--drain-timeout", "2s", "--log-level", "warning", "--journal-max-bytes", "16GiB"),
    ]
    env = build.environment() | {"OSTIARY_BOOTSTRAP_TOKEN": token} | _providers(upstream, providers)
    with children.running(command, pinned=frozenset(), log=log, env=env) as process:
        children.wait_until(lambda: _ready(port), process, log, _READY_SECONDS)
        server = Server(process, port, metrics, token)
        if len(server.workers) != workers:
            raise children.StartError(f"found {len(server.workers)} worker processes, {workers} were asked for")
        server.pin(cores, cores.second if home is None else home)
        yield server


def provider_name(number: int) -> str:
    """Of one of the many `providers`."""
    return f"bench-{number:04}"


def _providers(upstream: Upstream, more: int) -> dict[str, str]:
    """Seeded from the environment: four providers with both formats, plain and TLS upstream, and `more` of the first kind."""
    plain, tls = f"http://127.0.0.1:{upstream.plain_port}", f"https://localhost:{upstream.tls_port}"
    rows = [
        ("openai", "bench-openai", f"{plain}/v1"),
        ("anthropic", "bench-anthropic", plain),
        ("openai", "bench-openai-tls", f"{tls}/v1"),
        ("anthropic", "bench-anthropic-tls", tls),
        *(("openai", provider_name(number), f"{plain}/v1") for number in range(more)),
    ]
    env: dict[str, str] = {}
    for number, (kind, name, base_url) in enumerate(rows):
        prefix = f"OSTIARY_PROVIDER_{number}_"
        env |= {
            f"{prefix}TYPE": kind,
            f"{prefix}NAME": name,
            f"{prefix}KEY": PROVIDER_KEY,
            f"{prefix}BASE_URL": base_url,
        }
    return env


def _ready(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()
