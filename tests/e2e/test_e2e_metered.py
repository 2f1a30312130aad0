"""Metered routes by OpenAI's own SDK through a running server: the SDK notices nothing, and the record has the usage."""

import hashlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest

from tests.e2e.conftest import CHAT as OPENAI_SHAPE
from tests.e2e.conftest import DATA_PLANE, Person, added_provider, error_of
from tests.support.fake_provider import FakeProvider
from tests.support.raw_http import RawConnection
from tests.support.server import PROVIDER_KEY, Server

MIB = 1024 * 1024


@pytest.fixture
def client(person: Person) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=person.openai_url, api_key=person.token, max_retries=0, timeout=60) as found:
        yield found


@pytest.fixture
def sent(fake: FakeProvider) -> Callable[[], list[dict[str, Any]]]:
    """What has reached the provider since the test began."""
    before = fake.requests(limit=0)["count"]
    return lambda: fake.requests(after=before - 1)["requests"]


def recorded(person: Person, raw: Any) -> dict[str, Any]:
    record = person.server.interception(raw.headers["x-ostiary-interception-id"])
    assert record["initiator"]["username"] == person.username
    assert (record["outcome"], record["status_code"]) == ("completed", 200)
    assert record["user_prompts"] == record["tool_usages"] == record["model_thoughts"] == []
    return record


def usage_of(record: dict[str, Any]) -> dict[str, Any]:
    (usage,) = record["token_usages"]
    found: dict[str, Any] = usage
    return found


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_embeddings(client: openai.OpenAI, person: Person, encoding: Any) -> None:
    texts = [f"text {number}" for number in range(100)]
    raw = client.embeddings.with_raw_response.create(
        model="text-embedding-3-small", input=texts, encoding_format=encoding, dimensions=3072
    )
    answer = raw.parse()
    assert len(answer.data) == 100
    record = recorded(person, raw)
    assert (record["route"], record["model"]) == ("/v1/embeddings", "text-embedding-3-small")
    assert usage_of(record)["input_tokens"] == answer.usage.prompt_tokens


def test_moderations_need_no_model(client: openai.OpenAI, person: Person) -> None:
    raw = client.moderations.with_raw_response.create(input=["a door", "much violence"])
    assert [result.flagged for result in raw.parse().results] == [False, True]
    record = recorded(person, raw)
    assert (record["route"], record["token_usages"]) == ("/v1/moderations", [])


