"""Encryption at rest: every secret in the database is sealed here, and opened here.

Rules
- AES-256-GCM with a random 96-bit nonce. Table, column and row id are associated data, so a ciphertext that is moved
  to another place does not open.
- A sealed value is one byte of format version, the nonce, then ciphertext and tag. The id of its key stands beside it.
- The first key of the ring seals; all of them open. A key's id is derived from the key, it is not a secret.
- `vault_keys` lists each key that a control plane has sealed with here, or may yet, until it is retired, with a check
  value. The ring has to hold them all before anything starts: a control plane that cannot read what is stored must not
  half start. A key that was tried and never sealed anything is nobody's loss: with the embedded database, which has one
  control plane, it is retired at the start; with another one somebody has to say that no control plane uses it.
- The keys come from OSTIARY_ENCRYPTION_KEYS. With the embedded database alone they may be left out: a key file is then
  made at the first start, and never again once the database knows its key.
"""

import asyncio
import base64
import binascii
import hmac
import os
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final, NamedTuple

import structlog
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sqlalchemy import Column, ColumnElement, Table, delete, exists, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from ostiary.core.secret import Secret
from ostiary.core.settings import ControlSettings

from . import audit
from .locks import Lock
from .private_files import create_private
from .store.tables import ai_provider_keys, ai_providers, vault_keys

log = structlog.get_logger(__name__)

SETTING: Final = "OSTIARY_ENCRYPTION_KEYS"
KEY_FILE: Final = "vault.key"
_MAKE_ONE: Final = "make one with: openssl rand -base64 32"

_KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 12
_TAG_BYTES: Final = 16
_FORMAT: Final = b"\x01"
_CHECK_TEXT: Final = b"ostiary vault check"
_ROTATION_BATCH: Final = 200


class VaultError(Exception):
    """The vault cannot be opened, or a value in it cannot. One line: the cause and the cure, no secret."""


class Place(NamedTuple):
    """Where a sealed value stands; it opens nowhere else."""

    table: str
    column: str
    id: str

    def __str__(self) -> str:
        return f"{self.table}.{self.column} of row {self.id}"


class Sealed(NamedTuple):
    """A value as it is stored."""

    ciphertext: bytes
    key_id: str


class Vault:
    """A keyring. `keys` are 32 bytes each and not empty; the first one seals."""

    __slots__ = ("_ciphers", "sealing_key_id")

    def __init__(self, keys: Sequence[bytes]) -> None:
        self._ciphers = {key_id(key): AESGCM(key) for key in keys}
        self.sealing_key_id: str = key_id(keys[0])

    def __repr__(self) -> str:
        return f"Vault({', '.join(self._ciphers)})"

    @property
    def key_ids(self) -> tuple[str, ...]:
        """The ids of its keys, the sealing one first."""
        return tuple(self._ciphers)

    def seal(self, place: Place, plaintext: bytes) -> Sealed:
        nonce = os.urandom(_NONCE_BYTES)
        body = self._ciphers[self.sealing_key_id].encrypt(nonce, plaintext, _associated(place))
        return Sealed(_FORMAT + nonce + body, self.sealing_key_id)

    def open(self, place: Place, sealed: Sealed) -> bytes:
        """Raises `VaultError` for an unknown key, and for a value that was damaged, moved or cut."""
        cipher = self._ciphers.get(sealed.key_id)
        if cipher is None:
            raise VaultError(f"{place} is encrypted under the key {sealed.key_id}, which {SETTING} does not hold")
        nonce, body = sealed.ciphertext[1 : 1 + _NONCE_BYTES], sealed.ciphertext[1 + _NONCE_BYTES :]
        if sealed.ciphertext[:1] != _FORMAT or len(body) < _TAG_BYTES:
            raise VaultError(f"{place} is not a value of this vault: enter it again")
        try:
            return cipher.decrypt(nonce, body, _associated(place))
        except InvalidTag:
            raise VaultError(f"{place} does not decrypt, it was changed outside Ostiary: enter it again") from None

    def check_value(self) -> bytes:
        """Proof of the sealing key, for `vault_keys`."""
        return self.seal(_check_place(self.sealing_key_id), _CHECK_TEXT).ciphertext

    def proves(self, key: str, check_value: bytes) -> bool:
        """Whether the ring's key of this id is the one that made the check value."""
        try:
            return self.open(_check_place(key), Sealed(check_value, key)) == _CHECK_TEXT
        except VaultError:
            return False


def key_id(key: bytes) -> str:
    """16 hexadecimal digits that name a key without telling of it."""
    return hmac.digest(key, b"ostiary vault key id", "sha256").hex()[:16]


