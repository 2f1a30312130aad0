"""Threads: which interception made the tool call that another one answers (reference B.4, G.1).

Rules
- Pure. A parent is the newest interception of the same initiator that made the tool call and began before the child.
  "Before" is by id, and ids carry their time: so threads have no cycles, and a root is always older than what hangs
  below it.
- A thread's root is the parent's root, or the parent. All below a root name it directly.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable
from typing import NamedTuple


class Link(NamedTuple):
    """A child hangs below a parent."""

    child_id: str
    parent_id: str
    root_id: str


class Candidate(NamedTuple):
    """A parent that is in the database already."""

    parent_id: str
    root_id: str | None


class ToolCalls:
    """The tool calls made in one batch."""

    def __init__(self) -> None:
        self._made: dict[tuple[str, str], list[str]] = {}

    def add(self, initiator_id: str, tool_call_id: str, interception_id: str) -> None:
        insort(self._made.setdefault((initiator_id, tool_call_id), []), interception_id)

    def newest_before(self, initiator_id: str, tool_call_id: str, child_id: str) -> str | None:
        """Who made the call last, of those older than the child."""
        callers = self._made.get((initiator_id, tool_call_id), ())
        position = bisect_left(callers, child_id)
        return callers[position - 1] if position else None


class Threads:
    """Roots, as they are in the database and as links of this batch change them."""

    def __init__(self, roots: dict[str, str | None] | None = None) -> None:
        """`roots`: of interceptions that are stored already; None for one that is a root itself."""
        self._roots = {child: root for child, root in (roots or {}).items() if root}

    def link(self, child_id: str, parent_id: str, stored_root_id: str | None = None) -> Link:
        """Hang a child below a parent. Call it for older children first."""
        root = self._roots.get(parent_id) or stored_root_id or parent_id
        root = self._roots.get(root, root)
        self._roots[child_id] = root
        return Link(child_id, parent_id, root)


def newer(local: str | None, stored: Candidate | None) -> Candidate | None:
    """The newer one of a parent in this batch and one in the database."""
    if local is None:
        return stored
    if stored is None or stored.parent_id < local:
        return Candidate(local, None)
    return stored


def repaired(late: Iterable[tuple[str, str, str | None]]) -> list[Link]:
    """Links for (child, parent, parent's root) found after both were stored."""
    threads = Threads()
    return [threads.link(child, parent, root) for child, parent, root in sorted(late, key=lambda found: found[0])]
