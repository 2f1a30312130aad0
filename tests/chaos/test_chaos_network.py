"""Clients and providers that are slow, stall, tear everything to single bytes, or go away in the middle.

Slowness of one side is the other's back-pressure, not this process's memory; nobody else waits; what can still be answered
in full is, and what became of each call is recorded.
"""

import asyncio
import base64
import json
import random
import re
import time
from collections import Counter
from itertools import product
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from tests.chaos.harness import LONG, Chance, Site, StartSite
from tests.chaos.network import (
    Crowd,
    SlowConnection,
    Speed,
    await_quiet,
    check_untouched,
    reconcile,
    request,
    traffic,
    usage,
)
from tests.support.chaos import Say
from tests.support.load import BLOCKING, CHAT, MESSAGES, RESPONSES, Kind
from tests.support.raw_http import ask
from tests.support.server import NO_BREAKER, OWNER_TOKEN, eventually

MIB = 1024 * 1024
KINDS = (BLOCKING, CHAT, MESSAGES, RESPONSES)
CLOSE = "Connection: close\r\n"

# --- slow clients

READERS = 32 if LONG else 16
STREAM = 8_000_000
"""Bytes of an answer: far more than a client's socket holds."""
BLOCK = 1_000_000
"""Of a blocking answer, which an observer holds until it is whole."""


def gives_up(number: int) -> bool:
    """Of the streams, every second one is left in the middle. (All of a blocking answer may be on its way already.)"""
    return number // len(KINDS) % 2 == 1 and KINDS[number % len(KINDS)] is not BLOCKING


async def read_slowly(port: int, number: int, begun: set[int], hurry: asyncio.Event) -> bool:
    """A few bytes at a time, and in the end all of the rest, unless it gives up; whether that came."""
    kind = KINDS[number % len(KINDS)]
    size, control = BLOCK, f"size={BLOCK}"
    if kind is not BLOCKING:
        size, control = STREAM, f"events={STREAM // 8000} event-size=8000"
    async with SlowConnection(port, receive_buffer=16384) as connection:
        await connection.send(b"".join(request(kind, f"slow-{number}", control, fields=CLOSE)))
        while not hurry.is_set():
            assert await connection.take(40)
            begun.add(number)
            await asyncio.sleep(0.05)
        if gives_up(number):
            return False
        rest = await connection.take_all()
    return len(rest) > size * 0.9 and kind.last_words in rest[-200:]


def test_clients_that_read_slowly_fill_no_memory_and_touch_nobody(start_site: StartSite, say: Say) -> None:
    site = start_site(workers=1)
    alone = traffic(site, "alone")
    before = usage(site.front)
    with Crowd(site.front.port) as crowd:
        begun: set[int] = set()
        hurry = asyncio.Event()
        readers = [crowd.begin(read_slowly(site.front.port, number, begun, hurry)) for number in range(READERS)]
        eventually(lambda: len(begun) == READERS, within=60)
        beside = traffic(site, "beside")
        during = usage(site.front)
        crowd.call(hurry.set)
        whole = [reader.result(120) for reader in readers]
    told = f"{READERS} slow readers: {alone} before, {beside} beside them; {before}, {during}"
    # of each: what may wait to be sent, one read from the provider, and what an observer holds
    bound = READERS * 0.75 * MIB + READERS // len(KINDS) * BLOCK + 8 * MIB
    assert during.memory - before.memory < bound, told
    assert whole == [not gives_up(number) for number in range(READERS)]
    check_untouched(alone, beside)
    await_quiet(site, before.descriptors)
    result = reconcile(site, alone, beside)
    assert result.outcomes["client_closed"] == READERS - sum(whole)
    print(told)
    if LONG:
        say(told)


SENDERS = 600 if LONG else 80


async def send_slowly(port: int, number: int) -> bytes:
    head, body = request(KINDS[number % len(KINDS)], f"send-{number}", "events=6", fields=CLOSE)
    async with SlowConnection(port) as connection:
        await connection.send(head + body, piece=1 + number % 16, pause=0.005)
        return await connection.take_all()


