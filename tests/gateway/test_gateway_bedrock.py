"""Bedrock providers: what of their settings is missing, and what they send, against a fake AWS that checks signatures.

A request goes here the way that the gateway sends it: prepared, authorized, sent, the answer transformed.
"""

import asyncio
import json
from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import unquote

import pytest

from ostiary.core.providers import BedrockSettings, ProviderSpec
from ostiary.core.secret import Secret
from ostiary.fake.aws_identity import ACCESS_KEY, EXTERNAL_ID, ROLE, SECRET_KEY
from ostiary.gateway.providers import RuntimeProvider, build_provider
from ostiary.gateway.providers.adapter import AdapterError, Prepared, TransformError
from ostiary.gateway.providers.aws import Identities
from ostiary.gateway.providers.bedrock import build_bedrock
from ostiary.http1.head import ResponseHead, parse_response_head
from ostiary.wire.formats import read_request
from ostiary.wire.sse import EventSplitter, parse
from tests.support.fake_provider import FakeProvider, fake_provider
from tests.support.raw_http import RawConnection

MODEL, SMALL = "us.anthropic.claude-sonnet-4-5-20250929-v1:0", "us.anthropic.claude-haiku-4-5-20251001-v1:0"
PROFILE = "arn:aws:bedrock:us-east-1:123456789012:inference-profile/us.anthropic.claude-opus-4-6-v1:0"
STATIC: dict[str, Any] = {"access_key": Secret(ACCESS_KEY), "access_key_secret": Secret(SECRET_KEY)}
INVOKE: dict[str, Any] = {"region": "eu-west-3", "model": MODEL, "small_fast_model": SMALL, **STATIC}
MANTLE: dict[str, Any] = {"region": "eu-west-3", "protocol": "mantle", **STATIC}
TOOLS = [{"name": "look", "input_schema": {"type": "object", "properties": {"at": {"type": "string"}}}}]


def spec(base_url: str = "", kind: str = "bedrock", settings: dict[str, Any] | None = None) -> ProviderSpec:
    return ProviderSpec("1", "aws", kind, True, base_url, (), BedrockSettings(**(settings or {})))


def served(base_url: str = "", kind: str = "bedrock", **settings: Any) -> RuntimeProvider:
    provider = build_bedrock(spec(base_url, kind, settings), allow_byok=False, identities=Identities())
    assert provider.adapter is not None
    return provider


# --- what settings lack


@pytest.mark.parametrize(
    ("settings", "base_url", "said"),
    [
        ({}, "", "no bedrock credentials configured"),
        ({}, "https://bedrock-runtime.us-east-1.amazonaws.com", "no bedrock credentials configured"),
        ({"model": MODEL, "small_fast_model": SMALL}, "", "no bedrock credentials configured"),
        ({"region": "us-east-1"}, "", "model required: set `model`"),
        ({"region": "us-east-1", "model": MODEL}, "", "small fast model required: set `small_fast_model`"),
        ({"region": "us-east-1", "small_fast_model": SMALL}, "", "model required: set `model`"),
        ({"role_arn": ROLE, "model": MODEL, "small_fast_model": SMALL}, "", "region or base url required"),
        ({**INVOKE, "access_key_secret": Secret("")}, "", "access_key_secret is not set"),
        ({**INVOKE, "access_key": Secret("")}, "", "access_key is not set"),
        ({**INVOKE, "protocol": "converse"}, "", 'unknown bedrock protocol: "converse"'),
        ({**MANTLE, "region": ""}, "https://x.invalid", "region required"),
        (MANTLE, "", "base_url required"),
        (INVOKE, "ftp://x.invalid", "base_url must be an absolute"),
    ],
)
def test_a_row_that_cannot_be_served_says_which_setting_it_lacks(
    settings: dict[str, Any], base_url: str, said: str
) -> None:
    provider = build_provider(spec(base_url, "bedrock", settings), allow_byok=False)
    assert provider.status == "error"
    assert said in provider.error
    assert SECRET_KEY not in provider.error
    assert provider.family == "anthropic"


