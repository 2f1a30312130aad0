"""How gateways say that keys and breakers fare, as the API shows it.

What a gateway says is not trusted: words are passed on as words, numbers that are no time of a calendar are no time.
Gateways of an older version say less; what they do not say is empty.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal

from pydantic import Field

_LATEST: Final = 253_402_300_799
"""9999-12-31T23:59:59Z in Unix seconds."""

State = Annotated[
    str,
    Field(
        description="usable, cooling (not used before `until`) or suspect (from `until` on one request at a time tries it)"
    ),
]
Reason = Annotated[
    str, Field(description="rate_limited, quota, refused or recovered; empty when nothing has ever happened to it")
]
Model = Annotated[str, Field(description="Cooling for this model only; empty: the whole key")]
Strikes = Annotated[int, Field(description="Suspect: refusals in a row")]
Moment = datetime | None


@dataclass(frozen=True, slots=True)
class KeyCooling:
    """One of the things that a key cools for."""

    model: Model
    reason: Reason
    until: Moment


@dataclass(frozen=True, slots=True)
class KeyTransition:
    """A change of a key's state."""

    at: Moment
    state: State
    reason: Reason
    model: Model
    until: Moment
    strikes: Strikes


@dataclass(frozen=True, slots=True)
class ReplicaKey:
    """A key as one gateway has found it."""

    provider: str
    key_id: str
    hint: Annotated[str, Field(description="The key, masked")]
    state: State
    reason: Reason
    model: Model
    until: Moment
    since: Annotated[Moment, Field(description="When it came into this state; null: before this gateway started")]
    strikes: Strikes
    cooling: Annotated[list[KeyCooling], Field(description="All that it cools for, also while it is suspect")]
    timeline: Annotated[
        list[KeyTransition], Field(description="The last 32 changes since this gateway started, newest last")
    ]


@dataclass(frozen=True, slots=True)
class KeyOnReplica:
    """How one gateway has found a key. What a stale one said last need not hold any more."""

    replica_id: str
    hostname: str
    replica_state: Literal["live", "stale"]
    state: State
    reason: Reason
    model: Model
    until: Moment
    since: Moment
    strikes: Strikes
    cooling: list[KeyCooling]
    timeline: list[KeyTransition]


@dataclass(frozen=True, slots=True)
class ReplicaBreaker:
    """A circuit breaker that has been open since its gateway started."""

    provider: str
    route: str
    model: str
    state: Annotated[str, Field(description="closed, open, or half_open: the next requests try")]
    until: Annotated[Moment, Field(description="Open: nothing is let through before")]
    since: Moment


def key_health(said: dict[str, Any]) -> dict[str, Any]:
    """The fields of a key's health, by name."""
    return {
        **{name: _text(said.get(name)) for name in ("state", "reason", "model")},
        "until": moment(said.get("until")),
        "since": moment(said.get("since")),
        "strikes": _number(said.get("strikes")),
        "cooling": [
            KeyCooling(_text(one.get("model")), _text(one.get("reason")), moment(one.get("until")))
            for one in _rows(said.get("cooling"))
        ],
        "timeline": [
            KeyTransition(
                at=moment(one.get("at")),
                **{name: _text(one.get(name)) for name in ("state", "reason", "model")},
                until=moment(one.get("until")),
                strikes=_number(one.get("strikes")),
            )
            for one in _rows(said.get("timeline"))
        ],
    }


def replica_key(said: dict[str, Any]) -> ReplicaKey:
    about: dict[str, Any] = {name: _text(said.get(name)) for name in ("provider", "key_id", "hint")}
    return ReplicaKey(**about, **key_health(said))


def replica_breaker(said: dict[str, Any]) -> ReplicaBreaker:
    about = {name: _text(said.get(name)) for name in ("provider", "route", "model", "state")}
    return ReplicaBreaker(**about, until=moment(said.get("until")), since=moment(said.get("since")))


def moment(seconds: Any) -> datetime | None:  # Any: a value of JSON
    """Unix seconds as a time; None for 0 and for what is none."""
    if not isinstance(seconds, int) or not 0 < seconds <= _LATEST:
        return None
    return datetime.fromtimestamp(seconds, UTC)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _number(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _rows(value: Any) -> list[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []
