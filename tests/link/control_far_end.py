"""The far end of the wire for the link's tests: a real Connect server over HTTP, with lists in place of a database.

`async with FarEnd() as far` serves on a loopback port whose listening socket stays open, as the supervisor's does.
`stop()` and `start()` restart the server behind it.
"""

import asyncio
import json
import socket
import time
from collections.abc import AsyncGenerator, Callable
from typing import Any, Self

import msgspec
import uvicorn
from connectrpc.code import Code
from connectrpc.errors import ConnectError

from ostiary.core.families import Family
from ostiary.core.records import decode_record
from ostiary.core.secret import Secret
from ostiary.rpc import version
from ostiary.rpc.ostiary_connect import (
    AuthorizerASGIApplication,
    FleetASGIApplication,
    ProviderConfiguratorASGIApplication,
    RecorderASGIApplication,
)
from ostiary.rpc.ostiary_pb2 import (
    AIProvider,
    AuthorizationRefusal,
    GetAIProvidersRequest,
    GetAIProvidersResponse,
    GetMetricsRequest,
    GetMetricsResponse,
    IsAuthorizedRequest,
    IsAuthorizedResponse,
    RecordAck,
    RecordBatch,
    RejectedRecord,
    ReportStatusRequest,
    ReportStatusResponse,
    Revocation,
    WatchAIProvidersRequest,
    WatchAIProvidersResponse,
    WatchRevocationsRequest,
)

KEY = "gateway-key-for-tests-0123456789"
READ_MAX = 4 * 1024 * 1024


