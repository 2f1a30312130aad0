"""Half-open trials: which requests may try a suspect key or a breaker that was open. Pure.

Rules
- A round admits `limit` trials in all. When so many have passed, the subject has recovered; one that fails ends the round.
- One of which nothing can be said (`unknown`), or whose holder is gone, gives its place back.
- A place that is held for longer than `LEASE` is given to another. Should the first one end after all, it counts all the
  same: it is as good a sign as the second.
- What ends that was not granted here, or in a round that is over, counts nothing.
"""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Final, Literal

from .health import TrialOutcome, TrialSubject

LEASE: Final = 120.0
"""Seconds."""

_SUBJECTS_MAX: Final = 4096
_GRANTS_PER_PLACE: Final = 4

Conclusion = Literal["recovered", "failed"]


class _Round:
    __slots__ = ("grants", "limit", "passed")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.passed = 0
        self.grants: list[tuple[Hashable, float]] = []
        """Who holds them and until when, the oldest first; also those whose lease is over."""


class Trials:
    """The ledger. A holder is whoever runs trials: for the link a worker, for a worker without a link itself."""

    def __init__(self) -> None:
        self._rounds: OrderedDict[TrialSubject, _Round] = OrderedDict()

    def __len__(self) -> int:
        return len(self._rounds)

    def ask(self, subject: TrialSubject, holder: Hashable, limit: int, now: float) -> bool:
        """Whether `holder` may try `subject` now. `limit` is at least 1."""
        current = self._rounds.get(subject)
        if current is None:
            if len(self._rounds) >= _SUBJECTS_MAX:
                self._rounds.popitem(last=False)
            current = self._rounds[subject] = _Round(limit)
        self._rounds.move_to_end(subject)
        current.limit = max(limit, 1)
        grants = current.grants
        held = sum(1 for _, until in grants if now < until)
        if held + current.passed >= current.limit:
            return False
        if len(grants) >= _GRANTS_PER_PLACE * current.limit:
            del grants[0]
        grants.append((holder, now + LEASE))
        return True

    def ended(
        self,
        subject: TrialSubject,
        holder: Hashable,
        outcome: TrialOutcome,
    ) -> Conclusion | None:
        """What a trial of `holder` means for the subject; None: nothing yet, or nothing at all."""
        current = self._rounds.get(subject)
        if current is None:
            return None
        held = next((index for index, grant in enumerate(current.grants) if grant[0] == holder), None)
        if held is None:
            return None
        del current.grants[held]
        if outcome == "failed":
            del self._rounds[subject]
            return "failed"
        if outcome == "passed":
            current.passed += 1
            if current.passed >= current.limit:
                del self._rounds[subject]
                return "recovered"
        elif not current.grants and not current.passed:
            del self._rounds[subject]
        return None

    def holder_gone(self, holder: Hashable) -> None:
        """Its trials will not end: their places are free."""
        for subject, current in tuple(self._rounds.items()):
            current.grants = [grant for grant in current.grants if grant[0] != holder]
            if not current.grants and not current.passed:
                del self._rounds[subject]

    def forget(self, subject: TrialSubject) -> None:
        """The round is over: what is known of the subject has come from elsewhere."""
        self._rounds.pop(subject, None)
