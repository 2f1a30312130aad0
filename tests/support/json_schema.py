"""Whether a JSON value is what a schema of the OpenAPI document says.

Rules
- It knows the keywords that the document uses and fails at any other, so that nothing passes because it was not looked at.
- Stricter than JSON Schema in one thing: a member that the document does not name is wrong, unless it allows others.
"""

import json
from collections.abc import Mapping
from datetime import date, datetime
from typing import Any, Final

Json = Mapping[str, Any]

_ANNOTATIONS: Final = {"title", "description", "default", "examples", "writeOnly"}
_CHECKED: Final = {
    *("$ref", "anyOf", "type", "enum", "format", "items", "properties", "required", "additionalProperties"),
}
_TYPES: Final[dict[str, tuple[type, ...]]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
    "array": (list,),
    "object": (dict,),
}


def problem(value: Any, schema: Json, components: Json, at: str = "$") -> str:
    """What is wrong and where; empty when nothing is."""
    unknown = set(schema) - _ANNOTATIONS - _CHECKED
    if unknown:
        raise NotImplementedError(f"{at}: keywords that nobody checks: {sorted(unknown)}")
    if "$ref" in schema:
        return problem(value, components[schema["$ref"].rpartition("/")[2]], components, at)
    if "anyOf" in schema:
        found = [problem(value, one, components, at) for one in schema["anyOf"]]
        return "" if "" in found else f"{at}: none of {found}"
    if "enum" in schema and value not in schema["enum"]:
        return f"{at}: {_short(value)} is not one of {schema['enum']}"
    kind = schema.get("type")
    if kind is None:
        return ""
    if not isinstance(value, _TYPES[kind]) or (isinstance(value, bool) and kind != "boolean"):
        return f"{at}: {_short(value)} is no {kind}"
    if isinstance(value, str):
        return _format_problem(value, schema.get("format", ""), at)
    if isinstance(value, list):
        each = [(one, schema.get("items", {}), f"{at}[{number}]") for number, one in enumerate(value)]
    elif isinstance(value, dict):
        missing = set(schema.get("required", ())) - set(value)
        if missing:
            return f"{at}: without {sorted(missing)}"
        known, others = schema.get("properties", {}), schema.get("additionalProperties", "properties" not in schema)
        if others is False and set(value) - set(known):
            return f"{at}: not documented: {sorted(set(value) - set(known))}"
        rest = {} if isinstance(others, bool) else others
        each = [(one, known.get(name, rest), f"{at}.{name}") for name, one in value.items()]
    else:
        return ""
    return next(filter(None, (problem(one, part, components, place) for one, part, place in each)), "")


def _format_problem(text: str, named: str, at: str) -> str:
    try:
        match named:
            case "date-time":
                if datetime.fromisoformat(text).tzinfo is None:
                    return f"{at}: {text!r} has no time zone"
            case "date":
                date.fromisoformat(text)
            case "" | "password":
                pass
            case _:
                raise NotImplementedError(f"{at}: a format that nobody checks: {named}")
    except ValueError:
        return f"{at}: {_short(text)} is no {named}"
    return ""


def _short(value: Any) -> str:
    return json.dumps(value)[:100]
