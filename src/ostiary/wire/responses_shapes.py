"""What the Responses API sends, as far as it is read. Everything may be missing.

Apart from the code that reads them: compiled modules keep no types in annotations, by which msgspec decodes.
"""

from typing import Any

from msgspec import Raw, Struct

from .lenient import NO_RAW
from .request_shapes import PartList, Request


class ResponsesRequest(Request):
    input: str | list[Raw] | None = None
    background: Any = False  # JSON of any shape: only `true` counts


class Text(Struct, gc=False):
    type: str | None = None
    text: str | None = None


class Item(Struct, gc=False):
    type: str | None = None
    id: str | None = None
    call_id: str | None = None
    name: str | None = None
    status: str | None = None
    phase: str | None = None
    arguments: Raw = NO_RAW
    input: Raw = NO_RAW
    code: Raw = NO_RAW
    action: Raw = NO_RAW
    actions: Raw = NO_RAW
    operation: Raw = NO_RAW
    queries: Raw = NO_RAW
    summary: list[Text] | None = None
    content: PartList = None

    @property
    def is_call(self) -> bool:
        return (self.type or "").endswith("_call")


class Error(Struct, gc=False):
    type: str | None = None
    code: str | int | None = None
    message: str | None = None


class Incomplete(Struct, gc=False):
    reason: str | None = None


class Response(Struct, gc=False):
    """A `response` object, or the body of an error."""

    id: str | None = None
    model: str | None = None
    status: str | None = None
    service_tier: str | None = None
    usage: Raw = NO_RAW
    output: Raw = NO_RAW
    error: Error | str | None = None
    incomplete_details: Incomplete | None = None


class Event(Struct, gc=False):
    type: str | None = None
    response: Response | None = None
    item: Item | None = None
    output_index: int | None = None
    item_id: str | None = None
    summary_index: int | None = None
    delta: str | None = None
    arguments: str | None = None
    input: str | None = None
    code: str | int | None = None
    message: str | None = None
    error: Error | str | None = None
