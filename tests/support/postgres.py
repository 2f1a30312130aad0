"""One PostgreSQL for a whole test run, also with pytest-xdist; started when the first test asks for it.

The process that controls the run (the only one, without xdist) answers on a unix socket in the directory of the run:
whoever connects gets the URL. The server is that process's child, so it ends with it whatever happens.

`OSTIARY_TESTS_DATABASE_URL=postgresql://superuser:password@host:port/postgres` names another PostgreSQL instead, 14 or
newer: databases are made in it and dropped again. Its role `ostiary_rpc` stays.
"""

import fcntl
import json
import os
import shutil
import socket
import subprocess
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit, urlunsplit

import pytest

from ostiary.runtime.postgres import EmbeddedPostgres

_VARIABLE = "OSTIARY_TESTS_POSTGRES_SOCKET"
_OWN_SERVER = "OSTIARY_TESTS_DATABASE_URL"
_run: "_Run | None" = None


class PostgresServer(NamedTuple):
    """The server of this run, as its superuser. Databases that tests make need names of their own."""

    url: str
    """SQLAlchemy URL (asyncpg) of a database that nobody writes to."""

    def database_url(self, name: str) -> str:
        return urlunsplit(urlsplit(self.url)._replace(path=f"/{name}"))

    def asyncpg_dsn(self, name: str = "postgres") -> str:
        """The same for `asyncpg.connect`."""
        return self.database_url(name).replace("+asyncpg", "", 1)


class _Run:
    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="ostiary-tests-"))
        self.directory.chmod(0o711)  # run as root, the server is another user's
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.directory / "ask"))
        self._listener.listen(64)
        self._thread = threading.Thread(target=self._answer, name="postgres of this test run", daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        return str(self.directory / "ask")

    def _answer(self) -> None:
        server = EmbeddedPostgres(self.directory, durable=False, settings={"max_connections": "300"})
        answer: dict[str, str] = {}
        try:
            while True:
                try:
                    asking, _ = self._listener.accept()
                except OSError:
                    return
                with asking, suppress(OSError):
                    if not answer:
                        answer = _start(server)
                    asking.sendall(json.dumps(answer).encode())
        finally:
            server.stop()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(30)
        shutil.rmtree(self.directory, ignore_errors=True)


def _start(server: EmbeddedPostgres) -> dict[str, str]:
    try:
        return {"url": server.start().reveal()}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


def pytest_configure(config: pytest.Config) -> None:
    global _run
    if not hasattr(config, "workerinput"):
        _run = _Run()
        os.environ[_VARIABLE] = _run.address


def pytest_unconfigure() -> None:
    global _run
    if _run is not None:
        _run.close()
        _run = None


def copy_made_cluster(data_dir: Path) -> None:
    """Make `data_dir` one whose first start has made its PostgreSQL cluster: `initdb` is half of what a start costs.

    The cluster is made once a run, by whoever needs it first. Without a run of pytest around it this does nothing.
    """
    if _VARIABLE not in os.environ:
        return
    run = Path(os.environ[_VARIABLE]).parent
    made = run / "made"
    with (run / "made.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            making = run / "making"
            making.mkdir(mode=0o711)
            server = EmbeddedPostgres(making)
            server.start()
            server.stop()
            making.rename(made)
    subprocess.run(["cp", "-a", made, data_dir], check=True)


@pytest.fixture(scope="session")
def postgres_server() -> PostgresServer:
    """The PostgreSQL of this run."""
    if own := os.environ.get(_OWN_SERVER):
        return PostgresServer(urlunsplit(urlsplit(own)._replace(scheme="postgresql+asyncpg", path="/postgres")))
    with socket.socket(socket.AF_UNIX) as asking:
        asking.connect(os.environ[_VARIABLE])
        with asking.makefile("rb") as reader:
            answer = json.loads(reader.read())
    if "error" in answer:
        pytest.fail(f"no PostgreSQL for the tests: {answer['error']}", pytrace=False)
    return PostgresServer(answer["url"])
