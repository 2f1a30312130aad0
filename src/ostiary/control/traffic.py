"""The sums of the last seconds, made at most once a second whoever asks: watching must not become the load."""

import asyncio
import time
from typing import Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from .store.traffic import Traffic, read_traffic

FRESH: Final = 1.0
"""Seconds for which an answer is given again."""
_TIMEOUT: Final = "5s"


class TrafficBoard:
    """One for a control plane; only one question at a time goes to the database."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._asking = asyncio.Lock()
        self._read: tuple[float, Traffic] | None = None

    async def read(self, window: int) -> Traffic:
        """Of the last `window` seconds. Raises what the database raises."""
        async with self._asking:
            if self._read is not None:
                at, traffic = self._read
                if traffic.window_seconds == window and time.monotonic() - at < FRESH:
                    return traffic
            async with self._engine.connect() as connection:
                await connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
                await connection.execute(
                    text("SELECT set_config('statement_timeout', :limit, true)"), {"limit": _TIMEOUT}
                )
                traffic = await read_traffic(connection, window)
            self._read = time.monotonic(), traffic
            return traffic
