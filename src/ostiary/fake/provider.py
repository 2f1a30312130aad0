"""The fake provider without its sockets: a request's head and body in, the script of its answer out.

Rules
- No I/O. State is what a test sets (keys, recordings, the default behaviour), the ledger, and a cache.
- Order, as at a real provider: the key, the route, the body. A refused key decides the answer alone.
- Answers are cached by the bytes of the request for a second (they hold dates), which is what makes this end fast
  enough for benchmarks; ids stay unique (see `delivery`).
"""

import itertools
import os
import re
import time
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from . import anthropic, catalog, chat, completions, copilot, errors, event_stream, metered, responses
from .answer import Answer, compose, shaped
from .asked import Asked, BadRequestError, Wire, read
from .aws import AwsRequest, FakeAws
from .aws import label as aws_label
from .behaviour import PLAIN, Behaviour, ControlError, behaviour, model_control
from .delivery import Client, Reply, Script, raw_script, script
from .event_stream import Event
from .forms import Fields, Form
from .keys import Keys
from .ledger import Ledger
from .replay import Replays

_GENERATING: dict[str, Wire] = {
    "/messages": "anthropic",
    "/chat/completions": "chat",
    "/responses": "responses",
    "/completions": "completions",
}
_ROUTES = (
    *_GENERATING,
    *("/messages/count_tokens", "/responses/input_tokens", "/models", "/conversations"),
    "/api/event_logging",
)
_VERSION = re.compile(r"^/openai(?:/v1|/deployments/[^/]+)?(?=/)|/v1(?=/|$)")  # the former is Azure's
_CACHE_BYTES = 32 * 1024 * 1024
_MAX_CACHED_BODY = 256 * 1024
_HEAD_KEY, _TAIL_KEY = 64, 512

_ANTHROPIC_HEADERS = (
    ("request-id", "req_01FAKE0TOKEN0FAKE0TOKEN000"),
    ("anthropic-organization-id", "0fa4e000-0000-4000-8000-000000000001"),
    ("anthropic-ratelimit-requests-limit", "4000"),
    ("anthropic-ratelimit-requests-remaining", "3999"),
    ("anthropic-ratelimit-input-tokens-limit", "2000000"),
    ("anthropic-ratelimit-input-tokens-remaining", "1999000"),
)
_OPENAI_HEADERS = (
    ("x-request-id", "req_FAKE0TOKEN0FAKE0TOKEN000"),
    ("openai-organization", "org-fake"),
    ("openai-processing-ms", "12"),
    ("openai-version", "2020-10-01"),
    ("x-ratelimit-limit-requests", "10000"),
    ("x-ratelimit-remaining-requests", "9999"),
    ("x-ratelimit-reset-requests", "6ms"),
)
_JSON = ("content-type", "application/json")
_STREAM_HEADERS = (("content-type", "text/event-stream; charset=utf-8"), ("cache-control", "no-cache"))


class Request(NamedTuple):
    """A request's head as far as the answer depends on it."""

    method: str
    path: str
    """Without the query string."""
    key: str
    """The API key, from whichever header carried it."""
    control: str
    mark: str
    anthropic: bool
    """The client speaks to Anthropic: `anthropic-version` or `x-api-key` was there."""
    client: Client
    aws: AwsRequest | None = None
    """It is for AWS: signed, or on a path of AWS's."""
    query: str = ""
    form_type: str = ""
    """The content type of a body that is a form."""
    copilot: bool = False
    """The client speaks to Copilot: `copilot-integration-id` was there."""


