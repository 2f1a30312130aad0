"""`ostiary doctor` against a real control plane that is made to be wrong, one thing at a time."""

import asyncio
import json
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest
from command_plane import GATEWAY_KEY, Do, Plane

from ostiary.cli.doctor import gateways
from ostiary.core.ids import new_id
from ostiary.core.secret import Secret
from ostiary.rpc import version
from tests.support.database_door import DatabaseDoor, door
from tests.support.fake_provider import FakeProvider, fake_provider
from tests.support.records import end, start

__all__ = ["door"]

Found = list[dict[str, str]]
Execute = Callable[..., None]
Examine = Callable[..., Found]


@pytest.fixture
def execute(database_url: Secret) -> Execute:
    """SQL on the database of the test's server."""
    dsn = database_url.reveal().replace("+asyncpg", "", 1)

    def run(*statements: str) -> None:
        async def go() -> None:
            connection = await asyncpg.connect(dsn)
            try:
                for statement in statements:
                    await connection.execute(statement)
            finally:
                await connection.close()

        asyncio.run(go())

    return run


@pytest.fixture
def examine(do: Do, monkeypatch: pytest.MonkeyPatch) -> Examine:
    """What the doctor finds, in the groups named. There is no gateway, which is always wrong here."""
    monkeypatch.setattr(gateways, "SETTLE_SECONDS", 0.0)

    def run(*groups: str, status: int = 1, arguments: tuple[str, ...] = ()) -> Found:
        out = do("doctor", "--json", *arguments, status=status).out
        told = json.loads(out[out.index("{\n") :])  # this plane logs to the same stdout
        assert sum(told["counts"].values()) == len(told["findings"])
        return [one for one in told["findings"] if not groups or one["group"] in groups]

    return run


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeProvider]:
    with fake_provider(directory=tmp_path_factory.mktemp("fake")) as running:
        yield running


def bad(found: Found) -> list[tuple[str, str]]:
    """(status, text) of what is not in order; each has its cure."""
    wrong = [one for one in found if one["status"] in ("wrong", "warning")]
    assert all(one["cure"] for one in wrong), wrong
    return [(one["status"], one["text"]) for one in wrong]


def texts(found: Found, status: str) -> str:
    return "\n".join(one["text"] for one in found if one["status"] == status)


def report(plane: Plane, host: str = "berlin", **fields: Any) -> str:
    """A gateway's own report; gives its id."""
    worker = {"worker": 0, "pid": 4711, "journalId": new_id(), "revision": "0"}
    status = {
        "replicaId": new_id(),
        "hostname": host,
        "build": "1.0",
        "mode": "standalone",
        "workers": [worker],
    } | fields
    headers = {version.HEADER_GATEWAY_KEY: GATEWAY_KEY, version.HEADER_API_VERSION: version.CURRENT}
    httpx.post(f"{plane.url}/ostiary.v1.Fleet/ReportStatus", json=status, headers=headers).raise_for_status()
    return str(status["replicaId"])


# --- who asks, and whether anybody answers


def test_it_takes_an_owner_or_an_admin(do: Do, monkeypatch: pytest.MonkeyPatch) -> None:
    for role, allowed in (("member", False), ("auditor", False), ("admin", True)):
        do("users", "create", f"a-{role}", "--role", role)
        token = do("tokens", "create", "t", "--user", f"a-{role}").out.strip()
        with monkeypatch.context() as context:
            context.setenv("OSTIARY_TOKEN", token)
            said = do("doctor", status=1)
        assert (f"as a-{role} ({role})" in said.out) is allowed
        assert "You may not do this" not in said.out
        assert ("takes the token of an owner or an admin" in said.err) is not allowed


