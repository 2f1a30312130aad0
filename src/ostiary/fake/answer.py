"""What the model says, in no provider's words: text, thinking, tool calls, usage, and how they are cut into deltas.

Rules
- Pure and deterministic: the same request gets the same answer.
- A writer (`anthropic`, `chat`, `responses`) turns an `Answer` into one provider's JSON or events.
- The pieces of text and of thinking join to the whole; the shape asked for (`events`, `event-size`) only moves the cuts.
"""

from collections.abc import Callable, Iterator
from typing import Any, Literal

import msgspec
from msgspec import Struct

from .asked import Asked, Tool
from .behaviour import Behaviour
from .event_stream import Event

PLACEHOLDER = "FAKE0TOKEN0FAKE0TOKEN000"
"""Stands in a rendered answer for the 24 characters that make its ids unique; see `delivery`."""

Stop = Literal["end", "tools", "length"]

_BYTES_PER_TOKEN = 4
_WORDS_PER_PIECE = 4
_MAX_SCHEMA_DEPTH = 6
_SIGNATURE = "EqMBCkYICxgCKkBGYWtlU2lnbmF0dXJlT2ZBVGhvdWdodFRoYXRJc0JpbmRpbmdUb0l0c1RleHQ" * 2
_ENCRYPTED = "gAAAAABpZmFrZS1yZWFzb25pbmctdGhhdC1vbmx5LXRoZS1wcm92aWRlci1jYW4tcmVhZA" * 3


class Call(Struct, frozen=True):
    """One tool call; `arguments` is JSON unless `free_form`."""

    name: str
    arguments: str
    free_form: bool = False


class Usage(Struct, frozen=True):
    """Tokens. `uncached` + `cache_read` + `cache_write` is the whole input."""

    uncached: int
    cache_read: int
    cache_write: int
    output: int
    reasoning: int

    @property
    def input(self) -> int:
        return self.uncached + self.cache_read + self.cache_write


class Answer(Struct, frozen=True):
    """`thinking` is None when there is none, empty when only its signature is sent."""

    text: tuple[str, ...]
    thinking: tuple[str, ...] | None
    calls: tuple[Call, ...]
    usage: Usage
    stop: Stop
    signature: str = _SIGNATURE
    encrypted: str = _ENCRYPTED


Writer = Callable[[Asked, Behaviour, Answer], list[Event]]


