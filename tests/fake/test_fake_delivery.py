"""From a reply and a behaviour to bytes: what a reader gets back, and where it breaks."""

import zlib
from collections.abc import Callable
from typing import Literal

import brotli
import h11
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from ostiary.fake import event_stream
from ostiary.fake.answer import PLACEHOLDER
from ostiary.fake.behaviour import Behaviour, ControlError, behaviour, model_control
from ostiary.fake.delivery import Client, Reply, Script, chosen_coding, script
from ostiary.fake.event_stream import Event
from ostiary.fake.replay import events

TOKEN = b"0123456789abcdef01234567"
CLIENT = Client(accept_encoding="gzip, br;q=0.5, zstd")


def on_the_wire(played: Script) -> bytes:
    return b"".join(TOKEN.join(segment.pieces) for segment in played.segments)


def read(data: bytes, *, closed: bool = False, method: bytes = b"POST") -> tuple[h11.Response, bytes]:
    """What an independent client makes of `data`. Raises `h11.RemoteProtocolError`."""
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method=method, target=b"/", headers=[("host", "x"), ("content-length", "0")]))
    client.send(h11.EndOfMessage())
    client.receive_data(data)
    if closed:
        client.receive_data(b"")
    response: h11.Response | None = None
    body = b""
    while True:
        event = client.next_event()
        if isinstance(event, h11.Response):
            response = event
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage):
            assert response is not None
            return response, body
        elif event is h11.NEED_DATA:
            raise EOFError(body)


def stream_reply(*parts: bytes) -> Reply:
    return Reply(200, (("content-type", "text/event-stream"),), parts, stream=True)


@given(
    parts=st.lists(st.binary(max_size=40), max_size=6),
    framing=st.sampled_from(["length", "chunked", "close"]),
    chunk=st.integers(0, 5),
    tear=st.integers(0, 3),
    pace=st.sampled_from([0, 5]),
)
def test_whole_answers_carry_the_parts_whatever_their_framing(
    parts: list[bytes], framing: str, chunk: int, tear: int, pace: int
) -> None:
    wanted = behaviour(f"framing={framing} chunk={chunk} tear={tear} pace={pace}")
    played = script(stream_reply(*parts), wanted, CLIENT, TOKEN)
    closed = played.ending == "close"
    assert closed == (framing == "close")
    assert not played.cut
    assert read(on_the_wire(played), closed=closed)[1] == b"".join(parts)


@pytest.mark.parametrize("control", ["", "chunk=7", "encoding=gzip", "tear=1", "pace=1", "framing=length"])
def test_ids_are_made_unique_wherever_the_bytes_are_cut(control: str) -> None:
    parts = [b'{"id":"msg_' + PLACEHOLDER.encode() + b'"}', b"-" + PLACEHOLDER.encode()]
    played = script(stream_reply(*parts), behaviour(control), CLIENT, TOKEN)
    _, body = read(on_the_wire(played))
    if "gzip" in control:
        body = zlib.decompress(body, wbits=31)
    assert body == b'{"id":"msg_' + TOKEN + b'"}-' + TOKEN


@pytest.mark.parametrize(
    ("coding", "decoder"),
    [
        ("gzip", lambda: zlib.decompressobj(wbits=31).decompress),
        ("deflate", lambda: zlib.decompressobj().decompress),
        ("br", lambda: brotli.Decompressor().process),
        ("zstd", lambda: zstandard.ZstdDecompressor().decompressobj().decompress),
    ],
)
def test_coded_streams_can_be_read_event_by_event(
    coding: Literal["gzip", "deflate", "br", "zstd"], decoder: Callable[[], Callable[[bytes], bytes]]
) -> None:
    wanted = Behaviour(encoding=coding, force_encoding=True, pace=1)
    played = script(stream_reply(b"data: one\n\n", b"data: two\n\n"), wanted, CLIENT, TOKEN)
    response, body = read(on_the_wire(played))
    assert (b"content-encoding", coding.encode()) in list(response.headers)
    assert decoder()(body) == b"data: one\n\ndata: two\n\n"
    first_chunk = b"".join(played.segments[1].pieces).split(b"\r\n", 1)[1][:-2]
    assert decoder()(first_chunk) == b"data: one\n\n"


@pytest.mark.parametrize(
    ("control", "accept", "coding"),
    [
        ("encoding=auto", "gzip, br", "br"),
        ("encoding=auto", "gzip;q=0, deflate", "deflate"),
        ("encoding=auto", "identity", ""),
        ("encoding=zstd", "gzip", ""),
        ("encoding=zstd force-encoding", "gzip", "zstd"),
        ("encoding=gzip", "*", "gzip"),
        ("", "gzip", ""),
    ],
)
def test_a_coding_is_used_only_when_wanted_and_accepted(control: str, accept: str, coding: str) -> None:
    assert chosen_coding(behaviour(control), accept) == coding


