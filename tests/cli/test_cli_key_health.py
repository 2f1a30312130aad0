"""What people see of keys and breakers: `providers keys`, `gateway status`."""

import time
from typing import Any

import httpx
import pytest
from command_plane import GATEWAY_KEY, Do, Plane

from ostiary.cli.key_health import until, why
from ostiary.cli.output import parse_time
from ostiary.core.ids import new_id
from ostiary.rpc import version

KEYS = {"FIRST": "sk-first-key-0123456789-aaaa", "SECOND": "sk-second-key-0123456789-bbbb"}
PATH = "/ostiary.v1.Fleet/ReportStatus"


@pytest.fixture
def ids(do: Do, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A provider `pool` with two keys: their ids."""
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    do("providers", "add", "pool", "--type", "openai", "--key-env", "FIRST", "--key-env", "SECOND")
    return [key["id"] for key in do("providers", "show", "pool", "--json").json["api_keys"]]


def report(plane: Plane, host: str, *keys: dict[str, Any], **fields: Any) -> None:
    status = {"replicaId": new_id(), "hostname": host, "build": "1.2.3", "mode": "standalone", "keys": keys}
    headers = {version.HEADER_GATEWAY_KEY: GATEWAY_KEY, version.HEADER_API_VERSION: version.CURRENT}
    httpx.post(plane.url + PATH, json=status | fields, headers=headers).raise_for_status()


def key(key_id: str, state: str = "usable", reason: str = "", lasts: int = 0, **fields: Any) -> dict[str, Any]:
    now = int(time.time())
    until = {"until": str(now + lasts)} if lasts else {}
    about = {"provider": "pool", "keyId": key_id, "hint": "sk-f...aaaa", "since": str(now - 90)}
    return about | {"state": state, "reason": reason} | until | fields


def lines(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def test_gateways_that_agree_have_one_line_a_key(do: Do, plane: Plane, ids: list[str]) -> None:
    for host, lasts in (("berlin", 100), ("paris", 3700)):
        report(plane, host, key(ids[0], "cooling", "rate_limited", lasts, model="gpt-5"), key(ids[1]))
    said = do("providers", "keys", "pool").out
    assert lines(said) == [
        ["#", "KEY", "STATE", "WHY", "UNTIL", "SINCE", "ID"],
        ["1", "sk-f...aaaa", "cooling", "rate", "limited", "for", "gpt-5", "in", "1h", "1m", "ago", ids[0]],
        ["2", "sk-s...bbbb", "usable", "1m", "ago", ids[1]],
    ]
    assert not any(value in said for value in KEYS.values())


def test_gateways_that_disagree_have_a_line_each(do: Do, plane: Plane, ids: list[str]) -> None:
    report(plane, "berlin", key(ids[0], "suspect", "refused", 230, strikes=3), key(ids[1]))
    report(plane, "paris", key(ids[0]), key(ids[1]))
    rows = do("providers", "keys", "pool").out.splitlines()
    assert rows[0].split() == ["#", "KEY", "STATE", "WHY", "UNTIL", "SINCE", "HOST", "ID"]
    assert "suspect  refused 3 times  in 3m" in rows[1]
    assert rows[1].endswith(f"berlin  {ids[0]}")
    assert rows[2].endswith(f"paris   {ids[0]}")
    assert len(rows) == 4


def test_a_key_that_nobody_has_told_of_is_unknown_and_a_provider_without_keys_says_so(
    do: Do, plane: Plane, ids: list[str]
) -> None:
    assert do("providers", "keys", "pool").out.count("no live gateway has told of it") == 2
    do("providers", "disable", "pool")
    assert "pool is disabled: no gateway has its keys" in do("providers", "keys", "pool").err
    do("providers", "add", "bare", "--type", "openai", "--no-key")
    assert "bare has no keys" in do("providers", "keys", "bare").err
    assert "AI provider not found" in do("providers", "keys", "none", status=1).err


def test_the_timeline_tells_what_has_become_of_each_key(do: Do, plane: Plane, ids: list[str]) -> None:
    change = {"state": "suspect", "reason": "refused", "strikes": 1}
    history = [
        {"at": "1800000000", "until": "1800000060", **change},
        {"at": "1800000060", "until": "1800000180", **change, "strikes": 2},
        {"at": "1800000180", "state": "usable", "reason": "recovered"},
    ]
    report(plane, "berlin", key(ids[0], reason="recovered", timeline=history), key(ids[1]))
    said = do("providers", "keys", "pool", "--timeline")
    told = [line.split()[2:] for line in said.out.splitlines()[6:]]
    assert [row[:-2] for row in told[:2]] == [["suspect", "refused"], ["suspect", "refused", "2", "times"]]
    assert told[2] == ["usable", "recovered"]
    assert said.out.count("nothing has happened to it") == 1
    report(plane, "paris", key(ids[0], timeline=history[:1]), key(ids[1]))
    several = do("providers", "keys", "pool", "--timeline").out
    assert several.count("berlin") == 4, "one line now, three changes"
    as_json = do("providers", "keys", "pool", "--json").json
    assert [len(one["timeline"]) for one in as_json["keys"][0]["replicas"]] == [3, 1]


def test_the_status_of_gateways_names_keys_and_breakers_that_hold_something_back(
    do: Do, plane: Plane, ids: list[str]
) -> None:
    report(plane, "paris", key(ids[0]), key(ids[1]))
    assert "WHAT" not in do("gateway", "status").out
    now = int(time.time())
    breaker = {"provider": "pool", "route": "/v1/responses", "model": "gpt-5\u001b[2J"}
    report(
        plane,
        "berlin",
        key(ids[0], "cooling", "quota", 100),
        key(ids[1]),
        breakers=[
            breaker | {"state": "open", "until": str(now + 25)},
            breaker | {"route": "/v1/chat/completions", "state": "half_open"},
            breaker | {"route": "/v1/embeddings", "state": "closed"},
        ],
    )
    said = do("gateway", "status").out
    ailing = said[said.index("WHAT") :]
    assert "key sk-f...aaaa" in ailing
    assert "quota used up" in ailing
    assert ailing.count("berlin") == 3
    assert "half-open" in ailing
    assert "embeddings" not in said
    assert "\x1b" not in said


def view(**fields: Any) -> dict[str, Any]:
    return {"state": "usable", "reason": "", "model": "", "strikes": 0, "until": None, "cooling": []} | fields


def test_states_in_words() -> None:
    now = parse_time("2026-11-01T00:00:00Z")
    limited = {"state": "cooling", "reason": "rate_limited", "model": "a"}
    assert why(view(**limited)) == "rate limited for a"
    assert why(view(**limited, cooling=[{"model": model} for model in "abc"])) == "rate limited for a and 2 more"
    assert why(view(state="suspect", reason="refused", strikes=1)) == "refused"
    assert why(view(state="suspect", reason="a word of a newer version")) == "a word of a newer version"
    assert until(view(), now) == ""
    assert until(view(state="cooling", until="2026-11-01T00:00:42Z"), now) == "in 42s"
    assert until(view(state="suspect", until="2026-10-31T23:59:59Z"), now) == "next request"