@pytest.mark.parametrize(
    ("settings", "base_url", "root"),
    [
        (INVOKE, "", "https://bedrock-runtime.eu-west-3.amazonaws.com"),
        ({**INVOKE, "region": "cn-north-1"}, "", "https://bedrock-runtime.cn-north-1.amazonaws.com.cn"),
        (
            {**INVOKE, "region": ""},
            "https://vpce-1.bedrock-runtime.us-east-1.vpce.amazonaws.com",
            "https://vpce-1.bedrock-runtime.us-east-1.vpce.amazonaws.com",
        ),
    ],
)
def test_the_address_is_the_regions_own_unless_one_is_set(settings: dict[str, Any], base_url: str, root: str) -> None:
    provider = build_provider(spec(base_url, "bedrock", settings), allow_byok=False)
    assert provider.status == "enabled"
    assert f"https://{provider.origin.authority}" == root


def test_an_anthropic_row_with_bedrock_settings_is_served_by_bedrock() -> None:
    provider = build_provider(spec("", "anthropic", INVOKE), allow_byok=False)
    assert provider.error == ""
    assert provider.adapter is not None
    assert provider.adapter.hint == "AKIA...FAKE"
    assert provider.family == "anthropic"
    kept = build_provider(spec("https://api.anthropic.com/", "anthropic", INVOKE), allow_byok=False)
    assert kept.origin == provider.origin, "nothing signed for AWS goes to Anthropic"
    plain = build_provider(spec("https://api.anthropic.com", "anthropic", {"model": MODEL}), allow_byok=True)
    assert plain.adapter is None, "model names alone do not make it one"


def test_until_credentials_were_used_the_hint_says_where_they_come_from() -> None:
    for settings, hint in ((STATIC, "AKIA...FAKE"), ({**STATIC, "role_arn": ROLE}, ROLE), ({}, "default chain")):
        provider = served(region="us-east-1", model=MODEL, small_fast_model=SMALL, **settings)
        assert provider.adapter is not None
        assert provider.adapter.hint == hint


# --- what is sent


def prepared(provider: RuntimeProvider, path: str, body: bytes, query: bytes = b"", **fields: str) -> Prepared:
    assert provider.adapter is not None
    route = provider.routes.match(path.encode())
    assert route is not None
    held = {name.replace("_", "-").encode(): value.encode() for name, value in fields.items()}
    facts = read_request(route.format, body) if route.format is not None else None
    return provider.adapter.prepare(route, query, held, body, facts)


def asked(model: str = "claude-sonnet-4-5", **more: Any) -> bytes:
    return json.dumps(
        {"model": model, "max_tokens": 4000, "messages": [{"role": "user", "content": "hi"}], **more}
    ).encode()


@pytest.mark.parametrize(
    ("requested", "stream", "model", "action"),
    [
        ("claude-sonnet-4-5", False, MODEL, "invoke"),
        ("claude-opus-4-1", True, MODEL, "invoke-with-response-stream"),
        ("claude-3-5-haiku-latest", True, SMALL, "invoke-with-response-stream"),
    ],
)
def test_the_path_names_the_mapped_model_in_one_segment(requested: str, stream: bool, model: str, action: str) -> None:
    found = prepared(served(**INVOKE), "/v1/messages", asked(requested, stream=stream), b"?beta=true")
    _, place, segment, last = found.target.decode().split("/")
    assert (place, unquote(segment), last) == ("model", model, action)
    assert found.model == model
    assert found.plain_answer
    assert found.edits[0] == f"model: {requested} became {model}"


def test_an_arn_is_one_segment_too_and_the_path_of_the_base_url_stays_before_it() -> None:
    provider = served("https://gate.invalid/aws/", **INVOKE | {"model": PROFILE})
    found = prepared(provider, "/v1/messages", asked())
    assert found.target.startswith(
        b"/aws/model/arn%3Aaws%3Abedrock%3Aus-east-1%3A123456789012%3Ainference-profile%2Fus."
    )
    assert found.target.count(b"/") == 4


def test_beta_flags_move_to_the_body_and_fields_of_aws_are_not_sent_on() -> None:
    found = prepared(
        served(**INVOKE),
        "/v1/messages",
        asked(),
        anthropic_beta="context-1m-2025-08-07, unknown-2025-01-01",
        x_amz_date="20200101T000000Z",
        x_amz_security_token="not-ours",
        amz_sdk_request="attempt=1",
        x_amzn_trace_id="x",
        content_type="application/json; charset=utf-8",
        accept="text/event-stream",
        user_agent="claude-cli",
    )
    assert json.loads(found.body)["anthropic_beta"] == ["context-1m-2025-08-07"]
    assert {b"x-amz-date", b"x-amz-security-token", b"amz-sdk-request", b"x-amzn-trace-id"} <= found.dropped
    assert {b"anthropic-beta", b"content-type", b"accept"} <= found.dropped
    assert b"user-agent" not in found.dropped
    assert b"Content-Type: application/json\r\n" in found.lines
    assert any("dropped unknown-2025-01-01" in edit for edit in found.edits)


