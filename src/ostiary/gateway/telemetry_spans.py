"""What OpenTelemetry is told of an interception that has ended: spans and measurements as plain data (design §14).

Rules
- Pure, and without the SDK: `telemetry_export` makes the SDK's objects of it.
- Names are those of the semantic conventions v1.41.0, or with `latest` those that follow them in the repository
  semantic-conventions-genai, which renamed some attributes and replaced the metrics.
- One server span for the request and below it one client span for each attempt at the upstream. What the answer said
  (usage, id, model) stands on the last attempt, which is the one that was answered.
- A request that is relayed without a record has the same two kinds of spans, by the conventions of HTTP only, and no
  measurements: it is no call of a model.
- Content is there only when `content` says so and the record itself holds it; who asked only with `user`.
- Attributes of metrics are bounded: their `model` is what the caller of `measurements` makes of it.
"""

from collections.abc import Callable
from typing import Any, Final, Literal

import msgspec
from msgspec import Struct

from ostiary.core.providers import ProviderType
from ostiary.core.records import Attempt, InterceptionEnd, InterceptionStart

Conventions = Literal["v1.41", "latest"]
Value = str | bool | int | float | list[str]
Attributes = dict[str, Value]

TOKEN_BOUNDS: Final = tuple(float(4**power) for power in range(14))
DURATION_BOUNDS: Final = tuple(0.01 * 2**power for power in range(14))
"""Seconds. Both are the ones that the conventions ask for."""

_SYSTEMS: Final[dict[str, str]] = {
    ProviderType.OPENAI: "openai",
    ProviderType.ANTHROPIC: "anthropic",
    ProviderType.BEDROCK: "aws.bedrock",
    ProviderType.AZURE: "azure.ai.openai",
    ProviderType.GOOGLE: "gcp.gemini",
    ProviderType.OPENAI_COMPAT: "openai",
}
"""`gen_ai.provider.name` by type: the conventions' word where they have one, else the type itself."""

_OPERATIONS: Final[dict[str, str]] = {
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
    "/embeddings": "embeddings",
}
"""`gen_ai.operation.name` by route; of bridged routes it is `chat`, of other metered ones the route's last word."""

_REASONING: Final = ("completion_reasoning", "output_reasoning")


class Ended(Struct, frozen=True):
    """An interception that has ended, with what its records do not say."""

    start: InterceptionStart
    end: InterceptionEnd
    method: str
    provider_type: str
    server_address: str
    server_port: int
    traceparent: str = ""
    tracestate: str = ""


class SpanData(Struct, frozen=True):
    """One span. Times are Unix nanoseconds."""

    name: str
    kind: Literal["server", "client"]
    start_ns: int
    end_ns: int
    attributes: Attributes
    events: tuple[tuple[str, int], ...] = ()
    failed: bool = False
    description: str = ""


class Measurement(Struct, frozen=True):
    """One value for the instrument `name`."""

    name: str
    value: float
    attributes: Attributes


class Instrument(Struct, frozen=True):
    """A counter, or with bounds a histogram."""

    name: str
    unit: str
    description: str
    bounds: tuple[float, ...] = ()


