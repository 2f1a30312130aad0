"""link/channel.py: a worker that does not read costs a bounded amount, and is up to date once it reads again."""

import asyncio
import socket
from collections.abc import Iterator

import pytest
import uvloop
from control_far_end import until

from ostiary.core.messages import Authorization, FrameReader, LinkMessage, MachineState, Snapshot, WorkerMessage
from ostiary.core.providers import ProviderSpec
from ostiary.link import channel as channel_module
from ostiary.link.channel import Channel


class Owner:
    def __init__(self) -> None:
        self.lost: list[Channel] = []

    def worker_connected(self, channel: Channel) -> None:
        pass

    def worker_said(self, channel: Channel, message: WorkerMessage) -> None:
        pass

    def worker_reads_again(self, channel: Channel) -> None:
        pass

    def worker_lost(self, channel: Channel) -> None:
        self.lost.append(channel)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    yield ours, theirs
    ours.close()
    theirs.close()


def snapshot(revision: int) -> Snapshot:
    filler = "x" * 200_000
    return Snapshot(revision, (ProviderSpec("p", "openai", "openai", enabled=True, base_url=filler),))


def test_a_worker_that_does_not_read_is_bounded_and_then_gets_the_newest(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel_module, "MAX_UNREAD", 1_000_000)
    ours, theirs = pair

    async def main() -> None:
        loop = asyncio.get_running_loop()
        owner = Owner()
        _, channel = await loop.create_unix_connection(lambda: Channel(0, owner), sock=ours)
        sent = 0
        for revision in range(1, 200):
            channel.send(snapshot(revision))
            channel.send(MachineState(ready=True, link_up=revision == 199))
            await asyncio.sleep(0)
        while not channel.dropped:
            channel.answer(Authorization(b"t" * 32, unavailable="u" * 1000))
            sent += 1
        assert sent < 3000

        theirs.setblocking(False)
        reader: FrameReader[LinkMessage] = FrameReader(LinkMessage)
        got: list[LinkMessage] = []

        async def read() -> None:
            while data := await loop.sock_recv(theirs, 1 << 20):
                got.extend(reader.feed(data))

        reading = asyncio.create_task(read())
        await until(lambda: any(isinstance(one, Snapshot) and one.revision == 199 for one in got))
        await until(lambda: any(isinstance(one, MachineState) and one.link_up for one in got))
        assert sum(isinstance(one, Snapshot) for one in got) < 20
        assert sum(isinstance(one, Authorization) for one in got) == sent - 1
        channel.close()
        await until(lambda: owner.lost == [channel])
        reading.cancel()

    uvloop.run(main())
