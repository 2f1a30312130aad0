"""What one worker learns of keys and breakers reaches the others, the control plane and the metrics page."""

import asyncio
import itertools
import time
from hashlib import sha256
from typing import Any

import msgspec
from control_far_end import KEY, until
from link_machine import Machine, Play, Worker

from ostiary.core.health import (
    AskTrial,
    BreakerReport,
    BreakerSubject,
    KeyReport,
    KeySubject,
    TrialAnswer,
    TrialEnded,
)
from ostiary.core.messages import LinkMessage, Snapshot, encode
from ostiary.rpc.ostiary_pb2 import AIProvider, AIProviderKey

FIRST, SECOND = "sk-first-0123456789-first", "sk-second-0123456789-second"
DIGEST = sha256(FIRST.encode()).digest()
STATES = ("usable", "cooling", "suspect")
QUESTIONS = itertools.count(1)
KEY_TRIAL = KeySubject("pool", DIGEST)
BREAKER_TRIAL = BreakerSubject("pool", "/v1/messages", "claude-x")


def cooling(seconds: float, model: str = "claude-x") -> KeyReport:
    return KeyReport("pool", DIGEST, "cooling", "rate_limited", model, time.monotonic() + seconds, at=time.time())


def suspect(seconds: float, strikes: int = 1) -> KeyReport:
    until = time.monotonic() + seconds
    return KeyReport("pool", DIGEST, "suspect", "refused", until=until, strikes=strikes, at=time.time())


def opened(seconds: float) -> BreakerReport:
    return BreakerReport("pool", "/v1/messages", "claude-x", "open", time.monotonic() + seconds, time.time())


async def two_workers(machine: Machine) -> tuple[Worker, Worker]:
    """Both ready, with a provider of two keys."""
    machine.far.providers = [
        AIProvider(
            id="p",
            name="pool",
            type="anthropic",
            enabled=True,
            keys=[AIProviderKey(id="id-1", value=FIRST), AIProviderKey(id="id-2", value=SECOND)],
        )
    ]
    machine.far.revision = 2
    one, two = machine.worker(0), machine.worker(1)
    await until(lambda: one.ready and two.ready)
    return one, two


def health(worker: Worker) -> list[LinkMessage]:
    return [message for message in worker.said if isinstance(message, KeyReport | BreakerReport)]


async def answer(worker: Worker, subject: Any, limit: int = 1) -> bool:
    seq = next(QUESTIONS)
    worker.send(AskTrial(seq, subject, limit))
    found = await until(
        lambda: next((one for one in worker.said if isinstance(one, TrialAnswer) and one.seq == seq), None)
    )
    return bool(found.granted)


def test_a_report_reaches_every_other_worker_and_not_the_one_that_made_it(play: Play) -> None:
    async def test(machine: Machine) -> None:
        one, two = await two_workers(machine)
        said = [cooling(60), suspect(60), opened(30)]
        for report in said:
            one.send(report)
        await until(lambda: health(two) == said)
        back = KeyReport("pool", DIGEST, "usable", "recovered", at=time.time())
        two.send(said[0])
        two.send(back)
        await until(lambda: health(one) == [back])
        assert health(two) == said

    play(test, workers=2)


def test_a_worker_that_starts_later_or_comes_back_knows_what_the_others_know(play: Play) -> None:
    async def test(machine: Machine) -> None:
        one, two = await two_workers(machine)
        said = [suspect(60), cooling(60), opened(30)]
        for report in said:
            one.send(report)
        await until(lambda: health(two) == said)
        two.die()
        respawned = machine.worker(1)
        await until(lambda: health(respawned) == said)
        again = machine.worker(0, one.journal)
        await until(lambda: health(again) == said)

    play(test, workers=2)


def test_reports_that_come_before_the_snapshot_are_not_lost(play: Play) -> None:
    async def test(machine: Machine) -> None:
        one, two = await two_workers(machine)
        await machine.crash()
        machine.settings["key"] = KEY
        await machine.far.stop()
        await machine.start()
        again = machine.worker(0, one.journal)
        report = suspect(60)
        again.send(report)
        other = machine.worker(1, two.journal)
        await until(lambda: health(other) == [report])
        await machine.far.start()
        await until(lambda: machine.far.statuses and machine.far.statuses[-1].keys)
        await until(lambda: machine.far.statuses[-1].keys[0].state == "suspect")
        # again, for a worker without providers has no place for it
        await until(lambda: health(other) == [report, report])
        told = [one for one in other.said if isinstance(one, KeyReport | Snapshot)]
        assert [type(one) for one in told] == [KeyReport, Snapshot, KeyReport]

    play(test, workers=2)


def test_one_worker_tries_a_suspect_key_and_its_trial_is_free_again_when_it_dies(play: Play) -> None:
    async def test(machine: Machine) -> None:
        one, two = await two_workers(machine)
        one.send(suspect(60))
        assert not await answer(one, KEY_TRIAL), "not before its deadline"
        one.send(KeyReport("pool", DIGEST, "usable", "recovered"))
        assert await answer(one, KEY_TRIAL)
        assert not await answer(two, KEY_TRIAL)
        one.die()
        while not await answer(two, KEY_TRIAL):
            pass
        two.send(TrialEnded(KEY_TRIAL, "unknown"))
        assert await answer(two, KEY_TRIAL)

    play(test, workers=2)


