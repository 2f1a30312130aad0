"""AWS event streams: what is written is read again however it is torn, and no damage goes unnoticed.

botocore's own reader is the independent implementation that ours is compared with.
"""

import struct
from datetime import UTC, datetime, timedelta
from uuid import UUID
from zlib import crc32

import pytest
from botocore.eventstream import EventStreamBuffer
from hypothesis import given
from hypothesis import strategies as st

from ostiary.wire.event_stream import (
    MAX_HEADERS,
    MAX_PAYLOAD,
    EventStreamError,
    EventStreamReader,
    Message,
    Value,
    encode,
)

_MOMENTS = st.integers(-(10**11), 10**12).map(lambda ms: datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=ms))
_VALUES: st.SearchStrategy[Value] = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.binary(max_size=40),
    st.text(max_size=20),
    _MOMENTS,
    st.uuids(),
)
_NAMES = st.text(min_size=1, max_size=20).filter(lambda name: 0 < len(name.encode()) < 256)
_MESSAGES = st.builds(Message, st.dictionaries(_NAMES, _VALUES, max_size=5), st.binary(max_size=200))

CHUNK = encode({":message-type": "event", ":event-type": "chunk", "ok": True, "n": 7}, b'{"bytes":"e30="}')


def read_whole(data: bytes) -> list[Message]:
    reader = EventStreamReader()
    messages = reader.feed(data)
    reader.finish()
    return messages


def damaged(total: int, headers: int, rest: bytes = b"") -> bytes:
    """A message with these lengths, both checksums right."""
    lengths = struct.pack("!II", total, headers)
    body = lengths + struct.pack("!I", crc32(lengths)) + rest
    return body + struct.pack("!I", crc32(body))


@given(st.lists(_MESSAGES, max_size=4), st.lists(st.integers(0, 2000), max_size=8))
def test_what_is_written_is_read_however_it_is_torn(messages: list[Message], cuts: list[int]) -> None:
    data = b"".join(encode(message.headers, message.payload) for message in messages)
    places = sorted({min(cut, len(data)) for cut in cuts})
    reader = EventStreamReader()
    found: list[Message] = []
    for begin, end in zip([0, *places], [*places, len(data)], strict=True):
        found += reader.feed(data[begin:end])
    reader.finish()
    assert found == messages


def test_every_single_tear_gives_the_same_messages() -> None:
    data = CHUNK * 2
    for at in range(len(data) + 1):
        reader = EventStreamReader()
        assert reader.feed(data[:at]) + reader.feed(data[at:]) == read_whole(CHUNK) * 2
        reader.finish()


def test_a_stream_byte_by_byte_is_read() -> None:
    reader = EventStreamReader()
    found = [message for byte in CHUNK * 3 for message in reader.feed(bytes((byte,)))]
    assert found == read_whole(CHUNK) * 3


