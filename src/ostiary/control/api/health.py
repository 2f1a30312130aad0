"""`/healthz` and `/readyz` of the control plane itself; empty bodies, no token."""

import asyncio
from typing import Final

import structlog
from fastapi import APIRouter, Response
from sqlalchemy import text

from ostiary.control.database import DATABASE_ERRORS, cause

from .deps import Engine

log = structlog.get_logger(__name__)

_TIMEOUT: Final = 2.0

router = APIRouter(tags=["health"])


@router.get("/healthz", response_class=Response)
async def healthz() -> Response:
    """The process serves."""
    return Response()


@router.get("/readyz", response_class=Response, responses={503: {"description": "The database does not answer"}})
async def readyz(engine: Engine) -> Response:
    """The database answers."""
    try:
        async with asyncio.timeout(_TIMEOUT), engine.connect() as connection:
            await connection.execute(text("SELECT 1"))
    except DATABASE_ERRORS as exc:
        log.warning("not being ready for the database", cause=cause(exc))
        return Response(status_code=503)
    return Response()
