"""Counters a worker can afford: a label set is looked up once, then a handle is one list cell.

`Registry` is a worker's own, not thread-safe.
"""

from bisect import bisect_left

from .families import Family, Kind, Sample


class Histogram:
    """Observations of one label set."""

    __slots__ = ("_bounds", "buckets", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self.sum = 0.0
        self.buckets = [0] * (len(bounds) + 1)

    def observe(self, value: float) -> None:
        self.sum += value
        self.buckets[bisect_left(self._bounds, value)] += 1


class CellFamily:
    """A counter or gauge. `cell(labels)` gives the list cell to add to: `cell[0] += 1`."""

    __slots__ = ("_cells", "help", "kind", "label_names", "name")

    def __init__(self, name: str, help: str, kind: Kind, label_names: tuple[str, ...]) -> None:  # noqa: A002
        self.name = name
        self.help = help
        self.kind: Kind = kind
        self.label_names = label_names
        self._cells: dict[tuple[str, ...], list[float]] = {}

    def cell(self, *labels: str) -> list[float]:
        found = self._cells.get(labels)
        if found is None:
            found = self._cells[labels] = [0.0]
        return found

    def report(self) -> Family:
        samples = [Sample(labels, cell[0]) for labels, cell in self._cells.items()]
        return Family(self.name, self.help, self.kind, self.label_names, samples)


class HistogramFamily:
    __slots__ = ("_series", "bounds", "help", "label_names", "name")

    def __init__(self, name: str, help: str, bounds: tuple[float, ...], label_names: tuple[str, ...]) -> None:  # noqa: A002
        self.name = name
        self.help = help
        self.bounds = bounds
        self.label_names = label_names
        self._series: dict[tuple[str, ...], Histogram] = {}

    def series(self, *labels: str) -> Histogram:
        found = self._series.get(labels)
        if found is None:
            found = self._series[labels] = Histogram(self.bounds)
        return found

    def report(self) -> Family:
        samples = [Sample(labels, h.sum, tuple(h.buckets)) for labels, h in self._series.items()]
        return Family(self.name, self.help, "histogram", self.label_names, samples, self.bounds)


class Registry:
    """The families of one process, in the order they were made."""

    def __init__(self) -> None:
        self._families: list[CellFamily | HistogramFamily] = []

    def counter(self, name: str, help: str, *label_names: str) -> CellFamily:  # noqa: A002
        family = CellFamily(name, help, "counter", label_names)
        self._families.append(family)
        return family

    def gauge(self, name: str, help: str, *label_names: str) -> CellFamily:  # noqa: A002
        family = CellFamily(name, help, "gauge", label_names)
        self._families.append(family)
        return family

    def histogram(self, name: str, help: str, bounds: tuple[float, ...], *label_names: str) -> HistogramFamily:  # noqa: A002
        family = HistogramFamily(name, help, bounds, label_names)
        self._families.append(family)
        return family

    def report(self) -> list[Family]:
        return [family.report() for family in self._families]
