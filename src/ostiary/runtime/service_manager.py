"""What a service manager is told: `systemd` with `Type=notify`, or whoever else sets `NOTIFY_SOCKET` (sd_notify(3)).

It is told at most, never waited for: nobody there to listen is no reason not to serve.
"""

import os
import socket
from contextlib import suppress

_VARIABLE = "NOTIFY_SOCKET"


class ServiceManager:
    """Where the environment names one; else telling does nothing. Children do not inherit the variable."""

    def __init__(self) -> None:
        path = os.environ.pop(_VARIABLE, "")
        self._address = "\0" + path[1:] if path.startswith("@") else path

    def ready(self, status: str) -> None:
        self._tell(f"READY=1\nSTATUS={status}")

    def stopping(self, status: str) -> None:
        self._tell(f"STOPPING=1\nSTATUS={status}")

    def _tell(self, state: str) -> None:
        if not self._address:
            return
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
            sock.sendto(state.encode(), self._address)
