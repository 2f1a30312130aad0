"""link/process.py as the supervisor and the workers see it."""

import asyncio
import os
import time
from hashlib import sha256
from pathlib import Path

import pytest
from connectrpc.code import Code
from connectrpc.errors import ConnectError
from control_far_end import KEY, until
from link_machine import Machine, Play, Worker

from ostiary import __version__
from ostiary.core.families import Family, Sample
from ostiary.core.messages import (
    AskAuthorization,
    Authorization,
    Drain,
    Drained,
    Fatal,
    MachineReady,
    MachineState,
    Ready,
    Serving,
    Snapshot,
)
from ostiary.core.records import WorkerGone, decode_record
from ostiary.core.secret import Secret

TOKEN = sha256(b"token").digest()


def test_the_machine_is_ready_when_every_worker_serves_and_that_is_reported_once(play: Play) -> None:
    async def test(machine: Machine) -> None:
        await until(lambda: Ready() in machine.reports)
        one, two = machine.worker(0), machine.worker(1)
        two.serves = False
        snapshot = await until(lambda: one.latest(Snapshot))
        assert [spec.name for spec in snapshot.providers] == ["openai", "off", "bad"]
        assert snapshot.providers[0].keys[0].value == Secret("sk-1")
        await until(lambda: two.latest(Snapshot))
        assert not one.ready
        assert MachineReady() not in machine.reports
        two.send(Serving(1))
        await until(lambda: one.ready and two.ready)
        two.die()
        await until(lambda: not one.ready)
        three = machine.worker(1)
        await until(lambda: one.ready and three.ready)
        assert machine.reports.count(MachineReady()) == 1

    play(test, workers=2)


def test_a_control_plane_without_any_provider_makes_a_machine_ready_all_the_same(play: Play) -> None:
    async def test(machine: Machine) -> None:
        machine.far.revision, machine.far.providers = 0, []
        worker = machine.worker(0)
        await until(lambda: worker.ready)
        polls = len(machine.far.polls)
        await until(lambda: len(machine.far.polls) > polls + 3)
        assert sum(isinstance(message, Snapshot) for message in worker.said) == 1

    play(test)


def test_a_new_revision_reaches_the_workers(play: Play) -> None:
    async def test(machine: Machine) -> None:
        worker = machine.worker(0)
        await until(lambda: worker.ready)
        machine.far.revision, machine.far.providers = 2, machine.far.providers[:1]
        await until(lambda: (seen := worker.latest(Snapshot)) and seen.revision == 2)

    play(test)


def test_questions_of_workers_are_answered(play: Play) -> None:
    async def test(machine: Machine) -> None:
        worker = machine.worker(0)
        worker.send(AskAuthorization(TOKEN))
        answer = await until(lambda: worker.latest(Authorization))
        assert answer.identity.username == "anna"
        assert 0 < answer.ttl <= 60

    play(test)


def test_records_are_shipped_while_workers_live_and_to_the_last_when_they_die(play: Play) -> None:
    async def test(machine: Machine) -> None:
        worker = machine.worker(0)
        worker.record()
        await until(lambda: machine.far.journals.get(worker.journal.id) == 1)
        worker.record()
        worker.die()
        await until(lambda: not worker.journal.path.exists())
        frames = machine.far.frames[worker.journal.id]
        assert len(frames) == 3
        assert isinstance(decode_record(frames[-1]), WorkerGone)

    play(test)


def test_an_outage_is_told_and_ends_by_itself(play: Play) -> None:
    async def test(machine: Machine) -> None:
        worker = machine.worker(0)
        await until(lambda: worker.ready)
        worker.send(AskAuthorization(TOKEN))
        await until(lambda: worker.latest(Authorization))
        away = ConnectError(Code.UNAVAILABLE, "database away")
        machine.far.always = dict.fromkeys(("record", "get_ai_providers"), away)
        # not a passing failure, so it is not waited out
        machine.far.always["is_authorized"] = ConnectError(Code.INTERNAL, "database away")
        state = await until(lambda: (seen := worker.latest(MachineState)) and not seen.link_up and seen)
        assert state.ready
        worker.record()
        worker.send(AskAuthorization(b"stranger"))
        await until(lambda: (seen := worker.latest(Authorization)) and seen.unavailable)
        worker.send(AskAuthorization(TOKEN))
        await until(lambda: (seen := worker.latest(Authorization)) and seen.identity)
        machine.far.always = {}
        await until(lambda: (seen := worker.latest(MachineState)) and seen.link_up)
        await until(lambda: machine.far.journals.get(worker.journal.id) == 1)

    play(test, auth_grace=60.0)


