"""`ostiary gateway start` against a real `ostiary server`: serving, outages, restarts, refusals."""

import os
import ssl
import time
from pathlib import Path

import httpx
import pytest
import trustme

from ostiary.rpc import version
from tests.support.fake_provider import FakeProvider
from tests.support.gateway import Gateway, Ingress, StartGateway, ask, new_key, recorded
from tests.support.load import BLOCKING, Call, Load
from tests.support.server import Server, StartServer, eventually

OUTAGE_SECONDS = 60.0 if os.environ.get("CHAOS") == "1" else 5.0


def load_of(gateway: Gateway, token: str) -> Load:
    return Load(gateway.url, token, concurrency=3, kinds=(BLOCKING,))


def kill_and_start(gateway: Gateway, load: Load) -> list[Call]:
    """The calls that were cut by that: no other may fail."""
    assert load.failures() == []
    gateway.kill()
    gateway.start()
    cut = load.failures()
    assert not any(call.complete for call in cut), cut
    return cut


def test_it_serves_under_every_prefix_and_its_records_arrive(server: Server, start_gateway: StartGateway) -> None:
    key = new_key(server, "serves")
    gateway = start_gateway(server.url, key["key"])
    token = server.new_token("sam")
    ids = []
    for prefix in ("/api/v2/ai-gateway", "/api/v2/aibridge", ""):
        answer = ask(gateway.url, token, f"{prefix}/openai/v1/chat/completions")
        assert answer.status_code == 200, answer.text
        ids.append(answer.headers["x-ostiary-interception-id"])
    for interception_id in ids:
        found = server.interception(interception_id)
        assert (found["initiator"]["username"], found["provider_name"], found["outcome"]) == (
            "sam",
            "openai",
            "completed",
        )
    assert ask(gateway.url, "ost_nobody").status_code == 401
    for path in ("/healthz", "/readyz"):
        assert (httpx.get(gateway.url + path).status_code, httpx.get(gateway.url + path).content) == (200, b"")
    no_api = httpx.get(f"{gateway.url}/api/v2/users")
    assert (no_api.status_code, "the API is at its server" in no_api.text) == (404, True)
    listed = next(row for row in server.get("/api/v2/ai-gateway/keys") if row["name"] == "serves")
    assert listed["last_heartbeat_at"] is not None
    assert gateway.stop() == 0
    for path in (gateway.log, *(gateway.data_dir / "link").iterdir()):
        assert key["key"].encode() not in path.read_bytes()


def test_a_deleted_key_ends_the_gateway_after_draining(server: Server, start_gateway: StartGateway) -> None:
    key = new_key(server, "deleted")
    gateway = start_gateway(server.url, key["key"])
    token = server.new_token("dora")
    assert ask(gateway.url, token).status_code == 200
    eventually(lambda: (gateway.data_dir / "link" / "tokens").exists(), what="the cache is written")
    body = {"model": "gpt-5.4-mini", "stream": True, "messages": [{"role": "user", "content": "Hello"}]}
    control = {"x-fake-control": "chunks=40 gap=100"}
    with httpx.stream(
        "POST",
        f"{gateway.url}/openai/v1/chat/completions",
        json=body,
        headers={"Authorization": f"Bearer {token}"} | control,
        timeout=30,
    ) as stream:
        lines = stream.iter_lines()
        next(lines)
        assert server.owner.delete(f"/api/v2/ai-gateway/keys/{key['id']}").status_code == 204
        deleted_at = time.monotonic()
        rest = list(lines)
        assert "data: [DONE]" in rest, "the stream was finished, not cut"
    assert gateway.ended() != 0
    assert time.monotonic() - deleted_at < 15
    assert not list((gateway.data_dir / "link").iterdir()), "the cache is wiped"
    (line, *_) = gateway.complaints()
    assert "refuses this gateway's key" in line
    assert "ostiary gateway keys create" in line