def test_clients_that_send_slowly_are_served_and_touch_nobody(start_site: StartSite) -> None:
    site = start_site(workers=1)
    alone = traffic(site, "alone")
    before = usage(site.front)
    with Crowd(site.front.port) as crowd:
        senders = [crowd.begin(send_slowly(site.front.port, number)) for number in range(SENDERS)]
        beside = traffic(site, "beside")
        answers = [sender.result(120) for sender in senders]
    for number, answer in enumerate(answers):
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n"), answer
        assert KINDS[number % len(KINDS)].last_words in answer[-200:]
    check_untouched(alone, beside)
    await_quiet(site, before.descriptors)
    assert reconcile(site, alone, beside).outcomes == {"completed": SENDERS + 240}


# --- clients that leave

LEAVERS = 10_000 if LONG else 400
MOMENTS = ("before a byte", "in the head", "in the body", "before the answer", "in the answer", "never")
WAYS = ("close", "reset", "half close")


async def leave(port: int, number: int, moment: str, way: str, chance: random.Random) -> bool:
    """Go away at a moment, in a way; whether the answer came whole."""
    kind = chance.choice(KINDS)
    control = f"delay={chance.randrange(200, 400)} chunk=40 pace={chance.randrange(20, 40)}"
    if moment == "never":
        control += " events=12"
    else:  # far longer than one who leaves may take to do so
        control += " size=16000" if kind is BLOCKING else " events=400"
    head, body = request(kind, f"left-{number}", control, fields=CLOSE)
    sent = {
        "before a byte": 0,
        "in the head": chance.randrange(1, len(head)),
        "in the body": len(head) + chance.randrange(len(body)),
    }.get(moment, len(head + body))
    async with SlowConnection(port) as connection:
        if sent:
            await connection.send((head + body)[:sent], piece=chance.choice((0, 100)))
        if moment == "never":
            answer = await connection.take_all()
            assert answer.startswith(b"HTTP/1.1 200 OK\r\n"), answer
            return kind.last_words in answer[-200:]
        if moment == "in the answer":
            assert await connection.take(chance.randrange(1, 500))
        if way == "half close":
            connection.half_close()
            await connection.take_all()
        elif way == "reset":
            connection.reset_when_closed()
        return False


def test_clients_that_leave_at_any_moment_leave_nothing_behind(start_site: StartSite, chance: Chance, say: Say) -> None:
    site = start_site(workers=2)
    before = usage(site.front)
    moments: Counter[str] = Counter()

    async def all_of_them() -> int:
        numbers = iter(range(LEAVERS))

        async def one_after_the_other() -> int:
            whole = 0
            for number in numbers:
                moment, way = chance.choice(MOMENTS), chance.choice(WAYS)
                moments[moment] += 1
                whole += await leave(site.front.port, number, moment, way, chance)
            return whole

        return sum(await asyncio.gather(*(one_after_the_other() for _ in range(40))))

    with Crowd(site.front.port) as crowd:
        whole = crowd.run(all_of_them(), within=600)
    await_quiet(site, before.descriptors)
    eventually(lambda: site.fake.requests(limit=0)["open"] == 0, what="the provider is not left waiting")
    result = reconcile(site, unsent=("client_closed",))
    assert whole == moments["never"]
    assert result.outcomes["completed"] == whole
    gone = result.outcomes["client_closed"]
    assert moments["in the answer"] <= gone <= moments["in the answer"] + moments["before the answer"], (
        moments,
        result,
    )
    assert set(result.outcomes) == {"completed", "client_closed"}
    if LONG:
        say(f"leaving, seed {chance.seed_number}: {dict(moments)}; {result}")


# --- slow and failing providers

SLOWLY = (
    "tear=1 events=8",
    "delay=700 events=6 pace=150",
    "chunk=5 pace=3 events=3",
    "tear=1 framing=close events=6",
)
"""How an answer comes that comes whole."""
HEADLESS = (
    "cut=before-head",
    "cut=before-head reset",
    "cut=mid-head",
    "cut=mid-head reset",
    "cut=before-head delay=500",
)
NEVER = "hang=before-head"
STALLS = "hang=mid-body"
HEAD_SECONDS = 8
"""A head that is torn to bytes comes in hundreds of turns of a provider's loop that is busy with others'."""
FAULTY = {
    "OSTIARY_HEAD_TIMEOUT": f"{HEAD_SECONDS}s",
    "OSTIARY_IDLE_TIMEOUT": "4s",
    "OSTIARY_KEEPALIVE_POOL": "0",
    **NO_BREAKER,
}
"""No pool: over a connection that was used before, what ends without a byte is asked once more."""
ROUNDS = 12 if LONG else 1


def faulty(kind: Kind, control: str) -> Kind:
    return Kind(kind.path, kind.body | {"model": f"fake:{control}"}, kind.last_words)


