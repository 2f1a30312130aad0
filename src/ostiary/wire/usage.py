"""Token numbers as each API reports them (reference D.5), brought to one shape.

Rules
- The last number a provider sent wins, field by field; reports are never added up.
- What one call of a client costs besides its answer (Anthropic's `usage.iterations`: compaction of the conversation, an
  advisor of another model) is in no total of the provider's. It goes into `metadata`, a sum for each kind.
- `input_tokens` excludes what a cache read or took: OpenAI's total includes both, Anthropic's does not.
- A number that is negative, absurd, or would become negative is clamped and named in `metadata["clamped"]`.
- What is not a number is as good as absent. Further numbers go into `metadata` when the provider sent them, zero or not.
"""

from typing import Any, Final

import msgspec

from ostiary.core.records import MAX_TOKENS

from .facts import Usage
from .lenient import JsonText, object_members, text_of
from .usage_shapes import Chat, Plain

_Object = dict[str, Any]  # JSON of any shape

_NOTHING: Final[_Object] = {}

_decode: Final = msgspec.json.Decoder().decode


class _Numbers:
    """Takes numbers out of JSON and remembers which had to be clamped."""

    __slots__ = ("clamped", "metadata")

    def __init__(self) -> None:
        self.metadata: dict[str, int | str] = {}
        self.clamped: list[str] = []

    def of(self, source: _Object, key: str, name: str) -> int | None:
        value = source.get(key)
        if type(value) is int and 0 <= value <= MAX_TOKENS:
            return value  # what nearly every number is
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool):
            return None
        return self.within_range(value, name)

    def within_range(self, value: int, name: str) -> int:
        if 0 <= value <= MAX_TOKENS:
            return value
        self.clamped.append(name)
        return 0 if value < 0 else MAX_TOKENS

    def note(self, source: _Object, key: str, name: str) -> None:
        if (value := self.of(source, key, name)) is not None:
            self.metadata[name] = value

    def note_sum(self, source: _Object, key: str, name: str) -> None:
        value, before = self.of(source, key, name), self.metadata.get(name, 0)
        if value is not None and isinstance(before, int):
            self.metadata[name] = self.within_range(before + value, name)

    def usage(self, total_input: int, output: int, cache_read: int, cache_write: int, raw: str) -> Usage:
        """`total_input` includes the cached tokens."""
        rest = self.within_range(total_input - cache_read - cache_write, "input_tokens")
        if self.clamped:
            self.metadata["clamped"] = ",".join(self.clamped)
        return Usage(rest, output, cache_read, cache_write, self.metadata, raw)


def chat_usage(raw: JsonText, service_tier: str = "") -> Usage | None:
    """Of a chat completion or its usage chunk. None when `raw` is not an object."""
    return _usual_chat_usage(raw, service_tier) or _any_chat_usage(raw, service_tier)


_chat: Final = msgspec.json.Decoder(Chat)


def _usual_chat_usage(raw: JsonText, service_tier: str) -> Usage | None:
    """The numbers of a report that holds nothing but sound ones; None where it takes the long way to say them."""
    try:
        report = _chat.decode(raw)
    except (ValueError, RecursionError):
        return None
    total, output = report.prompt_tokens, report.completion_tokens
    if total is None or output is None:
        return None
    cached = None
    cache_write = 0
    sound = 0 <= output <= MAX_TOKENS and total <= MAX_TOKENS
    metadata: dict[str, int | str] = {}
    if (prompt := report.prompt_tokens_details) is not None:
        cached = prompt.cached_tokens
        cache_write = prompt.cache_write_tokens or 0
        if (audio := prompt.audio_tokens) is not None:
            metadata["prompt_audio"] = audio
            sound = sound and 0 <= audio <= MAX_TOKENS
    if (completion := report.completion_tokens_details) is not None:
        for name, number in (
            ("completion_reasoning", completion.reasoning_tokens),
            ("completion_audio", completion.audio_tokens),
            ("completion_accepted_prediction", completion.accepted_prediction_tokens),
            ("completion_rejected_prediction", completion.rejected_prediction_tokens),
        ):
            if number is not None:
                metadata[name] = number
                sound = sound and 0 <= number <= MAX_TOKENS
    if (whole := report.total_tokens) is not None and whole != total + output:
        metadata["total_tokens"] = whole
        sound = sound and 0 <= whole <= MAX_TOKENS
    cache_read = (report.prompt_cache_hit_tokens if cached is None else cached) or 0
    fresh = total - cache_read - cache_write
    if not sound or fresh < 0 or cache_read < 0 or cache_write < 0:
        return None
    if service_tier:
        metadata["service_tier"] = service_tier
    return Usage(fresh, output, cache_read, cache_write, metadata, text_of(raw))


