"""`/api/v2/users`: who may do what to whom, and that there is always an owner."""

import asyncio
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from ostiary.control import identity
from ostiary.control.api.errors import ApiError
from ostiary.control.audit import LOCAL
from ostiary.control.identity import Person
from ostiary.control.identity.users import UserChanges, delete_user, update_user
from tests.support.control_admin import Plane

USERS = "/api/v2/users"


def test_a_person_is_created_read_changed_suspended_and_deleted(on_plane: Any) -> None:
    async def body(plane: Plane) -> None:
        _, owner = await plane.user("root", "owner")
        made = await plane.call(owner, "POST", USERS, {"username": "Alice", "email": "alice@example.com"})
        assert made.status_code == 201
        alice = made.json()
        assert (alice["role"], alice["status"], alice["email"]) == ("member", "active", "alice@example.com")
        assert (await plane.call(owner, "GET", f"{USERS}/alice")).json() == alice
        assert (await plane.call(owner, "GET", f"{USERS}/{alice['id']}")).json() == alice
        changed = await plane.call(owner, "PATCH", f"{USERS}/alice", {"role": "auditor", "status": "suspended"})
        assert (changed.json()["role"], changed.json()["status"]) == ("auditor", "suspended")
        listed = (await plane.call(owner, "GET", USERS)).json()
        assert [user["username"] for user in listed] == ["root", "Alice"]
        assert (await plane.call(owner, "DELETE", f"{USERS}/ALICE")).status_code == 204
        assert (await plane.call(owner, "GET", f"{USERS}/alice")).status_code == 404
        assert (await plane.call(owner, "GET", f"{USERS}/{alice['id']}")).status_code == 404
        assert (await plane.call(owner, "POST", USERS, {"username": "alice"})).status_code == 201

    on_plane(body)


def test_suspending_and_deleting_close_the_door_at_once(on_plane: Any) -> None:
    async def body(plane: Plane) -> None:
        _, owner = await plane.user("root", "owner")
        _, alice = await plane.user("alice")
        assert (await plane.call(alice, "GET", f"{USERS}/me")).json()["username"] == "alice"
        await plane.call(owner, "PATCH", f"{USERS}/alice", {"status": "suspended"})
        assert (await plane.call(alice, "GET", f"{USERS}/me")).status_code == 401
        await plane.call(owner, "PATCH", f"{USERS}/alice", {"status": "active"})
        assert (await plane.call(alice, "GET", f"{USERS}/me")).status_code == 200
        await plane.call(owner, "DELETE", f"{USERS}/alice")
        assert (await plane.call(alice, "GET", f"{USERS}/me")).status_code == 401

    on_plane(body)


def test_a_bad_username_is_refused_with_what_is_allowed(on_plane: Any) -> None:
    async def body(plane: Plane) -> None:
        _, owner = await plane.user("root", "owner")
        for username in ("", "-a", "a-", "a b", "me", "Seed", "bootstrap", "x" * 65, "a\x00b", "ä", "a/b"):
            answer = await plane.call(owner, "POST", USERS, {"username": username})
            assert answer.status_code == 400, username
            [problem] = answer.json()["validations"]
            assert problem["field"] == "username"
            assert problem["detail"]

    on_plane(body)


def test_every_wrong_field_is_named(on_plane: Any) -> None:
    async def body(plane: Plane) -> None:
        _, owner = await plane.user("root", "owner")
        wrong = {"username": "0190a7d2-0000-7000-8000-000000000000", "email": "no", "role": "king"}
        answer = await plane.call(owner, "POST", USERS, {**wrong, "display_name": "a\x00"})
        assert answer.status_code == 400
        assert {problem["field"] for problem in answer.json()["validations"]} == {*wrong, "display_name"}
        assert "owner, admin, auditor, member" in answer.text
        unknown = await plane.call(owner, "POST", USERS, {"username": "a", "password": "p"})
        assert unknown.status_code == 400
        assert (await plane.call(owner, "PATCH", f"{USERS}/root", {})).status_code == 400
        assert (await plane.call(owner, "GET", f"{USERS}/a b")).status_code == 400

    on_plane(body)


def test_a_name_is_taken_without_regard_to_case_also_when_two_ask_at_once(on_plane: Any) -> None:
    async def body(plane: Plane) -> None:
        _, owner = await plane.user("root", "owner")
        names = ("alice", "Alice", "ALICE", "aLICE")
        answers = await asyncio.gather(*(plane.call(owner, "POST", USERS, {"username": name}) for name in names))
        assert sorted(answer.status_code for answer in answers) == [201, 409, 409, 409]

    on_plane(body)


ROLES = ("owner", "admin", "auditor", "member")


@pytest.mark.parametrize("caller", ROLES)
def test_who_may_manage_whom(on_plane: Any, caller: str) -> None:
    may = {"owner": set(ROLES), "admin": set(ROLES) - {"owner"}}.get(caller, set())

    async def body(plane: Plane) -> None:
        await plane.user("root", "owner")
        _, token = await plane.user("caller", caller)
        for role in ROLES:
            allowed = role in may
            made = await plane.call(token, "POST", USERS, {"username": f"new-{role}", "role": role})
            assert (made.status_code == 201) is allowed, role
            await plane.user(f"old-{role}", role)
            changed = await plane.call(token, "PATCH", f"{USERS}/old-{role}", {"display_name": "x"})
            assert changed.status_code == (200 if allowed else 403), role
            raised = await plane.call(token, "PATCH", f"{USERS}/old-{role}", {"role": "owner"})
            assert raised.status_code == (200 if caller == "owner" else 403), role
            for_delete = f"gone-{role}"
            await plane.user(for_delete, role)
            deleted = await plane.call(token, "DELETE", f"{USERS}/{for_delete}")
            assert deleted.status_code == (204 if allowed else 403), role
        itself = await plane.call(token, "PATCH", f"{USERS}/me", {"role": "owner"})
        assert itself.status_code == (200 if caller == "owner" else 403)

    on_plane(body)


