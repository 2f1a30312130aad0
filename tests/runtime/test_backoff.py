from hypothesis import given
from hypothesis import strategies as st

from ostiary.runtime.backoff import Backoff


def test_waits_double_until_the_cap() -> None:
    backoff = Backoff(first=0.05, most=10.0, steady=10.0)
    assert [backoff.after(0.1) for _ in range(10)] == [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0]
    assert backoff.failures == 10


def test_a_long_life_starts_over() -> None:
    backoff = Backoff(first=0.05, most=10.0, steady=10.0)
    for _ in range(8):
        backoff.after(1.0)
    assert backoff.after(10.0) == 0.05
    assert backoff.after(1.0) == 0.1


@given(st.lists(st.floats(0, 1e6), max_size=2000))
def test_no_wait_is_outside_its_bounds(lives: list[float]) -> None:
    backoff = Backoff(first=0.05, most=10.0, steady=10.0)
    assert all(0.05 <= backoff.after(life) <= 10.0 for life in lives)
