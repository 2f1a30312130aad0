"""Calls of a running server, from a thread of its own, by a client that lives through everything.

Rules
- Each mark is sent once, whatever happens to it: what reached the provider can be reconciled with what was recorded.
- A connection that cannot be made is tried again, since nothing of its request has been sent.
- A call is `complete` when its framing ended as it should; what came of any other is kept as it came.
- Every call asks the provider to report a number of output tokens of its own, so that nobody's usage can pass for another's.
"""

import asyncio
import itertools
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, cast
from urllib.parse import urlsplit

import httptools
import uvloop

from tests.support.server import eventually

RECONNECT = 0.02
GIVE_UP = 60.0
"""Seconds without a byte after which a call has failed."""


@dataclass(frozen=True)
class Kind:
    """How a call is made and what ends its answer."""

    path: str
    body: dict[str, Any]
    last_words: bytes

    @property
    def tools(self) -> int:
        """How many tools the model will call."""
        return len(self.body.get("tools", ()))


def _stream(path: str, last_words: bytes, **body: Any) -> Kind:
    return Kind(path, {"model": "gpt-5.4-mini", "stream": True, **body}, last_words)


CHAT = _stream("/api/v2/ai-gateway/openai/v1/chat/completions", b"data: [DONE]\n\n")
RESPONSES = _stream("/api/v2/ai-gateway/openai/v1/responses", b"")
MESSAGES = Kind(
    "/api/v2/ai-gateway/anthropic/v1/messages",
    {"model": "claude-sonnet-4-6", "stream": True, "max_tokens": 1000},
    b'{"type":"message_stop"}\n\n',
)
BLOCKING = Kind("/api/v2/ai-gateway/openai/v1/chat/completions", {"model": "gpt-5.4-mini"}, b"")
_SCHEMA = {"type": "object", "properties": {"command": {"type": "string"}}, "required": ["command"]}
CHAT_TOOL = Kind(
    CHAT.path,
    CHAT.body | {"tools": [{"type": "function", "function": {"name": "bash", "parameters": _SCHEMA}}]},
    CHAT.last_words,
)
MESSAGES_TOOL = Kind(
    MESSAGES.path, MESSAGES.body | {"tools": [{"name": "bash", "input_schema": _SCHEMA}]}, MESSAGES.last_words
)
MIXED = (CHAT, MESSAGES, BLOCKING, CHAT_TOOL, RESPONSES, MESSAGES_TOOL)
"""Streams and blocking calls of every format, with prompts and with tool calls."""


class Call(asyncio.Protocol):
    """One request and its answer."""

    def __init__(self, mark: str, kind: Kind, user: str, output_tokens: int, request: bytes, load: "Load") -> None:
        self.mark = mark
        self.kind = kind
        self.user = user
        """Empty: not known to the load."""
        self.output_tokens = output_tokens
        """What the provider will report."""
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = b""
        self.complete = False
        self.error = ""
        self.seconds = 0.0
        self.stalled = 0.0
        """The longest silence, that before the head included."""
        self._request = request
        self._load = load
        self._parser = httptools.HttpResponseParser(self)
        self.began = self._heard = time.monotonic()
        self._transport: asyncio.Transport
        self.ended = asyncio.get_running_loop().create_future()

    @property
    def good(self) -> bool:
        """The provider's whole answer has come."""
        return self.complete and self.status == 200 and self.body.endswith(self.kind.last_words)

    @property
    def interception_id(self) -> str:
        return self.headers.get("x-ostiary-interception-id", "")

    def __repr__(self) -> str:
        what = "complete" if self.complete else f"cut ({self.error})"
        return f"<{self.mark}: {self.status} {what}, {self.seconds:.2f} s, {self.body[-200:]!r}>"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        now = time.monotonic()
        self.stalled, self._heard = max(self.stalled, now - self._heard), now
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self.error = f"not HTTP: {error}"
            self._transport.abort()

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode().lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        self._load.head_came(self)

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        self.complete = True
        self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.complete:
            self.error = self.error or (str(exc) if exc else "the connection ended")
        self._load.ended(self)
        self.seconds = time.monotonic() - self.began
        if not self.ended.done():
            self.ended.set_result(None)

    def give_up(self, why: str) -> None:
        self.error = self.error or why
        self._transport.abort()

    @property
    def silence(self) -> float:
        return time.monotonic() - self._heard


