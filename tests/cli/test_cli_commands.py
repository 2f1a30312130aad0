"""The commands against a real control plane: its REST API on a database of the test."""

import json
from pathlib import Path

import pytest
from command_plane import Do, Plane

from ostiary.core.ids import new_id
from ostiary.core.records import Attempt, Prompt, Trace
from tests.support.records import end, start

KEY = "sk-key-of-the-command-tests-0123456789"


def test_a_person_comes_changes_is_suspended_and_goes(do: Do) -> None:
    assert do("users", "create", "alice", "--email", "alice@example.com").out == "created alice (member)\n"
    assert (
        do("users", "edit", "alice", "--role", "auditor", "--display-name", "Alice").out == "changed alice (auditor)\n"
    )
    assert do("users", "suspend", "alice").out == "alice is suspended\n"
    assert [user["status"] for user in do("users", "list", "--json").json if user["username"] == "alice"] == [
        "suspended"
    ]
    assert do("users", "activate", "alice").out == "alice is active\n"
    assert "Alice" in do("users", "show", "alice").out
    assert do("users", "delete", "alice", "--yes").out == "deleted alice\n"
    assert [user["username"] for user in do("users", "list", "--json").json] == ["admin"]
    assert "User not found" in do("users", "show", "alice", status=1).err


def test_the_api_says_which_field_is_wrong(do: Do) -> None:
    said = do("users", "create", "al ice", "--email", "nowhere", status=1).err
    assert said.startswith("ostiary: Invalid user request: username: must be")
    assert "; email: must be an address" in said


def test_nothing_to_change_is_wrong_usage(do: Do) -> None:
    assert "nothing to change" in do("users", "edit", "admin", status=2).err
    assert "nothing to change" in do("providers", "edit", "x", status=2).err


def test_without_a_terminal_a_deletion_needs_yes(do: Do) -> None:
    do("users", "create", "alice")
    assert "--yes" in do("users", "delete", "alice", status=2).err
    assert len(do("users", "list", "--json").json) == 2


def test_a_token_is_printed_alone_once_and_works(do: Do, plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    do("users", "create", "alice")
    made = do("tokens", "create", "laptop", "--user", "alice", "--expires", "90d")
    token = made.out.strip()
    assert token.startswith("ost_")
    assert made.out.count("\n") == 1
    assert "shown only now" in made.err
    listed = do("tokens", "list", "--all")
    assert "laptop" in listed.out
    assert "in 90d" in listed.out
    assert token not in listed.out
    assert token not in do("tokens", "list", "--all", "--json").out
    monkeypatch.setenv("OSTIARY_TOKEN", token)
    (mine,) = do("tokens", "list", "--json").json
    assert "It takes the role" in do("users", "list", status=1).err
    do("tokens", "revoke", mine["id"], "--yes")
    assert "the token of OSTIARY_TOKEN was sent" in do("tokens", "list", status=1).err


def test_a_provider_with_keys_from_variable_and_file(do: Do, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    more = tmp_path / "keys"
    more.write_text(f"{KEY}-2\n\n{KEY}-3\n")
    added = do("providers", "add", "main", "--type", "openai", "--key-env", "MY_KEY", "--key-file", str(more))
    assert added.out == "added main (openai) with 3 keys\n"
    shown = do("providers", "show", "main", "--json").json
    assert shown["base_url"] == "https://api.openai.com/v1/"
    first, second, third = shown["api_keys"]
    assert KEY not in json.dumps(shown)
    do("providers", "edit", "main", "--remove-key", second["id"])
    assert [key["id"] for key in do("providers", "show", "main", "--json").json["api_keys"]] == [
        first["id"],
        third["id"],
    ]
    monkeypatch.setenv("NEW_KEY", f"{KEY}-4")
    do("providers", "edit", "main", "--key-env", "NEW_KEY", "--display-name", "Main")
    keys = do("providers", "show", "main", "--json").json["api_keys"]
    assert [key["id"] for key in keys[:2]] == [first["id"], third["id"]]
    assert len(keys) == 3
    do("providers", "edit", "main", "--key-env", "NEW_KEY", "--replace-keys")
    assert len(do("providers", "show", "main", "--json").json["api_keys"]) == 1
    everything = do("providers", "list").out + do("providers", "show", "main").out + do("audit", "list", "--json").out
    assert KEY not in everything


def test_a_provider_is_disabled_enabled_and_removed(do: Do) -> None:
    do("providers", "add", "local", "--type", "openai-compat", "--base-url", "http://127.0.0.1:1/v1", "--no-key")
    assert do("providers", "disable", "local").out == "local is disabled\n"
    assert "disabled" in do("providers", "list").out
    assert do("providers", "enable", "local").out == "local is enabled\n"
    assert do("providers", "remove", "local", "--yes").out == "removed local\n"
    assert do("providers", "list").err.startswith("no providers")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["add", "docs", "--type", "openai"], "NAME is reserved"),
        (["add", "x", "--type", "opena"], "'openai'"),
        (["add", "x", "--type", "azure", "--no-key"], "--base-url is needed"),
        (["add", "x", "--type", "openai"], "a key is needed: --key-env VARIABLE or --key-file FILE, or --no-key"),
        (["edit", "x", "--replace-keys"], "--replace-keys needs the new keys"),
    ],
)
def test_a_provider_called_wrongly_is_refused_before_anything_is_sent(do: Do, arguments: list[str], said: str) -> None:
    assert said in do("providers", *arguments, status=2).err
    assert "is not set" in do("providers", "add", "x", "--type", "openai", "--key-env", "NOT_THERE", status=1).err
    assert do("audit", "list", "--type", "ai_provider", "--json").json == []


