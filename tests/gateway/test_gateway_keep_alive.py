"""Pings stand between whole events, and never where they would say something wrong."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ostiary.gateway.keep_alive import PING, KeepAlive

START = b'event: message_start\ndata: {"type":"message_start"}\n\n'
DELTA = b'event: content_block_delta\ndata: {"type":"content_block_delta","delta":{"text":"an error"}}\n\n'
STOP = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
ERROR = b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"busy"}}\n\n'
COMMENT = b": waiting\n\n"
LONG = b'event: content_block_delta\ndata: {"type":"content_block_delta","delta":{"text":"' + b"x" * 40_000 + b'"}}\n\n'


def silent_after(*pieces: bytes) -> bytes:
    """What is due once `pieces` have been written and the interval has passed."""
    keep_alive = KeepAlive(10.0)
    for piece in pieces:
        keep_alive.wrote(piece, 100.0)
    return keep_alive.due(110.0)


def test_a_ping_is_due_after_the_interval_of_silence_and_then_again() -> None:
    keep_alive = KeepAlive(10.0)
    keep_alive.wrote(START, 100.0)
    assert keep_alive.due(109.9) == b""
    assert keep_alive.due(110.0) == PING
    assert keep_alive.due(119.9) == b""
    assert keep_alive.due(120.0) == PING
    keep_alive.wrote(DELTA, 125.0)
    assert keep_alive.due(130.0) == b""
    assert keep_alive.due(135.0) == PING


def test_a_clock_that_goes_back_makes_nothing_due() -> None:
    keep_alive = KeepAlive(10.0)
    keep_alive.wrote(START, 100.0)
    assert keep_alive.due(-50.0) == b""


@pytest.mark.parametrize("before", [(), (COMMENT,), (b"\xef\xbb\xbf",), (b"\n\n",), (START[:-1],), (START[:20],)])
def test_there_is_none_before_the_first_event(before: tuple[bytes, ...]) -> None:
    assert silent_after(*before) == b""


@pytest.mark.parametrize(
    "end",
    [
        STOP,
        ERROR,
        STOP + COMMENT,
        STOP.replace(b"\n", b"\r\n"),
        b'data: {"type": "message_stop"}\n\n',
        b'data: {"error":{},"type":"error"}\n\n',
        b"event: error\ndata: " + b"x" * 40_000 + b"\n\n",
    ],
)
@pytest.mark.parametrize("step", [1, 7, 100_000])
def test_there_is_none_after_the_end(end: bytes, step: int) -> None:
    stream = START + DELTA + end
    assert silent_after(*(stream[at : at + step] for at in range(0, len(stream), step))) == b""


@pytest.mark.parametrize(
    "between", [START, DELTA, COMMENT, LONG, DELTA.replace(b"\n", b"\r\n"), b"\xef\xbb\xbf" + START]
)
def test_there_is_one_between_events(between: bytes) -> None:
    assert silent_after(START, between) == PING


def test_words_of_an_end_in_the_content_are_no_end() -> None:
    assert silent_after(START, DELTA.replace(b"an error", b"event: message_stop"), DELTA) == PING


def test_what_follows_the_end_does_not_begin_it_anew() -> None:
    assert silent_after(START, STOP + DELTA, START) == b""


def test_there_is_none_within_an_event() -> None:
    for event in (DELTA, DELTA.replace(b"\n", b"\r\n"), DELTA.replace(b"\n", b"\r"), COMMENT):
        for cut in range(1, len(event)):
            assert silent_after(START, event[:cut]) == b"", event[:cut]
    for cut in (1, 20_000, 40_000, len(LONG) - 1):
        assert silent_after(START, LONG[:cut]) == b""


def test_an_event_of_any_length_is_not_held() -> None:
    keep_alive = KeepAlive(10.0)
    keep_alive.wrote(START + b"event: content_block_delta\ndata: ", 0.0)
    for _ in range(200):
        keep_alive.wrote(b"x" * 10_000, 0.0)
        assert keep_alive._splitter.held < 30_000
    keep_alive.wrote(b"\n\n", 0.0)
    assert keep_alive.due(10.0) == PING


def read(stream: bytes) -> list[tuple[str, str]]:
    """WHATWG HTML §9.2.6: what a reader dispatches."""
    events: list[tuple[str, str]] = []
    name = ""
    data: list[str] = []
    text = stream.decode("latin-1").removeprefix("\xef\xbb\xbf").replace("\r\n", "\n").replace("\r", "\n")
    for line in text.split("\n")[:-1]:
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line:
            if data:
                events.append((name or "message", "\n".join(data)))
            name, data = "", []
        elif field == "event":
            name = value
        elif field == "data":
            data.append(value)
    return events


_ends = st.sampled_from(["\n", "\r\n", "\r"])
_bodies = st.sampled_from(
    [START, DELTA, DELTA, LONG, COMMENT, STOP, ERROR, b"\n", b": half a comment\n", b"id: 7\n", b"data: a\ndata: b\n\n"]
)


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """Events and what may stand between them, in line ends of any kind, cut off anywhere."""
    parts = draw(st.lists(_bodies, max_size=12))
    stream = b"".join(part.replace(b"\n", draw(_ends).encode()) for part in parts)
    stream = draw(st.sampled_from([b"", b"\xef\xbb\xbf"])) + stream
    return stream[: draw(st.integers(0, len(stream)))] if draw(st.booleans()) else stream


@settings(max_examples=300, deadline=None)
@given(streams(), st.data())
def test_a_reader_sees_the_same_events_and_pings_besides(stream: bytes, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=40)))
    keep_alive = KeepAlive(10.0)
    now = 0.0
    sent: list[bytes] = []
    for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        keep_alive.wrote(stream[begin:end], now)
        sent.append(stream[begin:end])
        now += data.draw(st.sampled_from([0.0, 9.0, 10.0, 30.0]))
        if ping := keep_alive.due(now):
            assert ping == PING
            sent.append(ping)
    assert b"".join(piece for piece in sent if piece is not PING) == stream
    original = read(stream)
    seen = read(b"".join(sent))
    pings = sent.count(PING)
    assert len(seen) == len(original) + pings
    assert [event for event in seen if event != ("ping", '{"type": "ping"}')] == original
    if pings:
        assert seen[0] == original[0]
        over = [at for at, event in enumerate(seen) if event[0] in ("message_stop", "error")]
        assert not over or ("ping", '{"type": "ping"}') not in seen[over[0] :]
