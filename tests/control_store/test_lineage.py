"""Threads, without a database."""

from hypothesis import given
from hypothesis import strategies as st

from ostiary.control.ingest.lineage import Candidate, Threads, ToolCalls, newer, repaired


def name(n: int) -> str:
    return f"{n:04d}"


@st.composite
def forests(draw: st.DrawFn) -> list[int | None]:
    """The parent of each interception, always an older one."""
    size = draw(st.integers(1, 30))
    return [draw(st.none() | st.integers(0, n - 1)) if n else None for n in range(size)]


def true_root(parents: list[int | None], n: int) -> int:
    while (parent := parents[n]) is not None:
        n = parent
    return n


@given(forests())
def test_links_of_one_batch_name_the_true_root(parents: list[int | None]) -> None:
    threads = Threads()
    for child, parent in enumerate(parents):
        if parent is not None:
            link = threads.link(name(child), name(parent))
            assert link.root_id == name(true_root(parents, child))


@given(forests(), st.data())
def test_links_found_late_name_the_true_root_whatever_was_linked_before(
    parents: list[int | None], data: st.DataObject
) -> None:
    early = [parent if parent is not None and data.draw(st.booleans()) else None for parent in parents]
    stored_roots = [true_root(early, n) for n in range(len(parents))]
    late = [
        (name(child), name(parent), None if stored_roots[parent] == parent else name(stored_roots[parent]))
        for child, parent in enumerate(parents)
        if parent is not None and early[child] is None
    ]
    links = {link.child_id: link.root_id for link in repaired(data.draw(st.permutations(late)))}
    for child, _, _ in late:
        assert links[child] == name(true_root(parents, int(child)))
    # those that were linked before follow their root to its new one
    for n, root in enumerate(stored_roots):
        assert links.get(name(root), name(root)) == name(true_root(parents, n))


def test_the_newest_maker_before_the_answer_is_found() -> None:
    calls = ToolCalls()
    for made_by in (5, 1, 3):
        calls.add("ada", "call_0", name(made_by))
    assert calls.newest_before("ada", "call_0", name(4)) == name(3)
    assert calls.newest_before("ada", "call_0", name(9)) == name(5)
    assert calls.newest_before("ada", "call_0", name(1)) is None
    assert calls.newest_before("bob", "call_0", name(9)) is None


def test_of_a_parent_here_and_one_stored_the_newer_counts() -> None:
    stored = Candidate(name(3), name(1))
    assert newer(None, stored) == stored
    assert newer(name(2), stored) == stored
    assert newer(name(4), stored) == Candidate(name(4), None)
    assert newer(name(4), None) == Candidate(name(4), None)
    assert newer(None, None) is None