@pytest.mark.parametrize("path", ["/v1/messages/count_tokens", "/v1/models", "/v1/models/claude"])
def test_what_invoke_model_has_not_is_refused_with_the_reason(path: str) -> None:
    with pytest.raises(AdapterError, match="InvokeModel") as caught:
        prepared(served(**INVOKE), path, b"{}")
    assert caught.value.status == 404


@pytest.mark.parametrize("base", ["", "/anthropic", "/anthropic/", "/anthropic/v1", "/openai/v1", "/openai"])
@pytest.mark.parametrize(
    ("path", "model", "below"),
    [
        ("/v1/chat/completions", "anthropic.claude-sonnet-5", "/anthropic/v1/chat/completions"),
        ("/v1/responses", "openai.gpt-5.2", "/openai/v1/responses"),
        ("/v1/chat/completions", "qwen.qwen3-coder", "/v1/chat/completions"),
        ("/v1/responses", "us.openai.gpt", "/v1/responses"),
    ],
)
def test_mantle_goes_below_the_prefix_of_the_model_whatever_the_base_url_ends_in(
    base: str, path: str, model: str, below: str
) -> None:
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "x"}], "input": "x"}).encode()
    found = prepared(served(f"https://mantle.invalid/x{base}", **MANTLE), path, body, b"?a=b")
    assert found.target == f"/x{below}?a=b".encode()
    assert found.body is body
    assert found.edits == ()
    assert found.model == model


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
@pytest.mark.parametrize("base", ["/anthropic", "/anthropic/", "/anthropic/v1"])
def test_mantles_messages_are_below_the_base_url(path: str, base: str) -> None:
    found = prepared(served(f"https://mantle.invalid{base}", **MANTLE), path, asked(), anthropic_beta="any-flag")
    assert found.target == f"/anthropic{path}".encode()
    assert b"anthropic-beta" not in found.dropped


@pytest.mark.parametrize(
    ("fields", "sent"),
    [
        ({"x_ostiary_token": "ost_t", "x_api_key": "bedrock-key"}, True),
        ({"x_coder_ai_governance_token": "ost_t", "x_api_key": "bedrock-key"}, True),
        ({"x_ostiary_token": "ost_t", "x_api_key": "bedrock-key", "authorization": "Bearer ost_t"}, True),
        ({"x_ostiary_token": "ost_t", "x_api_key": "bedrock-key", "authorization": "Bearer own"}, False),
        ({"x_ostiary_token": "ost_t", "x_api_key": "ost_t", "authorization": "Bearer own"}, False),
        ({"x_ostiary_token": "plain", "x_api_key": "plain"}, False),
        ({"x_api_key": "ost_t"}, False),
    ],
)
def test_an_own_key_in_x_api_key_becomes_a_bearer_token_and_an_ostiary_token_never(
    fields: dict[str, str], sent: bool
) -> None:
    found = prepared(served(**INVOKE), "/v1/messages", asked(), **fields)
    assert (b"Authorization: Bearer bedrock-key\r\n" in found.lines) is sent
    assert b"ost_t" not in found.lines
    assert "bedrock-key" not in repr(found)


# --- against the fake AWS


class Told(NamedTuple):
    """What a client gets: the status, the body as transformed, and what was said to be changed."""

    status: int
    body: bytes
    content_type: str
    hint: str
    edit: str


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeProvider]:
    with fake_provider() as provider:
        yield provider


@pytest.fixture(autouse=True)
def as_at_the_start(fake: FakeProvider) -> None:
    fake.client.delete("/fake/aws")
    fake.reset()


def invoke(fake: FakeProvider, **settings: Any) -> RuntimeProvider:
    return served(fake.url, **INVOKE | settings)


def mantle(fake: FakeProvider, **settings: Any) -> RuntimeProvider:
    return served(f"{fake.url}/anthropic", **MANTLE | settings)


