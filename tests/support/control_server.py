"""The whole control plane in this process: its real entry, on a real socket, with orders from a test."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from ostiary.control import process
from ostiary.core.messages import ControlBoot, Drain, Fatal, Order, Ready, Report
from ostiary.core.secret import Secret
from ostiary.core.settings import ControlSettings
from ostiary.core.supervision import Delivered
from ostiary.rpc import version

OWNER_TOKEN = "ost_test_owner_token_0123456789abcdefghij"
GATEWAY_KEY = "test-gateway-key"
FRONT_DOOR = "test-front-door-secret"


def control_settings(url: Secret, data_dir: Path, **changes: Any) -> ControlSettings:
    known: dict[str, Any] = {
        "database_url": url,
        "data_dir": str(data_dir),
        "gateway_key": Secret(GATEWAY_KEY),
        "front_door_secret": Secret(FRONT_DOOR),
        "public_url": "http://127.0.0.1:4000",
        "bootstrap_token": Secret(OWNER_TOKEN),
    }
    return ControlSettings(**(known | changes))


@dataclass
class Orders:
    """A supervisor's end, held by a test."""

    reports: list[Report] = field(default_factory=list)
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    _orders: "asyncio.Queue[Order]" = field(default_factory=asyncio.Queue)

    async def next_order(self) -> Delivered:
        return Delivered(await self._orders.get(), None)

    def report(self, report: Report) -> None:
        self.reports.append(report)
        if isinstance(report, Ready):
            self.ready.set()

    def order(self, order: Order) -> None:
        self._orders.put_nowait(order)

    @property
    def fatal(self) -> Fatal | None:
        return next((report for report in self.reports if isinstance(report, Fatal)), None)


@dataclass
class ControlServer:
    """A control plane that serves."""

    url: str
    orders: Orders
    running: "asyncio.Task[int]"
    http: httpx.AsyncClient

    async def get(self, path: str, token: str | None = OWNER_TOKEN, **query: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return await self.http.get(path, params=query, headers=headers)

    async def rpc(self, method: str, body: dict[str, Any], **headers: str) -> httpx.Response:
        """A call as curl makes it: JSON over HTTP."""
        sent = {version.HEADER_GATEWAY_KEY: GATEWAY_KEY, version.HEADER_API_VERSION: version.CURRENT} | headers
        return await self.http.post(f"/ostiary.v1.{method}", json=body, headers=sent)


def listener() -> socket.socket:
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen()
    return sock


@asynccontextmanager
async def serving(settings: ControlSettings) -> AsyncIterator[ControlServer]:
    """Start, wait until it serves, drain at the end."""
    sock = listener()
    url = f"http://127.0.0.1:{sock.getsockname()[1]}"
    orders = Orders()
    running = asyncio.create_task(process.run(ControlBoot(settings), sock.detach(), orders))
    ready = asyncio.create_task(orders.ready.wait())
    await asyncio.wait((running, ready), return_when=asyncio.FIRST_COMPLETED)
    if not ready.done():
        ready.cancel()
        raise AssertionError(f"the control plane did not start: {orders.fatal or await running}")
    async with httpx.AsyncClient(base_url=url, timeout=30) as http:
        try:
            yield ControlServer(url, orders, running, http)
        finally:
            await http.aclose()
            orders.order(Drain())
            await running
