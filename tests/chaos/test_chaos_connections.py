"""Thousands of connections that do nothing, or nothing good, beside people who work.

Each of them must cost little, end when its time is over, and keep nobody else waiting.
"""

import asyncio
import re
import resource
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress

from tests.chaos.harness import LONG, Site, StartSite
from tests.chaos.network import (
    Crowd,
    Peer,
    allow_many_files,
    await_quiet,
    check_untouched,
    reconcile,
    request,
    traffic,
    usage,
)
from tests.support.chaos import Say
from tests.support.load import BLOCKING, CHAT, MESSAGES, RESPONSES
from tests.support.raw_http import RawConnection
from tests.support.reconcile import metric
from tests.support.server import OWNER_TOKEN, eventually

MIB = 1024 * 1024
BEARER = f"Authorization: Bearer {OWNER_TOKEN}"
SLACK = 5.0
"""Seconds that a time-out may come late here: a sweep, and a machine on which other tests run."""


def await_all(peers: Sequence[Peer], what: Callable[[Peer], object], *, within: float = 30.0) -> None:
    def left() -> str:
        return str(Counter((peer.status, peer.end, peer.received[:200]) for peer in peers if not what(peer)))

    eventually(lambda: all(what(peer) for peer in peers), within=within, what=left)


# --- idle ones

IDLE = 10_000
MEMORY_EACH = 5_000
"""Bytes of an idle connection: uvloop's handle and transport with what they call back, and our protocol's slots. It was
1,600 when this was written; an exchange or a buffer that is kept by mistake is more."""


