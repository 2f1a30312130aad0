"""Authorizer: who a token is, or why it is refused (reference B.5). The token itself never comes here."""

from typing import Final

from connectrpc.code import Code
from connectrpc.errors import ConnectError
from connectrpc.request import RequestContext
from sqlalchemy.ext.asyncio import AsyncEngine

from ostiary.control import identity
from ostiary.core.identity import Identity, Refusal
from ostiary.rpc import ostiary_pb2 as pb
from ostiary.rpc.ostiary_pb2 import IsAuthorizedRequest, IsAuthorizedResponse

from .gate import guarded

TTL_SECONDS: Final = 5.0
"""How long an answer may be used without asking again; as long as revocations are not pushed."""

_REFUSALS: Final = {
    Refusal.UNKNOWN: pb.AUTHORIZATION_REFUSAL_UNKNOWN,
    Refusal.EXPIRED: pb.AUTHORIZATION_REFUSAL_EXPIRED,
    Refusal.REVOKED: pb.AUTHORIZATION_REFUSAL_REVOKED,
    Refusal.SUSPENDED: pb.AUTHORIZATION_REFUSAL_SUSPENDED,
    Refusal.DELETED: pb.AUTHORIZATION_REFUSAL_DELETED,
}
_SHA256_BYTES: Final = 32


class AuthorizerService:
    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def is_authorized(
        self, request: IsAuthorizedRequest, _ctx: RequestContext[IsAuthorizedRequest, IsAuthorizedResponse]
    ) -> IsAuthorizedResponse:
        subject = request.WhichOneof("subject")
        if subject is None:
            raise ConnectError(Code.INVALID_ARGUMENT, "one of token_sha256 and key_id is needed")
        if subject == "token_sha256" and len(request.token_sha256) != _SHA256_BYTES:
            raise ConnectError(Code.INVALID_ARGUMENT, f"token_sha256 must be {_SHA256_BYTES} bytes")
        return _to_wire(await guarded("is authorized", lambda: self._lookup(request, subject)))

    async def _lookup(self, request: IsAuthorizedRequest, subject: str) -> Identity | Refusal:
        async with self._engine.connect() as connection:
            if subject == "token_sha256":
                return await identity.lookup(connection, token_sha256=request.token_sha256)
            return await identity.lookup(connection, key_id=request.key_id)


def _to_wire(found: Identity | Refusal) -> IsAuthorizedResponse:
    if isinstance(found, Refusal):
        return IsAuthorizedResponse(refusal=_REFUSALS[found], ttl=TTL_SECONDS)
    return IsAuthorizedResponse(
        owner_id=found.owner_id,
        api_key_id=found.api_key_id,
        username=found.username,
        email=found.email,
        role=found.role,
        expires_at=found.expires_at,
        ttl=TTL_SECONDS,
    )
