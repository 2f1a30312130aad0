"""Claude on AWS Bedrock through a running server, by Anthropic's own SDK, against a fake AWS that checks signatures."""

import json
import os
import time
from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import unquote

import anthropic
import openai
import pytest

from ostiary.fake.aws_identity import ACCESS_KEY, SECRET_KEY
from tests.e2e.conftest import DATA_PLANE, Person
from tests.support.fake_provider import FakeProvider, fake_provider
from tests.support.raw_http import ask
from tests.support.server import Server, eventually, open_directory

MODEL, SMALL = "us.anthropic.claude-sonnet-4-5-20250929-v1:0", "us.anthropic.claude-haiku-4-5-20251001-v1:0"
MANTLE_MODEL = "anthropic.claude-sonnet-5"
ROLE = "arn:aws:iam::123456789012:role/of-the-e2e-tests"
STATIC = {"access_key": ACCESS_KEY, "access_key_secret": SECRET_KEY}
INVOKE = {"_type": "bedrock", "_version": 1, "region": "us-east-1", "model": MODEL, "small_fast_model": SMALL}
TOOL: Any = {
    "name": "Read",
    "description": "Reads a file.",
    "input_schema": {"type": "object", "properties": {"file_path": {"type": "string"}}, "required": ["file_path"]},
}
BOTH = pytest.mark.parametrize("provider", ["bedrock", "mantle"])


class Aws(NamedTuple):
    """A server with providers on a fake AWS of its own: `bedrock` and `mantle` with static keys, `role`, and `chain`."""

    server: Server
    fake: FakeProvider
    person: Person

    def sdk(self, provider: str) -> anthropic.Anthropic:
        url = f"{self.server.url}{DATA_PLANE}/{provider}"
        return anthropic.Anthropic(base_url=url, auth_token=self.person.token, api_key=None, max_retries=0, timeout=20)

    def create(self, provider: str, **request: Any) -> tuple[Any, dict[str, Any]]:
        """The message, or the events of a stream, and the record of it."""
        request = {"max_tokens": 4000, "model": model_of(provider), **request}
        request.setdefault("messages", [{"role": "user", "content": "hello"}])
        with self.sdk(provider) as client:
            raw = client.messages.with_raw_response.create(**request)
            parsed: Any = raw.parse()
            result = list(parsed) if request.get("stream") else parsed
        return result, self.server.interception(raw.headers["x-ostiary-interception-id"])

    def refused(self, provider: str, error: type[Exception], **request: Any) -> tuple[Any, dict[str, Any]]:
        with pytest.raises(error) as caught:
            self.create(provider, **request)
        response = caught.value.response  # type: ignore[attr-defined]
        return caught.value, self.server.interception(response.headers["x-ostiary-interception-id"])

    def add(self, name: str, settings: dict[str, Any], base_url: str = "", kind: str = "bedrock") -> dict[str, Any]:
        made = self.server.owner.post(
            "/api/v2/ai/providers",
            json={"type": kind, "name": name, "base_url": base_url, "settings": settings},
        )
        assert made.status_code == 201, made.text
        path = f"{DATA_PLANE}/{name}/"

        def served() -> bool:
            return "There is no provider" not in self.server.owner.get(path).text

        eventually(served, what=f"{name} is served")
        answer: dict[str, Any] = made.json()
        return answer


def model_of(provider: str) -> str:
    return MANTLE_MODEL if provider == "mantle" else "claude-sonnet-5-5"


@pytest.fixture(scope="module")
def aws() -> Iterator[Aws]:
    variables = {
        "AWS_ENDPOINT_URL_STS": "{url}",
        "AWS_ENDPOINT_URL_BEDROCK": "{url}",
        "AWS_EC2_METADATA_SERVICE_ENDPOINT": "{url}",
        "AWS_EC2_METADATA_DISABLED": "false",
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        # of the process, and never to reach a provider
        "ANTHROPIC_API_KEY": "sk-ant-of-the-process",
        "ANTHROPIC_BASE_URL": "http://127.0.0.1:9",
        "AWS_BEARER_TOKEN_BEDROCK": "bearer-of-the-process",
    }
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        os.environ.pop(name, None)
    with fake_provider() as fake, open_directory() as directory:
        there = {name: value.format(url=fake.url) for name, value in variables.items()}
        server = Server(directory, fake, "--workers", "1", **there).start()
        found = Aws(server, fake, Person(server, "ann", server.new_token("ann")))
        found.add("bedrock", INVOKE | STATIC, fake.url)
        found.add("as-anthropic", INVOKE | STATIC, fake.url, "anthropic")
        mantle = {"_type": "bedrock", "_version": 1, "region": "us-east-1", "protocol": "mantle", **STATIC}
        found.add("mantle", mantle, f"{fake.url}/anthropic")
        found.add("chain", INVOKE, fake.url)
        role = found.add("role", INVOKE | STATIC | {"role_arn": ROLE}, fake.url)
        external_id = role["settings"]["external_id"]
        assert external_id
        trust = {"arn": ROLE, "external_id": external_id, "seconds": 900}
        assert fake.client.post("/fake/aws/roles", json=trust).status_code == 200
        yield found
        assert server.stop() == 0, server.tail()
        assert SECRET_KEY not in server.log.read_text()


