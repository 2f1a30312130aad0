"""Embeddings, images, audio, files and the rest of OpenAI's API, with its own SDK; Azure's and Copilot's paths."""

import asyncio
import base64
import hashlib
import io
import json
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import httpx
import openai
import pytest

from ostiary.fake import FakeServer, serve
from ostiary.fake.forms import Form
from ostiary.fake.ledger import Ledger

T = TypeVar("T")
MIB = 1024 * 1024


def with_openai(use: Callable[[openai.AsyncOpenAI], Awaitable[T]], control: str = "") -> T:
    async def run() -> T:
        headers = {"x-fake": control} if control else {}
        async with (
            await serve() as fake,
            openai.AsyncOpenAI(
                base_url=f"{fake.url}/v1", api_key="sk-good", max_retries=0, timeout=20, default_headers=headers
            ) as client,
        ):
            return await use(client)

    return asyncio.run(run())


def with_http(
    use: Callable[[FakeServer, httpx.AsyncClient], Awaitable[T]], ledger: Ledger | None = None, **headers: str
) -> T:
    async def run() -> T:
        fields = {"authorization": "Bearer sk-good"} | headers
        async with (
            await serve(ledger=ledger) as fake,
            httpx.AsyncClient(base_url=fake.url, headers=fields, timeout=20) as client,
        ):
            return await use(fake, client)

    return asyncio.run(run())


async def every(events: Any) -> list[Any]:
    return [event async for event in events]


def test_legacy_completions_blocking() -> None:
    answer = with_openai(
        lambda client: client.completions.create(model="gpt-3.5-turbo-instruct", prompt="say this", n=2)
    )
    assert [choice.text for choice in answer.choices] == ["say this", "say this"]
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


@pytest.mark.parametrize("include_usage", [False, True])
def test_legacy_completions_streaming(include_usage: bool) -> None:
    async def use(client: openai.AsyncOpenAI) -> list[Any]:
        options: Any = {"include_usage": True} if include_usage else openai.omit
        return await every(
            await client.completions.create(model="m", prompt="a b c d e f g h", stream=True, stream_options=options)
        )

    chunks = with_openai(use)
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == "a b c d e f g h"
    assert (chunks[-1].usage is not None) == include_usage


def test_images_of_any_size() -> None:
    answer = with_openai(
        lambda client: client.images.generate(model="gpt-image-1", prompt="a door", n=2), f"size={3 * MIB}"
    )
    assert answer.data is not None
    assert [len(base64.b64decode(image.b64_json or "")) for image in answer.data] == [3 * MIB, 3 * MIB]
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens


@pytest.mark.parametrize("edited", [False, True])
def test_images_as_events(edited: bool) -> None:
    async def use(client: openai.AsyncOpenAI) -> list[Any]:
        more: Any = {"model": "gpt-image-1", "prompt": "a door", "stream": True, "partial_images": 2}
        if edited:
            return await every(await client.images.edit(image=("door.png", b"\x89PNG"), **more))
        return await every(await client.images.generate(**more))

    events = with_openai(use)
    name = "image_edit" if edited else "image_generation"
    assert [event.type for event in events] == [f"{name}.partial_image"] * 2 + [f"{name}.completed"]
    assert events[-1].usage.output_tokens > 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_variations_need_no_prompt() -> None:
    answer = with_openai(lambda client: client.images.create_variation(image=("door.png", b"\x89PNG")))
    assert answer.data


def test_speech() -> None:
    async def use(client: openai.AsyncOpenAI) -> tuple[str, bytes]:
        answer = await client.audio.speech.create(model="tts-1", input="hello", voice="alloy", response_format="wav")
        return answer.response.headers["content-type"], answer.content

    kind, sound = with_openai(use, f"size={2 * MIB}")
    assert (kind, len(sound)) == ("audio/wav", 2 * MIB)


def test_speech_as_events() -> None:
    async def use(fake: FakeServer, client: httpx.AsyncClient) -> str:
        asked = {"model": "gpt-4o-mini-tts", "input": "hello", "voice": "alloy", "stream_format": "sse"}
        return (await client.post("/v1/audio/speech", json=asked)).text

    events = [json.loads(line[6:]) for line in with_http(use).splitlines() if line.startswith("data: ")]
    assert [event["type"] for event in events] == ["speech.audio.delta"] * 2 + ["speech.audio.done"]
    assert events[-1]["usage"]["total_tokens"] == 82


