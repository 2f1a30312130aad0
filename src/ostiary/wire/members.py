"""A few top-level members of one long JSON object, found while it passes by (RFC 8259).

Rules
- Nothing is held but the values that are wanted, each up to `MAX_VALUE`, and a token that is torn at the end of a piece.
- Values that are not wanted are passed over, not decoded: one regular expression from bracket to bracket, a byte search
  within a long string. Pieces may be torn anywhere.
- Of a repeated name the last one counts. A name written with escapes is not recognised.
- It reads what is JSON and does not judge what is not: such a document does not become `whole`.
- Work is bounded: after `MAX_STEPS` brackets and members the rest is not read.
"""

import re
from typing import Final

MAX_VALUE: Final = 12 * 1024
MAX_NAME: Final = 4 * 1024
MAX_STEPS: Final = 1_000_000

_BOM: Final = b"\xef\xbb\xbf"
_SPACE: Final = re.compile(rb"[ \t\r\n]*+")
# A member's name and what stands before its value, of which the first byte must be there.
_NAME: Final = re.compile(rb'[ \t\r\n,]*+"([^"\\]*+(?:\\.[^"\\]*+)*+)"[ \t\r\n]*+:[ \t\r\n]*+(?=[^ \t\r\n])', re.DOTALL)
_CLOSING: Final = re.compile(rb"[ \t\r\n,]*+\}")
_IN_STRING: Final = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)
_SCALAR: Final = re.compile(rb"[^,\]} \t\r\n]*+")
# Over whole strings and what stands between them, up to a bracket, or to a string without its end.
_TO_BRACKET: Final = re.compile(rb'[^"\[\]{}]*+(?:"[^"\\]*+(?:\\.[^"\\]*+)*+"[^"\[\]{}]*+)*+', re.DOTALL)

_QUOTE: Final = ord('"')
_OPENING_BRACKETS: Final = b"[{"
_OPENING_BRACE: Final = ord("{")


class MemberScanner:
    """Takes the document in pieces; `found` has what was wanted, as it stood."""

    __slots__ = (
        "_depth",
        "_name",
        "_rest",
        "_state",
        "_steps",
        "_taken",
        "_taken_size",
        "_wanted",
        "found",
        "problem",
        "whole",
    )

    def __init__(self, wanted: frozenset[bytes]) -> None:
        self.found: dict[bytes, bytes] = {}
        self.whole = False
        """The brace that ends the object has been seen."""
        self.problem = ""
        """A limit of ours that was met; holds no bytes of the document."""
        self._wanted = wanted
        self._state = self._opening
        self._rest = b""
        self._name = b""
        self._taken: list[bytes] | None = None
        self._taken_size = 0
        self._depth = 0
        self._steps = 0

    def feed(self, data: bytes) -> None:
        """Read on."""
        if self._rest:
            data = self._rest + data
            self._rest = b""
        at, end = 0, len(data)
        while at < end:
            at = self._state(data, at)

    # --- states: each reads from `at` on, and gives the place from which another goes on

    def _opening(self, data: bytes, at: int) -> int:
        at = _after(_SPACE, data, at)
        left = data[at : at + 3]
        if left in (_BOM[:1], _BOM[:2]):
            return self._wait(data, at)
        if left == _BOM:
            return at + 3
        if left and left[0] != _OPENING_BRACE:
            return self._give_up(data)
        if left:
            self._state = self._between
        return at + 1

    def _between(self, data: bytes, at: int) -> int:
        named = _NAME.match(data, at)
        if named is None:
            closing = _CLOSING.match(data, at)
            if closing is not None:
                self.whole = True
                self._state = self._beyond
                return len(data)
            if len(data) - at > MAX_NAME:
                return self._give_up(data)
            return self._wait(data, at)
        self._steps += 1
        self._name = named[1]
        self._taken = [] if self._name in self._wanted else None
        self._taken_size = 0
        at = named.end()
        first = data[at]
        if first == _QUOTE:
            self._take(data, at, at + 1)
            self._state = self._string
            return at + 1
        if first in _OPENING_BRACKETS:
            self._depth = 0
            self._state = self._inside
        else:
            self._state = self._scalar
        return at

    def _string(self, data: bytes, at: int) -> int:
        end = self._over_string(data, at)
        if end:
            self._done()
        return end or len(data)

    def _scalar(self, data: bytes, at: int) -> int:
        end = _after(_SCALAR, data, at)
        self._take(data, at, end)
        if end < len(data):
            self._done()
        return end

    def _inside(self, data: bytes, at: int) -> int:
        start, size, depth, steps = at, len(data), self._depth, self._steps
        while True:
            at = _after(_TO_BRACKET, data, at)
            if at == size:
                break
            at += 1
            if data[at - 1] == _QUOTE:
                self._state = self._string_inside
                break
            steps += 1
            if data[at - 1] in _OPENING_BRACKETS:
                depth += 1
            else:
                depth -= 1
                if depth == 0:
                    break
        self._depth, self._steps = depth, steps
        if steps > MAX_STEPS:
            return self._give_up(data, f"the answer has more than {MAX_STEPS} members")
        self._take(data, start, at)
        if depth == 0:
            self._done()
        return at

    def _string_inside(self, data: bytes, at: int) -> int:
        end = self._over_string(data, at)
        if end:
            self._state = self._inside
        return end or len(data)

    def _beyond(self, data: bytes, at: int) -> int:  # noqa: ARG002 - a state's signature
        return len(data)

    # --- what the states share

    def _over_string(self, data: bytes, at: int) -> int:
        """Behind the quote that ends the string; 0 when it does not end here."""
        size = len(data)
        if data.find(b'"', at) < 0 and data.find(b"\\", at) < 0:
            self._take(data, at, size)  # the inside of a long one: base64, mostly
            return 0
        end = _after(_IN_STRING, data, at)
        if end == size:
            self._take(data, at, end)
            return 0
        if data[end] == _QUOTE:
            self._take(data, at, end + 1)
            return end + 1
        self._take(data, at, end)
        self._wait(data, end)  # for what the backslash escapes
        return 0

    def _take(self, data: bytes, start: int, end: int) -> None:
        taken = self._taken
        if taken is None:
            return
        self._taken_size += end - start
        if self._taken_size > MAX_VALUE:
            self._taken = None
            self.problem = f"{self._name.decode('ascii')} is longer than {MAX_VALUE} bytes"
        else:
            taken.append(data[start:end])

    def _done(self) -> None:
        if self._taken is not None:
            self.found[self._name] = b"".join(self._taken)
            self._taken = None
        self._state = self._between
        if self._steps > MAX_STEPS:
            self._give_up(b"", f"the answer has more than {MAX_STEPS} members")

    def _wait(self, data: bytes, at: int) -> int:
        self._rest = data[at:]
        return len(data)

    def _give_up(self, data: bytes, problem: str = "") -> int:
        self.problem = problem
        self._taken = None
        self._state = self._beyond
        return len(data)


def _after(pattern: re.Pattern[bytes], data: bytes, at: int) -> int:
    """Behind what a pattern that always matches takes."""
    found = pattern.match(data, at)
    return at if found is None else found.end()