def compose(asked: Asked, wanted: Behaviour) -> Answer:
    """The answer to `asked`, as `wanted` bends it."""
    calls = _calls(asked, wanted)
    if wanted.truncated and calls:
        last = calls[-1]
        calls = (*calls[:-1], Call(last.name, last.arguments[: len(last.arguments) * 2 // 3], last.free_form))
    said = wanted.text if wanted.text is not None else _reply(asked, calls)
    if wanted.size:
        said = _repeat(said, wanted.size)
    thinks = asked.thinking if wanted.thinking is None else wanted.thinking
    thought = f"The user wrote: {asked.prompt[:200]!r}. I will answer it." if thinks else ""
    return Answer(
        text=words(said),
        thinking=(words(thought) if asked.thinking_shown else ()) if thinks else None,
        calls=calls,
        usage=_usage(asked, wanted, said, thought, calls),
        stop="length" if wanted.truncated else "tools" if calls else "end",
    )


def shaped(asked: Asked, wanted: Behaviour, answer: Answer, write: Writer) -> Answer:
    """`answer` with its text and thinking cut or filled so that `write` gives `events` events of about `event-size`."""
    if not wanted.events:
        return answer
    bare = msgspec.structs.replace(answer, text=("",), thinking=None if answer.thinking is None else ("",))
    fixed = len(write(asked, wanted, bare)) - (1 if bare.thinking is None else 2)
    deltas = max(wanted.events - fixed, 1)
    thoughts = 0 if answer.thinking is None else max(deltas // 4, 1)
    texts = max(deltas - thoughts, 1)
    if wanted.event_size:
        length = max(wanted.event_size - _delta_size(asked, wanted, bare, write), 1)
    else:
        length = max(len("".join(answer.text)) // texts, 1)
    return msgspec.structs.replace(
        answer,
        text=_even("".join(answer.text), texts, length),
        thinking=_even("".join(answer.thinking or ()), thoughts, length) if answer.thinking is not None else None,
    )


def words(text: str) -> tuple[str, ...]:
    """`text` in pieces of a few words, as tokens arrive."""
    if not text:
        return ()
    parts = text.split(" ")
    groups = (" ".join(parts[at : at + _WORDS_PER_PIECE]) for at in range(0, len(parts), _WORDS_PER_PIECE))
    return tuple(group if at == 0 else f" {group}" for at, group in enumerate(groups))


def argument_pieces(call: Call) -> Iterator[str]:
    """A call's arguments in a few pieces; the real ones cut anywhere too."""
    step = max(len(call.arguments) // 3, 1)
    return (call.arguments[at : at + step] for at in range(0, len(call.arguments), step))


def _repeat(text: str, size: int) -> str:
    """`text` repeated and cut to `size` characters."""
    unit = f"{text or 'fake'} "
    return (unit * (size // len(unit) + 1))[:size]


def _even(text: str, count: int, length: int) -> tuple[str, ...]:
    whole = _repeat(text, count * length)
    return tuple(whole[at : at + length] for at in range(0, count * length, length))


def _delta_size(asked: Asked, wanted: Behaviour, bare: Answer, write: Writer) -> int:
    """Bytes of a text event without its text: what one more empty piece adds to the stream."""
    more = msgspec.structs.replace(bare, text=("", ""))
    return _size(write(asked, wanted, more)) - _size(write(asked, wanted, bare))


def _size(events: list[Event]) -> int:
    return sum(event.size for event in events)


def _reply(asked: Asked, calls: tuple[Call, ...]) -> str:
    if not calls:
        return asked.prompt or "Hello."
    # OpenAI's models call without a word; Claude announces what it does.
    return f"I will use {calls[0].name}." if asked.wire == "anthropic" else ""


def _calls(asked: Asked, wanted: Behaviour) -> tuple[Call, ...]:
    count = (1 if asked.tools else 0) if wanted.tools is None else wanted.tools
    if not asked.parallel:
        count = min(count, 1)
    if not asked.tools:
        return ()
    return tuple(_call(asked.tools[at % len(asked.tools)], asked.prompt) for at in range(count))


def _call(tool: Tool, prompt: str) -> Call:
    if tool.schema is None:
        return Call(tool.name, prompt or "fake", free_form=True)
    return Call(tool.name, msgspec.json.encode(example(tool.schema)).decode())


def example(schema: Any, name: str = "value", depth: int = 0) -> Any:  # Any: JSON in, JSON out
    """A value that fits a JSON schema: its default, first example or first enum member, else something of its type."""
    if not isinstance(schema, dict) or depth > _MAX_SCHEMA_DEPTH:
        return name
    for given in ("const", "default"):
        if given in schema:
            return schema[given]
    for listed in ("examples", "enum"):
        if isinstance(schema.get(listed), list) and schema[listed]:
            return schema[listed][0]
    for union in ("anyOf", "oneOf", "allOf"):
        if isinstance(schema.get(union), list) and schema[union]:
            return example(schema[union][0], name, depth + 1)
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = next((one for one in kind if one != "null"), "null")
    if kind == "string":
        return name
    if kind in ("integer", "number"):
        return schema.get("minimum", 1)
    if kind == "boolean":
        return True
    if kind == "null":
        return None
    if kind == "array":
        return [example(schema.get("items"), name, depth + 1)]
    properties = schema.get("properties")
    if not isinstance(properties, dict):
        return {}
    required = schema.get("required") or list(properties)
    return {key: example(properties[key], key, depth + 1) for key in properties if key in required}


def _usage(asked: Asked, wanted: Behaviour, said: str, thought: str, calls: tuple[Call, ...]) -> Usage:
    """Deterministic from the request's size. A cached prompt: half was read, and where writes are billed a quarter is new."""
    total = asked.input_tokens
    read = total // 2 if asked.cached else 0
    write = total // 4 if asked.cached and asked.wire == "anthropic" else 0
    if asked.wire != "anthropic":
        read -= read % 128  # OpenAI counts in blocks of 128
    uncached = total - read - write
    reasoning = len(thought) // _BYTES_PER_TOKEN
    output = max(1, (len(said) + sum(len(call.arguments) for call in calls)) // _BYTES_PER_TOKEN) + reasoning
    return Usage(
        uncached=_either(wanted.input_tokens, uncached),
        cache_read=_either(wanted.cache_read, read),
        cache_write=_either(wanted.cache_write, write),
        output=_either(wanted.output_tokens, output),
        reasoning=_either(wanted.reasoning_tokens, reasoning),
    )


def _either(wanted: int | None, computed: int) -> int:
    return computed if wanted is None else wanted
