"""Answers of bedrock-runtime as Anthropic's API writes them (reference E.3).

Rules
- A chunk's JSON goes on byte for byte as the data of one server-sent event, named by its own `type`.
- An exception or error message of the stream becomes Anthropic's `error` event, and what follows it is dropped: Bedrock
  sends nothing after one, and clients read nothing.
- Messages of other kinds hold nothing for the client and are skipped.
- An error answer keeps its status and its words, in the shape that the client's SDK expects.
"""

from typing import Final, Literal

import msgspec
from msgspec import Struct

from ostiary.wire.event_stream import EventStreamError, EventStreamReader, Message
from ostiary.wire.facts import clip
from ostiary.wire.lenient import LenientDecoder, NestingError

SSE_TYPE: Final = b"text/event-stream; charset=utf-8"

_ERROR_TYPES: Final = {
    "accessdenied": "permission_error",
    "conflict": "invalid_request_error",
    "expiredtoken": "authentication_error",
    "incompletesignature": "authentication_error",
    "internalfailure": "api_error",
    "internalserver": "api_error",
    "invalidclienttokenid": "authentication_error",
    "invalidsignature": "authentication_error",
    "missingauthenticationtoken": "authentication_error",
    "modelerror": "api_error",
    "modelnotready": "overloaded_error",
    "modelstreamerror": "api_error",
    "modeltimeout": "timeout_error",
    "resourcenotfound": "not_found_error",
    "servicequotaexceeded": "rate_limit_error",
    "serviceunavailable": "overloaded_error",
    "signaturedoesnotmatch": "authentication_error",
    "throttling": "rate_limit_error",
    "toomanyrequests": "rate_limit_error",
    "unrecognizedclient": "authentication_error",
    "validation": "invalid_request_error",
}
"""By the name of AWS's error, in lower case and without `Exception`."""
_BY_STATUS: Final = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class _Chunk(Struct):
    data: bytes = msgspec.field(name="bytes")


class _Event(Struct):
    type: str = ""


class _AwsError(Struct):
    message: str = ""
    capital_message: str = msgspec.field(name="Message", default="")
    original: str = msgspec.field(name="originalMessage", default="")
    kind: str = msgspec.field(name="__type", default="")


_chunk: Final = msgspec.json.Decoder(_Chunk)
_event: Final = msgspec.json.Decoder(_Event)
_aws_error: Final = LenientDecoder(_AwsError)
_shaped: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


class MessagesStream:
    """Takes a binary event stream, torn anywhere, and gives Anthropic's events."""

    __slots__ = ("_damage", "_ended", "_reader")

    def __init__(self) -> None:
        self._reader = EventStreamReader()
        self._damage: EventStreamError | None = None
        self._ended = False

    def feed(self, data: bytes) -> bytes:
        """The events that `data` completes. Raises `EventStreamError`, but gives first what came before the damage."""
        if self._ended:
            return b""
        if self._damage is not None:
            raise self._damage
        events: list[bytes] = []
        try:
            events.extend(map(self._sse, self._reader.feed(data)))
        except EventStreamError as error:
            if not any(events):
                raise
            self._damage = error
        return b"".join(events)

    def finish(self) -> None:
        """The stream has ended. Raises `EventStreamError` when it did so within a message."""
        if self._damage is not None:
            raise self._damage
        if not self._ended:
            self._reader.finish()

    def _sse(self, message: Message) -> bytes:
        kind = message.headers.get(":message-type")
        if self._ended:
            return b""
        if kind == "event":
            return _chunk_as_sse(message.payload) if message.headers.get(":event-type") == "chunk" else b""
        if kind == "exception":
            self._ended = True
            return _error_event(message.text(":exception-type"), _message_of(message.payload))
        if kind == "error":
            self._ended = True
            return _error_event(message.text(":error-code"), message.text(":error-message"))
        return b""


def error_answer(shape: Literal["anthropic", "openai"], status: int, error_type: bytes, body: bytes) -> bytes:
    """The body of an error answer in a client's own shape; unchanged when it has one already.

    `error_type`: the field `X-Amzn-ErrorType`, which may have an address behind a colon.
    """
    try:
        if "error" in _shaped.decode(body):
            return body
    except (ValueError, RecursionError):
        pass
    said = _decoded(body)
    named = error_type.decode("latin-1").partition(":")[0].strip() or (said.kind if said else "")
    name = named.rpartition("#")[2][:80]
    message = _words(said) if said is not None else clip(body.decode("utf-8", "replace").strip())
    if name:
        message = f"{name}: {message}" if message else name
    message = message or f"AWS answered {status} and said no more"
    kind = _error_type(name, status)
    if shape == "anthropic":
        return msgspec.json.encode({"type": "error", "error": {"type": kind, "message": message}})
    return msgspec.json.encode({"error": {"message": message, "type": kind, "param": None, "code": name or None}})


def _chunk_as_sse(payload: bytes) -> bytes:
    try:
        data = _chunk.decode(payload).data
        name = _event.decode(data).type
    except (ValueError, RecursionError) as exc:
        raise EventStreamError("a chunk of the stream does not hold an event of Anthropic's as base64") from exc
    lines = data.splitlines() if b"\n" in data or b"\r" in data else (data,)
    text = b"\ndata: ".join(lines)
    named = b"event: %b\n" % name.encode() if name and name.isprintable() else b""
    return b"%bdata: %b\n\n" % (named, text)


def _error_event(name: str, message: str) -> bytes:
    kind = _error_type(name, 500)
    error = {"type": "error", "error": {"type": kind, "message": f"{name}: {message}" if message else name or "error"}}
    return b"event: error\ndata: %b\n\n" % msgspec.json.encode(error)


def _message_of(payload: bytes) -> str:
    said = _decoded(payload)
    return clip(payload.decode("utf-8", "replace")) if said is None else _words(said)


def _decoded(body: bytes) -> _AwsError | None:
    try:
        return _aws_error.decode(body)
    except NestingError:
        return None


def _words(said: _AwsError) -> str:
    return clip(said.message or said.capital_message or said.original)


def _error_type(name: str, status: int) -> str:
    known = _ERROR_TYPES.get(name.lower().removesuffix("exception"))
    return known or _BY_STATUS.get(status) or ("api_error" if status >= 500 else "invalid_request_error")
