"""Wall clocks that jump by hours and days under load: records stay whole and in order, and nobody is shut out."""

import itertools
import json
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import pytest

from tests.chaos.clocks import DAY, HOUR, Clock
from tests.chaos.harness import LONG, Chance, Site, StartSite
from tests.support.chaos import Say
from tests.support.gateway import ask
from tests.support.load import Load
from tests.support.reconcile import Reconciled, journals_of
from tests.support.server import eventually, open_directory

JUMPS = (HOUR, -HOUR, DAY, -DAY)
SLACK = 60.0
"""Seconds that the server may see more of a call than its client, on a machine on which other tests run. Jumps are of hours."""


@pytest.fixture
def clock() -> Iterator[Clock]:
    with open_directory() as directory:
        yield Clock(directory)


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def check_times(result: Reconciled, load: Load) -> None:
    """Each call lasted as long as it did, and of one worker's calls, those that came later have the greater ids."""
    of_journal: dict[str, list[tuple[float, float, str]]] = defaultdict(list)
    for call in load.calls:
        row = result.by_mark.get(call.mark)
        if row is None:
            continue
        lasted = (moment(row["ended_at"]) - moment(row["started_at"])).total_seconds()
        if row["outcome"] == "completed":
            assert 0 <= lasted <= call.seconds + SLACK, f"{lasted} s; the client saw {call}"
        of_journal[row["journal_id"]].append((call.began, call.began + call.seconds, row["id"]))
    for calls in of_journal.values():
        ended = sorted((end, id_) for _, end, id_ in calls)
        newest, at = "", 0
        for began, _, id_ in sorted(calls):
            while at < len(ended) and ended[at][0] < began:
                newest, at = max(newest, ended[at][1]), at + 1
            assert id_ > newest, "an id below one that was given before"


def database_agrees(site: Site, clock: Clock) -> bool:
    """Whether the database, which notes when it heard of a journal, has the time of this clock."""
    try:
        heard = [moment(journal["last_seen"]) for journal in journals_of(site.server)]
    except httpx.HTTPError:
        return False  # it died a moment ago
    return any(abs(at - clock.now) < timedelta(minutes=1) for at in heard)


@pytest.mark.parametrize("standalone", [False, True], ids=["embedded", "standalone"])
def test_clocks_jump_under_load_and_processes_die(
    start_site: StartSite, clock: Clock, chance: Chance, say: Say, standalone: bool
) -> None:
    """Embedded it is everybody's clock; standalone the gateway's alone, so that it differs from its control plane's."""
    site = start_site(standalone=standalone, front=clock.variables)
    machine = site.front
    victims = ("worker", "link", *(() if standalone else ("control", "postgres")))
    story = []
    with site.load() as load:
        load.progress(150)
        for jump in [jump for _ in range(6 if LONG else 1) for jump in chance.sample((*JUMPS, 0.0), 5)]:
            clock.jump_to(jump)
            load.progress(chance.randrange(40, 150))
            if not standalone:
                eventually(lambda: database_agrees(site, clock), within=30, what="PostgreSQL's clock jumps too")
            dies = chance.choice((*victims, "", ""))
            if dies:
                site.kill(machine, dies, chance)
            story.append(f"{jump / HOUR:+.0f} h, {dies or 'nobody'} dies")
            print(f"after {len(load.calls)} calls: {story[-1]}")
            load.progress(chance.randrange(40, 150))
        clock.jump_to(0.0)
        site.await_link()
        load.progress(60)
        load.finish()
    result = site.reconcile(load)
    print(load.summary(), result, sep="\n")
    refused = [call for call in load.failures() if call.complete]
    if standalone:
        # By its clock hours have passed since the last contact: a link that starts anew lets in nobody whom its workers do
        # not know, for the moments until it has reached its control plane.
        early = [call for call in refused if call.status == 503 and b"not connected to its control plane" in call.body]
        assert len(early) <= len(load.calls) // 50
        refused = [call for call in refused if call not in early or call.seconds > 2]
    assert not refused, "refused"
    assert set(result.outcomes) <= {"completed", "interrupted"}
    check_times(result, load)
    days = {moment(row["started_at"]).date() for row in result.by_mark.values()}
    assert len(days) >= 3, f"the clocks did not jump: {days}"
    if LONG:
        say(f"clocks, seed {chance.seed_number}: {load.summary()}; {result}; {'; '.join(story)}")


