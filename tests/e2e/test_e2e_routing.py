"""Where a path leads: to a provider, to the control plane, or nowhere, and then why."""

import openai
import pytest

from tests.e2e.conftest import APIS, CHAT, DATA_PLANE, MESSAGES, RESPONSES, Api, Person, RawUpstream, error_of, refused
from tests.support.fake_provider import FakeProvider
from tests.support.raw_http import RawConnection, ask
from tests.support.server import Server, StartServer, eventually

# --- providers and routes


@pytest.mark.parametrize("api", APIS)
def test_an_unknown_provider_names_those_there_are(person: Person, fake: FakeProvider, api: Api) -> None:
    with refused(person.server, fake, "unknown_provider"):
        answer = person.call(api.path("nobody"), api.body())
    assert answer.status == 404
    assert error_of(answer, api)["message"] == ("There is no provider 'nobody'. Configured are: anthropic, openai.")


@pytest.mark.parametrize("path", ["/openai/v1/realtime", "/openai/v1", "/openai/", "/openai", "/openai/v1/messages"])
def test_an_unknown_route_names_those_there_are(person: Person, fake: FakeProvider, path: str) -> None:
    with refused(person.server, fake, "unknown_route"):
        answer = person.call(path, CHAT.body())
    assert answer.status == 404
    text = answer.body.decode()
    assert all(route in text for route in ("/v1/chat/completions", "/v1/responses", "/v1/models"))


@pytest.mark.parametrize("api", APIS)
def test_a_disabled_provider(guest: Person, fake: FakeProvider, api: Api) -> None:
    with refused(guest.server, fake, "provider_disabled"):
        answer = guest.call(api.path("off"), api.body())
    assert answer.status == 503
    assert error_of(answer, api)["message"] == "The provider 'off' is disabled. An admin can enable it."


def test_a_provider_that_cannot_be_built_says_why(start_server: StartServer, fake: FakeProvider) -> None:
    server = start_server(fake, "--workers", "1", OSTIARY_ALLOW_BYOK="false")
    keyless = {"type": "anthropic", "name": "keyless", "base_url": fake.url}
    assert server.owner.post("/api/v2/ai/providers", json=keyless).status_code == 201
    person = Person(server, "ann", server.new_token("ann"))

    def served() -> bool:
        return "There is no provider" not in person.call("/keyless/", b"").body.decode()

    eventually(served, what="the added provider is served")
    with refused(server, fake, "provider_error"):
        answer = person.call(MESSAGES.path("keyless"), MESSAGES.body())
    assert answer.status == 503
    assert "bring-your-own-key is off" in error_of(answer, MESSAGES)["message"]


def test_our_own_503_is_an_exception_of_the_sdk(guest: Person) -> None:
    url = f"{guest.server.url}{DATA_PLANE}/off/v1"
    with openai.OpenAI(base_url=url, api_key=guest.token, max_retries=0) as client:
        with pytest.raises(openai.InternalServerError, match="disabled") as caught:
            client.responses.create(model="x", input="x")
        assert (caught.value.status_code, caught.value.code) == (503, "service_unavailable")


def test_a_provider_without_a_key_is_recorded_as_rejected(guest: Person, fake: FakeProvider) -> None:
    reached = fake.requests(limit=0)["count"]
    answer = guest.call("/keyless/v1/chat/completions", CHAT.body("no key for this"))
    assert answer.status == 502
    assert "providers edit" in error_of(answer, CHAT)["message"]
    assert fake.requests(limit=0)["count"] == reached
    record = guest.server.interception(answer.interception_id)
    assert (record["outcome"], record["status_code"], record["error_type"]) == ("rejected", 502, "server_error")
    assert [prompt["prompt"] for prompt in record["user_prompts"]] == ["no key for this"]
    assert record["token_usages"] == []


def test_the_prefix_of_old_leads_to_the_same(person: Person, server: Server) -> None:
    answer = ask(server.port, "POST", f"/api/v2/aibridge{MESSAGES.path()}", person.bearer, MESSAGES.body())
    assert answer.status == 200
    assert server.interception(answer.interception_id)["route"] == "/v1/messages"


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_bridged_routes_take_posts_only(person: Person, fake: FakeProvider, method: str) -> None:
    with refused(person.server, fake, "bad_method"):
        answer = ask(person.server.port, method, DATA_PLANE + CHAT.path(), person.bearer, None)
    assert (answer.status, answer.header("allow")) == (405, "POST")