def test_a_wrong_token_is_said_at_once(do: Do, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OSTIARY_TOKEN", "ost_" + "x" * 43)
    assert "OSTIARY_TOKEN was sent" in do("doctor", status=1).err


def test_a_server_that_is_not_there_is_wrong_and_the_rest_is_not_guessed(
    do: Do, examine: Examine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        monkeypatch.setenv("OSTIARY_URL", f"http://127.0.0.1:{nobody.getsockname()[1]}")
        found = examine("server", "providers", "gateways", "records")
        assert [one["status"] for one in found] == ["wrong", "unchecked", "unchecked", "unchecked"]
        assert "connection refused" in found[0]["text"]
        assert "OSTIARY_URL" in found[0]["cure"]


def test_a_database_that_does_not_answer_is_wrong(
    examine: Examine, door: DatabaseDoor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    behind = Plane(Secret(door.url), tmp_path)
    try:
        monkeypatch.setenv("OSTIARY_URL", behind.url)
        assert not texts(examine("server"), "wrong")
        door.shut()
        found = examine("server", "database")
        assert "serves and is not ready" in texts(found, "wrong")
        assert "database cannot be used" in texts(found, "wrong")
        door.open()
        assert not texts(examine("server"), "wrong")
        monkeypatch.setattr("ostiary.cli.doctor.server._API_SECONDS", 1.0)
        door.hold()
        assert "took the request and did not answer in time" in texts(examine("server"), "wrong")
    finally:
        door.open()
        behind.close()


def test_tokens_in_clear_on_the_way_are_a_warning(
    examine: Examine, plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    # as it is for every other machine
    monkeypatch.setattr("ostiary.cli.doctor.server.is_local", lambda _url: False)
    assert ("warning", f"{plane.url} is not encrypted: tokens and prompts can be read on the way") in bad(
        examine("server")
    )


_END_OTHERS = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
    "AND pid <> pg_backend_pid()"
)


# --- database


def test_clocks_that_agree_and_a_database_in_order(examine: Examine, plane: Plane) -> None:
    plane.record(start())
    found = examine("clocks", "database", "records")
    ok = texts(found, "ok")
    assert "control plane and this machine agree" in ok
    assert "database and control plane agree" in ok
    assert "the newest" in ok
    assert "partitions are made ahead" in ok
    assert "1 journal reconcile" in ok
    # this plane neither listens nor has a second role
    assert [text.partition(" are ")[0] for _, text in bad(found)] == ["changes", "gateways"]


@pytest.mark.parametrize(("off", "status"), [("5 seconds", "warning"), ("-3 minutes", "wrong")])
def test_a_database_whose_clock_is_off(
    examine: Examine, execute: Execute, off: str, status: str, database_url: Secret
) -> None:
    name = database_url.reveal().partition("?")[0].rpartition("/")[2]
    execute(
        "CREATE SCHEMA skewed",
        "CREATE FUNCTION skewed.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS "
        f"$$ SELECT pg_catalog.clock_timestamp() + interval '{off}' $$",
        f"ALTER DATABASE {name} SET search_path = skewed, pg_catalog, public",
        _END_OTHERS,
    )
    ((found, text),) = bad(examine("clocks"))
    assert found == status
    assert text.startswith("the database's clock is")
    assert ("behind" in text) is off.startswith("-")


@pytest.mark.parametrize(("migration", "status"), [("0003", "wrong"), ("9999", "warning")])
def test_a_database_of_another_migration(examine: Examine, execute: Execute, migration: str, status: str) -> None:
    execute(f"UPDATE alembic_version SET version_num = '{migration}'")
    assert (status, True) in [(found, migration in text) for found, text in bad(examine("database"))]


def test_a_missing_partition_and_rows_that_stand_in_none(examine: Examine, execute: Execute, plane: Plane) -> None:
    listed = "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'interceptions'::regclass"
    execute(
        f"DO $$ DECLARE name text; BEGIN FOR name IN {listed} AND inhrelid <> 'interceptions_default'::regclass "
        "LOOP EXECUTE 'DROP TABLE ' || name; END LOOP; END $$"
    )
    plane.record(start())
    found = bad(examine("database"))
    assert any(
        status == "wrong" and text.startswith("6 partitions of these weeks are missing") for status, text in found
    )
    assert ("warning", "1 row of interceptions stand in no week's partition") in found


def test_a_vault_key_that_is_gone(examine: Examine, execute: Execute, do: Do, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_KEY", "sk-of-the-vault-test-0123456789")
    do("providers", "add", "one", "--type", "openai", "--base-url", "http://127.0.0.1:1/v1", "--key-env", "A_KEY")
    execute(
        "INSERT INTO vault_keys SELECT 'gone', check_value FROM vault_keys",
        "UPDATE ai_provider_keys SET vault_key_id = 'gone'",
    )
    found = examine("database", "providers")
    assert "vault key gone is missing, and encrypts 1 stored secret" in texts(found, "wrong")
    assert "cannot be decrypted" in texts(found, "wrong")


# --- records


def test_a_journal_that_does_not_add_up(examine: Examine, execute: Execute, plane: Plane) -> None:
    plane.record(start())
    execute("UPDATE journals SET stored = stored + 1")
    assert "1 acknowledged, 2 + 0 + 0 stored, duplicate and rejected" in texts(examine("records"), "wrong")


def test_records_that_could_not_be_stored(examine: Examine, execute: Execute, plane: Plane) -> None:
    begun = start()
    plane.record(begun, end(begun), start(model="\0", id="no uuid"))
    ((status, text),) = bad(examine("records"))
    assert (status, text.partition(":")[0]) == ("wrong", "1 record of the last day could not be stored")
    execute("UPDATE ingest_rejected SET at = at - interval '2 days'")
    assert bad(examine("records")) == [("warning", "1 record could not be stored earlier on")]


# --- providers


@pytest.fixture
def add(do: Do, fake: FakeProvider, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def provider(name: str, key: str, kind: str = "openai", base_url: str = "") -> None:
        monkeypatch.setenv("A_KEY", key)
        do("providers", "add", name, "--type", kind, "--base-url", base_url or f"{fake.url}/v1", "--key-env", "A_KEY")

    return provider


def test_every_key_is_tried(examine: Examine, add: Callable[..., None], fake: FakeProvider, do: Do) -> None:
    controls = {
        "refused": "status=401",
        "limited": "status=429 retry-after=9",
        "down": "status=503",
        "odd": "status=404",
    }
    for name, control in controls.items():
        fake.script_key(f"sk-{name}-key-0123456789-abcd", control)
        add(name, f"sk-{name}-key-0123456789-abcd")
    add("off", "sk-off-key-0123456789-abcd")
    do("providers", "disable", "off")
    found = examine("providers")
    assert {text.partition(":")[0]: status for status, text in bad(found)} == {
        "refused": "wrong",
        "limited": "warning",
        "down": "wrong",
        "odd": "warning",
    }
    refused = next(one for one in found if one["text"].startswith("refused"))
    assert "key sk-r...abcd is refused: answered 401" in refused["text"]
    (key_id,) = [key["id"] for key in do("providers", "show", "refused", "--json").json["api_keys"]]
    assert refused["cure"] == f"ostiary providers edit refused --key-file FILE --remove-key {key_id}"
    assert "off: disabled, not called" in texts(found, "ok")
    assert not any("key-0123456789-abcd" in one["text"] + one["cure"] for one in found)


def test_a_provider_nobody_answers_for_and_one_that_cannot_be_served(
    examine: Examine, add: Callable[..., None], execute: Execute
) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        add("dead", "sk-dead-key-0123456789", base_url=f"http://127.0.0.1:{nobody.getsockname()[1]}/v1")
        add("broken", "sk-broken-key-0123456789")
        execute("UPDATE ai_providers SET base_url = 'nowhere' WHERE name = 'broken'")
        wrong = texts(examine("providers"), "wrong")
    assert "dead: key sk-d...6789 gets no answer: cannot connect" in wrong
    assert "broken: base_url must be" in wrong


def test_providers_without_keys_of_ours_and_none_at_all(examine: Examine, do: Do) -> None:
    assert bad(examine("providers")) == [("warning", "there are none")]
    do("providers", "add", "copilot", "--type", "copilot", "--base-url", "https://api.business.githubcopilot.com")
    assert "copilot: a provider of type copilot is not used with keys" in texts(examine("providers"), "unchecked")
    do("providers", "add", "empty", "--type", "openai", "--base-url", "http://127.0.0.1:1/v1", "--no-key")
    assert ("warning", "empty: no keys: only requests with a credential of their own are served") in bad(
        examine("providers")
    )


def test_a_gateway_that_does_not_pass_on_what_works_is_wrong(examine: Examine, add: Callable[..., None]) -> None:
    # a control plane alone: nothing serves the data plane
    add("good", "sk-good-key-0123456789")
    found = examine("providers", "traffic", arguments=("--call", "good/gpt-5", "--call", "nobody/x"))
    assert "good: 1 key works" in texts(found, "ok")
    wrong = texts(found, "wrong")
    assert "good: the list of models through the gateway answers 404" in wrong
    assert "good: a call of gpt-5 answers 404" in wrong
    assert "there is no provider nobody" in wrong


def test_a_call_names_provider_and_model(do: Do) -> None:
    for wrong in ("gpt-5", "/gpt-5", "openai/"):
        assert "PROVIDER/MODEL" in do("doctor", "--call", wrong, status=2).err


# --- gateways


def test_no_gateway_is_wrong_and_one_in_order_is_not(examine: Examine, plane: Plane) -> None:
    assert bad(examine("gateways")) == [("wrong", "no gateway reports to the server")]
    report(plane)
    found = examine("gateways", "records", status=0)
    assert not bad(found)
    assert "berlin (standalone): link up, 1 worker at revision 0" in texts(found, "ok")


def test_a_gateway_that_is_gone_matters_by_what_it_took_along(examine: Examine, execute: Execute, plane: Plane) -> None:
    report(plane, "here")
    report(plane, "empty-handed")
    report(plane, "loaded", journals=[{"journalId": new_id(), "appendedSeq": "12", "ackedSeq": "10"}])
    execute("UPDATE replicas SET last_seen = now() - interval '3 minutes' WHERE hostname <> 'here'")
    found = {text.partition(" ")[0]: (status, text) for status, text in bad(examine("gateways", "records"))}
    assert set(found) == {"empty-handed", "loaded"}
    assert found["empty-handed"] == ("warning", "empty-handed was heard of 3m ago, nothing of it is missing")
    assert found["loaded"] == (
        "wrong",
        "loaded was heard of 3m ago, with 12 records on its disk that the database has not",
    )


def test_what_a_gateway_appended_is_in_the_database_or_it_is_wrong(
    examine: Examine, execute: Execute, plane: Plane
) -> None:
    plane.record(start())
    journal = httpx.get(
        f"{plane.url}/api/v2/ai-gateway/journals", headers={"X-Ostiary-Gateway-Key": GATEWAY_KEY, **_OWNER}
    ).json()["journals"][0]["journal_id"]
    one = report(plane, journals=[{"journalId": journal, "appendedSeq": "1", "ackedSeq": "1"}])
    assert "all of 1 record that live gateways had told of" in texts(examine("records", status=0), "ok")
    report(plane, replicaId=one, journals=[{"journalId": journal, "appendedSeq": "4", "ackedSeq": "1"}])
    assert bad(examine("records")) == [("wrong", "3 records of berlin do not get into the database")]
    # as after a restore from a backup
    report(plane, replicaId=one, journals=[{"journalId": journal, "appendedSeq": "4", "ackedSeq": "4"}])
    assert bad(examine("records")) == [("wrong", "the database has 3 records less than it acknowledged to berlin")]


def test_a_gateway_is_given_time_to_catch_up(examine: Examine, plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []
    look = gateways.look

    def catching_up(client: Any) -> gateways.Fleet:
        looks.append(1)
        if len(looks) == 2:
            report(plane, replicaId=one)
        return look(client)

    one = report(plane, journals=[{"journalId": new_id(), "appendedSeq": "1", "ackedSeq": "0"}])
    monkeypatch.setattr(gateways, "look", catching_up)
    monkeypatch.setattr(gateways, "SETTLE_SECONDS", 25.0)
    began = time.monotonic()
    assert not bad(examine("gateways", "records", status=0))
    assert len(looks) == 2
    assert time.monotonic() - began < 20


def test_old_providers_no_workers_errors_and_versions(examine: Examine, plane: Plane, do: Do) -> None:
    do("providers", "add", "copilot", "--type", "copilot", "--base-url", "https://api.business.githubcopilot.com")
    report(plane, "old")
    report(plane, "idle", workers=[], revision="1", build="2.0", providerErrors={"copilot": "no room"})
    found = bad(examine("gateways"))
    assert ("wrong", "old serves the providers of revision 0, the newest is 1") in found
    assert ("wrong", "idle has no worker that serves") in found
    assert ("wrong", "idle cannot serve copilot: no room") in found
    assert ("warning", "gateways are of different versions: 1.0, 2.0") in found


def test_keys_and_breakers_that_let_not_everything_through(examine: Examine, plane: Plane) -> None:
    until = str(int(time.time()) + 90)
    key = {"provider": "pool", "keyId": new_id(), "hint": "sk-a...wxyz", "until": until}
    breaker = {"provider": "pool", "route": "/v1/messages", "model": "m", "until": until}
    report(
        plane,
        keys=[key | {"state": "suspect", "reason": "refused"}, key | {"state": "cooling", "reason": "quota"}],
        breakers=[breaker | {"state": "open"}, breaker | {"state": "half_open"}, breaker | {"state": "closed"}],
    )
    found = [(status, text.partition(" (next")[0]) for status, text in bad(examine("gateways"))]
    assert found == [
        ("wrong", "pool: key sk-a...wxyz is suspect on berlin: refused"),
        ("warning", "pool: key sk-a...wxyz is cooling on berlin: quota used up"),
        ("wrong", "pool /v1/messages m: the circuit breaker of berlin is open, its calls get 503"),
        ("warning", "pool /v1/messages m: the circuit breaker of berlin is half-open"),
    ]


# --- settings and report


def test_wrong_settings_warnings_and_dumps(examine: Examine, plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OSTIARY_DUMP_DIR", "/var/dumps")
    monkeypatch.setenv("OSTIARY_WROKERS", "2")
    found = bad(examine("settings"))
    assert ("warning", "dumps are on: prompts and answers stand in clear below /var/dumps") in found
    assert any(status == "warning" and "OSTIARY_WROKERS" in text for status, text in found)
    monkeypatch.setenv("OSTIARY_WORKERS", "many")
    assert any(status == "wrong" and "OSTIARY_WORKERS" in text for status, text in bad(examine("settings")))


def test_a_line_a_finding_with_its_cure_and_warnings_alone_end_with_0(do: Do, plane: Plane) -> None:
    report(plane)
    said = do("doctor").out.splitlines()
    assert said[0].split()[:2] == ["server", "ok"]
    assert said[-1].startswith(f"{plane.url}: nothing wrong, ")
    warnings = [line for line in said if " WARN " in line]
    assert warnings
    assert all(" -> " in line for line in warnings)
    assert all(" -> " in line for line in said if " WRONG " in line)


_OWNER = {"Authorization": "Bearer owner-token-of-the-command-tests-0123456789"}
