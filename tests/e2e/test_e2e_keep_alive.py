"""A client that waits for a silent provider is told that the stream is alive, where the format allows it."""

import gzip
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import anthropic
import pytest

from tests.e2e.conftest import CHAT, DATA_PLANE, MESSAGE_START, MESSAGES, STREAM_HEAD, Person, RawRequest, RawUpstream
from tests.support.fake_provider import FakeProvider
from tests.support.raw_http import RawConnection
from tests.support.server import PROVIDER_KEY, Server, open_directory

PING = b'event: ping\ndata: {"type": "ping"}\n\n'
PING_CHUNK = b"%x\r\n%b\r\n" % (len(PING), PING)
DELTA = (
    b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,'
    b'"delta":{"type":"text_delta","text":"still here"}}\n\n'
)
STOP = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
BLOCK_START = (
    b'event: content_block_start\ndata: {"type":"content_block_start","index":0,'
    b'"content_block":{"type":"text","text":""}}\n\n'
)
BLOCK_STOP = b'event: content_block_stop\ndata: {"type":"content_block_stop","index":0}\n\n'
MESSAGE_END = (
    b'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"end_turn","stop_sequence":null},'
    b'"usage":{"output_tokens":9}}\n\n'
)
REST = DELTA + STOP


@pytest.fixture(scope="module")
def waiting(fake: FakeProvider, upstream: RawUpstream) -> Iterator[Person]:
    """On a server with pings, in front of a provider that says what a test says."""
    specs = {"2_TYPE": "anthropic", "2_NAME": "raw-claude", "2_BASE_URL": upstream.url, "2_KEY": PROVIDER_KEY}
    specs |= {"3_TYPE": "openai", "3_NAME": "raw", "3_BASE_URL": f"{upstream.url}/v1", "3_KEY": PROVIDER_KEY}
    variables = {f"OSTIARY_PROVIDER_{name}": value for name, value in specs.items()}
    with open_directory() as directory:
        running = Server(directory, fake, "--workers", "1", OSTIARY_SSE_KEEPALIVE="1s", **variables).start()
        yield Person(running, "ann", running.new_token("ann"))
        running.kill()


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def ask(person: Person, connection: RawConnection, provider: str = "raw-claude", accept: str = "") -> None:
    api = CHAT if provider == "raw" else MESSAGES
    headers = person.bearer | ({"Accept-Encoding": accept} if accept else {})
    connection.request("POST", f"{DATA_PLANE}{api.path(provider)}", headers, api.body("hold on", stream=True))


def read_until(connection: RawConnection, mark: bytes, times: int = 1) -> bytes:
    """What comes, up to and with the mark."""
    data = b""
    while data.count(mark) < times:
        more = connection.read_some()
        assert more, f"ended after {data[-300:]!r}"
        data += more
    return data


def finish(request: RawRequest, rest: bytes = REST) -> None:
    request.send(chunk(rest) + b"0\r\n\r\n")
    request.connection.close()


def test_pings_come_while_the_provider_is_silent_and_change_nothing_else(
    waiting: Person, upstream: RawUpstream
) -> None:
    with waiting.connect() as connection:
        ask(waiting, connection)
        request = upstream.accept()
        request.send(STREAM_HEAD + chunk(MESSAGE_START))
        begun = read_until(connection, PING_CHUNK, 2)
        finish(request)
        answer = begun + read_until(connection, b"0\r\n\r\n")
    head, _, wire = answer.partition(b"\r\n\r\n")
    assert wire.replace(PING_CHUNK, b"") == chunk(MESSAGE_START) + chunk(REST) + b"0\r\n\r\n"
    id_ = head.lower().partition(b"x-ostiary-interception-id: ")[2][:36].decode()
    record = waiting.server.interception(id_)
    assert record["outcome"] == "completed"
    assert record["token_usages"][0]["input_tokens"] == 21


