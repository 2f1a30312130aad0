"""The control plane's RPC surface as the link calls it.

Rules
- Every call carries the gateway key, the version and the build, and has a time-out. Nothing is retried here.
- A failure is a `ControlFailure`. It tells an answer that a control plane gave (a Connect code) from one that something
  else gave in its place (a plain HTTP status: an ingress, a wrong address).
- Redirects are not followed and cookies not kept. Towards the loopback no proxy of the environment is used and nothing
  is compressed.
"""

import asyncio
import ipaddress
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar
from urllib.parse import urlsplit

import msgspec
from connectrpc.client import ConnectClient
from connectrpc.code import Code
from connectrpc.compression import Compression
from connectrpc.compression.gzip import GzipCompression
from connectrpc.errors import ConnectError
from google.protobuf.message import Message
from pyqwest import Client, HTTPTransport, Proxy, Request, Response

from ostiary import __version__
from ostiary.core.families import Family
from ostiary.core.secret import Secret
from ostiary.core.settings import TLSFiles
from ostiary.rpc import version
from ostiary.rpc.ostiary_connect import AuthorizerClient, FleetClient, ProviderConfiguratorClient, RecorderClient
from ostiary.rpc.ostiary_pb2 import (
    GetAIProvidersRequest,
    GetAIProvidersResponse,
    GetMetricsRequest,
    IsAuthorizedRequest,
    IsAuthorizedResponse,
    RecordAck,
    RecordBatch,
    ReportStatusRequest,
    ReportStatusResponse,
    Revocation,
    WatchAIProvidersRequest,
    WatchAIProvidersResponse,
    WatchRevocationsRequest,
)

CONNECT_TIMEOUT = 5.0
POLL_TIMEOUT = 12.0
"""Seconds; above what the control plane waits for a seed in flight."""
STATUS_TIMEOUT = 10.0
RECORD_TIMEOUT = 75.0
"""Seconds; above what the control plane allows a batch to take."""
MAX_ANSWER = 64 * 1024**2
_MAX_ERROR_BODY = 64 * 1024
_MAX_MESSAGE = 300
_CERTIFICATE_CURES = {
    "UnknownIssuer": "the server's certificate is of a CA that is not trusted: name it with control_ca_file",
    "CaUsedAsEndEntity": "the server's certificate is that of a CA: let it issue one for the server, or make a "
    "self-signed one with `openssl req -x509 -addext basicConstraints=critical,CA:FALSE`",
}
"""By the word that the TLS library has for it."""

_Answer = TypeVar("_Answer", bound=Message)
_Service = TypeVar("_Service", bound=ConnectClient)


class ControlFailure(Exception):  # noqa: N818 - a failure of the other side, which callers live with
    """A call that got no answer, or a refusal. `str()` is one line without secrets."""

    def __init__(self, code: Code, message: str, plain_status: int | None = None, *, unreached: bool = False) -> None:
        super().__init__(" ".join(message.split())[:_MAX_MESSAGE] or code.value)
        self.code = code
        self.plain_status = plain_status
        """Set when the answer did not come from a control plane."""
        self.unreached = unreached
        """Nothing answered: the text is the HTTP library's, and names the control plane's address."""

    @property
    def passing(self) -> bool:
        """Nobody answered, or not yet: worth another attempt soon."""
        return self.code in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.CANCELED)

    @property
    def refuses_key(self) -> bool:
        """A control plane says that this gateway's key is none."""
        return self.plain_status is None and self.code in (Code.UNAUTHENTICATED, Code.PERMISSION_DENIED)

    @property
    def too_large(self) -> bool:
        return self.plain_status == 413 or (self.plain_status is None and self.code is Code.RESOURCE_EXHAUSTED)

    def fatal(self, url: str, *, ever_up: bool) -> str | None:
        """The one line with which the process must end, saying what to do (design §9); None: try again."""
        if self.refuses_key:
            return (
                f"the control plane at {url} refuses this gateway's key ({self}): make one with `ostiary gateway keys "
                "create NAME` and start again with it"
            )
        if ever_up:
            return None
        if self.plain_status in (401, 403):
            return (
                f"something in front of the control plane at {url} answers {self.plain_status}: let requests to "
                "/ostiary.v1.* through, or correct the control plane's URL"
            )
        if self.plain_status == 404 or (self.plain_status is None and self.code is Code.UNIMPLEMENTED):
            return (
                f"no control plane that this gateway can use answers at {url} ({self}): correct the URL, or upgrade the "
                "control plane first"
            )
        if self.plain_status is None and self.code is Code.FAILED_PRECONDITION:
            return f"the control plane at {url} does not take this gateway: {self}"
        return None