def test_a_wrong_key_ends_the_start_with_one_line(server: Server, start_gateway: StartGateway) -> None:
    gateway = start_gateway(server.url, "w" * 43, ready=False)
    assert gateway.ended() == 1
    assert len(gateway.complaints()) == 1, gateway.tail()
    (line,) = gateway.complaints()
    assert "refuses this gateway's key" in line
    assert "w" * 43 not in gateway.log.read_text()


@pytest.mark.parametrize(
    ("shift", "cure"), [("MINOR += 1", "upgrade the control plane first"), ("MAJOR += 1", "major")]
)
def test_another_version_ends_the_start_with_one_line(
    shift: str, cure: str, server: Server, start_gateway: StartGateway, tmp_path: Path
) -> None:
    """A gateway of another build: the same code with another number."""
    source = Path(__file__).parents[2] / "src"
    (tmp_path / "sitecustomize.py").write_text(
        f"from ostiary.rpc import version\nversion.{shift}\nversion.CURRENT = f'{{version.MAJOR}}.{{version.MINOR}}'\n"
    )
    key = new_key(server, f"version-{shift[:3].lower()}{shift[1].lower()}")
    gateway = start_gateway(server.url, key["key"], ready=False, PYTHONPATH=f"{tmp_path}:{source}")
    assert gateway.ended() == 1
    assert len(gateway.complaints()) == 1, gateway.tail()
    (line,) = gateway.complaints()
    assert "does not take this gateway" in line
    assert cure in line


def test_an_address_where_no_control_plane_is_ends_the_start(fake: FakeProvider, start_gateway: StartGateway) -> None:
    gateway = start_gateway(fake.url, "k" * 43, ready=False)
    assert gateway.ended() == 1
    assert len(gateway.complaints()) == 1, gateway.tail()
    (line,) = gateway.complaints()
    assert "correct the control plane's URL" in line


def test_nothing_fails_and_nothing_is_lost_while_the_control_plane_is_away(
    start_server: StartServer, own_fake: FakeProvider, start_gateway: StartGateway
) -> None:
    server = start_server(own_fake, "--workers", "1")
    gateway = start_gateway(server.url, new_key(server)["key"])
    token, unknown = server.new_token("olga"), server.new_token("late")
    with load_of(gateway, token) as load:
        load.progress(20)
        server.stop()
        stopped = time.monotonic()
        load.progress(20)
        assert ask(gateway.url, unknown).status_code == 503
        assert httpx.get(f"{gateway.url}/readyz").status_code == 200
        while time.monotonic() - stopped < OUTAGE_SECONDS:
            load.progress(10)
        server.start()
        load.progress(20)
    assert load.failures() == []
    assert load.refused == 0
    recorded(server, load.ids, within=60)
    assert eventually(lambda: ask(gateway.url, unknown).status_code == 200, within=20)
    assert gateway.stop() == 0


def test_a_gateway_killed_while_the_control_plane_is_away_serves_again(
    start_server: StartServer, own_fake: FakeProvider, start_gateway: StartGateway
) -> None:
    server = start_server(own_fake, "--workers", "1")
    gateway = start_gateway(server.url, new_key(server)["key"])
    token, unknown = server.new_token("olga"), server.new_token("late")
    with load_of(gateway, token) as load:
        load.progress(20)
        eventually(lambda: (gateway.data_dir / "link" / "tokens").exists(), what="the cache is written")
        server.stop()
        load.progress(20)
        cut = kill_and_start(gateway, load)
        load.progress(20)
        assert ask(gateway.url, unknown).status_code == 503
        assert "serving what was known before the restart" in gateway.log.read_text()
        server.start()
        load.progress(10)
    assert load.failures() == cut
    recorded(server, load.ids, within=60)
    assert gateway.stop() == 0


def test_a_half_written_cache_is_ignored_with_a_warning(server: Server, start_gateway: StartGateway) -> None:
    ingress = Ingress(server)
    gateway = start_gateway(ingress.url, new_key(server, "half")["key"])
    eventually(lambda: (gateway.data_dir / "link" / "snapshot").exists(), what="the cache is written")
    assert gateway.stop() == 0
    path = gateway.data_dir / "link" / "snapshot"
    path.write_bytes(path.read_bytes()[:-7])
    ingress.answer(502)
    gateway.start(ready=False)
    eventually(lambda: "ignoring a cache" in gateway.log.read_text(), what="the warning")
    assert httpx.get(f"{gateway.url}/readyz").status_code == 503
    ingress.answer(None)
    gateway.wait_ready()
    ingress.close()