def test_a_bedrock_provider_needs_neither_a_key_nor_an_address(do: Do, tmp_path: Path) -> None:
    file = tmp_path / "bedrock.json"
    role = {"role_arn": "arn:aws:iam::123456789012:role/claude"}
    file.write_text(json.dumps({"_type": "bedrock", "_version": 1, "region": "us-east-1", **role}))
    do("providers", "add", "bedrock", "--type", "bedrock", "--settings", str(file))
    shown = do("providers", "show", "bedrock", "--json").json
    assert (shown["base_url"], shown["settings"]["region"]) == ("", "us-east-1")
    assert shown["settings"]["external_id"], "made by the server, for the role's trust policy"


def test_settings_of_a_provider_come_from_a_file(do: Do, tmp_path: Path) -> None:
    file = tmp_path / "settings.json"
    file.write_text('{"_type": "openai", "stream_usage": "leave"}')
    do("providers", "add", "main", "--type", "openai", "--no-key", "--settings", str(file))
    assert do("providers", "show", "main", "--json").json["settings"]["stream_usage"] == "leave"
    file.write_text("[]")
    assert "must be a JSON object" in do("providers", "edit", "main", "--settings", str(file), status=1).err


def test_the_plan_tells_what_a_start_would_do(do: Do, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OSTIARY_OPENAI_KEY", KEY)
    monkeypatch.setenv("OSTIARY_PROVIDER_0_TYPE", "openai-compat")
    monkeypatch.setenv("OSTIARY_PROVIDER_0_NAME", "other")
    monkeypatch.setenv("OSTIARY_PROVIDER_0_BASE_URL", "http://127.0.0.1:2/v1")
    do("providers", "add", "other", "--type", "openai-compat", "--base-url", "http://127.0.0.1:1/v1", "--no-key")
    said = do("providers", "plan", status=1)
    assert [line.split()[:2] for line in said.out.splitlines()[1:]] == [["insert", "openai"], ["drift", "other"]]
    assert "base_url is http://127.0.0.1:1/v1 in the database and http://127.0.0.1:2/v1 here" in said.out
    assert "the start would stop" in said.err
    assert KEY not in said.out
    monkeypatch.setenv("OSTIARY_ON_DRIFT", "warn")
    assert do("providers", "plan", "--json").json["would_start"] is True
    do("providers", "remove", "other", "--yes")
    assert "it was deleted" in do("providers", "plan").out
    assert "insert" in do("providers", "plan", "--offline").out
    monkeypatch.setenv("OSTIARY_URL", "http://127.0.0.1:1")
    assert "Before a first start: --offline" in do("providers", "plan", status=1).err


def test_the_audit_log_names_who_did_what(do: Do) -> None:
    do("users", "create", "alice")
    do("users", "edit", "alice", "--role", "auditor")
    lines = do("audit", "list", "--type", "user").out.splitlines()[1:]
    assert [" ".join(line.split()[2:]) for line in lines][:2] == [
        "admin update user alice 127.0.0.1 role",
        "admin create user alice 127.0.0.1",
    ]
    assert [entry["action"] for entry in do("audit", "list", "--actor", "bootstrap", "--json").json]


def test_the_vault_shows_its_keys_and_rotates(do: Do) -> None:
    do("providers", "add", "main", "--type", "openai", "--no-key")
    assert "encrypts" in do("vault", "status").out
    assert "encrypted 0 values under " in do("vault", "rotate").out


@pytest.fixture
def recorded(plane: Plane) -> tuple[str, str]:
    """Two calls of one session: (the first one's id, the session's id)."""
    first = start(
        client_session_id="session/1", prompt=Prompt(new_id(), "who keeps\x1b[2J the door?"), model="claude-x"
    )
    trace = Trace(
        candidates=[("sk-a...wxyz", "cooling"), ("sk-b...wxyz", "")],
        edits=["stream_options"],
        attempts=[Attempt("sk-b...wxyz", False, 200, "", 900)],
        stages={"identify": 0, "head": 1000},
    )
    later = {"initiator_id": first.initiator_id, "started_at": first.started_at + 1000}
    second = start(client_session_id="session/1", provider_name="other", **later)
    plane.record(first, end(first, calls=["toolu_1"], trace=trace), second)
    return first.id, "session/1"


def test_calls_are_listed_and_shown_with_everything_recorded(do: Do, recorded: tuple[str, str]) -> None:
    first, _ = recorded
    out = do("interceptions", "list").out
    assert len(out.splitlines()) == 3
    assert "running" in out.splitlines()[1]
    assert "claude-x" in out.splitlines()[2]
    assert len(do("interceptions", "list", "-q", "provider_name:other", "--json").json) == 1
    assert do("interceptions", "list", "-q", "provider_name:none").err == "no calls match provider_name:none\n"
    assert do("sessions", "list", "-q", "provider_name:none").err == "no sessions match provider_name:none\n"
    shown = do("interceptions", "show", first).out
    for expected in (
        "completed 200",
        "who keeps\N{REPLACEMENT CHARACTER}[2J the door?",
        "Bash",
        "12 in, 34 out, 5,600 read",
    ):
        assert expected in shown
    assert "\x1b" not in shown
    assert "Interception not found" in do("interceptions", "show", new_id(), status=1).err


def test_a_call_is_explained_as_a_timeline(do: Do, recorded: tuple[str, str]) -> None:
    lines = [" ".join(line.split()) for line in do("explain", recorded[0]).out.splitlines()]
    assert lines[lines.index("keys") + 1 : lines.index("keys") + 3] == ["sk-a...wxyz cooling", "sk-b...wxyz taken"]
    assert lines[lines.index("edits") + 1] == "stream_options"
    assert lines[-3:] == [
        "0.000 +0.000 token known",
        "0.900 +0.900 attempt 1 with sk-b...wxyz on a new connection -> answered 200",
        "1.000 +0.100 provider's head here",
    ]


def test_sessions_are_listed_and_shown_thread_by_thread(do: Do, recorded: tuple[str, str]) -> None:
    _, session = recorded
    (row,) = do("sessions", "list").out.splitlines()[1:]
    assert row.startswith("session/1")
    assert "12" in row
    shown = do("sessions", "show", session).out
    assert "> who keeps" in shown
    assert "* Bash" in shown
    assert "~ The user asks about doors." in shown
    assert do("sessions", "list", "--json").json["count"] == 1
    assert "Session not found" in do("sessions", "show", "none", status=1).err


def test_an_empty_record_says_how_to_fill_it(do: Do) -> None:
    assert "point a client at" in do("sessions", "list").err
    assert "point a client at" in do("interceptions", "list").err
