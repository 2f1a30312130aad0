"""Requests that are answered by us and leave no record: counted, and in the log under the id that their clients were told.

Rules
- A line a second at most for each reason: anybody can make requests that are refused. The next line tells how many were
  left out.
- Of the request at most its path is told. Its query may hold a credential, and so may all else.
"""

from collections.abc import Callable
from typing import Final

import structlog

from .refusals import Refusal

log = structlog.get_logger()

_INTERVAL: Final = 1.0
_PATH_MAX: Final = 200


class RefusalLog:
    """Of a worker. `clock`: monotonic seconds; `count`: of refusals by their reason."""

    __slots__ = ("_clock", "_count", "_left_out", "_logged_at")

    def __init__(self, clock: Callable[[], float], count: Callable[[str], None]) -> None:
        self._clock = clock
        self._count = count
        self._logged_at: dict[str, float] = {}
        self._left_out: dict[str, int] = {}

    def note(self, refusal: Refusal, request_id: str, path: bytes) -> None:
        """This request is refused."""
        reason = refusal.reason
        self._count(reason)
        now = self._clock()
        if now - self._logged_at.get(reason, now - _INTERVAL) < _INTERVAL:
            self._left_out[reason] = self._left_out.get(reason, 0) + 1
            return
        self._logged_at[reason] = now
        log.info(
            "refusing a request",
            request_id=request_id,
            reason=reason,
            status=refusal.status,
            path=path[:_PATH_MAX].decode("ascii", "replace"),
            left_out=self._left_out.pop(reason, 0),
        )
