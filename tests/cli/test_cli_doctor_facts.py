"""Checks of `ostiary doctor` on facts alone, and how it runs them; what cannot be brought about on a shared machine."""

import io
import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from ostiary.cli.doctor import report, server
from ostiary.cli.doctor.examination import Check, examine
from ostiary.cli.doctor.findings import Finding, Group, Status, size
from ostiary.cli.doctor.providers import keys, request_of
from ostiary.cli.failure import Failure

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
SERVER: dict[str, Any] = {"embedded_database": False, "listening": True, "data_dir": "/d", "disk_free_bytes": 1 << 40}
DATABASE: dict[str, Any] = {
    "version": "16.2",
    "size_bytes": 10,
    "migration": "0004",
    "newest_migration": "0004",
    "migration_state": "current",
    "connections": 20,
    "max_connections": 100,
    "rpc_role": True,
}


def statuses(findings: Any) -> list[str]:
    return [finding.status.value for finding in findings]


@pytest.mark.parametrize(
    ("off", "status"),
    [(0, "ok"), (1.5, "ok"), (-1.5, "ok"), (3, "warning"), (-3, "warning"), (61, "wrong"), (-3600, "wrong")],
)
def test_a_clock_is_off_by_what_the_question_does_not_explain(off: float, status: str) -> None:
    told = NOW + timedelta(seconds=off)
    # asked for five seconds: an answer from within them says nothing against the clock
    sent, received = NOW - timedelta(seconds=2.5), NOW + timedelta(seconds=2.5)
    assert statuses(server.server_clock({"now": NOW.isoformat()}, sent, received)) == ["ok"]
    assert statuses(server.server_clock({"now": told.isoformat()}, NOW, NOW)) == [status]
    fact = {"ahead_ms": int(off * 1000), "clock_error_ms": 1}
    assert statuses(server.database_clock(fact)) == [status]
    assert statuses(server.database_clock(fact | {"clock_error_ms": 10**7})) == ["ok"]


def test_clocks_of_gateways_elsewhere_are_compared_where_they_tell() -> None:
    def told(**said: Any) -> list[Finding]:
        replica = {"hostname": "berlin", "mode": "standalone", "state": "live", "clock_ahead_ms": 0} | said
        return list(server.gateway_clocks([replica]))

    assert statuses(told()) == ["ok"]
    (late,) = told(clock_ahead_ms=-3500)
    assert (late.status, late.text) == (Status.WARNING, "the clock of berlin is 3.5 s behind the control plane's")
    (wrong,) = told(clock_ahead_ms=180_000)
    assert (wrong.status, wrong.text) == (Status.WRONG, "the clock of berlin is 3 minutes ahead of the control plane's")
    assert "NTP" in wrong.cure
    for said in ({"clock_ahead_ms": None}, {"state": "stale", "clock_ahead_ms": 9999}, {"mode": "embedded"}):
        assert told(**said) == []


def test_connections_that_run_out_are_a_warning() -> None:
    assert statuses(server.database(DATABASE, SERVER)) == ["ok", "ok"]
    assert statuses(server.database(DATABASE | {"connections": 90}, SERVER)) == ["ok", "ok", "warning"]


def test_a_full_disk_and_a_low_limit_are_wrong() -> None:
    assert statuses(server.server_room(SERVER | {"open_files_limit": None})) == ["ok"]
    assert statuses(server.server_room(SERVER | {"open_files_limit": 512})) == ["wrong", "ok"]
    full = SERVER | {"open_files_limit": 65536, "disk_free_bytes": 1000}
    assert statuses(server.server_room(full)) == ["wrong"]


def test_another_version_is_a_warning() -> None:
    assert statuses(server.versions({"build": "1.2"}, "1.2")) == ["ok"]
    assert statuses(server.versions({"build": "1.3"}, "1.2")) == ["warning"]


def test_secrets_under_an_old_key_are_a_warning() -> None:
    current = {"key_id": "new", "sealing": True, "available": True, "values": 0}
    old = {"key_id": "old", "sealing": False, "available": True, "values": 2}
    (found,) = server.vault_keys([current, old])
    assert (found.status, found.cure) == (Status.WARNING, "ostiary vault rotate")
    assert statuses(server.vault_keys([current, old | {"values": 0}])) == ["ok"]


def test_a_trial_that_calls_nothing_is_said_and_not_counted_as_good() -> None:
    assert statuses(keys("aws", {"keys": [], "notes": ["requests are signed"], "called": ""})) == ["unchecked"]


def test_the_smallest_call_of_each_type() -> None:
    assert request_of("anthropic", "m")[0] == request_of("bedrock", "m")[0] == "/v1/messages"
    assert request_of("openai", "m")[1]["max_completion_tokens"] == 16
    path, body = request_of("openai-compat", "m")
    assert (path, body["model"], body["max_tokens"]) == ("/v1/chat/completions", "m", 16)


def test_checks_run_side_by_side_and_stand_in_order() -> None:
    together = threading.Barrier(3)

    def check(group: str) -> list[Finding]:
        together.wait(10)
        return [Group(group).ok(group)]

    groups = ("machine", "database", "server")
    checks = [Check(group, group, lambda group=group: check(group)) for group in groups]  # type: ignore[misc]
    found = examine(checks, time.monotonic() + 20, lambda _text: None)
    assert [finding.text for finding in found] == ["server", "database", "machine"]


def test_a_check_that_takes_too_long_is_left_behind() -> None:
    never, said = threading.Event(), list[str]()
    stuck = Check("database", "the stuck one", lambda: [Group("database").ok(str(never.wait()))])
    quick = Check("server", "the quick one", lambda: [Group("server").ok("quick")])
    found = examine([stuck, quick], time.monotonic() + 2.5, said.append)
    assert [(one.status, one.text) for one in found] == [
        (Status.OK, "quick"),
        (Status.UNCHECKED, "the stuck one: not done in time"),
    ]
    assert "waiting for the stuck one" in said[-1]
    never.set()


@pytest.mark.parametrize("error", [Failure("the server says no"), KeyError("field"), RuntimeError("bug")])
def test_a_check_that_fails_is_not_the_end(error: Exception) -> None:
    def check() -> list[Finding]:
        raise error

    (found,) = examine([Check("database", "it", check)], time.monotonic() + 5, lambda _text: None)
    assert found.status is Status.UNCHECKED
    assert found.text.startswith("it: ")


def test_what_is_not_in_order_is_counted() -> None:
    group = Group("server")
    found = [group.ok("a"), group.warning("b", "c"), group.unchecked("d")]
    assert report.summary(found) == "nothing wrong, 1 warning, 1 not checked (??), 1 ok"
    assert report.summary([*found, group.wrong("e", "f")]).startswith("1 wrong, ")


def test_progress_is_for_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for stream, shown in ((io.StringIO(), ""), (Terminal(), "\r\x1b[2Kone\r\x1b[2K")):
        monkeypatch.setattr("sys.stderr", stream)
        report.progress("one")
        report.progress("")
        assert stream.getvalue() == shown


def test_sizes() -> None:
    assert [size(count) for count in (12, 2048, 5 << 30, 3 << 40)] == ["12 bytes", "2 KiB", "5 GiB", "3.0 TiB"]
