"""Known shapes of smuggling and splitting (`tests/fuzz/smuggling.py`), played on the engine alone."""

import pytest
from http1_stage import Answer, App, ClientStage, Request, UpstreamStage, ok, perform, turns

from tests.fuzz.smuggling import REQUESTS, RESPONSES, SERVED, Place, Shape, Splitting

HERE = Place(b"/v1/x", b"gateway:4000", b"token", b"mark")
NEXT = b"GET /next HTTP/1.1\r\nHost: gateway:4000\r\n\r\n"


def broken(request: Request) -> None:
    request.refuse(b"400 Bad Request")


@pytest.mark.parametrize("shape", REQUESTS, ids=lambda shape: shape.name)
@pytest.mark.parametrize("torn", [False, True], ids=["whole", "in single bytes"])
def test_of_a_request_nobody_sees_two(shape: Shape, torn: bool) -> None:
    stream = shape.build(HERE)

    async def play() -> None:
        stage = ClientStage(App(body=ok, broken=broken))
        for data in (stream, NEXT):
            for piece in [data[at : at + 1] for at in range(len(data))] if torn else [data]:
                stage.wire.arrives(piece)
            await turns(12)
        answers = bytes(stage.wire.sent).removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
        whole = [request.head.target for request in stage.app.requests if "body" in request.words]
        if shape.expected == SERVED:
            assert whole == [b"/v1/x", b"/next"]
            assert answers.count(b"HTTP/1.1 200 OK\r\n") == 2
        else:
            assert whole == []
            assert answers.startswith(b"HTTP/1.1 %d " % shape.expected), answers[:60]
            assert answers.count(b"HTTP/1.1 ") == 1
            assert b"Connection: close\r\n" in answers
            stage.wire.peer_closes()
            await turns()
            assert stage.wire.closed

    perform(play)


@pytest.mark.parametrize("splitting", RESPONSES, ids=lambda splitting: splitting.name)
@pytest.mark.parametrize("torn", [False, True], ids=["whole", "in single bytes"])
def test_of_an_answer_nothing_but_one_goes_on(splitting: Splitting, torn: bool) -> None:
    raw = splitting.raw

    async def play() -> None:
        stage = UpstreamStage()
        answer = Answer()
        answer.ask(stage.upstream)
        for piece in [raw[at : at + 1] for at in range(len(raw))] if torn else [raw]:
            stage.wire.arrives(piece)
        await turns()
        stage.wire.peer_closes()
        await turns()
        assert b"stolen" not in bytes(answer.out)
        assert b"splitted" not in bytes(answer.out)
        assert b"stolen" not in b"".join(answer.head.lines if answer.head else [])
        assert len(answer.ends) == 1
        if splitting.payload is None:
            assert answer.ends == ["failed"] or answer.payload == b"{}"
            assert stage.shelf.released == 0 or torn
        else:
            assert answer.ends == ["done"]
            assert answer.payload == splitting.payload
            if not torn and b"splitted" in raw:
                assert stage.shelf.released == 0, "what stands behind an answer could be taken for the next one"
        assert not stage.upstream.usable

    perform(play)