def test_a_link_that_restarts_in_an_outage_leaves_the_machine_ready_within_the_grace(play: Play) -> None:
    async def test(machine: Machine) -> None:
        worker = machine.worker(0)
        await until(lambda: worker.ready)
        await machine.crash()
        machine.far.always["get_ai_providers"] = ConnectError(Code.UNAVAILABLE, "database away")
        machine.settings["key"] = KEY
        await machine.start()
        again = machine.worker(0, worker.journal)
        again.send(Serving(1))
        await until(lambda: again.ready)
        state = again.latest(MachineState)
        assert state
        assert not state.link_up

    play(test, auth_grace=60.0)


async def known_before(machine: Machine) -> None:
    """A machine that has served, and crashed."""
    worker = machine.worker(0)
    await until(lambda: worker.ready)
    worker.send(AskAuthorization(TOKEN))
    await until(lambda: worker.latest(Authorization))
    await until(lambda: (machine.root / "link" / "tokens").exists())
    await machine.crash()
    worker.die()
    machine.settings["key"] = KEY


@pytest.mark.parametrize("plain", [None, 404, 502])
def test_a_machine_that_starts_in_an_outage_serves_what_it_knew(plain: int | None, play: Play, tmp_path: Path) -> None:
    async def test(machine: Machine) -> None:
        await known_before(machine)
        machine.far.always = dict.fromkeys(
            ("record", "get_ai_providers", "is_authorized"), ConnectError(Code.INTERNAL, "database away")
        )
        machine.far.plain = (plain, b"no", "text/plain") if plain else None
        await machine.start()
        again = machine.worker(0)
        await until(lambda: again.ready)
        snapshot = await until(lambda: again.latest(Snapshot))
        assert snapshot.providers[0].keys[0].value == Secret("sk-1")
        again.send(AskAuthorization(TOKEN))
        answer = await until(lambda: again.latest(Authorization))
        assert answer.identity.username == "anna"
        assert answer.age > 0
        again.send(AskAuthorization(b"stranger"))
        await until(lambda: (seen := again.latest(Authorization)) and seen.unavailable)
        machine.far.always, machine.far.plain, machine.far.revision = {}, None, 2
        await until(lambda: (seen := again.latest(Snapshot)) and seen.revision == 2)

    play(test, auth_grace=60.0, cache_dir=str(tmp_path / "link"))


def test_beyond_the_grace_nothing_kept_is_served(play: Play, tmp_path: Path) -> None:
    async def test(machine: Machine) -> None:
        await known_before(machine)
        machine.far.plain = (502, b"no", "text/plain")
        hours_ago = time.time() - 61
        os.utime(machine.root / "link-beat", (hours_ago, hours_ago))
        await machine.start()
        again = machine.worker(0)
        polls = len(machine.far.headers)
        await until(lambda: len(machine.far.headers) > polls + 2)
        assert again.latest(Snapshot) is None
        assert not again.ready

    play(test, auth_grace=60.0, cache_dir=str(tmp_path / "link"))


def test_a_refused_key_wipes_what_was_kept_and_serves_none_of_it(play: Play, tmp_path: Path) -> None:
    async def test(machine: Machine) -> None:
        await known_before(machine)
        machine.far.always = dict.fromkeys(
            ("record", "get_ai_providers", "is_authorized"), ConnectError(Code.UNAUTHENTICATED, "no such key")
        )
        await machine.start()
        again = machine.worker(0)
        assert await machine.process == 1
        assert again.latest(Snapshot) is None
        assert list((machine.root / "link").iterdir()) == []
        assert any(isinstance(report, Fatal) for report in machine.reports)

    play(test, auth_grace=60.0, cache_dir=str(tmp_path / "link"))


def test_a_version_that_does_not_fit_is_fatal_also_when_the_start_was_from_the_cache(
    play: Play, tmp_path: Path
) -> None:
    async def test(machine: Machine) -> None:
        await known_before(machine)
        machine.far.plain = (502, b"no", "text/plain")
        await machine.start()
        again = machine.worker(0)
        await until(lambda: again.ready)
        machine.far.always["get_ai_providers"] = ConnectError(Code.FAILED_PRECONDITION, "1.9 and 1.3")
        machine.far.plain = None
        async with asyncio.timeout(10):
            assert await machine.process == 1
        assert (machine.root / "link" / "snapshot").exists(), "the key was not refused"

    play(test, auth_grace=60.0, cache_dir=str(tmp_path / "link"))


