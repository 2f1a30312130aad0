"""An upstream connection over time: reuse, endings and calls from within, back-pressure, time-outs."""

from typing import Any

import pytest
from http1_framings import FRAMINGS, IN_CHUNKS, Framed, asked, by_name
from http1_stage import Answer, Shelf, UpstreamStage, perform, turns

from ostiary.http1.errors import Failure
from ostiary.http1.upstream import COMPACT_BYTES

# --- one connection, many answers


def test_a_connection_serves_one_answer_after_the_other() -> None:
    async def play() -> None:
        stage = UpstreamStage()
        for count, framed in enumerate([f for f in FRAMINGS if f.reusable] * 2, 1):
            answer = Answer()
            answer.ask(stage.upstream, framed.method + b" / HTTP/1.1\r\n\r\n")
            stage.wire.arrives(framed.head + framed.body)
            assert answer.ends == ["done"]
            assert bytes(answer.out) == b"<head>" + framed.body
            assert answer.payload == framed.payload
            assert stage.shelf.released == count
            assert stage.upstream.usable

    perform(play)


@pytest.mark.parametrize(
    ("says", "failure"),
    [
        (b"", Failure.STALE),
        (b"H", Failure.CLOSED_BEFORE_HEAD),
        (b"HTTP/1.1 100 Continue\r\n\r\n", Failure.CLOSED_BEFORE_HEAD),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", Failure.CUT),
    ],
)
@pytest.mark.parametrize("ending", ["peer_closes", "peer_vanishes"])
def test_only_a_used_connection_that_said_nothing_is_stale(says: bytes, failure: Failure, ending: str) -> None:
    async def play() -> None:
        for used in (True, False):
            stage = UpstreamStage()
            if used:
                Answer().ask(stage.upstream)
                stage.wire.arrives(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            answer = Answer()
            answer.ask(stage.upstream)
            if says:
                stage.wire.arrives(says)
            getattr(stage.wire, ending)()
            await turns(2)
            assert answer.ends == ["failed"]
            assert answer.error is not None
            expected = Failure.CLOSED_BEFORE_HEAD if failure is Failure.STALE and not used else failure
            assert answer.error.failure is expected

    perform(play)


def test_an_answer_to_nothing_closes_an_idle_connection() -> None:
    async def play() -> None:
        stage = UpstreamStage()
        Answer().ask(stage.upstream)
        stage.wire.arrives(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        assert stage.upstream.usable
        stage.wire.arrives(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")
        assert stage.wire.closed
        assert not stage.upstream.usable
        await turns(2)
        assert stage.shelf.forgotten == 1

    perform(play)


def test_an_idle_connection_that_the_upstream_closes_is_not_usable() -> None:
    async def play() -> None:
        for tls in (False, True):
            stage = UpstreamStage(tls=tls)
            stage.wire.peer_closes()
            assert not stage.upstream.usable

    perform(play)


# --- endings and calls from within


def test_after_abort_nothing_is_told_and_nothing_passed_on() -> None:
    async def play() -> None:
        framed = FRAMINGS[2]
        whole = framed.head + framed.body
        for at in range(len(whole)):
            stage, answer = asked(framed)
            stage.wire.arrives(whole[:at])
            before = bytes(answer.out)
            told = list(answer.told)
            stage.upstream.abort()
            assert stage.wire.aborted
            stage.upstream.data_received(whole[at:])  # what a transport may still deliver
            stage.upstream.pause_reading()
            stage.upstream.resume_reading()
            await turns(2)
            assert bytes(answer.out) == before
            assert answer.told == told
            assert stage.shelf.released == 0
            assert stage.shelf.forgotten == 1

    perform(play)


@pytest.mark.parametrize("framed", **by_name)
def test_a_consumer_may_abort_from_within(framed: Framed) -> None:
    async def play() -> None:
        for within in ("on_head", "on_data"):
            stage, answer = asked(framed, **{within: lambda a, *_: a.upstream.abort()})
            stage.wire.arrives(framed.head)
            if not stage.wire.closed:
                stage.wire.arrives(framed.body)
            await turns(2)
            assert answer.ends == []
            assert stage.shelf.released == 0
            assert stage.wire.closed

    perform(play)


def test_a_consumer_may_abort_from_an_interim_answer() -> None:
    async def play() -> None:
        class Impatient(Answer):
            def response_interim(self, head: Any) -> None:
                super().response_interim(head)
                assert self.upstream is not None
                self.upstream.abort()

        stage = UpstreamStage()
        answer = Impatient()
        answer.ask(stage.upstream)
        stage.wire.arrives(FRAMINGS[-1].head + FRAMINGS[-1].body)
        await turns(2)
        assert (answer.interim, answer.told) == ([100], [])

    perform(play)


def test_an_observer_may_abort() -> None:
    async def play() -> None:
        for framed in FRAMINGS[:5]:
            stage = UpstreamStage()
            out: list[bytes] = []

            def relay(answer: Answer, _: Any, stage: UpstreamStage = stage, out: list[bytes] = out) -> None:
                stage.upstream.relay(b"<head>", out.append, lambda _: stage.upstream.abort())

            answer = Answer(on_head=relay)
            answer.ask(stage.upstream)
            stage.wire.arrives(framed.head + framed.body)
            await turns(2)
            if framed.payload:
                assert answer.ends == []
                assert stage.shelf.released == 0
            else:
                assert answer.ends == ["done"]

    perform(play)


def test_a_connection_may_be_used_again_from_within_the_end_of_an_answer() -> None:
    async def play() -> None:
        stage = UpstreamStage()
        second = Answer()

        class First(Answer):
            def response_done(self) -> None:
                super().response_done()
                second.ask(stage.upstream)

        first = First()
        first.ask(stage.upstream)
        stage.wire.arrives(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n1")
        stage.wire.arrives(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n2")
        assert (first.ends, second.ends) == (["done"], ["done"])
        assert (bytes(first.out), bytes(second.out)) == (b"<head>1", b"<head>2")

    perform(play)


def test_nothing_of_an_answer_is_kept_after_its_end() -> None:
    async def play() -> None:
        for ending in ("done", "failed", "aborted"):
            stage, _ = asked(FRAMINGS[2])
            stage.wire.arrives(FRAMINGS[2].head + IN_CHUNKS)
            if ending == "done":
                stage.wire.arrives(b"0\r\n\r\n")
            elif ending == "failed":
                stage.wire.arrives(b"broken")
            else:
                stage.upstream.abort()
            upstream = stage.upstream
            left = (
                upstream._consumer,
                upstream._head,
                upstream._feed,
                upstream._tracker,
                upstream._observe,
                upstream._compact,
            )
            assert left == (None,) * 6
            assert upstream._segment == upstream._prefix == upstream._buffer == b""
            assert "answer" not in repr(upstream._sink)

    perform(play)


# --- flow


def test_reading_is_paused_and_goes_on() -> None:
    async def play() -> None:
        stage, answer = asked(FRAMINGS[0], on_data=lambda a: a.upstream.pause_reading())
        stage.wire.arrives(FRAMINGS[0].head + b"he", b"l", b"lo")
        await turns(2)
        assert bytes(answer.out) == b"<head>he"
        stage.upstream.resume_reading()
        await turns(2)
        stage.upstream.resume_reading()
        await turns(2)
        assert bytes(answer.out) == b"<head>hello"

    perform(play)


def test_a_connection_paused_at_the_end_of_an_answer_is_reading_again_when_it_is_used() -> None:
    async def play() -> None:
        stage, answer = asked(FRAMINGS[0], on_data=lambda a: a.upstream.pause_reading())
        stage.wire.arrives(FRAMINGS[0].head + b"hello")
        assert answer.ends == ["done"]
        assert stage.shelf.released == 1
        assert stage.wire.reading
        again = Answer()
        again.ask(stage.upstream)
        stage.wire.arrives(FRAMINGS[0].head + b"again")
        assert bytes(again.out) == b"<head>again"

    perform(play)


def test_an_observer_is_compacted_as_a_stream_goes_on() -> None:
    async def play() -> None:
        for head, chunk in (
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"3e8\r\n" + b"x" * 1000 + b"\r\n"),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n", b"x" * 1000),
        ):
            stage = UpstreamStage()
            answer = Answer()
            answer.ask(stage.upstream)
            stage.wire.arrives(head)
            for _ in range(100):
                stage.wire.arrives(chunk)
            assert 100_000 // COMPACT_BYTES - 1 <= answer.compacted <= 101_000 // COMPACT_BYTES

    perform(play)


def test_a_discarded_answer_that_is_too_long_is_not_waited_for() -> None:
    async def play() -> None:
        for head, body in (
            (b"HTTP/1.1 200 OK\r\nContent-Length: 300000\r\n\r\n", b""),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"186a0\r\n" + b"x" * 100_000 + b"\r\n"),
            (b"HTTP/1.1 200 OK\r\n\r\n", b""),
        ):
            stage = UpstreamStage()
            answer = Answer(discard=True)
            answer.ask(stage.upstream)
            stage.wire.arrives(head)
            while not answer.ends:
                stage.wire.arrives(body)
            assert answer.ends == ["done"]
            assert stage.wire.closed
            assert stage.shelf.released == 0
        stage = UpstreamStage()
        answer = Answer(discard=True)
        answer.ask(stage.upstream, b"HEAD / HTTP/1.1\r\n\r\n")
        stage.wire.arrives(b"HTTP/1.1 200 OK\r\nContent-Length: 300000\r\n\r\n")
        assert stage.shelf.released == 1

    perform(play)


# --- time


HEAD_TIME, IDLE_TIME, KEEP_TIME = int(Shelf.head_ticks), int(Shelf.idle_ticks), int(Shelf.keepalive_ticks)


def ticks(stage: UpstreamStage, count: int) -> None:
    for _ in range(count):
        stage.upstream.sweep()


def test_time_outs_of_an_answer() -> None:
    async def play() -> None:
        stage, answer = asked(FRAMINGS[0])
        ticks(stage, HEAD_TIME)
        stage.wire.arrives(b"HTTP/1.1 100 Continue\r\n\r\n")
        ticks(stage, HEAD_TIME)
        assert answer.told == []
        ticks(stage, 1)
        assert answer.error is not None
        assert answer.error.failure is Failure.HEAD_TIMEOUT

        stage, answer = asked(FRAMINGS[0])
        stage.wire.arrives(FRAMINGS[0].head)
        for byte in b"hel":
            ticks(stage, IDLE_TIME)
            stage.wire.arrives(bytes([byte]))
        ticks(stage, IDLE_TIME)
        assert answer.ends == []
        ticks(stage, 1)
        assert answer.ends == ["failed"]
        assert answer.error is not None
        assert answer.error.failure is Failure.IDLE_TIMEOUT
        ticks(stage, 100)
        await turns(2)
        assert answer.ends == ["failed"]
        assert stage.wire.aborted

    perform(play)


def test_a_head_that_comes_byte_by_byte_has_the_head_time_and_no_more() -> None:
    async def play() -> None:
        stage, answer = asked(FRAMINGS[0])
        for byte in FRAMINGS[0].head[:HEAD_TIME]:
            ticks(stage, 1)
            stage.wire.arrives(bytes([byte]))
        assert answer.told == []
        ticks(stage, 1)
        assert answer.error is not None
        assert answer.error.failure is Failure.HEAD_TIMEOUT

        stage, answer = asked(FRAMINGS[0])
        ticks(stage, HEAD_TIME)
        stage.wire.arrives(FRAMINGS[0].head)
        ticks(stage, IDLE_TIME)  # which begins with the head
        assert answer.told == ["head"]

    perform(play)


def test_a_client_that_stalls_is_told_of_and_the_upstream_not_blamed() -> None:
    async def play() -> None:
        stage, answer = asked(FRAMINGS[0])
        stage.wire.arrives(FRAMINGS[0].head)
        stage.upstream.pause_reading()
        ticks(stage, IDLE_TIME)
        assert answer.told == ["head"]
        ticks(stage, 1)
        assert answer.told == ["head", "client stalled"]
        stage.upstream.resume_reading()
        ticks(stage, IDLE_TIME)
        stage.wire.arrives(b"hello")
        assert answer.ends == ["done"]

    perform(play)


def test_a_request_that_the_upstream_does_not_take_ends_in_time() -> None:
    async def play() -> None:
        stage = UpstreamStage()
        stage.wire.take_all = False
        answer = Answer()
        answer.ask(stage.upstream, more=True)
        stage.upstream.send_more(b"x" * 100_000, last=False)
        ticks(stage, HEAD_TIME + 1)
        assert answer.error is not None
        assert answer.error.failure is Failure.HEAD_TIMEOUT

    perform(play)


def test_a_patient_request_has_no_time_outs() -> None:
    async def play() -> None:
        stage = UpstreamStage()
        answer = Answer()
        answer.ask(stage.upstream, patient=True)
        ticks(stage, 10_000)
        stage.wire.arrives(FRAMINGS[0].head)
        stage.upstream.pause_reading()
        ticks(stage, 10_000)
        stage.upstream.resume_reading()
        ticks(stage, 10_000)
        stage.wire.arrives(b"hello")
        assert answer.told == ["head", "done"]

    perform(play)


def test_an_idle_connection_is_closed_in_time() -> None:
    async def play() -> None:
        stage, _ = asked(FRAMINGS[0])
        stage.wire.arrives(FRAMINGS[0].head + b"hello")
        ticks(stage, KEEP_TIME)
        assert stage.upstream.usable
        ticks(stage, 1)
        assert not stage.upstream.usable
        assert stage.wire.closed
        assert stage.shelf.forgotten == 1

    perform(play)
