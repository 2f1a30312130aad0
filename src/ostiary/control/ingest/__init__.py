"""From journal frames to rows.

`store`       one batch, one transaction: exactly-once rows from at-least-once delivery
`rows`        records as rows of the tables; refuses what cannot be one
`lineage`     which interception made the tool call that another one answers
`statements`  the SQL of it all
`repair`      links to parents that were recorded after their children
`siem`        the `interception log` lines of what was stored
"""

from .repair import link_recent_orphans
from .store import Ack, Ingest, Rejected, SequenceGapError

__all__ = ["Ack", "Ingest", "Rejected", "SequenceGapError", "link_recent_orphans"]
