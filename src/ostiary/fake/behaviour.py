"""What a request may ask the fake provider to do, and the two ways to ask for it.

Rules
- Pure: text in, one frozen `Behaviour` out.
- A control string is a JSON object (`{"status": 429, "retry-after": "7"}`) or `name=value` pairs parted by spaces or
  semicolons (`status=429 retry-after=7; close`); a bare name means true. Names are the fields below with hyphens.
- It comes in the header `X-Fake`, or through the model's name for clients that cannot set headers: a name of
  `MODELS`, `fake-<status>` with an optional wait (`fake-429-7`), or `fake:<control string>`.
- The provider's default (`PUT /fake/behaviour`) is overridden by the model's name, that by the header, field by field.
- An unknown name or a value that does not fit is an error that says what is known: a misspelt fault injects nothing.
"""

import re
from functools import lru_cache
from typing import Any, Literal

import msgspec
from msgspec import Struct

Cut = Literal["", "before-head", "mid-head", "mid-body", "mid-event", "mid-chunk"]
Coding = Literal["", "auto", "gzip", "br", "zstd", "deflate"]


class Behaviour(Struct, frozen=True, rename="kebab", forbid_unknown_fields=True):
    """Zero, empty and None mean: as a real provider would."""

    # The answer as a whole
    status: int = 0
    """An error of this status in the provider's shape; with `body`, that body."""
    retry_after: str = ""
    """Value of `Retry-After`, seconds or a date."""
    retry_after_ms: str = ""
    error_type: str = ""
    code: str = ""
    message: str = ""
    body: str | None = None
    """Sent as it stands in place of the provider's error or answer."""
    content_type: str = ""
    """Of `body`; application/json unless given."""
    headers: dict[str, str] = {}
    """Added to the head, as spelt here; JSON form only."""

    api_version: str = ""
    """Azure: a request whose query does not name this `api-version` is not found."""

    # Its contents
    text: str | None = None
    """In place of the echo of the last user prompt."""
    size: int = 0
    """Characters of the text: it is repeated and cut to fit. Of a picture, a sound or a file: its bytes, at least."""
    events: int = 0
    """Events of a stream in all; text and thinking are spread over what the fixed ones leave."""
    event_size: int = 0
    """Bytes of an event that carries text or thinking; for `events`."""
    tools: int | None = None
    """Calls of the request's tools: 0, 1 or more in parallel. None: one when the request has tools."""
    thinking: bool | None = None
    commentary: bool = False
    """Responses: a message of phase `commentary` before the calls."""
    truncated: bool = False
    """Ends at `max_tokens`: a tool call's arguments stop in the middle of their JSON."""
    usage: bool = True
    """False: the answer says nothing about usage."""
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read: int | None = None
    cache_write: int | None = None
    reasoning_tokens: int | None = None
    served_model: str = ""
    """The model that the answer names; the requested one unless given."""

    # A stream's faults and oddities
    error_after: int | None = None
    """An error event after so many events, and the end of the stream."""
    failed: bool = False
    """With `error_after` on Responses: `response.failed` in place of `error`."""
    comments: int = 0
    """A comment line before every so-manieth event."""
    pings: int = 0
    """Anthropic: a ping after every so-manieth event."""
    unknown: bool = False
    """Events and fields that no client knows yet."""
    damage: Literal["", "prelude", "message", "truncated"] = ""
    """Bedrock: a message whose prelude or whole does not fit its checksum, or that ends early; place as `after`."""
    crlf: bool = False
    """Lines end with CR LF."""
    multiline: bool = False
    """An event's data stands in several `data:` lines."""

    # How the bytes leave
    delay: int = 0
    """Milliseconds before the head."""
    pace: int = 0
    """Milliseconds before each event (or each piece of a body)."""
    chunk: int = 0
    """Bytes of a piece of the body, whatever the events are."""
    tear: int = 0
    """Bytes of a write: 1 sends the answer byte by byte."""
    framing: Literal["", "length", "chunked", "close"] = ""
    length_excess: int = 0
    """Content-Length says so much more than is sent; the connection is closed after it."""
    encoding: Coding = ""
    """Content coding: `auto` takes the client's best, a name is used when the client accepts it."""
    force_encoding: bool = False
    """Use `encoding` also when the client does not accept it."""
    interim: int = 0
    """A 1xx answer before the final one."""
    close: bool = False
    """`Connection: close`, and so it is."""
    early: bool = False
    """Answer when the head is read, before the body; header only."""
    cut: Cut = ""
    after: int | None = None
    """Body pieces sent before a `cut` or `hang` in the body; None: half of them."""
    reset: bool = False
    """Cut with a TCP reset in place of an end of file."""
    hang: Literal["", "before-head", "mid-body"] = ""
    """Say nothing more, and keep the connection until the client goes."""


class ControlError(ValueError):
    """A control string that cannot be followed; the text names the cure."""


MODELS = {
    "fake-slow": "delay=300 pace=150",
    "fake-cut": "cut=mid-body",
    "fake-cut-head": "cut=before-head",
    "fake-cut-chunk": "cut=mid-chunk",
    "fake-reset": "cut=mid-body reset",
    "fake-hang": "hang=before-head",
    "fake-hang-body": "hang=mid-body",
    "fake-error": "error-after=6",
    "fake-quota": "status=429 code=insufficient_quota error-type=insufficient_quota",
    "fake-torn": "tear=1",
    "fake-crlf": "crlf comments=3 unknown",
    "fake-truncated": "truncated",
    "fake-parallel": "tools=2",
    "fake-thinking": "thinking",
}
"""Model names that stand for a behaviour; any other name is served as a well-behaved model."""

_STATUS_MODEL = re.compile(r"fake-([1-5]\d\d)(?:-(\d+))?")
_SEPARATOR = re.compile(r"[;\s]+")
_KNOWN = ", ".join(field.encode_name for field in msgspec.structs.fields(Behaviour))
PLAIN = Behaviour()


def fields_of(control: str) -> dict[str, Any]:  # Any: converted, and so checked, by `behaviour`
    """The names and values of a control string. Raises `ControlError`."""
    control = control.strip()
    if control.startswith("{"):
        try:
            fields = msgspec.json.decode(control.encode(), type=dict[str, Any])
        except msgspec.DecodeError as exc:
            raise ControlError(f"the control string is not a JSON object: {exc}") from exc
        return fields
    pairs = (part.partition("=") for part in _SEPARATOR.split(control) if part)
    return {name: value if equals else "true" for name, equals, value in pairs}


def model_control(model: str) -> str:
    """The control string that a model's name stands for; empty for an ordinary name."""
    if not model.startswith("fake"):
        return ""
    if model.startswith("fake:"):
        return model[5:]
    match = _STATUS_MODEL.fullmatch(model)
    if match is None:
        return MODELS.get(model, "")
    status, wait = match.groups()
    if wait is None and status == "429":
        wait = "7"
    return f"status={status} retry-after={wait}" if wait else f"status={status}"


@lru_cache(maxsize=1024)
def behaviour(*controls: str) -> Behaviour:
    """One behaviour from control strings in rising precedence. Raises `ControlError`."""
    merged: dict[str, Any] = {}
    for control in controls:
        if control:
            merged |= fields_of(control)
    if not merged:
        return PLAIN
    try:
        return msgspec.convert(merged, Behaviour, strict=False)
    except msgspec.ValidationError as exc:
        raise ControlError(f"the control string does not fit: {exc}; known names: {_KNOWN}") from exc
