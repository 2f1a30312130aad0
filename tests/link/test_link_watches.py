"""link/watches.py: what is pushed reaches the workers, and what was missed is made up for."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop
from connectrpc.code import Code
from connectrpc.errors import ConnectError
from control_far_end import KEY, FarEnd, until

from ostiary.core.messages import Authorization, Revoked
from ostiary.core.secret import Secret
from ostiary.link import authorizations, watches
from ostiary.link.authorizations import UNWATCHED_TTL, Authorizations, Memory
from ostiary.link.client import ControlClient
from ostiary.link.watches import ProviderWatch, RevocationWatch
from ostiary.rpc.ostiary_pb2 import AuthorizationRefusal, IsAuthorizedResponse, Revocation

TOKEN = b"t" * 32
OTHER = b"o" * 32


def person(number: int, seq: int = 0) -> IsAuthorizedResponse:
    return IsAuthorizedResponse(
        owner_id=f"u{number}", api_key_id=f"k{number}", username="anna", role="member", ttl=60, seq=seq
    )


class Times:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now


class Desk:
    """Both watches against a far end, with the memory that they purge."""

    def __init__(self, far: FarEnd, client: ControlClient) -> None:
        self.far = far
        self.times = Times()
        self.memory = Memory(self.times.monotonic, self.times.wall, 60.0, 3600.0)
        self.told: list[Revoked] = []
        self.fetched: list[int] = []
        self.failures = 0
        loaded = asyncio.Event()
        loaded.set()
        self.asker = Authorizations(client.is_authorized, self.memory, lambda: True, lambda _reached: None, loaded)
        self.providers = ProviderWatch(client, self.fetched.append, self._failed)
        self.revocations = RevocationWatch(client, self.memory, self.told.append, self._failed)

    def _failed(self) -> None:
        self.failures += 1

    async def ask(self, token: bytes = TOKEN) -> Authorization:
        answered: asyncio.Future[Authorization] = asyncio.get_running_loop().create_future()
        self.asker.request(token, answered.set_result)
        return await asyncio.wait_for(answered, 10)

    async def revoke(self, seq: int, **subject: str) -> None:
        self.far.revocations.append(Revocation(seq=seq, **subject))
        await self.far.tell()


def sit(test: Callable[[Desk], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        async with FarEnd() as far, ControlClient(far.url, Secret(KEY)) as client:
            far.tokens |= {TOKEN: person(1), OTHER: person(2)}
            desk = Desk(far, client)
            running = [asyncio.create_task(watch.run()) for watch in (desk.providers, desk.revocations)]
            try:
                await until(lambda: desk.told and desk.fetched)
                await test(desk)
            finally:
                for task in running:
                    task.cancel()
                await asyncio.gather(*running, return_exceptions=True)
                await desk.asker.close()

    uvloop.run(main())


def test_a_change_of_providers_is_told_as_it_comes() -> None:
    async def test(desk: Desk) -> None:
        assert desk.fetched == [1]
        desk.far.revision = 2
        await desk.far.tell()
        await until(lambda: desk.fetched == [1, 2])

    sit(test)


@pytest.mark.parametrize("subject", [{"api_key_id": "k1"}, {"owner_id": "u1"}])
def test_who_is_revoked_is_forgotten_here_and_by_the_workers_and_nobody_else_is(subject: dict[str, str]) -> None:
    async def test(desk: Desk) -> None:
        await desk.ask()
        await desk.ask(OTHER)
        asked = len(desk.far.asked)
        await desk.revoke(7, **subject)
        await until(lambda: desk.told[-1] == Revoked(**subject))
        assert desk.memory.within_grace(TOKEN) is None
        assert desk.memory.seq == 7
        assert (await desk.ask(OTHER)).identity
        assert len(desk.far.asked) == asked
        desk.far.tokens[TOKEN] = IsAuthorizedResponse(refusal=AuthorizationRefusal.AUTHORIZATION_REFUSAL_REVOKED, seq=7)
        assert (await desk.ask()).refusal

    sit(test)


def test_an_answer_that_was_on_its_way_when_the_right_was_taken_away_opens_nothing() -> None:
    async def test(desk: Desk) -> None:
        desk.far.tokens[TOKEN] = person(1, seq=6)
        desk.far.hold = asyncio.Event()
        asking = asyncio.create_task(desk.ask())
        await until(lambda: desk.far.asked)
        await desk.revoke(7, owner_id="u1")
        await until(lambda: desk.memory.seq == 7)
        # the answer of before the revocation arrives now
        desk.far.hold.set()
        await until(lambda: len(desk.far.asked) >= 2)
        assert not asking.done()
        desk.far.tokens[TOKEN] = IsAuthorizedResponse(
            refusal=AuthorizationRefusal.AUTHORIZATION_REFUSAL_SUSPENDED, seq=7
        )
        answer = await asking
        assert (answer.identity, answer.refusal is not None) == (None, True)
        assert desk.memory.within_grace(TOKEN) is None

    sit(test)


def test_answers_serve_long_while_revocations_are_told_and_briefly_when_not() -> None:
    async def test(desk: Desk) -> None:
        assert (await desk.ask()).ttl == 60.0
        desk.far.always["watch_revocations"] = ConnectError(Code.UNAVAILABLE, "no streams here")
        await desk.far.stop()
        await until(lambda: desk.told[-1] == Revoked(everything=True, within=UNWATCHED_TTL))
        await desk.far.start()
        fresh = desk.memory.fresh(TOKEN)
        assert fresh
        assert fresh.ttl == UNWATCHED_TTL
        assert (await desk.ask(OTHER)).ttl == UNWATCHED_TTL

    sit(test)


def test_what_was_revoked_while_the_watch_was_away_is_told_when_it_is_back() -> None:
    async def test(desk: Desk) -> None:
        await desk.revoke(3, api_key_id="somebody's")
        await until(lambda: desk.memory.seq == 3)
        await desk.ask()
        await desk.far.stop()
        await until(lambda: desk.failures >= 2)
        desk.far.revocations.append(Revocation(seq=4, api_key_id="k1"))
        await desk.far.start()
        await until(lambda: desk.told[-1] == Revoked(api_key_id="k1"))
        assert desk.far.watched[-1] == 3
        assert desk.memory.within_grace(TOKEN) is None

    sit(test)


def test_after_a_gap_everybody_is_asked_for_before_their_next_use_and_serves_on_when_nobody_answers() -> None:
    async def test(desk: Desk) -> None:
        await desk.ask()
        asked = len(desk.far.asked)
        desk.far.revocations.append(Revocation(seq=50, reset=True))
        desk.far.tokens[TOKEN] = person(1, seq=50)
        await desk.far.tell()
        await until(lambda: desk.memory.seq == 50)
        assert desk.told[-1] == Revoked(everything=True)
        assert desk.memory.fresh(TOKEN) is None
        assert desk.memory.within_grace(TOKEN)
        assert (await desk.ask()).identity
        assert len(desk.far.asked) == asked + 1

    sit(test)


def test_silence_is_the_end_of_a_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watches, "SILENCE", 0.2)

    async def test(desk: Desk) -> None:
        await until(lambda: desk.failures >= 2)
        await until(lambda: len(desk.far.watched) >= 2)

    sit(test)


def test_a_storm_of_revocations_is_bounded_and_what_is_forgotten_of_it_is_asked_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(authorizations, "REVOKED_MAX", 10)
    times = Times()
    memory = Memory(times.monotonic, times.wall, 60.0, 3600.0)
    for seq in range(1, 101):
        memory.revoke(seq, f"k{seq}")
    assert memory.outdated(person(1, seq=1))
    assert memory.outdated(person(95, seq=94))
    assert memory.outdated(person(500, seq=89))
    assert not memory.outdated(person(95, seq=95))
    assert not memory.outdated(person(500, seq=90))
