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


_CHAT = "/v1/chat/completions"
_MESSAGES = "/v1/messages"
_STREAM = "events=300 event-size=203 tools=2"

CALLS = Work("calls", "call, 2 KB request, 1.5 KB answer", "openai", _CHAT, _chat("fake:size=930", 2000))
CALLS_40K = Work("calls-40k", "call, 40 KB request, 1.5 KB answer", "openai", _CHAT, _chat("fake:size=930", 40_000))
STREAM = Work(
    "stream",
    "stream of 300 events, 60 KB, thinking and two tool calls",
    "anthropic",
    _MESSAGES,
    _messages(_STREAM),
    connections=32,
)
LIVE = Work("live", "stream that stays open", "anthropic", _MESSAGES, _messages(f"{_STREAM} pace=500"))
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
