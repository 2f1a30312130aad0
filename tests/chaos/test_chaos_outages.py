"""What stands behind the workers goes away, hangs and comes back, in any combination: people who are known do not notice,
and their records arrive."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

import httpx
import pytest

from ostiary.link.authorizations import ANSWER_WITHIN
from tests.chaos.harness import LONG, Chance, Site, StartSite, pass_by
from tests.support.chaos import Say, chaos
from tests.support.database_door import DatabaseDoor
from tests.support.gateway import ask
from tests.support.load import Load
from tests.support.reconcile import metric
from tests.support.server import Machine, eventually

ROUNDS = 4 if LONG else 1
"""How often every fault comes."""
SECONDS = 35.0 if LONG else 7.0
"""That an outage lasts at most. A token serves for 5 s without asking, a watch is dead after 25 s of silence."""
AUTHORISATION_LAPSES = 5.5
"""Seconds after which nobody's token is known without a doubt any more."""
WORKER_WAITS = 6.0
"""Seconds after which a worker does not wait for its link any more."""

Fault = Callable[[], AbstractContextManager[object]]


@contextmanager
def killed(site: Site, machine: Machine, kind: str) -> Iterator[None]:
    """Once; its successor is there at once, or when what it needs is."""
    site.kill(machine, kind)
    yield


@contextmanager
def down(machine: Machine) -> Iterator[None]:
    """The whole machine, as if its plug were pulled."""
    machine.kill()
    yield
    machine.start(ready=False)


@contextmanager
def door_that(door: DatabaseDoor, what: str) -> Iterator[None]:
    getattr(door, what)()
    yield
    door.open()


def of_machine(site: Site, machine: Machine, chance: Chance, *kinds: str) -> dict[str, Fault]:
    """Every way to lose a part of a machine without losing a worker's memory."""
    name = "gateway" if machine is not site.server else "server"
    found: dict[str, Fault] = {}
    for kind in kinds:
        found[f"{name}'s {kind} hangs"] = lambda kind=kind: site.frozen(machine, kind, chance)
        if kind != "worker":
            found[f"{name}'s {kind} dies"] = lambda kind=kind: killed(site, machine, kind)
    found[f"{name}'s supervisor hangs"] = lambda: site.frozen(machine, "supervisor")
    return found


def suffer(faults: dict[str, Fault], load: Load, chance: Chance) -> list[str]:
    """Each fault once, in any order, alone or with others, for any time; what happened, one line an outage.

    Of those that come together, what stands later in `faults` begins later and ends earlier.
    """
    left, story = chance.sample(sorted(faults), len(faults)), []
    while left:
        together = [left.pop() for _ in range(min(len(left), chance.choice((1, 1, 2, 3))))]
        together.sort(key=list(faults).index)
        seconds = chance.uniform(0.5, SECONDS)
        story.append(f"{seconds:.1f} s: {' and '.join(together)}")
        print(f"after {len(load.calls)} calls, {story[-1]}")
        with ExitStack() as stack:
            for name in together:
                stack.enter_context(faults[name]())
            pass_by(seconds)
        load.progress(chance.randrange(40, 120))
    return story


def check_nobody_noticed(site: Site, load: Load) -> str:
    """All calls were answered, and all are recorded as that."""
    site.await_link()
    load.progress(40)
    calls = load.finish()
    print(load.summary(), f"longest silence {max(call.stalled for call in calls):.2f} s")
    assert not load.failures(), load.summary()
    result = site.reconcile(load)
    assert result.outcomes == {"completed": len(calls)}
    assert not result.late
    return str(result)


def suffer_unnoticed(site: Site, faults: dict[str, Fault], chance: Chance) -> str:
    """Rounds of them under load; tells of it."""
    with site.load() as load:
        load.progress(150)
        story = [line for _ in range(ROUNDS) for line in suffer(faults, load, chance)]
        result = check_nobody_noticed(site, load)
    return f"seed {chance.seed_number}: {result}; {'; '.join(story)}"