class Load:
    """A context: calls are made within, `concurrency` at once, until `total` of them or `finish`. Then all have ended; when the
    test has failed they are cut.

    `token`: of one person, or of several by their names, who take turns.
    """

    def __init__(
        self,
        url: str,
        token: str | Mapping[str, str],
        *,
        concurrency: int,
        total: int | None = None,
        control: str = "",
        kinds: Sequence[Kind] = (CHAT, MESSAGES),
        prefix: str = "m",
        content: Callable[[str], str] = lambda mark: f"fake-mark:{mark} once more",
    ) -> None:
        parts = urlsplit(url)
        self._address = (parts.hostname or "", parts.port or 80)
        self._people = list(token.items()) if isinstance(token, Mapping) else [("", token)]
        self._concurrency = concurrency
        self._numbers = iter(range(total)) if total is not None else itertools.count()
        self._control = control
        self._kinds = kinds
        self._prefix = prefix
        self._content = content
        self._stopping = False
        self._abandoned = False
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._guarded, name="load")
        self.calls: list[Call] = []
        """Those that have ended, in the order in which they did."""
        self.refused = 0
        """How often no connection could be made."""
        self._answering: set[Call] = set()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, failure: type[BaseException] | None, *_failure: object) -> None:
        self._abandoned = failure is not None
        self.finish()

    @property
    def answering(self) -> tuple[Call, ...]:
        """Those whose head has come, and their end not yet."""
        return tuple(self._answering)

    def head_came(self, call: Call) -> None:
        self._answering.add(call)

    def ended(self, call: Call) -> None:
        self._answering.discard(call)

    def finish(self) -> list[Call]:
        """Begin no new call, wait for those under way; gives all."""
        self._stopping = True
        return self.wait()

    def wait(self) -> list[Call]:
        """Until `total` calls have been made; gives all."""
        self._thread.join()
        if self._failure is not None:
            raise self._failure
        return self.calls

    def progress(self, calls: int, *, within: float = 60.0) -> None:
        """Wait until so many more calls have ended, or all of `total`."""
        wanted = len(self.calls) + calls
        eventually(lambda: self.over or len(self.calls) >= wanted, within=within, what=self.summary)

    @property
    def over(self) -> bool:
        return not self._thread.is_alive()

    @property
    def ids(self) -> list[str]:
        """Of the interceptions of calls that were good."""
        return [call.interception_id for call in self.calls if call.good]

    def failures(self) -> list[Call]:
        return [call for call in self.calls if not call.good]

    def summary(self) -> str:
        counts = Counter("good" if call.good else f"{call.status} {call.error}" for call in self.calls)
        return ", ".join(f"{count} {what}" for what, count in counts.most_common())

    def _guarded(self) -> None:
        try:
            uvloop.run(self._run())
        except BaseException as failure:
            self._failure = failure

    async def _run(self) -> None:
        under_way: set[Call] = set()
        callers = [asyncio.create_task(self._caller(under_way)) for _ in range(self._concurrency)]
        done = asyncio.gather(*callers)
        while not done.done():
            await asyncio.wait({done}, timeout=1.0)
            for call in list(under_way):
                if self._abandoned or call.silence > GIVE_UP:
                    call.give_up("abandoned" if self._abandoned else f"silent for {GIVE_UP} s")
        done.result()

    async def _caller(self, under_way: set[Call]) -> None:
        while not self._stopping:
            number = next(self._numbers, None)
            if number is None:
                return
            call = await self._connected(number)
            if call is None:
                return
            under_way.add(call)
            await call.ended
            under_way.discard(call)
            self.calls.append(call)

    async def _connected(self, number: int) -> Call | None:
        """None: told to stop while no connection could be made."""
        mark = f"{self._prefix}-{number}"
        kind = self._kinds[number % len(self._kinds)]
        user, token = self._people[number // len(self._kinds) % len(self._people)]
        output_tokens = 1000 + number
        request = self._request(kind, mark, token, output_tokens)
        loop = asyncio.get_running_loop()
        while True:
            try:
                _, call = await loop.create_connection(
                    lambda: Call(mark, kind, user, output_tokens, request, self), *self._address
                )
            except OSError:
                self.refused += 1
                if self._stopping:
                    return None
                await asyncio.sleep(RECONNECT)
            else:
                return call

    def _request(self, kind: Kind, mark: str, token: str, output_tokens: int) -> bytes:
        text = self._content(mark)
        said = {"input": text} if kind.path == RESPONSES.path else {"messages": [{"role": "user", "content": text}]}
        body = json.dumps(kind.body | said).encode()
        head = (
            f"POST {kind.path} HTTP/1.1\r\nHost: test\r\nAuthorization: Bearer {token}\r\n"
            f"X-Fake: {self._control} output-tokens={output_tokens}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body