def test_a_model_is_asked_for_where_the_provider_wants_one(person: Person) -> None:
    answer = person.call("/openai/v1/embeddings", b'{"input":"x"}')
    assert answer.status == 400
    assert "model" in error_of(answer, OPENAI_SHAPE)["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_legacy_completions(client: openai.OpenAI, person: Person, stream: bool) -> None:
    more: Any = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    raw = client.completions.with_raw_response.create(model="gpt-3.5-turbo-instruct", prompt="say this again", **more)
    parsed: Any = raw.parse()
    chunks = list(parsed) if stream else [parsed]
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == "say this again"
    record = recorded(person, raw)
    usage = usage_of(record)
    said = chunks[-1].usage
    assert (usage["input_tokens"], usage["output_tokens"]) == (said.prompt_tokens, said.completion_tokens)
    assert "say this again" not in json.dumps(record)


def test_an_image_of_many_megabytes(client: openai.OpenAI, person: Person) -> None:
    raw = client.images.with_raw_response.generate(
        model="gpt-image-1", prompt="a door", extra_headers={"x-fake": f"size={8 * MIB}"}
    )
    answer = raw.parse()
    assert answer.data is not None
    assert len(answer.data[0].b64_json or "") > 8 * MIB
    usage = usage_of(recorded(person, raw))
    assert answer.usage is not None
    assert (usage["input_tokens"], usage["output_tokens"]) == (answer.usage.input_tokens, answer.usage.output_tokens)
    assert usage["metadata"]["total_tokens"] == answer.usage.total_tokens


def test_images_as_events(client: openai.OpenAI, person: Person) -> None:
    raw = client.images.with_raw_response.generate(
        model="gpt-image-1", prompt="a door", stream=True, partial_images=2, extra_headers={"x-fake": f"size={MIB}"}
    )
    events: list[Any] = list(raw.parse())
    assert [event.type for event in events][-1] == "image_generation.completed"
    record = recorded(person, raw)
    assert usage_of(record)["output_tokens"] == events[-1].usage.output_tokens


def test_an_edit_is_an_upload_with_a_model(client: openai.OpenAI, person: Person, sent: Any) -> None:
    picture = bytes(range(256)) * 8192
    raw = client.images.with_raw_response.edit(model="gpt-image-1", prompt="a red door", image=("door.png", picture))
    answer = raw.parse()
    record = recorded(person, raw)
    assert (record["route"], record["model"]) == ("/v1/images/edits", "gpt-image-1")
    assert answer.usage is not None
    assert usage_of(record)["input_tokens"] == answer.usage.input_tokens
    (request,) = sent()
    assert request["body_bytes"] > len(picture)


def test_speech(client: openai.OpenAI, person: Person) -> None:
    raw = client.audio.speech.with_raw_response.create(
        model="tts-1", input="hello", voice="alloy", extra_headers={"x-fake": f"size={4 * MIB}"}
    )
    assert len(raw.content) == 4 * MIB
    assert raw.headers["content-type"] == "audio/mpeg"
    record = recorded(person, raw)
    assert (record["route"], record["model"], record["token_usages"]) == ("/v1/audio/speech", "tts-1", [])


@pytest.mark.parametrize(
    ("model", "stream"), [("whisper-1", False), ("gpt-4o-transcribe", False), ("gpt-4o-transcribe", True)]
)
def test_a_transcription(client: openai.OpenAI, person: Person, model: str, stream: bool) -> None:
    more: Any = {"stream": True} if stream else {}
    raw = client.audio.transcriptions.with_raw_response.create(model=model, file=("talk.wav", bytes(320_000)), **more)
    parsed: Any = raw.parse()
    answer = list(parsed)[-1] if stream else parsed
    assert answer.text == "These are the words of talk.wav."
    record = recorded(person, raw)
    assert (record["model"], record["streaming"]) == (model, stream)
    usage = usage_of(record)
    if model == "whisper-1":
        assert usage["metadata"] == {"audio_ms": 10_000}
    else:
        assert (usage["input_tokens"], usage["output_tokens"]) == (
            answer.usage.input_tokens,
            answer.usage.output_tokens,
        )
        assert usage["metadata"]["input_audio"] == 100


def test_a_large_file_is_streamed_byte_for_byte_and_not_held(person: Person, server: Server, sent: Any) -> None:
    """From a raw client, so that what is sent is known to the byte and the upload can be watched half-way."""
    piece = bytes(range(256)) * 4096
    head = b'--b0\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
    head += b'--b0\r\nContent-Disposition: form-data; name="file"; filename="in.jsonl"\r\n\r\n'
    tail = b"\r\n--b0--\r\n"
    size = len(head) + 64 * len(piece) + len(tail)
    before = server.resident("worker")
    largest = 0
    with RawConnection(server.port, timeout=60) as connection:
        lines = [
            f"POST {DATA_PLANE}/openai/v1/files HTTP/1.1",
            f"Host: 127.0.0.1:{server.port}",
            f"Authorization: Bearer {person.token}",
            "Content-Type: multipart/form-data; boundary=b0",
            f"Content-Length: {size}",
        ]
        connection.socket.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + head)
        for number in range(64):
            connection.socket.sendall(piece)
            if number % 8 == 7:
                largest = max(largest, server.resident("worker") - before)
        connection.socket.sendall(tail)
        answer = connection.answer()
    assert answer.status == 200
    assert answer.json()["bytes"] == 64 * MIB
    assert largest < 16 * MIB, f"{largest / MIB:.1f} MiB more were held"
    (request,) = sent()
    assert request["body_bytes"] == size
    assert request["body_sha256"] == hashlib.sha256(head + piece * 64 + tail).hexdigest()
    assert person.server.interception(answer.interception_id)["route"] == "/v1/files"


def test_a_file_of_64_mib_by_the_sdk(client: openai.OpenAI, person: Person, sent: Any) -> None:
    raw = client.files.with_raw_response.create(file=("in.jsonl", bytes(64 * MIB)), purpose="batch")
    made = raw.parse()
    assert (made.bytes, made.filename) == (64 * MIB, "in.jsonl")
    record = recorded(person, raw)
    assert (record["model"], record["token_usages"]) == ("", [])
    (request,) = sent()
    headers = {name.lower(): value for name, value in request["headers"]}
    assert headers["authorization"] == "Bearer sha256:" + hashlib.sha256(PROVIDER_KEY.encode()).hexdigest()


