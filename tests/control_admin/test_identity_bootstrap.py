"""The first owner, its token, and OSTIARY_BOOTSTRAP_TOKEN."""

import asyncio
import stat
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text, update

from ostiary.control import identity
from ostiary.control.identity import BootstrapError, Person
from ostiary.control.store.tables import users
from ostiary.core.identity import Identity
from ostiary.core.messages import Note
from ostiary.core.secret import Secret
from tests.support.control_admin import Plane

GIVEN = Secret("a bootstrap token of any text, at least 32 long")


async def whose(plane: Plane, token: Secret) -> Person | None:
    async with plane.engine.connect() as conn:
        return await identity.authenticate(conn, token)


def owner_token(plane: Plane) -> Secret:
    return Secret((Path(plane.settings.data_dir) / "owner-token").read_text().strip())


def test_first_start_makes_the_owner_and_hands_its_token_out_once(on_plane: Any) -> None:
    async def body(plane: Plane) -> None:
        notes = await identity.bootstrap(plane.engine, plane.settings)
        file = Path(plane.settings.data_dir) / "owner-token"
        token = owner_token(plane)
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        person = await whose(plane, token)
        assert person is not None
        assert (person.username, person.role) == ("admin", "owner")
        told, shown = notes
        assert str(file) in told.message
        assert not told.only_terminal
        assert token.reveal() not in told.message
        assert shown.only_terminal
        assert token.reveal() in shown.message
        assert await identity.bootstrap(plane.engine, plane.settings) == []
        assert owner_token(plane) == token
        assert [(entry["action"], entry["resource_type"], entry["actor"]) for entry in await plane.audit()] == [
            ("create", "user", "bootstrap"),
            ("create", "token", "bootstrap"),
        ]

    on_plane(body)


def test_a_given_token_is_neither_told_nor_written(on_plane: Any) -> None:
    async def body(plane: Plane) -> None:
        assert await identity.bootstrap(plane.engine, plane.with_settings(bootstrap_token=GIVEN)) == []
        assert not (Path(plane.settings.data_dir) / "owner-token").exists()
        person = await whose(plane, GIVEN)
        assert person is not None
        assert person.username == "admin"
        async with plane.engine.connect() as conn:
            for table in ("users", "tokens", "audit_log"):
                dump = "\n".join((await conn.execute(text(f"SELECT {table}::text FROM {table}"))).scalars().all())
                assert GIVEN.reveal()[:8] not in dump

    on_plane(body)


def test_a_given_token_replaces_the_earlier_one_at_every_start(on_plane: Any) -> None:
    other = Secret("x" * 32)

    async def body(plane: Plane) -> None:
        await identity.bootstrap(plane.engine, plane.settings)
        made = owner_token(plane)
        await identity.bootstrap(plane.engine, plane.with_settings(bootstrap_token=GIVEN))
        assert await whose(plane, made) is None
        assert not (Path(plane.settings.data_dir) / "owner-token").exists()
        await identity.bootstrap(plane.engine, plane.with_settings(bootstrap_token=other))
        assert await whose(plane, GIVEN) is None
        assert await whose(plane, other) is not None
        # back to one that was replaced
        await identity.bootstrap(plane.engine, plane.with_settings(bootstrap_token=GIVEN))
        assert await whose(plane, GIVEN) is not None
        assert await whose(plane, other) is None
        entries = len(await plane.audit())
        await identity.bootstrap(plane.engine, plane.with_settings(bootstrap_token=GIVEN))
        assert len(await plane.audit()) == entries

    on_plane(body)


def test_a_token_revoked_by_hand_is_valid_again_after_the_next_start(on_plane: Any) -> None:
    async def body(plane: Plane) -> None:
        given = plane.with_settings(bootstrap_token=GIVEN)
        await identity.bootstrap(plane.engine, given)
        [token] = (await plane.call(GIVEN, "GET", "/api/v2/tokens")).json()
        assert (await plane.call(GIVEN, "DELETE", f"/api/v2/tokens/{token['id']}")).status_code == 204
        assert await whose(plane, GIVEN) is None
        await identity.bootstrap(plane.engine, given)
        assert await whose(plane, GIVEN) is not None

    on_plane(body)


