"""Every type of provider that takes requests as they are: what goes up is what the client sent, but for the declared splice."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.e2e.conftest import DATA_PLANE, Person, RawUpstream
from tests.support.fake_provider import FakeProvider
from tests.support.server import PROVIDER_KEY, Server, open_directory

OWN = "gho_a-token-of-the-persons-own-0123456789"
TYPES = ("openai", "azure", "google", "vercel", "openrouter", "openai-compat", "anthropic", "copilot")
SPLICED = {"openai", "azure", "google", "vercel", "openrouter"}
"""Their chat streams are asked for usage."""
USAGE = b'"stream_options":{"include_usage":true}'


@pytest.fixture(scope="module")
def somebody(fake: FakeProvider, upstream: RawUpstream) -> Iterator[Person]:
    """On a server with a provider of each type, all of which are the test itself."""
    variables: dict[str, str] = {}
    for number, kind in enumerate(TYPES, 2):
        of = f"OSTIARY_PROVIDER_{number}_"
        base = "/" if kind in ("anthropic", "copilot") else "/some/base/v1/"
        variables |= {f"{of}TYPE": kind, f"{of}NAME": f"a-{kind}", f"{of}BASE_URL": f"{upstream.url}{base}"}
        if kind != "copilot":
            variables[f"{of}KEY"] = PROVIDER_KEY
    with open_directory() as directory:
        server = Server(directory, fake, "--workers", "1", **variables).start()
        yield Person(server, "ann", server.new_token("ann"))
        server.kill()


ROUTES = dict.fromkeys(TYPES, ("/v1/chat/completions", "/v1/responses", "/v1/embeddings", "/v1/models/x")) | {
    "anthropic": ("/v1/messages", "/v1/messages/count_tokens"),
    "copilot": ("/chat/completions", "/responses", "/v1/messages", "/agents/x"),
}

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), TEXT),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXT, inner, max_size=3)),
    max_leaves=8,
)


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """A JSON object with a model, written in one of the ways that clients write."""
    more: dict[str, Any] = draw(st.dictionaries(TEXT, JSON, max_size=4))
    body = more | {"model": "m", "messages": draw(JSON), "input": draw(JSON), "stream": draw(st.booleans())}
    for known in ("stream_options", "background"):
        body.pop(known, None)
    items = draw(st.permutations(list(body.items())))
    separators = draw(st.sampled_from([(",", ":"), (", ", ": "), (" ,\r\n\t", " : ")]))
    text = json.dumps(dict(items), ensure_ascii=draw(st.booleans()), separators=separators)
    return draw(st.sampled_from(["", " ", "\n"])).encode() + text.encode() + draw(st.sampled_from([b"", b"\r\n"]))


@pytest.mark.parametrize("kind", TYPES)
def test_what_goes_up_is_what_was_sent(somebody: Person, upstream: RawUpstream, kind: str) -> None:
    headers = (
        {"Authorization": f"Bearer {OWN}", "X-Ostiary-Token": somebody.token} if kind == "copilot" else somebody.bearer
    )

    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
    @given(bodies(), st.sampled_from(ROUTES[kind]))
    def check(body: bytes, route: str) -> None:
        with somebody.connect() as connection:
            connection.request("POST", f"{DATA_PLANE}/a-{kind}{route}", headers, body)
            with upstream.request() as request:
                request.answer()
            answer = connection.answer()
        assert answer.status == 200
        base = "/some/base" if kind not in ("anthropic", "copilot") else ""
        assert request.line == f"POST {base}{route} HTTP/1.1"
        spliced = kind in SPLICED and route == "/v1/chat/completions" and json.loads(body)["stream"] is True
        if not spliced:
            assert request.body == body
            return
        before, _, after = request.body.partition(USAGE)
        assert before + after.removeprefix(b",") == body
        edits = somebody.server.interception(answer.interception_id)["trace"]["edits"]
        assert len(edits) == 1
        assert "include_usage" in edits[0]

    check()


@pytest.mark.parametrize("kind", ["openai", "azure", "openai-compat"])
def test_a_form_goes_up_as_it_came(somebody: Person, upstream: RawUpstream, kind: str) -> None:
    content_type = "multipart/form-data; boundary=b0"

    @settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.binary(max_size=200), st.integers(0, 200_000), st.booleans())
    def check(begin: bytes, size: int, model_first: bool) -> None:
        model = b'--b0\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n'
        file = (
            b'--b0\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n' + begin + bytes(size) + b"\r\n"
        )
        body = (model + file if model_first else file + model) + b"--b0--\r\n"
        headers = somebody.bearer | {"Content-Type": content_type}
        with somebody.connect() as connection:
            connection.request("POST", f"{DATA_PLANE}/a-{kind}/v1/audio/transcriptions", headers, body)
            with upstream.request() as request:
                request.answer(b'{"text":"said","usage":{"type":"duration","seconds":3}}')
            answer = connection.answer()
        assert request.body == body
        assert request.header("content-type") == content_type
        record = somebody.server.interception(answer.interception_id)
        if model_first or size < 60_000:
            assert record["model"] == "m"
        elif size > 66_000:
            assert record["model"] == ""  # it stands too far behind to be waited for
        assert record["token_usages"][0]["metadata"] == {"audio_ms": 3000}

    check()
