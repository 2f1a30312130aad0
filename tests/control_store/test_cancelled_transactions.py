"""What is cancelled in the middle of a transaction leaves nothing behind that a later one could be caught in."""

import asyncio

import pytest
import uvloop
from sqlalchemy.ext.asyncio import AsyncEngine

from ostiary.control.database import connect, driver
from ostiary.core.secret import Secret


async def store(engine: AsyncEngine, value: int, cancelled_after: int | None = None) -> None:
    """Cancelled, if at all, so many turns of the loop after the transaction has been begun."""
    async with engine.connect() as connection:
        db = await driver(connection)
        task = asyncio.current_task()
        assert task is not None
        canceller = asyncio.create_task(cancel_after(task, cancelled_after)) if cancelled_after is not None else None
        async with db.transaction():
            await db.execute("INSERT INTO kept VALUES ($1)", value)
        if canceller is not None:
            await canceller


async def cancel_after(task: "asyncio.Task[None]", turns: int) -> None:
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()


@pytest.mark.parametrize("turns", [0, 1, 2, 4, 8])
def test_what_is_stored_after_somebody_was_cancelled_on_that_connection_is_really_committed(
    database_url: Secret, turns: int
) -> None:
    async def script() -> set[int]:
        engine, other = await connect(database_url, pool_size=1), await connect(database_url)
        try:
            async with other.begin() as connection:
                await connection.exec_driver_sql("CREATE TABLE kept (value int)")
            await store(engine, 0)
            await asyncio.gather(asyncio.create_task(store(engine, 1, turns)), return_exceptions=True)
            await store(engine, 2)
            async with other.connect() as connection:
                return set((await connection.exec_driver_sql("SELECT value FROM kept")).scalars())
        finally:
            await engine.dispose()
            await other.dispose()

    assert uvloop.run(script()) - {1} == {0, 2}
