"""OpenAI Responses: https://platform.openai.com/docs/api-reference/responses and .../responses-streaming.

Rules
- Output items come as `response.output_item.added`, deltas, `response.output_item.done`; the item in `done` is whole, so deltas
  are read only of items that are still open when a block of events ends. One terminal event carries status, usage and all
  output again (an empty `output` with some servers): items that had no `done` are taken from there.
- Items are told by `output_index`; their ids change from event to event with some servers.
- A tool call is every item whose type ends in `_call`. Hosted ones have no name of their own: the type stands for it.
- Thoughts are reasoning summaries, reasoning text where it is shown, and assistant messages of phase `commentary`.
"""

from typing import Final

import msgspec
from msgspec import Raw

from .budget import PROBLEM, Budget
from .events import EventDecoder, event_end, event_start, event_starts, last_events, positions
from .facts import Content, ProviderError, RequestFacts, ResponseFacts, Thought, ToolCall, Usage, provider_error
from .lenient import NO_RAW, LenientDecoder, is_json, text_of
from .request import backwards, decode_object, joined_text, last_turn, texts
from .request_shapes import Message
from .responses_shapes import Error, Event, Item, Response, ResponsesRequest
from .usage import responses_usage

_TERMINAL: Final = frozenset(
    ("response.completed", "response.incomplete", "response.failed", "response.cancelled", "response.done")
)
_ITEM_TOKEN: Final = b'"response.output_item.'
_TAIL_EVENTS: Final = 3
"""So many events at the end of a block are always decoded: the terminal one, after it `[DONE]` with some servers."""


# --- requests

_request: Final = LenientDecoder(ResponsesRequest)


def read_request(body: bytes, content: Content = "prompts") -> RequestFacts:
    """Raises `RequestError`."""
    request = decode_object(_request, body)
    sent = request.input
    prompt = None
    correlating = ""
    if isinstance(sent, str):
        prompt = sent or None
    elif sent and (last := last_turn(sent)) is not None:
        if last.role == "user":
            prompt = "\n".join(texts(last.content, "input_text")) or None
        elif _is_result(last):
            correlating = last.call_id or ""
    return RequestFacts(
        model=request.model,
        stream=request.stream is True,
        prompt=prompt if content != "none" else None,
        correlating_tool_call_id=correlating,
        background=request.background is True,
        tool_results=_new_results(sent) if content == "full" and isinstance(sent, list) else (),
    )


def _is_result(item: Message) -> bool:
    return (item.type or "").endswith("_call_output")


def _new_results(items: list[Raw]) -> tuple[str, ...]:
    found: list[str] = []
    for item in backwards(items):
        if _is_result(item):
            if text := joined_text(item.output, "input_text", "output_text", "text"):
                found.append(text)
        elif item.role is None or item.role == "assistant":
            break
    return tuple(reversed(found))


# --- answers

_response: Final = LenientDecoder(Response)
_item: Final = LenientDecoder(Item)
_events: Final = EventDecoder(Event, b"\n\nevent: response.function_call_arguments.delta\ndata: ")

_INPUTS: Final = ("arguments", "input", "code", "action", "actions", "operation", "queries")
"""Where a call's input stands, by kind of call."""


def read_body(body: bytes, content: Content = "prompts") -> ResponseFacts:
    """Of a blocking answer, or of an error's body."""
    response = _response.decode(body)
    if response is None:
        return ResponseFacts(unparsed=True, problem="the answer is not a JSON object")
    seen = _Seen(content)
    seen.response(response, terminal=True)
    return seen.facts(complete=response.id is not None)


