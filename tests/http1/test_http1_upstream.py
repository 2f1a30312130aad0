"""An upstream connection, as plays: what the upstream says, what the client would get, what the observer sees."""

import pytest
from http1_framings import FRAMINGS, Framed, asked, by_name
from http1_stage import Answer, UpstreamStage, perform, torn_everywhere, turns

from ostiary.http1.errors import Failure
from ostiary.http1.head import MAX_HEAD


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
