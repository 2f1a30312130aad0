"""The fake provider on a socket: connections, faults in time, and what it remembers."""

import asyncio
import contextlib
import hashlib
import json
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trustme
import uvloop

from ostiary.core.messages import Drain, Drained, FakeBoot, FrameReader, Ready, Report, encode
from ostiary.core.settings import FakeSettings
from ostiary.fake import FakeServer, serve
from ostiary.fake.ledger import Ledger, Mode
from tests.support.fake_provider import fake_provider

CHAT = "/v1/chat/completions"
LONG = 30.0


@pytest.mark.parametrize("command", [["-m", "ostiary.fake"], ["-m", "ostiary", "fake-provider"]], ids=" ".join)
def test_a_second_one_does_not_share_the_port_of_the_first(command: list[str]) -> None:
    with fake_provider() as first:
        address = first.url.removeprefix("http://")
        second = subprocess.run(
            [sys.executable, *command, "--listen", address], capture_output=True, text=True, timeout=LONG, check=False
        )
        assert second.returncode in (1, 2)
        assert "in use" in second.stderr
        assert "Traceback" not in second.stderr


class Wire:
    """A client that sees bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, method: str, path: str, body: Any = None, **headers: str) -> None:
        content = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        fields = {"host": "fake", "authorization": "Bearer sk-good", "content-length": str(len(content))}
        fields |= {name.replace("_", "-"): value for name, value in headers.items()}
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        self.writer.write(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + content)

    def ask(self, prompt: str = "hello", *, stream: bool = False, model: str = "gpt-4.1", **headers: str) -> None:
        body = {"model": model, "stream": stream, "messages": [{"role": "user", "content": prompt}]}
        self.send("POST", CHAT, body, **headers)

    async def head(self) -> str:
        return (await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), LONG)).decode()

    async def answer(self) -> tuple[str, Any]:
        head = await self.head()
        length = int(next(line for line in head.split("\r\n") if line.startswith("content-length")).split(": ")[1])
        return head, json.loads(await asyncio.wait_for(self.reader.readexactly(length), LONG))

    async def rest(self) -> bytes:
        return await asyncio.wait_for(self.reader.read(), LONG)


def on_socket(
    use: Callable[[Wire, FakeServer], Awaitable[None]], *, ledger: Ledger | None = None, loops: str = "uvloop"
) -> None:
    async def run() -> None:
        async with await serve(ledger=ledger) as fake:
            wire = Wire(*await asyncio.open_connection("127.0.0.1", fake.port))
            try:
                await use(wire, fake)
            finally:
                wire.writer.close()

    if loops == "uvloop":
        uvloop.run(run())
    else:
        asyncio.run(run())


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.002)


# --- connections


@pytest.mark.parametrize("loops", ["uvloop", "asyncio"])
def test_pipelined_requests_are_answered_in_order(loops: str) -> None:
    async def use(wire: Wire, fake: FakeServer) -> None:
        for number in range(100):
            wire.ask(f"number {number}", x_fake="delay=1" if number % 10 == 0 else "")
        for number in range(100):
            _, body = await wire.answer()
            assert body["choices"][0]["message"]["content"] == f"number {number}"
        assert fake.provider.ledger.answered == 100

    on_socket(use, loops=loops)


def test_a_request_may_arrive_byte_by_byte() -> None:
    async def use(wire: Wire, fake: FakeServer) -> None:
        body = b'{"model":"gpt-4.1","messages":[{"role":"user","content":"torn"}]}'
        head = f"POST {CHAT}?a=b HTTP/1.1\r\nhost: x\r\nauthorization: Bearer k\r\ncontent-length: {len(body)}\r\n\r\n"
        for byte in head.encode() + body:
            wire.writer.write(bytes([byte]))
            await wire.writer.drain()
        assert (await wire.answer())[1]["choices"][0]["message"]["content"] == "torn"

    on_socket(use)


def test_malformed_http_is_refused_and_closed() -> None:
    async def use(wire: Wire, fake: FakeServer) -> None:
        wire.writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n")
        assert (await wire.rest()).startswith(b"HTTP/1.1 400 ")

    on_socket(use)


def test_expect_continue_gets_its_go_ahead_before_the_body() -> None:
    async def use(wire: Wire, fake: FakeServer) -> None:
        body = b'{"model":"gpt-4.1","messages":[{"role":"user","content":"later"}]}'
        wire.send("POST", CHAT, None, content_length=str(len(body)), expect="100-continue")
        assert (await wire.head()).startswith("HTTP/1.1 100 ")
        wire.writer.write(body)
        assert (await wire.answer())[1]["choices"][0]["message"]["content"] == "later"

    on_socket(use)


def test_an_early_answer_comes_before_the_body_and_the_connection_goes_on() -> None:
    async def use(wire: Wire, fake: FakeServer) -> None:
        wire.send("POST", CHAT, None, content_length="1000", x_fake="early status=413")
        assert (await wire.answer())[0].startswith("HTTP/1.1 413 ")
        wire.writer.write(b"x" * 1000)
        wire.ask("and now?")
        assert (await wire.answer())[1]["choices"][0]["message"]["content"] == "and now?"

    on_socket(use)


def test_requests_that_differ_in_the_middle_only_get_answers_of_their_own() -> None:
    async def use(wire: Wire, fake: FakeServer) -> None:
        tokens = set()
        for word in ("left", "mild", "left"):
            prompt = f"{'a' * 1000}{word}{'b' * 1000}"
            wire.ask(prompt)
            _, body = await wire.answer()
            assert body["choices"][0]["message"]["content"] == prompt
            tokens.add(body["id"])
        assert len(tokens) == 3

    on_socket(use)


def test_an_interim_answer_goes_before_the_final_one() -> None:
    async def use(wire: Wire, fake: FakeServer) -> None:
        wire.ask(x_fake="interim=103")
        assert (await wire.head()).startswith("HTTP/1.1 103 Early Hints")
        assert (await wire.head()).startswith("HTTP/1.1 200 ")

    on_socket(use)


def test_extra_headers_are_sent_as_spelt_and_close_means_close() -> None:
    async def use(wire: Wire, fake: FakeServer) -> None:
        wire.ask(x_fake='{"headers": {"X-Odd": "Yes"}, "close": true}')
        data = await wire.rest()
        assert b"\r\nX-Odd: Yes\r\n" in data
        assert b"\r\nconnection: close\r\n" in data

    on_socket(use)


def test_without_a_key_there_is_no_answer() -> None:
    async def use(wire: Wire, fake: FakeServer) -> None:
        wire.ask(authorization="")
        head, body = await wire.answer()
        assert head.startswith("HTTP/1.1 401 ")
        assert "didn't provide an API key" in body["error"]["message"]

    on_socket(use)


@pytest.mark.parametrize(
    ("body", "param"),
    [(b"", None), (b"nope", None), (b"{}", "model"), (b'{"model":"m"}', "messages"), (b'{"model":7}', "model")],
)
def test_bad_bodies_get_the_400_of_a_real_provider(body: bytes, param: str | None) -> None:
    async def use(wire: Wire, fake: FakeServer) -> None:
        wire.send("POST", CHAT, body)
        head, answer = await wire.answer()
        assert head.startswith("HTTP/1.1 400 ")
        assert answer["error"]["type"] == "invalid_request_error"
        assert answer["error"]["param"] == param

    on_socket(use)


def test_a_misspelt_control_answers_what_is_known() -> None:
    async def use(wire: Wire, fake: FakeServer) -> None:
        wire.ask(x_fake="stauts=429")
        head, answer = await wire.answer()
        assert head.startswith("HTTP/1.1 400 ")
        assert "retry-after" in answer["error"]["message"]

    on_socket(use)


def test_tls() -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    certificate.configure_cert(server)
    authority.configure_trust(client)

    async def run() -> None:
        async with await serve(tls=server) as fake:
            assert fake.url.startswith("https://127.0.0.1:")
            wire = Wire(*await asyncio.open_connection("127.0.0.1", fake.port, ssl=client))
            wire.ask("in private")
            assert (await wire.answer())[1]["choices"][0]["message"]["content"] == "in private"
            wire.writer.close()

    uvloop.run(run())


# --- faults in time


def test_a_paced_stream_comes_event_by_event() -> None:
    async def use(wire: Wire, fake: FakeServer) -> None:
        started = time.monotonic()
        wire.ask("one two three four five six", stream=True, x_fake="pace=50")
        await wire.head()
        first = await wire.reader.readuntil(b"\n\n")
        assert b'"role":"assistant"' in first
        assert fake.provider.ledger.answered == 0
        await wire.reader.readuntil(b"[DONE]")
        assert time.monotonic() - started > 0.24  # five times 50 ms, of which a loop's clock may round each

    on_socket(use)


def test_a_hanging_answer_lasts_until_the_client_goes() -> None:
    async def use(wire: Wire, fake: FakeServer) -> None:
        wire.ask(model="fake-hang-body", stream=True)
        await wire.head()
        await wire.reader.readuntil(b"\n\n")
        assert fake.provider.ledger.aborted_count == 0
        wire.writer.close()
        await until(lambda: fake.provider.ledger.aborted_count == 1)

    on_socket(use)


def test_a_reset_is_a_reset() -> None:
    async def use(wire: Wire, fake: FakeServer) -> None:
        wire.ask(model="fake-reset", stream=True)
        with pytest.raises(ConnectionResetError):
            while await wire.reader.read(100):
                pass

    on_socket(use)


def test_the_time_of_an_abort_is_told() -> None:
    async def use(wire: Wire, fake: FakeServer) -> None:
        wire.ask("a long story", stream=True, x_fake="pace=5 events=1000", x_fake_mark="left-early")
        await wire.head()
        await wire.reader.readuntil(b"\n\n")
        left = time.monotonic()
        wire.writer.transport.abort()
        await until(lambda: bool(fake.provider.ledger.aborted))
        (abort,) = fake.provider.ledger.aborted
        assert (abort.mark, abort.path) == ("left-early", CHAT)
        assert 0 <= abort.monotonic - left < 15.0
        assert 0 < abort.sent_bytes < 100_000

    on_socket(use)


def test_a_slow_reader_is_not_buffered_for() -> None:
    async def use(wire: Wire, fake: FakeServer) -> None:
        wire.writer.transport.pause_reading()  # type: ignore[attr-defined]
        sock = wire.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        wire.ask(stream=True, x_fake="events=3000 event-size=10000 pace=1")
        (connection,) = fake._connections.open
        await until(connection.write_paused)
        # Another stream's 400 ms are the clock in which 4 MB would pile up.
        other = Wire(*await asyncio.open_connection("127.0.0.1", fake.port))
        other.ask(stream=True, x_fake="events=40 pace=10")
        await other.reader.readuntil(b"[DONE]")
        other.writer.close()
        assert connection._transport.get_write_buffer_size() < 1_000_000

    on_socket(use)


# --- what a test scripts


def test_a_scripted_key_changes_at_run_time_and_for_a_number_of_requests() -> None:
    async def use(wire: Wire, fake: FakeServer) -> None:
        wire.send("POST", "/fake/keys", {"key": "sk-good", "control": "status=429 retry-after=3", "times": 2})
        await wire.answer()
        statuses = []
        for _ in range(3):
            wire.ask()
            statuses.append((await wire.answer())[0][9:12])
        assert statuses == ["429", "429", "200"]

    on_socket(use)


def test_a_default_behaviour_holds_for_requests_that_bring_none() -> None:
    async def use(wire: Wire, fake: FakeServer) -> None:
        seen = []
        for control in ("status=503", ""):
            wire.ask("before")
            await wire.answer()
            wire.send("PUT", "/fake/behaviour", {"control": control})
            await wire.answer()
            wire.ask("before")
            seen.append((await wire.answer())[0][9:12])
        assert seen == ["503", "200"]

    on_socket(use)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/fake/keys", {"key": "k", "control": "nonsense=1"}),
        ("POST", "/fake/replay", {"path": "/x"}),
        ("PUT", "/fake/ledger", {"mode": "loud"}),
        ("GET", "/fake/requests?after=x", None),
    ],
)
def test_wrong_admin_orders_are_refused_with_the_reason(method: str, path: str, body: Any) -> None:
    async def use(wire: Wire, fake: FakeServer) -> None:
        fake.provider.ledger.mode = "full"
        wire.send(method, path, body)
        head, answer = await wire.answer()
        assert head.startswith("HTTP/1.1 400 ")
        assert answer["error"]

    on_socket(use)


def test_exact_bytes_are_replayed_torn_and_for_their_times() -> None:
    raw = b"HTTP/1.1 200 Fine\r\nX-Own: 1\r\nContent-Length: 5\r\n\r\nhello"

    async def use(wire: Wire, fake: FakeServer) -> None:
        order = {"path": CHAT, "raw": raw.decode(), "control": "tear=1", "times": 1, "model": "gpt-4.1", "stream": True}
        wire.send("POST", "/fake/replay", order)
        await wire.answer()
        wire.ask(stream=False)
        assert (await wire.answer())[0].startswith("HTTP/1.1 200 OK")
        wire.ask(stream=True)
        assert await wire.reader.readexactly(len(raw)) == raw
        wire.ask(stream=True)
        assert "X-Own" not in await wire.head()

    on_socket(use)


# --- what it remembers


def test_the_ledger_tells_what_was_received_without_the_key() -> None:
    async def use(wire: Wire, fake: FakeServer) -> None:
        body = b'{"model":"gpt-4.1","messages":[{"role":"user","content":"x fake-mark:in-body y"}]}'
        wire.send("POST", CHAT, body, X_Client="Kept")
        await wire.answer()
        wire.ask(x_fake_mark="in-head")
        await wire.answer()
        wire.send("GET", "/fake/requests?marks=1&after=-1&limit=1")
        _, told = await wire.answer()
        assert told["count"] == told["answered"] == 2
        assert told["marks"] == {"in-body": 1, "in-head": 1}
        (entry,) = told["requests"]
        assert entry["body_sha256"] == hashlib.sha256(body).hexdigest()
        assert entry["key_sha256"] == hashlib.sha256(b"sk-good").hexdigest()
        assert ["X-Client", "Kept"] in entry["headers"]
        assert "sk-good" not in json.dumps(told)
        assert entry["number"] == 0
        wire.send("GET", "/fake/requests?after=0")
        assert [entry["mark"] for entry in (await wire.answer())[1]["requests"]] == ["in-head"]
        wire.send("DELETE", "/fake/requests")
        await wire.answer()
        assert fake.provider.ledger.count == 0

    on_socket(use, ledger=Ledger("full"))


@pytest.mark.parametrize("mode", ["marks", "full"])
def test_the_ledger_is_bounded_and_says_what_it_dropped(mode: Mode) -> None:
    async def use(wire: Wire, fake: FakeServer) -> None:
        for number in range(5):
            wire.ask(x_fake_mark=f"m{number}")
            await wire.answer()
        summary = fake.provider.ledger.summary()
        assert summary["count"] == 5
        assert summary["dropped"] > 0
        assert len(fake.provider.ledger.marks) == 3
        assert len(fake.provider.ledger.entries) <= 3

    on_socket(use, ledger=Ledger(mode, limit=3))


def test_the_ledger_file_is_written_as_things_happen(tmp_path: Path) -> None:
    file = tmp_path / "ledger.jsonl"

    async def use(wire: Wire, fake: FakeServer) -> None:
        wire.send("POST", CHAT, None, content_length="10", x_fake_mark="half")
        await until(lambda: file.read_text().count("\n") == 1)
        wire.writer.close()
        await until(lambda: file.read_text().count("\n") == 2)
        events = [json.loads(line) for line in file.read_text().splitlines()]
        assert [(event["event"], event["mark"], event["outcome"]) for event in events] == [
            ("arrived", "half", "open"),
            ("ended", "half", "aborted"),
        ]

    on_socket(use, ledger=Ledger("counts", file=str(file)))


def test_every_request_ends_as_answered_cut_or_aborted() -> None:
    controls = ["", "tear=50", "pace=1", "cut=mid-body", "cut=before-head reset", "hang=mid-body", "hang=before-head"]
    controls += [
        "close",
        "status=500",
        "early status=413",
        "length-excess=3",
        "encoding=gzip force-encoding",
        "nonsense",
    ]

    async def one(fake: FakeServer, number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", fake.port)
        wire = Wire(reader, writer)
        for at in range(number % 4):
            wire.ask(stream=at % 2 == 0, x_fake=controls[(number + at) % len(controls)], x_fake_mark=f"m{number}-{at}")
        if number % 5 == 0:
            writer.write(b"POST /v1/messages HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nhalf")
        if controls[number % len(controls)] != "hang=before-head":
            with contextlib.suppress(OSError):
                await reader.read(number % 7 * 100)
        if number % 3:
            writer.transport.abort()
        else:
            writer.close()

    async def use(wire: Wire, fake: FakeServer) -> None:
        await asyncio.gather(*(asyncio.wait_for(one(fake, number), LONG) for number in range(150) if number % 4))
        await until(lambda: fake.connections == 1)
        told = fake.provider.ledger.summary()
        assert told["open"] == 0
        assert min(told["answered"], told["cut"], told["aborted"]) > 0
        outcomes = [entry.outcome for entry in fake.provider.ledger.entries.values()]
        assert len(outcomes) == told["count"]
        assert "open" not in outcomes
        assert outcomes.count("aborted") == told["aborted"] == len(told["aborts"])

    on_socket(use, ledger=Ledger("full"))


def test_an_upgrade_is_answered_as_a_plain_request_and_closed() -> None:
    async def use(wire: Wire, fake: FakeServer) -> None:
        wire.send("GET", "/v1/responses", None, connection="Upgrade", upgrade="websocket")
        data = await wire.rest()
        assert data.startswith(b"HTTP/1.1 405 ")
        assert data.count(b"HTTP/1.1") == 1

    on_socket(use)


# --- processes


def test_the_process_serves_and_ends_with_its_handle(tmp_path: Path) -> None:
    with fake_provider(ledger_file=tmp_path / "ledger") as fake:
        fake.script_key("sk-a", "status=401")
        assert fake.requests()["count"] == 0
        with pytest.raises(ValueError, match="known names"):
            fake.behave("nonsense=1")
        pid = fake.pid
    assert not Path(f"/proc/{pid}").exists()


def test_the_child_reports_ready_serves_and_drains() -> None:
    from ostiary.fake.process import run

    listener = socket.create_server(("127.0.0.1", 0))
    address = listener.getsockname()

    class Supervisor:
        def __init__(self) -> None:
            self.orders: asyncio.Queue[Any] = asyncio.Queue()
            self.reports: list[Report] = []

        async def next_order(self) -> Any:
            return await self.orders.get()

        def report(self, report: Report) -> None:
            decoded: FrameReader[Report] = FrameReader(Report)
            self.reports += decoded.feed(encode(report))

    async def scenario() -> None:
        from ostiary.core.supervision import Delivered

        supervisor = Supervisor()
        child = asyncio.create_task(run(FakeBoot(FakeSettings()), listener.detach(), supervisor))
        await until(lambda: bool(supervisor.reports))
        assert isinstance(supervisor.reports[0], Ready)
        wire = Wire(*await asyncio.open_connection(*address))
        wire.ask("to the end", stream=True, x_fake="pace=20")
        await wire.head()
        supervisor.orders.put_nowait(Delivered(Drain(), None))
        assert (await wire.rest()).endswith(b"[DONE]\n\n\r\n0\r\n\r\n")
        assert await asyncio.wait_for(child, LONG) == 0
        assert isinstance(supervisor.reports[-1], Drained)
        wire.writer.close()

    uvloop.run(scenario())
