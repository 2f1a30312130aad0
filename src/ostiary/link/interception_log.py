"""The `interception log` lines of what this machine ships (`structured_logging_source = gateway` or `both`)."""

from contextlib import suppress

import msgspec
import structlog

from ostiary.core.interception_log import EVENT, record_lines
from ostiary.core.records import decode_record

log = structlog.get_logger("ostiary.interceptions")


def log_records(payloads: list[bytes]) -> None:
    """Log what journal frames held. What is no record is left out: the control plane rejects it, and says so."""
    for payload in payloads:
        with suppress(msgspec.DecodeError, OverflowError):
            for line in list(record_lines(decode_record(payload))):
                log.info(EVENT, **line)
