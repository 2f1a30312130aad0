"""Anthropic Messages: https://platform.claude.com/docs/en/api/messages and .../build-with-claude/streaming.

Rules
- A stream is `message_start`, per content block `content_block_start`, `…_delta`s and `content_block_stop`, then
  `message_delta`, `message_stop`; `ping` anywhere, `error` at any point instead of the rest. Unknown events mean nothing.
- Usage is cumulative and partial in each report (`usage.MessagesUsage`). The last one also tells of a model that took over
  in the middle of a stream: the model at its beginning is then not the one that answered.
- Text blocks carry no fact: they are found by their `content_block_start` and passed over. Blocks are told apart by index,
  so blocks that overlap are read right.
- Tool calls are `tool_use`, `server_tool_use` and `mcp_tool_use` blocks. Redacted and empty thinking is no thought.
"""

from itertools import pairwise
from typing import Final

from msgspec import Raw

from .anthropic_shapes import Answer, Block, Error, Event, MessagesRequest
from .budget import PROBLEM, Budget
from .events import EventDecoder, event_end, event_start, positions, texts_alike
from .facts import Content, ProviderError, RequestFacts, ResponseFacts, Thought, ToolCall, provider_error
from .lenient import LenientDecoder, is_json, text_of
from .request import backwards, decode_object, joined_text, last_text, last_turn
from .request_shapes import Message, Part
from .usage import MessagesUsage

_TOOLS: Final = frozenset(("tool_use", "server_tool_use", "mcp_tool_use"))
_WHOLE_ENDINGS: Final = frozenset(("", "tool_use", "end_turn", "stop_sequence", "pause_turn"))
"""Stop reasons after which the last block is whole. Others (`max_tokens`, `refusal` …) can cut it."""

_SMALL: Final = 2048
"""Blocks below this many bytes are decoded without looking for what to pass over."""


# How deltas that are facts are written by Anthropic itself. Where they are written otherwise, they are read event by event.
_DELTA: Final = b'event: content_block_delta\ndata: {"type":"content_block_delta","index":'
_DELTA_KINDS: Final = (
    b',"delta":{"type":"input_json_delta","partial_json":"',
    b',"delta":{"type":"thinking_delta","thinking":"',
)
_DELTA_END: Final = b'"}}\n\n'
_DIGITS: Final = 8
_RUNS: Final = 16
"""So many runs of deltas are read at once in a block: more than a few say that they are short, and not worth it."""


# --- requests

_request: Final = LenientDecoder(MessagesRequest)


def read_request(body: bytes, content: Content = "prompts") -> RequestFacts:
    """Raises `RequestError`."""
    request = decode_object(_request, body)
    last = last_turn(request.messages)
    prompt = None
    correlating = ""
    if last is not None:
        if content != "none" and last.role == "user":
            prompt = last_text(last.content)
        correlating = next((part.tool_use_id for part in reversed(_results(last)) if part.tool_use_id), "")
    return RequestFacts(
        model=request.model,
        stream=request.stream is True,
        prompt=prompt,
        correlating_tool_call_id=correlating,
        user_id=(request.metadata and request.metadata.user_id) or "",
        tool_results=_new_results(request.messages) if content == "full" else (),
    )


def _results(message: Message) -> list[Part]:
    parts = message.content
    return [part for part in parts if part.type == "tool_result"] if isinstance(parts, list) else []


def _new_results(messages: list[Raw]) -> tuple[str, ...]:
    found: list[str] = []
    for message in backwards(messages):
        if message.role == "assistant":
            break
        texts = [joined_text(part.content, "text") for part in _results(message)]
        found[:0] = [text for text in texts if text]
    return tuple(found)


# --- answers

_answer: Final = LenientDecoder(Answer)
_events: Final = EventDecoder(Event, b"\n\nevent: content_block_delta\ndata: ")