def _any_chat_usage(raw: JsonText, service_tier: str) -> Usage | None:
    source = _object(raw)
    if source is None:
        return None
    numbers = _Numbers()
    total = numbers.of(source, "prompt_tokens", "prompt_tokens") or 0
    output = numbers.of(source, "completion_tokens", "output_tokens") or 0
    prompt = _nested(source, "prompt_tokens_details")
    cache_read = numbers.of(prompt, "cached_tokens", "cache_read_input_tokens")
    if cache_read is None:  # DeepSeek's name for it
        cache_read = numbers.of(source, "prompt_cache_hit_tokens", "cache_read_input_tokens") or 0
    cache_write = numbers.of(prompt, "cache_write_tokens", "cache_write_input_tokens") or 0
    numbers.note(prompt, "audio_tokens", "prompt_audio")
    completion = _nested(source, "completion_tokens_details")
    numbers.note(completion, "reasoning_tokens", "completion_reasoning")
    numbers.note(completion, "audio_tokens", "completion_audio")
    numbers.note(completion, "accepted_prediction_tokens", "completion_accepted_prediction")
    numbers.note(completion, "rejected_prediction_tokens", "completion_rejected_prediction")
    whole = numbers.of(source, "total_tokens", "total_tokens")
    if whole is not None and whole != total + output:
        numbers.metadata["total_tokens"] = whole  # Gemini and Grok count reasoning in it alone
    if service_tier:
        numbers.metadata["service_tier"] = service_tier
    return numbers.usage(total, output, cache_read, cache_write, text_of(raw))


def responses_usage(raw: JsonText, service_tier: str = "") -> Usage | None:
    """Of a `response` object. None when `raw` is not an object."""
    source = _object(raw)
    if source is None:
        return None
    numbers = _Numbers()
    total = numbers.of(source, "input_tokens", "input_tokens") or 0
    output = numbers.of(source, "output_tokens", "output_tokens") or 0
    details = _nested(source, "input_tokens_details")
    cache_read = numbers.of(details, "cached_tokens", "cache_read_input_tokens") or 0
    cache_write = numbers.of(details, "cache_write_tokens", "cache_write_input_tokens") or 0
    numbers.note(_nested(source, "output_tokens_details"), "reasoning_tokens", "output_reasoning")
    numbers.note(source, "total_tokens", "total_tokens")
    if service_tier:
        numbers.metadata["service_tier"] = service_tier
    return numbers.usage(total, output, cache_read, cache_write, text_of(raw))


def metered_usage(raw: JsonText) -> Usage | None:
    """Of embeddings, images, audio, legacy completions and compacted conversations. None when `raw` is no object, or empty.

    Some report tokens by chat's names, some by those of Responses, transcriptions also the seconds of audio alone.
    """
    source = _object(raw)
    if source is None:
        return None
    if "prompt_tokens" in source or "completion_tokens" in source:
        return chat_usage(raw)
    numbers = _Numbers()
    total = numbers.of(source, "input_tokens", "input_tokens") or 0
    output = numbers.of(source, "output_tokens", "output_tokens") or 0
    # Transcriptions write the one without its "s".
    taken = _nested(source, "input_tokens_details") or _nested(source, "input_token_details")
    given = _nested(source, "output_tokens_details") or _nested(source, "output_token_details")
    cache_read = numbers.of(taken, "cached_tokens", "cache_read_input_tokens") or 0
    cache_write = numbers.of(taken, "cache_write_tokens", "cache_write_input_tokens") or 0
    for kind in ("text", "image", "audio"):
        numbers.note(taken, f"{kind}_tokens", f"input_{kind}")
        numbers.note(given, f"{kind}_tokens", f"output_{kind}")
    numbers.note(given, "reasoning_tokens", "output_reasoning")
    numbers.note(source, "total_tokens", "total_tokens")
    seconds = source.get("seconds")
    if isinstance(seconds, int | float) and not isinstance(seconds, bool) and abs(seconds) <= MAX_TOKENS:
        numbers.metadata["audio_ms"] = numbers.within_range(round(seconds * 1000), "audio_ms")
    return numbers.usage(total, output, cache_read, cache_write, text_of(raw))


_plain: Final = msgspec.json.Decoder(Plain)

_LEFT_OUT: Final = {"compaction": "compaction", "advisor_message": "advisor"}
"""Kinds of iterations that are in no total."""
_ITERATION_NUMBERS: Final = (
    ("input_tokens", "input"),
    ("output_tokens", "output"),
    ("cache_read_input_tokens", "cache_read_input"),
    ("cache_creation_input_tokens", "cache_write_input"),
)


