"""A database that an earlier version made and filled: the next start migrates it, and everything is still there."""

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import uvloop
from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncConnection

from ostiary.control import database
from ostiary.control.store import migrate
from ostiary.core.ids import new_id
from ostiary.core.secret import Secret
from tests.support.control_server import ControlServer, control_settings, serving
from tests.support.records import encoded, end, start

REVISIONS = [one.revision for one in ScriptDirectory.from_config(migrate._config()).walk_revisions()][::-1]
USER, TOKEN, PROVIDER, CALL, JOURNAL = (new_id() for _ in range(5))
PROMPT = "from before the upgrade"

# Rows as the first version wrote them: their columns are in every later one.
ROWS: list[tuple[str, Mapping[str, Any]]] = [
    ("users", {"id": USER, "username": "ann", "email": "ann@example.org", "role": "member"}),
    ("tokens", {"id": TOKEN, "user_id": USER, "name": "laptop", "prefix": "ost_abcd", "token_sha256": bytes(32)}),
    ("ai_providers", {"id": PROVIDER, "type": "openai", "name": "main", "base_url": "https://a.example", "icon": "x"}),
    ("provider_revisions", {"actor": "ann", "reason": "create main"}),
    (
        "audit_log",
        {"id": new_id(), "actor": "ann", "action": "create", "resource_type": "ai_provider", "resource_id": "x"},
    ),
    ("journals", {"journal_id": JOURNAL, "acked_seq": 3, "stored": 2, "rejected": 1}),
    ("ingest_rejected", {"journal_id": JOURNAL, "seq": 3, "reason": "odd", "payload": b"?"}),
    (
        "interceptions",
        {
            "id": CALL,
            "initiator_id": USER,
            "api_key_id": TOKEN,
            "provider": "openai",
            "provider_name": "main",
            "model": "gpt-before",
            "route": "/v1/responses",
            "streaming": True,
            "session_id": CALL,
            "credential_kind": "centralized",
            "outcome": "completed",
            "status_code": 200,
            "journal_id": JOURNAL,
        },
    ),
    ("interception_sessions", {"session_id": CALL, "initiator_id": USER, "ended": True}),
    ("interception_facets", {"kind": "model", "value": "gpt-before", "initiator_id": USER}),
    ("interception_details", {"interception_id": CALL, "output_text": "an answer"}),
    (
        "token_usages",
        {
            "interception_id": CALL,
            "id": new_id(),
            "input_tokens": 7,
            "output_tokens": 5,
            "cache_read_input_tokens": 3,
            "cache_write_input_tokens": 1,
        },
    ),
    ("user_prompts", {"interception_id": CALL, "id": new_id(), "prompt": PROMPT}),
    ("tool_usages", {"interception_id": CALL, "id": new_id(), "tool": "read", "tool_call_id": "call_before"}),
    ("model_thoughts", {"interception_id": CALL, "id": new_id(), "content": "hm", "source": "thinking"}),
]
TIMES = {
    "interceptions": ("started_at", "ended_at"),
    "interception_sessions": ("started_at", "last_active_at"),
    "token_usages": ("created_at",),
    "user_prompts": ("created_at",),
    "tool_usages": ("created_at",),
    "model_thoughts": ("created_at",),
}


def upgrade_to(connection: Connection, revision: str) -> None:
    config = migrate._config()
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


async def made_by(url: Secret, revision: str) -> None:
    """A database as the version with this newest migration leaves it."""
    engine = await database.connect(url)
    async with engine.begin() as connection:
        await connection.run_sync(upgrade_to, revision)
    async with engine.begin() as connection:
        for table, values in ROWS:
            await fill(connection, table, values)
    await engine.dispose()


async def fill(connection: AsyncConnection, table: str, values: Mapping[str, Any]) -> None:
    times = TIMES.get(table, ())
    names = ", ".join([*values, *times])
    marks = ", ".join([*(f":{name}" for name in values), *("now()" for _ in times)])
    await connection.execute(text(f"INSERT INTO {table} ({names}) VALUES ({marks})"), dict(values))


@pytest.mark.parametrize("revision", REVISIONS)
def test_what_an_earlier_version_stored_is_kept_and_goes_on(
    blank_database_url: Secret, tmp_path: Path, revision: str
) -> None:
    async def main() -> None:
        await made_by(blank_database_url, revision)
        async with serving(control_settings(blank_database_url, tmp_path)) as server:
            await look(server, PROMPT)
            newer = await go_on(server)
        async with serving(control_settings(blank_database_url, tmp_path)) as server:
            await look(server, newer)

    uvloop.run(main())


async def look(server: ControlServer, last_prompt: str) -> None:
    call = (await server.get(f"/api/v2/ai-gateway/interceptions/{CALL}")).json()
    assert (call["model"], call["initiator"]["username"], call["outcome"]) == ("gpt-before", "ann", "completed")
    assert [one["prompt"] for one in call["user_prompts"]] == [PROMPT]
    (usage,) = call["token_usages"]
    assert [usage[f"{kind}_tokens"] for kind in ("input", "output", "cache_read_input", "cache_write_input")] == [
        7,
        5,
        3,
        1,
    ]
    assert [one["tool"] for one in call["tool_usages"]] == ["read"]
    assert [one["content"] for one in call["model_thoughts"]] == ["hm"]
    sessions = (await server.get("/api/v2/ai-gateway/sessions", q="initiator:ann")).json()
    assert sessions["sessions"][0]["last_prompt"] == last_prompt
    assert "gpt-before" in (await server.get("/api/v2/ai-gateway/models")).text
    provider = (await server.get("/api/v2/ai/providers/main")).json()
    assert (provider["id"], provider["icon"]) == (PROVIDER, "x")
    assert [one["name"] for one in (await server.get("/api/v2/tokens", user="ann")).json()] == ["laptop"]
    found = (await server.get("/api/v2/diagnosis")).json()
    assert found["database"]["migration_state"] == "current"
    assert (found["partitions"]["missing"], found["partitions"]["default_rows"]) == ([], [])
    assert found["journals"]["rejected"] == 1
    assert [one["reason"] for one in found["journals"]["rejected_lately"]] == ["odd"]


async def go_on(server: ControlServer) -> str:
    """The journal that was under way goes on, and a call joins a thread of before; gives what it asks."""
    answers = start(initiator_id=USER, correlating_tool_call_id="call_before")
    payloads = [base64.b64encode(frame).decode() for frame in encoded([answers, end(answers)])]
    stored = await server.rpc("Recorder/Record", {"journalId": JOURNAL, "firstSeq": 4, "records": payloads})
    assert stored.json() == {"ackedSeq": "5"}
    joined = (await server.get(f"/api/v2/ai-gateway/interceptions/{answers.id}")).json()
    assert joined["session_id"] == CALL
    assert answers.prompt
    return answers.prompt.prompt
