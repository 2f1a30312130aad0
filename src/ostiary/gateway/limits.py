"""How many requests a machine takes at once, and how many a second of one token, over all its workers (reference D.2).

    ┌─ row of worker 0 ───────────────────────────────┐┌─ row of worker 1 ──
    │ in flight │ hash row 0: cells │ … │ hash row 3  ││ in flight │ …         64-bit words of a file all workers map
    └─────────────────────────────────────────────────┘└───────────────────
                                cell = window (32 bits) | requests admitted in it (32 bits)

Rules
- Every worker reads all rows and writes its own only, so there are no locks; it zeroes its row when it starts, so that what
  a killed one held does not last.
- Workers that look in the same moment do not see each other yet: each of the others may let one more in than the limit.
- A window is a whole second of the clock that is passed in, which must be the same for all workers (CLOCK_MONOTONIC is).
- A token has one cell in each hash row, and the smallest sum over the workers counts: never less than what was let in, and
  more only when in every row another token of that second has the same cell. With n other tokens in a second that is
  (1 - (1 - 1/4096)^n)^4: 5 in a million for 200 of them, 2 in a thousand for 1000; and only then, and only when the sum
  reaches the limit, is a request refused for others' sake.
"""

import mmap
import os
import stat
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Final, Self

from .refusals import Refusal

_WORD: Final = 8
_HEADER: Final = 8
"""Words of a row before its cells: the first is the count in flight, the rest keep rows off each other's cache lines."""
_HASH_ROWS: Final = 4
_CELLS: Final = 4096
ROW: Final = _HEADER + _HASH_ROWS * _CELLS
"""Words."""
_COUNT: Final = 0xFFFFFFFF


class LimitsError(Exception):
    """The shared counts cannot be kept: says why, and what to do."""


class Limits:
    """The limits of one worker; `cells` are the words of all rows, shared with the other workers."""

    def __init__(
        self, cells: memoryview, worker: int, workers: int, *, max_concurrency: int = 0, rate_limit: int = 0
    ) -> None:
        self._cells = cells
        self._own = worker * ROW
        self._rows = range(0, workers * ROW, ROW)
        self._max_concurrency = max_concurrency
        self._rate_limit = rate_limit
        self._in_flight = 0
        self._map: mmap.mmap | None = None
        self._too_many = Refusal(
            503,
            "max_concurrency",
            f"This gateway has as many requests under way as it takes at once: {max_concurrency} (max_concurrency). "
            "Try again in a moment.",
            retry_after=1,
        )
        self._too_fast = Refusal(
            429,
            "rate_limit",
            f"This Ostiary token has made as many requests as it may in one second: {rate_limit} (rate_limit). "
            "Try again in a second.",
            retry_after=1,
        )
        cells[self._own : self._own + ROW] = memoryview(bytes(ROW * _WORD)).cast("Q")

    @classmethod
    def open(cls, path: Path, worker: int, workers: int, max_concurrency: int, rate_limit: int) -> Self | None:
        """The limits of worker `worker` of `workers`, counted in the file `path`, which all of them open; None when there
        are no limits. Raises `LimitsError`."""
        if not max_concurrency and not rate_limit:
            return None
        try:
            mapped = _map_shared(path, workers * ROW * _WORD)
        except OSError as error:
            raise LimitsError(
                f"max_concurrency and rate_limit need the file {path}, which cannot be written: {error.strerror}. "
                "Make it writable for this user, or make room on its disk"
            ) from error
        view = memoryview(mapped).cast("Q")
        limits = cls(view, worker, workers, max_concurrency=max_concurrency, rate_limit=rate_limit)
        limits._map = mapped
        return limits

    def enter(self, api_key_id: str, now: float) -> Refusal | None:
        """Let a request in: `leave` must follow. Or say why not. `now`: seconds."""
        cells = self._cells
        if self._max_concurrency and sum([cells[row] for row in self._rows]) >= self._max_concurrency:
            return self._too_many
        if self._rate_limit and not self._count(api_key_id, int(now) & _COUNT):
            return self._too_fast
        self._in_flight += 1
        cells[self._own] = self._in_flight
        return None

    def leave(self) -> None:
        """A request that was let in has ended."""
        self._in_flight -= 1
        self._cells[self._own] = self._in_flight

    def _count(self, api_key_id: str, window: int) -> bool:
        """Note one more request in this window; False, and nothing noted, when the limit is reached."""
        cells, rows = self._cells, self._rows
        places = _places(api_key_id)
        if min([sum([_admitted(cells[row + place], window) for row in rows]) for place in places]) >= self._rate_limit:
            return False
        for place in places:
            at = self._own + place
            cells[at] = (window << 32) | (_admitted(cells[at], window) + 1)
        return True

    def close(self) -> None:
        """Nothing may be asked any more. The row goes on to count for the others until its next owner zeroes it."""
        self._cells.release()
        if self._map is not None:
            self._map.close()


def _admitted(cell: int, window: int) -> int:
    return cell & _COUNT if cell >> 32 == window else 0


@lru_cache(maxsize=8192)
def _places(api_key_id: str) -> tuple[int, ...]:
    """Where a token's cells are in a row, the same in all processes."""
    digest = blake2b(api_key_id.encode("utf-8"), digest_size=2 * _HASH_ROWS).digest()
    return tuple(
        _HEADER + row * _CELLS + int.from_bytes(digest[2 * row : 2 * row + 2], "big") % _CELLS
        for row in range(_HASH_ROWS)
    )


def _map_shared(path: Path, size: int) -> mmap.mmap:
    """At least `size` bytes of the file. It never shrinks: somebody may have more of it mapped."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(0, "it is no file")
        os.fchmod(fd, 0o600)
        # not only its length: a write to a mapped hole of a full disk would kill the process
        os.posix_fallocate(fd, 0, size)
        return mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
    finally:
        os.close(fd)
