"""The sockets that outlive the processes serving them.

Rules
- Bound and listening before anything is started: a connection made while its server is not there waits for it.
- The public address has one socket a worker (`SO_REUSEPORT`). That option would also let a second server in unasked,
  so a plain socket tries the address first.
"""

import errno
import socket
import time
from contextlib import ExitStack
from typing import NamedTuple, Self

from .errors import StartError
from .plan import Address, ServerPlan

_BACKLOG = 4096
_RETRY = 0.05


class Sockets(NamedTuple):
    """All listening sockets of one server. `None`: not asked for."""

    public: list[socket.socket]
    control: socket.socket | None
    metrics: socket.socket | None
    fake: socket.socket | None

    @classmethod
    def bind(cls, plan: ServerPlan, patience: float = 0.0) -> Self:
        """Bind what `plan` asks for. Raises `StartError`.

        For `patience` seconds an address in use is tried again: a killed server's children may be ending just now.
        """
        deadline = time.monotonic() + patience
        with ExitStack() as opened:

            def keep(sock: socket.socket) -> socket.socket:
                return opened.enter_context(sock)

            public = [keep(sock) for sock in _bind_shared(plan.listen, plan.workers, deadline)]
            control = keep(_bind(Address("127.0.0.1", 0), "", deadline)) if plan.control else None
            metrics = None
            if plan.metrics_listen:
                metrics = keep(_bind(plan.metrics_listen, "--metrics-listen", deadline))
            fake = keep(_bind_fake(plan.fake.listen)) if plan.fake else None
            opened.pop_all()
        return cls(public, control, metrics, fake)

    def close(self) -> None:
        for sock in (*self.public, self.control, self.metrics, self.fake):
            if sock is not None:
                sock.close()


def bound_address(sock: socket.socket) -> Address:
    host, port = sock.getsockname()[:2]
    return Address(host, port)


def _bind_shared(address: Address, count: int, deadline: float) -> list[socket.socket]:
    if count == 1:
        return [_bind(address, "--listen", deadline)]
    first = _bind(address, "--listen", deadline)
    taken = Address(address.host, first.getsockname()[1])
    first.close()
    return [_bind(taken, "--listen", deadline, shared=True) for _ in range(count)]


def _bind_fake(address: Address) -> socket.socket:
    try:
        return _bind(address, "", deadline=0.0)
    except StartError:
        return _bind(Address(address.host, 0), "", deadline=0.0)


def _bind(address: Address, flag: str, deadline: float, *, shared: bool = False) -> socket.socket:
    while True:
        try:
            return _listen(address, shared=shared)
        except OSError as error:
            if error.errno == errno.EADDRINUSE and time.monotonic() < deadline:
                time.sleep(_RETRY)
                continue
            raise StartError(_explain(address, flag, error)) from error


def _listen(address: Address, *, shared: bool) -> socket.socket:
    family, _, _, _, target = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0]
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(target)
        sock.listen(_BACKLOG)
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return sock


def _explain(address: Address, flag: str, error: OSError) -> str:
    other = f"choose another {flag}" if flag else "free it"
    if error.errno == errno.EADDRINUSE:
        return f"{address} is in use by another program: stop that one or {other}"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"{address} may not be listened on by this user (ports below 1024 are root's): {other}"
    if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
        return f"{address} is not an address of this machine: {other}"
    return f"cannot listen on {address} ({error.strerror}): {other}"
