"""The counters of all workers as those of one machine. Pure.

Rules
- Counters and histograms are summed over every start of every worker since the link's own start: when a worker is
  replaced they go on from where they were. Gauges are summed over the workers that are connected.
- A start is known by its journal's id, so a worker that comes back over a new socket is not counted twice.
"""

from collections.abc import Iterable
from typing import NamedTuple

from ostiary.core.families import Family, Kind, Sample


class _Key(NamedTuple):
    """What must agree for two families to be one; builds may differ for a moment."""

    name: str
    kind: Kind
    label_names: tuple[str, ...]
    bounds: tuple[float, ...]


class MachineMetrics:
    def __init__(self) -> None:
        self._retired: list[Family] = []
        self._reports: dict[str, list[Family]] = {}
        self._connected: set[str] = set()

    def report(self, journal_id: str, families: list[Family]) -> None:
        """The newest report of a worker that is connected."""
        self._reports[journal_id] = families
        self._connected.add(journal_id)

    def disconnected(self, journal_id: str) -> None:
        """Its gauges no longer hold; its counters do."""
        self._connected.discard(journal_id)

    def replaced(self, journal_id: str) -> None:
        """That start will never report again."""
        self._connected.discard(journal_id)
        if families := self._reports.pop(journal_id, None):
            self._retired = total([self._retired, _without_gauges(families)])

    def families(self) -> list[Family]:
        """The machine's sums."""
        reports = [
            families if journal_id in self._connected else _without_gauges(families)
            for journal_id, families in self._reports.items()
        ]
        return total([self._retired, *reports])


def _without_gauges(families: list[Family]) -> list[Family]:
    return [family for family in families if family.kind != "gauge"]


def total(reports: Iterable[list[Family]]) -> list[Family]:
    """Sum families of one name, label set by label set. One that disagrees with an earlier one is left out."""
    keys: dict[str, _Key] = {}
    helps: dict[str, str] = {}
    sums: dict[str, dict[tuple[str, ...], Sample]] = {}
    for families in reports:
        for family in families:
            key = _Key(family.name, family.kind, family.label_names, family.bounds)
            if keys.setdefault(family.name, key) != key:
                continue
            helps[family.name] = family.help
            series = sums.setdefault(family.name, {})
            for sample in family.samples:
                earlier = series.get(sample.labels)
                series[sample.labels] = sample if earlier is None else _add(earlier, sample)
    return [
        Family(name, helps[name], key.kind, key.label_names, list(sums[name].values()), key.bounds)
        for name, key in keys.items()
    ]


def _add(one: Sample, other: Sample) -> Sample:
    buckets = tuple(a + b for a, b in zip(one.buckets, other.buckets, strict=True))
    return Sample(one.labels, one.value + other.value, buckets)