def test_what_the_trials_of_a_breaker_come_to_is_told_to_all_workers(play: Play) -> None:
    async def test(machine: Machine) -> None:
        one, two = await two_workers(machine)
        assert await answer(one, BREAKER_TRIAL, 2)
        assert await answer(two, BREAKER_TRIAL, 2)
        assert not await answer(one, BREAKER_TRIAL, 2)
        deadline = time.monotonic() + 0.05
        two.send(TrialEnded(BREAKER_TRIAL, "failed", deadline))
        for worker in (one, two):
            (told,) = await until(lambda worker=worker: health(worker))
            assert (told.state, told.until) == ("open", deadline)
            worker.said.clear()
        while not await answer(one, BREAKER_TRIAL, 2):
            pass
        assert await answer(two, BREAKER_TRIAL, 2)
        one.send(TrialEnded(BREAKER_TRIAL, "passed"))
        two.send(TrialEnded(BREAKER_TRIAL, "passed"))
        for worker in (one, two):
            (told,) = await until(lambda worker=worker: health(worker))
            assert told.state == "closed"

    play(test, workers=2)


def test_the_control_plane_is_told_soon_and_with_the_history(play: Play) -> None:
    async def test(machine: Machine) -> None:
        one, _ = await two_workers(machine)
        far = machine.far
        await until(lambda: far.statuses and len(far.statuses[-1].keys) == 2)
        assert [(key.key_id, key.hint, key.state) for key in far.statuses[-1].keys] == [
            ("id-1", "sk-f...irst", "usable"),
            ("id-2", "sk-s...cond", "usable"),
        ]
        before = int(time.time())
        one.send(suspect(60))
        one.send(cooling(90))
        one.send(opened(30))
        first = await until(lambda: (key := far.statuses[-1].keys[0]).state == "suspect" and key.cooling and key)
        assert (first.reason, first.strikes) == ("refused", 1)
        assert before <= first.since <= time.time()
        assert before + 60 <= first.until <= time.time() + 61
        assert [(one.state, one.reason, one.model, one.strikes) for one in first.timeline] == [
            ("suspect", "refused", "", 1),
            ("cooling", "rate_limited", "claude-x", 0),
        ]
        assert [(one.model, one.reason) for one in first.cooling] == [("claude-x", "rate_limited")]
        (breaker,) = await until(lambda: list(far.statuses[-1].breakers))
        assert (breaker.provider, breaker.route, breaker.model) == ("pool", "/v1/messages", "claude-x")
        assert (breaker.state, breaker.until > time.time()) == ("open", True)
        one.send(KeyReport("pool", DIGEST, "usable", "recovered", at=time.time()))
        first = await until(lambda: (key := far.statuses[-1].keys[0]).state == "cooling" and key)
        assert (first.model, [one.state for one in first.timeline]) == ("claude-x", ["suspect", "cooling", "usable"])
        sent = b"".join(status.SerializeToString() for status in far.statuses)
        assert FIRST.encode() not in sent
        assert DIGEST not in sent

    play(test, workers=2)


def test_the_metrics_page_shows_each_pool_and_breaker_once_a_machine(play: Play) -> None:
    async def test(machine: Machine) -> None:
        one, two = await two_workers(machine)
        report = suspect(60)
        one.send(report)
        one.send(opened(30))
        await until(lambda: len(health(two)) == 2)
        two.send(report)
        two.send(opened(40))
        await until(lambda: len(health(one)) == 1)
        page = await machine.page()
        states = {state: page[f'ostiary_key_pool_state{{provider="pool",state="{state}"}}'] for state in STATES}
        assert states == {"usable": 1, "cooling": 0, "suspect": 1}
        breaker = 'ostiary_circuit_breaker_state{endpoint="/v1/messages",model="claude-x",provider="pool"}'
        assert page[breaker] == 1

    play(test, workers=2)


def test_a_worker_that_reads_slowly_knows_in_the_end_what_holds(play: Play) -> None:
    async def test(machine: Machine) -> None:
        one, two = await two_workers(machine)
        two.reads.clear()
        filler = "m" * 500
        reports = [
            BreakerReport("pool", "/v1/messages", f"{number}{filler}", "open", time.monotonic() + 600)
            for number in range(900)
        ]
        loop = asyncio.get_running_loop()
        for number in range(0, 900, 50):
            await loop.run_in_executor(None, one.send_bytes, b"".join(map(encode, reports[number : number + 50])))
        closed = [msgspec.structs.replace(report, state="closed", until=0.0) for report in reports[::2]]
        for number in range(0, 450, 50):
            await loop.run_in_executor(None, one.send_bytes, b"".join(map(encode, closed[number : number + 50])))
        # all of it has been taken when what comes behind it has been
        assert await answer(one, BREAKER_TRIAL)
        assert not health(two)
        two.reads.set()
        expected = {report.model: "open" for report in reports} | {report.model: "closed" for report in closed}
        known: dict[str, str] = {}

        def learnt() -> bool:
            known.update((report.model, report.state) for report in health(two) if isinstance(report, BreakerReport))
            return known == expected

        await until(learnt)
        after = BreakerReport("pool", "/v1/messages", "after", "open", time.monotonic() + 600)
        one.send(after)
        await until(lambda: health(two)[-1] == after)

    play(test, workers=2)
