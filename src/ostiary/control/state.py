"""What the parts of the control plane share while it runs; it hangs at `app.state.control`."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy.ext.asyncio import AsyncEngine

from ostiary.core.settings import ControlSettings

if TYPE_CHECKING:
    from .events import Events
    from .vault import Vault


@dataclass(frozen=True, slots=True)
class ControlPlane:
    """Made once at the start, after migrations, vault and seeding; read by every request."""

    engine: AsyncEngine
    settings: ControlSettings
    vault: "Vault"
    events: "Events"