def read_body(body: bytes, content: Content = "prompts") -> ResponseFacts:
    """Of a blocking answer, or of an error's body."""
    answer = _answer.decode(body)
    if answer is None:
        return ResponseFacts(unparsed=True, problem="the answer is not a JSON object")
    seen = _Seen(content)
    seen.message(answer)
    for index, block in enumerate(answer.content or ()):
        seen.open(index, block)
        seen.close(index)
    if answer.error is not None:
        seen.fail(answer.error)
    else:
        seen.complete = True
    return seen.facts()


class _OpenBlock:
    """A content block as far as it has come."""

    __slots__ = ("ended", "id", "initial", "kind", "name", "over_budget", "parts")

    def __init__(self, start: Block) -> None:
        self.kind = start.type or ""
        self.id = start.id or ""
        self.name = start.name or ""
        self.initial = text_of(start.input)
        self.parts: list[str] = []
        self.ended = False
        self.over_budget = False

    def tool_call(self, *, may_be_cut: bool) -> ToolCall:
        sent = "".join(self.parts)
        whole = self.ended and not may_be_cut
        truncated = self.over_budget or not (whole or is_json(sent))
        # Without a delta the input stands where the block begins: `{}` in a stream, or all of it. The input of a blocking
        # answer is always whole JSON: that the limit cut it shows only in the stop reason.
        return ToolCall(self.name, sent or self.initial, self.id, truncated=truncated)


class _Seen:
    """What the events so far said."""

    def __init__(self, content: Content) -> None:
        self._content = content
        self._usage = MessagesUsage()
        self._blocks: list[_OpenBlock] = []
        self._by_index: dict[int | None, _OpenBlock] = {}
        self._budget = Budget()
        self._id = ""
        self._model = ""
        self._stop_reason = ""
        self._error: ProviderError | None = None
        self.open_facts = 0
        """Blocks that have not ended and are no text."""
        self.complete = False
        self.problem = ""

    def events(self, events: list[Event | None]) -> None:
        blocks = self._by_index
        budget = self._budget
        full = self._content == "full"
        for event in events:
            if event is None:
                self.problem = "an event is not a JSON object"
                continue
            delta = event.delta
            if delta is not None and (text := delta.partial_json or delta.thinking or (delta.text if full else None)):
                # Some servers send text under the index of a tool call that is still open: it is no part of the input.
                if (found := blocks.get(event.index)) is not None and (delta.text is None or found.kind == "text"):
                    budget.left -= len(text)  # `_add`, for every delta
                    if budget.left >= 0:
                        found.parts.append(text)
                    else:
                        found.over_budget = True
            elif event.type == "content_block_start" and event.content_block is not None:
                self.open(event.index, event.content_block)
            elif event.type == "content_block_stop":
                self.close(event.index)
            else:
                self._message_event(event)

    def text(self, index: int, text: str) -> None:
        """Of deltas of one block that is no text."""
        found = self._by_index.get(index)
        if found is not None:
            kept = text[: max(0, self._budget.left)]
            self._add(found, kept)
            if len(kept) < len(text):
                self._add(found, text)  # what is over the budget is told as that

    def open(self, index: int | None, start: Block) -> None:
        if self._content == "none":
            return
        block = self._by_index[index] = _OpenBlock(start)
        if block.kind != "text":
            self.open_facts += 1
        if self._budget.entry(len(block.id) + len(block.name) + len(block.initial)):
            self._blocks.append(block)
        if text := start.thinking or (start.text if self._content == "full" else None):
            self._add(block, text)

    def _add(self, block: _OpenBlock, text: str) -> None:
        if self._budget.text(len(text)):
            block.parts.append(text)
        else:
            block.over_budget = True

    def close(self, index: int | None) -> None:
        block = self._by_index.pop(index, None)
        if block is not None:
            block.ended = True
            if block.kind != "text":
                self.open_facts -= 1

    def _message_event(self, event: Event) -> None:
        if event.type == "message_start" and event.message is not None:
            self.message(event.message)
        elif event.type == "message_delta":
            self._usage.report(event.usage)
            if event.delta is not None and event.delta.stop_reason:
                self._stop_reason = event.delta.stop_reason
        elif event.type == "message_stop":
            self.complete = True
        elif event.error is not None:
            self.fail(event.error)

    def message(self, message: Answer) -> None:
        self._id = message.id or ""
        self._model = message.model or ""
        self._stop_reason = message.stop_reason or ""
        self._usage.report(message.usage)

    def fail(self, error: Error) -> None:
        self._error = provider_error(error.type, error.message)

    def facts(self) -> ResponseFacts:
        blocks = self._blocks
        cut = self._stop_reason not in _WHOLE_ENDINGS
        calls = [b.tool_call(may_be_cut=cut and b is blocks[-1]) for b in blocks if b.kind in _TOOLS]
        thoughts = [Thought("".join(b.parts)) for b in blocks if b.kind == "thinking" and b.parts]
        problem = self.problem or (PROBLEM if self._budget.exceeded else "")
        usage = self._usage.usage()
        return ResponseFacts(
            response_id=self._id,
            model=self._usage.served_by or self._model,
            usage=usage,
            tool_calls=tuple(calls),
            thoughts=tuple(thoughts),
            finish_reason=self._stop_reason,
            error=self._error,
            output_text="".join(part for b in blocks if b.kind == "text" for part in b.parts),
            unparsed=bool(problem),
            problem=problem,
            complete=self.complete,
        )


