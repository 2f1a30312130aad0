"""Whether a call may go upstream, and with which credential: what breaker and key pool say of it, and what they hear.

Rules
- A key that this call has tried is not tried by it again.
- What is suspect (a key that was refused, an upstream that failed) is tried by few requests of the machine at a time: these
  ask for a trial, and go on once it is granted.
- The breaker hears exactly one outcome, and so does each trial that was granted, also one that nobody waits for any more.
"""

import time
from typing import TYPE_CHECKING, Final

from ostiary.core.health import BreakerSubject, KeySubject, TrialOutcome

from .breaker import NEEDS_TRIAL, Rejected
from .decide import Admission, Credential, breaker_open, no_key, pool_exhausted
from .key_verdict import read_key_error, verdict
from .keypool import Exhausted, KeyPool
from .providers import RuntimeKey
from .refusals import Refusal

if TYPE_CHECKING:
    from .upstream_call import UpstreamCall
    from .worker import Worker

_NOTHING: Final[frozenset[bytes]] = frozenset()
_ABOUT_THE_PERSON: Final = frozenset((401, 403, 429))
"""What these statuses say when the credential was the person's own."""


class Clearance:
    """Of one call. `session`: what stays with a key where the pool's selection says so; `try_suspects`: also suspect keys.

    `own`: the person's own credential, which is among the request's header fields already.
    """

    exhausted: bool = False
    """No key is left to try: what the provider says then is said of all."""
    hint: str = ""
    """The credential, masked."""
    key: RuntimeKey | None = None
    passed_over: tuple[tuple[str, str], ...] = ()
    """Hints of keys that were left out, and why."""
    _breaker_trial: bool = False
    _key_trial: bool = False
    _marked: tuple[tuple[str, str], ...] = ()
    _needs_trial: bool = False
    _over: bool = False

    def __init__(
        self,
        worker: "Worker",
        admission: Admission,
        own: Credential | None,
        model: str,
        session: str,
        *,
        try_suspects: bool,
    ) -> None:
        self._worker = worker
        self._admission = admission
        self._provider = admission.provider
        self._own = own
        self._model = model
        self._session = session
        self._try_suspects = try_suspects
        self._tried = _NOTHING

    # --- with which credential

    def choose(self) -> Refusal | None:
        """Find a credential to begin with; a refusal when there is none."""
        provider = self._provider
        own = self._own
        if own is not None:
            self.hint = own.hint
            return None
        if provider.adapter is not None:
            self.hint = provider.adapter.hint
            return None
        keys = provider.keys
        if not keys:
            return no_key(provider)
        pool = self._worker.health.pools.get(provider.name)
        if pool is not None and pool.healthy and pool.keys is keys:
            self.key = key = keys[0]
            self.hint = key.hint
            return None
        return self._choose_key()

    def next_key(self) -> Refusal | None:
        """The one in use is of no use: take another; a refusal when there is none."""
        assert self.key is not None
        self._tried |= {self.key.digest}
        return self._choose_key()

    def _choose_key(self) -> Refusal | None:
        """The next key that may be used and was not tried yet."""
        choice = self._pool().choose(
            self._model_name, time.monotonic(), self._session, self._tried, try_suspects=self._try_suspects
        )
        self.passed_over = self._marked + choice.passed_over
        if isinstance(choice, Exhausted):
            self.exhausted = True
            self._worker.metrics.keys_exhausted(self._provider.name, choice.kind)
            return pool_exhausted(self._provider, choice)
        self.key = choice.key
        self._needs_trial = choice.needs_trial
        self.hint = choice.key.hint
        return None

    def _pool(self) -> KeyPool:
        """The keys of this request's own snapshot, by what is known of them now: keys of another one may be for another
        address."""
        provider = self._provider
        pool = self._worker.health.pools.get(provider.name)
        if pool is None or pool.keys is not provider.keys:
            return KeyPool(provider.name, provider.keys, provider.selection, pool)
        return pool

    @property
    def _model_name(self) -> str:
        """What a limit may be about."""
        return self._model or self._admission.route.label

    # --- whether it may

    def ask(self, call: "UpstreamCall") -> None:
        """`call` goes on, now or later, or is refused."""
        if self._worker.health.breakers.tracked:
            self._ask_breaker(call)
        else:
            self.ask_key(call)

    def _ask_breaker(self, call: "UpstreamCall") -> None:
        """Some upstream has failed lately: perhaps this one."""
        admission = self._worker.health.breakers.admit(self._breaker, time.monotonic())
        if isinstance(admission, Rejected):
            self._reject_for_breaker(call, admission.retry_after)
        elif admission is NEEDS_TRIAL:
            self._try_breaker(call)
        else:
            self.ask_key(call)

    def _try_breaker(self, call: "UpstreamCall") -> None:
        def answered(granted: bool) -> None:
            self._breaker_trial = granted
            with call.exchange:
                if self._over:
                    self._end_breaker_trial("unknown")
                elif granted:
                    self.ask_key(call)
                else:
                    self._reject_for_breaker(call, 1)  # others try at this moment

        worker = self._worker
        worker.health.ask_trial(self._breaker, worker.settings.circuit_breaker_max_requests, answered)

    def _reject_for_breaker(self, call: "UpstreamCall", retry_after: int) -> None:
        breaker = self._breaker
        self._worker.metrics.breaker_rejected(breaker)
        call.reject(breaker_open(self._provider, breaker, retry_after))

    @property
    def _breaker(self) -> BreakerSubject:
        return BreakerSubject(self._provider.name, self._admission.route.label, self._model)

    def ask_key(self, call: "UpstreamCall") -> None:
        """The same for the key alone: the breaker has let the call through."""
        if self._needs_trial and self.key is not None:
            self._try_key(call, self.key)
        else:
            call.go()

    def _try_key(self, call: "UpstreamCall", key: RuntimeKey) -> None:
        def answered(granted: bool) -> None:
            self._key_trial = granted
            self._needs_trial = False
            with call.exchange:
                if self._over:
                    self._end_key_trial("unknown")
                elif granted:
                    call.go()
                else:
                    call.next_key()

        self._worker.health.ask_trial(KeySubject(self._provider.name, key.digest), 1, answered)

    # --- what comes of it

    def accepted(self, status: int) -> None:
        """An answer that is no error of the upstream's, and not about the key: what was tried has passed."""
        if self._key_trial or self._breaker_trial:
            self._end_key_trial("passed")
            if self._own is None or status not in _ABOUT_THE_PERSON:
                self._end_breaker_trial("passed")

    def refuses_key(self, status: int, fields: dict[bytes, bytes], payload: bytes) -> bool:
        """Whether this answer says that the key cannot be used. If so the pool knows from now on."""
        key = self.key
        assert key is not None
        found = verdict(status, fields, read_key_error(fields, payload), time.time())
        if found is None:
            self._end_key_trial("unknown" if status == 403 else "passed")
            return False
        worker = self._worker
        reports = worker.health.mark(self._provider.name, key, found, self._model_name)
        worker.metrics.keys_changed(reports)
        self._marked += ((key.hint, found.kind),)
        self._end_key_trial("failed" if found.kind == "refused" else "passed")
        return True

    def settled(self, *, failed: bool | None, attempts: int) -> None:
        """The exchange has ended: whether the upstream failed in it; None when that cannot be said."""
        self._over = True
        worker = self._worker
        try:
            if self._breaker_trial:
                self._end_breaker_trial("unknown" if failed is None else "failed" if failed else "passed")
            elif failed:
                worker.metrics.breaker_opened(worker.health.failed(self._breaker))
            elif failed is not None and worker.health.breakers.tracked:
                worker.health.succeeded(self._breaker)
            if self.key is not None and attempts:
                worker.metrics.keys_tried(self._provider.name, attempts)
        finally:
            if self._key_trial:
                self._end_key_trial("unknown")

    def _end_key_trial(self, outcome: TrialOutcome) -> None:
        if self._key_trial and self.key is not None:
            self._key_trial = False
            reports = self._worker.health.key_trial_ended(self._provider.name, self.key, outcome)
            self._worker.metrics.keys_changed(reports)

    def _end_breaker_trial(self, outcome: TrialOutcome) -> None:
        if self._breaker_trial:
            self._breaker_trial = False
            report = self._worker.health.breaker_trial_ended(self._breaker, outcome)
            self._worker.metrics.breaker_opened(report)
