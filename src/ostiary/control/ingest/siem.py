"""The `interception log` lines of what has been stored (`core.interception_log`)."""

import structlog

from ostiary.core.interception_log import EVENT, record_lines

from .lineage import Link
from .rows import EndRows, StartRows

log = structlog.get_logger("ostiary.interceptions")


def interception_log(stored: tuple[StartRows, Link | None] | EndRows) -> None:
    """Log what one journal frame held."""
    if isinstance(stored, EndRows):
        for line in record_lines(stored.record):
            log.info(EVENT, **line)
        return
    rows, link = stored
    for line in record_lines(rows.record):
        if line["record_type"] == "interception_start":
            line["thread_parent_id"] = link.parent_id if link else None
            line["thread_root_id"] = link.root_id if link else None
        log.info(EVENT, **line)
