"""Which providers there are: asked when they have changed, when something seems wrong, and every `poll_interval`.

Rules
- The poll is also the heartbeat: it alone says whether the link is up.
- A failed poll leaves the snapshot in place: dropping providers would make the failure worse. When it fails before
  there is any, the one from before a restart serves, and an answer that no control plane gave is no reason to end.
- What cannot be understood of one provider makes that one an `error` with its reason; the others are served.
- Answers hold secrets: they are never logged, and no reason quotes a stored value.
"""

import asyncio
import time
from collections.abc import Callable

import msgspec
import structlog

from ostiary.core.messages import Snapshot
from ostiary.core.metrics import Registry
from ostiary.core.providers import (
    AnthropicSettings,
    BedrockSettings,
    OpenAISettings,
    ProviderKey,
    ProviderSettings,
    ProviderSpec,
)
from ostiary.core.secret import Secret, secret_dec_hook
from ostiary.rpc.ostiary_pb2 import AIProvider, GetAIProvidersResponse

from .backoff import Backoff, happens
from .client import ControlClient, ControlFailure
from .connection import Connection

log = structlog.get_logger(__name__)

_SETTINGS: dict[str, type[ProviderSettings]] = {
    "openai": OpenAISettings,
    "anthropic": AnthropicSettings,
    "bedrock": BedrockSettings,
}


def provider_spec(message: AIProvider) -> ProviderSpec:
    """One provider as the workers get it."""
    error = message.error
    settings = None
    if not error:
        try:
            settings = _settings(message)
        except msgspec.ValidationError as exc:
            error = f"this gateway does not understand its settings ({exc}): correct them, or upgrade the gateway"
    return ProviderSpec(
        id=message.id,
        name=message.name,
        type=message.type,
        enabled=message.enabled,
        base_url=message.base_url,
        keys=() if error else tuple(ProviderKey(key.id, Secret(key.value)) for key in message.keys),
        settings=settings,
        error=error,
    )


def _settings(message: AIProvider) -> ProviderSettings | None:
    kind = message.WhichOneof("settings")
    if kind is None:
        return None
    given = getattr(message, kind)
    # proto3 sends no empty text: what is empty has its default
    fields = {field.name: value for field, value in given.ListFields()}
    return msgspec.convert(fields, _SETTINGS[kind], dec_hook=secret_dec_hook)


def snapshot(answer: GetAIProvidersResponse) -> Snapshot:
    """The full set. A second provider of a name, or one without any, cannot be reached and is left out."""
    specs: dict[str, ProviderSpec] = {}
    for message in answer.providers:
        spec = provider_spec(message)
        if not spec.name or spec.name in specs:
            log.error("skipping a provider that cannot be addressed", provider_id=spec.id, provider_name=spec.name)
            continue
        specs[spec.name] = spec
        if spec.error:
            log.warning("skipping misconfigured provider", provider_name=spec.name, reason=spec.error)
    enabled = [spec for spec in specs.values() if spec.enabled]
    if enabled and all(spec.error for spec in enabled):
        log.error("serving no provider: every enabled one is misconfigured", providers=len(enabled))
    return Snapshot(answer.revision, tuple(specs.values()))


class SnapshotMetrics:
    def __init__(self, registry: Registry) -> None:
        self.attempted = registry.gauge(
            "ostiary_providers_last_reload_timestamp_seconds", "When the providers were last asked for."
        ).cell()
        self.succeeded = registry.gauge(
            "ostiary_providers_last_reload_success_timestamp_seconds",
            "When the providers served were last known to be current.",
        ).cell()


class SnapshotPoll:
    """`on_snapshot` gets each new one, `on_change` is told when the link goes up or down, `on_fatal` gets the line with
    which the process must end; the poll is over then."""

    def __init__(
        self,
        client: ControlClient,
        connection: Connection,
        metrics: SnapshotMetrics,
        interval: float,
        *,
        on_snapshot: Callable[[Snapshot], None],
        on_change: Callable[[], None],
        on_fatal: Callable[[str], None],
        fallback: Callable[[], Snapshot | None] = lambda: None,
    ) -> None:
        """`fallback` gives the snapshot from before a restart; asked once, when the control plane does not answer."""
        self.snapshot: Snapshot | None = None
        self.key_refused = False
        """Whether the process must end because the gateway key is refused."""
        self._fallback = fallback
        self._looked_back = self._fell_back = False
        self._client = client
        self._connection = connection
        self._metrics = metrics
        self._interval = interval
        self._on_snapshot = on_snapshot
        self._on_change = on_change
        self._on_fatal = on_fatal
        self._backoff = Backoff()
        self._asked = asyncio.Event()
        self._told: str | None = None

    def notice(self, *, reached: bool) -> None:
        """Another call got through, or did not: look at once if that is news."""
        if reached != self._connection.up:
            self._asked.set()

    def changed(self, revision: int) -> None:
        """The control plane says that this revision is current."""
        if self.snapshot is None or self.snapshot.revision != revision:
            self._asked.set()

    async def run(self) -> None:
        """Returns only when the control plane refuses this gateway."""
        while True:
            try:
                answer = await self._client.get_ai_providers(self.snapshot.revision if self.snapshot else 0)
            except ControlFailure as failure:
                self._fall_back(failure)
                ever_up = self._connection.ever_up or (self._fell_back and failure.plain_status is not None)
                if fatal := failure.fatal(self._client.url, ever_up=ever_up):
                    self.key_refused = failure.refuses_key
                    self._connection.failed()
                    self._on_change()
                    self._on_fatal(fatal)
                    return
                self._metrics.attempted[0] = time.time()
                self._lost(failure)
                await self._wait(self._backoff.next())
            else:
                self._metrics.attempted[0] = self._metrics.succeeded[0] = time.time()
                self._reached()
                self._take(answer)
                await self._wait(self._interval)

    def _take(self, answer: GetAIProvidersResponse) -> None:
        if answer.unchanged and self.snapshot is not None:
            return
        loaded = snapshot(answer)
        if loaded == self.snapshot:
            # revision 0, before the first change, cannot be asked for as known
            return
        self.snapshot = loaded
        log.info("loading providers", revision=answer.revision, providers=len(self.snapshot.providers))
        self._on_snapshot(self.snapshot)

    def _fall_back(self, failure: ControlFailure) -> None:
        """Serve what was kept, unless a control plane says that this gateway shall not."""
        refused = failure.plain_status is None and failure.fatal(self._client.url, ever_up=False) is not None
        if refused or self._looked_back or self.snapshot is not None:
            return
        self._looked_back = True
        kept = self._fallback()
        if kept is not None:
            self._fell_back = True
            self.snapshot = kept
            log.warning(
                "serving what was known before the restart", revision=kept.revision, providers=len(kept.providers)
            )
            self._on_snapshot(kept)
            self._on_change()

    def _reached(self) -> None:
        first = not self._connection.ever_up
        self._backoff.reset()
        self._told = None
        if self._connection.succeeded():
            log.info(
                "reaching the control plane" if first else "reaching the control plane again", url=self._client.url
            )
            self._on_change()

    def _lost(self, failure: ControlFailure) -> None:
        if self._connection.failed():
            log.warning("losing the control plane", url=self._client.url, reason=str(failure))
            self._on_change()
        elif failure.code.value != self._told:
            log.info("waiting for the control plane", url=self._client.url, reason=str(failure))
        self._told = failure.code.value

    async def _wait(self, seconds: float) -> None:
        await happens(self._asked, seconds)
        self._asked.clear()
