"""What is known of one key and of one breaker, from the reports about it. Pure: the time is an argument.

Rules
- Of two that cool the same the later deadline holds. Of a refusal and a recovery the younger holds, and of an opening and a
  closing of a breaker, in whatever order they come. What says nothing new is not taken.
- What has served its time holds no more: a cooling key is usable again, an open breaker half-open. A suspect key stays one
  until it recovers: past its deadline it may be tried.
- A report's deadline is monotonic. The same in Unix time, made once when it came, is what is shown.
"""

from collections import deque
from collections.abc import Iterator
from typing import Final, Literal, NamedTuple

from ostiary.core.health import BreakerReport, BreakerStateName, KeyReport, KeyStateName, refused_at

TIMELINE: Final = 32
MAX_COOLING: Final = 32
"""Models that one key is known to cool for; the first to be usable again is left out."""
_SAME_TIME: Final = 1e-3
"""Seconds: as for the workers, a refusal that is no older than that against a recovery holds."""


class Cooling(NamedTuple):
    """`model` empty: the whole key."""

    model: str
    reason: str
    until: int


class Transition(NamedTuple):
    at: int
    state: KeyStateName
    reason: str
    model: str
    until: int
    strikes: int


class KeyHealth(NamedTuple):
    """A key as it is shown. Unix seconds, 0 for none."""

    provider: str
    key_id: str
    hint: str
    state: KeyStateName
    reason: str
    until: int
    model: str
    since: int
    strikes: int
    cooling: tuple[Cooling, ...]
    timeline: tuple[Transition, ...]


class BreakerHealth(NamedTuple):
    """A breaker that has been open."""

    provider: str
    route: str
    model: str
    state: BreakerStateName
    until: int
    since: int


class Place(NamedTuple):
    """A key of the snapshot."""

    provider: str
    digest: bytes
    key_id: str
    hint: str


class Standing(NamedTuple):
    """What trials are about."""

    state: Literal["sound", "suspect", "open"]
    until: float
    """Monotonic; before it nobody tries."""


SOUND: Final = Standing("sound", 0.0)


class _Held(NamedTuple):
    """A report that holds, with what it says in Unix time."""

    report: KeyReport
    since: int
    until: int


class _BreakerHeld(NamedTuple):
    report: BreakerReport
    at: int
    until: int


