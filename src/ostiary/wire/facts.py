"""What is read from requests and answers, whatever format they are in.

Rules
- Facts are what the provider or the client wrote: nothing is completed, corrected or added up.
- Text is as it stands after JSON unescaping; `raw` texts are JSON as it stood.
- A missing fact is an empty value or None, never a guess.
"""

from typing import Literal

from msgspec import Struct

from ostiary.core.records import MAX_ERROR_MESSAGE

Format = Literal["chat_completions", "responses", "messages", "metered"]
"""OpenAI Chat Completions, OpenAI Responses, Anthropic Messages; and what only usage is read of (embeddings, images ...)."""

Content = Literal["none", "prompts", "full"]
"""`record_content` (design §5): usage only; also prompt, tool calls, thoughts; also output text and tool results."""

ThoughtSource = Literal["thinking", "reasoning_summary", "commentary"]


class RequestError(ValueError):
    """A request body that cannot be read: not JSON, or not an object. Names the cause and the cure."""


class RequestFacts(Struct, frozen=True):
    """What a request says of itself."""

    model: str
    """Empty where the body names none, or not by a text."""
    stream: bool = False
    """True only for JSON `true`."""
    prompt: str | None = None
    """The last user prompt, when the last message is the user's (reference D.5)."""
    correlating_tool_call_id: str = ""
    """The tool call that the last message answers: links to the interception that asked for it."""
    user_id: str = ""
    """Anthropic's `metadata.user_id`, in which Claude Code puts its session."""
    include_usage: bool = False
    """Chat Completions: the client asked for the usage chunk itself."""
    has_stream_options: bool = False
    """Chat Completions: a `stream_options` member stands in the body, whatever its value."""
    background: bool = False
    """Responses: the answer is to be fetched later."""
    tool_results: tuple[str, ...] = ()
    """With `full`: text of the tool results since the model's last turn."""


class Usage(Struct, frozen=True):
    """The provider's final numbers. `input_tokens` excludes what a cache read or took."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_input_tokens: int = 0
    cache_write_input_tokens: int = 0
    metadata: dict[str, int | str] = {}
    """Further numbers by the names of reference D.5. `clamped` lists the numbers that did not add up."""
    raw: str = ""
    """The `usage` object as it stood. An Anthropic stream has two, the first and the last: a JSON array of both."""


class ToolCall(Struct, frozen=True):
    """A tool call that the model asked for."""

    tool: str
    input: str = ""
    """As sent: JSON text for functions, free text for custom tools."""
    tool_call_id: str = ""
    item_id: str = ""
    """Responses: id of the output item."""
    truncated: bool = False
    """The token limit or a cut stream ended the input early."""


class Thought(Struct, frozen=True):
    """Reasoning that the provider showed."""

    content: str
    source: ThoughtSource = "thinking"


class ProviderError(Struct, frozen=True):
    """An error as the provider sent it. `code` is OpenAI's finer name; both may be empty."""

    type: str = ""
    message: str = ""
    code: str = ""


def provider_error(kind: str | None, message: str | None, code: str | int | None = None) -> ProviderError:
    """What was sent of an error, its texts cut to what a record keeps."""
    return ProviderError(clip(kind or "", 256), clip(message or ""), clip("" if code is None else str(code), 256))


def clip(text: str, limit: int = MAX_ERROR_MESSAGE) -> str:
    """A text in at most so many bytes of UTF-8."""
    if len(text) * 4 <= limit:
        return text
    encoded = text.encode("utf-8", "replace")
    return text if len(encoded) <= limit else encoded[:limit].decode("utf-8", "ignore")


class ResponseFacts(Struct, frozen=True):
    """What an answer says of itself, as far as it was seen."""

    response_id: str = ""
    model: str = ""
    usage: Usage | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    thoughts: tuple[Thought, ...] = ()
    finish_reason: str = ""
    error: ProviderError | None = None
    output_text: str = ""
    """Only with `full`."""
    unparsed: bool = False
    """Reading failed, wholly or in part: what is here is right, something may be missing."""
    problem: str = ""
    """Why it is unparsed, for the log; never holds bytes of the answer."""
    complete: bool = False
    """The format's own end was seen: `message_stop`, `[DONE]`, a terminal `response.*` event, a whole JSON body."""
