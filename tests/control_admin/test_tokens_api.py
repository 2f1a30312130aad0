"""`/api/v2/tokens`: shown once, kept as a hash, and no way up from one role to another."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select, text

from ostiary.control import identity
from ostiary.control.api.errors import ApiError
from ostiary.control.identity import tokens as token_rows
from ostiary.control.identity.tokens import expiry
from ostiary.control.store.tables import tokens
from ostiary.core.secret import Secret
from tests.support.control_admin import Plane

TOKENS = "/api/v2/tokens"
NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)


def test_a_token_is_told_once_and_never_again(on_plane: Any) -> None:
    async def body(plane: Plane) -> None:
        alice, session = await plane.user("alice")
        made = await plane.call(session, "POST", TOKENS, {"name": "laptop"})
        assert made.status_code == 201
        token = made.json()
        secret = Secret(token["token"])
        assert token["token"].startswith(token["prefix"])
        assert (token["user_id"], token["username"], token["kind"]) == (alice.id, "alice", "user")
        assert token["expires_at"] is None
        assert (await plane.call(secret, "GET", "/api/v2/users/me")).json()["username"] == "alice"
        listed = await plane.call(secret, "GET", TOKENS)
        assert {entry["name"] for entry in listed.json()} == {"laptop", "test"}
        assert secret.reveal() not in listed.text
        assert "sha256" not in listed.text
        async with plane.engine.connect() as conn:
            assert await conn.scalar(select(tokens.c.token_sha256).where(tokens.c.id == token["id"])) == (
                identity.token_sha256(secret)
            )
            for table in ("tokens", "audit_log"):
                dump = "\n".join((await conn.execute(text(f"SELECT {table}::text FROM {table}"))).scalars().all())
                assert secret.reveal() not in dump

    on_plane(body)


def test_a_revoked_token_is_refused_at_once(on_plane: Any) -> None:
    async def body(plane: Plane) -> None:
        _, session = await plane.user("alice")
        token = (await plane.call(session, "POST", TOKENS, {"name": "laptop"})).json()
        assert (await plane.call(session, "DELETE", f"{TOKENS}/{token['id']}")).status_code == 204
        assert (await plane.call(Secret(token["token"]), "GET", TOKENS)).status_code == 401
        assert [entry["name"] for entry in (await plane.call(session, "GET", TOKENS)).json()] == ["test"]
        everything = (await plane.call(session, "GET", TOKENS, revoked=True)).json()
        assert everything[0]["revoked_at"] is not None
        # once more changes nothing
        assert (await plane.call(session, "DELETE", f"{TOKENS}/{token['id']}")).status_code == 204
        assert [entry["action"] for entry in await plane.audit()] == ["create", "revoke"]

    on_plane(body)


def test_a_token_with_a_lifetime_ends(on_plane: Any) -> None:
    async def body(plane: Plane) -> None:
        _, session = await plane.user("alice")
        token = (await plane.call(session, "POST", TOKENS, {"name": "short", "lifetime": "1h"})).json()
        left = datetime.fromisoformat(token["expires_at"]) - datetime.now(UTC)
        assert timedelta(minutes=59) < left <= timedelta(hours=1)
        async with plane.engine.begin() as conn:
            await conn.execute(text("UPDATE tokens SET expires_at = now() - interval '1 second' WHERE name = 'short'"))
        assert (await plane.call(Secret(token["token"]), "GET", TOKENS)).status_code == 401

    on_plane(body)


@pytest.mark.parametrize(
    ("lifetime", "seconds"),
    [("90", 90), (90, 90), ("90s", 90), ("2m", 120), ("3h", 10800), ("1d", 86400), ("1w", 604800)],
)
def test_lifetimes(lifetime: Any, seconds: int) -> None:
    assert expiry(lifetime, None, NOW) == NOW + timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("lifetime", "expires_at", "field"),
    [
        ("0", None, "lifetime"),
        ("-5", None, "lifetime"),
        ("5 days", None, "lifetime"),
        ("1y", None, "lifetime"),
        ("9999999999w", None, "lifetime"),
        ("", None, "lifetime"),
        ("1d", NOW, "lifetime"),
        (None, NOW, "expires_at"),
        (None, datetime(2030, 1, 1), "expires_at"),
        (None, datetime(9999, 1, 1, tzinfo=UTC), "expires_at"),
    ],
)
def test_wrong_ends_name_the_field(lifetime: Any, expires_at: Any, field: str) -> None:
    with pytest.raises(ApiError) as caught:
        expiry(lifetime, expires_at, NOW)
    [problem] = caught.value.body.validations
    assert problem.field == field


ROLES = ("owner", "admin", "auditor", "member")


@pytest.mark.parametrize("caller", ROLES)
def test_nobody_gets_a_token_of_someone_above_them(on_plane: Any, caller: str) -> None:
    may = {"owner": set(ROLES), "admin": set(ROLES) - {"owner"}}.get(caller, set())

    async def body(plane: Plane) -> None:
        _, session = await plane.user("caller", caller)
        for role in ROLES:
            _, theirs = await plane.user(f"a-{role}", role)
            made = await plane.call(session, "POST", TOKENS, {"name": "x", "user": f"a-{role}"})
            assert made.status_code == (201 if role in may else 403), role
            [held] = (await plane.call(theirs, "GET", TOKENS, limit=1)).json()
            revoked = await plane.call(session, "DELETE", f"{TOKENS}/{held['id']}")
            # what one may not manage does not exist
            assert revoked.status_code == (204 if role in may else 404), role
        others = await plane.call(session, "GET", TOKENS, user="all")
        assert others.status_code == (200 if caller != "member" else 403)
        assert (await plane.call(session, "POST", TOKENS, {"name": "own"})).status_code == 201

    on_plane(body)


def test_wrong_requests_name_the_field(on_plane: Any) -> None:
    async def body(plane: Plane) -> None:
        _, session = await plane.user("root", "owner")
        await plane.user("bob")
        await plane.call(session, "PATCH", "/api/v2/users/bob", {"status": "suspended"})
        for request, status, field in (
            ({}, 400, "name"),
            ({"name": ""}, 400, "name"),
            ({"name": " x"}, 400, "name"),
            ({"name": "x" * 65}, 400, "name"),
            ({"name": "a\x00"}, 400, "name"),
            ({"name": "x", "lifetime": [1]}, 400, "lifetime"),
            ({"name": "x", "scope": "all"}, 400, "scope"),
            ({"name": "x", "user": "nobody"}, 404, None),
            ({"name": "x", "user": "bob"}, 409, None),
        ):
            answer = await plane.call(session, "POST", TOKENS, request)
            assert answer.status_code == status, request
            fields = [problem["field"] for problem in answer.json()["validations"]]
            assert field is None or any(named.startswith(field) for named in fields), request
        assert (await plane.call(session, "DELETE", f"{TOKENS}/x")).status_code == 400

    on_plane(body)


def test_a_person_has_a_bounded_number_of_tokens(on_plane: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_rows, "MAX_TOKENS", 3)

    async def body(plane: Plane) -> None:
        _, session = await plane.user("alice")
        statuses = [(await plane.call(session, "POST", TOKENS, {"name": "x"})).status_code for _ in range(3)]
        assert statuses == [201, 201, 409]

    on_plane(body)