class KeyRecord:
    """What is known of one key."""

    def __init__(self) -> None:
        self._cooling: dict[str, _Held] = {}
        self._suspicion: _Held | None = None
        self._timeline: deque[Transition] = deque(maxlen=TIMELINE)
        self._usable_since = 0
        self._recovery: KeyReport | None = None

    def take(self, report: KeyReport, at: int, until: int) -> bool:
        """Whether that is news."""
        if report.state == "cooling":
            return self._cool(report, at, until)
        if report.state == "suspect":
            return self._suspect(report, at, until)
        return self._recover(report, at)

    def settle(self, now: float) -> bool:
        """Let go what has served its time; whether there was any."""
        over = [model for model, held in self._cooling.items() if held.report.until <= now]
        for model in over:
            self._usable_since = max(self._usable_since, self._cooling.pop(model).until)
        return bool(over)

    def shown(self, place: Place) -> KeyHealth:
        cooling = tuple(Cooling(model, held.report.reason, held.until) for model, held in self._cooling.items())
        about = (place.provider, place.key_id, place.hint)
        history = (cooling, tuple(self._timeline))
        held = self._suspicion or self._longest()
        if held is not None:
            said = held.report
            return KeyHealth(
                *about, said.state, said.reason, held.until, said.model, held.since, said.strikes, *history
            )
        reason = "recovered" if self._timeline else ""
        return KeyHealth(*about, "usable", reason, 0, "", self._usable_since, 0, *history)

    @property
    def standing(self) -> Standing:
        return Standing("suspect", self._suspicion.report.until) if self._suspicion is not None else SOUND

    def reports(self) -> Iterator[KeyReport]:
        """All that a worker must know which knows nothing, or what held some time ago."""
        if self._suspicion is not None:
            yield self._suspicion.report
        elif self._recovery is not None:
            yield self._recovery
        for held in self._cooling.values():
            yield held.report

    def _longest(self) -> _Held | None:
        """What cools the whole key, else the model that it cools for longest."""
        if (whole := self._cooling.get("")) is not None:
            return whole
        return max(self._cooling.values(), key=lambda held: held.report.until, default=None)

    def _cool(self, report: KeyReport, at: int, until: int) -> bool:
        before = self._cooling.get(report.model)
        if before is not None and report.until <= before.report.until:
            return False
        goes_on = before is not None and before.report.reason == report.reason
        self._cooling[report.model] = _Held(report, before.since if before is not None and goes_on else at, until)
        if len(self._cooling) > MAX_COOLING:
            del self._cooling[min(self._cooling, key=lambda model: self._cooling[model].report.until)]
        self._note(report, at, until, amend=goes_on)
        return True

    def _suspect(self, report: KeyReport, at: int, until: int) -> bool:
        if self._recovery is not None and _recovered_since(report, self._recovery):
            return False
        before = self._suspicion
        if before is not None and _age(report) <= _age(before.report):
            return False
        again = before is not None and before.report.strikes == report.strikes
        self._suspicion = _Held(report, before.since if before is not None else at, until)
        self._note(report, at, until, amend=again)
        return True

    def _recover(self, report: KeyReport, at: int) -> bool:
        """News also when it was not suspect here: another worker may think so."""
        if self._recovery is not None and report.until <= self._recovery.until:
            return False
        self._recovery = report
        if self._suspicion is not None and _recovered_since(self._suspicion.report, report):
            self._suspicion = None
            self._usable_since = max(self._usable_since, at)
            self._note(report, at, 0, amend=False)
        return True

    def _note(self, report: KeyReport, at: int, until: int, *, amend: bool) -> None:
        """With `amend` it only lasts longer than was known."""
        if amend:
            for index in range(len(self._timeline) - 1, -1, -1):
                earlier = self._timeline[index]
                if (earlier.state, earlier.reason, earlier.model) == (report.state, report.reason, report.model):
                    self._timeline[index] = earlier._replace(until=until)
                    return
        self._timeline.append(Transition(at, report.state, report.reason, report.model, until, report.strikes))


class BreakerRecord:
    """What is known of one breaker: the last opening and the last closing that were told. The younger holds."""

    def __init__(self) -> None:
        self._opened: _BreakerHeld | None = None
        self._closed: _BreakerHeld | None = None
        self._served = False
        """Whether it has been open for as long as it was to be."""

    def take(self, report: BreakerReport, at: int, until: int) -> bool:
        """Whether that is news."""
        if report.state == "half_open":
            return False  # it follows from the deadline
        before = self._opened if report.state == "open" else self._closed
        if before is not None and report.until <= before.report.until:
            return False
        if report.state == "open":
            self._opened = _BreakerHeld(report, at, until)
            self._served = False
        else:
            self._closed = _BreakerHeld(report, at, until)
        return True

    def settle(self, now: float) -> bool:
        """Let the next request try when it has been open for long enough; whether that is new."""
        if self._opened is None or self._served or now < self._opened.report.until:
            return False
        self._served = True
        return self.state == "half_open"

    @property
    def state(self) -> BreakerStateName:
        opened, closed = self._opened, self._closed
        if opened is None or (closed is not None and closed.report.at >= opened.report.at):
            return "closed"
        return "half_open" if self._served else "open"

    @property
    def report(self) -> BreakerReport | None:
        """What a worker must know which knows nothing, or what held some time ago."""
        held = self._closed if self.state == "closed" else self._opened
        return held.report if held is not None else None

    @property
    def standing(self) -> Standing:
        opened = self._opened
        return SOUND if opened is None or self.state == "closed" else Standing("open", opened.report.until)

    def shown(self, provider: str, route: str, model: str) -> BreakerHealth:
        state, opened, closed = self.state, self._opened, self._closed
        if state == "closed" or opened is None:
            since, until = closed.at if closed is not None else 0, 0
        else:
            since, until = (opened.at, opened.until) if state == "open" else (opened.until, 0)
        return BreakerHealth(provider, route, model, state, until, since)


def _recovered_since(refusal: KeyReport, recovery: KeyReport) -> bool:
    return refused_at(refusal) + _SAME_TIME < recovery.until


def _age(report: KeyReport) -> tuple[float, float, int]:
    """Of two refusals the greater is the younger."""
    return refused_at(report), report.until, report.strikes
