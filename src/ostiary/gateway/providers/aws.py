"""AWS identities: credentials fetched, kept and refreshed ahead of their end, and requests signed with them (reference E.2).

Rules
- botocore finds credentials and signs; it blocks, so it runs in threads, never on the event loop, and is imported there:
  a gateway without AWS never loads it. Nothing is fetched before the first request.
- One fetch at a time for one identity. Requests wait for it only when there is nothing valid; ahead of the end it runs
  beside them. A thread of its own, as a daemon: what hangs in it (a credential process) holds up neither other
  identities nor the end of the process.
- A wait is bounded, a failure is remembered for a few seconds so that a crowd of requests does not become one of fetches.
- An identity outlives the snapshot that needed it: a reload of providers does not drop what was fetched.
"""

import asyncio
import hashlib
import os
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Thread
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar, cast

from ostiary.core.providers import BedrockSettings
from ostiary.core.secret import Secret, mask

from .adapter import AdapterError

if TYPE_CHECKING:
    from botocore.session import Session

T = TypeVar("T")

SESSION_NAME: Final = "ostiary"
"""Of assumed roles; it stands in AWS's own audit log."""

WAIT_SECONDS: Final = 30.0
"""How long a request waits for credentials."""
FAILURE_SECONDS: Final = 5.0
"""How long a failed fetch is not repeated."""
AHEAD_SECONDS: Final = 300.0
"""How long before their end credentials are fetched anew; of short-lived ones a quarter of their life."""
RENEW_SECONDS: Final = 300.0
"""After which those without an end are looked up again: files and the environment's helpers change."""
DISTRUST_SECONDS: Final = 30.0
"""How old credentials must be to be fetched anew because AWS refused them."""
ABANDON_SECONDS: Final = 600.0
"""After which a fetch that never came back no longer stands in the way of another."""
_MAX_IDENTITIES: Final = 256
_MAX_CAUSE: Final = 400
_CONNECT_SECONDS: Final = 5
_READ_SECONDS: Final = 10
_METADATA: Final = "http://169.254.169.254"

_signers: Final = ThreadPoolExecutor(2, thread_name_prefix="aws-signing")


class Credentials:
    """What requests are signed with, and the region that they are signed for."""

    __slots__ = ("access_key", "expires_at", "region", "secret_key", "token")

    def __init__(
        self, access_key: str, secret_key: Secret, token: Secret, region: str, expires_at: float | None = None
    ) -> None:
        self.access_key = access_key
        self.secret_key = secret_key
        self.token = token
        """Empty for long-term keys."""
        self.region = region
        self.expires_at = expires_at
        """Unix seconds."""

    @property
    def hint(self) -> str:
        return mask(self.access_key)

    def __repr__(self) -> str:
        return f"Credentials({self.hint})"


