"""Errors as the providers answer them.

Source: Anthropic's API reference, "Errors"; OpenAI's API reference, "Error codes".
"""

from typing import Any

import msgspec

from .answer import PLACEHOLDER
from .behaviour import Behaviour

_ANTHROPIC: dict[int, tuple[str, str]] = {
    400: ("invalid_request_error", "messages: at least one message is required"),
    401: ("authentication_error", "invalid x-api-key"),
    402: ("billing_error", "Your credit balance is too low to access the Anthropic API."),
    403: ("permission_error", "Your API key does not have permission to use the specified resource."),
    404: ("not_found_error", "Not found"),
    405: ("invalid_request_error", "Method Not Allowed"),
    408: ("timeout_error", "Request timed out"),
    413: ("request_too_large", "Request exceeds the maximum size"),
    429: ("rate_limit_error", "This request would exceed your organization's rate limit."),
    500: ("api_error", "Internal server error"),
    504: ("timeout_error", "The request timed out while processing."),
    529: ("overloaded_error", "Overloaded"),
}
_OPENAI: dict[int, tuple[str, str | None, str]] = {
    400: ("invalid_request_error", None, "The request could not be understood."),
    401: ("invalid_request_error", "invalid_api_key", "Incorrect API key provided."),
    403: (
        "invalid_request_error",
        "unsupported_country_region_territory",
        "Country, region, or territory not supported",
    ),
    404: ("invalid_request_error", "model_not_found", "The model does not exist or you do not have access to it."),
    405: ("invalid_request_error", "method_not_supported", "Not allowed on this resource."),
    413: ("invalid_request_error", None, "Request entity too large"),
    429: ("requests", "rate_limit_exceeded", "Rate limit reached for requests."),
    500: ("server_error", None, "The server had an error while processing your request. Sorry about that!"),
    503: ("server_error", None, "The server is overloaded or not ready yet."),
}


def body(status: int, wanted: Behaviour, *, anthropic: bool, message: str = "", param: str | None = None) -> bytes:
    """The JSON body of an error; what `wanted` says goes before `message`, that before the provider's usual words."""
    if anthropic:
        kind, usual = _ANTHROPIC.get(status, ("api_error", f"HTTP {status}") if status >= 500 else _ANTHROPIC[400])
        error: dict[str, Any] = {"type": wanted.error_type or kind, "message": wanted.message or message or usual}
        return msgspec.json.encode({"type": "error", "error": error, "request_id": f"req_{PLACEHOLDER}"})
    kind, code, usual = _OPENAI.get(status, _OPENAI[500] if status >= 500 else _OPENAI[400])
    error = {
        "message": wanted.message or message or usual,
        "type": wanted.error_type or kind,
        "param": param,
        "code": wanted.code or code,
    }
    return msgspec.json.encode({"error": error})
