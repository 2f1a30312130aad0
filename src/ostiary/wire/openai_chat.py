"""OpenAI Chat Completions, as OpenAI and the many servers that copy it speak it:
https://platform.openai.com/docs/api-reference/chat and .../chat-streaming.

Rules
- A stream is chunks of `choices[].delta`, at the end a chunk with `usage` and no choices if asked for, and `[DONE]`. Some
  servers put usage on every chunk (the last one counts), into the choice that ends, or into an object of their own, add
  `reasoning_content`, think in parts of `content` before they answer, or end with an error that has no choices.
- Text deltas carry no fact. Chunks with tool calls or reasoning are found by their member names and read as one run from the
  first to the last; finish reason, usage and error stand in the last chunks.
- A tool call is told by its index. Servers that send none, or always 0, are told by a new id that comes with a name.
"""

from typing import Final

import msgspec
from msgspec import Raw

from .budget import PROBLEM, Budget
from .chat_shapes import ChatRequest, Chunk, Error, Message, StreamOptions, Tool
from .events import DONE, EventDecoder, event_end, event_start, first_position, last_events, positions
from .facts import Content, ProviderError, RequestFacts, ResponseFacts, Thought, ToolCall, Usage, provider_error
from .include_usage import UsageChunkFilter, splice_include_usage
from .lenient import NO_RAW, LenientDecoder, is_json
from .request import backwards, decode_object, last_text, last_turn, raw_texts, texts
from .usage import chat_usage

__all__ = ["StreamReader", "UsageChunkFilter", "read_body", "read_request", "splice_include_usage"]

_WHOLE_ENDINGS: Final = frozenset(("stop", "tool_calls", "function_call"))
"""Finish reasons after which a tool call is whole. Without any, the stream was cut."""

_SMALL: Final = 2048
"""Blocks below this many bytes are decoded without looking for what to pass over."""
_TAIL_EVENTS: Final = 6
"""So many events at the end of a block are always decoded."""

# In JSON text these can only be member names: a quote within a string is escaped.
_SPANNING_TOKENS: Final = (b'"tool_calls"', b'"reasoning', b'"function_call"')
_THINKING: Final = b'"thinking"'
_THINKS_WITHIN: Final = 4096
"""Who thinks in parts of `content` does so at the beginning: so many bytes are looked at for a sign of it."""
_FINISH_TOKENS: Final = (b'"finish_reason":"', b'"finish_reason": "')
_USAGE_TOKENS: Final = (b'"usage":{', b'"usage": {')


# --- requests

_options: Final = LenientDecoder(StreamOptions)
_request: Final = LenientDecoder(ChatRequest)


def read_request(body: bytes, content: Content = "prompts") -> RequestFacts:
    """Raises `RequestError`."""
    request = decode_object(_request, body)
    last = last_turn(request.messages)
    prompt = None
    correlating = ""
    if last is not None:
        if last.role == "user" and content != "none":
            prompt = last_text(last.content)
        elif last.role == "tool":
            correlating = last.tool_call_id or ""
    options = _options.decode(bytes(request.stream_options)) if request.stream_options else None
    return RequestFacts(
        model=request.model,
        stream=request.stream is True,
        prompt=prompt,
        correlating_tool_call_id=correlating,
        include_usage=options is not None and options.include_usage is True,
        has_stream_options=bool(request.stream_options),
        tool_results=_new_results(request.messages) if content == "full" else (),
    )


def _new_results(messages: list[Raw]) -> tuple[str, ...]:
    found: list[str] = []
    for message in backwards(messages):
        if message.role == "assistant":
            break
        if message.role == "tool" and (text := "\n".join(texts(message.content, "text"))):
            found.append(text)
    return tuple(reversed(found))


# --- answers

_completion: Final = LenientDecoder(Chunk)
_events: Final = EventDecoder(Chunk, b"\n\ndata: ")


def read_body(body: bytes, content: Content = "prompts") -> ResponseFacts:
    """Of a blocking answer, or of an error's body."""
    completion = _completion.decode(body)
    if completion is None:
        return ResponseFacts(unparsed=True, problem="the answer is not a JSON object")
    seen = _Seen(content)
    seen.chunk(completion)
    return seen.facts(complete=seen.error is None)


class _OpenCall:
    """A tool call as far as it has come."""

    __slots__ = ("custom", "id", "name", "over_budget", "parts")

    def __init__(self) -> None:
        self.id = ""
        self.name = ""
        self.custom = False
        self.parts: list[str] = []
        self.over_budget = False

    def tool_call(self, *, may_be_cut: bool, is_last: bool) -> ToolCall:
        sent = "".join(self.parts)
        cut = may_be_cut and (is_last if self.custom else not is_json(sent))
        return ToolCall(self.name, sent, self.id, truncated=cut or self.over_budget)


class _OpenChoice:
    """One of `choices`, as far as it has come."""

    __slots__ = ("by_index", "calls", "finish_reason", "reasoning", "text")

    def __init__(self) -> None:
        self.calls: list[_OpenCall] = []
        self.by_index: dict[int, _OpenCall] = {}
        self.reasoning: list[str] = []
        self.text: list[str] = []
        self.finish_reason = ""

    def call_of(self, index: int | None, call_id: str, name: str) -> _OpenCall:
        """The call that a delta with a name or without an index belongs to, made when it is the first of one."""
        if index is not None:
            found = self.by_index.get(index)
        else:
            found = self.calls[-1] if self.calls and (not name or call_id) else None
        if found is None or (call_id and found.id and call_id != found.id):
            found = _OpenCall()
            self.calls.append(found)
            if index is not None:
                self.by_index[index] = found
        found.id = found.id or call_id
        found.name = found.name or name
        return found

    def tool_calls(self) -> list[ToolCall]:
        cut = self.finish_reason not in _WHOLE_ENDINGS
        return [call.tool_call(may_be_cut=cut, is_last=call is self.calls[-1]) for call in self.calls]


class _Seen:
    """What the chunks so far said."""

    def __init__(self, content: Content) -> None:
        self._content = content
        self._choices: dict[int, _OpenChoice] = {}
        self._budget = Budget()
        self._id = ""
        self._model = ""
        self._service_tier = ""
        self.usage = NO_RAW
        self.error: ProviderError | None = None
        self.problem = ""

    def chunk(self, chunk: Chunk) -> None:
        if not (self._id and self._model):
            self._id = self._id or chunk.id or ""
            self._model = self._model or chunk.model or ""
        if chunk.service_tier:
            self._service_tier = chunk.service_tier
        usage = chunk.usage
        if chunk.x_groq is not None and (not usage or usage == _NULL):
            usage = chunk.x_groq.usage
        if usage and usage != _NULL:
            # A copy of its own: a view would keep the whole block alive.
            self.usage = usage.copy()
        if chunk.error is not None:
            self.error = _provider_error(chunk.error)
        elif chunk.message and chunk.type and chunk.choices is None:
            self.error = provider_error(chunk.type, chunk.message, chunk.code)
        for choice in chunk.choices or ():
            seen = self._choices.get(choice.index or 0)
            if seen is None:
                if not self._budget.entry():
                    break
                seen = self._choices[choice.index or 0] = _OpenChoice()
            if choice.finish_reason:
                seen.finish_reason = choice.finish_reason
                if choice.usage and choice.usage != _NULL:
                    self.usage = choice.usage.copy()
            message = choice.delta or choice.message
            if message is not None and self._content != "none":
                self._message(seen, message)

    def _message(self, seen: _OpenChoice, message: Message) -> None:
        for tool in message.tool_calls or ():
            self._tool(seen, tool)
        if reasoning := message.reasoning_content or message.reasoning:
            self._keep(seen.reasoning, reasoning)
        elif isinstance(message.content, list):
            for part in message.content:
                for thought in raw_texts(part.thinking, "text"):
                    self._keep(seen.reasoning, thought)
        if message.function_call is not None:
            self._tool(seen, Tool(index=0, function=message.function_call))
        if self._content == "full" and (text := "".join(texts(message.content, "text"))):
            self._keep(seen.text, text)

    def _tool(self, seen: _OpenChoice, tool: Tool) -> None:
        function, custom = tool.function, tool.custom
        if function is not None:
            name, sent = function.name, function.arguments
            if isinstance(sent, dict):
                sent = msgspec.json.encode(sent).decode()
        elif custom is not None:
            name, sent = custom.name, custom.input
        else:
            return
        call = seen.by_index.get(tool.index) if tool.index is not None and not name else None
        if call is None:
            known = len(seen.calls)
            call = seen.call_of(tool.index, tool.id or "", name or "")
            call.custom = call.custom or custom is not None
            if len(seen.calls) > known and not self._budget.entry(len(call.id) + len(call.name)):
                seen.calls.pop()
        if sent and not self._keep(call.parts, sent):
            call.over_budget = True

    def _keep(self, parts: list[str], text: str) -> bool:
        budget = self._budget
        budget.left -= len(text)
        if budget.left < 0:
            return False
        parts.append(text)
        return True

    def facts(self, *, complete: bool) -> ResponseFacts:
        calls: list[ToolCall] = []
        thoughts: list[Thought] = []
        written: list[str] = []
        finish_reason = ""
        for index in sorted(self._choices):
            choice = self._choices[index]
            if choice.calls:
                calls += choice.tool_calls()
            if choice.reasoning:
                thoughts.append(Thought("".join(choice.reasoning)))
            if choice.text:
                written.append("".join(choice.text))
            finish_reason = finish_reason or choice.finish_reason
        usage: Usage | None = chat_usage(self.usage, self._service_tier) if self.usage else None
        problem = self.problem or (PROBLEM if self._budget.exceeded else "")
        return ResponseFacts(
            response_id=self._id,
            model=self._model,
            usage=usage,
            tool_calls=tuple(calls),
            thoughts=tuple(thoughts),
            finish_reason=finish_reason,
            error=self.error,
            output_text="\n".join(written),
            unparsed=bool(problem),
            problem=problem,
            complete=complete,
        )


