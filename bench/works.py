"""What is asked of the targets: the requests, and by the model's name the shape of the fake provider's answers."""

import json
from dataclasses import dataclass, field
from typing import Any, Literal

Format = Literal["openai", "anthropic"]

_TOOLS = [
    {
        "name": name,
        "description": "Reads a file of the working directory and gives its contents.",
        "input_schema": {
            "type": "object",
            "properties": {"file_path": {"type": "string"}, "limit": {"type": "integer"}},
            "required": ["file_path", "limit"],
        },
    }
    for name in ("Read", "Grep")
]
_PROMPT = "Explain in a few sentences why the sky is blue in the day and red in the evening."
_CALL_SHAPE = "fake:size=930"
_TEXT = "The quick brown fox jumps over the lazy dog, and the lazy dog does not mind at all. "


@dataclass(frozen=True)
class Work:
    """One kind of request. `path` is below a provider's base address."""

    name: str
    title: str
    format: Format
    path: str
    body: bytes = field(repr=False)
    connections: int = 64

    def request(self, host: str, prefix: str, headers: dict[str, str]) -> bytes:
        """The bytes of one request."""
        lines = [
            f"POST {prefix}{self.path} HTTP/1.1",
            f"Host: {host}",
            *(f"{name}: {value}" for name, value in headers.items()),
            "User-Agent: ostiary-bench/1",
            "Accept: application/json",
            "Content-Type: application/json",
            *(("Anthropic-Version: 2023-06-01",) if self.format == "anthropic" else ()),
            f"Content-Length: {len(self.body)}",
        ]
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + self.body


def _chat(model: str, size: int) -> bytes:
    """A chat request of `size` bytes, most of it an earlier turn."""
    request: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "system", "content": ""}, {"role": "user", "content": _PROMPT}],
        "temperature": 0.7,
        "max_tokens": 400,
    }
    bare = len(json.dumps(request))
    request["messages"][0]["content"] = (_TEXT * (size // len(_TEXT) + 1))[: size - bare]
    return json.dumps(request).encode()


def _messages(control: str, size: int = 2000) -> bytes:
    request: dict[str, Any] = {
        "model": f"fake:{control}",
        "max_tokens": 4096,
        "stream": True,
        "thinking": {"type": "enabled", "budget_tokens": 2048},
        "system": "",
        "tools": _TOOLS,
        "messages": [{"role": "user", "content": _PROMPT}],
    }
    request["system"] = (_TEXT * (size // len(_TEXT) + 1))[: size - len(json.dumps(request))]
    return json.dumps(request).encode()


def _chat_stream(control: str) -> bytes:
    """A streaming chat request that asks for usage, as agents do."""
    request = json.loads(_chat(f"fake:{control}", 2000))
    return json.dumps(request | {"stream": True, "stream_options": {"include_usage": True}}).encode()


_CHAT = "/v1/chat/completions"
_MESSAGES = "/v1/messages"
_STREAM = "events=300 event-size=203 tools=2"

CALLS = Work("calls", "call, 2 KB request, 1.5 KB answer", "openai", _CHAT, _chat(_CALL_SHAPE, 2000))
CALLS_40K = Work("calls-40k", "call, 40 KB request, 1.5 KB answer", "openai", _CHAT, _chat(_CALL_SHAPE, 40_000))
STREAM = Work(
    "stream",
    "stream of 300 events, 60 KB, thinking and two tool calls",
    "anthropic",
    _MESSAGES,
    _messages(_STREAM),
    connections=32,
)
CHAT_STREAM = Work(
    "chat-stream",
    "chat stream of 300 events, 60 KB",
    "openai",
    _CHAT,
    _chat_stream("events=300 event-size=203 tools=0"),
    connections=4,  # the slowest relay must get through a few in a round
)
ALONE = Work("alone", "one call at a time, 2 KB", "openai", _CHAT, CALLS.body, connections=1)
LIVE = Work("live", "stream that stays open", "anthropic", _MESSAGES, _messages(f"{_STREAM} pace=500"))
SLOW_LIVE = Work(
    "slow-live", "stream that stays open, an event a second", "anthropic", _MESSAGES, _messages(f"{_STREAM} pace=1000")
)
RECORDED = Work(
    "ingest",
    "call with a prompt, usage and a tool call to record",
    "openai",
    _CHAT,
    json.dumps(
        {
            "model": "gpt-4.1",
            "messages": [{"role": "user", "content": _PROMPT}],
            "tools": [
                {
                    "type": "function",
                    "function": {"name": "Read", "parameters": _TOOLS[0]["input_schema"]},
                }
            ],
        }
    ).encode(),
)


def call_of(size: int) -> Work:
    """The call with a body of so many bytes; fewer connections where bodies are large."""
    connections = max(4, min(64, 8_000_000 // size))
    return Work(f"call-{size}", f"call, {kilobytes(size)}", "openai", _CHAT, _chat(_CALL_SHAPE, size), connections)


def stream_of(events: int) -> Work:
    """The stream with so many events of the same size."""
    shape = f"events={events} event-size=203 tools={2 if events >= 100 else 0}"
    connections = max(4, min(32, 40_000 // events))
    return Work(f"stream-{events}", f"stream, {events:,} events", "anthropic", _MESSAGES, _messages(shape), connections)


def kilobytes(size: int) -> str:
    return f"{size / 1_000_000:g} MB" if size >= 1_000_000 else f"{size / 1000:g} KB"
