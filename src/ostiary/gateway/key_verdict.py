"""What a provider's answer to a key of the pool says of that key. Pure.

Rules
- 429 is about (key, model), unless the body says that the account has nothing left. 402 is always about the account.
- 401 is about the key, unless the body says that only this call is denied to it; 400 and 403 only when the body names the
  key. Every other answer says nothing of the key: it is about the request, the model, the user or the upstream as such
  (Anthropic's 529 too).
- Names in the body decide (`code`, `type`, Google's `reason`). Prose does only where a provider gives no name, and only
  from its first word on: further on, a message may quote the request.
- A wait is `retry-after-ms`, else `Retry-After` (seconds or a date, RFC 9110 §10.2.3), else the `retryDelay` of Google's
  bodies, else 60 s; whatever it says, it is an hour at most. A date is a second ahead at least: it cannot say less.

Sources: "Error codes" of OpenAI, "Errors" of Anthropic, OpenRouter and Vercel AI Gateway, `google.api.ErrorReason` and
`google.rpc.RetryInfo` of Google, and answers as seen: Azure puts the status into `code`, OpenRouter and Google put it there
as a number, Google's OpenAI endpoint wraps the object in a list and sends no `Retry-After`.
"""

import math
import re
from email.utils import mktime_tz, parsedate_tz
from typing import Any, Final, Literal

import msgspec
from msgspec import Struct

from ostiary.wire.content_coding import CodingError, decode_body
from ostiary.wire.facts import ProviderError, provider_error

DEFAULT_WAIT: Final = 60.0
SHORTEST_DATE: Final = 1.0
LONGEST_WAIT: Final = 3600.0
MAX_ERROR_BODY: Final = 64 * 1024
"""More of an error's body than this is not looked at."""

_BODY_STATUSES: Final = frozenset((400, 401, 402, 403, 429))

_NOTHING_LEFT: Final = frozenset(
    (
        "insufficient_quota",  # OpenAI, of type and of code
        "billing_hard_limit_reached",
        "billing_not_active",
        "credit_balance_exhausted",
        "billing_error",  # Anthropic
        "insufficient_credits",  # OpenRouter
        "insufficient_funds",  # Vercel
        "customer_verification_required",
        "billing_disabled",  # Google
    )
)
_NOTHING_LEFT_PROSE: Final = (  # Anthropic, 400 invalid_request_error
    "Your credit balance is too low",
    "You have reached your specified API usage limits",
    "You have reached your specified workspace API usage limits",
)
_KEY_REFUSED: Final = frozenset(
    (
        "invalid_api_key",  # OpenAI
        "account_deactivated",
        "access_terminated",
        "api_key_invalid",  # Google, 400
        "api_key_expired",
        "consumer_suspended",  # Google, 403
        "consumer_invalid",
    )
)
_KEY_REFUSED_PROSE: Final = (
    "This organization has been disabled",  # Anthropic, 400
    "Your API key was reported as leaked",  # Google, 403
)
_CALL_DENIED: Final = frozenset(
    (
        "missing_scope",  # OpenAI, 401: a restricted key
        "insufficient_permissions",
        "permission_denied",
        "permissiondenied",  # Azure, 401
        "permission_error",
        "model_not_allowed",
        "key_model_access_denied",  # LiteLLM, 401 or 403
        "team_model_access_denied",
        "user_model_access_denied",
        "org_model_access_denied",
    )
)
_CALL_DENIED_PROSE: Final = ("You have insufficient permissions for this operation",)
_REQUEST_TOO_LARGE_PROSE: Final = ("Request too large for",)
"""OpenAI's 429 for a request that its limit can never hold: waiting does not help, and others are not affected."""

VerdictKind = Literal["rate_limited", "quota", "refused"]


class Verdict(Struct, frozen=True):
    """`rate_limited`: the key for this model; `quota`: the whole key; `refused`: the key itself is not accepted."""

    kind: VerdictKind
    wait: float = 0.0
    """Seconds for which the key is not used; of `refused` the pool knows better."""


_REFUSED: Final = Verdict("refused")


class Said(Struct, frozen=True):
    """What an error's body says."""

    error: ProviderError
    retry_delay: float | None = None
    """Seconds."""


def needs_body(status: int) -> bool:
    """Whether an error's body has to be seen before the answer goes out."""
    return status in _BODY_STATUSES