def parse_keys(texts: Iterable[Secret], source: str = SETTING) -> list[bytes]:
    """The keys in `texts`, each base64 of 32 bytes. Raises `VaultError` naming `source` and the key's place in it."""
    keys: list[bytes] = []
    for number, text in enumerate(texts, 1):
        key = _decode(text)
        if key is None:
            raise VaultError(f"{source}: key {number} is not the base64 of {_KEY_BYTES} bytes; {_MAKE_ONE}")
        if key in keys:
            raise VaultError(f"{source}: key {number} is the same as key {keys.index(key) + 1}; remove one of them")
        keys.append(key)
    return keys


async def open_vault(engine: AsyncEngine, settings: ControlSettings) -> Vault:
    """The vault of this database, its keys proven. Makes the key file or registers a new first key where needed.

    Raises `VaultError`.
    """
    async with engine.begin() as conn:
        await conn.execute(select(func.pg_advisory_xact_lock(Lock.VAULT)))
        known = {row.key_id: row.check_value for row in await conn.execute(select(vault_keys))}
        keys, source = await asyncio.to_thread(_load_keys, settings, tuple(known))
        vault = Vault(keys)
        missing = [key for key in known if key not in vault.key_ids]
        if missing:
            unused = select(vault_keys.c.key_id).where(vault_keys.c.key_id.in_(missing), *_encrypts_nothing())
            _refuse_missing(missing, list(await conn.scalars(unused)), source, settings)
            await conn.execute(delete(vault_keys).where(vault_keys.c.key_id.in_(missing)))
            log.warning("retiring vault keys that encrypt nothing", key_ids=missing, source=source)
        _check(vault, {key: value for key, value in known.items() if key not in missing})
        if vault.sealing_key_id not in known:
            row = {"key_id": vault.sealing_key_id, "check_value": vault.check_value()}
            await conn.execute(insert(vault_keys).values(row))
            log.info("registering vault key", key_id=vault.sealing_key_id, source=source)
    return vault


def _load_keys(settings: ControlSettings, known: tuple[str, ...]) -> tuple[list[bytes], str]:
    """The keyring and where it comes from, for messages. `known` are the key ids of the database."""
    file = Path(settings.data_dir) / KEY_FILE
    keys = parse_keys(settings.encryption_keys)
    if not settings.embedded_database:
        if not keys:
            raise VaultError(f"{SETTING} is not set: with a database of your own it is required; {_MAKE_ONE}")
        return keys, SETTING
    from_file = _read_key_file(file)
    if keys:
        # whoever moves from the file to the setting can still read what the file's key sealed
        return keys + [key for key in from_file if key not in keys], SETTING
    if not from_file:
        if known:
            raise VaultError(
                f"the key file {file} is gone, and the database holds secrets encrypted under it (key "
                f"{', '.join(known)}): restore it from a backup, or put its text in {SETTING}"
            )
        from_file = [_make_key_file(file)]
    return from_file, str(file)


def _refuse_missing(missing: list[str], unused: list[str], source: str, settings: ControlSettings) -> None:
    """Raises `VaultError` unless the start may do without the missing keys, `unused` of which encrypt nothing."""
    cure = f"set {SETTING} to all keys in use, separated by commas, the one that shall encrypt first"
    used = ", ".join(key for key in missing if key not in unused)
    if used:
        raise VaultError(f"{source} lacks the key {used}, under which this database is encrypted: {cure}")
    if not settings.embedded_database:
        raise VaultError(
            f"{source} lacks the key {', '.join(unused)}, with which a control plane was started on this database: {cure}; "
            "or, as nothing is encrypted under it, make sure that no control plane uses it and delete its row of vault_keys"
        )


def _check(vault: Vault, known: dict[str, bytes]) -> None:
    for key, check_value in known.items():
        if not vault.proves(key, check_value):
            raise VaultError(
                f"the check value of the vault key {key} in the table vault_keys is damaged: restore the database from "
                "a backup"
            )


def _read_key_file(file: Path) -> list[bytes]:
    try:
        fd = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with os.fdopen(fd, encoding="utf-8", errors="replace") as opened:
            if stat.S_IMODE(os.fstat(fd).st_mode) & 0o077:
                os.fchmod(fd, 0o600)
                log.warning("closing the vault key file to other users", path=str(file))
            text = opened.read(4096)
    except FileNotFoundError:
        return []
    except OSError as exc:
        raise VaultError(f"the key file {file} cannot be read, or not be closed to others: {exc.strerror}") from exc
    return parse_keys([Secret(text.strip())], source=str(file))


def _make_key_file(file: Path) -> bytes:
    key = os.urandom(_KEY_BYTES)
    try:
        create_private(file, base64.b64encode(key).decode() + "\n")
    except OSError as exc:
        raise VaultError(f"the key file {file} cannot be written: {exc.strerror}") from exc
    log.info("making vault key file", path=str(file), key_id=key_id(key))
    return key


def _decode(text: Secret) -> bytes | None:
    raw = text.reveal().strip().replace("-", "+").replace("_", "/")
    try:
        key = base64.b64decode(raw, validate=True)
    except (binascii.Error, ValueError):
        return None
    return key if len(key) == _KEY_BYTES else None