@pytest.mark.parametrize(("model", "kind"), [("whisper-1", "duration"), ("gpt-4o-transcribe", "tokens")])
def test_transcriptions(model: str, kind: str) -> None:
    async def use(client: openai.AsyncOpenAI) -> Any:
        return await client.audio.transcriptions.create(model=model, file=("talk.wav", bytes(320_000)))

    answer = with_openai(use)
    assert answer.text == "These are the words of talk.wav."
    assert answer.usage.type == kind
    if kind == "duration":
        assert answer.usage.seconds == 10


def test_transcriptions_as_events() -> None:
    async def use(client: openai.AsyncOpenAI) -> list[Any]:
        return await every(
            await client.audio.transcriptions.create(model="gpt-4o-transcribe", file=("a.wav", b"RIFF"), stream=True)
        )

    events = with_openai(use, '{"text":"three words said"}')
    assert "".join(event.delta for event in events[:-1]) == events[-1].text == "three words said"
    assert events[-1].usage.input_token_details.audio_tokens == 10


@pytest.mark.parametrize("shape", ["verbose_json", "text", "srt", "vtt"])
def test_transcriptions_in_other_shapes(shape: Any) -> None:
    async def use(client: openai.AsyncOpenAI) -> Any:
        return await client.audio.transcriptions.create(
            model="whisper-1", file=("a.wav", b"RIFF"), response_format=shape
        )

    answer = with_openai(use)
    assert "These are the words of a.wav." in (answer.text if shape == "verbose_json" else answer)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_translations() -> None:
    answer = with_openai(lambda client: client.audio.translations.create(model="whisper-1", file=("a.wav", b"RIFF")))
    assert answer.text == "These are the words of a.wav."


def test_files_and_batches() -> None:
    async def use(client: openai.AsyncOpenAI) -> None:
        made = await client.files.create(file=("in.jsonl", b"x" * 200_000), purpose="batch")
        assert (made.bytes, made.filename, made.purpose) == (200_000, "in.jsonl", "batch")
        assert (await client.files.retrieve(made.id)).id == made.id
        assert (await client.files.list()).data
        assert len((await client.files.content(made.id)).content) > 50_000
        assert (await client.files.delete(made.id)).deleted
        batch = await client.batches.create(
            input_file_id=made.id, endpoint="/v1/embeddings", completion_window="24h", metadata={"a": "b"}
        )
        assert (batch.status, batch.input_file_id, batch.metadata) == ("validating", made.id, {"a": "b"})
        assert (await client.batches.retrieve(batch.id)).status == "completed"
        assert (await client.batches.cancel(batch.id)).status == "cancelling"
        assert (await client.batches.list()).data

    with_openai(use, "size=50001")


def test_an_upload_in_parts() -> None:
    async def use(client: openai.AsyncOpenAI) -> Any:
        return await client.uploads.upload_file_chunked(
            file=bytes(300_000),
            filename="in.jsonl",
            bytes=300_000,
            mime_type="text/jsonl",
            purpose="batch",
            part_size=100_000,
        )

    assert with_openai(use).status == "completed"


def test_moderations() -> None:
    answer = with_openai(lambda client: client.moderations.create(input=["a door", "much violence"]))
    assert [result.flagged for result in answer.results] == [False, True]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/images/generations", {}, "prompt"),
        ("/v1/audio/speech", {"model": "m", "voice": "alloy"}, "input"),
        ("/v1/audio/transcriptions", {"model": "m"}, "file"),
        ("/v1/files", {}, "file"),
        ("/v1/completions", {"model": "m"}, "prompt"),
        ("/v1/embeddings", {"model": "m"}, "input"),
    ],
)
def test_what_is_missing_is_named(path: str, body: Any, param: str) -> None:
    async def use(fake: FakeServer, client: httpx.AsyncClient) -> httpx.Response:
        return await client.post(path, json=body)

    answer = with_http(use)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


def test_a_model_asks_for_a_behaviour_here_too() -> None:
    async def use(fake: FakeServer, client: httpx.AsyncClient) -> list[int]:
        asked = {"model": "fake-429", "input": "x"}
        return [
            (await client.post("/v1/embeddings", json=asked)).status_code,
            (await client.post("/v1/audio/transcriptions", data=asked, files={"file": b"x"})).status_code,
        ]

    assert with_http(use) == [429, 429]


def test_an_upload_is_counted_and_hashed_without_being_held() -> None:
    piece = bytes(range(256)) * 4096
    head = b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
    head += b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
    tail = b"\r\n--b--\r\n"

    async def body() -> AsyncIterator[bytes]:
        yield head
        for _ in range(80):
            yield piece
        yield tail

    async def use(fake: FakeServer, client: httpx.AsyncClient) -> tuple[Any, Any, int]:
        kind = {"content-type": "multipart/form-data; boundary=b", "x-fake-mark": "big"}
        tracemalloc.start()
        made = await client.post("/v1/files", content=body(), headers=kind)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return made.json(), (await client.get("/fake/requests")).json(), peak

    made, told, peak = with_http(use, Ledger("full"))
    (entry,) = told["requests"]
    assert made["bytes"] == 80 * MIB
    assert entry["body_bytes"] == len(head) + 80 * MIB + len(tail)
    assert entry["body_sha256"] == hashlib.sha256(head + piece * 80 + tail).hexdigest()
    assert entry["mark"] == "big"
    assert peak < 16 * MIB