class StreamReader:
    """Facts of a stream. `observer.StreamReader`."""

    noise: tuple[bytes, ...] = ()

    def __init__(self, content: Content = "prompts") -> None:
        self._content = content
        self._seen = _Seen(content)
        self.facts = self._seen.facts

    def read(self, block: bytes) -> None:
        """Take whole events, with LF line ends."""
        if len(block) < _SMALL or self._content == "full":
            self._apply(block)
            return
        starts = [event_start(block, at) for at in positions(block, b'"content_block_start"')]
        self._run(block, 0, starts[0] if starts else len(block))
        for begin, end in pairwise((*starts, len(block))):
            if self._content != "none":
                opening = event_end(block, begin)
                if block.find(b'"text"', begin, opening) < 0:
                    self._apply(block[begin:end])
                    continue
                self._apply(block[begin:opening])
                begin = opening
            self._run(block, begin, end)

    def _run(self, block: bytes, begin: int, end: int) -> None:
        """Take what can be a fact of the events up to the next `content_block_start`."""
        if self._content == "none" or not self._seen.open_facts:
            # No block is open whose deltas are facts: only what follows the last delta can be one.
            last = block.rfind(b'"content_block_delta"', begin, end)
            begin = begin if last < 0 else event_end(block, last)
        if begin < end:
            self._apply(block[begin:end])

    def _apply(self, block: bytes) -> None:
        begin = 0
        for _ in range(_RUNS):
            at = block.find(_DELTA, begin) if len(block) - begin > _SMALL else -1
            if at < 0 or not (at == begin or block.startswith(b"\n\n", at - 2)):
                break
            if at > begin:
                self._seen.events(_events.decode(block[begin:at]))
            begin = at
            end = self._apply_alike(block, at)
            if not end:
                break
            begin = end
        if begin < len(block):
            self._seen.events(_events.decode(block[begin:]))

    def _apply_alike(self, block: bytes, begin: int) -> int:
        """Take the deltas from `begin` on that differ in their text alone; where they end, or 0."""
        digits = begin + len(_DELTA)
        comma = block.find(b",", digits, digits + _DIGITS)
        for kind in _DELTA_KINDS:
            if block.startswith(kind, comma):
                found = texts_alike(block, begin, comma + len(kind), _DELTA_END)
                index = block[digits:comma]
                if found is None or not index.isdigit():
                    return 0
                text, end = found
                self._seen.text(int(index), text)
                return end
        return 0