def test_a_short_or_unsendable_token_stops_the_start_without_being_quoted(on_plane: Any) -> None:
    async def body(plane: Plane) -> None:
        for wrong in ("short", "x" * 31, "é" * 31, " " + "x" * 31, "x" * 40 + "\n" + "y"):
            with pytest.raises(BootstrapError, match="OSTIARY_BOOTSTRAP_TOKEN") as caught:
                await identity.bootstrap(plane.engine, plane.with_settings(bootstrap_token=Secret(wrong)))
            assert wrong not in str(caught.value)
        assert await plane.audit() == []

    on_plane(body)


def test_any_text_opens_the_door_as_a_client_would_send_it(on_plane: Any) -> None:
    given = Secret("pässwörter sind auch ein Token, 漢字 auch")

    async def body(plane: Plane) -> None:
        await identity.bootstrap(plane.engine, plane.with_settings(bootstrap_token=given))
        # a header parser gives one character a byte
        assert await whose(plane, Secret(given.reveal().encode().decode("latin-1"))) is not None
        async with plane.engine.connect() as conn:
            found = await identity.lookup(conn, token_sha256=identity.token_sha256(given))
        assert isinstance(found, Identity)

    on_plane(body)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"deleted": True}, "was deleted. Unset it."),
        ({"status": "suspended"}, "is suspended. Unset it, or let an owner activate the user."),
    ],
)
def test_a_deleted_or_suspended_admin_stays_so_and_it_is_said(on_plane: Any, change: Any, reason: str) -> None:
    async def body(plane: Plane) -> None:
        await identity.bootstrap(plane.engine, plane.settings)
        async with plane.engine.begin() as conn:
            await conn.execute(update(users).values(change))
        [note] = await identity.bootstrap(plane.engine, plane.with_settings(bootstrap_token=GIVEN))
        assert isinstance(note, Note)
        assert reason in note.message
        assert GIVEN.reveal() not in note.message
        assert await whose(plane, GIVEN) is None
        assert await identity.bootstrap(plane.engine, plane.settings) == []

    on_plane(body)


def test_another_persons_token_is_not_taken_over(on_plane: Any) -> None:
    async def body(plane: Plane) -> None:
        await identity.bootstrap(plane.engine, plane.settings)
        _, token = await plane.user("alice")
        with pytest.raises(BootstrapError, match="already a token of 'alice'"):
            await identity.bootstrap(plane.engine, plane.with_settings(bootstrap_token=token))

    on_plane(body)


def test_two_control_planes_starting_at_once_make_one_owner(on_plane: Any, tmp_path: Path) -> None:
    async def body(plane: Plane) -> None:
        directories = [tmp_path / "one", tmp_path / "two"]
        for directory in directories:
            directory.mkdir()
        planes = [plane.with_settings(data_dir=str(directory)) for directory in directories]
        notes = await asyncio.gather(*(identity.bootstrap(plane.engine, settings) for settings in planes))
        assert sorted(map(len, notes)) == [0, 2]
        assert sum((directory / "owner-token").exists() for directory in directories) == 1
        async with plane.engine.connect() as conn:
            assert await conn.scalar(text("SELECT count(*) FROM users")) == 1

    on_plane(body)


def test_two_control_planes_with_the_same_given_token_start_at_once(on_plane: Any) -> None:
    async def body(plane: Plane) -> None:
        settings = plane.with_settings(bootstrap_token=GIVEN)
        notes = await asyncio.gather(*(identity.bootstrap(plane.engine, settings) for _ in range(4)))
        assert notes == [[], [], [], []]
        assert await whose(plane, GIVEN) is not None
        assert len(await plane.audit()) == 2

    on_plane(body)


def test_a_data_directory_that_cannot_be_written_stops_the_start_and_makes_no_owner(on_plane: Any) -> None:
    async def body(plane: Plane) -> None:
        gone = plane.with_settings(data_dir=str(Path(plane.settings.data_dir) / "gone"))
        with pytest.raises(BootstrapError, match=r"cannot be written to .*gone/owner-token: No such file"):
            await identity.bootstrap(plane.engine, gone)
        assert await plane.audit() == []
        assert len(await identity.bootstrap(plane.engine, plane.settings)) == 2

    on_plane(body)
