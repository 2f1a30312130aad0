"""What becomes of journal frames in the database."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

import asyncpg
import msgspec
import pytest
import uvloop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ostiary.control import database
from ostiary.control.ingest import Ack, Ingest, SequenceGapError, link_recent_orphans
from ostiary.core.ids import new_id
from ostiary.core.records import Prompt, Record, TokenUsage, ToolUsage, WorkerGone, encode_record
from ostiary.core.secret import Secret
from tests.support.records import encoded, end, now_us, start

T = TypeVar("T")


class Desk:
    """One control plane's ingest, and a connection to look at what it stored."""

    def __init__(self, url: Secret, ingest: Ingest, db: Any) -> None:
        self.url = url
        self.ingest = ingest
        self.db = db

    async def store(self, journal: str, first_seq: int, *records: Record) -> Ack:
        return await self.ingest.store(journal, first_seq, encoded(records))

    async def rows(self, query: str, *args: object) -> list[dict[str, Any]]:
        return [dict(row) for row in await self.db.fetch(query, *args)]

    async def journal(self, journal: str) -> tuple[int, int, int, int]:
        row = await self.db.fetchrow(
            "SELECT acked_seq, stored, duplicate, rejected FROM journals WHERE journal_id = $1", journal
        )
        return tuple(row) if row else (0, 0, 0, 0)

    async def count(self, table: str) -> int:
        return int(await self.db.fetchval(f"SELECT count(*) FROM {table}"))


def play(url: Secret, script: Callable[[Desk], Awaitable[T]]) -> T:
    async def go() -> T:
        engine = await database.connect(url)
        db = await asyncpg.connect(url.reveal().replace("+asyncpg", ""))
        try:
            return await script(Desk(url, Ingest(engine), db))
        finally:
            await db.close()
            await engine.dispose()

    return uvloop.run(go())


def test_an_interception_is_stored_with_all_that_belongs_to_it(database_url: Secret) -> None:
    async def script(desk: Desk) -> None:
        journal, first = new_id(), start()
        last = end(first, calls=["toolu_1"], output_text="text", tool_results=["a", "b"])
        ack = await desk.store(journal, 1, first, last)
        assert (ack.acked_seq, ack.rejected) == (2, [])
        (row,) = await desk.rows("SELECT *, id::text AS id, journal_id::text AS journal_id FROM interceptions")
        assert row["id"] == first.id
        assert row["outcome"] == "completed"
        assert row["session_id"] == first.id
        assert row["journal_id"] == journal
        assert (row["ended_at"] - row["started_at"]).total_seconds() == 1.5
        assert msgspec.json.decode(row["metadata"]) == {"request_user_agent": "claude-cli/2.0"}
        for table in ("token_usages", "user_prompts", "tool_usages", "model_thoughts", "interception_details"):
            assert await desk.count(table) == 1, table
        (details,) = await desk.rows("SELECT tool_results, output_text FROM interception_details")
        assert details == {"tool_results": ["a", "b"], "output_text": "text"}
        assert await desk.count("interceptions_default") == 0
        assert await desk.journal(journal) == (2, 2, 0, 0)

    play(database_url, script)


def test_an_end_in_a_later_batch_closes_its_interception(database_url: Secret) -> None:
    async def script(desk: Desk) -> None:
        journal, first = new_id(), start(credential_hint="")
        await desk.store(journal, 1, first)
        assert await desk.rows("SELECT ended_at, outcome FROM interceptions") == [{"ended_at": None, "outcome": None}]
        await desk.store(journal, 2, end(first, calls=["toolu_1"], credential_hint="sk-b...2222"))
        (row,) = await desk.rows("SELECT outcome, credential_hint FROM interceptions")
        assert row == {"outcome": "completed", "credential_hint": "sk-b...2222"}
        assert await desk.count("tool_usages") == 1
        assert await desk.rows("SELECT ended FROM interception_sessions") == [{"ended": True}]

    play(database_url, script)


def test_the_hint_of_a_callers_own_credential_stays(database_url: Secret) -> None:
    async def script(desk: Desk) -> None:
        first = start(credential_kind="byok", credential_hint="sk-mine")
        await desk.store(new_id(), 1, first, end(first, credential_hint="sk-other"))
        assert await desk.db.fetchval("SELECT credential_hint FROM interceptions") == "sk-mine"

    play(database_url, script)


