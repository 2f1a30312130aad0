"""Old records go while traffic runs, and nothing else does."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import asyncpg
import pytest
import uvloop
from sqlalchemy.ext.asyncio import AsyncEngine
from structlog.testing import capture_logs

from ostiary.control import database, partitions, retention
from ostiary.control.ingest import Ack, Ingest
from ostiary.control.partitions import kept_from, make_ahead, oldest_kept, wanted_weeks, week_of
from ostiary.control.store.tables import PARTITIONED
from ostiary.core.ids import IdSource, new_id
from ostiary.core.records import InterceptionStart, Prompt, Record
from ostiary.core.secret import Secret
from tests.support.control_server import OWNER_TOKEN, control_settings, serving
from tests.support.records import encoded, end, start

T = TypeVar("T")

DAY = 86400.0
KEPT = 60 * DAY


async def no_pause(_seconds: float) -> None:
    pass


def dsn(url: Secret) -> str:
    return url.reveal().replace("+asyncpg", "")


def days_ago(days: float) -> datetime:
    return datetime.now(UTC) - timedelta(days=days)


def began(at: datetime, **fields: Any) -> InterceptionStart:
    """A start whose id and times are of `at`."""
    ids = IdSource(clock=lambda: int(at.timestamp() * 1e9))
    micros = int(at.timestamp() * 1e6)
    return start(**({"id": ids(), "started_at": micros, "prompt": Prompt(ids(), "p")} | fields))


class House:
    """A control plane's parts on a database, and a look behind them."""

    def __init__(self, url: Secret, engine: AsyncEngine, db: Any) -> None:
        self.url, self.engine, self.db = url, engine, db
        self.ingest = Ingest(engine, retention=KEPT)

    async def make_weeks(self, *days: float) -> None:
        """Partitions around days that have passed."""
        for one in days:
            await make_ahead(self.engine, days_ago(one))

    async def store(self, *records: Record, journal: str | None = None, first_seq: int = 1) -> Ack:
        return await self.ingest.store(journal or new_id(), first_seq, encoded(records))

    async def clean(self, kept: float = KEPT) -> retention.Result:
        result = await retention.run(self.engine, kept, no_pause)
        assert result is not None
        return result

    async def column(self, query: str, *args: object) -> list[Any]:
        return [row[0] for row in await self.db.fetch(query, *args)]

    async def ids(self) -> set[str]:
        return set(await self.column("SELECT id::text FROM interceptions"))

    async def counts(self) -> dict[str, int]:
        return {table: (await self.column(f"SELECT count(*) FROM {table}"))[0] for table in PARTITIONED}

    async def stored_at(self, days: float, *starts: InterceptionStart) -> None:
        """Pretend that they were stored so many days ago."""
        await self.db.execute(
            "UPDATE interceptions SET stored_at = $1 WHERE id = ANY($2::uuid[])", days_ago(days), [s.id for s in starts]
        )


def play(url: Secret, script: Callable[[House], Awaitable[T]]) -> T:
    async def go() -> T:
        engine = await database.connect(url)
        db = await asyncpg.connect(dsn(url))
        try:
            return await script(House(url, engine, db))
        finally:
            await db.close()
            await engine.dispose()

    return uvloop.run(go())


def whole(one: InterceptionStart) -> tuple[Record, Record]:
    return one, end(one, calls=["toolu_1"], output_text="text")


def test_weeks_that_are_older_are_dropped_whole_with_all_that_belongs_to_them(database_url: Secret) -> None:
    async def script(house: House) -> None:
        await house.make_weeks(100, 62, 20)
        old, straddling, young, now = (began(days_ago(days)) for days in (100, 60.01, 20, 0))
        for one in (old, straddling, young, now):
            await house.store(*whole(one))
        result = await house.clean()
        assert result.complete
        assert result.counts["partitions"] % len(PARTITIONED) == 0
        assert result.counts["bytes"] > 0
        # of the week in which the bound lies nothing goes
        assert await house.ids() == {straddling.id, young.id, now.id}
        assert set((await house.counts()).values()) == {3}
        names = await house.column("SELECT inhrelid::regclass::text FROM pg_inherits")
        weeks = sorted(name[-8:] for name in names if name.startswith("interceptions_2") and name[-8:].isdigit())
        assert weeks[0] == week_of(days_ago(60)).suffix
        assert await house.column("SELECT session_id FROM interception_sessions ORDER BY started_at") == [
            one.id for one in (straddling, young, now)
        ]
        again = await house.clean()
        assert (again.complete, again.counts) == (True, {})

    play(database_url, script)


