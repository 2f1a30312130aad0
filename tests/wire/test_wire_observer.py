"""Observers: which one reads an answer, what they hold, and what happens when reading fails."""

import gzip
import json
import tracemalloc
from typing import Any

import pytest

from ostiary.wire.budget import MAX_FACT_BYTES
from ostiary.wire.facts import Format, ResponseFacts
from ostiary.wire.formats import observer_for
from ostiary.wire.observer import COMPACT_EVERY, MAX_HELD, BodyObserver, StreamObserver
from tests.support.wire_streams import JSON, SSE, Json, observe, sse

TEXT = "words and more words, " * 20


def text_delta(format_: Format) -> bytes:
    match format_:
        case "messages":
            delta = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": TEXT}}
            return sse([("content_block_delta", delta)])
        case "responses":
            kind = "response.output_text.delta"
            return sse([(kind, {"type": kind, "output_index": 0, "delta": TEXT})])
        case _:
            return sse([{"id": "id_1", "choices": [{"index": 0, "delta": {"content": TEXT}}], "usage": None}])


def opening(format_: Format) -> bytes:
    match format_:
        case "messages":
            block = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
            message = {"id": "id_1", "model": "m", "usage": {"input_tokens": 5, "output_tokens": 1}}
            start = ("message_start", {"type": "message_start", "message": message})
            return sse([start, ("content_block_start", block)])
        case "responses":
            added = {"type": "response.output_item.added", "output_index": 0, "item": {"type": "message", "id": "m"}}
            created = {"type": "response.created", "response": {"id": "id_1", "model": "m"}}
            return sse([("response.created", created), ("response.output_item.added", added)])
        case _:
            return sse([{"id": "id_1", "model": "m", "choices": [], "usage": None}])


def ending(format_: Format) -> bytes:
    match format_:
        case "messages":
            delta = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 77}}
            return sse([("message_delta", delta), ("message_stop", {"type": "message_stop"})])
        case "responses":
            usage = {"input_tokens": 5, "output_tokens": 77}
            done = {"type": "response.completed", "response": {"id": "id_1", "status": "completed", "usage": usage}}
            return sse([("response.completed", done)])
        case _:
            usage = {"prompt_tokens": 5, "completion_tokens": 77}
            return sse([{"id": "id_1", "model": "m", "choices": [], "usage": usage}, "data: [DONE]\n\n"])


FORMATS: tuple[Format, ...] = ("chat_completions", "responses", "messages")
every_format = pytest.mark.parametrize("format_", FORMATS)


@every_format
@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
def test_a_stream_may_come_byte_by_byte(format_: Format, line_end: bytes) -> None:
    stream = (opening(format_) + text_delta(format_) + ending(format_)).replace(b"\n", line_end)
    facts = observe(format_, stream, cuts=range(len(stream)), compact_at=range(2 * len(stream)))
    assert facts.complete
    assert facts == observe(format_, stream)


@every_format
def test_a_huge_stream_is_read_in_little_memory(format_: Format) -> None:
    observer = observer_for(format_, SSE)
    assert observer is not None
    observer.feed(opening(format_))
    piece = text_delta(format_) * 8
    tracemalloc.start()
    fed = 0
    for _ in range(4000):
        observer.feed(bytes(bytearray(piece)))  # a piece of its own, like from a socket
        fed += len(piece)
        if fed > COMPACT_EVERY:
            observer.compact()
            fed = 0
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    observer.feed(ending(format_))
    facts = observer.finish()
    assert held < MAX_HELD
    assert peak < 6 * COMPACT_EVERY
    assert facts.usage is not None
    assert (facts.usage.input_tokens, facts.usage.output_tokens) == (5, 77)
    assert facts.complete
    assert not facts.unparsed
    assert facts.response_id == "id_1"


def test_a_long_event_without_facts_is_dropped_on_its_way() -> None:
    kind = "response.image_generation_call.partial_image"
    image = sse([(kind, {"type": kind, "partial_image_b64": "iVBOR" * 100_000})])
    image = image.replace(b"}\n\n", b"\ndata: }\n\n")
    observer = observer_for("responses", SSE)
    assert observer is not None
    observer.feed(opening("responses"))
    tracemalloc.start()
    for begin in range(0, len(image), COMPACT_EVERY):
        observer.feed(image[begin : begin + COMPACT_EVERY])
        observer.compact()
        held, _ = tracemalloc.get_traced_memory()
        assert held < MAX_HELD + 2 * COMPACT_EVERY
    tracemalloc.stop()
    observer.feed(ending("responses"))
    facts = observer.finish()
    assert facts.complete
    assert not facts.unparsed