@BOTH
@pytest.mark.parametrize("stream", [False, True])
def test_a_call_is_answered_and_recorded(aws: Aws, provider: str, stream: bool) -> None:
    result, record = aws.create(provider, stream=stream, messages=[{"role": "user", "content": "what is it"}])
    if stream:
        assert [event.type for event in result][:1] == ["message_start"]
        assert result[-1].type == "message_stop"
        usage = result[-2].usage.output_tokens
    else:
        assert result.content[0].type == "text"
        usage = result.usage.output_tokens
    assert record["outcome"] == "completed"
    assert record["model"] == (MANTLE_MODEL if provider == "mantle" else MODEL)
    assert record["provider"] == "anthropic"
    assert record["provider_name"] == provider
    assert record["credential_kind"] == "centralized"
    assert record["credential_hint"] == "AKIA...FAKE"
    assert [prompt["prompt"] for prompt in record["user_prompts"]] == ["what is it"]
    assert [row["output_tokens"] for row in record["token_usages"]] == [usage]
    assert record["streaming"] is stream


@BOTH
@pytest.mark.parametrize("stream", [False, True])
def test_tools_and_thinking_come_through_and_are_recorded(aws: Aws, provider: str, stream: bool) -> None:
    thinking = {"type": "enabled", "budget_tokens": 2000} if provider == "bedrock" else {"type": "adaptive"}
    result, record = aws.create(provider, stream=stream, tools=[TOOL], thinking=thinking)
    if stream:
        blocks = [event.content_block.type for event in result if event.type == "content_block_start"]
        signature = [event for event in result if getattr(getattr(event, "delta", None), "signature", "")]
        assert signature
    else:
        blocks = [block.type for block in result.content]
        assert result.stop_reason == "tool_use"
    assert {"thinking", "tool_use"} <= set(blocks)
    assert [use["tool"] for use in record["tool_usages"]] == ["Read"]
    assert record["model_thoughts"][0]["source"] == "thinking"


def test_the_sdks_stream_helper_puts_the_message_together(aws: Aws) -> None:
    with (
        aws.sdk("bedrock") as client,
        client.messages.stream(
            model="claude-sonnet-5-5", max_tokens=4000, messages=[{"role": "user", "content": "hello"}], tools=[TOOL]
        ) as stream,
    ):
        message = stream.get_final_message()
    assert message.stop_reason == "tool_use"
    assert message.usage.output_tokens > 0


def test_what_was_changed_stands_in_the_trace(aws: Aws) -> None:
    _, record = aws.create(
        "bedrock",
        model="claude-haiku-4-5",
        stream=True,
        metadata={"user_id": "u"},
        thinking={"type": "adaptive"},
        extra_headers={"anthropic-beta": "context-1m-2025-08-07,unknown-2020-01-01", "x-fake-mark": "edits"},
    )
    edits = record["trace"]["edits"]
    assert edits[0] == f"model: claude-haiku-4-5 became {SMALL}"
    told = "\n".join(edits)
    for part in (
        "thinking: adaptive became enabled",
        "dropped unknown-2020-01-01",
        "metadata: removed",
        "event stream became",
    ):
        assert part in told
    entry = aws.fake.entry("edits")
    assert unquote(entry["path"]) == f"/model/{SMALL}/invoke-with-response-stream"
    names = {name.lower() for name, _ in entry["headers"]}
    assert "anthropic-beta" not in names
    assert "x-api-key" not in names
    assert aws.person.token not in json.dumps(entry)