def test_nothing_goes_when_records_are_kept_for_ever(database_url: Secret) -> None:
    async def script(house: House) -> None:
        await house.make_weeks(1000)
        one = began(days_ago(1000))
        await house.store(*whole(one))
        await house.stored_at(1000, one)
        assert await house.clean(kept=0.0) == retention.Result(True, "", {})
        assert await house.ids() == {one.id}

    play(database_url, script)


def test_weeks_are_not_made_that_would_be_dropped_again() -> None:
    monday = datetime(2026, 11, 16, 12, tzinfo=UTC)
    assert next(wanted_weeks(monday, 7 * DAY)).suffix == "20261109"
    sunday = datetime(2026, 11, 22, 12, tzinfo=UTC)
    assert next(wanted_weeks(sunday, 1 * DAY)).suffix == "20261116"
    assert next(wanted_weeks(sunday, 0)).suffix == "20261109"
    assert kept_from(sunday, 0) == ""
    assert oldest_kept(sunday, 60 * DAY) == week_of(sunday - timedelta(days=60))


def test_a_record_that_comes_late_is_stored_and_kept_from_then_on(database_url: Secret) -> None:
    async def script(house: House) -> None:
        await house.make_weeks(100)
        await house.clean()
        journal, late = new_id(), began(days_ago(100))
        ack = await house.store(late, journal=journal)
        assert (ack.acked_seq, ack.rejected) == (1, [])
        ack = await house.store(end(late, calls=["toolu_1"]), journal=journal, first_seq=2)
        assert (ack.acked_seq, ack.rejected) == (2, [])
        assert (await house.clean()).counts == {}
        assert await house.ids() == {late.id}
        await house.stored_at(61, late)
        assert (await house.clean()).counts == {"interceptions": 1}
        assert set((await house.counts()).values()) == {0}
        assert await house.column("SELECT session_id FROM interception_sessions") == []

    play(database_url, script)


def test_the_end_of_a_call_whose_week_is_gone_is_rejected_and_its_content_not_kept(database_url: Secret) -> None:
    async def script(house: House) -> None:
        await house.make_weeks(100)
        journal, old = new_id(), began(days_ago(100))
        await house.store(old, journal=journal)
        await house.clean()
        after = began(days_ago(0))
        ack = await house.store(end(old, output_text="a secret of long ago"), after, journal=journal, first_seq=2)
        assert ack.acked_seq == 3
        assert [(one.seq, one.reason) for one in ack.rejected] == [
            (2, "its interception was removed: it is older than the retention")
        ]
        assert await house.column("SELECT payload FROM ingest_rejected") == [b""]
        assert await house.ids() == {after.id}

    play(database_url, script)


def test_records_of_skewed_clocks_go_by_the_time_they_were_stored(database_url: Secret) -> None:
    async def script(house: House) -> None:
        booted, dreamt = began(datetime(1970, 1, 2, tzinfo=UTC)), began(datetime(2091, 1, 1, tzinfo=UTC))
        later = began(datetime(1970, 1, 3, tzinfo=UTC))
        for one in (booted, dreamt, later):
            await house.store(*whole(one))
        assert (await house.clean()).counts == {}
        await house.stored_at(61, booted, dreamt)
        assert (await house.clean()).counts == {"interceptions": 2}
        assert await house.ids() == {later.id}
        assert await house.column("SELECT session_id FROM interception_sessions") == [later.id]
        assert set((await house.counts()).values()) == {1}

    play(database_url, script)


def test_what_no_week_holds_is_deleted_in_bounded_batches(
    database_url: Secret, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "BATCH", 10)

    async def script(house: House) -> None:
        ids = IdSource(clock=lambda: 1_000_000_000_000_000)
        old = [start(id=ids(), started_at=1_000_000_000_000) for _ in range(35)]
        await house.store(*old)
        await house.stored_at(61, *old)
        young = began(datetime(1970, 1, 5, tzinfo=UTC))
        await house.store(young)
        pauses: list[float] = []

        async def pause(seconds: float) -> None:
            pauses.append(seconds)
            assert len(await house.ids()) % 10 == 6

        result = await retention.run(house.engine, KEPT, pause)
        assert result is not None
        assert result.counts == {"interceptions": 35}
        assert len(pauses) == 3
        assert await house.ids() == {young.id}

    play(database_url, script)


