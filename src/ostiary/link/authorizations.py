"""Who a token is: what the control plane said, remembered, and the questions under way.

Rules
- An answer serves for its time to live; in the second half of that the control plane is asked again, so that a worker
  which asks ahead of time gets a full one.
- While the control plane is away, an identity serves on until `auth_grace` after it was last confirmed, its own expiry
  checked each time. A refusal does not: nobody can say whether it still holds.
- What is revoked is forgotten at once, and an answer that does not know of the revocation is asked for again: it was on
  its way when the right was taken away. While nobody tells of revocations, answers serve for `UNWATCHED_TTL` only.
- Refused tokens stand in a table of their own for 5 s: strangers cannot push known people out. Both tables and the
  questions under way are bounded.
- Equal questions of any number of workers are one question.
- Who is let in before the first snapshot has come waits for it: an answer without one would let him into nothing.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, cast, get_args

import structlog

from ostiary.core.identity import Identity, Refusal, Role
from ostiary.core.messages import Authorization
from ostiary.rpc.ostiary_pb2 import AuthorizationRefusal as WireRefusal
from ostiary.rpc.ostiary_pb2 import IsAuthorizedResponse

from .backoff import Backoff
from .cache import KnownToken
from .client import ControlFailure

log = structlog.get_logger(__name__)

REFUSAL_TTL: Final = 5.0
UNWATCHED_TTL: Final = 5.0
ANSWER_WITHIN: Final = 3.0
"""Seconds a question may take; a worker waits for 5."""
ANSWER_KNOWN_WITHIN: Final = 1.0
"""The same for a token that the grace lets in anyway."""
KNOWN_MAX: Final = 65_536
REFUSED_MAX: Final = 8_192
REVOKED_MAX: Final = 8_192
WAITING_MAX: Final = 4_096
CONCURRENT_QUESTIONS: Final = 64

_ROLES: Final = frozenset(get_args(Role))
_REFUSALS: Final = {
    WireRefusal.AUTHORIZATION_REFUSAL_UNKNOWN: Refusal.UNKNOWN,
    WireRefusal.AUTHORIZATION_REFUSAL_EXPIRED: Refusal.EXPIRED,
    WireRefusal.AUTHORIZATION_REFUSAL_REVOKED: Refusal.REVOKED,
    WireRefusal.AUTHORIZATION_REFUSAL_SUSPENDED: Refusal.SUSPENDED,
    WireRefusal.AUTHORIZATION_REFUSAL_DELETED: Refusal.DELETED,
}

Reply = Callable[[Authorization], object]


@dataclass(slots=True)
class _Known:
    identity: Identity
    confirmed_at: float
    fresh_until: float


class Memory:
    """What the control plane said. Pure: `clock` gives monotonic seconds, `wall` Unix seconds."""

    def __init__(
        self, clock: Callable[[], float], wall: Callable[[], float], auth_ttl: float, auth_grace: float
    ) -> None:
        self._clock = clock
        self._wall = wall
        self._ttl = auth_ttl
        self._grace = auth_grace
        self._known: OrderedDict[bytes, _Known] = OrderedDict()
        self._refused: OrderedDict[bytes, tuple[Refusal, float]] = OrderedDict()
        self.changes = 0
        """How often somebody became known, or was forgotten before their time."""
        self.confirmations = 0
        self.seq = 0
        """The newest revocation that the watch has told of, or stands behind; 0: none."""
        self._watched = False
        self._revoked: OrderedDict[str, int] = OrderedDict()
        self._floor = 0

    def revoke(self, seq: int, subject: str) -> None:
        """Forget a token, or all of a person, by its id."""
        gone = [
            token
            for token, known in self._known.items()
            if subject in (known.identity.api_key_id, known.identity.owner_id)
        ]
        for token in gone:
            del self._known[token]
        self.changes += len(gone)
        self._revoked[subject] = seq
        self._revoked.move_to_end(subject)
        while len(self._revoked) > REVOKED_MAX:
            self._floor = max(self._floor, self._revoked.popitem(last=False)[1])

    def reset(self, seq: int) -> None:
        """Some revocations up to this one were missed: ask for everybody before their next use."""
        self._revoked.clear()
        self._floor = seq
        for known in self._known.values():
            known.fresh_until = known.confirmed_at

    def watched(self, seq: int) -> None:
        """Revocations are told, up to this one already."""
        self.seq = seq
        self._watched = True

    def unwatched(self) -> None:
        """They no longer are."""
        self._watched = False
        until = self._clock() + UNWATCHED_TTL
        for known in self._known.values():
            known.fresh_until = min(known.fresh_until, until)

    def outdated(self, answer: IsAuthorizedResponse) -> bool:
        """Whether the answer admits somebody and does not know of a revocation that may concern them."""
        if answer.refusal != WireRefusal.AUTHORIZATION_REFUSAL_UNSPECIFIED:
            return False
        needed = (self._floor, self._revoked.get(answer.api_key_id, 0), self._revoked.get(answer.owner_id, 0))
        return answer.seq < max(needed)

    def kept(self) -> list[KnownToken]:
        """Everybody known, to be restored after a restart."""
        ago = self._wall() - self._clock()
        return [KnownToken(token, known.identity, known.confirmed_at + ago) for token, known in self._known.items()]

    def restore(self, tokens: list[KnownToken]) -> None:
        """Everybody from before a restart whom the grace still lets in. Answers of this process are newer."""
        now, wall = self._clock(), self._wall()
        for token in tokens[-KNOWN_MAX:]:
            age = max(0.0, wall - token.confirmed_at)
            if age < self._grace and not self._expired(token.identity):
                self._known.setdefault(token.token_sha256, _Known(token.identity, now - age, now - age))

    def learn(self, token_sha256: bytes, answer: IsAuthorizedResponse) -> Authorization:
        """Remember an answer; gives what the worker is told."""
        if answer.refusal != WireRefusal.AUTHORIZATION_REFUSAL_UNSPECIFIED:
            # a refusal that this build does not know is still one
            return self._refuse(token_sha256, _REFUSALS.get(answer.refusal, Refusal.REVOKED))
        if not (answer.owner_id and answer.api_key_id):
            return Authorization(token_sha256, unavailable="the control plane's answer names nobody")
        now = self._clock()
        identity = Identity(
            owner_id=answer.owner_id,
            api_key_id=answer.api_key_id,
            username=answer.username,
            email=answer.email,
            role=cast(Role, answer.role) if answer.role in _ROLES else "member",
            expires_at=answer.expires_at,
        )
        if self._expired(identity):
            return self._refuse(token_sha256, Refusal.EXPIRED)
        ttl = min(answer.ttl, self._longest) if answer.ttl > 0 else self._longest
        self._refused.pop(token_sha256, None)
        self.confirmations += 1
        self.changes += token_sha256 not in self._known
        known = self._known[token_sha256] = _Known(identity, now, now + ttl)
        self._known.move_to_end(token_sha256)
        while len(self._known) > KNOWN_MAX:
            self._known.popitem(last=False)
        return self._as_answer(token_sha256, known, ttl)

    def fresh(self, token_sha256: bytes) -> Authorization | None:
        """An answer that need not be asked for again."""
        now = self._clock()
        known = self._known.get(token_sha256)
        if known is not None:
            if self._expired(known.identity):
                return Authorization(token_sha256, refusal=Refusal.EXPIRED, ttl=REFUSAL_TTL)
            if now - known.confirmed_at >= (known.fresh_until - known.confirmed_at) / 2:
                return None
            self._known.move_to_end(token_sha256)
            return self._as_answer(token_sha256, known, known.fresh_until - now)
        refusal, until = self._refused.get(token_sha256, (None, 0.0))
        if refusal is not None and now < until:
            return Authorization(token_sha256, refusal=refusal, ttl=until - now)
        return None

    def within_grace(self, token_sha256: bytes) -> Authorization | None:
        """An answer for while the control plane is away."""
        known = self._known.get(token_sha256)
        if known is None:
            return None
        left = known.confirmed_at + self._grace - self._clock()
        if left <= 0:
            del self._known[token_sha256]
            return None
        if self._expired(known.identity):
            return Authorization(token_sha256, refusal=Refusal.EXPIRED, ttl=REFUSAL_TTL)
        self._known.move_to_end(token_sha256)
        return self._as_answer(token_sha256, known, min(self._longest, left))

    def _refuse(self, token_sha256: bytes, refusal: Refusal) -> Authorization:
        if self._known.pop(token_sha256, None) is not None:
            self.changes += 1
        self._refused[token_sha256] = (refusal, self._clock() + REFUSAL_TTL)
        self._refused.move_to_end(token_sha256)
        while len(self._refused) > REFUSED_MAX:
            self._refused.popitem(last=False)
        return Authorization(token_sha256, refusal=refusal, ttl=REFUSAL_TTL)

    @property
    def _longest(self) -> float:
        return self._ttl if self._watched else min(self._ttl, UNWATCHED_TTL)

    def _expired(self, identity: Identity) -> bool:
        return bool(identity.expires_at) and identity.expires_at <= self._wall()

    def _as_answer(self, token_sha256: bytes, known: _Known, ttl: float) -> Authorization:
        identity = known.identity
        if identity.expires_at:
            ttl = min(ttl, identity.expires_at - self._wall())
        return Authorization(token_sha256, identity=identity, ttl=ttl, age=self._clock() - known.confirmed_at)


class Authorizations:
    """Answers workers' questions. `ask(token_sha256, within)` is the RPC; `link_up` and `notice` are the heartbeat's;
    `loaded` is set once workers have a snapshot."""

    def __init__(
        self,
        ask: Callable[[bytes, float], Awaitable[IsAuthorizedResponse]],
        memory: Memory,
        link_up: Callable[[], bool],
        notice: Callable[[bool], None],
        loaded: asyncio.Event,
    ) -> None:
        self._ask = ask
        self._memory = memory
        self._link_up = link_up
        self._notice = notice
        self._loaded = loaded
        self._waiting: dict[bytes, set[Reply]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._slots = asyncio.Semaphore(CONCURRENT_QUESTIONS)

    def request(self, token_sha256: bytes, reply: Reply) -> None:
        """Call `reply` once, now or within `ANSWER_WITHIN` seconds."""
        answer = self._memory.fresh(token_sha256)
        if answer and (self._loaded.is_set() or answer.identity is None):
            reply(answer)
            return
        waiting = self._waiting.get(token_sha256)
        if waiting is not None:
            waiting.add(reply)
            return
        known = self._memory.within_grace(token_sha256)
        if known is not None and not self._link_up():
            reply(known)
            return
        if len(self._waiting) >= WAITING_MAX:
            reply(known or Authorization(token_sha256, unavailable="too many tokens are waiting to be looked up"))
            return
        self._waiting[token_sha256] = {reply}
        task = asyncio.create_task(self._answer(token_sha256, ANSWER_KNOWN_WITHIN if known else ANSWER_WITHIN))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _answer(self, token_sha256: bytes, within: float) -> None:
        try:
            async with asyncio.timeout(within):
                answer = await self._asked(token_sha256, time.monotonic() + within)
                if answer.identity is not None:
                    await self._loaded.wait()
        except TimeoutError:
            answer = self._unavailable(token_sha256, "the control plane did not answer in time")
        except ControlFailure as failure:
            # it is told to a client of whom nothing is known, whose business our addresses are not; the log has them
            answer = self._unavailable(token_sha256, "it cannot be reached" if failure.unreached else str(failure))
        finally:
            replies = self._waiting.pop(token_sha256)
        for reply in replies:
            reply(answer)

    async def _asked(self, token_sha256: bytes, deadline: float) -> Authorization:
        """Try until the deadline: a control plane that restarts is away for a moment only."""
        backoff = Backoff()
        async with self._slots:
            while True:
                try:
                    answer = await self._ask(token_sha256, deadline - time.monotonic())
                except ControlFailure as failure:
                    self._notice(False)
                    pause = backoff.next()
                    if not failure.passing or time.monotonic() + pause >= deadline:
                        raise
                    await asyncio.sleep(pause)
                else:
                    self._notice(True)
                    if not self._memory.outdated(answer):
                        return self._memory.learn(token_sha256, answer)
                    await asyncio.sleep(backoff.next())

    def _unavailable(self, token_sha256: bytes, reason: str) -> Authorization:
        known = self._memory.within_grace(token_sha256)
        return known or Authorization(token_sha256, unavailable=f"the control plane could not be asked: {reason}")
