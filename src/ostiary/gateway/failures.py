"""What nobody foresaw: a mistake of ours on the way of one request. It ends that request; the worker serves on.

Rules
- Logged is of which kind an exception is, what it came from, and where it was raised. Its text is not: it may quote what a
  request said, or a credential.
- One line a second at most: a mistake may concern every request. The next line tells how many were left out.
"""

from collections.abc import Callable
from traceback import extract_tb, format_list
from typing import Final

import structlog

from .metrics import Cell
from .refusals import Refusal

log = structlog.get_logger()

_INTERVAL: Final = 1.0
_CAUSES_MAX: Final = 4

INTERNAL: Final = Refusal(
    500,
    "internal_error",
    "The gateway has made a mistake with this request, and its log tells where. Try again; if it stays, tell an Ostiary "
    "admin the id that this answer carries.",
)
CUT_BY_US: Final = "an internal error of the gateway ended the answer"


class Failures:
    """Those of a worker. `clock`: monotonic seconds; `counted`: how many there were."""

    def __init__(self, clock: Callable[[], float], counted: Cell) -> None:
        self._clock = clock
        self._counted = counted
        self._logged_at = -_INTERVAL
        self._left_out = 0

    def log(self, error: BaseException, request_id: str = "") -> None:
        """Say once what has happened to this request."""
        self._counted[0] += 1
        now = self._clock()
        if now - self._logged_at < _INTERVAL:
            self._left_out += 1
            return
        left_out, self._left_out = self._left_out, 0
        self._logged_at = now
        log.error(
            "failing to serve a request",
            request_id=request_id,
            left_out=left_out,
            exception=where(error),
        )


def where(error: BaseException) -> str:
    """A traceback without any values; the first cause comes last."""
    parts: list[str] = []
    seen: BaseException | None = error
    while seen is not None and len(parts) < _CAUSES_MAX:
        kind = type(seen)
        parts.append(f"{kind.__module__}.{kind.__qualname__}\n" + "".join(format_list(extract_tb(seen.__traceback__))))
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
    return "because of ".join(parts).rstrip()