def test_a_websocket_is_refused_so_that_codex_falls_back(person: Person, fake: FakeProvider) -> None:
    upgrade = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version": "13",
    }
    for path in (RESPONSES.path(), "/openai/v1/models", "/nobody/x"):
        with refused(person.server, fake, "upgrade"), person.connect() as connection:
            connection.request("GET", DATA_PLANE + path, person.bearer | upgrade)
            answer = connection.answer(to="GET")
            assert answer.status == 501
            assert "use HTTP" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "rest",
    [
        "/v1/../../../users",
        "/v1/models/../../..",
        "/v1/models/..",
        "/v1/models/.",
        "/v1/./models",
        "/v1//models",
        "//v1/models",
        "/v1/models/%2e%2e/x",
        "/v1/models/%2E%2E",
        "/v1/models/.%2e/x",
        "/v1/models/a%2Fb",
        "/v1/models/a%5cb",
        "/v1/models/a\\b",
        "/v1/models/%252e%252e/x",
        "/v1/models/a%00b",
    ],
)
def test_a_path_that_climbs_is_not_passed_on(person: Person, fake: FakeProvider, rest: str) -> None:
    with refused(person.server, fake, "bad_path"):
        answer = ask(person.server.port, "GET", f"{DATA_PLANE}/openai{rest}", person.bearer)
    assert answer.status == 400
    assert "not passed on" in answer.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/../openai/v1/models", "/%6fpenai/v1/models", "/OpenAI/v1/models", "/open ai/v1"])
def test_a_providers_name_is_taken_literally(person: Person, fake: FakeProvider, path: str) -> None:
    reached = fake.requests(limit=0)["count"]
    answer = ask(person.server.port, "GET", DATA_PLANE + path, person.bearer)
    assert answer.status in (400, 404)
    assert fake.requests(limit=0)["count"] == reached


def test_path_and_query_reach_the_provider_joined_to_its_own(guest: Person, upstream: RawUpstream) -> None:
    cases = {
        ("POST", "/raw/v1/chat/completions?beta=true&x=%20"): "POST /base/v1/chat/completions?beta=true&x=%20 HTTP/1.1",
        ("POST", "/raw-claude/v1/messages?beta=true"): "POST /v1/messages?beta=true HTTP/1.1",
        ("GET", "/raw/v1/models/org%3Amodel-1"): "GET /base/v1/models/org%3Amodel-1 HTTP/1.1",
        ("DELETE", "/raw/v1/responses/resp_1"): "DELETE /base/v1/responses/resp_1 HTTP/1.1",
        ("POST", "/raw/v1/conversations/conv_1/items?"): "POST /base/v1/conversations/conv_1/items? HTTP/1.1",
        ("POST", "/raw-claude/api/event_logging/batch"): "POST /api/event_logging/batch HTTP/1.1",
    }
    for (method, path), line in cases.items():
        body = MESSAGES.body() if method == "POST" else None
        with guest.connect() as connection:
            connection.request(method, DATA_PLANE + path, guest.bearer, body)
            with upstream.request() as request:
                assert request.line == line
                assert request.header("host") == f"127.0.0.1:{upstream.port}"
                request.answer()
            assert connection.answer().status == 200


def test_providers_come_and_go_while_streams_run(server: Server, person: Person, fake: FakeProvider) -> None:
    provider = {"type": "openai", "name": "late", "base_url": f"{fake.url}/v1", "api_keys": ["sk-late-0123456789-late"]}
    assert person.call(CHAT.path("late"), CHAT.body()).status == 404
    assert server.owner.post("/api/v2/ai/providers", json=provider).status_code == 201
    path, body = CHAT.path("late"), CHAT.body()
    eventually(lambda: person.call(path, body).status == 200, what="the provider is served")
    with person.connect() as connection:
        slow = CHAT.body("a stream that goes on " * 4, stream=True, model="fake:hang=mid-body")
        connection.request("POST", DATA_PLANE + path, person.bearer, slow)
        assert connection.read_some().startswith(b"HTTP/1.1 200")
        assert server.owner.patch("/api/v2/ai/providers/late", json={"enabled": False}).status_code == 200
        eventually(lambda: {person.call(path, body).status for _ in range(4)} == {503}, what="it is disabled")
        connection.socket.settimeout(0.1)
        with pytest.raises(TimeoutError):
            while connection.read_some():
                pass  # what runs is not cut
    assert server.owner.delete("/api/v2/ai/providers/late").status_code == 204
    eventually(lambda: server.knows_provider("late") == {False}, what="it is gone")


