"""How keys and upstreams fare, as the processes of one machine tell each other (worker → link → the other workers).

Rules
- A report says how things stand, with absolute deadlines: it may come twice, late, or after one that was made later. Of
  two that cool the same, the later deadline holds. A suspicion or an open breaker is younger or older than a recovery:
  the younger of the two holds, whichever comes last (`refused_at`, `opened_at`).
- Deadlines are readings of CLOCK_MONOTONIC, which all processes of a machine share: a changed clock moves none of them.
- A key that has cooled is simply used. One that was suspect, or what a breaker has kept shut, is tried by somebody first:
  the link grants that to one request for a key, to as many as `limit` says for a breaker; a worker without a link grants
  it to itself.
"""

from typing import Final, Literal

from msgspec import Struct

SUSPECT_FIRST: Final = 60.0
SUSPECT_LONGEST: Final = 3600.0

KeyStateName = Literal["usable", "cooling", "suspect"]
KeyReason = Literal["rate_limited", "quota", "refused", "recovered"]
BreakerStateName = Literal["closed", "open", "half_open"]
TrialOutcome = Literal["passed", "failed", "unknown"]


class KeyReport(Struct, frozen=True, omit_defaults=True, tag=True):
    """A key's state has changed. A key is known by the SHA-256 of its value: its id changes when it is entered anew."""

    provider: str
    """The provider's name."""
    key_sha256: bytes
    state: KeyStateName
    reason: KeyReason
    model: str = ""
    """Cooling for this model only; empty: the whole key."""
    until: float = 0.0
    """When it may be used (cooling) or tried (suspect) again. Usable: when that was found."""
    strikes: int = 0
    """Suspect: refusals in a row."""
    at: float = 0.0
    """Unix seconds, for people to read."""


class BreakerReport(Struct, frozen=True, omit_defaults=True, tag=True):
    """A circuit breaker's state has changed."""

    provider: str
    route: str
    model: str
    state: BreakerStateName
    until: float = 0.0
    """Open: until then nothing is let through. Closed: when it was closed; 0: now."""
    at: float = 0.0
    """Unix seconds, for people to read."""


class KeySubject(Struct, frozen=True, tag="key"):
    """What a trial is of: a suspect key."""

    provider: str
    key_sha256: bytes


class BreakerSubject(Struct, frozen=True, tag="breaker"):
    """What a trial is of: a breaker that was open."""

    provider: str
    route: str
    model: str


TrialSubject = KeySubject | BreakerSubject


class AskTrial(Struct, frozen=True, tag=True):
    """May a request try this? Answered by `TrialAnswer` with the same `seq`."""

    seq: int
    subject: TrialSubject
    limit: int = 1
    """Trials that may run at once; so many must pass before a breaker closes."""


class TrialAnswer(Struct, frozen=True, tag=True):
    seq: int
    granted: bool


class TrialEnded(Struct, frozen=True, omit_defaults=True, tag=True):
    """What came of a granted trial. `unknown`: nothing can be said, another may try."""

    subject: TrialSubject
    outcome: TrialOutcome
    until: float = 0.0
    """Failed, of a breaker: how long it is open again."""


def suspect_wait(strikes: int) -> float:
    """Seconds until a key that was refused so many times in a row is tried again: 60 s, doubling to an hour."""
    return min(SUSPECT_FIRST * 2.0 ** (min(max(strikes, 1), 16) - 1), SUSPECT_LONGEST)


def refused_at(report: KeyReport) -> float:
    """When the refusal came that made a key suspect, read off its deadline."""
    return report.until - suspect_wait(report.strikes)


def opened_at(report: BreakerReport, timeout: float) -> float:
    """When a breaker was opened, read off its deadline and the time that breakers stay open."""
    return report.until - timeout
