"""How the keys and upstreams of the machine fare, put together from what its workers report. Pure: the clocks are given.

Rules
- Kept is what concerns keys and enabled providers of the snapshot; the rest is forgotten with it. A key is known by the
  digest of its value, so what is known of it outlives its id. Before there is a snapshot everything is taken, within bounds.
- A report that says nothing new is not passed on.
- What is shown has Unix times, masked hints and key ids: never a key, never its digest.
- The history is this process's: the last `TIMELINE` changes of each key.
- Trials are granted here, none before the deadline that this machine knows of. What is learnt otherwise ends their round.
"""

from collections.abc import Callable, Iterable
from hashlib import sha256
from math import ceil
from typing import Final

from msgspec import structs

from ostiary.core.health import AskTrial, BreakerReport, BreakerSubject, KeyReport, KeySubject, TrialEnded, TrialSubject
from ostiary.core.providers import ProviderSpec
from ostiary.core.trials import Trials

from .health_records import SOUND, BreakerHealth, BreakerRecord, KeyHealth, KeyRecord, Place, Standing

MAX_BREAKERS: Final = 1000
"""Beyond, those that closed are forgotten first, then those that changed longest ago."""
MAX_UNPLACED: Final = 1000
"""Keys that are known before there is a snapshot."""
MAX_NAME: Final = 512
"""Characters of a model's name; clients choose it. What is said of longer ones stays with the worker that says it."""

Report = KeyReport | BreakerReport


class Board:
    """`clock` is the monotonic one that reports speak of, `wall` gives Unix seconds."""

    def __init__(self, clock: Callable[[], float], wall: Callable[[], float]) -> None:
        self._clock = clock
        self._wall = wall
        self._places: tuple[Place, ...] = ()
        self._known: frozenset[tuple[str, bytes]] | None = None
        """The keys of `_places`; None before there is a snapshot."""
        self._providers: frozenset[str] = frozenset()
        self._keys: dict[tuple[str, bytes], KeyRecord] = {}
        self._breakers: dict[tuple[str, str, str], BreakerRecord] = {}
        self._trials = Trials()
        self._changes = 0

    def serve(self, providers: Iterable[ProviderSpec]) -> None:
        """These are served from now on."""
        enabled = [spec for spec in providers if spec.enabled and not spec.error]
        self._places = tuple(
            Place(spec.name, sha256(key.value.reveal().encode()).digest(), key.id, key.value.masked)
            for spec in enabled
            for key in spec.keys
        )
        known = self._known = frozenset((place.provider, place.digest) for place in self._places)
        self._providers = frozenset(spec.name for spec in enabled)
        self._keys = {where: key for where, key in self._keys.items() if where in known}
        self._breakers = {where: one for where, one in self._breakers.items() if where[0] in self._providers}
        self._changes += 1

    def take(self, report: Report) -> bool:
        """Whether the other workers must know. A report of what is not served concerns nobody."""
        if len(report.model) > MAX_NAME:
            return False
        self.changes()
        if report.state == "cooling" and report.until <= self._clock():
            return False
        if report.state in ("usable", "closed") and not report.until:
            report = structs.replace(report, until=self._clock())
        if not report.at:
            report = structs.replace(report, at=self._wall())
        at, until = int(report.at), ceil(self._wall() + report.until - self._clock())
        subject = _subject(report)
        before = self._standing(subject)
        news = (
            self._take_key(report, at, until)
            if isinstance(report, KeyReport)
            else self._take_breaker(report, at, until)
        )
        self._changes += news
        if self._standing(subject) != before:
            self._trials.forget(subject)
        return news

    def ask(self, worker: int, question: AskTrial) -> bool:
        """Whether a request of this worker may try. Of what stays with the worker only itself can say."""
        now, subject = self._clock(), question.subject
        if isinstance(subject, BreakerSubject) and len(subject.model) > MAX_NAME:
            return True
        return now >= self._standing(subject).until and self._trials.ask(subject, worker, question.limit, now)

    def ended(self, worker: int, trial: TrialEnded) -> BreakerReport | None:
        """What all workers must know after a trial: a breaker has closed, or is open again."""
        subject = trial.subject
        conclusion = self._trials.ended(subject, worker, trial.outcome)
        if conclusion is None or isinstance(subject, KeySubject):
            return None  # what a trial meant for a key its worker reports
        where = (subject.provider, subject.route, subject.model)
        if conclusion == "recovered":
            report = BreakerReport(*where, "closed", self._clock(), self._wall())
        else:
            report = BreakerReport(*where, "open", trial.until, self._wall())
        self.take(report)
        return report

    def gone(self, worker: int) -> None:
        """Its trials will not end."""
        self._trials.holder_gone(worker)

    def changes(self) -> int:
        """A number that is another one whenever what is shown has changed."""
        now = self._clock()
        self._changes += sum(key.settle(now) for key in self._keys.values())
        self._changes += sum(breaker.settle(now) for breaker in self._breakers.values())
        return self._changes

    def reports(self) -> list[Report]:
        """All that holds, for a worker that has been told nothing or not everything. Also what has recovered."""
        self.changes()
        keys = (report for key in self._keys.values() for report in key.reports())
        breakers = (one.report for one in self._breakers.values() if one.report is not None)
        return [*keys, *breakers]

    def key_health(self) -> list[KeyHealth]:
        """Every key of the enabled providers, in the order of failover."""
        self.changes()
        return [self._key(place).shown(place) for place in self._places]

    def breaker_health(self) -> list[BreakerHealth]:
        self.changes()
        return [one.shown(*where) for where, one in sorted(self._breakers.items())]

    def _take_key(self, report: KeyReport, at: int, until: int) -> bool:
        where = (report.provider, report.key_sha256)
        if where not in self._keys:
            if where not in self._known if self._known is not None else len(self._keys) >= MAX_UNPLACED:
                return False
            self._keys[where] = KeyRecord()
        return self._keys[where].take(report, at, until)

    def _take_breaker(self, report: BreakerReport, at: int, until: int) -> bool:
        if self._known is not None and report.provider not in self._providers:
            return False
        where = (report.provider, report.route, report.model)
        breaker = self._breakers.pop(where, None) or BreakerRecord()
        if len(self._breakers) >= MAX_BREAKERS:
            closed = (where for where, one in self._breakers.items() if one.state == "closed")
            del self._breakers[next(closed, next(iter(self._breakers)))]
        self._breakers[where] = breaker
        return breaker.take(report, at, until)

    def _standing(self, subject: TrialSubject) -> Standing:
        record: KeyRecord | BreakerRecord | None
        if isinstance(subject, KeySubject):
            record = self._keys.get((subject.provider, subject.key_sha256))
        else:
            record = self._breakers.get((subject.provider, subject.route, subject.model))
        return record.standing if record is not None else SOUND

    def _key(self, place: Place) -> KeyRecord:
        return self._keys.get((place.provider, place.digest)) or KeyRecord()


def _subject(report: Report) -> TrialSubject:
    if isinstance(report, KeyReport):
        return KeySubject(report.provider, report.key_sha256)
    return BreakerSubject(report.provider, report.route, report.model)
