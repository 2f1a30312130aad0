"""Recorded provider traffic, played back through a running server: the bytes stay, the facts are right.

What a recording implies is read from it here, with nothing but `json`: these expectations know nothing of Ostiary's readers.
"""

import base64
import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import brotli
import pytest
import zstandard

from tests.e2e.conftest import DATA_PLANE, Person
from tests.support.fake_provider import FakeProvider
from tests.support.raw_http import Answer, ask
from tests.support.server import Server

RECORDINGS = Path(__file__).resolve().parents[3] / "shared" / "fixtures"
JSON = "application/json"
STREAM = "text/event-stream; charset=utf-8"
ALL_CODINGS = "gzip, deflate, br, zstd"
Json = dict[str, Any]


class Recording(NamedTuple):
    """One recorded answer with the request that it answers."""

    name: str
    section: str
    request: bytes
    """Empty for a plain GET."""
    status: int
    content_type: str
    body: bytes

    @property
    def wire(self) -> str:
        """messages, chat or responses."""
        return "messages" if "anthropic" in self.name else "chat" if "chatcompletions" in self.name else "responses"

    @property
    def streams(self) -> bool:
        return self.section.startswith("streaming")

    @property
    def is_stream(self) -> bool:
        """The answer is a stream of events: an error to a streaming request is not."""
        return self.streams and self.status == 200

    @property
    def path(self) -> str:
        """At the provider."""
        return {"messages": "/v1/messages", "chat": "/v1/chat/completions", "responses": "/v1/responses"}[self.wire]

    @property
    def provider(self) -> str:
        return "anthropic" if self.wire == "messages" else "openai"


def load() -> Iterator[Recording]:
    for path in sorted(RECORDINGS.rglob("*.txtar")):
        parts = re.split(rb"(?m)^-- (.+?) --\n", path.read_bytes())
        sections = {name.decode(): body for name, body in zip(parts[1::2], parts[2::2], strict=True)}
        request = sections.pop("request", b"").strip()
        for section, body in sections.items():
            status, content_type = 200, STREAM if section.startswith("streaming") else JSON
            if body.startswith(b"HTTP/"):
                head, _, body = body.partition(b"\n\n")
                status_line, *lines = head.decode().splitlines()
                fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
                status, content_type = int(status_line.split()[1]), fields["content-type"]
                body = body[: int(fields.get("content-length", len(body)))]
            name = path.relative_to(RECORDINGS).with_suffix("").as_posix()
            yield Recording(name, section, request, status, content_type, body)


def params(recordings: list[Recording]) -> list[Any]:
    return [pytest.param(one, id=f"{one.name}:{one.section}") for one in recordings]


ALL = list(load())
BRIDGED = [one for one in ALL if one.request]
CHAT_STREAMS = [one for one in BRIDGED if one.wire == "chat" and one.is_stream]
SIMPLE = [one for one in BRIDGED if one.name.endswith("/simple")]
PLAIN_GETS = [one for one in ALL if not one.request]

pytestmark = pytest.mark.skipif(not ALL, reason="the recordings are not here")


# --- what a recording implies


class Tool(NamedTuple):
    name: str
    call_id: str
    input: Any
    """Decoded where it is JSON."""


class Implied(NamedTuple):
    response_id: str
    model: str
    usage: tuple[int, int, int, int] | None
    """Fresh input, output, cache reads, cache writes."""
    details: Json
    """Further numbers that were reported, by the names of the record's metadata."""
    tools: list[Tool]
    thoughts: list[tuple[str, str]]
    """(source, text)"""
    error: str | None
    """The provider's own words."""


def data_of(stream: bytes) -> list[Json]:
    """The JSON of each event."""
    found = []
    for event in re.split(r"\n\n+", stream.decode().replace("\r\n", "\n")):
        lines = [line[5:].removeprefix(" ") for line in event.split("\n") if line.startswith("data:")]
        if lines and lines != ["[DONE]"]:
            found.append(json.loads("\n".join(lines)))
    return found


