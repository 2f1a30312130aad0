"""RPCs under way with gateway keys.

Rules
- Whether a key is one is asked of the database for each call: an answer kept here would outlive the key.
- A deleted key ends its calls: at once when it was deleted here, within `RECHECK_SECONDS` when at another control plane.
- A heartbeat is noted once in `HEARTBEAT_SECONDS` and key, by calls that begin and by those that last. One that cannot
  be noted, or a check that cannot be made, ends nothing: the database's troubles are not the key's.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import structlog
from sqlalchemy.ext.asyncio import AsyncEngine

from ostiary.control.database import DATABASE_ERRORS, cause
from ostiary.core.secret import Secret

from .keys import HEARTBEAT_SECONDS, beat, find_key, key_exists

log = structlog.get_logger(__name__)

RECHECK_SECONDS: Final = 5.0


class GatewayCalls:
    """All of one control plane."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._running: dict[str, set[asyncio.Future[None]]] = {}
        self._beaten: dict[str, float] = {}

    async def identify(self, secret: Secret) -> str | None:
        """The key's id, None for what is none. Raises what the database raises."""
        async with self._engine.connect() as conn:
            key_id = await find_key(conn, secret)
        if key_id is not None:
            await self._beat(key_id)
        return key_id

    @contextmanager
    def running(self, key_id: str) -> Iterator["asyncio.Future[None]"]:
        """While a call runs; the future is done when its key is deleted."""
        deleted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._running.setdefault(key_id, set()).add(deleted)
        try:
            yield deleted
        finally:
            calls = self._running.get(key_id)
            if calls is not None:
                calls.discard(deleted)
                if not calls:
                    del self._running[key_id]

    async def recheck(self, key_id: str) -> None:
        """What a call that lasts does every `RECHECK_SECONDS`."""
        try:
            async with self._engine.connect() as conn:
                there = await key_exists(conn, key_id)
        except DATABASE_ERRORS as exc:
            log.warning("checking a gateway key again later", gateway_key_id=key_id, cause=cause(exc))
            return
        if there:
            await self._beat(key_id)
        else:
            self.end(key_id)

    def end(self, key_id: str) -> None:
        """The key is gone: so are its calls."""
        self._beaten.pop(key_id, None)
        calls = self._running.pop(key_id, set())
        for deleted in calls:
            if not deleted.done():
                deleted.set_result(None)
        if calls:
            log.info("ending calls of a deleted gateway key", gateway_key_id=key_id, calls=len(calls))

    async def _beat(self, key_id: str) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._beaten.get(key_id, float("-inf")) < HEARTBEAT_SECONDS:
            return
        self._beaten[key_id] = now
        try:
            async with self._engine.begin() as conn:
                await beat(conn, key_id)
        except DATABASE_ERRORS as exc:
            del self._beaten[key_id]
            log.warning("noting a gateway's heartbeat later", gateway_key_id=key_id, cause=cause(exc))
