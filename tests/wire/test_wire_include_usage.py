import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ostiary.wire.openai_chat import UsageChunkFilter, read_request, splice_include_usage
from tests.support.wire_streams import DISTURBANCES, Json, sse, torn_everywhere

USAGE_CHUNK: Json = {"id": "c", "choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2}}


def text(content: str, **members: Any) -> Json:
    return {
        "id": "c",
        "choices": [{"index": 0, "delta": {"content": content, "tool_calls": []}}],
        "usage": None,
    } | members


BEFORE = [text("hello"), text('"choices":[] "usage":{}'), {"id": "", "choices": [], "prompt_filter_results": []}]
AFTER: list[Any] = ["data: [DONE]\n\n"]


def through(stream: bytes, cuts: list[int]) -> bytes:
    chunks = UsageChunkFilter()
    bounds = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    out = [chunks.feed(stream[begin:end]) for begin, end in pairwise(bounds)]
    return b"".join(out) + chunks.flush()


@settings(max_examples=60, deadline=None)
@given(
    st.booleans(),
    st.sampled_from(
        ["crlf", "cr", "no space after data", "comments between events", "ids and retries", "byte order mark"]
    ),
    st.lists(st.integers(0, 900), max_size=8),
)
def test_only_the_usage_chunk_is_withheld(spaced: bool, disturbance: str, cuts: list[int]) -> None:
    disturb = DISTURBANCES[disturbance]
    for form in (lambda stream: stream, disturb):
        stream = form(sse([*BEFORE, USAGE_CHUNK, *AFTER], spaced=spaced))
        chunk = sse([USAGE_CHUNK], spaced=spaced)
        withheld = form(b"\n\n" + chunk)[len(form(b"\n\n")) :] if form is disturb else chunk
        if disturbance == "comments between events" and form is disturb:
            withheld = chunk  # the comment behind it is an event of its own
        assert stream.count(withheld) == 1
        assert through(stream, cuts) == stream.replace(withheld, b"")


def test_the_result_does_not_depend_on_where_the_stream_is_torn() -> None:
    for form in (bytes, DISTURBANCES["crlf"]):
        stream, kept = form(sse([*BEFORE, USAGE_CHUNK, *AFTER])), form(sse([*BEFORE, *AFTER]))
        for at in torn_everywhere(stream):
            assert through(stream, [at]) == kept
        assert through(stream, list(range(len(stream)))) == kept


def test_chunks_with_choices_keep_their_usage() -> None:
    stream = sse([text("x", usage={"prompt_tokens": 1}), text("y", choices=[]), *AFTER])
    assert through(stream, []) == stream


def test_an_event_goes_on_as_soon_as_its_end_has_come() -> None:
    chunks = UsageChunkFilter()
    first = sse([text("x")])
    assert chunks.feed(first) == first
    assert chunks.feed(first[:-1]) == b""
    assert chunks.feed(b"\n") == first
    assert chunks.withheld == 0
    assert chunks.feed(sse([USAGE_CHUNK])) == b""
    assert chunks.withheld == 1


def test_what_is_no_whole_event_at_the_end_goes_on_unless_it_is_the_one() -> None:
    assert through(b"data: {\n", []) == b"data: {\n"
    assert through(sse([text("x"), USAGE_CHUNK])[:-1], []) == sse([text("x")])


def test_a_very_long_event_is_not_held() -> None:
    chunks = UsageChunkFilter()
    piece = b"data: " + b"x" * 40_000
    assert chunks.feed(piece) == b""
    sent = chunks.feed(piece)
    assert len(sent) > 64 * 1024
    rest = chunks.feed(b"\n\n") + chunks.feed(sse([USAGE_CHUNK, *AFTER]))
    assert sent + rest + chunks.flush() == piece + piece + b"\n\n" + sse(AFTER)


# --- the edit


def spliced(body: bytes) -> bytes:
    return splice_include_usage(body, read_request(body))


def test_the_option_is_put_in_front_when_there_are_none() -> None:
    assert spliced(b'{ "model":"m"}') == b'{"stream_options":{"include_usage":true}, "model":"m"}'


def test_the_option_is_merged_into_an_object() -> None:
    body = b'{"model":"m" , "stream_options" : {"include_obfuscation" : false}}'
    assert spliced(body) == b'{"model":"m" , "stream_options" : {"include_obfuscation" : false,"include_usage":true}}'
    assert spliced(b'{"model":"m","stream_options":{}}') == b'{"model":"m","stream_options":{"include_usage":true}}'
    assert spliced(b'{"model":"m","stream_options":null}') == b'{"model":"m","stream_options":{"include_usage":true}}'
    body = b'{"model":"m","stream_options":{"include_usage": false , "x":1}}'
    assert spliced(body) == b'{"model":"m","stream_options":{"include_usage": true , "x":1}}'


@pytest.mark.parametrize("options", ['{"include_usage":true}', '"all"', "[1]", "7"])
def test_options_that_ask_already_or_are_no_object_stay(options: str) -> None:
    body = f'{{"model":"m","stream_options":{options}}}'.encode()
    assert spliced(body) == body


def test_an_escaped_name_and_a_body_of_mine_like_text_are_no_trap() -> None:
    body = b'{"model":"m","messages":[{"content":"\\"stream_options\\":{}"}],"stream\\u005foptions":{"x":1}}'
    assert json.loads(spliced(body))["stream_options"] == {"x": 1, "include_usage": True}
    assert spliced(body).startswith(b'{"model":"m","messages":[{"content":"\\"stream_options\\":{}"}]')


def test_options_with_a_number_that_nobody_can_hold_are_merged_into_all_the_same() -> None:
    body = b'{"model":"m","stream":true,"stream_options":{"x":1e999}}'
    asking = splice_include_usage(body, read_request(body))
    assert asking == b'{"model":"m","stream":true,"stream_options":{"x":1e999,"include_usage":true}}'
    assert splice_include_usage(asking, read_request(asking)) == asking
