"""What the REST API shows of the record, and to whom."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import uvloop

from ostiary.control import database, identity
from ostiary.control.identity.tokens import insert_token
from ostiary.control.identity.users import insert_user
from ostiary.control.ingest import Ingest
from ostiary.core.ids import new_id
from ostiary.core.records import InterceptionStart, Prompt, Record
from ostiary.core.secret import Secret
from tests.support.control_server import OWNER_TOKEN, ControlServer, control_settings, serving
from tests.support.records import encoded, end, now_us, start

BASE = "/api/v2/ai-gateway"


@dataclass
class House:
    """A served control plane with two people in it."""

    server: ControlServer
    ingest: Ingest
    ids: dict[str, str] = field(default_factory=dict)
    tokens: dict[str, str] = field(default_factory=dict)

    async def get(self, path: str, who: str = "owner", **query: Any) -> Any:
        answer = await self.server.get(BASE + path, token=self.tokens[who], **query)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def refused(self, path: str, who: str = "owner", **query: Any) -> tuple[int, Any]:
        answer = await self.server.get(BASE + path, token=self.tokens[who], **query)
        assert answer.status_code >= 400
        return answer.status_code, answer.json()

    async def store(self, *records: Record) -> str:
        journal = new_id()
        ack = await self.ingest.store(journal, 1, encoded(records))
        assert not ack.rejected
        return journal

    def start(self, who: str, **fields: Any) -> InterceptionStart:
        return start(initiator_id=self.ids[who], **({"client_session_id": ""} | fields))


def in_house(url: Secret, data_dir: Path, script: Callable[[House], Awaitable[None]]) -> None:
    async def go() -> None:
        engine = await database.connect(url)
        async with serving(control_settings(url, data_dir)) as server:
            house = House(server, Ingest(engine), tokens={"owner": OWNER_TOKEN})
            for name, role in (("ada", "member"), ("bob", "member"), ("eve", "auditor"), ("max", "admin")):
                token = identity.new_token()
                async with engine.begin() as connection:
                    user = await insert_user(connection, name, {"role": role})
                    assert user is not None
                    await insert_token(connection, user.id, "test", token, "user")
                house.ids[name], house.tokens[name] = user.id, token.reveal()
            await script(house)
        await engine.dispose()

    uvloop.run(go())


def test_an_interception_is_shown_with_everything_recorded_of_it(database_url: Secret, tmp_path: Path) -> None:
    async def script(house: House) -> None:
        one = house.start("ada", client_session_id="s-1")
        last = end(one, calls=["toolu_1"])
        journal = await house.store(one, last)
        found = await house.get(f"/interceptions/{one.id}")
        assert found["initiator"] == {"id": house.ids["ada"], "username": "ada"}
        expected = {
            "id": one.id,
            "api_key_id": one.api_key_id,
            "provider": "anthropic",
            "provider_name": "claude-main",
            "model": "claude-sonnet-4-5",
            "client": "Claude Code",
            "client_session_id": "s-1",
            "session_id": "s-1",
            "route": "/v1/messages",
            "streaming": True,
            "outcome": "completed",
            "status_code": 200,
            "error_type": None,
            "error_message": None,
            "credential_kind": "centralized",
            "credential_hint": "sk-a...wxyz",
            "revision": 3,
            "journal_id": journal,
            "metadata": {"request_user_agent": "claude-cli/2.0"},
            "finish_reason": "end_turn",
            "unparsed": False,
        }
        assert {name: found[name] for name in expected} == expected
        assert datetime.fromisoformat(found["started_at"]) == datetime.fromtimestamp(
            one.started_at // 1_000_000, UTC
        ) + timedelta(microseconds=one.started_at % 1_000_000)
        (usage,) = found["token_usages"]
        assert usage["raw"] == {"input_tokens": 12, "output_tokens": 34}
        assert (usage["input_tokens"], usage["output_tokens"]) == (12, 34)
        assert (usage["cache_read_input_tokens"], usage["cache_write_input_tokens"]) == (5600, 78)
        assert usage["metadata"] == {"web_search_requests": 1}
        assert [prompt["prompt"] for prompt in found["user_prompts"]] == ["what is an ostiary?"]
        (tool,) = found["tool_usages"]
        assert (tool["tool"], tool["input"], tool["tool_call_id"]) == ("Bash", '{"command": "ls"}', "toolu_1")
        assert (tool["injected"], tool["truncated"], tool["server_url"]) == (False, False, None)
        (thought,) = found["model_thoughts"]
        assert (thought["content"], thought["source"]) == ("The user asks about doors.", "thinking")
        assert found["trace"]["attempts"][0]["status"] == 200
        (row,) = (await house.get("/interceptions"))["results"]
        assert row == {name: value for name, value in found.items() if name in row}
        assert "trace" not in row

    in_house(database_url, tmp_path, script)


def test_interceptions_come_newest_first_and_page_by_cursor(database_url: Secret, tmp_path: Path) -> None:
    async def script(house: House) -> None:
        at = now_us()
        records = [house.start("ada", started_at=at - 1000 * (n // 2)) for n in range(7)]
        await house.store(*records)
        newest = sorted(records, key=lambda one: (one.started_at, one.id), reverse=True)
        page = await house.get("/interceptions", limit=1000)
        assert page["count"] == 7
        assert [row["id"] for row in page["results"]] == [one.id for one in newest]
        seen: list[str] = []
        while page["results"]:
            page = await house.get("/interceptions", limit=3, **({"after_id": seen[-1]} if seen else {}))
            assert page["count"] == 7
            seen += [row["id"] for row in page["results"]]
        assert seen == [one.id for one in newest]

    in_house(database_url, tmp_path, script)


def test_people_see_their_own_records_owners_and_auditors_see_all(database_url: Secret, tmp_path: Path) -> None:
    async def script(house: House) -> None:
        mine, theirs = house.start("ada", model="m-ada"), house.start("bob", model="m-bob")
        await house.store(mine, end(mine), theirs, end(theirs))
        for who, visible in (
            ("owner", [mine, theirs]),
            ("eve", [mine, theirs]),
            ("ada", [mine]),
            ("bob", [theirs]),
            ("max", []),
        ):
            page = await house.get("/interceptions", who)
            assert {row["id"] for row in page["results"]} == {one.id for one in visible}, who
            assert page["count"] == len(visible), who
            sessions = await house.get("/sessions", who)
            assert {row["id"] for row in sessions["sessions"]} == {one.id for one in visible}, who
            assert sessions["count"] == len(visible), who
            assert await house.get("/models", who) == sorted(one.model for one in visible), who
        for path in (f"/interceptions/{theirs.id}", f"/sessions/{theirs.id}"):
            assert (await house.refused(path, "ada"))[0] == 404
        status, body = await house.refused("/interceptions", "ada", after_id=theirs.id)
        assert (status, body["message"]) == (400, "Invalid pagination cursor.")
        page = await house.get("/interceptions", "ada", q="initiator:bob")
        assert page == {"count": 0, "results": []}

    in_house(database_url, tmp_path, script)


def test_nobody_reads_without_a_token(database_url: Secret, tmp_path: Path) -> None:
    async def script(house: House) -> None:
        for path in ("/interceptions", f"/interceptions/{new_id()}", "/sessions", "/models", "/clients", "/journals"):
            for token in (None, "ost_wrong"):
                answer = await house.server.get(BASE + path, token=token)
                assert answer.status_code == 401, path
                assert set(answer.json()) == {"message", "detail", "validations"}

    in_house(database_url, tmp_path, script)


def test_q_narrows_lists(database_url: Secret, tmp_path: Path) -> None:
    async def script(house: House) -> None:
        hour = 3_600_000_000
        old = house.start("ada", started_at=now_us() - hour, model="gpt-5", provider="openai", provider_name="eu one")
        new = house.start("bob", client="Codex", client_session_id="s 1")
        await house.store(old, end(old), new, end(new))
        between = datetime.now(UTC) - timedelta(minutes=30)
        for q, expected in (
            ("", [new, old]),
            ("initiator:ADA", [old]),
            (f"initiator:{house.ids['bob']}", [new]),
            ("initiator:me", []),
            ("initiator:nobody", []),
            ("provider:openai", [old]),
            ('provider_name:"eu one"', [old]),
            ("provider_name:eu", []),
            ("model:gpt-5 initiator:ada", [old]),
            ("model:gpt-5 initiator:bob", []),
            ("client:Codex", [new]),
            ('session_id:"s 1"', [new]),
            (f"started_after:{between.isoformat()}", [new]),
            (f'started_before:"{between.isoformat()}"', [old]),
        ):
            page = await house.get("/interceptions", q=q)
            assert [row["id"] for row in page["results"]] == [one.id for one in expected], q
            assert page["count"] == len(expected), q
            sessions = await house.get("/sessions", q=q)
            assert [row["id"] for row in sessions["sessions"]] == [
                one.client_session_id or one.id for one in expected
            ], q
        mine = house.start("ada")
        await house.store(mine)
        assert [row["id"] for row in (await house.get("/interceptions", "ada", q="initiator:me"))["results"]] == [
            mine.id,
            old.id,
        ]

    in_house(database_url, tmp_path, script)


BAD_QUESTIONS = [
    ("/interceptions", {"limit": "0"}, "Invalid pagination limit value.", "limit"),
    ("/interceptions", {"limit": "1001"}, "Invalid pagination limit value.", "limit"),
    ("/interceptions", {"limit": "many"}, "Invalid pagination limit value.", "limit"),
    ("/interceptions", {"after_id": "x"}, "Invalid pagination cursor.", "after_id"),
    ("/interceptions", {"after_id": new_id()}, "Invalid pagination cursor.", "after_id"),
    ("/interceptions", {"q": "hello"}, "Invalid search query.", "q"),
    ("/interceptions", {"q": "modell:x"}, "Invalid search query.", "modell"),
    ("/sessions", {"q": "model:a model:b"}, "Invalid search query.", "model"),
    ("/sessions", {"offset": "-1"}, "Invalid pagination offset value.", "offset"),
    ("/sessions", {"after_session_id": "x"}, "Invalid pagination cursor.", "after_session_id"),
    ("/sessions", {"after_session_id": "x", "offset": "1"}, "Invalid pagination cursor.", "offset"),
    ("/models", {"q": "client:x"}, "Invalid AI Gateway models search query.", "client"),
    ("/models", {"limit": "1001"}, "Invalid pagination limit value.", "limit"),
    ("/clients", {"q": "model:x"}, "Invalid AI Gateway clients search query.", "model"),
]


def test_a_bad_question_is_refused_with_the_field_that_is_wrong(database_url: Secret, tmp_path: Path) -> None:
    async def script(house: House) -> None:
        for path, query, message, wrong in BAD_QUESTIONS:
            status, body = await house.refused(path, **query)
            assert (status, body["message"]) == (400, message), query
            assert [problem["field"] for problem in body["validations"]] == [wrong], query
            assert body["validations"][0]["detail"]

    in_house(database_url, tmp_path, script)


def test_a_filter_is_a_parameter_never_sql(database_url: Secret, tmp_path: Path) -> None:
    async def script(house: House) -> None:
        one = house.start("ada")
        await house.store(one)
        for value in ("' OR 1=1 --", '\\"; DROP TABLE users; --', "%", "_", "$1", ":me"):
            for key in ("model", "initiator", "session_id", "client"):
                page = await house.get("/interceptions", q=f'{key}:"{value}"')
                assert page["count"] == 0, (key, value)
            assert await house.get("/models", q=value) == []

    in_house(database_url, tmp_path, script)


def test_sessions_are_summed_up(database_url: Secret, tmp_path: Path) -> None:
    async def script(house: House) -> None:
        at = now_us() - 10_000_000
        one = house.start("ada", client_session_id="s-1", started_at=at)
        two = house.start("ada", client_session_id="s-1", started_at=at + 3_000_000, model="claude-opus-4", prompt=None)
        three = house.start("ada", client_session_id="s-1", started_at=at + 5_000_000, prompt=Prompt(new_id(), "last"))
        other = house.start("bob", client_session_id="s-1", started_at=at + 1_000_000)
        unended = house.start("ada", started_at=at + 9_000_000)
        await house.store(one, end(one), two, end(two), three, end(three), other, end(other), unended)
        page = await house.get("/sessions")
        assert page["count"] == 2
        mine, theirs = page["sessions"]
        assert (mine["initiator"]["username"], theirs["initiator"]["username"]) == ("ada", "bob")
        assert mine["id"] == "s-1"
        assert (mine["models"], mine["providers"]) == (["claude-opus-4", "claude-sonnet-4-5"], ["anthropic"])
        assert (mine["client"], mine["threads"], mine["last_prompt"]) == ("Claude Code", 3, "last")
        assert mine["token_usage_summary"]["input_tokens"] == 36
        assert mine["token_usage_summary"]["cache_read_input_tokens"] == 3 * 5600
        shown = {name: datetime.fromisoformat(mine[name]) for name in ("started_at", "ended_at", "last_active_at")}
        assert shown["last_active_at"] - shown["started_at"] == timedelta(seconds=5)
        assert shown["ended_at"] - shown["last_active_at"] == timedelta(seconds=1.5)
        assert [row["initiator"]["username"] for row in (await house.get("/sessions", "bob"))["sessions"]] == ["bob"]

    in_house(database_url, tmp_path, script)


def test_sessions_page_by_cursor_and_by_offset(database_url: Secret, tmp_path: Path) -> None:
    async def script(house: House) -> None:
        records: list[Record] = []
        for n in range(5):
            one = house.start("ada", client_session_id=f"s-{n}", started_at=now_us() - n * 1_000_000)
            records += [one, end(one)]
        await house.store(*records)
        expected = [f"s-{n}" for n in range(5)]
        seen: list[str] = []
        for _ in range(3):
            page = await house.get("/sessions", limit=2, **({"after_session_id": seen[-1]} if seen else {}))
            assert page["count"] == 5
            seen += [row["id"] for row in page["sessions"]]
        assert seen == expected
        page = await house.get("/sessions", limit=2, offset=3)
        assert [row["id"] for row in page["sessions"]] == expected[3:]

    in_house(database_url, tmp_path, script)


def test_two_peoples_sessions_of_one_id_are_both_found(database_url: Secret, tmp_path: Path) -> None:
    async def script(house: House) -> None:
        records: list[Record] = []
        for n, (who, session) in enumerate((("ada", "both"), ("bob", "between"), ("bob", "both"), ("ada", "last"))):
            one = house.start(who, client_session_id=session, started_at=now_us() - n * 1_000_000)
            records += [one, end(one)]
        await house.store(*records)
        seen: list[tuple[str, str]] = []
        cursor: dict[str, str] = {}
        while page := (await house.get("/sessions", limit=1, **cursor))["sessions"]:
            initiator = page[0]["initiator"]
            seen.append((initiator["username"], page[0]["id"]))
            cursor = {"after_session_id": page[0]["id"], "after_initiator_id": initiator["id"]}
        assert seen == [("ada", "both"), ("bob", "between"), ("bob", "both"), ("ada", "last")]
        # a filter for one person names whose the cursor is, too
        page = (await house.get("/sessions", q="initiator:ada", after_session_id="both"))["sessions"]
        assert [row["id"] for row in page] == ["last"]
        for who in ("ada", "bob", house.ids["bob"]):
            found = await house.get("/sessions/both", "eve", initiator=who)
            assert who in (found["initiator"]["username"], found["initiator"]["id"])
        assert (await house.get("/sessions/both", "eve"))["initiator"]["username"] == "ada"
        assert (await house.get("/sessions/both", "bob", initiator="me"))["initiator"]["username"] == "bob"
        assert (await house.refused("/sessions/both", "bob", initiator="ada"))[0] == 404
        assert (await house.refused("/sessions/both", "eve", initiator="max"))[0] == 404

    in_house(database_url, tmp_path, script)


def test_a_session_is_threads_of_actions(database_url: Secret, tmp_path: Path) -> None:
    async def script(house: House) -> None:
        root = house.start("ada", client_session_id="s-1", prompt=Prompt(new_id(), "list the files"))
        child = house.start(
            "ada", client_session_id="s-1", correlating_tool_call_id="toolu_1", prompt=None, credential_hint="sk-b"
        )
        quiet = house.start("ada", client_session_id="s-1", model="gpt-5", prompt=Prompt(new_id(), "thanks"))
        await house.store(
            root,
            end(root, calls=["toolu_1", "toolu_2"]),
            child,
            end(child, error_type="overloaded", error_message="busy", outcome="upstream_error"),
            quiet,
            end(quiet, model_thoughts=[]),
        )
        found = await house.get("/sessions/s-1", "ada")
        assert found["id"] == "s-1"
        assert found["initiator"]["username"] == "ada"
        assert found["token_usage_summary"]["output_tokens"] == 3 * 34
        assert found["token_usage_summary"]["metadata"] == {"web_search_requests": 3}
        first, second = found["threads"]
        assert (first["id"], first["prompt"], first["model"]) == (root.id, "list the files", "claude-sonnet-4-5")
        assert (first["credential_kind"], first["credential_hint"]) == ("centralized", "sk-a...wxyz")
        assert (first["error_type"], first["error_message"]) == ("overloaded", "busy")
        assert first["token_usage"]["input_tokens"] == 24
        assert [action["interception_id"] for action in first["agentic_actions"]] == [root.id, child.id]
        action = first["agentic_actions"][0]
        assert action["thinking"] == [{"text": "The user asks about doors."}]
        assert [call["tool_call_id"] for call in action["tool_calls"]] == ["toolu_1", "toolu_2"]
        assert action["token_usage"]["metadata"] == {"web_search_requests": 1}
        assert (second["id"], second["prompt"], second["agentic_actions"]) == (quiet.id, "thanks", [])
        assert found["page_started_at"] == first["started_at"]
        assert found["page_ended_at"] == found["ended_at"]
        assert found["truncated"] is False

    in_house(database_url, tmp_path, script)


def test_threads_page_by_the_interceptions_of_a_session(database_url: Secret, tmp_path: Path) -> None:
    async def script(house: House) -> None:
        roots = [house.start("ada", client_session_id="s-1") for _ in range(5)]
        child = house.start("ada", client_session_id="s-1", correlating_tool_call_id="toolu_1")
        records: list[Record] = [roots[0], end(roots[0], calls=["toolu_1"]), child]
        for one in roots[1:]:
            records += [one, end(one)]
        await house.store(*records)

        async def page(**query: Any) -> list[int]:
            found = await house.get("/sessions/s-1", **query)
            return [[one.id for one in roots].index(thread["id"]) for thread in found["threads"]]

        assert await page() == [0, 1, 2, 3, 4]
        assert await page(limit=2) == [0, 1]
        assert await page(limit=2, after_id=roots[1].id) == [2, 3]
        assert await page(limit=2, before_id=roots[4].id) == [2, 3]
        assert await page(after_id=roots[0].id, before_id=roots[3].id) == [1, 2]
        assert await page(limit=1, after_id=child.id) == [1]
        assert await page(after_id=roots[4].id) == []
        stranger = house.start("bob")
        await house.store(stranger)
        for cursor in ("x", new_id(), stranger.id):
            status, body = await house.refused("/sessions/s-1", before_id=cursor)
            assert (status, body["message"]) == (400, "Invalid pagination cursor.")
            assert body["validations"][0]["field"] == "before_id"
        assert (await house.refused("/sessions/s-2"))[1]["message"] == "Session not found."
        assert (await house.refused("/sessions/s-1", limit=201))[0] == 400

    in_house(database_url, tmp_path, script)


def test_models_and_clients_are_listed_by_prefix(database_url: Secret, tmp_path: Path) -> None:
    async def script(house: House) -> None:
        for model, client in (
            ("gpt-5", "Codex"),
            ("gpt-5-mini", "Codex"),
            ("claude-v1:0", "Claude Code"),
            ("100%", ""),
        ):
            await house.store(house.start("ada", model=model, client=client))
        assert await house.get("/models") == ["100%", "claude-v1:0", "gpt-5", "gpt-5-mini"]
        assert await house.get("/models", q="gpt") == ["gpt-5", "gpt-5-mini"]
        assert await house.get("/models", q='model:"claude-v1:"') == ["claude-v1:0"]
        assert await house.get("/models", q="claude-v1:0") == ["claude-v1:0"]
        assert await house.get("/models", q="%") == []
        assert await house.get("/models", limit=1, offset=2) == ["gpt-5"]
        assert await house.get("/clients", q="Cl") == ["Claude Code"]
        assert await house.get("/clients", "bob") == []

    in_house(database_url, tmp_path, script)


def test_journals_reconcile(database_url: Secret, tmp_path: Path) -> None:
    async def script(house: House) -> None:
        one = house.start("ada")
        journal = new_id()
        await house.ingest.store(journal, 1, [*encoded([one, end(one), one]), b"nonsense"])
        (row,) = (await house.get("/journals", "eve"))["journals"]
        counts = {name: row[name] for name in ("journal_id", "acked_seq", "stored", "duplicate", "rejected", "gone")}
        assert counts == {
            "journal_id": journal,
            "acked_seq": 4,
            "stored": 2,
            "duplicate": 1,
            "rejected": 1,
            "gone": False,
        }
        found = await house.get(f"/journals/{journal}")
        assert [(frame["seq"], frame["bytes"]) for frame in found["rejected"]] == [(4, 8)]
        assert (await house.refused("/journals", "ada"))[0] == 403
        assert (await house.refused("/journals", "max"))[0] == 403
        assert (await house.refused(f"/journals/{new_id()}"))[0] == 404

    in_house(database_url, tmp_path, script)


def test_the_earlier_name_of_the_routes_works(database_url: Secret, tmp_path: Path) -> None:
    async def script(house: House) -> None:
        one = house.start("ada")
        await house.store(one, end(one))
        for path in ("/interceptions", f"/interceptions/{one.id}", "/sessions", f"/sessions/{one.id}", "/models"):
            alias = await house.server.get("/api/v2/aibridge" + path)
            assert alias.json() == await house.get(path)

    in_house(database_url, tmp_path, script)


def test_the_api_describes_itself_offline(database_url: Secret, tmp_path: Path) -> None:
    async def script(house: House) -> None:
        page = await house.server.get("/docs", token=None)
        assert page.headers["content-type"].startswith("text/html")
        assert "http://" not in page.text
        assert "https://" not in page.text
        api = (await house.server.get("/openapi.json", token=None)).json()
        assert {f"{BASE}/interceptions", f"{BASE}/sessions/{{session_id}}", "/api/v2/users"} <= set(api["paths"])
        assert not any(path.startswith("/api/v2/aibridge") for path in api["paths"])
        parameters = {one["name"] for one in api["paths"][f"{BASE}/interceptions"]["get"]["parameters"]}
        assert parameters == {"q", "limit", "after_id"}

    in_house(database_url, tmp_path, script)


def test_an_answer_and_an_error_carry_the_request_id(database_url: Secret, tmp_path: Path) -> None:
    async def script(house: House) -> None:
        for path in ("/healthz", "/nothing", f"{BASE}/interceptions"):
            answer = await house.server.get(path, token=None)
            assert len(answer.headers["x-ostiary-request-id"]) == 36
        answer = await house.server.get("/nothing")
        assert answer.status_code == 404
        assert set(answer.json()) == {"message", "detail", "validations"}
        assert (await house.server.http.post("/healthz")).status_code == 405

    in_house(database_url, tmp_path, script)
