"""Dumps of what goes to providers and comes back, for whoever has to find out what was really said (reference D.15).

Rules
- Every attempt has files of its own: `Dumps.attempt()` gives its `Attempt`, which is told what is sent and what comes.
- Nothing here waits: what is told goes into a queue, a thread masks, lays out and writes it. The queue is bounded in bytes;
  when the disk does not keep up, dumps are cut or left out, which they and a warning say, and the traffic goes on.
- A dump that fails is a warning and no more.
"""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, Final

import structlog

from ostiary.wire.content_coding import CodingError, Decoder, UnsupportedCodingError, decoder_for

from .dump_files import REQUEST, REQUEST_ERROR, RESPONSE, DumpFiles, Place, place_of
from .dump_text import (
    DECODED_LINE,
    DECODED_MAX,
    Redactor,
    field_of,
    masked_head,
    masked_query,
    request_text,
    secrets_of,
)

log = structlog.get_logger()

QUEUE_MAX: Final = 64 * 1024 * 1024
"""Bytes told and not yet written, of one worker."""
CLOSE_SECONDS: Final = 2.0
"""How long the worker's end waits for what is in the queue."""

_OVERHEAD: Final = 512
"""Bytes that one entry of the queue takes besides its data, about."""
_BUFFER_MAX: Final = 64 * 1024
_FLUSH_SECONDS: Final = 1.0
"""What was told is in its file after this, or after `_BUFFER_MAX` bytes, or at the attempt's end."""
_WARNING_INTERVAL: Final = 30.0


class Dumps:
    """The dumps of one worker."""

    def __init__(self, files: DumpFiles, file_max_bytes: int, queue_max: int = QUEUE_MAX) -> None:
        self._file_max = file_max_bytes
        self._queue_max = queue_max
        self._queue: SimpleQueue[_Entry | None] = SimpleQueue()
        self._told = 0
        """Bytes, as is `_Writer.written`: each is changed by one thread only."""
        self._lost = 0
        self._warned_at = -_WARNING_INTERVAL
        self._closed = False
        self._writer = _Writer(files, self._queue)
        self._writer.start()

    @classmethod
    def open(cls, base: str, file_max_bytes: int, total_max_bytes: int) -> "Dumps":
        """Dumps below the directory `base`, which is made if need be. Never fails: what cannot be written is a warning.

        `file_max_bytes` is the most of one file, `total_max_bytes` of all of them, all workers' together.
        """
        return cls(DumpFiles(base, total_max_bytes), file_max_bytes)

    def attempt(
        self, provider: str, model: str | None, path: str, interception_id: str, number: int, at_ms: int
    ) -> "Attempt":
        """One attempt, the `number`th (from 1) of its request. Without a `model` it is named by `path`.

        `at_ms` is in Unix milliseconds.
        """
        return Attempt(self, _Record(place_of(provider, model, path, interception_id, number, at_ms), self._file_max))

    def close(self, timeout: float = CLOSE_SECONDS) -> None:
        """Write what has been told, for `timeout` seconds at most. What is told from now on is not written."""
        if self._closed:
            return
        self._closed = True
        self._queue.put(None)
        self._writer.join(timeout)
        if self._writer.is_alive():
            log.warning("leaving dumps unwritten", bytes=self._told - self._writer.written)

    def _offer(self, record: "_Record", size: int, call: Callable[..., None], *args: object) -> bool:
        """Put a call into the queue; False when there is no room."""
        size += _OVERHEAD
        if self._closed or self._told - self._writer.written + size > self._queue_max:
            self._lose()
            return False
        self._told += size
        self._queue.put((record, size, call, args))
        return True

    def _end(self, record: "_Record", call: Callable[..., None], *args: object) -> None:
        """As `_offer`, whatever is in the queue: each record has one end."""
        if not self._closed:
            self._told += _OVERHEAD
            self._queue.put((record, _OVERHEAD, call, args))

    def _lose(self) -> None:
        if self._closed:
            return
        self._lost += 1
        now = time.monotonic()
        if now - self._warned_at >= _WARNING_INTERVAL:
            self._warned_at = now
            log.warning("leaving out dumps, the disk is too slow", attempts=self._lost)
            self._lost = 0


