"""link/authorizations.py: what is remembered of a token and for how long, and how questions become few."""

import asyncio
from collections.abc import Callable, Coroutine
from hashlib import sha256
from typing import Any

import pytest
import uvloop
from connectrpc.code import Code
from connectrpc.errors import ConnectError
from control_far_end import KEY, FarEnd, until

from ostiary.core.identity import Identity, Refusal
from ostiary.core.messages import Authorization
from ostiary.core.secret import Secret
from ostiary.link import authorizations
from ostiary.link.authorizations import Authorizations, Memory
from ostiary.link.client import ControlClient
from ostiary.rpc.ostiary_pb2 import AuthorizationRefusal, IsAuthorizedResponse

TOKEN = sha256(b"token").digest()
ANNA = IsAuthorizedResponse(
    owner_id="u1", api_key_id="k1", username="anna", email="a@example.com", role="admin", ttl=60
)
UNKNOWN = IsAuthorizedResponse(refusal=AuthorizationRefusal.AUTHORIZATION_REFUSAL_UNKNOWN)


class Times:
    """Monotonic seconds, and Unix seconds that run with them."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now + 1_000_000


def memory(times: Times, ttl: float = 5.0, grace: float = 3600.0) -> Memory:
    return Memory(times.monotonic, times.wall, ttl, grace)


def expiring(at: float) -> IsAuthorizedResponse:
    answer = IsAuthorizedResponse()
    answer.CopyFrom(ANNA)
    answer.expires_at = int(at)
    return answer


def test_an_answer_carries_who_it_is_and_lives_no_longer_than_the_setting() -> None:
    known = memory(Times()).learn(TOKEN, ANNA)
    identity = Identity("u1", "k1", "anna", "a@example.com", "admin")
    assert known == Authorization(TOKEN, identity=identity, ttl=5.0, age=0.0)


def test_an_answer_is_asked_for_again_in_the_second_half_of_its_life() -> None:
    times = Times()
    known = memory(times)
    known.learn(TOKEN, ANNA)
    times.now += 2.4
    fresh = known.fresh(TOKEN)
    assert fresh
    assert (fresh.ttl, fresh.age) == (pytest.approx(2.6), pytest.approx(2.4))
    times.now += 0.1
    assert known.fresh(TOKEN) is None


def test_an_identity_serves_on_within_the_grace_and_no_longer() -> None:
    times = Times()
    known = memory(times, grace=100.0)
    known.learn(TOKEN, ANNA)
    times.now += 98.0
    answer = known.within_grace(TOKEN)
    assert answer
    assert answer.identity
    assert (answer.ttl, answer.age) == (pytest.approx(2.0), pytest.approx(98.0))
    times.now += 2.0
    assert known.within_grace(TOKEN) is None


def test_a_tokens_own_expiry_is_checked_also_within_the_grace() -> None:
    times = Times()
    known = memory(times)
    answer = known.learn(TOKEN, expiring(times.wall() + 3))
    assert (answer.identity is not None, answer.ttl) == (True, pytest.approx(3.0))
    times.now += 3
    assert known.fresh(TOKEN) == Authorization(TOKEN, refusal=Refusal.EXPIRED)
    assert known.within_grace(TOKEN) == Authorization(TOKEN, refusal=Refusal.EXPIRED)
    assert known.learn(TOKEN, expiring(times.wall() - 1)).refusal is Refusal.EXPIRED


def test_a_refusal_is_remembered_for_five_seconds_and_not_beyond() -> None:
    times = Times()
    known = memory(times)
    known.learn(TOKEN, ANNA)
    assert known.learn(TOKEN, UNKNOWN).refusal is Refusal.UNKNOWN
    times.now += 4.0
    fresh = known.fresh(TOKEN)
    assert fresh
    assert (fresh.refusal, fresh.ttl) == (Refusal.UNKNOWN, pytest.approx(1.0))
    assert known.within_grace(TOKEN) is None
    times.now += 1.0
    assert known.fresh(TOKEN) is None


@pytest.mark.parametrize("wire", [*AuthorizationRefusal.values()[1:], 77])
def test_every_refusal_refuses_also_one_of_a_newer_control_plane(wire: int) -> None:
    answer = IsAuthorizedResponse.FromString(bytes([8, wire]))
    known = memory(Times())
    assert known.learn(TOKEN, answer).refusal is not None
    assert known.learn(TOKEN, answer).identity is None


def test_an_answer_that_names_nobody_opens_nothing() -> None:
    answer = memory(Times()).learn(TOKEN, IsAuthorizedResponse(username="anna", role="owner"))
    assert (answer.identity, bool(answer.unavailable)) == (None, True)


def test_a_role_of_a_newer_control_plane_has_the_least_rights() -> None:
    strange = IsAuthorizedResponse()
    strange.CopyFrom(ANNA)
    strange.role = "emperor"
    answer = memory(Times()).learn(TOKEN, strange)
    assert answer.identity
    assert answer.identity.role == "member"


def test_strangers_cannot_push_known_people_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(authorizations, "REFUSED_MAX", 10)
    monkeypatch.setattr(authorizations, "KNOWN_MAX", 3)
    known = memory(Times())
    known.learn(TOKEN, ANNA)
    for number in range(50):
        known.learn(b"stranger %d" % number, UNKNOWN)
    assert known.fresh(TOKEN)
    assert sum(known.fresh(b"stranger %d" % number) is not None for number in range(50)) == 10
    for number in range(3):
        known.learn(b"person %d" % number, ANNA)
    assert known.fresh(TOKEN) is None


# --- questions


class Desk:
    """Authorisations over a real connection; `up` stands for the heartbeat."""

    def __init__(self, far: FarEnd, client: ControlClient) -> None:
        self.far = far
        self.times = Times()
        self.memory = memory(self.times)
        self.up = True
        self.noticed: list[bool] = []
        self.answers: list[Authorization] = []
        self.loaded = asyncio.Event()
        self.loaded.set()
        self.asker = Authorizations(
            client.is_authorized, self.memory, lambda: self.up, self.noticed.append, self.loaded
        )

    async def ask(self, token: bytes = TOKEN) -> Authorization:
        answered: asyncio.Future[Authorization] = asyncio.get_running_loop().create_future()
        self.asker.request(token, answered.set_result)
        return await asyncio.wait_for(answered, 10)


def sit(test: Callable[[Desk], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        async with FarEnd() as far, ControlClient(far.url, Secret(KEY)) as client:
            far.tokens[TOKEN] = ANNA
            desk = Desk(far, client)
            await test(desk)
            await desk.asker.close()

    uvloop.run(main())


def test_equal_questions_of_many_workers_are_one_call_and_its_answer_serves_all() -> None:
    async def test(desk: Desk) -> None:
        desk.far.hold = asyncio.Event()
        asked = [asyncio.create_task(desk.ask()) for _ in range(20)]
        await until(lambda: desk.far.asked)
        desk.far.hold.set()
        answers = await asyncio.gather(*asked)
        assert {answer.identity.username for answer in answers if answer.identity} == {"anna"}
        assert len(answers) == 20
        assert len(desk.far.asked) == 1
        await desk.ask()
        assert len(desk.far.asked) == 1
        assert desk.noticed == [True]

    sit(test)


def test_an_unknown_token_is_not_asked_for_at_every_try() -> None:
    async def test(desk: Desk) -> None:
        for _ in range(3):
            assert (await desk.ask(b"guess")).refusal is Refusal.UNKNOWN
        assert len(desk.far.asked) == 1

    sit(test)


def test_a_moments_absence_of_the_control_plane_is_waited_out() -> None:
    async def test(desk: Desk) -> None:
        desk.far.failing["is_authorized"] = [ConnectError(Code.UNAVAILABLE, "restarting")] * 2
        assert (await desk.ask()).identity
        assert desk.noticed == [False, False, True]

    sit(test)


def test_while_the_link_is_down_who_is_known_gets_in_at_once_and_who_is_not_learns_why() -> None:
    async def test(desk: Desk) -> None:
        await desk.ask()
        desk.times.now += 60
        desk.up = False
        desk.far.always["is_authorized"] = ConnectError(Code.INTERNAL, "broken")
        answer = await desk.ask()
        assert answer.identity
        assert answer.age == pytest.approx(60)
        assert len(desk.far.asked) == 1
        answer = await desk.ask(b"somebody else")
        assert (answer.identity, answer.refusal) == (None, None)
        assert "broken" in answer.unavailable

    sit(test)


def test_who_is_not_known_is_not_told_where_the_control_plane_is() -> None:
    async def main() -> None:
        async with FarEnd() as gone:
            address = gone.url
        async with ControlClient(address, Secret(KEY)) as client:
            desk = Desk(gone, client)
            desk.up = False
            answer = await desk.ask()
            assert answer.unavailable == "the control plane could not be asked: it cannot be reached"
            await desk.asker.close()

    uvloop.run(main())


def test_a_known_token_is_not_kept_waiting_by_a_control_plane_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a stranger is."""
    monkeypatch.setattr(authorizations, "ANSWER_WITHIN", 60.0)

    async def test(desk: Desk) -> None:
        await desk.ask()
        desk.times.now += 60
        desk.far.hold = asyncio.Event()
        assert (await desk.ask()).identity
        desk.far.hold.set()

    sit(test)