@pytest.mark.parametrize("status", [404, 502])
def test_an_ingress_in_trouble_stops_no_running_gateway(
    status: int, server: Server, start_gateway: StartGateway
) -> None:
    ingress = Ingress(server)
    gateway = start_gateway(ingress.url, new_key(server, f"ingress-{status}")["key"])
    with load_of(gateway, server.new_token("ina")) as load:
        load.progress(5)
        eventually(lambda: (gateway.data_dir / "link" / "tokens").exists(), what="the cache is written")
        ingress.answer(status)
        eventually(lambda: ingress.answered >= 5, within=30, what="the link tries again and again")
        load.progress(5)
        cut = kill_and_start(gateway, load)
        load.progress(5)
        ingress.answer(None)
    assert load.failures() == cut
    recorded(server, load.ids)
    assert gateway.stop() == 0
    ingress.close()


def certificates(directory: Path, authority: trustme.CA, name: str, *hosts: str) -> tuple[str, str]:
    leaf = authority.issue_cert(*hosts)
    leaf.private_key_pem.write_to_path(str(directory / f"{name}-key.pem"))
    leaf.cert_chain_pems[0].write_to_path(str(directory / f"{name}.pem"))
    return str(directory / f"{name}.pem"), str(directory / f"{name}-key.pem")


def test_tls_and_client_certificates_towards_the_control_plane(
    start_server: StartServer, own_fake: FakeProvider, start_gateway: StartGateway, tmp_path: Path
) -> None:
    tmp_path.chmod(0o755)
    authority, strangers = trustme.CA(), trustme.CA()
    ca = str(tmp_path / "ca.pem")
    authority.cert_pem.write_to_path(ca)
    cert, key = certificates(tmp_path, authority, "server", "127.0.0.1")
    mine = certificates(tmp_path, authority, "gateway", "gateway@example.com")
    theirs = certificates(tmp_path, strangers, "stranger", "gateway@example.com")
    server = start_server(
        own_fake, "--workers", "1", "--tls-cert-file", cert, "--tls-key-file", key, "--client-ca-file", ca
    )
    gateway_key = new_key(server)["key"]
    trusted = ("--control-ca-file", ca)

    bare = start_gateway(server.url, gateway_key, *trusted, ready=False)
    assert bare.ended() == 1
    assert "a client certificate is needed" in bare.complaints()[0]

    listener = certificates(tmp_path, authority, "listener", "127.0.0.1")
    gateway = start_gateway(
        server.url,
        gateway_key,
        *trusted,
        *("--control-cert-file", mine[0], "--control-key-file", mine[1]),
        *("--tls-cert-file", listener[0], "--tls-key-file", listener[1]),
    )
    answer = ask(gateway.url, server.new_token("tess"))
    assert answer.status_code == 200
    assert server.interception(answer.headers["x-ostiary-interception-id"])["initiator"]["username"] == "tess"
    assert gateway.stop() == 0

    untrusting = start_gateway(server.url, gateway_key, ready=False)
    stranger = start_gateway(
        server.url,
        gateway_key,
        *trusted,
        "--control-cert-file",
        theirs[0],
        "--control-key-file",
        theirs[1],
        ready=False,
    )
    for one in (untrusting, stranger):
        eventually(lambda one=one: "waiting for the control plane" in one.log.read_text(), what="it tries again")
        assert httpx.get(f"{one.url}/readyz").status_code == 503


