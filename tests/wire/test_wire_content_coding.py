import gzip
import zlib
from collections.abc import Callable
from itertools import pairwise

import brotli
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from ostiary.wire.content_coding import (
    CodingError,
    DecodedTooLongError,
    UnsupportedCodingError,
    decode_body,
    decoder_for,
    narrow_accept_encoding,
)


def raw_deflate(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-15)
    return compressor.compress(data) + compressor.flush()


CODINGS: dict[str, tuple[bytes, Callable[[bytes], bytes]]] = {
    "gzip": (b"gzip", gzip.compress),
    "x-gzip": (b"X-GZIP", gzip.compress),
    "deflate": (b"deflate", zlib.compress),
    "raw deflate": (b"deflate", raw_deflate),
    "br": (b"br", brotli.compress),
    "zstd": (b"zstd", zstandard.ZstdCompressor().compress),
}
every_coding = pytest.mark.parametrize("coding", CODINGS)


def decode(coding: str, data: bytes, cuts: list[int], cap: int = 10_000_000) -> bytes:
    decoder = decoder_for(CODINGS[coding][0], cap)
    assert decoder is not None
    bounds = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    parts = [part for begin, end in pairwise(bounds) for part in decoder.decode(data[begin:end])]
    return b"".join(parts)


@given(st.sampled_from(sorted(CODINGS)), st.binary(max_size=2000), st.lists(st.integers(0, 3000), max_size=6))
def test_bodies_are_decoded_wherever_they_are_torn(coding: str, body: bytes, cuts: list[int]) -> None:
    assert decode(coding, CODINGS[coding][1](body), cuts) == body


@every_coding
def test_more_than_one_piece_of_output_comes_out_whole(coding: str) -> None:
    body = bytes(range(256)) * 8192
    encoded = CODINGS[coding][1](body)
    assert decode(coding, encoded, []) == body
    assert decode(coding, encoded, [7, len(encoded) // 2]) == body


def test_no_output_stays_behind_when_a_piece_is_full() -> None:
    for size in range(256 * 1024 - 20, 256 * 1024 + 300, 7):
        assert decode("raw deflate", raw_deflate(bytes(size)), []) == bytes(size)


@every_coding
def test_a_bomb_is_stopped_at_the_cap(coding: str) -> None:
    bomb = CODINGS[coding][1](bytes(20_000_000))
    assert len(bomb) < 50_000
    decoder = decoder_for(CODINGS[coding][0], 1_000_000)
    assert decoder is not None
    seen = 0
    with pytest.raises(DecodedTooLongError, match="longer than 1000000 bytes"):
        for part in decoder.decode(bomb):
            seen += len(part)
    assert seen <= 1_000_000


@every_coding
def test_exactly_the_cap_is_let_through(coding: str) -> None:
    body = b"x" * 600_000
    assert decode_body(CODINGS[coding][0], CODINGS[coding][1](body), len(body)) == body
    with pytest.raises(DecodedTooLongError):
        decode_body(CODINGS[coding][0], CODINGS[coding][1](body), len(body) - 1)


@pytest.mark.parametrize("coding", ["gzip", "br", "zstd"])
def test_what_is_not_in_the_coding_is_an_error(coding: str) -> None:
    with pytest.raises(CodingError):
        decode(coding, b"\x00\x01 this is not compressed at all", [])


def test_gzip_members_follow_each_other_and_padding_is_ignored() -> None:
    two = gzip.compress(b"hello ") + gzip.compress(b"world")
    for at in range(len(two)):
        assert decode("gzip", two, [at]) == b"hello world"
    assert decode("gzip", two + b"\0\0", [len(two)]) == b"hello world"


def test_zstd_frames_follow_each_other_and_large_windows_are_refused() -> None:
    compress = zstandard.ZstdCompressor().compress
    assert decode("zstd", compress(b"hello ") + compress(b"world"), [9]) == b"hello world"
    parameters = zstandard.ZstdCompressionParameters(window_log=27)
    wide = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    with pytest.raises(CodingError, match="8 MiB"):
        decode("zstd", wide.compress(b"x") + wide.flush(), [])


@pytest.mark.parametrize("value", [b"", b"identity", b" Identity ", b"identity, "])
def test_identity_needs_no_decoder(value: bytes) -> None:
    assert decoder_for(value, 10) is None
    assert decode_body(value, b"x" * 100, 10) == b"x" * 100


@pytest.mark.parametrize("value", [b"compress", b"gzip, br", b"gzip,gzip", b"aws-chunked", b"*"])
def test_unknown_and_stacked_codings_are_refused_with_the_cure(value: bytes) -> None:
    with pytest.raises(UnsupportedCodingError, match="send one of gzip, deflate, br, zstd"):
        decoder_for(value, 10)


@pytest.mark.parametrize(
    ("value", "narrowed"),
    [
        (b"gzip, deflate, br, zstd", b"gzip, deflate, br, zstd"),
        (b"gzip,deflate ;q=0.5", b"gzip,deflate ;q=0.5"),
        (b"gzip, compress, br;q=0.9, dcb, dcz", b"gzip, br;q=0.9"),
        (b"GZIP;q=1.0, *;q=0", b"GZIP;q=1.0"),
        (b"*", b"identity"),
        (b"compress", b"identity"),
        (b"", b"identity"),
        (b"identity", b"identity"),
        (b"x" * 300 + b", br", b"br"),
    ],
)
def test_only_codings_we_read_are_asked_for(value: bytes, narrowed: bytes) -> None:
    assert narrow_accept_encoding(value) == narrowed


def test_what_follows_gzip_and_is_no_member_is_ignored_wherever_it_is_torn() -> None:
    packed = gzip.compress(b"hello") + bytes(8) + b"\x1f\x8b no member"
    for at in range(1, len(packed)):
        decoder = decoder_for(b"gzip", 100)
        assert decoder is not None
        assert b"".join((*decoder.decode(packed[:at]), *decoder.decode(packed[at:]))) == b"hello"
