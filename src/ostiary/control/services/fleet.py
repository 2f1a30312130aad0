"""Fleet: gateways say how they are. What they say is kept as text and numbers, cut to size, and never trusted further.

And the link of our own machine asks how we are, for its metrics page.
"""

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final
from uuid import UUID

import msgspec
from connectrpc.code import Code
from connectrpc.errors import ConnectError
from connectrpc.request import RequestContext
from google.protobuf.message import Message
from sqlalchemy.ext.asyncio import AsyncEngine

from ostiary.control.store.replicas import store_replica
from ostiary.core.families import Family
from ostiary.rpc.ostiary_pb2 import GetMetricsRequest, GetMetricsResponse, ReportStatusRequest, ReportStatusResponse

from .gate import guarded

MAX_TEXT: Final = 512
_MODES: Final = ("embedded", "standalone")
_LISTS: Final = ("workers", "keys", "breakers", "journals")
_MAX_BIGINT: Final = 2**63 - 1


class FleetService:
    def __init__(self, engine: AsyncEngine, families: Callable[[], Awaitable[list[Family]]]) -> None:
        """`families`: what the control plane counts and measures."""
        self._engine = engine
        self._families = families

    async def report_status(
        self, request: ReportStatusRequest, _ctx: RequestContext[ReportStatusRequest, ReportStatusResponse]
    ) -> ReportStatusResponse:
        replica_id = _replica_id(request.replica_id)
        if request.mode not in _MODES:
            raise ConnectError(Code.INVALID_ARGUMENT, f"mode must be one of {', '.join(_MODES)}")
        now = time.time_ns() // 1000
        await guarded("report status", lambda: self._store(replica_id, request))
        return ReportStatusResponse(now_us=now)

    async def get_metrics(
        self, _request: GetMetricsRequest, _ctx: RequestContext[GetMetricsRequest, GetMetricsResponse]
    ) -> GetMetricsResponse:
        families = await guarded("get metrics", self._families)
        return GetMetricsResponse(families=msgspec.msgpack.encode(families))

    async def _store(self, replica_id: str, request: ReportStatusRequest) -> None:
        status: dict[str, Any] = {name: [_plain(one) for one in getattr(request, name)] for name in _LISTS}
        status["clock_ahead_us"] = request.clock_ahead_us if request.HasField("clock_ahead_us") else None
        status["provider_errors"] = {_text(name): _text(reason) for name, reason in request.provider_errors.items()}
        async with self._engine.begin() as connection:
            await store_replica(
                connection,
                replica_id,
                hostname=_text(request.hostname),
                mode=request.mode,
                build=_text(request.build),
                revision=min(request.revision, _MAX_BIGINT),
                status=status,
            )


def _plain(message: Message) -> dict[str, Any]:
    """Its fields by name, the empty ones too."""
    return {field.name: _value(getattr(message, field.name)) for field in message.DESCRIPTOR.fields}


def _value(value: Any) -> Any:
    if isinstance(value, str):
        return _text(value)
    # the only fields that repeat are messages
    return [_plain(one) for one in value] if isinstance(value, Sequence) else value


def _text(value: str) -> str:
    return value[:MAX_TEXT].replace("\x00", "\N{REPLACEMENT CHARACTER}")  # PostgreSQL's text takes no NUL


def _replica_id(text: str) -> str:
    try:
        return str(UUID(text))
    except ValueError as exc:
        raise ConnectError(Code.INVALID_ARGUMENT, "replica_id must be a UUID") from exc
