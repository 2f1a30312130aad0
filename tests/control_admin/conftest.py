"""Fixtures of the administrative tests; each test has a database of its own."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from ostiary.control import database
from ostiary.control.vault import open_vault
from ostiary.core.secret import Secret
from ostiary.core.settings import ControlSettings
from tests.support.control_admin import Plane, control_settings, rest_app


@pytest.fixture
def settings(database_url: Secret, tmp_path: Path) -> ControlSettings:
    return control_settings(database_url, tmp_path)


@pytest.fixture
def on_plane(settings: ControlSettings) -> Callable[[Callable[[Plane], Awaitable[None]]], None]:
    """Runs a coroutine function on a control plane."""

    async def run(body: Callable[[Plane], Awaitable[None]]) -> None:
        engine = await database.connect(settings.database_url)
        try:
            vault = await open_vault(engine, settings)
            await body(Plane(engine, settings, vault, rest_app(engine, settings, vault)))
        finally:
            await engine.dispose()

    return lambda body: asyncio.run(run(body))


@pytest.fixture
def on_database(database_url: Secret) -> Callable[[Callable[[AsyncEngine], Awaitable[None]]], None]:
    """Runs a coroutine function on a migrated, empty database."""

    async def run(body: Callable[[AsyncEngine], Awaitable[None]]) -> None:
        engine = await database.connect(database_url)
        try:
            await body(engine)
        finally:
            await engine.dispose()

    return lambda body: asyncio.run(run(body))