def test_who_is_let_in_before_the_first_snapshot_hears_so_after_it_and_a_stranger_at_once() -> None:
    async def test(desk: Desk) -> None:
        desk.loaded.clear()
        asked = asyncio.create_task(desk.ask())
        await until(lambda: desk.memory.fresh(TOKEN))
        again = asyncio.create_task(desk.ask())
        assert (await desk.ask(b"guess")).refusal is Refusal.UNKNOWN
        assert not asked.done()
        assert not again.done()
        desk.loaded.set()
        assert (await asked).identity
        assert (await again).identity

    sit(test)


def test_a_revoked_token_is_out_with_the_next_answer() -> None:
    async def test(desk: Desk) -> None:
        assert (await desk.ask()).identity
        revoked = AuthorizationRefusal.AUTHORIZATION_REFUSAL_REVOKED
        desk.far.tokens[TOKEN] = IsAuthorizedResponse(refusal=revoked)
        desk.times.now += 5
        assert (await desk.ask()).refusal is Refusal.REVOKED
        desk.up = False
        desk.times.now += 6
        desk.far.always["is_authorized"] = ConnectError(Code.INTERNAL, "broken")
        assert (await desk.ask()).unavailable

    sit(test)


def test_a_flood_of_strangers_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(authorizations, "WAITING_MAX", 5)

    async def test(desk: Desk) -> None:
        desk.far.hold = asyncio.Event()
        asked = [asyncio.create_task(desk.ask(b"stranger %d" % number)) for number in range(20)]
        await until(lambda: sum(task.done() for task in asked) == 15)
        desk.far.hold.set()
        answers = await asyncio.gather(*asked)
        assert sum("too many" in answer.unavailable for answer in answers) == 15
        assert sum(answer.refusal is Refusal.UNKNOWN for answer in answers) == 5

    sit(test)
