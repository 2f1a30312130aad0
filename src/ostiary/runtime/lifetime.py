"""How a process ends with the one that started it, what it may use while it runs, and what it may not leave behind.

Rules
- Linux: the kernel is asked to send a signal when the parent *thread* ends (`PR_SET_PDEATHSIG`). The request is wiped
  by a change of user, so it is made after that, in the child, before `exec`.
- Elsewhere there is no such request. Our own children still end when their control socket closes; a PostgreSQL left
  over is stopped at the next start.
"""

import ctypes
import os
import resource
import signal
import sys
from contextlib import suppress

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


def forbid_core_dumps() -> None:
    """Keep the memory of this process, and of those it starts, off the disk when one crashes: secrets are in it."""
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))


def raise_open_files_limit() -> None:
    """Allow this process, and those it starts, as many descriptors as the system lets it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # some systems call the hard limit infinite and refuse it
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
