"""Encryption at rest: what opens, what does not, and what stops the start."""

import base64
import stat
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import delete, select, text, update
from sqlalchemy.ext.asyncio import AsyncEngine

from ostiary.control import audit, vault
from ostiary.control.providers import create_provider, delete_provider, read_all
from ostiary.control.providers.changes import NewProvider
from ostiary.control.store.tables import ai_provider_keys, vault_keys
from ostiary.control.vault import Place, Vault, VaultError, open_vault, parse_keys
from ostiary.core.secret import Secret
from ostiary.core.settings import ControlSettings
from tests.support.control_admin import Plane, vault_key

PLACE = Place("ai_provider_keys", "api_key", "0190a7d2-0000-7000-8000-000000000000")
ADMIN = audit.Actor(None, "test")


async def add_provider(engine: AsyncEngine, ring: Vault) -> None:
    wanted = NewProvider("openai", "sealed", "https://a.example/v1", api_keys=(Secret("sk-sealed-1"),))
    async with engine.begin() as conn:
        await create_provider(conn, ring, wanted, ADMIN, audit.LOCAL)


def keyring(*fills: int) -> Vault:
    return Vault([bytes([fill]) * 32 for fill in fills])


@given(st.binary(max_size=200))
def test_what_is_sealed_opens_to_the_same_bytes(plaintext: bytes) -> None:
    ring = keyring(1)
    assert ring.open(PLACE, ring.seal(PLACE, plaintext)) == plaintext


def test_the_same_value_is_never_sealed_to_the_same_bytes() -> None:
    ring = keyring(1)
    assert ring.seal(PLACE, b"sk-1").ciphertext != ring.seal(PLACE, b"sk-1").ciphertext


@pytest.mark.parametrize("field", ["table", "column", "id"])
def test_a_ciphertext_moved_to_another_place_does_not_open(field: str) -> None:
    ring = keyring(1)
    sealed = ring.seal(PLACE, b"sk-1")
    with pytest.raises(VaultError, match="does not decrypt"):
        ring.open(PLACE._replace(**{field: "elsewhere"}), sealed)


@given(st.data())
def test_a_changed_or_cut_ciphertext_does_not_open(data: st.DataObject) -> None:
    ring = keyring(1)
    sealed = ring.seal(PLACE, b"sk-1234567890")
    at = data.draw(st.integers(0, len(sealed.ciphertext) - 1))
    changed = bytearray(sealed.ciphertext)
    changed[at] ^= data.draw(st.integers(1, 255))
    for broken in (bytes(changed), sealed.ciphertext[:at]):
        with pytest.raises(VaultError):
            ring.open(PLACE, sealed._replace(ciphertext=broken))


def test_the_first_key_seals_and_all_open() -> None:
    old, both = keyring(1), keyring(2, 1)
    assert both.open(PLACE, old.seal(PLACE, b"x")) == b"x"
    assert both.seal(PLACE, b"x").key_id == keyring(2).sealing_key_id
    with pytest.raises(VaultError, match="does not hold"):
        old.open(PLACE, both.seal(PLACE, b"x"))


def test_key_ids_and_repr_do_not_tell_the_key() -> None:
    key = bytes(range(32))
    shown = repr(Vault([key]))
    assert key.hex() not in shown
    assert vault.key_id(key) in shown


@pytest.mark.parametrize("wrong", ["short", "é" * 44, base64.b64encode(b"x" * 31).decode(), "", "A" * 43 + "!"])
def test_a_key_that_is_not_32_bytes_of_base64_is_named_by_its_place_only(wrong: str) -> None:
    with pytest.raises(VaultError, match="OSTIARY_ENCRYPTION_KEYS: key 2 is not the base64 of 32 bytes") as caught:
        parse_keys([vault_key(1), Secret(wrong)])
    assert not wrong or wrong not in str(caught.value)


