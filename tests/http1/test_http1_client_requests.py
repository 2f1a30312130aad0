"""A client connection, as plays: what arrives, what the application is told, what must leave."""

import pytest
from http1_stage import App, ClientStage, Request, ok, perform, torn_everywhere, turns

from ostiary.http1.head import MAX_HEAD

GET = b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n"
POST = b"POST /b HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = (
    b"POST /c HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n1;x\r\n!\r\n0\r\nX: y\r\n\r\n"
)
EXPECT = b"POST /e HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n"


def said(text: bytes) -> bytes:
    """What `ok` answers."""
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(text) + text


def hold(_: Request) -> None:
    """The application has not decided yet."""


@pytest.mark.parametrize("how", ["collected", "streamed"])
def test_requests_read_the_same_torn_at_every_byte(how: str) -> None:
    def echo_when_last(request: Request) -> None:
        if request.told[-1][2]:
            ok(request)

    async def play() -> None:
        script = POST + GET + CHUNKED + b"\r\n" + GET + POST
        everything = said(b"/b hello") + said(b"/a ") + said(b"/c hello!") + said(b"/a ") + said(b"/b hello")
        for segments in torn_everywhere(script):
            if how == "collected":
                stage = ClientStage()
            else:
                stage = ClientStage(App(begin=lambda r: r.connection.stream(), piece=echo_when_last))
            for segment in segments:
                stage.wire.arrives(segment)
                await turns(2)
            await turns(12)
            assert bytes(stage.wire.sent) == everything
            assert [request.head.target for request in stage.app.requests] == [b"/b", b"/a", b"/c", b"/a", b"/b"]
            assert not stage.wire.closed

    perform(play)


def test_pipelined_requests_wait_for_the_answer_before() -> None:
    async def play() -> None:
        stage = ClientStage(App(body=hold))
        stage.wire.arrives(POST + GET + CHUNKED)
        await turns()
        assert len(stage.app.requests) == 1
        ok(stage.request)
        await turns()
        assert len(stage.app.requests) == 2
        assert bytes(stage.wire.sent) == said(b"/b hello")
        ok(stage.request)
        await turns()
        ok(stage.request)
        assert bytes(stage.wire.sent) == said(b"/b hello") + said(b"/a ") + said(b"/c hello!")

    perform(play)


@pytest.mark.parametrize("answers", ["at once", "later"])
def test_a_flood_of_pipelined_requests_is_left_in_the_socket(answers: str) -> None:
    async def play() -> None:
        stage = ClientStage(App(body=ok if answers == "at once" else hold))
        for _ in range(20):
            stage.wire.arrives(GET * 1000)
        longest = 0
        answered = 0
        while answered < 20_000:
            if answers == "later":
                ok(stage.request)
            await turns(1)
            answered = len(stage.app.requests)
            longest = max(longest, len(stage.connection._buffer))
        await turns()
        assert longest < 160 * 1024
        assert bytes(stage.wire.sent).startswith(said(b"/a ") * 19_999)

    perform(play)


def test_a_client_that_takes_no_answers_gets_no_more_of_them() -> None:
    async def play() -> None:
        stage = ClientStage()
        stage.wire.take_all = False
        for _ in range(300):
            stage.wire.arrives(GET * 1000)
            await turns(20)
        assert stage.wire.get_write_buffer_size() <= 256 * 1024 + 100
        assert not stage.wire.reading
        served = len(stage.app.requests)
        assert len(stage.connection._buffer) < 256 * 1024
        stage.wire.take_all = True
        stage.wire.peer_takes()
        await turns(3000)
        assert len(stage.app.requests) > served
        assert bytes(stage.wire.sent).startswith(said(b"/a ") * served)

    perform(play)


