"""Writes answers as bedrock-runtime does: InvokeModel of Claude, blocking and as a binary event stream.

Source: AWS's API reference of Bedrock Runtime and its guide to Anthropic's Messages; what it refuses there is refused here.
"""

import re
from base64 import b64encode
from typing import Any, Literal
from urllib.parse import unquote

import msgspec

from ostiary.wire.event_stream import CONTENT_TYPE, encode

from . import anthropic
from .answer import PLACEHOLDER, compose, shaped
from .asked import Asked, BadRequestError, read
from .aws_signature import AwsError
from .behaviour import Behaviour
from .delivery import Reply
from .event_stream import Event

_VERSION = "bedrock-2023-05-31"
_MODEL = re.compile(r"(?:[a-z]{2,6}\.)?anthropic\.[a-z0-9.:-]+|arn:aws[a-z-]*:bedrock:.+|fake.*", re.DOTALL)
_UNKNOWN_MODEL = "unknown"
_EXTRANEOUS = ("model", "stream", "metadata", "service_tier", "container", "inference_geo")
_FLAGS = re.compile(
    r"(?:computer-use|token-efficient-tools|interleaved-thinking|output-128k|dev-full-thinking|context-1m|context-management"
    r"|effort|tool-search-tool|tool-examples)-20\d\d-\d\d-\d\d"
)
_BY_STATUS = {
    400: ("ValidationException", "The request is not valid."),
    403: ("AccessDeniedException", "You don't have access to the model with the specified model ID."),
    404: ("ResourceNotFoundException", "Could not resolve the foundation model from the provided model identifier."),
    408: ("ModelTimeoutException", "The model took too long to answer."),
    424: ("ModelErrorException", "The model returned an error."),
    429: ("ThrottlingException", "Too many requests, please wait before trying again."),
    500: (
        "InternalServerException",
        "The system encountered an unexpected error during processing. Try your request again.",
    ),
    503: ("ServiceUnavailableException", "Bedrock is unable to process your request."),
}
_REQUEST_ID = ("x-amzn-requestid", "fa4e0000-0000-4000-8000-000000000002")


def error(failed: AwsError) -> Reply:
    """An error as AWS's JSON services write it."""
    body = msgspec.json.encode({"message": str(failed)})
    headers = (
        ("content-type", "application/json"),
        _REQUEST_ID,
        ("x-amzn-errortype", f"{failed.code}:http://internal.amazon.com/"),
    )
    return Reply(failed.status, headers, (body,))


def model_and_action(path: str) -> tuple[str, str]:
    """Of `/model/{id}/{action}`, the id decoded. Raises `AwsError`."""
    parts = path.split("/")
    if len(parts) != 4 or parts[3] not in ("invoke", "invoke-with-response-stream"):
        raise AwsError(404, "UnknownOperationException", "Unknown operation; is the model's id encoded as one segment?")
    return unquote(parts[2]), parts[3]


