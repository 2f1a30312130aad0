"""Recorded answers, sent again byte for byte.

Rules
- Pure. A recording answers requests for its path; `model`, `stream` and `mark` narrow it down. The newest that fits wins.
- `raw` is a whole response, head included, and nothing is added. `body` gets a head and framing of ours: a recorded
  event stream is cut into its events, so pace and tears work on it as on a made one.
- `control` (see `behaviour`) paces, tears, chunks or cuts it.
- The event boundaries are found here by blank lines only; the bytes are never decoded.
"""

import base64
import re
from typing import Any

import msgspec
from msgspec import Struct

from .asked import Asked
from .delivery import Reply

_EVENT_END = re.compile(rb"(?:\r\n\r\n|\n\n|\r\r)[\r\n]*")
_MAX_RECORDINGS = 1000


class Recording(Struct, frozen=True, forbid_unknown_fields=True):
    """One answer. Exactly one of `raw`, `raw_base64`, `body`, `body_base64`."""

    path: str
    raw: str | None = None
    raw_base64: str | None = None
    body: str | None = None
    body_base64: str | None = None
    status: int = 200
    content_type: str = ""
    """Of `body`: text/event-stream or application/json by its first byte unless given."""
    headers: dict[str, str] = {}
    method: str = "POST"
    model: str = ""
    stream: bool | None = None
    mark: str = ""
    control: str = ""
    times: int = 0
    """Answers this often and is gone; 0: stays."""

    @property
    def exact(self) -> bytes | None:
        """The whole response when it was given as such."""
        return _bytes(self.raw, self.raw_base64)

    def reply(self) -> Reply:
        """The response when only its body was given."""
        body = _bytes(self.body, self.body_base64) or b""
        streams = (
            not body.lstrip().startswith((b"{", b"[")) if not self.content_type else "event-stream" in self.content_type
        )
        kind = self.content_type or ("text/event-stream; charset=utf-8" if streams else "application/json")
        parts = events(body) if streams else (body,)
        return Reply(self.status, (("content-type", kind), *self.headers.items()), parts, stream=streams)


class Replays:
    def __init__(self) -> None:
        self._recordings: list[list[Any]] = []  # [recording, uses left or None]

    def __bool__(self) -> bool:
        return bool(self._recordings)

    def add(self, recording: Recording) -> None:
        """Raises `ValueError` for one that says nothing or too much, or when there are too many."""
        given = (recording.raw, recording.raw_base64, recording.body, recording.body_base64)
        if sum(one is not None for one in given) != 1:
            raise ValueError("a recording needs exactly one of raw, raw_base64, body, body_base64")
        if len(self._recordings) >= _MAX_RECORDINGS:
            raise ValueError(f"{_MAX_RECORDINGS} recordings are held; DELETE /fake/replay first")
        self._recordings.append([recording, recording.times or None])

    def match(self, method: str, path: str, asked: Asked | None, mark: str) -> Recording | None:
        """The newest recording for this request, used up once."""
        for slot in reversed(self._recordings):
            recording: Recording = slot[0]
            if _fits(recording, method, path, asked, mark):
                if slot[1] is not None:
                    slot[1] -= 1
                    if slot[1] == 0:
                        self._recordings.remove(slot)
                return recording
        return None

    def clear(self) -> None:
        self._recordings.clear()

    def as_json(self) -> list[dict[str, Any]]:
        """What is held, without the bytes."""
        shown = ("path", "method", "model", "stream", "mark", "control", "times")
        return [{name: getattr(recording, name) for name in shown} for recording, _ in self._recordings]


def events(body: bytes) -> tuple[bytes, ...]:
    """An event stream cut after each blank line; the pieces join to the whole."""
    ends = [match.end() for match in _EVENT_END.finditer(body)]
    if not ends or ends[-1] != len(body):
        ends.append(len(body))
    starts = [0, *ends[:-1]]
    return tuple(body[start:end] for start, end in zip(starts, ends, strict=True) if end > start)


def _fits(recording: Recording, method: str, path: str, asked: Asked | None, mark: str) -> bool:
    if recording.path != path or recording.method != method or (recording.mark and recording.mark != mark):
        return False
    if asked is None:
        return recording.stream is None and not recording.model
    return recording.stream in (None, asked.stream) and recording.model in ("", asked.model)


def _bytes(text: str | None, encoded: str | None) -> bytes | None:
    if encoded is not None:
        return base64.b64decode(encoded)
    return None if text is None else text.encode()


def decode(body: bytes) -> Recording:
    """A recording as `POST /fake/replay` gets it. Raises `ValueError`."""
    try:
        return msgspec.json.decode(body, type=Recording)
    except msgspec.DecodeError as exc:
        raise ValueError(f"not a recording: {exc}") from exc
