"""A body in form encoding that is streamed to the upstream as it comes (design §5). Pure.

Rules
- The beginning is kept until the form's `model` has been seen and either `stream` or a file, or `LOOK_MAX` bytes have come,
  or the end: then the record starts, and with it the sending.
- Payload goes on unchanged; its framing is as the client's, a length or chunks.
"""

from typing import Final

from ostiary.http1.head import CHUNKED, LENGTH, RequestHead
from ostiary.wire.metered import form_facts

LOOK_MAX: Final = 64 * 1024

_FORM: Final = b"multipart/form-data"


def is_form(fields: dict[bytes, bytes]) -> bool:
    return fields.get(b"content-type", b"").partition(b";")[0].strip().lower() == _FORM


class Upload:
    """`length` of the whole body; None: it comes in chunks."""

    __slots__ = (
        "_beginning",
        "_chunked",
        "_content_type",
        "_look_at",
        "ended",
        "length",
        "model",
        "sent",
        "started",
        "stream",
    )

    def __init__(self, head: RequestHead) -> None:
        self._content_type = head.fields.get(b"content-type", b"")
        self._chunked = head.framing == CHUNKED
        self._beginning = bytearray()
        self._look_at = 0
        self.length = None if self._chunked else head.content_length if head.framing == LENGTH else 0
        self.model = ""
        self.stream = False
        self.started = False
        """Its record and its sending have begun."""
        self.ended = False
        self.sent = False
        """The beginning has gone out: what comes now goes straight on."""

    def take(self, data: bytes, *, last: bool) -> bool:
        """More of the body. Whether enough has come to begin; asked until `started`."""
        self._beginning += data
        self.ended = last
        size = len(self._beginning)
        if self.started or (size < self._look_at and not last):
            return False
        self._look_at = min(2 * size, LOOK_MAX)  # not again for every few bytes
        facts = form_facts(bytes(self._beginning[:LOOK_MAX]), self._content_type)
        self.model = facts.model or ""
        self.stream = facts.stream is True
        known = facts.model is not None and (facts.stream is not None or facts.file_begun)
        return known or last or size >= LOOK_MAX

    def beginning(self) -> bytes:
        """What was kept, framed."""
        self.sent = True
        kept, self._beginning = bytes(self._beginning), bytearray()
        return self.framed(kept, last=self.ended)

    def framed(self, data: bytes, *, last: bool) -> bytes:
        if not self._chunked:
            return data
        chunk = b"%x\r\n%b\r\n" % (len(data), data) if data else b""
        return chunk + b"0\r\n\r\n" if last else chunk