class FarEnd:
    """What it stored and was asked is public; so is what it answers next."""

    def __init__(self) -> None:
        self.journals: dict[str, int] = {}
        """Journal → acked_seq."""
        self.frames: dict[str, list[bytes]] = {}
        """Journal → every frame it counted, in order of its number."""
        self.rows: dict[str, bytes] = {}
        """Record id and kind → payload: an id that exists is not stored again."""
        self.duplicates = 0
        self.rejected: list[tuple[str, int, bytes]] = []
        self.batches: list[tuple[str, int, int]] = []
        """(journal, first_seq, records) of each batch that came, before anything was made of it."""
        self.revision = 1
        self.providers: list[AIProvider] = []
        self.tokens: dict[bytes, IsAuthorizedResponse] = {}
        self.asked: list[bytes] = []
        self.polls: list[int] = []
        self.headers: list[dict[str, str]] = []
        self.failing: dict[str, list[ConnectError | None]] = {
            "record": [],
            "is_authorized": [],
            "get_ai_providers": [],
            "watch_ai_providers": [],
            "watch_revocations": [],
            "report_status": [],
            "get_metrics": [],
        }
        """RPC → errors for its next calls; None lets one through. `always` has its own."""
        self.always: dict[str, ConnectError] = {}
        self.lose_answers = 0
        """Batches to store and then not answer."""
        self.plain: tuple[int, bytes, str] | None = None
        """Status, body and content type that answer everything, as an ingress would."""
        self.hold: asyncio.Event | None = None
        """While set and not fired, authorisations wait for it."""
        self.revocations: list[Revocation] = []
        """What a watch is told, from behind its number on; `tell` wakes it."""
        self.watched: list[int] = []
        """after_seq of each watch of revocations that began."""
        self.statuses: list[ReportStatusRequest] = []
        """What was reported, the refused ones too."""
        self.clock: Callable[[], int] = lambda: time.time_ns() // 1000
        """What a report is told of the time; 0: nothing."""
        self.families: list[Family] = []
        """What a scrape is told."""
        self.silent = False
        """Watches say nothing any more."""
        self.told = asyncio.Condition()
        self._listening = socket.socket()
        self._listening.bind(("127.0.0.1", 0))
        self._listening.listen(128)
        self._server: uvicorn.Server | None = None
        self._serving: asyncio.Task[None] | None = None
        self._apps = {
            "/ostiary.v1.Recorder": RecorderASGIApplication(self, read_max_bytes=READ_MAX),
            "/ostiary.v1.Authorizer": AuthorizerASGIApplication(self),
            "/ostiary.v1.ProviderConfigurator": ProviderConfiguratorASGIApplication(self),
            "/ostiary.v1.Fleet": FleetASGIApplication(self),
        }

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listening.getsockname()[1]}"

    @property
    def key(self) -> Secret:
        return Secret(KEY)

    async def start(self) -> None:
        config = uvicorn.Config(
            self._app,
            interface="asgi3",
            lifespan="off",
            log_level="error",
            access_log=False,
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)
        # without uvicorn's signal handlers: the test runner keeps its own
        self._serving = asyncio.create_task(self._server._serve(sockets=[self._listening.dup()]))
        while not self._server.started:
            await asyncio.sleep(0.005)

    async def stop(self) -> None:
        """As a crash: connections are cut, nothing is answered any more. Connecting goes on to work."""
        assert self._server
        assert self._serving
        self._server.should_exit = self._server.force_exit = True
        self._cut(self._server)
        await self._serving
        self._cut(self._server)  # who came while it was ending
        self._server = None

    def _cut(self, server: uvicorn.Server) -> None:
        for connection in tuple(server.server_state.connections):
            connection.transport.abort()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._server:
            await self.stop()
        self._listening.close()

    # --- HTTP

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        headers = {name.decode().lower(): value.decode() for name, value in scope["headers"]}
        self.headers.append(headers)
        if self.plain:
            await _answer(send, *self.plain)
        elif headers.get(version.HEADER_GATEWAY_KEY.lower()) != KEY:
            body = {"code": "unauthenticated", "message": "unknown gateway key"}
            await _answer(send, 401, json.dumps(body).encode(), "application/json")
        elif why := version.incompatibility(headers[version.HEADER_API_VERSION.lower()]):
            body = {"code": "failed_precondition", "message": why}
            await _answer(send, 400, json.dumps(body).encode(), "application/json")
        else:
            await self._apps["/" + scope["path"].split("/")[1]](scope, receive, send)

    def _maybe_fail(self, rpc: str) -> None:
        queued = self.failing[rpc]
        error = queued.pop(0) if queued else self.always.get(rpc)
        if error is not None:
            raise error

    # --- the services

    async def record(self, request: RecordBatch, _ctx: object) -> RecordAck:
        self._maybe_fail("record")
        journal, first = request.journal_id, request.first_seq
        acked = self.journals.get(journal, 0)
        if not request.records:
            return RecordAck(acked_seq=acked)
        self.batches.append((journal, first, len(request.records)))
        if first > acked + 1:
            raise ConnectError(Code.FAILED_PRECONDITION, f"gap: stored up to {acked}, got {first}")
        rejected = []
        for seq, payload in enumerate(request.records, start=first):
            if seq <= acked:
                continue
            self.frames.setdefault(journal, []).append(payload)
            if not self._store(payload):
                self.rejected.append((journal, seq, payload))
                rejected.append(RejectedRecord(seq=seq, reason="not a record"))
            acked = seq
        self.journals[journal] = acked
        if self.lose_answers:
            self.lose_answers -= 1
            raise ConnectError(Code.UNAVAILABLE, "stored, but you will not learn it from me")
        return RecordAck(acked_seq=acked, rejected=rejected)

    def _store(self, payload: bytes) -> bool:
        try:
            record = decode_record(payload)
        except msgspec.DecodeError:
            return False
        key = f"{type(record).__name__} {getattr(record, 'id', id(payload))}"
        if key in self.rows:
            self.duplicates += 1
        else:
            self.rows[key] = payload
        return True

    async def is_authorized(self, request: IsAuthorizedRequest, _ctx: object) -> IsAuthorizedResponse:
        self.asked.append(request.token_sha256)
        if self.hold is not None:
            await self.hold.wait()
        self._maybe_fail("is_authorized")
        unknown = IsAuthorizedResponse(refusal=AuthorizationRefusal.AUTHORIZATION_REFUSAL_UNKNOWN)
        return self.tokens.get(request.token_sha256, unknown)

    async def get_ai_providers(self, request: GetAIProvidersRequest, _ctx: object) -> GetAIProvidersResponse:
        self.polls.append(request.known_revision)
        self._maybe_fail("get_ai_providers")
        if self.revision and request.known_revision == self.revision:
            return GetAIProvidersResponse(revision=self.revision, unchanged=True)
        return GetAIProvidersResponse(revision=self.revision, providers=self.providers)

    async def watch_ai_providers(
        self, _request: WatchAIProvidersRequest, _ctx: object
    ) -> AsyncGenerator[WatchAIProvidersResponse]:
        self._maybe_fail("watch_ai_providers")
        told = -1
        while True:
            async with self.told:
                while self.silent or told == self.revision:
                    await self.told.wait()
            told = self.revision
            yield WatchAIProvidersResponse(kind=WatchAIProvidersResponse.KIND_CHANGED, revision=told)

    async def report_status(self, request: ReportStatusRequest, _ctx: object) -> ReportStatusResponse:
        self.statuses.append(request)
        self._maybe_fail("report_status")
        return ReportStatusResponse(now_us=self.clock())

    async def get_metrics(self, _request: GetMetricsRequest, _ctx: object) -> GetMetricsResponse:
        self._maybe_fail("get_metrics")
        return GetMetricsResponse(families=msgspec.msgpack.encode(self.families))

    async def watch_revocations(self, request: WatchRevocationsRequest, _ctx: object) -> AsyncGenerator[Revocation]:
        self._maybe_fail("watch_revocations")
        self.watched.append(request.after_seq)
        position = request.after_seq
        yield Revocation(seq=position, reset=not position)
        while True:
            async with self.told:
                while self.silent or not (newer := [one for one in self.revocations if one.seq > position]):
                    await self.told.wait()
            for one in newer:
                position = one.seq
                yield one

    async def tell(self) -> None:
        """Wake the watches."""
        async with self.told:
            self.told.notify_all()


async def _answer(send: Any, status: int, body: bytes, content_type: str) -> None:
    headers = [(b"content-type", content_type.encode()), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def until(condition: Any, within: float = 20.0) -> Any:
    """Wait for a condition: gives its first true value."""
    async with asyncio.timeout(within):
        while not (value := condition()):
            await asyncio.sleep(0.005)
        return value