def verdict(status: int, fields: dict[bytes, bytes], said: Said | None, now_wall: float) -> Verdict | None:
    """What the answer says of the key; None: nothing. `said` is what `read_key_error` made of its body."""
    if status not in _BODY_STATUSES:
        return None
    names = (said.error.code.lower(), said.error.type.lower()) if said is not None else ()
    message = said.error.message if said is not None else ""
    delay = said.retry_delay if said is not None else None
    if status == 402 or not _NOTHING_LEFT.isdisjoint(names) or message.startswith(_NOTHING_LEFT_PROSE):
        return Verdict("quota", wait_of(fields, now_wall, delay))
    if status == 429:
        if message.startswith(_REQUEST_TOO_LARGE_PROSE):
            return None
        return Verdict("rate_limited", wait_of(fields, now_wall, delay))
    if not _KEY_REFUSED.isdisjoint(names) or message.startswith(_KEY_REFUSED_PROSE):
        return _REFUSED
    if status != 401 or not _CALL_DENIED.isdisjoint(names) or message.startswith(_CALL_DENIED_PROSE):
        return None
    return _REFUSED


# --- how long

_NUMBER: Final = re.compile(rb"\d{1,15}(?:\.\d{0,15})?")
_DIGITS: Final = re.compile(rb"\d+")


def wait_of(fields: dict[bytes, bytes], now_wall: float, said: float | None = None) -> float:
    """Seconds to wait by the answer's head, else by what its body `said`.

    A date is compared with the answer's own `Date`, for the provider made both; without one with `now_wall`, Unix seconds.
    """
    milliseconds = _number(fields.get(b"retry-after-ms"))
    if milliseconds is not None:
        return _clamped(milliseconds / 1000)
    value = fields.get(b"retry-after")
    seconds = _number(value)
    if seconds is None and value is not None:
        seconds = _until_date(value, _moment(fields.get(b"date")) or now_wall)
    if seconds is None:
        seconds = said
    return DEFAULT_WAIT if seconds is None else _clamped(seconds)


def _clamped(seconds: float) -> float:
    return min(seconds, LONGEST_WAIT)


def _number(value: bytes | None) -> float | None:
    """A plain decimal; None for a sign, an exponent, NaN and other nonsense."""
    if value is None:
        return None
    value = value.strip()
    if _NUMBER.fullmatch(value):
        return float(value)
    return math.inf if _DIGITS.fullmatch(value) else None


def _until_date(value: bytes, now: float) -> float | None:
    until = _moment(value)
    return max(until - now, SHORTEST_DATE) if until is not None else None


def _moment(value: bytes | None) -> float | None:
    """Unix seconds of a date (RFC 9110 §5.6.7)."""
    if value is None or len(value) > 64:
        return None
    try:
        parsed = parsedate_tz(value.decode("ascii"))
        return float(mktime_tz(parsed)) if parsed is not None else None
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


# --- what the body says


def read_key_error(fields: dict[bytes, bytes], body: bytes) -> Said | None:
    """What an error's body says as it came, content coding included; None when it is no JSON, or too much of it.

    `code` is Google's `reason` where there is one.
    """
    if len(body) > MAX_ERROR_BODY:
        return None
    try:
        plain = decode_body(fields.get(b"content-encoding", b""), body, MAX_ERROR_BODY)
        document = msgspec.json.decode(plain)
    except (CodingError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if isinstance(document, list):
        document = document[0] if document else None
    if not isinstance(document, dict):
        return None
    error = document.get("error")
    if isinstance(error, str):
        return Said(provider_error(None, _text(document.get("message")) or error, error))
    if not isinstance(error, dict):
        error = document
    details = error.get("details")
    kind = _text(error.get("type")) or _text(error.get("status"))
    code = _detail(details, "reason") or _code(error.get("code"))
    delay = _DURATION.fullmatch(_detail(details, "retryDelay"))
    return Said(provider_error(kind, _text(error.get("message")), code), float(delay[1]) if delay is not None else None)


_DURATION: Final = re.compile(r"(\d{1,12}(?:\.\d{1,9})?)s", re.ASCII)
"""`google.protobuf.Duration` in JSON, where it is not negative."""


def _detail(details: Any, name: str) -> str:  # Any: decoded JSON, and so below
    """What Google adds: `google.rpc.ErrorInfo` has a `reason`, `google.rpc.RetryInfo` a `retryDelay`."""
    if not isinstance(details, list):
        return ""
    return next((text for item in details if isinstance(item, dict) and (text := _text(item.get(name)))), "")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _code(value: Any) -> str | int | None:
    return value if isinstance(value, str | int) else None
