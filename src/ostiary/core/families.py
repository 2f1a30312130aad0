"""How numbers travel: from the workers to their link, which sums those of all, the dead ones' last reports included, and
renders them; and on to the control plane.
"""

from typing import Literal

from msgspec import Struct

Kind = Literal["counter", "gauge", "histogram"]


class Sample(Struct, frozen=True, array_like=True):
    labels: tuple[str, ...]
    value: float = 0.0
    """Counter or gauge; of a histogram the sum."""
    buckets: tuple[int, ...] = ()
    """Histogram: observations per bucket, not cumulated, the last one beyond all bounds."""


class Family(Struct, frozen=True):
    name: str
    """Without a `_total` suffix for counters; it is added when rendered."""
    help: str
    kind: Kind
    label_names: tuple[str, ...]
    samples: list[Sample]
    bounds: tuple[float, ...] = ()
