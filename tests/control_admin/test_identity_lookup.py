"""Who a token is: one indexed query, and a refusal for each reason."""

import hashlib
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import event, func, select, update

from ostiary.control import identity
from ostiary.control.store.tables import tokens, users
from ostiary.core.identity import Identity, Refusal
from ostiary.core.secret import Secret
from tests.support.control_admin import Plane


def test_a_good_token_gives_its_person_by_hash_and_by_id(on_plane: Any) -> None:
    async def body(plane: Plane) -> None:
        user, token = await plane.user("alice", "auditor")
        async with plane.engine.connect() as conn:
            by_hash = await identity.lookup(conn, token_sha256=hashlib.sha256(token.reveal().encode()).digest())
            assert isinstance(by_hash, Identity)
            assert (by_hash.owner_id, by_hash.username, by_hash.role) == (user.id, "alice", "auditor")
            assert by_hash.expires_at == 0
            assert await identity.lookup(conn, key_id=by_hash.api_key_id) == by_hash

    on_plane(body)


@pytest.mark.parametrize(
    ("table", "change", "refusal"),
    [
        (tokens, {"revoked_at": func.now()}, Refusal.REVOKED),
        (tokens, {"expires_at": func.now() - timedelta(seconds=1)}, Refusal.EXPIRED),
        (users, {"deleted": True}, Refusal.DELETED),
        (users, {"status": "suspended"}, Refusal.SUSPENDED),
    ],
)
def test_each_reason_has_its_refusal(on_plane: Any, table: Any, change: Any, refusal: Refusal) -> None:
    async def body(plane: Plane) -> None:
        _, token = await plane.user("alice")
        async with plane.engine.begin() as conn:
            await conn.execute(update(table).values(change))
        async with plane.engine.connect() as conn:
            key_id = await conn.scalar(select(tokens.c.id))
            assert await identity.lookup(conn, token_sha256=identity.token_sha256(token)) is refusal
            assert await identity.lookup(conn, key_id=key_id) is refusal
            assert await identity.authenticate(conn, token) is None

    on_plane(body)


def test_what_is_no_token_is_unknown(on_plane: Any) -> None:
    async def body(plane: Plane) -> None:
        await plane.user("alice")
        async with plane.engine.connect() as conn:
            for wrong in ("", "ost_", "' OR 1=1 --", "x" * 10000, "\x00"):
                assert await identity.lookup(conn, token_sha256=wrong.encode()) is Refusal.UNKNOWN
                assert await identity.lookup(conn, key_id=wrong) is Refusal.UNKNOWN
                assert await identity.authenticate(conn, Secret(wrong)) is None

    on_plane(body)


def test_an_expiry_is_told_so_that_gateways_check_it_themselves(on_plane: Any) -> None:
    async def body(plane: Plane) -> None:
        _, token = await plane.user("alice")
        end = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=1)
        async with plane.engine.begin() as conn:
            await conn.execute(update(tokens).values(expires_at=end))
            found = await identity.lookup(conn, token_sha256=identity.token_sha256(token))
        assert isinstance(found, Identity)
        assert found.expires_at == int(end.timestamp())

    on_plane(body)


def test_a_lookup_is_one_statement_that_holds_no_token(on_plane: Any) -> None:
    statements: list[tuple[str, Any]] = []

    async def body(plane: Plane) -> None:
        _, token = await plane.user("alice")

        def note(_conn: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
            statements.append((statement, parameters))

        event.listen(plane.engine.sync_engine, "before_cursor_execute", note)
        async with plane.engine.connect() as conn:
            await identity.authenticate(conn, token)
        [(statement, parameters)] = statements
        assert token.reveal() not in statement
        assert token.reveal() not in repr(parameters)

    on_plane(body)


def test_tokens_are_long_random_and_easy_to_select() -> None:
    made = {identity.new_token().reveal() for _ in range(200)}
    assert len(made) == 200
    assert all(len(token) == 47 and token.startswith("ost_") and token[4:].isalnum() for token in made)
