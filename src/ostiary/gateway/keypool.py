"""A provider's keys and which of them a request gets (design §11). Pure: the clock is an argument.

Rules
- `now` is a reading of CLOCK_MONOTONIC, as all deadlines are; `wall` is Unix seconds and only for people.
- A limit cools a key for one model, an exhausted quota the whole key; when the deadline has passed it is simply used again.
  Of two deadlines the later holds.
- A key that was refused is suspect: not used until its back-off is over, and then by one request first, a trial that
  somebody has to grant. Each refused trial doubles the back-off, up to an hour. What is refused while the back-off runs was
  sent before and adds nothing. So no key is lost for good. A trial is made when it is due, whether the key is needed or not.
- Whatever else a provider answers to a trial shows that it accepts the key: also "too many requests".
- Of a refusal and a recovery the younger holds, in whatever order siblings tell of them.
- `primary` takes the first usable key. `spread` keeps a session on its key, where its prompts are cached; a new session
  gets the key that was limited least recently, and among equals the one that all workers reckon for it.
"""

import math
from collections import OrderedDict
from collections.abc import Collection, Sequence
from hashlib import blake2b
from typing import Final, Literal

from msgspec import Struct

from ostiary.core.health import (
    SUSPECT_LONGEST,
    KeyReason,
    KeyReport,
    KeyStateName,
    KeySubject,
    refused_at,
    suspect_wait,
)

from .key_verdict import Verdict
from .providers import RuntimeKey

_COOLING_MODELS_MAX: Final = 128
_SESSIONS_MAX: Final = 8192
_ASK_AGAIN: Final = 1.0
"""Seconds for which a trial that was proposed is not proposed to another request."""
_REMEMBERED: Final = 3600.0
"""Seconds for which `spread` holds a limit that is over against a key."""

_NO_NEWS: Final = 1.0
"""Seconds by which an answer has to prolong a wait that is known: many requests may be limited at once."""
_SAME_TIME: Final = 1e-3
"""Seconds: a refusal that is no older than that against a recovery holds. Deadlines are rounded."""

_NEVER: Final = -math.inf

Selection = Literal["primary", "spread"]
PassedOver = tuple[tuple[str, KeyReason], ...]
"""Masked hint of a key and why it was not taken."""


class Chosen(Struct, frozen=True):
    key: RuntimeKey
    passed_over: PassedOver = ()
    needs_trial: bool = False
    """The key may only be used if a trial of it is granted. If not: choose again, with this key in `tried`."""


class Exhausted(Struct, frozen=True):
    """No key is usable. `rate_limited`: at least one has only to wait."""

    kind: Literal["rate_limited", "auth_failed"]
    retry_after: int
    """Seconds until the first of those may be used, at least 1; 0 for `auth_failed`."""
    passed_over: PassedOver = ()


class _KeyState:
    """All that is known of a key. It only grows: what passes is told by the clock."""

    __slots__ = (
        "ask_after",
        "changed_at",
        "cooling",
        "limited_until",
        "recovered_at",
        "spent",
        "strikes",
        "suspect_since",
        "suspect_until",
    )

    def __init__(self) -> None:
        self.cooling: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """Model → until when, and when that was found (wall)."""
        self.spent: tuple[float, float] = (_NEVER, 0.0)
        """The whole key, likewise."""
        self.limited_until = _NEVER
        self.suspect_since = _NEVER
        self.suspect_until = _NEVER
        self.strikes = 0
        self.ask_after = _NEVER
        self.recovered_at = _NEVER
        self.changed_at = 0.0
        """Of the last refusal or recovery (wall)."""

    @property
    def suspect(self) -> bool:
        return self.suspect_since > _NEVER and self.suspect_since + _SAME_TIME >= self.recovered_at

    def cools_until(self, model: str) -> float:
        """An empty model: the whole key."""
        if not model:
            return self.spent[0]
        return self.cooling[model][0] if model in self.cooling else _NEVER

    def cool(self, model: str, until: float, at: float) -> bool:
        """Whether that is later than was known."""
        self.limited_until = max(self.limited_until, until)
        if until <= self.cools_until(model):
            return False
        if not model:
            self.spent = (until, at)
            return True
        if model not in self.cooling and len(self.cooling) >= _COOLING_MODELS_MAX:
            self.cooling.popitem(last=False)
        self.cooling[model] = (until, at)
        self.cooling.move_to_end(model)
        return True

    def refuse(self, since: float, until: float, strikes: int, at: float) -> bool:
        """Whether that is younger than was known, also than a recovery."""
        if (since, until, strikes) <= (self.suspect_since, self.suspect_until, self.strikes):
            return False
        self.suspect_since, self.suspect_until, self.strikes = since, until, strikes
        if self.suspect:
            self.changed_at = at
        return self.suspect

    def recover(self, since: float, at: float) -> bool:
        """Whether that ends a suspicion."""
        was_suspect = self.suspect
        self.recovered_at = max(self.recovered_at, since)
        if not was_suspect or self.suspect:
            return False
        self.changed_at = at
        return True

    @property
    def trial_from(self) -> float:
        """Suspect: when somebody may ask to try it."""
        return max(self.suspect_until, self.ask_after)

    def cooling_for(self, model: str, now: float) -> tuple[float, KeyReason]:
        """Seconds until it has cooled, not above 0 when it has; and what of."""
        spent = self.spent[0] - now
        limited = self.cools_until(model) - now
        return (limited, "rate_limited") if limited > spent else (spent, "quota")

    def plain(self, now: float) -> bool:
        """Nothing speaks against it. Drops what has passed."""
        if self.cooling:
            for model in [model for model, (until, _) in self.cooling.items() if until <= now]:
                del self.cooling[model]
        return not self.suspect and not self.cooling and self.spent[0] <= now


