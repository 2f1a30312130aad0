"""Waiting between attempts: 50 ms doubling to 10 s, each with jitter, unless something happens first."""

import asyncio
import random
from collections.abc import Callable

FIRST = 0.05
LONGEST = 10.0


class Backoff:
    """`next()` gives the seconds to wait before the next attempt; `reset()` after a success."""

    def __init__(self, chance: Callable[[], float] = random.random) -> None:
        self._chance = chance
        self._attempts = 0

    def next(self) -> float:
        """Between half of the step and all of it: many machines that lost one control plane return spread out."""
        step: float = min(LONGEST, FIRST * 2 ** min(self._attempts, 16))
        self._attempts += 1
        return step * (0.5 + self._chance() / 2)

    def reset(self) -> None:
        self._attempts = 0


async def happens(event: asyncio.Event, within: float) -> bool:
    """Wait for an event, so many seconds at most. (`asyncio.wait_for` of Python 3.11 may swallow a cancellation.)"""
    try:
        async with asyncio.timeout(within):
            await event.wait()
    except TimeoutError:
        return False
    return True
