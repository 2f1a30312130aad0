"""Keys and breakers as metrics, once a machine.

Labels are bounded: of a provider's breakers the first 200 models have a label, what comes later is `other`, which shows
the worst of them.
"""

from collections.abc import Iterable
from typing import Final, get_args

from ostiary.core.families import Family, Sample
from ostiary.core.health import KeyStateName

from .health_records import BreakerHealth, KeyHealth

MAX_MODEL_LABELS: Final = 200
OTHER: Final = "other"
_LEVELS: Final = {"closed": 0.0, "half_open": 0.5, "open": 1.0}


class HealthMetrics:
    """Remembers which models have a label."""

    def __init__(self) -> None:
        self._models: dict[str, set[str]] = {}

    def families(self, keys: Iterable[KeyHealth], breakers: Iterable[BreakerHealth]) -> list[Family]:
        return [
            Family(
                "ostiary_key_pool_state",
                "Keys of a provider by state; cooling counts also for a single model.",
                "gauge",
                ("provider", "state"),
                _key_samples(keys),
            ),
            Family(
                "ostiary_circuit_breaker_state",
                "0 closed, 0.5 half-open, 1 open; of those that have been open.",
                "gauge",
                ("provider", "endpoint", "model"),
                self._breaker_samples(breakers),
            ),
        ]

    def _breaker_samples(self, breakers: Iterable[BreakerHealth]) -> list[Sample]:
        values: dict[tuple[str, ...], float] = {}
        for one in breakers:
            labels = (one.provider, one.route, self._label(one.provider, one.model))
            values[labels] = max(values.get(labels, 0.0), _LEVELS[one.state])
        self._models = {labels[0]: self._models[labels[0]] for labels in values}
        return [Sample(labels, value) for labels, value in values.items()]

    def _label(self, provider: str, model: str) -> str:
        models = self._models.setdefault(provider, set())
        if model not in models and len(models) < MAX_MODEL_LABELS:
            models.add(model)
        return model if model in models else OTHER


def _key_samples(keys: Iterable[KeyHealth]) -> list[Sample]:
    counts: dict[tuple[str, ...], float] = {}
    for key in keys:
        for state in get_args(KeyStateName):
            counts.setdefault((key.provider, state), 0.0)
        counts[key.provider, key.state] += 1
    return [Sample(labels, number) for labels, number in counts.items()]
