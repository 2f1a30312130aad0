"""The fake provider as a process of its own, and its admin paths as methods: the one way for tests to start one.

with fake_provider() as fake:
    base_url = fake.url
    fake.script_key("sk-a", "status=429 retry-after=7")
    ...
    assert fake.requests()["count"] == 1

`docs/fake-provider.md` says what it can be asked for. The fixtures `fake` and `own_fake` stand in `tests.support.server`.
"""

import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

START_SECONDS = 40.0


class FakeProvider:
    """A running fake provider. Its log is in `directory`, if one is given."""

    def __init__(
        self,
        directory: Path | None = None,
        *arguments: str,
        ledger: str = "full",
        ledger_file: Path | None = None,
        port: int = 0,
    ) -> None:
        command = [sys.executable, "-m", "ostiary.fake", "--listen", f"127.0.0.1:{port}", "--ledger", ledger]
        if ledger_file is not None:
            command += ["--ledger-file", str(ledger_file)]
        with (directory / "fake.log").open("ab") if directory else tempfile.TemporaryFile() as log:
            self.process = subprocess.Popen(
                [*command, *arguments], stdout=subprocess.PIPE, stderr=log, env=os.environ | {"PYTHONUNBUFFERED": "1"}
            )
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], START_SECONDS)
        self.url = self.process.stdout.readline().decode().strip() if ready else ""
        """Without a path: OpenAI base URLs need `/v1` after it."""
        if not self.url:
            self._end()
            raise RuntimeError(f"the fake provider did not start; exit status {self.process.poll()}")
        self.client = httpx.Client(base_url=self.url, timeout=20, trust_env=False)

    @property
    def pid(self) -> int:
        return self.process.pid

    def requests(self, **query: Any) -> dict[str, Any]:
        """Counts, aborts, and what the ledger's mode holds beside: `marks=1`, `after=N`, `limit=N`."""
        return self._ask("GET", "/fake/requests", params=query)

    def marks(self) -> dict[str, int]:
        """How often each mark came."""
        answer = self.requests(marks=1, limit=0)
        assert not answer["dropped"], "the ledger was full: it cannot be reconciled with"
        found: dict[str, int] = answer["marks"]
        return found

    def entries(self, mark: str) -> list[dict[str, Any]]:
        """What arrived of the requests that carry a mark; mode `full` only."""
        answer = self.requests(mark=mark)
        assert not answer["dropped"], "the ledger was full: the entry may be missing"
        found: list[dict[str, Any]] = answer["requests"]
        return found

    def entry(self, mark: str) -> dict[str, Any]:
        """The same of the only one."""
        (found,) = self.entries(mark)
        return found

    def reset(self) -> None:
        """Forget what was asked, every replay and every scripted key."""
        for path in ("/fake/requests", "/fake/replay", "/fake/keys"):
            self._ask("DELETE", path)

    def script_key(self, key: str, control: str, times: int = 0) -> None:
        """What requests with `key` get from now on; an empty control makes it an ordinary key."""
        self._ask("POST", "/fake/keys", {"key": key, "control": control, "times": times})

    def behave(self, control: str) -> None:
        """The behaviour of requests that ask for none."""
        self._ask("PUT", "/fake/behaviour", {"control": control})

    def replay(self, path: str, **recording: Any) -> None:
        """Answer `path` with recorded bytes; fields of `ostiary.fake.replay.Recording`."""
        self._ask("POST", "/fake/replay", {"path": path, **recording})

    def stop(self) -> None:
        self.client.close()
        self._end()

    def _ask(self, method: str, path: str, body: Any = None, **options: Any) -> dict[str, Any]:
        response = self.client.request(method, path, json=body, **options)
        if response.status_code != 200:
            raise ValueError(f"{method} {path}: {response.text}")
        answer: dict[str, Any] = response.json()
        return answer

    def _end(self) -> None:
        assert self.process.stdout is not None
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)
        self.process.stdout.close()


@contextmanager
def fake_provider(
    *, ledger: str = "full", ledger_file: Path | None = None, port: int = 0, directory: Path | None = None
) -> Iterator[FakeProvider]:
    """A fake provider on a free loopback port; ended, by its pid, on the way out."""
    provider = FakeProvider(directory, ledger=ledger, ledger_file=ledger_file, port=port)
    try:
        yield provider
    finally:
        provider.stop()
