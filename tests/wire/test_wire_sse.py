from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from ostiary.wire.sse import EventSplitter, normalise, parse

streams = st.lists(
    st.sampled_from([b"\r", b"\n", b"\r\n", b"data: x", b"data:y", b"event: e", b": note", b"id: 1", b"data", b"\xff"]),
    max_size=24,
).map(b"".join)


def dispatched_by_the_book(stream: bytes) -> list[tuple[bytes, bytes]]:
    """WHATWG HTML §9.2.6, line by line."""
    lines, line, previous = [], b"", b""
    for byte in (stream[i : i + 1] for i in range(len(stream))):
        if byte == b"\n" and previous == b"\r":
            pass
        elif byte in (b"\r", b"\n"):
            lines.append(line)
            line = b""
        else:
            line += byte
        previous = byte
    events, name, data = [], b"", []
    for line in lines:
        if not line:
            if data:
                events.append((name, b"\n".join(data)))
            name, data = b"", []
        elif not line.startswith(b":"):
            field, _, value = line.partition(b":")
            value = value.removeprefix(b" ")
            if field == b"event":
                name = value
            elif field == b"data":
                data.append(value)
    return events


def split(stream: bytes, cuts: list[int]) -> tuple[list[bytes], bytes]:
    splitter = EventSplitter()
    bounds = [0, *sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]
    events = [event for begin, end in pairwise(bounds) for event in splitter.feed(stream[begin:end])]
    return events, splitter.flush()


@given(streams, st.lists(st.integers(0, 400), max_size=8))
def test_slices_are_the_input_and_do_not_depend_on_where_it_is_torn(stream: bytes, cuts: list[int]) -> None:
    events, rest = split(stream, cuts)
    assert b"".join(events) + rest == stream
    assert (events, rest) == split(stream, [])


@given(streams, st.lists(st.integers(0, 400), max_size=8))
def test_slices_hold_the_events_of_the_specification(stream: bytes, cuts: list[int]) -> None:
    events, rest = split(stream, cuts)
    if rest.endswith((b"\r\r", b"\n\r")):  # it waited for the next byte, which never came
        events.append(rest)
    read = [(event.name, event.data) for event in map(parse, events) if event.data is not None]
    assert read == dispatched_by_the_book(stream)


@given(streams)
def test_normalising_keeps_the_events(stream: bytes) -> None:
    assert dispatched_by_the_book(normalise(stream)) == dispatched_by_the_book(stream)


def test_an_event_is_handed_on_with_the_byte_that_ends_it() -> None:
    splitter = EventSplitter()
    assert splitter.feed(b"data: 1\n") == []
    assert splitter.feed(b"\n") == [b"data: 1\n\n"]
    assert splitter.feed(b"data: 2\r\n\r") == []
    assert splitter.feed(b"\n") == [b"data: 2\r\n\r\n"]


def test_a_released_event_goes_on_as_the_rest_of_itself() -> None:
    splitter = EventSplitter()
    assert splitter.feed(b"data: 123456\n") == []
    assert splitter.release() == b"data: 1234"
    assert splitter.feed(b"\ndata: 7\n\n") == [b"56\n\n", b"data: 7\n\n"]


def test_a_byte_order_mark_belongs_to_no_field() -> None:
    assert parse(b"\xef\xbb\xbfdata: x\n\n").data == b"x"


def test_only_one_space_is_dropped_and_data_lines_are_joined() -> None:
    event = parse(b"event: a\ndata:  x\ndata\ndata:y\n\n")
    assert (event.name, event.data) == (b"a", b" x\n\ny")