def test_a_session_that_spans_the_bound_stays_with_what_is_left_of_it(database_url: Secret, tmp_path: Path) -> None:
    owner = new_id()

    async def script(house: House) -> None:
        await house.make_weeks(100, 30)
        root = began(days_ago(100), client_session_id="long", initiator_id=owner)
        call = began(
            days_ago(30),
            client_session_id="long",
            initiator_id=owner,
            correlating_tool_call_id="toolu_1",
            prompt=None,
        )
        gone = began(days_ago(100), client_session_id="old", initiator_id=owner)
        await house.store(*whole(root), *whole(call), gone, end(gone))
        before = await house.column("SELECT thread_root_id::text FROM interceptions WHERE id = $1", call.id)
        assert before == [root.id]
        async with serving(control_settings(house.url, tmp_path, retention=0.0)) as server:
            assert len((await server.get("/api/v2/ai-gateway/sessions")).json()["sessions"]) == 2
            await partitions.drop_behind(house.engine, week_of(days_ago(60)), no_pause)
            # the sessions themselves are looked through later
            listed = (await server.get("/api/v2/ai-gateway/sessions")).json()["sessions"]
            assert [(one["id"], one["threads"]) for one in listed] == [("long", 1)]
            assert (await server.get("/api/v2/ai-gateway/sessions/old")).status_code == 404
            result = await house.clean()
            assert result.counts["interception_sessions"] == 1
            detail = (await server.get("/api/v2/ai-gateway/sessions/long")).json()
            (thread,) = detail["threads"]
            assert (thread["id"], thread["interceptions"], thread["prompt"]) == (root.id, 1, None)
            # a cursor may name a root that is no more
            following = await server.get("/api/v2/ai-gateway/sessions/long", after_id=root.id)
            assert following.status_code == 200, following.text
            assert following.json()["threads"] == []
            assert (await server.get("/api/v2/ai-gateway/interceptions/" + root.id)).status_code == 404

    play(database_url, script)


def test_what_records_leave_behind_goes_too(database_url: Secret) -> None:
    async def script(house: House) -> None:
        ended, silent, recent = new_id(), new_id(), new_id()
        for journal in (ended, silent, recent):
            await house.store(start(id="bad"), start(model=f"model of {journal[-4:]}"), journal=journal)
        await house.db.execute(
            "UPDATE journals SET gone = true, last_seen = $2 WHERE journal_id = $1", ended, days_ago(61)
        )
        await house.db.execute("UPDATE journals SET last_seen = $2 WHERE journal_id = $1", silent, days_ago(400))
        await house.db.execute("UPDATE ingest_rejected SET at = $2 WHERE journal_id <> $1", recent, days_ago(61))
        await house.db.execute(
            "UPDATE interception_facets SET last_seen = $2 WHERE value <> $1", f"model of {recent[-4:]}", days_ago(61)
        )
        result = await house.clean()
        assert await house.column("SELECT journal_id::text FROM journals") != [recent]
        assert set(await house.column("SELECT journal_id::text FROM journals")) == {silent, recent}
        assert await house.column("SELECT journal_id::text FROM ingest_rejected") == [recent]
        assert await house.column("SELECT value FROM interception_facets") == [f"model of {recent[-4:]}"]
        assert result.counts["journals"] == 1
        await house.db.execute("UPDATE journals SET last_seen = $2 WHERE journal_id = $1", silent, days_ago(430))
        await house.clean()
        assert await house.column("SELECT journal_id::text FROM journals") == [recent]
        assert await house.column("SELECT count(*) FROM audit_log WHERE at < now() - interval '1000 days'") == [0]

    play(database_url, script)


