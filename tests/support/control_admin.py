"""A control plane without its process: a migrated database, the vault, and the REST API on it."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import msgspec
from fastapi import FastAPI
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine

from ostiary.control import identity
from ostiary.control.api import audit, errors, providers, tokens, users
from ostiary.control.api import vault as vault_api
from ostiary.control.api.edge import Edge
from ostiary.control.events import Events
from ostiary.control.identity.tokens import insert_token
from ostiary.control.identity.users import User, insert_user
from ostiary.control.metrics import ControlMetrics
from ostiary.control.state import ControlPlane
from ostiary.control.store.tables import audit_log
from ostiary.control.vault import Vault
from ostiary.core.secret import Secret
from ostiary.core.settings import ControlSettings


def vault_key(fill: int) -> Secret:
    """A key for OSTIARY_ENCRYPTION_KEYS."""
    return Secret(base64.b64encode(bytes([fill]) * 32).decode())


@dataclass
class Plane:
    """What a test works with."""

    engine: AsyncEngine
    settings: ControlSettings
    vault: Vault
    app: FastAPI

    async def user(self, username: str, role: str = "member") -> tuple[User, Secret]:
        """A person with a token, made without the API."""
        token = identity.new_token()
        async with self.engine.begin() as conn:
            user = await insert_user(conn, username, {"role": role})
            assert user is not None
            await insert_token(conn, user.id, "test", token, "user")
        return user, token

    async def call(
        self, token: Secret | None, method: str, path: str, body: Any = None, **query: Any
    ) -> httpx.Response:
        headers = {"Authorization": f"Bearer {token.reveal()}"} if token else {}
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://ostiary") as client:
            return await client.request(method, path, json=body, params=query, headers=headers)

    async def audit(self) -> list[Mapping[str, Any]]:
        """All entries, oldest first."""
        async with self.engine.connect() as conn:
            return list((await conn.execute(select(audit_log).order_by(audit_log.c.id))).mappings().all())

    def with_settings(self, **changes: Any) -> ControlSettings:
        return msgspec.structs.replace(self.settings, **changes)


def control_settings(url: Secret, data_dir: Path, **changes: Any) -> ControlSettings:
    known: dict[str, Any] = {
        "database_url": url,
        "data_dir": str(data_dir),
        "gateway_key": Secret("gateway-key"),
        "front_door_secret": Secret("front-door"),
        "public_url": "http://127.0.0.1:4000",
    }
    return ControlSettings(**(known | changes))


def rest_app(engine: AsyncEngine, settings: ControlSettings, vault: Vault) -> FastAPI:
    """The administrative part of the REST API."""
    app = FastAPI()
    errors.install(app)
    app.add_middleware(Edge, front_door_secret=settings.front_door_secret, unlimited=(), metrics=ControlMetrics())
    for module in (users, tokens, providers, audit, vault_api):
        app.include_router(module.router)
    events = Events(engine, settings.database_url)
    app.state.control = ControlPlane(engine=engine, settings=settings, vault=vault, events=events)
    return app
