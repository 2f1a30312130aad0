"""Writes answers as OpenAI's Responses API does.

Source: OpenAI's API reference, "Responses" and "Streaming events".

A response is a list of output items; a stream opens the response, opens, fills and closes each item in turn, numbering
every event, and closes the response with the whole object.
"""

import time
from typing import Any

import msgspec
from msgspec import Raw

from .answer import PLACEHOLDER, Answer, Call, argument_pieces
from .asked import Asked
from .behaviour import Behaviour
from .event_stream import Event

_OBFUSCATION = "gW8ZHP4ilSgQYTyC"
_DEFAULTS: dict[str, Any] = {
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "prompt_cache_key": None,
    "reasoning": {"effort": None, "summary": None},
    "safety_identifier": None,
    "store": True,
    "temperature": 1.0,
    "text": {"format": {"type": "text"}, "verbosity": "medium"},
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "top_p": 1.0,
    "truncation": "disabled",
    "user": None,
    "metadata": {},
}


def response(asked: Asked, wanted: Behaviour, answer: Answer) -> dict[str, Any]:
    """The blocking answer, and the last event's object."""
    output = [item.whole for item in _items(asked, wanted, answer)]
    return _object(asked, wanted, answer, "incomplete" if answer.stop == "length" else "completed", output)


def events(asked: Asked, wanted: Behaviour, answer: Answer) -> list[Event]:
    """The streaming answer."""
    stream = _Stream(hide=asked.obfuscation)
    opening = _object(asked, wanted, answer, "in_progress", [])
    stream.add("response.created", response=opening)
    stream.add("response.in_progress", response=opening)
    output = _items(asked, wanted, answer)
    for index, item in enumerate(output):
        stream.add("response.output_item.added", output_index=index, item=item.opening)
        item.write_deltas(stream, index)
        stream.add("response.output_item.done", output_index=index, item=item.whole)
    closing = response(asked, wanted, answer)
    stream.add(f"response.{closing['status']}", response=closing)
    return stream.events


def stream_error(asked: Asked, wanted: Behaviour, answer: Answer, number: int) -> Event:
    """An error in the middle of a stream, as event `number`."""
    code, text = wanted.code or "server_error", wanted.message or "The model failed to generate a response."
    if wanted.failed:
        failed = _object(asked, wanted, answer, "failed", []) | {"error": {"code": code, "message": text}}
        return _event("response.failed", number, response=failed | {"usage": None})
    return _event("error", number, code=code, message=text, param=None)


class _Stream:
    """Events numbered as they are added."""

    def __init__(self, *, hide: bool) -> None:
        self.events: list[Event] = []
        self._hide = hide

    def add(self, name: str, **fields: Any) -> None:
        self.events.append(_event(name, len(self.events), **fields))

    def delta(self, name: str, piece: str, **fields: Any) -> None:
        if self._hide:
            fields["obfuscation"] = _OBFUSCATION[len(piece) % len(_OBFUSCATION) :]
        self.add(name, delta=piece, **fields)


class _Reasoning:
    def __init__(self, answer: Answer, *, encrypted: bool) -> None:
        self._id = f"rs_{PLACEHOLDER}"
        self._pieces = answer.thinking or ()
        hidden = {"encrypted_content": answer.encrypted} if encrypted else {}
        summary = [{"type": "summary_text", "text": "".join(self._pieces)}] if self._pieces else []
        self.opening = {"id": self._id, "type": "reasoning", **hidden, "summary": []}
        self.whole = {"id": self._id, "type": "reasoning", **hidden, "summary": summary}

    def write_deltas(self, stream: _Stream, index: int) -> None:
        if not self._pieces:
            return
        place = {"item_id": self._id, "output_index": index, "summary_index": 0}
        part = "response.reasoning_summary_part"
        text = "response.reasoning_summary_text"
        stream.add(f"{part}.added", **place, part={"type": "summary_text", "text": ""})
        for piece in self._pieces:
            stream.delta(f"{text}.delta", piece, **place)
        stream.add(f"{text}.done", **place, text="".join(self._pieces))
        stream.add(f"{part}.done", **place, part={"type": "summary_text", "text": "".join(self._pieces)})


