"""How large a request head may be is a setting; what goes beyond it is refused by that name."""

import pytest
from http1_stage import App, ClientStage, ok, perform, turns


def head_of(size: int) -> bytes:
    beginning, end = b"GET /a HTTP/1.1\r\nHost: h\r\nX: ", b"\r\n\r\n"
    return beginning + b"y" * (size - len(beginning) - len(end)) + end


def pieces(raw: bytes) -> list[bytes]:
    return [raw[at : at + 1000] for at in range(0, len(raw), 1000)]


@pytest.mark.parametrize("limit", [4096, 256 * 1024])
def test_a_head_of_exactly_the_limit_is_read_and_one_byte_more_is_refused(limit: int) -> None:
    async def play() -> None:
        for cut in (lambda raw: [raw], pieces):
            stage = ClientStage(App(body=ok), head_max=limit)
            stage.wire.arrives(*cut(head_of(limit)))
            await turns()
            assert [request.head.target for request in stage.app.requests] == [b"/a"]
            stage.wire.arrives(*cut(head_of(limit + 1)))
            await turns()
            assert len(stage.app.requests) == 1
            (error,) = stage.app.refused
            assert error.status == 431
            assert error.reason == f"the request head is larger than {limit} bytes (setting head_max_bytes)"
            assert stage.wire.eof_sent

    perform(play)


def test_a_head_without_an_end_is_refused_at_the_limit() -> None:
    async def play() -> None:
        stage = ClientStage(head_max=4096)
        stage.wire.arrives(head_of(5000)[:4096])
        assert not stage.app.refused
        stage.wire.arrives(b"y")
        assert [error.status for error in stage.app.refused] == [431]

    perform(play)


@pytest.mark.parametrize("limit", [256 * 1024])
def test_large_heads_wait_their_turn_too(limit: int) -> None:
    async def play() -> None:
        stage = ClientStage(App(body=lambda _: None), head_max=limit)
        stage.wire.arrives(*pieces(head_of(limit) * 3))
        for count in (1, 2, 3):
            await turns()
            assert len(stage.app.requests) == count
            ok(stage.request)
        await turns()
        assert not stage.app.refused

    perform(play)
