"""Time-outs and back-pressure of a client connection. A tick is a second, and the tests drive the clock."""

from collections.abc import Callable

import pytest
from http1_stage import App, ClientStage, Limits, Request, Wire, ok, perform, turns

from ostiary.http1.connections import BODY_GRACE, BODY_RATE, Connections
from ostiary.http1.server import ClientConnection

GET = b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n"
POST = b"POST /b HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello"
HEAD_TIME = int(Limits.head_timeout)
IDLE_TIME = int(Limits.keepalive_timeout)
BODY_TIME = int(Limits.body_timeout)
LINGER_QUIET, LINGER_TOTAL = 5, 30


LONG = b"POST /b HTTP/1.1\r\nHost: h\r\nContent-Length: 99999999\r\n\r\n"
ENDLESS = b"POST /b HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"


def hold(_: Request) -> None:
    """The application has not decided yet."""


def kept(request: Request) -> None:
    request.connection.collect(1 << 30)


def passed_on(request: Request) -> None:
    request.connection.stream()


# --- waiting for a request


def test_a_silent_connection_is_closed_after_the_head_time() -> None:
    async def play() -> None:
        stage = ClientStage()
        stage.ticks(HEAD_TIME)
        assert not stage.wire.closed
        stage.ticks(1)
        assert stage.wire.closed
        assert not stage.wire.sent
        await turns()
        assert not stage.connections

    perform(play)


def test_a_head_that_comes_byte_by_byte_has_its_time_and_no_more() -> None:
    async def play() -> None:
        stage = ClientStage()
        stage.wire.arrives(b"GET / HTTP/1.1\r\nX: ")
        for _ in range(HEAD_TIME):
            stage.ticks(1)
            stage.wire.arrives(b"y")
        assert not stage.wire.sent
        stage.ticks(1)
        assert bytes(stage.wire.sent).startswith(b"HTTP/1.1 408 ")
        assert stage.wire.eof_sent

    perform(play)


def test_empty_lines_keep_no_connection_alive() -> None:
    async def play() -> None:
        for first in (b"", GET):
            stage = ClientStage()
            if first:
                stage.wire.arrives(first)
            ticks = 0
            while not (stage.wire.closed or stage.wire.eof_sent):
                stage.wire.arrives(b"\r\n" if ticks % 2 else b"\r")
                stage.ticks(1)
                ticks += 1
            assert ticks <= HEAD_TIME + 1

    perform(play)


def test_an_idle_connection_is_kept_for_the_keepalive_time() -> None:
    async def play() -> None:
        stage = ClientStage()
        for _ in range(3):
            stage.wire.arrives(GET)
            stage.ticks(IDLE_TIME)
            assert not stage.wire.closed
        stage.ticks(1)
        assert stage.wire.closed
        assert not stage.wire.aborted

    perform(play)


def test_the_keepalive_time_starts_with_the_end_of_the_answer() -> None:
    async def play() -> None:
        for waits in (hold, lambda r: r.connection.collect(10)):
            stage = ClientStage(App(begin=waits))
            stage.wire.arrives(GET)
            stage.ticks(500)
            ok(stage.request)
            stage.ticks(IDLE_TIME)
            assert not stage.wire.closed
            stage.ticks(1)
            assert stage.wire.closed

    perform(play)


# --- waiting for a body


def test_a_body_that_stops_coming_is_told_of_and_progress_is_not() -> None:
    async def play() -> None:
        stage = ClientStage(App(begin=kept, stalled=lambda r: r.refuse(b"408 Request Timeout")))
        stage.wire.arrives(LONG)
        for _ in range(3):
            stage.ticks(BODY_TIME)
            stage.wire.arrives(b"x" * BODY_TIME * BODY_RATE)
        stage.ticks(BODY_TIME)
        assert stage.request.words == []
        stage.ticks(1)
        assert stage.request.words == ["stalled"]
        assert bytes(stage.wire.sent).startswith(b"HTTP/1.1 408 ")
        assert stage.wire.eof_sent
        stage.wire.arrives(b"x" + GET)
        await turns()
        assert len(stage.app.requests) == 1

    perform(play)


