"""A child process's side of its control socket, as the parts see it; `ostiary.runtime.child` implements it.

Each part that runs as a process of its own has one entry, `async def run(boot, fd, supervision) -> int`, in
`gateway.process`, `link.process`, `control.process` and `fake.process`. It gets its boot message and the listening
socket that the supervisor keeps open across restarts, and returns the exit status.
"""

from typing import NamedTuple, Protocol

from .messages import Order, Report


class Delivered(NamedTuple):
    """An order, and the descriptor that came with it (the receiver owns it)."""

    order: Order
    fd: int | None


class Supervision(Protocol):
    async def next_order(self) -> Delivered:
        """The supervisor's next order. Never returns once the supervisor has gone: the process then ends at once."""
        ...

    def report(self, report: Report) -> None:
        """Tell the supervisor something; never blocks."""
        ...
