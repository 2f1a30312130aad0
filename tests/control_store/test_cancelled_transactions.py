"""What is cancelled in the middle of a transaction leaves nothing behind that a later one could be caught in."""

import asyncio

import pytest
import uvloop
from sqlalchemy.ext.asyncio import AsyncEngine

from ostiary.control.database import connect, driver
from ostiary.core.secret import Secret


class Storing:
    """One value in a transaction; `at` says which statement is under way, or what has become of it."""

    def __init__(self, engine: AsyncEngine, value: int, cancelled_at: str = "", turns: int = 0) -> None:
        """`turns`: of the loop, from the moment at which that statement is sent until the task is cancelled."""
        self._engine = engine
        self._value = value
        self._cancelled_at = cancelled_at
        self._turns = turns
        self._cancelling: asyncio.Task[None] | None = None
        self.at = ""

    async def run(self) -> None:
        async with self._engine.connect() as connection:
            db = await driver(connection)
            self._reach("BEGIN")
            async with db.transaction():
                self._reach("INSERT")
                await db.execute("INSERT INTO kept VALUES ($1)", self._value)
                self._reach("COMMIT")
            self._reach("committed")
            if self._cancelling is not None:
                await self._cancelling

    def _reach(self, at: str) -> None:
        self.at = at
        if at == self._cancelled_at:
            task = asyncio.current_task()
            assert task is not None
            self._cancelling = asyncio.create_task(self._cancel(task))

    async def _cancel(self, task: "asyncio.Task[None]") -> None:
        for _ in range(self._turns):
            await asyncio.sleep(0)
        task.cancel()


@pytest.mark.parametrize("statement", ["BEGIN", "INSERT", "COMMIT"])
def test_what_is_stored_after_somebody_was_cancelled_on_that_connection_is_really_committed(
    database_url: Secret, statement: str
) -> None:
    async def script() -> tuple[list[str], set[int]]:
        engine, other = await connect(database_url, pool_size=1), await connect(database_url)
        ends = []
        try:
            async with other.begin() as connection:
                await connection.exec_driver_sql("CREATE TABLE kept (value int)")
            for number, turns in enumerate((0, 1, 2, 4, 8, 16, 32), 1):
                storing = Storing(engine, -number, statement, turns)
                (end,) = await asyncio.gather(asyncio.create_task(storing.run()), return_exceptions=True)
                assert isinstance(end, asyncio.CancelledError), end
                ends.append(storing.at)
                await Storing(engine, number).run()
            async with other.connect() as connection:
                return ends, set((await connection.exec_driver_sql("SELECT value FROM kept")).scalars())
        finally:
            await engine.dispose()
            await other.dispose()

    ends, found = uvloop.run(script())
    assert ends[0] == statement, f"it was not cancelled while that was under way: {ends}"
    assert {value for value in found if value > 0} == set(range(1, len(ends) + 1))