class _Message:
    def __init__(self, pieces: tuple[str, ...], *, phase: str = "", status: str = "completed", at: int = 0) -> None:
        self._id = f"msg_{at:02}{PLACEHOLDER}"
        self._pieces = pieces
        fields: dict[str, Any] = {"id": self._id, "type": "message", "role": "assistant"}
        if phase:
            fields["phase"] = phase
        self.opening = fields | {"status": "in_progress", "content": []}
        self.whole = fields | {"status": status, "content": [_output_text("".join(pieces))]}

    def write_deltas(self, stream: _Stream, index: int) -> None:
        place = {"item_id": self._id, "output_index": index, "content_index": 0}
        stream.add("response.content_part.added", **place, part=_output_text(""))
        for piece in self._pieces:
            stream.delta("response.output_text.delta", piece, **place, logprobs=[])
        stream.add("response.output_text.done", **place, text="".join(self._pieces), logprobs=[])
        stream.add("response.content_part.done", **place, part=_output_text("".join(self._pieces)))


class _ToolCall:
    def __init__(self, call: Call, at: int, status: str) -> None:
        prefix, kind = ("ctc", "custom_tool_call") if call.free_form else ("fc", "function_call")
        self._field = "input" if call.free_form else "arguments"
        self._events = "custom_tool_call_input" if call.free_form else "function_call_arguments"
        self._id = f"{prefix}_{at:02}{PLACEHOLDER}"
        self._call = call
        fields = {"id": self._id, "type": kind, "call_id": f"call_{at:02}{PLACEHOLDER}", "name": call.name}
        self.opening = fields | {"status": "in_progress", self._field: ""}
        self.whole = fields | {"status": status, self._field: call.arguments}

    def write_deltas(self, stream: _Stream, index: int) -> None:
        place = {"item_id": self._id, "output_index": index}
        for piece in argument_pieces(self._call):
            stream.delta(f"response.{self._events}.delta", piece, **place)
        stream.add(f"response.{self._events}.done", **place, **{self._field: self._call.arguments})


_Item = _Reasoning | _Message | _ToolCall


def _items(asked: Asked, wanted: Behaviour, answer: Answer) -> list[_Item]:
    items: list[_Item] = []
    if answer.thinking is not None:
        items.append(_Reasoning(answer, encrypted=asked.encrypted_reasoning))
    ended = "incomplete" if answer.stop == "length" else "completed"
    if wanted.commentary and answer.calls:
        items.append(_Message((f"Calling {answer.calls[0].name}.",), phase="commentary", at=1))
    if answer.text:
        items.append(_Message(answer.text, status="completed" if answer.calls else ended))
    last = len(answer.calls) - 1
    items += (_ToolCall(call, at, ended if at == last else "completed") for at, call in enumerate(answer.calls))
    return items


def _object(asked: Asked, wanted: Behaviour, answer: Answer, status: str, output: list[Any]) -> dict[str, Any]:
    """The response object; request fields that it repeats are the request's own bytes."""
    now = int(time.time())
    ended = status in ("completed", "incomplete")
    repeated: dict[str, Any | Raw] = _DEFAULTS | asked.echo
    return {
        "id": f"resp_{PLACEHOLDER}",
        "object": "response",
        "created_at": now,
        "status": status,
        "background": False,
        "completed_at": now if status == "completed" else None,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "model": wanted.served_model or asked.model,
        "output": output,
        "service_tier": "default" if ended else "auto",
        "usage": _usage(answer) if ended and wanted.usage else None,
        **repeated,
    }


def _usage(answer: Answer) -> dict[str, Any]:
    usage = answer.usage
    return {
        "input_tokens": usage.input,
        "input_tokens_details": {"cached_tokens": usage.cache_read, "cache_write_tokens": usage.cache_write},
        "output_tokens": usage.output,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning},
        "total_tokens": usage.input + usage.output,
    }


def _output_text(text: str) -> dict[str, Any]:
    return {"type": "output_text", "annotations": [], "logprobs": [], "text": text}


def _event(name: str, number: int, **fields: Any) -> Event:
    return Event(name, msgspec.json.encode({"type": name, "sequence_number": number, **fields}))
