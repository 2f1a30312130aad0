"""A whole running server for end-to-end tests: `ostiary server` and a fake provider as real processes.

`server` is shared by the tests of one xdist worker; tests that kill, drain or reconfigure take `start_server` and get their
own. Everything is on loopback, in a directory of its own, and ends with it. (pytest's directories are closed to the user
whom PostgreSQL runs as when the tests run as root.)
"""

import contextlib
import itertools
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self, TypeVar

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.fake_provider import FakeProvider, fake_provider
from tests.support.postgres import copy_made_cluster
from tests.support.raw_http import ask

OSTIARY = [sys.executable, "-m", "ostiary"]
OWNER_TOKEN = "bootstrap-token-of-the-tests-0123456789"
PROVIDER_KEY = "sk-provider-key-of-the-tests-0123456789"
START_SECONDS = 40.0
_LEFT_OUT = 1.0
"""Seconds after which a metrics page comes without the newest numbers of a worker that has not told them."""
NO_BREAKER = {"OSTIARY_CIRCUIT_BREAKER_ENABLED": "false"}
"""For servers on which many tests let one provider fail: else they would shut each other out."""


def _own_ports() -> Iterator[int]:
    """Those of this process alone, where pytest-xdist runs several; in turn, so that none comes back soon."""
    number, count = os.environ.get("PYTEST_XDIST_WORKER", "gw0"), os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")
    own = range(15_000, 32_000)[int(number.removeprefix("gw")) :: int(count)]
    begin = secrets.randbelow(len(own))
    return itertools.cycle((*own[begin:], *own[:begin]))


_ports = _own_ports()


def free_port() -> int:
    """A port nobody has now, below those that the system gives to outgoing connections: it stays free until it is used."""
    while True:
        port = next(_ports)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def metrics_page(get: Callable[[], httpx.Response]) -> str:
    """A page on which every worker has its say: one that stalls for a second is left out, so the page is asked for again."""
    for _ in range(3):
        begun = time.monotonic()
        page = get().raise_for_status().text
        if time.monotonic() - begun < _LEFT_OUT:
            break
    return page


def eventually(
    check: Callable[[], Any], *, within: float = 15.0, every: float = 0.02, what: str | Callable[[], str] = ""
) -> Any:
    """What `check` gives once that is true; fails, saying `what`, when it is not within so many seconds."""
    deadline = time.monotonic() + within
    while True:
        found = check()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within} s: {what() if callable(what) else what or check}")
        time.sleep(every)


def kept(promise: float, measure: Callable[[int], float]) -> int:
    """A promise of so many seconds is measured a few times, and until it was kept once: other tests want the processor too.

    `measure` gets the number of the time and gives seconds; this gives how often it was measured.
    """
    seconds: list[float] = []
    while len(seconds) < 3 or (min(seconds) >= promise and len(seconds) < 20):
        seconds.append(measure(len(seconds)))
    assert min(seconds) < promise, seconds
    return len(seconds)