@pytest.mark.parametrize("cut", [0, 1, 2, 3])
def test_a_batch_delivered_again_stores_nothing_twice(database_url: Secret, cut: int) -> None:
    async def script(desk: Desk) -> None:
        journal, one, two = new_id(), start(), start()
        records = [one, end(one), two, end(two)]
        await desk.store(journal, 1, *records[: cut + 1])
        assert (await desk.store(journal, 1, *records)).acked_seq == 4
        assert (await desk.store(journal, 1, *records)).acked_seq == 4
        assert await desk.journal(journal) == (4, 4, 0, 0)
        assert await desk.count("interceptions") == 2
        assert await desk.count("token_usages") == 2

    play(database_url, script)


def test_records_that_come_in_another_journal_are_duplicates(database_url: Secret) -> None:
    async def script(desk: Desk) -> None:
        one, two = start(), start()
        await desk.store(new_id(), 1, one, end(one), two)
        other = new_id()
        await desk.store(other, 1, one, end(one), two, end(two))
        assert await desk.journal(other) == (4, 1, 3, 0)
        assert await desk.rows("SELECT count(*) FILTER (WHERE ended_at IS NOT NULL) AS ended FROM interceptions") == [
            {"ended": 2}
        ]
        assert await desk.count("token_usages") == 2

    play(database_url, script)


def test_a_gap_is_refused_and_stores_nothing(database_url: Secret) -> None:
    async def script(desk: Desk) -> None:
        journal = new_id()
        with pytest.raises(SequenceGapError, match="up to 0; a batch must begin at 1"):
            await desk.store(journal, 2, start())
        assert await desk.count("journals") == 0
        await desk.store(journal, 1, start())
        with pytest.raises(SequenceGapError):
            await desk.store(journal, 3, start())
        assert await desk.count("interceptions") == 1

    play(database_url, script)


def test_an_empty_batch_asks_how_far_a_journal_is_stored(database_url: Secret) -> None:
    async def script(desk: Desk) -> None:
        journal = new_id()
        assert (await desk.store(journal, 1)).acked_seq == 0
        assert await desk.count("journals") == 0
        await desk.store(journal, 1, start(), start())
        assert (await desk.store(journal, 1)).acked_seq == 2

    play(database_url, script)


def bad_records() -> list[tuple[str, bytes]]:
    lost = end(start())
    return [
        ("MessagePack data is malformed", b"\xc1\xff"),
        ("missing required field", msgspec.msgpack.encode({"type": "start"})),
        ("id is not a UUID", encode_record(start(id="not-an-id"))),
        ("initiator_id is not a UUID", encode_record(start(initiator_id=""))),
        ("started_at is out of range", encode_record(start(started_at=2**60))),
        ("revision is out of range", encode_record(start(revision=2**63))),
        ("no start of it is stored", encode_record(lost)),
        (
            "input_tokens is out of range",
            encode_record(end(start(), token_usages=[TokenUsage(new_id(), now_us(), input_tokens=-1)])),
        ),
    ]


@pytest.mark.parametrize("at", [0, 3, 5])
def test_a_record_that_cannot_be_stored_is_kept_aside_and_blocks_no_other(database_url: Secret, at: int) -> None:
    bad = bad_records()

    async def script(desk: Desk) -> None:
        journal, one, two = new_id(), start(), start()
        payloads = encoded([one, end(one), two, end(two), start()])
        payloads[at:at] = [payload for _, payload in bad]
        ack = await desk.ingest.store(journal, 1, payloads)
        assert ack.acked_seq == len(payloads)
        assert [rejected.seq for rejected in ack.rejected] == list(range(at + 1, at + 1 + len(bad)))
        reasons = {rejected.seq: rejected.reason for rejected in ack.rejected}
        for n, (reason, _) in enumerate(bad, start=at + 1):
            assert reason in reasons[n]
        assert await desk.journal(journal) == (len(payloads), 5, 0, len(bad))
        assert await desk.count("interceptions") == 3
        kept = await desk.rows("SELECT seq, payload FROM ingest_rejected ORDER BY seq")
        assert [row["payload"] for row in kept] == [payload for _, payload in bad]

    play(database_url, script)


