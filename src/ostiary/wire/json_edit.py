"""Changing members of a JSON document in its bytes (RFC 8259). Nothing is decoded and encoded again.

Rules
- A member is found by reading the document, never by searching for its name: msgspec reads all members of an object and
  gives their values' bytes; walking over them in order, each compared with what stands there, gives their places.
- Where that walk does not fit (a repeated name, strings that msgspec refuses), a scanner of JSON text finds them. Of a
  repeated name the last one counts, as with nearly every parser, and it alone is changed.
- Every byte outside the edited member stays: order, spacing, number forms, escapes, byte order mark.
- What is not JSON, or nested too deeply to be read, is an error; nothing is edited by guess.
"""

import json
import re
from collections.abc import Mapping
from typing import Final, NamedTuple

import msgspec
from msgspec import Raw

_BOM: Final = b"\xef\xbb\xbf"
_members: Final = msgspec.json.Decoder(dict[str, Raw])

_SPACE: Final = re.compile(rb"[ \t\n\r]*+")
_STRING: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_SCALAR: Final = re.compile(rb"[^,\]}\s]++")
# From just behind a bracket to just behind the next one, over strings and what stands between them.
_TO_BRACKET: Final = re.compile(rb'[^"\[\]{}]*+(?:"[^"\\]*+(?:\\.[^"\\]*+)*+"[^"\[\]{}]*+)*+([\[\]{}])', re.DOTALL)


class JSONEditError(ValueError):
    """The document cannot be edited. The text names the cause and holds none of its bytes."""


class _Member(NamedTuple):
    name: str
    start: int
    """Where its name's quote stands."""
    value: slice


class _Object(NamedTuple):
    opening: int
    """Where its brace stands."""
    closing: int
    members: list[_Member]

    def last(self, name: str) -> int:
        """Which member counts under a name, or -1."""
        return next((i for i in range(len(self.members) - 1, -1, -1) if self.members[i].name == name), -1)


def find(document: bytes, *path: str) -> slice | None:
    """Where the value of a (nested) member stands, or None when there is none. Raises `JSONEditError`."""
    place: slice | None = slice(0, len(document))
    for name in path:
        held = _object(document, place) if place is not None else None
        if held is None:
            return None
        index = held.last(name)
        place = held.members[index].value if index >= 0 else None
    return place


def set_member(document: bytes, path: tuple[str, ...], value: bytes) -> bytes:
    """The document with a member's value replaced, or the member added at the end of its object.

    `value` is JSON. Objects on the way that are missing are made. Raises `JSONEditError`, also when something on the way is
    no object.
    """
    _require_json(value)
    place = slice(0, len(document))
    for depth, name in enumerate(path):
        held = _object(document, place)
        if held is None:
            raise JSONEditError(f"{'.'.join(path[:depth]) or 'the document'} is not a JSON object")
        index = held.last(name)
        if index < 0:
            return _append(document, held, name, _wrapped(path[depth + 1 :], value))
        place = held.members[index].value
    return document[: place.start] + value + document[place.stop :]


def insert_first(document: bytes, name: str, value: bytes) -> bytes:
    """The document with a member added at its front: a fast way for a name that is known to be absent.

    The document must be known to be a JSON object. Raises `JSONEditError` when it does not begin like one.
    """
    opening = _skip_space(document, len(_BOM) if document.startswith(_BOM) else 0)
    if document[opening : opening + 1] != b"{":
        raise JSONEditError("the document is not a JSON object")
    following = _skip_space(document, opening + 1)
    comma = b"" if document[following : following + 1] == b"}" else b","
    return b"".join((document[: opening + 1], _encoded(name), b":", value, comma, document[opening + 1 :]))


def edit_members(document: bytes, changes: Mapping[str, bytes | None]) -> bytes:
    """The document with several of its own members set, or (None) removed, in one reading. New ones go to its end.

    A removed name goes wherever it stands, so that no earlier one of the same name takes effect. Raises `JSONEditError`.
    """
    for value in changes.values():
        if value is not None:
            _require_json(value)
    held = _object(document, slice(0, len(document)))
    if held is None:
        raise JSONEditError("the document is not a JSON object")
    members = held.members
    counting = {member.name: i for i, member in enumerate(members)}
    parts = [document[: members[0].start if members else held.opening + 1]]
    empty = True
    for i, (name, start, place) in enumerate(members):
        changed = changes.get(name, b"")
        if changed is None:
            continue
        if not empty:
            parts.append(document[members[i - 1].value.stop : start])
        parts.append(document[start : place.start])
        parts.append(changed if changed and counting[name] == i else document[place])
        empty = False
    for name, value in changes.items():
        if value is not None and name not in counting:
            parts += (b"" if empty else b",", _encoded(name), b":", value)
            empty = False
    parts.append(document[members[-1].value.stop if members else held.opening + 1 :])
    return b"".join(parts)