class ControlClient:
    """An async context manager. Its calls take `within` seconds at most and raise `ControlFailure`.

    `ca_file` has certificates that vouch for the control plane beside the system's, `tls` is shown to it.
    Raises `OSError` for one that cannot be read.
    """

    def __init__(self, url: str, gateway_key: Secret, ca_file: str = "", tls: TLSFiles | None = None) -> None:
        self.url = url.rstrip("/")
        self._key = gateway_key
        host = urlsplit(self.url).hostname or ""
        loopback = _is_loopback(host)
        self._transport = HTTPTransport(
            tls_include_system_certs=self.url.startswith("https:"),
            tls_ca_cert=Path(ca_file).read_bytes() if ca_file else None,
            tls_cert=Path(tls.cert_file).read_bytes() if tls is not None else None,
            tls_key=Path(tls.key_file).read_bytes() if tls is not None else None,
            # only a proxy rule of our own keeps the environment's away; this one matches nothing
            proxy=Proxy("http://127.0.0.1:9", no_proxy=host) if loopback else None,
            connect_timeout=CONNECT_TIMEOUT,
            follow_redirects=False,
            enable_otel=False,
        )
        http = Client(_AnswersOfControlPlanes(self._transport))
        send: Compression | None = None if loopback else GzipCompression()
        accept: tuple[Compression, ...] = () if loopback else (GzipCompression(),)

        def service(kind: type[_Service]) -> _Service:
            return kind(
                self.url,
                http_client=http,
                send_compression=send,
                accept_compression=accept,
                read_max_bytes=MAX_ANSWER,
            )

        self._recorder = service(RecorderClient)
        self._authorizer = service(AuthorizerClient)
        self._configurator = service(ProviderConfiguratorClient)
        self._fleet = service(FleetClient)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._transport.aclose()

    async def record(self, batch: RecordBatch, within: float = RECORD_TIMEOUT) -> RecordAck:
        return await self._call(self._recorder.record, batch, within)

    async def is_authorized(self, token_sha256: bytes, within: float) -> IsAuthorizedResponse:
        return await self._call(self._authorizer.is_authorized, IsAuthorizedRequest(token_sha256=token_sha256), within)

    async def get_ai_providers(self, known_revision: int, within: float = POLL_TIMEOUT) -> GetAIProvidersResponse:
        request = GetAIProvidersRequest(known_revision=known_revision)
        return await self._call(self._configurator.get_ai_providers, request, within)

    def watch_ai_providers(self, silence: float) -> AsyncGenerator[WatchAIProvidersResponse]:
        """Until it fails, at the latest after `silence` seconds without a word."""
        return self._stream(self._configurator.watch_ai_providers, WatchAIProvidersRequest(), silence)

    def watch_revocations(self, after_seq: int, silence: float) -> AsyncGenerator[Revocation]:
        """The same."""
        request = WatchRevocationsRequest(after_seq=after_seq)
        return self._stream(self._authorizer.watch_revocations, request, silence)

    async def report_status(self, status: ReportStatusRequest, within: float = STATUS_TIMEOUT) -> ReportStatusResponse:
        return await self._call(self._fleet.report_status, status, within)

    async def get_metrics(self, within: float) -> list[Family]:
        """What the control plane of this machine counts."""
        answer = await self._call(self._fleet.get_metrics, GetMetricsRequest(), within)
        try:
            return _families.decode(answer.families)
        except msgspec.DecodeError as error:
            raise ControlFailure(Code.INTERNAL, "the answer holds no metrics") from error

    async def _call(self, method: Callable[..., Awaitable[_Answer]], request: Message, within: float) -> _Answer:
        try:
            answer = await method(request, headers=self._headers(), timeout_ms=max(1, int(within * 1000)))
        except ConnectError as error:
            _check_cancelled()
            raise _failure(error) from error
        _check_cancelled()
        return answer

    async def _stream(
        self, method: Callable[..., AsyncIterator[_Answer]], request: Message, silence: float
    ) -> AsyncGenerator[_Answer]:
        messages = method(request, headers=self._headers())
        try:
            while True:
                quiet = asyncio.timeout(silence)
                try:
                    async with quiet:
                        message = await anext(messages)
                except StopAsyncIteration:
                    raise ControlFailure(Code.UNAVAILABLE, "the control plane ended the watch") from None
                except (ConnectError, TimeoutError) as error:
                    _check_cancelled()
                    if quiet.expired() or isinstance(error, TimeoutError):
                        reason = f"nothing was heard for {silence:g} s"
                        raise ControlFailure(Code.DEADLINE_EXCEEDED, reason) from error
                    raise _failure(error) from error
                _check_cancelled()
                yield message
        finally:
            if isinstance(messages, AsyncGenerator):
                await messages.aclose()

    def _headers(self) -> dict[str, str]:
        return {
            version.HEADER_GATEWAY_KEY: self._key.reveal(),
            version.HEADER_API_VERSION: version.CURRENT,
            version.HEADER_BUILD: __version__,
        }


def _failure(error: ConnectError) -> ControlFailure:
    cause = error.__cause__
    if isinstance(cause, _PlainAnswer):
        return ControlFailure(error.code, error.message, cause.status)
    cure = next((text for word, text in _CERTIFICATE_CURES.items() if word in error.message), "")
    return ControlFailure(error.code, cure or error.message, unreached=cause is not None)


def _check_cancelled() -> None:
    """The library makes an error of our own cancellation, or loses it to an answer that comes at the same moment."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


class _PlainAnswer(Exception):  # noqa: N818 - carries an answer
    def __init__(self, status: int) -> None:
        super().__init__(f"HTTP {status} from something that is not a control plane")
        self.status = status


class _AnswersOfControlPlanes:
    """A transport that lets error answers through only when a Connect server made them."""

    def __init__(self, inner: HTTPTransport) -> None:
        self._inner = inner

    async def execute(self, request: Request) -> Response:
        response = await self._inner.execute(request)
        if response.status == 200:
            return response
        body = bytearray()
        async with response:
            async for chunk in response.content:
                body += chunk
                if len(body) > _MAX_ERROR_BODY:
                    break
        if not _has_connect_code(bytes(body)):
            raise _PlainAnswer(response.status)
        return Response(status=response.status, headers=response.headers, content=bytes(body))


_families = msgspec.msgpack.Decoder(list[Family])


class _ErrorBody(msgspec.Struct):
    code: str


_error_body = msgspec.json.Decoder(_ErrorBody)
_CONNECT_CODES = frozenset(code.value for code in Code)


def _has_connect_code(body: bytes) -> bool:
    try:
        return _error_body.decode(body).code in _CONNECT_CODES
    except msgspec.DecodeError:
        return False


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