def test_no_way_of_writing_a_path_leads_around_the_client_certificate(
    start_server: StartServer, own_fake: FakeProvider, tmp_path: Path
) -> None:
    tmp_path.chmod(0o755)
    authority = trustme.CA()
    ca = str(tmp_path / "ca.pem")
    authority.cert_pem.write_to_path(ca)
    cert, key = certificates(tmp_path, authority, "server", "127.0.0.1")
    mine = certificates(tmp_path, authority, "gateway", "gateway@example.com")
    files = ("--tls-cert-file", cert, "--tls-key-file", key, "--client-ca-file", ca)
    server = start_server(own_fake, "--workers", "1", *files)
    sent = {version.HEADER_GATEWAY_KEY: new_key(server)["key"], version.HEADER_API_VERSION: version.CURRENT}
    bare, shown = ssl.create_default_context(cafile=ca), ssl.create_default_context(cafile=ca)
    shown.load_cert_chain(*mine)
    with httpx.Client(verify=bare, headers=sent) as without, httpx.Client(verify=shown, headers=sent) as with_it:

        def ask_both(target: str) -> tuple[int, int]:
            raw = {"target": target.encode()}
            first, second = (one.post(server.url, json={}, extensions=raw) for one in (without, with_it))
            if first.status_code == 400:
                assert "a client certificate is needed" in first.text
                assert first.headers["x-ostiary-request-id"]
            return first.status_code, second.status_code

        exact = "/ostiary.v1.ProviderConfigurator/GetAIProviders"
        assert ask_both(exact) == (400, 200)
        for target in (
            exact.replace("o", "%6f"),
            "/%6Fstiary.v1.ProviderConfigurator/GetAIProviders",
            "/ostiary%2Ev1.ProviderConfigurator/GetAIProviders",
            "/ostiary%2ev1%2eProviderConfigurator%2fGetAIProviders",
            f"{server.url}/%6Fstiary.v1.ProviderConfigurator/GetAIProviders",
            "/%6Fstiary.v1.ProviderConfigurator/GetAIProviders?a=%",
        ):
            assert ask_both(target) == (400, 200), target
        for target in (
            f"/{exact}",
            f"/.{exact}",
            f"/x/..{exact}",
            f"/%2E%2E{exact}",
            f"/%2F{exact[1:]}",
            f"/%2e/%6Fstiary{exact[8:]}",
            "/%256Fstiary.v1.ProviderConfigurator/GetAIProviders",
            "/OSTIARY.v1.ProviderConfigurator/GetAIProviders",
            "/%EF%BD%8Fstiary.v1.ProviderConfigurator/GetAIProviders",
            f"{server.url}/{exact}",
        ):
            assert ask_both(target) == (404, 404), target


def test_large_records_pass_the_front_door(server: Server, start_gateway: StartGateway) -> None:
    gateway = start_gateway(server.url, new_key(server, "large")["key"])
    token = server.new_token("lars")
    prompt = os.urandom(6 * 1024 * 1024).hex()
    ids = []
    for _ in range(2):
        answer = httpx.post(
            f"{gateway.url}/openai/v1/chat/completions",
            json={"model": "gpt-5.4-mini", "messages": [{"role": "user", "content": prompt}]},
            headers={"Authorization": f"Bearer {token}"},
            timeout=30,
        )
        assert answer.status_code == 200, answer.text
        ids.append(answer.headers["x-ostiary-interception-id"])
    for interception_id in ids:
        (recorded_prompt,) = server.interception(interception_id)["user_prompts"]
        assert recorded_prompt["prompt"]
    assert gateway.stop() == 0


def test_a_server_that_stops_is_not_held_up_by_watches(
    start_server: StartServer, own_fake: FakeProvider, start_gateway: StartGateway
) -> None:
    server = start_server(own_fake, "--workers", "1")
    key = new_key(server)["key"]
    gateway = start_gateway(server.url, key)
    sent = {
        version.HEADER_GATEWAY_KEY: key,
        version.HEADER_API_VERSION: version.CURRENT,
        "Content-Type": "application/connect+json",
    }
    written_otherwise = httpx.URL(server.url).copy_with(raw_path=b"/%6Fstiary.v1.Authorizer/%57atchRevocations")
    with httpx.stream("POST", written_otherwise, content=b"\0\0\0\0\2{}", headers=sent, timeout=30) as watch:
        assert (watch.status_code, watch.headers["content-type"]) == (200, "application/connect+json")
        begun = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - begun < 15
    assert gateway.is_ready()