def test_the_page_adds_up_the_machine(play: Play) -> None:
    async def test(machine: Machine) -> None:
        one, two = machine.worker(0), machine.worker(1)
        await until(lambda: one.ready and two.ready)
        one.requests[0], two.requests[0], one.inflight[0], two.inflight[0] = 10, 5, 1, 2
        two.send(Serving(1, {"openai": "no such region"}))
        one.record()
        while (page := await machine.page())["ostiary_link_records_shipped_total"] != 1:
            await asyncio.sleep(0.005)
        assert page["ostiary_requests_total"] == 15
        assert page["ostiary_inflight"] == 3
        assert page["ostiary_link_up"] == 1
        assert page["ostiary_link_records_pending"] == 0
        assert page['ostiary_link_journals{state="live"}'] == 2
        info = 'ostiary_provider_info{provider_name="%s",provider_type="openai",status="%s"}'
        assert page[info % ("openai", "error")] == 1
        assert page[info % ("off", "disabled")] == 1
        assert page[info % ("bad", "error")] == 1
        assert abs(page["ostiary_providers_last_reload_success_timestamp_seconds"] - time.time()) < 60
        # a worker that does not answer costs a second, and its last report counts
        two.answers_metrics = False
        one.requests[0] = 20
        assert (await machine.page())["ostiary_requests_total"] == 25
        two.die()
        three = machine.worker(1)
        await until(lambda: three.ready)
        three.requests[0] = 1
        page = await machine.page()
        assert page["ostiary_requests_total"] == 26
        assert page["ostiary_inflight"] == 1

    play(test, workers=2)


def test_the_machine_tells_how_it_is_and_tells_it_again_when_something_changes(play: Play) -> None:
    async def test(machine: Machine) -> None:
        far = machine.far
        far.failing["report_status"] = [ConnectError(Code.UNAVAILABLE, "database away")]
        one, two = machine.worker(0), machine.worker(1)
        await until(lambda: one.ready and two.ready)

        def told(revision: int, *workers: Worker) -> bool:
            """Whether the newest report shows these workers, all serving this revision."""
            if not far.statuses:
                return False
            status = far.statuses[-1]
            expected = [(worker.index, os.getpid(), worker.journal.id, revision) for worker in workers]
            return status.revision == revision and expected == [
                (worker.worker, worker.pid, worker.journal_id, worker.revision) for worker in status.workers
            ]

        await until(lambda: told(1, one, two))
        status = far.statuses[-1]
        assert (status.mode, status.build) == ("embedded", __version__)
        assert {journal.journal_id for journal in status.journals} == {one.journal.id, two.journal.id}
        assert all(journal.live for journal in status.journals)
        assert [(key.provider, key.hint, key.state) for key in status.keys] == [("openai", "...", "usable")]
        assert not status.breakers
        one.send(Serving(1, {"openai": "no such region"}))
        await until(lambda: dict(far.statuses[-1].provider_errors) == {"openai": "no such region"})
        two.die()
        await until(lambda: told(1, one))
        far.revision = 2
        async with far.told:
            far.told.notify_all()
        await until(lambda: told(2, one))
        assert {one.replica_id for one in far.statuses} == {status.replica_id}
        assert b"sk-1" not in b"".join(one.SerializeToString() for one in far.statuses)

    play(test, workers=2)


def test_draining_ships_to_empty_and_ends_well(play: Play) -> None:
    async def test(machine: Machine) -> None:
        worker = machine.worker(0)
        await until(lambda: worker.ready)
        for _ in range(50):
            worker.record()
        worker.die()
        machine.order(Drain())
        assert await asyncio.wait_for(machine.process, 20) == 0
        assert machine.reports[-1] == Drained(0)
        assert len(machine.far.frames[worker.journal.id]) == 51
        assert not worker.journal.path.exists()

    play(test)


@pytest.mark.parametrize("twice", [False, True])
def test_draining_says_how_many_records_are_left(play: Play, twice: bool) -> None:
    async def test(machine: Machine) -> None:
        machine.far.always["record"] = ConnectError(Code.UNAVAILABLE, "database away")
        worker = machine.worker(0)
        for _ in range(7):
            worker.record()
        worker.die()
        machine.order(Drain())
        if twice:
            machine.order(Drain())
        assert await asyncio.wait_for(machine.process, 20) == 3
        assert machine.reports[-1] == Drained(7)

    play(test, drain_timeout=60.0 if twice else 2.0)


def test_a_journal_without_a_record_does_not_hold_up_the_end_while_the_control_plane_is_away(play: Play) -> None:
    async def test(machine: Machine) -> None:
        machine.far.always["record"] = ConnectError(Code.UNAVAILABLE, "database away")
        worker = machine.worker(0)
        await until(lambda: worker.ready)
        worker.die()
        machine.order(Drain())
        assert await asyncio.wait_for(machine.process, 20) == 0
        assert machine.reports[-1] == Drained(0)

    play(test, drain_timeout=60.0)