def cuts(chance: Chance) -> list[str]:
    """Ways to end in the middle of an answer."""
    places = ("mid-body", "mid-event", "mid-chunk")
    return [
        f"events=12 chunk=97 cut={place} after={chance.randrange(1, 6)}{reset}{slow}"
        for place, reset, slow in product(places, ("", " reset"), ("", " pace=20", " tear=3"))
    ]


def test_providers_that_are_slow_or_fail_are_waited_for_told_of_and_touch_nobody(
    start_site: StartSite, chance: Chance, say: Say
) -> None:
    site = start_site(workers=2, front=FAULTY)
    alone = traffic(site, "alone")
    before = usage(site.front)
    ways = [*SLOWLY, *HEADLESS, NEVER, STALLS, *cuts(chance)]
    kinds = [faulty(kind, way) for kind, way in product(KINDS, ways)]
    with site.load(concurrency=60, total=ROUNDS * len(kinds), control="", kinds=kinds, prefix="faulty") as load:
        beside = traffic(site, "beside")
        calls = load.wait()
    await_quiet(site, before.descriptors)
    faults = Speed(calls, 0, 0, 0)
    result = reconcile(site, alone, beside, faults)
    for call in calls:
        control = call.kind.body["model"].removeprefix("fake:")
        row = result.by_mark[call.mark]
        seen = (call.status, call.complete, row["outcome"])
        if control in SLOWLY:
            assert call.good, call
            assert seen == (200, True, "completed")
        elif control in HEADLESS:
            assert seen == (502, True, "upstream_error"), call
        elif control == NEVER:
            assert (*seen, row["error_type"]) == (504, True, "upstream_error", "timeout"), call
            assert call.seconds >= HEAD_SECONDS
        elif "reset" in control and call.status == 502:
            assert seen == (502, True, "upstream_error"), call  # a reset may overtake what was sent before it
        else:
            assert seen == (200, False, "upstream_error"), call
            assert (row["error_type"] == "timeout") == (control == STALLS), row
    check_untouched(alone, beside)
    if LONG:
        say(f"providers, seed {chance.seed_number}: {load.summary()}; {alone} before, {beside} beside them; {result}")


DRIPPING = 200 if LONG else 20
SMALL = (
    b'{"id":"chatcmpl-d","choices":[],"model":"m","usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}}'
)
SMALL_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(SMALL)


def test_a_head_byte_by_byte_has_the_head_time_and_no_more(start_site: StartSite) -> None:
    site = start_site(workers=1, front={"OSTIARY_HEAD_TIMEOUT": "6s"}, **NO_BREAKER)
    before = usage(site.front)
    for model, pace in (("drips", 5), ("creeps", 150)):  # in half a second; in fourteen
        recorded = (SMALL_HEAD + SMALL).decode()
        site.fake.replay("/v1/chat/completions", model=model, raw=recorded, control=f"chunk=1 pace={pace}")

    async def call(number: int, model: str) -> tuple[bytes, float]:
        begun = time.monotonic()
        async with SlowConnection(site.front.port) as connection:
            await connection.send(b"".join(request(BLOCKING, f"{model}-{number}", fields=CLOSE, model=model)))
            return await connection.take_all(), time.monotonic() - begun

    with Crowd(site.front.port) as crowd:
        dripping = [crowd.begin(call(number, "drips")) for number in range(DRIPPING)]
        creeping = [crowd.begin(call(number, "creeps")) for number in range(DRIPPING)]
        for one in dripping:
            answer, _ = one.result(60)
            assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
            assert answer.endswith(b"\r\n\r\n" + SMALL)
        for one in creeping:
            answer, seconds = one.result(60)
            assert answer.startswith(b"HTTP/1.1 504 Gateway Timeout\r\n")
            assert 6.0 <= seconds < 6.0 + 5.0, "no later than a sweep, on a machine on which other tests run"
    await_quiet(site, before.descriptors)
    result = reconcile(site)
    assert result.outcomes == {"completed": DRIPPING, "upstream_error": DRIPPING}


# --- both at once, byte by byte

_SCHEMA = {"type": "object", "properties": {"command": {"type": "string"}}, "required": ["command"]}
_FUNCTION = {"name": "bash", "parameters": _SCHEMA}
TOOLS = {
    CHAT.path: [{"type": "function", "function": _FUNCTION}],
    RESPONSES.path: [{"type": "function", **_FUNCTION}],
    MESSAGES.path: [{"name": "bash", "input_schema": _SCHEMA}],
}
TORN = 200 if LONG else 16
"""Events of a stream."""


