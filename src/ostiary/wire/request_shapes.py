"""What requests of every format have, as far as it is read. Everything may be missing.

Apart from the code that reads them: compiled modules keep no types in annotations, by which msgspec decodes.
"""

from typing import Any

from msgspec import Raw, Struct

from .lenient import NO_RAW


class Part(Struct):
    """An element of a message's content, or of a tool result's."""

    type: str | None = None
    text: str | None = None
    tool_use_id: str | None = None
    content: Raw = NO_RAW
    thinking: Raw = NO_RAW
    """What a model thought before it said the rest: parts with Mistral, a text with Anthropic."""


PartList = str | list[Part] | None


class Message(Struct):
    """A message of any format, or an input item of a Responses request."""

    role: str | None = None
    type: str | None = None
    content: PartList = None
    tool_call_id: str | None = None
    call_id: str | None = None
    output: Raw = NO_RAW


class Contents(Struct):
    content: PartList = None


class Request(Struct):
    """What every format has."""

    model: str = ""
    stream: Any = False  # JSON of any shape: only `true` counts