def test_a_name_that_is_seen_again_stays(database_url: Secret, monkeypatch: pytest.MonkeyPatch) -> None:
    async def script(house: House) -> None:
        who = new_id()
        await house.store(start(initiator_id=who, client=""))
        await house.db.execute("UPDATE interception_facets SET last_seen = $1", days_ago(61))
        await house.store(start(initiator_id=who, client=""))
        (last_seen,) = await house.column("SELECT last_seen FROM interception_facets")
        assert last_seen < days_ago(60)  # known already: not told anew each time
        monkeypatch.setattr("ostiary.control.ingest.store._FACETS_KNOWN_FOR", -1.0)
        await house.store(start(initiator_id=who, client=""))
        assert "interception_facets" not in (await house.clean()).counts
        assert await house.column("SELECT count(*) FROM interception_facets") == [1]

    play(database_url, script)


def test_dropping_waits_for_nobody_long_and_comes_back(database_url: Secret) -> None:
    async def script(house: House) -> None:
        await house.make_weeks(100)
        old = began(days_ago(100))
        await house.store(*whole(old))
        dump = await asyncpg.connect(dsn(house.url))
        try:
            reading = dump.transaction()
            await reading.start()
            await dump.fetch("SELECT id FROM interceptions")
            waits: list[float] = []
            stored: list[str] = []

            async def note(seconds: float) -> None:
                waits.append(seconds)

            async def store_meanwhile() -> None:
                while True:
                    one = began(days_ago(0))
                    async with asyncio.timeout(10):
                        await house.store(*whole(one))
                    stored.append(one.id)

            traffic = asyncio.create_task(store_meanwhile())
            with capture_logs() as logs:
                removing = asyncio.create_task(retention.run(house.engine, KEPT, note))
                await asyncio.wait((traffic, removing), return_when=asyncio.FIRST_COMPLETED)
            assert not traffic.done(), traffic
            traffic.cancel()
            await asyncio.wait((traffic,))
            result = removing.result()
            assert result is not None
            assert not result.complete
            assert result.note.startswith("somebody holds on to interceptions_")
            assert tuple(waits[: len(partitions.DROP_PAUSES)]) == partitions.DROP_PAUSES
            assert [line["event"] for line in logs if line["log_level"] == "warning"] == [
                "leaving old records for later"
            ]
            assert old.id in await house.ids()
            await reading.rollback()
        finally:
            await dump.close()
        assert (await house.clean()).complete
        assert old.id not in await house.ids()
        assert set(stored) <= await house.ids()

    play(database_url, script)


def test_what_is_stored_while_weeks_are_dropped_is_all_there(database_url: Secret) -> None:
    async def script(house: House) -> None:
        await house.make_weeks(200, 170, 140, 110, 80)
        for days in (200, 170, 140, 110, 80):
            await house.store(*whole(began(days_ago(days))))
        stop, stored = asyncio.Event(), set[str]()

        async def traffic() -> None:
            journal, seq = new_id(), 1
            while not stop.is_set():
                one = began(days_ago(0))
                ack = await house.store(*whole(one), journal=journal, first_seq=seq)
                seq += 2
                assert (ack.acked_seq, ack.rejected) == (seq - 1, [])
                stored.add(one.id)

        running = [asyncio.create_task(traffic()) for _ in range(4)]
        result = await retention.run(house.engine, KEPT)
        stop.set()
        await asyncio.gather(*running)
        assert result is not None
        assert result.complete
        assert result.counts["partitions"] > 5 * len(PARTITIONED)
        assert await house.ids() == stored
        assert set((await house.counts()).values()) == {len(stored)}

    play(database_url, script)


def test_control_planes_do_not_remove_at_once(database_url: Secret) -> None:
    async def script(house: House) -> None:
        await house.make_weeks(100)
        second = await database.connect(house.url)
        asked = list[object]()

        async def ask(_seconds: float) -> None:
            asked.append(await retention.run(second, KEPT, no_pause))

        dump = await asyncpg.connect(dsn(house.url))
        try:
            async with dump.transaction():
                await dump.fetch("SELECT id FROM interceptions")
                first = await retention.run(house.engine, KEPT, ask)
            assert asked
            assert set(asked) == {None}
            assert first is not None
            # the lock ends with the run
            both = await asyncio.gather(*(retention.run(engine, KEPT, no_pause) for engine in (house.engine, second)))
            assert any(one is not None and one.complete for one in both)
        finally:
            await dump.close()
            await second.dispose()

    play(database_url, script)


