"""How a process ends with the one that started it.

Rules
- Linux: the kernel is asked to send a signal when the parent *thread* ends (`PR_SET_PDEATHSIG`). The request is wiped
  by a change of user, so it is made after that, in the child, before `exec`.
- Elsewhere there is no such request. Our own children still end when their control socket closes; a PostgreSQL left
  over is stopped at the next start.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def die_with_parent(parent_pid: int, death_signal: signal.Signals) -> None:
    """Called in the child: have it signalled when its parent thread ends.

    `parent_pid` closes the gap between fork and request: a parent that has gone already sends nothing.
    """
    if _libc is None:
        return
    if _libc.prctl(_PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent_pid:
        os.kill(os.getpid(), signal.SIGKILL)