def send(provider: RuntimeProvider, path: str, body: bytes, query: bytes = b"", **fields: str) -> Told:
    """As the gateway does, a byte at a time on the way back."""
    request = prepared(provider, path, body, query, content_type="application/json", **fields)
    adapter = provider.adapter
    route = provider.routes.match(path.encode())
    assert adapter is not None
    assert route is not None
    signature, hint = asyncio.run(adapter.authorize(b"POST", request))
    kept = {
        name.replace("_", "-"): value
        for name, value in fields.items()
        if name.replace("_", "-").encode() not in request.dropped
    }
    lines = (request.lines + signature).decode().strip().split("\r\n")
    headers = kept | dict(line.split(": ", 1) for line in lines)
    with RawConnection(provider.origin.port) as connection:
        connection.request("POST", request.target.decode(), headers, request.body)
        answer = connection.answer()
    head = _head(answer.status_line, answer.headers)
    change = adapter.transform(route, head)
    if change is None:
        return Told(answer.status, answer.body, head.fields[b"content-type"].decode(), hint, "")
    out = b"".join(change.feed(bytes((byte,))) for byte in answer.body) + change.finish()
    return Told(answer.status, out, change.content_type.decode(), hint, change.edit)


def _head(status_line: str, headers: list[tuple[str, str]]) -> ResponseHead:
    return parse_response_head("\r\n".join([status_line, *(f"{k}: {v}" for k, v in headers), "", ""]).encode())


def events(body: bytes) -> list[Any]:
    return [json.loads(parse(event).data or b"") for event in EventSplitter().feed(body)]


@pytest.mark.parametrize("model", [MODEL, PROFILE])
def test_a_blocking_answer_passes_as_it_is(fake: FakeProvider, model: str) -> None:
    told = send(invoke(fake, model=model), "/v1/messages", asked(), b"?beta=true")
    assert (told.status, told.edit, told.hint) == (200, "", "AKIA...FAKE")
    assert json.loads(told.body)["content"][0]["text"]
    assert unquote(fake.requests()["requests"][-1]["path"]) == f"/model/{model}/invoke"


def test_a_stream_becomes_anthropics_with_text_thinking_tools_and_usage(fake: FakeProvider) -> None:
    body = asked(stream=True, tools=TOOLS, thinking={"type": "adaptive"}, metadata={"user_id": "u"})
    told = send(invoke(fake), "/v1/messages", body)
    assert told.content_type.startswith("text/event-stream")
    found = events(told.body)
    blocks = [event["content_block"]["type"] for event in found if event["type"] == "content_block_start"]
    assert blocks[0] == "thinking"
    assert blocks[-1] == "tool_use"
    assert found[-2]["usage"]["output_tokens"] > 0
    assert found[-1]["type"] == "message_stop"
    assert told.body.count(b"event: ") == len(found)
    assert told.edit


@pytest.mark.parametrize("damage", ["prelude", "message", "truncated"])
def test_a_damaged_stream_is_given_up_to_the_damage(fake: FakeProvider, damage: str) -> None:
    with pytest.raises(TransformError, match="event stream is damaged"):
        send(invoke(fake), "/v1/messages", asked(stream=True), x_fake=f"damage={damage} after=2")


def test_an_exception_within_a_stream_is_an_error_event(fake: FakeProvider) -> None:
    control = "error-after=3 error-type=throttlingException message=slower"
    told = send(invoke(fake), "/v1/messages", asked(stream=True), x_fake=control)
    assert events(told.body)[-1] == {
        "type": "error",
        "error": {"type": "rate_limit_error", "message": "throttlingException: slower"},
    }


