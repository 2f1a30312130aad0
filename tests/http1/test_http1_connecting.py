"""Making connections: what refuses, hangs, is forbidden, is not who it should be."""

import asyncio
import socket
import ssl

import pytest
from http1_peers import (
    PoolLimits,
    asked,
    authority,
    connected,
    pool,
    saying,
    server_tls,
    trusting_tls,
    until,
    upstream,
)
from http1_stage import Answer, perform, turns

from ostiary.core.build import BUILD
from ostiary.http1.errors import Failure, UpstreamError
from ostiary.http1.origin import Origin
from ostiary.http1.pool import Pool

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def failure_of(error: pytest.ExceptionInfo[UpstreamError]) -> tuple[Failure, str]:
    return error.value.failure, error.value.detail


def test_a_refused_connection_says_where() -> None:
    async def play() -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        async with pool() as made:
            with pytest.raises(UpstreamError) as error:
                await connected(made, Origin(False, "127.0.0.1", port))
            failure, detail = failure_of(error)
            assert failure is Failure.CONNECT
            assert f"127.0.0.1:{port}" in detail
            assert "refused" in detail.lower()

    perform(play)


def test_a_handshake_that_never_comes_ends_in_time() -> None:
    async def play() -> None:
        async with pool(connect_timeout=0.05) as made:
            with socket.create_server(("127.0.0.1", 0)) as silent:
                with pytest.raises(UpstreamError) as error:
                    await connected(made, Origin(True, "127.0.0.1", silent.getsockname()[1]))
                failure, detail = failure_of(error)
                assert failure is Failure.CONNECT
                assert "in time" in detail

    perform(play)


@pytest.mark.parametrize("host", ["a" * 64 + ".test", "two..dots", "", ".leading", "nul\x00.test"])
def test_a_name_that_nobody_can_look_up_is_a_failure_and_no_silence(host: str) -> None:
    async def play() -> None:
        async with pool() as made:
            for secure in (False, True):
                with pytest.raises(UpstreamError) as error:
                    await connected(made, Origin(secure, host, 9))
                assert failure_of(error)[0] is Failure.CONNECT

    perform(play)


@pytest.mark.parametrize(
    "host",
    [
        "169.254.169.254",
        "fe80::1",
        "::ffff:169.254.169.254",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::a9fe:a9fe",
        "2002:a9fe:a9fe::1",
        "::169.254.169.254",
        "fd00:ec2::254",
        "fd00:ec2::23",
        "2852039166",
        "0xa9fea9fe",
    ],
)
@pytest.mark.parametrize("proxy", ["", "http://127.0.0.1:9"])
def test_metadata_and_link_local_addresses_are_not_connected_to(host: str, proxy: str) -> None:
    async def play() -> None:
        async with pool(https_proxy=proxy) as made:
            with pytest.raises(UpstreamError) as error:
                await connected(made, Origin(bool(proxy), host, 9))
            failure, detail = failure_of(error)
            assert failure is Failure.FORBIDDEN_ADDRESS
            assert "egress_allow" in detail

    perform(play)


def test_a_peer_that_closes_at_once_fails_one_request_and_hangs_none() -> None:
    async def play() -> None:
        async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.transport.abort()

        for tls in (None, server_tls()):
            async with upstream(handler, tls) as origin, pool() as made:
                for _ in range(40):
                    try:
                        answer = await asked(made, origin)
                    except UpstreamError as error:
                        assert error.failure is Failure.CONNECT
                    else:
                        assert answer.error is not None
                        assert answer.error.failure is Failure.CLOSED_BEFORE_HEAD
                await until(lambda made=made: not made._live)

    perform(play)


def test_a_connection_lost_before_it_is_handed_over_is_a_failure() -> None:
    async def play() -> None:
        async with upstream(saying(OK)) as origin, pool() as made:
            connection = await connected(made, origin)
            connection.abort()
            with pytest.raises(UpstreamError, match="closed the connection at once"):
                made._adopt(connection)

    perform(play)


