"""What the parts of the control plane share while it runs; it hangs at `app.state.control`."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sqlalchemy.ext.asyncio import AsyncEngine

from ostiary.core.families import Family
from ostiary.core.settings import ControlSettings

from .gateway_keys import GatewayCalls
from .metrics import ControlMetrics, MetricsBoard
from .traffic import TrafficBoard

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
    rpc_only: AsyncEngine | None = None
    """The way to the database under the narrow role of RPC; None where there is none."""
    gateway_calls: GatewayCalls = field(init=False)
    traffic: TrafficBoard = field(init=False)
    metrics: ControlMetrics = field(init=False)
    metrics_board: MetricsBoard = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "gateway_calls", GatewayCalls(self.rpc_engine))
        object.__setattr__(self, "traffic", TrafficBoard(self.engine))
        object.__setattr__(self, "metrics", ControlMetrics())
        settings = self.settings
        board = MetricsBoard(self.metrics, settings.database_url, self.engine, self.rpc_only, settings.retention)
        object.__setattr__(self, "metrics_board", board)

    @property
    def rpc_engine(self) -> AsyncEngine:
        """For what gateways ask and tell."""
        return self.rpc_only or self.engine

    async def metrics_families(self) -> list[Family]:
        """All that the metrics page tells of this control plane."""
        return await self.metrics_board.families(listening=self.events.listening)

    async def dispose(self) -> None:
        """Close every connection to the database."""
        for engine in (self.engine, self.rpc_only):
            if engine is not None:
                await engine.dispose()