def test_what_waits_for_a_time_waits_no_longer_when_the_clock_jumps(start_site: StartSite, clock: Clock) -> None:
    """Cooling keys, an open breaker, dates that a provider names, and a token's own end, on a gateway whose clock is wrong."""
    breaker = {"TIMEOUT": "5s", "FAILURE_THRESHOLD": "3", "MAX_REQUESTS": "1"}
    site = start_site(
        standalone=True,
        workers=1,
        front=clock.variables | {f"OSTIARY_CIRCUIT_BREAKER_{name}": value for name, value in breaker.items()},
    )
    gateway, fake = site.gateway, site.fake
    token = site.people["ada"]
    made = site.server.owner.post("/api/v2/tokens", json={"name": "short", "user": "ada", "lifetime": "12h"})
    short_lived = made.raise_for_status().json()["token"]
    assert [ask(gateway.url, one).status_code for one in (token, short_lived)] == [200, 200]
    keys = (f"sk-cooling-{number}-0123456789abcdefghij" for number in itertools.count())

    def served(by: str = token) -> bool:
        return ask(gateway.url, by).status_code == 200

    def cool(retry_after: str) -> None:
        """The provider has a new key, and with it turned us away; the next request would succeed."""
        key = next(keys)
        change = site.server.owner.patch("/api/v2/ai/providers/openai", json={"api_keys": [{"api_key": key}]})
        assert change.is_success, change.text
        fake.script_key(key, "status=418")
        eventually(lambda: ask(gateway.url, token).status_code == 418, within=20, what=gateway.tail)
        fake.script_key(key, json.dumps({"status": 429, "retry-after": retry_after}), times=1)
        assert ask(gateway.url, token).status_code == 429

    def date_in(seconds: float) -> str:
        return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)

    for jump in (DAY, -DAY):
        cool("600")
        clock.jump_to(jump)
        assert ask(gateway.url, token).status_code == 429, "the key cools for ten minutes"
        cool(date_in(600))
        assert ask(gateway.url, token).status_code == 429, "until the moment that was named"
        cool(date_in(4))
        eventually(served, within=20, what=gateway.tail)
        clock.jump_to(0.0)
        cool("3")
        clock.jump_to(jump)
        eventually(served, within=20, what=gateway.tail)

        assert [ask(gateway.url, token, control="status=500").status_code for _ in range(3)] == [500] * 3
        assert ask(gateway.url, token).status_code == 503, "the breaker is open"
        clock.jump_to(0.0)
        eventually(served, within=20, what=gateway.tail)

        clock.jump_to(jump)
        assert ask(gateway.url, short_lived).status_code == (401 if jump > 0 else 200)
        clock.jump_to(0.0)
        eventually(lambda: served(short_lived), within=20, what=gateway.tail)


def test_a_gateway_that_starts_in_an_outage_after_a_jump_serves_within_the_grace_of_its_clock(
    start_site: StartSite, clock: Clock
) -> None:
    site = start_site(standalone=True, front=clock.variables)
    with site.load(concurrency=10) as load:
        load.progress(60)
        eventually(lambda: (site.gateway.data_dir / "link" / "tokens").exists(), what="the cache is written")
        site.server.kill()
        for jump in (-DAY, HOUR / 2):
            clock.jump_to(jump)
            site.kill_everything(site.gateway)
            begun = len(load.calls)
            load.progress(60)
            assert not [call for call in load.calls[begun + 10 :] if not call.good], load.summary()
        clock.jump_to(2 * HOUR)
        load.progress(60)
        assert not [call for call in load.calls[begun + 10 :] if not call.good], "it runs: the grace goes on"
        site.gateway.kill()
        site.gateway.start(ready=False)
        eventually(lambda: load.calls[-1].status == 503, within=20, what=load.summary)
        site.server.start()
        site.await_link()
        clock.jump_to(0.0)
        load.progress(40)
        assert load.calls[-1].good
        load.finish()
    assert {call.status for call in load.failures() if call.complete} == {503}
    result = site.reconcile(load)
    assert set(result.outcomes) <= {"completed", "interrupted"}
