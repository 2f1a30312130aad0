"""The seeding plan as `ostiary providers plan` prints it."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import msgspec

from ostiary.control.seed.plan import Drift, ExistingProvider, Insert, Repoint, Skip, Step, plan
from ostiary.core.provider_env import read_provider_environment
from ostiary.core.secret import Secret


def describe(variables: Mapping[str, Secret], rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The steps that the variables ask for, given the rows of the API; keys are masked."""
    desired = read_provider_environment(variables).providers
    return [_described(step) for step in plan(desired, [ExistingProvider.from_api(row) for row in rows])]


def stops(steps: Sequence[Mapping[str, Any]], on_drift: Literal["fail", "warn"]) -> int:
    """The exit status: 1 when a start would stop."""
    return int(on_drift == "fail" and any(step["step"] == "drift" for step in steps))


def summary(step: Mapping[str, Any]) -> str:
    """Why the step is what it is, on one line."""
    if step["step"] == "insert":
        keys = step["keys"]
        shown = f"keys {', '.join(keys)}" if keys else "no keys"
        return f"{step['source']}: {step['type']} at {step['base_url'] or 'the address of its region'}, {shown}"
    if step["step"] == "drift":
        parts = [
            f"{each['field']} is {each['database'] or 'not set'} in the database and {each['environment'] or 'not set'} here"
            for each in step["differences"]
        ]
        return f"{step['source']}: {', '.join(parts)}"
    return str(step.get("reason") or step.get("base_url") or "its row is there and the same")


def _described(step: Step) -> dict[str, Any]:
    described: dict[str, Any] = {"step": type(step).__name__.lower(), "name": step.name}
    match step:
        case Insert(provider):
            described |= {
                "type": provider.type.value,
                "base_url": provider.base_url,
                "keys": [key.masked for key in provider.keys],
                "source": provider.source,
            }
        case Skip(_, reason):
            described["reason"] = reason
        case Drift():
            differences = [cast("dict[str, str]", difference._asdict()) for difference in step.differences]
            described |= {"source": step.source, "differences": differences}
        case Repoint():
            described |= msgspec.structs.asdict(step)
    return described
