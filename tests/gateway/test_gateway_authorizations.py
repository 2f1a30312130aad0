"""The worker's cache of who tokens are, as a script of questions and answers."""

import pytest

from ostiary.core.identity import Identity, Refusal
from ostiary.core.messages import Authorization
from ostiary.gateway.authorizations import Authorizations, Unavailable

DIGEST = b"d" * 32
ALICE = Identity("u1", "k1", "alice", "a@x", "member")


class Play:
    def __init__(self, *, linked: bool = True, grace: float = 100.0) -> None:
        self.now = 1000.0
        self.wall = 5000.0
        self.linked = linked
        self.asked: list[bytes] = []
        self.answers: list[object] = []
        self.cache = Authorizations(self._send, lambda: self.now, lambda: self.wall, grace)

    def _send(self, digest: bytes) -> bool:
        if self.linked:
            self.asked.append(digest)
        return self.linked

    def ask(self) -> None:
        self.cache.ask(DIGEST, self.answers.append)

    def tell(self, **fields: object) -> None:
        self.cache.receive(Authorization(DIGEST, **fields))


def test_a_new_token_is_asked_for_once_and_all_who_wait_are_answered():
    play = Play()
    assert play.cache.lookup(DIGEST) is None
    play.ask()
    play.ask()
    assert play.asked == [DIGEST]
    play.tell(identity=ALICE, ttl=5.0)
    assert play.answers == [ALICE, ALICE]
    assert play.cache.lookup(DIGEST) == ALICE


def test_a_busy_token_is_asked_again_ahead_of_its_end_and_never_waits():
    play = Play()
    play.tell(identity=ALICE, ttl=5.0)
    play.now += 2.4
    assert play.cache.lookup(DIGEST) == ALICE
    assert play.asked == []
    play.now += 0.2
    assert play.cache.lookup(DIGEST) == ALICE
    assert play.cache.lookup(DIGEST) == ALICE
    assert play.asked == [DIGEST]
    play.tell(identity=ALICE, ttl=5.0)
    play.now += 4.9
    assert play.cache.lookup(DIGEST) == ALICE


def test_an_answer_past_its_ttl_must_be_asked_for():
    play = Play()
    play.tell(identity=ALICE, ttl=5.0)
    play.now += 5.1
    assert play.cache.lookup(DIGEST) is None


def test_a_revoked_token_is_refused_from_the_answer_on():
    play = Play()
    play.tell(identity=ALICE, ttl=5.0)
    play.tell(refusal=Refusal.REVOKED, ttl=5.0)
    assert play.cache.lookup(DIGEST) is Refusal.REVOKED


def test_a_refusal_is_remembered_for_its_ttl_only():
    play = Play()
    play.tell(refusal=Refusal.UNKNOWN, ttl=5.0)
    assert play.cache.lookup(DIGEST) is Refusal.UNKNOWN
    play.now += 5.1
    assert play.cache.lookup(DIGEST) is None


def test_a_token_that_expires_meanwhile_is_refused_without_asking():
    play = Play()
    play.tell(identity=Identity("u1", "k1", "alice", "", "member", expires_at=5010), ttl=60.0)
    assert isinstance(play.cache.lookup(DIGEST), Identity)
    play.wall = 5010.0
    assert play.cache.lookup(DIGEST) is Refusal.EXPIRED


def test_a_known_token_serves_through_an_outage_until_the_grace_ends():
    play = Play(grace=100.0)
    play.tell(identity=ALICE, ttl=5.0)
    for _ in range(19):
        play.now += 5.1
        assert play.cache.lookup(DIGEST) is None
        play.ask()
        play.tell(unavailable="database down")
        assert play.answers.pop() == ALICE
    play.now += 5.1
    play.ask()
    play.tell(unavailable="database down")
    answer = play.answers.pop()
    assert isinstance(answer, Unavailable)
    assert answer.reason == "database down"


def test_the_grace_counts_from_the_control_planes_word_not_from_the_links():
    play = Play(grace=100.0)
    play.tell(identity=ALICE, ttl=5.0, age=90.0)
    play.now += 11
    play.ask()
    play.tell(unavailable="database down")
    assert isinstance(play.answers.pop(), Unavailable)


def test_an_unknown_token_in_an_outage_is_unavailable_not_refused():
    play = Play()
    play.ask()
    play.tell(unavailable="database down")
    assert isinstance(play.answers.pop(), Unavailable)


def test_without_a_link_a_known_token_serves_and_an_unknown_one_does_not():
    play = Play()
    play.tell(identity=ALICE, ttl=5.0)
    play.linked = False
    play.now += 6
    play.ask()
    play.cache.ask(b"o" * 32, play.answers.append)
    assert play.answers[0] == ALICE
    assert isinstance(play.answers[1], Unavailable)


def test_questions_are_settled_when_the_link_dies_or_stays_silent():
    play = Play()
    play.ask()
    play.cache.link_lost()
    assert isinstance(play.answers.pop(), Unavailable)
    play.ask()
    play.now += 4.9
    play.cache.sweep()
    assert play.answers == []
    play.now += 0.2
    play.cache.sweep()
    assert isinstance(play.answers.pop(), Unavailable)


