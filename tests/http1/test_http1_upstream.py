"""An upstream connection, as plays: what the upstream says, what the client would get, what the observer sees."""

from dataclasses import dataclass
from typing import Any

import pytest
from http1_stage import Answer, Shelf, UpstreamStage, perform, torn_everywhere, turns

from ostiary.http1.errors import Failure
from ostiary.http1.head import MAX_HEAD
from ostiary.http1.upstream import COMPACT_BYTES

EVENTS = [b"data: one\n\n", b"data: two\r\n\r\n", b": \x00\xff\n\n"]
IN_CHUNKS = b"".join(b"%x\r\n%b\r\n" % (len(event), event) for event in EVENTS)


@dataclass
class Framed:
    """One way to say where an answer ends. `closes`: by the end of the stream."""

    name: str
    head: bytes
    body: bytes
    payload: bytes
    method: bytes = b"GET"
    closes: bool = False
    reusable: bool = True


FRAMINGS = [
    Framed("length", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", b"hello", b"hello"),
    Framed("no length", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b"", b""),
    Framed(
        "chunks",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        IN_CHUNKS + b"0\r\n\r\n",
        b"".join(EVENTS),
    ),
    Framed(
        "chunks with extensions and trailers",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b'5;a="b"\r\nhello\r\n00;last\r\nX-Sum: 5\r\nX-Other: \r\n\r\n',
        b"hello",
    ),
    Framed("one empty chunk", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"0\r\n\r\n", b""),
    Framed(
        "chunks of line ends",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"4\r\n\r\n\r\n\r\n1\r\n\n\r\n0\r\n\r\n",
        b"\r\n\r\n\n",
    ),
    Framed("close", b"HTTP/1.1 200 OK\r\n\r\n", b"hello\r\n\r\n", b"hello\r\n\r\n", closes=True, reusable=False),
    Framed("close of HTTP/1.0", b"HTTP/1.0 200 OK\r\n\r\n", b"hello", b"hello", closes=True, reusable=False),
    Framed("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", b"", b"", method=b"HEAD"),
    Framed("HEAD, chunked", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"", b"", method=b"HEAD"),
    Framed("204", b"HTTP/1.1 204 No Content\r\n\r\n", b"", b""),
    Framed("304", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", b"", b""),
    Framed("error", b"HTTP/1.1 529 Overloaded\r\nContent-Length: 2\r\n\r\n", b"{}", b"{}"),
    Framed(
        "length, Connection: close",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\n",
        b"hello",
        b"hello",
        reusable=False,
    ),
    Framed(
        "chunks, Connection: close",
        b"HTTP/1.1 200 OK\r\nConnection: x, Close\r\nTransfer-Encoding: chunked\r\n\r\n",
        IN_CHUNKS + b"0\r\n\r\n",
        b"".join(EVENTS),
        reusable=False,
    ),
    Framed(
        "after interim answers",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
        b"hello",
        b"hello",
    ),
]
by_name: dict[str, Any] = {"argvalues": FRAMINGS, "ids": [framed.name for framed in FRAMINGS]}


def asked(framed: Framed, **how: Any) -> tuple[UpstreamStage, Answer]:
    stage = UpstreamStage()
    answer = Answer(**how)
    answer.ask(stage.upstream, framed.method + b" / HTTP/1.1\r\nHost: u\r\n\r\n")
    return stage, answer


@pytest.mark.parametrize("framed", **by_name)
def test_bytes_go_out_as_they_came_torn_at_every_byte(framed: Framed) -> None:
    async def play() -> None:
        for segments in torn_everywhere(framed.head + framed.body):
            stage, answer = asked(framed)
            for segment in segments:
                stage.wire.arrives(segment)
            if framed.closes:
                assert answer.ends == []
                stage.wire.peer_closes()
                await turns(2)
            assert answer.ends == ["done"], segments
            assert bytes(answer.out) == b"<head>" + framed.body
            assert answer.payload == framed.payload
            assert (stage.shelf.released, stage.wire.closed) == ((1, False) if framed.reusable else (0, True))

    perform(play)


@pytest.mark.parametrize("framed", **by_name)
def test_without_its_own_framing_only_the_observer_gets_the_payload(framed: Framed) -> None:
    async def play() -> None:
        for segments in torn_everywhere(framed.head + framed.body):
            stage, answer = asked(framed, verbatim=False)
            for segment in segments:
                stage.wire.arrives(segment)
            if framed.closes:
                stage.wire.peer_closes()
                await turns(2)
            assert answer.ends == ["done"]
            assert bytes(answer.out) == b"<head>"
            assert answer.payload == framed.payload

    perform(play)


@pytest.mark.parametrize("framed", **by_name)
def test_a_discarded_answer_ends_all_the_same(framed: Framed) -> None:
    async def play() -> None:
        for segments in torn_everywhere(framed.head + framed.body):
            stage, answer = asked(framed, discard=True)
            for segment in segments:
                stage.wire.arrives(segment)
            assert answer.ends == ["done"]
            assert not answer.out
            assert not answer.seen
            assert stage.shelf.released == framed.reusable

    perform(play)


@pytest.mark.parametrize("framed", **by_name)
@pytest.mark.parametrize("ending", ["peer_closes", "peer_vanishes"])
def test_an_answer_cut_anywhere_is_told_as_cut(framed: Framed, ending: str) -> None:
    async def play() -> None:
        whole = framed.head + framed.body
        for at in range(1, len(whole)):
            if framed.closes and at >= len(framed.head) and ending == "peer_closes":
                break
            stage, answer = asked(framed)
            stage.wire.arrives(whole[:at])
            getattr(stage.wire, ending)()
            await turns(2)
            assert answer.ends == ["failed"]
            assert answer.error is not None
            expected = Failure.CLOSED_BEFORE_HEAD if at < len(framed.head) else Failure.CUT
            assert answer.error.failure is expected
            assert (b"<head>" + framed.body).startswith(bytes(answer.out))
            if at >= len(framed.head):
                assert bytes(answer.out) == b"<head>" + whole[len(framed.head) : at]
            assert stage.shelf.released == 0

    perform(play)


def test_over_tls_only_its_own_end_completes_an_answer_without_framing() -> None:
    async def play() -> None:
        for breaks in (False, True):
            stage = UpstreamStage(tls=True)
            answer = Answer()
            answer.ask(stage.upstream)
            stage.wire.arrives(b"HTTP/1.1 200 OK\r\n\r\nhello")
            if breaks:
                stage.wire.peer_breaks_tls()
            else:
                stage.wire.peer_closes()
            await turns(2)
            assert bytes(answer.out) == b"<head>hello"
            assert answer.ends == ["failed" if breaks else "done"]
            assert answer.error is None or answer.error.failure is Failure.CUT

    perform(play)


BEHIND = [b"x", b"\r\n", b"\n", b"\r", b"\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b"0\r\n\r\n"]


@pytest.mark.parametrize("framed", argvalues=[f for f in FRAMINGS if not f.closes], ids=lambda f: f.name)
@pytest.mark.parametrize("behind", BEHIND, ids=repr)
def test_what_stands_behind_an_answer_never_reaches_the_client(framed: Framed, behind: bytes) -> None:
    async def play() -> None:
        whole = framed.head + framed.body
        end = len(whole)
        byte_by_byte = [*(whole[at : at + 1] for at in range(end - 1)), whole[-1:] + behind]
        for segments in (*torn_everywhere(whole + behind), byte_by_byte):
            stage, answer = asked(framed)
            for segment in segments:
                if not stage.wire.closed:
                    stage.wire.arrives(segment)
            await turns(2)
            assert len(answer.ends) == 1
            assert (b"<head>" + framed.body).startswith(bytes(answer.out))
            assert b"<head>" in answer.out
            assert stage.wire.closed, "nobody knows what it will say next"
            torn_at_the_end = len(segments[0]) == end
            if "chunk" not in framed.name or not behind.strip() or torn_at_the_end:
                assert answer.ends == ["done"]
                assert bytes(answer.out) == b"<head>" + framed.body

    perform(play)


BROKEN_CHUNKS = [
    b"5\r\nhelloX\r\n0\r\n\r\n",
    b"5\nhello\r\n0\r\n\r\n",
    b"5\r\nhello\n0\r\n\r\n",
    b"+5\r\nhello\r\n0\r\n\r\n",
    b"0x5\r\nhello\r\n0\r\n\r\n",
    b" 5\r\nhello\r\n0\r\n\r\n",
    b"5 \r\nhello\r\n0\r\n\r\n",
    b"g\r\n",
    b"\r\n",
    b"10000000000000000\r\n",
    b"5;\x00\r\nhello\r\n0\r\n\r\n",
    b"0\r\nX\r\n\r\n",
    b"0\r\nX: a\nb\r\n\r\n",
]


@pytest.mark.parametrize("broken", BROKEN_CHUNKS, ids=repr)
def test_broken_chunks_are_a_cut_after_the_head(broken: bytes) -> None:
    async def play() -> None:
        head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        for segments in torn_everywhere(head + broken):
            stage = UpstreamStage()
            answer = Answer()
            answer.ask(stage.upstream)
            for segment in segments:
                if not stage.wire.closed:
                    stage.wire.arrives(segment)
            assert answer.ends == ["failed"]
            assert answer.error is not None
            assert answer.error.failure is Failure.PROTOCOL
            assert (b"<head>" + broken).startswith(bytes(answer.out))
            assert answer.out.startswith(b"<head>")
            assert stage.wire.closed
            await turns(2)
            assert stage.shelf.released == 0

    perform(play)


@pytest.mark.parametrize(
    "raw",
    [
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 099 X\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * MAX_HEAD,
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * MAX_HEAD + b"\r\n\r\n",
    ],
    ids=lambda raw: repr(raw[:50]),
)
def test_an_answer_that_is_no_http_is_refused_whole(raw: bytes) -> None:
    async def play() -> None:
        for size in (len(raw), 1000, 7):
            stage = UpstreamStage()
            answer = Answer()
            answer.ask(stage.upstream)
            for at in range(0, len(raw), size):
                if not stage.wire.closed:
                    stage.wire.arrives(raw[at : at + size])
            assert answer.told == ["failed"]
            assert answer.error is not None
            assert answer.error.failure is Failure.PROTOCOL
            assert not answer.out
            assert stage.wire.closed

    perform(play)


def test_interim_answers_come_before_the_head() -> None:
    async def play() -> None:
        stage, answer = asked(FRAMINGS[-1])
        stage.wire.arrives(FRAMINGS[-1].head)
        assert answer.interim == [100, 103]
        assert answer.head is not None
        assert answer.head.status == 200

    perform(play)


# --- requests


def test_a_request_is_written_as_given() -> None:
    async def play() -> None:
        for body in (b"", b"x" * 100, b"x" * 100_000):
            stage = UpstreamStage()
            Answer().ask(stage.upstream, b"POST / HTTP/1.1\r\n\r\n", body=body)
            stage.wire.peer_takes()
            assert bytes(stage.wire.sent) == b"POST / HTTP/1.1\r\n\r\n" + body
            assert len(stage.wire.writes) == (2 if len(body) > 16_384 else 1)

    perform(play)


def test_an_answer_before_the_end_of_the_request_is_relayed_and_the_connection_closed() -> None:
    async def play() -> None:
        stage = UpstreamStage()
        answer = Answer()
        answer.ask(stage.upstream, b"POST / HTTP/1.1\r\nContent-Length: 10\r\n\r\n", more=True)
        stage.upstream.send_more(b"hello", last=False)
        stage.wire.arrives(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\n{}")
        assert answer.ends == ["done"]
        assert stage.wire.closed
        stage.upstream.send_more(b"hello", last=True)
        assert stage.shelf.released == 0
        assert bytes(stage.wire.sent).endswith(b"\r\n\r\nhello")

    perform(play)


def test_a_request_that_ends_while_its_answer_runs_leaves_the_connection_usable() -> None:
    async def play() -> None:
        stage = UpstreamStage()
        answer = Answer()
        answer.ask(stage.upstream, b"POST / HTTP/1.1\r\nContent-Length: 10\r\n\r\n", more=True)
        stage.wire.arrives(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{")
        stage.upstream.send_more(b"hellohello", last=True)
        stage.wire.arrives(b"}")
        assert answer.ends == ["done"]
        assert stage.shelf.released == 1

    perform(play)


def test_a_connection_with_request_bytes_not_yet_taken_is_not_used_again() -> None:
    async def play() -> None:
        stage = UpstreamStage()
        stage.wire.take_all = False
        answer = Answer()
        answer.ask(stage.upstream, body=b"x" * 1000)
        stage.wire.arrives(b"HTTP/1.1 400 Bad\r\nContent-Length: 2\r\n\r\n{}")
        assert answer.ends == ["done"]
        assert stage.wire.closed
        assert stage.shelf.released == 0

    perform(play)


def test_an_upstream_that_does_not_take_the_request_is_told_of() -> None:
    async def play() -> None:
        stage = UpstreamStage()
        stage.wire.take_all = False
        answer = Answer()
        answer.ask(stage.upstream, more=True)
        stage.upstream.send_more(b"x" * 100_000, last=False)
        stage.wire.peer_takes()
        assert answer.told == ["request paused", "request resumed"]

    perform(play)


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
