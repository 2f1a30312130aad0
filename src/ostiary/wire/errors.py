"""Errors of providers: what kind they are, and what they say (reference D.5, D.11).

Rules
- A code or type that says more than the status wins; then the status; then the general types, which is all that an error
  within a stream has.
- Messages are the provider's own words, cut to what a record keeps.
"""

from typing import Any, Final

import msgspec

from ostiary.core.records import ErrorType

from .content_coding import MAX_RESPONSE, UnsupportedCodingError, decoder_for
from .facts import Format, ProviderError, ResponseFacts, clip, provider_error
from .formats import read_body
from .observer import UNBOUNDED, AnswerMemory, BlindObserver, BodyObserver, Observer

_TELLING: Final[dict[str, ErrorType]] = {
    "overloaded_error": "overloaded",
    "rate_limit_error": "rate_limited",
    "rate_limit_exceeded": "rate_limited",
    "insufficient_quota": "rate_limited",
    "timeout_error": "timeout",
    "authentication_error": "unauthorized",
    "permission_error": "unauthorized",
    "invalid_api_key": "unauthorized",
    "context_length_exceeded": "bad_request",
}
_GENERAL: Final[dict[str, ErrorType]] = {
    "invalid_request_error": "bad_request",
    "not_found_error": "bad_request",
    "request_too_large": "bad_request",
    "invalid_prompt": "bad_request",
    "api_error": "server_error",
    "server_error": "server_error",
}
_BY_STATUS: Final[dict[int, ErrorType]] = {
    400: "bad_request",
    401: "unauthorized",
    403: "unauthorized",
    404: "bad_request",
    408: "timeout",
    413: "bad_request",
    422: "bad_request",
    429: "rate_limited",
    529: "overloaded",
}


def classify(format: Format, status: int, error: ProviderError | None) -> ErrorType:  # noqa: A002 - its name
    """The kind of an error. `status` is that of the answer, below 400 for an error within a stream."""
    code, kind = (error.code, error.type) if error is not None else ("", "")
    if telling := _TELLING.get(code) or _TELLING.get(kind):
        return telling
    if status < 400 and code.isascii() and code.isdigit() and len(code) == 3:
        status = int(code)  # some servers put the status they would have answered there
    if by_status := _BY_STATUS.get(status):
        return by_status
    if status == 503 and format != "messages":
        return "overloaded"
    if status >= 500:
        return "server_error"
    return _GENERAL.get(code) or _GENERAL.get(kind) or "unknown"


_PLAIN: Final = (b"", b"text/plain")


def read_error(format: Format, content_type: bytes, body: bytes) -> ProviderError:  # noqa: A002 - its name
    """What the body of an error answer says, without content coding: JSON of any shape, or plain text."""
    error = None
    if body.lstrip()[:1] in (b"{", b"["):
        try:
            error = _error_facts(format, body).error
        except ValueError:
            error = None
    if error is None:
        plain = _media_type(content_type) in _PLAIN
        error = ProviderError(message=clip(body.decode("utf-8", "replace").strip()) if plain else "")
    return error


def error_observer(
    format: Format,  # noqa: A002 - its name
    content_type: bytes,
    content_encoding: bytes = b"",
    memory: AnswerMemory = UNBOUNDED,
) -> Observer | None:
    """The observer of an error answer in JSON or plain text; None for others, of which some are streams."""
    media_type = _media_type(content_type)
    plain = media_type in _PLAIN
    if not plain and media_type != b"application/json" and not media_type.endswith(b"+json"):
        return None
    try:
        decoder = decoder_for(content_encoding, MAX_RESPONSE) if content_encoding else None
    except UnsupportedCodingError as exc:
        return BlindObserver(str(exc))
    if plain:
        return BodyObserver(lambda body: ResponseFacts(error=read_error(format, content_type, body)), decoder, memory)
    return BodyObserver(lambda body: _error_facts(format, body), decoder, memory)


def _media_type(content_type: bytes) -> bytes:
    return content_type.partition(b";")[0].strip().lower()


def _error_facts(wire_format: Format, body: bytes) -> ResponseFacts:
    """Raises `ValueError` for what is no JSON."""
    facts = read_body(wire_format, body, "none")
    error = None if facts.error is not None else _said_otherwise(wire_format, body)
    return facts if error is None else ResponseFacts(error=error)


def _said_otherwise(wire_format: Format, body: bytes) -> ProviderError | None:
    """An error in neither shape: Google's is the only element of a list, Mistral and FastAPI (vLLM and others) have their
    words at the top, in `message` or `detail`, as a text or as a list of what is wrong."""
    try:
        document = msgspec.json.decode(body)
    except (ValueError, RecursionError):
        return None
    if isinstance(document, list):
        document = document[0] if document else None
        error = read_body(wire_format, msgspec.json.encode(document), "none").error
        if error is not None:
            return error
    if not isinstance(document, dict):
        return None
    said = document.get("message") or document.get("detail") or document.get("error")
    if isinstance(said, dict):
        said = said.get("detail") or said.get("message")
    if isinstance(said, list):
        said = "; ".join(text for item in said if isinstance(item, dict) and (text := _text(item.get("msg"))))
    message = _text(said)
    return provider_error(_text(document.get("type")), message, _text(document.get("code"))) if message else None


def _text(value: Any) -> str:  # Any: decoded JSON
    return value if isinstance(value, str) else ""
