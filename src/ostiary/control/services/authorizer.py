"""Authorizer: who a token is, or why it is refused (reference B.5). The token itself never comes here."""

from collections.abc import AsyncGenerator
from functools import partial
from typing import Final

from connectrpc.code import Code
from connectrpc.errors import ConnectError
from connectrpc.request import RequestContext
from sqlalchemy.ext.asyncio import AsyncEngine

from ostiary.control import identity
from ostiary.control.events import REVOCATIONS, Events
from ostiary.core.identity import Identity, Refusal
from ostiary.rpc import ostiary_pb2 as pb
from ostiary.rpc.ostiary_pb2 import (
    IsAuthorizedRequest,
    IsAuthorizedResponse,
    Revocation,
    WatchRevocationsRequest,
)

from .beats import beating
from .gate import guarded

TTL_SECONDS: Final = 60.0
"""How long an answer may be used without asking again by who watches revocations; others take less."""

_REFUSALS: Final = {
    Refusal.UNKNOWN: pb.AUTHORIZATION_REFUSAL_UNKNOWN,
    Refusal.EXPIRED: pb.AUTHORIZATION_REFUSAL_EXPIRED,
    Refusal.REVOKED: pb.AUTHORIZATION_REFUSAL_REVOKED,
    Refusal.SUSPENDED: pb.AUTHORIZATION_REFUSAL_SUSPENDED,
    Refusal.DELETED: pb.AUTHORIZATION_REFUSAL_DELETED,
}
_SHA256_BYTES: Final = 32


class AuthorizerService:
    def __init__(self, engine: AsyncEngine, events: Events) -> None:
        self._engine = engine
        self._events = events

    async def is_authorized(
        self, request: IsAuthorizedRequest, _ctx: RequestContext[IsAuthorizedRequest, IsAuthorizedResponse]
    ) -> IsAuthorizedResponse:
        subject = request.WhichOneof("subject")
        if subject is None:
            raise ConnectError(Code.INVALID_ARGUMENT, "one of token_sha256 and key_id is needed")
        if subject == "token_sha256" and len(request.token_sha256) != _SHA256_BYTES:
            raise ConnectError(Code.INVALID_ARGUMENT, f"token_sha256 must be {_SHA256_BYTES} bytes")
        found, seq = await guarded("is authorized", lambda: self._lookup(request, subject))
        return _to_wire(found, seq)

    async def watch_revocations(
        self, request: WatchRevocationsRequest, _ctx: RequestContext[WatchRevocationsRequest, Revocation]
    ) -> AsyncGenerator[Revocation]:
        with self._events.subscribe(REVOCATIONS) as changes:
            position = request.after_seq
            if position == 0:
                # who knows no number may still know answers: of a link before it
                position = await guarded("watch revocations", self._newest)
                yield Revocation(seq=position, reset=True)
            else:
                yield Revocation(seq=position)
            changes.wake()
            async for woken in beating(changes):
                if not woken:
                    yield Revocation(seq=position)
                    continue
                lost, page = await guarded("watch revocations", partial(self._after, position))
                if lost is not None:
                    position = lost
                    yield Revocation(seq=lost, reset=True)
                    continue
                for one in page:
                    position = one.seq
                    yield Revocation(seq=one.seq, api_key_id=one.api_key_id, owner_id=one.owner_id)
                if page:
                    changes.wake()  # it may have been full

    async def _newest(self) -> int:
        async with self._engine.connect() as connection:
            return await identity.newest_revocation(connection)

    async def _after(self, position: int) -> tuple[int | None, list[identity.Revocation]]:
        """What came after; of one moment, so that nothing is pruned between looking for a gap and reading on."""
        async with self._engine.connect() as connection:
            await connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            lost = await identity.missed(connection, position)
            return lost, [] if lost is not None else await identity.revocations_after(connection, position)

    async def _lookup(self, request: IsAuthorizedRequest, subject: str) -> tuple[Identity | Refusal, int]:
        async with self._engine.connect() as connection:
            if subject == "token_sha256":
                return await identity.lookup_numbered(connection, token_sha256=request.token_sha256)
            return await identity.lookup_numbered(connection, key_id=request.key_id)


def _to_wire(found: Identity | Refusal, seq: int) -> IsAuthorizedResponse:
    if isinstance(found, Refusal):
        return IsAuthorizedResponse(refusal=_REFUSALS[found], ttl=TTL_SECONDS, seq=seq)
    return IsAuthorizedResponse(
        owner_id=found.owner_id,
        api_key_id=found.api_key_id,
        username=found.username,
        email=found.email,
        role=found.role,
        expires_at=found.expires_at,
        ttl=TTL_SECONDS,
        seq=seq,
    )
