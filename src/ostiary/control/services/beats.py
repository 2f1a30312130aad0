"""The rhythm of a watch: woken by what happens, and by nothing at all every `BEAT` seconds."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Final

from connectrpc.code import Code
from connectrpc.errors import ConnectError

from ostiary.control.events import StoppingError, Subscription

BEAT: Final = 10.0
"""Gateways take 25 s of silence for a dead link."""


async def beating(subscription: Subscription, beat: float = BEAT) -> AsyncGenerator[bool]:
    """True whenever something may have happened; False when `beat` seconds have passed since the last False.

    Ends with `unavailable` when the control plane drains: gateways then come again.
    """
    clock = asyncio.get_running_loop().time
    due = clock() + beat
    while True:
        try:
            happened = await subscription.wait(max(0.0, due - clock()))
        except StoppingError as exc:
            raise ConnectError(Code.UNAVAILABLE, "the control plane is stopping") from exc
        if not happened:
            due = clock() + beat
        yield happened
