"""Reads from a request body what the answer depends on.

Rules
- Pure, and independent of Ostiary's own readers: this is the other end in their tests.
- Lenient where the real providers are (unknown fields, unknown content parts), strict where they are: no JSON object,
  no model, no messages is a 400 that says which.
"""

import re
from collections.abc import Sequence
from typing import Any, Literal

import msgspec
from msgspec import Raw, Struct

Wire = Literal["anthropic", "chat", "responses", "completions"]


class BadRequestError(ValueError):
    """The 400 a real provider would give; `param` names the field."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class Tool(Struct, frozen=True):
    """A tool that the model may call."""

    name: str
    schema: dict[str, Any] | None = None
    """JSON Schema of its input; None for a free-form (`custom`) tool."""


class Asked(Struct, frozen=True):
    """What a request asks for, in no provider's words."""

    wire: Wire
    model: str
    stream: bool = False
    prompt: str = ""
    """Text of the last user message that has any."""
    tools: tuple[Tool, ...] = ()
    """Those that may be called now: none after a tool's result, or when the choice is `none`."""
    parallel: bool = True
    thinking: bool = False
    thinking_shown: bool = True
    """False: reasoning happens, but only its signature or count is sent."""
    encrypted_reasoning: bool = False
    include_usage: bool = False
    usage_unasked: bool = False
    """Chat streams report usage whether it was asked for or not, as Copilot's do."""
    obfuscation: bool = True
    cached: bool = False
    """The request marks its prompt for caching, or is long enough for a provider that caches by itself."""
    choices: int = 1
    input_tokens: int = 1
    echo: dict[str, Raw] = {}
    """Responses: request fields that the response object repeats."""


class _StreamOptions(Struct):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class _Message(Struct):
    role: str = ""
    content: Any = None  # str or parts of any kind
    type: str = ""
    """Responses items: message, function_call_output, …"""


class _Function(Struct):
    name: str = ""
    parameters: dict[str, Any] | None = None


class _Tool(Struct):
    type: str = ""
    name: str = ""
    input_schema: dict[str, Any] | None = None
    parameters: dict[str, Any] | None = None
    function: _Function | None = None
    custom: _Function | None = None


class _Thinking(Struct):
    type: str = ""
    display: str | None = None


class _Reasoning(Struct):
    effort: str | None = None
    summary: str | None = None


class _Request(Struct):
    model: str = ""
    stream: bool | None = None
    messages: list[Raw] | None = None
    max_tokens: int | None = None
    tools: list[_Tool] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    stream_options: _StreamOptions | None = None
    thinking: _Thinking | None = None
    reasoning: _Reasoning | None = None
    reasoning_effort: str | None = None
    n: int | None = None
    input: Any = None
    prompt: Any = None
    include: list[str] | None = None


_decode_request = msgspec.json.Decoder(_Request).decode
_decode_message = msgspec.json.Decoder(_Message).decode
_decode_fields = msgspec.json.Decoder(dict[str, Raw]).decode

_ECHOED = (
    *("instructions", "max_output_tokens", "max_tool_calls", "metadata", "parallel_tool_calls", "previous_response_id"),
    *("prompt_cache_key", "reasoning", "safety_identifier", "store", "temperature", "text", "tool_choice", "tools"),
    *("top_logprobs", "top_p", "truncation", "user"),
)
_OPENAI_CACHES_FROM = 1024
"""Tokens from which OpenAI caches a prompt by itself."""
_BYTES_PER_TOKEN = 4
_TYPE_PATH = re.compile(r"(.*) - at `\$\.?(.*)`")


