"""Decoding that takes what fits and leaves the rest.

Rules
- The usual case is one typed msgspec pass. Only when that fails, each member is decoded by itself, so that one member of an
  unknown shape does not hide its neighbours.
- JSON that only the provider may judge is repaired for reading: invalid UTF-8 and lone surrogates become U+FFFD or `?`, a
  byte order mark is skipped. The bytes that are forwarded are not touched by this.
- What is not JSON at all gives None.
"""

import json
from functools import lru_cache
from types import UnionType
from typing import Any, Generic, TypeVar, get_args, get_origin

import msgspec
from msgspec import Raw, Struct

T = TypeVar("T", bound=Struct)

JsonText = Any
"""JSON as it stood: bytes or `Raw`, which msgspec's stubs take for a kind of bytes, and compiled code would believe them."""

NO_RAW = Raw(b"")
"""Default of a `Raw` field: the member is absent."""

_members = msgspec.json.Decoder(dict[str, Raw])
_elements = msgspec.json.Decoder(list[Raw])


class NestingError(ValueError):
    """JSON nested beyond what can be read with bounded stack."""


class LenientDecoder(Generic[T]):
    """Decodes JSON objects into one struct type whose fields all have defaults."""

    __slots__ = ("_kind", "_strict")

    def __init__(self, kind: type[T]) -> None:
        self._kind = kind
        self._strict = msgspec.json.Decoder(kind)

    def decode(self, payload: bytes) -> T | None:
        """The struct, or None when `payload` is not a JSON object. Raises `NestingError`."""
        try:
            return self._strict.decode(payload)
        except (ValueError, RecursionError):
            members = object_members(payload)
        return None if members is None else _fill(self._kind, members)


def object_members(payload: JsonText) -> dict[str, Raw] | None:
    """The members of a JSON object, or None when it is none. Raises `NestingError`."""
    try:
        return _members.decode(payload)
    except RecursionError as exc:
        raise NestingError("JSON is nested too deeply to be read") from exc
    except ValueError:
        repaired = _repaired(bytes(payload))
    if repaired is None:
        return None
    try:
        return _members.decode(repaired)
    except ValueError:
        return None


def text_of(raw: JsonText) -> str:
    """JSON text as it stood."""
    return str(bytes(raw), "utf-8", "replace")


def is_json(text: str | bytes) -> bool:
    """Whether text is one whole JSON value."""
    try:
        msgspec.json.decode(text, type=Raw)
    except (ValueError, RecursionError):
        return False
    return True


def _repaired(payload: bytes) -> bytes | None:
    text = payload.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "replace")
    try:
        return json.dumps(json.loads(text), ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
    except RecursionError as exc:
        raise NestingError("JSON is nested too deeply to be read") from exc
    except ValueError:
        return None


@lru_cache(maxsize=256)
def _fields(kind: type[Struct]) -> tuple[tuple[str, str, Any], ...]:
    return tuple((field.name, field.encode_name, field.type) for field in msgspec.structs.fields(kind))


def _fill(kind: type[T], members: dict[str, Raw]) -> T:
    values = {}
    for name, encoded, wanted in _fields(kind):
        if (raw := members.get(encoded)) is not None:
            taken, value = _take(raw, wanted)
            if taken:
                values[name] = value
    return kind(**values)


def _take(raw: Raw, wanted: Any) -> tuple[bool, Any]:  # Any: field types of structs are known only at run time
    try:
        return True, msgspec.json.decode(raw, type=wanted)
    except UnicodeDecodeError:
        repaired = _repaired(bytes(raw))
        return (False, None) if repaired is None else _take(Raw(repaired), wanted)
    except ValueError:
        pass
    for option in get_args(wanted) if isinstance(wanted, UnionType) else (wanted,):
        if isinstance(option, type) and issubclass(option, Struct):
            members = _object_or_none(raw)
            if members is not None:
                return True, _fill(option, members)
        elif get_origin(option) in (list, tuple):
            element = get_args(option)[0]
            taken = [_take(item, element) for item in _elements_or_none(raw)]
            if taken:
                return True, [value for fits, value in taken if fits]
    return False, None


def _object_or_none(raw: Raw) -> dict[str, Raw] | None:
    try:
        return _members.decode(raw)
    except ValueError:
        return None


def _elements_or_none(raw: Raw) -> list[Raw]:
    try:
        return _elements.decode(raw)
    except ValueError:
        return []
