"""A whole Ostiary under mixed load, what can be done to its processes, and the reconcile at the end.

    def test_...(start_site: StartSite, chance: Chance) -> None:
        site = start_site(standalone=True)
        with site.load() as load:
            load.progress(50)                        # so many calls more have ended
            site.kill(site.gateway, "link")
            with site.frozen(site.server, "control"):
                load.progress(50)
        result = site.reconcile(load)

Rules
- Calls go to the machine at the front: the server, or a standalone gateway before it. Several people take turns, with
  streams and blocking calls of every format, prompts and tool calls.
- Nothing is random but what is drawn from `chance`, whose seed is printed: the same `CHAOS_SEED` gives the same scenario.
  Moments are drawn as numbers of calls, not as seconds.
- `reconcile` holds for machines that were killed; one that was told to stop is looked at by `tests.crash`.
"""

import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from tests.support.chaos import kill_everything
from tests.support.fake_provider import FakeProvider
from tests.support.gateway import Gateway
from tests.support.load import MIXED, Call, Kind, Load
from tests.support.reconcile import Reconciled, frames_on_disk, linked, reconcile
from tests.support.server import Machine, Server, descendants, eventually

PEOPLE = ("ada", "bela", "cleo")
PACED = "pace=40 events=10"
LONG = bool(os.environ.get("CHAOS"))
"""Whether the long form is asked for."""


class Chance(random.Random):
    """Where a scenario gets its order and its moments from."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.seed_number = seed


class Site:
    """A server and, when there is one, the standalone gateway before it; with people who have tokens."""

    def __init__(self, server: Server, fake: FakeProvider, gateway: Gateway | None = None) -> None:
        self.server = server
        self.fake = fake
        self._gateway = gateway
        self.people = {name: server.new_token(name) for name in PEOPLE}
        self._on_disk: dict[str, int] = {}
        """Of journals whose machine was killed as a whole: the last record that stood in each."""

    @property
    def gateway(self) -> Gateway:
        assert self._gateway is not None, "this site has no standalone gateway"
        return self._gateway

    @property
    def machines(self) -> tuple[Machine, ...]:
        """The front one first."""
        return (self.server,) if self._gateway is None else (self._gateway, self.server)

    @property
    def front(self) -> Machine:
        """Where calls go."""
        return self.machines[0]

    def load(
        self,
        *,
        concurrency: int = 40,
        total: int | None = None,
        control: str = PACED,
        kinds: Sequence[Kind] = MIXED,
        prefix: str = "m",
        **options: Any,
    ) -> Load:
        """Calls as `tests.support.load` makes them, by all people in turn."""
        return Load(
            self.front.url,
            self.people,
            concurrency=concurrency,
            total=total,
            control=control,
            kinds=kinds,
            prefix=prefix,
            **options,
        )

    def reconcile(self, *loads: Load, within: float = 60.0, late_each: int = 1) -> Reconciled:
        """Provider ⇄ journals ⇄ rows: none lost, none twice, each its caller's. Ends what is still under way first."""
        calls: list[Call] = [call for load in loads for call in load.finish()]
        gateways = () if self._gateway is None else (self._gateway,)
        return reconcile(
            self.server, self.fake, calls, *gateways, within=within, late_each=late_each, on_disk=self._on_disk
        )

    def kill(self, machine: Machine, kind: str, chance: Chance | None = None) -> None:
        """`kill -9` of a child process; of several, one by chance. Waits until there is one."""
        send(self._one(machine, kind, chance), signal.SIGKILL)

    def kill_supervisor(self, machine: Machine) -> None:
        """`kill -9` of the supervisor, which takes the others with it, and a new start."""
        machine.kill()
        self._start_again(machine)

    def kill_everything(self, machine: Machine) -> None:
        """`kill -9` of all processes at one moment, and a new start."""
        kill_everything(machine)
        self._start_again(machine)

    def _start_again(self, machine: Machine) -> None:
        self._on_disk |= frames_on_disk(machine.data_dir)
        machine.start()

    @contextmanager
    def frozen(self, machine: Machine, kind: str, chance: Chance | None = None) -> Iterator[list[int]]:
        """A process (PostgreSQL: all of its processes) does not run meanwhile; of several workers, one by chance."""
        pid = self._one(machine, kind, chance)
        family = [pid, *(descendants(pid) if kind == "postgres" else ())]
        try:
            for one in family:
                send(one, signal.SIGSTOP)
            yield family
        finally:
            for one in family:
                send(one, signal.SIGCONT)

    def _one(self, machine: Machine, kind: str, chance: Chance | None) -> int:
        if kind == "supervisor":
            assert machine.process is not None
            return machine.process.pid
        # one that died young again and again is waited with for 10 s, and a load in this process makes each look take seconds
        pids = eventually(lambda: machine.children(kind), within=60, what=lambda: f"a {kind} runs: {machine.tail()}")
        return chance.choice(sorted(pids)) if chance else pids[0]

    def await_link(self, *, within: float = 60.0) -> None:
        """Until every machine is joined to the control plane."""
        for machine in self.machines:
            eventually(lambda machine=machine: linked(machine), within=within, what=machine.tail)


def send(pid: int, signum: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signum)


def pass_by(seconds: float) -> None:
    """Let an outage last, while a load runs."""
    over = time.monotonic() + seconds
    eventually(lambda: time.monotonic() > over, within=2 * seconds + 10)


StartSite = Callable[..., Site]
"""`start_site(standalone=False, door=None, workers=2, **variables)`: see `tests/chaos/conftest.py`."""