def read(wire: Wire, body: bytes, *, generating: bool = True) -> Asked:
    """What `body` asks for; not `generating`: only to count its tokens. Raises `BadRequestError`."""
    try:
        request = _decode_request(body)
    except msgspec.ValidationError as exc:
        match = _TYPE_PATH.fullmatch(str(exc))
        param = match[2] if match else None
        raise BadRequestError(f"Invalid type for '{param or 'body'}': {match[1] if match else exc}.", param) from exc
    except msgspec.DecodeError as exc:
        raise BadRequestError("We could not parse the JSON body of your request.") from exc
    if not request.model:
        raise BadRequestError("you must provide a model parameter", "model")
    tokens = max(1, len(body) // _BYTES_PER_TOKEN)
    if wire == "anthropic":
        if generating and request.max_tokens is None:
            raise BadRequestError("max_tokens: Field required", "max_tokens")
        return _anthropic(request, body, tokens)
    if wire == "chat":
        return _chat(request, tokens)
    if wire == "completions":
        return _completions(request, tokens)
    return _responses(request, body, tokens)


def _anthropic(request: _Request, body: bytes, tokens: int) -> Asked:
    messages = _messages(request)
    choice = request.tool_choice if isinstance(request.tool_choice, dict) else {}
    thinking = request.thinking
    after_result = _last_has_part(messages, "tool_result")
    return Asked(
        wire="anthropic",
        model=request.model,
        stream=bool(request.stream),
        prompt=_last_prompt(messages),
        tools=_callable(request, choice.get("type"), choice.get("name"), after_result=after_result),
        parallel=choice.get("disable_parallel_tool_use") is not True,
        thinking=thinking is not None and thinking.type != "disabled",
        thinking_shown=thinking is None or thinking.display != "omitted",
        cached=b'"cache_control"' in body,
        input_tokens=tokens,
    )


def _chat(request: _Request, tokens: int) -> Asked:
    messages = _messages(request)
    options = request.stream_options
    if options is not None and not request.stream:
        raise BadRequestError(
            "The 'stream_options' parameter is only allowed when 'stream' is enabled.", "stream_options"
        )
    kind, name = _openai_choice(request.tool_choice, "function")
    return Asked(
        wire="chat",
        model=request.model,
        stream=bool(request.stream),
        prompt=_last_prompt(messages),
        tools=_callable(request, kind, name, after_result=messages[-1].role == "tool"),
        parallel=request.parallel_tool_calls is not False,
        thinking=request.reasoning_effort not in (None, "none"),
        include_usage=options is not None and options.include_usage is True,
        obfuscation=options is None or options.include_obfuscation is not False,
        cached=tokens >= _OPENAI_CACHES_FROM,
        choices=min(max(request.n or 1, 1), 8),
        input_tokens=tokens,
    )


def _completions(request: _Request, tokens: int) -> Asked:
    given = request.prompt[-1] if isinstance(request.prompt, list) and request.prompt else request.prompt
    if given is None:
        raise BadRequestError("Missing required parameter: 'prompt'.", "prompt")
    options = request.stream_options
    return Asked(
        wire="completions",
        model=request.model,
        stream=bool(request.stream),
        prompt=given if isinstance(given, str) else "",  # tokens have no text here
        include_usage=options is not None and options.include_usage is True,
        cached=tokens >= _OPENAI_CACHES_FROM,
        choices=min(max(request.n or 1, 1), 8),
        input_tokens=tokens,
    )


def _responses(request: _Request, body: bytes, tokens: int) -> Asked:
    if isinstance(request.input, str):
        items: list[_Message] = [_Message(role="user", content=request.input)]
    elif isinstance(request.input, list):
        items = [msgspec.convert(item, _Message, strict=False) for item in request.input if isinstance(item, dict)]
    else:
        raise BadRequestError("Missing required parameter: 'input'.", "input")
    kind, name = _openai_choice(request.tool_choice, "name")
    options = request.stream_options
    reasoning = request.reasoning
    fields = _decode_fields(body)
    return Asked(
        wire="responses",
        model=request.model,
        stream=bool(request.stream),
        prompt=_last_prompt(items),
        tools=_callable(request, kind, name, after_result=bool(items) and items[-1].type.endswith("_call_output")),
        parallel=request.parallel_tool_calls is not False,
        thinking=reasoning is not None and reasoning.effort != "none",
        thinking_shown=reasoning is not None and reasoning.summary is not None,
        encrypted_reasoning="reasoning.encrypted_content" in (request.include or ()),
        obfuscation=options is None or options.include_obfuscation is not False,
        cached=tokens >= _OPENAI_CACHES_FROM,
        input_tokens=tokens,
        # Copied: a Raw is a view that would keep the whole body alive in the cache of answers.
        echo={name: fields[name].copy() for name in _ECHOED if name in fields},
    )


def _messages(request: _Request) -> list[_Message]:
    """The last messages, decoded from the end until one is a user's with text: a long history costs no more."""
    if not request.messages:
        raise BadRequestError("Missing required parameter: 'messages'.", "messages")
    decoded: list[_Message] = []
    for raw in reversed(request.messages):
        try:
            message = _decode_message(raw)
        except msgspec.ValidationError as exc:
            raise BadRequestError(f"Invalid message: {exc}", "messages") from exc
        decoded.append(message)
        if message.role == "user" and _text(message):
            break
    decoded.reverse()
    return decoded


def _text(message: _Message) -> str:
    """The text of a message: the string itself, or its last text part."""
    if isinstance(message.content, str):
        return message.content
    if isinstance(message.content, list):
        for part in reversed(message.content):
            if isinstance(part, dict) and part.get("type") in ("text", "input_text"):
                text = part.get("text")
                if isinstance(text, str):
                    return text
    return ""


def _last_prompt(messages: Sequence[_Message]) -> str:
    return next((text for item in reversed(messages) if item.role == "user" and (text := _text(item))), "")


def _last_has_part(messages: Sequence[_Message], kind: str) -> bool:
    content = messages[-1].content
    return isinstance(content, list) and any(isinstance(part, dict) and part.get("type") == kind for part in content)


def _openai_choice(choice: Any, inner: str) -> tuple[str | None, str | None]:
    """The kind of a `tool_choice` and the tool it names, which chat nests one level deeper."""
    if isinstance(choice, str):
        return choice, None
    if not isinstance(choice, dict):
        return None, None
    named = choice.get(inner)
    if isinstance(named, dict):
        named = named.get("name")
    return "tool", named if isinstance(named, str) else None


def _callable(request: _Request, kind: str | None, name: str | None, *, after_result: bool) -> tuple[Tool, ...]:
    """The tools the model could call now. Hosted tools have no input of the client's and are left out."""
    if not request.tools or kind == "none" or (after_result and kind not in ("any", "required", "tool")):
        return ()
    tools = [tool for given in request.tools if (tool := _tool(given)) is not None]
    if name is not None:
        tools = [tool for tool in tools if tool.name == name]
    return tuple(tools)


def _tool(given: _Tool) -> Tool | None:
    if given.function is not None:
        return Tool(given.function.name, given.function.parameters or {})
    if given.custom is not None:
        return Tool(given.custom.name)
    if given.type == "function":
        return Tool(given.name, given.parameters or {})
    if given.input_schema is not None:
        return Tool(given.name, given.input_schema)
    # Free-form is OpenAI's `custom` only; Anthropic's tools of type custom have an input_schema.
    return Tool(given.name) if given.type == "custom" and given.name else None