_USAGE: Final = "gen_ai.client.inference.usage."
_FIRST_CHUNK: Final[dict[Conventions, str]] = {
    "v1.41": "gen_ai.client.operation.time_to_first_chunk",
    "latest": "gen_ai.client.inference.time_to_first_chunk",
}
INSTRUMENTS: Final[dict[Conventions, tuple[Instrument, ...]]] = {
    "v1.41": (
        Instrument("gen_ai.client.token.usage", "{token}", "Number of input and output tokens used.", TOKEN_BOUNDS),
        Instrument("gen_ai.client.operation.duration", "s", "GenAI operation duration.", DURATION_BOUNDS),
        Instrument(_FIRST_CHUNK["v1.41"], "s", "Time to receive the first chunk of a stream.", DURATION_BOUNDS),
    ),
    "latest": (
        Instrument("gen_ai.client.inference.duration", "s", "Duration of an inference.", DURATION_BOUNDS),
        Instrument(_FIRST_CHUNK["latest"], "s", "Time to receive the first chunk of a stream.", DURATION_BOUNDS),
        Instrument(
            "gen_ai.client.inference.operation.input_tokens", "{token}", "Input tokens of an inference.", TOKEN_BOUNDS
        ),
        Instrument(
            "gen_ai.client.inference.operation.output_tokens", "{token}", "Output tokens of an inference.", TOKEN_BOUNDS
        ),
        Instrument(_USAGE + "input_tokens", "{token}", "Input tokens used, cached ones included."),
        Instrument(_USAGE + "output_tokens", "{token}", "Output tokens used, reasoning included."),
        Instrument(_USAGE + "cache_read.input_tokens", "{token}", "Input tokens read from a cache."),
        Instrument(_USAGE + "cache_write.input_tokens", "{token}", "Input tokens written to a cache."),
        Instrument(_USAGE + "reasoning.output_tokens", "{token}", "Output tokens used for reasoning."),
        Instrument("gen_ai.client.embeddings.duration", "s", "Duration of an embeddings call.", DURATION_BOUNDS),
        Instrument(
            "gen_ai.client.embeddings.operation.input_tokens",
            "{token}",
            "Input tokens of an embeddings call.",
            TOKEN_BOUNDS,
        ),
        Instrument("gen_ai.client.operation.duration", "s", "GenAI operation duration.", DURATION_BOUNDS),
    ),
}


class Tokens(Struct, frozen=True):
    """The usage of one interception. `input` includes what caches read and took, as the conventions count."""

    input: int
    output: int
    cache_read: int
    cache_write: int
    reasoning: int


def tokens_of(end: InterceptionEnd) -> Tokens | None:
    """None when the provider told none."""
    if not end.token_usages:
        return None
    read = sum(usage.cache_read_input_tokens for usage in end.token_usages)
    write = sum(usage.cache_write_input_tokens for usage in end.token_usages)
    reasoning = sum(
        value for usage in end.token_usages for name in _REASONING if type(value := usage.metadata.get(name, 0)) is int
    )
    return Tokens(
        sum(usage.input_tokens for usage in end.token_usages) + read + write,
        sum(usage.output_tokens for usage in end.token_usages),
        read,
        write,
        reasoning,
    )


def operation_of(start: InterceptionStart) -> str:
    if start.route_kind == "bridged":
        return "chat"
    return _OPERATIONS.get(start.route) or start.route.removesuffix("/*").rpartition("/")[2]


def system_of(provider_type: str) -> str:
    return _SYSTEMS.get(provider_type, str(provider_type))


# --- spans


def server_span(ended: Ended, *, user: bool) -> SpanData:
    """The request as its client saw it; what the gateway did in between stands in its events."""
    start, end = ended.start, ended.end
    started_us = start.started_at
    stages = end.trace.stages if end.trace is not None else {}
    route = f"/{{provider}}{start.route}"
    attributes: Attributes = {
        "http.request.method": ended.method,
        "http.route": route,
        "ostiary.provider": start.provider_name,
        "ostiary.outcome": end.outcome,
        "ostiary.credential.kind": start.credential_kind,
    }
    passed = start.route_kind == "passthrough"
    attributes["ostiary.request.id" if passed else "ostiary.interception.id"] = start.id
    if end.status_code:
        attributes["http.response.status_code"] = end.status_code
    for name, text in (
        ("gen_ai.request.model", start.model),
        ("gen_ai.conversation.id", start.client_session_id),
        ("user_agent.original", start.user_agent),
        ("ostiary.client", start.client),
        ("user.id", start.initiator_id if user else ""),
    ):
        if text:
            attributes[name] = text
    if end.trace is not None:
        for name, texts in (("ostiary.edits", end.trace.edits), ("ostiary.notes", end.trace.notes)):
            if texts:
                attributes[name] = texts
    failed = end.status_code >= 500 or (end.outcome in ("upstream_error", "interrupted") and end.status_code < 400)
    if failed:
        attributes["error.type"] = str(end.status_code) if end.status_code >= 500 else end.error_type or end.outcome
    return SpanData(
        f"{ended.method} {route}",
        "server",
        started_us * 1000,
        _end_us(ended) * 1000,
        attributes,
        tuple((name, (started_us + at) * 1000) for name, at in stages.items() if name != "end"),
        failed,
    )


