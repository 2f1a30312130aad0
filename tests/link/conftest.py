from collections.abc import Callable, Coroutine
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import uvloop
from control_far_end import FarEnd
from link_machine import Machine, Play

from ostiary.rpc.ostiary_pb2 import AIProvider, AIProviderKey, IsAuthorizedResponse


@pytest.fixture
def play(tmp_path: Path) -> Play:
    def go(test: Callable[[Machine], Coroutine[Any, Any, None]], *, workers: int = 1, **settings: Any) -> None:
        async def main() -> None:
            async with FarEnd() as far:
                far.providers = [
                    AIProvider(id="p", name="openai", type="openai", enabled=True, keys=[AIProviderKey(value="sk-1")]),
                    AIProvider(id="q", name="off", type="openai"),
                    AIProvider(id="r", name="bad", type="openai", enabled=True, error="unreadable"),
                ]
                far.tokens[sha256(b"token").digest()] = IsAuthorizedResponse(
                    owner_id="u", api_key_id="k", username="anna", role="member"
                )
                machine = Machine(far, tmp_path, workers)
                machine.settings |= settings
                await machine.start()
                try:
                    await test(machine)
                finally:
                    await machine.end()

        uvloop.run(main())

    return go