class FakeProvider:
    """Everything that a fake provider knows; `server.serve` puts it on a socket."""

    def __init__(self, ledger: Ledger | None = None) -> None:
        self.ledger = ledger or Ledger()
        self.keys = Keys()
        self.replays = Replays()
        self.aws = FakeAws(self.keys)
        self._default = ""
        self._nonce = os.urandom(4).hex()
        self._numbers = itertools.count(1)
        self._cache: dict[tuple[str, str, str, str, bool, bool, int, bytes, bytes], tuple[bytes, Script]] = {}
        self._cached_bytes = 0
        self._cache_second = 0

    @property
    def default(self) -> str:
        """The control string of requests that bring none."""
        return self._default

    @default.setter
    def default(self, control: str) -> None:
        behaviour(control)
        self._default = control
        self._cache.clear()

    def token(self) -> bytes:
        """24 characters that make this answer's ids unique."""
        return b"%b%016x" % (self._nonce.encode(), next(self._numbers))

    def answer(self, request: Request, body: bytes, token: bytes, form: Form | None = None) -> Script:
        """What to send for `request`; `form` in place of its body."""
        if request.aws is not None:
            return self._aws_script(request, request.aws, body, token)
        verdict = self.keys.verdict(request.key)
        client = request.client
        if form is not None:
            return self._script(request, b"", token, verdict, form.fields())[0]
        if verdict or self.replays or client.http10 or not client.keep_alive or len(body) > _MAX_CACHED_BODY:
            return self._script(request, body, token, verdict)[0]
        now = int(time.time())
        if now != self._cache_second:
            self._cache.clear()
            self._cache_second, self._cached_bytes = now, 0
        named = (request.method, request.path, request.query, request.control, request.anthropic, request.copilot)
        key = (*named, len(body), body[:_HEAD_KEY], body[-_TAIL_KEY:])
        held = self._cache.get(key)
        if held is not None and held[0] == body:
            return held[1]
        answer, reusable = self._script(request, body, token, "")
        if reusable and self._cached_bytes < _CACHE_BYTES:
            self._cached_bytes += len(body) + sum(len(piece) for segment in answer.segments for piece in segment.pieces)
            self._cache[key] = (body, answer)
        return answer

    def early_answer(self, request: Request, token: bytes) -> Script | None:
        """The answer to a request that wants one before its body is read; None when it does not."""
        try:
            wanted = behaviour(self._default, request.control)
        except ControlError:
            return None
        if not wanted.early:
            return None
        reply = _error(wanted.status or 400, wanted, request.anthropic)
        return script(reply, wanted, request.client, token)

    def _aws_script(self, request: Request, aws: AwsRequest, body: bytes, token: bytes) -> Script:
        found = self.aws.reply(aws, body, self._default, token.decode())
        if isinstance(found, str):
            return self._script(request._replace(path=found), body, token, self.keys.verdict(request.key))[0]
        return script(*found, request.client, token)

    def _script(
        self, request: Request, body: bytes, token: bytes, verdict: str, form: Fields | None = None
    ) -> tuple[Script, bool]:
        """The answer, and whether the same bytes may be answered so again."""
        asked: Asked | None = None
        wanted = PLAIN
        try:
            wanted = behaviour(self._default, verdict or request.control)
            if verdict:
                reply = _error(wanted.status, wanted, request.anthropic)
                return script(reply, wanted, request.client, token), False
            route = route_of(request.path)
            wire = _GENERATING.get(route) if request.method == "POST" else None
            if wire is not None:
                asked = read(wire, body)
                if request.copilot:
                    asked = msgspec.structs.replace(asked, usage_unasked=True)
                wanted = behaviour(self._default, model_control(asked.model), request.control)
            elif request.method == "POST" and metered.known(route) is not None:
                model = metered.model_of(body, form)
                wanted = behaviour(self._default, model_control(model), request.control)
            recorded = self._recorded(request, asked, token)
            if recorded is not None:
                return recorded, False
            reply = _reply(request, route, asked, wanted, body, form)
        except ControlError as exc:
            reply = _error(400, PLAIN, request.anthropic, message=f"fake provider: {exc}")
        except BadRequestError as exc:
            reply = _error(400, wanted, request.anthropic, message=str(exc), param=exc.param)
        if wanted.headers:
            reply = msgspec.structs.replace(reply, headers=(*reply.headers, *wanted.headers.items()))
        severed = wanted.encoding or wanted.cut or wanted.chunk or wanted.hang
        return script(reply, wanted, request.client, token), not severed

    def _recorded(self, request: Request, asked: Asked | None, token: bytes) -> Script | None:
        if not self.replays:
            return None
        recording = self.replays.match(request.method, request.path, asked, request.mark)
        if recording is None:
            return None
        wanted = behaviour(recording.control, request.control)
        exact = recording.exact
        return script(recording.reply(), wanted, request.client, token) if exact is None else raw_script(exact, wanted)


def route_of(path: str) -> str:
    """The path without its version prefix."""
    return _VERSION.sub("", path, count=1)


def route_label(path: str) -> str:
    """One of a fixed set of names, for counting."""
    route = route_of(path)
    fixed = route if route in _ROUTES else None
    return aws_label(path) or fixed or metered.known(route) or copilot.known(route) or "other"


