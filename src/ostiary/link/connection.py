"""Whether the control plane answers, and for how long what it said may still be used. Pure: the clock is an argument.

Only the provider poll, which is the heartbeat, reports here: one judge, so nothing flaps when one kind of call fails
and another does not.
"""

from collections.abc import Callable


class Connection:
    """`clock` gives monotonic seconds, `grace` is `auth_grace`.

    `last_success` is a reading of the clock from before a restart of the link, if there was one.
    """

    def __init__(self, clock: Callable[[], float], grace: float, last_success: float | None = None) -> None:
        self._clock = clock
        self._grace = grace
        self._last_success = last_success
        self.up = False
        self.ever_up = False
        """Since the start of this process: before the first success refusals are fatal."""
        self.losses = 0

    def succeeded(self) -> bool:
        """The control plane answered. True when it had not before."""
        self._last_success = self._clock()
        changed = not self.up
        self.up = self.ever_up = True
        return changed

    def failed(self) -> bool:
        """It did not. True when it had before."""
        changed = self.up
        self.up = False
        self.losses += changed
        return changed

    @property
    def grace_left(self) -> float:
        """Seconds for which earlier answers may be used; the full grace while it answers."""
        if self.up:
            return self._grace
        if self._last_success is None:
            return 0.0
        return max(0.0, self._last_success + self._grace - self._clock())
