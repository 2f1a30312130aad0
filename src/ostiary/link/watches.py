"""What the control plane pushes: when to fetch the providers, and whose authorisation no longer holds.

Rules
- A watch speaks at least every `SILENCE` seconds, or it is dead. A dead one is begun again, later each time it fails at
  once, and at once when the heartbeat gets through.
- Neither judges the link: a watch that dies makes the heartbeat look.
- Revocations are handed on before anything that the control plane answers later. From the loss of their watch on, what is
  known serves for `UNWATCHED_TTL` without asking; its next start tells what was missed.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Final, Generic, TypeVar

import structlog

from ostiary.core.messages import Revoked
from ostiary.rpc.ostiary_pb2 import Revocation, WatchAIProvidersResponse

from .authorizations import UNWATCHED_TTL, Memory
from .backoff import Backoff, happens
from .client import ControlClient, ControlFailure

log = structlog.get_logger(__name__)

SILENCE: Final = 25.0

M = TypeVar("M")


class Watch(Generic[M]):
    """`begin` opens the stream, `heard` gets each message, `lost` is told when the stream ends after it had spoken."""

    def __init__(
        self,
        name: str,
        begin: Callable[[], AsyncGenerator[M]],
        heard: Callable[[M], None],
        lost: Callable[[], None],
        failed: Callable[[], None],
    ) -> None:
        self._name = name
        self._begin = begin
        self._heard = heard
        self._lost = lost
        self._failed = failed
        self._backoff = Backoff()
        self._now = asyncio.Event()

    def look_now(self) -> None:
        """The control plane answers: begin again without waiting."""
        self._now.set()

    async def run(self) -> None:
        while True:
            self._now.clear()
            await self._once()
            await happens(self._now, self._backoff.next())

    async def _once(self) -> None:
        spoke = False
        try:
            async with aclosing(self._begin()) as messages:
                async for message in messages:
                    if not spoke:
                        spoke = True
                        self._backoff.reset()
                        log.info("watching", what=self._name)
                    self._heard(message)
        except ControlFailure as failure:
            if spoke:
                log.info("losing a watch", what=self._name, reason=str(failure))
        if spoke:
            self._lost()
        self._failed()


class ProviderWatch(Watch[WatchAIProvidersResponse]):
    """`fetch` is told the revision when providers have changed."""

    def __init__(self, client: ControlClient, fetch: Callable[[int], None], failed: Callable[[], None]) -> None:
        def heard(message: WatchAIProvidersResponse) -> None:
            # a beat that names another revision stands for a change that was not told
            fetch(message.revision)

        super().__init__("providers", lambda: client.watch_ai_providers(SILENCE), heard, lambda: None, failed)


class RevocationWatch(Watch[Revocation]):
    """Purges `memory`; `tell` hands on to the workers."""

    def __init__(
        self, client: ControlClient, memory: Memory, tell: Callable[[Revoked], None], failed: Callable[[], None]
    ) -> None:
        self._memory = memory
        self._tell = tell
        super().__init__(
            "revocations",
            lambda: client.watch_revocations(memory.seq, SILENCE),
            self._take,
            self._unwatched,
            failed,
        )

    def _take(self, message: Revocation) -> None:
        memory = self._memory
        if message.reset:
            memory.reset(message.seq)
            log.info("asking for every known token again", revocation=message.seq)
            self._tell(Revoked(everything=True))
        elif message.WhichOneof("subject") is not None:
            memory.revoke(message.seq, message.api_key_id or message.owner_id)
            log.info("forgetting a revoked authorization", api_key_id=message.api_key_id, owner_id=message.owner_id)
            self._tell(Revoked(api_key_id=message.api_key_id, owner_id=message.owner_id))
        memory.watched(message.seq)

    def _unwatched(self) -> None:
        self._memory.unwatched()
        self._tell(Revoked(everything=True, within=UNWATCHED_TTL))