def test_what_only_the_database_refuses_is_found_among_many_and_kept_aside(database_url: Secret) -> None:
    async def script(desk: Desk) -> None:
        # a constraint that no check of ours knows of
        await desk.db.execute("ALTER TABLE user_prompts ADD CONSTRAINT odd CHECK (prompt <> 'odd')")
        journal = new_id()
        starts = [start() for _ in range(40)]
        starts[17] = start(prompt=Prompt(new_id(), "odd"))
        records: list[Record] = []
        for one in starts:
            records += [one, end(one)]
        ack = await desk.store(journal, 1, *records)
        assert [one.seq for one in ack.rejected] == [35, 36]
        assert "CheckViolation" in ack.rejected[0].reason or "check constraint" in ack.rejected[0].reason
        assert await desk.count("interceptions") == 39
        assert await desk.count("token_usages") == 39
        assert await desk.journal(journal) == (80, 78, 0, 2)

    play(database_url, script)


def test_nul_and_overlong_texts_are_stored_in_a_form_the_database_takes(database_url: Secret) -> None:
    async def script(desk: Desk) -> None:
        journal = new_id()
        one = start(
            prompt=Prompt(new_id(), "a\x00b"),
            model="m" * 5000,
            client_session_id="\U0001f600" * 5000,
            user_agent="ua\x00",
            correlating_tool_call_id="c" * 9000,
            agent_firewall_session_id="nonsense",
        )
        last = end(
            one,
            calls=["t" * 9000],
            error_message="é" * 1000,
            tool_results=["x\x00y"],
            output_text="\x00",
        )
        ack = await desk.store(journal, 1, one, last)
        assert ack.rejected == []
        assert await desk.db.fetchval("SELECT prompt FROM user_prompts") == "a\ufffdb"
        (row,) = await desk.rows("SELECT model, metadata, octet_length(error_message) AS size FROM interceptions")
        assert row["model"] == "m" * 512
        assert row["size"] == 1024
        assert msgspec.json.decode(row["metadata"])["request_user_agent"] == "ua\ufffd"
        assert await desk.db.fetchval("SELECT tool_results FROM interception_details") == ["x\ufffdy"]

    play(database_url, script)


def test_the_end_of_a_worker_interrupts_what_it_left_open(database_url: Secret) -> None:
    async def script(desk: Desk) -> None:
        journal, other = new_id(), new_id()
        done, left, elsewhere = start(), start(), start()
        await desk.store(other, 1, elsewhere)
        await desk.store(journal, 1, done, end(done), left, WorkerGone(now_us()))
        rows = await desk.rows("SELECT id::text, outcome FROM interceptions")
        assert {row["id"]: row["outcome"] for row in rows} == {
            done.id: "completed",
            left.id: "interrupted",
            elsewhere.id: None,
        }
        assert await desk.journal(journal) == (4, 4, 0, 0)
        assert await desk.db.fetchval("SELECT gone FROM journals WHERE journal_id = $1", journal) is True
        # what is closed stays as it is
        await desk.store(journal, 5, end(left))
        assert await desk.journal(journal) == (5, 4, 1, 0)
        assert await desk.db.fetchval("SELECT outcome FROM interceptions WHERE id = $1", left.id) == "interrupted"

    play(database_url, script)


def test_two_control_planes_fed_the_same_journal_store_it_once(database_url: Secret) -> None:
    async def script(desk: Desk) -> None:
        second = Ingest(await database.connect(desk.url))
        journal = new_id()
        records: list[Record] = []
        for _ in range(50):
            one = start()
            records += [one, end(one, calls=[new_id()])]
        payloads = encoded(records)
        acks = await asyncio.gather(
            *(
                ingest.store(journal, 1, payloads[:size])
                for ingest in (desk.ingest, second)
                for size in (30, 100, 61, 100)
            )
        )
        assert max(ack.acked_seq for ack in acks) == 100
        assert await desk.journal(journal) == (100, 100, 0, 0)
        assert await desk.count("interceptions") == 50
        assert await desk.count("tool_usages") == 50
        await second._engine.dispose()

    play(database_url, script)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_however_a_journal_is_cut_and_repeated_its_records_are_stored_once(
    new_database: Callable[[], Secret], data: st.DataObject
) -> None:
    """Batches of any size, any of them delivered again from anywhere before: the link after lost answers."""
    starts = [start(correlating_tool_call_id="", client_session_id="") for _ in range(data.draw(st.integers(1, 6)))]
    open_: list[Any] = []
    frames: list[Any] = []
    waiting = list(starts)
    while waiting or open_:
        if waiting and (not open_ or data.draw(st.booleans())):
            open_.append(waiting.pop(0))
            frames.append(open_[-1])
        else:
            frames.append(end(open_.pop(data.draw(st.integers(0, len(open_) - 1))), calls=[new_id()]))
    if data.draw(st.booleans()):
        frames.insert(data.draw(st.integers(0, len(frames))), WorkerGone(now_us()))
    payloads = encoded(frames)
    bad = data.draw(st.integers(0, len(payloads)))
    payloads.insert(bad, b"nonsense")

    async def script(desk: Desk) -> None:
        journal, acked = new_id(), 0
        while acked < len(payloads):
            first = data.draw(st.integers(1, acked + 1))
            last = data.draw(st.integers(acked + 1, len(payloads)))
            acked = (await desk.ingest.store(journal, first, payloads[first - 1 : last])).acked_seq
        acked_seq, stored, duplicate, rejected = await desk.journal(journal)
        assert (acked_seq, stored + duplicate + rejected, rejected) == (len(payloads), len(payloads), 1)
        assert await desk.count("interceptions") == len(starts)
        ended = await desk.rows("SELECT count(*) AS n FROM interceptions WHERE outcome = 'completed'")
        assert ended[0]["n"] == await desk.count("token_usages") == await desk.count("tool_usages")
        assert await desk.count("user_prompts") == len(starts)
        assert await desk.count("interception_sessions") == len(starts)

    play(new_database(), script)