class _OpenItem:
    """An output item as far as it has come."""

    __slots__ = ("ended", "item", "over_budget", "parts", "summaries", "whole_input")

    def __init__(self, item: Item) -> None:
        self.item = item
        self.ended = False
        self.parts: list[str] = []
        """Deltas of a call's input, of reasoning text, or of a message."""
        self.summaries: dict[int, list[str]] = {}
        self.whole_input = ""
        self.over_budget = False

    def close(self, item: Item) -> None:
        self.item = item
        self.ended = True
        self.parts = []
        self.summaries = {}

    def tool_call(self, *, may_be_cut: bool) -> ToolCall:
        item = self.item
        sent = next((text for name in _INPUTS if (text := _input_text(getattr(item, name)))), "")
        if not self.ended:
            sent = self.whole_input or "".join(self.parts) or sent
        cut = item.status == "incomplete"
        if may_be_cut or not (self.ended or self.whole_input):
            # Free text does not show its end; JSON does.
            cut = cut or item.type == "custom_tool_call" or not is_json(sent)
        name = item.name or item.type or ""
        return ToolCall(name, sent, item.call_id or "", item.id or "", truncated=cut or self.over_budget)

    def thoughts(self) -> list[Thought]:
        item = self.item
        if item.type == "reasoning":
            shown = [Thought(part.text, "reasoning_summary") for part in item.summary or () if part.text]
            shown += [Thought("".join(self.summaries[i]), "reasoning_summary") for i in sorted(self.summaries)]
            shown += [Thought(text, "thinking") for text in texts(item.content, "reasoning_text", "text")]
            if self.parts:
                shown.append(Thought("".join(self.parts), "thinking"))
            return shown
        if item.type == "message" and item.phase == "commentary":
            return [Thought(text, "commentary") for text in self.texts()]
        return []

    def texts(self) -> list[str]:
        if self.item.type != "message":
            return []
        return ["".join(self.parts)] if self.parts else texts(self.item.content, "output_text")


def _input_text(raw: Raw) -> str:
    if not raw or raw == _NULL:
        return ""
    text = text_of(raw)
    if text.startswith('"'):
        try:
            return msgspec.json.decode(raw, type=str)
        except ValueError:
            pass
    return text


_NULL: Final = Raw(b"null")