class Attempt:
    """One attempt, told from the event loop in this order: request, its pieces, response head, response, the end."""

    __slots__ = ("_begun", "_dumps", "_lost", "_record")

    def __init__(self, dumps: Dumps, record: "_Record") -> None:
        self._dumps = dumps
        self._record: _Record | None = record
        self._begun = False
        self._lost = False

    def request(self, head: bytes, body: bytes) -> None:
        """The head as it is sent, and the whole body, or none yet of one that is streamed."""
        self._offer(len(head) + len(body), _Record.request, head, body)

    def request_piece(self, data: bytes) -> None:
        """The next part of a streamed body as it is sent: of one in chunks a whole chunk, perhaps the last one behind it."""
        self._offer(len(data), _Record.request_piece, data)

    def response_head(self, head: bytes) -> None:
        """The status line and header lines as they came."""
        self._offer(len(head), _Record.response_head, head)

    def response(self, data: bytes) -> None:
        """The next part of the answer's body as it came, without chunk framing."""
        self._offer(len(data), _Record.response, data)

    def failed(self, text: str) -> None:
        """No answer, or no more of it, will come: why. It ends the attempt."""
        self._end(_Record.failed, text)

    def close(self, note: str = "") -> None:
        """The attempt has ended. `note` stands at the end of the answer that it cuts, such as `the client left`."""
        self._end(_Record.close, note)

    def _end(self, call: Callable[..., None], text: str) -> None:
        record, self._record = self._record, None
        if record is not None and (self._begun or not self._lost):
            self._dumps._end(record, call, record, text, self._lost)

    def _offer(self, size: int, call: Callable[..., None], *args: object) -> None:
        record = self._record
        if record is None or self._lost:
            return
        if self._dumps._offer(record, size, call, record, *args):
            self._begun = True
        else:
            self._lost = True


class _Record:
    """An attempt as the writing thread knows it."""

    def __init__(self, place: Place, file_max: int) -> None:
        self.place = place
        self.pending = 0
        """Bytes told of this attempt that are in no file yet."""
        self.closed = False
        self._file_max = file_max
        self._request = _Text(REQUEST, file_max)
        self._error = _Text(REQUEST_ERROR, file_max)
        self._response = _Text(RESPONSE, file_max)
        self._chunked = False
        self._secrets: tuple[bytes, ...] = ()
        self._redactor = Redactor(())
        self._decoder: Decoder | None = None

    def request(self, head: bytes, body: bytes) -> None:
        self._chunked = field_of(head, b"transfer-encoding").lower() == b"chunked"
        self._secrets = secrets_of(head)
        self._redactor = Redactor(self._secrets)
        self._request.write(request_text(head, body, self._file_max))

    def request_piece(self, data: bytes) -> None:
        if self._chunked:
            size, _, rest = data.partition(b"\r\n")
            data = rest[: int(size, 16)]
        self._request.write(data)

    def response_head(self, head: bytes) -> None:
        lines = masked_head(head)
        with suppress(UnsupportedCodingError):  # then the body is kept as it comes
            self._decoder = decoder_for(field_of(head, b"content-encoding"), DECODED_MAX)
        if self._decoder is not None:
            lines += DECODED_LINE
        self._response.write(lines + b"\r\n")

    def response(self, data: bytes) -> None:
        text = self._response
        if self._decoder is None:
            text.write(self._redactor.feed(data))
            return
        try:
            for piece in self._decoder.decode(data) if not text.full else ():
                if not text.write(self._redactor.feed(piece)):
                    return
        except CodingError as error:
            text.write(self._redactor.finish())
            text.end(f"cut here: {error}")

    def failed(self, text: str, lost: bool) -> None:
        redactor = Redactor(self._secrets)
        said = redactor.feed(masked_query(text.encode("utf-8", "replace"))) + redactor.finish()
        self._error.write(said + b"\n")
        self.close(said.decode("utf-8", "replace"), lost)

    def close(self, note: str, lost: bool) -> None:
        self.closed = True
        if self._response.begun:
            self._response.write(self._redactor.finish())
        cut = self._response if self._response.begun else self._request
        if lost:
            cut.end("cut here: the disk was too slow")
        elif note and self._response.begun:
            cut.end(f"cut here: {note}")

    def flush(self, files: DumpFiles) -> None:
        """Write what is buffered. Raises `OSError`."""
        for text in (self._request, self._response, self._error):
            text.flush(files, self.place)

    def abandon(self) -> None:
        """It cannot be written: nothing more is kept of it."""
        for text in (self._request, self._response, self._error):
            text.abandon()


