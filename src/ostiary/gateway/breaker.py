"""Circuit breakers, one for each (provider, route, model), shared by all users. Pure: the clock is an argument.

Rules
- Only what failed is kept: without failures there is nothing to look at, and `tracked` is empty.
- Failures count in a row, within an interval that starts with the first one; any success ends the row.
- Open: nothing is let through until the timeout is over. Then trials decide (`core.trials`), and only they: what was sent
  before the breaker opened changes nothing any more.
- Of closing and opening, the younger holds, in whatever order siblings tell of them. So a breaker that was closed is
  remembered for as long as an older opening may still be told.

closed --threshold failures in a row--> open --timeout--> half-open --all trials pass--> closed
                                         ^------------------ any trial fails -----------/
"""

import math
from collections import OrderedDict
from enum import Enum
from typing import Final

from msgspec import Struct

from ostiary.core.health import BreakerReport, BreakerStateName, BreakerSubject, opened_at

_BREAKERS_MAX: Final = 4096
_ASK_AGAIN: Final = 0.25
"""Seconds for which a refused trial is not asked for again: upstreams that fail get many requests."""

_NEVER: Final = -math.inf


class BreakerSettings(Struct, frozen=True):
    """Reference D.14."""

    enabled: bool = True
    failure_threshold: int = 5
    """Failures in a row that open it."""
    interval: float = 10.0
    """Seconds within which they have to fall."""
    timeout: float = 30.0
    """Seconds for which it is open."""


class Rejected(Struct, frozen=True):
    """Nothing is sent upstream."""

    retry_after: int
    """Seconds, at least 1."""


class Go(Enum):
    """What `admit` says where something may be sent."""

    ADMITTED = "admitted"
    NEEDS_TRIAL = "needs_trial"
    """Only if a trial is granted."""


ADMITTED: Final = Go.ADMITTED
NEEDS_TRIAL: Final = Go.NEEDS_TRIAL


class _Breaker:
    """`open_until` is of the last opening and stays after it was closed."""

    __slots__ = ("ask_after", "at", "closed_at", "failures", "is_open", "open_until", "window_ends")

    def __init__(self) -> None:
        self.failures = 0
        self.window_ends = 0.0
        self.is_open = False
        self.open_until = _NEVER
        self.closed_at = _NEVER
        self.ask_after = _NEVER
        self.at = 0.0