class _Seen:
    """What the events so far said."""

    def __init__(self, content: Content) -> None:
        self._content = content
        self.items: dict[int | str, _OpenItem] = {}
        self._budget = Budget()
        self._usage = NO_RAW
        self.model = ""
        self._service_tier = ""
        self._finish_reason = ""
        self._error: ProviderError | None = None
        self.id = ""
        self.problem = ""
        self.ended = False

    def event(self, event: Event) -> None:
        """Anything but a delta."""
        kind = event.type or ""
        if event.item is not None:
            if self._content != "none":
                self._take_item(event.output_index, event.item, ended=kind.endswith(".done"))
        elif event.response is not None:
            self.response(event.response, terminal=kind in _TERMINAL)
        elif kind == "error" or event.error is not None:
            self._take_error(event.error or Error(None, event.code, event.message))

    def response(self, response: Response, *, terminal: bool) -> None:
        if terminal or not (self.id and self.model):
            self.id = response.id or self.id
            self.model = response.model or self.model
        if response.error is not None:
            self._take_error(response.error)
        if not terminal:
            return
        self.ended = True
        self._service_tier = response.service_tier or ""
        if response.usage:
            # A copy of its own: a view would keep the whole block alive.
            self._usage = response.usage.copy()
        reason = response.incomplete_details.reason if response.incomplete_details is not None else None
        self._finish_reason = reason or response.status or ""
        if self._content != "none" and response.output:
            self._take_output(response.output)

    def _take_output(self, output: Raw) -> None:
        try:
            items = msgspec.json.decode(output, type=list[Raw])
        except ValueError:
            return
        for index, raw in enumerate(items):
            known = self.items.get(index)
            if (known is None or not known.ended) and (item := _item.decode(bytes(raw))) is not None:
                self._take_item(index, item, ended=True)

    def _take_item(self, index: int | None, item: Item, *, ended: bool) -> None:
        key = index if index is not None else item.id or len(self.items)
        held = self.items.get(key)
        if held is None:
            if not self._budget.entry(len(item.id or "") + len(item.call_id or "") + len(item.name or "")):
                return
            held = self.items[key] = _OpenItem(item)
        if ended:
            held.close(self._within_budget(held, item))

    def _within_budget(self, held: _OpenItem, item: Item) -> Item:
        size = sum(len(memoryview(getattr(item, name))) for name in _INPUTS)
        size += sum(len(part.text or "") for part in item.summary or ())
        size += sum(map(len, texts(item.content, "output_text", "reasoning_text", "text")))
        if self._budget.text(size):
            return item
        held.over_budget = True
        return Item(item.type, item.id, item.call_id, item.name, item.status)

    def _take_error(self, error: Error | str) -> None:
        if isinstance(error, str):
            self._error = provider_error(None, error)
        else:
            code = None if error.code is None else str(error.code)
            self._error = provider_error(error.type or code, error.message, code)

    def open_items(self) -> list[int | str]:
        """Keys of the items whose deltas are facts."""
        return [key for key, held in self.items.items() if not held.ended and self._wants_deltas(held.item)]

    def _wants_deltas(self, item: Item) -> bool:
        if item.type == "message":
            return self._content == "full" or item.phase == "commentary"
        return item.is_call or item.type == "reasoning"

    def delta(self, event: Event) -> None:
        """Of an item that may still be open."""
        key = event.output_index if event.output_index is not None else event.item_id or ""
        held = self.items.get(key)
        if held is None or held.ended or not self._wants_deltas(held.item):
            return
        kind = event.type or ""
        if event.delta and kind.endswith(".delta"):
            if not self._budget.text(len(event.delta)):
                held.over_budget = True
            elif kind == "response.reasoning_summary_text.delta":
                held.summaries.setdefault(event.summary_index or 0, []).append(event.delta)
            else:
                held.parts.append(event.delta)
        elif kind.endswith(".done") and held.item.is_call:
            code = event.code if isinstance(event.code, str) else None
            held.whole_input = event.arguments or event.input or code or held.whole_input

    def facts(self, *, complete: bool) -> ResponseFacts:
        items = [self.items[key] for key in sorted(self.items, key=lambda key: (isinstance(key, str), key))]
        limited = self.ended and self._finish_reason not in ("completed", "")
        usage: Usage | None = responses_usage(self._usage, self._service_tier) if self._usage else None
        problem = self.problem or (PROBLEM if self._budget.exceeded else "")
        return ResponseFacts(
            response_id=self.id,
            model=self.model,
            usage=usage,
            tool_calls=tuple(
                held.tool_call(may_be_cut=limited and held is items[-1]) for held in items if held.item.is_call
            ),
            thoughts=tuple(thought for held in items for thought in held.thoughts()),
            finish_reason=self._finish_reason,
            error=self._error,
            output_text="\n".join(t for held in items for t in held.texts()) if self._content == "full" else "",
            unparsed=bool(problem),
            problem=problem,
            complete=complete,
        )


class StreamReader:
    """Facts of a stream. `observer.StreamReader`."""

    noise: tuple[bytes, ...] = (
        b"response.image_generation_call.partial_image",
        b"response.output_text.done",
        b"response.content_part.done",
    )

    def __init__(self, content: Content = "prompts") -> None:
        self._content = content
        self._seen = _Seen(content)

    def read(self, block: bytes) -> None:
        """Take whole events, with LF line ends."""
        seen = self._seen
        starts = set(event_starts(block, last_events(block, _TAIL_EVENTS)))
        if self._content != "none":
            starts.update(event_start(block, at) for at in positions(block, _ITEM_TOKEN))
        added: dict[int | str, int] = {}
        for start in sorted(starts):
            known = len(seen.items)
            self._structural(block[start : event_end(block, start)])
            if len(seen.items) > known:
                added[next(reversed(seen.items))] = start
        if not ((seen.id and seen.model) or 0 in starts):
            self._structural(block[: event_end(block, 0)])
        if still_open := [added.get(key, 0) for key in seen.open_items()]:
            for event in _events.decode(block[min(still_open) :]):
                if event is not None:
                    seen.delta(event)

    def _structural(self, block: bytes) -> None:
        for event in _events.decode(block):
            if event is None:
                self._seen.problem = "an event is not a JSON object"
            else:
                self._seen.event(event)

    def facts(self) -> ResponseFacts:
        """What was read so far."""
        return self._seen.facts(complete=self._seen.ended)
