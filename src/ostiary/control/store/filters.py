"""What a list's `q` says (reference G.1).

    q     = term *( 1*SP term )
    term  = key ":" value
    value = quoted / 1*( any character but a space )
    quoted = DQUOTE *( any character; DQUOTE and "\\" behind a "\\" ) DQUOTE

Rules
- Pure, and closed: free text, an unknown key, a key given twice, an empty value, a time without an offset are problems,
  all of them told at once.
- Values only ever become bound parameters.
"""

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from difflib import get_close_matches
from typing import Any, Final, NamedTuple

from msgspec import Struct

MAX_LENGTH: Final = 4096
"""Characters of a `q` that are read."""

ME: Final = "me"

_TERM: Final = re.compile(
    r"""\ *(?:
        (?P<key>[^\s:"]+):(?:"(?P<quoted>(?:[^"\\]|\\.)*)"(?=\ |$)|(?P<plain>[^\s"][^\s]*)|(?P<empty>(?=\ |$)))
        |(?P<other>[^ ]+)
    )""",
    re.VERBOSE,
)
_ESCAPE: Final = re.compile(r"\\(.)")


class Filters(Struct, frozen=True):
    """What a list is narrowed to; an empty text narrows nothing."""

    initiator: str = ""
    """A user's id, their name, or `me`."""
    provider: str = ""
    """Wire family: openai, anthropic, copilot."""
    provider_name: str = ""
    model: str = ""
    client: str = ""
    session_id: str = ""
    started_after: datetime | None = None
    started_before: datetime | None = None


KEYS: Final = Filters.__struct_fields__


class Problem(NamedTuple):
    field: str
    detail: str


class FilterError(ValueError):
    """A `q` that cannot be used; `problems` say why."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("; ".join(f"{field}: {detail}" for field, detail in problems))
        self.problems = list(problems)


def parse_filters(q: str) -> Filters:
    """Read a `q`. Raises `FilterError`."""
    values: dict[str, Any] = {}
    problems: list[Problem] = []
    for key, value in _terms(q, problems):
        if key not in KEYS:
            problems.append(Problem(key, _unknown(key)))
        elif key in values:
            problems.append(Problem(key, "is given twice"))
        elif key in ("started_after", "started_before"):
            values[key] = _time(key, value, problems)
        else:
            values[key] = value
    if problems:
        raise FilterError(problems)
    return Filters(**values)


def parse_prefix(q: str, key: str) -> str:
    """Read the `q` of a list of names: a prefix, bare or as `key:prefix`; empty for all. Raises `FilterError`."""
    text = q.strip()
    if text.partition(":")[0].lower() not in KEYS:
        return _checked(text)  # names hold colons too: anthropic.claude-haiku-v1:0
    problems: list[Problem] = []
    terms = list(_terms(text, problems))
    problems += [Problem(name, f"must be {key}") for name, _ in terms if name != key]
    if not problems and len(terms) > 1:
        problems.append(Problem(key, "is given twice"))
    if problems:
        raise FilterError(problems)
    return terms[0][1]


def _checked(prefix: str) -> str:
    problems: list[Problem] = []
    _check(prefix, problems)
    if problems:
        raise FilterError(problems)
    return prefix


def _check(q: str, problems: list[Problem]) -> None:
    if len(q) > MAX_LENGTH:
        problems.append(Problem("q", f"must be {MAX_LENGTH} characters or fewer"))
    if "\x00" in q:
        problems.append(Problem("q", "must not contain a NUL character"))


def _terms(q: str, problems: list[Problem]) -> list[tuple[str, str]]:
    _check(q, problems)
    if problems:
        return []
    terms: list[tuple[str, str]] = []
    for match in _TERM.finditer(" ".join(q.split("\t")).strip(" \r\n")):
        key, quoted, plain, empty, other = match.group("key", "quoted", "plain", "empty", "other")
        if other is not None:
            problems.append(
                Problem("q", f'free text is not searched: {other[:64]!r}; write key:value or key:"a value"')
            )
        elif empty is not None or quoted == "":
            problems.append(Problem(key.lower(), "must have a value"))
        else:
            terms.append((key.lower(), plain if quoted is None else _ESCAPE.sub(r"\1", quoted)))
    return terms


def _time(key: str, value: str, problems: list[Problem]) -> datetime | None:
    try:
        given = datetime.fromisoformat(value.upper())
        if given.tzinfo is not None:
            # before the year 1 or after 9999 in UTC there is no time that the database could be asked for
            return given.astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    problems.append(Problem(key, "must be a time as in RFC 3339, e.g. 2026-11-20T08:00:00Z"))
    return None


def _unknown(key: str) -> str:
    close = get_close_matches(key, KEYS, n=1)
    return f"is not a key of q{f'; is {close[0]} meant?' if close else ''} (known: {', '.join(KEYS)})"