class Machine:
    """A supervisor and what runs below it, started as a user would: `ostiary <command>`, given addresses and directory."""

    command: tuple[str, ...]

    def __init__(self, directory: Path, name: str, *arguments: str, **variables: str) -> None:
        self.directory = directory
        self.data_dir = directory / "data"
        self.log = directory / f"{name}.log"
        self.port = free_port()
        self.metrics_port = free_port()
        self.scheme = "https" if "--tls-cert-file" in arguments else "http"
        self.url = f"{self.scheme}://127.0.0.1:{self.port}"
        self.metrics_url = f"http://127.0.0.1:{self.metrics_port}/metrics"
        self._arguments = arguments
        self._variables = variables
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *, ready: bool = True) -> Self:
        command = [
            *(*OSTIARY, *self.command),
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
        eventually(self.is_ready, within=START_SECONDS, what=lambda: f"ready; log:\n{self.tail()}")

    def is_ready(self) -> bool:
        process = self.process
        assert process is not None
        assert process.poll() is None, f"it ended with {process.returncode}:\n{self.tail()}"
        try:
            return httpx.get(f"{self.url}/readyz", timeout=2, verify=False).status_code == 200
        except httpx.TransportError:
            return False

    def stop(self, *, within: float = 60.0) -> int:
        """SIGTERM; gives the exit status."""
        process = self.process
        if process is None or process.poll() is not None:
            return process.returncode if process is not None else 0
        process.send_signal(signal.SIGTERM)
        try:
            return process.wait(within)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(30)
            raise AssertionError(f"it did not stop within {within} s:\n{self.tail()}") from None

    def ended(self, *, within: float = 30.0) -> int:
        """Waits until it ends by itself; gives the exit status."""
        assert self.process is not None
        try:
            return self.process.wait(within)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it did not end within {within} s:\n{self.tail()}") from None

    def kill(self) -> None:
        """`kill -9` of the supervisor, and the wait until nothing of it is left."""
        assert self.process is not None
        family = descendants(self.process.pid)
        self.process.kill()
        self.process.wait(30)
        eventually(lambda: not any(alive(pid) for pid in family), what="all processes ended with their supervisor")

    def children(self, kind: str) -> list[int]:
        """Pids of the child processes of a kind: worker, link, control, fake, postgres (the one that started the others)."""
        assert self.process is not None
        sign = "/postgres -D " if kind == "postgres" else f"ostiary.runtime.child {kind}"
        return [pid for pid in descendants(self.process.pid) if sign in command_line(pid)]

    def resident(self, kind: str) -> int:
        """Bytes that the child processes of a kind hold in memory together."""
        pages = [int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in self.children(kind)]
        return sum(pages) * os.sysconf("SC_PAGE_SIZE")

    def tail(self, lines: int = 60) -> str:
        if not self.log.exists():
            return ""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


class Server(Machine):
    """`ostiary server`."""

    command = ("server",)

    def __init__(self, directory: Path, fake: FakeProvider | None, *arguments: str, **variables: str) -> None:
        super().__init__(directory, "server", *arguments, **{"OSTIARY_BOOTSTRAP_TOKEN": OWNER_TOKEN, **variables})
        self.fake = fake
        if fake is not None:
            self._variables |= {
                "OSTIARY_PROVIDER_0_TYPE": "openai",
                "OSTIARY_PROVIDER_0_NAME": "openai",
                "OSTIARY_PROVIDER_0_KEY": PROVIDER_KEY,
                "OSTIARY_PROVIDER_0_BASE_URL": f"{fake.url}/v1",
                "OSTIARY_PROVIDER_1_TYPE": "anthropic",
                "OSTIARY_PROVIDER_1_NAME": "anthropic",
                "OSTIARY_PROVIDER_1_KEY": PROVIDER_KEY,
                "OSTIARY_PROVIDER_1_BASE_URL": fake.url,
            } | {name: value for name, value in variables.items() if name.startswith("OSTIARY_PROVIDER_")}
        self._owner: httpx.Client | None = None

    @property
    def owner(self) -> httpx.Client:
        """The REST API as its owner; made once, for a client costs more than a call."""
        if self._owner is None:
            self._owner = self.client()
        return self._owner

    def start(self, *, ready: bool = True) -> Self:
        if not self.data_dir.exists() and "OSTIARY_DATABASE_URL" not in self._variables:
            copy_made_cluster(self.data_dir)
        return super().start(ready=ready)

    def client(self, token: str = OWNER_TOKEN) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {token}"}, timeout=20, verify=False)

    def get(self, path: str, **query: Any) -> Any:
        return self.owner.get(path, params=query).raise_for_status().json()

    def metric(self, name: str, /, **labels: str) -> float:
        """The sum of a metric's samples that have these labels."""
        page = metrics_page(lambda: self.owner.get(self.metrics_url))
        samples = (sample for family in text_string_to_metric_families(page) for sample in family.samples)
        return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())

    def interception(self, interception_id: str) -> dict[str, Any]:
        """Everything recorded of an interception, once its end has arrived in the database."""

        def ended() -> dict[str, Any] | None:
            answer = self.owner.get(f"/api/v2/ai-gateway/interceptions/{interception_id}")
            if answer.status_code != 200:
                return None
            found: dict[str, Any] = answer.json()
            return found if found["ended_at"] else None

        found: dict[str, Any] = eventually(ended, what=f"the record of {interception_id}")
        return found

    def interceptions(self, **query: Any) -> list[dict[str, Any]]:
        """All of them, newest first."""
        results: list[dict[str, Any]] = []
        after: dict[str, str] = {}
        while True:
            page = self.get("/api/v2/ai-gateway/interceptions", limit=1000, **after, **query)["results"]
            results += page
            if len(page) < 1000:
                return results
            after = {"after_id": page[-1]["id"]}

    def new_token(self, username: str, **fields: Any) -> str:
        """A token of a user, who is made if need be."""
        made = self.owner.post("/api/v2/users", json={"username": username, "role": "member", **fields})
        assert made.status_code in (201, 409), made.text
        answer = self.owner.post("/api/v2/tokens", json={"name": f"t-{secrets.token_hex(4)}", "user": username})
        assert answer.status_code == 201, answer.text
        token: str = answer.json()["token"]
        return token

    def knows_provider(self, name: str) -> set[bool]:
        """Whether its workers do. By connections of their own: all twenty miss one of two workers once in a million times."""
        headers = {"Authorization": f"Bearer {OWNER_TOKEN}"}
        answers = (ask(self.port, "GET", f"/api/v2/ai-gateway/{name}/", headers) for _ in range(20))
        return {b"There is no provider" not in answer.body for answer in answers}

    @contextlib.contextmanager
    def provider(self, kind: str, base_url: str, *keys: str, **fields: Any) -> Iterator[str]:
        """A provider of one test, by its name: every worker serves it. Without `keys` it has a fresh one; gone afterwards."""
        name = f"own-{secrets.token_hex(6)}"
        api_keys = list(keys) or [f"sk-fresh-{secrets.token_hex(16)}"]
        body = {"type": kind, "name": name, "base_url": base_url, "api_keys": api_keys, **fields}
        made = self.owner.post("/api/v2/ai/providers", json=body)
        assert made.status_code == 201, made.text

        eventually(lambda: self.knows_provider(name) == {True}, what=f"{name} is served by every worker")
        try:
            yield name
        finally:
            assert self.owner.delete(f"/api/v2/ai/providers/{name}").status_code == 204
            eventually(lambda: self.knows_provider(name) == {False}, what=f"{name} is gone")


