"""Who was here: what reached the fake provider and what became of it.

Rules
- Counting is always on and costs a few increments; marks and full entries only in their mode.
- A mark is the client's own name for a request: the header `X-Fake-Mark`, or `fake-mark:NAME` anywhere in the body (the
  last one counts), which every gateway must let through.
- A request has reached us when its head is read. A mark in the body is known when the body is.
- Everything is bounded; what did not fit is counted in `dropped`, so a reconciliation can tell.
- Keys are kept as the SHA-256 of their value, never in clear.
"""

import hashlib
import os
import time
from collections import Counter, deque
from collections.abc import Iterable
from typing import Any, Literal

import msgspec
from msgspec import Struct

from .forms import Form

Mode = Literal["counts", "marks", "full"]
Outcome = Literal["open", "answered", "cut", "aborted"]

_MARK = b"fake-mark:"
_MARK_END = frozenset(b"\"'\\ \t\r\n<>,;")
_MAX_MARK = 200
_MAX_ABORTED = 10_000
_SECRET_HEADERS = (b"authorization", b"x-api-key", b"api-key", b"x-amz-security-token")


class Entry(Struct):
    """One request; the body's fields are empty until it has been read."""

    number: int
    at: float
    """Unix seconds."""
    method: str
    path: str
    mark: str = ""
    key_sha256: str = ""
    query: str = ""
    headers: list[tuple[str, str]] = []
    """In the order received, names as spelt; a key's value is replaced by its hash. Full mode only."""
    body_bytes: int = -1
    body_sha256: str = ""
    status: int = 0
    outcome: Outcome = "open"
    sent_bytes: int = 0
    ended_at: float = 0.0


class Abort(Struct):
    """A client that went before its answer was complete."""

    number: int
    mark: str
    path: str
    at: float
    """Unix seconds."""
    monotonic: float
    """CLOCK_MONOTONIC, the same for all processes of a machine."""
    sent_bytes: int


class Ledger:
    def __init__(self, mode: Mode = "counts", *, limit: int = 100_000, file: str = "") -> None:
        self.mode: Mode = mode
        self.count = 0
        self.answered = 0
        self.aborted_count = 0
        self.cut_count = 0
        self.dropped = 0
        self.aborted: deque[Abort] = deque(maxlen=_MAX_ABORTED)
        self.by_route: Counter[str] = Counter()
        self.by_status: Counter[int] = Counter()
        self.marks: Counter[str] = Counter()
        self.entries: dict[int, Entry] = {}
        self._limit = limit
        self._file = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600) if file else -1

    @property
    def noting(self) -> bool:
        """Whether requests are noted one by one."""
        return self.mode != "counts" or self._file >= 0

    @property
    def hashing(self) -> bool:
        """Whether bodies are noted by their hash."""
        return self.mode == "full" or self._file >= 0

    def count_arrival(self, route: str) -> None:
        """A request's head has been read. `route` is one of a fixed set."""
        self.count += 1
        self.by_route[route] += 1

    def count_end(self, status: int, outcome: Outcome) -> None:
        if outcome == "answered":
            self.answered += 1
        elif outcome == "cut":
            self.cut_count += 1
        else:
            self.aborted_count += 1
        self.by_status[status] += 1

    def arrived(
        self, method: str, path: str, query: str, mark: str, key: str, headers: Iterable[tuple[bytes, bytes]]
    ) -> Entry:
        """Note what `count_arrival` counted; only called when `noting`."""
        entry = Entry(self.count - 1, time.time(), method, path, mark, _sha256(key.encode()) if key else "", query)
        if self.mode == "full":
            entry.headers = [_shown(name, value) for name, value in headers]
            if len(self.entries) < self._limit:
                self.entries[entry.number] = entry
            else:
                self.dropped += 1
        if mark:
            self._note_mark(mark)
        self._write("arrived", entry)
        return entry

    def received(self, entry: Entry, body: bytes) -> None:
        """Its body has been read."""
        self._received(entry, body, len(body), _sha256(body) if self.hashing else "")

    def received_form(self, entry: Entry, form: Form) -> None:
        """Its body was a form, of which not every byte was kept."""
        self._received(entry, form.kept, form.size, form.sha256)

    def _received(self, entry: Entry, kept: bytes, size: int, sha256: str) -> None:
        if not entry.mark:
            entry.mark = mark_in(kept)
            if entry.mark:
                self._note_mark(entry.mark)
        entry.body_bytes = size
        entry.body_sha256 = sha256
        self._write("received", entry)

    def ended(self, entry: Entry, status: int, outcome: Outcome, sent_bytes: int) -> None:
        """Its answer is complete, or will never be."""
        entry.status, entry.outcome, entry.sent_bytes, entry.ended_at = status, outcome, sent_bytes, time.time()
        self._write("ended", entry)

    def client_went(self, number: int, mark: str, path: str, sent_bytes: int) -> None:
        self.aborted.append(Abort(number, mark, path, time.time(), time.monotonic(), sent_bytes))

    def reset(self) -> None:
        """Forget everything but the file."""
        self.count = self.answered = self.aborted_count = self.cut_count = self.dropped = 0
        for held in (self.aborted, self.by_route, self.by_status, self.marks, self.entries):
            held.clear()

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def summary(self) -> dict[str, Any]:
        return {
            "mode": self.mode,
            "count": self.count,
            "answered": self.answered,
            "cut": self.cut_count,
            "aborted": self.aborted_count,
            "open": self.count - self.answered - self.cut_count - self.aborted_count,
            "dropped": self.dropped,
            "by_route": dict(self.by_route),
            "by_status": {str(status): count for status, count in self.by_status.items()},
            "aborts": list(self.aborted),
        }

    def _note_mark(self, mark: str) -> None:
        if mark in self.marks or len(self.marks) < self._limit:
            self.marks[mark] += 1
        else:
            self.dropped += 1

    def _write(self, event: str, entry: Entry) -> None:
        """One line a step, so that the file tells how far a request came whatever dies next."""
        if self._file >= 0:
            os.write(self._file, msgspec.json.encode({"event": event} | msgspec.structs.asdict(entry)) + b"\n")


def mark_in(body: bytes) -> str:
    """The last mark in a body; empty when there is none."""
    start = body.rfind(_MARK)
    if start < 0:
        return ""
    start += len(_MARK)
    end = start
    limit = min(len(body), start + _MAX_MARK)
    while end < limit and body[end] not in _MARK_END:
        end += 1
    return body[start:end].decode("utf-8", "replace")


def _sha256(value: bytes) -> str:
    return hashlib.sha256(value).hexdigest()


def _shown(name: bytes, value: bytes) -> tuple[str, str]:
    if name.lower() in _SECRET_HEADERS:
        scheme, space, secret = value.rpartition(b" ")
        value = scheme + space + b"sha256:" + _sha256(secret).encode()
    return name.decode("latin-1"), value.decode("latin-1")
