"""Texts and numbers that no database likes: they pass unchanged, and the record stands nevertheless."""

import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.e2e.conftest import APIS, CHAT, DATA_PLANE, MESSAGES, RESPONSES, Api, Person, RawUpstream
from tests.support.raw_http import Answer
from tests.support.server import Server

NASTY = {
    "a zero byte": "a\\u0000b",
    "half a character": "a\\ud83db",
    "the other half": "\\ude00",
    "halves the wrong way round": "\\ude00\\ud83d",
    "noncharacters": "\\uffff\\ufdd0",
    "controls": "\\u0001\\u001b[31m\\u007f\\u0085\\u2028\\u202e",
    "quotes of SQL": "'; DROP TABLE interceptions; --",
    "a template": "{{7*7}} ${jndi:ldap://x} %s %(x)s",
    "an emoji": "\U0001f600 \\ud83d\\ude00",
    "much": "x" * 1_000_000,
}
"""As they stand within quotes in JSON."""


@contextmanager
def nothing_rejected(server: Server) -> Iterator[None]:
    """All that is recorded meanwhile can be stored."""
    yield
    assert server.metric("ostiary_link_records_rejected_total") == 0
    assert server.metric("ostiary_link_ship_errors_total") == 0


def answered(person: Person, upstream: RawUpstream, api: Api, body: bytes, answer: bytes, kind: str) -> Answer:
    name = api.raw
    with person.connect() as connection:
        connection.request("POST", DATA_PLANE + api.path(name), person.bearer, body)
        with upstream.request() as request:
            assert request.body == body
            request.answer(answer, content_type=kind)
        through = connection.answer()
    assert through.body == answer
    return through


def same(stored: str, sent: str) -> bool:
    """Whether a stored text is the one that was sent, but for what is no letter: not everything can be stored."""
    return [c for c in stored if c.isalnum()] == [c for c in json.loads(f'"{sent}"') if c.isalnum()]


@pytest.mark.parametrize("what", NASTY)
@pytest.mark.parametrize("api", APIS)
def test_a_prompt_of_any_text_is_sent_on_and_recorded(
    guest: Person, upstream: RawUpstream, api: Api, what: str
) -> None:
    body = api.body("PROMPT").replace(b"PROMPT", NASTY[what].encode())
    with nothing_rejected(guest.server):
        answer = answered(guest, upstream, api, body, b"{}", "application/json")
        record = guest.server.interception(answer.interception_id)
    (prompt,) = record["user_prompts"]
    assert same(prompt["prompt"], NASTY[what])


@pytest.mark.parametrize("what", NASTY)
@pytest.mark.parametrize("place", ["model", "user-agent"])
def test_names_of_any_text_are_recorded(guest: Person, upstream: RawUpstream, what: str, place: str) -> None:
    nasty = NASTY[what][:5000]
    body = CHAT.body() if place != "model" else CHAT.body(model="MODEL").replace(b"MODEL", nasty.encode())
    agent = (
        {} if place == "model" else {"User-Agent": "claude-cli/1 \xff\xfe" + what, "X-Claude-Code-Session-Id": "\xff"}
    )
    with nothing_rejected(guest.server), guest.connect() as connection:
        connection.request("POST", DATA_PLANE + CHAT.path("raw"), guest.bearer | agent, body)
        with upstream.request() as request:
            request.answer()
        record = guest.server.interception(connection.answer().interception_id)
    assert record["model"] if place == "model" else record["client"] == "Claude Code"


def claude(nasty: str) -> bytes:
    return (
        (
            '{"id":"msg_NASTY","type":"message","model":"NASTY","role":"assistant","stop_reason":"NASTY","content":['
            '{"type":"thinking","thinking":"NASTY","signature":"s"},'
            '{"type":"tool_use","id":"NASTY","name":"NASTY","input":{"NASTY":"NASTY"}}],'
            '"usage":{"input_tokens":1,"output_tokens":2,"service_tier":"NASTY","NASTY":"NASTY"}}'
        )
        .replace("NASTY", nasty)
        .encode()
    )


def gpt(nasty: str) -> bytes:
    return (
        (
            '{"id":"chatcmpl_NASTY","model":"NASTY","choices":[{"index":0,"finish_reason":"NASTY","message":{"tool_calls":['
            '{"id":"NASTY","type":"function","function":{"name":"NASTY","arguments":"NASTY"}}],"reasoning_content":"NASTY"}}],'
            '"usage":{"prompt_tokens":1,"completion_tokens":2,"NASTY":"NASTY"},"service_tier":"NASTY"}'
        )
        .replace("NASTY", nasty)
        .encode()
    )


