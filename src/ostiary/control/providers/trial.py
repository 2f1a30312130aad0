"""Trying the keys of a provider: a real, cheap call with each, and what its answer says of the key.

Rules
- What is called lists models or tells of the key itself: it costs nothing and generates nothing.
- The call goes the way of the gateway's (`provider_connections`); redirects are not followed. It is bounded in time, in
  number at once, and in what is read.
- What a provider answers may quote the key: it is cut out before anything is shown.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

import msgspec

from ostiary import __version__
from ostiary.control.provider_connections import CALL_SECONDS, connected, open_pool
from ostiary.core.provider_rules import effective_type, takes_keys
from ostiary.core.providers import OpenAISettings, ProviderSettings, ProviderType, WireFamily, wire_family
from ostiary.core.secret import Secret
from ostiary.core.settings import ControlSettings
from ostiary.http1.errors import UpstreamError
from ostiary.http1.head import ResponseHead
from ostiary.http1.origin import Origin, split_base_url
from ostiary.http1.pool import Pool
from ostiary.http1.upstream import UpstreamConnection

from .rows import StoredKey

TRIAL_SECONDS: Final = 25.0
"""For all keys together; below what clients of the API wait."""
CALLS_AT_ONCE: Final = 8
_MAX_BODY: Final = 64 * 1024
_MAX_REASON: Final = 300

Verdict = Literal["works", "refused", "limited", "unreachable", "unclear"]

_TELLS_OF_KEY: Final = {
    ProviderType.OPENROUTER: ("openrouter.ai", "/key"),
    ProviderType.VERCEL: ("vercel.sh", "/credits"),
}
"""Type, host and path of those whose list of models is open to everybody."""


@dataclass(frozen=True, slots=True)
class KeyTrial:
    """What came of a call. Without an id: it was made without a key."""

    id: str
    masked: str
    result: Verdict
    """`unclear`: an answer that says nothing about the key."""
    reason: str
    status_code: int | None
    latency_ms: int | None


@dataclass(frozen=True, slots=True)
class ProviderTrial:
    provider: str
    called: str
    """What was asked; empty when there is nothing to ask."""
    keys: tuple[KeyTrial, ...]
    """In the order of failover."""
    notes: tuple[str, ...] = ()


class Call(NamedTuple):
    """Where to ask, and how a key is sent."""

    origin: Origin
    target: str
    header: str

    @property
    def shown(self) -> str:
        scheme = "https" if self.origin.secure else "http"
        return f"GET {scheme}://{self.origin.authority}{self.target.partition('?')[0]}"

    def head(self, key: Secret | None) -> bytes:
        lines = [
            f"GET {self.target} HTTP/1.1",
            f"Host: {self.origin.authority}",
            *([self.header + key.reveal()] if key is not None else []),
            *(["anthropic-version: 2023-06-01"] if self.header.startswith("X-Api-Key") else []),
            f"User-Agent: ostiary/{__version__}",
            "Accept: application/json",
            "Accept-Encoding: identity",
            "Connection: close",
        ]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


class Answer(NamedTuple):
    status: int
    retry_after: str
    body: bytes


def call_of(kind: ProviderType, base_url: str, settings: ProviderSettings | None) -> Call | None:
    """The call that tries a key of such a provider; None when it has no keys. Raises `ValueError` for a wrong URL."""
    if not takes_keys(kind, settings):
        return None
    origin, path, query = split_base_url(base_url)
    family: WireFamily = wire_family(kind)
    if family == "anthropic":
        return Call(origin, f"{path}/v1/models{query}", "X-Api-Key: ")
    if kind is ProviderType.AZURE:
        version = settings.api_version if isinstance(settings, OpenAISettings) else ""
        if version and "api-version=" not in query:
            query = f"{query}{'&' if query else '?'}api-version={version}"
        return Call(origin, f"{path}/models{query}", "Api-Key: ")
    host, tells = _TELLS_OF_KEY.get(kind, ("", ""))
    known = bool(host) and (origin.host == host or origin.host.endswith(f".{host}"))
    return Call(origin, f"{path}{tells if known else '/models'}{query}", "Authorization: Bearer ")


def judge(answer: Answer) -> tuple[Verdict, str]:
    """What an answer says of the key, and why. The reason is the provider's, not yet rid of secrets."""
    status, said = answer.status, _message(answer.body)
    told = f"answered {status}" + (f": {said}" if said else "")
    if 200 <= status < 300:
        return "works", ""
    if status in (401, 403) or (status == 400 and _is_about_key(answer.body)):
        return "refused", told
    if status in (402, 429):
        wait = f"; try again after {answer.retry_after} s" if answer.retry_after.isdigit() else ""
        return "limited", told + wait
    if 300 <= status < 400:
        return "unclear", f"answered {status}, a redirect, which is never followed: correct base_url"
    if status in (404, 405):
        return "unclear", f"{told}; this provider has no such list, or base_url is wrong"
    return ("unreachable" if status >= 500 else "unclear"), told