def test_mantle_gets_the_body_as_the_client_sent_it(aws: Aws) -> None:
    body = (
        b'{ "model":"anthropic.claude-sonnet-5" ,"max_tokens":100,"metadata":{"user_id":"u"},'
        b'"messages":[{"role":"user","content":"x"}]}'
    )
    headers = aws.person.bearer | {
        "anthropic-version": "2023-06-01",
        "x-fake-mark": "bytes",
        "content-type": "application/json",
    }
    answer = ask(aws.server.port, "POST", f"{DATA_PLANE}/mantle/v1/messages?beta=true", headers, body)
    assert answer.status == 200, answer.body
    entry = aws.fake.entry("bytes")
    assert entry["body_bytes"] == len(body)
    record = aws.server.interception(answer.interception_id)
    assert not record["trace"].get("edits")


@pytest.mark.parametrize(
    ("model", "route"), [("anthropic.claude-sonnet-5", "chat"), ("qwen.qwen3", "chat"), ("openai.gpt-5.2", "responses")]
)
@pytest.mark.parametrize("stream", [False, True])
def test_mantle_serves_openais_formats_too(aws: Aws, model: str, route: str, stream: bool) -> None:
    url = f"{aws.server.url}{DATA_PLANE}/mantle/v1"
    with openai.OpenAI(base_url=url, api_key=aws.person.token, max_retries=0, timeout=20) as client:
        raw: Any
        if route == "chat":
            create: Any = client.chat.completions.with_raw_response.create
            raw = create(model=model, stream=stream, messages=[{"role": "user", "content": "hi"}])
        else:
            create = client.responses.with_raw_response.create
            raw = create(model=model, stream=stream, input="hi")
        parsed = raw.parse()
        assert list(parsed) if stream else parsed.id
    record = aws.server.interception(raw.headers["x-ostiary-interception-id"])
    assert (record["outcome"], record["model"], record["provider"]) == ("completed", model, "anthropic")


def test_mantles_models_are_listed_by_a_signed_call(aws: Aws) -> None:
    answer = ask(aws.server.port, "GET", f"{DATA_PLANE}/mantle/v1/models", aws.person.bearer)
    assert answer.status == 200, answer.body
    assert answer.json()["data"]


@pytest.mark.parametrize("stream", [False, True])
def test_an_anthropic_row_a_role_and_the_chain_serve_as_well(aws: Aws, stream: bool) -> None:
    for provider, hint in (("as-anthropic", "AKIA"), ("role", "ASIA"), ("chain", "ASIA")):
        _, record = aws.create(provider, stream=stream)
        assert record["outcome"] == "completed"
        assert record["credential_hint"].startswith(hint)


def test_short_lived_credentials_are_renewed_while_calls_go_on_and_none_fails(aws: Aws) -> None:
    arn = f"{ROLE}-short"
    made = aws.add("short-lived", INVOKE | STATIC | {"role_arn": arn}, aws.fake.url)
    trust = {"arn": arn, "external_id": made["settings"]["external_id"], "seconds": 8}
    assert aws.fake.client.post("/fake/aws/roles", json=trust).status_code == 200
    used: set[str] = set()

    def renewed_twice() -> bool:
        _, record = aws.create("short-lived")
        assert record["outcome"] == "completed"
        used.add(record["credential_hint"])
        return len(used) == 3

    eventually(renewed_twice, within=60, what="credentials renewed twice")


def test_a_reload_does_not_drop_the_roles_credentials(aws: Aws) -> None:
    _, before = aws.create("role")
    aws.add(f"other-{time.time_ns()}", INVOKE | STATIC, aws.fake.url)
    _, after = aws.create("role")
    assert after["revision"] > before["revision"]
    assert after["credential_hint"] == before["credential_hint"]


def test_an_application_inference_profile_is_recorded_as_the_model_behind_it(aws: Aws) -> None:
    arn = "arn:aws:bedrock:us-east-1:123456789012:application-inference-profile/e2e"
    told = aws.fake.client.post("/fake/aws/profiles", json={"arn": arn, "model": "anthropic.claude-opus-4-7"})
    assert told.status_code == 200
    aws.add("profile", INVOKE | STATIC | {"model": arn}, aws.fake.url)

    def recorded() -> bool:
        _, record = aws.create("profile", thinking={"type": "enabled", "budget_tokens": 2000})
        assert record["outcome"] == "completed"
        return bool(record["model"] == "anthropic.claude-opus-4-7")

    eventually(recorded, what="the profile's model")