def implied(recording: Recording) -> Implied:
    if recording.status >= 400:
        return Implied("", "", None, {}, [], [], json.loads(recording.body)["error"]["message"])
    if recording.is_stream:
        read = {"messages": messages_stream, "chat": chat_stream, "responses": responses_stream}[recording.wire]
        return read(data_of(recording.body))
    body = json.loads(recording.body)
    if recording.wire == "messages":
        return message_implies(body, None)
    if recording.wire == "chat":
        (choice,) = body["choices"]
        return chat_implies(body, body["usage"], choice["message"].get("tool_calls") or [], None)
    return response_implies(body, body["output"], None)


def messages_stream(events: list[Json]) -> Implied:
    """Put the message together as the documentation of streaming says."""
    message: Json = {}
    partial: dict[int, str] = {}
    error = None
    for event in events:
        kind = event["type"]
        if kind == "message_start":
            message = event["message"]
        elif kind == "content_block_start":
            message["content"].append(event["content_block"])
        elif kind == "content_block_delta":
            block, delta = message["content"][event["index"]], event["delta"]
            if delta["type"] == "thinking_delta":
                block["thinking"] += delta["thinking"]
            elif delta["type"] == "input_json_delta":
                partial[event["index"]] = partial.get(event["index"], "") + delta["partial_json"]
        elif kind == "message_delta":
            message["usage"] |= event["usage"]
        elif kind == "error":
            error = event["error"]["message"]
    for index, text in partial.items():
        message["content"][index]["input"] = json.loads(text or "{}")
    return message_implies(message, error)


def message_implies(message: Json, error: str | None) -> Implied:
    usage, content = message["usage"], message["content"]
    creation, server_tools = usage.get("cache_creation") or {}, usage.get("server_tool_use") or {}
    details = {
        "cache_ephemeral_5m_input": creation.get("ephemeral_5m_input_tokens"),
        "cache_ephemeral_1h_input": creation.get("ephemeral_1h_input_tokens"),
        "web_search_requests": server_tools.get("web_search_requests"),
        "service_tier": usage.get("service_tier"),
    }
    return Implied(
        message["id"],
        message["model"],
        (
            usage["input_tokens"],
            usage["output_tokens"],
            usage.get("cache_read_input_tokens", 0),
            usage.get("cache_creation_input_tokens", 0),
        ),
        {name: value for name, value in details.items() if value is not None},
        [Tool(block["name"], block["id"], block["input"]) for block in content if block["type"] == "tool_use"],
        [("thinking", block["thinking"]) for block in content if block["type"] == "thinking" and block["thinking"]],
        error,
    )


def chat_stream(chunks: list[Json]) -> Implied:
    calls: dict[int, Json] = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            for delta in choice["delta"].get("tool_calls") or []:
                call = calls.setdefault(delta["index"], {"id": "", "function": {"name": "", "arguments": ""}})
                call["id"] += delta.get("id") or ""
                for key in ("name", "arguments"):
                    call["function"][key] += delta["function"].get(key) or ""
    usages = [chunk["usage"] for chunk in chunks if chunk.get("usage")]
    return chat_implies(chunks[0], usages[-1] if usages else None, list(calls.values()), None)


def chat_implies(chunk: Json, usage: Json | None, calls: list[Json], error: str | None) -> Implied:
    tools = [Tool(c["function"]["name"], c["id"], json.loads(c["function"]["arguments"])) for c in calls]
    numbers, details = None, {}
    if usage is not None:
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
        numbers = (usage["prompt_tokens"] - cached, usage["completion_tokens"], cached, 0)
        completion = usage.get("completion_tokens_details") or {}
        if "reasoning_tokens" in completion:
            details["completion_reasoning"] = completion["reasoning_tokens"]
    return Implied(chunk["id"], chunk["model"], numbers, details, tools, [], error)


def responses_stream(events: list[Json]) -> Implied:
    response: Json = next(event["response"] for event in events if "response" in event)
    output, error = [], None
    for event in events:
        if event["type"] in ("response.completed", "response.incomplete", "response.failed"):
            response = event["response"]
        elif event["type"] == "response.output_item.done":
            output.append(event["item"])
        elif event["type"] == "error":
            error = event["message"]
    return response_implies(response, output or response["output"], error)