def test_ten_thousand_idle_connections_cost_little_and_end_in_time(start_site: StartSite, say: Say) -> None:
    head_time, idle_time = (60, 75) if LONG else (20, 30)
    times = {"OSTIARY_CLIENT_HEAD_TIMEOUT": f"{head_time}s", "OSTIARY_CLIENT_KEEPALIVE_TIMEOUT": f"{idle_time}s"}
    site = start_site(workers=1, front=times)
    count = min(IDLE, allow_many_files() * 3 // 4)
    alone = traffic(site, "alone")
    before = usage(site.front)
    with Crowd(site.front.port) as crowd:
        used: list[Peer] = []
        while len(used) < count // 10:
            some = crowd.connect(100)
            for number, peer in enumerate(some, len(used)):
                wire = b"".join(request(BLOCKING, f"idle-{number}"))
                crowd.each([peer], lambda peer, wire=wire: peer.send(wire))
            await_all(some, lambda peer: peer.status == 200)
            used += some
        unused = crowd.connect(count - len(used))
        eventually(
            lambda: usage(site.front).descriptors > count, what="they all stand before the first has had its time"
        )
        during = usage(site.front)
        beside = traffic(site, "beside")
        await_all([*used, *unused], lambda peer: peer.end, within=idle_time + 10)
    assert {(peer.end, peer.size) for peer in unused} == {("closed", 0)}
    assert {(peer.end, peer.status) for peer in used} == {("closed", 200)}
    assert head_time <= min(peer.seconds for peer in unused), "ended too early"
    assert max(peer.seconds for peer in unused) < head_time + SLACK
    assert idle_time <= min(peer.seconds for peer in used), "ended too early"
    check_untouched(alone, beside)
    with Crowd(site.front.port) as crowd:
        crowd.connect(count)
        eventually(lambda: usage(site.front).descriptors > count)
        again = usage(site.front)
    await_quiet(site, before.descriptors)
    each = (during.memory - before.memory) / count
    told = f"{count} idle connections: {each:.0f} bytes each; {alone} before, {beside} beside them; {during}, {again}"
    assert each < MEMORY_EACH, told
    assert again.memory < during.memory + 0.3 * each * count, f"what the first had is not had again: {told}"
    reconcile(site, alone, beside)
    print(told)
    if LONG:
        say(told)


# --- no descriptors left

FILES = 400
FULL = b"This gateway has as many connections as it may open files for."


def limit_files(site: Site, files: int) -> None:
    """Of the worker; 0: as many as this process may have."""
    (worker,) = site.front.children("worker")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.prlimit(worker, resource.RLIMIT_NOFILE, (files or hard, hard))


def is_let_in(site: Site) -> bool:
    with RawConnection(site.front.port) as connection:
        with suppress(ConnectionError):  # turned away before it has asked
            connection.request("GET", "/healthz")
        return connection.read_some().startswith(b"HTTP/1.1 200 OK")


def are_let_in(site: Site, count: int) -> bool:
    """At the same time: one alone may find the place that the one before it has left."""
    with ExitStack() as open_ones:
        for _ in range(count):
            connection = open_ones.enter_context(RawConnection(site.front.port))
            with suppress(ConnectionError):
                connection.request("GET", "/healthz")
            if not connection.read_some().startswith(b"HTTP/1.1 200 OK"):
                return False
    return True


def test_when_descriptors_run_out_idle_connections_make_room_and_busy_ones_stay(start_site: StartSite) -> None:
    site = start_site(workers=1, front={"OSTIARY_CLIENT_HEAD_TIMEOUT": "3s"})
    alone = traffic(site, "alone")
    before = usage(site.front)
    limit_files(site, FILES)
    with Crowd(site.front.port) as crowd:
        await_all(crowd.connect(1), lambda peer: peer.end)  # by the sweep that has noticed the limit

        speeds = []
        idle: list[Peer] = []
        for wave in range(3):
            idle += crowd.connect(FILES // 2)
            eventually(lambda: is_let_in(site), what="idle ones make room")
            speeds.append(traffic(site, f"wave-{wave}"))
            assert usage(site.front).descriptors < FILES
        assert sum(bool(peer.end) for peer in idle) > FILES // 2
        assert "closing idle client connections" in site.front.tail()
        await_all(idle, lambda peer: peer.end)

        served = RawConnection(site.front.port)
        for data in request(CHAT, "served-0", "events=60 pace=100"):
            served.send(data)
        busy = crowd.connect(FILES)
        crowd.each(busy, lambda peer: peer.send(b"GET / HTTP/1.1\r\n"))
        eventually(lambda: not is_let_in(site), what="there is room for nobody")
        with RawConnection(site.front.port) as connection:
            answer = connection.answer()
            assert (answer.status, answer.header("retry-after")) == (503, "1")
            assert FULL in answer.body
            assert answer.header("x-ostiary-request-id")
            assert connection.at_end()
        for number in range(1, 4):
            assert served.answer().status == 200, "who is served goes on to be"
            head, body = request(CHAT, f"served-{number}")
            served.send(head + body)
        assert served.answer().status == 200
        served.socket.close()
        assert usage(site.front).descriptors < FILES
        await_all(busy, lambda peer: peer.end)
        assert {(peer.status, FULL in peer.received) for peer in busy} == {(408, False), (503, True)}
        speeds.append(traffic(site, "after"))
    limit_files(site, 0)
    for speed in speeds:
        check_untouched(alone, speed)
    await_quiet(site, before.descriptors)
    reconcile(site, alone, *speeds)


def test_a_provider_that_no_descriptor_is_left_for_is_not_blamed(start_site: StartSite) -> None:
    site = start_site(workers=1)
    with RawConnection(site.front.port) as connection:
        connection.request("GET", "/healthz")
        assert connection.answer(to="GET").status == 200
        limit_files(site, usage(site.front).descriptors)
        for number in range(10):
            head, body = request(CHAT, f"refused-{number}")
            connection.send(head + body)
            answer = connection.answer()
            assert (answer.status, answer.header("retry-after")) == (503, "1")
            assert b"Too many open files" in answer.body
        limit_files(site, 0)
        head, body = request(CHAT, "served")
        connection.send(head + body)
        assert connection.answer().status == 200, "no breaker has opened"
    eventually(lambda: are_let_in(site, 40), what="the higher limit is noticed")
    result = reconcile(site, traffic(site, "after"), unsent=("rejected",))
    assert result.outcomes["rejected"] == 10


# --- slow on purpose

SLOW = 10_000 if LONG else 2_500
SLOW_TIMES = {"OSTIARY_CLIENT_HEAD_TIMEOUT": "4s", "OSTIARY_CLIENT_BODY_TIMEOUT": "8s"}


async def drip(peers: Sequence[Peer], data: bytes, until: asyncio.Event) -> None:
    """The same byte again and again to all of them, twice a second."""
    while not until.is_set():
        for peer in peers:
            peer.send(data)
        await asyncio.sleep(0.5)


def test_heads_that_come_byte_by_byte_end_after_the_head_time_and_touch_nobody(start_site: StartSite, say: Say) -> None:
    site = start_site(workers=1, front=SLOW_TIMES)
    alone = traffic(site, "alone")
    before = usage(site.front)
    with Crowd(site.front.port) as crowd:
        peers: list[Peer] = []
        while len(peers) < SLOW:
            some = crowd.connect(500)
            crowd.each(some, lambda peer: peer.send(POST.encode() + b"X-A: "))
            peers += some
        begun = time.monotonic()
        over = asyncio.Event()
        dripping = crowd.begin(drip(peers, b"a", over))
        beside = traffic(site, "beside")
        await_all(peers, lambda peer: peer.end)
        crowd.call(over.set)
        dripping.result(10)
    told = f"{SLOW} heads byte by byte: {alone} before, {beside} beside them"
    assert {peer.status for peer in peers} == {408}
    assert all(b"the request head did not come in time" in peer.received for peer in peers)
    assert min(peer.seconds for peer in peers) >= 4.0
    assert max(peer.ended_at for peer in peers) < begun + 4.0 + SLACK, told
    assert metric(site.front, "ostiary_refused_requests_total", reason="bad_head") == SLOW
    check_untouched(alone, beside)
    await_quiet(site, before.descriptors)
    reconcile(site, alone, beside)
    if LONG:
        say(told)


def test_bodies_that_come_byte_by_byte_hold_no_memory_and_touch_nobody(start_site: StartSite, say: Say) -> None:
    """All of them announce much more than there is memory for bodies (`body_memory_max`)."""
    site = start_site(workers=1, front=SLOW_TIMES)
    alone = traffic(site, "alone")
    before = usage(site.front)
    announced = 600 * MIB // SLOW
    head = f"POST {CHAT.path} HTTP/1.1\r\nHost: a\r\n{BEARER}\r\nContent-Length: {announced}\r\n\r\n{{"
    with Crowd(site.front.port) as crowd:
        peers = crowd.connect(SLOW)
        crowd.each(peers, lambda peer: peer.send(head.encode()))
        over = asyncio.Event()
        dripping = crowd.begin(drip(peers, b" ", over))
        beside = traffic(site, "beside")
        during = usage(site.front)
        assert not any(peer.end for peer in peers), "bytes come: the time of a body is for silence"
        crowd.call(over.set)
        dripping.result(10)
        silent = time.monotonic()
        await_all(peers, lambda peer: peer.end)
        seconds = time.monotonic() - silent
    told = f"{SLOW} bodies byte by byte: {alone} before, {beside} beside them; {before}, {during}"
    assert {peer.status for peer in peers} == {408}
    assert all(b"The request body stopped coming." in peer.received for peer in peers)
    assert seconds < 8.0 + SLACK, told
    each = (during.memory - before.memory) / SLOW
    assert each < 2 * MEMORY_EACH, f"{each}: {told}"  # with an exchange, its head and what it knows of the caller
    check_untouched(alone, beside)
    await_quiet(site, before.descriptors)
    reconcile(site, alone, beside)
    if LONG:
        say(told)


# --- floods

WAVES = 12 if LONG else 1
FLOODS = 30
"""Connections of each kind in a wave: together about a second of work for a worker, in which people have to wait."""
PIPELINED = 200
POST = f"POST {CHAT.path} HTTP/1.1\r\nHost: a\r\n"
CHUNKED = f"{POST}{BEARER}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()


def flood_pipeline(peer: Peer) -> None:
    peer.send(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n" * PIPELINED)


def flood_bad_tokens(peer: Peer) -> None:
    peer.send(f"{POST}Authorization: Bearer ost_nobody\r\nContent-Length: 2\r\n\r\n{{}}".encode() * PIPELINED)


def flood_giant_head(peer: Peer) -> None:
    peer.send(POST.encode() + b"X-A: " + b"a" * MIB)


def flood_many_fields(peer: Peer) -> None:
    peer.send(POST.encode() + b"".join(b"x%d:\r\n" % number for number in range(5_000)) + b"\r\n")


def flood_extensions(peer: Peer) -> None:
    peer.send(CHUNKED + (b"1;" + b"a" * 1000 + b"\r\n \r\n") * 500)


def flood_small_chunks(peer: Peer) -> None:
    peer.send(CHUNKED + b"1\r\n \r\n" * 3_000)


def flood_chunk_line(peer: Peer) -> None:
    peer.send(CHUNKED + b"1;" + b"a" * MIB)


FLOODING: dict[Callable[[Peer], None], tuple[int, bytes, bool]] = {
    flood_pipeline: (200, b"", False),
    flood_bad_tokens: (401, b"", False),
    flood_giant_head: (431, b"head_max_bytes", True),
    flood_many_fields: (401, b"", False),
    flood_extensions: (400, b"chunk extensions are too long", True),
    flood_small_chunks: (408, b"", True),
    flood_chunk_line: (400, b"chunk line is too long", True),
}
"""What each gets at first, what that says, and whether its connection is closed then."""


def test_floods_are_answered_in_bounded_memory_and_touch_nobody(start_site: StartSite, say: Say) -> None:
    site = start_site(workers=1, front=SLOW_TIMES)
    alone = traffic(site, "alone")
    before = usage(site.front)
    speeds = []
    for wave in range(WAVES):
        with Crowd(site.front.port) as crowd:
            floods = {flood: crowd.connect(FLOODS) for flood in FLOODING}
            for flood, peers in floods.items():
                crowd.each(peers, flood)
            speeds.append(traffic(site, f"beside-{wave}"))
            for flood, (status, said, closed) in FLOODING.items():
                await_all(floods[flood], lambda peer, wanted=status: peer.status == wanted)
                assert all(said in peer.received for peer in floods[flood]), flood
                if closed:
                    await_all(floods[flood], lambda peer: peer.end)
            for flood in (flood_pipeline, flood_bad_tokens):
                whole = PIPELINED * floods[flood][0].received.index(b"HTTP/1.1", 1)
                await_all(floods[flood], lambda peer, whole=whole: peer.size == whole)
            during = usage(site.front)
        each = (during.memory - before.memory) / (FLOODS * len(FLOODING))
        assert each < MIB / 4, each  # what may wait to be read and to be sent, and how large a head may be
        check_untouched(alone, speeds[-1])
    told = (
        f"{WAVES} x {FLOODS} floods of {len(FLOODING)} kinds: {alone} before, {speeds[-1]} beside; {before}, {during}"
    )
    await_quiet(site, before.descriptors)
    reconcile(site, alone, *speeds)
    if LONG:
        say(told)


def test_a_pipeline_of_calls_is_answered_in_order_one_at_a_time(start_site: StartSite) -> None:
    site = start_site(workers=1)
    length, count = (40, 50) if LONG else (20, 10)
    kinds = (BLOCKING, CHAT, MESSAGES, RESPONSES)
    with Crowd(site.front.port) as crowd:
        peers = crowd.connect(count)
        for who, peer in enumerate(peers):
            calls = [request(kinds[at % 4], f"pipe-{who}-{at}", "events=6") for at in range(length)]
            wire = b"".join(head + body for head, body in calls)
            crowd.each([peer], lambda peer, wire=wire: peer.send(wire))
        await_all(peers, lambda peer: peer.received.count(b"x-ostiary-interception-id: ") == length)
        eventually(lambda: metric(site.front, "ostiary_interceptions_inflight") == 0)
    result = reconcile(site)
    for who, peer in enumerate(peers):
        ids = re.findall(rb"x-ostiary-interception-id: (\S+)", peer.received)
        assert [id_.decode() for id_ in ids] == [result.by_mark[f"pipe-{who}-{at}"]["id"] for at in range(length)]
    assert result.outcomes == {"completed": length * count}


# --- storms

STORM = 20_000 if LONG else 2_000
STORM_PAUSE = 0.01
"""Seconds between a dozen and the next: a thousand a second."""
STORM_MOST = 400
"""That stand at once: a slow machine has fewer of them a second, not more to hold."""


Begin = Callable[[Peer, int], None]


def say_nothing(_peer: Peer, _number: int) -> None:
    """Not a byte."""


def begin_a_head(peer: Peer, _number: int) -> None:
    peer.send(POST.encode())


def begin_a_body(peer: Peer, number: int) -> None:
    head, body = request(CHAT, f"storm-{number}")
    peer.send(head + body[:-1])


def ask(peer: Peer, number: int) -> None:
    """A whole request. Whose answer is waited for longer than any peer stays."""
    peer.send(b"".join(request(CHAT, f"storm-{number}", "delay=5000 events=20 pace=20")))


STORMING: list[tuple[Begin, Callable[[Peer], object]]] = [
    (begin, end)
    for begin in (say_nothing, begin_a_head, begin_a_body, ask)
    for end in (Peer.close, Peer.reset, Peer.half_close)
]


def test_connection_storms_leave_nothing_behind(start_site: StartSite, say: Say) -> None:
    """Of connections that are closed, half closed or reset, without a byte or in the middle of a request."""
    site = start_site(workers=1)
    alone = traffic(site, "alone")
    before = usage(site.front)

    async def storm(crowd: Crowd) -> list[Peer]:
        stormed = []
        for at in range(0, STORM, len(STORMING)):
            peers = await crowd.connected(len(STORMING))
            for number, (peer, (begin, end)) in enumerate(zip(peers, STORMING, strict=True), at):
                begin(peer, number)
                await asyncio.sleep(0)  # the loop writes
                end(peer)
            stormed += peers
            await asyncio.sleep(STORM_PAUSE)
            while sum(not peer.end for peer in stormed) > STORM_MOST:
                await asyncio.sleep(STORM_PAUSE)
        return stormed

    with Crowd(site.front.port) as crowd:
        storming = crowd.begin(storm(crowd))
        beside = traffic(site, "beside")
        peers = storming.result(300)
        await_all(peers, lambda peer: peer.end)
        assert not any(peer.status for peer in peers), "an answer to something that was not asked"
    await_quiet(site, before.descriptors)
    eventually(lambda: site.fake.requests(limit=0)["open"] == 0, what="the provider is not left waiting")
    after = usage(site.front)
    told = f"{len(peers)} connections: {alone} before, {beside} beside them; {before}, {after}"
    assert after.memory < before.memory + 8 * MIB, told  # requests under way at once, and what allocators keep of that
    check_untouched(alone, beside)
    result = reconcile(site, alone, beside, unsent=("client_closed",))
    assert set(result.outcomes) == {"completed", "client_closed"}
    if LONG:
        say(told)
