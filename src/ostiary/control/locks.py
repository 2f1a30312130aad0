"""The advisory locks of the database, so that no two uses share a number by accident.

Session and transaction locks share one number space, and other programs may use the same database: ours all lie
behind the prefix `ostiary`.
"""

from enum import IntEnum
from typing import Final

_PREFIX: Final = int.from_bytes(b"ostiary") << 8


class Lock(IntEnum):
    """64-bit keys for `pg_advisory_lock` and its kin."""

    MIGRATE = _PREFIX | 1
    """Held within the transaction that migrates, and within that which looks after the role of RPC."""
    SEED = _PREFIX | 2
    """Exclusive within a transaction while providers or their keys change; shared while they are read as a set."""
    PARTITIONS = _PREFIX | 3
    """Held within a transaction that makes or drops a partition, and within that which looks after the role of RPC."""
    VAULT = _PREFIX | 4
    """Held within a transaction while vault keys are registered or rows re-encrypted."""
    BOOTSTRAP = _PREFIX | 5
    """Held within the transaction that makes the owner at the first start."""
    LINEAGE = _PREFIX | 6
    """Class of the two-key locks that order late lineage repairs, one an initiator."""
    REVOKE = _PREFIX | 7
    """Held from a revocation's numbering to its commit, so that numbers become visible in order."""
    RETENTION = _PREFIX | 8
    """Held by the control plane that removes what is older than the retention, for as long as it is at it."""


SEED_LOCK: Final = int(Lock.SEED)