def response_implies(response: Json, output: list[Json], error: str | None) -> Implied:
    usage = response.get("usage")
    numbers, details = None, {}
    if usage:
        cached = usage["input_tokens_details"]["cached_tokens"]
        numbers = (usage["input_tokens"] - cached, usage["output_tokens"], cached, 0)
        details = {
            "output_reasoning": usage["output_tokens_details"]["reasoning_tokens"],
            "total_tokens": usage["total_tokens"],
            "service_tier": response["service_tier"],
        }
    tools = []
    thoughts: list[tuple[str, str]] = []
    for item in output:
        if item["type"] == "function_call":
            tools.append(Tool(item["name"], item["call_id"], json.loads(item["arguments"])))
        elif item["type"] == "custom_tool_call":
            tools.append(Tool(item["name"], item["call_id"], item["input"]))
        elif item["type"] == "reasoning":
            thoughts += [("reasoning_summary", part["text"]) for part in item["summary"]]
        elif item["type"] == "message" and item.get("phase") == "commentary":
            thoughts += [("commentary", part["text"]) for part in item["content"]]
    return Implied(response["id"], response.get("model", ""), numbers, details, tools, thoughts, error)


def prompt_of(request: bytes) -> list[str]:
    """What the person wrote, if the last turn is theirs."""
    body = json.loads(request)
    turns = body.get("messages") or body["input"]
    if isinstance(turns, str):
        return [turns]
    if turns[-1].get("role") != "user":
        return []
    content = turns[-1]["content"]
    if isinstance(content, str):
        return [content]
    texts = [part["text"] for part in content if part["type"] in ("text", "input_text")]
    return ["\n".join(texts)] if "input" in body else texts[-1:]


def agrees(record: Json, recording: Recording) -> None:
    """A record holds what its recording implies, and nothing else."""
    expected = implied(recording)
    assert (record["status_code"], record["streaming"]) == (recording.status, recording.streams)
    assert record["outcome"] == ("completed" if expected.error is None else "upstream_error")
    assert record["error_message"] == expected.error
    assert (record["error_type"] is None) == (expected.error is None)
    assert not record["unparsed"]
    assert (record["provider_response_id"] or "") == expected.response_id
    assert (record["response_model"] or "") == expected.model
    assert record["model"] == json.loads(recording.request)["model"]
    assert [prompt["prompt"] for prompt in record["user_prompts"]] == prompt_of(recording.request)
    usages = record["token_usages"]
    names = ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_write_input_tokens")
    assert [tuple(usage[name] for name in names) for usage in usages] == ([expected.usage] if expected.usage else [])
    for usage in usages:
        assert expected.details.items() <= usage["metadata"].items()
        assert usage["provider_response_id"] == expected.response_id
    tools = [Tool(use["tool"], use["tool_call_id"], decoded(use["input"])) for use in record["tool_usages"]]
    assert tools == expected.tools
    assert not any(use["truncated"] for use in record["tool_usages"])
    assert [(thought["source"], thought["content"]) for thought in record["model_thoughts"]] == expected.thoughts


