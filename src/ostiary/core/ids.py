"""UUIDv7 (RFC 9562 §5.7) as canonical text.

Rows are partitioned by these ids, so the leading 48 bits are Unix milliseconds. Within a process ids only grow:
the 12 bits behind the milliseconds count ids of one millisecond, the remaining 62 are random.
"""

import os
import time
from collections.abc import Callable
from typing import Final

_RANDOM_POOL = 4096


_DIGITS: Final = "0123456789abcdef"
_VARIANT: Final = {digit: "89ab"[int(digit, 16) & 3] for digit in _DIGITS}
_PAIRS: Final = [high + low for high in _DIGITS for low in _DIGITS]
_PAIR_VALUES: Final = {pair: value for value, pair in enumerate(_PAIRS)}


class IdSource:
    """Makes ids for one thread. `clock` gives Unix nanoseconds, `entropy(n)` gives n random bytes."""

    __slots__ = ("_clock", "_count", "_entropy", "_last_ms", "_pool", "_pos", "_prefix")

    def __init__(self, clock: Callable[[], int] = time.time_ns, entropy: Callable[[int], bytes] = os.urandom) -> None:
        self._clock = clock
        self._entropy = entropy
        self._last_ms = -1
        self._count = 0
        self._prefix = ""
        self._pool = ""
        self._pos = 0

    def __call__(self) -> str:
        ms = self._clock() // 1_000_000
        if ms > self._last_ms:
            self._begin(ms)
        elif self._count == 0xFFF:
            self._begin(self._last_ms + 1)
        else:
            # same millisecond, or the clock stepped back: stay monotonic
            self._count += 1
        pos = self._pos
        if pos == len(self._pool):
            self._pool = self._entropy(_RANDOM_POOL).hex()
            pos = 0
        pool = self._pool
        self._pos = pos + 16
        count = self._count
        digits = _DIGITS[count >> 8] + _PAIRS[count & 0xFF]
        return f"{self._prefix}{digits}-{_VARIANT[pool[pos]]}{pool[pos + 1 : pos + 4]}-{pool[pos + 4 : pos + 16]}"

    def _begin(self, ms: int) -> None:
        self._last_ms = ms
        self._count = 0
        head = _hex(ms, 6)
        self._prefix = f"{head[:8]}-{head[8:]}-7"


new_id = IdSource()
"""The ids of this process. After a fork take a new `IdSource`; we spawn, so this one is enough."""


def child_id(parent: str, number: int) -> str:
    """The id of the `number`-th thing that belongs to `parent`: the same time and random part, the last 48 bits counted on.

    Cheaper than a new one, and the same again when the same thing is numbered again.
    """
    last = _PAIR_VALUES[parent[34:]] + number
    if last <= 0xFF:
        return parent[:34] + _PAIRS[last]
    return parent[:24] + _hex((int(parent[24:], 16) + number) & 0xFFFF_FFFF_FFFF, 6)


def _hex(number: int, size: int) -> str:
    """`number` as `size` bytes in hexadecimal: a third of what a format string costs."""
    return number.to_bytes(size, "big").hex()


def first_id_at(unix_ms: int) -> str:
    """The smallest UUIDv7 of a millisecond: a partition bound."""
    head = _hex(unix_ms, 6)
    return f"{head[:8]}-{head[8:]}-7000-8000-000000000000"