def _associated(place: Place) -> bytes:
    return f"{place.table}/{place.column}/{place.id}".encode()


def _check_place(key: str) -> Place:
    return Place("vault_keys", "check_value", key)


# --- what is sealed, and its rotation


class _SealedColumn(NamedTuple):
    table: Table
    value: Column[bytes]
    key_id: Column[str]


_SEALED: Final = (
    _SealedColumn(ai_providers, ai_providers.c.settings, ai_providers.c.settings_key_id),
    _SealedColumn(ai_provider_keys, ai_provider_keys.c.api_key, ai_provider_keys.c.vault_key_id),
)


@dataclass(frozen=True, slots=True)
class VaultKeyStatus:
    """One key of the ring or of the database."""

    key_id: str
    sealing: bool
    """New values are encrypted under it."""
    available: bool
    """The keyring of this process holds it."""
    values: int
    """Stored values encrypted under it."""
    registered_at: datetime | None


@dataclass(frozen=True, slots=True)
class RotationReport:
    key_id: str
    """The key all readable values are now encrypted under."""
    reencrypted: int
    unreadable: list[str]
    """Places whose value does not open; they are left as they are."""
    retired: list[str]
    """Keys that encrypt nothing any more: they may leave the setting."""


async def key_status(conn: AsyncConnection, vault: Vault) -> list[VaultKeyStatus]:
    """Every key of the ring and of the database, and how much each encrypts."""
    counts: dict[str, int] = {}
    for sealed in _SEALED:
        query = select(sealed.key_id, func.count()).where(sealed.key_id.is_not(None)).group_by(sealed.key_id)
        for key, count in await conn.execute(query):
            counts[key] = counts.get(key, 0) + count
    registered = {row.key_id: row.created_at for row in await conn.execute(select(vault_keys))}
    ids = dict.fromkeys([*vault.key_ids, *sorted(registered)])
    return [
        VaultKeyStatus(
            key_id=key,
            sealing=key == vault.sealing_key_id,
            available=key in vault.key_ids,
            values=counts.get(key, 0),
            registered_at=registered.get(key),
        )
        for key in ids
    ]


async def rotate(
    engine: AsyncEngine, vault: Vault, actor: audit.Actor, origin: audit.Origin = audit.LOCAL
) -> RotationReport:
    """Encrypt every stored value under the sealing key, batch by batch, while everything goes on; then retire keys.

    Rows of deleted providers too. To be run when every control plane on this database has the new key first: one that
    still seals with an old key cannot write once that key is retired.
    """
    reencrypted, unreadable = 0, []
    for column in _SEALED:
        done, failed = await _rotate_column(engine, vault, column)
        reencrypted += done
        unreadable += failed
    async with engine.begin() as conn:
        await conn.execute(select(func.pg_advisory_xact_lock(Lock.VAULT)))
        retired = await conn.scalars(
            delete(vault_keys)
            .where(vault_keys.c.key_id != vault.sealing_key_id, *_encrypts_nothing())
            .returning(vault_keys.c.key_id)
        )
        report = RotationReport(vault.sealing_key_id, reencrypted, unreadable, sorted(retired))
        await audit.record(
            conn, actor, "rotate", audit.Resource("vault", vault.sealing_key_id), after=report, origin=origin
        )
    log.info("rotating vault", key_id=report.key_id, reencrypted=reencrypted, unreadable=len(unreadable))
    return report


def _encrypts_nothing() -> list[ColumnElement[bool]]:
    """Of a row of `vault_keys`: no stored value is encrypted under it."""
    return [~exists().where(column.key_id == vault_keys.c.key_id) for column in _SEALED]


async def _rotate_column(engine: AsyncEngine, vault: Vault, column: _SealedColumn) -> tuple[int, list[str]]:
    done, failed, after = 0, list[str](), "00000000-0000-0000-0000-000000000000"
    row_id = column.table.c.id
    batch = (
        select(row_id, column.value, column.key_id)
        .where(column.value.is_not(None), column.key_id.is_distinct_from(vault.sealing_key_id))
        .order_by(row_id)
        .limit(_ROTATION_BATCH)
        .with_for_update()
    )
    while True:
        async with engine.begin() as conn:
            await conn.execute(select(func.pg_advisory_xact_lock(Lock.VAULT)))
            rows = (await conn.execute(batch.where(row_id > after))).all()
            for found, ciphertext, key in rows:
                place = Place(column.table.name, column.value.name, found)
                try:
                    resealed = vault.seal(place, vault.open(place, Sealed(ciphertext, key or "")))
                except VaultError as exc:
                    log.warning("leaving unreadable value", reason=str(exc))
                    failed.append(str(place))
                    continue
                await conn.execute(
                    update(column.table)
                    .where(row_id == found)
                    .values({column.value: resealed.ciphertext, column.key_id: resealed.key_id})
                )
                done += 1
        if len(rows) < _ROTATION_BATCH:
            return done, failed
        after = rows[-1][0]
