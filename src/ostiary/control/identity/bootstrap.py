"""The first owner, and the token that always opens the door.

Rules
- The first start makes the owner `admin`. Its token goes to `<data-dir>/owner-token` (0600) and to a terminal, once.
- OSTIARY_BOOTSTRAP_TOKEN takes the place of that token, at every start: it is made valid for `admin`, and whatever
  bootstrap token was valid before no longer is. It is neither printed nor written anywhere.
- `admin` is made once. When it was deleted, suspended or given another role, somebody meant it: that stays, and is said.
"""

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Final

import structlog
from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from ostiary.control import audit
from ostiary.control.locks import Lock
from ostiary.control.private_files import replace_private
from ostiary.control.store.tables import tokens, users
from ostiary.core.messages import Note
from ostiary.core.secret import Secret
from ostiary.core.settings import ControlSettings

from . import tokens as token_rows
from .users import User, insert_user
from .users import resource as user_resource

log = structlog.get_logger(__name__)

SETTING: Final = "OSTIARY_BOOTSTRAP_TOKEN"
MINIMUM_LENGTH: Final = 32
OWNER: Final = "admin"
OWNER_TOKEN_FILE: Final = "owner-token"  # noqa: S105  a file's name


class BootstrapError(Exception):
    """The first owner or its token cannot be made. One line: the cause and the cure."""


async def bootstrap(engine: AsyncEngine, settings: ControlSettings) -> list[Note]:
    """Make what the rules above ask for. Raises `BootstrapError`."""
    given = _given_token(settings.bootstrap_token)
    file = Path(settings.data_dir) / OWNER_TOKEN_FILE
    async with engine.begin() as conn:
        await conn.execute(select(func.pg_advisory_xact_lock(Lock.BOOTSTRAP)))
        owner, created = await _owner(conn)
        if given is not None:
            notes, replaced = await _accept(conn, owner, given)
        elif owner is not None and created:
            notes, replaced = await _hand_out(conn, owner, file), False
        else:
            notes, replaced = [], False
    if replaced:
        # the token in it is worth nothing now
        with suppress(OSError):
            await asyncio.to_thread(file.unlink, missing_ok=True)
    return notes


def _given_token(text: Secret) -> Secret | None:
    if not text:
        return None
    token = text.reveal().strip()
    if len(token) < MINIMUM_LENGTH:
        raise BootstrapError(
            f"{SETTING} has {len(token)} characters and needs at least {MINIMUM_LENGTH}; make one with: openssl rand -hex 32"
        )
    if any(ord(character) < 0x20 or ord(character) == 0x7F for character in token):
        raise BootstrapError(f"{SETTING} holds a control character, which no HTTP header can carry; remove it")
    return Secret(token)


async def _owner(conn: AsyncConnection) -> tuple[User | None, bool]:
    """The user `admin`, and whether this start made it; None when it was deleted."""
    columns = [users.c[name] for name in User.__dataclass_fields__]
    query = select(*columns, users.c.deleted).where(func.lower(users.c.username) == OWNER).order_by(users.c.deleted)
    row = (await conn.execute(query.limit(1))).mappings().first()
    if row is not None:
        return (None if row["deleted"] else User(**{name: row[name] for name in User.__dataclass_fields__})), False
    owner = await insert_user(conn, OWNER, {"role": "owner", "display_name": "Owner"})
    if owner is not None:
        await audit.record(conn, audit.BOOTSTRAP, "create", user_resource(owner), after=owner)
        log.info("creating first owner", username=OWNER)
    return owner, owner is not None


async def _hand_out(conn: AsyncConnection, owner: User, file: Path) -> list[Note]:
    """Make the owner's first token; on disk before it is valid, so that it cannot be lost."""
    secret = token_rows.new_token()
    prefix = token_rows.shown_prefix(secret)
    token = await token_rows.insert_token(conn, owner.id, "first start", secret, "bootstrap", prefix=prefix)
    await audit.record(conn, audit.BOOTSTRAP, "create", token_rows.resource(token), after=token)
    try:
        await asyncio.to_thread(replace_private, file, secret.reveal() + "\n")
    except OSError as exc:
        raise BootstrapError(f"the owner's token cannot be written to {file}: {exc.strerror}") from exc
    return [
        Note(f"The owner {OWNER!r} was created; its token is in {file}"),
        Note(f"Owner token, shown only now: {secret.reveal()}", only_terminal=True),
    ]


async def _accept(conn: AsyncConnection, owner: User | None, given: Secret) -> tuple[list[Note], bool]:
    """Make the given token valid. The second value tells whether another one lost its validity."""
    if owner is None:
        return [_not_used(f"the user {OWNER!r} was deleted")], False
    held = await token_rows.bootstrap_tokens(conn, owner.id)
    current = await token_rows.find_by_hash(conn, token_rows.token_sha256(given))
    if current is not None and current.id not in {token.id for token in held}:
        raise BootstrapError(f"{SETTING} is already a token of {current.username!r}; give another text")
    if current is None:
        current = await token_rows.insert_token(conn, owner.id, SETTING, given, "bootstrap")
        await audit.record(conn, audit.BOOTSTRAP, "create", token_rows.resource(current), after=current)
    elif current.revoked_at is not None or current.expires_at is not None:
        valid = {"revoked_at": None, "expires_at": None}
        await conn.execute(update(tokens).where(tokens.c.id == current.id).values(valid))
        await audit.record(conn, audit.BOOTSTRAP, "update", token_rows.resource(current), before=current, after=valid)
    replaced = [token for token in held if token.id != current.id and token.revoked_at is None]
    for token in replaced:
        await token_rows.revoke(conn, audit.BOOTSTRAP, token, audit.LOCAL)
    notes = []
    if owner.status != "active":
        notes.append(_not_used(f"the user {OWNER!r} is suspended", ", or let an owner activate the user"))
    elif owner.role != "owner":
        log.warning("accepting bootstrap token of a user who is no owner", username=OWNER, role=owner.role)
    return notes, bool(replaced)


def _not_used(reason: str, other_cure: str = "") -> Note:
    log.warning("ignoring bootstrap token", reason=reason)
    return Note(f"{SETTING} opens no door: {reason}. Unset it{other_cure}.")