def test_a_cancelled_connect_calls_nobody_and_leaves_nothing() -> None:
    async def play() -> None:
        told: list[object] = []
        async with upstream(saying(OK), server_tls()) as origin, pool() as made:
            for patience in range(30):
                task = made.connect(origin, told.append, told.append)
                await turns(patience)
                if task.done():
                    break
                task.cancel()
                await asyncio.wait({task})
                assert not told
                assert not made._live
            assert not made._connecting or told

    perform(play)


def test_a_pool_that_closes_gives_up_connecting() -> None:
    async def play() -> None:
        told: list[object] = []
        with socket.create_server(("127.0.0.1", 0)) as silent:
            async with pool() as made:
                task = made.connect(Origin(True, "127.0.0.1", silent.getsockname()[1]), told.append, told.append)
                await turns(20)
                made.close()
                await asyncio.wait({task})
                assert not told

    perform(play)


@pytest.mark.skipif(BUILD == "compiled", reason="compiled classes cannot be subclassed")
def test_a_dead_address_does_not_keep_from_the_next() -> None:
    class TwoAddresses(Pool):
        """As if the name resolved to a second loopback address, and then to the first."""

        async def _resolve(self, origin: Origin, flags: int = 0) -> list[str]:
            return ["127.0.0.2", "127.0.0.1"]

    async def play() -> None:
        async with upstream(saying(OK), server_tls("api.test")) as target:
            origin = Origin(True, "api.test", target.port)
            made = TwoAddresses(PoolLimits(connect_timeout=3.0), trusting_tls(), tick=1.0)
            refused = await connected(made, origin)
            with socket.create_server(("127.0.0.2", target.port)):  # takes connections and says nothing
                hung = await connected(made, origin)
            for connection in (refused, hung):
                answer = Answer()
                answer.ask(connection)
                await until(lambda answer=answer: answer.ends)
                assert answer.ends == ["done"]
                connection.abort()
            await until(lambda: not made._live)

    perform(play)


def test_an_ipv6_address() -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 loopback here")

    async def play() -> None:
        for tls in (None, server_tls()):
            async with upstream(saying(OK), tls, "::1") as origin, pool() as made:
                assert origin.authority.startswith("[::1]:")
                assert (await asked(made, origin)).ends == ["done"]

    perform(play)


# --- TLS


def test_a_certificate_for_another_name_is_not_accepted() -> None:
    async def play() -> None:
        async with upstream(saying(OK), server_tls("elsewhere.test")) as origin, pool() as made:
            with pytest.raises(UpstreamError) as error:
                await connected(made, origin)
            failure, detail = failure_of(error)
            assert failure is Failure.CONNECT
            assert "certificate" in detail
            assert "127.0.0.1" in detail

    perform(play)


def test_a_certificate_of_a_stranger_is_not_accepted() -> None:
    async def play() -> None:
        async with upstream(saying(OK), server_tls()) as origin, pool(tls=ssl.create_default_context()) as made:
            with pytest.raises(UpstreamError) as error:
                await connected(made, origin)
            assert "certificate" in failure_of(error)[1]

    perform(play)


def test_an_upstream_that_speaks_no_tls_is_a_failure() -> None:
    async def play() -> None:
        async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            await reader.read()

        async with upstream(handler) as origin, pool() as made:
            with pytest.raises(UpstreamError) as error:
                await connected(made, Origin(True, origin.host, origin.port))
            assert failure_of(error)[0] is Failure.CONNECT

    perform(play)


def test_http_1_1_is_what_is_offered_over_tls() -> None:
    async def play() -> None:
        chosen: list[str | None] = []

        async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            chosen.append(writer.get_extra_info("ssl_object").selected_alpn_protocol())
            await saying(OK)(reader, writer)

        tls = server_tls()
        tls.set_alpn_protocols(["h2", "http/1.1"])
        async with upstream(handler, tls) as origin, pool() as made:
            await asked(made, origin)
            assert chosen == ["http/1.1"]
        assert trusting_tls().minimum_version >= ssl.TLSVersion.TLSv1_2
        assert authority().cert_pem.bytes()

    perform(play)
