"""Gateway keys: by which the control plane knows gateways that run elsewhere.

`keys`    the rows: made, listed, deleted, found by hash
`calls`   RPCs under way with them, and their heartbeat

The RPC gate asks `GatewayCalls` for each call; deleting a key tells it, so that the key's streams end at once.
"""

from .calls import GatewayCalls
from .keys import GatewayKey, create_key, delete_key, list_keys

__all__ = ["GatewayCalls", "GatewayKey", "create_key", "delete_key", "list_keys"]