def attempt_spans(ended: Ended, conventions: Conventions, *, content: bool) -> list[SpanData]:
    """The calls to the upstream, in their order. One ends where the next begins, the last with the request."""
    attempts = _attempts(ended)
    started_us = ended.start.started_at
    begins = [started_us + attempt.at_us for attempt in attempts]
    if not begins:
        return []
    ends = [*begins[1:], max(_end_us(ended), begins[-1])]
    last = len(attempts) - 1
    return [
        _attempt_span(ended, attempt, begin, until, conventions, content=content, answered=at == last)
        for at, (attempt, begin, until) in enumerate(zip(attempts, begins, ends, strict=True))
    ]


def _attempt_span(
    ended: Ended,
    attempt: Attempt,
    begin_us: int,
    end_us: int,
    conventions: Conventions,
    *,
    content: bool,
    answered: bool,
) -> SpanData:
    start = ended.start
    passed = start.route_kind == "passthrough"
    operation = "" if passed else operation_of(start)
    attributes = _http(ended) if passed else _common(ended, operation)
    if start.model:
        attributes["gen_ai.request.model"] = start.model
    if start.client_session_id:
        attributes["gen_ai.conversation.id"] = start.client_session_id
    if start.streaming:
        attributes["gen_ai.request.stream"] = True
    if attempt.status:
        attributes["http.response.status_code"] = attempt.status
    if attempt.key_hint:
        attributes["ostiary.credential.hint"] = attempt.key_hint
    attributes["ostiary.connection.reused"] = attempt.reused_connection
    error = _attempt_error(ended, attempt, answered=answered)
    if error:
        attributes["error.type"] = error
    if answered:
        _add_answer(attributes, ended.end, conventions)
        waited = _first_chunk_seconds(ended, attempt)
        if waited is not None:
            attributes["gen_ai.response.time_to_first_chunk"] = waited
        if content:
            _add_content(attributes, ended)
    name = f"{ended.method} {start.route}" if passed else operation
    return SpanData(
        f"{name} {start.model}" if start.model else name,
        "client",
        begin_us * 1000,
        end_us * 1000,
        attributes,
        failed=bool(error),
        description=attempt.error,
    )


def _http(ended: Ended) -> Attributes:
    return {
        "http.request.method": ended.method,
        "url.template": ended.start.route,
        "server.address": ended.server_address,
        "server.port": ended.server_port,
    }


def _common(ended: Ended, operation: str) -> Attributes:
    return {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": system_of(ended.provider_type),
        "server.address": ended.server_address,
        "server.port": ended.server_port,
    }


def _attempt_error(ended: Ended, attempt: Attempt, *, answered: bool) -> str:
    """`error.type`: the status, else the kind of failure as the record has it. Empty when all went well."""
    if attempt.status >= 400:
        return str(attempt.status)
    if answered and ended.end.outcome != "client_closed" and ended.end.error_type:
        return ended.end.error_type
    return "connection" if attempt.error else ""


def _add_answer(attributes: Attributes, end: InterceptionEnd, conventions: Conventions) -> None:
    if end.response_model:
        attributes["gen_ai.response.model"] = end.response_model
    if end.provider_response_id:
        attributes["gen_ai.response.id"] = end.provider_response_id
    if end.finish_reason:
        attributes["gen_ai.response.finish_reasons"] = [end.finish_reason]
    tokens = tokens_of(end)
    if tokens is None:
        return
    attributes["gen_ai.usage.input_tokens"] = tokens.input
    attributes["gen_ai.usage.output_tokens"] = tokens.output
    written = "cache_creation" if conventions == "v1.41" else "cache_write"
    for name, number in (
        ("gen_ai.usage.cache_read.input_tokens", tokens.cache_read),
        (f"gen_ai.usage.{written}.input_tokens", tokens.cache_write),
        ("gen_ai.usage.reasoning.output_tokens", tokens.reasoning),
    ):
        if number:
            attributes[name] = number


def _add_content(attributes: Attributes, ended: Ended) -> None:
    """As JSON text, by the conventions' schemas of messages: the last prompt, and of the answer what is recorded."""
    end = ended.end
    if ended.start.prompt is not None:
        attributes["gen_ai.input.messages"] = _json([_message("user", [_text_part(ended.start.prompt.prompt)])])
    parts = [{"type": "reasoning", "content": thought.content} for thought in end.model_thoughts]
    if end.output_text:
        parts.append(_text_part(end.output_text))
    parts += [
        {"type": "tool_call", "id": call.tool_call_id, "name": call.tool, "arguments": call.input}
        for call in end.tool_usages
    ]
    if parts:
        attributes["gen_ai.output.messages"] = _json(
            [_message("assistant", parts) | {"finish_reason": end.finish_reason}]
        )


