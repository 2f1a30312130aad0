"""Errors of providers: what kind they are, and what they say (reference D.5, D.11).

Rules
- A code or type that says more than the status wins; then the status; then the general types, which is all that an error
  within a stream has.
- Messages are the provider's own words, cut to what a record keeps.
"""

from typing import Final

from ostiary.core.records import ErrorType

from .content_coding import MAX_RESPONSE, UnsupportedCodingError, decoder_for
from .facts import Format, ProviderError, ResponseFacts, clip
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


def read_error(format: Format, content_type: bytes, body: bytes) -> ProviderError:  # noqa: A002 - its name
    """What the body of an error answer says, without content coding: JSON of either shape, or plain text."""
    media_type = content_type.partition(b";")[0].strip().lower()
    error = None
    if body.lstrip().startswith(b"{"):
        try:
            error = read_body(format, body, "none").error
        except ValueError:
            error = None
    if error is None:
        plain = media_type in (b"", b"text/plain")
        error = ProviderError(message=clip(body.decode("utf-8", "replace").strip()) if plain else "")
    return error


def error_observer(
    format: Format,  # noqa: A002 - its name
    content_type: bytes,
    content_encoding: bytes = b"",
    memory: AnswerMemory = UNBOUNDED,
) -> Observer | None:
    """The observer of an error answer that `formats.observer_for` has none for; None where it says nothing to people."""
    if content_type.partition(b";")[0].strip().lower() not in (b"", b"text/plain"):
        return None
    try:
        decoder = decoder_for(content_encoding, MAX_RESPONSE) if content_encoding else None
    except UnsupportedCodingError as exc:
        return BlindObserver(str(exc))
    return BodyObserver(lambda body: ResponseFacts(error=read_error(format, content_type, body)), decoder, memory)
