"""What Anthropic's Messages API sends, as far as it is read. Everything may be missing.

Apart from the code that reads them: compiled modules keep no types in annotations, by which msgspec decodes.
"""

import msgspec
from msgspec import Raw, Struct

from .lenient import NO_RAW
from .request_shapes import Request


class Metadata(Struct):
    user_id: str | None = None


class MessagesRequest(Request):
    messages: list[Raw] = msgspec.field(default_factory=list)
    metadata: Metadata | None = None


class Block(Struct, gc=False):
    type: str | None = None
    id: str | None = None
    name: str | None = None
    input: Raw = NO_RAW
    thinking: str | None = None
    text: str | None = None


class Error(Struct):
    type: str | None = None
    message: str | None = None


class Answer(Struct):
    type: str | None = None
    id: str | None = None
    model: str | None = None
    stop_reason: str | None = None
    usage: Raw = NO_RAW
    content: list[Block] | None = None
    error: Error | None = None


class Delta(Struct, gc=False):
    partial_json: str | None = None
    thinking: str | None = None
    text: str | None = None
    stop_reason: str | None = None


class Event(Struct, gc=False):
    type: str | None = None
    index: int | None = None
    delta: Delta | None = None
    content_block: Block | None = None
    message: Answer | None = None
    usage: Raw = NO_RAW
    error: Error | None = None