def _environment(**variables: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OSTIARY_", "CODER_", "OPENAI_"))}
    kept.pop("ANTHROPIC_API_KEY", None)
    return kept | variables


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def descendants(pid: int) -> list[int]:
    """All processes below one, itself left out."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError, ValueError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                parents.setdefault(parent, []).append(int(entry.name))
    found, todo = [], [pid]
    while todo:
        below = parents.get(todo.pop(), [])
        found += below
        todo += below
    return found


StartServer = Callable[..., Server]
M = TypeVar("M", bound=Machine)


@contextlib.contextmanager
def open_directory() -> Iterator[Path]:
    """A directory that every user can pass through; gone afterwards."""
    directory = Path(tempfile.mkdtemp(prefix="ostiary-e2e-"))
    directory.chmod(0o711)
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeProvider]:
    with fake_provider(directory=tmp_path_factory.mktemp("fake")) as provider:
        yield provider


@pytest.fixture(scope="session")
def server(fake: FakeProvider) -> Iterator[Server]:
    """One for all tests that only use it."""
    with open_directory() as directory:
        running = Server(directory, fake, "--workers", "2", **NO_BREAKER).start()
        yield running
        assert running.stop() == 0, running.tail()


@contextlib.contextmanager
def starting(kind: type[M]) -> Iterator[Callable[..., M]]:
    """Gives what starts machines of a kind, each in a directory of its own; those that still run at the end are killed.

    Its arguments are those of the kind behind the directory, `data_dir` when it is that of another, and `ready=False` when
    nobody is to wait for it.
    """
    started: list[M] = []
    with open_directory() as directory:

        def start(*arguments: Any, ready: bool = True, data_dir: Path | None = None, **variables: str) -> M:
            own = directory / f"{kind.command[0]}-{len(started)}"
            own.mkdir(mode=0o711)
            one = kind(own, *arguments, **variables)
            one.data_dir = data_dir or one.data_dir
            started.append(one)
            return one.start(ready=ready)

        yield start
        for one in started:
            if one.process is not None and one.process.poll() is None:
                one.kill()


@pytest.fixture
def start_server() -> Iterator[StartServer]:
    """Starts servers of one test: `start_server(fake, *arguments, data_dir=..., **variables)`."""
    with starting(Server) as start:
        yield start


@pytest.fixture
def own_fake(tmp_path: Path) -> Iterator[FakeProvider]:
    """A fake provider of one test, whose ledger nobody else writes to."""
    with fake_provider(directory=tmp_path) as provider:
        yield provider
