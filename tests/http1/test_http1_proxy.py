"""TLS upstreams through an HTTP proxy's CONNECT, with a small real proxy."""

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from http1_peers import GONE, asked, connected, pool, saying, server_tls, upstream
from http1_stage import perform, turns

from ostiary.http1.errors import Failure, UpstreamError
from ostiary.http1.origin import Origin

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Proxy:
    """Relays after CONNECT, whatever name was asked for, to the one upstream; notes what it was asked."""

    def __init__(self, target: Origin, answer: bytes = b"HTTP/1.1 200 Connection established\r\n\r\n") -> None:
        self.asked: list[bytes] = []
        self._target = target
        self._answer = answer

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.asked.append(await reader.readuntil(b"\r\n\r\n"))
        for at in range(len(self._answer)):
            writer.write(self._answer[at : at + 1])
            await turns(2)
        if not self._answer.startswith(b"HTTP/1.1 2"):
            return
        there = await asyncio.open_connection(self._target.host, self._target.port)
        await asyncio.wait(
            [
                asyncio.create_task(_pump(reader, there[1])),
                asyncio.create_task(_pump(there[0], writer)),
            ]
        )


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except GONE:
        pass
    finally:
        writer.close()


@asynccontextmanager
async def proxied(answer: bytes = OK, **how: bytes) -> AsyncIterator[tuple[Proxy, Origin, Origin]]:
    """(the proxy, its address, the upstream behind it)"""
    async with upstream(saying(answer), server_tls("api.test", "127.0.0.1")) as target:
        proxy = Proxy(target, **how)
        async with upstream(proxy) as address:
            yield proxy, address, Origin(True, "api.test", target.port)


def test_a_tls_upstream_through_a_proxy() -> None:
    async def play() -> None:
        async with proxied() as (proxy, address, origin), pool(https_proxy=f"http://127.0.0.1:{address.port}") as made:
            for _ in range(3):
                answer = await asked(made, origin)
                assert answer.ends == ["done"]
                assert bytes(answer.out) == b"<head>ok"
            target = b"api.test:%d" % origin.port
            assert proxy.asked == [b"CONNECT " + target + b" HTTP/1.1\r\nHost: " + target + b"\r\n\r\n"]
            assert made.idle_count == 1

    perform(play)


def test_the_proxy_s_user_and_password_go_to_the_proxy_alone() -> None:
    async def play() -> None:
        async with proxied() as (proxy, address, origin):
            async with pool(https_proxy=f"http://user:p%40ss%3A@127.0.0.1:{address.port}") as made:
                await asked(made, origin)
            expected = b"Proxy-Authorization: Basic " + base64.b64encode(b"user:p@ss:") + b"\r\n"
            assert expected in proxy.asked[0]

    perform(play)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n", "407"),
        (b"HTTP/1.1 403 Forbidden\r\n\r\n", "403"),
        (b"HTTP/1.0 502 Bad Gateway\r\n\r\n", "502"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "?"),
        (b"HTTP/1.1 40", "closed"),
        (b"", "closed"),
        (b"HTTP/1.1 407 X\r\n" + b"X: y\r\n" * 4000, "too long"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_a_proxy_that_refuses_is_told_as_such_and_without_its_password(answer: bytes, says: str) -> None:
    async def play() -> None:
        origin = Origin(True, "api.test", 443)
        async with (
            upstream(Proxy(origin, answer)) as address,
            pool(https_proxy=f"http://user:secret@127.0.0.1:{address.port}") as made,
        ):
            with pytest.raises(UpstreamError) as error:
                await connected(made, origin)
            assert error.value.failure is Failure.CONNECT
            assert "proxy" in error.value.detail
            assert says in error.value.detail
            assert "secret" not in error.value.detail
            assert not made._live

    perform(play)


def test_a_proxy_that_is_not_there_is_named() -> None:
    async def play() -> None:
        async with upstream(saying(OK)) as gone:
            pass
        async with pool(https_proxy=f"http://user:secret@127.0.0.1:{gone.port}") as made:
            with pytest.raises(UpstreamError) as error:
                await connected(made, Origin(True, "api.test", 443))
            assert f"proxy 127.0.0.1:{gone.port}" in error.value.detail
            assert "secret" not in error.value.detail

    perform(play)


def test_a_proxy_that_says_nothing_is_waited_for_only_in_time() -> None:
    async def play() -> None:
        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()

        async with (
            upstream(silent) as address,
            pool(https_proxy=f"http://127.0.0.1:{address.port}", connect_timeout=0.05) as made,
        ):
            with pytest.raises(UpstreamError, match="in time"):
                await connected(made, Origin(True, "api.test", 443))

    perform(play)


def test_the_certificate_is_checked_for_the_upstream_s_name_not_the_proxy_s() -> None:
    async def play() -> None:
        async with proxied() as (_, address, origin), pool(https_proxy=f"http://127.0.0.1:{address.port}") as made:
            with pytest.raises(UpstreamError, match="certificate"):
                await connected(made, Origin(True, "other.test", origin.port))

    perform(play)


def test_a_proxy_over_tls() -> None:
    async def play() -> None:
        async with (
            upstream(saying(OK), server_tls("api.test")) as target,
            upstream(Proxy(target), server_tls()) as address,
            pool(https_proxy=f"https://127.0.0.1:{address.port}") as made,
        ):
            answer = await asked(made, Origin(True, "api.test", target.port))
            assert answer.ends == ["done"]

    perform(play)


def test_a_cancelled_connect_through_a_proxy_leaves_nothing() -> None:
    async def play() -> None:
        told: list[object] = []
        heard = asyncio.Event()
        left = asyncio.Event()

        async def patient(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            heard.set()
            assert await reader.read() == b""
            left.set()

        async with upstream(patient) as address, pool(https_proxy=f"http://127.0.0.1:{address.port}") as made:
            task = made.connect(Origin(True, "api.test", 443), told.append, told.append)
            await heard.wait()
            task.cancel()
            await left.wait()
            assert not told
            assert not made._live

    perform(play)


def test_plain_upstreams_and_bypassed_names_do_not_go_through_the_proxy() -> None:
    async def play() -> None:
        async with (
            proxied() as (proxy, address, _),
            upstream(saying(OK)) as plain,
            upstream(saying(OK), server_tls()) as secured,
            pool(https_proxy=f"http://127.0.0.1:{address.port}", no_proxy="127.0.0.0/8") as made,
        ):
            for origin in (plain, secured):
                assert (await asked(made, origin)).ends == ["done"]
            assert proxy.asked == []

    perform(play)