def test_members_see_only_themselves_and_strangers_nothing(on_plane: Any) -> None:
    async def body(plane: Plane) -> None:
        alice, token = await plane.user("alice")
        await plane.user("bob")
        assert (await plane.call(token, "GET", USERS)).status_code == 403
        assert (await plane.call(token, "GET", f"{USERS}/bob")).status_code == 403
        assert (await plane.call(token, "GET", f"{USERS}/{alice.id}")).status_code == 200
        _, auditor = await plane.user("audit", "auditor")
        assert (await plane.call(auditor, "GET", f"{USERS}/bob")).status_code == 200
        for method, path in (("GET", USERS), ("POST", USERS), ("GET", f"{USERS}/me"), ("DELETE", f"{USERS}/bob")):
            assert (await plane.call(None, method, path)).status_code == 401
            assert (await plane.call(identity.new_token(), method, path)).status_code == 401

    on_plane(body)


@pytest.mark.parametrize(
    ("method", "change"), [("PATCH", {"role": "admin"}), ("PATCH", {"status": "suspended"}), ("DELETE", None)]
)
def test_the_last_active_owner_stays(on_plane: Any, method: str, change: Any) -> None:
    async def body(plane: Plane) -> None:
        _, owner = await plane.user("root", "owner")
        await plane.user("asleep", "owner")
        await plane.call(owner, "PATCH", f"{USERS}/asleep", {"status": "suspended"})
        refused = await plane.call(owner, method, f"{USERS}/root", change)
        assert refused.status_code == 409
        assert "last active owner" in refused.json()["message"]
        await plane.call(owner, "PATCH", f"{USERS}/asleep", {"status": "active"})
        assert (await plane.call(owner, method, f"{USERS}/root", change)).is_success

    on_plane(body)


def test_two_owners_cannot_remove_each_other_at_once(on_plane: Any) -> None:
    async def body(plane: Plane) -> None:
        for act in ("demote", "delete"):
            one, two = [await owner(plane, f"{act}-{number}") for number in (1, 2)]
            other = await owner(plane, f"{act}-3")
            async with plane.engine.connect() as first, plane.engine.connect() as second:
                await remove(first, one, two, act)
                await remove(first, one, other, act)
                racing = asyncio.create_task(remove(second, two, one, act))
                await until_a_lock_is_waited_for(plane)
                await first.commit()
                with pytest.raises(ApiError) as caught:
                    await racing
                assert caught.value.status == 409
            async with plane.engine.begin() as conn:
                await conn.execute(text("UPDATE users SET deleted = true"))

    async def owner(plane: Plane, name: str) -> Person:
        user, _ = await plane.user(name, "owner")
        return Person(user.id, name, "", "owner", "")

    async def remove(conn: AsyncConnection, caller: Person, target: Person, act: str) -> None:
        if act == "demote":
            await update_user(conn, caller, target.id, UserChanges(role="member"), LOCAL)
        else:
            await delete_user(conn, caller, target.id, LOCAL)

    async def until_a_lock_is_waited_for(plane: Plane) -> None:
        async with asyncio.timeout(30), plane.engine.connect() as conn:
            while not await conn.scalar(text("SELECT count(*) FROM pg_locks WHERE NOT granted")):
                await conn.rollback()

    on_plane(body)


def test_a_list_goes_on_behind_a_row(on_plane: Any) -> None:
    async def body(plane: Plane) -> None:
        _, owner = await plane.user("root", "owner")
        for number in range(4):
            await plane.user(f"user{number}")
        first = (await plane.call(owner, "GET", USERS, limit=2)).json()
        second = (await plane.call(owner, "GET", USERS, limit=2, after_id=first[-1]["id"])).json()
        assert [user["username"] for user in first + second] == ["root", "user0", "user1", "user2"]
        for wrong in ({"limit": 0}, {"limit": 1001}, {"after_id": "x"}):
            assert (await plane.call(owner, "GET", USERS, **wrong)).status_code == 400

    on_plane(body)


def test_every_act_is_audited_with_actor_and_origin(on_plane: Any) -> None:
    async def body(plane: Plane) -> None:
        root, owner = await plane.user("root", "owner")
        await plane.call(owner, "POST", USERS, {"username": "alice"})
        await plane.call(owner, "PATCH", f"{USERS}/alice", {"role": "auditor"})
        await plane.call(owner, "PATCH", f"{USERS}/alice", {"role": "auditor"})
        await plane.call(owner, "PATCH", f"{USERS}/alice", {"role": "king"})
        deleted = await plane.call(owner, "DELETE", f"{USERS}/alice")
        entries = await plane.audit()
        assert [entry["action"] for entry in entries] == ["create", "update", "delete"]
        assert {(entry["actor"], entry["actor_id"], entry["source_ip"]) for entry in entries} == {
            ("root", root.id, "127.0.0.1")
        }
        assert entries[2]["request_id"] == deleted.headers["x-ostiary-request-id"]
        assert (entries[1]["before"]["role"], entries[1]["after"]["role"]) == ("member", "auditor")
        assert entries[2]["after"] is None

    on_plane(body)