def test_a_long_event_with_facts_is_held_and_read() -> None:
    output = [{"type": "message", "content": [{"type": "output_text", "text": "x" * 400_000}]}]
    usage = {"input_tokens": 5, "output_tokens": 77}
    response: Json = {"id": "id_1", "status": "completed", "output": output, "usage": usage}
    stream = sse([("response.completed", {"type": "response.completed", "response": response})])
    facts = observe("responses", stream, cuts=range(0, len(stream), COMPACT_EVERY), compact_at=range(100))
    assert facts.usage is not None
    assert facts.usage.output_tokens == 77


def test_facts_are_bounded_and_the_cut_is_marked() -> None:
    start = {"type": "content_block_start", "index": 0, "content_block": {"type": "tool_use", "id": "t", "name": "W"}}
    piece = {"type": "input_json_delta", "partial_json": "x" * 65_536}
    delta = ("content_block_delta", {"type": "content_block_delta", "index": 0, "delta": piece})
    count = MAX_FACT_BYTES // 65_536 + 10
    stream = sse([("content_block_start", start), *[delta] * count]) + ending("messages")
    facts = observe("messages", stream)
    assert MAX_FACT_BYTES - 70_000 < len(facts.tool_calls[0].input) <= MAX_FACT_BYTES
    assert facts.tool_calls[0].truncated
    assert facts.unparsed
    assert facts.usage is not None
    assert facts.complete


def entries(format_: Format, count: int) -> bytes:
    match format_:
        case "messages":
            block = {"type": "tool_use", "id": "t", "name": "n", "input": {}}
            events = [{"type": "content_block_start", "index": i, "content_block": block} for i in range(count)]
        case "responses":
            item = {"type": "function_call", "name": "n", "arguments": "{}"}
            events = [{"type": "response.output_item.done", "output_index": i, "item": item} for i in range(count)]
        case _:
            tools = [{"index": i, "id": "t", "function": {"name": "n", "arguments": "{}"}} for i in range(count)]
            events = [{"choices": [{"index": 0, "delta": {"tool_calls": [tool]}}]} for tool in tools]
    return sse(events)


@every_format
def test_entries_are_bounded_and_the_usage_behind_them_is_read(format_: Format) -> None:
    stream = entries(format_, 20_000) + ending(format_)
    cuts = range(0, len(stream), COMPACT_EVERY)
    facts = observe(format_, stream, cuts=cuts, compact_at=range(len(cuts) + 1))
    assert 4000 < len(facts.tool_calls) <= 4096
    assert facts.unparsed
    assert facts.usage is not None
    assert facts.usage.output_tokens == 77


def test_what_is_kept_of_a_body_is_bounded_too() -> None:
    big = {"type": "tool_use", "id": "a", "name": "W", "input": {"text": "x" * (MAX_FACT_BYTES + 1)}}
    small = {"type": "tool_use", "id": "b", "name": "W", "input": {}}
    body = {"id": "id_1", "content": [small, big], "usage": {"input_tokens": 1, "output_tokens": 2}}
    facts = observe("messages", json.dumps(body).encode(), content_type=JSON)
    assert [call.tool_call_id for call in facts.tool_calls] == ["b"]
    assert facts.unparsed
    assert facts.usage is not None


@pytest.mark.parametrize(
    ("content_type", "kind"),
    [
        (b"text/event-stream", StreamObserver),
        (b"Text/Event-Stream; charset=utf-8", StreamObserver),
        (b"application/json", BodyObserver),
        (b"application/problem+json;charset=utf-8", BodyObserver),
        (b"text/html", None),
        (b"audio/mpeg", None),
        (b"", None),
    ],
)
def test_the_answers_own_content_type_chooses_the_observer(content_type: bytes, kind: type | None) -> None:
    observer = observer_for("messages", content_type)
    assert observer is None if kind is None else isinstance(observer, kind)


# --- content codings


def gzipped(stream: bytes) -> bytes:
    return gzip.compress(stream)