class CredentialsError(Exception):
    """No credentials: the text says why and what can be done, and holds no secret."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Source(Protocol):
    """Where credentials come from."""

    hint: str
    """What is shown of it before it was asked."""
    lasting: bool
    """What it gives is never to be fetched again."""

    def fetch(self) -> Credentials:
        """Blocks. Raises `CredentialsError`; other exceptions are of botocore and may hold anything."""


class BotocoreSource:
    """Static keys or the default chain, and on top of either, if one is named, a role."""

    def __init__(self, settings: BedrockSettings, region: str) -> None:
        self._settings = settings
        self._region = region
        self.hint = settings.role_arn or settings.access_key.masked or "default chain"
        self.lasting = bool(settings.access_key) and not settings.role_arn

    def fetch(self) -> Credentials:
        if self.lasting and self._region:
            return self._static(self._region)
        from botocore.session import Session

        session = Session()
        region = self._region or _default_region(session)
        if not region:
            raise CredentialsError(
                503,
                "No AWS region is known to sign for: set `region` in the provider's settings, or AWS_REGION where the "
                "gateway runs.",
            )
        settings = self._settings
        base = self._static(region) if settings.access_key else _from_chain(session, region)
        return self._assume(session, base) if settings.role_arn else base

    def _static(self, region: str) -> Credentials:
        return Credentials(self._settings.access_key.reveal(), self._settings.access_key_secret, Secret(""), region)

    def _assume(self, session: "Session", base: Credentials) -> Credentials:
        from botocore.exceptions import BotoCoreError, ClientError

        role, external_id = self._settings.role_arn, self._settings.external_id
        client = client_of(session, "sts", base)
        external = {"ExternalId": external_id} if external_id else {}
        try:
            answer = client.assume_role(RoleArn=role, RoleSessionName=SESSION_NAME, **external)
        except (BotoCoreError, ClientError) as exc:
            raise _role_error(exc, role, base) from None
        finally:
            client.close()
        given = answer["Credentials"]
        return Credentials(
            given["AccessKeyId"],
            Secret(given["SecretAccessKey"]),
            Secret(given["SessionToken"]),
            base.region,
            given["Expiration"].timestamp(),
        )


class Identity:
    """One identity's credentials, kept. Not thread-safe: it belongs to the event loop."""

    def __init__(self, source: Source, clock: Callable[[], float] = time.time) -> None:
        self._source = source
        self._clock = clock
        self._current: Credentials | None = None
        self._fetched_at = 0.0
        self._error: CredentialsError | None = None
        self._failed_at = 0.0
        self._pending: asyncio.Future[Credentials] | None = None
        self._began_at = 0.0

    @property
    def hint(self) -> str:
        """Masked; of the credentials in use, else of where they come from."""
        return self._current.hint if self._current is not None else self._source.hint

    async def credentials(self) -> Credentials:
        """What to sign with now. Raises `AdapterError`."""
        now = self._clock()
        current = self._current
        if current is not None and now < self._end_of_use(current):
            if now >= self._due(current) and self._may_fetch(now):
                self._fetch(now)
            return current
        if self._may_fetch(now):
            self._fetch(now)
        if self._is_pending(now):
            await self._settled(now)
        current = self._current
        if current is not None and self._clock() < self._end_of_use(current):
            return current
        error = self._error or CredentialsError(503, f"AWS credentials were not there within {WAIT_SECONDS:.0f} s.")
        raise AdapterError(error.status, str(error))

    def distrust(self) -> None:
        """AWS refused what was signed: the credentials may have been revoked or replaced."""
        if not self._source.lasting and self._clock() - self._fetched_at > DISTRUST_SECONDS:
            self._current = None

    def _due(self, current: Credentials) -> float:
        if current.expires_at is None:
            return float("inf") if self._source.lasting else self._fetched_at + RENEW_SECONDS
        return current.expires_at - min(AHEAD_SECONDS, (current.expires_at - self._fetched_at) / 4)

    def _end_of_use(self, current: Credentials) -> float:
        if current.expires_at is None:
            return float("inf")
        # a request that is signed now is checked a moment later, by another clock
        return current.expires_at - min(10.0, (current.expires_at - self._fetched_at) / 10)

    def _may_fetch(self, now: float) -> bool:
        return not self._is_pending(now) and not (self._error and 0 <= now - self._failed_at < FAILURE_SECONDS)

    def _is_pending(self, now: float) -> bool:
        pending = self._pending
        if pending is None or pending.get_loop() is not asyncio.get_running_loop():
            return False
        return now - self._began_at < ABANDON_SECONDS

    async def _settled(self, now: float) -> None:
        """Wait for the fetch that runs, as long as is left of its time."""
        pending = self._pending
        assert pending is not None
        left = min(max(0.0, self._began_at + WAIT_SECONDS - now), WAIT_SECONDS)  # the clock may have been set back
        done, _ = await asyncio.wait([pending], timeout=left)
        if not done and self._error is None:
            self._fail(CredentialsError(503, f"AWS credentials were not there within {WAIT_SECONDS:.0f} s."))

    def _fetch(self, now: float) -> None:
        pending = self._pending = in_thread(self._source.fetch)
        self._began_at = now
        pending.add_done_callback(self._fetched)

    def _fetched(self, pending: "asyncio.Future[Credentials]") -> None:
        exc = pending.exception()
        if pending is not self._pending:
            return
        self._pending = None
        if exc is None:
            self._current, self._fetched_at, self._error = pending.result(), self._clock(), None
        else:
            self._fail(exc if isinstance(exc, CredentialsError) else _lookup_error(exc))

    def _fail(self, error: CredentialsError) -> None:
        self._error = error
        self._failed_at = self._clock()


class Identities:
    """The identities of a process, by the settings that name them; the least recently used go first."""

    def __init__(self, limit: int = _MAX_IDENTITIES) -> None:
        self._limit = limit
        self._held: OrderedDict[bytes, Identity] = OrderedDict()

    def of(self, settings: BedrockSettings, region: str) -> Identity:
        """The same object for the same settings. `region` may be empty: then AWS's own configuration says it."""
        keys = (settings.access_key.reveal(), settings.access_key_secret.reveal())
        told = (region, *keys, settings.role_arn, settings.external_id)
        digest = hashlib.sha256("\0".join(told).encode()).digest()
        found = self._held.get(digest)
        if found is None:
            found = self._held[digest] = Identity(BotocoreSource(settings, region))
            if len(self._held) > self._limit:
                self._held.popitem(last=False)
        self._held.move_to_end(digest)
        return found


SHARED: Final = Identities()


