"""What a provider does whose upstream does not speak the client's protocol as it is, or wants requests signed.

Rules
- `prepare` and `transform` are pure and quick; `authorize` may wait (credentials to fetch, a body to sign) and never
  blocks the loop.
- Whatever `prepare` or `transform` changes is declared: it goes into the decision trace.
- An error names the cause and the cure, and no secret.
"""

from typing import Protocol

from msgspec import Struct

from ostiary.gateway.routes import Route
from ostiary.http1.head import ResponseHead
from ostiary.wire.facts import RequestFacts


class AdapterError(Exception):
    """The request cannot be sent: `status` is for the client, the text too."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class TransformError(Exception):
    """The upstream's answer is not what it says it is: the client's answer is cut here."""


class Prepared(Struct, frozen=True):
    """A request as it goes upstream."""

    target: bytes
    """Path and query of the request line, base path included."""
    body: bytes
    model: str
    """What is recorded as the model, and what breaker and metrics know it by."""
    dropped: frozenset[bytes] = frozenset()
    """Lower-case names of client header fields that are not sent on, besides the usual ones."""
    lines: bytes = b""
    """Header lines of ours, each with its CRLF."""
    edits: tuple[str, ...] = ()
    """What differs from what the client sent, for the trace."""
    plain_answer: bool = False
    """The answer has to come without content coding."""

    def __repr__(self) -> str:
        return f"Prepared({self.target!r}, {len(self.body)} bytes)"


class Transform(Protocol):
    """An answer on its way to the client."""

    content_type: bytes
    """What the client is told; empty: what the upstream said."""
    edit: str
    """What is changed, for the trace."""

    def feed(self, payload: bytes) -> bytes:
        """What goes to the client for this much of the answer's payload. Raises `TransformError`."""

    def finish(self) -> bytes:
        """What is left at the end of the answer. Raises `TransformError` when the end has come too early."""


class Adapter(Protocol):
    """One for each such provider of a snapshot; requests share it."""

    @property
    def hint(self) -> str:
        """What is shown of its credential before one was used, masked."""

    def prepare(
        self, route: Route, query: bytes, fields: dict[bytes, bytes], body: bytes, facts: RequestFacts | None
    ) -> Prepared:
        """The request to send for the client's, whose `body` has no content coding. `facts` of bridged routes only.

        Raises `AdapterError` for what this provider cannot take.
        """

    async def authorize(self, method: bytes, prepared: Prepared) -> tuple[bytes, str]:
        """Header lines that authenticate the request, and the masked hint of the credential. Raises `AdapterError`."""

    def transform(self, route: Route, head: ResponseHead) -> Transform | None:
        """How the answer is changed; None: not at all."""