def decoded(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


# --- playing them


def request_body(recording: Recording) -> bytes:
    """The recorded request, asking for a stream or not as the section has it."""
    asked = json.loads(recording.request).get("stream")
    if bool(asked) == recording.streams:
        return recording.request
    if asked is None:
        return recording.request.replace(b"{", b'{"stream": true,', 1)
    return re.sub(rb'("stream":\s*)(true|false)', rb"\1" + str(recording.streams).lower().encode(), recording.request)


def asking_for_usage(body: bytes) -> bytes:
    """The one edit that is made: of chat streams that do not ask for their usage."""
    return body.replace(b"{", b'{"stream_options":{"include_usage":true},', 1)


class Play(NamedTuple):
    """A recording played once, through the server and without it."""

    mark: str
    sent: bytes
    through: Answer
    direct: Answer


_numbers = iter(range(10**9))


def play(
    recording: Recording,
    person: Person,
    fake: FakeProvider,
    control: str = "",
    *,
    body: bytes | None = None,
    headers: dict[str, str] | None = None,
) -> Play:
    mark = f"play-{next(_numbers)}"
    sent = request_body(recording) if body is None else body
    fields = {"Content-Type": JSON, **(headers or {})}
    for use in (mark, f"{mark}-direct"):
        fake.replay(
            recording.path,
            mark=use,
            times=1,
            body_base64=base64.b64encode(recording.body).decode(),
            status=recording.status,
            content_type=recording.content_type,
            headers={"request-id": "req_recorded", "X-RateLimit-Remaining": "7"},
            control=control,
        )
    own = {"Authorization": "Bearer sk-direct", **fields, "X-Fake-Mark": f"{mark}-direct"}
    direct = ask(fake.url, "POST", recording.path, own, sent)
    with answering(recording, person, fake) as name:
        through = person.call(f"/{name}{recording.path}", sent, {**fields, "X-Fake-Mark": mark})
    return Play(mark, sent, through, direct)


def answering(recording: Recording, person: Person, fake: FakeProvider) -> AbstractContextManager[str]:
    """The provider to play it by. What refuses a key is not played by one that other tests need."""
    if recording.status != 401:
        return nullcontext(recording.provider)
    return person.server.provider("openai", f"{fake.url}/v1")


def kept(answer: Answer) -> list[tuple[str, str]]:
    """The fields of an answer that are the provider's own, in their order."""
    ours = ("date", "connection", "transfer-encoding", "x-ostiary-interception-id")
    return [(name, value) for name, value in answer.headers if name.lower() not in ours]


def unchanged(played: Play, recording: Recording, *, verbatim: bool = True) -> None:
    """What came out is what the provider sent; `verbatim`: down to the framing."""
    through, direct = played.through, played.direct
    assert (through.status, through.status_line) == (direct.status, direct.status_line)
    assert through.status == recording.status
    assert kept(through) == kept(direct)
    assert through.complete
    if verbatim:
        assert through.wire == direct.wire
    assert through.body == direct.body


def deliveries(recording: Recording) -> dict[str, str]:
    """Ways in which the same bytes can come: control strings of the fake provider."""
    size = len(recording.body)
    tear, chunk = max(1, size // 600), max(1, size // 300)
    return {
        "at once": "",
        "torn": f"tear={tear}",
        "small chunks, torn across them": f"framing=chunked chunk={chunk} tear={tear + 2}",
        "chunked": "framing=chunked chunk=1000",
        "with a length": "framing=length",
        "until the end of the connection": "framing=close",
        "until the end of the connection, torn": f"framing=close tear={tear}",
        "gzip": "encoding=gzip",
        "gzip, torn": f"encoding=gzip tear={max(1, size // 2000)}",
        "br": "encoding=br",
        "zstd": "encoding=zstd chunk=100",
        "deflate": "encoding=deflate framing=length",
    }


@pytest.mark.parametrize("recording", params(BRIDGED))
def test_a_recording_comes_through_byte_for_byte_and_is_read_right(
    recording: Recording, person: Person, server: Server, fake: FakeProvider
) -> None:
    request = request_body(recording)
    if recording.wire == "chat" and recording.streams:
        # The client asks for usage itself: nothing is edited then.
        request = asking_for_usage(request)
    plays: list[tuple[str, Play]] = []
    for way, control in deliveries(recording).items():
        headers = {"Accept-Encoding": ALL_CODINGS} if "encoding" in control else {}
        played = play(recording, person, fake, control, body=request, headers=headers)
        unchanged(played, recording, verbatim="framing=close" not in control)
        coding = played.through.header("content-encoding")
        assert coding == (control.split()[0].partition("=")[2] if "encoding" in control else None), way
        if coding is None:
            assert played.through.body == recording.body, way
        plays.append((way, played))

    for way, played in plays:
        entry = fake.entry(played.mark)
        assert entry["body_sha256"] == hashlib.sha256(request).hexdigest(), way
        assert entry["path"] == recording.path
        record = server.interception(played.through.interception_id)
        agrees(record, recording)
        assert not record["trace"].get("edits")


@pytest.mark.parametrize("recording", params(CHAT_STREAMS))
def test_a_chat_stream_that_did_not_ask_for_usage_comes_without_its_event(
    recording: Recording, person: Person, server: Server, fake: FakeProvider
) -> None:
    request = request_body(recording)
    assert b"stream_options" not in request
    spliced = asking_for_usage(request)
    events = re.findall(rb"(?s).+?(?:\n\n|\Z)", recording.body)
    withheld = [event for event in events if b'"choices":[]' in event and b'"usage":{' in event]
    expected = b"".join(event for event in events if event not in withheld)
    ways = {way: control for way, control in deliveries(recording).items() if "encoding" not in control}
    plays = [play(recording, person, fake, control) for control in ways.values()]
    # Coded streams are not asked for then, whatever the client accepts.
    plays.append(play(recording, person, fake, "encoding=auto", headers={"Accept-Encoding": ALL_CODINGS}))

    for played in plays:
        through = played.through
        assert (through.status, through.complete) == (200, True)
        assert through.body == expected
        entry = fake.entry(played.mark)
        assert entry["body_sha256"] == hashlib.sha256(spliced).hexdigest()
        sent = {name.lower(): value for name, value in entry["headers"]}
        assert sent["accept-encoding"] == "identity"
        assert sent["content-length"] == str(len(spliced))
        record = server.interception(through.interception_id)
        agrees(record, recording)
        (edit,) = record["trace"]["edits"]
        assert edit.startswith("stream_options.include_usage")


@pytest.mark.parametrize("recording", params(CHAT_STREAMS))
def test_a_coded_chat_stream_nobody_asked_for_still_comes_byte_for_byte(
    recording: Recording, person: Person, server: Server, fake: FakeProvider
) -> None:
    played = play(recording, person, fake, "encoding=gzip force-encoding")
    unchanged(played, recording)
    agrees(server.interception(played.through.interception_id), recording)


PACK: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda body: gzip.compress(body, mtime=0),
    "deflate": zlib.compress,
    "br": brotli.compress,
    "zstd": zstandard.compress,
}


@pytest.mark.parametrize("recording", params(SIMPLE))
@pytest.mark.parametrize("coding", PACK)
def test_a_compressed_request_is_read_and_goes_on_as_it_is(
    recording: Recording, coding: str, person: Person, server: Server, fake: FakeProvider
) -> None:
    """But for a chat stream: its request must be edited, and then is sent plain."""
    request = request_body(recording)
    packed = PACK[coding](request)
    played = play(recording, person, fake, body=packed, headers={"Content-Encoding": coding})
    entry = fake.entry(played.mark)
    sent = {name.lower(): value for name, value in entry["headers"]}
    record = server.interception(played.through.interception_id)
    assert record["model"] == json.loads(request)["model"]
    assert [prompt["prompt"] for prompt in record["user_prompts"]] == prompt_of(request)
    edits = record["trace"].get("edits", [])
    if recording.wire == "chat" and recording.streams:
        assert entry["body_sha256"] == hashlib.sha256(asking_for_usage(request)).hexdigest()
        assert "content-encoding" not in sent
        assert any(edit.startswith("content-encoding") for edit in edits)
        agrees(record, recording)
    else:
        assert entry["body_sha256"] == hashlib.sha256(packed).hexdigest()
        assert sent["content-encoding"] == coding
        assert not edits
        # The fake provider reads no compressed requests: its refusal is relayed.
        assert played.through.status == played.direct.status == 400


@pytest.mark.parametrize("recording", params(PLAIN_GETS))
@pytest.mark.parametrize("control", ["", "tear=100", "framing=chunked chunk=50", "encoding=br", "framing=close"])
def test_a_recorded_models_list_passes_through(
    recording: Recording, control: str, person: Person, fake: FakeProvider
) -> None:
    body = base64.b64encode(recording.body).decode()
    for mark in ("models", "models-direct"):
        fake.replay("/v1/models", method="GET", mark=mark, times=1, body_base64=body, control=control)
    headers = {"Accept-Encoding": "br", "anthropic-version": "2023-06-01"}
    direct = ask(fake.url, "GET", "/v1/models", {"X-Api-Key": "k", "X-Fake-Mark": "models-direct", **headers})
    path = f"{DATA_PLANE}/{recording.provider}/v1/models"
    through = ask(person.server.port, "GET", path, {**person.bearer, "X-Fake-Mark": "models", **headers})
    assert through.body == direct.body
    if "encoding" not in control:
        assert through.body == recording.body
    assert (through.status, through.complete) == (200, True)
    assert through.header("x-ostiary-interception-id") is None