def in_thread(work: Callable[[], T]) -> "asyncio.Future[T]":
    """What `work` gives or raises, in a daemon thread of its own: it may hang."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, exc: Exception | None) -> None:
        if exc is None:
            future.set_result(cast(T, result))
        else:
            future.set_exception(exc)

    def run() -> None:
        result, raised = None, None
        try:
            result = work()
        except Exception as exc:  # noqa: BLE001 - botocore's plugins and helpers raise anything
            raised = exc
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(settle, result, raised)

    try:
        Thread(target=run, name="aws", daemon=True).start()
    except RuntimeError as exc:
        loop.call_soon(settle, None, exc)
    return future


def client_of(session: "Session", service: str, credentials: Credentials, region: str = "") -> Any:
    """A client of botocore's, of which the type is known at run time only. Its calls are bounded."""
    from botocore.config import Config

    return session.create_client(
        service,
        region_name=region or credentials.region,
        aws_access_key_id=credentials.access_key,
        aws_secret_access_key=credentials.secret_key.reveal(),
        aws_session_token=credentials.token.reveal() or None,
        config=Config(
            signature_version="v4",  # said here it goes before a bearer token of the environment
            connect_timeout=_CONNECT_SECONDS,
            read_timeout=_READ_SECONDS,
            retries={"total_max_attempts": 2, "mode": "standard"},
        ),
    )


async def signature(
    credentials: Credentials, service: str, method: str, url: str, headers: dict[str, str], body: bytes
) -> bytes:
    """The header lines that sign a request (Signature Version 4), `headers` among what is signed. Raises `AdapterError`.

    `url` is as on the wire: its path percent-encoded once.
    """
    loop = asyncio.get_running_loop()
    try:
        return await loop.run_in_executor(_signers, _sign, credentials, service, method, url, headers, body)
    except Exception as exc:  # noqa: BLE001 - of what a credential process may have given, anything
        kind = type(exc).__name__
        raise AdapterError(502, f"The request could not be signed with {credentials.hint} ({kind}).") from None


def _sign(credentials: Credentials, service: str, method: str, url: str, headers: dict[str, str], body: bytes) -> bytes:
    from botocore.auth import SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials as Signing

    token = credentials.token.reveal()
    signing = Signing(credentials.access_key, credentials.secret_key.reveal(), token or None)
    request = AWSRequest(method=method, url=url, headers=headers, data=body)
    SigV4Auth(signing, service, credentials.region).add_auth(request)
    names = ("X-Amz-Date", "X-Amz-Security-Token", "Authorization")
    return b"".join(f"{name}: {request.headers[name]}\r\n".encode("ascii") for name in names if name in request.headers)


def _default_region(session: "Session") -> str:
    from botocore.utils import IMDSRegionProvider

    named = os.environ.get("AWS_REGION") or session.get_config_variable("region")
    return str(named or IMDSRegionProvider(session).provide() or "")


def _from_chain(session: "Session", region: str) -> Credentials:
    found = session.get_credentials()
    if found is None:
        metadata = os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") or _METADATA
        asked = f"the instance metadata service at {metadata} could not be reached or has none"
        if os.environ.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true":
            asked = "the instance metadata service is turned off (AWS_EC2_METADATA_DISABLED)"
        raise CredentialsError(
            503,
            f"No AWS credentials were found: none in the environment, in AWS's files or of a container, and {asked}. "
            "Set `access_key` and `access_key_secret` in the provider's settings, or give the gateway's machine an identity.",
        )
    frozen = found.get_frozen_credentials()
    expiry = getattr(found, "_expiry_time", None)  # botocore keeps it to itself
    return Credentials(
        frozen.access_key or "",
        Secret(frozen.secret_key or ""),
        Secret(frozen.token or ""),
        region,
        expiry.timestamp() if expiry is not None else None,
    )


def _role_error(exc: Exception, role: str, base: Credentials) -> CredentialsError:
    from botocore.exceptions import ClientError, HTTPClientError
    from botocore.exceptions import ConnectionError as NotConnected

    if isinstance(exc, ClientError):
        error = exc.response.get("Error", {})
        said = f"{error.get('Code', '')}: {error.get('Message', '')}"
        for secret in (base.secret_key, base.token):
            if secret:
                said = said.replace(secret.reveal(), "***")
        return CredentialsError(
            502,
            f"The role {role} could not be assumed by {base.hint}: {said[:_MAX_CAUSE]}. Check that the role's trust policy "
            "names this identity and the provider's external id.",
        )
    if isinstance(exc, HTTPClientError | NotConnected):
        return CredentialsError(503, f"The role {role} could not be assumed: {told(exc)}. Check the way to AWS STS.")
    return CredentialsError(502, f"The role {role} could not be assumed: {told(exc)}.")


def _lookup_error(exc: BaseException) -> CredentialsError:
    return CredentialsError(
        503, f"AWS credentials could not be read: {told(exc)}. Check AWS's configuration on this machine."
    )


def told(exc: BaseException) -> str:
    """What botocore says; what others say may hold anything."""
    from botocore.exceptions import BotoCoreError, ClientError

    said = f": {exc}".rstrip(".") if isinstance(exc, BotoCoreError | ClientError) else ""
    return f"{type(exc).__name__}{said}"[:_MAX_CAUSE]