def test_a_body_that_is_held_back_does_not_stall() -> None:
    async def play() -> None:
        stage = ClientStage(App(begin=lambda r: r.connection.stream()))
        stage.wire.arrives(POST[:-3])
        stage.connection.pause_reading()
        stage.ticks(BODY_TIME * 10)
        assert stage.request.words == ["piece"]
        stage.connection.resume_reading()
        stage.wire.arrives(b"llo")
        await turns()
        assert stage.request.body == b"hello"

    perform(play)


def drip(stage: ClientStage, piece: bytes, ticks: int) -> int:
    """A piece a second until it is told of; gives the seconds."""
    for tick in range(1, ticks + 1):
        stage.wire.arrives(piece)
        stage.ticks(1)
        if stage.request.words[-1:] == ["too slow"]:
            return tick
    return 0


@pytest.mark.parametrize("taken", [kept, passed_on])
@pytest.mark.parametrize(("head", "byte"), [(LONG, b"x"), (ENDLESS, b"1\r\nx\r\n")])
def test_a_body_that_comes_byte_by_byte_has_a_minute_and_no_more(
    taken: Callable[[Request], None], head: bytes, byte: bytes
) -> None:
    async def play() -> None:
        stage = ClientStage(App(begin=taken, too_slow=lambda r: r.refuse(b"408 Request Timeout")))
        stage.wire.arrives(head)
        assert drip(stage, byte, 1000) == BODY_GRACE + 1
        assert b"HTTP/1.1 408 " in stage.wire.sent
        assert stage.wire.eof_sent
        stage.wire.arrives(byte)
        await turns()
        assert len(stage.app.requests) == 1

    perform(play)


def test_a_body_in_small_pieces_with_silences_between_them_is_too_slow() -> None:
    async def play() -> None:
        stage = ClientStage(App(begin=kept))
        stage.wire.arrives(LONG)
        ticks = 0
        while not stage.request.told:
            stage.ticks(BODY_TIME)
            ticks += BODY_TIME
            stage.wire.arrives(b"x" * 1000)
        assert stage.request.words[0] == "too slow"
        assert ticks < BODY_GRACE + 2 * BODY_TIME

    perform(play)


def test_a_slow_link_has_its_time() -> None:
    async def play() -> None:
        stage = ClientStage(App(begin=passed_on))
        stage.wire.arrives(ENDLESS)
        piece = b"%x\r\n%b\r\n" % (BODY_RATE, b"x" * BODY_RATE)
        assert not drip(stage, piece, 5000)
        assert len(stage.request.body) == 5000 * BODY_RATE

    perform(play)


def test_what_came_at_first_counts_for_later() -> None:
    async def play() -> None:
        stage = ClientStage(App(begin=kept))
        stage.wire.arrives(LONG + b"x" * 100 * BODY_RATE)
        assert drip(stage, b"x", 1000) == BODY_GRACE + 101

    perform(play)


