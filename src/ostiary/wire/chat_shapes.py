"""What Chat Completions send, as far as they are read. Everything may be missing.

Apart from the code that reads them: compiled modules keep no types in annotations, by which msgspec decodes.
"""

from typing import Any

import msgspec
from msgspec import Raw, Struct

from .lenient import NO_RAW
from .request_shapes import PartList, Request


class ChatRequest(Request):
    messages: list[Raw] = msgspec.field(default_factory=list)
    stream_options: Raw = NO_RAW


class StreamOptions(Struct):
    include_usage: Any = None  # JSON of any shape: only `true` counts


class Function(Struct, gc=False):
    name: str | None = None
    arguments: str | dict[str, Any] | None = None
    """An object with servers that do not follow the format."""


class Custom(Struct, gc=False):
    name: str | None = None
    input: str | None = None


class Tool(Struct, gc=False):
    index: int | None = None
    id: str | None = None
    function: Function | None = None
    custom: Custom | None = None


class Message(Struct, gc=False):
    content: PartList = None
    """Parts with Mistral, as soon as a model thinks."""
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[Tool] | None = None
    function_call: Function | None = None


class Choice(Struct, gc=False):
    index: int | None = None
    delta: Message | None = None
    message: Message | None = None
    finish_reason: str | None = None
    usage: Raw = NO_RAW
    """Where Moonshot puts it in a stream."""


class Groq(Struct, gc=False):
    usage: Raw = NO_RAW


class Error(Struct, gc=False):
    type: str | None = None
    message: str | None = None
    code: str | int | None = None


class Chunk(Struct, gc=False):
    """A chunk, or a whole completion."""

    id: str | None = None
    model: str | None = None
    service_tier: str | None = None
    choices: list[Choice] | None = None
    usage: Raw = NO_RAW
    x_groq: Groq | None = None
    """Where Groq puts the usage of a stream whose client did not ask for it."""
    error: Error | str | None = None
    message: str | None = None
    type: str | None = None
    code: str | int | None = None
    """With older vLLM an error is such an object itself: it has a message and a type, and no choices."""