class KeyPool:
    """The keys of one provider of one snapshot. `previous`: the pool before, not used any more, whose state lives on for
    keys that stay."""

    def __init__(
        self,
        provider_name: str,
        keys: tuple[RuntimeKey, ...],
        selection: Selection,
        previous: "KeyPool | None" = None,
    ) -> None:
        self.provider_name = provider_name
        self.keys = keys
        self.selection: Selection = selection
        known = previous._states if previous is not None else {}
        self._states: dict[bytes, _KeyState] = {key.digest: known.get(key.digest) or _KeyState() for key in keys}
        self._sessions: OrderedDict[str, bytes] = OrderedDict()
        if previous is not None:
            self._sessions.update((s, d) for s, d in previous._sessions.items() if d in self._states)
        self._turn = 0
        self._troubled = False
        """Something may speak against a key."""
        self.healthy = False
        """`primary`, nothing against the first key and no trial due: a request takes `keys[0]` without asking."""
        self._judge(_NEVER)

    # --- for requests

    def choose(
        self,
        model: str,
        now: float,
        session: str = "",
        tried: Collection[bytes] = (),
        *,
        try_suspects: bool = True,
    ) -> Chosen | Exhausted:
        """The key for a request or its next attempt; `tried` are the digests of those it has had or was denied.

        `model`: for a call without one its route's label, as limits of such calls say nothing of others.
        `try_suspects` off, for a request that cannot be sent twice: a suspect key only when nothing else is usable.
        """
        if self._troubled:
            self._judge(now)
        if not self._troubled and not tried and self.keys:
            return Chosen(self._kept(session, self.keys) or self._pick_usable(self.keys, session, now))
        usable: list[RuntimeKey] = []
        triable: list[RuntimeKey] = []
        unfit: dict[RuntimeKey, KeyReason] = {}
        shortest = math.inf
        over = False  # a key was limited when it was tried, and is not any more
        for key in self.keys:
            state = self._states[key.digest]
            wait, reason = state.cooling_for(model, now)
            if state.suspect:
                reason = "refused"
                wait = max(wait, state.trial_from - now)
            elif wait > 0:
                shortest = min(shortest, wait)
            if key.digest in tried:
                over = over or (wait <= 0 and not state.suspect)
                continue
            if wait <= 0 and not state.suspect:
                usable.append(key)
                continue
            unfit[key] = reason
            if wait <= 0:
                triable.append(key)
        if usable or triable:
            return self._pick(usable, triable, unfit, session, now, try_suspects=try_suspects)
        passed = tuple((key.hint, reason) for key, reason in unfit.items())
        if shortest < math.inf:
            return Exhausted("rate_limited", max(1, math.ceil(shortest)), passed)
        if over:
            return Exhausted("rate_limited", 1, passed)
        return Exhausted("auth_failed", 0, passed)

    def _pick(
        self,
        usable: list[RuntimeKey],
        triable: list[RuntimeKey],
        unfit: dict[RuntimeKey, KeyReason],
        session: str,
        now: float,
        *,
        try_suspects: bool,
    ) -> Chosen:
        """What is due is tried first, before it is needed: else many requests would have to wait for one trial.

        Only `spread` leaves trials to new sessions and calls without one: the others would miss their prompt caches.
        """
        key = self._kept(session, usable)
        needs_trial = key is None and bool(triable) and (try_suspects or not usable)
        if needs_trial:
            key = triable[0]
            self._states[key.digest].ask_after = now + _ASK_AGAIN
        elif key is None:
            key = self._pick_usable(usable, session, now)
        candidates = self.keys[: self.keys.index(key)] if self.selection == "primary" else self.keys
        passed = tuple((other.hint, unfit[other]) for other in candidates if other in unfit and other is not key)
        return Chosen(key, passed, needs_trial)

    def _kept(self, session: str, usable: Sequence[RuntimeKey]) -> RuntimeKey | None:
        """The key that a session has had, if it can have it still."""
        if self.selection == "primary" or session not in self._sessions:
            return None
        self._sessions.move_to_end(session)
        digest = self._sessions[session]
        return next((key for key in usable if key.digest == digest), None)

    def _pick_usable(self, usable: Sequence[RuntimeKey], session: str, now: float) -> RuntimeKey:
        if self.selection == "primary":
            return usable[0]
        limited = [self._states[key.digest].limited_until for key in usable]
        limited = [until if until > now - _REMEMBERED else _NEVER for until in limited]
        least = min(limited)
        equals = [key for key, until in zip(usable, limited, strict=True) if until == least]
        if not session:
            self._turn += 1
            return equals[self._turn % len(equals)]
        name = session.encode("utf-8", "surrogatepass")
        found = max(equals, key=lambda key: blake2b(name, key=key.digest, digest_size=8).digest())
        self._sessions.pop(session, None)
        if len(self._sessions) >= _SESSIONS_MAX:
            self._sessions.popitem(last=False)
        self._sessions[session] = found.digest
        return found

    def sweep(self, now: float) -> None:
        """Every tick: trials become due."""
        if self._troubled:
            self._judge(now)

    # --- for what becomes of them

    def mark(self, key: RuntimeKey, verdict: Verdict, model: str, now: float, wall: float) -> tuple[KeyReport, ...]:
        """What an answer says of a key. The reports to spread: none when it was known, two when a trial was limited."""
        state = self._states.get(key.digest)
        if state is None:
            return ()
        if verdict.kind == "refused":
            if state.suspect and now < state.suspect_until:
                return ()
            strikes = state.strikes + 1 if state.suspect else 1
            until = now + suspect_wait(strikes)
            return self._told(self._report(key.digest, "suspect", "refused", until, wall, strikes=strikes), now)
        recovered: tuple[KeyReport, ...] = ()
        if state.suspect and now >= state.suspect_until:
            recovered = self.recovered(key, now, wall)
        cooled = model if verdict.kind == "rate_limited" else ""
        known = state.cools_until(cooled)
        if now < known and now + verdict.wait < known + _NO_NEWS:
            return recovered
        report = self._report(key.digest, "cooling", verdict.kind, now + verdict.wait, wall, model=cooled)
        return recovered + self._told(report, now)

    def recovered(self, key: RuntimeKey, now: float, wall: float) -> tuple[KeyReport, ...]:
        """A trial has passed. The report to spread, none when it was known."""
        return self._told(self._report(key.digest, "usable", "recovered", now, wall), now)

    def apply(self, report: KeyReport, now: float) -> bool:
        """What a sibling says. Whether that changes anything here."""
        state = self._states.get(report.key_sha256)
        if state is None:
            return False
        until = min(report.until, now + SUSPECT_LONGEST)
        if report.state == "cooling":
            changed = state.cool(report.model, until, report.at)
        elif report.state == "suspect":
            changed = state.refuse(refused_at(report), until, report.strikes, report.at)
        else:
            changed = bool(report.until) and state.recover(until, report.at)
        self._judge(now)
        return changed

    def reports(self, now: float) -> list[KeyReport]:
        """What a new link has to know: all that speaks against a key, and which have recovered."""
        found = []
        for digest, state in self._states.items():
            if state.suspect:
                until, strikes = state.suspect_until, state.strikes
                found.append(self._report(digest, "suspect", "refused", until, state.changed_at, strikes=strikes))
            elif state.recovered_at > _NEVER:
                found.append(self._report(digest, "usable", "recovered", state.recovered_at, state.changed_at))
            if state.spent[0] > now:
                found.append(self._report(digest, "cooling", "quota", *state.spent))
            for model, (until, at) in state.cooling.items():
                if until > now:
                    found.append(self._report(digest, "cooling", "rate_limited", until, at, model=model))
        return found

    def key_states(self, now: float) -> list[tuple[RuntimeKey, KeyStateName]]:
        """In order. Cooling for one model counts as cooling."""
        found: list[tuple[RuntimeKey, KeyStateName]] = []
        for key in self.keys:
            state = self._states[key.digest]
            found.append((key, "usable" if state.plain(now) else "suspect" if state.suspect else "cooling"))
        return found

    def subject(self, key: RuntimeKey) -> KeySubject:
        """By which a trial of it is asked for."""
        return KeySubject(self.provider_name, key.digest)

    def key(self, digest: bytes) -> RuntimeKey | None:
        return next((key for key in self.keys if key.digest == digest), None)

    def _told(self, report: KeyReport, now: float) -> tuple[KeyReport, ...]:
        return (report,) if self.apply(report, now) else ()

    def _report(
        self,
        digest: bytes,
        state: KeyStateName,
        reason: KeyReason,
        until: float,
        at: float,
        *,
        model: str = "",
        strikes: int = 0,
    ) -> KeyReport:
        return KeyReport(self.provider_name, digest, state, reason, model, until, strikes, at)

    def _judge(self, now: float) -> None:
        states = [(state, state.plain(now)) for state in self._states.values()]
        due = any(state.suspect and state.trial_from <= now for state, _ in states)
        self.healthy = self.selection == "primary" and bool(states) and states[0][1] and not due
        self._troubled = not all(plain for _, plain in states)
