"""As many client connections as there may be: who makes room for a new one, and when it is turned away."""

import asyncio
import socket
import ssl
from functools import partial

from http1_peers import server_tls, serving, trusting_tls, until
from http1_stage import TICK, App, Limits, Wire, perform, turns

from ostiary.http1.connections import Connections
from ostiary.http1.server import ClientConnection

GET = b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n"


class Crowd:
    """Connections that share a worker with room for `most`."""

    def __init__(self, most: int, app: App | None = None) -> None:
        self.app = app or App()
        self.connections = Connections(self.app, Limits(), TICK)
        self.connections.most = most

    def come(self, count: int = 1) -> list[Wire]:
        return [Wire(ClientConnection(self.connections)) for _ in range(count)]

    def begin(self, count: int = 1) -> "list[Handshake]":
        return [Handshake(self.connections) for _ in range(count)]


class Handshake:
    """A connection whose TLS is not established yet."""

    def __init__(self, connections: Connections) -> None:
        self.ended = False
        self._connection = ClientConnection(connections)
        self.let_in = connections.begin_handshake(self._connection, self._end)

    def _end(self) -> None:
        self.ended = True

    def succeed(self) -> Wire:
        assert self.let_in
        assert not self.ended
        return Wire(self._connection, tls=True)


def answered(wire: Wire) -> bool:
    """Whether it serves."""
    before = len(wire.sent)
    wire.arrives(GET)
    return b"HTTP/1.1 200 OK" in wire.sent[before:]


def turned_away(wire: Wire) -> bool:
    return wire.closed and bytes(wire.sent).startswith(b"HTTP/1.1 503 Full\r\n")


def test_those_idle_longest_make_room_for_newcomers() -> None:
    async def play() -> None:
        crowd = Crowd(64)
        oldest = crowd.come(10)
        crowd.connections.sweep()
        others = crowd.come(54)
        crowd.connections.sweep()
        assert answered(oldest[0])
        crowd.connections.sweep()
        (newcomer,) = crowd.come()
        assert crowd.app.crowds == [5], "a sixteenth, and one for the newcomer"
        assert not any(wire.closed for wire in (oldest[0], newcomer, *others))
        assert sum(wire.closed for wire in oldest) == 5
        more = crowd.come(4)
        assert crowd.app.crowds == [5], "there was room for those"
        more += crowd.come()
        assert crowd.app.crowds == [5, 5]
        assert all(wire.closed for wire in oldest[1:])
        assert all(answered(wire) for wire in (oldest[0], newcomer, *more))
        await turns()
        assert len(crowd.connections) <= 64

    perform(play)


def test_nobody_who_is_served_makes_room() -> None:
    async def play() -> None:
        crowd = Crowd(4, App(begin=lambda request: None))
        served, half, slow, fresh = crowd.come(4)
        served.arrives(GET)
        half.arrives(GET[:-1])
        slow.take_all = False
        slow.arrives(GET)
        crowd.app.requests[-1].refuse(b"200 OK", b"x" * 100)
        assert turned_away(crowd.come()[0]), "nobody has been idle for a sweep"
        crowd.connections.sweep()
        assert crowd.app.crowds == [0]
        newcomer, late = crowd.come(2)
        assert fresh.closed
        assert not newcomer.closed
        assert turned_away(late)
        assert not any(wire.closed for wire in (served, half, slow))
        assert crowd.app.crowds == [0, 1, 0]

    perform(play)


def test_newcomers_are_let_in_again_when_others_have_gone() -> None:
    async def play() -> None:
        crowd = Crowd(3, App(begin=lambda request: None))
        wires = crowd.come(3)
        for wire in wires:
            wire.arrives(GET)
        assert all(turned_away(wire) for wire in crowd.come(5))
        wires[0].peer_vanishes()
        await turns()
        assert len(crowd.connections) == 2
        (newcomer,) = crowd.come()
        assert not newcomer.closed
        assert crowd.app.crowds == [0] * 5

    perform(play)


def test_a_lower_limit_holds_from_the_next_newcomer_on() -> None:
    async def play() -> None:
        crowd = Crowd(32)
        crowd.come(32)
        crowd.connections.sweep()
        crowd.connections.most = 16
        (newcomer,) = crowd.come()
        await turns()
        assert not newcomer.closed
        assert len(crowd.connections) <= 16

    perform(play)


def test_handshakes_count_and_where_they_are_many_the_oldest_end() -> None:
    async def play() -> None:
        crowd = Crowd(64)
        wires = crowd.come(40)
        crowd.connections.sweep()
        begun = crowd.begin(24)
        assert crowd.app.crowds == []
        more = crowd.begin(30)
        assert [one.ended for one in begun] == [True] * 24
        assert [one.ended for one in more] == [True] * 6 + [False] * 24
        assert not any(wire.closed for wire in wires), "nobody who is here has to go for those who are not"
        assert crowd.app.crowds == [0] * 30
        assert len(crowd.connections) + len(crowd.connections.handshakes) == 64

    perform(play)


def test_few_handshakes_are_let_in_for_those_idle_longest() -> None:
    async def play() -> None:
        crowd = Crowd(64)
        oldest = crowd.come(10)
        crowd.connections.sweep()
        wires = crowd.come(50)
        crowd.connections.sweep()
        begun = crowd.begin(5)
        assert crowd.app.crowds == [5]
        assert sum(wire.closed for wire in oldest) == 5
        assert not any(wire.closed for wire in wires)
        assert not any(one.ended for one in begun)
        assert all(answered(one.succeed()) for one in begun), "it counted already"
        assert crowd.app.crowds == [5]
        assert len(crowd.connections) == 60
        assert not crowd.connections.handshakes

    perform(play)


def test_where_all_are_busy_a_handshake_has_the_room_of_another_or_none() -> None:
    async def play() -> None:
        crowd = Crowd(16, App(begin=lambda request: None))
        for wire in crowd.come(15):
            wire.arrives(GET)
        first, second = crowd.begin(2)
        assert (first.let_in, first.ended, second.let_in, second.ended) == (True, True, True, False)
        second.succeed().arrives(GET)
        (third,) = crowd.begin()
        assert not third.let_in
        assert not third.ended
        assert crowd.app.crowds == [0, 0]
        assert len(crowd.connections) == 16

    perform(play)


def test_who_makes_room_over_tls_is_not_asked_to_agree() -> None:
    async def play() -> None:
        crowd = Crowd(2)
        idle = [one.succeed() for one in crowd.begin(2)]
        crowd.connections.sweep()
        crowd.begin()
        assert [wire.aborted for wire in idle].count(True) == 1

    perform(play)


def test_only_who_is_given_up_is_counted() -> None:
    async def play() -> None:
        crowd = Crowd(4, App(begin=lambda request: None))
        for wire in crowd.come(4):
            wire.arrives(GET)
        for _ in range(5):
            assert not crowd.connections.make_room(), "as by a listener that has no descriptor for one more"
        assert crowd.app.crowds == []
        assert not crowd.begin()[0].let_in
        assert crowd.app.crowds == [0]

    perform(play)


def test_who_is_turned_away_over_tls_has_the_answer_and_is_not_asked_to_agree() -> None:
    """The client reads, and never says that it closes too."""

    async def play() -> None:
        app = App(begin=lambda request: None)
        async with serving(app, server_tls()) as (port, connections):
            connections.most = 0
            loop = asyncio.get_running_loop()
            with socket.create_connection(("127.0.0.1", port)) as client:
                secured = await loop.run_in_executor(None, partial(shake_hands, client))
                with secured:
                    answer = await loop.run_in_executor(None, secured.recv, 1000)
                    assert answer.startswith(b"HTTP/1.1 503 Full\r\n")
                    await until(lambda: not connections.live)
                    assert app.crowds == [0]

    perform(play, timeout=9.0)  # sooner than by a time-out of the server's


def shake_hands(client: socket.socket) -> ssl.SSLSocket:
    trust: ssl.SSLContext = trusting_tls()
    return trust.wrap_socket(client, server_hostname="localhost")