def response(nasty: str) -> bytes:
    return (
        (
            '{"id":"resp_NASTY","object":"response","model":"NASTY","status":"completed","service_tier":"NASTY","output":['
            '{"type":"reasoning","id":"NASTY","summary":[{"type":"summary_text","text":"NASTY"}]},'
            '{"type":"function_call","id":"NASTY","call_id":"NASTY","name":"NASTY","arguments":"NASTY"}],'
            '"usage":{"input_tokens":1,"output_tokens":2,"total_tokens":3,"NASTY":"NASTY"}}'
        )
        .replace("NASTY", nasty)
        .encode()
    )


ANSWERS = [(CHAT, gpt), (RESPONSES, response), (MESSAGES, claude)]


@pytest.mark.parametrize("what", [name for name in NASTY if name != "much"])
@pytest.mark.parametrize(("api", "write"), ANSWERS, ids=["chat", "responses", "messages"])
def test_an_answer_of_any_text_is_recorded(
    guest: Person, upstream: RawUpstream, api: Api, write: Any, what: str
) -> None:
    nasty = NASTY[what]
    with nothing_rejected(guest.server):
        answer = answered(guest, upstream, api, api.body(), write(nasty), "application/json")
        record = guest.server.interception(answer.interception_id)
    assert (record["outcome"], record["unparsed"]) == ("completed", False)
    assert same(record["response_model"], nasty)
    (usage,) = record["token_usages"]
    assert (usage["input_tokens"], usage["output_tokens"]) == (1, 2)
    (use,) = record["tool_usages"]
    assert same(use["tool"], nasty)
    assert same(use["tool_call_id"], nasty)
    (thought,) = record["model_thoughts"]
    assert same(thought["content"], nasty)


@pytest.mark.parametrize("api", APIS)
def test_an_error_of_any_text_is_recorded(guest: Person, upstream: RawUpstream, api: Api) -> None:
    name = api.raw
    for what, nasty in NASTY.items():
        kind = "x" if what == "much" else nasty
        body = f'{{"type":"error","error":{{"type":"{kind}","message":"{nasty}","code":"{kind}"}}}}'.encode()
        with nothing_rejected(guest.server), guest.connect() as connection:
            connection.request("POST", DATA_PLANE + api.path(name), guest.bearer, api.body())
            with upstream.request() as request:
                request.answer(body, status="400 Bad Request")
            answer = connection.answer()
            record = guest.server.interception(answer.interception_id)
        assert answer.body == body
        assert (record["outcome"], record["status_code"]) == ("upstream_error", 400), what
        assert same(record["error_message"], nasty[:1024] if what == "much" else nasty), what


NUMBERS = ["-5", "1e30", "1.5", '"12"', "true", "null", "[]", "9223372036854775808", "1e400", "99999999999999999999999"]


@pytest.mark.parametrize("number", NUMBERS)
def test_numbers_that_are_none_do_not_spoil_a_record(guest: Person, upstream: RawUpstream, number: str) -> None:
    names = ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_write_input_tokens")
    for api, write in ANSWERS:
        body = write("x").replace(b'_tokens":1', b'_tokens":' + number.encode())
        assert body != write("x")
        with nothing_rejected(guest.server):
            answer = answered(guest, upstream, api, api.body(), body, "application/json")
            record = guest.server.interception(answer.interception_id)
        (usage,) = record["token_usages"]
        assert all(0 <= usage[name] <= 10**12 for name in names)
        assert usage["output_tokens"] == 2


def test_a_small_answer_that_swells_flows_and_is_recorded_as_unread(guest: Person, upstream: RawUpstream) -> None:
    packer = zlib.compressobj(wbits=31)
    zeros = b" " * 1_000_000
    body = b"".join(packer.compress(zeros) for _ in range(80)) + packer.flush()
    before = guest.server.resident("worker")
    with guest.connect() as connection:
        connection.request("POST", DATA_PLANE + CHAT.path("raw"), guest.bearer, CHAT.body())
        with upstream.request() as request:
            head = (
                "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Encoding: gzip\r\nConnection: close\r\n"
            )
            request.send(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        answer = connection.answer()
    assert answer.body == body
    record = guest.server.interception(answer.interception_id)
    assert (record["outcome"], record["unparsed"]) == ("completed", True)
    assert guest.server.resident("worker") - before < 24 * 1024 * 1024
