"""The fake AWS as AWS's own SDK sees it: what it signs is taken, what is signed wrongly is not."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import botocore.auth
import httpx
import pytest
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from botocore.eventstream import ChecksumMismatch, EventStreamBuffer
from botocore.exceptions import ClientError
from botocore.session import Session

from ostiary.fake.aws_identity import ACCESS_KEY, EXTERNAL_ID, ROLE, SECRET_KEY
from tests.support.fake_provider import FakeProvider, fake_provider

MODEL = "us.anthropic.claude-sonnet-4-5-20250929-v1:0"
ARN = "arn:aws:bedrock:us-east-1:123456789012:inference-profile/us.anthropic.claude-opus-4-6-v1:0"
ASKED: dict[str, Any] = {
    "anthropic_version": "bedrock-2023-05-31",
    "max_tokens": 100,
    "messages": [{"role": "user", "content": "hello"}],
}


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeProvider]:
    with fake_provider() as provider:
        yield provider


@pytest.fixture(autouse=True)
def as_at_the_start(fake: FakeProvider) -> None:
    fake.client.delete("/fake/aws")
    fake.reset()


def client(
    fake: FakeProvider, service: str, access_key: str = ACCESS_KEY, secret: str = SECRET_KEY, token: str = ""
) -> Any:
    return Session().create_client(
        service,
        region_name="eu-west-3",
        endpoint_url=fake.url,
        aws_access_key_id=access_key,
        aws_secret_access_key=secret,
        aws_session_token=token or None,
        config=Config(retries={"total_max_attempts": 1}),
    )


def signed(
    fake: FakeProvider,
    path: str,
    body: bytes = json.dumps(ASKED).encode(),
    *,
    service: str = "bedrock",
    secret: str = SECRET_KEY,
    headers: dict[str, str] | None = None,
) -> httpx.Request:
    url = f"{fake.url}{path}"
    request = AWSRequest("POST", url, headers={"content-type": "application/json"} | (headers or {}), data=body)
    botocore.auth.SigV4Auth(Credentials(ACCESS_KEY, secret), service, "eu-west-3").add_auth(request)
    return httpx.Request("POST", url, headers=dict(request.headers.items()), content=body)


def refused(answer: httpx.Response, code: str, status: int = 403) -> str:
    assert answer.status_code == status, answer.text
    assert answer.headers["x-amzn-errortype"].split(":")[0] == code
    message: str = answer.json()["message"]
    return message


def invoke_path(model: str = MODEL, action: str = "invoke") -> str:
    return f"/model/{quote(model, safe='')}/{action}"


@pytest.mark.parametrize("model", [MODEL, ARN])
def test_the_sdk_gets_an_answer(fake: FakeProvider, model: str) -> None:
    answer = client(fake, "bedrock-runtime").invoke_model(modelId=model, body=json.dumps(ASKED))
    message = json.loads(answer["body"].read())
    assert message["content"][0]["type"] == "text"
    assert message["usage"]["output_tokens"] > 0
    assert "FAKE0TOKEN" not in message["id"]


def test_the_sdk_gets_a_stream_with_tools_and_thinking(fake: FakeProvider) -> None:
    tools = [{"name": "look", "input_schema": {"type": "object", "properties": {"at": {"type": "string"}}}}]
    body = ASKED | {"max_tokens": 4000, "tools": tools, "thinking": {"type": "enabled", "budget_tokens": 2000}}
    answer = client(fake, "bedrock-runtime").invoke_model_with_response_stream(modelId=MODEL, body=json.dumps(body))
    events = [json.loads(event["chunk"]["bytes"]) for event in answer["body"]]
    assert events[0]["type"] == "message_start"
    assert {event["content_block"]["type"] for event in events if event["type"] == "content_block_start"} >= {
        "thinking",
        "tool_use",
    }
    assert events[-1]["amazon-bedrock-invocationMetrics"]["outputTokenCount"] > 0
    assert "FAKE0TOKEN" not in json.dumps(events)


def test_what_was_changed_after_it_was_signed_is_refused(fake: FakeProvider) -> None:
    request = signed(fake, invoke_path())
    for changed in (
        httpx.Request("POST", request.url, headers=request.headers, content=request.content + b" "),
        httpx.Request("POST", f"{request.url}?a=b", headers=request.headers, content=request.content),
        httpx.Request(
            "POST", str(request.url).replace("v1%3A0", "v2%3A0"), headers=request.headers, content=request.content
        ),
    ):
        changed.headers["content-length"] = str(len(changed.content))
        assert "does not match" in refused(fake.client.send(changed), "InvalidSignatureException")
    assert fake.client.send(request).status_code == 200


@pytest.mark.parametrize(
    ("secret", "service", "said"),
    [
        ("another", "bedrock", "does not match"),
        (SECRET_KEY, "bedrock-mantle", "correct service: 'bedrock'"),
    ],
)
def test_a_wrong_signature_is_refused(fake: FakeProvider, secret: str, service: str, said: str) -> None:
    request = signed(fake, invoke_path(), secret=secret, service=service)
    assert said in refused(fake.client.send(request), "InvalidSignatureException")


def test_unsigned_and_half_signed_requests_are_refused(fake: FakeProvider) -> None:
    refused(fake.client.post(invoke_path(), json=ASKED), "MissingAuthenticationTokenException")
    broken = fake.client.post(invoke_path(), json=ASKED, headers={"Authorization": "AWS4-HMAC-SHA256 Credential=x"})
    refused(broken, "IncompleteSignatureException")
    request = signed(fake, invoke_path())
    request.headers["x-amz-meta-more"] = "unsigned"
    assert "x-amz-meta-more" in refused(fake.client.send(request), "InvalidSignatureException")


def test_an_old_signature_is_refused(fake: FakeProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    past = (datetime.now(UTC) - timedelta(minutes=6)).replace(tzinfo=None)
    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda: past)
    assert "expired" in refused(fake.client.send(signed(fake, invoke_path())), "InvalidSignatureException")


def test_a_key_that_is_unknown_or_taken_back_is_refused(fake: FakeProvider) -> None:
    fake.client.post("/fake/aws/keys", json={"access_key": "AKIAOTHER", "secret_key": "other"})
    other = client(fake, "bedrock-runtime", "AKIAOTHER", "other")
    other.invoke_model(modelId=MODEL, body=json.dumps(ASKED))
    fake.client.post("/fake/aws/keys", json={"access_key": "AKIAOTHER", "secret_key": ""})
    with pytest.raises(ClientError, match="UnrecognizedClientException"):
        other.invoke_model(modelId=MODEL, body=json.dumps(ASKED))
    assert fake.client.get("/fake/aws").json()["keys"] == [ACCESS_KEY]


def test_a_role_gives_credentials_that_are_taken_until_they_end(fake: FakeProvider) -> None:
    sts = client(fake, "sts")
    given = sts.assume_role(RoleArn=ROLE, RoleSessionName="session", ExternalId=EXTERNAL_ID)["Credentials"]
    temporary = (given["AccessKeyId"], given["SecretAccessKey"])
    client(fake, "bedrock-runtime", *temporary, given["SessionToken"]).invoke_model(
        modelId=MODEL, body=json.dumps(ASKED)
    )
    with pytest.raises(ClientError, match="UnrecognizedClientException"):
        client(fake, "bedrock-runtime", *temporary, "wrong").invoke_model(modelId=MODEL, body=json.dumps(ASKED))

    fake.client.post("/fake/aws/roles", json={"arn": f"{ROLE}-short", "external_id": "", "seconds": -1})
    given = sts.assume_role(RoleArn=f"{ROLE}-short", RoleSessionName="session")["Credentials"]
    late = client(fake, "bedrock-runtime", given["AccessKeyId"], given["SecretAccessKey"], given["SessionToken"])
    with pytest.raises(ClientError, match="ExpiredTokenException"):
        late.invoke_model(modelId=MODEL, body=json.dumps(ASKED))


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        ({"RoleArn": ROLE, "ExternalId": "another"}, "AccessDenied"),
        ({"RoleArn": ROLE}, "AccessDenied"),
        ({"RoleArn": f"{ROLE}-unknown", "ExternalId": EXTERNAL_ID}, "AccessDenied"),
    ],
)
def test_a_role_is_refused_to_whom_it_does_not_trust(fake: FakeProvider, asked: dict[str, str], code: str) -> None:
    with pytest.raises(ClientError, match=code):
        client(fake, "sts").assume_role(RoleSessionName="session", **asked)
    with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
        client(fake, "sts", secret="wrong").assume_role(RoleSessionName="session", **asked)


def test_the_chain_finds_the_instance(fake: FakeProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, "/dev/null")
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", fake.url)
    found = Session().get_credentials()
    assert found is not None
    frozen = found.get_frozen_credentials()
    assert frozen.access_key in fake.client.get("/fake/aws").json()["issued"]
    fake.client.put("/fake/aws/metadata", json={"enabled": False})
    assert Session().get_credentials() is None


@pytest.mark.parametrize(
    ("model", "control", "code"),
    [
        (MODEL, "status=429", "ThrottlingException"),
        (MODEL, "status=503 message=later", "ServiceUnavailableException"),
        (MODEL, "status=400 error-type=ServiceQuotaExceededException", "ServiceQuotaExceededException"),
        ("gpt-4.1", "", "ValidationException"),
        ("anthropic.claude-unknown-v1:0", "", "ResourceNotFoundException"),
        (MODEL, "no-such-name", "ValidationException"),
    ],
)
def test_errors_have_the_names_of_aws(fake: FakeProvider, model: str, control: str, code: str) -> None:
    answer = fake.client.send(signed(fake, invoke_path(model), headers={"x-fake": control}))
    assert answer.headers["x-amzn-errortype"].startswith(code)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": "x"}, "extraneous key [model]"),
        ({"metadata": {}}, "extraneous key [metadata]"),
        ({"anthropic_version": "2023-06-01"}, "anthropic_version"),
        ({"anthropic_beta": ["oauth-2025-04-20"]}, "invalid beta flag"),
        ({"max_tokens": None}, "max_tokens"),
    ],
)
def test_bodies_that_invoke_model_does_not_take_are_refused(
    fake: FakeProvider, change: dict[str, Any], said: str
) -> None:
    answer = fake.client.send(signed(fake, invoke_path(), json.dumps(ASKED | change).encode()))
    assert said in refused(answer, "ValidationException", 400)


def test_an_exception_in_the_middle_of_a_stream_is_raised_by_the_sdk(fake: FakeProvider) -> None:
    fake.behave("error-after=2 error-type=throttlingException")
    try:
        answer = client(fake, "bedrock-runtime").invoke_model_with_response_stream(
            modelId=MODEL, body=json.dumps(ASKED)
        )
        with pytest.raises(Exception, match="throttlingException"):
            list(answer["body"])
    finally:
        fake.behave("")


@pytest.mark.parametrize("damage", ["prelude", "message"])
def test_a_damaged_message_does_not_fit_its_checksum(fake: FakeProvider, damage: str) -> None:
    path = invoke_path(action="invoke-with-response-stream")
    answer = fake.client.send(signed(fake, path, headers={"x-fake": f"damage={damage} after=1"}))
    buffer = EventStreamBuffer()
    buffer.add_data(answer.content)
    with pytest.raises(ChecksumMismatch):
        list(buffer)


def test_a_truncated_message_ends_the_stream(fake: FakeProvider) -> None:
    path = invoke_path(action="invoke-with-response-stream")
    answer = fake.client.send(signed(fake, path, headers={"x-fake": "damage=truncated after=1"}))
    buffer = EventStreamBuffer()
    buffer.add_data(answer.content)
    assert len(list(buffer)) == 1


@pytest.mark.parametrize(
    ("path", "model", "status"),
    [
        ("/anthropic/v1/messages", "anthropic.claude-sonnet-5", 200),
        ("/anthropic/v1/chat/completions", "anthropic.claude-sonnet-5", 200),
        ("/openai/v1/responses", "openai.gpt-5.2", 200),
        ("/v1/chat/completions", "qwen.qwen3", 200),
        ("/v1/chat/completions", "openai.gpt-5.2", 400),
        ("/openai/v1/chat/completions", "qwen.qwen3", 400),
    ],
)
def test_mantle_serves_each_model_below_its_prefix(fake: FakeProvider, path: str, model: str, status: int) -> None:
    body = {"model": model, "max_tokens": 100, "messages": [{"role": "user", "content": "hi"}], "input": "hi"}
    request = signed(fake, path, json.dumps(body).encode(), service="bedrock-mantle")
    assert fake.client.send(request).status_code == status
    refused(fake.client.send(signed(fake, path, json.dumps(body).encode())), "InvalidSignatureException")


def test_a_bearer_token_is_as_good_and_can_be_scripted(fake: FakeProvider) -> None:
    headers = {"Authorization": "Bearer bedrock-api-key-1"}
    assert fake.client.post(invoke_path(), json=ASKED, headers=headers).status_code == 200
    fake.script_key("bedrock-api-key-1", "status=403")
    refused(fake.client.post(invoke_path(), json=ASKED, headers=headers), "AccessDeniedException")


def test_an_access_key_can_be_scripted(fake: FakeProvider) -> None:
    fake.script_key(ACCESS_KEY, "status=429", times=1)
    refused(fake.client.send(signed(fake, invoke_path())), "ThrottlingException", 429)
    assert fake.client.send(signed(fake, invoke_path())).status_code == 200


def test_the_ledger_knows_signed_requests_by_their_access_key_and_keeps_no_secret(fake: FakeProvider) -> None:
    fake.client.send(signed(fake, invoke_path(), headers={"x-fake-mark": "one", "x-amz-security-token": ""}))
    entry = fake.entry("one")
    assert entry["path"] == invoke_path()
    assert fake.requests()["by_route"]["/model/invoke"] == 1
    authorization = next(value for name, value in entry["headers"] if name.lower() == "authorization")
    assert "Signature=" not in authorization
    assert entry["key_sha256"]