def test_files_are_read_and_deleted_without_a_record(client: openai.OpenAI, person: Person, server: Server) -> None:
    for raw in (
        client.files.with_raw_response.list(),
        client.files.with_raw_response.retrieve("file-1"),
        client.files.with_raw_response.content("file-1", extra_headers={"x-fake": f"size={2 * MIB}"}),
        client.files.with_raw_response.delete("file-1"),
        client.batches.with_raw_response.retrieve("batch_1"),
        client.batches.with_raw_response.list(),
        client.batches.with_raw_response.cancel("batch_1"),
        client.models.with_raw_response.list(),
        client.models.with_raw_response.retrieve("gpt-4.1"),
    ):
        assert raw.status_code == 200
        assert "x-ostiary-interception-id" not in raw.headers


def test_an_upload_in_parts(client: openai.OpenAI) -> None:
    done = client.uploads.upload_file_chunked(
        file=bytes(5 * MIB),
        filename="in.jsonl",
        bytes=5 * MIB,
        mime_type="text/jsonl",
        purpose="batch",
        part_size=2 * MIB,
    )
    assert done.status == "completed"


def test_batches(client: openai.OpenAI, person: Person) -> None:
    raw = client.batches.with_raw_response.create(
        input_file_id="file-1", endpoint="/v1/embeddings", completion_window="24h"
    )
    assert raw.parse().status == "validating"
    record = recorded(person, raw)
    assert (record["route"], record["model"]) == ("/v1/batches", "")


def test_an_error_of_the_provider_is_the_sdks_exception_and_recorded(client: openai.OpenAI, person: Person) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(model="m", input="x", dimensions=99_999)
    record = person.server.interception(caught.value.response.headers["x-ostiary-interception-id"])
    assert (record["outcome"], record["status_code"], record["error_type"]) == ("upstream_error", 400, "bad_request")
    assert "dimensions" in record["error_message"]


# --- Azure


@pytest.fixture(scope="module")
def azure(server: Server, fake: FakeProvider) -> Iterator[str]:
    """The name of a provider of type azure."""
    settings = {"_type": "openai", "_version": 1, "api_version": "2024-10-21"}
    azure = {"type": "azure", "base_url": f"{fake.url}/openai/v1", "api_keys": [PROVIDER_KEY], "settings": settings}
    with added_provider(server, "azure", azure):
        yield "azure"


def test_openais_client_on_azure(azure: str, person: Person, sent: Any) -> None:
    url = f"{person.server.url}{DATA_PLANE}/{azure}/v1"
    with openai.OpenAI(base_url=url, api_key=person.token, max_retries=0) as client:
        raw = client.embeddings.with_raw_response.create(model="mine", input="x")
        client.models.list()
    assert usage_of(recorded(person, raw))["input_tokens"] == raw.parse().usage.prompt_tokens
    asked, listed = sent()
    assert (asked["path"], asked["query"]) == ("/openai/v1/embeddings", "api-version=2024-10-21")
    assert (listed["path"], listed["query"]) == ("/openai/v1/models", "api-version=2024-10-21")
    headers = dict(asked["headers"])
    assert headers["Api-Key"] == "sha256:" + hashlib.sha256(PROVIDER_KEY.encode()).hexdigest()
    assert "authorization" not in {name.lower() for name in headers}


def test_azures_client_on_azure(azure: str, person: Person, sent: Any) -> None:
    with openai.AzureOpenAI(
        azure_endpoint=f"{person.server.url}{DATA_PLANE}/{azure}",
        api_key=person.token,
        api_version="2025-04-01-preview",
        max_retries=0,
    ) as client:
        raw = client.chat.completions.with_raw_response.create(
            model="mine", messages=[{"role": "user", "content": "hello"}]
        )
        heard = client.audio.transcriptions.with_raw_response.create(model="ears", file=("a.wav", b"RIFF"))
        client.files.list()
    record = person.server.interception(raw.headers["x-ostiary-interception-id"])
    assert (record["route"], record["model"]) == ("/v1/chat/completions", "mine")
    assert recorded(person, heard)["model"] == "ears"
    assert {request["query"] for request in sent()} == {"api-version=2025-04-01-preview"}
    assert [request["path"] for request in sent()] == [
        "/openai/deployments/mine/chat/completions",
        "/openai/deployments/ears/audio/transcriptions",
        "/openai/files",
    ]
