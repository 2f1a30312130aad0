"""Metered routes: embeddings, images, audio, files, batches, moderations, legacy completions, compacted conversations. Only
usage is read, no content.

Source: platform.openai.com, "API reference".

Rules
- Of a request the model is read, and whether a stream is wanted; of a form when they stand near its beginning.
- An answer may hold megabytes (an image in base64, an array of vectors). It is read as it passes, and what is held of it
  stays below 64 KiB whatever it is.
- Of an answer four members count: `id`, `model`, `usage`, `error`; of a stream those of its events, the last usage being the
  final one.
- What is neither JSON nor a stream of events (audio, subtitles) holds no facts.
"""

import re
from collections.abc import Callable
from typing import Final, Protocol

import msgspec
from msgspec import Struct

from . import openai_chat, sse
from .content_coding import CodingError, Decoder
from .facts import Content, ProviderError, RequestFacts, ResponseFacts, Usage, clip
from .lenient import LenientDecoder
from .members import MemberScanner
from .observer import Observer
from .request import decode_object
from .request_shapes import Request
from .usage import metered_usage

MAX_FORM_START: Final = 64 * 1024
"""Bytes of a form that are looked at."""

_MAX_MODEL: Final = 256
_MAX_BOUNDARY: Final = 70  # RFC 2046 §5.1.1

_requests: Final = LenientDecoder(Request)


def read_request(body: bytes, content: Content = "prompts") -> RequestFacts:  # noqa: ARG001 - as of every format
    """What a JSON body says; `model` is empty when it names none, as is a body that is empty itself. Raises `RequestError`."""
    if not body.strip():
        return RequestFacts("")
    request = decode_object(_requests, body)
    return RequestFacts(request.model, request.stream is True)


# --- forms

_BOUNDARY: Final = re.compile(rb'(?i)\bboundary=(?:"((?:[^"\\]|\\.)*)"|([^\s";,]+))')
_PART: Final = rb"(?i)(?:^|\n)content-disposition[ \t]*:[ \t]*form-data"
_FILE_PART: Final = re.compile(_PART + rb"[^\r\n]*;[ \t]*filename")


def _part_named(name: bytes) -> re.Pattern[bytes]:
    named = rb'(?=[^\r\n]*;[ \t]*name="?' + name + rb'"?[ \t]*(?:;|\r|\n|$))'
    return re.compile(_PART + named + rb"(?![^\r\n]*;[ \t]*filename)")


_MODEL_PART: Final = _part_named(b"model")
_STREAM_PART: Final = _part_named(b"stream")
_TRUE: Final = frozenset((b"true", b"1"))


class FormFacts(Struct, frozen=True):
    """What the beginning of a form says; None: nothing yet."""

    model: str | None = None
    stream: bool | None = None
    file_begun: bool = False
    """A file has begun: what stands behind it may be far away."""


def form_facts(start: bytes, content_type: bytes) -> FormFacts:
    """`model` and `stream` of a multipart form (RFC 7578), from the first bytes of its body."""
    if content_type.partition(b";")[0].strip().lower() != b"multipart/form-data":
        return FormFacts()
    found = _BOUNDARY.search(content_type)
    if found is None:
        return FormFacts()
    boundary = found[2] or re.sub(rb"\\(.)", rb"\1", found[1] or b"")
    if not 0 < len(boundary) <= _MAX_BOUNDARY:
        return FormFacts()
    # Behind each delimiter: the rest of its line, the part's head, an empty line, its content.
    parts = (b"\r\n" + start[:MAX_FORM_START]).split(b"\r\n--" + boundary)
    model = stream = None
    file_begun = False
    for part in parts[1:-1]:
        head, blank, value = part.partition(b"\r\n\r\n")
        if not blank:
            continue
        if model is None and len(value) <= _MAX_MODEL and _MODEL_PART.search(head) is not None:
            model = value.decode("utf-8", "replace").strip()
        elif stream is None and _STREAM_PART.search(head) is not None:
            stream = value.strip().lower() in _TRUE
        else:
            file_begun = file_begun or _FILE_PART.search(head) is not None
    under_way = parts[-1].partition(b"\r\n\r\n")[0] if len(parts) > 1 else b""
    return FormFacts(model, stream, file_begun or _FILE_PART.search(under_way) is not None)


# --- answers

_WANTED: Final = frozenset((b"id", b"model", b"usage", b"error", b"type"))
_DONE: Final = b"[DONE]"
_DATA: Final = b"data: "
_FIELD: Final = len(_DATA)
_ENDS: Final = frozenset(
    ("transcript.text.done", "speech.audio.done", "image_generation.completed", "image_edit.completed")
)
"""Events after which a stream has nothing more to say."""


class _Seen:
    """What the members of an answer, or of a stream's events, say together."""

    __slots__ = ("complete", "error", "id", "model", "problem", "usage")

    def __init__(self) -> None:
        self.id = ""
        self.model = ""
        self.usage: Usage | None = None
        self.error: ProviderError | None = None
        self.problem = ""
        self.complete = False

    def add(self, scanner: MemberScanner) -> None:
        found = scanner.found
        self.id = self.id or _text(found.get(b"id"))
        self.model = self.model or _text(found.get(b"model"))
        self.problem = self.problem or scanner.problem
        if (raw := found.get(b"usage")) is not None:
            self.usage = metered_usage(raw) or self.usage
        if (raw := found.get(b"error")) is not None:
            self.error = openai_chat.read_body(b'{"error":' + raw + b"}", "none").error or self.error

    def facts(self) -> ResponseFacts:
        return ResponseFacts(
            self.id,
            self.model,
            self.usage,
            error=self.error,
            unparsed=bool(self.problem),
            problem=self.problem,
            complete=self.complete and self.error is None,
        )