# --- threads


async def threads(desk: Desk, *interceptions: Any) -> list[tuple[int | None, int | None, str]]:
    """(parent, root) of each as positions in `interceptions`, and the session id."""
    place: dict[str | None, int | None] = {one.id: n for n, one in enumerate(interceptions)}
    place[None] = None
    rows = await desk.rows(
        "SELECT id::text, thread_parent_id::text AS parent, thread_root_id::text AS root, session_id "
        "FROM interceptions WHERE id = ANY($1::uuid[])",
        [one.id for one in interceptions],
    )
    found = {row["id"]: (place[row["parent"]], place[row["root"]], row["session_id"]) for row in rows}
    return [found[one.id] for one in interceptions]


def chain(length: int, **fields: Any) -> tuple[list[Any], list[Any]]:
    """Interceptions of one person, each answering the tool call of the one before."""
    who, mark = new_id(), new_id()
    starts = [
        start(
            initiator_id=who,
            client_session_id="",
            correlating_tool_call_id=f"{mark}-{n - 1}" if n else "",
            **fields,
        )
        for n in range(length)
    ]
    return starts, [end(one, calls=[f"{mark}-{n}"]) for n, one in enumerate(starts)]


def test_a_chain_of_tool_calls_is_one_thread_in_one_batch(database_url: Secret) -> None:
    async def script(desk: Desk) -> None:
        starts, ends = chain(3)
        await desk.store(new_id(), 1, *[record for pair in zip(starts, ends, strict=True) for record in pair])
        root = starts[0].id
        assert await threads(desk, *starts) == [(None, None, root), (0, 0, root), (1, 0, root)]
        assert await desk.rows("SELECT session_id FROM interception_sessions") == [{"session_id": root}]

    play(database_url, script)


def test_a_chain_of_tool_calls_is_one_thread_over_many_batches(database_url: Secret) -> None:
    async def script(desk: Desk) -> None:
        starts, ends = chain(3)
        journal, seq = new_id(), 0
        for batch in ([starts[0]], [ends[0], starts[1]], [ends[1]], [starts[2]], [ends[2]]):
            await desk.store(journal, seq + 1, *batch)
            seq += len(batch)
        root = starts[0].id
        assert await threads(desk, *starts) == [(None, None, root), (0, 0, root), (1, 0, root)]

    play(database_url, script)


@pytest.mark.parametrize("order", [(2, 1, 0), (1, 2, 0), (2, 0, 1), (0, 2, 1), (1, 0, 2)])
def test_parents_that_are_recorded_after_their_children_are_found_late(
    database_url: Secret, order: Sequence[int]
) -> None:
    async def script(desk: Desk) -> None:
        starts, ends = chain(3)
        for n in order:
            await desk.store(new_id(), 1, starts[n], ends[n])
        root = starts[0].id
        assert await threads(desk, *starts) == [(None, None, root), (0, 0, root), (1, 0, root)]
        rows = await desk.rows("SELECT session_id, started_at, last_active_at, ended FROM interception_sessions")
        assert [row["session_id"] for row in rows] == [root]
        first = await desk.db.fetchval("SELECT min(started_at) FROM interceptions")
        last = await desk.db.fetchval("SELECT max(started_at) FROM interceptions")
        assert (rows[0]["started_at"], rows[0]["last_active_at"], rows[0]["ended"]) == (first, last, True)

    play(database_url, script)


