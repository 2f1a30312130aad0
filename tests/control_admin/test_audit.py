"""The audit log: masked, complete with its change, readable by owners and auditors."""

from dataclasses import dataclass
from typing import Any

import pytest

from ostiary.control import audit
from ostiary.core.secret import Secret
from tests.support.control_admin import Plane

AUDIT = "/api/v2/audit"


@dataclass
class Thing:
    name: str
    key: Secret


def test_secrets_are_masked_wherever_they_stand() -> None:
    key = Secret("sk-0123456789abcdefghij")
    assert audit.plain({"a": [key, {"b": Thing("x", key)}], "n": None, "t": True}) == {
        "a": ["sk-0...ghij", {"b": {"name": "x", "key": "sk-0...ghij"}}],
        "n": None,
        "t": True,
    }


@pytest.mark.parametrize("value", [b"raw", object(), {"a": {1, 2}}, Secret])
def test_what_is_not_plain_data_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match="an audit entry cannot hold"):
        audit.plain(value)


def test_an_entry_goes_with_its_change(on_plane: Any) -> None:
    async def body(plane: Plane) -> None:
        async with plane.engine.connect() as conn:
            await audit.record(conn, audit.SEED, "create", audit.Resource("user", "1"))
            await conn.rollback()
        assert await plane.audit() == []

    on_plane(body)


def test_entries_are_read_newest_first_in_pages_and_by_filter(on_plane: Any) -> None:
    async def body(plane: Plane) -> None:
        _, auditor = await plane.user("eve", "auditor")
        _, owner = await plane.user("root", "owner")
        async with plane.engine.begin() as conn:
            for number in range(5):
                actor = audit.Actor(None, "even" if number % 2 == 0 else "odd")
                after = {"number": number}
                await audit.record(conn, actor, "create", audit.Resource("token", str(number), "t"), after=after)
        page = (await plane.call(auditor, "GET", AUDIT, limit=2)).json()
        assert page["count"] == 5
        assert [entry["after"]["number"] for entry in page["results"]] == [4, 3]
        rest = (await plane.call(owner, "GET", AUDIT, after_id=page["results"][-1]["id"])).json()
        assert (rest["count"], [entry["resource_id"] for entry in rest["results"]]) == (5, ["2", "1", "0"])
        for query, expected in (
            ({"actor": "odd"}, ["3", "1"]),
            ({"resource": "2"}, ["2"]),
            ({"resource": "t", "actor": "even"}, ["4", "2", "0"]),
            ({"action": "delete"}, []),
            ({"resource_type": "token", "limit": 1}, ["4"]),
        ):
            found = (await plane.call(auditor, "GET", AUDIT, **query)).json()
            assert [entry["resource_id"] for entry in found["results"]] == expected, query
        for wrong in ({"limit": 0}, {"limit": 1001}, {"after_id": "x"}, {"actor": "a\x00"}):
            assert (await plane.call(auditor, "GET", AUDIT, **wrong)).status_code == 400, wrong

    on_plane(body)


@pytest.mark.parametrize(("role", "status"), [("owner", 200), ("auditor", 200), ("admin", 403), ("member", 403)])
def test_only_owners_and_auditors_read_it(on_plane: Any, role: str, status: int) -> None:
    async def body(plane: Plane) -> None:
        _, token = await plane.user("caller", role)
        assert (await plane.call(token, "GET", AUDIT)).status_code == status
        assert (await plane.call(None, "GET", AUDIT)).status_code == 401

    on_plane(body)
