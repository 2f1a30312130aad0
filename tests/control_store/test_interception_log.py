"""The `interception log` lines."""

import asyncio
from datetime import datetime

from structlog.testing import capture_logs

from ostiary.control import database
from ostiary.control.ingest import Ingest
from ostiary.core.ids import new_id
from ostiary.core.records import WorkerGone
from ostiary.core.secret import Secret
from tests.support.records import encoded, end, start


def test_every_stored_record_is_one_line_with_the_public_fields(database_url: Secret) -> None:
    one = start(correlating_tool_call_id="toolu_0")
    last = end(one, calls=["toolu_1"])

    async def go(*, structured: bool) -> None:
        engine = await database.connect(database_url)
        ingest = Ingest(engine, structured_logging=structured)
        await ingest.store(new_id(), 1, encoded([one, last]))
        await engine.dispose()

    with capture_logs() as lines:
        asyncio.run(go(structured=True))
    told = {line["record_type"]: line for line in lines if line["event"] == "interception log"}
    assert list(told) == [
        "interception_start",
        "prompt_usage",
        "token_usage",
        "tool_usage",
        "model_thought",
        "interception_end",
    ]
    assert all(line["interception_id"] == one.id and line["log_level"] == "info" for line in told.values())
    assert told["interception_start"]["metadata"] == {"request_user_agent": "claude-cli/2.0"}
    assert told["interception_start"]["correlating_tool_call_id"] == "toolu_0"
    assert told["interception_start"]["thread_root_id"] is None
    assert told["prompt_usage"]["prompt"] == "what is an ostiary?"
    assert told["token_usage"]["output_tokens"] == 34
    assert told["token_usage"]["msg_id"] == "msg_1"
    assert told["tool_usage"]["input"] == '{"command": "ls"}'
    assert told["model_thought"]["content"] == "The user asks about doors."

    with capture_logs() as lines:
        asyncio.run(go(structured=True))
    assert not [line for line in lines if line["event"] == "interception log"]  # duplicates are not told again


def test_what_a_worker_left_open_has_its_end_too(database_url: Secret) -> None:
    done, left = start(), start()
    at = left.started_at + 7_000_000

    async def go() -> None:
        engine = await database.connect(database_url)
        ingest = Ingest(engine, structured_logging=True)
        await ingest.store(new_id(), 1, encoded([done, end(done), left, WorkerGone(at)]))
        await engine.dispose()

    with capture_logs() as lines:
        asyncio.run(go())
    ends = [line for line in lines if line.get("record_type") == "interception_end"]
    assert [line["interception_id"] for line in ends] == [done.id, left.id]
    assert datetime.fromisoformat(ends[1]["ended_at"]).timestamp() == at / 1e6


def test_nothing_of_a_record_is_logged_when_it_is_off(database_url: Secret) -> None:
    one = start()

    async def go() -> None:
        engine = await database.connect(database_url)
        await Ingest(engine).store(new_id(), 1, [*encoded([one, end(one)]), encoded([start(id="x")])[0]])
        await engine.dispose()

    with capture_logs() as lines:
        asyncio.run(go())
    assert "ostiary?" not in str(lines)
    assert [line["event"] for line in lines if line["log_level"] == "error"] == ["rejecting record"]
