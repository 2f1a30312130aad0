"""`/api/v2/ai-gateway/traffic`: what the last minute brought, for `ostiary top` and its like."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query

from ostiary.control.identity import Person
from ostiary.control.store.traffic import Traffic

from .deps import Control, require_role

router = APIRouter(tags=["record"])


@router.get("/traffic")
async def traffic(
    _caller: Annotated[Person, Depends(require_role("admin", "auditor"))],
    control: Control,
    window: Annotated[int, Query(ge=10, le=300, description="Seconds")] = 60,
) -> Traffic:
    """Calls, failures, tokens and durations of the last seconds by provider and model, over all gateways.

    Made from the records that have arrived. However many ask, it is summed up once a second.
    """
    return await control.traffic.read(window)
