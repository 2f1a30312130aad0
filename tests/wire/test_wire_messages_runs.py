"""Runs of deltas that differ in their text alone are read at once, and mean what they mean one by one."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ostiary.wire.anthropic_messages import StreamReader
from ostiary.wire.events import texts_alike
from ostiary.wire.facts import ResponseFacts

KINDS = {"input_json_delta": "partial_json", "thinking_delta": "thinking", "text_delta": "text"}
PADDING = "x" * 40
"""Short blocks are read event by event anyhow."""


def event(name: str, data: str) -> bytes:
    return f"event: {name}\ndata: {data}\n\n".encode("utf-8", "surrogatepass")


def opened(index: int, kind: str) -> bytes:
    block = f'{{"type":"{kind}","id":"t{index}","name":"Read","input":{{}}}}'
    return event("content_block_start", f'{{"type":"content_block_start","index":{index},"content_block":{block}}}')


def delta(index: int, kind: str, written: str, more: str = "") -> bytes:
    """`written`: the text as it stands in the JSON, which it may break."""
    inner = f'{{"type":"{kind}","{KINDS[kind]}":"{PADDING}{written}"{more}}}'
    return event("content_block_delta", f'{{"type":"content_block_delta","index":{index},"delta":{inner}}}')


def closed(index: int) -> bytes:
    return event("content_block_stop", f'{{"type":"content_block_stop","index":{index}}}')


ENDING = event(
    "message_delta", '{"type":"message_delta","delta":{"stop_reason":"tool_use"},"usage":{"output_tokens":9}}'
)
PING = event("ping", '{"type":"ping"}')

WRITTEN = st.sampled_from(
    [
        "",
        "a",
        "é",
        "\\n",
        "\\\\",
        "\\",
        '\\"',
        '"',
        '","',
        ',"b',
        '"}}',
        "\\ud83d",
        "\\ude00",
        "\\u00e9",
        "\ud800",
        "\x01",
        "}",
    ]
)
EVENTS = st.one_of(
    st.builds(
        lambda index, kind, texts, more: b"".join(delta(index, kind, text, more) for text in texts),
        st.integers(0, 3),
        st.sampled_from(sorted(KINDS)),
        st.lists(
            WRITTEN | st.text(max_size=5).map(lambda t: t.replace('"', "").replace("\\", "")), min_size=1, max_size=30
        ),
        st.sampled_from(["", "", "", ',"signature":"s"', ' ,"x":1']),
    ),
    st.builds(opened, st.integers(0, 3), st.sampled_from(["tool_use", "thinking", "text"])),
    st.builds(closed, st.integers(0, 3)),
    st.sampled_from([PING, b": a comment\n", b"id: 7\n", b"data: {}\n", ENDING]),
)


def facts(*blocks: bytes) -> ResponseFacts:
    reader = StreamReader("prompts")
    for block in blocks:
        reader._apply(block)  # `read` passes over deltas of no open block, malformed or not
    return reader.facts()


def one_by_one(stream: bytes) -> ResponseFacts:
    return facts(*(part + b"\n\n" for part in stream.split(b"\n\n") if part.strip()))


@given(st.lists(EVENTS, min_size=1, max_size=12))
@settings(max_examples=400, deadline=None)
@example([opened(0, "tool_use"), delta(0, "input_json_delta", "\\") * 12 + delta(0, "input_json_delta", ',"b') * 12])
def test_at_once_as_one_by_one(parts: list[bytes]) -> None:
    stream = b"".join(parts)
    if not stream.endswith(b"\n\n"):
        stream += b"\n\n"
    assert facts(stream) == one_by_one(stream)


def test_a_run_is_read_at_once() -> None:
    texts = [f'{{\\"n\\": {n}}}' for n in range(50)]
    run = b"".join(delta(1, "input_json_delta", text) for text in texts)
    at = run.find(b'"partial_json":"') + len(b'"partial_json":"')
    found = texts_alike(run + closed(1), 0, at, b'"}}\n\n')
    assert found == ("".join(PADDING + text.replace("\\", "") for text in texts), len(run))


def test_a_run_ends_with_the_last_that_is_alike() -> None:
    run = delta(1, "thinking_delta", "a") * 20
    at = run.find(b'"thinking":"') + len(b'"thinking":"')
    rest = delta(1, "thinking_delta", "a", ',"signature":"s"')[:-1] + PING
    assert texts_alike(run + PING + rest, 0, at, b'"}}\n\n') is None, "is the last one alike?"
    assert texts_alike(run + closed(1) + PING, 0, at, b'"}}\n\n') == ((PADDING + "a") * 20, len(run))


@pytest.mark.parametrize(
    "odd",
    [PING, delta(2, "thinking_delta", "b"), delta(1, "thinking_delta", "b", ',"x":""'), delta(1, "text_delta", "b")],
)
def test_a_run_with_something_else_in_it_is_none(odd: bytes) -> None:
    run = delta(1, "thinking_delta", "a") * 20
    at = run.find(b'"thinking":"') + len(b'"thinking":"')
    assert texts_alike(run + odd + run, 0, at, b'"}}\n\n') is None


@pytest.mark.parametrize("text", ["\\\\", "\\", '"', "\x01", "\n"])
def test_a_run_whose_strings_are_not_plain_is_none(text: str) -> None:
    run = delta(1, "thinking_delta", text) * 20
    at = run.find(b'"thinking":"') + len(b'"thinking":"')
    assert texts_alike(run, 0, at, b'"}}\n\n') is None
    assert texts_alike(run[:-3], 0, at, b'"}}\n\n') is None