def test_a_database_that_ends_idle_transactions_does_not_end_a_run(
    database_url: Secret, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "BATCH", 1)

    async def script(house: House) -> None:
        ids = IdSource(clock=lambda: 1_000_000_000_000_000)
        old = [start(id=ids(), started_at=1_000_000_000_000) for _ in range(2)]
        await house.store(*old)
        await house.stored_at(61, *old)
        name = (await house.column("SELECT quote_ident(current_database())"))[0]
        await house.db.execute(f"ALTER DATABASE {name} SET idle_in_transaction_session_timeout = '1500ms'")
        second = await database.connect(house.url)

        async def pause(_seconds: float) -> None:
            """Until the transaction that holds the lock has been idle for long, or is none any more."""
            while await house.column(
                "SELECT 1 FROM pg_locks JOIN pg_stat_activity USING (pid)"
                " WHERE locktype = 'advisory' AND pg_locks.database = (SELECT oid FROM pg_database"
                " WHERE datname = current_database()) AND now() - state_change < interval '2 s'"
            ):
                await asyncio.sleep(0.01)
            assert await retention.run(house.engine, KEPT, no_pause) is None, "another one runs at the same time"

        try:
            result = await retention.run(second, KEPT, pause)
        finally:
            await second.dispose()
        assert result is not None
        assert result.counts == {"interceptions": 2}
        assert await house.column("SELECT complete FROM housekeeping WHERE task = 'retention'") == [True]

    play(database_url, script)


def test_a_wrong_clock_costs_no_record(database_url: Secret, monkeypatch: pytest.MonkeyPatch) -> None:
    class Ahead(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> "Ahead":
            return cls.fromtimestamp(datetime.now(tz).timestamp() + 90 * DAY, tz)

    async def script(house: House) -> None:
        await house.make_weeks(100)
        old = began(days_ago(100))
        await house.store(old)
        monkeypatch.setattr(retention, "datetime", Ahead)
        result = await house.clean()
        assert not result.complete
        assert result.note.startswith("the clocks of database and control plane differ by 90 days")
        assert await house.ids() == {old.id}

    play(database_url, script)


def test_a_start_with_another_retention_applies_it_and_tells_of_it(database_url: Secret, tmp_path: Path) -> None:
    async def script(house: House) -> None:
        await house.make_weeks(100)
        old, young = began(days_ago(100)), began(days_ago(0))
        await house.store(*whole(old), *whole(young))

        async def ran(server: Any) -> dict[str, Any]:
            async with asyncio.timeout(20):
                while True:
                    storage: dict[str, Any] = (await server.get("/api/v2/ai-gateway/storage")).json()
                    if storage["retention"]["last_run"] is not None:
                        return storage
                    await asyncio.sleep(0.02)

        async with serving(control_settings(house.url, tmp_path, retention=0.0)) as server:
            storage = await ran(server)
            assert storage["retention"]["seconds"] == 0
            assert storage["retention"]["kept_from"] is None
            assert datetime.fromisoformat(storage["oldest_record"]) < days_ago(99)
        assert await house.ids() == {old.id, young.id}
        await house.db.execute("DELETE FROM housekeeping")
        async with serving(control_settings(house.url, tmp_path, retention=KEPT)) as server:
            storage = await ran(server)
            assert await house.ids() == {young.id}
            assert storage["retention"]["seconds"] == KEPT
            last = storage["retention"]["last_run"]
            assert (last["complete"], last["note"]) == (True, "")
            assert last["result"]["partitions"] >= len(PARTITIONED)
            sizes = {one["name"]: one for one in storage["tables"]}
            assert set(PARTITIONED) | {"journals", "users", "housekeeping"} <= set(sizes)
            parts = sizes["interceptions"]["partitions"]
            assert sum(one["table_bytes"] for one in parts) == sizes["interceptions"]["table_bytes"] > 0
            assert sizes["interceptions"]["index_bytes"] > 0
            assert sum(one["week"] is None for one in parts) == 1
            assert storage["database_bytes"] > sum(one["table_bytes"] + one["index_bytes"] for one in sizes.values())
            assert storage["oldest_record"] == storage["newest_record"]
            assert (await server.get("/api/v2/ai-gateway/storage", token=None)).status_code == 401
            assert OWNER_TOKEN not in str(storage)

    play(database_url, script)