@pytest.mark.parametrize(
    ("control", "status", "kind"),
    [
        ("status=429", 429, "rate_limit_error"),
        ("status=503", 503, "overloaded_error"),
        ("status=403", 403, "permission_error"),
        ("status=500", 500, "api_error"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_keep_their_status_and_take_anthropics_shape(
    fake: FakeProvider, control: str, status: int, kind: str, stream: bool
) -> None:
    told = send(invoke(fake), "/v1/messages", asked(stream=stream), x_fake=control)
    assert told.status == status
    body = json.loads(told.body)
    assert (body["type"], body["error"]["type"]) == ("error", kind)
    assert told.content_type == "application/json"


@pytest.mark.parametrize(
    ("model", "status", "kind"),
    [("gpt-4.1", 400, "invalid_request_error"), ("anthropic.claude-unknown-v1:0", 404, "not_found_error")],
)
def test_a_model_that_aws_has_not_is_its_own_error(fake: FakeProvider, model: str, status: int, kind: str) -> None:
    told = send(invoke(fake, model=model), "/v1/messages", asked())
    assert (told.status, json.loads(told.body)["error"]["type"]) == (status, kind)


def test_a_wrong_secret_is_refused_by_aws(fake: FakeProvider) -> None:
    told = send(invoke(fake, access_key_secret=Secret("wrong")), "/v1/messages", asked())
    error = json.loads(told.body)["error"]
    assert (told.status, error["type"]) == (403, "authentication_error")
    assert "InvalidSignatureException" in error["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_role_signs_with_its_temporary_credentials(
    fake: FakeProvider, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", fake.url)
    provider = invoke(fake, role_arn=ROLE, external_id=EXTERNAL_ID)
    told = send(provider, "/v1/messages", asked(stream=stream))
    assert told.status == 200
    assert told.hint.startswith("ASIA")
    assert provider.adapter is not None
    assert provider.adapter.hint == told.hint


def test_credentials_that_were_taken_back_are_fetched_anew(fake: FakeProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", fake.url)
    monkeypatch.setattr("ostiary.gateway.providers.aws.DISTRUST_SECONDS", -1)
    provider = invoke(fake, role_arn=ROLE, external_id=EXTERNAL_ID)
    assert send(provider, "/v1/messages", asked()).status == 200
    (issued,) = fake.client.get("/fake/aws").json()["issued"]
    fake.client.post("/fake/aws/keys", json={"access_key": issued})
    assert send(provider, "/v1/messages", asked()).status == 403
    assert send(provider, "/v1/messages", asked()).status == 200


def mantle_body(model: str, **more: Any) -> bytes:
    asked_of = {"messages": [{"role": "user", "content": "hi"}], "input": "hi", "max_tokens": 100}
    return json.dumps({"model": model, **asked_of, **more}).encode()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "model"),
    [
        ("/v1/messages", "anthropic.claude-sonnet-5"),
        ("/v1/chat/completions", "anthropic.claude-sonnet-5"),
        ("/v1/chat/completions", "qwen.qwen3"),
        ("/v1/responses", "openai.gpt-5.2"),
    ],
)
def test_mantle_is_signed_and_otherwise_left_alone(fake: FakeProvider, path: str, model: str, stream: bool) -> None:
    body = mantle_body(model, stream=stream)
    told = send(mantle(fake), path, body, b"?beta=true&a=%20b", x_fake_mark="mantle", anthropic_version="2023-06-01")
    assert (told.status, told.edit) == (200, "")
    assert told.content_type.startswith("text/event-stream" if stream else "application/json")
    assert fake.entry("mantle")["body_bytes"] == len(body)


@pytest.mark.parametrize(
    ("path", "openai"), [("/v1/messages", False), ("/v1/chat/completions", True), ("/v1/responses", True)]
)
def test_a_refusal_of_mantles_front_takes_the_routes_shape(fake: FakeProvider, path: str, openai: bool) -> None:
    told = send(mantle(fake, access_key_secret=Secret("wrong")), path, mantle_body("anthropic.claude-sonnet-5"))
    body = json.loads(told.body)
    assert told.status == 403
    assert ("type" in body) is not openai
    assert body["error"]["type"] == "authentication_error"


def test_an_error_of_the_model_passes_as_it_is(fake: FakeProvider) -> None:
    told = send(mantle(fake), "/v1/messages", mantle_body("anthropic.claude-sonnet-5"), x_fake="status=529")
    assert (told.status, told.edit) == (529, "")
    assert json.loads(told.body)["error"]["type"] == "overloaded_error"


def test_a_coded_event_stream_that_nobody_asked_for_is_refused(fake: FakeProvider) -> None:
    provider = invoke(fake)
    assert provider.adapter is not None
    route = provider.routes.match(b"/v1/messages")
    assert route is not None
    head = _head(
        "HTTP/1.1 200 OK", [("content-type", "application/vnd.amazon.eventstream"), ("content-encoding", "gzip")]
    )
    change = provider.adapter.transform(route, head)
    assert change is not None
    with pytest.raises(TransformError, match="content coding"):
        change.feed(b"\x1f\x8b")