@every_format
def test_compressed_streams_are_read(format_: Format) -> None:
    stream = opening(format_) + text_delta(format_) * 40 + ending(format_)
    plain = observe(format_, stream)
    packed = gzipped(stream)
    cuts = list(range(0, len(packed), 37))
    assert observe(format_, packed, encoding=b"gzip", cuts=cuts, compact_at=range(0, 1000, 3)) == plain
    assert plain.complete


def test_a_compressed_body_is_read() -> None:
    body = json.dumps({"id": "id_1", "content": [], "usage": {"input_tokens": 1, "output_tokens": 2}}).encode()
    facts = observe("messages", gzipped(body), content_type=JSON, encoding=b"gzip", cuts=[3, 9], compact_at=[0])
    assert facts.response_id == "id_1"
    assert not facts.unparsed


def test_broken_compression_keeps_what_was_read_before() -> None:
    packed = gzipped(opening("messages") + text_delta("messages") * 2000 + ending("messages"))
    broken = packed[:-8] + bytes(8)  # the checksum
    facts = observe("messages", broken, encoding=b"gzip", cuts=range(0, len(broken), 500), compact_at=range(100))
    assert facts.unparsed
    assert "content coding" in facts.problem
    assert facts.response_id == "id_1"


def test_an_unknown_coding_is_not_guessed() -> None:
    facts = observe("messages", b"\x00" * 100, encoding=b"compress", compact_at=[0])
    assert facts == ResponseFacts(unparsed=True, problem=facts.problem)
    assert facts.problem


def test_a_stream_that_expands_without_end_is_stopped() -> None:
    bomb = gzipped(bytes(70 * 1024 * 1024))
    facts = observe("messages", bomb, encoding=b"gzip", cuts=range(0, len(bomb), 4096), compact_at=range(100))
    assert facts.unparsed


# --- what fails


class _Failing:
    """A reader with a mistake in it."""

    noise: tuple[bytes, ...] = ()

    def __init__(self, *, in_facts: bool) -> None:
        self._in_facts = in_facts
        self.blocks = 0

    def read(self, block: bytes) -> None:
        self.blocks += 1
        if not self._in_facts and b"bad" in block:
            raise RuntimeError("secret words of the answer")

    def facts(self) -> ResponseFacts:
        if self._in_facts:
            raise RuntimeError("secret words of the answer")
        return ResponseFacts(response_id=str(self.blocks))


def test_a_readers_mistake_never_reaches_the_relay() -> None:
    observer = StreamObserver(_Failing(in_facts=False))
    for piece in (b"data: good\n\n", b"data: bad\n\n", b"data: good\n\n"):
        observer.feed(piece)
        observer.compact()
    facts = observer.finish()
    assert facts == ResponseFacts(response_id="3", unparsed=True, problem="RuntimeError while reading events")
    facts = StreamObserver(_Failing(in_facts=True)).finish()
    assert facts == ResponseFacts(unparsed=True, problem="RuntimeError while gathering facts")


def test_a_body_readers_mistake_never_reaches_the_relay() -> None:
    def failing(_body: bytes) -> ResponseFacts:
        raise RuntimeError("secret words of the answer")

    observer = BodyObserver(failing)
    observer.feed(b"{}")
    facts = observer.finish()
    assert facts == ResponseFacts(unparsed=True, problem="RuntimeError while reading the answer")


@every_format
@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"<html>", b'{"a":' * 50_000])
def test_a_body_that_is_no_answer_is_unparsed(format_: Format, body: bytes) -> None:
    facts = observe(format_, body, content_type=JSON)
    assert facts.unparsed
    assert facts.problem
    assert not facts.complete


@every_format
def test_a_body_is_read_wherever_it_is_torn(format_: Format) -> None:
    members: dict[Format, Any] = {
        "messages": {"usage": {"input_tokens": 5, "output_tokens": 7}},
        "responses": {"status": "completed", "usage": {"input_tokens": 5, "output_tokens": 7}},
        "chat_completions": {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 7}},
    }
    body = json.dumps({"id": "id_1", "model": "m"} | members[format_], indent=1).encode()
    for at in range(len(body)):
        facts = observe(format_, body, content_type=JSON, cuts=[at], compact_at=[0])
        assert facts.usage is not None
        assert facts.usage.output_tokens == 7
        assert facts.complete