@pytest.mark.parametrize("again", ["the batch comes again", "the control plane starts"])
def test_a_link_missed_when_an_answer_was_lost_is_made_later(database_url: Secret, again: str) -> None:
    """The control plane died between its commit and the look for late parents."""

    async def script(desk: Desk) -> None:
        (parent, child), (parent_end, _) = chain(2)
        await desk.store(new_id(), 1, child)
        journal = new_id()
        await desk.store(journal, 1, parent, parent_end)
        await desk.db.execute(
            "UPDATE interceptions SET thread_parent_id = NULL, thread_root_id = NULL, session_id = id::text"
        )
        if again == "the batch comes again":
            await desk.store(journal, 1, parent, parent_end, start())
        else:
            engine = await database.connect(desk.url)
            assert await link_recent_orphans(engine, datetime.now(UTC)) == 1
            await engine.dispose()
        assert (await threads(desk, parent, child))[1] == (0, 0, parent.id)

    play(database_url, script)


def test_batches_stored_at_once_still_make_one_thread(database_url: Secret) -> None:
    async def script(desk: Desk) -> None:
        second = Ingest(await database.connect(desk.url))
        chains = [chain(6) for _ in range(4)]
        work = []
        for starts, ends in chains:
            for n, (one, last) in enumerate(zip(starts, ends, strict=True)):
                work.append((desk.ingest, second)[n % 2].store(new_id(), 1, encoded([one, last])))
        await asyncio.gather(*work)
        for starts, _ in chains:
            root = starts[0].id
            expected = [(None, None, root), *((n, 0, root) for n in range(5))]
            assert await threads(desk, *starts) == expected
        assert await desk.count("interception_sessions") == 4
        await second._engine.dispose()

    play(database_url, script)


@pytest.mark.parametrize("order", ["together", "parent first", "child first"])
def test_a_tool_call_of_another_person_makes_no_thread(database_url: Secret, order: str) -> None:
    async def script(desk: Desk) -> None:
        mine = start()
        theirs = start(correlating_tool_call_id="toolu_1")
        parent, child = [mine, end(mine, calls=["toolu_1"])], [theirs]
        batches = {"together": [parent + child], "parent first": [parent, child], "child first": [child, parent]}
        for batch in batches[order]:
            await desk.store(new_id(), 1, *batch)
        assert (await threads(desk, mine, theirs))[1] == (None, None, theirs.id)

    play(database_url, script)


def test_of_several_makers_of_a_call_the_newest_before_the_answer_is_the_parent(database_url: Secret) -> None:
    async def script(desk: Desk) -> None:
        who = new_id()
        old, new = start(initiator_id=who), start(initiator_id=who)
        answer = start(initiator_id=who, correlating_tool_call_id="call_0")
        later = start(initiator_id=who)
        await desk.store(new_id(), 1, old, end(old, calls=["call_0"]), later, end(later, calls=["call_0"]))
        await desk.store(new_id(), 1, new, end(new, calls=["call_0"]), answer)
        assert (await threads(desk, old, new, answer, later))[2][:2] == (1, 1)

    play(database_url, script)


def test_a_client_session_keeps_its_id_in_a_thread(database_url: Secret) -> None:
    async def script(desk: Desk) -> None:
        who = new_id()
        one = start(initiator_id=who, client_session_id="s-1")
        two = start(initiator_id=who, client_session_id="s-1", correlating_tool_call_id="toolu_1")
        await desk.store(new_id(), 1, two)
        await desk.store(new_id(), 1, one, end(one, calls=["toolu_1"]))
        assert await threads(desk, one, two) == [(None, None, "s-1"), (0, 0, "s-1")]
        assert await desk.rows("SELECT session_id FROM interception_sessions") == [{"session_id": "s-1"}]

    play(database_url, script)


def test_a_tool_call_that_is_never_answered_for_leaves_a_root(database_url: Secret) -> None:
    async def script(desk: Desk) -> None:
        one = start(correlating_tool_call_id="toolu_elsewhere")
        await desk.store(new_id(), 1, one, end(one, tool_usages=[ToolUsage(new_id(), now_us(), "t", tool_call_id="x")]))
        assert await threads(desk, one) == [(None, None, one.id)]

    play(database_url, script)