@pytest.mark.parametrize("size", [0, 1, 65_536, 81_900, 81_920, 200_000])
@pytest.mark.parametrize("first", [True, False])
def test_a_forms_file_has_its_size_wherever_it_stands(size: int, first: bool) -> None:
    file = b'--b\r\nContent-Disposition: form-data; name="file"; filename="f.wav"\r\n\r\n' + b"x" * size + b"\r\n"
    field = b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n'
    form = Form('multipart/form-data; boundary="b"', hashing=False)
    source = io.BytesIO((file + field if first else field + file) + b"--b--\r\n")
    while piece := source.read(7919):
        form.add(piece)
    fields = form.fields()
    assert fields is not None
    assert fields.values == {"model": "m"}
    assert [(one.name, one.size) for one in fields.files] == [("f.wav", size)]


def test_azures_client() -> None:
    async def run() -> tuple[Any, Any]:
        async with (
            await serve(ledger=Ledger("full")) as fake,
            openai.AsyncAzureOpenAI(
                azure_endpoint=fake.url, api_key="sk-good", api_version="2024-10-21", max_retries=0
            ) as client,
        ):
            fake.provider.default = "api-version=2024-10-21"
            answer = await client.embeddings.create(model="mine", input="x")
            await client.audio.transcriptions.create(model="ears", file=("a.wav", b"RIFF"))
            with pytest.raises(openai.NotFoundError, match="Resource not found"):
                await client.embeddings.create(model="mine", input="x", extra_query={"api-version": "1"})
            return answer, fake.provider.ledger.entries[0]

    answer, entry = asyncio.run(run())
    assert answer.model == "mine"
    assert (entry.path, entry.query) == ("/openai/deployments/mine/embeddings", "api-version=2024-10-21")


@pytest.mark.parametrize("path", ["/openai/v1/chat/completions", "/openai/deployments/mine/chat/completions"])
def test_azure_serves_a_model_of_any_name_below_either_prefix(path: str) -> None:
    async def run() -> httpx.Response:
        async with await serve() as fake, httpx.AsyncClient() as client:
            body = {"model": "mine", "messages": [{"role": "user", "content": "hi"}]}
            return await client.post(fake.url + path, json=body, headers={"Api-Key": "sk-good"})

    assert asyncio.run(run()).json()["choices"][0]["message"]["content"] == "hi"


def test_copilots_paths() -> None:
    async def use(fake: FakeServer, client: httpx.AsyncClient) -> dict[str, int]:
        chat = {"model": "gpt-4.1", "messages": [{"role": "user", "content": "hello"}]}
        answers = [
            *[
                await client.get(path)
                for path in ("/_ping", "/models", "/agents/swe/x", "/.well-known/oauth-x", "/auto")
            ],
            await client.post("/mcp/readonly", json={"jsonrpc": "2.0", "id": 1, "method": "tools/list"}),
            await client.post("/chat/completions", json=chat),
            await client.post("/responses", json={"model": "gpt-4.1", "input": "hello"}),
            await client.post("/v1/messages", json=chat | {"max_tokens": 9}),
        ]
        assert [answer.status_code for answer in answers] == [200] * 9
        return dict(fake.provider.ledger.by_route)

    assert with_http(use) == {
        "/_ping": 1,
        "/models": 1,
        "/agents/*": 1,
        "/.well-known/*": 1,
        "/auto": 1,
        "/mcp/*": 1,
        "/chat/completions": 1,
        "/responses": 1,
        "/messages": 1,
    }


def test_copilots_chat_streams_report_usage_unasked() -> None:
    async def use(fake: FakeServer, client: httpx.AsyncClient) -> str:
        chat = {"model": "gpt-4.1", "stream": True, "messages": [{"role": "user", "content": "hello"}]}
        return (await client.post("/chat/completions", json=chat)).text

    *_, last, done = with_http(use, **{"copilot-integration-id": "vscode-chat"}).split("\n\n")[:-1]
    assert done == "data: [DONE]"
    chunk = json.loads(last.removeprefix("data: "))
    assert chunk["choices"][0]["finish_reason"] == "stop"
    assert chunk["usage"]["prompt_tokens"] > 0
    assert "usage" not in with_http(use)
