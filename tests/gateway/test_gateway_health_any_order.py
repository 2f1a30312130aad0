"""Two workers and a link in any order of events: when all is carried over and quiet, everybody knows what holds."""

from collections.abc import Callable

from health_machine import LIMITED, REFUSED, M, Machine, WorkerEnd
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from ostiary.core.health import KeySubject
from ostiary.gateway.keypool import Chosen
from ostiary.gateway.providers import RuntimeKey


class Restored(RuleBasedStateMachine):
    """Keys are revoked and restored, limits come and go, messages and links are late or lost."""

    @initialize()
    def begin(self) -> None:
        self.machine = Machine()
        self.machine.start_link()
        self.valid = {key.digest: True for key in self.machine.workers[0].keys}
        self.under_way: list[tuple[WorkerEnd, RuntimeKey]] = []
        self.asked = 0
        self.answered = 0

    @rule(seconds=st.sampled_from([0.0, 0.01, 0.5, 1.0, 20.0, 60.0, 61.0, 3600.0, 1e8]))
    def wait(self, seconds: float) -> None:
        self.machine.now += seconds
        for worker in self.machine.workers:
            worker.health.sweep()

    @rule(number=st.integers(0, 2), valid=st.booleans())
    def revoke_or_restore(self, number: int, valid: bool) -> None:
        self.valid[self.machine.workers[0].keys[number].digest] = valid

    @rule(index=st.integers(0, 1), limited=st.booleans())
    def request(self, index: int, limited: bool) -> None:
        """With failover, as an exchange does it; a trial goes on when it is granted."""
        worker = self.machine.workers[index]
        tried: set[bytes] = set()
        while isinstance(choice := worker.pool.choose(M, self.machine.now, tried=tried), Chosen):
            key = choice.key
            tried.add(key.digest)
            if choice.needs_trial:
                self.asked += 1
                worker.health.ask_trial(KeySubject("openai", key.digest), 1, self.granted(worker, key))
            elif not self.valid[key.digest]:
                worker.health.mark("openai", key, REFUSED, M)
            elif limited:
                worker.health.mark("openai", key, LIMITED, M)
            else:
                return

    def granted(self, worker: WorkerEnd, key: RuntimeKey) -> Callable[[bool], None]:
        def answered(granted: bool) -> None:
            self.answered += 1
            if granted:
                self.under_way.append((worker, key))

        return answered

    @rule(unknown=st.booleans())
    def trial_ends(self, unknown: bool) -> None:
        if not self.under_way:
            return
        worker, key = self.under_way.pop(0)
        if unknown:
            worker.health.key_trial_ended("openai", key, "unknown")
        elif self.valid[key.digest]:
            worker.health.key_trial_ended("openai", key, "passed")
        else:
            worker.health.mark("openai", key, REFUSED, M)
            worker.health.key_trial_ended("openai", key, "failed")

    @rule(index=st.integers(0, 1), up=st.booleans(), count=st.integers(1, 5))
    def carry(self, index: int, up: bool, count: int) -> None:
        for _ in range(count):
            (self.machine.carry_up if up else self.machine.carry_down)(index)

    @rule()
    def lose_link(self) -> None:
        self.machine.lose_link()

    @rule()
    def start_link(self) -> None:
        if self.machine.board is None:
            self.machine.start_link()

    def teardown(self) -> None:
        """Once messages pass, the workers agree; and every key that is restored is back within its back-off."""
        if not hasattr(self, "machine"):
            return
        machine = self.machine
        if machine.board is None:
            machine.start_link()
        machine.carry_all()
        self.wait(1.0)
        machine.carry_all()
        assert self.asked == self.answered, "everybody is called back, and once"
        while self.under_way:
            self.trial_ends(unknown=True)
        machine.carry_all()
        one, other = machine.workers
        assert standing(one, machine.now) == standing(other, machine.now)
        for digest in self.valid:
            self.valid[digest] = True
        machine.now += 3600.0
        for worker in machine.workers:
            worker.health.sweep()
        for _ in range(3):
            self.request(0, limited=False)
            machine.carry_all()
            while self.under_way:
                self.trial_ends(unknown=False)
            machine.carry_all()
        for worker in machine.workers:
            assert isinstance(worker.pool.choose(M, machine.now), Chosen)
            assert worker.pool.healthy


def standing(worker: WorkerEnd, now: float) -> set[tuple[object, ...]]:
    return {
        (report.key_sha256, report.state, report.model, report.until, report.strikes)
        for report in worker.pool.reports(now)
        if report.state != "usable"
    }


TestRestored = Restored.TestCase
TestRestored.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