class Breakers:
    """All breakers of a worker."""

    def __init__(self, settings: BreakerSettings) -> None:
        self.settings = settings
        self.tracked: OrderedDict[BreakerSubject, _Breaker] = OrderedDict()
        """Empty while nothing fails: then neither `admit` nor `succeeded` need be called."""

    def admit(self, subject: BreakerSubject, now: float) -> Go | Rejected:
        """Whether a request may go upstream."""
        breaker = self.tracked.get(subject)
        if breaker is None or not breaker.is_open:
            return ADMITTED
        self.tracked.move_to_end(subject)
        wait = max(breaker.open_until, breaker.ask_after) - now
        return NEEDS_TRIAL if wait <= 0 else Rejected(max(1, math.ceil(wait)))

    def denied(self, subject: BreakerSubject, now: float) -> None:
        """A trial was asked for and not granted: others are under way."""
        breaker = self.tracked.get(subject)
        if breaker is not None:
            breaker.ask_after = now + _ASK_AGAIN

    def failed(self, subject: BreakerSubject, now: float, wall: float) -> BreakerReport | None:
        """A request failed that was `admitted`. A report when that opens the breaker."""
        settings = self.settings
        if not settings.enabled:
            return None
        breaker = self._entry(subject)
        if breaker.is_open:
            return None
        if now >= breaker.window_ends or not breaker.failures:
            breaker.failures = 0
            breaker.window_ends = now + settings.interval
        breaker.failures += 1
        return self._open_here(subject, now, wall) if breaker.failures >= settings.failure_threshold else None

    def succeeded(self, subject: BreakerSubject, now: float) -> None:
        """A request went well that was `admitted`. Needless while nothing is `tracked`."""
        breaker = self.tracked.get(subject)
        if breaker is not None and not breaker.is_open:
            breaker.failures = 0
            self._drop_if_plain(subject, breaker, now)

    def trial_failed(self, subject: BreakerSubject, now: float, wall: float) -> BreakerReport | None:
        """A trial failed. None when it came too late to decide anything: then it is a failure like any other."""
        breaker = self.tracked.get(subject)
        if breaker is not None and breaker.is_open and now >= breaker.open_until:
            return self._open_here(subject, now, wall)
        return self.failed(subject, now, wall)

    def close(self, subject: BreakerSubject, now: float, wall: float) -> BreakerReport | None:
        """All trials passed. None when it is not half-open any more."""
        breaker = self.tracked.get(subject)
        if breaker is None or not breaker.is_open or now < breaker.open_until:
            return None
        self._close(breaker, now, wall)
        return _report(subject, "closed", now, wall)

    def apply(self, report: BreakerReport, now: float) -> bool:
        """What a sibling or the link says. Whether that changes anything here."""
        if not self.settings.enabled or report.state == "half_open":
            return False
        subject = BreakerSubject(report.provider, report.route, report.model)
        timeout = self.settings.timeout
        breaker = self.tracked.get(subject)
        if report.state == "closed":
            if breaker is None:
                breaker = self._entry(subject)
            closed_at = report.until or now
            if closed_at <= breaker.closed_at:
                return False
            was_open = breaker.is_open
            if was_open and breaker.open_until - timeout >= closed_at:
                breaker.closed_at = closed_at
                return False
            self._close(breaker, closed_at, report.at)
            self._drop_if_plain(subject, breaker, now)
            return was_open
        if breaker is not None and (
            opened_at(report, timeout) < breaker.closed_at or report.until <= breaker.open_until
        ):
            return False
        breaker = self._entry(subject)
        self._open(breaker, min(report.until, now + timeout), report.at)
        return True

    def reports(self, now: float) -> list[BreakerReport]:
        """What a new link has to know: what is open or half-open, and what was closed not long ago."""
        self.sweep(now)
        found = []
        for subject, breaker in self.tracked.items():
            if breaker.is_open:
                found.append(_report(subject, "open", breaker.open_until, breaker.at))
            elif breaker.closed_at > _NEVER:
                found.append(_report(subject, "closed", breaker.closed_at, breaker.at))
        return found

    def states(self, now: float) -> dict[BreakerSubject, BreakerStateName]:
        """Of all that are tracked; the others are closed."""
        return {
            subject: "closed" if not breaker.is_open else "open" if now < breaker.open_until else "half_open"
            for subject, breaker in self.tracked.items()
        }

    def sweep(self, now: float) -> None:
        """Drop what is as good as untracked. Called now and then."""
        for subject, breaker in tuple(self.tracked.items()):
            if not breaker.is_open:
                if now >= breaker.window_ends:
                    breaker.failures = 0
                self._drop_if_plain(subject, breaker, now)

    def _entry(self, subject: BreakerSubject) -> _Breaker:
        breaker = self.tracked.get(subject)
        if breaker is None:
            if len(self.tracked) >= _BREAKERS_MAX:
                self.tracked.popitem(last=False)
            breaker = self.tracked[subject] = _Breaker()
        self.tracked.move_to_end(subject)
        return breaker

    def _open_here(self, subject: BreakerSubject, now: float, wall: float) -> BreakerReport:
        breaker = self._entry(subject)
        self._open(breaker, now + self.settings.timeout, wall)
        return _report(subject, "open", breaker.open_until, wall)

    def _open(self, breaker: _Breaker, until: float, wall: float) -> None:
        breaker.is_open = True
        breaker.failures = 0
        breaker.open_until = until
        breaker.ask_after = _NEVER
        breaker.at = wall

    def _close(self, breaker: _Breaker, now: float, wall: float) -> None:
        breaker.is_open = False
        breaker.failures = 0
        breaker.closed_at = now
        breaker.at = wall

    def _drop_if_plain(self, subject: BreakerSubject, breaker: _Breaker, now: float) -> None:
        if not breaker.failures and now >= breaker.closed_at + self.settings.timeout:
            del self.tracked[subject]


def _report(subject: BreakerSubject, state: BreakerStateName, until: float, at: float) -> BreakerReport:
    return BreakerReport(subject.provider, subject.route, subject.model, state, until, at)
