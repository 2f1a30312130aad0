"""ProviderConfigurator: the full set of providers, keys in clear. Requests and answers are never logged.

The read waits for a seed in flight and then sees it: READ COMMITTED takes its snapshot after the lock, not before
(design §9).
"""

from collections.abc import AsyncGenerator
from typing import Final

from connectrpc.request import RequestContext
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from ostiary.control import providers
from ostiary.control.events import PROVIDERS, Events
from ostiary.control.locks import SEED_LOCK
from ostiary.control.vault import Vault
from ostiary.core.providers import AnthropicSettings, BedrockSettings, OpenAISettings, ProviderSpec
from ostiary.rpc.ostiary_pb2 import (
    AIProvider,
    AIProviderKey,
    AIProviderKindAnthropic,
    AIProviderKindBedrock,
    AIProviderKindOpenAI,
    GetAIProvidersRequest,
    GetAIProvidersResponse,
    WatchAIProvidersRequest,
    WatchAIProvidersResponse,
)

from .beats import beating
from .gate import guarded

LOCK_TIMEOUT: Final = "10s"
"""How long a gateway waits for a seed in flight before it is told to try again."""


class ProviderConfiguratorService:
    def __init__(self, engine: AsyncEngine, vault: Vault, events: Events) -> None:
        self._engine = engine
        self._vault = vault
        self._events = events

    async def get_ai_providers(
        self, request: GetAIProvidersRequest, _ctx: RequestContext[GetAIProvidersRequest, GetAIProvidersResponse]
    ) -> GetAIProvidersResponse:
        found = await guarded("get providers", lambda: self._read(request.known_revision))
        if found is None:
            return GetAIProvidersResponse(revision=request.known_revision, unchanged=True)
        revision, specs = found
        return GetAIProvidersResponse(revision=revision, providers=[to_wire(spec) for spec in specs])

    async def watch_ai_providers(
        self, _request: WatchAIProvidersRequest, _ctx: RequestContext[WatchAIProvidersRequest, WatchAIProvidersResponse]
    ) -> AsyncGenerator[WatchAIProvidersResponse]:
        with self._events.subscribe(PROVIDERS) as changes:
            revision = await guarded("watch providers", self._revision)
            yield WatchAIProvidersResponse(kind=WatchAIProvidersResponse.KIND_CHANGED, revision=revision)
            async for woken in beating(changes):
                newest = self._events.number(PROVIDERS)
                if not woken:
                    yield WatchAIProvidersResponse(kind=WatchAIProvidersResponse.KIND_BEAT, revision=revision)
                elif newest is not None and newest != revision:
                    revision = newest
                    yield WatchAIProvidersResponse(kind=WatchAIProvidersResponse.KIND_CHANGED, revision=revision)

    async def _revision(self) -> int:
        async with self._engine.connect() as connection:
            return await providers.current_revision(connection)

    async def _read(self, known_revision: int) -> tuple[int, list[ProviderSpec]] | None:
        """None when what the caller holds is current: then nothing is decrypted."""
        async with self._engine.connect() as connection:
            await connection.execution_options(isolation_level="READ COMMITTED", postgresql_readonly=True)
            await connection.execute(text("SELECT set_config('lock_timeout', :wait, true)"), {"wait": LOCK_TIMEOUT})
            await connection.execute(text("SELECT pg_advisory_xact_lock_shared(:key)"), {"key": SEED_LOCK})
            if known_revision and await providers.current_revision(connection) == known_revision:
                return None
            return await providers.read_all(connection, self._vault)


def to_wire(spec: ProviderSpec) -> AIProvider:
    """A provider as gateways get it. Holds secrets in clear."""
    message = AIProvider(
        id=spec.id,
        name=spec.name,
        type=spec.type,
        enabled=spec.enabled,
        base_url=spec.base_url,
        keys=[AIProviderKey(id=key.id, value=key.value.reveal()) for key in spec.keys],
        error=spec.error,
    )
    settings = spec.settings
    if isinstance(settings, OpenAISettings):
        message.openai.CopyFrom(
            AIProviderKindOpenAI(
                stream_usage=settings.stream_usage, selection=settings.selection, api_version=settings.api_version
            )
        )
    elif isinstance(settings, AnthropicSettings):
        message.anthropic.CopyFrom(AIProviderKindAnthropic(selection=settings.selection))
    elif isinstance(settings, BedrockSettings):
        message.bedrock.CopyFrom(
            AIProviderKindBedrock(
                region=settings.region,
                access_key=settings.access_key.reveal(),
                access_key_secret=settings.access_key_secret.reveal(),
                model=settings.model,
                small_fast_model=settings.small_fast_model,
                role_arn=settings.role_arn,
                external_id=settings.external_id,
                protocol=settings.protocol,
            )
        )
    return message
