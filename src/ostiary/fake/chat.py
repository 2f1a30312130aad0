"""Writes answers as OpenAI's Chat Completions API does.

Source: OpenAI's API reference, "Chat Completions" and "Streaming".
"""

import time
from typing import Any

import msgspec

from .answer import PLACEHOLDER, Answer, argument_pieces
from .asked import Asked
from .behaviour import Behaviour
from .event_stream import Event

DONE = Event("", b"[DONE]")
_FINGERPRINT = "fp_fa4e000001"
_OBFUSCATION = "hWZ4i8lSgQYTyCuq"
_STOP = {"end": "stop", "tools": "tool_calls", "length": "length"}


def completion(asked: Asked, wanted: Behaviour, answer: Answer) -> dict[str, Any]:
    """The blocking answer."""
    reply: dict[str, Any] = {
        "role": "assistant",
        "content": "".join(answer.text) if answer.text else None,
        "refusal": None,
        "annotations": [],
    }
    if answer.calls:
        reply["tool_calls"] = [_call(at, answer) for at in range(len(answer.calls))]
    choices = [
        {"index": index, "message": reply, "logprobs": None, "finish_reason": _STOP[answer.stop]}
        for index in range(asked.choices)
    ]
    body = _envelope("chat.completion", asked, wanted) | {"choices": choices}
    if wanted.usage:
        body["usage"] = usage_of(answer)
    return body | {"service_tier": "default", "system_fingerprint": _FINGERPRINT}


def events(asked: Asked, wanted: Behaviour, answer: Answer) -> list[Event]:
    """The streaming answer. With `include_usage` every chunk has a null `usage`, and one more has it and no choices.

    Copilot sends it unasked, in the chunk that ends the last choice.
    """
    envelope = _envelope("chat.completion.chunk", asked, wanted) | {
        "service_tier": "default",
        "system_fingerprint": _FINGERPRINT,
    }
    report = asked.include_usage and wanted.usage

    def chunk(choices: list[dict[str, Any]], usage: dict[str, Any] | None = None, hide: str | None = None) -> Event:
        fields = envelope | {"choices": choices}
        if report:
            fields["usage"] = usage
        if asked.obfuscation and hide is not None:
            fields["obfuscation"] = _OBFUSCATION[len(hide) % len(_OBFUSCATION) :]
        return Event("", msgspec.json.encode(fields))

    def every_choice(delta: dict[str, Any], finish: str | None = None, hide: str | None = None) -> list[Event]:
        return [
            chunk([{"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}], None, hide)
            for index in range(asked.choices)
        ]

    opening: dict[str, Any] = {"role": "assistant", "content": None if answer.calls else "", "refusal": None}
    stream = every_choice(opening, hide="")
    for piece in answer.text:
        stream += every_choice({"content": piece}, hide=piece)
    for at, call in enumerate(answer.calls):
        first = _call(at, answer)
        first[first["type"]][_argument_field(call.free_form)] = ""
        stream += every_choice({"tool_calls": [{"index": at} | first]}, hide=call.name)
        for piece in argument_pieces(call):
            part = {"index": at, first["type"]: {_argument_field(call.free_form): piece}}
            stream += every_choice({"tool_calls": [part]}, hide=piece)
    ends = every_choice({}, finish=_STOP[answer.stop], hide="")
    if asked.usage_unasked and wanted.usage:
        last = msgspec.json.decode(ends[-1].data) | {"usage": usage_of(answer)}
        ends[-1] = Event("", msgspec.json.encode(last))
        report = False
    stream += ends
    if report:
        stream.append(chunk([], usage_of(answer), ""))
    stream.append(DONE)
    return stream


def stream_error(wanted: Behaviour) -> Event:
    """An error in the middle of a stream; no `[DONE]` follows it."""
    error = {
        "message": wanted.message or "The server had an error while processing your request. Sorry about that!",
        "type": wanted.error_type or "server_error",
        "param": None,
        "code": wanted.code or None,
    }
    return Event("", msgspec.json.encode({"error": error}))


def _envelope(kind: str, asked: Asked, wanted: Behaviour) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{PLACEHOLDER}",
        "object": kind,
        "created": int(time.time()),
        "model": wanted.served_model or asked.model,
    }


def _call(at: int, answer: Answer) -> dict[str, Any]:
    call = answer.calls[at]
    kind = "custom" if call.free_form else "function"
    return {
        "id": f"call_{PLACEHOLDER}" if at == 0 else f"call_{at:02}{PLACEHOLDER}",
        "type": kind,
        kind: {"name": call.name, _argument_field(call.free_form): call.arguments},
    }


def _argument_field(free_form: bool) -> str:
    return "input" if free_form else "arguments"


def usage_of(answer: Answer) -> dict[str, Any]:
    """As both of OpenAI's completion APIs report it."""
    usage = answer.usage
    return {
        "prompt_tokens": usage.input,
        "completion_tokens": usage.output,
        "total_tokens": usage.input + usage.output,
        "prompt_tokens_details": {"cached_tokens": usage.cache_read, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": usage.reasoning,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }
