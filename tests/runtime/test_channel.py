"""Control socket: messages with and without descriptors, over a real socketpair."""

import asyncio
import os
import socket
from collections.abc import Callable

import pytest

from ostiary.core.messages import Drain, Drained, NewPeer, Note, Order, Report, encode
from ostiary.runtime.channel import Channel


def _never(*_: object) -> None:
    raise AssertionError("not expected")


async def _until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0)


def test_each_new_peer_comes_with_its_own_descriptor() -> None:
    async def play() -> list[tuple[int, bytes]]:
        left, right = socket.socketpair()
        got: list[tuple[Order, int | None]] = []
        sender: Channel[Report] = Channel(left, Report, _never, _never)
        receiver: Channel[Order] = Channel(right, Order, lambda order, fd: got.append((order, fd)), _never)
        ends = []
        for worker in range(20):
            read_end, write_end = os.pipe()
            sender.send(Drain())
            sender.send(NewPeer(worker), write_end)
            ends.append(read_end)
        await _until(lambda: len(got) == 40)
        found = []
        for order, fd in got:
            if isinstance(order, NewPeer):
                assert fd is not None
                os.write(fd, b"%d" % order.worker)
                os.close(fd)
                found.append((order.worker, os.read(ends[order.worker], 10)))
                assert os.read(ends[order.worker], 1) == b"", "the sender keeps no copy"
                os.close(ends[order.worker])
            else:
                assert fd is None
        sender.close()
        receiver.close()
        return found

    assert asyncio.run(play()) == [(worker, b"%d" % worker) for worker in range(20)]


def test_what_the_socket_does_not_take_waits_and_arrives_in_order() -> None:
    async def play() -> None:
        left, right = socket.socketpair()
        got: list[str] = []
        sender: Channel[Order] = Channel(left, Order, _never, _never)
        sent = [f"{number} " + "x" * 50_000 for number in range(50)]
        for message in sent:
            sender.send(Note(message))
        receiver: Channel[Report] = Channel(right, Report, lambda note, _fd: got.append(note.message), _never)
        await _until(lambda: len(got) == len(sent))
        assert got == sent
        sender.close()
        receiver.close()

    asyncio.run(play())


def test_last_words_are_read_before_the_end_is_told() -> None:
    async def play() -> list[object]:
        left, right = socket.socketpair()
        told: list[object] = []
        Channel(right, Report, lambda report, _fd: told.append(report), told.append)
        left.sendall(encode(Drained(3)))
        left.close()
        await _until(lambda: "" in told)
        return told

    assert asyncio.run(play()) == [Drained(3), ""]


@pytest.mark.parametrize("unread", [True, False])
def test_last_words_are_read_also_when_an_order_crosses_them(unread: bool) -> None:
    async def play() -> list[object]:
        left, right = socket.socketpair()
        told: list[object] = []
        channel: Channel[Report] = Channel(right, Report, lambda report, _fd: told.append(report), told.append)
        if unread:
            channel.send(Drain())
        left.sendall(encode(Drained(3)))
        left.close()
        channel.send(Drain())
        await _until(lambda: "" in told)
        return told

    assert asyncio.run(play()) == [Drained(3), ""]


def test_flush_sends_what_is_waiting_before_the_process_ends() -> None:
    async def play() -> int:
        left, right = socket.socketpair()
        sender: Channel[Order] = Channel(left, Order, _never, _never)
        for _ in range(100):
            sender.send(Note("x" * 20_000))
        reader = asyncio.to_thread(_count_bytes, right)
        counting = asyncio.create_task(reader)
        await asyncio.sleep(0)
        sender.flush(10.0)
        sender.close()
        return await counting

    assert asyncio.run(play()) == 100 * len(encode(Note("x" * 20_000)))


def _count_bytes(sock: socket.socket) -> int:
    sock.setblocking(True)
    total = 0
    with sock:
        while data := sock.recv(65536):
            total += len(data)
    return total


def test_a_broken_frame_ends_the_channel_with_the_reason() -> None:
    async def play() -> list[str]:
        left, right = socket.socketpair()
        told: list[str] = []
        Channel(right, Report, _never, told.append)
        left.sendall(b"\x00\x00\x00\x03abc")
        await _until(lambda: told)
        assert left.recv(1) == b"", "closed at this end"
        left.close()
        return told

    (reason,) = asyncio.run(play())
    assert "Error" in reason


def test_nothing_is_sent_after_the_close_and_descriptors_do_not_leak() -> None:
    async def play() -> None:
        left, right = socket.socketpair()
        channel: Channel[Report] = Channel(left, Report, _never, _never)
        channel.close()
        read_end, write_end = os.pipe()
        channel.send(NewPeer(0), write_end)
        assert os.read(read_end, 1) == b""
        os.close(read_end)
        right.close()

    asyncio.run(play())
