"""The targets of `targets` for HTTP/1.1: heads, chunks, whole streams of both sides, and addresses."""

from collections.abc import Iterator
from contextlib import suppress
from typing import Final

import h11
from httptools import HttpParserError, HttpRequestParser

from ostiary.core import agents
from ostiary.core.provider_rules import base_url_problem, key_problem, new_name_problem
from ostiary.http1.chunks import ChunkedReader
from ostiary.http1.errors import BodyError, HeadError
from ostiary.http1.fields import REQUEST_DROPPED, REQUEST_PREFIXES, Kept, kept_lines
from ostiary.http1.head import CHUNKED, LENGTH, NO_BODY, parse_request_head, parse_response_head
from ostiary.http1.origin import bypasses_proxy, is_refused, parse_networks, split_base_url
from tests.fuzz.http1_readers import (
    agree,
    h11_requests,
    h11_response,
    harmless,
    llhttp_requests,
    llhttp_response,
    our_requests,
    our_response,
)
from tests.http1.http1_stage import perform

from .tearing import control, torn


def one_head(data: bytes) -> bytes:
    """As a connection finds it: up to the first empty line."""
    head, end, _ = (data + b"\r\n\r\n").partition(b"\r\n\r\n")
    return head + end


def request_head(data: bytes) -> None:
    raw = one_head(data)
    try:
        head = parse_request_head(raw)
    except HeadError as error:
        assert 400 <= error.status < 600
        return
    assert b"\r\n".join((raw.partition(b"\r\n")[0], *head.lines, b"", b"")) == raw
    assert not any(control in line for line in head.lines for control in (b"\r", b"\n", b"\x00"))
    assert head.path + head.query == head.target
    assert head.target.startswith(b"/")
    lengths = head.names.count(b"content-length")
    assert lengths + head.names.count(b"transfer-encoding") <= 1
    assert head.framing in ((CHUNKED,) if b"transfer-encoding" in head.fields else (LENGTH, NO_BODY))
    kept = kept_lines(head, Kept(REQUEST_DROPPED, REQUEST_PREFIXES))
    assert not any(line.lower().startswith((b"content-length:", b"transfer-encoding:", b"host:")) for line in kept)
    for name in (agents.detect_client(head.fields), agents.session_id("x", head.fields)):
        name.encode()
    with suppress(agents.AgentFirewallError):
        agents.agent_firewall(head.fields)
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    connection.receive_data(raw)
    event = connection.next_event()  # what h11 refuses, we do not accept
    assert isinstance(event, h11.Request)
    assert [bytes(name) for name, _ in event.headers] == head.names
    assert bytes(event.method) == head.method


def response_head(data: bytes) -> None:
    raw = one_head(data)
    try:
        head = parse_response_head(raw)
    except HeadError as error:
        assert error.status == 502
        return
    assert 100 <= head.status <= 999
    assert b"\r\n".join((head.status_line, *head.lines, b"", b"")) == raw
    assert not any(control in line for line in head.lines for control in (b"\r", b"\n", b"\x00"))
    assert head.names.count(b"content-length") + head.names.count(b"transfer-encoding") <= 1
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
    connection.send(h11.Request(method="GET", target="/", headers=[("host", "h")]))
    connection.send(h11.EndOfMessage())
    connection.receive_data(raw)
    event = connection.next_event()
    assert isinstance(event, h11.Response | h11.InformationalResponse)
    assert event.status_code == head.status
    assert [bytes(name) for name, _ in event.headers] == head.names


def request_stream(data: bytes) -> None:
    how, stream = control(data)

    async def play() -> None:
        whole = await our_requests([stream])
        assert await our_requests([*torn(how, stream[:2000]), stream[2000:]]) == whole, "tearing changes it"
        for reader in (h11_requests, llhttp_requests):
            agree(whole, reader(stream))

    perform(play)


def response_stream(data: bytes) -> None:
    how, stream = control(data)
    method = "HEAD" if how & 8 else "GET"

    async def play() -> None:
        ours, answer = await our_response([stream], method)
        theirs = h11_response(stream, method)
        if theirs.status and ours.status:
            assert (ours.status, ours.headers) == (theirs.status, theirs.headers)
        if ours.complete:
            assert ours.payload == theirs.payload
            if theirs.complete:
                assert stream[: len(stream) - theirs.rest].endswith(bytes(answer.out).removeprefix(b"<head>"))
            else:
                assert harmless(theirs.refusal, ours.headers), theirs.refusal
            if method == "GET":
                other = llhttp_response(stream)
                assert other.status < 200 or (other.status, other.payload) == (ours.status, ours.payload)
        again, _ = await our_response([*torn(how, stream[:2000]), stream[2000:]], method)
        if theirs.complete and not theirs.rest:
            assert again == ours, "tearing changes it"

    perform(play)


CHUNKED_HEAD: Final = b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunks(data: bytes) -> None:
    how, body = control(data)

    def read(pieces: Iterator[bytes]) -> tuple[bytes, bool, bytes] | None:
        reader = ChunkedReader()
        payload, rest = b"", b""
        try:
            for piece in pieces:
                if reader.done:
                    rest += piece
                else:
                    payload += b"".join(reader.feed(piece))
        except BodyError:
            return None
        return payload, reader.done, reader.rest + rest

    whole = read(iter((body,)))
    assert read(torn(how, body)) == whole
    if whole is None or not whole[1]:
        return
    size = len(body) - len(whole[2])
    theirs = h11_requests(CHUNKED_HEAD + body[:size])
    chunked = [(b"transfer-encoding", b"chunked")]
    assert [message[3] for message in theirs.messages] == [whole[0]] or harmless(theirs.refusal, chunked), (
        theirs.refusal
    )
    seen: list[bytes] = []
    parser = HttpRequestParser(type("_Sink", (), {"on_body": lambda _, piece: seen.append(piece)})())
    try:
        parser.feed_data(CHUNKED_HEAD + body[:size])
    except HttpParserError as error:
        assert harmless(str(error), chunked), f"llhttp refuses it: {error}"
    else:
        assert b"".join(seen) == whole[0]


def addresses(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    problem = base_url_problem(text)
    try:
        origin, path, query = split_base_url(text)
    except ValueError:
        assert problem is not None, "the API takes a base URL that no worker can use"
    else:
        if problem is None:
            assert (origin.authority + path + query).isascii()
            assert not set(origin.authority + path + query) & set(" \r\n\t\x00")
            assert 0 < origin.port < 65536
    with suppress(ValueError):
        is_refused(text, ())
    with suppress(ValueError):
        parse_networks([text])
    host, _, no_proxy = text.partition("\n")
    bypasses_proxy(host, 443, no_proxy)
    new_name_problem(text)
    key_problem(text)
