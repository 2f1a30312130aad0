"""Multipart forms (RFC 7578) as they come in, of any size, without holding them.

Rules
- Pure. Counted and hashed as a whole; kept are the first and last bytes, in which the small parts stand.
- A file's size is told exactly as long as only one part is too long to be kept.
"""

import hashlib
import re
from typing import Any

from msgspec import Struct

_HEAD = 64 * 1024
_TAIL = 16 * 1024
_BOUNDARY = re.compile(r'boundary="?([^";,]+)"?', re.IGNORECASE)
_PARAMETER = re.compile(r'[;\s](name|filename)="([^"]*)"', re.IGNORECASE)


class File(Struct, frozen=True):
    """A part that is a file."""

    field: str
    name: str
    size: int


class Fields(Struct, frozen=True):
    values: dict[str, str]
    files: tuple[File, ...]

    def file(self, field: str) -> File | None:
        return next((file for file in self.files if file.field.removesuffix("[]") == field), None)


class Form:
    """One form. `hashing`: its SHA-256 is wanted."""

    def __init__(self, content_type: str, *, hashing: bool) -> None:
        found = _BOUNDARY.search(content_type)
        self._delimiter = b"\r\n--" + found[1].encode("latin-1") if found else b""
        self._head = b""
        self._tail = b""
        self._digest: Any = hashlib.sha256() if hashing else None  # hashlib names no type for it
        self.size = 0

    def add(self, data: bytes) -> None:
        """The next bytes."""
        self.size += len(data)
        if self._digest is not None:
            self._digest.update(data)
        room = _HEAD - len(self._head)
        if room > 0:
            self._head += data[:room]
            data = data[room:]
        if data:
            self._tail = (self._tail + data)[-_TAIL:]

    @property
    def sha256(self) -> str:
        return str(self._digest.hexdigest()) if self._digest is not None else ""

    @property
    def kept(self) -> bytes:
        """The first and last bytes."""
        return self._head + self._tail

    def fields(self) -> Fields | None:
        """What stands in it; None when it is no form."""
        if not self._delimiter:
            return None
        gap = self.size - len(self.kept)
        values: dict[str, str] = {}
        files: list[File] = []
        at = -2  # of the line end put in front, so that the first delimiter has one
        parts = (b"\r\n" + self.kept).split(self._delimiter)
        for part in parts[:-1]:
            holds_gap = at <= len(self._head) < at + len(part)
            at += len(part) + len(self._delimiter)
            head, blank, value = part.partition(b"\r\n\r\n")
            if not blank:
                continue
            named = dict(_PARAMETER.findall(head.decode("utf-8", "replace")))
            name = named.get("name", "")
            if "filename" in named:
                files.append(File(name, named["filename"], len(value) + (gap if holds_gap else 0)))
            else:
                values[name] = value.decode("utf-8", "replace")
        return Fields(values, tuple(files)) if len(parts) > 1 else None
