"""The worker's end of its socket to the link, on a real socket whose other end is read when the test says so."""

import asyncio
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from ostiary.core.families import Family
from ostiary.core.health import AskTrial, BreakerReport, KeyReport, KeySubject, TrialEnded
from ostiary.core.messages import (
    AskAuthorization,
    FrameReader,
    MetricsReport,
    Serving,
    WorkerHello,
    WorkerMessage,
    encode,
)
from ostiary.core.settings import GatewaySettings
from ostiary.gateway.journal import Journal
from ostiary.gateway.link_channel import LinkChannel, link_socket
from ostiary.gateway.worker import Worker
from ostiary.http1.pool import client_tls_context

HELLO = WorkerHello(0, "journal", 1)
SUBJECT = KeySubject("openai", b"d" * 32)
LASTING = (
    Serving(7),
    KeyReport("openai", b"d" * 32, "suspect", "refused", until=60.0),
    BreakerReport("openai", "/v1/responses", "m", "open", until=60.0),
)
"""What nobody says again."""
REPEATED = (
    AskAuthorization(b"t" * 32),
    AskTrial(1, SUBJECT, 1),
    TrialEnded(SUBJECT, "passed"),
    MetricsReport([Family("requests", "Requests.", "counter", (), [])]),
)


@pytest.fixture
def channel(tmp_path: Path) -> Iterator[LinkChannel]:
    settings = GatewaySettings(journal_dir=str(tmp_path))
    made = LinkChannel(HELLO)
    with closing(Journal.open(tmp_path, settings, str(uuid.uuid4()), time.monotonic)) as journal:
        made.worker = Worker(settings, journal, client_tls_context(""), made.send)
        yield made


async def read(far: socket.socket, reader: FrameReader[WorkerMessage], until: WorkerMessage) -> list[WorkerMessage]:
    got: list[WorkerMessage] = []
    async with asyncio.timeout(20):
        while until not in got:
            got += reader.feed(await asyncio.get_running_loop().sock_recv(far, 1 << 20))
    return got


@pytest.mark.parametrize("repeated", REPEATED, ids=lambda message: type(message).__name__)
def test_a_link_that_does_not_read_is_sent_no_more_than_so_much_but_all_that_nobody_says_again(
    channel: LinkChannel, repeated: WorkerMessage
) -> None:
    async def script() -> None:
        near, far = socket.socketpair()
        far.setblocking(False)
        with far:
            await asyncio.get_running_loop().create_unix_connection(lambda: link_socket(channel), sock=near)
            taken = 0
            while channel.send(repeated):
                taken += 1
                assert taken * len(encode(repeated)) < 4 << 20
            assert not any(channel.send(repeated) for _ in range(1000))
            assert all(map(channel.send, LASTING))
            reader: FrameReader[WorkerMessage] = FrameReader(WorkerMessage)
            got = await read(far, reader, LASTING[-1])
            assert got == [HELLO, *[repeated] * taken, *LASTING]
            assert channel.send(repeated), "it reads again"
            assert await read(far, reader, repeated) == [repeated]

    asyncio.run(script())


def test_without_a_link_nothing_is_sent(channel: LinkChannel) -> None:
    assert not any(channel.send(message) for message in (*LASTING, *REPEATED))