async def try_keys(
    name: str,
    kind: ProviderType,
    base_url: str,
    provider_settings: ProviderSettings | None,
    keys: Sequence[StoredKey],
    settings: ControlSettings,
) -> ProviderTrial:
    """Call the provider once with each key. Raises `ValueError` for a base URL or TLS files that cannot be used."""
    call = call_of(kind, base_url, provider_settings)
    if call is None:
        return ProviderTrial(name, "", (), (_why_not_called(kind, provider_settings),))
    caller = _Caller(call, await open_pool(settings))
    async with asyncio.timeout(TRIAL_SECONDS + CALL_SECONDS):
        if not keys:
            return ProviderTrial(
                name, call.shown, (await caller.without_key(),), ("it has no keys: called without one",)
            )
        tried = tuple(await asyncio.gather(*(caller.with_key(key) for key in keys)))
        notes: tuple[str, ...] = ()
        if kind is ProviderType.OPENAI_COMPAT and any(one.result == "works" for one in tried):
            open_to_all = await caller.without_key()
            if open_to_all.result == "works":
                notes = ("it answers this call without a key too: that a key works here says nothing about the key",)
    return ProviderTrial(name, call.shown, tried, notes)


def _why_not_called(kind: ProviderType, settings: ProviderSettings | None) -> str:
    if effective_type(kind, settings) is ProviderType.BEDROCK:
        return (
            "Bedrock is not used with keys: requests are signed where the gateway runs, which may have another identity than "
            "this server. Nothing is called; send a request through the gateway, AWS's answer to it says what is wrong"
        )
    return f"a provider of type {kind} is not used with keys: nothing is called"


class _Caller:
    """The calls of one trial."""

    def __init__(self, call: Call, pool: Pool) -> None:
        self._call = call
        self._slots = asyncio.Semaphore(CALLS_AT_ONCE)
        self._deadline = time.monotonic() + TRIAL_SECONDS
        self._pool = pool

    async def with_key(self, key: StoredKey) -> KeyTrial:
        if key.value is None:
            reason = "it cannot be decrypted: enter it again"
            return KeyTrial(key.id, key.masked, "unclear", reason, None, None)
        return await self._try(key.id, key.masked, key.value)

    async def without_key(self) -> KeyTrial:
        return await self._try("", "", None)

    async def _try(self, key_id: str, masked: str, key: Secret | None) -> KeyTrial:
        async with self._slots:
            began = time.monotonic()
            within = min(CALL_SECONDS, self._deadline - began)
            try:
                async with asyncio.timeout(within):
                    answer = await _ask(self._pool, self._call.origin, self._call.head(key))
            except TimeoutError:
                reason = f"no answer within {within:.0f} s" if within > 0 else "not tried: the others took too long"
                return KeyTrial(key_id, masked, "unreachable", reason, None, None)
            except UpstreamError as exc:
                return KeyTrial(key_id, masked, "unreachable", _shown(exc.detail, key), None, None)
            took = round((time.monotonic() - began) * 1000)
        result, reason = judge(answer)
        return KeyTrial(key_id, masked, result, _shown(reason, key), answer.status, took)


async def _ask(pool: Pool, origin: Origin, head: bytes) -> Answer:
    """Raises `UpstreamError`."""
    connection = await connected(pool, origin)
    reading = _Reading(connection, asyncio.get_running_loop().create_future())
    try:
        connection.send(reading, head)
        return await reading.answered
    finally:
        connection.abort()


class _Reading:
    """`http1.upstream.Consumer` that keeps the answer, as far as it is looked at."""

    def __init__(self, connection: UpstreamConnection, answered: "asyncio.Future[Answer]") -> None:
        self.answered = answered
        self._connection = connection
        self._head: ResponseHead | None = None
        self._body = bytearray()

    def response_interim(self, head: ResponseHead) -> None:
        """The final one follows."""

    def response_head(self, head: ResponseHead) -> None:
        self._head = head
        self._connection.relay(b"", _nowhere, self._take, verbatim=False)

    def _take(self, data: bytes) -> None:
        self._body += data[: _MAX_BODY - len(self._body)]
        if len(self._body) >= _MAX_BODY:
            self.response_done()

    def response_done(self) -> None:
        head = self._head
        if head is not None and not self.answered.done():
            retry_after = head.fields.get(b"retry-after", b"").decode("latin-1")
            self.answered.set_result(Answer(head.status, retry_after, bytes(self._body)))

    def response_failed(self, error: UpstreamError) -> None:
        if self._head is not None:
            self.response_done()  # the head has said what counts
        elif not self.answered.done():
            self.answered.set_exception(error)

    def request_paused(self) -> None:
        """The request is one small write."""

    def request_resumed(self) -> None: ...

    def client_stalled(self) -> None:
        """Nobody pauses reading."""


def _nowhere(_data: bytes) -> None:
    """What is not forwarded."""


def _message(body: bytes) -> str:
    """The error's text, in any of the shapes that providers use."""
    try:
        found: Any = msgspec.json.decode(body)  # Any: the provider's JSON
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ""
    if isinstance(found, list) and found:  # Google wraps its errors in a list
        found = found[0]
    for name in ("error", "message", "detail"):
        inner = found.get(name) if isinstance(found, dict) else None
        if isinstance(inner, str):
            return inner
        if isinstance(inner, dict):
            text = inner.get("message")
            return text if isinstance(text, str) else ""
    return ""


def _is_about_key(body: bytes) -> bool:
    lowered = body.lower()
    return b"api_key_invalid" in lowered or b"invalid_api_key" in lowered or b"api key not valid" in lowered


def _shown(reason: str, key: Secret | None) -> str:
    """On one line, short, without the key and without what could drive a terminal."""
    if key is not None:
        reason = reason.replace(key.reveal(), key.masked)
    flat = " ".join("".join(char if char.isprintable() else " " for char in reason).split())
    return flat if len(flat) <= _MAX_REASON else flat[: _MAX_REASON - 1] + "…"
