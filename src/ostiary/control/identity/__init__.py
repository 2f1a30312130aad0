"""People, services and their tokens.

`lookup`       who a token is, or why it is refused: one indexed query
`tokens`       making, listing and revoking tokens
`users`        people: create, change, suspend, delete; the last owner stays
`revocations`  rights taken away, numbered for the gateways
`bootstrap`    the first owner, and the token of OSTIARY_BOOTSTRAP_TOKEN

A token is found by its SHA-256 alone, hashed before any query: the database never sees a token, and a lookup by hash
tells nothing by its timing. Who may do what is decided here, beside the change; who may read, by the routes.
"""

from .bootstrap import BootstrapError, bootstrap
from .lookup import Person, authenticate, lookup, lookup_numbered
from .revocations import CHANNEL as REVOCATIONS
from .revocations import Revocation, missed, newest_revocation, revocations_after
from .tokens import new_token, token_sha256

__all__ = [
    "REVOCATIONS",
    "BootstrapError",
    "Person",
    "Revocation",
    "authenticate",
    "bootstrap",
    "lookup",
    "lookup_numbered",
    "missed",
    "new_token",
    "newest_revocation",
    "revocations_after",
    "token_sha256",
]
