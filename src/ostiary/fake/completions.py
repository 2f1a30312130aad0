"""Writes answers as OpenAI's legacy Completions API does.

Source: OpenAI's API reference, "Completions".
"""

import time
from typing import Any

import msgspec

from .answer import PLACEHOLDER, Answer
from .asked import Asked
from .behaviour import Behaviour
from .chat import DONE, usage_of
from .event_stream import Event

_STOP = {"end": "stop", "tools": "stop", "length": "length"}


def completion(asked: Asked, wanted: Behaviour, answer: Answer) -> dict[str, Any]:
    """The blocking answer."""
    text = "".join(answer.text)
    body = _envelope(asked, wanted) | {
        "choices": [_choice(index, text, _STOP[answer.stop]) for index in range(asked.choices)]
    }
    return body | {"usage": usage_of(answer)} if wanted.usage else body


def events(asked: Asked, wanted: Behaviour, answer: Answer) -> list[Event]:
    """The streaming answer; its usage as on chat streams."""
    report = asked.include_usage and wanted.usage

    def chunk(choices: list[dict[str, Any]], usage: dict[str, Any] | None = None) -> Event:
        fields = _envelope(asked, wanted) | {"choices": choices}
        return Event("", msgspec.json.encode(fields | {"usage": usage} if report else fields))

    pieces = [*((piece, None) for piece in answer.text), ("", _STOP[answer.stop])]
    stream = [chunk([_choice(index, text, stop)]) for text, stop in pieces for index in range(asked.choices)]
    if report:
        stream.append(chunk([], usage_of(answer)))
    stream.append(DONE)
    return stream


def _envelope(asked: Asked, wanted: Behaviour) -> dict[str, Any]:
    return {
        "id": f"cmpl-{PLACEHOLDER}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": wanted.served_model or asked.model,
    }


def _choice(index: int, text: str, stop: str | None) -> dict[str, Any]:
    return {"text": text, "index": index, "logprobs": None, "finish_reason": stop}