def invoke(model: str, action: str, body: bytes, wanted: Behaviour, token: str) -> Reply:
    """The answer of `model`. Raises `AwsError`."""
    if wanted.status >= 400:
        code, said = _BY_STATUS.get(wanted.status, _BY_STATUS[500 if wanted.status >= 500 else 400])
        raise AwsError(wanted.status, wanted.error_type or code, wanted.message or said)
    if wanted.body is not None:
        kind = wanted.content_type or "application/json"
        return Reply(wanted.status or 200, (("content-type", kind), _REQUEST_ID), (wanted.body.encode(),))
    asked = _asked(model, body, stream=action != "invoke")
    answer = compose(asked, wanted)
    if not asked.stream:
        message = msgspec.json.encode(anthropic.message(asked, wanted, answer)).replace(
            PLACEHOLDER.encode(), token.encode()
        )
        counts = (
            ("x-amzn-bedrock-input-token-count", str(answer.usage.input)),
            ("x-amzn-bedrock-output-token-count", str(answer.usage.output)),
        )
        return Reply(200, (("content-type", "application/json"), _REQUEST_ID, *counts), (message,))
    answer = shaped(asked, wanted, answer, anthropic.events)
    events = [event for event in anthropic.events(asked, wanted, answer) if event.name != "ping"]
    metrics = {"inputTokenCount": answer.usage.input, "outputTokenCount": answer.usage.output, "invocationLatency": 12}
    events[-1] = Event(
        "message_stop", msgspec.json.encode({"type": "message_stop", "amazon-bedrock-invocationMetrics": metrics})
    )
    frames = [chunk(event.data.replace(PLACEHOLDER.encode(), token.encode())) for event in events]
    if wanted.error_after is not None:
        frames = [*frames[: wanted.error_after], _exception(wanted)]
    if wanted.damage:
        frames = damaged(frames, wanted.damage, wanted.after)
    headers = (
        ("content-type", CONTENT_TYPE.decode()),
        ("x-amzn-bedrock-content-type", "application/json"),
        _REQUEST_ID,
    )
    return Reply(200, headers, tuple(frames), stream=True)


def chunk(data: bytes) -> bytes:
    """The message that carries one event."""
    headers = {":event-type": "chunk", ":content-type": "application/json", ":message-type": "event"}
    return encode(headers, msgspec.json.encode({"bytes": b64encode(data).decode(), "p": "abcdefghijklm"}))


def damaged(frames: list[bytes], damage: Literal["prelude", "message", "truncated"], after: int | None) -> list[bytes]:
    """The messages with one that is not whole: cut off, after which nothing comes, or with a checksum that does not fit."""
    at = len(frames) // 2 if after is None else min(after, len(frames) - 1)
    frame = frames[at]
    if damage == "truncated":
        return [*frames[:at], frame[: len(frame) // 2]]
    place = 8 if damage == "prelude" else len(frame) - 1
    flipped = frame[:place] + bytes((frame[place] ^ 0xFF,)) + frame[place + 1 :]
    return [*frames[:at], flipped, *frames[at + 1 :]]


def _exception(wanted: Behaviour) -> bytes:
    kind = wanted.error_type or "modelStreamErrorException"
    headers = {":exception-type": kind, ":content-type": "application/json", ":message-type": "exception"}
    return encode(headers, msgspec.json.encode({"message": wanted.message or "The model stopped answering."}))


def _asked(model: str, body: bytes, *, stream: bool) -> Asked:
    if not _MODEL.fullmatch(model):
        raise AwsError(400, "ValidationException", "The provided model identifier is invalid.")
    if _UNKNOWN_MODEL in model:
        raise AwsError(404, *_BY_STATUS[404])
    try:
        members = msgspec.json.decode(body, type=dict[str, Any])
    except (ValueError, RecursionError):
        raise _malformed("the body is not a JSON object") from None
    _check(members)
    try:
        return read("anthropic", msgspec.json.encode(members | {"model": model, "stream": stream}))
    except BadRequestError as exc:
        raise _malformed(str(exc)) from None


def _check(members: dict[str, Any]) -> None:
    if members.get("anthropic_version") != _VERSION:
        raise _malformed(f'anthropic_version: must be "{_VERSION}"')
    extraneous = [name for name in _EXTRANEOUS if name in members]
    if extraneous:
        raise _malformed(f"#: extraneous key [{extraneous[0]}] is not permitted")
    flags = members.get("anthropic_beta", [])
    if not isinstance(flags, list) or not all(isinstance(flag, str) and _FLAGS.fullmatch(flag) for flag in flags):
        raise _malformed("invalid beta flag")
    if "context_management" in members and not any(flag.startswith("context-management") for flag in flags):
        raise _malformed("context_management: Extra inputs are not permitted")


def _malformed(message: str) -> AwsError:
    return AwsError(
        400, "ValidationException", f"Malformed input request: {message}, please reformat your input and try again."
    )