class _Text:
    """One file: what is not yet in it, and how much may still come."""

    def __init__(self, kind: str, max_bytes: int) -> None:
        self.begun = False
        self.full = False
        self._kind = kind
        self._max = max_bytes
        self._left = max_bytes
        self._made = False
        self._buffer: list[bytes] = []

    def write(self, data: bytes) -> bool:
        """False when no more is wanted."""
        if self.full:
            return False
        self.begun = True
        if len(data) > self._left:
            self._buffer.append(data[: self._left])
            self.end(f"cut here: a dump's file holds {self._max} bytes at most (dump_file_max_bytes)")
        else:
            self._buffer.append(data)
            self._left -= len(data)
        return not self.full

    def end(self, note: str) -> None:
        """Say why no more follows."""
        if not self.full:
            self.full = True
            self._buffer.append(b"\n\n[ostiary: " + note.encode("utf-8", "replace") + b"]\n")

    def flush(self, files: DumpFiles, place: Place) -> None:
        if not self._buffer:
            return
        data = b"".join(self._buffer)
        self._buffer = []
        new = not self._made
        self._made = True
        files.append(place, self._kind, data, new=new)

    def abandon(self) -> None:
        self.full = True
        self._buffer = []


_Entry = tuple[_Record, int, Callable[..., None], tuple[Any, ...]]  # Any: of whatever the callable takes


class _Writer(threading.Thread):
    """Takes calls out of the queue, and keeps the directory below its limit."""

    def __init__(self, files: DumpFiles, queue: "SimpleQueue[_Entry | None]") -> None:
        super().__init__(name="dumps", daemon=True)
        self.written = 0
        self._files = files
        self._queue = queue
        self._dirty: dict[_Record, None] = {}
        self._failures = 0
        self._warned_at = -_WARNING_INTERVAL

    def run(self) -> None:
        self._remove_oldest()
        flushed_at = time.monotonic()
        while True:
            try:
                entry = self._queue.get(timeout=_FLUSH_SECONDS if self._dirty else None)
            except Empty:
                self._flush_all()
                continue
            if entry is None:
                break
            self._do(*entry)
            now = time.monotonic()
            if now - flushed_at >= _FLUSH_SECONDS:
                flushed_at = now
                self._flush_all()
            if self._files.removal_due():
                self._remove_oldest()
        self._flush_all()

    def _do(self, record: _Record, size: int, call: Callable[..., None], args: tuple[object, ...]) -> None:
        record.pending += size
        self._dirty[record] = None
        try:
            call(*args)
        except Exception as error:  # noqa: BLE001 - whatever a provider sends, the next dump is written
            record.abandon()
            self._warn(f"{type(error).__name__} while it was read")
        if record.closed or record.pending >= _BUFFER_MAX:
            self._flush(record)

    def _flush_all(self) -> None:
        for record in tuple(self._dirty):
            self._flush(record)

    def _flush(self, record: _Record) -> None:
        del self._dirty[record]
        try:
            record.flush(self._files)
        except FileNotFoundError:
            record.abandon()  # removed, as the oldest, while it was written
        except OSError as error:
            record.abandon()
            self._warn(error.strerror or str(error))
        self.written += record.pending
        record.pending = 0

    def _remove_oldest(self) -> None:
        try:
            removed = self._files.remove_oldest()
        except OSError as error:
            self._warn(error.strerror or str(error))
            return
        if removed:
            log.debug("removing the oldest dumps", files=removed)

    def _warn(self, error: str) -> None:
        """At most one line every while: a full disk concerns every dump."""
        self._failures += 1
        now = time.monotonic()
        if now - self._warned_at >= _WARNING_INTERVAL:
            self._warned_at = now
            log.warning("failing to write dumps", error=error, failures=self._failures, dump_dir=self._files.base)
            self._failures = 0
