"""Decoding of chunked request bodies: the same payload however it was torn, and an end that is never in doubt."""

import h11
import pytest
from http1_stage import torn_at, torn_everywhere
from hypothesis import given
from hypothesis import strategies as st

from ostiary.http1.chunks import ChunkedReader
from ostiary.http1.errors import BodyError

BEHIND = b"POST /next HTTP/1.1\r\n"


def read(segments: list[bytes]) -> tuple[bytes, bool, bytes]:
    """(payload, done, what stands behind the end)."""
    reader = ChunkedReader()
    payload = b""
    rest = b""
    for segment in segments:
        if reader.done:
            rest += segment
            continue
        payload += b"".join(reader.feed(segment))
        if reader.done:
            rest = reader.rest
    return payload, reader.done, rest


def refused(segments: list[bytes]) -> bool:
    try:
        read(segments)
    except BodyError:
        return True
    return False


ACCEPTED = [
    (b"0\r\n\r\n", b""),
    (b"5\r\nhello\r\n0\r\n\r\n", b"hello"),
    (b"5\r\nhello\r\n1\r\n!\r\n000\r\n\r\n", b"hello!"),
    (b"A\r\n0123456789\r\na\r\n0123456789\r\n0\r\n\r\n", b"01234567890123456789"),
    (b"0000000000000005\r\nhello\r\n0\r\n\r\n", b"hello"),
    (b'5;a;b=c;d="e f"\r\nhello\r\n0;last\r\n\r\n', b"hello"),
    (b"5;\r\nhello\r\n0\r\n\r\n", b"hello"),
    (b"2\r\n\r\n\r\n5\r\n0\r\n\r\n\r\n0\r\n\r\n", b"\r\n0\r\n\r\n"),
    (b"0\r\nX-Sum: 5\r\nX-Other:\r\n\r\n", b""),
    (b"0\r\nContent-Length: 5\r\nTransfer-Encoding: x\r\n\r\n", b""),
]


@pytest.mark.parametrize(("raw", "payload"), ACCEPTED, ids=lambda value: repr(value)[:60])
def test_payload_and_end_are_the_same_however_torn(raw: bytes, payload: bytes) -> None:
    for segments in torn_everywhere(raw + BEHIND):
        assert read(segments) == (payload, True, BEHIND)


BROKEN = [
    b"+5\r\nhello\r\n0\r\n\r\n",
    b"-5\r\nhello\r\n0\r\n\r\n",
    b"0x5\r\nhello\r\n0\r\n\r\n",
    b"5_0\r\n",
    b"5h\r\n",
    b" 5\r\nhello\r\n0\r\n\r\n",
    b"5 \r\nhello\r\n0\r\n\r\n",
    b"5\t\r\nhello\r\n0\r\n\r\n",
    b"5 ;a\r\nhello\r\n0\r\n\r\n",
    b"5\x0b\r\nhello\r\n0\r\n\r\n",
    b"5,5\r\nhello\r\n0\r\n\r\n",
    b"\xd9\xa5\r\nhello\r\n0\r\n\r\n",
    b"\r\n5\r\nhello\r\n0\r\n\r\n",
    b";a\r\nhello\r\n0\r\n\r\n",
    b"5\nhello\r\n0\r\n\r\n",
    b"5\rhello\r\n0\r\n\r\n",
    b"5\r\nhello\n0\r\n\r\n",
    b"5\r\nhello\r0\r\n\r\n",
    b"5\r\nhello0\r\n\r\n",
    b"5\r\nhellohello\r\n0\r\n\r\n",
    b"5\r\nhello\r\n\r\n0\r\n\r\n",
    b"5;a\nb\r\nhello\r\n0\r\n\r\n",
    b"5;a\rb\r\nhello\r\n0\r\n\r\n",
    b"5;\x00\r\nhello\r\n0\r\n\r\n",
    b"5;\x7f\r\nhello\r\n0\r\n\r\n",
    b"5;\xff\r\nhello\r\n0\r\n\r\n",
    b"10000000000000000\r\n",
    b"00000000000000005\r\nhello\r\n0\r\n\r\n",
    b"0\r\nno colon\r\n\r\n",
    b"0\r\nX: a\nb\r\n\r\n",
    b"0\r\nX: a\rb\r\n\r\n",
    b"0\r\n\nGET / HTTP/1.1\r\n\r\n",
]


@pytest.mark.parametrize("raw", BROKEN, ids=repr)
def test_broken_framing_is_refused_however_torn(raw: bytes) -> None:
    for segments in torn_everywhere(raw):
        assert refused(segments)


@pytest.mark.parametrize("so_far", [b"5\n", b"5\rh", b"5\nhello", b"0\r\nX: y\n", b"0\r\n\n", b"5;a\rb"], ids=repr)
def test_a_line_that_no_byte_to_come_could_mend_is_refused_at_once(so_far: bytes) -> None:
    with pytest.raises(BodyError, match="CRLF"):
        ChunkedReader().feed(so_far)


def test_lines_and_trailers_are_bounded_however_torn() -> None:
    longest = b"5;" + b"a" * 4094 + b"\r\nhello\r\n0\r\n\r\n"
    for at in range(4090, 4100):
        assert read([longest[:at], longest[at:]])[:2] == (b"hello", True)
        too_long = b"5;a" + longest[2:]
        assert refused([too_long[:at], too_long[at:]])
    assert refused([too_long])
    assert refused([b"0\r\n" + b"X: yyyyyyyyyyyyy\r\n" * 1100])
    assert refused([b"0\r\n"] + [b"X: yyyyyyyyyyyyy\r\n"] * 1100)


def test_all_extensions_together_are_bounded_by_what_they_come_with() -> None:
    signed = b"2000;chunk-signature=" + b"f" * 64 + b"\r\n" + b"x" * 8192 + b"\r\n"
    short = b"1;n=" + b"9" * 12 + b"\r\nx\r\n"
    assert len(read([signed] * 200)[0]) == 200 * 8192
    assert len(read([short] * 20_000)[0]) == 20_000
    flood = b"1;" + b"a" * 1000 + b"\r\nx\r\n"
    assert len(read([flood] * 16)[0]) == 16
    assert refused([flood] * 17)
    assert refused([b"".join([flood] * 17)])


@pytest.mark.parametrize(
    "trailer",
    [b"X Y: z", b": z", b"X\x00: y", b"X: y\x00", b"X : y", b" X: y", b"no colon"],
)
def test_trailers_that_are_no_fields_are_refused(trailer: bytes) -> None:
    assert refused([b"5\r\nhello\r\n0\r\n" + trailer + b"\r\n\r\n"])


def test_what_waits_is_bounded_by_one_line() -> None:
    reader = ChunkedReader()
    reader.feed(b"ffffffff\r\n")
    for _ in range(100):
        assert reader.feed(b"x" * 10_000) == [b"x" * 10_000]


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=8), st.lists(st.integers(0, 500), max_size=6))
def test_what_h11_writes_is_read_back(chunks: list[bytes], cuts: list[int]) -> None:
    writer = h11.Connection(h11.CLIENT)
    head = [("host", "h"), ("transfer-encoding", "chunked")]
    writer.send(h11.Request(method="POST", target="/", headers=head))
    raw = b"".join(writer.send(h11.Data(data=chunk)) or b"" for chunk in chunks)
    raw += (writer.send(h11.EndOfMessage()) or b"") + BEHIND
    assert read(torn_at(raw, cuts)) == (b"".join(chunks), True, BEHIND)