def test_each_body_has_a_minute_of_its_own() -> None:
    async def play() -> None:
        stage = ClientStage()
        for _ in range(5):
            stage.wire.arrives(POST[:-5])
            assert not drip(stage, b"", int(BODY_GRACE) // 3)
            stage.wire.arrives(b"hello")
        assert stage.wire.sent.count(b"/b hello") == 5

    perform(play)


def test_the_time_in_which_a_body_is_held_back_is_not_the_clients() -> None:
    async def play() -> None:
        stage = ClientStage(App(begin=passed_on))
        stage.wire.arrives(LONG + b"x")
        for _ in range(200):
            stage.connection.pause_reading()
            stage.ticks(BODY_TIME * 10)
            stage.connection.resume_reading()
            stage.ticks(1)
            stage.wire.arrives(b"x" * BODY_RATE)
        assert set(stage.request.words) == {"piece"}

    perform(play)


def test_the_minute_is_longer_where_longer_silences_are_allowed() -> None:
    async def play() -> None:
        stage = ClientStage(App(begin=kept))
        limits = Limits()
        limits.body_timeout = 300.0
        stage.connections = Connections(stage.app, limits, 1.0)
        stage.connection = ClientConnection(stage.connections)
        stage.wire = Wire(stage.connection)
        stage.wire.arrives(LONG)
        assert drip(stage, b"x", 1000) == 301

    perform(play)


def test_no_time_runs_while_the_application_works() -> None:
    async def play() -> None:
        stage = ClientStage(App(body=hold))
        stage.wire.arrives(POST)
        stage.ticks(10_000)
        assert not stage.wire.closed
        ok(stage.request)
        assert stage.wire.sent.endswith(b"/b hello")

    perform(play)


# --- back-pressure


def test_a_pause_in_the_first_piece_is_kept() -> None:
    async def play() -> None:
        stage = ClientStage(App(begin=lambda r: r.connection.stream(), piece=lambda r: r.connection.pause_reading()))
        stage.wire.arrives(POST[:-3])
        assert stage.request.words == ["piece"]
        assert not stage.wire.reading
        stage.wire.arrives(b"l", b"lo")
        await turns()
        assert stage.request.words == ["piece"]
        stage.connection.resume_reading()
        await turns()
        assert stage.request.words == ["piece", "piece"]

    perform(play)


def test_a_pause_ends_with_its_request() -> None:
    async def play() -> None:
        stage = ClientStage(App(begin=hold))
        stage.wire.arrives(POST)
        stage.connection.stream()
        stage.connection.pause_reading()
        ok(stage.request)
        stage.wire.arrives(POST[:-5])
        await turns()
        stage.connection.collect(5)
        stage.wire.arrives(b"hello")
        await turns()
        assert len(stage.app.requests) == 2
        assert stage.request.told == [("body", b"hello")]

    perform(play)


def test_the_exchange_hears_of_a_client_that_does_not_take_its_answer() -> None:
    async def play() -> None:
        stage = ClientStage(App(body=hold))
        stage.wire.take_all = False
        stage.wire.arrives(GET)
        for _ in range(5):
            stage.connection.write(b"x" * 65_536)
        assert stage.request.words == ["body", "paused"]
        stage.wire.peer_takes(65_536)
        assert stage.request.words == ["body", "paused"]
        stage.wire.peer_takes()
        assert stage.request.words == ["body", "paused", "resumed"]

    perform(play)


def test_the_next_request_begins_when_the_client_has_taken_the_last_answer() -> None:
    async def play() -> None:
        stage = ClientStage(App(body=hold))
        stage.wire.take_all = False
        stage.wire.arrives(GET + POST)
        stage.connection.write(b"x" * 300_000)
        stage.connection.finish(keep=True)
        await turns()
        assert len(stage.app.requests) == 1
        stage.wire.peer_takes()
        await turns()
        assert [request.words for request in stage.app.requests] == [["body", "paused"], ["body"]]

    perform(play)


# --- the end


def test_a_slow_client_gets_all_of_its_answer() -> None:
    async def play() -> None:
        for keep in (True, False):
            stage = ClientStage(App(body=hold))
            stage.wire.take_all = False
            stage.wire.arrives(GET)
            stage.connection.write(b"x" * 300_000)
            stage.connection.finish(keep=keep)
            for _ in range(300):
                stage.ticks(BODY_TIME)
                assert not stage.wire.aborted
                stage.wire.peer_takes(1000)
            assert len(stage.wire.sent) == 300_000

    perform(play)


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("pipelined", [b"", GET])
def test_a_client_that_takes_nothing_is_reset_after_the_body_time(keep: bool, pipelined: bytes) -> None:
    async def play() -> None:
        stage = ClientStage(App(body=hold))
        stage.wire.take_all = False
        stage.wire.arrives(GET + pipelined)
        stage.connection.write(b"x" * 300_000)
        stage.connection.finish(keep=keep)
        stage.ticks(BODY_TIME)
        assert not stage.wire.aborted
        stage.ticks(2)
        assert stage.wire.aborted
        await turns()
        assert not stage.connections
        assert len(stage.app.requests) == 1

    perform(play)


def test_an_idle_connection_with_an_answer_not_taken_is_not_kept_for_ever() -> None:
    async def play() -> None:
        stage = ClientStage()
        stage.wire.take_all = False
        stage.wire.arrives(GET)
        stage.ticks(IDLE_TIME + 1)
        assert stage.wire.closed
        assert not stage.wire.lost
        stage.ticks(BODY_TIME + 2)
        assert stage.wire.aborted

    perform(play)


def refused() -> ClientStage:
    """A connection that lingers: refused, with the body still coming."""
    stage = ClientStage(App(begin=lambda r: r.refuse(b"413 Content Too Large")))
    stage.wire.arrives(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 99999999999\r\n\r\n")
    assert stage.wire.eof_sent
    return stage


def test_lingering_ends_when_nothing_comes() -> None:
    async def play() -> None:
        stage = refused()
        stage.ticks(LINGER_QUIET)
        assert not stage.wire.closed
        stage.ticks(1)
        assert stage.wire.closed

    perform(play)


def test_lingering_ends_in_time_however_slowly_it_comes() -> None:
    async def play() -> None:
        stage = refused()
        ticks = 0
        while not stage.wire.closed:
            stage.wire.arrives(b"x")
            stage.ticks(1)
            ticks += 1
        assert ticks == LINGER_TOTAL + 1

    perform(play)


def test_lingering_ends_however_much_comes() -> None:
    async def play() -> None:
        stage = refused()
        for _ in range(64):
            stage.wire.arrives(b"x" * 1024 * 1024)
        assert not stage.wire.closed
        stage.wire.arrives(b"x")
        assert stage.wire.closed

    perform(play)


def test_lingering_ends_with_the_client() -> None:
    async def play() -> None:
        stage = refused()
        stage.wire.arrives(b"x")
        stage.wire.peer_closes()
        await turns()
        assert not stage.connections
        assert not stage.wire.aborted

    perform(play)


def test_a_small_body_to_be_dropped_is_not_waited_for_for_ever() -> None:
    async def play() -> None:
        for trickles in (False, True):
            stage = ClientStage(App(begin=lambda r: r.refuse(b"401 Unauthorized")))
            stage.wire.arrives(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 60000\r\n\r\n")
            ticks = 0
            while not stage.wire.closed:
                if trickles:
                    stage.wire.arrives(b"x")
                stage.ticks(1)
                ticks += 1
            assert ticks <= LINGER_TOTAL + 1

    perform(play)


def test_over_tls_the_transport_lingers_itself() -> None:
    async def play() -> None:
        stage = ClientStage(App(begin=lambda r: r.refuse(b"413 Content Too Large")), tls=True)
        stage.wire.take_all = False
        stage.wire.arrives(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 99999999999\r\n\r\n")
        assert stage.wire.closed
        assert not stage.wire.aborted
        stage.wire.peer_takes(10)
        stage.ticks(LINGER_TOTAL)
        assert not stage.wire.aborted
        stage.ticks(2)
        assert stage.wire.aborted

    perform(play)


def test_drain_closes_what_is_answered_and_nothing_else() -> None:
    async def play() -> None:
        skipping = ClientStage(App(begin=lambda r: r.refuse(b"401 Unauthorized")))
        skipping.wire.arrives(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 60000\r\n\r\n")
        half_a_head = ClientStage()
        half_a_head.wire.arrives(b"GET / HT")
        slow = ClientStage(App(body=hold))
        slow.wire.take_all = False
        slow.wire.arrives(GET)
        slow.connection.write(b"x" * 300_000)
        slow.connection.finish(keep=True)
        for stage in (skipping, half_a_head, slow):
            stage.connections.close_idle()
        assert skipping.wire.eof_sent
        assert not half_a_head.wire.closed
        assert slow.wire.closed
        slow.wire.peer_takes()
        await turns()
        assert len(slow.wire.sent) == 300_000

    perform(play)