def test_a_refused_key_ends_the_command_at_once_when_nothing_was_served(play: Play) -> None:
    async def test(machine: Machine) -> None:
        assert await asyncio.wait_for(machine.process, 20) == 1
        (fatal,) = [report for report in machine.reports if isinstance(report, Fatal)]
        assert fatal.exit_status == 1
        assert "ostiary gateway keys create" in fatal.message
        assert "not-the-key" not in fatal.message

    play(test, key="not-the-key")


def test_a_key_refused_later_ends_the_command_after_draining(play: Play) -> None:
    async def test(machine: Machine) -> None:
        worker = machine.worker(0)
        await until(lambda: worker.ready)
        worker.send(AskAuthorization(TOKEN))
        await until(lambda: worker.latest(Authorization))
        refused = ConnectError(Code.UNAUTHENTICATED, "key deleted")
        machine.far.always = dict.fromkeys(("record", "is_authorized", "get_ai_providers"), refused)
        await until(lambda: any(isinstance(report, Fatal) for report in machine.reports))
        worker.said.clear()
        worker.send(AskAuthorization(TOKEN))
        assert (await until(lambda: worker.latest(Authorization))).identity
        worker.record()
        worker.die()
        machine.order(Drain())
        assert await asyncio.wait_for(machine.process, 20) == 3
        assert machine.reports[-1] == Drained(1)

    play(test, drain_timeout=60.0)


def test_a_worker_that_speaks_something_else_loses_its_socket_and_nobody_else_does(play: Play) -> None:
    async def test(machine: Machine) -> None:
        good, odd = machine.worker(0), machine.worker(1)
        await until(lambda: good.ready and odd.ready)
        odd.send_bytes(b"\x00\x00\x00\x01\xc1")
        await asyncio.wait_for(odd.closed.wait(), 10)
        good.send(AskAuthorization(TOKEN))
        await until(lambda: good.latest(Authorization))

    play(test, workers=2)


def test_no_secret_is_logged_or_counted(play: Play, capfd: pytest.CaptureFixture[str]) -> None:
    pages: list[str] = []

    async def test(machine: Machine) -> None:
        worker = machine.worker(0)
        await until(lambda: worker.ready)
        pages.append(str(await machine.page()))
        machine.far.always["get_ai_providers"] = ConnectError(Code.INTERNAL, "broken")
        await until(lambda: (seen := worker.latest(MachineState)) and not seen.link_up)

    play(test)
    captured = capfd.readouterr()
    everything = captured.out + captured.err + pages[0]
    assert "loading providers" in everything
    for secret in (KEY, "sk-1", TOKEN.hex()):
        assert secret not in everything


def test_the_metrics_page_has_the_control_planes_own_where_it_is_on_this_machine(play: Play) -> None:
    told = Family("ostiary_control_database_up", "Whether the database answers.", "gauge", (), [Sample((), 1.0)])

    async def test(machine: Machine) -> None:
        worker = machine.worker(0)
        await until(lambda: worker.ready)
        machine.far.families = [told]
        page = await machine.page()
        assert (page["ostiary_control_up"], page["ostiary_control_database_up"]) == (1, 1)
        machine.far.always["get_ai_providers"] = ConnectError(Code.UNAVAILABLE, "database away")
        await until(lambda: (seen := worker.latest(MachineState)) and not seen.link_up)
        assert (await machine.page())["ostiary_control_database_up"] == 1
        machine.far.always = {"get_metrics": ConnectError(Code.UNIMPLEMENTED, "an older one")}
        await until(lambda: (seen := worker.latest(MachineState)) and seen.link_up)
        page = await machine.page()
        assert "ostiary_control_database_up" not in page
        assert (page["ostiary_link_up"], page["ostiary_control_up"]) == (1, 0)

    play(test)

    async def elsewhere(machine: Machine) -> None:
        worker = machine.worker(0)
        await until(lambda: worker.ready)
        machine.far.families = [told]
        page = await machine.page()
        assert not [name for name in page if name.startswith("ostiary_control_")]
        assert page["ostiary_link_up"] == 1

    play(elsewhere, mode="standalone")


def test_a_report_tells_how_far_the_clock_is_off(play: Play) -> None:
    async def test(machine: Machine) -> None:
        machine.far.clock = lambda: time.time_ns() // 1000 - 90_000_000
        first = await until(lambda: machine.far.statuses[:1])
        assert not first[0].HasField("clock_ahead_us")
        machine.worker(0)  # a change is told at once
        said = await until(lambda: [one for one in machine.far.statuses if one.HasField("clock_ahead_us")])
        assert 89_000_000 < said[0].clock_ahead_us < 91_000_000

    play(test)