def test_nobody_notices_outages_inside_a_server(start_site: StartSite, chance: Chance, say: Say) -> None:
    site = start_site()
    faults = of_machine(site, site.server, chance, "worker", "link", "control", "postgres")
    told = suffer_unnoticed(site, faults, chance)
    if LONG:
        say(f"outages, {told}")


def test_nobody_notices_outages_behind_a_standalone_gateway(
    start_site: StartSite, chance: Chance, door: DatabaseDoor, say: Say
) -> None:
    site = start_site(standalone=True, door=door)
    faults = {
        **of_machine(site, site.gateway, chance, "worker", "link"),
        **of_machine(site, site.server, chance, "control"),
        "the database is down": lambda: door_that(door, "shut"),
        "the database hangs": lambda: door_that(door, "hold"),
        "the server is down": lambda: down(site.server),
    }
    told = suffer_unnoticed(site, faults, chance)
    if LONG:
        say(f"standalone outages, {told}")


@pytest.mark.parametrize("take_away", ["shut", pytest.param("hold", marks=chaos)])
def test_while_the_database_is_away_known_people_are_served_without_a_wait_and_strangers_are_told(
    start_site: StartSite, door: DatabaseDoor, take_away: str
) -> None:
    site = start_site(door=door)
    idle = site.server.new_token("idle")
    assert ask(site.server.url, idle).status_code == 200
    with site.load(concurrency=20) as load:
        load.progress(60)
        getattr(door, take_away)()
        pass_by(AUTHORISATION_LAPSES)
        eventually(lambda: metric(site.server, "ostiary_link_up") == 0, within=40)
        load.progress(60)
        assert ask(site.server.url, idle).status_code == 200
        assert ask(site.server.url, "ost_never-seen-before").status_code == 503
        assert httpx.get(f"{site.server.url}/readyz").status_code == 200
        assert metric(site.server, "ostiary_link_records_pending") > 60
        door.open()
        site.await_link()
        load.progress(20)
        calls = load.finish()
    assert not load.failures(), load.summary()
    assert max(call.stalled for call in calls) < ANSWER_WITHIN, "as long as a stranger waits"
    result = site.reconcile(load)
    assert result.outcomes == {"completed": len(calls) + 2}


def test_a_link_that_hangs_after_the_control_plane_has_gone_holds_nobody_up_twice(
    start_site: StartSite, door: DatabaseDoor
) -> None:
    site = start_site(door=door)
    with site.load(concurrency=20) as load:
        load.progress(60)
        door.shut()
        site.kill(site.server, "control")
        eventually(lambda: metric(site.server, "ostiary_link_up") == 0, within=40)
        with site.frozen(site.server, "link"):
            pass_by(AUTHORISATION_LAPSES + WORKER_WAITS + 1)
            begun = len(load.calls)
            pass_by(WORKER_WAITS)
        assert len(load.calls) - begun > 60, load.summary()
        door.open()
        check_nobody_noticed(site, load)
    # Those who came first; held up twice it would be 40.
    assert len([call for call in load.calls if call.stalled > WORKER_WAITS - 2]) <= 30


def test_a_gateway_that_dies_and_starts_in_an_outage_serves_from_its_cache(
    start_site: StartSite, chance: Chance
) -> None:
    site = start_site(standalone=True)
    with site.load() as load:
        load.progress(150)
        eventually(lambda: (site.gateway.data_dir / "link" / "tokens").exists(), what="the cache is written")
        site.server.kill()
        for restart in chance.sample([site.kill_everything, site.kill_supervisor], 2):
            load.progress(chance.randrange(20, 100))
            restart(site.gateway)
            begun = len(load.calls)
            load.progress(chance.randrange(80, 160))
            served = [call for call in load.calls[begun + 40 :] if not call.good]
            assert not served, f"after {restart.__name__}: {served}"
        site.server.start()
        site.await_link()
        load.progress(40)
        load.finish()
    assert not [call for call in load.failures() if call.complete], "refused"
    result = site.reconcile(load)
    assert set(result.outcomes) <= {"completed", "interrupted"}