def never_pinged(
    person: Person, upstream: RawUpstream, begin: bytes, provider: str = "raw-claude", accept: str = ""
) -> bytes:
    """What a client gets of a stream that begins so, while another one, which began later, gets two pings."""
    with person.connect() as connection, person.connect() as other:
        ask(person, connection, provider, accept)
        request = upstream.accept()
        request.send(begin)
        ask(person, other)
        later = upstream.accept()
        later.send(STREAM_HEAD + chunk(MESSAGE_START))
        read_until(other, PING_CHUNK, 2)
        finish(later)
        finish(request)
        answer = read_until(connection, b"0\r\n\r\n")
    assert PING not in answer
    return answer


@pytest.mark.parametrize(
    "said",
    [
        b": wait\n\n",
        MESSAGE_START + DELTA[:40],
        MESSAGE_START + DELTA[:-1],
        MESSAGE_START.replace(b"\n", b"\r\n")[:-1],
        MESSAGE_START + STOP,
        MESSAGE_START + b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"x"}}\n\n',
    ],
    ids=[
        "before the first event",
        "within an event",
        "before its blank line",
        "within a CRLF",
        "after the end",
        "after an error",
    ],
)
def test_no_ping_where_it_would_say_something_wrong(waiting: Person, upstream: RawUpstream, said: bytes) -> None:
    answer = never_pinged(waiting, upstream, STREAM_HEAD + chunk(said))
    assert answer.partition(b"\r\n\r\n")[2] == chunk(said) + chunk(REST) + b"0\r\n\r\n"


def test_no_ping_in_a_compressed_stream(waiting: Person, upstream: RawUpstream) -> None:
    head = STREAM_HEAD.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n")
    said = chunk(gzip.compress(MESSAGE_START))
    answer = never_pinged(waiting, upstream, head + said, accept="gzip")
    assert answer.partition(b"\r\n\r\n")[2].startswith(said)


def test_no_ping_in_a_stream_of_another_format(waiting: Person, upstream: RawUpstream) -> None:
    said = b'data: {"id":"c","object":"chat.completion.chunk","choices":[]}\n\n'
    never_pinged(waiting, upstream, STREAM_HEAD + chunk(said), "raw")


def test_no_ping_in_an_answer_that_is_no_stream(waiting: Person, upstream: RawUpstream) -> None:
    head = STREAM_HEAD.replace(b"text/event-stream", b"application/json")
    never_pinged(waiting, upstream, head + chunk(b'{"id":'))


def test_the_sdk_reads_past_the_pings(waiting: Person, upstream: RawUpstream) -> None:
    asked: list[anthropic.types.MessageParam] = [{"role": "user", "content": "take your time"}]

    def talk() -> anthropic.types.Message:
        url = f"{waiting.server.url}{DATA_PLANE}/raw-claude"
        with (
            anthropic.Anthropic(base_url=url, api_key=waiting.token, max_retries=0) as client,
            client.messages.stream(model="claude-test", max_tokens=100, messages=asked) as stream,
        ):
            return stream.get_final_message()

    with ThreadPoolExecutor(1) as pool, waiting.connect() as other:
        talking = pool.submit(talk)
        request = upstream.accept()
        request.send(STREAM_HEAD + chunk(MESSAGE_START + BLOCK_START))
        ask(waiting, other)
        later = upstream.accept()
        later.send(STREAM_HEAD + chunk(MESSAGE_START))
        read_until(other, PING_CHUNK, 2)  # then the SDK has had one too
        finish(request, DELTA + BLOCK_STOP + MESSAGE_END + STOP)
        finish(later)
        message = talking.result(20)
    assert message.stop_reason == "end_turn"
    assert [block.text for block in message.content if block.type == "text"] == ["still here"]


def test_without_the_setting_nothing_is_added(guest: Person, upstream: RawUpstream) -> None:
    """Whose provider is silent for longer than its own time-out allows is cut, and got no ping before."""
    with guest.connect() as connection:
        ask(guest, connection)
        request = upstream.accept()
        request.send(STREAM_HEAD + chunk(MESSAGE_START))
        answer = b""
        while more := connection.read_some():
            answer += more
        request.connection.close()
    assert answer.endswith(b"\r\n\r\n" + chunk(MESSAGE_START))
