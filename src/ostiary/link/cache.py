"""What the control plane said last, on disk, so that a gateway that starts while it is away still serves.

Rules
- Encrypted with AES-256-GCM under a key derived from the gateway key (HKDF-SHA256): whoever takes the disk without that
  key has nothing. What a file is and whose answers it holds is authenticated with it.
- A file is replaced as a whole. One that is half-written, of another gateway key, server or build is ignored with a
  warning; the next answers replace it.
- Standalone gateways only: the embedded link's key is another one at each start.
- When the control plane refuses the gateway key all of it is deleted.
"""

import asyncio
import os
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
import structlog
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from msgspec import Struct

from ostiary.core.identity import Identity
from ostiary.core.messages import Snapshot
from ostiary.core.secret import Secret, secret_dec_hook, secret_enc_hook

from .backoff import happens

log = structlog.get_logger(__name__)

LOOK_INTERVAL: Final = 1.0
"""Seconds between two looks at whether somebody new is known."""
REFRESH_INTERVAL: Final = 15.0
"""Seconds after which known tokens that were only confirmed anew are written."""

_MAGIC: Final = b"ostiary link cache 1\n"
_NONCE: Final = 12
_MAX_FILE: Final = 256 * 1024**2

T = TypeVar("T")


class KnownToken(Struct, frozen=True, array_like=True):
    """Somebody whom the control plane confirmed."""

    token_sha256: bytes
    identity: Identity
    confirmed_at: float
    """Unix seconds."""


class Cache:
    """The files. `url` is the control plane's: another one's answers are not this one's."""

    def __init__(self, directory: Path, gateway_key: Secret, url: str) -> None:
        self._directory = directory
        self._url = url.encode()
        derive = HKDF(algorithm=SHA256(), length=32, salt=None, info=b"ostiary link cache")
        self._cipher = AESGCM(derive.derive(gateway_key.reveal().encode()))
        self._wiped = threading.Event()

    def read_snapshot(self) -> Snapshot | None:
        return self._read("snapshot", Snapshot)

    def read_tokens(self) -> list[KnownToken]:
        return self._read("tokens", list[KnownToken]) or []

    def write_snapshot(self, snapshot: Snapshot) -> None:
        """Durable when this returns; a disk that does not take it is told, not raised."""
        self._write("snapshot", snapshot)

    def write_tokens(self, tokens: list[KnownToken]) -> None:
        """The same."""
        self._write("tokens", tokens)

    def wipe(self) -> None:
        """Delete all of it, and write no more."""
        self._wiped.set()
        for name in ("snapshot", "tokens"):
            with suppress(FileNotFoundError):
                self._path(name).unlink()
        log.warning("deleting what was cached: the gateway key was refused", directory=str(self._directory))

    def _path(self, name: str) -> Path:
        return self._directory / name

    def _read(self, name: str, kind: type[T]) -> T | None:
        path = self._path(name)
        try:
            with path.open("rb") as file:
                sealed = file.read(_MAX_FILE + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            log.warning("ignoring a cache that cannot be read", path=str(path), reason=error.strerror)
            return None
        try:
            return msgspec.msgpack.decode(self._opened(name, sealed), type=kind, dec_hook=secret_dec_hook)
        except (InvalidTag, ValueError, msgspec.DecodeError):
            log.warning(
                "ignoring a cache that is half-written, or of another gateway key, server or version", path=str(path)
            )
            return None

    def _write(self, name: str, content: Any) -> None:  # Any: whatever msgspec encodes
        if self._wiped.is_set():
            return
        nonce = os.urandom(_NONCE)
        payload = msgspec.msgpack.encode(content, enc_hook=secret_enc_hook)
        sealed = _MAGIC + nonce + self._cipher.encrypt(nonce, payload, self._bound(name))
        path = self._path(name)
        staged = path.with_name(f".{name}.{secrets.token_hex(8)}")
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            for left in self._directory.glob(f".{name}.*"):
                left.unlink()
            fd = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "wb") as file:
                file.write(sealed)
                file.flush()
                os.fsync(fd)
            staged.replace(path)
        except OSError as error:
            log.warning("caching what the control plane said later", path=str(path), reason=error.strerror)
        if self._wiped.is_set():
            path.unlink(missing_ok=True)

    def _opened(self, name: str, sealed: bytes) -> bytes:
        begin = len(_MAGIC) + _NONCE
        if not sealed.startswith(_MAGIC) or len(sealed) > _MAX_FILE:
            raise ValueError
        return self._cipher.decrypt(sealed[len(_MAGIC) : begin], sealed[begin:], self._bound(name))

    def _bound(self, name: str) -> bytes:
        return _MAGIC + name.encode() + b"\n" + self._url


class CacheKeeper:
    """Writes what changed, off the event loop.

    `tokens` gives all that are known; `changes` counts who came and went, `confirmations` everybody confirmed.
    """

    def __init__(
        self,
        cache: Cache,
        *,
        tokens: Callable[[], list[KnownToken]],
        changes: Callable[[], int],
        confirmations: Callable[[], int],
    ) -> None:
        self._cache = cache
        self._tokens = tokens
        self._changes = changes
        self._confirmations = confirmations
        self._snapshot: Snapshot | None = None
        self._written: Snapshot | None = None
        self._taken = asyncio.Event()
        self._counted = (changes(), confirmations())
        self._written_at = time.monotonic()

    def take(self, snapshot: Snapshot) -> None:
        """This is what is served from now on."""
        self._snapshot = snapshot
        self._taken.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._write(refresh=time.monotonic() - self._written_at >= REFRESH_INTERVAL)
            await happens(self._taken, LOOK_INTERVAL)
            self._taken.clear()

    async def close(self) -> None:
        """Write what is not on disk yet. After `run` has ended."""
        await self._write(refresh=True)

    async def _write(self, *, refresh: bool) -> None:
        if self._snapshot is not self._written and self._snapshot is not None:
            self._written = self._snapshot
            await asyncio.to_thread(self._cache.write_snapshot, self._written)
        changes, confirmations = self._changes(), self._confirmations()
        if changes != self._counted[0] or (refresh and confirmations != self._counted[1]):
            self._counted = changes, confirmations
            await asyncio.to_thread(self._cache.write_tokens, self._tokens())
            self._written_at = time.monotonic()
