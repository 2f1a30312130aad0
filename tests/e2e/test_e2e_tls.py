"""TLS on both sides: towards the client and towards the provider."""

import ssl
import time
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import anthropic
import httpx
import openai
import pytest
import trustme

from tests.e2e.conftest import CHAT, DATA_PLANE, MESSAGES
from tests.support.fake_provider import FakeProvider
from tests.support.raw_http import RawConnection
from tests.support.server import PROVIDER_KEY, Server, eventually, kept, open_directory


class Secured(NamedTuple):
    server: Server
    fake: FakeProvider
    trust: ssl.SSLContext
    token: str

    @property
    def url(self) -> str:
        return f"{self.server.url}{DATA_PLANE}"

    def connect(self) -> RawConnection:
        connection = RawConnection(self.server.port)
        connection.socket = self.trust.wrap_socket(connection.socket, server_hostname="127.0.0.1")
        return connection


@pytest.fixture(scope="module")
def secured() -> Iterator[Secured]:
    with open_directory() as directory:
        authority = trustme.CA()
        authority.cert_pem.write_to_path(directory / "ca.pem")
        files: dict[str, str] = {}
        for name in ("provider", "listener"):
            made = authority.issue_cert("127.0.0.1")
            made.private_key_pem.write_to_path(directory / f"{name}.key")
            made.cert_chain_pems[0].write_to_path(directory / f"{name}.pem")
            files |= {name: str(directory / f"{name}.pem"), f"{name} key": str(directory / f"{name}.key")}
        trust = ssl.create_default_context(cafile=str(directory / "ca.pem"))
        fake = FakeProvider(directory, "--tls-cert-file", files["provider"], "--tls-key-file", files["provider key"])
        fake.client = httpx.Client(base_url=fake.url, verify=trust)
        misnamed = fake.url.replace("127.0.0.1", "localhost")
        server = Server(
            directory,
            fake,
            *("--workers", "1", "--tls-cert-file", files["listener"], "--tls-key-file", files["listener key"]),
            OSTIARY_CA_FILE=str(directory / "ca.pem"),
            OSTIARY_PROVIDER_2_TYPE="openai",
            OSTIARY_PROVIDER_2_NAME="misnamed",
            OSTIARY_PROVIDER_2_BASE_URL=f"{misnamed}/v1",
            OSTIARY_PROVIDER_2_KEY=PROVIDER_KEY,
        ).start()
        yield Secured(server, fake, trust, server.new_token("ann"))
        server.kill()
        fake.stop()


def test_the_sdks_speak_tls_and_so_does_the_provider(secured: Secured) -> None:
    assert secured.server.url.startswith("https://")
    assert secured.fake.url.startswith("https://")
    prompt: Any = [{"role": "user", "content": "say this back, under seal"}]
    ids = []
    with openai.OpenAI(
        base_url=f"{secured.url}/openai/v1",
        api_key=secured.token,
        http_client=openai.DefaultHttpxClient(verify=secured.trust),
    ) as client:
        raw = client.chat.completions.with_raw_response.create(model="m", messages=prompt, stream=True)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in raw.parse() if chunk.choices)
        assert text == "say this back, under seal"
        ids.append(raw.headers["x-ostiary-interception-id"])
    with anthropic.Anthropic(
        base_url=f"{secured.url}/anthropic",
        api_key=secured.token,
        http_client=anthropic.DefaultHttpxClient(verify=secured.trust),
    ) as claude:
        answer = claude.messages.with_raw_response.create(model="m", max_tokens=99, messages=prompt)
        assert answer.parse().content[0].text == "say this back, under seal"  # type: ignore[union-attr]
        ids.append(answer.headers["x-ostiary-interception-id"])
    for one in ids:
        record = secured.server.interception(one)
        assert record["outcome"] == "completed"
        assert len(record["token_usages"]) == 1


def test_a_large_body_passes_both_seals(secured: Secured) -> None:
    body = MESSAGES.body("x" * 5_000_000)
    with secured.connect() as connection:
        headers = {"Authorization": f"Bearer {secured.token}", "X-Fake-Mark": "large-over-tls"}
        connection.request("POST", DATA_PLANE + MESSAGES.path(), headers, body)
        answer = connection.answer()
    assert (answer.status, answer.complete) == (200, True)
    assert len(answer.json()["content"][0]["text"]) == 5_000_000
    assert secured.fake.entry("large-over-tls")["body_bytes"] == len(body)


@pytest.mark.parametrize(
    "control", ["cut=mid-body", "cut=mid-chunk", "cut=mid-body reset", "cut=mid-body reset framing=close"]
)
def test_a_cut_stream_has_no_clean_end_under_tls(secured: Secured, control: str) -> None:
    with secured.connect() as connection:
        body = MESSAGES.body("to be cut " * 30, stream=True, model=f"fake:{control}")
        bearer = {"Authorization": f"Bearer {secured.token}"}
        connection.request("POST", DATA_PLANE + MESSAGES.path(), bearer, body)
        answer = connection.answer()
    assert answer.status == 200
    assert not answer.complete
    record = secured.server.interception(answer.interception_id)
    assert (record["outcome"], record["status_code"]) == ("upstream_error", 200)


def test_a_client_that_leaves_ends_the_upstream_within_100_ms_under_tls(secured: Secured) -> None:
    def seconds(number: int) -> float:
        mark = f"tls-left-{number}"
        with secured.connect() as connection:
            headers = {"Authorization": f"Bearer {secured.token}", "X-Fake-Mark": mark}
            body = CHAT.body("a stream that takes its time " * 5, stream=True, model="fake:pace=400")
            connection.request("POST", DATA_PLANE + CHAT.path(), headers, body)
            seen = b""
            while b"data: " not in seen:
                seen += connection.read_some()
            left = time.monotonic()
        abort = eventually(partial(aborts_of, secured.fake, mark))
        return float(abort[0]["monotonic"]) - left

    kept(0.1, seconds)


def aborts_of(fake: FakeProvider, mark: str) -> list[dict[str, Any]]:
    return [abort for abort in fake.requests(limit=0)["aborts"] if abort["mark"] == mark]


def test_a_provider_whose_certificate_is_not_its_own_gets_nothing(secured: Secured) -> None:
    reached = secured.fake.requests(limit=0)["count"]
    with secured.connect() as connection:
        bearer = {"Authorization": f"Bearer {secured.token}"}
        connection.request("POST", DATA_PLANE + CHAT.path("misnamed"), bearer, CHAT.body())
        answer = connection.answer()
    assert answer.status == 502
    assert "certificate" in answer.json()["error"]["message"]
    assert secured.fake.requests(limit=0)["count"] == reached
    record = secured.server.interception(answer.interception_id)
    assert (record["outcome"], record["error_type"]) == ("upstream_error", "server_error")


def test_plain_http_on_the_tls_port_is_closed(secured: Secured) -> None:
    with RawConnection(secured.server.port) as connection:
        connection.request("POST", DATA_PLANE + CHAT.path(), {"Authorization": f"Bearer {secured.token}"}, CHAT.body())
        assert not connection.read_some().startswith(b"HTTP/")
