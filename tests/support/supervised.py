"""A supervisor as a process of its own. `python -m tests.support.supervised < plan.json` runs one."""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import psutil

from ostiary.core.secret import secret_dec_hook, secret_enc_hook
from ostiary.core.settings import ControlSettings, GatewaySettings, LinkSettings, Secret
from ostiary.runtime.plan import Address, FakePlan, ServerPlan

ROOT = Path(__file__).parents[2]
SMALL_CHILDREN = {kind: f"tests.support.small_children:{kind}" for kind in ("worker", "link", "control", "fake")}
T = TypeVar("T")
_numbers = count()


class Job(msgspec.Struct):
    plan: ServerPlan
    entries: dict[str, str]


def eventually(look: Callable[[], T | None], what: str, timeout: float = 60.0) -> T:
    """What `look` gives once it gives something true. Between looks others get the processor."""
    deadline = time.monotonic() + timeout
    while True:
        found = look()
        if found:
            return found
        assert time.monotonic() < deadline, f"{what}: not within {timeout} s"
        select.select([], [], [], 0.01)


def server_plan(data_dir: Path, *, workers: int = 2, demo: bool = False, **changes: Any) -> ServerPlan:
    """A plan with free ports only."""
    journal = str(data_dir / "journal")
    plan = ServerPlan(
        data_dir=str(data_dir),
        listen=Address("127.0.0.1", 0),
        workers=workers,
        gateway=GatewaySettings(journal_dir=journal),
        link=LinkSettings(control_url="", gateway_key=Secret(""), journal_dir=journal, data_dir=str(data_dir)),
        metrics_listen=Address("127.0.0.1", 0),
        control=ControlSettings(
            database_url=Secret(""),
            data_dir=str(data_dir),
            gateway_key=Secret(""),
            front_door_secret=Secret(""),
            public_url="",
        ),
        fake=FakePlan(listen=Address("127.0.0.1", 0)) if demo else None,
    )
    return msgspec.structs.replace(plan, **changes)


class Supervised:
    """A running supervisor. Its output goes to files, so that it never waits for a reader."""

    def __init__(self, plan: ServerPlan, entries: dict[str, str], python: str, **popen: Any) -> None:
        self.data_dir = Path(plan.data_dir)
        job = msgspec.json.encode(Job(plan, entries), enc_hook=secret_enc_hook)
        number = next(_numbers)
        self._out = self.data_dir.with_name(f"{self.data_dir.name}.{number}.out")
        self._err = self.data_dir.with_name(f"{self.data_dir.name}.{number}.err")
        options: dict[str, Any] = {"cwd": ROOT} | popen
        with self._out.open("wb") as out, self._err.open("wb") as err:
            files = {"stdin": subprocess.PIPE, "stdout": out, "stderr": err}
            self.process = subprocess.Popen([python, "-m", "tests.support.supervised"], **(files | options))
        assert self.process.stdin is not None
        self.process.stdin.write(job)
        self.process.stdin.close()

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text()

    def wait_ready(self) -> None:
        eventually(lambda: "Ostiary is ready" in self.out or self.process.poll() is not None, "ready")
        assert self.process.poll() is None, self.err

    def wait_end(self, timeout: float = 60.0) -> int:
        return self.process.wait(timeout)

    def signal(self, signum: signal.Signals) -> None:
        self.process.send_signal(signum)

    def pids(self) -> dict[str, int]:
        """The processes below the supervisor, by name (`postgres`: the postmaster)."""
        found = {}
        for child in psutil.Process(self.process.pid).children():
            with suppress(psutil.Error, IndexError):
                argv = child.cmdline()
                if "ostiary.runtime.child" in argv:
                    found[argv[3]] = child.pid
                elif Path(argv[0]).name == "postgres" and argv[1] == "-D":
                    found["postgres"] = child.pid
        return found

    def family(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def listening_port(self, name: str) -> int:
        """The TCP port that a child listens on."""
        ports = [c.laddr.port for c in psutil.Process(self.pids()[name]).net_connections("tcp") if c.status == "LISTEN"]
        assert ports, f"{name} listens nowhere"
        return int(ports[0])


def ask(port: int, timeout: float = 30.0) -> dict[str, Any]:
    """The line of JSON that a small child answers a connection with."""
    with socket.create_connection(("127.0.0.1", port), timeout) as connection, connection.makefile() as lines:
        return dict(json.loads(lines.readline()))


@contextmanager
def supervised(
    plan: ServerPlan, entries: dict[str, str] | None = None, python: str = sys.executable, **popen: Any
) -> Iterator[Supervised]:
    """A supervisor that is gone afterwards, whatever the test did to it."""
    server = Supervised(plan, SMALL_CHILDREN | (entries or {}), python, **popen)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            family = server.family()
            server.process.kill()
            psutil.wait_procs(family, timeout=20)
        server.process.wait()


def main() -> int:
    from ostiary.runtime.supervisor import run

    job = msgspec.json.decode(sys.stdin.buffer.read(), type=Job, dec_hook=secret_dec_hook)
    os.environ["OSTIARY_BOOTSTRAP_TOKEN"] = "a-secret-of-the-environment"
    return run(job.plan, job.entries)  # type: ignore[arg-type]


if __name__ == "__main__":
    sys.exit(main())
