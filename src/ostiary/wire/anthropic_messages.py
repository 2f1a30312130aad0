"""Anthropic Messages: https://platform.claude.com/docs/en/api/messages and .../build-with-claude/streaming.

Rules
- A stream is `message_start`, per content block `content_block_start`, `…_delta`s and `content_block_stop`, then
  `message_delta`, `message_stop`; `ping` anywhere, `error` at any point instead of the rest. Unknown events mean nothing.
- Usage is cumulative and partial in each report (`usage.MessagesUsage`).
- Text blocks carry no fact: they are found by their `content_block_start` and passed over. Blocks are told apart by index,
  so blocks that overlap are read right.
- Tool calls are `tool_use`, `server_tool_use` and `mcp_tool_use` blocks. Redacted and empty thinking is no thought.
"""

from itertools import pairwise
from typing import Final

import msgspec
from msgspec import Raw, Struct

from .events import EventDecoder, event_end, event_start, positions
from .facts import MAX_FACT_BYTES, Content, ProviderError, RequestFacts, ResponseFacts, Thought, ToolCall
from .lenient import NO_RAW, LenientDecoder, is_json, text_of
from .request import Message, Part, Request, backwards, decode_request, joined_text, last_text
from .usage import MessagesUsage

_TOOLS: Final = frozenset(("tool_use", "server_tool_use", "mcp_tool_use"))
_WHOLE_ENDINGS: Final = frozenset(("", "tool_use", "end_turn", "stop_sequence", "pause_turn"))
"""Stop reasons after which the last block is whole. Others (`max_tokens`, `refusal` …) can cut it."""

_SMALL: Final = 2048
"""Blocks below this many bytes are decoded without looking for what to pass over."""


# --- requests


class _Metadata(Struct):
    user_id: str | None = None


class _MessagesRequest(Request):
    messages: list[Raw] = msgspec.field(default_factory=list)
    metadata: _Metadata | None = None


_request: Final = LenientDecoder(_MessagesRequest)


def read_request(body: bytes, content: Content = "prompts") -> RequestFacts:
    """Raises `RequestError`."""
    request = decode_request(_request, body)
    last = next(backwards(request.messages), None)
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


class _Block(Struct, gc=False):
    type: str | None = None
    id: str | None = None
    name: str | None = None
    input: Raw = NO_RAW
    thinking: str | None = None
    text: str | None = None


class _Error(Struct):
    type: str | None = None
    message: str | None = None


class _Answer(Struct):
    type: str | None = None
    id: str | None = None
    model: str | None = None
    stop_reason: str | None = None
    usage: Raw = NO_RAW
    content: list[_Block] | None = None
    error: _Error | None = None


class _Delta(Struct, gc=False):
    partial_json: str | None = None
    thinking: str | None = None
    text: str | None = None
    stop_reason: str | None = None


class _Event(Struct, gc=False):
    type: str | None = None
    index: int | None = None
    delta: _Delta | None = None
    content_block: _Block | None = None
    message: _Answer | None = None
    usage: Raw = NO_RAW
    error: _Error | None = None


_answer: Final = LenientDecoder(_Answer)
_events: Final = EventDecoder(_Event, b"\n\nevent: content_block_delta\ndata: ")


def _provider_error(error: _Error) -> ProviderError:
    return ProviderError(error.type or "", error.message or "")


def read_body(body: bytes, content: Content = "prompts") -> ResponseFacts:
    """Of a blocking answer, or of an error's body."""
    answer = _answer.decode(body)
    if answer is None:
        return ResponseFacts(unparsed=True, problem="the answer is not a JSON object")
    usage = MessagesUsage()
    usage.report(answer.usage)
    blocks = answer.content or []
    calls: list[ToolCall] = []
    thoughts: list[Thought] = []
    if content != "none":
        cut = (answer.stop_reason or "") not in _WHOLE_ENDINGS
        for block in blocks:
            if block.type in _TOOLS:
                # The input of a blocking answer is always whole JSON: that it was cut shows only in the stop reason.
                truncated = cut and block is blocks[-1]
                calls.append(ToolCall(block.name or "", text_of(block.input), block.id or "", truncated=truncated))
            elif block.type == "thinking" and block.thinking:
                thoughts.append(Thought(block.thinking))
    return ResponseFacts(
        response_id=answer.id or "",
        model=answer.model or "",
        usage=usage.usage(),
        tool_calls=tuple(calls),
        thoughts=tuple(thoughts),
        finish_reason=answer.stop_reason or "",
        error=_provider_error(answer.error) if answer.error is not None else None,
        output_text="".join(block.text or "" for block in blocks) if content == "full" else "",
        complete=answer.error is None,
    )