def test_nobody_who_is_known_waits_for_a_link_that_hangs_and_it_is_asked_now_and_then():
    play = Play(grace=60.0)
    play.tell(identity=ALICE, ttl=5.0)
    play.now += 6.0
    play.ask()
    assert play.answers == []
    play.now += 5.0
    play.cache.sweep()
    assert play.answers == [ALICE]
    play.asked.clear()
    for _ in range(8):
        play.now += 2.5
        assert play.cache.lookup(DIGEST) is None
        play.ask()
        play.ask()
        assert play.cache.lookup(DIGEST) == ALICE
    assert play.answers == [ALICE] * 17
    assert play.asked == [DIGEST] * 8
    play.tell(identity=ALICE, ttl=5.0)
    play.now += 6.0
    play.ask()
    assert play.answers == [ALICE] * 17, "it speaks again, so its answer is waited for"
    play.now += 60.0
    play.cache.sweep()
    assert isinstance(play.answers[-1], Unavailable), "the grace is over"


def test_strangers_do_not_fill_a_link_that_hangs_and_are_answered_at_once_but_for_the_one_it_is_asked_for():
    play = Play()
    play.ask()
    play.now += 5.1
    play.cache.sweep()
    play.answers.clear()
    play.asked.clear()
    strangers = iter(range(10**6))
    for second in range(60):
        for _ in range(100):
            play.cache.ask(next(strangers).to_bytes(32, "big"), play.answers.append)
        play.now += 1.0
        play.cache.sweep()
        assert len(play.asked) == second + 1
        assert len(play.answers) >= 100 * (second + 1) - 6, "of those who wait nobody waits longer than ever"
    assert {type(answer) for answer in play.answers} == {Unavailable}

    probe = play.asked[-1]
    play.answers.clear()
    play.cache.receive(Authorization(probe, identity=ALICE, ttl=5.0))
    assert play.answers == [ALICE]
    play.cache.ask(b"s" * 32, play.answers.append)
    play.cache.ask(b"t" * 32, play.answers.append)
    assert play.asked[-2:] == [b"s" * 32, b"t" * 32], "it speaks again"
    assert play.answers == [ALICE]


def test_a_refresh_that_died_with_the_link_is_asked_again():
    play = Play()
    play.tell(identity=ALICE, ttl=5.0)
    play.now += 3
    play.cache.lookup(DIGEST)
    assert play.asked == [DIGEST]
    play.cache.link_lost()
    play.cache.lookup(DIGEST)
    assert play.asked == [DIGEST, DIGEST]


@pytest.mark.parametrize("count", [9_000])
def test_strangers_do_not_push_known_tokens_out(count):
    play = Play()
    play.tell(identity=ALICE, ttl=60.0)
    for number in range(count):
        play.cache.receive(Authorization(number.to_bytes(32, "big"), refusal=Refusal.UNKNOWN, ttl=60.0))
    assert play.cache.lookup(DIGEST) == ALICE
    assert play.cache.lookup((0).to_bytes(32, "big")) is None


BOB = Identity("u2", "k2", "bob", "b@x", "member")


@pytest.mark.parametrize("subject", [("k1", ""), ("", "u1")])
def test_who_is_revoked_is_forgotten_also_within_the_grace_and_others_are_not(subject):
    play = Play()
    play.tell(identity=ALICE, ttl=60.0)
    play.cache.receive(Authorization(b"b" * 32, identity=BOB, ttl=60.0))
    play.cache.revoke(*subject)
    assert play.cache.lookup(DIGEST) is None
    assert play.cache.lookup(b"b" * 32) == BOB
    play.linked = False
    play.ask()
    assert isinstance(play.answers[-1], Unavailable)


def test_after_a_gap_a_token_is_asked_for_before_its_next_use_and_serves_on_when_nobody_answers():
    play = Play()
    play.tell(identity=ALICE, ttl=60.0)
    play.cache.ask_again(0.0)
    assert play.cache.lookup(DIGEST) is None
    play.ask()
    assert play.asked == [DIGEST]
    play.tell(unavailable="away")
    assert play.answers == [ALICE]


def test_when_nobody_tells_of_revocations_what_is_known_lapses_soon_and_is_asked_ahead_of_that():
    play = Play()
    play.tell(identity=ALICE, ttl=60.0)
    play.cache.ask_again(5.0)
    play.now += 2.4
    assert play.cache.lookup(DIGEST) == ALICE
    assert play.asked == []
    play.now += 0.2
    assert play.cache.lookup(DIGEST) == ALICE
    assert play.asked == [DIGEST]
    play.now += 2.5
    assert play.cache.lookup(DIGEST) is None


def test_without_a_link_an_answer_serves_for_seconds_only():
    play = Play()
    play.tell(identity=ALICE, ttl=60.0)
    play.cache.link_lost()
    play.now += 4.9
    assert play.cache.lookup(DIGEST) == ALICE
    play.now += 0.2
    assert play.cache.lookup(DIGEST) is None
