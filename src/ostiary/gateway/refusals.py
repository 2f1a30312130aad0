"""Answers of our own, in the error shape of the provider that the client thinks it speaks to (design §5). Pure.

SDKs raise their usual exceptions on them. Each message names the cause and the cure.
"""

from typing import Final, Literal

import msgspec
from msgspec import Struct

Shape = Literal["anthropic", "openai", "rest"]


class Refusal(Struct, frozen=True):
    """A request that is answered by us. `reason` is the label it is counted under."""

    status: int
    reason: str
    message: str
    retry_after: int = 0
    """Seconds; 0: no `Retry-After`."""
    allow: str = ""
    """For 405."""
    overloaded: bool = False
    """A 503 that Anthropic's clients are to take for an overload of the provider."""


_PHRASES: Final = {
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    413: "Content Too Large",
    415: "Unsupported Media Type",
    417: "Expectation Failed",
    429: "Too Many Requests",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    501: "Not Implemented",
    502: "Bad Gateway",
    503: "Service Unavailable",
    504: "Gateway Timeout",
    505: "HTTP Version Not Supported",
}

# docs.anthropic.com "Errors"
_ANTHROPIC_TYPES: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
}
# platform.openai.com "Error codes": (type, code)
_OPENAI_TYPES: Final = {
    401: ("invalid_request_error", "invalid_api_key"),
    403: ("invalid_request_error", "permission_denied"),
    404: ("invalid_request_error", "not_found"),
    413: ("invalid_request_error", "request_too_large"),
    429: ("requests", "rate_limit_exceeded"),
    502: ("server_error", "bad_gateway"),
    503: ("server_error", "service_unavailable"),
    504: ("server_error", "timeout"),
}


def shape_of(path: bytes, family: str | None) -> Shape:
    """The error shape for a data-plane path: what the path says, else the provider's family, else OpenAI's."""
    if b"/v1/messages" in path:
        return "anthropic"
    if path.endswith((b"/chat/completions", b"/responses")):
        return "openai"
    return "anthropic" if family == "anthropic" else "openai"


def error_body(shape: Shape, refusal: Refusal) -> bytes:
    """The JSON body of an error."""
    status, message = refusal.status, refusal.message
    if shape == "anthropic":
        kind = _ANTHROPIC_TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
        if refusal.overloaded:
            kind = "overloaded_error"
        return msgspec.json.encode({"type": "error", "error": {"type": kind, "message": message}})
    if shape == "openai":
        fallback = ("invalid_request_error", None) if status < 500 else ("server_error", None)
        kind, code = _OPENAI_TYPES.get(status, fallback)
        return msgspec.json.encode({"error": {"message": message, "type": kind, "param": None, "code": code}})
    return msgspec.json.encode({"message": message})


def refusal_head(refusal: Refusal, body_length: int, id_line: bytes) -> bytes:
    """The head of an answer of our own, without `Connection` and the last empty line."""
    head = [
        f"HTTP/1.1 {refusal.status} {_PHRASES.get(refusal.status, 'Error')}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {body_length}\r\n".encode("ascii"),
        id_line,
    ]
    if refusal.retry_after:
        head.append(b"Retry-After: %d\r\n" % refusal.retry_after)
    if refusal.allow:
        head.append(b"Allow: %b\r\n" % refusal.allow.encode("ascii"))
    if refusal.status == 401:
        head.append(b'WWW-Authenticate: Bearer realm="ostiary"\r\n')
    return b"".join(head)