def _append(document: bytes, held: _Object, name: str, value: bytes) -> bytes:
    at = held.members[-1].value.stop if held.members else held.opening + 1
    comma = b"," if held.members else b""
    return b"".join((document[:at], comma, _encoded(name), b":", value, document[at:]))


def _wrapped(path: tuple[str, ...], value: bytes) -> bytes:
    for name in reversed(path):
        value = b"{" + _encoded(name) + b":" + value + b"}"
    return value


def _encoded(name: str) -> bytes:
    return msgspec.json.encode(name)


def _require_json(value: bytes) -> None:
    try:
        msgspec.json.decode(value, type=Raw)
    except (ValueError, RecursionError) as exc:
        raise JSONEditError("the new value is not JSON") from exc


def _object(document: bytes, place: slice) -> _Object | None:
    """The members of the object that stands at a place, or None when no object stands there."""
    start = place.start
    if start == 0 and document.startswith(_BOM):
        start = len(_BOM)
    opening = _skip_space(document, start)
    text = document if start == 0 and place.stop == len(document) else document[start : place.stop]
    try:
        values = _members.decode(text)
    except RecursionError as exc:
        raise JSONEditError("the document is nested too deeply") from exc
    except ValueError:  # also for what is JSON and no object
        return _scanned_if_json(document, text, opening)
    return _walked(document, opening, values) or _scan(document, opening)


def _walked(document: bytes, opening: int, values: dict[str, Raw]) -> _Object | None:
    """The members' places, or None when they do not stand in the document as `values` has them: a name is repeated.

    A JSON value is no proper beginning of another one that ends in the same place, so each step that fits takes one whole
    member; and when the brace follows the last of them, there were no others.
    """
    members: list[_Member] = []
    at = _skip_space(document, opening + 1)
    for name, raw in values.items():
        if members:
            at = _skip_space(document, at + 1)  # over the comma
        string = _STRING.match(document, at)
        if string is None:
            return None
        value = _skip_space(document, _skip_space(document, string.end()) + 1)  # over the colon
        end = value + len(memoryview(raw))
        if not document.startswith(raw, value):
            return None
        members.append(_Member(name, at, slice(value, end)))
        at = _skip_space(document, end)
        if document[at] not in b",}":
            return None
    return _Object(opening, at, members) if document[at : at + 1] == b"}" else None


def _scanned_if_json(document: bytes, text: bytes, opening: int) -> _Object | None:
    """For what msgspec refuses and other parsers take, such as lone surrogates."""
    try:
        value = json.loads(text.decode("utf-8", "surrogateescape"), parse_constant=_refuse)
    except RecursionError as exc:
        raise JSONEditError("the document is nested too deeply") from exc
    except ValueError as exc:
        raise JSONEditError("the document is not JSON") from exc
    return _scan(document, opening) if isinstance(value, dict) else None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _scan(document: bytes, opening: int) -> _Object:
    """The members of an object by reading its text, which is known to be valid JSON."""
    members: list[_Member] = []
    at = _skip_space(document, opening + 1)
    while document[at] != 0x7D:
        string = _STRING.match(document, at)
        if string is None:
            raise JSONEditError("the document is not JSON")
        value = _skip_space(document, _skip_space(document, string.end()) + 1)
        end = _value_end(document, value)
        members.append(_Member(_decoded(string[0]), at, slice(value, end)))
        at = _skip_space(document, end)
        if document[at] == 0x2C:
            at = _skip_space(document, at + 1)
    return _Object(opening, at, members)


def _value_end(document: bytes, start: int) -> int:
    first = document[start]
    if first == 0x22:
        found = _STRING.match(document, start)
    elif first not in b"[{":
        found = _SCALAR.match(document, start)
    else:
        depth, at = 1, start + 1
        while depth:
            found = _TO_BRACKET.match(document, at)
            if found is None:
                break
            depth += 1 if found[1] in b"[{" else -1
            at = found.end()
    if found is None:
        raise JSONEditError("the document is not JSON")
    return found.end()


def _decoded(string: bytes) -> str:
    try:
        return msgspec.json.decode(string, type=str)
    except ValueError:
        text: str = json.loads(string.decode("utf-8", "surrogateescape"), strict=False)
        return text


def _skip_space(document: bytes, at: int) -> int:
    found = _SPACE.match(document, at)
    return found.end() if found is not None else at
