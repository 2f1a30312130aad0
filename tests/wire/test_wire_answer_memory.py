"""What all observers of a worker hold together: who finds no room gives up, and everything is given back."""

import gzip
import json
import random
from collections.abc import Callable

import pytest

from ostiary.wire.errors import error_observer
from ostiary.wire.facts import Format, ResponseFacts
from ostiary.wire.formats import observer_for
from ostiary.wire.observer import MAX_BODY, MAX_EVENT, MAX_HELD, NO_MEMORY, AnswerMemory, Observer
from tests.support.wire_streams import JSON, SSE, sse

PIECE = 16 * 1024
FORMATS: tuple[Format, ...] = ("chat_completions", "responses", "messages")


def answer(format_: Format, size: int) -> bytes:
    usage = {"input_tokens": 5, "output_tokens": 7}
    if format_ == "chat_completions":
        usage = {"prompt_tokens": 5, "completion_tokens": 7}
    noise = random.Random(size).randbytes(size // 2).hex()  # as hard to compress as text that is none
    return json.dumps({"id": "id_1", "status": "completed", "usage": usage, "padding": noise}).encode()


def begun(format_: Format, memory: AnswerMemory, content_type: bytes = JSON, coding: bytes = b"") -> Observer:
    observer = observer_for(format_, content_type, "prompts", coding, memory)
    assert observer is not None
    return observer


def feed(observer: Observer, body: bytes) -> None:
    """As a relay does."""
    for at in range(0, len(body), PIECE):
        observer.feed(body[at : at + PIECE])
        observer.compact()


def was_read(facts: ResponseFacts) -> bool:
    return facts.usage is not None and facts.usage.output_tokens == 7 and not facts.unparsed


@pytest.mark.parametrize("format_", FORMATS)
def test_an_answer_that_finds_no_room_gives_up_and_the_others_are_read(format_: Format) -> None:
    memory = AnswerMemory(5 * PIECE)
    body = answer(format_, 4 * PIECE - 200)
    first, second, third = (begun(format_, memory) for _ in range(3))
    feed(first, body[: 3 * PIECE])
    assert memory.held == 3 * PIECE
    feed(second, body[: 2 * PIECE])
    feed(third, body[:PIECE])
    assert (memory.held, memory.refusals) == (5 * PIECE, 1)
    feed(second, body[2 * PIECE :])
    assert (memory.held, memory.refusals) == (3 * PIECE, 2), "what it held is free for others"
    feed(first, body[3 * PIECE :])
    assert was_read(first.finish())
    assert second.finish() == third.finish() == ResponseFacts(unparsed=True, problem=NO_MEMORY)
    assert (memory.held, memory.refusals) == (0, 2)
    fourth = begun(format_, memory)
    feed(fourth, body)
    assert was_read(fourth.finish())


def test_small_answers_are_read_when_there_is_no_memory_at_all() -> None:
    memory = AnswerMemory(0)
    observer = begun("messages", memory)
    observer.feed(answer("messages", 1000))
    assert was_read(observer.finish())
    assert (memory.held, memory.refusals) == (0, 0)


def test_a_compressed_answer_counts_as_it_came_and_is_decoded_at_its_end() -> None:
    body = gzip.compress(answer("messages", 8 * PIECE))
    assert 4 * PIECE < len(body) < 6 * PIECE
    memory = AnswerMemory(6 * PIECE)
    observer = begun("messages", memory, coding=b"gzip")
    feed(observer, body)
    assert memory.held == len(body)
    assert was_read(observer.finish())
    assert memory.held == 0


def ends_whole(observer: Observer, body: bytes) -> None:
    feed(observer, body)


def ends_early(observer: Observer, body: bytes) -> None:
    feed(observer, body[: 3 * PIECE])


def ends_too_long(observer: Observer, body: bytes) -> None:
    piece = body[:PIECE] * 64
    for _ in range(MAX_BODY // len(piece) + 2):
        observer.feed(piece)
        observer.compact()


def ends_too_long_at_once(observer: Observer, body: bytes) -> None:
    feed(observer, body)
    observer.feed(b" " * MAX_BODY)


@pytest.mark.parametrize("coding", [b"", b"gzip"])
@pytest.mark.parametrize("end", [ends_whole, ends_early, ends_too_long, ends_too_long_at_once])
def test_all_is_given_back_however_an_answer_ends(end: Callable[[Observer, bytes], None], coding: bytes) -> None:
    """Bytes that are not gzip's among them."""
    memory = AnswerMemory(2 * MAX_BODY)
    observer = begun("messages", memory, coding=coding)
    end(observer, answer("messages", 4 * PIECE))
    facts = observer.finish()
    assert was_read(facts) == (end is ends_whole and not coding)
    assert bool(facts.problem) == facts.unparsed
    assert (memory.held, memory.refusals) == (0, 0)


def test_the_text_of_an_error_counts_too() -> None:
    memory = AnswerMemory(PIECE)
    observer = error_observer("messages", b"text/plain", b"", memory)
    assert observer is not None
    feed(observer, b"e" * 2 * PIECE)
    assert observer.finish().problem == NO_MEMORY
    assert (memory.held, memory.refusals) == (0, 1)


# --- streams


def long_event(size: int) -> bytes:
    output = [{"type": "message", "content": [{"type": "output_text", "text": "x" * size}]}]
    response = {"id": "id_1", "status": "completed", "output": output, "usage": {"output_tokens": 7}}
    return sse([("response.completed", {"type": "response.completed", "response": response})])


CREATED = sse([("response.created", {"type": "response.created", "response": {"id": "id_1", "model": "m"}})])


def test_a_long_event_counts_while_it_is_under_way() -> None:
    memory = AnswerMemory(MAX_EVENT)
    observer = begun("responses", memory, SSE)
    event = long_event(20 * PIECE)
    feed(observer, CREATED + event[: MAX_HELD // 2])
    assert memory.held == 0, "every stream may have so much"
    feed(observer, event[MAX_HELD // 2 : 10 * PIECE])
    assert 9 * PIECE < memory.held <= 10 * PIECE
    feed(observer, event[10 * PIECE :] + CREATED)
    assert memory.held == 0
    assert was_read(observer.finish())


def test_a_long_event_without_room_is_left_out_and_the_rest_of_the_stream_is_read() -> None:
    memory = AnswerMemory(6 * PIECE)
    observer = begun("responses", memory, SSE)
    feed(observer, CREATED + long_event(20 * PIECE).replace(b"7}", b"9}"))
    assert memory.held == 0
    feed(observer, long_event(PIECE))
    facts = observer.finish()
    assert facts.usage is not None
    assert (facts.usage.output_tokens, facts.unparsed, facts.problem) == (7, True, NO_MEMORY)
    assert (memory.held, memory.refusals) == (0, 1)


@pytest.mark.parametrize("coding", [b"", b"gzip"])
def test_a_stream_that_ends_within_a_long_event_gives_all_back(coding: bytes) -> None:
    memory = AnswerMemory(MAX_EVENT)
    observer = begun("responses", memory, SSE, coding)
    noise = random.Random(7).randbytes(10 * PIECE).hex().encode()
    event = long_event(PIECE).replace(b"xx", b"x" + noise, 1)
    stream = gzip.compress(event)[:-8] + bytes(8) if coding else event
    feed(observer, stream[: len(stream) // 2])
    assert memory.held > MAX_HELD
    if coding:
        feed(observer, stream[len(stream) // 2 :])  # its checksum is wrong
    facts = observer.finish()
    assert facts.unparsed == bool(coding)
    assert memory.held == 0
