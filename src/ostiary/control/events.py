"""What changed in the database, told to any number of watchers: one LISTEN connection for the whole control plane.

Rules
- A channel's number says what is newest in it: the revision of the providers, the number of the last revocation. Both
  are given out in the order of their commits, and travel as payload of the notification.
- A watcher has one pending flag. A burst that it did not see coming is one wake-up; a slow watcher costs nothing.
- Notifications are lost while the connection is down, and a pooler may swallow all of them. So the numbers are also read,
  every `POLL_INTERVAL` and whenever LISTEN has begun, and everybody is woken once then.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

import structlog
from sqlalchemy.ext.asyncio import AsyncEngine

from ostiary.core.secret import Secret

from . import identity, providers
from .database import DATABASE_ERRORS, DatabaseUnavailableError, DatabaseUnusableError, cause, connect_driver, where

log = structlog.get_logger(__name__)

PROVIDERS: Final = providers.CHANNEL
REVOCATIONS: Final = identity.REVOCATIONS
CHANNELS: Final = (PROVIDERS, REVOCATIONS)

POLL_INTERVAL: Final = 10.0
FIRST_PAUSE: Final = 0.1
LONGEST_PAUSE: Final = 5.0


class StoppingError(Exception):
    """The control plane drains: nothing will be told any more."""


class Subscription:
    """A watcher's end."""

    def __init__(self) -> None:
        self._pending = asyncio.Event()
        self._stopping = False

    async def wait(self, within: float) -> bool:
        """True when something may have happened since the last time, False after so many seconds.

        Raises `StoppingError`.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(within):
                await self._pending.wait()
        if self._stopping:
            raise StoppingError
        happened = self._pending.is_set()
        self._pending.clear()
        return happened

    def wake(self) -> None:
        self._pending.set()

    def stop(self) -> None:
        self._stopping = True
        self._pending.set()


class Events:
    """`run` listens; `listen_url` leads to the same database as `engine`, past any pooler."""

    def __init__(self, engine: AsyncEngine, listen_url: Secret) -> None:
        self._engine = engine
        self._listen_url = listen_url
        self._numbers: dict[str, int] = {}
        self._heard = 0
        self._watchers: dict[str, set[Subscription]] = {channel: set() for channel in CHANNELS}
        self._stopping = False
        self.listening = False
        """Whether the database tells of changes now; without it they are found by polling."""

    @contextmanager
    def subscribe(self, channel: str) -> Iterator[Subscription]:
        """Be woken by what happens in a channel from now on."""
        one = Subscription()
        if self._stopping:
            one.stop()
        self._watchers[channel].add(one)
        try:
            yield one
        finally:
            self._watchers[channel].discard(one)

    def number(self, channel: str) -> int | None:
        """The newest that was heard of; None before anything was."""
        return self._numbers.get(channel)

    def stop(self) -> None:
        """End all watches."""
        self._stopping = True
        for watchers in self._watchers.values():
            for one in watchers:
                one.stop()

    async def run(self) -> None:
        """Listen and poll until cancelled. Never raises: what fails is tried again."""
        polling = asyncio.create_task(self._poll())
        try:
            await self._listen()
        finally:
            polling.cancel()
            await asyncio.gather(polling, return_exceptions=True)

    # --- LISTEN

    async def _listen(self) -> None:
        clock = asyncio.get_running_loop().time
        pause, told = FIRST_PAUSE, ""
        while True:
            began = clock()
            try:
                reason = await self._listen_on(await connect_driver(self._listen_url))
                told = ""
            except (DatabaseUnavailableError, DatabaseUnusableError) as exc:
                reason = str(exc)
            except Exception as exc:  # noqa: BLE001  a bug here must not end the listening
                reason = f"{type(exc).__name__} at {where(exc)}; this is a bug"
            if reason != told:
                told = reason
                log.warning("listening for changes again soon; polling meanwhile", cause=reason)
            if clock() - began > LONGEST_PAUSE:
                pause = FIRST_PAUSE
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    async def _listen_on(self, connection: Any) -> str:  # Any: asyncpg is untyped
        """Until the connection is lost; gives why."""
        lost = asyncio.Event()
        connection.add_termination_listener(lambda _connection: lost.set())
        try:
            for channel in CHANNELS:
                await connection.add_listener(channel, self._notified)
            log.info("listening for changes", channels=CHANNELS)
            self.listening = True
            await self._read_numbers()
            self._wake(*CHANNELS)
            while not lost.is_set():
                with suppress(TimeoutError):
                    async with asyncio.timeout(POLL_INTERVAL):
                        await lost.wait()
                if not lost.is_set():
                    # a peer that vanished says nothing
                    await connection.execute("SELECT 1")
        except DATABASE_ERRORS as exc:
            return cause(exc)
        finally:
            self.listening = False
            connection.terminate()
        return "the connection was lost"

    def _notified(self, _connection: Any, _pid: int, channel: str, payload: str) -> None:  # Any: as above
        self._heard += 1
        # what is no number comes from a stranger who may use this database: the poll says what is true
        if payload.isascii() and payload.isdigit():
            self._numbers[channel] = int(payload)
        self._wake(channel)

    # --- the numbers

    async def _poll(self) -> None:
        told = ""
        while True:
            await asyncio.sleep(POLL_INTERVAL)
            try:
                await self._read_numbers()
            except DATABASE_ERRORS as exc:
                if (reason := cause(exc)) != told:
                    told = reason
                    log.warning("polling for changes again later", cause=reason)
            except Exception as exc:  # noqa: BLE001  a bug here must not end the polling
                log.error("failing to poll for changes by a bug", error=type(exc).__name__, at=where(exc))
            else:
                told = ""

    async def _read_numbers(self) -> None:
        """Wakes the watchers of what has changed unheard."""
        heard = self._heard
        async with self._engine.connect() as connection:
            found = {
                PROVIDERS: await providers.current_revision(connection),
                REVOCATIONS: await identity.newest_revocation(connection),
            }
        if heard != self._heard:
            return  # what was heard meanwhile may be newer
        changed = [channel for channel, number in found.items() if self._numbers.get(channel) != number]
        self._numbers |= found
        self._wake(*changed)

    def _wake(self, *channels: str) -> None:
        for channel in channels:
            for one in self._watchers[channel]:
                one.wake()