def _text_part(text: str) -> dict[str, str]:
    return {"type": "text", "content": text}


def _message(role: str, parts: list[dict[str, str]]) -> dict[str, Any]:  # Any: JSON
    return {"role": role, "parts": parts}


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


# --- measurements


def measurements(ended: Ended, conventions: Conventions, model_label: Callable[[str], str]) -> list[Measurement]:
    """What the metrics get of it: nothing when no model was called. `model_label` bounds the names of models."""
    attempts = _attempts(ended)
    if not attempts or ended.start.route_kind == "passthrough":
        return []
    start, end = ended.start, ended.end
    operation = operation_of(start)
    attributes = _common(ended, operation)
    if start.model:
        attributes["gen_ai.request.model"] = model_label(start.model)
    if end.response_model:
        attributes["gen_ai.response.model"] = model_label(end.response_model)
    timed = dict(attributes)
    error = _attempt_error(ended, attempts[-1], answered=True)
    if error:
        timed["error.type"] = error
    seconds = max(0, _end_us(ended) - start.started_at - attempts[0].at_us) / 1e6
    inference = start.route_kind == "bridged" or operation == "text_completion"
    tokens = tokens_of(end)
    waited = _first_chunk_seconds(ended, attempts[0]) if inference else None
    first_chunk = [] if waited is None else [Measurement(_FIRST_CHUNK[conventions], waited, attributes)]
    if conventions == "v1.41":
        found = [Measurement("gen_ai.client.operation.duration", seconds, timed), *first_chunk]
        for kind, number in () if tokens is None else (("input", tokens.input), ("output", tokens.output)):
            found.append(Measurement("gen_ai.client.token.usage", number, attributes | {"gen_ai.token.type": kind}))
        return found
    if operation == "embeddings":
        found = [Measurement("gen_ai.client.embeddings.duration", seconds, timed)]
        if tokens is not None:
            found.append(Measurement("gen_ai.client.embeddings.operation.input_tokens", tokens.input, attributes))
        return found
    if not inference:
        return [Measurement("gen_ai.client.operation.duration", seconds, timed)]
    found = [Measurement("gen_ai.client.inference.duration", seconds, timed), *first_chunk]
    return found if tokens is None else found + _inference_tokens(tokens, attributes)


def _inference_tokens(tokens: Tokens, attributes: Attributes) -> list[Measurement]:
    spent = attributes | {"gen_ai.token.modality": "unknown"}
    usage = (
        ("input_tokens", tokens.input),
        ("output_tokens", tokens.output),
        ("cache_read.input_tokens", tokens.cache_read),
        ("cache_write.input_tokens", tokens.cache_write),
        ("reasoning.output_tokens", tokens.reasoning),
    )
    return [
        Measurement("gen_ai.client.inference.operation.input_tokens", tokens.input, attributes),
        Measurement("gen_ai.client.inference.operation.output_tokens", tokens.output, attributes),
        *(Measurement(_USAGE + name, number, spent) for name, number in usage),
    ]


def _attempts(ended: Ended) -> list[Attempt]:
    return ended.end.trace.attempts if ended.end.trace is not None else []


def _first_chunk_seconds(ended: Ended, attempt: Attempt) -> float | None:
    """From the beginning of an attempt to the first piece of the stream that the client got; None when there was none."""
    trace = ended.end.trace
    at = trace.stages.get("first_chunk") if trace is not None else None
    if at is None or not ended.start.streaming or not 200 <= ended.end.status_code < 300:
        return None
    return max(0, at - attempt.at_us) / 1e6


def _end_us(ended: Ended) -> int:
    """Unix microseconds. By the clock of the stages where there is one: the wall clock may have been set meanwhile."""
    trace = ended.end.trace
    at = trace.stages.get("end") if trace is not None else None
    return max(ended.end.ended_at, ended.start.started_at) if at is None else ended.start.started_at + at