@pytest.mark.parametrize(
    ("control", "received"),
    [
        ("cut=before-head", None),
        ("cut=mid-head", None),
        ("cut=mid-body after=2", b"aaaabbbb"),
        ("cut=mid-event after=2", b"aaaabbbbcc"),
        ("cut=mid-chunk after=2", b"aaaabbbb"),
        ("hang=mid-body after=1", b"aaaa"),
        ("length-excess=5 framing=length", b"aaaabbbbcccc"),
    ],
)
def test_broken_answers_never_look_complete(control: str, received: bytes | None) -> None:
    played = script(stream_reply(b"aaaa", b"bbbb", b"cccc"), behaviour(control), CLIENT, TOKEN)
    assert played.cut
    assert played.ending == ("hang" if "hang" in control else "close")
    data = on_the_wire(played)
    if received is None:
        assert b"\r\n\r\n" not in data
        return
    with pytest.raises(h11.RemoteProtocolError):
        read(data, closed=True)
    with pytest.raises(EOFError) as seen:
        read(data)
    assert seen.value.args[0].startswith(received)


def test_a_cut_of_a_body_in_one_part_is_inside_it() -> None:
    reply = Reply(200, (), (b"0123456789",))
    data = on_the_wire(script(reply, behaviour("cut=mid-body"), CLIENT, TOKEN))
    assert data.endswith(b"\r\n\r\n01234")
    assert b"content-length: 10\r\n" in data


@pytest.mark.parametrize("status", [204, 304])
def test_answers_without_a_body_have_no_framing(status: int) -> None:
    data = on_the_wire(script(Reply(status, (), (b"ignored",)), behaviour(""), CLIENT, TOKEN))
    assert read(data)[1] == b""
    assert b"content-length" not in data


def test_head_answers_say_the_length_and_send_nothing() -> None:
    data = on_the_wire(script(Reply(200, (), (b"12345",)), behaviour(""), Client("HEAD"), TOKEN))
    assert data.endswith(b"content-length: 5\r\n\r\n")


def test_http10_clients_get_a_body_that_ends_with_the_connection() -> None:
    played = script(stream_reply(b"data"), behaviour(""), Client("POST", http10=True, keep_alive=False), TOKEN)
    assert played.ending == "close"
    assert on_the_wire(played).endswith(b"\r\n\r\ndata")


# --- event streams


@given(st.lists(st.sampled_from([b'{"a":1}', b'{"a":{"b":[1,"x\\ny"]}}', b"[DONE]"]), max_size=5), st.booleans())
def test_event_oddities_keep_the_data(datas: list[bytes], named: bool) -> None:
    wanted = Behaviour(crlf=True, comments=2, multiline=True)
    written = event_stream.encode([Event("e" if named else "", data) for data in datas], wanted)
    for text, data in zip(written, datas, strict=True):
        lines = [line for line in text.split(b"\r\n") if line.startswith(b"data: ")]
        joined = b"\n".join(line[6:] for line in lines)
        assert joined.replace(b"\n", b"").replace(b" ", b"") == data.replace(b" ", b"")


@given(st.lists(st.sampled_from([b"data: x\n\n", b"data: x\r\n\r\n", b": c\n\n", b"data: a\ndata: b\n\n", b"\n"])))
def test_recorded_streams_are_cut_at_blank_lines_and_join_to_the_whole(pieces: list[bytes]) -> None:
    body = b"".join(pieces)
    parts = events(body)
    assert b"".join(parts) == body
    assert all(part.strip(b"\r\n") for part in parts[1:])


# --- control strings


def test_controls_merge_field_by_field_the_later_one_winning() -> None:
    wanted = behaviour("status=500 delay=5", '{"delay": 7, "headers": {"X-A": "b"}}', "close")
    assert (wanted.status, wanted.delay, wanted.close, wanted.headers) == (500, 7, True, {"X-A": "b"})


@pytest.mark.parametrize("control", ["statsu=1", "status=abc", "cut=sideways", '{"status":', "early=maybe"])
def test_a_misspelt_control_is_refused_with_the_reason(control: str) -> None:
    with pytest.raises(ControlError, match="control string"):
        behaviour(control)


@pytest.mark.parametrize(
    ("model", "control"),
    [
        ("gpt-4.1", ""),
        ("fake-429", "status=429 retry-after=7"),
        ("fake-503-2", "status=503 retry-after=2"),
        ("fake-hang", "hang=before-head"),
        ("fake:status=418", "status=418"),
        ("fake-anything", ""),
    ],
)
def test_model_names_stand_for_controls(model: str, control: str) -> None:
    assert model_control(model) == control
