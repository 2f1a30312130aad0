"""Who a token is, or why it is refused. The token itself never travels: its SHA-256 does."""

from enum import StrEnum
from typing import Literal

from msgspec import Struct

Role = Literal["owner", "admin", "auditor", "member"]


class Identity(Struct, frozen=True):
    """A person or service as the gateway knows it for one token."""

    owner_id: str
    api_key_id: str
    username: str
    email: str
    role: Role
    expires_at: int = 0
    """Unix seconds, 0 for never: checked locally, also while the control plane is away."""


class Refusal(StrEnum):
    """Why a token does not open the door. `unknown` and `expired` answer 401, the others 403."""

    UNKNOWN = "unknown"
    EXPIRED = "expired"
    REVOKED = "revoked"
    SUSPENDED = "suspended"
    DELETED = "deleted"
