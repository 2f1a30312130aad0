"""The fake provider as a process of its own, and its admin paths as methods.

with fake_provider() as fake:
    base_url = fake.url
    fake.script_key("sk-a", "status=429 retry-after=7")
    ...
    assert fake.requests()["count"] == 1
"""

import http.client
import json
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

_START_SECONDS = 20.0


class FakeHandle:
    """A running fake provider."""

    def __init__(self, url: str, pid: int) -> None:
        self.url = url
        """Without a path: OpenAI base URLs need `/v1` after it."""
        self.pid = pid
        self._address = urlsplit(url)

    def requests(self, *, marks: bool = False, after: int = -1, limit: int = 1000) -> dict[str, Any]:
        """Counts, aborts, and what the ledger's mode holds beside."""
        return self._ask("GET", f"/fake/requests?after={after}&limit={limit}{'&marks=1' if marks else ''}")

    def forget(self) -> None:
        self._ask("DELETE", "/fake/requests")

    def script_key(self, key: str, control: str, times: int = 0) -> None:
        """What requests with `key` get from now on; an empty control makes it an ordinary key."""
        self._ask("POST", "/fake/keys", {"key": key, "control": control, "times": times})

    def behave(self, control: str) -> None:
        """The behaviour of requests that ask for none."""
        self._ask("PUT", "/fake/behaviour", {"control": control})

    def replay(self, path: str, **recording: Any) -> None:
        """Answer `path` with recorded bytes; fields of `ostiary.fake.replay.Recording`."""
        self._ask("POST", "/fake/replay", {"path": path, **recording})

    def _ask(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        connection = http.client.HTTPConnection(self._address.hostname or "", self._address.port, timeout=10)
        try:
            connection.request(method, path, json.dumps(body) if body is not None else None)
            response = connection.getresponse()
            answer = json.loads(response.read())
        finally:
            connection.close()
        if response.status != 200:
            raise ValueError(f"{method} {path}: {answer}")
        return answer


@contextmanager
def fake_provider(*, ledger: str = "full", ledger_file: Path | None = None, port: int = 0) -> Iterator[FakeHandle]:
    """A fake provider on a free loopback port; ended, by its pid, on the way out."""
    command = [sys.executable, "-m", "ostiary.fake", "--listen", f"127.0.0.1:{port}", "--ledger", ledger]
    if ledger_file is not None:
        command += ["--ledger-file", str(ledger_file)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | {"PYTHONUNBUFFERED": "1"})
    assert process.stdout is not None
    try:
        ready, _, _ = select.select([process.stdout], [], [], _START_SECONDS)
        url = process.stdout.readline().decode().strip() if ready else ""
        if not url:
            raise RuntimeError(f"the fake provider did not start; exit status {process.poll()}")
        yield FakeHandle(url, process.pid)
    finally:
        process.terminate()
        process.wait(timeout=10)
        process.stdout.close()
