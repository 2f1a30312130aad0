"""What can go wrong on either side of the relay."""

import errno
from enum import StrEnum
from typing import Final

EXHAUSTED: Final = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))
"""`errno`s: what this machine has none left of, descriptors or memory of the kernel."""


class HeadError(Exception):
    """A head that is refused: the connection is answered with `status` and closed (design §6)."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


class BodyError(Exception):
    """A request body whose framing is broken: answered 400 and closed."""


class Failure(StrEnum):
    """Why an upstream gave no complete answer."""

    CONNECT = "connect"
    """No connection: refused, unreachable, name not found, TLS failed, or not within `connect_timeout`."""
    EXHAUSTED = "exhausted"
    """No connection either, but for want of something of this machine: it says nothing of the upstream."""
    FORBIDDEN_ADDRESS = "forbidden_address"
    """The name resolved to an address that is never connected to."""
    STALE = "stale"
    """A pooled connection was closed before anything of the answer came; safe to send once more."""
    CLOSED_BEFORE_HEAD = "closed_before_head"
    HEAD_TIMEOUT = "head_timeout"
    IDLE_TIMEOUT = "idle_timeout"
    PROTOCOL = "protocol"
    """The answer is not HTTP that has one meaning."""
    CUT = "cut"
    """The answer ended before its framing said so."""


class UpstreamError(Exception):
    """An upstream that failed; `detail` says what happened, without anything secret."""

    def __init__(self, failure: Failure, detail: str) -> None:
        super().__init__(detail)
        self.failure = failure
        self.detail = detail