@pytest.mark.parametrize(
    ("control", "error", "kind"),
    [
        ("status=429", anthropic.RateLimitError, "rate_limited"),
        ("status=503", anthropic.InternalServerError, "overloaded"),
        ("status=400", anthropic.BadRequestError, "bad_request"),
        ("status=403", anthropic.PermissionDeniedError, "unauthorized"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_of_aws_are_the_sdks_usual_exceptions(
    aws: Aws, control: str, error: type[Exception], kind: str, stream: bool
) -> None:
    raised, record = aws.refused("bedrock", error, stream=stream, extra_headers={"x-fake": control})
    assert "Exception: " in str(raised)
    assert (record["outcome"], record["error_type"]) == ("upstream_error", kind)
    assert "Exception: " in record["error_message"]


@pytest.mark.parametrize("damage", ["prelude", "message", "truncated"])
def test_a_damaged_stream_ends_with_an_error_and_a_record(aws: Aws, damage: str) -> None:
    body = json.dumps(
        {"model": "m", "max_tokens": 10, "stream": True, "messages": [{"role": "user", "content": "x"}]}
    ).encode()
    headers = aws.person.bearer | {"x-fake": f"damage={damage} after=3"}
    answer = ask(aws.server.port, "POST", f"{DATA_PLANE}/bedrock/v1/messages", headers, body)
    assert answer.status == 200
    assert not answer.complete
    assert answer.body.startswith(b"event: message_start\n")
    record = aws.server.interception(answer.interception_id)
    assert record["outcome"] == "upstream_error"
    assert "event stream is damaged" in record["error_message"]


def test_an_exception_within_a_stream_is_raised_by_the_sdk(aws: Aws) -> None:
    control = "error-after=3 error-type=throttlingException message=slower"
    with pytest.raises(anthropic.APIStatusError, match="slower"):
        aws.create("bedrock", stream=True, extra_headers={"x-fake": control, "x-fake-mark": "thrown"})

    def recorded() -> list[dict[str, Any]]:
        return [record for record in aws.server.interceptions() if "slower" in (record["error_message"] or "")]

    (record,) = eventually(recorded, what="the record of the stream")
    assert (record["outcome"], record["error_type"]) == ("upstream_error", "rate_limited")


@pytest.mark.parametrize("path", ["/v1/messages/count_tokens", "/v1/models"])
def test_what_invoke_model_has_not_says_so(aws: Aws, path: str) -> None:
    method = "GET" if path.endswith("models") else "POST"
    answer = ask(aws.server.port, method, f"{DATA_PLANE}/bedrock{path}", aws.person.bearer, b"{}")
    assert answer.status == 404
    error = answer.json()["error"]
    assert error["type"] == "not_found_error"
    assert "InvokeModel" in error["message"]


def test_a_person_s_own_bedrock_key_goes_as_a_bearer_token_unsigned(aws: Aws) -> None:
    for provider, headers in (
        ("bedrock", {"Authorization": "Bearer bedrock-api-key-of-ann"}),
        ("bedrock", {"X-Api-Key": "bedrock-api-key-of-ann"}),
        ("mantle", {"X-Api-Key": "bedrock-api-key-of-ann", "anthropic-version": "2023-06-01"}),
    ):
        body = {"model": model_of(provider), "max_tokens": 10, "messages": [{"role": "user", "content": "x"}]}
        sent = {"X-Ostiary-Token": aws.person.token, "x-fake-mark": f"own-{time.time_ns()}", **headers}
        answer = ask(aws.server.port, "POST", f"{DATA_PLANE}/{provider}/v1/messages", sent, json.dumps(body).encode())
        assert answer.status == 200, answer.body
        record = aws.server.interception(answer.interception_id)
        assert record["credential_kind"] == "byok"
        entry = aws.fake.entry(sent["x-fake-mark"])
        names = [name.lower() for name, _ in entry["headers"]]
        assert "x-amz-date" not in names
        assert "x-ostiary-token" not in names


def test_settings_that_do_not_suffice_answer_503_with_the_setting(aws: Aws) -> None:
    name = f"modelless-{time.time_ns()}"
    aws.add(name, {"_type": "bedrock", "_version": 1, "region": "us-east-1"}, aws.fake.url)
    with pytest.raises(anthropic.InternalServerError) as caught:
        aws.create(name)
    assert caught.value.status_code == 503
    assert "model required" in str(caught.value)


def test_a_role_that_cannot_be_assumed_is_told_and_recorded(aws: Aws) -> None:
    name = f"roleless-{time.time_ns()}"
    aws.add(name, INVOKE | STATIC | {"role_arn": f"{ROLE}-of-nobody"}, aws.fake.url)
    raised, record = aws.refused(name, anthropic.InternalServerError)
    assert raised.status_code == 502
    assert "AccessDenied" in str(raised)
    assert record["outcome"] == "rejected"
    assert SECRET_KEY not in json.dumps(record)