def test_url_safe_base64_is_taken_and_a_repeated_key_refused() -> None:
    key = b"\xff" * 32
    assert parse_keys([Secret(base64.urlsafe_b64encode(key).decode())]) == [key]
    with pytest.raises(VaultError, match="key 3 is the same as key 1"):
        parse_keys([vault_key(1), vault_key(2), vault_key(1)])


# --- opening the vault of a database


def test_first_start_makes_a_private_key_file_and_the_next_uses_it(on_database: Any, settings: ControlSettings) -> None:
    file = Path(settings.data_dir) / "vault.key"

    async def body(engine: AsyncEngine) -> None:
        first = await open_vault(engine, settings)
        written = file.read_text()
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        second = await open_vault(engine, settings)
        assert second.sealing_key_id == first.sealing_key_id
        assert file.read_text() == written
        assert sorted(path.name for path in file.parent.iterdir()) == ["vault.key"]

    on_database(body)


def test_a_key_file_that_others_can_read_is_closed_to_them(on_database: Any, settings: ControlSettings) -> None:
    file = Path(settings.data_dir) / "vault.key"

    async def body(engine: AsyncEngine) -> None:
        await open_vault(engine, settings)
        file.chmod(0o644)
        await open_vault(engine, settings)
        assert stat.S_IMODE(file.stat().st_mode) == 0o600

    on_database(body)


def test_a_lost_key_file_stops_the_start_and_is_not_replaced(on_database: Any, settings: ControlSettings) -> None:
    file = Path(settings.data_dir) / "vault.key"

    async def body(engine: AsyncEngine) -> None:
        await open_vault(engine, settings)
        file.unlink()
        with pytest.raises(VaultError, match=r"vault.key is gone.*restore it from a backup") as caught:
            await open_vault(engine, settings)
        assert "\n" not in str(caught.value)
        assert not file.exists()

    on_database(body)


def test_a_key_file_of_another_database_stops_the_start(on_database: Any, settings: ControlSettings) -> None:
    file = Path(settings.data_dir) / "vault.key"

    async def body(engine: AsyncEngine) -> None:
        await add_provider(engine, await open_vault(engine, settings))
        file.write_text(vault_key(9).reveal())
        with pytest.raises(VaultError, match=r"vault.key lacks the key [0-9a-f]{16}.*set OSTIARY_ENCRYPTION_KEYS"):
            await open_vault(engine, settings)
        file.write_text("nonsense")
        with pytest.raises(VaultError, match=r"vault.key: key 1 is not the base64 of 32 bytes"):
            await open_vault(engine, settings)

    on_database(body)


def test_a_key_that_was_tried_and_encrypts_nothing_may_go_again(on_database: Any, settings: ControlSettings) -> None:
    async def body(engine: AsyncEngine) -> None:
        await add_provider(engine, await open_vault(engine, settings))
        tried = await open_vault(engine, msgspec.structs.replace(settings, encryption_keys=(vault_key(5),)))
        back = await open_vault(engine, settings)
        async with engine.connect() as conn:
            assert [(key.key_id, key.values) for key in await vault.key_status(conn, back)] == [
                (back.sealing_key_id, 1)
            ]
        assert back.sealing_key_id != tried.sealing_key_id

    on_database(body)


def test_where_other_control_planes_may_use_it_a_key_that_encrypts_nothing_is_needed_yet(
    on_database: Any, settings: ControlSettings
) -> None:
    def ring(*fills: int) -> ControlSettings:
        keys = tuple(vault_key(fill) for fill in fills)
        return msgspec.structs.replace(settings, embedded_database=False, encryption_keys=keys)

    async def body(engine: AsyncEngine) -> None:
        await add_provider(engine, await open_vault(engine, ring(1)))
        tried = await open_vault(engine, ring(2, 1))
        with pytest.raises(VaultError, match=f"{tried.sealing_key_id}.*nothing is encrypted under it.*vault_keys"):
            await open_vault(engine, ring(1))
        async with engine.begin() as conn:
            await conn.execute(delete(vault_keys).where(vault_keys.c.key_id == tried.sealing_key_id))
        await open_vault(engine, ring(1))
        with pytest.raises(VaultError, match="under which this database is encrypted"):
            await open_vault(engine, ring(2))

    on_database(body)


