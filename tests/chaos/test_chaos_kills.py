"""`kill -9` of whatever there is, in any order and at any moment, under load, by us or by the supervisor, which kills what
hangs: nothing is lost and nothing doubled."""

import psutil
import pytest

from tests.chaos.harness import LONG, Chance, Site, StartSite
from tests.support.chaos import Say
from tests.support.server import Machine, eventually

CHILDREN = ("worker", "link", "control", "postgres")
KILLS = 60 if LONG else 7
CONCURRENCY = 200 if LONG else 60


def kill_one(site: Site, chance: Chance) -> str:
    """End something as a crash would, now and then a whole machine; what it was."""
    machine: Machine = chance.choice(site.machines)
    kinds = CHILDREN if machine is site.server else CHILDREN[:2]
    victim = chance.choice((*kinds, *kinds, "supervisor", "everything"))
    if victim == "supervisor":
        site.kill_supervisor(machine)
    elif victim == "everything":
        site.kill_everything(machine)
    else:
        site.kill(machine, victim, chance)
    return f"{' '.join(machine.command)}: {victim}"


@pytest.mark.parametrize("standalone", [False, True], ids=["embedded", "standalone"])
def test_random_processes_are_killed_under_load(
    start_site: StartSite, chance: Chance, say: Say, standalone: bool
) -> None:
    site = start_site(standalone=standalone)
    killed = []
    with site.load(concurrency=CONCURRENCY) as load:
        for _ in range(KILLS):
            load.progress(chance.randrange(CONCURRENCY, 4 * CONCURRENCY))
            killed.append(kill_one(site, chance))
            print(f"after {len(load.calls)} calls: {killed[-1]}")
        site.await_link()
        load.progress(CONCURRENCY)
        calls = load.finish()
    result = site.reconcile(load)
    print(load.summary(), result, sep="\n")
    assert not [call for call in calls if call.complete and call.status == 200 and not call.good], (
        "a cut that looks whole"
    )
    if LONG:
        say(f"kills, seed {chance.seed_number}: {load.summary()}; {result}; killed {', '.join(killed)}")


def test_links_that_die_in_the_middle_of_a_batch_hold_up_no_batch_that_follows(
    start_site: StartSite, chance: Chance
) -> None:
    """Batches that nobody waits for any more are given up by the control plane: no lock and no transaction may stay."""
    site = start_site(standalone=True)
    with site.load() as load:
        load.progress(60)
        for _ in range(60 if LONG else 8):
            load.progress(chance.randrange(5, 60))
            site.kill(site.gateway, chance.choice(("link", "link", "worker")), chance)
        site.await_link()
        load.finish()
    result = site.reconcile(load, within=15)
    assert set(result.outcomes) <= {"completed", "interrupted"}


def test_processes_that_hang_are_killed_and_replaced_under_load(start_site: StartSite, chance: Chance) -> None:
    site = start_site(OSTIARY_HANG_TIMEOUT="3s")
    with site.load(concurrency=CONCURRENCY) as load:
        for kind in ("worker", "link", "control") * (5 if LONG else 1):
            load.progress(CONCURRENCY)
            with site.frozen(site.server, kind, chance) as (pid,):
                eventually(lambda pid=pid: not psutil.pid_exists(pid), within=60, what=f"the {kind} is killed")
        site.await_link()
        load.progress(CONCURRENCY)
        load.finish()
    result = site.reconcile(load)
    assert "killing child that hangs" in site.server.log.read_text(errors="replace")
    assert set(result.outcomes) <= {"completed", "interrupted"}