class _OpenBlock:
    """A content block as far as it has come."""

    __slots__ = ("ended", "id", "initial", "kind", "name", "over_budget", "parts")

    def __init__(self, start: _Block) -> None:
        self.kind = start.type or ""
        self.id = start.id or ""
        self.name = start.name or ""
        self.initial = text_of(start.input)
        first = start.thinking or start.text
        self.parts: list[str] = [first] if first else []
        self.ended = False
        self.over_budget = False

    def tool_call(self, may_be_cut: bool) -> ToolCall:
        sent = "".join(self.parts)
        whole = self.ended and not may_be_cut
        truncated = self.over_budget or not (whole or is_json(sent))
        # Without a delta the input stands in `content_block_start`: `{}`, or all of it with some servers.
        return ToolCall(self.name, sent or self.initial, self.id, truncated=truncated)


class StreamReader:
    """Facts of a stream. `observer.StreamReader`."""

    noise: tuple[bytes, ...] = (b"_tool_result",)

    def __init__(self, content: Content = "prompts") -> None:
        self._content = content
        self._usage = MessagesUsage()
        self._blocks: list[_OpenBlock] = []
        self._by_index: dict[int | None, _OpenBlock] = {}
        self._budget = MAX_FACT_BYTES
        self._id = ""
        self._model = ""
        self._stop_reason = ""
        self._error: ProviderError | None = None
        self._complete = False
        self._problem = ""

    def read(self, block: bytes) -> None:
        """Take whole events, with LF line ends."""
        if len(block) < _SMALL or self._content == "full":
            self._apply(block)
            return
        starts = [event_start(block, at) for at in positions(block, b'"content_block_start"')]
        for begin, end in pairwise((0, *starts, len(block))):
            if begin < end:
                self._apply(block[self._skip(block, begin, end, opens_block=begin in starts) : end])

    def _skip(self, block: bytes, begin: int, end: int, *, opens_block: bool) -> int:
        """From where on the events between two `content_block_start`s can hold facts. Takes the opening one of a text."""
        if opens_block and self._content != "none":
            opening = event_end(block, begin)
            if block.find(b'"text"', begin, opening) < 0:
                return begin
            self._apply(block[begin:opening])
            begin = opening
        if self._content == "none" or all(held.ended or held.kind == "text" for held in self._blocks):
            # No block is open whose deltas are facts: only what follows the last delta can be one.
            last = block.rfind(b'"content_block_delta"', begin, end)
            return begin if last < 0 else event_end(block, last)
        return begin

    def _apply(self, block: bytes) -> None:
        blocks = self._by_index
        full = self._content == "full"
        for event in _events.decode(block):
            if event is None:
                self._problem = "an event is not a JSON object"
                continue
            delta = event.delta
            if delta is not None and (text := delta.partial_json or delta.thinking or (delta.text if full else None)):
                # Some servers send text under the index of a tool call that is still open: it is no part of the input.
                if (found := blocks.get(event.index)) is not None and (delta.text is None or found.kind == "text"):
                    self._budget -= len(text)
                    if self._budget >= 0:
                        found.parts.append(text)
                    else:
                        found.over_budget = True
                        self._problem = "more text than is kept of one answer"
            elif event.type == "content_block_start" and event.content_block is not None:
                opened = blocks[event.index] = _OpenBlock(event.content_block)
                self._blocks.append(opened)
            elif event.type == "content_block_stop":
                if event.index in blocks:
                    blocks[event.index].ended = True
            else:
                self._apply_message_event(event)

    def _apply_message_event(self, event: _Event) -> None:
        if event.type == "message_start" and event.message is not None:
            self._id = event.message.id or ""
            self._model = event.message.model or ""
            self._stop_reason = event.message.stop_reason or ""
            self._usage.report(event.message.usage)
        elif event.type == "message_delta":
            self._usage.report(event.usage)
            if event.delta is not None and event.delta.stop_reason:
                self._stop_reason = event.delta.stop_reason
        elif event.type == "message_stop":
            self._complete = True
        elif event.error is not None:
            self._error = _provider_error(event.error)

    def facts(self) -> ResponseFacts:
        """What was read so far."""
        calls: list[ToolCall] = []
        thoughts: list[Thought] = []
        if self._content != "none":
            cut = self._stop_reason not in _WHOLE_ENDINGS
            for block in self._blocks:
                if block.kind in _TOOLS:
                    calls.append(block.tool_call(may_be_cut=cut and block is self._blocks[-1]))
                elif block.kind == "thinking" and block.parts:
                    thoughts.append(Thought("".join(block.parts)))
        text = "".join("".join(block.parts) for block in self._blocks if block.kind == "text")
        return ResponseFacts(
            response_id=self._id,
            model=self._model,
            usage=self._usage.usage(),
            tool_calls=tuple(calls),
            thoughts=tuple(thoughts),
            finish_reason=self._stop_reason,
            error=self._error,
            output_text=text if self._content == "full" else "",
            unparsed=bool(self._problem),
            problem=self._problem,
            complete=self._complete,
        )