def _reply(
    request: Request, route: str, asked: Asked | None, wanted: Behaviour, body: bytes, form: Fields | None
) -> Reply:
    if wanted.api_version and f"api-version={wanted.api_version}" not in request.query.split("&"):
        return _error(404, wanted, False, message="Resource not found")
    if wanted.status and not 200 <= wanted.status < 300:
        return _error(wanted.status, wanted, request.anthropic or (asked is not None and asked.wire == "anthropic"))
    if wanted.body is not None:
        kind = wanted.content_type or "application/json"
        return Reply(wanted.status or 200, (("content-type", kind),), (wanted.body.encode(),))
    if asked is not None:
        return _generated(asked, wanted)
    found = metered.reply(request.method, route, body, form, wanted)
    if found is not None:
        return msgspec.structs.replace(found, headers=(*found.headers, *_OPENAI_HEADERS))
    return _catalogued(request, route, wanted, body)


_WHOLE = {
    "anthropic": anthropic.message,
    "chat": chat.completion,
    "responses": responses.response,
    "completions": completions.completion,
}
_EVENTS = {
    "anthropic": anthropic.events,
    "chat": chat.events,
    "responses": responses.events,
    "completions": completions.events,
}


def _generated(asked: Asked, wanted: Behaviour) -> Reply:
    answer = compose(asked, wanted)
    headers = _ANTHROPIC_HEADERS if asked.wire == "anthropic" else _OPENAI_HEADERS
    if not asked.stream:
        whole = _WHOLE[asked.wire]
        return Reply(wanted.status or 200, (_JSON, *headers), (msgspec.json.encode(whole(asked, wanted, answer)),))
    write = _EVENTS[asked.wire]
    answer = shaped(asked, wanted, answer, write)
    events = _with_error(write(asked, wanted, answer), asked, wanted, answer)
    parts = tuple(event_stream.encode(events, wanted))
    return Reply(wanted.status or 200, (*_STREAM_HEADERS, *headers), parts, stream=True)


def _with_error(events: Sequence[Event], asked: Asked, wanted: Behaviour, answer: Answer) -> Sequence[Event]:
    if wanted.error_after is None:
        return events
    kept = events[: wanted.error_after]
    if asked.wire == "anthropic":
        return [*kept, anthropic.stream_error(wanted)]
    if asked.wire in ("chat", "completions"):
        return [*kept, chat.stream_error(wanted)]
    return [*kept, responses.stream_error(asked, wanted, answer, len(kept))]


def _catalogued(request: Request, route: str, wanted: Behaviour, body: bytes) -> Reply:
    anthropic_client = request.anthropic
    reads = request.method in ("GET", "HEAD")
    posts = request.method == "POST"
    answer: object = None
    if route == "/models" and reads:
        answer = catalog.models(anthropic=anthropic_client)
    elif route.startswith("/models/") and reads:
        answer = catalog.model(route.removeprefix("/models/"), anthropic=anthropic_client)
    elif route == "/messages/count_tokens" and posts:
        answer = anthropic.count_tokens(body)
    elif route == "/responses/input_tokens" and posts:
        answer = {"object": "response.input_tokens", "input_tokens": read("responses", body).input_tokens}
    elif route == "/conversations" and posts:
        answer = catalog.conversation()
    elif route.startswith("/api/event_logging") and posts:
        answer = {"accepted_count": 0, "rejected_count": 0}
    elif (told := copilot.reply(request.method, route, body)) is not None:
        answer = told
    elif route in _ROUTES or metered.known(route) or copilot.known(route):
        return _error(405, wanted, anthropic_client)
    if answer is None:
        message = f"Invalid URL ({request.method} {request.path})"
        return _error(404, wanted, anthropic_client, message=message)
    headers = _ANTHROPIC_HEADERS if anthropic_client else _OPENAI_HEADERS
    return Reply(wanted.status or 200, (_JSON, *headers), (msgspec.json.encode(answer),))


def _error(
    status: int, wanted: Behaviour, anthropic_client: bool, *, message: str = "", param: str | None = None
) -> Reply:
    headers = [("content-type", wanted.content_type or "application/json")]
    headers += _ANTHROPIC_HEADERS[:2] if anthropic_client else _OPENAI_HEADERS[:4]
    if wanted.retry_after:
        headers.append(("retry-after", wanted.retry_after))
    if wanted.retry_after_ms:
        headers.append(("retry-after-ms", wanted.retry_after_ms))
    if wanted.body is not None:
        body = wanted.body.encode()
    else:
        body = errors.body(status, wanted, anthropic=anthropic_client, message=message, param=param)
    return Reply(status, tuple(headers), (body,))