class MessagesUsage:
    """Anthropic's numbers: cumulative over a stream, each report naming only some of the fields.

    `served_by`, known with the numbers: the model that took over from the one at the stream's beginning; empty for most.
    """

    __slots__ = ("_first", "_last", "_merged", "_only", "served_by")

    def __init__(self) -> None:
        self.served_by = ""
        self._only: JsonText = b""
        self._merged: dict[str, Any] = {}
        self._first = ""
        self._last = ""

    def report(self, raw: JsonText) -> None:
        """Take one `usage` object. What is not an object is ignored."""
        if not self._only and not self._first:
            self._only = raw  # often there is just this one
            return
        if self._only:
            only, self._only = self._only, b""
            self._merge(only)
        self._merge(raw)

    def usage(self) -> Usage | None:
        """The final numbers, or None when none were reported."""
        if self._only:
            usage = _plain_usage(self._only)
            if usage is not None:
                return usage
            self._merge(self._only)
        return self._merged_usage()

    def _merge(self, raw: JsonText) -> None:
        source = _object(raw)
        if source is None:
            return
        merged = self._merged
        for key, value in source.items():
            if isinstance(value, dict):
                merged[key] = {**_nested(merged, key), **_without_nulls(value)}
            elif value is not None:
                merged[key] = value
        if self._first:
            self._last = text_of(raw)
        else:
            self._first = text_of(raw)

    def _merged_usage(self) -> Usage | None:
        if not self._first:
            return None
        source = self._merged
        numbers = _Numbers()
        fresh = numbers.of(source, "input_tokens", "input_tokens") or 0
        output = numbers.of(source, "output_tokens", "output_tokens") or 0
        cache_read = numbers.of(source, "cache_read_input_tokens", "cache_read_input_tokens") or 0
        cache_write = numbers.of(source, "cache_creation_input_tokens", "cache_write_input_tokens") or 0
        creation = _nested(source, "cache_creation")
        numbers.note(creation, "ephemeral_5m_input_tokens", "cache_ephemeral_5m_input")
        numbers.note(creation, "ephemeral_1h_input_tokens", "cache_ephemeral_1h_input")
        server_tools = _nested(source, "server_tool_use")
        numbers.note(server_tools, "web_search_requests", "web_search_requests")
        numbers.note(server_tools, "web_fetch_requests", "web_fetch_requests")
        numbers.note(_nested(source, "output_tokens_details"), "thinking_tokens", "output_reasoning")
        for name in ("service_tier", "speed"):
            told = source.get(name)
            if isinstance(told, str) and told:
                numbers.metadata[name] = told
        if isinstance(iterations := source.get("iterations"), list):
            self._take_iterations(iterations, numbers)
        raw = f"[{self._first},{self._last}]" if self._last else self._first
        return numbers.usage(fresh + cache_read + cache_write, output, cache_read, cache_write, raw)

    def _take_iterations(self, iterations: list[Any], numbers: _Numbers) -> None:  # Any: JSON of any shape
        for iteration in iterations:
            if not isinstance(iteration, dict):
                continue
            kind, model = str(iteration.get("type")), iteration.get("model")
            if kind == "fallback_message" and isinstance(model, str):
                self.served_by = model
            elif (left_out := _LEFT_OUT.get(kind)) is not None:
                for key, name in _ITERATION_NUMBERS:
                    numbers.note_sum(iteration, key, f"{left_out}_{name}")


def _plain_usage(raw: JsonText) -> Usage | None:
    """The numbers of a single plain report; None where it takes the long way to say them."""
    try:
        report = _plain.decode(raw)
    except ValueError:
        return None
    fresh = report.input_tokens
    output = report.output_tokens
    if fresh is None or output is None:
        return None
    cache_read = report.cache_read_input_tokens or 0
    cache_write = report.cache_creation_input_tokens or 0
    metadata: dict[str, int | str] = {}
    creation = report.cache_creation
    short = long = 0
    if creation is not None:
        if creation.ephemeral_5m_input_tokens is not None:
            short = metadata["cache_ephemeral_5m_input"] = creation.ephemeral_5m_input_tokens
        if creation.ephemeral_1h_input_tokens is not None:
            long = metadata["cache_ephemeral_1h_input"] = creation.ephemeral_1h_input_tokens
    numbers = (fresh, output, cache_read, cache_write, short, long)
    if min(numbers) < 0 or max(numbers) > MAX_TOKENS // 4:
        return None
    if report.service_tier:
        metadata["service_tier"] = report.service_tier
    return Usage(fresh, output, cache_read, cache_write, metadata, text_of(raw))


def _object(raw: JsonText) -> dict[str, Any] | None:
    try:
        value = _decode(raw)
    except (ValueError, RecursionError):
        members = object_members(raw) or {}
        value = {key: _value_or_none(member) for key, member in members.items()}
    return value if isinstance(value, dict) and value else None


def _value_or_none(raw: JsonText) -> Any:  # JSON of any shape
    try:
        return _decode(raw)
    except ValueError:
        return None


def _nested(source: _Object, key: str) -> _Object:
    value = source.get(key)
    return value if isinstance(value, dict) else _NOTHING


def _without_nulls(source: _Object) -> dict[str, Any]:
    return {key: value for key, value in source.items() if value is not None}
