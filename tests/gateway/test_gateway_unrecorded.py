"""What is said of requests beside their bodies: by the path, by a form, and of those that are only passed on."""

import gzip
from typing import Any

import pytest
from gateway_sockets import A1, FORM, FORM_TYPE, Kind
from gateway_stage import ASK, WHOLE, Records, Step, World, play, says

from ostiary.core.messages import Snapshot
from ostiary.core.providers import OpenAISettings, ProviderKey, ProviderSpec
from ostiary.core.records import InterceptionStart
from ostiary.core.secret import Secret
from ostiary.gateway.telemetry import Telemetry
from ostiary.gateway.telemetry_spans import Ended, attempt_spans, measurements, server_span

MODELS: Kind = ("GET", "/openai/v1/models", "", b"")
LIST: list[Step] = [lambda world: world.request(0, MODELS), ("connect", 0, 1)]


def starts(world: World) -> list[InterceptionStart]:
    return [record for record in world.records.since() if isinstance(record, InterceptionStart)]


# --- spans of what is passed on


class Kept:
    """A sink that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[Ended] = []

    def add(self, ended: Ended) -> None:
        self.told.append(ended)

    def flush(self) -> str:
        return ""

    def abort(self) -> None: ...

    def close(self) -> None: ...


def told(records: Records, script: list[Step], **overrides: Any) -> list[Ended]:
    kept = Kept()

    def listens(world: World) -> None:
        world.worker.telemetry = Telemetry(kept, world.worker.metrics, content=True)

    world = play(records, [listens, *script], **overrides)
    assert world.worker.telemetry is not None
    world.worker.telemetry.close(30)
    return kept.told


def test_what_is_passed_on_has_spans_and_no_measurements(records: Records) -> None:
    (ended,) = told(records, [*LIST, says(429), WHOLE, ("connect", 0, 1), says(200), WHOLE])
    request = server_span(ended, user=False)
    assert request.name == "GET /{provider}/v1/models"
    assert request.attributes["ostiary.request.id"] == ended.start.id
    assert request.attributes["http.response.status_code"] == 200
    assert not any(name.startswith("gen_ai.") for name in request.attributes)
    first, second = attempt_spans(ended, "v1.41", content=True)
    assert [(span.name, span.failed) for span in (first, second)] == [
        ("GET /v1/models", True),
        ("GET /v1/models", False),
    ]
    assert first.attributes["http.response.status_code"] == 429
    assert second.attributes["http.request.method"] == "GET"
    assert second.attributes["server.address"] == "a.test"
    assert not any(name.startswith("gen_ai.") for name in second.attributes)
    assert request.start_ns <= first.start_ns <= second.start_ns <= second.end_ns <= request.end_ns
    for conventions in ("v1.41", "latest"):
        assert measurements(ended, conventions, str) == []  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("script", "outcome"),
    [
        ([("leave", 0, 1)], "client_closed"),
        ([says(200), ("bring", 0, 2), ("cut", 0, 0)], "upstream_error"),
        ([("cut", 0, 0)], "upstream_error"),
    ],
)
def test_spans_say_how_it_ended(records: Records, script: list[Step], outcome: str) -> None:
    (ended,) = told(records, [*LIST, *script])
    assert server_span(ended, user=False).attributes["ostiary.outcome"] == outcome


def test_a_recorded_call_is_told_once(records: Records) -> None:
    (ended,) = told(records, [*ASK, says(200), WHOLE])
    assert ended.start.route_kind == "bridged"
    assert "ostiary.interception.id" in server_span(ended, user=False).attributes


# --- the breaker of what is passed on

LIMITED = b"HTTP/1.1 429 No\r\nretry-after-ms: 200\r\nContent-Length: 8\r\n\r\nattempt-"


def test_a_limit_of_all_keys_counts_for_the_breaker_of_what_is_passed_on(records: Records) -> None:
    limited: Step = lambda world: world.tell(LIMITED, b"attempt-")  # noqa: E731
    both: list[Step] = [*LIST, limited, WHOLE, ("connect", 0, 1), limited, WHOLE]
    world = play(records, [*both, ("time", 0, 0), *both])
    assert list(world.worker.health.breakers.states(0.0).values()) == ["open"]
    assert len(world.sent) == 4


@pytest.mark.parametrize("failure", [[says(500), WHOLE], [("cut", 0, 0)], [says(200), ("bring", 0, 2), ("cut", 0, 0)]])
def test_failures_of_the_upstream_count_for_the_breaker_of_what_is_passed_on(
    records: Records, failure: list[Step]
) -> None:
    world = play(records, [*LIST, *failure, *LIST, *failure])
    assert list(world.worker.health.breakers.states(0.0).values()) == ["open"]


def test_a_mistake_of_the_client_does_not(records: Records) -> None:
    world = play(records, [*LIST, says(400), WHOLE, *LIST, says(403), WHOLE])
    assert not world.worker.health.breakers.tracked


# --- what the body does not say


def azure(world: World) -> None:
    keys = (ProviderKey("1", Secret(A1)),)
    spec = ProviderSpec(
        "openai", "openai", "azure", enabled=True, base_url="http://a.test", keys=keys, settings=OpenAISettings()
    )
    world.worker.take_snapshot(Snapshot(2, (spec,)))


WORDS = b'{"messages":[{"role":"user","content":"hello"}]}'


@pytest.mark.parametrize(
    ("path", "body", "head", "model"),
    [
        ("/openai/openai/deployments/mine/chat/completions", WORDS, "", "mine"),
        ("/openai/openai/deployments/mine/embeddings", b'{"input":"x"}', "", "mine"),
        ("/openai/openai/deployments/mine/chat/completions", b'{"model":"said",' + WORDS[1:], "", "said"),
        (
            "/openai/openai/deployments/ears/audio/transcriptions",
            FORM.replace(b'name="model"', b'name="language"'),
            f"Content-Type: {FORM_TYPE}\r\n",
            "ears",
        ),
    ],
)
def test_a_deployment_is_the_model_where_the_body_names_none(
    records: Records, path: str, body: bytes, head: str, model: str
) -> None:
    world = play(records, [azure, lambda world: world.request(0, ("POST", path, head, body)), ("connect", 0, 1)])
    assert len(world.sent) == 1
    assert [start.model for start in starts(world)] == [model]


def test_without_a_deployment_a_model_is_asked_for(records: Records) -> None:
    world = play(records, [azure, lambda world: world.request(0, ("POST", "/openai/v1/chat/completions", "", WORDS))])
    (client,) = {*world.clients_of.values()}
    assert client.out.startswith(b"HTTP/1.1 400")
    assert b'\\"model\\"' in client.out


STREAMED = FORM.replace(
    b'--xx\r\nContent-Disposition: form-data; name="file"',
    b'--xx\r\nContent-Disposition: form-data; name="stream"\r\n\r\ntrue\r\n'
    b'--xx\r\nContent-Disposition: form-data; name="file"',
)


@pytest.mark.parametrize(("form", "streaming"), [(FORM, False), (STREAMED, True)])
@pytest.mark.parametrize("piece", [1_000_000, 50, 7])
def test_a_form_that_asks_for_a_stream_is_recorded_as_streaming(
    records: Records, form: bytes, streaming: bool, piece: int
) -> None:
    def uploads(world: World) -> None:
        client = world.clients[0]
        client.request(("POST", "/openai/v1/audio/transcriptions", f"Content-Type: {FORM_TYPE}\r\n", form))
        while client.transport.bring(client.pending[:piece]):
            client.pending = client.pending[piece:]

    world = play(records, [uploads, ("connect", 0, 1), ("client", 0, 0), says(200), WHOLE])
    assert [(start.model, start.streaming) for start in starts(world)] == [("whisper", streaming)]


# --- what a small body may become


def test_a_compressed_body_that_is_sent_plain_takes_the_memory_of_what_is_kept(records: Records) -> None:
    large = b'{"model":"m","stream":true,"messages":[{"role":"user","content":"' + b"x" * 1_000_000 + b'"}]}'
    kind: Kind = ("POST", "/openai/v1/chat/completions", "Content-Encoding: gzip\r\n", gzip.compress(large))
    seen: list[int] = []
    ask: Step = lambda world: world.request(0, kind)  # noqa: E731
    looks: Step = lambda world: seen.append(world.worker._body_memory)  # noqa: E731
    play(records, [ask, ("connect", 0, 1), looks, says(200), WHOLE, looks], body_memory_max=1_500_000)
    assert seen[0] > len(large)
    assert seen[1] == 0
    world = play(records, [ask], body_memory_max=500_000)
    (client,) = {*world.clients_of.values()}
    assert client.out.startswith(b"HTTP/1.1 503")
    assert not world.sent


@pytest.mark.parametrize("size", [256, 257, 1_000_000])
def test_no_more_of_a_models_name_is_kept_than_an_index_takes(records: Records, size: int) -> None:
    body = b'{"model":"' + b"x" * size + b'","messages":[]}'
    world = play(records, [lambda world: world.request(0, ("POST", "/openai/v1/chat/completions", "", body))])
    assert [start.model for start in starts(world)] == ["x" * 256]