class Case(NamedTuple):
    """An answer that the provider gives byte by byte, and at once to the model `whole`."""

    name: str
    path: str
    fields: str
    body: dict[str, Any]

    def wire(self, model: str, mark: str) -> bytes:
        kind = Kind(self.path, self.body, b"")
        return b"".join(request(kind, mark, fields=CLOSE + self.fields, model=model))


def torn_case(site: Site, path: str, *, stream: bool, coding: str = "") -> Case:
    """Take down what the provider says to such a request, and let it say the same again."""
    name = f"{path.rpartition('/')[2]}-{'stream' if stream else 'block'}{coding}"
    upstream_path = path[path.index("/v1/") :]
    body: dict[str, Any] = {"tools": TOOLS[path], "max_tokens": 1000} | ({"stream": True} if stream else {})
    if stream and path == CHAT.path:
        body["stream_options"] = {"include_usage": True}
    said = {"input": name} if path == RESPONSES.path else {"messages": [{"role": "user", "content": name}]}
    headers = {"Authorization": f"Bearer {OWNER_TOKEN}", "X-Fake": f"thinking tools=2 events={TORN}"}
    asked = json.dumps(body | said | {"model": "m"}).encode()
    answer = ask(site.fake.url, "POST", upstream_path, headers, asked)
    assert answer.status == 200, answer.body
    encoding = f" encoding={coding}" if coding else ""
    for model, control in ((f"torn-{name}", f"tear=1{encoding}"), (f"whole-{name}", encoding)):
        recorded = base64.b64encode(answer.body).decode()
        site.fake.replay(upstream_path, model=model, body_base64=recorded, control=control)
    return Case(name, path, f"Accept-Encoding: {coding}\r\n" if coding else "", body)


def test_everything_torn_to_single_bytes_on_both_sides_is_the_same_and_recorded_whole(start_site: StartSite) -> None:
    site = start_site(workers=2)
    before = usage(site.front)
    cases = [torn_case(site, path, stream=stream) for path, stream in product(TOOLS, (False, True))]
    cases += [torn_case(site, path, stream=True, coding="gzip") for path in TOOLS]
    fake_port = urlsplit(site.fake.url).port or 0

    async def call(case: Case, port: int, wire: bytes) -> bytes:
        async with SlowConnection(port) as connection:
            await connection.send(wire, piece=1)
            return await connection.take_all(1)

    with Crowd(site.front.port) as crowd:
        answers = []
        for case in cases:
            torn, whole = (case.wire(f"{how}-{case.name}", f"{how}-{case.name}") for how in ("torn", "whole"))
            direct = re.sub(rb"/api/v2/ai-gateway/\w+", b"", torn).replace(b"fake-mark:", b"directly: ")
            plays = ((fake_port, direct), (site.front.port, torn), (site.front.port, whole))
            answers.append([crowd.begin(call(case, port, wire)) for port, wire in plays])
        for case, answer in zip(cases, answers, strict=True):
            (_, wanted), (head, got), (_, at_once) = (one.result(120).split(b"\r\n\r\n", 1) for one in answer)
            assert head.startswith(b"HTTP/1.1 200 OK\r\n"), head
            assert got == wanted, case.name
            assert at_once == wanted, case.name
    await_quiet(site, before.descriptors)
    result = reconcile(site)
    told = ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_write_input_tokens", "raw")
    for case in cases:
        torn, whole = (result.by_mark[f"{how}-{case.name}"] for how in ("torn", "whole"))
        assert torn["outcome"] == "completed"
        assert not torn["unparsed"]
        for row in (torn, whole):
            assert len(row["token_usages"]) == 1, row
            assert len(row["tool_usages"]) == 2, row
        usages = [[row["token_usages"][0][name] for name in told] for row in (torn, whole)]
        assert usages[0] == usages[1]
        for name, told_of in (("tool_usages", ("tool", "input", "tool_call_id")), ("model_thoughts", ("content",))):
            torn_ones, whole_ones = ([[one[part] for part in told_of] for one in row[name]] for row in (torn, whole))
            assert torn_ones == whole_ones
        for name in ("provider_response_id", "response_model", "finish_reason", "streaming"):
            assert torn[name] == whole[name]
