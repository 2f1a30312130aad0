"""Who a token is: the worker's cache, and the questions under way to the link. The clock is an argument.

Rules
- Keys are SHA-256 digests; no token is ever kept.
- An answer serves for its `ttl`; in the second half of it, its use asks again ahead of time, so that a busy token never waits.
- While the control plane or the link is away, an identity serves on for `auth_grace` since it was last confirmed. Its own
  expiry is checked on every use.
- A link that leaves a question unanswered for `_WAIT_SECONDS` hangs: until it speaks again it is asked once a second in
  all, so that what it does not read stays small. Whom the grace lets in does not wait for it; of all others only the one
  for whom it is asked does.
- What is revoked is forgotten at once. Without a link nobody tells of revocations: what is known then serves for
  `_UNLINKED_TTL` before it is asked for, and a new link is asked for everything.
- Refusals are kept in a table of their own: strangers cannot push known tokens out.
"""

from collections.abc import Callable
from typing import Final

from ostiary.core.identity import Identity, Refusal
from ostiary.core.messages import Authorization

_KNOWN_MAX: Final = 65_536
_REFUSED_MAX: Final = 8_192
_WAITING_MAX: Final = 16_384
_WAIT_SECONDS: Final = 5.0
_UNLINKED_TTL: Final = 5.0
_PROBE_SECONDS: Final = 1.0
_NEVER: Final = float("inf")
_SILENT: Final = "the control plane did not answer in time"


class Unavailable:
    """Nobody can say who the token is."""

    __slots__ = ("reason",)

    def __init__(self, reason: str) -> None:
        self.reason = reason


Answer = Identity | Refusal | Unavailable


class _Entry:
    __slots__ = ("confirmed_at", "fresh_until", "identity", "refresh_at")

    def __init__(self, identity: Identity, now: float, ttl: float, age: float) -> None:
        self.identity = identity
        self.confirmed_at = now - age
        self.fresh_until = now + ttl
        self.refresh_at = now + ttl / 2


class Authorizations:
    """`send` puts a question to the link and says whether it could; `clock` is monotonic, `wall` Unix seconds."""

    def __init__(
        self,
        send: Callable[[bytes], bool],
        clock: Callable[[], float],
        wall: Callable[[], float],
        grace: float,
    ) -> None:
        self._send = send
        self._clock = clock
        self._wall = wall
        self._grace = grace
        self._known: dict[bytes, _Entry] = {}
        self._refused: dict[bytes, tuple[Refusal, float]] = {}
        self._waiting: dict[bytes, tuple[float, list[Callable[[Answer], object]]]] = {}
        self._hangs = False
        self._probe_at = 0.0

    def lookup(self, digest: bytes) -> Answer | None:
        """What is known of a token now; None: `ask`."""
        entry = self._known.get(digest)
        now = self._clock()
        if entry is None:
            refused = self._refused.get(digest)
            if refused is None:
                return None
            if now < refused[1]:
                return refused[0]
            del self._refused[digest]
            return None
        identity = entry.identity
        if identity.expires_at and identity.expires_at <= self._wall():
            return Refusal.EXPIRED
        if now >= entry.fresh_until:
            return None
        if now >= entry.refresh_at:
            entry.refresh_at = _NEVER
            self._send(digest)
        return identity

    def ask(self, digest: bytes, answered: Callable[[Answer], object]) -> None:
        """Call `answered` once, maybe at once, when the link has said who the token is or nobody can."""
        if self._hangs:
            known = self._within_grace(digest)
            if known is not None:
                if self._may_probe():
                    self._send(digest)
                answered(known)
                return
        waiting = self._waiting.get(digest)
        if waiting is not None:
            waiting[1].append(answered)
            return
        if self._hangs and not self._may_probe():
            answered(Unavailable(_SILENT))
            return
        if len(self._waiting) >= _WAITING_MAX:
            answered(Unavailable("too many tokens are waiting to be looked up"))
            return
        if not self._send(digest):
            answered(self._within_grace(digest) or Unavailable("this gateway is not connected to its control plane"))
            return
        self._waiting[digest] = (self._clock() + _WAIT_SECONDS, [answered])

    def receive(self, message: Authorization) -> None:
        """The link's answer."""
        self._hangs = False
        digest = message.token_sha256
        answer: Answer
        if message.identity is not None:
            self._known.pop(digest, None)
            if len(self._known) >= _KNOWN_MAX:
                self._known.pop(next(iter(self._known)))
            self._known[digest] = _Entry(message.identity, self._clock(), message.ttl, message.age)
            self._refused.pop(digest, None)
            answer = message.identity
        elif message.refusal is not None:
            self._known.pop(digest, None)
            if len(self._refused) >= _REFUSED_MAX:
                self._refused.pop(next(iter(self._refused)))
            self._refused[digest] = (message.refusal, self._clock() + message.ttl)
            answer = message.refusal
        else:
            answer = self._within_grace(digest) or Unavailable(
                message.unavailable or "the control plane cannot be reached"
            )
        waiting = self._waiting.pop(digest, None)
        if waiting is not None:
            for answered in waiting[1]:
                answered(answer)

    def revoke(self, api_key_id: str, owner_id: str) -> None:
        """Forget a token, or all tokens of a person."""
        for digest, entry in tuple(self._known.items()):
            if entry.identity.api_key_id == api_key_id or entry.identity.owner_id == owner_id:
                del self._known[digest]

    def ask_again(self, within: float) -> None:
        """Ask for every known token before it is used later than so many seconds from now."""
        until = self._clock() + within
        for entry in self._known.values():
            entry.fresh_until = min(entry.fresh_until, until)
            entry.refresh_at = min(entry.refresh_at, until - within / 2)

    def link_lost(self) -> None:
        """The link's socket is gone, and with it its answers: settle every question by what is known."""
        self._hangs = False
        for digest in tuple(self._waiting):
            _, callbacks = self._waiting.pop(digest)
            answer = self._within_grace(digest) or Unavailable("this gateway is not connected to its control plane")
            for answered in callbacks:
                answered(answer)
        self.ask_again(_UNLINKED_TTL)
        for entry in self._known.values():
            entry.refresh_at = 0.0  # whatever was asked is lost

    def sweep(self) -> None:
        """Settle the questions that nobody answered in time."""
        now = self._clock()
        for digest, (deadline, _) in tuple(self._waiting.items()):
            if now < deadline:
                break
            _, callbacks = self._waiting.pop(digest)
            self._hangs = True
            answer = self._within_grace(digest) or Unavailable(_SILENT)
            for answered in callbacks:
                answered(answer)

    def _may_probe(self) -> bool:
        """Whether it is time to ask a link that hangs again."""
        now = self._clock()
        if now < self._probe_at:
            return False
        self._probe_at = now + _PROBE_SECONDS
        return True

    def _within_grace(self, digest: bytes) -> Identity | Refusal | None:
        """An identity that nobody can confirm now, for a while. It is asked for again after some seconds."""
        entry = self._known.get(digest)
        if entry is None:
            return None
        now = self._clock()
        if now - entry.confirmed_at > self._grace:
            del self._known[digest]
            return None
        entry.fresh_until = now + 2.0
        entry.refresh_at = _NEVER if self._hangs else now + 1.0
        identity = entry.identity
        if identity.expires_at and identity.expires_at <= self._wall():
            return Refusal.EXPIRED
        return identity