def test_a_database_of_ones_own_needs_keys(on_database: Any, settings: ControlSettings) -> None:
    external = msgspec.structs.replace(settings, embedded_database=False)

    async def body(engine: AsyncEngine) -> None:
        with pytest.raises(VaultError, match=r"OSTIARY_ENCRYPTION_KEYS is not set.*openssl rand"):
            await open_vault(engine, external)
        await open_vault(engine, msgspec.structs.replace(external, encryption_keys=(vault_key(1),)))
        assert not list(Path(settings.data_dir).iterdir())

    on_database(body)


def test_a_missing_key_is_named_and_a_new_first_key_is_taken(on_database: Any, settings: ControlSettings) -> None:
    def ring(*fills: int) -> ControlSettings:
        keys = tuple(vault_key(fill) for fill in fills)
        return msgspec.structs.replace(settings, embedded_database=False, encryption_keys=keys)

    async def body(engine: AsyncEngine) -> None:
        await open_vault(engine, ring(1))
        with pytest.raises(VaultError, match=f"lacks the key {keyring(1).sealing_key_id}") as caught:
            await open_vault(engine, ring(2))
        assert vault_key(1).reveal() not in str(caught.value)
        assert (await open_vault(engine, ring(2, 1))).sealing_key_id == keyring(2).sealing_key_id
        # from now on both are in use
        with pytest.raises(VaultError, match=f"lacks the key {keyring(2).sealing_key_id}"):
            await open_vault(engine, ring(1))

    on_database(body)


def test_a_damaged_check_value_stops_the_start(on_database: Any, settings: ControlSettings) -> None:
    async def body(engine: AsyncEngine) -> None:
        await open_vault(engine, settings)
        async with engine.begin() as conn:
            await conn.execute(update(vault_keys).values(check_value=b"\x01" + bytes(40)))
        with pytest.raises(VaultError, match="check value of the vault key"):
            await open_vault(engine, settings)

    on_database(body)


def test_keys_may_move_from_the_file_to_the_setting(on_database: Any, settings: ControlSettings) -> None:
    async def body(engine: AsyncEngine) -> None:
        from_file = await open_vault(engine, settings)
        sealed = from_file.seal(PLACE, b"sk-1")
        both = await open_vault(engine, msgspec.structs.replace(settings, encryption_keys=(vault_key(5),)))
        assert both.open(PLACE, sealed) == b"sk-1"
        assert both.sealing_key_id == keyring(5).sealing_key_id

    on_database(body)


# --- rotation


def test_rotation_reencrypts_every_row_and_retires_the_old_key(on_database: Any, settings: ControlSettings) -> None:
    def ring(*fills: int) -> ControlSettings:
        return msgspec.structs.replace(settings, encryption_keys=tuple(vault_key(fill) for fill in fills))

    async def body(engine: AsyncEngine) -> None:
        old = await open_vault(engine, ring(1))
        async with engine.begin() as conn:
            for name in ("one", "two", "gone"):
                wanted = NewProvider("openai", name, "https://a.example/v1", api_keys=(Secret(f"sk-{name}-1"),))
                await create_provider(conn, old, wanted, ADMIN, audit.LOCAL)
            aws = NewProvider("bedrock", "aws", settings={"region": "us-east-1"})
            await create_provider(conn, old, aws, ADMIN, audit.LOCAL)
            await delete_provider(conn, old, "gone", ADMIN, audit.LOCAL)
        new = await open_vault(engine, ring(2, 1))
        report = await vault.rotate(engine, new, ADMIN)
        assert (report.reencrypted, report.unreadable) == (3, [])
        assert report.retired == [old.sealing_key_id]
        async with engine.connect() as conn:
            statuses = await vault.key_status(conn, new)
        assert [(status.key_id, status.sealing, status.values) for status in statuses] == [
            (new.sealing_key_id, True, 3),
            (old.sealing_key_id, False, 0),
        ]
        only_new = await open_vault(engine, ring(2))
        async with engine.connect() as conn:
            _, specs = await read_all(conn, only_new)
            assert [spec.error for spec in specs] == ["", "", ""]
            assert specs[1].keys[0].value == Secret("sk-one-1")
        again = await vault.rotate(engine, only_new, ADMIN)
        assert (again.reencrypted, again.retired) == (0, [])

    on_database(body)