def _text(raw: bytes | None) -> str:
    if raw is None:
        return ""
    try:
        return clip(msgspec.json.decode(raw, type=str), _MAX_MODEL)
    except ValueError:
        return ""


class Reader(Protocol):
    """Reads an answer as it passes."""

    def advance(self, data: bytes) -> None: ...

    def facts(self) -> ResponseFacts: ...


class BodyReader:
    """Of one JSON object."""

    def __init__(self) -> None:
        self._scanner = MemberScanner(_WANTED)
        self.advance: Callable[[bytes], None] = self._scanner.feed

    def facts(self) -> ResponseFacts:
        seen = _Seen()
        seen.add(self._scanner)
        seen.complete = self._scanner.whole
        if not seen.complete and not seen.problem:
            seen.problem = "the answer is not one whole JSON object"
        return seen.facts()


class EventReader:
    """Of a stream of events (see `sse`), each read as it passes too: one may hold a whole image."""

    def __init__(self) -> None:
        self._seen = _Seen()
        self._scanner = MemberScanner(_WANTED)
        self._begun = b""
        """Of a line whose field's name is not whole yet."""
        self._in_line = False
        self._is_data = False
        self._data_begun = b""
        self._after_cr = False
        self._opening: bytes | None = b""

    def advance(self, data: bytes) -> None:
        if self._opening is not None:
            data = self._opening + data
            self._opening = data if sse.BOM.startswith(data) and data != sse.BOM else None
            if self._opening is not None:
                return
            data = data.removeprefix(sse.BOM)
        if self._after_cr and data.startswith(b"\n"):
            data = data[1:]
            self._after_cr = False
        if b"\r" in data:
            self._after_cr = data.endswith(b"\r")
            data = sse.normalise(data)
        elif data:
            self._after_cr = False
        *lines, rest = data.split(b"\n")
        for line in lines:
            self._line(line)
            self._end_line()
        if rest:
            self._line(rest)

    def facts(self) -> ResponseFacts:
        """An event without its blank line at the very end counts, if it is whole."""
        if self._in_line or self._begun:
            self._end_line()
        if self._scanner.whole or self._data_begun.startswith(_DONE):
            self._end_event()
        return self._seen.facts()

    def _line(self, part: bytes) -> None:
        """A part of a line."""
        if not self._in_line:
            part = self._begun + part
            if len(part) <= _FIELD and _DATA.startswith(part):
                self._begun = part
                return
            self._begin_line(part)
        elif self._is_data:
            self._data(part)

    def _begin_line(self, line: bytes) -> None:
        self._begun = b""
        self._in_line = True
        self._is_data = line.startswith(b"data:")
        if self._is_data:
            if self._data_begun:
                self._data(b"\n")
            self._data(line[6:] if line.startswith(b"data: ") else line[5:])

    def _data(self, part: bytes) -> None:
        if len(self._data_begun) < len(_DONE):
            self._data_begun += part[: len(_DONE)]
        self._scanner.feed(part)

    def _end_line(self) -> None:
        if self._begun:
            self._begin_line(self._begun)
        if not self._in_line:
            self._end_event()
        self._in_line = False

    def _end_event(self) -> None:
        if not self._data_begun:
            return
        seen, scanner = self._seen, self._scanner
        if self._data_begun.startswith(_DONE):
            seen.complete = True
        elif scanner.whole:
            seen.add(scanner)
            seen.complete = seen.complete or _text(scanner.found.get(b"type")) in _ENDS
        seen.problem = seen.problem or scanner.problem
        self._data_begun = b""
        self._scanner = MemberScanner(_WANTED)


class MeteredObserver:
    """See `observer` for its rules."""

    __slots__ = ("_decoder", "_held", "_problem", "_reader", "feed")

    def __init__(self, reader: Reader, decoder: Decoder | None = None) -> None:
        self._reader = reader
        self._decoder = decoder
        self._held: list[bytes] = []
        self._problem = ""
        self.feed: Callable[[bytes], None] = self._held.append

    def compact(self) -> None:
        """Read what came, and let go of it."""
        data = b"".join(self._held)
        self._held.clear()
        if not data or self._problem:
            return
        try:
            if self._decoder is None:
                self._reader.advance(data)
            else:
                for part in self._decoder.decode(data):
                    self._reader.advance(part)
        except CodingError as exc:
            self._problem = str(exc)
        except Exception as exc:  # noqa: BLE001 - a mistake here must not reach the relay
            self._problem = f"{type(exc).__name__} while reading the answer"

    def finish(self) -> ResponseFacts:
        self.compact()
        try:
            facts = self._reader.facts()
        except Exception as exc:  # noqa: BLE001 - a mistake here must not reach the relay
            return ResponseFacts(unparsed=True, problem=f"{type(exc).__name__} while gathering facts")
        if self._problem:
            facts = msgspec.structs.replace(facts, unparsed=True, problem=self._problem)
        return facts


def read_body(body: bytes, content: Content = "prompts") -> ResponseFacts:  # noqa: ARG001 - as of every format
    """What a whole JSON answer or error body says."""
    reader = BodyReader()
    reader.advance(body)
    return reader.facts()


def observer(*, is_stream: bool, decoder: Decoder | None) -> Observer:
    return MeteredObserver(EventReader() if is_stream else BodyReader(), decoder)
