"""Writes answers as Anthropic's Messages API does.

Source: Anthropic's API reference, "Messages", "Streaming messages" and "Errors".
"""

from typing import Any

import msgspec

from .answer import PLACEHOLDER, Answer, argument_pieces
from .asked import Asked, read
from .behaviour import Behaviour
from .event_stream import Event

_START_OUTPUT_TOKENS = 3
"""What `message_start` says of the output; only the last `message_delta` is final."""
_STOP = {"end": "end_turn", "tools": "tool_use", "length": "max_tokens"}


def message(asked: Asked, wanted: Behaviour, answer: Answer) -> dict[str, Any]:
    """The blocking answer."""
    content: list[dict[str, Any]] = []
    if answer.thinking is not None:
        content.append({"type": "thinking", "thinking": "".join(answer.thinking), "signature": answer.signature})
    if answer.text:
        content.append({"type": "text", "text": "".join(answer.text)})
    content += (
        {"type": "tool_use", "id": _call_id(at), "name": call.name, "input": _input(call.arguments)}
        for at, call in enumerate(answer.calls)
    )
    return _envelope(asked, wanted) | {
        "content": content,
        "stop_reason": _STOP[answer.stop],
        "stop_sequence": None,
        **_reported(wanted, _usage(answer, answer.usage.output)),
    }


def events(asked: Asked, wanted: Behaviour, answer: Answer) -> list[Event]:
    """The streaming answer."""
    start = _envelope(asked, wanted) | {
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        **_reported(wanted, _usage(answer, min(_START_OUTPUT_TOKENS, answer.usage.output))),
    }
    stream = [_event("message_start", message=start)]
    index = 0
    if answer.thinking is not None:
        deltas = [{"type": "thinking_delta", "thinking": piece} for piece in answer.thinking]
        deltas.append({"type": "signature_delta", "signature": answer.signature})
        stream += _block(index, {"type": "thinking", "thinking": "", "signature": ""}, deltas)
        index += 1
    if answer.text:
        deltas = [{"type": "text_delta", "text": piece} for piece in answer.text]
        stream += _block(index, {"type": "text", "text": ""}, deltas)
        index += 1
    stream.insert(2, _event("ping"))
    for at, call in enumerate(answer.calls):
        block = {"type": "tool_use", "id": _call_id(at), "name": call.name, "input": {}}
        pieces = ("", *argument_pieces(call))
        stream += _block(index, block, [{"type": "input_json_delta", "partial_json": piece} for piece in pieces])
        index += 1
    stream.append(
        _event(
            "message_delta",
            delta={"stop_reason": _STOP[answer.stop], "stop_sequence": None},
            **_reported(wanted, _final_usage(answer)),
        )
    )
    stream.append(_event("message_stop"))
    return _with_pings(stream, wanted.pings) if wanted.pings else stream


def stream_error(wanted: Behaviour) -> Event:
    """An error in the middle of a stream."""
    error = {
        "type": wanted.error_type or "overloaded_error",
        "message": wanted.message or "Overloaded",
    }
    return _event("error", error=error)


def count_tokens(body: bytes) -> dict[str, Any]:
    """What `POST /v1/messages/count_tokens` answers; it needs no `max_tokens`. Raises `BadRequestError`."""
    return {"input_tokens": read("anthropic", body, generating=False).input_tokens}


def _reported(wanted: Behaviour, usage: dict[str, Any]) -> dict[str, Any]:
    return {"usage": usage} if wanted.usage else {}


def _envelope(asked: Asked, wanted: Behaviour) -> dict[str, Any]:
    return {
        "id": f"msg_01{PLACEHOLDER}",
        "type": "message",
        "role": "assistant",
        "model": wanted.served_model or asked.model,
    }


def _call_id(at: int) -> str:
    return f"toolu_{at + 1:02}{PLACEHOLDER}"


def _input(arguments: str) -> Any:
    """A cut-off call has an empty input in a blocking answer: the API never sends half a JSON value."""
    try:
        return msgspec.json.decode(arguments)
    except msgspec.DecodeError:
        return {}


def _usage(answer: Answer, output: int) -> dict[str, Any]:
    usage = answer.usage
    return {
        "input_tokens": usage.uncached,
        "cache_creation_input_tokens": usage.cache_write,
        "cache_read_input_tokens": usage.cache_read,
        "cache_creation": {"ephemeral_5m_input_tokens": usage.cache_write, "ephemeral_1h_input_tokens": 0},
        "output_tokens": output,
        "service_tier": "standard",
    }


def _final_usage(answer: Answer) -> dict[str, Any]:
    """Cumulative: the whole message's numbers, not what came since the start."""
    usage = answer.usage
    return {
        "input_tokens": usage.uncached,
        "cache_creation_input_tokens": usage.cache_write,
        "cache_read_input_tokens": usage.cache_read,
        "output_tokens": usage.output,
    }


def _event(name: str, **fields: Any) -> Event:
    return Event(name, msgspec.json.encode({"type": name, **fields}))


def _block(index: int, block: dict[str, Any], deltas: list[dict[str, Any]]) -> list[Event]:
    return [
        _event("content_block_start", index=index, content_block=block),
        *(_event("content_block_delta", index=index, delta=delta) for delta in deltas),
        _event("content_block_stop", index=index),
    ]


def _with_pings(stream: list[Event], every: int) -> list[Event]:
    pinged: list[Event] = []
    for number, event in enumerate(stream, 1):
        pinged.append(event)
        if number % every == 0:
            pinged.append(_event("ping"))
    return pinged
