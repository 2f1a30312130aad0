"""UUIDv7: valid, ordered, unique, whatever the clock does."""

import uuid

from hypothesis import given
from hypothesis import strategies as st

from ostiary.core.ids import IdSource, child_id, first_id_at, new_id


def source(times_ms):
    times = iter(times_ms)
    return IdSource(clock=lambda: next(times) * 1_000_000, entropy=lambda n: bytes(range(256)) * (n // 256))


@given(st.lists(st.integers(0, 2**48 - 2), min_size=1, max_size=50))
def test_ids_are_valid_and_grow_however_the_clock_jumps(times_ms):
    make = source(times_ms)
    ids = [make() for _ in times_ms]
    assert ids == sorted(ids)
    assert len(set(ids)) == len(ids)
    for text in ids:
        parsed = uuid.UUID(text)
        assert (parsed.version, parsed.variant, str(parsed)) == (7, uuid.RFC_4122, text)


def id_time_ms(text):
    return uuid.UUID(text).int >> 80


def test_more_ids_in_a_millisecond_than_its_counter_holds_still_grow():
    make = source([5] * 10_000)
    ids = [make() for _ in range(10_000)]
    assert ids == sorted(ids)
    assert len(set(ids)) == 10_000


def test_an_id_tells_its_time_and_is_bounded_by_it():
    make = source([1_795_224_512_123])
    text = make()
    assert id_time_ms(text) == 1_795_224_512_123
    assert first_id_at(1_795_224_512_123) <= text < first_id_at(1_795_224_512_124)


def test_the_ids_of_this_process_do_not_repeat():
    assert len({new_id() for _ in range(20_000)}) == 20_000


@given(st.integers(1, 10_000))
def test_ids_of_children_are_valid_distinct_and_of_their_parents_time(count):
    parent = new_id()
    ids = {parent} | {child_id(parent, number) for number in range(1, count + 1)}
    assert len(ids) == count + 1
    last = child_id(parent, count)
    assert (uuid.UUID(last).version, str(uuid.UUID(last))) == (7, last)
    assert id_time_ms(last) == id_time_ms(parent)