_NULL: Final = Raw(b"null")


def _provider_error(error: Error | str) -> ProviderError:
    if isinstance(error, str):
        return provider_error(None, error)
    return provider_error(error.type, error.message, error.code)


class StreamReader:
    """Facts of a stream. `observer.StreamReader`."""

    noise: tuple[bytes, ...] = ()

    def __init__(self, content: Content = "prompts") -> None:
        self._content = content
        self._seen = _Seen(content)
        self._complete = False
        self._spanning: tuple[bytes, ...] = _SPANNING_TOKENS
        self._begun = False

    def read(self, block: bytes) -> None:
        """Take whole events, with LF line ends."""
        if not self._begun:
            self._begun = True
            if block.find(_THINKING, 0, _THINKS_WITHIN) >= 0:
                self._spanning += (_THINKING,)
        tail = last_events(block, _TAIL_EVENTS)
        done = _done_at(block, tail)
        if done >= 0:
            self._complete = True
            block = block[:done] + block[event_end(block, done) :]
        if len(block) < _SMALL or self._content == "full":
            self._apply(block)
            return
        begin = 0
        for first, last in self._runs(block, tail):
            if last > begin:
                self._apply(block[max(first, begin) : last])
                begin = last
        self._apply(block[max(tail, begin) :])

    def _runs(self, block: bytes, tail: int) -> list[tuple[int, int]]:
        """Where events before `tail` may hold facts, ascending."""
        single = [at for token in _FINISH_TOKENS for at in positions(block, token, tail)]
        if all(block.find(token, tail) < 0 for token in _USAGE_TOKENS):
            single += [at for token in _USAGE_TOKENS if (at := block.rfind(token, 0, tail)) >= 0]
        runs = [(event_start(block, at), event_end(block, at)) for at in single]
        if self._content != "none":
            for token in self._spanning:
                last = block.rfind(token, 0, tail)
                if last >= 0:
                    runs.append((event_start(block, first_position(block, token, last)), event_end(block, last)))
        runs.sort()
        return runs

    def _apply(self, block: bytes) -> None:
        for chunk in _events.decode(block):
            if chunk is None:
                self._seen.problem = "an event is not a JSON object"
            else:
                self._seen.chunk(chunk)

    def facts(self) -> ResponseFacts:
        """What was read so far."""
        return self._seen.facts(complete=self._complete)


def _done_at(block: bytes, tail: int) -> int:
    """Where the event `data: [DONE]` begins, or -1."""
    if block.rfind(DONE, tail) < 0:
        return -1
    # The same letters may stand in another event, or in a comment.
    before = max(0, tail - 1)
    at = max(block.rfind(b"\ndata: " + DONE, before), block.rfind(b"\ndata:" + DONE, before))
    if at >= 0:
        return event_start(block, at + 1)
    if block.startswith((b"data: " + DONE, b"data:" + DONE)):
        return 0
    return -1