# --- passthrough


def test_models_by_head_and_get(person: Person, fake: FakeProvider) -> None:
    path, counted = f"{DATA_PLANE}/openai/v1/models", person.server.metric("ostiary_passthrough_total", method="HEAD")
    with person.connect() as connection:  # one connection: a body after HEAD would break the next answer
        connection.request("HEAD", path, person.bearer | {"X-Fake-Mark": "models-head"})
        by_head = connection.answer(to="HEAD")
        connection.request("GET", path, person.bearer)
        by_get = connection.answer(to="GET")
    assert (by_head.status, by_get.status) == (200, 200)
    assert by_head.header("content-length") == by_get.header("content-length") == str(len(by_get.body))
    assert fake.entry("models-head")["method"] == "HEAD"
    assert person.server.metric("ostiary_passthrough_total", method="HEAD") == counted + 1


def test_passthrough_errors_come_as_they_are(person: Person) -> None:
    answer = ask(person.server.port, "GET", f"{DATA_PLANE}/openai/v1/models/none-such", person.bearer)
    assert answer.status == 404
    assert answer.json()["error"]["message"] == "Invalid URL (GET /v1/models/none-such)"


def test_tokens_are_counted_by_the_provider(person: Person, fake: FakeProvider) -> None:
    body = MESSAGES.body("count me")
    answer = person.call("/anthropic/v1/messages/count_tokens", body, {"X-Fake-Mark": "count"})
    assert answer.json() == {"input_tokens": len(body) // 4}
    assert answer.header("x-ostiary-interception-id") is None
    assert fake.entry("count")["body_bytes"] == len(body)


# --- the control plane behind the same door


def test_reserved_names_lead_to_the_control_plane(person: Person, server: Server) -> None:
    for name in ("interceptions", "sessions", "models", "clients"):
        answer = ask(server.port, "GET", f"{DATA_PLANE}/{name}", person.bearer)
        assert answer.status == 200, (name, answer.body)
    assert ask(server.port, "GET", f"{DATA_PLANE}/interceptions").status == 401
    assert "openapi" in ask(server.port, "GET", "/docs").body.decode().lower()
    assert ask(server.port, "GET", "/api/v2/users/me", person.bearer).json()["username"] == person.username


def test_a_providers_short_path_is_the_standalone_gateways_alone(person: Person, fake: FakeProvider) -> None:
    reached = fake.requests(limit=0)["count"]
    answer = ask(person.server.port, "POST", "/openai/v1/chat/completions", person.bearer, CHAT.body())
    assert answer.status == 404
    assert fake.requests(limit=0)["count"] == reached
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{person.server.port}/v1", api_key=person.token)
    with pytest.raises(openai.NotFoundError, match="Model calls go to /api/v2/ai-gateway/<provider>"):
        client.models.list()


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_probes_are_answered_without_a_token_and_a_body(server: Server, path: str) -> None:
    answer = ask(server.port, "GET", path)
    assert (answer.status, answer.body) == (200, b"")
    with RawConnection(server.port) as connection:
        connection.send(f"GET {path} HTTP/1.0\r\n\r\n".encode())
        assert connection.answer(to="GET").status == 200
        assert connection.at_end()


def test_what_a_client_says_of_proxies_is_not_believed(person: Person, server: Server) -> None:
    """Neither beside a guessed secret: the audit log has the address that the connection came from, and an id of ours."""
    lies = {"X-Forwarded-For": "203.0.113.7", "Forwarded": "for=203.0.113.7", "X-Ostiary-Front-Door": "guess"}
    lies["X-Request-Id"] = "chosen-by-the-client"
    body = b'{"name": "made-from-afar"}'
    headers = person.bearer | lies | {"Content-Type": "application/json"}
    answer = ask(server.port, "POST", "/api/v2/tokens", headers, body)
    assert answer.status == 201
    entries = server.get("/api/v2/audit")
    assert "203.0.113.7" not in str(entries)
    assert "chosen-by-the-client" not in str(entries)
    assert f"{answer.header('x-ostiary-request-id')}" in str(entries)