def test_rotation_goes_on_past_what_does_not_open_and_keeps_its_key(
    on_database: Any, settings: ControlSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vault, "_ROTATION_BATCH", 2)

    async def body(engine: AsyncEngine) -> None:
        old = await open_vault(engine, msgspec.structs.replace(settings, encryption_keys=(vault_key(1),)))
        async with engine.begin() as conn:
            keys = tuple(Secret(f"sk-{number}") for number in range(5))
            wanted = NewProvider("openai", "one", "https://a.example/v1", api_keys=keys)
            await create_provider(conn, old, wanted, ADMIN, audit.LOCAL)
            broken = await conn.scalar(select(ai_provider_keys.c.id).where(ai_provider_keys.c.position == 1))
            await conn.execute(
                update(ai_provider_keys).where(ai_provider_keys.c.id == broken).values(api_key=b"\x01" + bytes(40))
            )
        both = await open_vault(engine, msgspec.structs.replace(settings, encryption_keys=(vault_key(2), vault_key(1))))
        report = await vault.rotate(engine, both, ADMIN)
        assert report.reencrypted == 4
        assert report.unreadable == [f"ai_provider_keys.api_key of row {broken}"]
        assert report.retired == []

    on_database(body)


def test_no_secret_stands_in_the_tables_in_clear(on_database: Any, settings: ControlSettings) -> None:
    async def body(engine: AsyncEngine) -> None:
        ring = await open_vault(engine, settings)
        async with engine.begin() as conn:
            wanted = NewProvider("openai", "one", "https://a.example/v1", api_keys=(Secret("sk-very-secret-key-1"),))
            await create_provider(conn, ring, wanted, ADMIN, audit.LOCAL)
            aws = {"region": "us-east-1", "access_key": "AKIAEXAMPLE1", "access_key_secret": "aws-very-secret-1"}
            await create_provider(conn, ring, NewProvider("bedrock", "aws", settings=aws), ADMIN, audit.LOCAL)
            for table in ("ai_providers", "ai_provider_keys", "audit_log", "provider_revisions", "vault_keys"):
                rows = (await conn.execute(text(f"SELECT {table}::text FROM {table}"))).scalars().all()
                dump = "\n".join(rows)
                for secret in ("sk-very-secret-key-1", "AKIAEXAMPLE1", "aws-very-secret-1"):
                    assert secret not in dump
                    assert secret.encode().hex() not in dump

    on_database(body)


def test_owners_rotate_and_see_the_keys_by_id(on_plane: Any) -> None:
    async def body(plane: Plane) -> None:
        for role, read, rotated in (
            ("owner", 200, 200),
            ("admin", 200, 403),
            ("auditor", 200, 403),
            ("member", 403, 403),
        ):
            _, token = await plane.user(role, role)
            status = await plane.call(token, "GET", "/api/v2/vault")
            assert status.status_code == read
            assert (await plane.call(token, "POST", "/api/v2/vault/rotate")).status_code == rotated
            if read == 200:
                [key] = status.json()
                assert (key["key_id"], key["sealing"], key["available"]) == (plane.vault.sealing_key_id, True, True)
        assert [entry["action"] for entry in await plane.audit()] == ["rotate"]

    on_plane(body)


def test_a_key_file_that_cannot_be_read_stops_the_start(on_database: Any, settings: ControlSettings) -> None:
    file = Path(settings.data_dir) / "vault.key"

    async def body(engine: AsyncEngine) -> None:
        file.symlink_to("/dev/zero")
        with pytest.raises(VaultError, match=r"vault.key cannot be read"):
            await open_vault(engine, settings)

    on_database(body)
