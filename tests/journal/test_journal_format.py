"""core/journal.py: frames in, frames out, whatever happens to the bytes in between."""

import random

from hypothesis import given
from hypothesis import strategies as st

from ostiary.core.journal import (
    HEADER_SIZE,
    MAX_PAYLOAD,
    Rest,
    find_next,
    frame_header,
    parse,
    segment_first_seq,
    segment_name,
)

payloads = st.lists(st.binary(min_size=1, max_size=300), min_size=1, max_size=12)
first_seqs = st.integers(min_value=1, max_value=2**40)


def written(first_seq: int, records: list[bytes]) -> bytes:
    return b"".join(frame_header(first_seq + i, record) + record for i, record in enumerate(records))


def salvaged(data: bytes, seq: int) -> dict[int, bytes]:
    """Every record that can be read, under the number it is read as: what the shipper does with a dead journal."""
    found: dict[int, bytes] = {}
    while True:
        parsed = parse(data, seq)
        found |= dict(enumerate(parsed.payloads, start=seq))
        data = data[parsed.end :]
        place = find_next(data, parsed.next_seq)
        if parsed.rest is Rest.CLEAN or place is None:
            return found
        data, seq = data[place.offset :], place.seq


@given(first_seqs, payloads)
def test_what_was_written_is_read(first_seq: int, records: list[bytes]) -> None:
    data = written(first_seq, records)
    parsed = parse(data, first_seq)
    assert parsed.payloads == records
    assert parsed.next_seq == first_seq + len(records)
    assert (parsed.end, parsed.rest) == (len(data), Rest.CLEAN)


@given(first_seqs, payloads, st.data())
def test_a_torn_tail_loses_only_the_frame_it_tears(first_seq: int, records: list[bytes], data: st.DataObject) -> None:
    whole = written(first_seq, records)
    cut = data.draw(st.integers(min_value=0, max_value=len(whole) - 1))
    complete = 0
    size = 0
    for record in records:
        size += HEADER_SIZE + len(record)
        complete += size <= cut
    parsed = parse(whole[:cut], first_seq)
    assert parsed.payloads == records[:complete]
    assert parsed.rest is (Rest.CLEAN if parsed.end == cut else Rest.PARTIAL)
    assert salvaged(whole[:cut], first_seq) == dict(enumerate(records[:complete], start=first_seq))


@given(first_seqs, payloads, st.data())
def test_a_flipped_bit_never_gives_a_wrong_payload_and_costs_one_record(
    first_seq: int, records: list[bytes], data: st.DataObject
) -> None:
    damaged = bytearray(written(first_seq, records))
    bit = data.draw(st.integers(min_value=0, max_value=8 * len(damaged) - 1))
    damaged[bit // 8] ^= 1 << (bit % 8)
    original = dict(enumerate(records, start=first_seq))
    found = salvaged(bytes(damaged), first_seq)
    assert found.items() <= original.items()
    assert len(found) == len(records) - 1


@given(first_seqs, payloads, st.binary(max_size=200), st.data())
def test_overwritten_bytes_never_give_a_wrong_payload_or_number(
    first_seq: int, records: list[bytes], garbage: bytes, data: st.DataObject
) -> None:
    whole = written(first_seq, records)
    at = data.draw(st.integers(min_value=0, max_value=len(whole)))
    damaged = whole[:at] + garbage + whole[at + len(garbage) :]
    assert salvaged(damaged, first_seq).items() <= dict(enumerate(records, start=first_seq)).items()


@given(first_seqs, payloads)
def test_a_frame_proves_its_place(first_seq: int, records: list[bytes]) -> None:
    parsed = parse(written(first_seq, records), first_seq + 1)
    assert (parsed.payloads, parsed.rest) == ([], Rest.BAD)


def test_a_page_of_zeros_is_no_frame() -> None:
    records = [b"one", b"two"]
    data = written(1, records)
    assert parse(data + bytes(4096), 1).payloads == records
    assert parse(data + bytes(4096), 1).rest is Rest.BAD
    assert parse(bytes(4096), 1 << 32).payloads == []
    assert find_next(bytes(4096), 3) is None
    assert find_next(bytes(4096) + written(7, [b"seven", b"eight"]), 3) == (4096, 7)


def test_an_impossible_length_is_bad_and_not_a_reason_to_wait() -> None:
    assert parse((MAX_PAYLOAD + 1).to_bytes(4, "big") + bytes(100), 1).rest is Rest.BAD
    assert parse(MAX_PAYLOAD.to_bytes(4, "big") + bytes(100), 1).rest is Rest.PARTIAL


def test_limits_stop_before_a_frame_but_never_before_the_first() -> None:
    data = written(1, [b"a" * 10, b"b" * 10, b"c" * 10])
    assert parse(data, 1, max_records=2).payloads == [b"a" * 10, b"b" * 10]
    assert parse(data, 1, max_records=2).rest is Rest.LIMIT
    assert parse(data, 1, max_bytes=15).payloads == [b"a" * 10]
    oversized = parse(data, 1, max_bytes=5)
    assert (oversized.payloads, oversized.next_seq, oversized.end) == ([b"a" * 10], 2, HEADER_SIZE + 10)


def test_records_below_skip_to_are_checked_but_left_out() -> None:
    data = written(1, [b"a", b"b", b"c", b"d"])
    parsed = parse(data, 1, skip_to=3, max_records=1)
    assert (parsed.payloads, parsed.next_seq, parsed.rest) == ([b"c"], 4, Rest.LIMIT)


def test_salvage_loses_exactly_the_records_under_the_damage() -> None:
    rng = random.Random(1)
    records = [rng.randbytes(rng.randrange(1, 2000)) for _ in range(5000)]
    data = bytearray(written(1, records))
    data[100:150_000] = bytes(149_900)
    intact = {}
    end = 0
    for seq, record in enumerate(records, start=1):
        start, end = end, end + HEADER_SIZE + len(record)
        if end <= 100 or start >= 150_000:
            intact[seq] = record
    assert salvaged(bytes(data), 1) == intact


def test_salvage_takes_no_frame_on_trust_that_stands_alone() -> None:
    alone = b"rubble" + written(4, [b"as if"])
    assert find_next(alone + b"more rubble", 3) is None
    assert find_next(alone + written(5, [b"indeed"]) + b"more rubble", 3) == (6, 4)
    assert find_next(alone, 3) == (6, 4)


def test_segment_names_sort_as_their_numbers() -> None:
    names = [segment_name(seq) for seq in (1, 9, 10, 123_456, 9_999_999_999)]
    assert names == sorted(names)
    assert [segment_first_seq(name) for name in names] == [1, 9, 10, 123_456, 9_999_999_999]
    assert [segment_first_seq(name) for name in ("lock", "1.seg", "0000000000000001.seg.damaged")] == [None] * 3
