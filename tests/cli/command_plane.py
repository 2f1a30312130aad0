"""A control plane for commands: its REST API on a database of the test."""

import asyncio
import json
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import uvicorn

from ostiary.control import database
from ostiary.control.app import create_app
from ostiary.control.events import Events
from ostiary.control.identity import bootstrap
from ostiary.control.ingest import Ingest
from ostiary.control.state import ControlPlane
from ostiary.control.vault import open_vault
from ostiary.core.ids import new_id
from ostiary.core.secret import Secret
from tests.support.control_admin import control_settings
from tests.support.records import encoded

GATEWAY_KEY = "gateway-key-of-the-command-tests"
OWNER_TOKEN = "owner-token-of-the-command-tests-0123456789"


class Plane:
    """A control plane on a thread of its own."""

    def __init__(self, database_url: Secret, data_dir: Path) -> None:
        self._settings = control_settings(
            database_url, data_dir, bootstrap_token=Secret(OWNER_TOKEN), gateway_key=Secret(GATEWAY_KEY)
        )
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        assert self._ready.wait(30)
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        except BaseException as exc:  # told to the test's own thread
            self._failure = exc
            self._ready.set()

    async def _serve(self) -> None:
        self.engine = await database.connect(self._settings.database_url)
        try:
            vault = await open_vault(self.engine, self._settings)
            await bootstrap(self.engine, self._settings)
            app = create_app(
                ControlPlane(self.engine, self._settings, vault, Events(self.engine, self._settings.database_url))
            )
            self._server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_config=None, ws="none"))
            self._server.capture_signals = suppress  # type: ignore[method-assign,assignment]
            serving = asyncio.create_task(self._server.serve([self._socket]))
            while not self._server.started and not serving.done():
                await asyncio.sleep(0.005)
            self._ready.set()
            await serving
        finally:
            await self.engine.dispose()

    def record(self, *records: Any) -> None:
        """Store records as the RPC would."""

        async def store() -> None:
            await Ingest(self.engine).store(new_id(), 1, encoded(records))

        asyncio.run_coroutine_threadsafe(store(), self._loop).result(20)

    def close(self) -> None:
        self._server.should_exit = True
        self._thread.join(20)
        self._loop.close()


class Said:
    """What a command printed."""

    def __init__(self, out: str, err: str) -> None:
        self.out, self.err = out, err

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Do = Callable[..., Said]