@given(_MESSAGES, st.data())
def test_every_flipped_bit_is_noticed(message: Message, data: st.DataObject) -> None:
    frame = bytearray(encode(message.headers, message.payload))
    at = data.draw(st.integers(0, len(frame) * 8 - 1))
    frame[at // 8] ^= 1 << at % 8
    with pytest.raises(EventStreamError):
        read_whole(bytes(frame))


def test_every_byte_that_is_cut_off_is_noticed_and_told() -> None:
    for length in range(1, len(CHUNK)):
        reader = EventStreamReader()
        assert reader.feed(CHUNK[:length]) == []
        assert reader.held == length
        with pytest.raises(EventStreamError, match=rf"ends within a message, after {length}"):
            reader.finish()


@given(_MESSAGES)
def test_botocore_reads_what_we_write(message: Message) -> None:
    buffer = EventStreamBuffer()
    buffer.add_data(encode(message.headers, message.payload))
    (found,) = list(buffer)
    assert found.payload == message.payload
    assert vars(found)["headers"] == {name: _as_botocore(value) for name, value in message.headers.items()}


def _as_botocore(value: Value) -> object:
    if isinstance(value, datetime):
        return (value - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
    return value.bytes if isinstance(value, UUID) else value


@given(st.binary(max_size=400))
def test_noise_ends_in_an_error_or_waits_but_never_crashes(noise: bytes) -> None:
    reader = EventStreamReader()
    try:
        reader.feed(noise)
        reader.finish()
    except EventStreamError:
        pass
    assert reader.held <= len(noise)


@given(st.binary(max_size=120))
def test_noise_between_right_checksums_never_crashes(block: bytes) -> None:
    frame = damaged(16 + len(block), len(block), block)
    try:
        (message,) = read_whole(frame)
    except EventStreamError:
        return
    assert message.payload == b""


@pytest.mark.parametrize(
    ("total", "headers", "said"),
    [
        (16 + MAX_HEADERS + 1, MAX_HEADERS + 1, "bytes of headers"),
        (16 + MAX_PAYLOAD + 1, 0, "bytes of payload"),
        (0xFFFFFFFF, 0, "bytes of payload"),
        (0, 0, "shorter than its own headers"),
        (15, 0, "shorter than its own headers"),
        (20, 10, "shorter than its own headers"),
    ],
)
def test_lengths_that_cannot_be_are_refused_before_anything_is_held(total: int, headers: int, said: str) -> None:
    reader = EventStreamReader()
    with pytest.raises(EventStreamError, match=said):
        reader.feed(damaged(total, headers))
    assert reader.held == 0


def test_a_damaged_length_is_noticed_at_once_and_not_waited_for() -> None:
    for place in range(8):
        flipped = bytearray(CHUNK)
        flipped[place] ^= 0x01
        with pytest.raises(EventStreamError, match="prelude does not fit"):
            EventStreamReader().feed(bytes(flipped[:12]))


@pytest.mark.parametrize(
    ("block", "said"),
    [
        (b"\x01a\x0a", "unknown type 10"),
        (b"\x01a\x00\x01a\x01", "twice"),
        (b"\x05a\x00", "end within a header"),
        (b"\x01a\x07\x00\x09x", "end within a header"),
        (b"\x01a\x04\x00", "end within a header"),
        (b"\x01a\x09\x00", "end within a header"),
        (b"\x01a\x08\x7f\xff\xff\xff\xff\xff\xff\xff", "hold what cannot be"),
        (b"\x01\xff\x00", "not UTF-8"),
        (b"\x01a\x07\x00\x01\xff", "not UTF-8"),
    ],
)
def test_headers_that_cannot_be_are_an_error_that_says_so(block: bytes, said: str) -> None:
    with pytest.raises(EventStreamError, match=said):
        read_whole(damaged(16 + len(block), len(block), block))


def test_what_came_before_the_damage_is_given_and_then_the_error_stays() -> None:
    reader = EventStreamReader()
    assert len(reader.feed(CHUNK + CHUNK[:-1] + b"\x00")) == 1
    for _ in range(2):
        with pytest.raises(EventStreamError, match="does not fit its checksum"):
            reader.feed(CHUNK)
    with pytest.raises(EventStreamError, match="does not fit its checksum"):
        reader.finish()


def test_a_large_message_is_read_from_small_pieces_without_being_copied_each_time() -> None:
    payload = bytes(4 * 1024 * 1024)
    data = encode({}, payload)
    reader = EventStreamReader()
    found = [message for at in range(0, len(data), 4096) for message in reader.feed(data[at : at + 4096])]
    assert [len(message.payload) for message in found] == [len(payload)]


@pytest.mark.parametrize(
    ("headers", "payload"),
    [
        ({"": True}, b""),
        ({"n" * 256: True}, b""),
        ({"n": 2**63}, b""),
        ({"n": "x" * 65536}, b""),
        ({f"n{i}": "x" * 65535 for i in range(3)}, b""),
        ({}, bytes(MAX_PAYLOAD + 1)),
    ],
)
def test_what_no_message_can_hold_is_not_written(headers: dict[str, Value], payload: bytes) -> None:
    with pytest.raises(ValueError, match=r"must|larger"):
        encode(headers, payload)


def test_a_header_that_is_no_text_reads_as_no_text() -> None:
    (message,) = read_whole(CHUNK)
    assert message.text(":event-type") == "chunk"
    assert message.text("n") == message.text("missing") == ""