def test_keep_alive_and_close() -> None:
    async def play() -> None:
        stage = ClientStage()
        stage.wire.arrives(GET)
        assert bytes(stage.wire.sent) == said(b"/a ")
        assert not stage.wire.closed
        stage.wire.arrives(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        assert b"\r\nConnection: close\r\n\r\n" in stage.wire.sent
        assert stage.wire.closed
        assert not stage.wire.eof_sent
        await turns()
        assert stage.request.words == ["body"]
        assert not stage.connections

    perform(play)


@pytest.mark.parametrize("line", [b"GET /a HTTP/1.0\r\n\r\n", b"GET /a HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"])
def test_http_1_0_is_answered_and_closed(line: bytes) -> None:
    async def play() -> None:
        stage = ClientStage()
        stage.wire.arrives(line)
        assert stage.wire.sent.endswith(b"\r\nConnection: close\r\n\r\n/a ")
        assert stage.wire.closed

    perform(play)


def test_while_draining_an_answer_closes() -> None:
    async def play() -> None:
        idle, busy = ClientStage(), ClientStage(App(body=hold))
        busy.wire.arrives(GET + GET)
        for stage in (idle, busy):
            stage.app.draining = True
            stage.connections.close_idle()
        assert idle.wire.closed
        assert not busy.wire.closed
        ok(busy.request)
        assert b"Connection: close" in busy.wire.sent
        assert busy.wire.closed or busy.wire.eof_sent
        await turns()
        assert len(busy.app.requests) == 1

    perform(play)


def test_a_head_request_is_answered_without_a_body() -> None:
    async def play() -> None:
        stage = ClientStage()
        stage.wire.arrives(b"HEAD /a HTTP/1.1\r\nHost: h\r\n\r\n" + GET)
        await turns()
        assert bytes(stage.wire.sent) == said(b"/a ")[: -len(b"/a ")] + said(b"/a ")

    perform(play)


# --- 100-continue


def test_100_continue_is_said_once_and_only_when_the_body_is_asked_for() -> None:
    async def play() -> None:
        stage = ClientStage(App(begin=hold, body=ok))
        stage.wire.arrives(EXPECT)
        assert not stage.wire.sent
        stage.request.connection.collect(100)
        assert bytes(stage.wire.sent) == b"HTTP/1.1 100 Continue\r\n\r\n"
        stage.wire.arrives(b"he")
        stage.wire.arrives(b"llo")
        assert bytes(stage.wire.sent) == b"HTTP/1.1 100 Continue\r\n\r\n" + said(b"/e hello")

    perform(play)


@pytest.mark.parametrize(
    "head",
    [
        EXPECT.replace(b"Content-Length: 5", b"Content-Length: 0"),
        EXPECT.replace(b"Content-Length: 5\r\n", b""),
        EXPECT.replace(b"HTTP/1.1", b"HTTP/1.0"),
        EXPECT + b"h",
    ],
    ids=["length 0", "no body", "HTTP/1.0", "body sent already"],
)
def test_100_continue_is_not_said_where_nobody_waits_for_it(head: bytes) -> None:
    async def play() -> None:
        stage = ClientStage()
        stage.wire.arrives(head)
        assert b"100 Continue" not in stage.wire.sent

    perform(play)


def test_a_refusal_instead_of_100_continue_closes() -> None:
    async def play() -> None:
        stage = ClientStage(App(begin=lambda r: r.refuse(b"401 Unauthorized")))
        stage.wire.arrives(EXPECT)
        assert bytes(stage.wire.sent).startswith(b"HTTP/1.1 401 Unauthorized\r\n")
        assert b"Connection: close" in stage.wire.sent
        assert stage.wire.eof_sent

    perform(play)


# --- bodies that are not wanted


def test_before_the_body_is_asked_for_none_of_it_is_read() -> None:
    async def play() -> None:
        stage = ClientStage(App(begin=hold))
        stage.wire.arrives(b"POST /b HTTP/1.1\r\nHost: h\r\nContent-Length: 33554432\r\n\r\n")
        assert not stage.wire.reading
        stage.wire.arrives(*[b"x" * 65536] * 512)
        assert not stage.connection._buffer
        stage.request.refuse(b"401 Unauthorized")
        assert stage.wire.eof_sent
        await turns()
        assert not stage.wire._arrived, "what still comes is read, so that the answer is not lost to a reset"
        assert not stage.connection._buffer
        assert not stage.connection._collected
        assert not stage.wire.closed
        stage.wire.peer_closes()
        await turns()
        assert stage.wire.closed
        assert stage.request.words == []

    perform(play)


def test_a_small_unread_body_is_dropped_and_the_connection_kept() -> None:
    async def play() -> None:
        request = b"POST /b HTTP/1.1\r\nHost: h\r\nContent-Length: 6\r\n\r\nGET / "
        for segments in torn_everywhere(request + GET):
            stage = ClientStage(App(begin=lambda r: r.refuse(b"401 Unauthorized") if r.head.target == b"/b" else ok(r)))
            for segment in segments:
                stage.wire.arrives(segment)
                await turns(2)
            await turns()
            assert [r.head.target for r in stage.app.requests] == [b"/b", b"/a"]
            assert bytes(stage.wire.sent).endswith(said(b"/a "))
            assert b"Connection: close" not in stage.wire.sent

    perform(play)


@pytest.mark.parametrize(
    "framing", [b"Content-Length: 65537", b"Transfer-Encoding: chunked", b"Content-Length: 5\r\nExpect: 100-continue"]
)
def test_after_any_other_unread_body_the_connection_ends(framing: bytes) -> None:
    async def play() -> None:
        stage = ClientStage(App(begin=lambda r: r.refuse(b"401 Unauthorized")))
        stage.wire.arrives(b"POST /b HTTP/1.1\r\nHost: h\r\n" + framing + b"\r\n\r\n" + GET)
        await turns()
        assert b"Connection: close" in stage.wire.sent
        assert stage.wire.eof_sent
        assert len(stage.app.requests) == 1

    perform(play)


def test_finish_with_the_body_unread_never_reads_it_as_a_request() -> None:
    async def play() -> None:
        framing = b"Content-Length: %d\r\nExpect: 100-continue" % len(GET)
        for begin in (hold, lambda r: r.connection.stream()):
            stage = ClientStage(App(begin=begin))
            stage.wire.arrives(b"POST /b HTTP/1.1\r\nHost: h\r\n" + framing + b"\r\n\r\n")
            stage.connection.write(b"an answer")
            stage.connection.finish(keep=True)
            stage.wire.arrives(GET)
            await turns()
            assert len(stage.app.requests) == 1
            assert stage.wire.eof_sent

    perform(play)


@pytest.mark.parametrize("torn", [False, True])
@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_a_body_over_the_limit_is_answered_and_not_read_on(framing: str, torn: bool) -> None:
    async def play() -> None:
        stage = ClientStage(
            App(begin=lambda r: r.connection.collect(10), too_large=lambda r: r.refuse(b"413 Content Too Large"))
        )
        if framing == "length":
            request = b"POST /b HTTP/1.1\r\nHost: h\r\nContent-Length: 11\r\n\r\nhellohello!" + GET
        else:
            request = (
                b"POST /b HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nb\r\nhellohello!\r\n0\r\n\r\n" + GET
            )
        for segment in [request[at : at + 1] for at in range(len(request))] if torn else [request]:
            if not stage.wire.closed:
                stage.wire.arrives(segment)
        await turns()
        assert stage.request.words == ["too large"]
        assert bytes(stage.wire.sent).startswith(b"HTTP/1.1 413 Content Too Large\r\n")
        assert stage.wire.eof_sent
        assert len(stage.app.requests) == 1
        assert not stage.connection._collected

    perform(play)


@pytest.mark.parametrize(
    ("framing", "parts"),
    [
        (b"Transfer-Encoding: chunked", [b"5\r\nhello\r\n", b"1\r\nh\r\n4\r\nello\r\n", b"1\r\n!\r\n"]),
        (b"Content-Length: 1000", [b"hello", b"hello", b"!"]),
        (b"Content-Length: 11", [b"hello", b"hello", b"!"]),
    ],
)
def test_a_body_is_kept_only_while_there_is_room(framing: bytes, parts: list[bytes]) -> None:
    async def play() -> None:
        asked: list[int] = []

        def reserve(size: int) -> bool:
            asked.append(size)
            return sum(asked) <= 10

        stage = ClientStage(
            App(begin=lambda r: r.connection.collect(1000, reserve), too_large=lambda r: r.refuse(b"503 Busy"))
        )
        stage.wire.arrives(b"POST /b HTTP/1.1\r\nHost: h\r\n" + framing + b"\r\n\r\n")
        stage.wire.arrives(parts[0])
        stage.wire.arrives(parts[1])
        assert stage.request.words == []
        assert [size for size in asked if size] == [5, 5]
        stage.wire.arrives(parts[2])
        assert stage.request.words == ["too large"]
        assert bytes(stage.wire.sent).startswith(b"HTTP/1.1 503 Busy\r\n")
        assert [size for size in asked if size] == [5, 5, 1]

    perform(play)


def test_broken_chunks_are_told_once_and_the_connection_ends() -> None:
    async def play() -> None:
        stage = ClientStage(App(broken=lambda r: r.refuse(b"400 Bad Request")))
        stage.wire.arrives(b"POST /b HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhelloX\r\n")
        stage.wire.arrives(b"0\r\n\r\n" + GET)
        await turns()
        assert stage.request.words == ["broken"]
        assert len(stage.app.requests) == 1
        assert stage.wire.eof_sent

    perform(play)


# --- what is no request


@pytest.mark.parametrize(
    ("arrives", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (b"\x00\x00\x00\x00", 400),
        (b"\n", 400),
        (b"\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"CONNECT h:1 HTTP/1.1\r\nHost: h:1\r\n\r\n", 501),
        (b"GET / HTTP/1.1\r\nHost: h\r\nX: " + b"y" * MAX_HEAD + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: h\r\nX: " + b"y" * MAX_HEAD, 431),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_what_is_no_request_is_refused_and_closed(arrives: bytes, status: int) -> None:
    async def play() -> None:
        for segments in ([arrives], [arrives[at : at + 1000] for at in range(0, len(arrives), 1000)]):
            stage = ClientStage()
            for segment in segments:
                stage.wire.arrives(segment)
            stage.wire.arrives(GET)
            await turns()
            assert bytes(stage.wire.sent).startswith(b"HTTP/1.1 %d " % status)
            assert [error.status for error in stage.app.refused] == [status]
            assert not stage.app.requests
            assert stage.wire.eof_sent

    perform(play)


def test_one_empty_line_before_a_request_is_skipped() -> None:
    async def play() -> None:
        for segments in torn_everywhere(b"\r\n" + GET + b"\r\n" + GET):
            stage = ClientStage()
            for segment in segments:
                stage.wire.arrives(segment)
                await turns(2)
            assert bytes(stage.wire.sent) == said(b"/a ") * 2

    perform(play)


# --- endings and calls from within


@pytest.mark.parametrize("leaves", ["peer_closes", "peer_vanishes"])
@pytest.mark.parametrize("when", ["in the body", "while it waits"])
def test_a_client_that_goes_is_told_of_exactly_once(when: str, leaves: str) -> None:
    async def play() -> None:
        stage = ClientStage(App(body=hold))
        stage.wire.arrives(POST if when == "while it waits" else POST[:-1])
        getattr(stage.wire, leaves)()
        await turns()
        assert stage.request.words.count("gone") == 1
        assert stage.request.words[-1] == "gone"
        assert stage.wire.closed
        assert not stage.connections
        assert stage.connection.exchange is None
        ok(stage.request)
        stage.connection.finish(keep=True)
        await turns()
        assert not stage.wire.sent

    perform(play)


def test_a_client_that_goes_after_its_answer_is_not_told_of() -> None:
    async def play() -> None:
        stage = ClientStage()
        stage.wire.arrives(GET)
        stage.wire.peer_closes()
        await turns()
        assert stage.request.words == ["body"]
        assert bytes(stage.wire.sent) == said(b"/a ")
        assert not stage.connections

    perform(play)


def test_a_pipelined_request_of_a_client_that_has_gone_is_not_begun() -> None:
    async def play() -> None:
        stage = ClientStage()
        stage.wire.arrives(POST + GET)
        stage.wire.peer_closes()
        await turns()
        assert len(stage.app.requests) == 1
        assert not stage.connections

    perform(play)


@pytest.mark.parametrize("end", ["abort", "reset"])
def test_nothing_follows_an_end_made_by_the_exchange(end: str) -> None:
    async def play() -> None:
        stage = ClientStage(App(body=lambda r: getattr(r.connection, end)()))
        stage.wire.arrives(POST + GET)
        stage.connection.finish(keep=True)
        ok(stage.request)
        await turns()
        assert stage.wire.closed
        assert stage.request.words == ["body"]
        assert len(stage.app.requests) == 1
        assert not stage.wire.sent
        assert not stage.connections

    perform(play)


def test_a_cut_answer_is_flushed_before_the_connection_ends() -> None:
    async def play() -> None:
        stage = ClientStage(App(body=hold))
        stage.wire.take_all = False
        stage.wire.arrives(GET)
        stage.connection.write(b"half an ans")
        stage.connection.abort()
        await turns()
        assert not stage.wire.lost
        stage.wire.peer_takes()
        await turns()
        assert bytes(stage.wire.sent) == b"half an ans"
        assert stage.wire.lost
        assert stage.request.words == ["body"]

    perform(play)


def test_an_exchange_that_ends_in_the_midst_of_pieces_gets_no_more() -> None:
    async def play() -> None:
        for end in ("abort", "reset"):
            stage = ClientStage(
                App(begin=lambda r: r.connection.stream(), piece=lambda r, end=end: getattr(r.connection, end)())
            )
            stage.wire.arrives(CHUNKED + GET)
            await turns()
            assert stage.request.words == ["piece"]
            assert len(stage.app.requests) == 1

    perform(play)


def test_an_answer_in_the_midst_of_a_streamed_body_ends_the_connection() -> None:
    async def play() -> None:
        stage = ClientStage(App(begin=lambda r: r.connection.stream(), piece=lambda r: r.refuse(b"400 No")))
        stage.wire.arrives(CHUNKED[:-20])
        stage.wire.arrives(CHUNKED[-20:] + GET)
        await turns()
        assert stage.request.words == ["piece"]
        assert len(stage.app.requests) == 1
        assert stage.wire.eof_sent

    perform(play)


def test_the_exchange_is_let_go_after_its_answer() -> None:
    async def play() -> None:
        stage = ClientStage()
        stage.wire.arrives(POST)
        assert stage.connection.exchange is None
        assert stage.connection.head is None
        assert not stage.connection._collected

    perform(play)
