"""What the processes of one machine say to each other.

worker ↔ link         over a socketpair: `WorkerMessage` up, `LinkMessage` down
supervisor → child    over its control socket: `Boot` first, then `Order`; a new link socketpair travels as a file
                      descriptor beside `NewPeer`
child → supervisor    `Report`

A frame is a 4-byte big-endian length and one msgpack message. Secrets travel in clear here and only here, between
processes of one user over sockets without a name; `encode` and `FrameReader` are the one way in and out.
"""

from collections.abc import Iterator
from typing import Any, Generic, Literal, TypeVar

import msgspec
from msgspec import Struct

from .families import Family
from .health import AskTrial, BreakerReport, KeyReport, TrialAnswer, TrialEnded
from .identity import Identity, Refusal
from .providers import ProviderSpec
from .secret import secret_dec_hook, secret_enc_hook
from .settings import ControlSettings, FakeSettings, GatewaySettings, LinkSettings

# --- worker → link


class WorkerHello(Struct, frozen=True, tag=True):
    """First message of a worker on a new link socket."""

    worker: int
    """Its index, 0-based."""
    journal_id: str
    """The UUID of this start's journal directory."""
    pid: int


class AskAuthorization(Struct, frozen=True, tag=True):
    """The worker does not know this token, or its answer is about to lapse. Answered by one `Authorization`."""

    token_sha256: bytes


class Serving(Struct, frozen=True, tag=True):
    """The worker serves from this revision (0: from none). Sent on each change."""

    revision: int
    provider_errors: dict[str, str] = {}
    """Provider name → why the worker could not build it."""


class MetricsReport(Struct, frozen=True, tag=True):
    """All counters of a worker: on `AskMetrics`, every few seconds unasked, and once before it ends."""

    families: list[Family]
    seq: int = 0
    """The `AskMetrics.seq` it answers; 0 when unasked."""


WorkerMessage = (
    WorkerHello | AskAuthorization | Serving | MetricsReport | KeyReport | BreakerReport | AskTrial | TrialEnded
)

# --- link → worker


class Snapshot(Struct, frozen=True, tag=True):
    """What to serve from. Replaces the one before atomically; requests in flight keep theirs."""

    revision: int
    providers: tuple[ProviderSpec, ...]


class Authorization(Struct, frozen=True, tag=True):
    """Exactly one of `identity`, `refusal`, `unavailable`."""

    token_sha256: bytes
    identity: Identity | None = None
    refusal: Refusal | None = None
    unavailable: str = ""
    """The control plane could not be asked: keep serving an earlier answer within the grace, else 503."""
    ttl: float = 5.0
    """Seconds this answer may be used without asking again."""
    age: float = 0.0
    """Seconds since the control plane confirmed the identity: `auth_grace` counts from then."""


class MachineState(Struct, frozen=True, tag=True):
    """For `/readyz`: every worker has a snapshot, and the control plane is reachable or within `auth_grace`."""

    ready: bool
    link_up: bool


class AskMetrics(Struct, frozen=True, tag=True):
    seq: int


class Revoked(Struct, frozen=True, tag=True):
    """Forget what is known of a token or of a person; or, with `everything`, ask for each known token before its next use.

    Exactly one of `api_key_id`, `owner_id`, `everything`.
    """

    api_key_id: str = ""
    owner_id: str = ""
    everything: bool = False
    """Some revocations may have been missed, or may be from now on."""
    within: float = 0.0
    """With `everything`: seconds for which what is known may still be used without asking."""


LinkMessage = Snapshot | Authorization | MachineState | AskMetrics | Revoked | KeyReport | BreakerReport | TrialAnswer

# --- supervisor → child


class WorkerBoot(Struct, frozen=True, tag=True):
    """Sent with the listening socket's descriptor."""

    worker: int
    settings: GatewaySettings
    workers: int = 1
    """How many there are on this machine."""


class LinkBoot(Struct, frozen=True, tag=True):
    """Sent with the metrics listener's descriptor when there is one."""

    settings: LinkSettings
    workers: int


class ControlBoot(Struct, frozen=True, tag=True):
    """Sent with the loopback listening socket's descriptor."""

    settings: ControlSettings


class FakeBoot(Struct, frozen=True, tag=True):
    """Sent with the fake provider's listening socket."""

    settings: FakeSettings


class NewPeer(Struct, frozen=True, tag=True):
    """With a descriptor: to a worker its new link socket, to the link the socket of worker `worker`."""

    worker: int


class Drain(Struct, frozen=True, tag=True):
    """Stop taking work, finish what runs, end with exit status 0. A second one: cut now."""


class Ping(Struct, frozen=True, tag=True):
    """Answer `Pong` from the event loop: to show that it turns."""


Order = WorkerBoot | LinkBoot | ControlBoot | FakeBoot | NewPeer | Drain | Ping

# --- child → supervisor


class Ready(Struct, frozen=True, tag=True):
    """The child serves (a worker: it accepts connections; it may still lack a snapshot)."""


class MachineReady(Struct, frozen=True, tag=True):
    """From the link: `/readyz` has turned 200 for the first time."""


class Fatal(Struct, frozen=True, tag=True):
    """The child cannot go on, and starting it again does not help: the whole command ends with this one line and this
    exit status. A control plane or link that cannot come back is tried again all the same (see `runtime.supervisor`)."""

    message: str
    exit_status: int = 1


class Note(Struct, frozen=True, tag=True):
    """A line for the person at the terminal, e.g. where the owner token was written."""

    message: str
    only_terminal: bool = False
    """True when it may be shown on a terminal only: it holds a secret shown once."""


class Drained(Struct, frozen=True, tag=True):
    """The last word of a child that was told to drain. From the link: how many records are not shipped."""

    records_left: int = 0


class Pong(Struct, frozen=True, tag=True):
    """The answer to `Ping`."""


Report = Ready | MachineReady | Fatal | Note | Drained | Pong

# --- frames

_encoder = msgspec.msgpack.Encoder(enc_hook=secret_enc_hook)
_HEADER = 4
MAX_FRAME = 64 * 1024 * 1024

M = TypeVar("M")


def encode(message: WorkerMessage | LinkMessage | Order | Report) -> bytes:
    """One frame, ready to write."""
    payload = _encoder.encode(message)
    return len(payload).to_bytes(_HEADER, "big") + payload


class FrameReader(Generic[M]):
    """Cuts a byte stream into messages of one direction: `FrameReader(WorkerMessage)`.

    Raises `msgspec.ValidationError` for a foreign message and `ValueError` for an oversized frame: a bug, not an input.
    """

    def __init__(self, messages: Any) -> None:  # Any: a union of types is not a `type`
        self._decoder: msgspec.msgpack.Decoder[M] = msgspec.msgpack.Decoder(messages, dec_hook=secret_dec_hook)
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[M]:
        """The messages completed by `data`, in order."""
        buffer = self._buffer
        buffer += data
        pos = 0
        while len(buffer) - pos >= _HEADER:
            size = int.from_bytes(buffer[pos : pos + _HEADER], "big")
            if size > MAX_FRAME:
                raise ValueError(f"frame of {size} bytes; {MAX_FRAME} are allowed")
            end = pos + _HEADER + size
            if len(buffer) < end:
                break
            payload = bytes(buffer[pos + _HEADER : end])
            pos = end
            yield self._decoder.decode(payload)
        del buffer[:pos]


ChildKind = Literal["worker", "link", "control", "fake"]
